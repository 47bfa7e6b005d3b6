package e2e

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/zoo"
)

// tick is the pause between two attempts at something that is over in a moment.
func tick() <-chan time.Time { return time.After(time.Millisecond) }

// often reads how often a test repeats itself from the environment.
func often(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q is no count", variable, text)
	}
	return n
}

// The windows in which a pid changes hands. kzr is held there, at one system
// call, for as long as that takes.
var windows = []struct {
	name string
	at   func(c *call, v *victim) bool
}{
	{"before its pidfd is opened", func(c *call, v *victim) bool {
		return !c.Exit && c.Nr == unix.SYS_PIDFD_OPEN && int(c.Args[0]) == v.pid
	}},
	{"once its pidfd is open", func(c *call, v *victim) bool {
		return c.Exit && c.Nr == unix.SYS_PIDFD_OPEN && int(c.Args[0]) == v.pid
	}},
	{"before a look into its /proc directory", func(c *call, v *victim) bool {
		return v.looked(c, false)
	}},
	{"during a look into its /proc directory", func(c *call, v *victim) bool {
		return v.looked(c, true)
	}},
	{"before SIGCHLD", signalling(unix.SIGCHLD, false)},
	{"after SIGCHLD", signalling(unix.SIGCHLD, true)},
	{"before SIGTERM", signalling(unix.SIGTERM, false)},
	{"after SIGTERM", signalling(unix.SIGTERM, true)},
	{"before SIGKILL", signalling(unix.SIGKILL, false)},
}

func signalling(sig unix.Signal, exit bool) func(*call, *victim) bool {
	return func(c *call, v *victim) bool {
		return c.Exit == exit && c.Nr == unix.SYS_PIDFD_SEND_SIGNAL && v.pidfds[c.Args[0]] && unix.Signal(c.Args[1]) == sig
	}
}

// A victim is a target that is to die, and lose its pid to another, in one of the
// windows.
type victim struct {
	proc   *zoo.Proc
	pid    int // as kzr sees it
	window int
	skip   int // so many looks are let pass
	pidfds map[uint64]bool
	heir   *zoo.Proc
	kind   *heirKind
	start  uint64 // of the heir
}

const (
	reuseThreshold = 4
	reuseGrace     = 2 * time.Second
)

// An heirKind is a way to be innocent. What spares the one, a kzr could get right
// that takes the heir for the victim, so there are several.
type heirKind struct {
	name   string
	odds   int
	script string // what it does, after exec=PATH
	exe    string // the path's last element
	holds  int    // zombies, before kzr goes on
	old    bool   // and they are as old as the grace then
}

var heirKinds = []*heirKind{
	{name: "fewer zombies than the rule asks for", odds: 8, exe: "leaker", script: "leak=3,sig=0", holds: 3},
	{name: "enough zombies, none of them old", odds: 9, exe: "leaker", script: "burst=8,every=600,hold=600,sig=0", holds: reuseThreshold},
	{name: "enough old zombies, and a rule that spares it", odds: 1, exe: "heir", script: "leak=8,sig=0", holds: 8, old: true},
}

func drawHeir(dice *rand.Rand) *heirKind {
	total := 0
	for _, h := range heirKinds {
		total += h.odds
	}
	n := dice.IntN(total)
	for _, h := range heirKinds {
		if n -= h.odds; n < 0 {
			return h
		}
	}
	panic("unreachable")
}

// newReuseSite is one whose rules spare heirs of the last kind.
func newReuseSite(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	heir := filepath.Join(s.dir, "heir")
	zoo.Install(t, heir)
	s.configure("", fmt.Sprintf("{name: heirs, match: {exe: %q}, action: observe}", heir), s.rule())
	return s
}

func reuseFlags(mode string) []string {
	return []string{mode, "--scope=all", fmt.Sprintf("--threshold=%d", reuseThreshold), "--grace=" + reuseGrace.String()}
}

// looked says whether the call is the look that was waited for. Directories are
// opened by name, "4242" or "4242/stat", below a descriptor of /proc.
func (v *victim) looked(c *call, exit bool) bool {
	if c.Nr != unix.SYS_OPENAT || c.Exit != exit || c.pid(c.Args[1]) != v.pid {
		return false
	}
	v.skip--
	return v.skip < 0
}

// A pidSource makes a process with a number that was just freed.
type pidSource func(main *zoo.Zoo, pid int, script string)

// A pid that was reused between any two steps of kzr's: the new owner gets no
// signal. kzr is held at every kind of system call between the detection and the
// last signal, the target is killed and reaped, an innocent gets its number, and
// kzr goes on.
func TestScenario11PidReuse(t *testing.T) {
	t.Parallel()
	t.Run("proc", func(t *testing.T) {
		t.Parallel()
		// In a pid namespace with few numbers, so that the kernel itself comes
		// round to the number at once.
		s := newReuseSite(t)
		groups := workloads(t, "proc", 24)
		z := zoo.Start(t, "in=pidns,proc serve")
		next := pidSource(churn)
		if major, minor := kernel(t); major > 6 || major == 6 && minor >= 14 {
			lowerPidMax(t, z, 700)
			z.Do("churn=301 { exit } reap=all") // the kernel comes back to no lower one
		} else {
			// There pid_max is one for the whole machine.
			next = setTID
		}
		reusePids(t, s, z, s.startInside(z, reuseFlags("--mode=proc")...), next, groups)
	})
	t.Run("ebpf", func(t *testing.T) {
		t.Parallel()
		s := newReuseSite(t)
		groups := workloads(t, "ebpf", 60)
		z := zoo.Start(t, "serve")
		reusePids(t, s, z, s.start(reuseFlags("--mode=ebpf")...), setTID, groups)
	})
}

func churn(main *zoo.Zoo, pid int, script string)  { main.Do("churn=%d { %s }", pid, script) }
func setTID(main *zoo.Zoo, pid int, script string) { main.Do("fork=tid=%d { %s }", pid, script) }

func kernel(t *testing.T) (major, minor int) {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		t.Fatalf("kernel release %q: %v", release, err)
	}
	return major, minor
}

// inside is a command in the pid and mount namespaces of a zoo.
func inside(z *zoo.Zoo, program string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--target", strconv.Itoa(z.PID), "--pid", "--mount", "--", program}, args...)...)
}

func lowerPidMax(t *testing.T, z *zoo.Zoo, n int) {
	t.Helper()
	const file = "/proc/sys/kernel/pid_max"
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := inside(z, "sh", "-c", fmt.Sprintf("echo %d >%s", n, file)).CombinedOutput(); err != nil {
		t.Fatalf("lowering pid_max: %v: %s", err, out)
	}
	if after, _ := os.ReadFile(file); string(after) != string(before) {
		t.Errorf("pid_max of the whole machine became %s", after)
	}
}

// startInside starts kzr in the pid and mount namespaces of a zoo.
func (s *site) startInside(z *zoo.Zoo, flags ...string) *daemon {
	s.t.Helper()
	d := s.launch(inside(z, program(s.t), append(append([]string{"run"}, s.usual()...), flags...)...))
	// That is nsenter, which waits for it.
	kids := zoo.Children(d.pid)
	if len(kids) != 1 {
		s.t.Fatalf("nsenter has the children %v", kids)
	}
	d.pid = kids[0]
	d.counted()
	return d
}

// workloads are cgroups to count by, named as a runtime names a container's:
// targets of one workload are ended one after the other.
func workloads(t *testing.T, name string, n int) []*zoo.Cgroup {
	t.Helper()
	groups := make([]*zoo.Cgroup, n)
	for i := range groups {
		id := sha256.Sum256(fmt.Appendf(nil, "%d %s %d", os.Getpid(), name, i))
		groups[i] = zoo.NewCgroup(t, "freezer", fmt.Sprintf("docker-%x.scope/%s", id, strings.Repeat("x", 200)))
	}
	return groups
}

func reusePids(t *testing.T, s *site, main *zoo.Zoo, k *daemon, next pidSource, groups []*zoo.Cgroup) {
	rounds, batch := often(t, "KZR_REUSE", 200), len(groups)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	tr := traceDaemon(k)
	swapped, kinds := map[string]int{}, map[string]int{}
	total, missed := 0, 0
	for round := 0; total < rounds; round++ {
		victims := map[int]*victim{}
		for i := range batch {
			v := &victim{window: (round*batch + i) % len(windows), skip: dice.IntN(12), pidfds: map[uint64]bool{}}
			name := fmt.Sprintf("t%d-%d", round, i)
			v.pid, _ = strconv.Atoi(main.Do("fork { name=%s cgroup=%s exec=%s term=ignore leak=5 serve }", name, groups[i].Dir, s.exe))
			v.proc = main.Named(name)
			victims[v.pid] = v
		}
		heirs := swap(t, main, k, tr, victims, next, round, dice)
		for _, v := range heirs {
			swapped[windows[v.window].name]++
			kinds[v.kind.name]++
		}
		total += len(heirs)
		missed += len(victims)
		for _, v := range heirs {
			who := fmt.Sprintf("the process with %s that got pid %d %s", v.kind.name, v.pid, windows[v.window].name)
			of := func(e event) bool { return e.PID == v.pid && e.StartTime == v.start }
			if !v.heir.Alive() {
				t.Fatalf("%s is dead", who)
			}
			if c := v.heir.Count(); c.CHLD != 0 || c.TERM != 0 { // its own children send it none
				t.Fatalf("%s was sent %d SIGCHLD and %d SIGTERM", who, c.CHLD, c.TERM)
			}
			for _, e := range k.all(func(e event) bool { return isSignal(e) && of(e) }) {
				t.Errorf("%s was signalled: %s", who, e.line)
			}
			if v.kind.old { // to be certain that nothing but the rule spared it
				k.await("the rule spares "+who, func(e event) bool { return of(e) && e.String() == "spared rule" })
			}
			v.heir.Signal(unix.SIGKILL)
			v.heir.WaitDead(patience)
			main.Do("reap=pid=%d", v.pid)
		}
		main.Do("reap=now")
	}
	tr.close()
	for _, w := range slices.Sorted(maps.Keys(swapped)) {
		t.Logf("%4d %s", swapped[w], w)
	}
	for _, w := range windows {
		if swapped[w.name] == 0 {
			t.Errorf("no pid changed hands %s", w.name)
		}
	}
	for _, h := range heirKinds {
		t.Logf("%4d with %s", kinds[h.name], h.name)
		if kinds[h.name] == 0 {
			t.Errorf("no pid came to one with %s", h.name)
		}
	}
	record(t, total, fmt.Sprintf("%d pids changed hands between two system calls of kzr's, %d of them to a process with as many zombies as a target; no signal reached a new owner",
		total, total-kinds[heirKinds[0].name]))
	t.Logf("%d targets came to their end before their window", missed)
}

// swap takes the victims to their windows and gives their pids away there. It
// returns those for which that came about; in victims remain those that kzr got
// first.
func swap(t *testing.T, main *zoo.Zoo, k *daemon, tr *tracer, victims map[int]*victim, next pidSource, round int, dice *rand.Rand) []*victim {
	t.Helper()
	// The tracer's thread alone looks at what it follows; ours tells it which.
	waiting := maps.Clone(victims)
	opener := map[int]int{} // thread: pid
	tr.hold(func(c *call) bool {
		if c.Nr == unix.SYS_PIDFD_OPEN {
			opener[c.Thread] = int(c.Args[0])
			if v := waiting[int(c.Args[0])]; v != nil && c.Exit && c.Result >= 0 {
				for _, other := range waiting {
					delete(other.pidfds, uint64(c.Result))
				}
				v.pidfds[uint64(c.Result)] = true
			}
		}
		for pid, v := range waiting {
			if windows[v.window].at(c, v) {
				delete(waiting, pid)
				c.Result = int64(pid) // for ours
				return true
			}
		}
		return false
	})
	var heirs []*victim
	deadline := time.After(patience)
	for len(victims) > 0 {
		select {
		case st := <-tr.stops:
			v := victims[int(st.Result)]
			if v == nil || !v.proc.Alive() { // it came to its end on the way here
				st.goOn()
				continue
			}
			delete(victims, v.pid)
			v.proc.Signal(unix.SIGKILL)
			v.proc.WaitDead(patience)
			main.Do("reap=pid=%d", v.pid)
			main.Do("reap=now") // what it left behind
			name := fmt.Sprintf("h%d-%d", round, len(heirs))
			v.kind = drawHeir(dice)
			next(main, v.pid, fmt.Sprintf("name=%s exec=%s/%s chld=count term=count %s serve", name, k.site.dir, v.kind.exe, v.kind.script))
			v.heir = main.Named(name)
			v.start = startTime(t, v.heir.PID)
			zoo.Within(t, patience, "the new owner has its zombies", func() bool { return v.heir.Zombies() >= v.kind.holds })
			if v.kind.old {
				time.Sleep(reuseGrace + 100*time.Millisecond)
			}
			heirs = append(heirs, v)
			st.goOn()
		case <-time.After(100 * time.Millisecond):
			left := 0
			for _, v := range victims {
				if v.proc.Alive() {
					left++
				}
			}
			if left == 0 { // the others never came to their window
				return settled(tr, heirs)
			}
		case <-deadline:
			t.Fatalf("%d targets live after %v", len(victims), patience)
		}
	}
	return settled(tr, heirs)
}

// settled gives kzr time for what it could still do to the wrong one.
func settled(tr *tracer, heirs []*victim) []*victim {
	tr.hold(nil)
	for enough := time.After(500 * time.Millisecond); ; {
		select {
		case st := <-tr.stops: // of one that came to its end on the way
			st.goOn()
		case <-enough:
			return heirs
		}
	}
}

// startTime is field 22 of /proc/PID/stat.
func startTime(t *testing.T, pid int) uint64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := statFields(string(text))
	n, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return n
}
