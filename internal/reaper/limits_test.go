package reaper

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"kzr/internal/config"
)

func granted(t *ticket) bool {
	synctest.Wait()
	select {
	case <-t.answer:
		return t.refused.IsZero()
	default:
		return false
	}
}

func refused(t *ticket) bool {
	synctest.Wait()
	select {
	case <-t.answer:
		return !t.refused.IsZero()
	default:
		return false
	}
}

func set(perMinute, kills int, window time.Duration) config.Limits {
	return config.Limits{KillsPerMinute: perMinute, PerWorkload: config.PerWorkload{Kills: kills, Window: window}}
}

// killIn takes what a ladder takes for one victim that dies at once.
func killIn(t *testing.T, l *limits, name string) {
	t.Helper()
	ticket := l.take(name)
	if !granted(ticket) {
		t.Fatalf("no leave to kill in %s", name)
	}
	ticket.spend(false)
	ticket.leave()
}

// Fifty targets at once: never more than six in any minute, all in the order in
// which they came.
func TestKillsPerMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(set(6, 3, time.Hour))
		start := time.Now()
		var tickets []*ticket
		for i := range 50 {
			tickets = append(tickets, l.take(string(rune('A'+i))))
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
				ticket.leave()
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
		l := newLimits(set(2, 3, time.Hour))
		a, b, c, d := l.take("a"), l.take("b"), l.take("c"), l.take("d")
		if !granted(a) || !granted(b) || granted(c) || granted(d) {
			t.Fatal("want leave for a and b only")
		}
		a.leave()
		if !granted(c) || granted(d) {
			t.Fatal("want leave for c when a gives way, and not for d")
		}
		b.spend(false)
		b.leave()
		c.spend(false)
		c.leave()
		c.leave() // once more is harmless
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
		d.leave()
	})
}

func TestPerWorkload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(set(1000, 3, time.Hour))
		start := time.Now()
		for range 3 {
			killIn(t, l, "pod")
			time.Sleep(10 * time.Minute)
		}
		until := l.exhausted("pod")
		if want := start.Add(time.Hour); !until.Equal(want) {
			t.Errorf("nothing left until %v, want %v", until, want)
		}
		late := l.take("pod")
		if !refused(late) || !late.refused.Equal(until) {
			t.Error("a fourth kill was not refused until then")
		}
		late.leave()
		killIn(t, l, "other") // has its own
		time.Sleep(time.Until(until) - time.Millisecond)
		if l.exhausted("pod").IsZero() {
			t.Error("a kill is left too early")
		}
		time.Sleep(time.Millisecond)
		if !l.exhausted("pod").IsZero() {
			t.Error("no kill is left when the first has left the window")
		}
		killIn(t, l, "pod")
		if want := start.Add(70 * time.Minute); !l.exhausted("pod").Equal(want) {
			t.Errorf("the window does not slide: nothing left until %v, want %v", l.exhausted("pod"), want)
		}
	})
}

// The second victim of a workload waits until the first is gone; others do not.
func TestOneAtATimePerWorkload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(set(1000, 2, time.Hour))
		first, second, third, other := l.take("pod"), l.take("pod"), l.take("pod"), l.take("other")
		if !granted(first) || granted(second) || !granted(other) {
			t.Fatal("want leave for the first of each workload")
		}
		first.spend(false)
		time.Sleep(time.Hour / 2)
		if granted(second) {
			t.Fatal("leave for a second victim while the first is not gone")
		}
		first.leave()
		if !granted(second) {
			t.Fatal("no leave for the second when the first is gone")
		}
		second.spend(false)
		if !refused(third) {
			t.Fatal("the third waits for kills that its workload does not have")
		}
		second.leave()
		third.leave()
		other.leave()
	})
}

// Who was put off after its signal comes back when no other is being killed in its
// workload, however little room is left for new kills, and counts once.
func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(set(2, 2, time.Hour))
		first, second, third := l.take("pod"), l.take("pod"), l.take("pod")
		first.spend(false)
		first.leave()
		if first.held() || !granted(second) || !second.held() {
			t.Fatal("want leave for the second when the first is put off")
		}
		first.resume()
		if granted(first) || first.held() {
			t.Fatal("the first goes on while the second is not gone")
		}
		second.spend(false)
		if !refused(third) || granted(first) {
			t.Fatal("want no third kill, and the first to wait")
		}
		second.leave()
		if !granted(first) || !first.held() {
			t.Fatal("the first may not go on, with the limits used up by it and the second")
		}
		first.spend(false)
		if w := l.workloads["pod"]; len(w.kills) != 2 || len(l.kills) != 2 || l.reserved != 0 {
			t.Fatalf("%d kills in the workload, %d on the node, %d reserved, want 2, 2, 0", len(w.kills), len(l.kills), l.reserved)
		}
		first.leave()
		third.leave()

		// The same when its kill has left the window.
		first.resume()
		first.leave()
		time.Sleep(2 * time.Hour)
		first.resume()
		if !granted(first) || !l.exhausted("pod").IsZero() {
			t.Fatal("want leave, and a kill left")
		}
		first.leave()
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
		l := newLimits(set(1, 3, time.Hour))
		killIn(t, l, "a")
		b, c, d, e := l.take("b"), l.take("c"), l.take("d"), l.take("e")
		d.hurry()
		e.hurry()
		d.hurry()
		for _, next := range []*ticket{d, e, b, c} {
			time.Sleep(time.Minute - time.Millisecond)
			if granted(next) {
				t.Fatalf("leave for %s before the minute was over", next.workload)
			}
			time.Sleep(time.Millisecond)
			if !granted(next) {
				t.Fatalf("it is not the turn of %s", next.workload)
			}
			next.spend(false)
			next.leave()
		}
		b.hurry() // too late to matter
	})
}

// A dry run that ends has killed nobody, but what was killed before it counts.
func TestRehearsedKillsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(set(3, 2, time.Hour))
		killIn(t, l, "pod")
		for range 2 {
			ticket := l.take("pod")
			if granted(ticket) {
				ticket.spend(true)
			}
			ticket.leave()
		}
		if l.exhausted("pod").IsZero() {
			t.Fatal("a dry run shows no limit")
		}
		l.forget()
		killIn(t, l, "pod")
		if l.exhausted("pod").IsZero() {
			t.Error("the kill before the dry run was forgotten")
		}
		killIn(t, l, "other")
		if ticket := l.take("another"); granted(ticket) {
			t.Error("a fourth kill in this minute")
		}
	})
}

func TestChangedLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(set(1, 1, time.Hour))
		killIn(t, l, "a")
		b := l.take("b")
		if granted(b) {
			t.Fatal("two kills in a minute")
		}
		l.change(set(2, 2, time.Hour))
		if !granted(b) {
			t.Fatal("more room does not reach who waits")
		}
		b.leave()
		killIn(t, l, "a")
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
		l := newLimits(set(6, 3, time.Hour))
		for i := range 2000 {
			name := "pod-" + time.Duration(i).String()
			l.exhausted(name)
			killIn(t, l, name)
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
