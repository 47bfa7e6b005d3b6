// Package daemon is kzr's loop. It looks when the kernel hints, when a parent
// is about to meet its rule, and every sweepInterval; it hands what meets the
// rule to the reaper and every decision to the report. All waiting is for the
// moment that comes next: while nothing is wrong it sleeps between sweeps.
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

	"kzr/internal/advice"
	"kzr/internal/config"
	"kzr/internal/container"
	"kzr/internal/policy"
	"kzr/internal/procscan"
	"kzr/internal/reaper"
	"kzr/internal/report"
	"kzr/internal/task"
	"kzr/internal/tracker"
)

const (
	// lookAgain is the time between two looks at a parent that cannot be acted
	// on for now, and between two looks at the pid limits while some parent has
	// gathered zombies.
	lookAgain = time.Second
	// rest keeps the sweeps that hints ask for, with all that follows from them, to
	// a twentieth of one CPU.
	rest = 19
	// A hint comes before the last child is a zombie: since 6.16 its memory is
	// torn down in between. settled is when nearly every one is, and still early
	// for the shortest grace; by settledLate all but giants are.
	settled     = 100 * time.Millisecond
	settledLate = 900 * time.Millisecond
	// gaveUpPause, doubled each time up to maxPause, is how long a parent is
	// left alone that could not be removed, or not be signalled.
	gaveUpPause = time.Minute
	maxPause    = time.Hour
	// blindPause is how long one is left alone that kzr could not look at.
	blindPause = 10 * time.Second
	// fewLooks is how many single looks are made instead of a sweep.
	fewLooks = 4
)

// Options are what a daemon is made of.
type Options struct {
	Config config.Config
	Host   policy.Host
	Source Source
	Proc   *procscan.Scanner
	// Hinted says that hints come in for parents with at least so many zombies;
	// 0 that there are none. SetLevel asks for them from another number on, but
	// not below Hinted.
	Hinted   int
	SetLevel func(int) error
	// Name says what is known of a container, and whether that includes the names
	// that only its runtime knows. A daemon that acts must not wait in it. nil
	// leaves them unknown.
	Name func(container.Ref) (task.Container, bool)
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
	opts   Options
	eye    *eye
	reaper *reaper.Reaper

	hints    chan struct{}
	lost     atomic.Bool
	deaf     atomic.Bool // hints came in once, and do so no more
	stats    stats
	cmdlines cmdlines
	reloads  chan reload
	dues     sync.Map // of task.ID: when those on a ladder met their rule, until the first signal

	mu      sync.Mutex // guards watched, which Document reads
	watched map[task.ID]*watched

	// What follows belongs to the loop.
	config  config.Config
	least   tracker.Rule // the easiest rule to meet
	sweepAt time.Duration
	lateAt  time.Duration // when to sweep once more for the last hint
	rested  time.Duration // when sweeping again is not too much for the node
	// Nothing is looked at before: the last sweep failed.
	blindUntil time.Duration
	limitAt    time.Duration // when the pid limits are looked at again
	lossAt     time.Duration // when the next line may tell of lost hints

	beatAt   atomic.Int64 // on the clock of task.Now
	sweeping atomic.Bool
}

// watched is a parent with enough zombies for its rule, old enough or not.
type watched struct {
	found     finding
	next      time.Duration // when to look again, 0 with the next sweep
	suspected bool          // reported as a suspect
	said      policy.Reason // the reason last reported
	unsure    bool          // for want of a name
	until     time.Duration // left alone until then
	pause     time.Duration
	kept      keeping
}

// keeping is what kept a parent from reaping, if it would: while it is stopped its
// zombies grow old all the same. That time is given back to it, a grace at most,
// so that nobody can put the end off for ever.
type keeping struct {
	since time.Duration // kept since then, 0 if it is not
	last  time.Duration // the last look that found it so
	given time.Duration // back so far
	until time.Duration // it has the time until then
}

func (k *keeping) note(kept bool, now, grace time.Duration) {
	switch {
	case kept && k.since == 0:
		k.since, k.last = now, now
	case kept:
		k.last = now
	case k.since != 0:
		// Not what is between the last two looks: one that forks much is often found
		// in uninterruptible sleep, and the next sweep may be a minute later.
		back := min(k.last-k.since, grace-k.given)
		if back > 0 {
			k.given += back
			k.until = now + back
		}
		k.since = 0
	}
}

// spare puts off when the rule is met for as long as the parent has time.
func (k *keeping) spare(f *finding, now time.Duration) {
	if f.never || now >= k.until {
		return
	}
	f.due, f.met, f.verdict = max(f.due, k.until), false, policy.Watch
}

// New returns a daemon that has not looked at anything yet. When ctx ends, its
// ladders stop where they are.
func New(ctx context.Context, o Options) (*Daemon, error) {
	d := &Daemon{
		opts:    o,
		hints:   make(chan struct{}, 1),
		reloads: make(chan reload),
		watched: map[task.ID]*watched{},
	}
	d.eye = &eye{source: o.Source, proc: o.Proc, name: o.Name, swept: d.swept, busy: d.busy, reading: make(chan struct{}, maxReading)}
	o.Proc.OnProgress(d.busy)
	if d.eye.name == nil {
		d.eye.name = func(ref container.Ref) (task.Container, bool) { return ref.Container(), false }
	}
	d.reaper = reaper.New(ctx, d.eye, settings(o.Config), d.decided)
	return d, d.configure(o.Config)
}

// decided passes on what a ladder reports.
func (d *Daemon) decided(e report.Event) {
	if e.Name == report.EventSignal && d.opts.Meter != nil {
		if due, ok := d.dues.LoadAndDelete(e.Process.ID); ok {
			d.opts.Meter.ObserveDelay(task.Now() - due.(time.Duration))
		}
	}
	d.opts.Report(e)
}

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
	d.eye.set(rules{config: c, policy: p})
	d.reaper.Set(settings(c))
	return nil
}

// Hint tells the daemon to look. It never blocks.
func (d *Daemon) Hint(h task.Hint) {
	if h.Lost {
		d.lost.Store(true)
	}
	select {
	case d.hints <- struct{}{}:
	default:
	}
}

// Deafen tells the daemon that no more hints will come: it sweeps as if there had
// never been any.
func (d *Daemon) Deafen() {
	d.deaf.Store(true)
	d.Hint(task.Hint{})
}

// hintedFrom is the number of zombies from which on hints come in, 0 if none do.
func (d *Daemon) hintedFrom() int {
	if d.deaf.Load() {
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
	defer d.reaper.Wait()

	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-d.hints:
			d.hinted()
		case out := <-d.reaper.Outcomes():
			d.settle(out)
		case r := <-d.reloads:
			err := d.configure(r.config)
			r.done <- err
			if err == nil {
				d.sweepAt = 0
				d.mu.Lock()
				for _, w := range d.watched {
					w.until = 0 // what it was left alone for may hold no more
				}
				d.mu.Unlock()
			}
		}
		d.work(ctx)
		d.beat()
		timer.Reset(max(0, d.next()-task.Now()))
	}
}

// beat shows that the loop is alive.
func (d *Daemon) beat() {
	if d.beatDue() {
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

// hinted plans a sweep when the rest after the last one is over: at once if hints
// were lost, else when the children are zombies.
func (d *Daemon) hinted() {
	now := task.Now()
	at := max(now+settled, d.rested)
	d.lateAt = now + settledLate
	if d.lost.Swap(false) {
		d.stats.losses.Add(1)
		at = max(now, d.rested)
		if now >= d.lossAt { // one line a second will do
			d.lossAt = now + time.Second
			d.opts.Report(report.Event{Time: time.Now(), Name: report.EventLostEvents, Message: "the kernel dropped hints; kzr looks at everything"})
		}
	}
	d.sweepAt = min(d.sweepAt, at)
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
	var due []task.ID
	if now < d.sweepAt {
		due = d.due(now)
		if len(due) == 0 {
			return
		}
	}
	if len(due) > 0 && len(due) <= fewLooks {
		var failed failures
		for _, id := range due {
			f, now, err := d.eye.lookAt(ctx, id)
			d.consider(ctx, id, f, now, err)
			failed.add(id, err)
		}
		failed.log(ctx, d.opts.Logger)
		return
	}
	d.sweep(ctx)
}

// due are those to look at now. Of those that cannot be acted on the first few
// are, and the others when a sweep is not too much.
func (d *Daemon) due(now time.Duration) (all []task.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	kept := 0
	for id, w := range d.watched {
		if w.next == 0 || w.next > now {
			continue
		}
		if w.kept.since != 0 && now < d.rested {
			if kept++; kept > fewLooks {
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
	last, err := d.eye.sweep(ctx)
	if err != nil {
		if ctx.Err() == nil {
			d.opts.Logger.Error("sweep failed; kzr cannot see and does nothing", "error", err)
		}
		d.sweepAt = task.Now() + lookAgain
		d.blindUntil = d.sweepAt // what is due by then would be tried without a pause
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began, cpu := task.Now(), task.ThreadTime()
	crowded := d.eye.crowded(d.least.Threshold, last.at)
	for id := range d.watched {
		if _, ok := crowded[id]; !ok {
			d.consider(ctx, id, finding{never: true}, last.at, nil)
		}
	}
	var failed failures
	for id, j := range crowded {
		d.consider(ctx, id, j.finding, last.at, j.err)
		failed.add(id, j.err)
	}
	failed.log(ctx, d.opts.Logger)

	now := task.Now()
	cost := last.cost + min(now-began, task.ThreadTime()-cpu)
	d.rested = now + rest*cost
	d.sweepAt = last.at + d.sweepInterval(cost)
	d.stats.sweepBy.Store(int64(d.sweepAt))
	if d.lateAt > last.at {
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
		logger.Error("looking at a parent failed", "pid", f.first.PID, "error", f.err, "parents", f.n)
	}
}

// sweepInterval is the configured one, unless nobody hints at the parents that
// the rules are about: then two sweeps have to fit into the shortest grace.
func (d *Daemon) sweepInterval(cost time.Duration) time.Duration {
	every := d.config.SweepInterval
	if from := d.hintedFrom(); from == 0 || d.least.Threshold < from {
		every = min(every, max(d.least.Grace/2, time.Second))
	}
	return max(every, rest*cost)
}

// consider draws the conclusion from a look at one parent.
func (d *Daemon) consider(ctx context.Context, id task.ID, f finding, now time.Duration, err error) {
	if ctx.Err() != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.watched[id]
	if _, acting := d.reaper.Status(id); acting {
		if w != nil {
			w.next = 0
		}
		if f.pressed {
			d.reaper.Hurry(id)
		}
		return // the ladder looks for itself and says how it ended
	}
	switch {
	case errors.Is(err, procscan.ErrGone):
		f.never = true
	case err != nil:
		if w != nil {
			w.next = task.Now() + lookAgain
		}
		return
	}
	if f.never {
		if w != nil && w.suspected && w.said == "" {
			d.say(report.EventSpared, policy.Recovered, w.found, "it reaped, or ended, by itself")
		}
		delete(d.watched, id)
		return
	}
	if w == nil {
		w = &watched{}
		d.watched[id] = w
	}
	w.kept.note(policy.Deferred(&f.proc) != "", now, f.rule.Grace)
	w.kept.spare(&f, now)
	w.found, w.next = f, 0
	switch {
	case !f.met:
		// Half of the grace is gone: it looks as if it would not reap.
		half := f.due - f.rule.Grace/2
		if now < half {
			w.suspected, w.said, w.next = false, "", half
			return
		}
		w.next = f.due
		if !w.suspected {
			w.suspected = true
			d.say(report.EventSuspect, "", f, fmt.Sprintf("it does not reap; it meets the rule in %s", (f.due-now).Round(100*time.Millisecond)))
		}
	case f.verdict == policy.Target && now < w.until:
		w.found.verdict, w.found.reason = policy.Spared, policy.Backoff
		w.next = w.until
	case f.verdict == policy.Target:
		w.said = ""
		if w.pause == 0 && w.kept.given == 0 {
			d.dues.Store(id, f.due)
		}
		if !d.opts.Observe {
			d.reaper.Act(id, f.proc.Workload)
			if f.pressed {
				d.reaper.Hurry(id)
			}
		}
	default:
		if f.reason != w.said || f.rule.Unsure != w.unsure {
			w.said, w.unsure = f.reason, f.rule.Unsure
			d.say(report.EventSpared, f.reason, f, because(f))
		}
		if f.reason == policy.Deferred(&f.proc) {
			w.next = now + lookAgain
		}
	}
}

// settle takes note of how a ladder ended.
func (d *Daemon) settle(out reaper.Outcome) {
	now := task.Now()
	d.dues.Delete(out.ID)
	d.mu.Lock()
	defer d.mu.Unlock()
	if out.Result == reaper.Terminated {
		d.stats.kills.Add(1)
		delete(d.watched, out.ID)
		d.sweepAt = min(d.sweepAt, now) // its zombies may have moved
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
	case !out.Until.IsZero():
		w.until = now + time.Until(out.Until)
	}
	if out.Result == reaper.Spared {
		w.said = out.Reason
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
	n, err := d.opts.Proc.Node()
	if err != nil {
		return
	}
	many := max(500, n.Limit/20)
	if d.hintedFrom() == 0 {
		many = min(many, d.least.Threshold)
	}
	last := d.eye.lastSweep()
	pressed := float64(n.Tasks) >= d.config.Pressure*float64(n.Limit) || n.Tasks-last.tasks >= many
	for cgroup := range d.cgroups() {
		if pressed {
			break
		}
		pressed = slices.ContainsFunc(d.opts.Proc.PidsLimits(cgroup), func(l procscan.PidsLimit) bool {
			return float64(l.Current) >= d.config.Pressure*float64(l.Limit)
		})
	}
	if pressed {
		d.sweepAt = min(d.sweepAt, max(now, d.rested))
	}
}

// cgroups are those in which parents are watched.
func (d *Daemon) cgroups() map[string]struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := map[string]struct{}{}
	for _, w := range d.watched {
		all[w.found.proc.PidsCgroup] = struct{}{}
	}
	return all
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
	at = max(at, d.blindUntil)
	if d.opts.BeatEvery > 0 && d.stats.sweeps.Load() > 0 { // as beat has it
		at = min(at, time.Duration(d.beatAt.Load()))
	}
	// While nothing is wrong and hints come in, pid limits are not polled: a
	// parent that fills the table is hinted at long before.
	if d.config.Pressure > 0 && (len(d.watched) > 0 || d.hintedFrom() == 0) {
		at = min(at, d.limitAt)
	}
	return at
}

func (d *Daemon) say(name string, reason policy.Reason, f finding, message string) {
	proc := f.proc
	d.opts.Report(report.Event{
		Time: time.Now(), Name: name, Message: message, Process: &proc,
		Zombies: f.reapable, Reapable: f.reapable, Oldest: f.oldest, Rule: f.rule.Name, Reason: string(reason),
	})
}

func because(f finding) string {
	if f.reason == policy.ByRule && f.rule.Unsure {
		return "its rule may say observe: the container's name is not known"
	}
	return advice.Because(f.reason)
}
