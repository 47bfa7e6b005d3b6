package probe

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"go.uber.org/goleak"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
	"kzr/internal/zoo"
)

func TestMain(m *testing.M) {
	if spec, ok := os.LookupEnv(workerEnv); ok {
		work(spec)
		return
	}
	goleak.VerifyTestMain(m)
}

const soon = time.Minute

// open is a probe that remembers its hints.
func open(t *testing.T, level int) (*Probe, *hints) {
	t.Helper()
	p, err := Open(Options{Level: level})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	h := &hints{pids: map[int]int{}}
	done := make(chan error)
	go func() { done <- p.Hints(h.add) }()
	t.Cleanup(func() {
		p.StopHints()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, h
}

type hints struct {
	mu   sync.Mutex
	pids map[int]int
	lost int
}

func (h *hints) add(x task.Hint) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if x.Lost {
		h.lost++
	} else {
		h.pids[x.PID]++
	}
}

func (h *hints) of(pid int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.pids[pid]
}

func snapshot(t *testing.T, p *Probe) *task.Snapshot {
	t.Helper()
	s, err := p.Snapshot(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// identity reads a process's start time the way everybody else does.
func identity(t *testing.T, pid int) task.ID {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	s := string(b)
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	start, err := strconv.ParseUint(f[22-3], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return task.ID{PID: pid, Start: start}
}

func TestLeakerIsHintedAt(t *testing.T) {
	_, h := open(t, 50)
	z := zoo.Start(t, "leak=49 serve")
	z.Do("leak=1")
	zoo.Within(t, soon, "a hint", func() bool { return h.of(z.PID) > 0 })
	if n := h.of(z.PID); n != 1 {
		t.Errorf("%d hints for one crossing", n)
	}
}

// Children that die at once on several CPUs are all counted: exactly as many as
// the level are enough.
func TestBurstOfExactlyTheLevel(t *testing.T) {
	_, h := open(t, 20)
	for range 50 {
		z := zoo.Start(t, "leak=20 serve")
		zoo.Within(t, soon, "a hint", func() bool { return h.of(z.PID) > 0 })
		z.Signal(9)
	}
}

func TestFewZombiesAreNoHint(t *testing.T) {
	_, h := open(t, 50)
	z := zoo.Start(t, "leak=49 serve")
	other := zoo.Start(t, "leak=50 serve") // its hint comes after any for the first
	zoo.Within(t, soon, "the other's hint", func() bool { return h.of(other.PID) > 0 })
	if n := h.of(z.PID); n != 0 {
		t.Errorf("%d hints for 49 zombies", n)
	}
}

// A parent that reaps most and leaks some crosses late, and is not missed.
func TestSlowLeakIsHintedAt(t *testing.T) {
	_, h := open(t, 8)
	z := zoo.Start(t, "serve")
	for i := range 8 {
		if h.of(z.PID) > 0 {
			t.Fatalf("a hint at %d zombies", i)
		}
		z.Do("bench=vfork,20") // these it reaps
		z.Do("leak=1")
	}
	z.Do("bench=vfork,20")
	zoo.Within(t, soon, "a hint", func() bool { return h.of(z.PID) > 0 })
}

func TestReapedChildrenWakeNobody(t *testing.T) {
	p, h := open(t, 8)
	z := zoo.Start(t, "serve")
	before, err := p.Counters()
	if err != nil {
		t.Fatal(err)
	}
	rounds := 40
	if testing.Short() { // an emulated machine takes 3 ms a child, or 15
		rounds = 4
	}
	for range rounds { // each is to be answered in time on a slow machine too
		z.Do("bench=vfork,500")
	}
	after, err := p.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if n := after.Exits - before.Exits; n < uint64(rounds*125) {
		t.Errorf("the program saw %d exits", n)
	}
	other := zoo.Start(t, "leak=8 serve")
	zoo.Within(t, soon, "a hint for another", func() bool { return h.of(other.PID) > 0 })
	if n := h.of(z.PID); n != 0 {
		t.Errorf("%d hints for a parent that reaps", n)
	}
}

func TestWhoWantsNoZombiesIsIgnored(t *testing.T) {
	for _, how := range []string{"ignore", "nocldwait"} {
		t.Run(how, func(t *testing.T) {
			_, h := open(t, 8)
			z := zoo.Start(t, "chld=%s storm=200 serve", how)
			zoo.Within(t, soon, "200 children", func() bool { return z.Count().Made >= 200 })
			other := zoo.Start(t, "leak=8 serve")
			zoo.Within(t, soon, "a hint for another", func() bool { return h.of(other.PID) > 0 })
			if n := h.of(z.PID); n != 0 {
				t.Errorf("%d hints", n)
			}
		})
	}
}

func TestSnapshotIsExact(t *testing.T) {
	p, _ := open(t, 50)
	tests := []struct {
		script                    string
		reapable, traced, leaders int
	}{
		{"leak=60 serve", 60, 0, 0},
		{"leak=95 reap=all leak=5 serve", 5, 0, 0},
		{"leak=7,sig=0 leak=7,sig=10 serve", 14, 0, 0},
		{"leak=3 hold=10 { name=tracer serve } serve", 3, 10, 0},
		{"fork { name=kid deadleader serve } serve", 0, 0, 1},
		{"fork=pidns { name=init leak=5 serve } leak=2 serve", 2, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.script, func(t *testing.T) {
			z := zoo.Start(t, "%s", tt.script)
			zoo.Within(t, soon, "all of them dead", func() bool { return z.Zombies() == tt.reapable+tt.traced+tt.leaders })
			c := snapshot(t, p).Parents[identity(t, z.PID)]
			if c == nil {
				t.Fatal("it is not in the snapshot")
			}
			if len(c.Reapable) != tt.reapable || c.Traced != tt.traced || c.Leaders != tt.leaders {
				t.Errorf("got %d, %d traced, %d leaders; want %d, %d, %d",
					len(c.Reapable), c.Traced, c.Leaders, tt.reapable, tt.traced, tt.leaders)
			}
			if tt.traced > 0 && c.Tracer != identity(t, z.Named("tracer").PID) {
				t.Errorf("the tracer is %v, want %d", c.Tracer, z.Named("tracer").PID)
			}
			for _, zombie := range c.Reapable {
				if want := identity(t, zombie.PID()).Start; zombie.Start() != want {
					t.Errorf("zombie %d started at %d, want %d", zombie.PID(), zombie.Start(), want)
				}
			}
			one, err := p.SnapshotOf(context.Background(), c.Parent)
			if err != nil {
				t.Fatal(err)
			}
			if len(one.Parents) != 1 || one.Parents[c.Parent] == nil || one.Parents[c.Parent].Total() != c.Total() {
				t.Errorf("the snapshot of it alone has %v", one.Parents)
			}
		})
	}
}

// late is how much later than it died a zombie may be said to wait since: a tick, and in
// whole milliseconds.
func late(t *testing.T) time.Duration {
	t.Helper()
	var tick unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick); err != nil {
		t.Fatal(err)
	}
	return time.Duration(tick.Nano()) + time.Millisecond
}

func TestExitTimes(t *testing.T) {
	old := zoo.Start(t, "leak=5 serve") // before the probe
	p, _ := open(t, 50)
	z := zoo.Start(t, "serve")
	from := task.Now()
	z.Do("leak=20")
	to := task.Now()
	s := snapshot(t, p)
	for _, zombie := range s.Parents[identity(t, z.PID)].Reapable {
		if zombie.Since() < from || zombie.Since() > to+late(t) {
			t.Errorf("zombie %d waits since %v, want between %v and %v", zombie.PID(), zombie.Since(), from, to)
		}
	}
	for _, zombie := range s.Parents[identity(t, old.PID)].Reapable {
		if zombie.Since() != 0 {
			t.Errorf("zombie %d is older than the probe, but waits since %v", zombie.PID(), zombie.Since())
		}
	}
}

// What a zombie waited under its first parent does not count for the next one: it is
// marked as moved, and keeps the moment of its death.
func TestExitTimeOfAnotherParent(t *testing.T) {
	p, _ := open(t, 50)
	z := zoo.Start(t, "subreaper fork { name=middle leak=5 serve } serve")
	middle := z.Named("middle")
	kids := zoo.Children(middle.PID)
	middle.Signal(9)
	middle.WaitDead(soon)
	zoo.Within(t, soon, "the zombies to move", func() bool { return z.Zombies() == 6 })
	for _, zombie := range snapshot(t, p).Parents[identity(t, z.PID)].Reapable {
		moved := slices.Contains(kids, zombie.PID())
		if zombie.Has(task.Moved) != moved || zombie.Has(task.Adopted) != moved || zombie.Since() == 0 {
			t.Errorf("zombie %d, moved: %v, waits since %v; flags: moved %v, adopted %v", zombie.PID(), moved, zombie.Since(),
				zombie.Has(task.Moved), zombie.Has(task.Adopted))
		}
	}
}

func TestSetLevel(t *testing.T) {
	p, h := open(t, 50)
	if err := p.SetLevel(10); err != nil {
		t.Fatal(err)
	}
	z := zoo.Start(t, "leak=10 serve")
	zoo.Within(t, soon, "a hint", func() bool { return h.of(z.PID) > 0 })
}

// While nobody reads, hostile parents fill the ring: this one holds 256 hints.
func TestOverflowIsTold(t *testing.T) {
	spec, err := loadKzr()
	if err != nil {
		t.Fatal(err)
	}
	spec.Maps["hints"].MaxEntries = 4096
	p, err := load(spec, Options{Level: MinLevel})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer p.Close()
	zoo.Start(t, "flash=2000,kids=10 serve")
	zoo.Within(t, 2*time.Minute, "an overflow", func() bool {
		c, err := p.Counters()
		if err != nil {
			t.Fatal(err)
		}
		return c.Lost > 0
	})
	h := &hints{pids: map[int]int{}}
	done := make(chan error)
	go func() { done <- p.Hints(h.add) }()
	zoo.Within(t, soon, "to be told of the loss", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.lost > 0
	})
	p.StopHints()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestMapsFit(t *testing.T) {
	spec, err := loadKzr()
	if err != nil {
		t.Fatal(err)
	}
	delete(spec.Programs, "take_stance") // not on every kernel, and it has no map
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer coll.Close()
	var sum uint64
	for name, m := range coll.Maps {
		info, err := m.Info()
		if err != nil {
			t.Fatal(err)
		}
		n, ok := info.Memlock()
		if !ok && m.Type() == ebpf.RingBuf {
			// Kernels before 6.4 do not say. Its size, and the pages for the two
			// positions and the control data.
			n, ok = uint64(m.MaxEntries())+4*4096, true
		}
		if !ok {
			t.Fatalf("the kernel does not tell what %s takes", name)
		}
		t.Logf("%s: %d KiB", name, n>>10)
		sum += n
	}
	if sum > 16<<20 {
		t.Errorf("all maps take %d bytes, over 16 MiB", sum)
	}
}

// A snapshot that the kernel ends early is no snapshot.
func TestTruncatedSnapshotIsAnError(t *testing.T) {
	p, _ := open(t, 50)
	// An iterator that never says the list is whole.
	spec, err := loadKzr()
	if err != nil {
		t.Fatal(err)
	}
	var o struct {
		Mute *ebpf.Program `ebpf:"list_nothing"`
	}
	if err := spec.LoadAndAssign(&o, nil); err != nil {
		t.Fatalf("%+v", err)
	}
	defer o.Mute.Close()
	it, err := link.AttachIter(link.IterOptions{Program: o.Mute})
	if err != nil {
		t.Fatal(err)
	}
	p.iter.Close()
	p.iter = it
	if s, err := p.Snapshot(context.Background()); err == nil {
		t.Errorf("got %d zombies and no error", s.Zombies())
	}
}
