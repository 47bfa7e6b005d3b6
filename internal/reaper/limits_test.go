package reaper

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kzr/internal/config"
	"kzr/internal/policy"
	"kzr/internal/task"
)

// limitsRig is limits with a clock that has run for long.
type limitsRig struct {
	*limits
	victims int
}

func newLimitsRig(set config.Limits) *limitsRig {
	start := time.Now().Add(-100 * time.Hour)
	return &limitsRig{limits: newLimits(set, func() time.Duration { return time.Since(start) })}
}

// newborn is a process that has just started.
func (l *limitsRig) newborn() task.ID {
	l.victims++
	return task.ID{PID: l.victims, Start: uint64(l.clock() / (time.Second / task.TicksPerSecond))}
}

// ask is for a kill of a newborn process of a workload that is its own owner.
func (l *limitsRig) ask(name string) *ticket {
	return l.take(l.newborn(), Who{Workload: name, Owner: name}, policy.NoPressure)
}

// exhausted returns until when a workload has no kill left, zero if it has one.
func (l *limitsRig) exhausted(name string) time.Time {
	t := &ticket{limits: l.limits, who: Who{Workload: name}, victim: l.newborn()}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.prune(l.clock())
	if why := l.refuse(t, l.clock()); why != nil {
		return why.until
	}
	return time.Time{}
}

// kill takes what a ladder takes for one victim that dies at once.
func (l *limitsRig) kill(t *testing.T, name string) {
	t.Helper()
	ticket := l.ask(name)
	if !granted(ticket) {
		t.Fatalf("no leave to kill in %s", name)
	}
	ticket.spend(false)
	ticket.release()
}

func granted(t *ticket) bool { return answered(t) && t.refused == nil }

func refused(t *ticket) bool { return answered(t) && t.refused != nil }

func answered(t *ticket) bool {
	synctest.Wait()
	select {
	case <-t.answer:
		return true
	default:
		return false
	}
}

func set(perMinute, kills int, window time.Duration) config.Limits {
	return config.Limits{KillsPerMinute: perMinute, PerWorkload: config.PerWorkload{Kills: kills, Window: window}}
}

// Fifty targets at once: never more than six in any minute, all in the order in
// which they came.
func TestKillsPerMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimitsRig(set(6, 3, time.Hour))
		start := time.Now()
		var tickets []*ticket
		for i := range 50 {
			tickets = append(tickets, l.ask(string(rune('A'+i))))
		}
		var order []int
		var moments []time.Duration
		for len(order) < len(tickets) {
			n := 0
			for i, ticket := range tickets {
				if slices.Contains(order, i) || !granted(ticket) {
					continue
				}
				n++
				order = append(order, i)
				moments = append(moments, time.Since(start))
				ticket.spend(false)
				ticket.release()
			}
			if n == 0 {
				time.Sleep(100 * time.Millisecond)
			}
			if time.Since(start) > time.Hour {
				t.Fatalf("after an hour only %d had their turn", len(order))
			}
		}
		if !slices.IsSorted(order) {
			t.Errorf("not in turn: %v", order)
		}
		for i := 6; i < len(moments); i++ {
			if within := moments[i] - moments[i-6]; within < time.Minute {
				t.Errorf("7 kills within %s", within)
			}
		}
		if last := moments[len(moments)-1]; last > 8*time.Minute+time.Second {
			t.Errorf("the last one had its turn after %s", last)
		}
	})
}

// A ladder that has leave to kill counts before it kills, and no more if it does
// not kill after all.
func TestReservation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimitsRig(set(2, 3, time.Hour))
		a, b, c, d := l.ask("a"), l.ask("b"), l.ask("c"), l.ask("d")
		if !granted(a) || !granted(b) || granted(c) || granted(d) {
			t.Fatal("want leave for a and b only")
		}
		a.release()
		if !granted(c) || granted(d) {
			t.Fatal("want leave for c when a gives way, and not for d")
		}
		b.spend(false)
		b.release()
		c.spend(false)
		c.release()
		c.release() // once more is harmless
		if granted(d) {
			t.Fatal("leave for d though two died in this minute")
		}
		time.Sleep(time.Minute - time.Millisecond)
		if granted(d) {
			t.Fatal("leave for d before the minute was over")
		}
		time.Sleep(time.Millisecond)
		if !granted(d) {
			t.Fatal("no leave for d after a minute")
		}
		d.release()
	})
}

func TestPerWorkload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimitsRig(set(1000, 3, time.Hour))
		start := time.Now()
		for range 3 {
			l.kill(t, "pod")
			time.Sleep(10 * time.Minute)
		}
		until := l.exhausted("pod")
		if want := start.Add(time.Hour); !until.Equal(want) {
			t.Errorf("nothing left until %v, want %v", until, want)
		}
		late := l.ask("pod")
		if !refused(late) || !late.refused.until.Equal(until) {
			t.Error("a fourth kill was not refused until then")
		}
		late.release()
		l.kill(t, "other") // has its own
		time.Sleep(time.Until(until) - time.Millisecond)
		if l.exhausted("pod").IsZero() {
			t.Error("a kill is left too early")
		}
		time.Sleep(time.Millisecond)
		if !l.exhausted("pod").IsZero() {
			t.Error("no kill is left when the first has left the window")
		}
		l.kill(t, "pod")
		if want := start.Add(70 * time.Minute); !l.exhausted("pod").Equal(want) {
			t.Errorf("the window does not slide: nothing left until %v, want %v", l.exhausted("pod"), want)
		}
	})
}

// The second victim of a workload waits until the first is gone; others do not.
func TestOneAtATimePerWorkload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimitsRig(set(1000, 2, time.Hour))
		first, second, other := l.ask("pod"), l.ask("pod"), l.ask("other")
		if !granted(first) || granted(second) || !granted(other) {
			t.Fatal("want leave for the first of each workload")
		}
		time.Sleep(time.Second)
		first.spend(false)
		time.Sleep(time.Hour / 2)
		third := l.ask("pod") // the second is of before the kill, and does not count
		if granted(second) {
			t.Fatal("leave for a second victim while the first is not gone")
		}
		first.release()
		if !granted(second) {
			t.Fatal("no leave for the second when the first is gone")
		}
		second.spend(false)
		second.release()
		if !granted(third) {
			t.Fatal("no leave for the third when the second is gone")
		}
		third.spend(false)
		fourth := l.ask("pod")
		if !refused(fourth) {
			t.Fatal("the fourth waits for kills that its workload does not have")
		}
		fourth.release()
		third.release()
		other.release()
	})
}

// Who was deferred after its signal comes back when no other is being killed in its
// workload, however little room is left for new kills, and counts once.
func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimitsRig(set(2, 2, time.Hour))
		first, second, third := l.ask("pod"), l.ask("pod"), l.ask("pod")
		first.spend(false)
		first.release()
		if first.holds() || !granted(second) || !second.holds() {
			t.Fatal("want leave for the second when the first is deferred")
		}
		first.resume()
		if granted(first) || first.holds() {
			t.Fatal("the first goes on while the second is not gone")
		}
		second.spend(false)
		if !refused(third) || granted(first) {
			t.Fatal("want no third kill, and the first to wait")
		}
		second.release()
		if !granted(first) || !first.holds() {
			t.Fatal("the first may not go on, with the limits used up by it and the second")
		}
		first.spend(false)
		if w := l.workloads["pod"]; len(w.kills) != 2 || len(l.kills) != 2 || l.pending() != 0 {
			t.Fatalf("%d kills in the workload, %d on the node, %d reserved, want 2, 2, 0", len(w.kills), len(l.kills), l.pending())
		}
		first.release()
		third.release()

		// The same when its kill has left the window.
		first.resume()
		first.release()
		time.Sleep(2 * time.Hour)
		first.resume()
		if !granted(first) || !l.exhausted("pod").IsZero() {
			t.Fatal("want leave, and a kill left")
		}
		first.release()
		l.exhausted("any")
		if len(l.workloads) != 0 || len(l.queue) != 0 {
			t.Errorf("%d workloads, %d waiting", len(l.workloads), len(l.queue))
		}
	})
}

// Who is in a hurry comes next, however many wait, and takes no kill that is not
// there.
func TestHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimitsRig(set(1, 3, time.Hour))
		l.kill(t, "a")
		b, c, d, e := l.ask("b"), l.ask("c"), l.ask("d"), l.ask("e")
		d.hurry()
		e.hurry()
		d.hurry()
		for _, next := range []*ticket{d, e, b, c} {
			time.Sleep(time.Minute - time.Millisecond)
			if granted(next) {
				t.Fatalf("leave for %s before the minute was over", next.who.Workload)
			}
			time.Sleep(time.Millisecond)
			if !granted(next) {
				t.Fatalf("it is not the turn of %s", next.who.Workload)
			}
			next.spend(false)
			next.release()
		}
		b.hurry() // too late to matter
	})
}

// A dry run that ends has killed nobody, but what was killed before it counts.
func TestRehearsedKillsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimitsRig(set(3, 2, time.Hour))
		l.kill(t, "pod")
		for range 2 {
			ticket := l.ask("pod")
			if granted(ticket) {
				ticket.spend(true)
			}
			ticket.release()
		}
		if l.exhausted("pod").IsZero() {
			t.Fatal("a dry run shows no limit")
		}
		l.forgetRehearsed()
		l.kill(t, "pod")
		if l.exhausted("pod").IsZero() {
			t.Error("the kill before the dry run was forgotten")
		}
		l.kill(t, "other")
		if ticket := l.ask("another"); granted(ticket) {
			t.Error("a fourth kill in this minute")
		}
	})
}

func TestChangedLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimitsRig(set(1, 1, time.Hour))
		l.kill(t, "a")
		b := l.ask("b")
		if granted(b) {
			t.Fatal("two kills in a minute")
		}
		l.change(set(2, 2, time.Hour))
		if !granted(b) {
			t.Fatal("more room does not reach who waits")
		}
		b.release()
		l.kill(t, "a")
		l.change(set(2, 1, time.Hour))
		if l.exhausted("a").IsZero() {
			t.Error("kills before the change do not count")
		}
		l.change(set(2, 0, time.Hour))
		if l.exhausted("never seen").IsZero() {
			t.Error("kills: 0 leaves one")
		}
	})
}

// Workloads come and go for ever; what is remembered of them does not grow.
func TestLimitsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimitsRig(set(6, 3, time.Hour))
		for i := range 2000 {
			name := "pod-" + time.Duration(i).String()
			l.exhausted(name)
			l.kill(t, name)
			time.Sleep(10 * time.Second)
		}
		if n := len(l.workloads); n > 361 {
			t.Errorf("%d workloads remembered, though an hour has at most 360 kills", n)
		}
		if n := len(l.kills); n > 6 {
			t.Errorf("%d kills remembered for a window of 6", n)
		}
		time.Sleep(2 * time.Hour)
		l.exhausted("any")
		if len(l.workloads) != 0 || len(l.kills) != 0 {
			t.Errorf("after two quiet hours: %d workloads, %d kills", len(l.workloads), len(l.kills))
		}
	})
}

// Eight that leak side by side in one container are dealt with as one; what comes
// after a kill counts.
func TestSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimitsRig(set(1000, 2, time.Hour))
		var workers []task.ID
		for range 8 {
			workers = append(workers, l.newborn())
		}
		time.Sleep(time.Minute)
		killed := func(victim task.ID) bool {
			ticket := l.take(victim, Who{Workload: "pod", Owner: "pod"}, policy.NoPressure)
			defer ticket.release()
			if !granted(ticket) {
				return false
			}
			ticket.spend(false)
			return true
		}
		for _, id := range workers {
			if !killed(id) {
				t.Fatalf("%s was refused", id)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(time.Second)
		if again := l.newborn(); !killed(again) {
			t.Fatal("the first one after the restart was refused")
		}
		time.Sleep(time.Second)
		if killed(l.newborn()) {
			t.Fatal("a third kill, of two")
		}
		if n := len(l.kills); n != 9 {
			t.Errorf("%d kills count for the node, want 9", n)
		}
	})
}

// Under its own pressure a workload that has used its kills up gets them all the
// same, each after twice the pause; and all is forgotten when it has been quiet for
// the window.
func TestPauseDoubles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const window = 10 * time.Minute
		l := newLimitsRig(set(1000, 3, window))
		ask := func(p policy.Pressure) *ticket {
			return l.take(l.newborn(), Who{Workload: "pod", Owner: "pod"}, p)
		}
		kill := func() {
			t.Helper()
			ticket := ask(policy.WorkloadPressure)
			if !granted(ticket) {
				t.Fatal("no leave: " + ticket.refused.message)
			}
			ticket.spend(false)
			ticket.release()
		}
		for range 3 {
			kill()
		}
		for _, pause := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute} {
			began := time.Now()
			ticket := ask(policy.WorkloadPressure)
			if !refused(ticket) || !ticket.refused.until.Equal(began.Add(pause)) {
				t.Fatalf("want no kill until after %s: %+v", pause, ticket.refused)
			}
			if l := ticket.refused.limit; l.Name != Pause || !l.Since.Equal(began) {
				t.Errorf("the limit is %+v, want a pause since %s", l, began)
			}
			for _, part := range []string{
				"limits.perWorkload (3 in 10m) used up since " + began.Format(time.TimeOnly),
				"a pause of " + brief(pause), "next kill at " + began.Add(pause).Format(time.TimeOnly),
			} {
				if !strings.Contains(ticket.refused.message, part) {
					t.Errorf("message %q does not say %q", ticket.refused.message, part)
				}
			}
			ticket.release()
			time.Sleep(pause - time.Millisecond)
			if ticket := ask(policy.WorkloadPressure); !refused(ticket) {
				t.Fatal("leave before the end of the pause")
			}
			time.Sleep(time.Millisecond)
			if ticket := ask(policy.NoPressure); !refused(ticket) || time.Until(ticket.refused.until) < window-7*time.Minute {
				t.Fatal("without pressure the limit does not hold")
			} else if l := ticket.refused.limit; l.Name != PerWorkload || !l.Since.Equal(began) {
				t.Errorf("the limit is %+v, want the workload's since %s", l, began)
			}
			kill()
		}
		// The next would be 8 minutes, but the first of three leaves the window sooner:
		// kills came after 0, 1, 3 and 7 minutes.
		ticket := ask(policy.WorkloadPressure)
		if want := 4 * time.Minute; !refused(ticket) || !ticket.refused.until.Equal(time.Now().Add(want)) {
			t.Fatalf("%+v, want until after %s", ticket.refused, want)
		}
		time.Sleep(window)
		for range 3 {
			kill()
		}
		if ticket := ask(policy.WorkloadPressure); !refused(ticket) || !ticket.refused.until.Equal(time.Now().Add(time.Minute)) {
			t.Fatal("after a quiet window the pause does not begin with a minute")
		}
	})
}

// A pause is not spent by a kill that the pressure no longer asks for.
func TestPressureEndsBeforeTheKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimitsRig(set(1, 1, time.Hour))
		l.kill(t, "pod")
		time.Sleep(2 * time.Second)
		who := Who{Workload: "pod", Owner: "pod"}
		ticket := l.take(l.newborn(), who, policy.NodePressure)
		if !granted(ticket) || !ticket.overridden() || !ticket.held(policy.NodePressure) {
			t.Fatal("no leave in spite of the limits")
		}
		if ticket.held(policy.NoPressure) {
			t.Fatal("leave that rests on pressure which is over")
		}
		ticket.resume()
		if !refused(ticket) || l.pending() != 0 || l.override != nil {
			t.Fatalf("%+v, %d reserved", ticket.refused, l.pending())
		}
		ticket.release()
		l.change(set(1000, 1, time.Hour))
		time.Sleep(time.Minute)
		ticket = l.take(l.newborn(), who, policy.WorkloadPressure)
		if !granted(ticket) || ticket.overridden() || ticket.held(policy.NoPressure) {
			t.Fatal("leave after a pause that rests on pressure which is over")
		}
		ticket.release()
		if w := l.workloads["pod"]; len(w.kills) != 1 || w.pauses != 0 {
			t.Errorf("%+v", w)
		}
	})
}

// Of several owners that wait, the one that has had the fewest kills is next; whoever
// is under pressure comes before that.
func TestFairShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimitsRig(set(4, 10, time.Hour))
		ask := func(owner string, n int, p policy.Pressure) *ticket {
			return l.take(l.newborn(), Who{Workload: fmt.Sprint(owner, n), Owner: owner}, p)
		}
		var order []string
		tickets := map[string]*ticket{}
		for i := range 8 {
			tickets[fmt.Sprint("a", i)] = ask("a", i, policy.NoPressure)
		}
		for _, owner := range []string{"b", "c"} {
			for i := range 2 {
				tickets[fmt.Sprint(owner, i)] = ask(owner, i, policy.NoPressure)
			}
		}
		tickets["d0"] = ask("a", 100, policy.WorkloadPressure)
		for len(tickets) > 0 {
			n := 0
			for _, name := range slices.Sorted(maps.Keys(tickets)) {
				if ticket := tickets[name]; granted(ticket) {
					ticket.spend(false)
					ticket.release()
					delete(tickets, name)
					order = append(order, name)
					n++
				}
			}
			if n > 0 {
				order = append(order, "|")
			}
			time.Sleep(time.Second)
		}
		// The first minute is a's, who asked when nobody else did; d0 is a's too.
		const want = "a0 a1 a2 a3 | a4 b0 c0 d0 | a5 a6 b1 c1 | a7 |"
		if got := strings.Join(order, " "); got != want {
			t.Errorf("order %s, want %s", got, want)
		}
	})
}

// When the node's pids run out, no limit holds, and kills come one at a time in the
// order in which they were asked for.
func TestNodePressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimitsRig(set(1, 1, time.Hour))
		l.kill(t, "pod")
		time.Sleep(time.Second)
		waiting := l.ask("other")
		ask := func(name string) *ticket {
			return l.take(l.newborn(), Who{Workload: name, Owner: "x"}, policy.NodePressure)
		}
		first, second, third := ask("pod"), ask("new"), ask("other")
		if granted(waiting) || !granted(first) || granted(second) || granted(third) {
			t.Fatal("want leave for the first only")
		}
		if !first.overridden() {
			t.Error("it does not say that limits were overridden")
		}
		first.spend(false)
		if granted(second) {
			t.Fatal("two at a time")
		}
		if why := second.waitsFor(); !strings.Contains(why.message, fmt.Sprint(first.victim.PID)) {
			t.Errorf("message %q", why.message)
		}
		first.release()
		if !granted(second) || granted(third) || granted(waiting) {
			t.Fatal("want leave for the second when the first is gone")
		}
		second.release() // not to be killed after all
		if !granted(third) {
			t.Fatal("no leave for the third")
		}
		third.spend(false)
		third.release()
		time.Sleep(time.Minute)
		if !refused(waiting) {
			t.Fatal("those that were killed for the node do not count")
		}
		calm := ask("calm")
		if !granted(calm) || calm.overridden() {
			t.Error("limits overridden that had room")
		}
		calm.release()
	})
}

// A restart forgets neither kills nor pauses, and takes nothing over from before the
// machine booted.
func TestStateOfLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := newLimitsRig(set(3, 2, time.Hour))
		worker := old.newborn()
		time.Sleep(time.Second)
		old.kill(t, "pod")
		old.kill(t, "pod")
		time.Sleep(2 * time.Minute)
		ticket := old.take(old.newborn(), Who{Workload: "pod", Owner: "pod"}, policy.WorkloadPressure)
		if !granted(ticket) {
			t.Fatal("no leave under pressure")
		}
		ticket.spend(false)
		ticket.release()
		ticket = old.take(worker, Who{Workload: "pod", Owner: "pod"}, policy.NoPressure) // not counted there
		if !granted(ticket) {
			t.Fatal("no leave for one of long ago")
		}
		ticket.spend(false)
		ticket.release()

		text, err := json.Marshal(old.state())
		if err != nil {
			t.Fatal(err)
		}
		var st State
		if err := json.Unmarshal(text, &st); err != nil {
			t.Fatal(err)
		}
		if len(st.Kills) != 4 || st.Pauses["pod"] != 1 {
			t.Fatalf("%s", text)
		}
		fresh := newLimitsRig(set(3, 2, time.Hour))
		fresh.clock = old.clock
		fresh.restore(st)
		if !reflect.DeepEqual(fresh.state(), old.state()) {
			t.Errorf("state %+v, want %+v", fresh.state(), old.state())
		}
		if got, want := fresh.exhausted("pod"), old.exhausted("pod"); !got.Equal(want) || got.IsZero() {
			t.Errorf("nothing left until %v, want %v", got, want)
		}
		fresh.kill(t, "other")
		if ticket := fresh.ask("another"); granted(ticket) {
			t.Error("more kills in this minute than the limit")
		}
		booted := newLimits(set(3, 2, time.Hour), func() time.Duration { return time.Second })
		booted.restore(st)
		if st := booted.state(); len(st.Kills) != 0 {
			t.Errorf("kills of before the boot: %+v", st)
		}
	})
}

func TestStateIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimitsRig(set(1_000_000, 2, 24*time.Hour))
		for i := range maxKills + 500 {
			l.kill(t, fmt.Sprint(i))
			time.Sleep(time.Second)
		}
		st := l.state()
		if n := len(st.Kills); n != maxKills {
			t.Errorf("%d kills remembered, want %d", n, maxKills)
		}
		if st.Kills[0].Workload != "500" {
			t.Errorf("the oldest one is in %s", st.Kills[0].Workload)
		}
		if len(l.workloads) != maxKills {
			t.Errorf("%d workloads", len(l.workloads))
		}
	})
}
