package probe

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
	"kzr/internal/zoo"
)

// both are what a snapshot of the node and one of this parent say of it, which must be
// the same.
func both(t *testing.T, p *Probe, id task.ID) *task.Children {
	t.Helper()
	all := snapshot(t, p).Parents[id]
	s, err := p.SnapshotOf(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	one := s.Parents[id]
	if all == nil || one == nil {
		t.Fatalf("%v: the node's snapshot has %v, its own %v", id, all, one)
	}
	for _, c := range []*task.Children{all, one} {
		slices.SortFunc(c.Reapable, task.Zombie.Compare)
		slices.SortFunc(c.Held, func(a, b task.HeldZombie) int { return a.Compare(b.Zombie) })
	}
	if !slices.Equal(all.Reapable, one.Reapable) || !slices.Equal(all.Held, one.Held) ||
		all.Traced != one.Traced || all.Tracer != one.Tracer || all.Leaders != one.Leaders {
		t.Fatalf("the node's snapshot says\n%+v, its own\n%+v", all, one)
	}
	return one
}

// flags counts the zombies with each set of flags.
func flags(c *task.Children) map[string]int {
	n := map[string]int{}
	for _, z := range c.Reapable {
		var has []string
		for flag, name := range map[task.Flag]string{task.Adopted: "adopted", task.Foreign: "foreign", task.Moved: "moved", task.Held: "held"} {
			if z.Has(flag) {
				has = append(has, name)
			}
		}
		slices.Sort(has)
		n[strings.Join(has, " ")]++
	}
	return n
}

func TestAdopted(t *testing.T) {
	tests := []struct {
		name, script string
		dead         int
		want         map[string]int
	}{
		{"own", "leak=5 leak=5,plain threads=2 leak=5,thread fork { exit=3 } serve", 16, map[string]int{"": 16}},
		{"double fork", "subreaper fork { fork { ready sleep=300 exit } fork { ready sleep=300 exit } exit } serve", 3, map[string]int{"": 1, "adopted": 2}},
		{"zombies of a father", "subreaper fork { leak=7 exit } serve", 8, map[string]int{"": 1, "adopted moved": 7}},
		{"a father with threads", "subreaper fork { threads=3 leak=5 leak=5,thread fork { ready sleep=300 exit } exit } serve", 12,
			map[string]int{"": 1, "adopted": 1, "adopted moved": 10}},
		{"a father whose leader is dead", "subreaper fork { leak=3 deadleader leak=3 fork { ready sleep=300 exit } exit } serve", 8,
			map[string]int{"": 1, "adopted": 1, "adopted moved": 6}},
		{"two after each other", "subreaper fork { leak=3 fork { ready sleep=300 exit } fork { fork { exit } leak=1 exit } exit } serve", 8,
			map[string]int{"": 1, "adopted": 1, "adopted moved": 6}},
		{"a thousand", "subreaper fork { leak=1500 exit } serve", 1501, map[string]int{"": 1, "adopted moved": 1500}},
		{"init of a namespace", "fork=pidns { name=init fork { fork { ready sleep=300 exit } exit } leak=2 serve } serve", 4, map[string]int{"": 3, "adopted": 1}},
	}
	p, _ := open(t, 50)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			z := zoo.Start(t, "%s", tt.script)
			parent := z.Proc
			if strings.Contains(tt.script, "name=init") {
				parent = z.Named("init")
			}
			zoo.Within(t, soon, "all of them dead", func() bool { return zoo.Zombies(parent.PID) == tt.dead })
			if got := flags(both(t, p, identity(t, parent.PID))); fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// What is older than the probe is known to be adopted if another program forked it.
func TestAdoptedBeforeTheProbe(t *testing.T) {
	z := zoo.Start(t, `subreaper leak=3
		fork { exec=/proc/self/exe fork { ready sleep=100 exit } fork { exec=/proc/self/exe fork { ready sleep=200 exit } exit } exit }
		fork { fork { ready sleep=100 exit } exit } serve`)
	zoo.Within(t, soon, "all of them dead", func() bool { return z.Zombies() == 9 })
	p, _ := open(t, 50)
	// The one that was forked without exec looks like an own child.
	if got, want := flags(both(t, p, identity(t, z.PID))), map[string]int{"": 6, "adopted": 3}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

const workerEnv = "KZR_PROBE_TEST_WORKER"

// work is what this test program does as a worker of a test: it puts zombies on its own
// parent, and says who they are.
func work(spec string) {
	var n int
	var how string
	if _, err := fmt.Sscanf(spec, "%d %s", &n, &how); err != nil {
		panic(err)
	}
	for range n {
		attr := &syscall.ProcAttr{Env: []string{workerEnv + "=0 exit"}, Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_PARENT}}
		if how == "userns" {
			// There it has every privilege, and uses it.
			attr.Sys.Cloneflags |= unix.CLONE_NEWUSER
			attr.Sys.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		}
		pid, err := syscall.ForkExec("/proc/self/exe", []string{"worker"}, attr)
		fmt.Println(pid, err)
	}
	if how != "exit" {
		fmt.Println("done")
		_, _ = os.Stdin.Read(make([]byte, 1))
	}
}

// reapable counts zombies all of whose threads are dead, which /proc can show earlier.
func reapable(p *Probe, id task.ID) int {
	s, err := p.SnapshotOf(context.Background(), id)
	if err != nil || s.Parents[id] == nil {
		return 0
	}
	return len(s.Parents[id].Reapable)
}

// The test itself is the parent here: root, whose worker is nobody and puts zombies on it
// with CLONE_PARENT.
func TestForeign(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	nobody := &syscall.Credential{Uid: 65534, Gid: 65534}
	p, _ := open(t, 50)
	self := identity(t, os.Getpid())
	tests := []struct {
		name string
		as   *syscall.Credential
		how  string
		want map[string]int
	}{
		{"by nobody", nobody, "plain", map[string]int{"foreign": 3}},
		{"by nobody, in a user namespace", nobody, "userns", map[string]int{"foreign": 3}},
		{"by root", nil, "plain", map[string]int{"": 3}},
	}
	// First, as nobody has put a zombie on it yet.
	t.Run("own, without privileges", func(t *testing.T) {
		for _, uid := range []uint32{65534, 0, 33} {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = []string{workerEnv + "=0 exit"}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Wait() }()
		}
		zoo.Within(t, soon, "three zombies", func() bool { return reapable(p, self) == 3 })
		if got := flags(both(t, p, self)); got[""] != 3 || len(got) != 1 {
			t.Errorf("got %v", got)
		}
	})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			worker := exec.Command("/proc/self/exe")
			worker.Env = []string{workerEnv + "=3 " + tt.how}
			worker.SysProcAttr = &syscall.SysProcAttr{Credential: tt.as}
			in, _ := worker.StdinPipe()
			out, _ := worker.StdoutPipe()
			if err := worker.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { in.Close(); _ = worker.Wait() }()
			var pids []int
			for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "done"; {
				pid, err := strconv.Atoi(strings.TrimSuffix(lines.Text(), " <nil>"))
				if err != nil {
					t.Fatal(lines.Text())
				}
				pids = append(pids, pid)
				defer func() { _, _ = unix.Wait4(pid, nil, 0, nil) }()
			}
			zoo.Within(t, soon, "three zombies", func() bool { return reapable(p, self) == 3 && len(pids) == 3 })
			if got := flags(both(t, p, self)); fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// The orphans of others that dropped privileges are not foreign to who adopts them.
func TestOrphansAreNotForeign(t *testing.T) {
	const script = "subreaper fork { uid=33 fork { ready sleep=200 exit } exit } leak=1 serve"
	old := zoo.Start(t, script)
	zoo.Within(t, soon, "all of them dead", func() bool { return old.Zombies() == 3 })
	p, _ := open(t, 50)
	for name, z := range map[string]*zoo.Zoo{"before the probe": old, "after": zoo.Start(t, script)} {
		zoo.Within(t, soon, "all of them dead", func() bool { return z.Zombies() == 3 })
		if got := flags(both(t, p, identity(t, z.PID))); got["foreign"] != 0 || got["adopted"] != 1 && z != old {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestHeld(t *testing.T) {
	p, _ := open(t, 50)
	from := task.Now()
	z := zoo.Start(t, "leak=3 hold=10 { name=tracer serve } serve")
	zoo.Within(t, soon, "all of them dead", func() bool { return z.Zombies() == 13 })
	to := task.Now()
	parent, tracer := identity(t, z.PID), identity(t, z.Named("tracer").PID)
	c := both(t, p, parent)
	if c.Traced != 10 || c.Tracer != tracer || len(c.Held) != 0 || len(c.Reapable) != 3 {
		t.Errorf("the parent: %+v", c)
	}
	c = both(t, p, tracer)
	if c.Facts == nil || c.Facts.PPID != z.PID || len(c.Reapable) != 0 || c.Traced != 0 {
		t.Errorf("the tracer: %+v", c)
	}
	if len(c.Held) != 10 {
		t.Fatalf("the tracer holds %v", c.Held)
	}
	for _, h := range c.Held {
		if h.Of != parent || !h.Has(task.Held) || h.Since() < from || h.Since() > to+late(t) {
			t.Errorf("it holds %d of %v, since %v", h.PID(), h.Of, h.Since())
		}
	}
	// Then they are the parent's, who waits from now on.
	z.Named("tracer").Signal(9)
	zoo.Within(t, soon, "the tracer's end", func() bool {
		s, err := p.SnapshotOf(context.Background(), parent)
		return err == nil && s.Parents[parent].Traced == 0 && len(s.Parents[parent].Reapable) == 14
	})
	if got := flags(both(t, p, parent)); got["moved"] != 10 || got[""] != 4 {
		t.Errorf("after the tracer's end: %v", got)
	}
}

// A look at one parent that is right costs what that parent holds.
func TestSnapshotOfCosts(t *testing.T) {
	if testing.Short() {
		t.Skip("an emulated machine takes minutes to make that many")
	}
	p, _ := open(t, 50)
	few := zoo.Start(t, "leak=10 serve")
	id := identity(t, few.PID)
	cost := func(id task.ID, want int) time.Duration {
		t.Helper()
		best := time.Hour
		for range 30 {
			began := time.Now()
			s, err := p.SnapshotOf(context.Background(), id)
			best = min(best, time.Since(began))
			if err != nil || s.Parents[id].Total() != want {
				t.Fatalf("%v, %v", s, err)
			}
		}
		return best
	}
	alone := cost(id, 10)
	many := zoo.Start(t, "serve")
	for range 13 {
		many.Do("leak=1000")
	}
	beside := cost(id, 10)
	lot := cost(identity(t, many.PID), 13000)
	t.Logf("10 zombies: %v alone, %v beside 13,000 others; 13,000: %v", alone, beside, lot)
	if beside > 2*alone+20*time.Microsecond {
		t.Errorf("a look at 10 zombies takes %v beside 13,000 of others, %v without", beside, alone)
	}
	if lot > 50*time.Millisecond {
		t.Errorf("a look at 13,000 takes %v", lot)
	}
}

// While children come and go, whatever is said of one moment was true in it: what has
// been dead for long is told of each time, and nothing twice.
func TestSnapshotOfChurn(t *testing.T) {
	p, _ := open(t, 1000)
	for _, script := range []string{"leak=200 serve", "threads=5 leak=100 leak=100,thread serve"} {
		t.Run(script, func(t *testing.T) {
			z := zoo.Start(t, "%s", script)
			id := identity(t, z.PID)
			began := task.Now() + late(t)
			time.Sleep(late(t))
			stop, stopped := make(chan bool), make(chan bool)
			go func() {
				defer close(stopped)
				for {
					select {
					case <-stop:
						return
					default:
						z.Do("bench=vfork,100")
					}
				}
			}()
			defer func() { close(stop); <-stopped }()
			var old []task.Zombie
			for range 300 {
				s, err := p.SnapshotOf(context.Background(), id)
				if err != nil {
					t.Fatal(err)
				}
				c := s.Parents[id]
				if c == nil {
					t.Fatal("it is not there")
				}
				var now []task.Zombie
				for i, zombie := range c.Reapable {
					if i > 0 && c.Reapable[i-1].Compare(zombie) >= 0 {
						t.Fatalf("zombie %d is there twice, or out of order", zombie.PID())
					}
					if zombie.Since() <= began {
						now = append(now, zombie)
					}
				}
				if old == nil {
					old = now
				}
				if len(now) != 200 || !slices.Equal(old, now) {
					t.Fatalf("%d of those that have been dead for long", len(now))
				}
			}
		})
	}
}

// One that dies meanwhile is gone, not half there.
func TestSnapshotOfTheDying(t *testing.T) {
	p, _ := open(t, 1000)
	for range 20 {
		z := zoo.Start(t, "subreaper fork { name=middle leak=300 serve } serve")
		middle := z.Named("middle")
		id := identity(t, middle.PID)
		killed := make(chan bool)
		go func() {
			defer close(killed)
			time.Sleep(time.Millisecond)
			middle.Signal(9)
		}()
		for {
			s, err := p.SnapshotOf(context.Background(), id)
			if err != nil {
				t.Fatal(err)
			}
			c := s.Parents[id]
			if c == nil {
				break
			}
			if c.Total() > 300 {
				t.Errorf("%d zombies", c.Total())
			}
		}
		<-killed
	}
}

func TestIterOnly(t *testing.T) {
	p, err := Open(Options{IterOnly: true})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer p.Close()
	z := zoo.Start(t, "leak=5 serve")
	c := both(t, p, identity(t, z.PID))
	if len(c.Reapable) != 5 || c.Facts == nil || c.Reapable[0].Since() != 0 {
		t.Errorf("got %+v", c)
	}
	if err := p.Attached(); err == nil {
		t.Error("what was not attached says that it is")
	}
	if err := p.Hints(func(task.Hint) {}); err != nil {
		t.Error(err)
	}
	p.StopHints()
}

func TestFeatures(t *testing.T) {
	for _, f := range Features(context.Background(), Options{}) {
		old := f.Name == "look at system calls" && !zoo.KernelAtLeast(t, 5, 15)
		if (f.Err != nil) != old {
			t.Errorf("%s: %v", f.Name, f.Err)
		}
	}
}
