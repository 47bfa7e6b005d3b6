package procscan

import (
	"errors"
	"os"
	"reflect"
	"runtime"
	"testing"
	"time"

	"kzr/internal/task"
	"kzr/internal/zoo"
)

func open(t testing.TB) *Scanner {
	t.Helper()
	s, err := New("/proc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// openWithChildren is open for tests of the lists of children.
func openWithChildren(t testing.TB) *Scanner {
	t.Helper()
	if _, err := os.Stat("/proc/thread-self/children"); errors.Is(err, os.ErrNotExist) {
		t.Skip("this kernel has no lists of children (CONFIG_PROC_CHILDREN)")
	}
	return open(t)
}

// settled returns the identity of a process that is old enough for a snapshot.
func settled(t testing.TB, s *Scanner, pid int) task.ID {
	t.Helper()
	p, err := s.Inspect(pid)
	if err != nil {
		t.Fatal(err)
	}
	zoo.Within(t, time.Minute, "a tick has passed", func() bool { return bootTicks() > p.Start })
	return p.ID
}

func TestBothWaysToOneParentAgree(t *testing.T) {
	s := openWithChildren(t)
	for script, want := range map[string]task.Children{
		"serve":                               {},
		"fork { serve } fork { serve } serve": {},
		"leak=60 fork { serve } serve":        {Reapable: make([]task.Zombie, 60)},
		"leak=20,thread leak=7 serve":         {Reapable: make([]task.Zombie, 27)},
		"leak=5 deadleader serve":             {Reapable: make([]task.Zombie, 5)},
		"fork { deadleader serve } serve":     {Leaders: 1},
		"hold=3 { name=tracer serve } serve":  {Traced: 3},
	} {
		t.Run(script, func(t *testing.T) {
			z := zoo.Start(t, "%s", script)
			id := settled(t, s, z.PID)
			var list *task.Snapshot
			zoo.Within(t, time.Minute, "a sure list", func() (ok bool) {
				var err error
				if list, err = s.family(id); err != nil && !errors.Is(err, errUnsure) {
					t.Fatal(err)
				}
				return err == nil && (len(list.Parents) > 0) == (want.Total() > 0)
			})
			walk, err := s.snapshot(t.Context(), uint32(id.PID))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(list.Parents, walk.Parents) {
				t.Errorf("by list %+v, by walk %+v", list.Parents, walk.Parents)
			}
			if want.Total() == 0 {
				return
			}
			if got := list.Parents[id]; len(got.Reapable) != len(want.Reapable) || got.Traced != want.Traced || got.Leaders != want.Leaders {
				t.Errorf("%+v, want %+v", got, want)
			}
		})
	}
}

func TestVeryManyChildrenNeedAWalk(t *testing.T) {
	s := openWithChildren(t)
	z := zoo.Start(t, "leak=%d serve", familyMax+1)
	id := settled(t, s, z.PID)
	if _, err := s.family(id); !errors.Is(err, errUnsure) {
		t.Errorf("a list of %d: %v", familyMax+1, err)
	}
	snap, err := s.SnapshotOf(t.Context(), id)
	if err != nil || snap.Zombies() != familyMax+1 {
		t.Errorf("%d zombies, %v", snap.Zombies(), err)
	}
}

// The kernel skips children in its list when others go away before them. The
// ones behind are held by a tracer here, so that they are there all the time.
func TestListWhileItsHeadGoes(t *testing.T) {
	s := openWithChildren(t)
	sure, unsure := 0, 0
	for range 8 {
		z := zoo.Start(t, "leak=2000 hold=1000 { name=tracer serve } serve")
		id := settled(t, s, z.PID)
		reaped := make(chan struct{})
		go func() {
			defer close(reaped)
			z.Do("reap=2000")
		}()
		for done := false; !done; {
			select {
			case <-reaped:
				done = true
			default:
			}
			snap, err := s.family(id)
			if errors.Is(err, errUnsure) {
				unsure++
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			sure++
			c := snap.Parents[id]
			if c == nil {
				t.Fatal("no entry")
			}
			if c.Traced != 1000 {
				t.Fatalf("%d, want 1000 traced", c.Traced)
			}
		}
	}
	if sure == 0 || unsure == 0 {
		t.Errorf("%d lists were certain, %d not: one of them was not tested", sure, unsure)
	}
}

// Children move to another thread when theirs exits.
func TestListWhileThreadsGo(t *testing.T) {
	s := openWithChildren(t)
	for range 20 {
		z := zoo.Start(t, "leak=40 serve")
		id := settled(t, s, z.PID)
		answered := make(chan struct{}) // before the test ends it
		go func() {
			defer close(answered)
			z.Do("deadleader")
		}()
		for end := time.Now().Add(50 * time.Millisecond); time.Now().Before(end); {
			snap, err := s.family(id)
			if errors.Is(err, errUnsure) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if c := snap.Parents[id]; c == nil || len(c.Reapable) != 40 {
				t.Fatalf("%+v, want 40", c)
			}
		}
		<-answered
	}
}

// A zombie's pid that was taken over between two files must not pass for it.
func TestRememberedZombies(t *testing.T) {
	c := &census{tick: 100, runs: [][]record{
		{{start: 5, pid: 10, who: 1}, {start: 6, pid: 12, who: 1 | uint32(held)<<kindShift}},
		{{start: 100, pid: 20, who: 1}, {start: 7, pid: 30, who: 1 | uint32(own)<<kindShift}, {start: 8, pid: 31, who: 1}},
	}}
	for _, tc := range []struct {
		pid   uint32
		start uint64
		want  bool
	}{
		{10, 5, true}, {31, 8, true},
		{10, 6, false},   // another process by now
		{12, 6, false},   // traced: that may end
		{30, 7, false},   // by its parent: that too
		{20, 100, false}, // started while it was looked at
		{9, 5, false}, {11, 5, false}, {25, 5, false}, {32, 8, false},
	} {
		if got := c.untraced(tc.pid, tc.start); got != tc.want {
			t.Errorf("%d@%d: %v", tc.pid, tc.start, got)
		}
	}
	if (*census)(nil).untraced(10, 5) {
		t.Error("remembered from nothing")
	}
}

// It remembers, and forgets what was reaped.
func TestSecondSnapshotRemembers(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "leak=50 serve")
	if _, err := s.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	ours := func() (n int) {
		for _, run := range s.known.Load().runs {
			for i := range run {
				if run[i].parent() == uint32(z.PID) {
					n++
				}
			}
		}
		return n
	}
	if n := ours(); n != 50 {
		t.Errorf("%d remembered, want 50", n)
	}
	z.Do("reap=50")
	if _, err := s.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := ours(); n != 0 {
		t.Errorf("%d still remembered", n)
	}
}

// A walk allocates for what it found, not for what it read.
func TestSnapshotMemory(t *testing.T) {
	s := open(t)
	zoo.Start(t, "leak=3000 serve")
	snap, err := s.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const rounds = 5
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range rounds {
		if _, err := s.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	per := int(after.TotalAlloc-before.TotalAlloc) / rounds
	// 16 bytes in the snapshot and 16 to remember it, a fifth more for the sizes
	// that the allocator has, and the fixed part.
	if limit := snap.Zombies()*40 + 64<<10; per > limit {
		t.Errorf("%d bytes for %d zombies, want at most %d", per, snap.Zombies(), limit)
	}
}

// What is remembered from one snapshot to the next is that of one, however many
// there were.
func TestSnapshotsAreForgotten(t *testing.T) {
	s := open(t)
	zoo.Start(t, "leak=3000 serve")
	held := func(snapshots int) int {
		for range snapshots {
			if _, err := s.Snapshot(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	first := held(2)
	if grown := held(40) - first; grown > 10*16*3000 {
		t.Errorf("%d bytes more are held after 40 snapshots", grown)
	}
}
