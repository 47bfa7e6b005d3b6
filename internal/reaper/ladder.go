package reaper

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/policy"
	"kzr/internal/report"
	"kzr/internal/task"
)

// steps is the ladder. Each step sends its signal if that makes sense, waits and
// checks for itself whether that was enough. It returns nil to hand over to the
// next one, or how the ladder ended.
var steps = []struct {
	name string
	run  func(*ladder, context.Context) *Outcome
}{
	{"SIGCHLD", (*ladder).nudge},
	{"SIGTERM", (*ladder).terminate},
	{"SIGKILL", (*ladder).kill},
}

const (
	nudgeRounds = 10 // after so many nudges it must hold fewer zombies than before them
	lookTries   = 10 // looks, and tries to open a pidfd, that may fail in a row
	sampleSize  = 64 // zombies followed after their parent's death
)

// ladder is what is done to one parent, from the pidfd on. Only its goroutine
// touches it, except for status and waiting.
//
// Why no signal can reach anybody but the parent that met the rule: call the
// process that the pidfd was opened for P; the pidfd means P for good, and
// pidfd_send_signal reaches P or nobody. What remains to be shown is that P is
// the parent that was meant and that what look read, by pid, was read about P.
// A pid is free for reuse only after its process is dead and reaped, and a dead
// process makes its pidfd readable for ever. look polls the pidfd after
// everything else, so if it is not readable then, P was alive all the time since
// it was opened, and the number was P's all that time: every read by that number
// saw P. Among these reads was the start time, which is that of the parent that
// was meant, and the rule, which P thus meets. If P dies after the poll, the
// signal goes to a dead process or to nobody.
type ladder struct {
	r        *Reaper
	id       task.ID
	workload string
	status   Status  // guarded by r.mu
	waiting  *ticket // for an answer, nil if none is; guarded by r.mu

	proc   *pidfd
	ticket *ticket // leave to kill, nil if there is none
	dryRun bool

	seen    Look          // the last look that is known to have been at this parent
	sure    bool          // it was good enough for a signal, and nothing was waited for since
	pause   time.Duration // the wait that belongs to the last signal
	nudges  int
	signals int           // signals really sent
	lethal  unix.Signal   // the last one of those that is meant to end it
	doomed  time.Time     // when the first such was sent
	skipped string        // why there was no SIGTERM
	sample  []task.Zombie // some of its zombies when that was sent
}

func (l *ladder) run(ctx context.Context) Outcome {
	if out := l.begin(ctx); out != nil {
		return *out
	}
	defer l.proc.close()
	defer func() {
		if l.ticket != nil {
			l.ticket.leave()
		}
	}()
	return *l.climb(ctx)
}

// begin opens the pidfd, again and again if no descriptor is free for it.
func (l *ladder) begin(ctx context.Context) *Outcome {
	for failures := 1; ; failures++ {
		var err error
		switch l.proc, err = openPidfd(l.id.PID); {
		case err == nil:
			return nil
		case errors.Is(err, errGone):
			return l.ended(ctx)
		case failures == lookTries:
			return l.failed(err)
		}
		select {
		case <-time.After(l.r.timing.look):
		case <-ctx.Done():
			return l.cancelled()
		}
	}
}

func (l *ladder) climb(ctx context.Context) *Outcome {
	if out := l.verify(ctx); out != nil {
		return out
	}
	// Where no kill is left there is no asking either: it is reported only.
	if until := l.r.limits.exhausted(l.workload); !until.IsZero() {
		return l.exhausted(until)
	}
	for _, s := range steps {
		l.setStatus(func(st *Status) { *st = Status{Step: s.name} })
		if out := s.run(l, ctx); out != nil {
			return out
		}
	}
	return l.failed(errors.New("no step is left"))
}

// nudge asks the parent to reap, again for as long as each SIGCHLD makes it reap
// some: a handler that waits for one child per signal is a common bug.
func (l *ladder) nudge(ctx context.Context) *Outcome {
	for before := 0; ; l.nudges++ {
		if out := l.verify(ctx); out != nil {
			return out
		}
		if l.seen.Nudge <= 0 {
			return nil
		}
		// A parent that makes zombies faster than nudges free them would be nudged
		// for ever.
		if l.nudges%nudgeRounds == 0 {
			if l.nudges > 0 && l.seen.Reapable >= before {
				return nil
			}
			before = l.seen.Reapable
		}
		old, youngest := oldZombies(l.seen.Zombies)
		if out := l.send(ctx, unix.SIGCHLD, "it is asked to reap"); out != nil {
			return out
		}
		if out := l.wait(ctx, l.pause); out != nil {
			return out
		}
		if out := l.verify(ctx); out != nil {
			return out
		}
		if waitingSince(l.seen.Zombies, youngest) >= old {
			return nil
		}
	}
}

// terminate asks the parent to end.
func (l *ladder) terminate(ctx context.Context) *Outcome {
	if out := l.verify(ctx); out != nil {
		return out
	}
	switch {
	case l.seen.TermTimeout <= 0:
		l.skipped = "SIGTERM was skipped, as termTimeout is 0"
		return nil
	case deafToTerm(&l.seen.Process):
		l.skipped = "SIGTERM was skipped: the init of a pid namespace never sees one that it has no handler for"
		return nil
	}
	if out := l.strike(ctx, unix.SIGTERM, "it is asked to end"); out != nil {
		return out
	}
	return l.wait(ctx, l.pause)
}

// kill ends the parent, and waits until it is gone or it is certain that waiting
// is no use. There is no second SIGKILL: one that does not help at once is
// pending, and will work when whatever holds the process up lets it go.
func (l *ladder) kill(ctx context.Context) *Outcome {
	message := "it is killed"
	if l.skipped != "" {
		message += "; " + l.skipped
	}
	if out := l.strike(ctx, unix.SIGKILL, message); out != nil {
		return out
	}
	if l.dryRun {
		return l.rehearsed()
	}
	sent := time.Now()
	for pause := l.r.timing.look; ; pause = min(2*pause, l.r.timing.kill) {
		if out := l.wait(ctx, pause); out != nil {
			return out
		}
		if _, out := l.look(ctx); out != nil {
			return out
		}
		limit := l.r.timing.kill
		if reason := policy.Deferred(&l.seen.Process); reason != "" {
			l.letGo(policy.Dying) // with SIGKILL pending, it is
			l.putOff(reason, "SIGKILL is pending, another would not help")
			limit = l.r.timing.dying
		}
		if waited := time.Since(sent); waited >= limit {
			return l.failed(fmt.Errorf("not dead %s after SIGKILL", waited.Round(time.Second)))
		}
	}
}

// strike sends a signal that is meant to end the parent. The first of a ladder
// needs leave to kill, and each one that no other of its workload is being killed.
func (l *ladder) strike(ctx context.Context, sig unix.Signal, message string) *Outcome {
	for {
		if out := l.verify(ctx); out != nil {
			return out
		}
		if l.ticket != nil && l.ticket.held() {
			return l.send(ctx, sig, message)
		}
		if out := l.takeTicket(ctx); out != nil {
			return out
		}
	}
}

// verify returns nil when everything that a signal needs holds right now. If it
// does not, but may again, it waits for that. The parent had no use of a wait
// that it spent stopped, say, so then the wait for the effect of the last signal
// begins anew; the place in the ladder is kept.
func (l *ladder) verify(ctx context.Context) *Outcome {
	for waited := false; !l.sure; {
		reason, out := l.look(ctx)
		switch {
		case out != nil:
			return out
		case reason == "":
			l.setStatus(func(st *Status) { st.Reason = "" })
			if !waited || l.pause == 0 {
				l.sure = true
				return nil
			}
			waited = false
			out = l.wait(ctx, l.pause)
		case !transient(reason):
			return l.dropped(reason)
		case reason == policy.Dying && !l.doomed.IsZero() && time.Since(l.doomed) >= l.r.timing.dying:
			return l.failed(fmt.Errorf("still dying %s after %s", time.Since(l.doomed).Round(time.Second), unix.SignalName(l.lethal)))
		default:
			waited = true
			l.letGo(reason)
			l.putOff(reason, "its turn is put off")
			out = l.wait(ctx, l.r.timing.look)
		}
		if out != nil {
			return out
		}
	}
	return nil
}

// look looks at the parent and then at the pidfd, which makes certain that what
// was seen was the parent (see ladder). It returns why no signal may be sent,
// "" if one may.
func (l *ladder) look(ctx context.Context) (policy.Reason, *Outcome) {
	for failures := 1; ; failures++ {
		seen, err := l.r.judge.Look(ctx, l.id)
		if ctx.Err() != nil {
			return "", l.cancelled()
		}
		switch dead, perr := l.proc.exited(); {
		case perr != nil:
			return "", l.failed(perr)
		case dead:
			return "", l.ended(ctx)
		case err == nil && seen.Process.ID != l.id:
			// The number's owner lives and is another one, or was not found at all.
			return policy.IdentityChanged, nil
		case err == nil:
			l.seen = seen
			return doubt(&seen), nil
		case failures == lookTries:
			return "", l.failed(fmt.Errorf("looking at it: %w", err))
		}
		if out := l.wait(ctx, l.r.timing.look); out != nil {
			return "", out
		}
	}
}

// doubt returns the reason not to send a signal after this look. That it is
// dying comes first: on its way out it may well have lost its zombies.
func doubt(seen *Look) policy.Reason {
	switch {
	case policy.Deferred(&seen.Process) == policy.Dying:
		return policy.Dying
	case seen.Reason != "" && !transient(seen.Reason):
		return seen.Reason
	case !seen.Met:
		return policy.Recovered
	}
	return seen.Reason
}

// transient reports whether the reason is likely to pass, so that the ladder
// waits for that.
func transient(reason policy.Reason) bool {
	switch reason {
	case policy.Traced, policy.Stopped, policy.Frozen, policy.Dying, policy.Uninterruptible:
		return true
	}
	return false
}

// deafToTerm says whether the kernel would drop a SIGTERM: it protects the init
// of a pid namespace from signals without a handler. A blocked one it keeps, as
// such an init may well fetch it with sigwait or a signalfd.
func deafToTerm(p *task.Process) bool {
	const term = 1 << (unix.SIGTERM - 1)
	return p.NamespaceInit() && (p.SigCaught|p.SigBlocked)&term == 0
}

// oldZombies returns how many zombies the rule counted, and when the youngest of
// them began to wait.
func oldZombies(zombies []task.Zombie) (n int, youngest time.Duration) {
	for i := range zombies {
		youngest = max(youngest, zombies[i].Since)
	}
	return len(zombies), youngest
}

// waitingSince counts the zombies that began to wait by the given moment. Of
// those that oldZombies counted it finds the ones that are still there, and
// never one that came later; nor does a parent that always has some fresh
// zombies seem to reap because of the nudge.
func waitingSince(zombies []task.Zombie, moment time.Duration) (n int) {
	for i := range zombies {
		if zombies[i].Since <= moment {
			n++
		}
	}
	return n
}

// send sends a signal, or in a dry run only says so.
func (l *ladder) send(ctx context.Context, sig unix.Signal, message string) *Outcome {
	if ctx.Err() != nil {
		return l.cancelled()
	}
	l.dryRun = l.dryRun || l.r.isDryRun()
	lethal := sig != unix.SIGCHLD
	if !l.dryRun {
		switch err := l.proc.signal(sig); {
		case errors.Is(err, errGone):
			return l.ended(ctx)
		case err != nil:
			return l.failed(err)
		}
		l.signals++
		if lethal {
			l.lethal = sig
			l.sample = sample(l.seen.Zombies)
			if l.doomed.IsZero() {
				l.doomed = time.Now()
			}
		}
	}
	l.pause = l.seen.Nudge
	if lethal {
		l.pause = l.seen.TermTimeout
		l.ticket.spend(l.dryRun)
	}
	if l.dryRun {
		message = "dry run, not sent: " + message
	}
	l.emit(report.Event{Name: report.EventSignal, Signal: unix.SignalName(sig), Message: message})
	return nil
}

// sample copies a few zombies, spread evenly.
func sample(zombies []task.Zombie) []task.Zombie {
	n := min(len(zombies), sampleSize)
	few := make([]task.Zombie, n)
	for i := range few {
		few[i] = zombies[i*len(zombies)/n]
	}
	return few
}

// wait waits for the parent's death, but no longer than d. What was seen before
// is worth nothing after.
func (l *ladder) wait(ctx context.Context, d time.Duration) *Outcome {
	l.forget()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-l.proc.dead:
		return l.ended(ctx)
	case <-ctx.Done():
		return l.cancelled()
	}
}

// forget lets go of what was seen, of which the zombies can be many megabytes.
func (l *ladder) forget() {
	l.sure = false
	l.seen.Zombies = nil
}

// takeTicket gets leave to kill, and waits if it must.
func (l *ladder) takeTicket(ctx context.Context) *Outcome {
	if l.ticket == nil {
		l.ticket = l.r.limits.take(l.workload)
	} else {
		l.ticket.resume()
	}
	if l.seen.Pressed {
		l.ticket.hurry()
	}
	select {
	case <-l.ticket.answer:
	default:
		l.putOff(policy.RateLimited, "its turn comes when the limits leave room")
		l.forget()
		l.queued(l.ticket)
		defer l.queued(nil)
		select {
		case <-l.ticket.answer:
		case <-l.proc.dead:
			return l.ended(ctx)
		case <-ctx.Done():
			return l.cancelled()
		}
	}
	if until := l.ticket.refused; !until.IsZero() {
		return l.exhausted(until)
	}
	return nil
}

// queued notes for [Reaper.Hurry] what ticket the ladder waits for, nil for none.
func (l *ladder) queued(t *ticket) {
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	l.waiting = t
}

// letGo lets the next one have leave to kill while this ladder is put off: what
// holds its parent up may do so for ever. But one that was sent a signal and is
// dying may well take others along, so that is waited for as long as it is likely.
func (l *ladder) letGo(reason policy.Reason) {
	if l.ticket == nil || reason == policy.Dying && !l.doomed.IsZero() && time.Since(l.doomed) < l.r.timing.kill {
		return
	}
	l.ticket.leave()
	if !l.ticket.spent {
		l.ticket = nil
	}
}

// putOff says, once, why no signal is sent for now.
func (l *ladder) putOff(reason policy.Reason, message string) {
	changed := false
	l.setStatus(func(st *Status) {
		changed = st.Reason != reason
		st.Reason = reason
	})
	if changed {
		l.emit(report.Event{Name: report.EventSpared, Reason: string(reason), Message: message})
	}
}

// dropped ends the ladder for a reason that will not pass.
func (l *ladder) dropped(reason policy.Reason) *Outcome {
	if reason == policy.Recovered && l.signals > 0 {
		l.emit(report.Event{Name: report.EventReaped, Message: "it reaped and lives"})
		return &Outcome{Result: Reaped}
	}
	message := "no signal is sent"
	if l.signals > 0 {
		message = "no further signal is sent"
	}
	return l.spared(reason, message)
}

// exhausted ends the ladder of a parent whose workload has lost enough.
func (l *ladder) exhausted(until time.Time) *Outcome {
	out := l.spared(policy.Backoff, "its workload has had all the kills that limits.perWorkload allows")
	out.Until = until
	return out
}

func (l *ladder) spared(reason policy.Reason, message string) *Outcome {
	l.emit(report.Event{Name: report.EventSpared, Reason: string(reason), Message: message})
	return &Outcome{Result: Spared, Reason: reason}
}

// ended is for a parent that is dead.
func (l *ladder) ended(ctx context.Context) *Outcome {
	if l.lethal == 0 {
		return l.spared(policy.Recovered, "it ended by itself")
	}
	moved, err := l.moved(ctx)
	message := fmt.Sprintf("it ended after %s", unix.SignalName(l.lethal))
	switch {
	case err != nil:
		message += "; what became of its zombies is not known: " + err.Error()
	case len(moved) == 0:
		message += "; its zombies are gone"
	default:
		of := ""
		if len(l.sample) == sampleSize {
			of = fmt.Sprintf(" out of %d looked at", sampleSize)
		}
		var where strings.Builder
		for id, n := range moved {
			fmt.Fprintf(&where, "; zombies moved to pid %d, which has not reaped them: %d%s", id.PID, n, of)
		}
		message += where.String()
	}
	l.emit(report.Event{Name: report.EventTerminated, Message: message})
	return &Outcome{Result: Terminated, Moved: moved}
}

// moved says who has the zombies of the dead parent and does not reap them. By
// the time that a pidfd shows the death, all of them have their new parent.
func (l *ladder) moved(ctx context.Context) (moved map[task.ID]int, err error) {
	// A good parent takes milliseconds; do not hold up good news.
	pause := 20 * time.Millisecond
	for end := time.Now().Add(l.r.timing.reap); ; {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return moved, ctx.Err()
		}
		moved, err = l.r.judge.Holders(ctx, l.sample)
		if err != nil || len(moved) == 0 || !time.Now().Before(end) {
			return moved, err
		}
		pause = min(2*pause, time.Until(end))
	}
}

// rehearsed ends a dry run that came to the last step.
func (l *ladder) rehearsed() *Outcome {
	l.emit(report.Event{
		Name:    report.EventGaveUp,
		Message: fmt.Sprintf("dry run: nothing was sent, and it still holds %d zombies", l.seen.Reapable),
	})
	return &Outcome{Result: Rehearsed}
}

// failed ends a ladder that cannot go on.
func (l *ladder) failed(err error) *Outcome {
	l.emit(report.Event{Name: report.EventGaveUp, Message: err.Error()})
	return &Outcome{Result: GaveUp, Err: err, Signals: l.signals}
}

// cancelled ends the ladder because kzr stops. If signals were sent, the trail
// must not just break off.
func (l *ladder) cancelled() *Outcome {
	if l.signals > 0 {
		l.emit(report.Event{Name: report.EventGaveUp, Message: "kzr is stopping: no further signal is sent"})
	}
	return &Outcome{Result: Cancelled}
}

// emit reports a decision about the parent as it was last seen.
func (l *ladder) emit(e report.Event) {
	p := l.seen.Process
	p.ID = l.id
	e.Time = time.Now()
	e.Process, e.Zombies, e.Oldest, e.Rule = &p, l.seen.Reapable, l.seen.Oldest, l.seen.Rule
	e.DryRun = l.dryRun
	l.r.report(e)
}

func (l *ladder) setStatus(change func(*Status)) {
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	change(&l.status)
}
