package daemon

import (
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"kzr/internal/config"
	"kzr/internal/observer"
	"kzr/internal/policy"
	"kzr/internal/procscan"
	"kzr/internal/reaper"
	"kzr/internal/report"
	"kzr/internal/task"
	"kzr/internal/zoo"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newDaemon makes one that only looks, through /proc, with a rule for five zombies.
func newDaemon(t *testing.T) *Daemon {
	t.Helper()
	c := config.Default()
	c.Threshold, c.Pressure = 5, 0
	return daemonWith(t, c, true)
}

func daemonWith(t *testing.T, c config.Config, observe bool) *Daemon {
	t.Helper()
	proc, err := procscan.New("/proc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proc.Close(); err != nil {
			t.Error(err)
		}
	})
	d, err := New(t.Context(), Options{
		Config: c, Host: policy.Host{}, Observer: observer.Options{Source: proc, Proc: proc}, Observe: observe,
		Logger: slog.New(slog.DiscardHandler), Report: func(report.Event) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// leakers are parents with so many zombies each, which a snapshot shows.
func leakers(t *testing.T, zombies ...int) {
	t.Helper()
	for _, n := range zombies {
		zoo.Start(t, "leak=%d serve", n)
	}
	time.Sleep(2 * time.Second / task.TicksPerSecond) // what began in this tick is not in a snapshot
}

// The loop rests for what its sweeps cost, and not for what those use who ask kzr
// things meanwhile: they would make it look less often.
func TestRestIsForTheSweepsOwnCost(t *testing.T) {
	d := newDaemon(t)
	leakers(t, 6)
	d.sweep(t.Context())
	alone := d.rested - d.observer.Last().At
	var others sync.WaitGroup
	var over atomic.Bool
	for range 2 * runtime.GOMAXPROCS(0) {
		others.Go(func() {
			for !over.Load() {
			}
		})
	}
	d.sweep(t.Context())
	over.Store(true)
	others.Wait()
	beside := d.rested - task.Now()
	if limit := 5*alone + rest*20*time.Millisecond; beside > limit {
		t.Errorf("rests for %v beside busy goroutines, %v alone", beside, alone)
	}
}

// A sweep that takes longer than the watchdog's patience feeds it while it gets on,
// and one that others make does not.
func TestLongSweepIsAlive(t *testing.T) {
	d := newDaemon(t)
	leakers(t, 6, 6, 6)
	var beats atomic.Int32
	d.opts.Busy, d.opts.BeatEvery = func() { beats.Add(1) }, time.Nanosecond
	d.sweep(t.Context())            // the first: not ready before
	if n := beats.Swap(0); n == 0 { // its parents are judged after it
		t.Error("no beat while parents were judged")
	}
	d.sweep(t.Context())
	if n := beats.Swap(0); n < 4 {
		t.Errorf("%d beats in a sweep with three parents", n)
	}
	if _, err := d.observer.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := beats.Load(); n != 0 {
		t.Errorf("%d beats though the loop did nothing", n)
	}
}

// One that could not be looked at is tried again soon. One that could not be
// removed, or that kzr may not signal, is left alone for longer each time.
func TestPauses(t *testing.T) {
	d := newDaemon(t)
	id := task.ID{PID: 1 << 22, Start: 1}
	w := &watched{said: map[policy.Reason]said{}}
	d.watched[id] = w
	for i, step := range []struct {
		tried bool
		want  time.Duration
	}{
		{false, blindPause}, {false, blindPause}, {true, gaveUpPause}, {true, 2 * gaveUpPause},
		{false, blindPause}, {true, 4 * gaveUpPause}, {true, 8 * gaveUpPause}, {true, 16 * gaveUpPause},
		{true, 32 * gaveUpPause}, {true, maxPause}, {true, maxPause},
	} {
		before := task.Now()
		d.ended(reaper.Outcome{ID: id, Result: reaper.GaveUp, Tried: step.tried})
		if pause := w.until - before; pause < step.want || pause > step.want+time.Minute/2 {
			t.Errorf("pause %d is %v, want %v", i, pause, step.want)
		}
	}
}

// The limit that keeps a parent from being ended has its name, since when it is used up
// and until when: after a ladder that it ended, and while one waits for it.
func TestLimitUsed(t *testing.T) {
	d := newDaemon(t)
	id := task.ID{PID: 1 << 22, Start: 1}
	since, until := time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	for _, name := range []string{reaper.PerWorkload, reaper.Pause} {
		d.watched[id] = &watched{said: map[policy.Reason]said{}}
		if l, ok := d.LimitUsed(id); ok {
			t.Errorf("used before anything was killed: %+v", l)
		}
		d.ended(reaper.Outcome{ID: id, Result: reaper.Spared, Reason: policy.Backoff, Until: until, Limit: reaper.Limit{Name: name, Since: since}})
		if l, ok := d.LimitUsed(id); !ok || l != (report.LimitUsed{Name: name, Since: since, Until: until}) {
			t.Errorf("%s: %+v, %t", name, l, ok)
		}
	}
	d.ended(reaper.Outcome{ID: id, Result: reaper.Spared, Reason: policy.Backoff, Until: time.Now(), Limit: reaper.Limit{Name: reaper.Pause, Since: since}})
	if l, ok := d.LimitUsed(id); ok {
		t.Errorf("used after its end: %+v", l)
	}

	c := config.Default()
	c.Threshold, c.Pressure, c.Grace, c.Nudge, c.TermTimeout = 5, 0, time.Millisecond, 0, 0
	c.Scope, c.DryRun, c.Limits.KillsPerMinute = config.ScopeAll, true, 1
	d = daemonWith(t, c, false)
	first, second := zoo.Start(t, "leak=6 serve"), zoo.Start(t, "leak=6 serve")
	time.Sleep(2 * time.Second / task.TicksPerSecond)
	d.sweepOnly(t)
	time.Sleep(10 * time.Millisecond)
	began := time.Now()
	act := func(pid int) task.ID {
		id, _, err := d.observer.Facts(t.Context(), pid)
		if err != nil {
			t.Fatal(err)
		}
		d.reaper.Act(id, reaper.Who{Workload: id.String()})
		return id
	}
	act(first.PID)
	if out := <-d.reaper.Outcomes(); out.Result != reaper.Rehearsed {
		t.Fatalf("%+v", out)
	}
	id = act(second.PID)
	var l report.LimitUsed
	zoo.Within(t, 30*time.Second, "it to wait", func() bool {
		var ok bool
		l, ok = d.LimitUsed(id)
		return ok
	})
	if l.Name != reaper.KillsPerMinute || l.Since.Before(began.Add(-time.Second)) || l.Until.Sub(l.Since).Round(time.Second) != time.Minute {
		t.Errorf("%+v, the kill was at %s", l, began)
	}
	if says := d.HeldUp(id); !strings.HasPrefix(says, "limits.killsPerMinute (1) used up since ") {
		t.Errorf("it waits for %q", says)
	}
}

func (d *Daemon) sweepOnly(t *testing.T) {
	t.Helper()
	if _, err := d.observer.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// What a parent could not use of its time it gets back, a grace at most; not while pids
// run out.
func TestDeferral(t *testing.T) {
	const grace = 60 * time.Second
	var k deferral
	at := func(second int, deferred bool) { k.note(deferred, time.Duration(second)*time.Second, grace) }
	want := func(second int, until int) {
		t.Helper()
		a := observer.Assessment{Met: true, Verdict: policy.Target}
		now := time.Duration(second) * time.Second
		k.postpone(&a, now)
		if until == 0 && !a.Met || until != 0 && (a.Met || a.Verdict != policy.Watch || a.Due != time.Duration(until)*time.Second) {
			t.Errorf("at %d s: %+v", second, a)
		}
		pressed := observer.Assessment{Met: true, Verdict: policy.Target, Pressure: policy.WorkloadPressure}
		if k.postpone(&pressed, now); !pressed.Met {
			t.Errorf("at %d s: postponed under pressure", second)
		}
	}
	at(1, false)
	want(1, 0)
	at(20, true) // once, for a moment
	at(80, false)
	want(80, 0)
	at(100, true)
	at(110, true)
	at(120, true)
	at(121, false) // 20 s
	want(121, 141)
	want(140, 141)
	want(141, 0)
	at(200, true)
	at(900, true)
	at(901, false) // the other 40 s
	want(902, 941)
	at(1000, true)
	at(1100, true)
	at(1101, false)
	want(1101, 0)
}

// What flips between two reasons every second has a line for each, and another one when
// it has doubled.
func TestSaid(t *testing.T) {
	var lines []int
	var s said
	for second := range 1200 {
		now, zombies := time.Duration(second+1)*time.Second, 60+second/100
		if second > 800 {
			zombies = 140
		}
		if s.due(zombies, now) {
			lines = append(lines, second)
			s = said{now, zombies}
		}
	}
	if want := []int{0, 600, 801}; !slices.Equal(lines, want) { // at once, after ten minutes, when it has doubled
		t.Errorf("lines at %d s, want %d", lines, want)
	}
}

// Where hints tell of what is new, sweeps of what stands there for good cost less than a
// thousandth of a CPU; where something changes, they come as configured.
func TestSweepsOfWhatStands(t *testing.T) {
	d := newDaemon(t)
	const cost = 100 * time.Millisecond // about 100,000 zombies
	for _, tt := range []struct {
		hinted    int
		unchanged bool
		want      time.Duration
	}{{8, true, 199900 * time.Millisecond}, {8, false, 30 * time.Second}, {0, true, 30 * time.Second}} {
		d.opts.Hinted, d.unchanged, d.least.Threshold, d.least.Grace = tt.hinted, tt.unchanged, 50, time.Minute
		if got := d.sweepInterval(cost); got != tt.want {
			t.Errorf("hints from %d zombies on, unchanged %t: every %v, want %v", tt.hinted, tt.unchanged, got, tt.want)
		}
	}
	d.opts.Hinted, d.unchanged = 8, true
	if got := d.sweepInterval(time.Second); got != maxIdle {
		t.Errorf("at most every %v, got %v", maxIdle, got)
	}
}
