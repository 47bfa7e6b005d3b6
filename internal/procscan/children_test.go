package procscan

import (
	"errors"
	"os"
	"reflect"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
	p, err := s.Inspect(t.Context(), pid)
	if err != nil {
		t.Fatal(err)
	}
	zoo.Within(t, time.Minute, "a tick has passed", func() bool { return bootTicks() > p.Start })
	return p.ID
}

// list takes one parent's zombies from the lists of children, and from nothing else.
func list(t testing.TB, s *Scanner, id task.ID) (*task.Children, error) {
	t.Helper()
	f := &family{pid: uint32(id.PID)}
	if err := s.meet(t.Context(), f, bootTicks()); err != nil || f.children == nil || f.children.Parent != id {
		t.Fatalf("%v is %+v, %v", id, f, err)
	}
	zombies, err := s.newWorker().children(f.pid, bootTicks())
	if errors.Is(err, errUnsure) {
		return nil, err
	}
	if err == nil {
		err = s.sort(t.Context(), f, zombies)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f.children, nil
}

// leaders is how many of one dead leader are seen: a directory of descriptors that is
// empty tells of one, and before Linux 6.2 the size of that is not told.
func leaders(t *testing.T) int {
	if zoo.KernelAtLeast(t, 6, 2) {
		return 1
	}
	return 0
}

func TestBothWaysToOneParentAgree(t *testing.T) {
	s := openWithChildren(t)
	for script, want := range map[string]task.Children{
		"serve":                               {},
		"fork { serve } fork { serve } serve": {},
		"leak=60 fork { serve } serve":        {Reapable: make([]task.Zombie, 60)},
		"leak=20,thread leak=7 serve":         {Reapable: make([]task.Zombie, 27)},
		"leak=5 deadleader serve":             {Reapable: make([]task.Zombie, 5)},
		"fork { deadleader serve } serve":     {Leaders: leaders(t)},
		"hold=3 { name=tracer serve } serve":  {Traced: 3},
	} {
		t.Run(script, func(t *testing.T) {
			z := zoo.Start(t, "%s", script)
			id := settled(t, s, z.PID)
			var got *task.Children
			zoo.Within(t, time.Minute, "a sure list", func() (ok bool) {
				var err error
				got, err = list(t, s, id)
				return err == nil && (got.Total() > 0) == (want.Total() > 0)
			})
			walk, err := s.Snapshot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if want.Total() == 0 {
				if walk.Parents[id] != nil {
					t.Errorf("the walk found %+v", walk.Parents[id])
				}
				return
			}
			if !reflect.DeepEqual(got, walk.Parents[id]) {
				t.Errorf("by list %+v, by walk %+v", got, walk.Parents[id])
			}
			if len(got.Reapable) != len(want.Reapable) || got.Traced != want.Traced || got.Leaders != want.Leaders {
				t.Errorf("%+v, want %+v", got, want)
			}
		})
	}
}

func TestVeryManyChildrenNeedOneWalk(t *testing.T) {
	s := openWithChildren(t)
	z := zoo.Start(t, "leak=%d serve", familyMax+1)
	id := settled(t, s, z.PID)
	if _, err := list(t, s, id); !errors.Is(err, errUnsure) {
		t.Errorf("a list of %d: %v", familyMax+1, err)
	}
	walked := func() *census { return s.known.Load() }
	count := func(want int) {
		t.Helper()
		snap, err := s.SnapshotOf(t.Context(), id)
		if err != nil || len(snap.Parents) != 1 || len(snap.Parents[id].Reapable) != want {
			t.Errorf("%d zombies, %v; want %d", snap.Zombies(), err, want)
		}
	}
	count(familyMax + 1)
	first := walked()
	if first == nil {
		t.Fatal("no walk")
	}
	// From then on it looks at those again.
	count(familyMax + 1)
	z.Do("reap=1")
	count(familyMax)
	z.Do("reap=5")
	count(familyMax - 5)
	if walked() != first {
		t.Error("it walked again")
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
			c, err := list(t, s, id)
			if err != nil {
				unsure++
				continue
			}
			sure++
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
			if c, err := list(t, s, id); err == nil && len(c.Reapable)+c.Unknown != 40 { // a slow machine asks the others next time
				t.Fatalf("%+v, want 40", c)
			}
		}
		<-answered
	}
}

// A zombie's pid that was taken over between two files must not pass for it.
func TestRememberedZombies(t *testing.T) {
	c := &census{tick: 100, runs: [][]record{
		{newRecord(10, 5, 1, 0, free), newRecord(12, 6, 1, 7, held)},
		{newRecord(20, 100, 1, 0, free), newRecord(30, 7, 1, 0, own), newRecord(31, 8, 4194303, 4294967295, free)},
	}}
	for _, tc := range []struct {
		pid   uint32
		start uint64
		want  record
	}{
		{10, 5, c.runs[0][0]}, {12, 6, c.runs[0][1]}, {31, 8, c.runs[1][2]}, {30, 7, c.runs[1][1]},
		{10, 6, record{}},   // another process by now
		{20, 100, record{}}, // started while it was looked at
		{9, 5, record{}}, {11, 5, record{}}, {25, 5, record{}}, {32, 8, record{}},
	} {
		if got, ok := c.find(newRecord(tc.pid, tc.start, 0, 0, 0).id); got != tc.want || ok != (tc.want != record{}) {
			t.Errorf("%d@%d: %v", tc.pid, tc.start, got)
		}
	}
	if _, ok := (*census)(nil).find(10<<startBits | 5); ok {
		t.Error("remembered from nothing")
	}
	last := c.runs[1][2]
	if last.pid() != 31 || last.start() != 8 || last.parent() != 4194303 || last.uid() != 4294967295 || last.kind() != free {
		t.Errorf("%+v", last)
	}
	if last.become(own); last.parent() != 4194303 || last.uid() != 4294967295 || last.kind() != own {
		t.Errorf("%+v", last)
	}
}

// It remembers, and forgets what was reaped.
func TestSecondSnapshotRemembers(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "leak=50 serve")
	settled(t, s, z.PID)
	if _, err := s.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	ours := func() (n int) {
		for _, run := range s.known.Load().runs {
			for i := range run {
				if run[i].parent() == uint32(z.PID) && run[i].kind() == free {
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

// What is known of a zombie is true of that zombie only, and its parent can change.
func TestKnownZombiesAreAskedAgain(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "fork { name=sub subreaper fork { name=middle leak=30 serve } serve } serve")
	middle, sub := z.Named("middle"), z.Named("sub")
	count := func(pid int) (n int) {
		t.Helper()
		snap, err := s.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for id, c := range snap.Parents {
			if id.PID == pid {
				n += len(c.Reapable)
			}
		}
		return n
	}
	settled(t, s, middle.PID)
	if n := count(middle.PID); n != 30 {
		t.Fatalf("%d zombies, want 30", n)
	}
	// As if each of their pids had belonged to another process when it was last seen.
	c := s.known.Load()
	for i, run := range c.runs {
		for j := range run {
			if run[j].parent() == uint32(middle.PID) {
				if s.pidfs && c.inodes[i][j] == 0 {
					t.Error("a zombie without an inode number")
				}
				c.inodes[i][j]++
				run[j].id++ // another start time
				run[j].who = newRecord(0, 0, 1, 77, free).who
			}
		}
	}
	if n := count(middle.PID); n != 30 {
		t.Errorf("%d zombies after their pids were reused, want 30", n)
	}
	for _, run := range s.known.Load().runs {
		for _, r := range run {
			if r.parent() == uint32(middle.PID) && r.uid() == 77 {
				t.Fatal("the user is that of whoever had the pid before")
			}
		}
	}
	middle.Signal(unix.SIGKILL)
	middle.WaitDead(time.Minute)
	zoo.Within(t, time.Minute, "they have moved, with their parent", func() bool { return count(sub.PID) == 31 })
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
