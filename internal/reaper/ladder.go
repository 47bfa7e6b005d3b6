package reaper

import (
	"cmp"
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
var steps = []func(*ladder, context.Context) *Outcome{
	(*ladder).nudge,     // SIGCHLD
	(*ladder).terminate, // SIGTERM
	(*ladder).kill,      // SIGKILL
}

const (
	nudgeRounds = 10 // after so many nudges it must hold fewer zombies than before them
	lookTries   = 10 // looks, and tries to open a pidfd, that may fail in a row
	sampleSize  = 64 // zombies followed after their parent's death
)

// ladder is what is done to one parent. Only its goroutine touches it, except for
// what r.mu guards.
//
// It sends, looks, and waits for the effect of a signal, on a seat, with a pidfd:
// the same one from the first look to the last. Only while it waits for what can
// take any time, until the limits leave room or the parent may be signalled again,
// does it give both to another ladder that has none.
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
// signal goes to a dead process or to nobody. With another pidfd all of this
// begins anew.
type ladder struct {
	r        *Reaper
	id       task.ID
	workload string
	// Guarded by r.mu:
	reason  policy.Reason // why no signal is sent right now, "" if nothing stands in the way
	seat    *seat         // nil if it has none and waits for none
	waiting *ticket       // for an answer, nil if none is
	hurry   bool          // its parent's zombies have become why pids run out

	proc   *pidfd  // nil without a seat
	stood  bool    // it had another pidfd before
	ticket *ticket // leave to kill, nil if there is none
	dryRun bool

	seen    Look          // the last look that is known to have been at this parent
	sure    bool          // it was good enough for a signal, and nothing was waited for since
	pause   time.Duration // the wait that belongs to the last signal
	nudges  int
	tried   bool          // a signal was really sent, or refused
	signals int           // signals really sent
	before  Look          // the look before the last one of them
	lethal  unix.Signal   // the last one of those that is meant to end it
	doomed  time.Time     // when the first such was sent
	skipped string        // why there was no SIGTERM
	sample  []task.Zombie // some of its zombies when that was sent
}

func (l *ladder) run(ctx context.Context) Outcome {
	defer func() {
		l.stand()
		if l.ticket != nil {
			l.ticket.leave()
		}
	}()
	if out := l.sit(ctx); out != nil {
		return *out
	}
	return *l.climb(ctx)
}

// sit waits for a seat, and opens the pidfd, again and again if no descriptor is
// free for it.
func (l *ladder) sit(ctx context.Context) *Outcome {
	r := anyone
	if l.ticket != nil {
		r = mayKill
	}
	seat := l.r.seats.take(r)
	if l.note(func() { l.seat = seat }) {
		l.r.seats.hurry(seat)
	}
	select {
	case <-seat.ready:
	default:
		l.note(func() { l.reason = cmp.Or(l.reason, policy.RateLimited) })
		select {
		case <-seat.ready:
		case <-ctx.Done():
			return l.cancelled()
		}
	}
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

// stand leaves the seat, taken or not. What was seen from it is worth nothing
// after.
func (l *ladder) stand() {
	l.forget()
	if l.proc != nil {
		l.proc.close()
		l.proc, l.stood = nil, true
	}
	var seat *seat
	l.note(func() { seat, l.seat = l.seat, nil })
	if seat != nil {
		l.r.seats.leave(seat)
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
	for _, step := range steps {
		if out := step(l, ctx); out != nil {
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
		// It may have thousands, and reap one each time.
		if out := l.rest(ctx, 0); out != nil {
			return out
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
	wait := l.wait
	for pause := l.r.timing.look; ; pause = min(2*pause, l.r.timing.kill) {
		if out := wait(ctx, pause); out != nil {
			return out
		}
		if _, out := l.look(ctx); out != nil {
			return out
		}
		limit := l.r.timing.kill
		if reason := policy.Deferred(&l.seen.Process); reason != "" {
			wait = l.whilePutOff(policy.Dying) // with SIGKILL pending, it is
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
			l.note(func() { l.reason = "" })
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
			wait := l.whilePutOff(reason)
			l.putOff(reason, "its turn is put off")
			out = wait(ctx, l.r.timing.look)
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
		case err == nil && seen.Process.ID != l.id && l.stood && l.seen.Process.ID == l.id:
			return "", l.ended(ctx) // while nobody watched
		case err == nil && seen.Process.ID != l.id:
			// The number's owner lives and is another one, or was not found at all.
			return policy.IdentityChanged, nil
		case err == nil:
			l.seen = seen
			if seen.Pressed {
				l.note(func() { l.hurry = true })
			}
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
		youngest = max(youngest, zombies[i].Since())
	}
	return len(zombies), youngest
}

// waitingSince counts the zombies that began to wait by the given moment. Of
// those that oldZombies counted it finds the ones that are still there, and
// never one that came later; nor does a parent that always has some fresh
// zombies seem to reap because of the nudge.
func waitingSince(zombies []task.Zombie, moment time.Duration) (n int) {
	for i := range zombies {
		if zombies[i].Since() <= moment {
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
		l.tried = true
		switch err := l.proc.signal(sig); {
		case errors.Is(err, errGone):
			return l.ended(ctx)
		case err != nil:
			return l.failed(err)
		}
		l.signals++
		l.before = l.seen
		l.before.Zombies = nil
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

// wait waits for the parent's death on the seat, but no longer than d. What was
// seen before is worth nothing after.
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

// rest is wait for one whose turn may not come for long. It gives its seat to who
// wants one.
func (l *ladder) rest(ctx context.Context, d time.Duration) *Outcome {
	if !l.r.seats.wanted() {
		return l.wait(ctx, d)
	}
	l.stand()
	select {
	case <-time.After(d):
		return l.sit(ctx)
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
	if l.note(func() { l.waiting = l.ticket }) {
		l.ticket.hurry()
	}
	defer l.note(func() { l.waiting = nil })
	select {
	case <-l.ticket.answer:
	default:
		l.putOff(policy.RateLimited, "its turn comes when the limits leave room")
		if out := l.queue(ctx); out != nil {
			return out
		}
	}
	switch until := l.ticket.refused; {
	case !until.IsZero():
		return l.exhausted(until)
	case l.proc == nil:
		return l.sit(ctx)
	}
	return nil
}

// queue waits for the answer to the ticket, and gives its seat to who wants one.
// That the parent has died is worth a look in between: others wait for what its
// ladder waits for.
func (l *ladder) queue(ctx context.Context) *Outcome {
	l.forget()
	for {
		if l.proc != nil && l.r.seats.wanted() {
			l.stand()
		}
		pause, dead := l.r.timing.check, (<-chan struct{})(nil)
		if l.proc != nil {
			pause, dead = l.r.timing.look, l.proc.dead
		}
		select {
		case <-l.ticket.answer:
			return nil
		case <-dead:
			return l.ended(ctx)
		case <-time.After(pause):
			if l.proc == nil && gone(l.id.PID) {
				return l.ended(ctx)
			}
		case <-ctx.Done():
			return l.cancelled()
		}
	}
}

// note changes what r.mu guards, and says whether the ladder is in a hurry.
func (l *ladder) note(change func()) (hurry bool) {
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	change()
	return l.hurry
}

// whilePutOff lets go of what others wait for, as what holds the parent up may
// do so for ever, and returns how to wait for the end of that. But one that was
// sent a signal and is dying may well take others along, so that is waited for
// like any death, for as long as it is likely.
func (l *ladder) whilePutOff(reason policy.Reason) (wait func(context.Context, time.Duration) *Outcome) {
	if reason == policy.Dying && !l.doomed.IsZero() && time.Since(l.doomed) < l.r.timing.kill {
		return l.wait
	}
	if l.ticket != nil {
		l.ticket.leave()
		if !l.ticket.spent {
			l.ticket = nil
		}
	}
	return l.rest
}

// putOff says, once, why no signal is sent for now.
func (l *ladder) putOff(reason policy.Reason, message string) {
	changed := false
	l.note(func() {
		changed = l.reason != reason
		l.reason = reason
	})
	if changed {
		l.emit(report.Event{Name: report.EventSpared, Reason: string(reason), Message: message})
	}
}

// dropped ends the ladder for a reason that will not pass.
func (l *ladder) dropped(reason policy.Reason) *Outcome {
	if reason == policy.Recovered && l.signals > 0 && l.reaped() {
		l.emit(report.Event{Name: report.EventReaped, Message: "it reaped and lives"})
		return &Outcome{Result: Reaped}
	}
	message := "no signal is sent"
	if l.signals > 0 {
		message = "no further signal is sent"
	}
	if reason == policy.Recovered && l.signals > 0 {
		message += ": it has not reaped, but the rule asks for more now"
	}
	return l.spared(reason, message)
}

// reaped says whether a parent that no longer meets the rule has reaped since the
// last signal. If it holds no fewer zombies than then, and the rule has become
// harder to meet (pressure is over, or another configuration in force), it is not
// known to have.
func (l *ladder) reaped() bool {
	now, then := &l.seen, &l.before
	return now.Reapable < then.Reapable || now.Threshold <= then.Threshold && now.Grace <= then.Grace
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
	return &Outcome{Result: Terminated}
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
	return &Outcome{Result: GaveUp, Tried: l.tried}
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
	e.Process, e.Zombies, e.Reapable, e.Oldest, e.Rule = &p, l.seen.Reapable, l.seen.Reapable, l.seen.Oldest, l.seen.Rule
	e.DryRun = l.dryRun
	l.r.report(e)
}
