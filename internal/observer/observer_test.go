package observer

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kzr/internal/config"
	"kzr/internal/policy"
	"kzr/internal/procscan"
	"kzr/internal/task"
	"kzr/internal/zoo"
)

// newObserver sees through /proc, and has a rule for five zombies.
func newObserver(t *testing.T) *Observer {
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
	c := config.Default()
	c.Threshold, c.Pressure = 5, 0
	p, err := policy.New(c, policy.Host{})
	if err != nil {
		t.Fatal(err)
	}
	return New(Options{Source: proc, Proc: proc}, c, p)
}

// source is a real one of which single looks can be made to hang, and all to take time.
type source struct {
	*procscan.Scanner
	whole, single atomic.Int32
	delay, helped time.Duration
	hang          map[task.ID]chan struct{}
}

func (s *source) Snapshot(ctx context.Context) (*task.Snapshot, error) {
	s.whole.Add(1)
	snap, err := s.Scanner.Snapshot(ctx)
	time.Sleep(s.delay)
	if snap != nil {
		snap.Ended = task.Now()
		snap.Helped += s.helped
	}
	return snap, err
}

func (s *source) SnapshotOf(ctx context.Context, id task.ID) (*task.Snapshot, error) {
	s.single.Add(1)
	if goOn := s.hang[id]; goOn != nil {
		<-goOn
	}
	return s.Scanner.SnapshotOf(ctx, id)
}

func slow(t *testing.T, delay time.Duration) (*Observer, *source) {
	o := newObserver(t)
	s := &source{Scanner: o.opts.Proc, delay: delay}
	o.opts.Source = s
	return o, s
}

// leakers are parents with so many zombies each, which a snapshot shows.
func leakers(t *testing.T, o *Observer, zombies ...int) []task.ID {
	t.Helper()
	var ids []task.ID
	for _, n := range zombies {
		z := zoo.Start(t, "leak=%d serve", n)
		id, _, err := o.Facts(t.Context(), z.PID)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	time.Sleep(2 * time.Second / task.TicksPerSecond) // what began in this tick is not in a snapshot
	return ids
}

// Fifty ladders that end at once share snapshots of the node; a look at one parent takes
// none, and sees what has just changed.
func TestWhoSharesASnapshot(t *testing.T) {
	o, s := slow(t, 20*time.Millisecond)
	if _, err := o.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.whole.Store(0)
	var looks sync.WaitGroup
	for range 50 {
		looks.Go(func() {
			if held, err := o.Holders(t.Context(), nil); err != nil || len(held) != 0 {
				t.Errorf("%v, %v", held, err)
			}
		})
	}
	looks.Wait()
	if n := s.whole.Load(); n > 5 {
		t.Errorf("50 calls at once took %d snapshots", n)
	}
	whole := s.whole.Load()
	z := zoo.Start(t, "leak=7 serve")
	id, _, err := o.Facts(t.Context(), z.PID)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second / task.TicksPerSecond)
	for want := 7; want > 0; want-- {
		look, err := o.Look(t.Context(), id)
		if err != nil || look.Reapable != want || look.Process.ID != id {
			t.Errorf("%+v, %v, want %d", look, err, want)
		}
		z.Do("reap=1")
	}
	if s.whole.Load() != whole {
		t.Error("a look at one parent took a snapshot of the node")
	}
}

// A look that does not come back holds up nobody else.
func TestALookThatHangs(t *testing.T) {
	o, s := slow(t, 0)
	ids := leakers(t, o, 6, 7)
	goOn := make(chan struct{})
	s.hang = map[task.ID]chan struct{}{ids[0]: goOn}
	hung := make(chan error, 1)
	go func() {
		_, err := o.LookAt(context.WithoutCancel(t.Context()), ids[0])
		hung <- err
	}()
	zoo.Within(t, time.Minute, "the look began", func() bool { return s.single.Load() > 0 })
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := o.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
		if look, err := o.Look(t.Context(), ids[1]); err != nil || look.Reapable != 7 {
			t.Errorf("%+v, %v", look, err)
		}
		if results, _ := o.Crowded(t.Context(), 5); results[ids[0]].Reapable != 6 || results[ids[1]].Reapable != 7 {
			t.Errorf("%+v", results)
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("everybody waits for one look")
	}
	close(goOn)
	if err := <-hung; err != nil {
		t.Error(err)
	}
}

// What a sweep costs is what it used itself, and not what those use who ask kzr things
// meanwhile.
func TestCostIsTheSweepsOwn(t *testing.T) {
	const delay = 300 * time.Millisecond // which it waits
	o, s := slow(t, delay)
	var others sync.WaitGroup
	var over atomic.Bool
	for range 2 * runtime.GOMAXPROCS(0) {
		others.Go(func() {
			for !over.Load() {
			}
		})
	}
	last, err := o.Sweep(t.Context())
	over.Store(true)
	others.Wait()
	if err != nil || last.Cost <= 0 || last.Cost > delay/3 {
		t.Errorf("a sweep costs %v, %v", last.Cost, err)
	}
	// The second worker of a walk is a part of it.
	s.helped = time.Hour
	if last, err := o.Sweep(t.Context()); err != nil || last.Cost < last.Took {
		t.Errorf("with much help it costs %v of %v, %v", last.Cost, last.Took, err)
	}
}

// Of each workload the largest parents are assessed after a sweep, and the others are
// said to be left out.
func TestCrowdedHasABudget(t *testing.T) {
	o, _ := slow(t, 0)
	ids := leakers(t, o, append(slices.Repeat([]int{5}, perWorkload+3), 9, 8)...)
	if _, err := o.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	results, skipped := o.Crowded(t.Context(), 5)
	mine := 0
	for i, id := range ids {
		_, assessed := results[id]
		if assessed == skipped[id] {
			t.Errorf("parent %d: assessed %t, skipped %t", i, assessed, skipped[id])
		}
		if assessed {
			mine++
		}
	}
	if last := len(ids) - 1; skipped[ids[last]] || skipped[ids[last-1]] || mine > perWorkload {
		t.Errorf("%d assessed of at most %d; the largest skipped: %t, %t", mine, perWorkload, skipped[ids[last]], skipped[ids[last-1]])
	}
}

// What an observer knows of ages another one can go on with.
func TestKnownIsRestored(t *testing.T) {
	o, _ := slow(t, 0)
	ids := leakers(t, o, 6)
	if _, err := o.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	was, err := o.Assess(t.Context(), ids[0])
	if err != nil {
		t.Fatal(err)
	}
	next := New(o.opts, o.config, o.policy)
	next.Restore(o.Known(100))
	zoo.Within(t, time.Minute, "some time has passed", func() bool { return task.Now()-o.Last().At > 100*time.Millisecond })
	if _, err := next.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	is, err := next.Assess(t.Context(), ids[0])
	if err != nil || is.Oldest <= was.Oldest || is.Due != was.Due {
		t.Errorf("before: oldest %v, due %v; after: oldest %v, due %v (%v)", was.Oldest, was.Due, is.Oldest, is.Due, err)
	}
	if few := o.Known(2)[ids[0]]; len(few) != 2 {
		t.Errorf("%d zombies, want 2", len(few))
	}
}
