// Package reaper removes the cause of zombies: it asks a parent to reap, then
// to end, then ends it. Parents that met the rule flow in; signals, through
// pidfds, and an [Outcome] for each parent flow out. It is the only package of
// kzr that sends a signal.
//
// What it does to one parent is a ladder: a list of steps, each of which sends a
// signal, waits, and checks by itself whether that was enough. The parent is
// verified before every signal, and a doubt means that none is sent. Ladders run
// side by side, each in goroutines that never hold a thread while they wait, and
// only so many at a time hold a descriptor.
package reaper

import (
	"context"
	"sync"
	"time"

	"kzr/internal/config"
	"kzr/internal/policy"
	"kzr/internal/report"
	"kzr/internal/task"
)

// Look is one fresh look at a parent.
type Look struct {
	Process task.Process
	// Met says that it meets the rule: at least Threshold zombies, each for at least
	// Grace.
	Met       bool
	Threshold int
	Grace     time.Duration
	// Reason, if not empty, is why it is not to be signalled now.
	Reason policy.Reason
	// Reapable counts the zombies that it could reap, Oldest is the age of the
	// oldest of them, and Rule is the name of the configured rule, if any.
	Reapable int
	Oldest   time.Duration
	Rule     string
	// Zombies are those of the reapable ones that are old enough for the rule,
	// with Since filled in and the same in every look. The reaper only reads
	// them and lets go of them soon.
	Zombies []task.Zombie
	// Pressed says that a limit on pids is nearly reached and its zombies are why:
	// its turn comes before that of others.
	Pressed bool
	// Nudge and TermTimeout are the waits after SIGCHLD and SIGTERM, as
	// configuration and pressure leave them; 0 skips the step.
	Nudge, TermTimeout time.Duration
}

// Judge looks at processes for the reaper. Both methods are called by several
// goroutines at once, return early when the context ends, and read everything
// they return after the call began: nothing may come from a cache of contents.
type Judge interface {
	// Look looks at a parent. One that vanished, or whose pid now belongs to
	// another, is no error: it is reported as not met, or by the reason
	// [policy.IdentityChanged]. An error means that it could not be looked at.
	Look(ctx context.Context, id task.ID) (Look, error)
	// Holders says how many of these zombies, which had a parent that is dead
	// now, are still zombies under which parent. Those that are gone are not in
	// it.
	Holders(ctx context.Context, zombies []task.Zombie) (map[task.ID]int, error)
}

// Settings are what a reload may change.
type Settings struct {
	// DryRun does everything but send the signals. A ladder that began as a dry
	// run, or during which it was set, stays one to its end.
	DryRun bool
	Limits config.Limits
}

// Result says how a ladder ended.
type Result string

// The results.
const (
	Reaped     Result = "reaped"     // it fell under the rule after a signal, and lives
	Terminated Result = "terminated" // it is dead, after SIGTERM or SIGKILL
	Spared     Result = "spared"     // for Outcome.Reason; recovered is also the end by itself, and a rule that asks for more now
	GaveUp     Result = "gave_up"    // nothing more can be done; what was reported says why
	Rehearsed  Result = "rehearsed"  // a dry run came to its end
	Cancelled  Result = "cancelled"  // kzr is stopping
)

// Outcome is the end of one ladder.
type Outcome struct {
	ID     task.ID
	Result Result
	Reason policy.Reason // of Spared
	// Until is when it makes sense to act on this parent again, zero if the
	// caller is to judge: with the reason [policy.Backoff] the moment at which
	// its workload has a kill left.
	Until time.Time
	Tried bool // of GaveUp: a signal was sent, or refused; else it could not be looked at
}

// Reaper runs ladders.
type Reaper struct {
	ctx      context.Context
	judge    Judge
	report   func(report.Event)
	outcomes chan Outcome
	limits   *limits
	seats    seats
	timing   timing
	running  sync.WaitGroup

	mu      sync.Mutex
	dryRun  bool
	ladders map[task.ID]*ladder
}

// timing holds the waits that are nobody's setting.
type timing struct {
	look  time.Duration // between looks at a parent whose turn is put off
	check time.Duration // between checks whether one that waits for the limits lives
	kill  time.Duration // what a killed process has to be gone in, if nothing is seen to hold it up
	dying time.Duration // the same if something is: it is exiting and blocked, or asleep in the kernel
	reap  time.Duration // what the zombies of a dead parent have to be reaped in before they count as moved
}

var defaultTiming = timing{look: time.Second, check: 10 * time.Second, kill: 30 * time.Second, dying: 10 * time.Minute, reap: time.Second}

// New returns a reaper without ladders. When ctx ends, every ladder stops where
// it is and sends nothing more. Decisions go to report, which several goroutines
// call at once and which must not block for long.
func New(ctx context.Context, judge Judge, set Settings, report func(report.Event)) *Reaper {
	return &Reaper{
		ctx:      ctx,
		judge:    judge,
		report:   report,
		outcomes: make(chan Outcome),
		limits:   newLimits(set.Limits),
		timing:   defaultTiming,
		dryRun:   set.DryRun,
		ladders:  map[task.ID]*ladder{},
	}
}

// Act starts a ladder for a parent that met the rule and returns at once. It
// returns false if one is running already or the reaper is stopping. Kills are
// limited, and done one at a time, per workload; an empty one stands for the
// parent alone.
func (r *Reaper) Act(id task.ID, workload string) bool {
	if r.ctx.Err() != nil {
		return false
	}
	if workload == "" {
		workload = id.String()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ladders[id] != nil {
		return false
	}
	l := &ladder{r: r, id: id, workload: workload}
	r.ladders[id] = l
	r.running.Go(func() {
		out := l.run(r.ctx)
		out.ID = id
		// The ladder counts as running until its outcome is taken, so that nobody
		// starts another one in ignorance of it.
		select {
		case r.outcomes <- out:
		case <-r.ctx.Done():
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.ladders, id)
	})
	return true
}

// Hurry lets a ladder that waits for its turn go before the others: its parent's
// zombies have become the reason why pids run out.
func (r *Reaper) Hurry(id task.ID) {
	r.mu.Lock()
	l := r.ladders[id]
	if l == nil {
		r.mu.Unlock()
		return
	}
	l.hurry = true
	seat, waiting := l.seat, l.waiting
	r.mu.Unlock()
	if seat != nil {
		r.seats.hurry(seat)
	}
	if waiting != nil {
		waiting.hurry()
	}
}

func (r *Reaper) isDryRun() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dryRun
}

// Outcomes delivers the end of every ladder. Somebody must receive from it for
// as long as the reaper's context lives.
func (r *Reaper) Outcomes() <-chan Outcome { return r.outcomes }

// Status says whether a ladder of this parent is running, and why it sends no
// signal right now, "" if nothing stands in the way.
func (r *Reaper) Status(id task.ID) (reason policy.Reason, running bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.ladders[id]; l != nil {
		return l.reason, true
	}
	return "", false
}

// Set puts other settings in force, for running ladders too. The waits come with
// every look, so a running ladder follows those as well, from its next step on.
func (r *Reaper) Set(set Settings) {
	r.mu.Lock()
	rehearsed := r.dryRun && !set.DryRun
	r.dryRun = set.DryRun
	r.mu.Unlock()
	if rehearsed {
		r.limits.forget()
	}
	r.limits.change(set.Limits)
}

// Wait waits, once the reaper's context has ended, until no ladder is left.
func (r *Reaper) Wait() { r.running.Wait() }
