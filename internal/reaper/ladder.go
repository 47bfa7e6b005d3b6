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

const (
	lookTries  = 10 // looks, and tries to open a pidfd, that may fail in a row
	sampleSize = 64 // zombies followed after their parent's death
)

// ladder is what is done to one parent. Only its goroutine touches it, except for
// what r.mu guards.
//
// It sends, looks, and waits for the effect of a signal, in a slot, with a pidfd:
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
	r     *Reaper
	id    task.ID
	who   Who
	poked chan struct{} // look again now
	// Guarded by r.mu:
	status  Status  // what holds it up
	slot    *slot   // nil if it has none and waits for none
	waiting *ticket // for an answer, nil if none is
	hurry   bool    // its parent's zombies are among the reasons why pids run out

	proc    *pidfd // nil without a slot
	another bool   // it had another pidfd before
	ticket  *ticket
	dryRun  bool

	seen       Look          // the last look that is known to have been at this parent
	sure       time.Time     // when it ended, if it was good enough for a signal and nothing was waited for since
	pause      time.Duration // the wait that belongs to the last signal
	tried      bool          // something was really done to it, or refused
	nudges     int           // SIGCHLDs really sent
	toldNudges int
	inside     Insided       // what was reaped inside it
	before     Look          // the look before what was done last
	lethal     unix.Signal   // the last signal really sent that is meant to end it
	struck     time.Time     // when the first such was sent
	notes      []string      // for the next message
	noTerm     string        // why SIGTERM was skipped, for the message about SIGKILL
	sample     []task.Zombie // some of its zombies when lethal was sent
}

func (l *ladder) run(ctx context.Context) Outcome {
	defer func() {
		l.releaseSlot()
		if l.ticket != nil {
			l.ticket.release()
		}
	}()
	if out := l.acquireSlot(ctx); out != nil {
		return *out
	}
	for _, step := range steps {
		if out := step(l, ctx); out != nil {
			return *out
		}
	}
	return *l.failed(errors.New("no step is left"))
}

// acquireSlot waits for a slot, and opens the pidfd, again and again if no
// descriptor is free for it.
func (l *ladder) acquireSlot(ctx context.Context) *Outcome {
	r := anyone
	if l.ticket != nil {
		r = mayKill
	}
	slot := l.r.slots.acquire(r)
	if l.locked(func() { l.slot = slot }) {
		l.r.slots.hurry(slot)
	}
	select {
	case <-slot.ready:
	default:
		l.locked(func() {
			if l.status.Reason == "" {
				l.status = Status{Reason: policy.RateLimited, Message: "waiting for a free slot: too many parents are being acted on"}
			}
		})
		select {
		case <-slot.ready:
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

// releaseSlot gives the slot up, had or waited for. What was seen with it is worth
// nothing after.
func (l *ladder) releaseSlot() {
	l.forget()
	if l.proc != nil {
		l.proc.close()
		l.proc, l.another = nil, true
	}
	var slot *slot
	l.locked(func() { slot, l.slot = l.slot, nil })
	if slot != nil {
		l.r.slots.release(slot)
	}
}

// verify returns nil when everything that a signal needs holds right now. If it
// does not, but may again, it waits for that. The parent had no use of a wait
// that it spent stopped, say, so then the wait for the effect of the last signal
// begins anew; the place in the ladder is kept.
func (l *ladder) verify(ctx context.Context) *Outcome {
	var waited, twice bool
	var unknown, slow int
	for !l.fresh() {
		began := time.Now()
		reason, out := l.look(ctx)
		switch {
		case out != nil:
			return out
		case reason == "" && time.Since(began) > stale && slow < 2:
			slow++ // maybe kzr stood still after it had looked
		case reason == "":
			l.locked(func() { l.status = Status{} })
			if !waited || l.pause == 0 {
				l.sure = time.Now()
				return nil
			}
			pause := l.pause
			if l.seen.Pressure != policy.NoPressure {
				pause = min(pause, max(l.seen.Nudge, l.seen.TermTimeout))
			}
			waited, out = l.waitPoked(ctx, pause)
		case reason == policy.Dying && !l.struck.IsZero() && time.Since(l.struck) >= l.r.timing.dying:
			return l.failed(fmt.Errorf("still dying %s after %s", time.Since(l.struck).Round(time.Second), unix.SignalName(l.lethal)))
		case reason == policy.Uninterruptible && !twice && l.status.Reason != reason:
			// Any process is so for moments, as one that reads a disk or is being frozen.
			twice = true
			out = l.wait(ctx, 10*time.Millisecond)
		case vague(reason, &l.seen.Process) && unknown < vagueLooks && l.status.Reason != reason:
			// Nobody could tell in time, as on a busy machine. That is no news yet.
			unknown++
			out = l.wait(ctx, l.r.timing.look)
		case !transient(reason):
			return l.dropped(reason)
		default:
			waited = true
			wait := l.whileDeferred(reason)
			l.hold(reason, &refusal{message: cmp.Or(l.seen.Deferred, "deferred while "+string(reason))})
			out = wait(ctx, l.r.timing.look)
		}
		if out != nil {
			return out
		}
	}
	return nil
}

// stale is the age at which what was seen is worth nothing any more. No look takes as
// long on a machine in order; but kzr may be stopped, starved of CPU, or wait for a disk.
const stale = time.Second

// fresh says that what was seen last still holds.
func (l *ladder) fresh() bool { return !l.sure.IsZero() && time.Since(l.sure) < stale }

// vagueLooks is how many looks may fail to tell before that is said.
const vagueLooks = 5

// vague says that the reason may be none: nobody could tell.
func vague(reason policy.Reason, p *task.Process) bool {
	switch reason {
	case policy.Traced:
		return p.Tracer.PID == 0
	case policy.Waiting:
		return p.WaitsUnknown
	case policy.ByRule: // which asks for what it executes
		return p.Exe == ""
	}
	return false
}

// look looks at the parent and then at the pidfd, which makes certain that what
// was seen was the parent (see ladder). It returns why no signal may be sent,
// "" if one may.
func (l *ladder) look(ctx context.Context) (policy.Reason, *Outcome) {
	for failures := 1; ; failures++ {
		seen, err := l.r.Judge.Look(ctx, l.id)
		if ctx.Err() != nil {
			return "", l.cancelled()
		}
		switch dead, perr := l.proc.exited(); {
		case perr != nil:
			return "", l.failed(perr)
		case dead:
			return "", l.ended(ctx)
		case err == nil && seen.Process.ID != l.id && l.another && l.seen.Process.ID == l.id:
			return "", l.ended(ctx) // while nobody watched
		case err == nil && seen.Process.ID != l.id:
			// The number's owner lives and is another one, or was not found at all.
			return policy.IdentityChanged, nil
		case err == nil:
			l.seen = seen
			if l.lethal == 0 {
				l.sample = sample(seen.Old)
			}
			if seen.Pressure != policy.NoPressure {
				l.locked(func() { l.hurry = true })
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
	case policy.Deferred(&seen.Process.Facts, policy.Circumstances{}) == policy.Dying:
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
	case policy.Traced, policy.Stopped, policy.Frozen, policy.Dying, policy.Uninterruptible,
		policy.Waiting, policy.Foreign:
		return true
	}
	return false
}

// wait waits for the parent's death with the slot, but no longer than d. What was
// seen before is worth nothing after.
func (l *ladder) wait(ctx context.Context, d time.Duration) *Outcome {
	_, out := l.waitFor(ctx, d, nil)
	return out
}

// waitPoked is wait that ends early, and says so, when there is reason to look again.
func (l *ladder) waitPoked(ctx context.Context, d time.Duration) (poked bool, out *Outcome) {
	return l.waitFor(ctx, d, l.poked)
}

func (l *ladder) waitFor(ctx context.Context, d time.Duration, poked <-chan struct{}) (bool, *Outcome) {
	l.forget()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false, nil
	case <-poked:
		return true, nil
	case <-l.proc.dead:
		return false, l.ended(ctx)
	case <-ctx.Done():
		return false, l.cancelled()
	}
}

// waitReleasingSlot is waitPoked for one whose turn may not come for long. It gives
// its slot to who wants one.
func (l *ladder) waitReleasingSlot(ctx context.Context, d time.Duration) *Outcome {
	if !l.r.slots.wanted() {
		_, out := l.waitPoked(ctx, d)
		return out
	}
	l.releaseSlot()
	select {
	case <-time.After(d):
	case <-l.poked:
	case <-ctx.Done():
		return l.cancelled()
	}
	return l.acquireSlot(ctx)
}

// forget lets go of what was seen, of which the zombies can be many megabytes.
func (l *ladder) forget() {
	l.sure = time.Time{}
	l.seen.Old = nil
}

// takeTicket gets leave to kill, and waits if it must. The caller looks again
// after, and may have to call it again.
func (l *ladder) takeTicket(ctx context.Context) *Outcome {
	if l.ticket == nil {
		l.ticket = l.r.limits.take(l.id, l.who, l.seen.Pressure)
	} else {
		l.ticket.resume()
	}
	if l.locked(func() { l.waiting = l.ticket }) {
		l.ticket.hurry()
	}
	defer l.locked(func() { l.waiting = nil })
	select {
	case <-l.ticket.answer:
	default:
		waits := l.ticket.waitsFor()
		l.hold(policy.RateLimited, waits)
		answered, out := l.queue(ctx)
		if out != nil {
			return out
		}
		if !answered {
			return l.ensureSlot(ctx)
		}
	}
	if l.ticket.refused != nil {
		return l.exhausted(l.ticket.refused)
	}
	return l.ensureSlot(ctx)
}

func (l *ladder) ensureSlot(ctx context.Context) *Outcome {
	if l.proc != nil {
		return nil
	}
	return l.acquireSlot(ctx)
}

// queue waits for the answer to the ticket, and gives its slot to who wants one. It
// returns early when there is reason to look again. That the parent has died is
// worth a look in between: others wait for what its ladder waits for.
func (l *ladder) queue(ctx context.Context) (answered bool, out *Outcome) {
	l.forget()
	for {
		if l.proc != nil && l.r.slots.wanted() {
			l.releaseSlot()
		}
		pause, dead := l.r.timing.check, (<-chan struct{})(nil)
		if l.proc != nil {
			pause, dead = l.r.timing.look, l.proc.dead
		}
		select {
		case <-l.ticket.answer:
			return true, nil
		case <-l.poked:
			return false, nil
		case <-dead:
			return false, l.ended(ctx)
		case <-time.After(pause):
			if l.proc == nil && gone(l.id.PID) {
				return false, l.ended(ctx)
			}
		case <-ctx.Done():
			return false, l.cancelled()
		}
	}
}

// locked changes what r.mu guards, and says whether the ladder is in a hurry.
func (l *ladder) locked(change func()) (hurry bool) {
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	change()
	return l.hurry
}

// remember changes what is known of the parent beyond this ladder.
func (l *ladder) remember(change func(*record)) {
	l.locked(func() { change(l.r.history.of(l.id, time.Now())) })
}

// whileDeferred releases what others wait for, as what holds the parent up may do
// so for ever, and returns how to wait for the end of that. But one that was sent a
// signal and is dying may well take others along, so that is waited for like any
// death, for as long as it is likely.
func (l *ladder) whileDeferred(reason policy.Reason) (wait func(context.Context, time.Duration) *Outcome) {
	if reason == policy.Dying && !l.struck.IsZero() && time.Since(l.struck) < l.r.timing.kill {
		return l.wait
	}
	l.releaseTicket()
	return l.waitReleasingSlot
}

func (l *ladder) releaseTicket() {
	if l.ticket == nil {
		return
	}
	l.ticket.release()
	if !l.ticket.spent {
		l.ticket = nil
	}
}

// hold says why no signal is sent for now, and again when that is news.
func (l *ladder) hold(reason policy.Reason, why *refusal) {
	news := false
	l.remember(func(r *record) {
		changed := l.status.Reason != reason
		l.status = Status{reason, why.message, why.until, why.limit}
		news = r.news(string(reason), changed, l.seen.Zombies, time.Now())
	})
	if news {
		l.emit(report.Event{Name: report.EventSpared, Reason: string(reason), Message: l.withNotes(why.message), Until: why.until})
	}
}

// dropped ends the ladder for a reason that will not pass.
func (l *ladder) dropped(reason policy.Reason) *Outcome {
	done := l.nudges > 0 || l.inside.Reaped > 0 || l.lethal != 0
	if reason == policy.Recovered && done && l.reaped() {
		e := l.reapedEvent()
		l.emit(e)
		return &Outcome{Result: Reaped, Message: e.Message}
	}
	message := "no signal sent"
	if done {
		message = "no further signal sent"
	}
	if reason == policy.Recovered {
		message += ": below the rule"
		if done {
			message = "no further signal sent: it has not reaped, but no longer meets the rule, which has changed"
		}
	}
	return l.spared(report.Event{Reason: string(reason), Message: message})
}

// reapedEvent tells of a parent that lives on.
func (l *ladder) reapedEvent() report.Event {
	e := report.Event{
		Name: report.EventReaped, By: report.ByParent,
		Message: fmt.Sprintf("parent reaped after SIGCHLD; %d zombies left", l.seen.Reapable),
	}
	switch {
	case l.inside.Reaped > 0:
		e.By, e.Reaped, e.Stopped = report.ByKzr, l.inside.Reaped, l.inside.Stopped
		e.Message = fmt.Sprintf("reaped %d zombies inside it (paused for at most %s); %d left",
			l.inside.Reaped, l.inside.Stopped.Round(100*time.Microsecond), l.seen.Reapable)
	case l.lethal != 0:
		e.Message = fmt.Sprintf("parent reaped after %s; %d zombies left", unix.SignalName(l.lethal), l.seen.Reapable)
	}
	e.Message = l.withNotes(e.Message)
	return e
}

// reaped says whether a parent that no longer meets the rule has reaped since the
// last signal. If it holds no fewer zombies than then, and the rule has become
// harder to meet (pressure is over, or another configuration in force), it is not
// known to have.
func (l *ladder) reaped() bool {
	now, then := &l.seen, &l.before
	return now.Reapable < then.Reapable || now.Threshold <= then.Threshold && now.Grace <= then.Grace
}

// exhausted ends the ladder of a parent whose workload has lost enough. It is tried
// again and again, and said when that is news.
func (l *ladder) exhausted(why *refusal) *Outcome {
	message := l.withNotes(why.message)
	news := false
	l.remember(func(r *record) {
		news = r.backoffNews(why, l.seen.Zombies, time.Now())
	})
	if news {
		l.emit(report.Event{Name: report.EventSpared, Reason: string(policy.Backoff), Message: message, Until: why.until})
	}
	return &Outcome{Result: Spared, Reason: policy.Backoff, Tried: l.tried, Until: why.until, Limit: why.limit, Message: message}
}

func (l *ladder) spared(e report.Event) *Outcome {
	e.Name = report.EventSpared
	e.Message = l.withNotes(e.Message)
	l.emit(e)
	return &Outcome{Result: Spared, Reason: policy.Reason(e.Reason), Message: e.Message}
}

// ended is for a parent that is dead.
func (l *ladder) ended(ctx context.Context) *Outcome {
	moved, err := l.moved(ctx)
	if l.lethal == 0 && len(moved) == 0 {
		return l.spared(report.Event{Reason: string(policy.Recovered), Message: "ended by itself"})
	}
	if l.lethal == 0 { // nothing has recovered: another parent has them now
		for id := range moved {
			l.emit(report.Event{Name: report.EventSuspect, Message: fmt.Sprintf("ended by itself; its zombies moved to pid %d, which has not reaped them", id.PID)})
			break
		}
		return &Outcome{Result: Spared, Reason: policy.Recovered}
	}
	message := fmt.Sprintf("ended after %s", unix.SignalName(l.lethal))
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
	message = l.withNotes(message)
	l.emit(report.Event{Name: report.EventTerminated, Message: message})
	return &Outcome{Result: Terminated, Message: message}
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
		moved, err = l.r.Judge.Holders(ctx, l.sample)
		if err != nil || len(moved) == 0 || !time.Now().Before(end) {
			return moved, err
		}
		pause = min(2*pause, time.Until(end))
	}
}

// rehearsed ends a dry run that came to the last step.
func (l *ladder) rehearsed() *Outcome {
	message := l.withNotes(fmt.Sprintf("dry run: nothing was sent; %d zombies left", l.seen.Reapable))
	l.emit(report.Event{Name: report.EventGaveUp, Message: message})
	return &Outcome{Result: Rehearsed, Message: message}
}

// failed ends a ladder that cannot go on.
func (l *ladder) failed(err error) *Outcome {
	message := l.withNotes(err.Error())
	l.emit(report.Event{Name: report.EventGaveUp, Message: message})
	return &Outcome{Result: GaveUp, Tried: l.tried, Message: message}
}

// cancelled ends the ladder because kzr stops. If anything was done, the trail must
// not just break off.
func (l *ladder) cancelled() *Outcome {
	if l.nudges > 0 || l.inside.Reaped > 0 || l.lethal != 0 {
		l.emit(report.Event{Name: report.EventGaveUp, Message: l.withNotes("kzr is stopping: no further signal sent")})
	}
	return &Outcome{Result: Cancelled}
}

// emit reports a decision about the parent as it was last seen.
func (l *ladder) emit(e report.Event) {
	p := l.seen.Process
	p.ID = l.id
	e.Time = time.Now()
	e.Process, e.Oldest, e.Rule = &p, l.seen.Oldest, l.seen.Rule
	e.Zombies, e.Reapable = l.seen.Zombies, l.seen.Reapable
	e.DryRun = l.dryRun
	l.r.Report(e)
}
