// Package reaper removes the cause of zombies: it asks a parent to reap, reaps in
// its name, and as a last resort terminates it. Parents that met the rule flow in;
// signals, through pidfds, and an [Outcome] for each parent flow out. It is the only
// package of kzr that sends a signal.
//
// What it does to one parent is a ladder: a list of steps, each of which does one
// thing, waits, and checks by itself whether that was enough. The parent is
// verified before each of them, and a doubt means that nothing is done. Ladders run
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
	// Reason, if not empty, is why it is not to be signalled now, pressure taken into
	// account. Deferred says more about it, for the log: which child it waits for.
	Reason   policy.Reason
	Deferred string
	// Zombies counts its children in state Z, Reapable those of them that it could
	// reap, and Adopted those of these that somebody else forked. Oldest is the age of
	// the oldest reapable one, and Rule is the name of the configured rule, if any.
	Zombies, Reapable, Adopted int
	Oldest                     time.Duration
	Rule                       string
	// Old are those of the reapable ones that are old enough for the rule, with
	// Since filled in and the same in every look. The reaper only reads them and lets
	// go of them soon.
	Old []task.Zombie
	// Pressure says which limit on pids is nearly reached with its zombies among the
	// reasons.
	Pressure policy.Pressure
	// Nudge and TermTimeout are the waits after SIGCHLD and SIGTERM, as configuration
	// and pressure leave them; 0 skips the step. Under pressure a Nudge of 0 sends
	// SIGCHLD and hardly waits.
	Nudge, TermTimeout time.Duration
	// Reap says which zombies may be reaped inside it.
	Reap config.Reap
}

// within counts the zombies that may be reaped inside it.
func (l *Look) within() int {
	if l.Reap == config.ReapAll {
		return l.Reapable
	}
	return l.Adopted
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

// Inside reaps zombies in the name of a parent that lives on.
type Inside interface {
	// Reap reaps what look.Reap allows of the zombies of the parent that pidfd and
	// look are about. It is called by several goroutines at once, returns before the
	// context's deadline, and keeps neither argument. Under pressure (look.Pressure) it
	// does not wait for a parent that cannot be reaped in right now. An error means that
	// it cannot be known what was done.
	Reap(ctx context.Context, pidfd int, look *Look) (Insided, error)
}

// Insided is what came of reaping inside a parent.
type Insided struct {
	Reaped  int
	Left    int           // zombies that could be reaped the same way, and were not yet
	Stopped time.Duration // how long it stood still at a stretch, at most
	// Alone is how long the parent is to be left alone, as a timeout of its own has
	// begun anew; 0 if none has.
	Alone time.Duration
	// Refused says in words why it was not done, or not to the end; "" if nothing
	// stood in the way. Transient says that it may be possible soon.
	Refused   string
	Transient bool
}

// Settings are what a reload may change.
type Settings struct {
	// DryRun does everything but send signals and reap. A ladder that began as a dry
	// run, or during which it was set, stays one to its end.
	DryRun bool
	Limits config.Limits
}

// Options are what a reaper works with.
type Options struct {
	Judge    Judge
	Settings Settings
	// Report takes decisions. Several goroutines call it at once, and it must not
	// block for long.
	Report func(report.Event)
	// Inside is nil if nothing can be reaped inside a parent.
	Inside Inside
	// Save, if not nil, is called with what a restart must not forget, after a kill
	// was counted and before its signal is sent, by one goroutine at a time. It must
	// not block for long, nor call the reaper.
	Save func(State)
	// State is what an earlier reaper saved since boot.
	State State
}

// Who is whose a parent is.
type Who struct {
	// Workload is what kills are limited, and done one at a time, by; "" stands for
	// the parent alone.
	Workload string
	// Owner is whose share of the node's limit a kill takes; "" is the workload.
	Owner string
	Init  bool // it is its container's init
}

// Result says how a ladder ended.
type Result string

// The results.
const (
	Reaped     Result = "reaped"     // zombies were reaped, by it or in its name, and it lives
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
	// Until is when it makes sense to act on this parent again, zero if the caller is
	// to judge. With the reason [policy.Backoff] it is the moment at which its
	// workload has a kill left; what harms nobody can be tried sooner. With [Reaped]
	// it is the moment at which more of its zombies may be reaped inside it.
	Until time.Time
	Limit Limit // with that reason: which one it is
	// Message says what was reported last, in words.
	Message string
	Tried   bool // of Spared and GaveUp: a signal was sent, or refused; else it could not be looked at
}

// Status is what a running ladder is held up by.
type Status struct {
	Reason  policy.Reason // why it sends no signal right now, "" if nothing stands in the way
	Message string        // the same in words
	Until   time.Time     // of RateLimited: when a kill may come, as far as known
	Limit   Limit         // of RateLimited, if it is one
}

// Limit is a limit on kills that is used up.
type Limit struct {
	Name  string
	Since time.Time // zero if it never allowed a kill
}

// The limits, named as in the configuration; Pause is what [PerWorkload] becomes when the
// workload's own pids run out.
const (
	KillsPerMinute = "killsPerMinute"
	PerWorkload    = "perWorkload"
	Pause          = "pause"
)

// Reaper runs ladders.
type Reaper struct {
	Options
	ctx      context.Context
	outcomes chan Outcome
	limits   *limits
	slots    slots
	timing   timing
	running  sync.WaitGroup
	saving   sync.Mutex // one Save at a time, the newest state last

	mu      sync.Mutex
	dryRun  bool
	ladders map[task.ID]*ladder
	// acting are the parents that a ladder of this process has sent SIGTERM or SIGKILL
	// to, or is about to, and that are not known to be dead.
	acting  map[task.ID]bool
	history history
}

// timing holds the waits that are nobody's setting.
type timing struct {
	look    time.Duration // between looks at a parent that is deferred
	check   time.Duration // between checks whether one that waits for the limits lives
	urgent  time.Duration // what SIGCHLD has to have an effect in under pressure
	stalled time.Duration // in which SIGCHLDs have to make its old zombies fewer
	nudges  time.Duration // how long it is sent SIGCHLDs, at least
	inside  time.Duration // the whole step of reaping inside it
	kill    time.Duration // what a killed process has to be gone in, if nothing is seen to hold it up
	dying   time.Duration // the same if something is: it is exiting and blocked, or asleep in the kernel
	next    time.Duration // after which one that is dying holds up no other when the node's pids run out
	reap    time.Duration // what the zombies of a dead parent have to be reaped in before they count as moved
}

var defaultTiming = timing{
	look: time.Second, check: 10 * time.Second,
	urgent: 10 * time.Millisecond, stalled: 3 * time.Second, nudges: 30 * time.Second, inside: 30 * time.Second,
	kill: 30 * time.Second, dying: 10 * time.Minute, next: 2 * time.Second, reap: time.Second,
}

// New returns a reaper without ladders. When ctx ends, every ladder stops where
// it is and sends nothing more.
func New(ctx context.Context, o Options) *Reaper {
	r := &Reaper{
		Options:  o,
		ctx:      ctx,
		outcomes: make(chan Outcome),
		limits:   newLimits(o.Settings.Limits, task.SinceBoot),
		timing:   defaultTiming,
		dryRun:   o.Settings.DryRun,
		ladders:  map[task.ID]*ladder{},
		acting:   map[task.ID]bool{},
		history:  history{},
	}
	r.limits.restore(o.State)
	if !r.dryRun {
		r.limits.forgetRehearsed()
	}
	return r
}

// Act starts a ladder for a parent that met the rule and returns at once. It
// returns false if one is running already or the reaper is stopping.
func (r *Reaper) Act(id task.ID, who Who) bool {
	if r.ctx.Err() != nil {
		return false
	}
	if who.Workload == "" {
		who.Workload = id.String()
	}
	if who.Owner == "" {
		who.Owner = who.Workload
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ladders[id] != nil {
		return false
	}
	l := &ladder{r: r, id: id, who: who, poked: make(chan struct{}, 1)}
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
		if out.Result != Cancelled {
			delete(r.acting, id)
		}
	})
	return true
}

// Hurry lets a ladder look again now, and go before the others if it waits for its
// turn: its parent's zombies are among the reasons why pids run out.
func (r *Reaper) Hurry(id task.ID) {
	r.mu.Lock()
	l := r.ladders[id]
	if l == nil {
		r.mu.Unlock()
		return
	}
	l.hurry = true
	slot, waiting := l.slot, l.waiting
	r.mu.Unlock()
	if slot != nil {
		r.slots.hurry(slot)
	}
	if waiting != nil {
		waiting.hurry()
	}
	select {
	case l.poked <- struct{}{}:
	default:
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

// Status says whether a ladder of this parent is running, and what holds it up.
func (r *Reaper) Status(id task.ID) (status Status, running bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.ladders[id]; l != nil {
		return l.status, true
	}
	return Status{}, false
}

// Set puts other settings in force, for running ladders too. The waits come with
// every look, so a running ladder follows those as well, from its next step on.
func (r *Reaper) Set(set Settings) {
	r.mu.Lock()
	rehearsed := r.dryRun && !set.DryRun
	r.dryRun = set.DryRun
	r.mu.Unlock()
	if rehearsed {
		r.limits.forgetRehearsed()
	}
	r.limits.change(set.Limits)
}

// Wait waits, once the reaper's context has ended, until no ladder is left.
func (r *Reaper) Wait() { r.running.Wait() }
