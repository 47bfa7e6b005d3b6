package reaper

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"kzr/internal/config"
	"kzr/internal/policy"
	"kzr/internal/task"
)

const (
	maxKills   = 4096        // remembered for limits.perWorkload
	firstPause = time.Minute // of those that double
)

// limits counts kills against what the node and each workload allow. A kill is
// a victim that got SIGTERM or SIGKILL; one that got both counts once. Both
// windows slide.
//
// A ladder that is about to kill takes a ticket. The answer comes at once if there
// is room; otherwise the ticket waits. A granted ticket holds its place in both
// windows from the grant on, so ladders that run side by side cannot overshoot, and
// it holds its workload, so a second victim there waits until the first is gone:
// killing a container's init takes everything else in it along. A ladder that is
// deferred releases its ticket, so that the workload is the next one's, and has to
// take it up again before it goes on. A kill counts once, however often.
//
// A victim that started before its workload's last kill lived beside that one:
// nothing has restarted, and it does not count again for its workload.
type limits struct {
	mu        sync.Mutex
	clock     func() time.Duration // CLOCK_BOOTTIME
	set       config.Limits
	kills     []Kill         // on the node, of the last minute, oldest first
	reserved  map[string]int // tickets granted and not yet spent, by owner
	workloads map[string]*workload
	counted   int     // kills in all workloads
	override  *ticket // whose victim, killed for the node's pressure, is not gone yet
	queue     []*ticket
	taken     uint64
	wake      *time.Timer
}

type workload struct {
	kills  []Kill // of the last window, oldest first
	pauses int    // see State.Pauses
	holder *ticket
}

// ticket is one ladder's leave to kill.
type ticket struct {
	limits   *limits
	victim   task.ID
	who      Who
	seq      uint64
	answer   chan struct{} // closed at the answer; another one once it is taken up again
	refused  *refusal      // the answer, if it is no
	pressure policy.Pressure
	urgent   bool
	spent    bool
	needs    policy.Pressure // the grant rests on this pressure
	free     bool            // granted: it does not count for its workload
}

// refusal is a limit that is used up.
type refusal struct {
	message string
	limit   Limit
	until   time.Time
	moment  time.Duration // until by the clock of the limits; 0 if it moves on
}

func newLimits(set config.Limits, clock func() time.Duration) *limits {
	return &limits{set: set, clock: clock, reserved: map[string]int{}, workloads: map[string]*workload{}}
}

// change puts other limits in force, for those who wait as well. Kills of the
// past still count.
func (l *limits) change(set config.Limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set = set
	l.admit()
}

// forgetRehearsed drops the kills that were none.
func (l *limits) forgetRehearsed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	rehearsed := func(k Kill) bool { return k.Rehearsed }
	l.kills = slices.DeleteFunc(l.kills, rehearsed)
	for _, w := range l.workloads {
		w.kills = slices.DeleteFunc(w.kills, rehearsed)
	}
	l.admit()
}

// restore takes up what an earlier kzr has saved since boot.
func (l *limits) restore(st State) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock()
	for _, k := range st.Kills[max(0, len(st.Kills)-maxKills):] {
		if k.At > now {
			continue // not of this boot
		}
		l.kills = append(l.kills, k)
		if k.Counted {
			w := l.workload(k.Workload)
			w.kills = append(w.kills, k)
			w.pauses = st.Pauses[k.Workload]
		}
	}
	l.prune(now)
}

// state is what restore takes.
func (l *limits) state() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.prune(l.clock())
	st := State{Pauses: map[string]int{}}
	for _, k := range l.kills {
		if !k.Counted {
			st.Kills = append(st.Kills, k)
		}
	}
	for name, w := range l.workloads {
		st.Kills = append(st.Kills, w.kills...)
		if w.pauses > 0 {
			st.Pauses[name] = w.pauses
		}
	}
	slices.SortFunc(st.Kills, func(a, b Kill) int { return cmp.Compare(a.At, b.At) })
	st.Kills = st.Kills[max(0, len(st.Kills)-maxKills):]
	return st
}

func (l *limits) workload(name string) *workload {
	w := l.workloads[name]
	if w == nil {
		w = &workload{}
		l.workloads[name] = w
	}
	return w
}

// take asks for leave to kill a process. The caller must release the ticket,
// whatever the answer.
func (l *limits) take(victim task.ID, who Who, pressure policy.Pressure) *ticket {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taken++
	t := &ticket{limits: l, victim: victim, who: who, pressure: pressure, seq: l.taken, answer: make(chan struct{})}
	l.queue = append(l.queue, t)
	l.admit()
	return t
}

// resume asks again for what was released, or does nothing if the ticket waits
// or holds its workload.
func (t *ticket) resume() {
	l := t.limits
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.Contains(l.queue, t) || t.holds() {
		return
	}
	t.answer, t.refused = make(chan struct{}), nil
	l.queue = append(l.queue, t)
	l.admit()
}

// held says whether the workload is the ticket's, with the pressure that there is
// now: a kill that was granted for the sake of pressure that is over is not.
func (t *ticket) held(pressure policy.Pressure) bool {
	l := t.limits
	l.mu.Lock()
	defer l.mu.Unlock()
	t.pressure = pressure
	if t.holds() && !t.spent && weight(pressure) < weight(t.needs) {
		l.release(t)
	}
	l.admit()
	return t.holds()
}

func (t *ticket) holds() bool {
	w := t.limits.workloads[t.who.Workload]
	return w != nil && w.holder == t
}

// hurry puts the ticket before those that can wait.
func (t *ticket) hurry() {
	t.limits.mu.Lock()
	defer t.limits.mu.Unlock()
	t.urgent = true
	t.limits.admit()
}

// spend counts the kill, and says whether it does now. The ticket must have been
// granted.
func (t *ticket) spend(rehearsed bool) bool {
	l := t.limits
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.spent {
		return false
	}
	t.spent = true
	l.unreserve(t)
	k := Kill{
		At: l.clock(), Victim: t.victim, Workload: t.who.Workload, Owner: t.who.Owner,
		Counted: !t.free, Rehearsed: rehearsed,
	}
	l.kills = append(l.kills, k)
	if k.Counted {
		w := l.workload(t.who.Workload)
		w.kills = append(w.kills, k)
		if t.needs == policy.WorkloadPressure {
			w.pauses++
		}
	}
	l.admit() // no room was made, but the moment at which there will be is now known
	return true
}

// overridden says whether a limit would have refused the kill.
func (t *ticket) overridden() bool {
	t.limits.mu.Lock()
	defer t.limits.mu.Unlock()
	return t.needs == policy.NodePressure
}

// release gives everything but a spent kill back: the victim is gone, is
// deferred, or is not to be killed after all.
func (t *ticket) release() {
	l := t.limits
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.queue, t); i >= 0 {
		l.queue = slices.Delete(l.queue, i, i+1)
	}
	if t.holds() {
		l.release(t)
	}
	l.admit()
}

func (l *limits) release(t *ticket) {
	l.workloads[t.who.Workload].holder = nil
	if !t.spent {
		l.unreserve(t)
	}
	if l.override == t {
		l.override = nil
	}
}

func (l *limits) unreserve(t *ticket) {
	if l.reserved[t.who.Owner]--; l.reserved[t.who.Owner] == 0 {
		delete(l.reserved, t.who.Owner)
	}
}

// waitsFor says what a ticket without an answer waits for, and until when as far
// as that is known.
func (t *ticket) waitsFor() *refusal {
	l := t.limits
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock()
	l.prune(now)
	if w := l.workloads[t.who.Workload]; w != nil && w.holder != nil && w.holder != t {
		return &refusal{message: fmt.Sprintf("waiting for pid %d of the same workload to exit", w.holder.victim.PID)}
	}
	if l.override != nil && l.override != t && t.pressure == policy.NodePressure {
		return &refusal{message: fmt.Sprintf("waiting for pid %d to exit", l.override.victim.PID)}
	}
	out := &refusal{message: fmt.Sprintf("limits.killsPerMinute (%d) used up", l.set.KillsPerMinute), limit: Limit{Name: KillsPerMinute}}
	i := len(l.kills) + l.pending() - l.set.KillsPerMinute
	if n := len(l.kills); n > 0 {
		out.limit.Since = l.wall(now, l.kills[n-1].At)
		out.message += " since " + out.limit.Since.Format(time.TimeOnly)
		if i >= 0 && i < n {
			out.until = l.wall(now, l.kills[i].At+time.Minute)
			out.message += "; next kill at " + out.until.Format(time.TimeOnly)
		}
	}
	return out
}

func (l *limits) pending() (n int) {
	for _, of := range l.reserved {
		n += of
	}
	return n
}

// admit answers every ticket that can be answered, and sees to it that it is
// called again when the node's window has room for the rest.
func (l *limits) admit() {
	now := l.clock()
	l.prune(now)
	l.queue = slices.DeleteFunc(l.queue, func(t *ticket) bool {
		if t.spent || t.pressure == policy.NodePressure {
			return false
		}
		if t.refused = l.refuse(t, now); t.refused == nil {
			return false
		}
		close(t.answer)
		return true
	})
	for len(l.queue) > 0 {
		full := len(l.kills)+l.pending() >= l.set.KillsPerMinute
		next := -1
		for i, t := range l.queue {
			w := l.workloads[t.who.Workload]
			switch {
			case w != nil && w.holder != nil:
			case !t.spent && t.pressure == policy.NodePressure && l.override != nil:
			case !t.spent && t.pressure != policy.NodePressure && full:
			case next < 0 || l.before(t, l.queue[next]):
				next = i
			}
		}
		if next < 0 {
			break
		}
		l.grant(l.queue[next], full, now)
		l.queue = slices.Delete(l.queue, next, next+1)
	}
	if l.wake != nil {
		l.wake.Stop()
		l.wake = nil
	}
	if len(l.queue) > 0 && len(l.kills) > 0 {
		l.wake = time.AfterFunc(l.kills[0].At+time.Minute-now, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.admit()
		})
	}
}

func (l *limits) grant(t *ticket, full bool, now time.Duration) {
	w := l.workload(t.who.Workload)
	w.holder = t
	if !t.spent {
		t.free = w.besideLast(t)
		t.needs = policy.NoPressure
		switch used := l.usedUp(t, now); {
		case t.pressure == policy.NodePressure && (full || used != nil):
			t.needs = policy.NodePressure
		case used != nil:
			t.needs = policy.WorkloadPressure
		}
		if t.pressure == policy.NodePressure {
			l.override = t
		}
		l.reserved[t.who.Owner]++
	}
	close(t.answer)
}

// before says whose turn comes first: a victim that has had its signal already,
// then those under pressure, then of the owner that has had the fewest kills. What
// the node's pressure asks for is taken in the order in which it came.
func (l *limits) before(a, b *ticket) bool {
	if ra, rb := a.rank(), b.rank(); ra != rb {
		return ra > rb
	}
	shares := 0
	if a.rank() <= weight(policy.WorkloadPressure) && a.who.Owner != b.who.Owner {
		shares = cmp.Compare(l.share(a.who.Owner), l.share(b.who.Owner))
	}
	return cmp.Or(shares, cmp.Compare(a.seq, b.seq)) < 0
}

func (t *ticket) rank() int {
	switch {
	case t.spent:
		return 3
	case t.urgent && t.pressure == policy.NoPressure:
		return weight(policy.WorkloadPressure)
	}
	return weight(t.pressure)
}

func weight(p policy.Pressure) int {
	switch p {
	case policy.NodePressure:
		return 2
	case policy.WorkloadPressure:
		return 1
	}
	return 0
}

// share is how much of the node's limit an owner has used.
func (l *limits) share(owner string) int {
	n := l.reserved[owner]
	for i := range l.kills {
		if l.kills[i].Owner == owner {
			n++
		}
	}
	return n
}

// besideLast says whether a victim lived beside the last one of its workload. In
// a dry run nobody dies; one that is rehearsed again stands for its successor.
func (w *workload) besideLast(t *ticket) bool {
	if len(w.kills) == 0 ||
		slices.ContainsFunc(w.kills, func(k Kill) bool { return k.Rehearsed && k.Victim == t.victim }) {
		return false
	}
	started := time.Duration(t.victim.Start+1) * (time.Second / task.TicksPerSecond) // at the latest
	return started <= w.kills[len(w.kills)-1].At
}

// usedUp says whether, and until when, limits.perWorkload allows no kill, whatever
// the pressure.
func (l *limits) usedUp(t *ticket, now time.Duration) *time.Duration {
	w, per := l.workloads[t.who.Workload], l.set.PerWorkload
	switch {
	case w != nil && w.besideLast(t):
		return nil
	case per.Kills <= 0:
		return new(now + per.Window)
	case w == nil || len(w.kills) < per.Kills:
		return nil
	}
	return new(w.kills[len(w.kills)-per.Kills].At + per.Window)
}

// refuse says why a ticket gets no kill now, however long it waits, nil if it may.
// Under its workload's own pressure the limit is but a pause since the last kill.
func (l *limits) refuse(t *ticket, now time.Duration) *refusal {
	until := l.usedUp(t, now)
	if until == nil {
		return nil
	}
	w, per := l.workloads[t.who.Workload], l.set.PerWorkload
	message := fmt.Sprintf("limits.perWorkload (%d in %s)", per.Kills, brief(per.Window))
	if w == nil || len(w.kills) == 0 {
		if t.pressure == policy.WorkloadPressure {
			return nil
		}
		return &refusal{message: message + " allows no kill", limit: Limit{Name: PerWorkload}, until: l.wall(now, *until)}
	}
	last := w.kills[len(w.kills)-1].At
	limit := Limit{PerWorkload, l.wall(now, last)}
	message += " used up since " + limit.Since.Format(time.TimeOnly)
	if t.pressure == policy.WorkloadPressure {
		pause := per.Window
		if w.pauses < 16 {
			pause = min(firstPause<<w.pauses, per.Window)
		}
		if last+pause <= now {
			return nil
		}
		*until = min(*until, last+pause)
		limit.Name = Pause
		message += fmt.Sprintf("; its own pid limit is nearly reached, so the limit is only a pause of %s", brief(pause))
	}
	at := l.wall(now, *until)
	return &refusal{message + "; next kill at " + at.Format(time.TimeOnly), limit, at, *until}
}

// wall is when a moment is, or was, by the wall clock.
func (l *limits) wall(now, moment time.Duration) time.Time { return time.Now().Add(moment - now) }

// brief is a duration without the units that are 0.
func brief(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// prune forgets what has left its window, and the oldest of too many.
func (l *limits) prune(now time.Duration) {
	l.kills = since(l.kills, now-time.Minute)
	l.kills = slices.Delete(l.kills, 0, max(0, len(l.kills)-maxKills))
	l.counted = 0
	for name, w := range l.workloads {
		w.kills = since(w.kills, now-l.set.PerWorkload.Window)
		l.counted += len(w.kills)
		if len(w.kills) == 0 {
			w.pauses = 0
			if w.holder == nil {
				delete(l.workloads, name)
			}
		}
	}
	for ; l.counted > maxKills; l.counted-- {
		var oldest *workload
		for _, w := range l.workloads {
			if len(w.kills) > 0 && (oldest == nil || w.kills[0].At < oldest.kills[0].At) {
				oldest = w
			}
		}
		oldest.kills = slices.Delete(oldest.kills, 0, 1)
	}
}

// since drops the kills up to and including start.
func since(kills []Kill, start time.Duration) []Kill {
	n := 0
	for n < len(kills) && kills[n].At <= start {
		n++
	}
	return slices.Delete(kills, 0, n)
}
