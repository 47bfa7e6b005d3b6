// Package daemon is kzr's loop. It looks when the kernel hints, when a parent
// is about to meet its rule, when pids run out, and every sweepInterval; it hands
// what is to be acted on to the reaper and every decision to the report. All waiting
// is for the moment that comes next: while nothing is wrong it sleeps.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kzr/internal/config"
	"kzr/internal/observer"
	"kzr/internal/policy"
	"kzr/internal/procscan"
	"kzr/internal/reaper"
	"kzr/internal/report"
	"kzr/internal/task"
	"kzr/internal/tracker"
)

const (
	// lookAgain is the time between two looks at a parent that cannot be acted
	// on for now, and between two looks at the pid limits.
	lookAgain = time.Second
	// rest keeps the looks that hints ask for, with all that follows from them, to
	// a twentieth of one CPU; unhintedRest to a tenth where only sweeps find anything,
	// and pressedRest to a quarter while pids run out.
	rest         = 19
	unhintedRest = 9
	pressedRest  = 3
	// idleRest keeps the regular sweeps to half a thousandth of one CPU where hints come
	// in and nothing changes, up to maxIdle apart.
	idleRest = 1999
	maxIdle  = 5 * time.Minute
	// A hint comes before the last child is a zombie: since 6.16 its memory is
	// torn down in between. hintDelay is when nearly every one is, and still early
	// for the shortest grace; by hintDelayLate all but giants are.
	hintDelay     = 100 * time.Millisecond
	hintDelayLate = 900 * time.Millisecond
	// maxHinted is how many parents that were hinted at are looked at one by one;
	// beyond that a sweep is cheaper.
	maxHinted = 64
	// gaveUpPause, doubled each time up to maxPause, is how long a parent is
	// left alone that could not be removed, or not be signalled.
	gaveUpPause = time.Minute
	maxPause    = time.Hour
	// blindPause is how long one is left alone that kzr could not look at.
	blindPause = 10 * time.Second
	// fewLooks is how many single looks are made instead of a sweep.
	fewLooks = 4
	// saveEvery is how often what kzr knows is saved, but for kills, which are saved
	// before they are done.
	saveEvery = 5 * time.Second
)

// Options are what a daemon is made of.
type Options struct {
	Config config.Config
	Host   policy.Host
	// Source, Proc and Name are the observer's.
	Observer observer.Options
	// Hinted says that hints come in for parents with at least so many zombies;
	// 0 that there are none. SetLevel asks for them from another number on, but
	// not below Hinted.
	Hinted   int
	SetLevel func(int) error
	// Inside reaps inside parents that live; nil cannot.
	Inside reaper.Inside
	// Saved is what an earlier kzr left, and Save keeps it for a later one; nil keeps
	// nothing. Save is called by several goroutines, and must not block for long.
	Saved State
	Save  func(State) error
	// Watched says that somebody reads the stream, so that zombies are worth an
	// event each. nil is nobody.
	Watched func() bool
	// Meter hears how long things take. nil is nobody.
	Meter Meter
	// Beat is called by the loop after its first sweep, and then at least every
	// BeatEvery for as long as the loop does its work. nil, or 0, is never. Busy is
	// called instead when that is so in the middle of something long; it must not
	// ask the daemon for anything.
	Beat, Busy func()
	BeatEvery  time.Duration
	// Observe makes a daemon that only looks: there is no ladder, not even a dry
	// one.
	Observe bool
	Logger  *slog.Logger
	// Report gets every decision. It is called by several goroutines and must
	// not block.
	Report func(report.Event)
}

// Meter takes durations.
type Meter interface {
	ObserveSweep(took time.Duration)
	ObserveDelay(late time.Duration) // from the moment that a parent met its rule to the first signal
}

// Daemon is one run of kzr.
type Daemon struct {
	opts     Options
	observer *observer.Observer
	reaper   *reaper.Reaper

	wake          chan struct{}
	lost          atomic.Bool
	sweepWanted   atomic.Bool
	hintsDisabled atomic.Bool // hints came in once, and do so no more
	stats         stats
	reloads       chan reload
	dues          sync.Map // of task.ID: when those on a ladder met their rule, until the first signal

	hintMu sync.Mutex
	hinted map[int]struct{} // pids that the kernel hinted at since the loop last looked

	mu      sync.Mutex // guards what follows; no other lock is taken under it but the reaper's
	watched map[task.ID]*watched
	inside  map[task.ID]int // how often kzr reaped inside a parent

	// What follows belongs to the loop.
	config    config.Config
	least     tracker.Rule // the easiest rule to meet
	sweepAt   time.Duration
	lateAt    time.Duration // when to sweep once more for the last hint
	rested    time.Duration // when sweeping again is not too much for the node
	hintedAt  map[int][]time.Duration
	hintRest  time.Duration // when looking at those hinted at is not too much
	leaks     map[string]*said
	relieving map[uint64]*relief
	relapses  map[string]relapse
	// Nothing is looked at before: the last sweep failed.
	blindUntil time.Duration
	limitAt    time.Duration // when the pid limits are looked at again
	lossAt     time.Duration // when the next line may tell of lost hints
	ready      bool          // the first beat is over
	fewest     int           // tasks, of the last sweep and since
	unchanged  bool          // the last two sweeps found as many zombies under as many parents

	beatAt   atomic.Int64 // on the clock of task.Now
	sweeping atomic.Bool

	saving     sync.Mutex // guards what follows; taken before any other lock
	savedAt    time.Duration
	savedEmpty bool
	// savedChanges is the observer's count when it was saved last.
	savedChanges uint64
	saveError    string // that was reported
}

// stats are totals since the start.
type stats struct {
	sweeps, kills, losses atomic.Uint64
	sweepBy               atomic.Int64 // when the next sweep is due at the latest, on the clock of task.Now
}

// watched is a parent with enough zombies for its rule, old enough or not.
type watched struct {
	found     observer.Assessment
	next      time.Duration // when to look again, 0 with the next sweep
	seen      time.Duration // when it was last looked at
	suspected bool          // reported as a suspect
	sample    []task.Zombie // some of its zombies then
	reason    policy.Reason // last reported
	said      map[policy.Reason]said
	unsure    bool             // for want of a name
	asked     bool             // its last ladder could not end it, but may still have made it reap
	until     time.Duration    // left alone until then
	limited   report.LimitUsed // no kill until this limit has room
	pause     time.Duration
	deferral  deferral
}

// said is when something was last reported, and of how many zombies.
type said struct {
	at      time.Duration
	zombies int
}

// sayAgain is after how long the same is said again though nothing has grown: what flips
// between two reasons has a line for each, and not one a second.
const sayAgain = 10 * time.Minute

// due says whether it is time to say it (again).
func (s said) due(zombies int, now time.Duration) bool {
	return s.at == 0 || now-s.at >= sayAgain || zombies >= 2*max(s.zombies, 1)
}

// deferral is what kept a parent from reaping, if it would: while it is stopped its
// zombies grow old all the same. That time is given back to it, a grace at most,
// so that nobody can put the end off for ever.
type deferral struct {
	since time.Duration // deferred since then, 0 if it is not
	last  time.Duration // the last look that found it so
	given time.Duration // back so far
	until time.Duration // it has the time until then
}

func (d *deferral) note(deferred bool, now, grace time.Duration) {
	switch {
	case deferred && d.since == 0:
		d.since, d.last = now, now
	case deferred:
		d.last = now
	case d.since != 0:
		// Not what is between the last two looks: one that forks much is often found
		// in uninterruptible sleep, and the next sweep may be a minute later.
		back := min(d.last-d.since, grace-d.given)
		if back > 0 {
			d.given += back
			d.until = now + back
		}
		d.since = 0
	}
}

// postpone puts off when the rule is met for as long as the parent has time.
func (d *deferral) postpone(a *observer.Assessment, now time.Duration) {
	if a.Never || now >= d.until || a.Pressure != policy.NoPressure {
		return
	}
	a.Due, a.Met, a.Verdict = max(a.Due, d.until), false, policy.Watch
}

// New returns a daemon that has not looked at anything yet. When ctx ends, its
// ladders stop where they are.
func New(ctx context.Context, o Options) (*Daemon, error) {
	d := &Daemon{
		opts:      o,
		wake:      make(chan struct{}, 1),
		reloads:   make(chan reload),
		hinted:    map[int]struct{}{},
		hintedAt:  map[int][]time.Duration{},
		watched:   map[task.ID]*watched{},
		inside:    map[task.ID]int{},
		leaks:     map[string]*said{},
		relieving: map[uint64]*relief{},
		relapses:  map[string]relapse{},
	}
	o.Observer.Swept, o.Observer.Progress = d.swept, d.busy
	o.Observer.Proc.OnProgress(d.busy)
	p, err := policy.New(o.Config, o.Host)
	if err != nil {
		return nil, err
	}
	d.observer = observer.New(o.Observer, o.Config, p)
	d.reaper = reaper.New(ctx, reaper.Options{
		Judge: d.observer, Settings: settings(o.Config), Report: d.decided,
		Inside: o.Inside, State: o.Saved.Limits, Save: func(reaper.State) { d.save(true) },
	})
	d.restore(o.Saved)
	return d, d.configure(o.Config)
}

// Observer is the one that the daemon asks.
func (d *Daemon) Observer() *observer.Observer { return d.observer }

// decided passes on what a ladder reports.
func (d *Daemon) decided(e report.Event) {
	if e.Name == report.EventSignal && d.opts.Meter != nil {
		if due, ok := d.dues.LoadAndDelete(e.Process.ID); ok {
			d.opts.Meter.ObserveDelay(task.Now() - due.(time.Duration))
		}
	}
	if e.Name == report.EventReaped && e.By == report.ByKzr {
		d.mu.Lock()
		if len(d.inside) >= maxInside {
			clear(d.inside)
		}
		d.inside[e.Process.ID]++
		times := d.inside[e.Process.ID]
		d.mu.Unlock()
		if times >= 2 { // or it would go on for ever, unnoticed
			e.Message += fmt.Sprintf("; reaped inside it %d times so far: tell its owner (kzr explain %d shows the cause and the fix)", times, e.Process.PID)
		}
	}
	d.opts.Report(e)
}

// maxInside bounds for how many parents it is remembered how often kzr reaped inside.
const maxInside = 4096

func settings(c config.Config) reaper.Settings {
	return reaper.Settings{DryRun: c.DryRun, Limits: c.Limits}
}

func (d *Daemon) configure(c config.Config) error {
	p, err := policy.New(c, d.opts.Host)
	if err != nil {
		return err
	}
	least := p.Least()
	if d.opts.SetLevel != nil {
		if err := d.opts.SetLevel(least.Threshold); err != nil {
			return err
		}
	}
	d.config, d.least = c, least
	d.observer.Set(c, p)
	d.reaper.Set(settings(c))
	return nil
}

// Hint tells the daemon to look at a parent, or at everything. It never blocks.
func (d *Daemon) Hint(h task.Hint) {
	switch {
	case h.Lost:
		d.lost.Store(true)
	case h.PID == 0:
		d.sweepWanted.Store(true)
	default:
		d.hintMu.Lock()
		if len(d.hinted) <= maxHinted {
			d.hinted[h.PID] = struct{}{}
		}
		d.hintMu.Unlock()
	}
	d.Wake()
}

// Wake makes the loop look whether there is something to do.
func (d *Daemon) Wake() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// DisableHints tells the daemon that no more hints will come: it sweeps as if there had
// never been any.
func (d *Daemon) DisableHints() {
	d.hintsDisabled.Store(true)
	d.Wake()
}

// hintedFrom is the number of zombies from which on hints come in, 0 if none do.
func (d *Daemon) hintedFrom() int {
	if d.hintsDisabled.Load() {
		return 0
	}
	return d.opts.Hinted
}

// Reload puts another configuration in force, for targets that wait as well. If
// it fails, the old one stays.
func (d *Daemon) Reload(ctx context.Context, c config.Config) error {
	r := reload{c, make(chan error, 1)}
	select {
	case d.reloads <- r:
		return <-r.done
	case <-ctx.Done():
		return ctx.Err()
	}
}

type reload struct {
	config config.Config
	done   chan error
}

// Run works until ctx, the one given to New, ends, and returns when no ladder is
// left. No signal is sent after the end.
func (d *Daemon) Run(ctx context.Context) {
	defer d.save(true)
	defer d.reaper.Wait()

	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-d.wake:
			d.takeHints()
		case out := <-d.reaper.Outcomes():
			d.ended(out)
		case r := <-d.reloads:
			err := d.configure(r.config)
			r.done <- err
			if err == nil {
				d.sweepAt = 0
				d.mu.Lock()
				for _, w := range d.watched {
					w.until, w.limited = 0, report.LimitUsed{} // what it was left alone for may hold no more
				}
				d.mu.Unlock()
			}
		}
		d.work(ctx)
		d.save(false)
		d.beat()
		timer.Reset(max(0, d.next()-task.Now()))
	}
}

// beat shows that the loop is alive.
func (d *Daemon) beat() {
	// The first time it says that kzr is ready, whatever told of life before.
	first := !d.ready && d.opts.BeatEvery > 0 && d.stats.sweeps.Load() > 0
	if first || d.beatDue() {
		d.ready = true
		d.beatAt.Store(int64(task.Now() + d.opts.BeatEvery))
		d.opts.Beat()
	}
}

// busy shows the same of a loop that sweeps, or waits for another to end a look at
// many processes: on a node in trouble that may take longer than the watchdog's
// patience. It is called by whoever looks.
func (d *Daemon) busy() {
	if d.sweeping.Load() && d.beatDue() {
		d.opts.Busy()
	}
}

func (d *Daemon) beatDue() bool {
	if d.opts.BeatEvery == 0 || d.stats.sweeps.Load() == 0 {
		return false
	}
	at, now := d.beatAt.Load(), task.Now()
	return int64(now) >= at && d.beatAt.CompareAndSwap(at, int64(now+d.opts.BeatEvery))
}

// takeHints plans what the hints ask for: a look at each parent when its children are
// zombies, or a sweep, at once if hints were lost, when the rest after the last one is
// over.
func (d *Daemon) takeHints() {
	now := task.Now()
	d.hintMu.Lock()
	pids := d.hinted
	d.hinted = map[int]struct{}{}
	d.hintMu.Unlock()
	if d.lost.Swap(false) {
		d.stats.losses.Add(1)
		d.sweepAt = min(d.sweepAt, max(now, d.rested))
		d.lateAt = now + hintDelayLate
		if now >= d.lossAt { // one line a second will do
			d.lossAt = now + time.Second
			d.opts.Report(report.Event{Time: time.Now(), Name: report.EventLostEvents, Message: "the kernel dropped hints; sweeping the whole node"})
		}
	}
	if d.sweepWanted.Swap(false) || len(pids)+len(d.hintedAt) > maxHinted {
		d.sweepAt = min(d.sweepAt, max(now+hintDelay, d.rested))
		d.lateAt = now + hintDelayLate
		clear(d.hintedAt)
		return
	}
	for pid := range pids {
		at := max(now+hintDelay, d.hintRest)
		d.hintedAt[pid] = []time.Duration{at, max(at, now+hintDelayLate)}
	}
}

// work does what is due.
func (d *Daemon) work(ctx context.Context) {
	now := task.Now()
	if now >= d.limitAt {
		d.limitAt = now + lookAgain
		d.checkLimits(now)
	}
	if now < d.blindUntil {
		return
	}
	if now >= d.sweepAt {
		d.sweep(ctx)
		d.relieve(ctx)
		return
	}
	d.lookAtHinted(ctx, now)
	due := d.due(now)
	switch {
	case len(due) > fewLooks && now >= d.rested:
		d.sweep(ctx)
	case len(due) > 0:
		var failed failures
		for _, id := range due[:min(len(due), 4*fewLooks)] {
			d.lookAt(ctx, id, &failed)
		}
		failed.log(ctx, d.opts.Logger)
	}
	d.relieve(ctx)
}

func (d *Daemon) lookAt(ctx context.Context, id task.ID, failed *failures) {
	a, err := d.observer.LookAt(ctx, id)
	d.consider(ctx, id, a, a.At, err)
	failed.add(id, err)
}

// lookAtHinted looks at parents that the kernel hinted at.
func (d *Daemon) lookAtHinted(ctx context.Context, now time.Duration) {
	if len(d.hintedAt) == 0 || now < d.hintRest {
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cpu := task.ThreadTime()
	var failed failures
	for pid, at := range d.hintedAt {
		if at[0] > now {
			continue
		}
		if at = at[1:]; len(at) > 0 {
			d.hintedAt[pid] = at
		} else {
			delete(d.hintedAt, pid)
		}
		id, _, err := d.observer.Facts(ctx, pid)
		if err == nil {
			d.lookAt(ctx, id, &failed)
		}
	}
	failed.log(ctx, d.opts.Logger)
	d.hintRest = task.Now() + rest*(task.ThreadTime()-cpu)
}

// due are those to look at now. Of those that cannot be acted on the first few
// are, and the others when a sweep is not too much.
func (d *Daemon) due(now time.Duration) (all []task.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	deferred := 0
	for id, w := range d.watched {
		if w.next == 0 || w.next > now {
			continue
		}
		if w.deferral.since != 0 && now < d.rested {
			if deferred++; deferred > fewLooks {
				w.next = d.rested
				continue
			}
		}
		all = append(all, id)
	}
	return all
}

// sweep looks at the whole node and considers every parent that could meet a
// rule.
func (d *Daemon) sweep(ctx context.Context) {
	d.sweeping.Store(true)
	defer d.sweeping.Store(false)
	before := d.observer.Last()
	last, err := d.observer.Sweep(ctx)
	if err != nil {
		if ctx.Err() == nil {
			d.opts.Logger.Error("sweep failed; taking no action", "error", err)
		}
		d.sweepAt = task.Now() + lookAgain
		d.blindUntil = d.sweepAt // what is due by then would be tried without a pause
		return
	}
	d.fewest = last.Tasks
	d.unchanged = last.Zombies == before.Zombies && last.Parents == before.Parents
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began, cpu := task.Now(), task.ThreadTime()
	crowded, skipped := d.observer.Crowded(ctx, d.least.Threshold)
	for id, w := range d.watched {
		switch _, ok := crowded[id]; {
		case ok || skipped[id] || w.found.Pressure != policy.NoPressure:
		case w.asked: // has it reaped, or ended?
			w.next = last.At
		default:
			d.consider(ctx, id, observer.Assessment{Never: true}, last.At, nil)
		}
	}
	var failed failures
	for id, r := range crowded {
		d.consider(ctx, id, r.Assessment, last.At, r.Err)
		failed.add(id, r.Err)
	}
	failed.log(ctx, d.opts.Logger)
	d.suspectWorkloads(last.At)
	d.tell(last)

	now := task.Now()
	cost := last.Cost + min(now-began, task.ThreadTime()-cpu)
	factor := d.restFactor()
	if d.urgent() {
		factor = pressedRest
	}
	d.rested = now + factor*cost
	d.sweepAt = last.At + d.sweepInterval(cost)
	d.stats.sweepBy.Store(int64(d.sweepAt))
	if d.lateAt > last.At {
		d.sweepAt = min(d.sweepAt, max(d.lateAt, d.rested))
	}
}

// failures are the parents that could not be looked at. They have one line in the
// log together: what stands in the way of one look is in the way of all.
type failures struct {
	n     int
	first task.ID
	err   error
}

func (f *failures) add(id task.ID, err error) {
	if err == nil || errors.Is(err, procscan.ErrGone) {
		return
	}
	if f.n++; f.n == 1 {
		f.first, f.err = id, err
	}
}

func (f *failures) log(ctx context.Context, logger *slog.Logger) {
	if f.n > 0 && ctx.Err() == nil {
		logger.Error("cannot look at a parent", "pid", f.first.PID, "error", f.err, "parents", f.n)
	}
}

// sweepInterval is the configured one, unless nobody hints at the parents that
// the rules are about: then two sweeps have to fit into the shortest grace.
func (d *Daemon) sweepInterval(cost time.Duration) time.Duration {
	every := d.config.SweepInterval
	if from := d.hintedFrom(); from == 0 || d.least.Threshold < from {
		every = min(every, max(d.least.Grace/2, time.Second))
	}
	if from := d.hintedFrom(); from > 0 && d.least.Threshold >= from && d.unchanged {
		// Hints tell of what is new: for what stands there for good, kzr takes half
		// a thousandth of a CPU.
		every = max(every, min(idleRest*cost, maxIdle))
	}
	return max(every, d.restFactor()*cost)
}

// restFactor is for how many times their cost sweeps rest.
func (d *Daemon) restFactor() time.Duration {
	if d.hintedFrom() == 0 {
		return unhintedRest
	}
	return rest
}

// consider draws the conclusion from a look at one parent.
func (d *Daemon) consider(ctx context.Context, id task.ID, a observer.Assessment, now time.Duration, err error) {
	if ctx.Err() != nil {
		return
	}
	var zombies []task.Zombie
	if a.Parent != nil {
		zombies = a.Parent.Zombies()
	}
	a.Parent = nil // its zombies can be many megabytes
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.watched[id]
	if _, acting := d.reaper.Status(id); acting {
		if w != nil {
			w.next = 0
		}
		return // the ladder looks for itself and says how it ended
	}
	switch {
	case errors.Is(err, procscan.ErrGone):
		a.Never = true
	case err != nil:
		if w != nil {
			w.next = task.Now() + lookAgain
		}
		return
	}
	if w != nil && w.asked && err == nil && !a.Met && a.Reapable < w.found.Reapable {
		d.say(report.Event{Name: report.EventReaped, By: report.ByParent, Message: fmt.Sprintf("parent reaped; %d zombies left", a.Reapable)}, &a)
		w.asked = false
	}
	if a.Never {
		if w != nil && w.suspected && w.reason == "" {
			if err != nil && d.observer.Last().At <= w.seen {
				// Its zombies are gone, or somebody else's: a sweep will tell.
				d.sweepAt = min(d.sweepAt, max(now, d.rested))
				w.next = 0
				return
			}
			d.recovered(w)
		}
		delete(d.watched, id)
		return
	}
	if w == nil {
		w = &watched{said: map[policy.Reason]said{}}
		d.watched[id] = w
	}
	facts := &a.Process.Facts
	w.deferral.note(policy.Deferred(facts, policy.Circumstances{}) != "", now, a.Rule.Grace)
	w.deferral.postpone(&a, now)
	w.found, w.next, w.seen = a, 0, now
	switch {
	case !a.Met:
		// Half of the grace is gone: it looks as if it would not reap.
		half := a.Due - a.Rule.Grace/2
		if now < half {
			w.suspected, w.reason, w.next = false, "", half
			return
		}
		w.next = a.Due
		if !w.suspected {
			w.suspected = true
			w.sample = slices.Clone(zombies[:min(len(zombies), sampled)])
			if left := (a.Due - now).Round(100 * time.Millisecond); left > 0 { // else it is news in a moment
				d.say(report.Event{Name: report.EventSuspect, Message: fmt.Sprintf("parent is not reaping; eligible in %s", left)}, &a)
			}
		}
	case a.Verdict == policy.Target && now < w.until:
		w.found.Verdict, w.found.Reason = policy.Spared, policy.Backoff
		w.next = w.until
	case a.Verdict == policy.Target:
		w.reason = ""
		if w.pause == 0 && w.deferral.given == 0 {
			d.dues.Store(id, a.Due)
		}
		d.act(&a)
	default:
		if w.said[a.Reason].due(a.Reapable, now) || a.Rule.Unsure != w.unsure {
			w.said[a.Reason] = said{now, a.Reapable}
			d.say(report.Event{Name: report.EventSpared, Reason: string(a.Reason), Message: because(&a)}, &a)
		}
		w.reason, w.unsure = a.Reason, a.Rule.Unsure
		if policy.Deferred(facts, policy.Circumstances{Foreign: a.Reason == policy.Foreign}) == a.Reason {
			w.next = now + lookAgain
		}
	}
}

// sampled is how many zombies are followed of a suspect that ends.
const sampled = 64

// recovered tells of a suspect that is none any more, or has handed its zombies on.
func (d *Daemon) recovered(w *watched) {
	for id, n := range d.observer.HeldBy(w.sample) {
		if id != w.found.Process.ID && n > len(w.sample)/2 {
			d.say(report.Event{Name: report.EventSuspect, Message: fmt.Sprintf("parent ended and its zombies moved to pid %d, which has not reaped them", id.PID)}, &w.found)
			return
		}
	}
	d.say(report.Event{Name: report.EventSpared, Reason: string(policy.Recovered), Message: "no longer a suspect: it has reaped or exited"}, &w.found)
}

// act starts a ladder, unless this daemon only looks.
func (d *Daemon) act(a *observer.Assessment) bool {
	if d.opts.Observe {
		return false
	}
	p := &a.Process
	return d.reaper.Act(p.ID, reaper.Who{Workload: p.Workload, Owner: p.Owner, Init: p.ContainerInit()})
}

// ended takes note of how a ladder ended.
func (d *Daemon) ended(out reaper.Outcome) {
	now := task.Now()
	d.dues.Delete(out.ID)
	d.relieved(out, now)
	d.mu.Lock()
	defer d.mu.Unlock()
	if out.Result == reaper.Terminated {
		d.stats.kills.Add(1)
		delete(d.watched, out.ID)
		d.sweepAt = min(d.sweepAt, max(now, d.rested)) // its zombies may have moved
		return
	}
	w := d.watched[out.ID]
	if w == nil {
		return
	}
	w.suspected, w.next = false, now+lookAgain
	switch {
	case out.Result == reaper.GaveUp && !out.Tried:
		w.until = now + blindPause
	case out.Result == reaper.GaveUp:
		w.pause = min(max(2*w.pause, gaveUpPause), maxPause)
		w.until = now + w.pause
	case out.Result == reaper.Rehearsed && d.config.DryRun: // else it was set otherwise meanwhile
		w.until = now + maxPause
	case out.Result == reaper.Reaped && !out.Until.IsZero(): // more may be reaped inside it then
		w.until = now + time.Until(out.Until)
	case !out.Until.IsZero():
		// No kill before then; but what hurts nobody is tried again.
		since := out.Limit.Since
		if since.IsZero() { // it never allowed a kill
			since = time.Now()
			if w.limited.Until.After(since) {
				since = w.limited.Since
			}
		}
		w.limited = report.LimitUsed{Name: out.Limit.Name, Since: since, Until: out.Until}
		w.until = now + min(time.Until(out.Until), max(w.found.Rule.Grace, blindPause))
	}
	w.asked = out.Tried && out.Reason == policy.Backoff
	if out.Result == reaper.Spared {
		w.reason = out.Reason
		w.said[out.Reason] = said{now, w.found.Reapable}
	}
}

// checkLimits plans a sweep if pids are running out, or so many tasks have come
// since the last one that they might before the next. Where nothing hints, it
// takes no more tasks than make a target: their number is the only hint there is,
// and a container can have a small limit of its own.
func (d *Daemon) checkLimits(now time.Duration) {
	if d.config.Pressure == 0 {
		return
	}
	n, err := d.opts.Observer.Proc.Node()
	if err != nil {
		return
	}
	many := max(500, n.Limit/20)
	if d.hintedFrom() == 0 {
		many = min(many, d.least.Threshold)
	}
	// Those that have gone since the last sweep do not hide others that have come.
	d.fewest = min(d.fewest, n.Tasks)
	near := policy.Near(d.config.Pressure, n.Tasks, n.Limit) || n.Tasks-d.fewest >= many ||
		d.observer.NearLimits()
	if near {
		d.sweepAt = min(d.sweepAt, max(now, d.rested))
	}
}

// next is the moment at which there is something to do.
func (d *Daemon) next() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := d.sweepAt
	for _, w := range d.watched {
		if w.next != 0 {
			at = min(at, w.next)
		}
	}
	for _, times := range d.hintedAt {
		at = min(at, max(times[0], d.hintRest))
	}
	at = max(at, d.blindUntil)
	if d.opts.BeatEvery > 0 && d.stats.sweeps.Load() > 0 { // as beat has it
		at = min(at, time.Duration(d.beatAt.Load()))
	}
	if d.config.Pressure > 0 {
		at = min(at, d.limitAt)
	}
	return at
}
