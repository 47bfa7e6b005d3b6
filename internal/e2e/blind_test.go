package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/zoo"
)

// What is to keep kzr from seeing others: looks that cost much, looks that never come
// back, and means that are used up.

// A timing is how long after its rule was met a parent was signalled, of several.
type timing []time.Duration

func (m timing) median() time.Duration { return m[len(m)/2] }
func (m timing) worst() time.Duration  { return m[len(m)-1] }

func (m timing) String() string {
	return fmt.Sprintf("median %v, worst %v", m.median().Round(100*time.Microsecond), m.worst().Round(100*time.Microsecond))
}

// promptness has n parents leak, each in a workload of its own, and measures. They
// reap when they are told to. The grace is a second.
func promptness(t *testing.T, k *daemon, name string, n int) timing {
	t.Helper()
	var all []*zoo.Zoo
	for _, g := range workloads(t, t.Name()+name, n) {
		all = append(all, zoo.Start(t, "cgroup=%s exec=%s chld=reap,sent serve", g.Dir, k.site.exe))
	}
	met := make([]time.Time, n)
	for i, z := range all {
		z.Do("leak=12")
		met[i] = time.Now().Add(time.Second)
	}
	var out timing
	for i, z := range all {
		out = append(out, max(0, k.saw(z.PID, "signal SIGCHLD").Time.Sub(met[i])))
		k.saw(z.PID, "reaped")
	}
	slices.Sort(out)
	return out
}

// swept waits until kzr has looked at the whole node once more.
func (s *site) swept() {
	s.t.Helper()
	var st status
	zoo.Within(s.t, patience, "kzr has looked", func() bool { return s.ask("/v1/status", &st) == nil && st.Sweeps > 0 })
	began := st.Sweeps
	zoo.Within(s.t, 2*patience, "kzr looks again", func() bool {
		time.Sleep(50 * time.Millisecond)
		return s.ask("/v1/status", &st) == nil && st.Sweeps > began
	})
}

// Groups make a process's status long, up to half a megabyte. That is no reason for
// the leaks of others to be found any later.
func TestScenario48Groups(t *testing.T) {
	for _, mode := range []string{"ebpf", "proc"} { // by themselves, as they are measured
		t.Run(mode, func(t *testing.T) {
			s := newSite(t)
			k := s.start("--mode="+mode, "--scope=all", "--sweep-interval=1s", s.socket())
			crowd := func(groups int) timing {
				t.Helper()
				z := zoo.Start(t, "groups=%d term=count fork=times=60 { leak=51 serve } serve", groups)
				s.swept()
				m := promptness(t, k, fmt.Sprint(groups), 12)
				z.Signal(unix.SIGKILL)
				return m
			}
			without := crowd(0)
			with := crowd(65536)
			limit := 3*without.worst() + 300*time.Millisecond
			if mode == "proc" { // a sweep finds it: the next one, or the one after
				limit = 3*max(without.worst(), time.Second) + 2*time.Second
			}
			if with.worst() > limit {
				t.Errorf("with 65,536 groups in 60 parents: %v; without: %v", with, without)
			}
			record(t, len(with), fmt.Sprintf("signalled after the rule was met: %v; without groups %v", with, without))
		})
	}
}

// Nor is it a shield for the leaker itself, though who traces it is known late only.
func TestScenario48GroupsAreNoShield(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--per-workload-kills=100")
		c := newTenant(t)
		z := zoo.Start(t, "cgroup=%s fork=pidns,proc { name=init exec=%s chld=reap groups=65536 fork=times=5 { term=ignore leak=20 serve } serve } serve", c.Dir, s.exe)
		init := z.Named("init")
		for _, pid := range zoo.Children(init.PID) {
			k.saw(pid, "terminated")
		}
		alive(t, init)
	})
}

// A hundred thousand zombies that nobody may do anything about stand on the node for
// good.
func TestScenario54ManyOfOthers(t *testing.T) {
	n := often(t, "KZR_STANDING", 100_000)
	roomFor(t, n+50_000, 4<<20)
	var sites []*site
	var without []timing
	modes := []string{"ebpf", "proc"}
	start := func(s *site, mode string) *daemon {
		k := s.start("--mode="+mode, "--scope=all", s.socket())
		s.swept()
		return k
	}
	for _, mode := range modes {
		s := newSite(t)
		k := start(s, mode)
		sites, without = append(sites, s), append(without, promptness(t, k, "empty"+mode, 20))
		k.stop()
	}

	const parents = 4
	began := time.Now()
	z := zoo.Start(t, "in=pidns,proc fork=times=%d { storm=%d serve } serve", parents, n/parents)
	zoo.Within(t, 3*patience, "all of them are made", func() bool {
		time.Sleep(250 * time.Millisecond)
		return nodeTasks(t) > n
	})
	t.Logf("%d zombies in %v", n, time.Since(began).Round(time.Millisecond))

	for i, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			s := sites[i]
			s.t = t
			k := start(s, mode)
			with := promptness(t, k, "full"+mode, 20)
			var st status
			s.wantAnswer("/v1/status", &st)
			if st.Zombies < n {
				t.Errorf("kzr counts %d zombies on the node", st.Zombies)
			}
			limit := 3*without[i].worst() + 50*time.Millisecond
			if mode == "proc" {
				// It finds a leak when it goes through all of /proc, for which it takes no
				// more than a tenth of a CPU.
				limit += 12 * st.sweepTime()
			}
			if with.worst() > limit {
				t.Errorf("another leak is signalled after %v; on an empty node %v", with, without[i])
			}
			k.never(0, "a signal to one that is to be left alone", func(e event) bool { return isSignal(e) && e.Exe != s.exe })
			idle := ""
			if mode == "ebpf" {
				// Where nothing changes, sweeps are so far apart that they cost as little
				// again (TestSweepsOfWhatStands); this is what is between them.
				const window = 15 * time.Second
				var used time.Duration
				zoo.Within(t, 3*patience, "there is time between two sweeps", func() bool {
					var st, after status
					s.wantAnswer("/v1/status", &st)
					before := cpuTime(t, k.pid)
					time.Sleep(window)
					used = cpuTime(t, k.pid) - before
					s.wantAnswer("/v1/status", &after)
					return after.Sweeps == st.Sweeps
				})
				if used > window/1000+10*time.Millisecond && !raceBuild {
					t.Errorf("%v of CPU in %v of doing nothing", used, window)
				}
				idle = fmt.Sprintf("; idle %v of CPU in %v", used.Round(100*time.Microsecond), window)
			}
			record(t, len(with), fmt.Sprintf("beside %d zombies of others, signalled after the rule was met: %v; without them %v%s", n, with, without[i], idle))
		})
	}
	z.Signal(unix.SIGKILL)
}

// sweepTime is how long it took kzr to go through the whole node.
func (st status) sweepTime() time.Duration {
	return time.Duration(st.SweepSeconds * float64(time.Second))
}

// cpuTime is what all threads of a process have used. It is finer than what stat has.
func cpuTime(t *testing.T, pid int) (used time.Duration) {
	t.Helper()
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, th := range threads {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, th.Name()))
		if err != nil {
			t.Fatal(err)
		}
		ns, _ := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		used += time.Duration(ns)
	}
	return used
}

// Processes with a read under way that never ends, and half a megabyte of status, die
// while kzr looks at them. If that makes kzr the last to use their memory, it cannot
// come back from there, whatever is done to it.
func TestScenario50LastUser(t *testing.T) {
	for _, mode := range []string{"ebpf", "proc"} { // by themselves: nobody else is to have such processes on his node
		t.Run(mode, func(t *testing.T) { lastUser(t, "--mode="+mode) })
	}
}

func lastUser(t *testing.T, mode string) {
	s := newSite(t)
	m := s.newManager(10 * time.Second)
	k := s.startUnder(m, mode, "--scope=all", "--sweep-interval=1s", s.socket())
	dir := t.TempDir()
	const rounds, parents = 6, 10
	var tenants [rounds]*tenant // before the zoo, so that they are empty when they go
	for i := range tenants {
		tenants[i] = newTenant(t)
	}
	z := zoo.Start(t, "in=mntns chld=reap fork { name=fs fuse=%s serve } serve", dir)
	fs := z.Named("fs")
	for round := range rounds {
		z.Do("fork=times=%d { cgroup=%s exec=%s term=ignore groups=65536 aio=%s/f leak=12 serve }",
			parents, tenants[round].Dir, s.exe, dir)
		// They meet the rule together. The moment is another one each time.
		time.Sleep(time.Second + time.Duration(round)*70*time.Millisecond)
		for _, pid := range zoo.Children(z.PID) {
			if pid != fs.PID {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
	hung := 0
	for _, pid := range zoo.Children(z.PID) {
		if zoo.State(pid) == 'D' {
			hung++
		}
	}
	if hung+blocked(t, k.pid) == 0 {
		t.Error("nobody hangs: this shows nothing")
	}

	// All others are dealt with as ever.
	began := time.Now()
	for range 3 {
		other := zoo.Start(t, "cgroup=%s exec=%s leak=12 serve", newTenant(t).Dir, s.exe)
		k.saw(other.PID, "terminated")
		other.WaitDead(0)
	}
	took := time.Since(began)
	if took > patience/2 {
		t.Errorf("three leakers took %v", took)
	}
	var st status
	s.wantAnswer("/v1/status", &st)
	m.wantFed()

	// It stops, as far as the kernel lets it, and the next one takes its place.
	lost := blocked(t, k.pid)
	k.ended = true
	k.send(unix.SIGTERM)
	k.await("that it stops", func(e event) bool { return e.Event == "stopping" })
	again := s.start(mode, "--scope=all", "--sweep-interval=1s", s.socket())
	other := zoo.Start(t, "cgroup=%s exec=%s leak=12 serve", newTenant(t).Dir, s.exe)
	again.saw(other.PID, "terminated")
	s.wantAnswer("/v1/status", &st)

	fs.Do("exit")
	if err := k.cmd.Wait(); err != nil {
		t.Errorf("kzr ended with: %v", err)
	}
	record(t, rounds*parents, fmt.Sprintf("%d of %d hung in the kernel, %d threads of kzr's with them; three others ended in %v, and kzr restarted",
		hung, rounds*parents, lost, took.Round(10*time.Millisecond)))
}

// blocked is how many threads of a process are in uninterruptible sleep.
func blocked(t *testing.T, pid int) (n int) {
	t.Helper()
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, th := range threads {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/stat", pid, th.Name()))
		if f := statFields(string(stat) + ")"); len(f) > 0 && f[0] == "D" {
			n++
		}
	}
	return n
}

// usesMemory are the files of /proc/PID whose reader takes hold of the process's memory,
// and may have to take it down.
var usesMemory = []string{"stat", "status", "statm", "cmdline", "environ", "auxv", "maps", "smaps"}

// hangLooks hangs each thread of kzr that reads such a file of one of these processes.
func hangLooks(k *daemon, victims map[int]bool) *tracer {
	tr := traceDaemon(k)
	theirs := map[int64]bool{} // descriptors of their directories, and of what is below
	tr.hold(func(c *call) bool {
		if c.Nr != unix.SYS_OPENAT {
			return false
		}
		below := theirs[int64(c.Args[0])]
		if c.Exit {
			theirs[c.Result] = below || victims[c.pid(c.Args[1])]
			return false
		}
		c.Hang = (below || victims[c.pid(c.Args[1])]) && slices.Contains(usesMemory, filepath.Base(c.text(c.Args[1])))
		return false
	})
	return tr
}

// Whatever of a process's memory kzr looks at, it does not come back from there. It
// goes without, and everything else goes on.
func TestScenario50LookHangs(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		m := s.newManager(10 * time.Second)
		k := s.startUnder(m, mode, "--scope=all", "--sweep-interval=1s", s.socket())
		victims := map[int]bool{}
		main := zoo.Start(t, "cgroup=%s exec=%s serve", newTenant(t).Dir, s.exe)
		for i := range 4 {
			main.Do("fork { name=victim%d serve }", i)
			victims[main.Named(fmt.Sprintf("victim%d", i)).PID] = true
		}
		tr := hangLooks(k, victims)
		for i := range 4 {
			main.Named(fmt.Sprintf("victim%d", i)).Do("leak=12")
		}
		leaks := zoo.Start(t, "cgroup=%s exec=%s fork=times=3 { leak=12 serve } serve", newTenant(t).Dir, s.exe)
		for _, pid := range zoo.Children(leaks.PID) {
			k.saw(pid, "terminated")
		}
		var st status
		s.wantAnswer("/v1/status", &st)
		var doc document
		s.wantAnswer("/v1/parents", &doc)
		m.wantFed()
		k.send(unix.SIGTERM)
		select {
		case <-k.over:
		case <-time.After(patience / 2):
			t.Error("kzr goes on after SIGTERM")
		}
		tr.close()
		k.ended = true
		_ = k.cmd.Wait() // how it ended its tracer has been told
	})
}

// One that answers nobody does not keep the next one from the socket.
func TestScenario50SocketTakenOver(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	old := s.start(s.socket())
	old.send(unix.SIGSTOP)
	t.Cleanup(func() { _ = unix.Kill(old.pid, unix.SIGCONT) })
	began := time.Now()
	k := s.start(s.socket())
	took := time.Since(began)
	var st struct {
		status
		Since time.Time `json:"since"`
	}
	s.wantAnswer("/v1/status", &st)
	if st.Since.Before(began.Add(-time.Second)) {
		t.Errorf("who answers began at %v", st.Since)
	}
	z := zoo.Start(t, "in=pidns,proc exec=%s leak=12 serve", s.exe)
	k.saw(z.PID, "terminated")
	old.murder()
	record(t, 1, fmt.Sprintf("the socket was taken over after %v", took.Round(10*time.Millisecond)))
}

// Somebody with kzr's own uid has used up all the epoll watches that it may have. kzr
// cannot be woken by them any more, and goes on by looking.
func TestScenario51NoWatches(t *testing.T) {
	t.Parallel()
	const user = 54399 // nobody else's
	type watcher struct {
		s *site
		k *daemon
	}
	var all []watcher
	for _, mode := range []string{"ebpf", "proc"} {
		s := newSite(t)
		k := s.startIn(fmt.Sprintf("user=%d", user), "--mode="+mode, "--sweep-interval=1s")
		if e := k.await("started", func(e event) bool { return e.Event == "started" }); mode == "ebpf" && e.Source != "bpf" {
			t.Fatalf("it does not use eBPF: %s", e.line)
		}
		all = append(all, watcher{s, k})
	}
	ends := func() {
		t.Helper()
		for _, w := range all {
			z := zoo.Start(t, "cgroup=%s exec=%s term=count leak=12 serve", newTenant(t).Dir, w.s.exe)
			w.k.saw(z.PID, "terminated")
			w.k.wantStory(z.PID, "signal SIGCHLD", "signal SIGTERM", "signal SIGKILL", "terminated")
			z.WaitDead(0)
		}
	}
	ends()
	hog := zoo.Start(t, "uid=%d serve", user)
	began, used := time.Now(), 0
	for more := true; more; { // in steps, as all of them take ten seconds
		const some = 400_000
		n, err := strconv.Atoi(hog.Do("watches=%d", some))
		if err != nil {
			t.Fatal(err)
		}
		used += n
		more = n == some
	}
	t.Logf("%d watches used up in %v", used, time.Since(began).Round(time.Millisecond))
	ends()
	ends()
}
