package reaper

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/policy"
	"kzr/internal/report"
	"kzr/internal/task"
)

// steps is the ladder. Each step does its one thing if that makes sense, waits and
// checks for itself whether that was enough. It returns nil to hand over to the
// next one, or how the ladder ended.
var steps = []func(*ladder, context.Context) *Outcome{
	(*ladder).nudge,      // SIGCHLD
	(*ladder).reapInside, // wait4 in its name
	(*ladder).terminate,  // SIGTERM
	(*ladder).kill,       // SIGKILL
}

// nudge sends SIGCHLD, again for as long as each one makes the parent reap some: a
// handler that waits for one child per signal is a common bug. It costs nobody
// anything, so no limit forbids it. It is said once.
func (l *ladder) nudge(ctx context.Context) *Outcome {
	if out := l.verify(ctx); out != nil {
		return out
	}
	pressed := l.seen.Pressure != policy.NoPressure
	if l.skipped(policy.Nudge) != "" {
		return nil
	}
	end := time.Now().Add(max(10*l.seen.Nudge, l.r.timing.nudges))
	if pressed {
		end = time.Now().Add(100 * l.r.timing.urgent)
	}
	// A parent that makes zombies as fast as it reaps them would be nudged for ever.
	checked, before := time.Now(), len(l.seen.Old)
	for {
		old, youngest := oldZombies(l.seen.Old)
		if out := l.send(ctx, unix.SIGCHLD); out != nil {
			return out
		}
		fewer, out := l.effect(ctx, old, youngest)
		if out != nil || !fewer || l.dryRun {
			return out
		}
		switch now := time.Now(); {
		case now.After(end):
			return nil
		case now.Sub(checked) < max(l.r.timing.stalled, l.seen.Nudge):
		case len(l.seen.Old) >= before:
			return nil
		default:
			checked, before = now, len(l.seen.Old)
		}
		// It may have thousands, and reap one each time.
		if l.r.slots.wanted() {
			began := time.Now()
			if out := l.waitReleasingSlot(ctx, 0); out != nil {
				return out
			}
			if out := l.verify(ctx); out != nil {
				return out
			}
			waited := time.Since(began)
			end, checked = end.Add(waited), checked.Add(waited)
		}
	}
}

// effect says whether the parent has fewer of the old zombies, the youngest of
// which began to wait at the given moment, as soon as it has, or after the nudge.
func (l *ladder) effect(ctx context.Context, old int, youngest time.Duration) (fewer bool, out *Outcome) {
	began := time.Now()
	for pause := time.Millisecond; ; pause *= 2 {
		nudge := l.seen.Nudge
		if l.seen.Pressure != policy.NoPressure {
			nudge = max(nudge, l.r.timing.urgent)
		}
		left := nudge - time.Since(began)
		if left <= 0 {
			return false, nil
		}
		if out := l.wait(ctx, min(pause, left)); out != nil {
			return false, out
		}
		if out := l.verify(ctx); out != nil {
			return false, out
		}
		if waitingSince(l.seen.Old, youngest) < old {
			return true, nil
		}
	}
}

// reapInside reaps zombies in the name of the parent, which stands still for a
// moment and lives on; at most once per grace, as each time may start a timeout of
// its own over. Where it cannot be done, the reason goes with what is said next.
func (l *ladder) reapInside(ctx context.Context) *Outcome {
	for {
		if out := l.verify(ctx); out != nil {
			return out
		}
		if l.skipped(policy.Reap) != "" {
			return nil
		}
		var last record
		l.remember(func(r *record) { last = *r })
		pressed := l.seen.Pressure != policy.NoPressure
		left := l.seen.Grace
		if !pressed {
			left = max(left, last.alone)
		}
		if left -= time.Since(last.inside); left <= 0 {
			break
		}
		// Where it has helped it is worth waiting for, but not under pressure: there it
		// has not kept pace.
		if !last.helped || pressed {
			return nil
		}
		if out := l.waitReleasingSlot(ctx, left); out != nil {
			return out
		}
	}
	if l.dryRun = l.dryRun || l.r.isDryRun(); l.dryRun {
		n := l.seen.within()
		l.addNote(fmt.Sprintf("would reap %d zombies inside it", n))
		if l.seen.Reapable-n < l.seen.Threshold {
			return l.rehearsed()
		}
		return nil
	}
	end := time.Now().Add(l.r.timing.inside)
	step, cancel := context.WithDeadline(ctx, end.Add(l.r.timing.look)) // what is under way is not cut short
	defer cancel()
	l.before, l.before.Old = l.seen, nil
	var last Insided
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, l.r.timing.look) {
		var err error
		last, err = l.proc.reap(step, l.r.Inside, &l.seen)
		l.tried = true
		l.inside.Reaped += last.Reaped
		l.inside.Stopped = max(l.inside.Stopped, last.Stopped)
		l.forget()
		l.remember(func(r *record) { r.reapedInside(time.Now(), l.inside.Reaped > 0, l.seen.Grace, last.Alone) })
		again := err == nil && last.Refused == "" && last.Reaped > 0 && last.Left > 0 && last.Alone == 0
		switch {
		case ctx.Err() != nil:
			return l.cancelled()
		case err != nil:
			last.Refused = err.Error()
		case last.Refused != "" && last.Transient && l.seen.Pressure == policy.NoPressure && time.Now().Before(end):
			if out := l.waitReleasingSlot(ctx, pause); out != nil {
				return out
			}
			again = true
		}
		if !again || !time.Now().Before(end) {
			break
		}
		if out := l.verify(ctx); out != nil {
			return out
		}
		if l.skipped(policy.Reap) != "" {
			break
		}
	}
	if last.Refused != "" {
		l.addNote("not reaped inside: " + last.Refused)
	}
	if l.inside.Reaped == 0 {
		return nil
	}
	reason, out := l.look(ctx)
	switch {
	case out != nil:
		return out
	case reason == policy.Recovered:
		return l.dropped(reason)
	}
	e := l.reapedEvent()
	more := l.seen.within()
	if last.Refused == "" && l.seen.Pressure == policy.NoPressure && (last.Left > 0 || l.seen.Reapable-more < l.seen.Threshold) {
		// It is doing good, and there is no hurry.
		out = &Outcome{Result: Reaped, Until: time.Now().Add(max(l.seen.Grace, last.Alone))}
		e.Message += fmt.Sprintf("; %d more to reap inside it, not before %s", max(last.Left, more), out.Until.Format(time.TimeOnly))
		out.Message = e.Message
	}
	l.emit(e)
	l.inside = Insided{} // told
	return out
}

// skipped says why a step is left out, "" if it is to be done.
func (l *ladder) skipped(do policy.Do) string {
	m := policy.Means{
		Nudge: l.seen.Nudge, TermTimeout: l.seen.TermTimeout, Pressure: l.seen.Pressure != policy.NoPressure,
		Reap: l.seen.Reap, Reapable: l.seen.Reapable, Adopted: l.seen.Adopted,
	}
	if l.r.Inside == nil {
		m.Refusal = "the helper that reaps inside processes is not running"
	}
	steps := policy.Ladder(&l.seen.Process.Facts, m)
	return steps[slices.IndexFunc(steps, func(s policy.Step) bool { return s.Do == do })].Skipped
}

// terminate sends SIGTERM and waits.
func (l *ladder) terminate(ctx context.Context) *Outcome {
	if out := l.verify(ctx); out != nil {
		return out
	}
	if l.seen.Process.State == 'D' { // for a moment, or for good?
		if out := l.wait(ctx, l.r.timing.urgent); out != nil {
			return out
		}
		if out := l.verify(ctx); out != nil {
			return out
		}
	}
	if why := l.skipped(policy.Terminate); why != "" {
		l.noTerm = "SIGTERM was skipped: " + why
		return nil
	}
	if out := l.strike(ctx, unix.SIGTERM); out != nil {
		return out
	}
	for sent := time.Now(); ; { // it may get shorter
		left := l.seen.TermTimeout - time.Since(sent)
		if left <= 0 {
			return nil
		}
		poked, out := l.waitPoked(ctx, left)
		if out != nil || !poked {
			return out
		}
		if out := l.verify(ctx); out != nil {
			return out
		}
	}
}

// kill sends SIGKILL, and waits until the parent is gone or it is certain that
// waiting is no use. There is no second SIGKILL: one that does not help at once is
// pending, and will work when whatever holds the process up lets it go.
func (l *ladder) kill(ctx context.Context) *Outcome {
	if out := l.strike(ctx, unix.SIGKILL); out != nil {
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
		waited, limit := time.Since(sent), l.r.timing.kill
		if reason := policy.Deferred(&l.seen.Process.Facts, policy.Circumstances{}); reason != "" && !vague(reason, &l.seen.Process) {
			wait = l.whileDeferred(policy.Dying) // with SIGKILL pending, it is
			l.hold(reason, &refusal{message: "SIGKILL is pending; another would not help"})
			limit = l.r.timing.dying
		}
		if l.seen.Pressure == policy.NodePressure && waited >= l.r.timing.next {
			l.releaseTicket()
		}
		if waited >= limit {
			return l.failed(fmt.Errorf("not dead %s after SIGKILL", waited.Round(time.Second)))
		}
	}
}

// strike sends a signal that is meant to end the parent. The first of a ladder
// needs leave to kill, and each one that no other of its workload is being killed.
func (l *ladder) strike(ctx context.Context, sig unix.Signal) *Outcome {
	for {
		if out := l.verify(ctx); out != nil {
			return out
		}
		if l.ticket == nil || !l.ticket.held(l.seen.Pressure) {
			if out := l.takeTicket(ctx); out != nil {
				return out
			}
			continue
		}
		if ctx.Err() != nil {
			return l.cancelled() // no kill is counted that is not done
		}
		if l.dryRun = l.dryRun || l.r.isDryRun(); !l.dryRun {
			l.locked(func() { l.r.acting[l.id] = true })
		}
		if l.ticket.spend(l.dryRun) {
			l.r.save() // which may wait for a disk
		}
		if l.fresh() {
			return l.send(ctx, sig)
		}
	}
}

// send sends a signal, or in a dry run only says so.
func (l *ladder) send(ctx context.Context, sig unix.Signal) *Outcome {
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
		l.before, l.before.Old = l.seen, nil
		if lethal {
			l.lethal = sig
			l.sample = sample(l.seen.Old)
			if l.struck.IsZero() {
				l.struck = time.Now()
			}
		} else {
			l.nudges++
		}
	}
	l.pause = l.seen.Nudge
	e := report.Event{Name: report.EventSignal, Signal: unix.SignalName(sig), Message: "sent "}
	if l.dryRun {
		e.Message = "would send "
	}
	e.Message += e.Signal
	if lethal {
		l.pause = l.seen.TermTimeout
		if l.who.Init {
			e.Message += " to the container's init"
		}
		if e.LimitsOverridden = l.ticket.overridden(); e.LimitsOverridden {
			l.addNote("limits overridden, as the node runs out of pids")
		}
	} else if l.nudges > 1 {
		return nil // said already
	}
	if lethal && l.noTerm != "" {
		l.addNote(l.noTerm)
		l.noTerm = ""
	}
	e.Message = l.withNotes(e.Message)
	l.emit(e)
	return nil
}

// addNote puts something into the next message.
func (l *ladder) addNote(note string) { l.notes = append(l.notes, note) }

func (l *ladder) withNotes(message string) string {
	if l.nudges > 1 && l.toldNudges < l.nudges {
		l.addNote(fmt.Sprintf("sent SIGCHLD %d times", l.nudges))
		l.toldNudges = l.nudges
	}
	message = strings.Join(append([]string{message}, l.notes...), "; ")
	l.notes = nil
	return message
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

// sample copies a few zombies, spread evenly.
func sample(zombies []task.Zombie) []task.Zombie {
	n := min(len(zombies), sampleSize)
	few := make([]task.Zombie, n)
	for i := range few {
		few[i] = zombies[i*len(zombies)/n]
	}
	return few
}
