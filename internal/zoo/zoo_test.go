package zoo_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"kzr/internal/zoo"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const soon = time.Minute

func wantZombies(t *testing.T, p *zoo.Proc, want int) {
	t.Helper()
	if got := p.Zombies(); got != want {
		t.Errorf("%s has %d zombies, want %d", p.Name, got, want)
	}
}

func waitZombies(t *testing.T, p *zoo.Proc, want int) {
	t.Helper()
	zoo.Within(t, soon, fmt.Sprintf("%s has %d zombies", p.Name, want), func() bool {
		return p.Zombies() == want
	})
}

func waitState(t *testing.T, p *zoo.Proc, want byte) {
	t.Helper()
	zoo.Within(t, soon, fmt.Sprintf("%s is in state %c", p.Name, want), func() bool {
		return p.State() == want
	})
}

// never fails if bad becomes true within d: for what must not happen there is
// nothing to wait for.
func never(t *testing.T, d time.Duration, what string, bad func() bool) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if bad() {
			t.Fatal(what)
		}
	}
}

func status(t *testing.T, pid int, field string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("no %s in the status of %d", field, pid)
	return ""
}

func parent(t *testing.T, pid int) int {
	t.Helper()
	ppid, err := strconv.Atoi(status(t, pid, "PPid"))
	if err != nil {
		t.Fatal(err)
	}
	return ppid
}

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestLeak(t *testing.T) {
	z := zoo.Start(t, "leak=60 serve")
	wantZombies(t, z.Proc, 60)
	waitState(t, z.Proc, 'S')
	z.Do("reap=55")
	wantZombies(t, z.Proc, 5)
	z.Do("exit=3")
	z.WaitDead(soon)
	if st := z.Status(); st.ExitStatus() != 3 {
		t.Errorf("status %x, want exit 3", st)
	}
}

func TestLeakWays(t *testing.T) {
	for _, opts := range []string{"", ",plain", ",sig=0", ",sig=10", ",thread", ",rate=200"} {
		t.Run("leak=20"+opts, func(t *testing.T) {
			z := zoo.Start(t, "leak=20%s serve", opts)
			wantZombies(t, z.Proc, 20)
			z.Do("reap=20")
			wantZombies(t, z.Proc, 0)
		})
	}
}

func TestNoZombiesForWhoWantsNone(t *testing.T) {
	for _, how := range []string{"ignore", "nocldwait"} {
		t.Run(how, func(t *testing.T) {
			z := zoo.Start(t, "chld=%s leak=20 serve", how)
			waitZombies(t, z.Proc, 0)
			// A child with another exit signal stays all the same.
			z.Do("leak=5,sig=0")
			wantZombies(t, z.Proc, 5)
		})
	}
	t.Run("too late", func(t *testing.T) {
		z := zoo.Start(t, "leak=20 chld=ignore serve")
		wantZombies(t, z.Proc, 20)
	})
}

func TestSIGCHLD(t *testing.T) {
	for _, tc := range []struct {
		script string
		after  []int // zombies after each SIGCHLD
	}{
		{"leak=20 chld=reap serve", []int{0}},
		{"leak=20 chld=reap,n=1 serve", []int{19, 18}},
		{"leak=20 chld=reap,n=8 serve", []int{12, 4, 0}},
		{"leak=20 chld=count serve", []int{20, 20}},
	} {
		t.Run(tc.script, func(t *testing.T) {
			z := zoo.Start(t, "%s", tc.script)
			wantZombies(t, z.Proc, 20)
			for i, want := range tc.after {
				z.Signal(unix.SIGCHLD)
				zoo.Within(t, soon, "SIGCHLD arrives", func() bool { return z.Count().CHLD == i+1 })
				wantZombies(t, z.Proc, want)
			}
		})
	}
	t.Run("blocked", func(t *testing.T) {
		z := zoo.Start(t, "chld=block leak=3 serve")
		if got := status(t, z.PID, "SigBlk"); got != "0000000000010000" {
			t.Errorf("SigBlk %s", got)
		}
		wantZombies(t, z.Proc, 3)
	})
	t.Run("reaps from the start", func(t *testing.T) {
		z := zoo.Start(t, "chld=reap leak=20 serve")
		waitZombies(t, z.Proc, 0)
	})
}

func TestSIGTERM(t *testing.T) {
	for _, tc := range []struct {
		script string
		dies   bool
		min    time.Duration
	}{
		{"serve", true, 0},
		{"term=exit serve", true, 0},
		{"term=exit,ms=300 serve", true, 300 * time.Millisecond},
		{"term=ignore serve", false, 0},
		{"term=block serve", false, 0},
		{"term=count serve", false, 0},
		{"in=pidns serve", false, 0}, // the init of a pid namespace never sees it
		{"in=pidns term=exit serve", true, 0},
	} {
		t.Run(tc.script, func(t *testing.T) {
			z := zoo.Start(t, "%s", tc.script)
			begun := time.Now()
			z.Signal(unix.SIGTERM)
			if tc.dies {
				z.WaitDead(soon)
				if d := time.Since(begun); d < tc.min {
					t.Errorf("dead after %v, want %v", d, tc.min)
				}
				return
			}
			never(t, 100*time.Millisecond, "it died", func() bool { return !z.Alive() })
			z.Signal(unix.SIGKILL)
			z.WaitDead(soon)
			if st := z.Status(); st.Signal() != syscall.SIGKILL {
				t.Errorf("status %x, want SIGKILL", st)
			}
		})
	}
}

func TestNamespaces(t *testing.T) {
	z := zoo.Start(t, `in=pidns,proc,userns fork=pidns,proc,userns=0 { name=inner leak=5 serve } leak=7 serve`)
	inner := z.Named("inner")
	wantZombies(t, z.Proc, 8-1) // its eighth child lives
	wantZombies(t, inner, 5)
	for p, depth := range map[*zoo.Proc]int{z.Proc: 2, inner: 3} {
		pids := strings.Fields(status(t, p.PID, "NSpid"))
		if len(pids) != depth || pids[0] != strconv.Itoa(p.PID) || pids[depth-1] != "1" {
			t.Errorf("%s: NSpid %v", p.Name, pids)
		}
		if uid := strings.Fields(status(t, p.PID, "Uid"))[0]; uid != "100000" {
			t.Errorf("%s: uid %s", p.Name, uid)
		}
	}
	z.Signal(unix.SIGKILL)
	z.WaitDead(soon)
	inner.WaitDead(soon)
}

func TestOrphansMoveToTheInit(t *testing.T) {
	z := zoo.Start(t, "in=pidns,proc fork { name=middle leak=30 serve } serve")
	wantZombies(t, z.Proc, 0)
	wantZombies(t, z.Named("middle"), 30)
	z.Named("middle").Signal(unix.SIGKILL)
	waitZombies(t, z.Proc, 31)
	// Orphans that live on become its zombies when they die.
	z.Do("fork { fork { sleep=50 exit } exit }")
	waitZombies(t, z.Proc, 33)
}

func TestSubreaper(t *testing.T) {
	z := zoo.Start(t, "fork { name=sub subreaper fork { name=middle leak=10 serve } serve } serve")
	z.Named("middle").Signal(unix.SIGKILL)
	waitZombies(t, z.Named("sub"), 11)
	wantZombies(t, z.Proc, 0)
	// Without it, the keeper takes and reaps them.
	z.Named("sub").Signal(unix.SIGKILL)
	waitZombies(t, z.Proc, 1)
}

// Children made with CLONE_PARENT are somebody else's to reap.
func TestSiblings(t *testing.T) {
	z := zoo.Start(t, "fork { name=boss fork { name=worker uid=65534 serve } serve } serve")
	boss, worker := z.Named("boss"), z.Named("worker")
	worker.Do("leak=20,sibling")
	wantZombies(t, worker, 0)
	wantZombies(t, boss, 20)
	worker.Do("storm=0,rate=500,sibling")
	zoo.Within(t, soon, "more of them", func() bool { return boss.Zombies() > 40 })
	worker.Do("exit")
	worker.WaitDead(soon)
	boss.Do("reap=all")
	wantZombies(t, boss, 0)
}

func TestManyAtOnce(t *testing.T) {
	z := zoo.Start(t, "fork=times=30 { leak=3 serve } serve")
	kids := zoo.Children(z.PID)
	if len(kids) != 30 {
		t.Errorf("%d children, want 30", len(kids))
	}
	for _, kid := range kids {
		if n := zoo.Zombies(kid); n != 3 {
			t.Errorf("%d zombies, want 3", n)
		}
	}
}

func TestRespawn(t *testing.T) {
	z := zoo.Start(t, "in=pidns,proc respawn { name=kid leak=5 serve } serve")
	kid := z.Named("kid")
	wantZombies(t, kid, 5)
	kid.Signal(unix.SIGKILL)
	zoo.Within(t, soon, "another", func() bool { return z.Named("kid").PID != kid.PID })
	wantZombies(t, z.Named("kid"), 5)
	waitZombies(t, z.Proc, 0)
	if c := z.Count(); c.Made != 2 || c.Reaped != 6 {
		t.Errorf("%+v", c)
	}
}

func TestAwaitsOne(t *testing.T) {
	z := zoo.Start(t, "fork { name=parent leak=20 fork { name=kid serve } serve } serve")
	p := z.Named("parent")
	p.Do("await")
	zoo.Within(t, soon, "it sits in wait4", func() bool {
		call, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", p.PID))
		return string(call) == "do_wait"
	})
	never(t, 100*time.Millisecond, "it reaps others", func() bool { return p.Zombies() != 20 })
	z.Named("kid").Do("exit")
	p.Do("reap=20")
	wantZombies(t, p, 0)
}

func TestReapedStatus(t *testing.T) {
	z := zoo.Start(t, "fork { exit=7 } fork { exit=7 } serve")
	if got := z.Do("reap=2,status=7"); got != "2" {
		t.Errorf("reaped %s", got)
	}
}

func TestOneForEachSIGCHLDThatIsSent(t *testing.T) {
	z := zoo.Start(t, "leak=5 chld=reap,n=1,sent,refill=2 serve")
	for i, want := range []int{4, 4, 3, 3} {
		z.Signal(unix.SIGCHLD)
		zoo.Within(t, soon, "SIGCHLD arrives", func() bool { return z.Count().CHLD == i+1 })
		waitZombies(t, z.Proc, want)
	}
	z.Do("leak=1") // no signal that a child sends changes that
	wantZombies(t, z.Proc, 4)
}

func TestGroups(t *testing.T) {
	z := zoo.Start(t, "groups=65536 leak=2 serve")
	for _, pid := range append(zoo.Children(z.PID), z.PID) {
		if n := len(strings.Fields(status(t, pid, "Groups"))); n != 65536 {
			t.Errorf("pid %d is in %d groups", pid, n)
		}
	}
}

func TestFlicker(t *testing.T) {
	z := zoo.Start(t, "fork { name=kid leak=4 serve } serve")
	kid := z.Named("kid")
	zombies := zoo.Children(kid.PID)
	kid.Do("flicker=3,us=500")
	waitState(t, kid, 'Z')
	seen := map[string]bool{}
	zoo.Within(t, soon, "threads come and go", func() bool {
		threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", kid.PID))
		for _, thread := range threads {
			seen[thread.Name()] = true
		}
		return len(seen) > 30
	})
	if !kid.Alive() {
		t.Error("it is dead altogether")
	}
	for _, pid := range zombies {
		if parent(t, pid) != kid.PID || zoo.State(pid) != 'Z' {
			t.Errorf("pid %d is no zombie of its", pid)
		}
	}
	kid.Signal(unix.SIGKILL)
	kid.WaitDead(soon)
}

func TestSession(t *testing.T) {
	z := zoo.Start(t, "fork { name=own setsid setsid serve } fork { name=same serve } serve")
	for name, want := range map[string]int{"own": z.Named("own").PID, "same": z.PID} {
		if got, err := unix.Getsid(z.Named(name).PID); got != want || err != nil {
			t.Errorf("%s is in session %d, not %d: %v", name, got, want, err)
		}
	}
}

func TestDeadLeader(t *testing.T) {
	z := zoo.Start(t, "fork { name=kid deadleader serve } serve")
	kid := z.Named("kid")
	waitState(t, kid, 'Z')
	wantZombies(t, z.Proc, 1)
	if n := number(t, status(t, kid.PID, "Threads")); n != 2 {
		t.Errorf("%d threads, want 2", n)
	}
	if !kid.Alive() {
		t.Error("it is dead altogether")
	}
	kid.Do("leak=4") // the living thread is a parent
	wantZombies(t, kid, 4)
	if got := z.Do("reap=now"); got != "0" {
		t.Errorf("its parent reaped %s", got)
	}
	kid.Do("exit")
	kid.WaitDead(soon)
	z.Do("reap=1")
}

func TestHeldByTracer(t *testing.T) {
	z := zoo.Start(t, "leak=3 hold=10 { name=tracer serve } serve")
	wantZombies(t, z.Proc, 13)
	traced := 0
	for _, kid := range zoo.Children(z.PID) {
		if status(t, kid, "TracerPid") == strconv.Itoa(z.Named("tracer").PID) {
			traced++
		}
	}
	if traced != 10 {
		t.Errorf("%d children have the tracer, want 10", traced)
	}
	if got := z.Do("reap=now"); got != "3" {
		t.Errorf("the parent reaped %s, want 3", got)
	}
	z.Named("tracer").Signal(unix.SIGKILL)
	z.Named("tracer").WaitDead(soon)
	z.Do("reap=11")
}

func TestTraced(t *testing.T) {
	z := zoo.Start(t, "fork { name=kid leak=3 serve } fork { name=tracer serve } serve")
	kid, tracer := z.Named("kid"), z.Named("tracer")
	tracer.Do("trace=%d", kid.PID)
	if got := status(t, kid.PID, "TracerPid"); got != strconv.Itoa(tracer.PID) {
		t.Errorf("TracerPid %s, want %d", got, tracer.PID)
	}
	wantZombies(t, kid, 3)
	kid.Signal(unix.SIGCHLD) // stops it until the tracer says otherwise
	waitState(t, kid, 't')
	tracer.Do("untrace=%d", kid.PID)
	if got := status(t, kid.PID, "TracerPid"); got != "0" {
		t.Errorf("TracerPid %s after letting go", got)
	}
	tracer.Do("trace=%d,stop", kid.PID)
	waitState(t, kid, 't')
	tracer.Do("exit")
	tracer.WaitDead(soon)
	kid.Do("leak=1") // it goes on
	wantZombies(t, kid, 4)
}

// Traced by its own child, which lets it run.
func TestTracedByItsChild(t *testing.T) {
	z := zoo.Start(t, "fork { name=kid fork { name=tracer serve } serve } serve")
	kid, tracer := z.Named("kid"), z.Named("tracer")
	tracer.Do("trace=parent,pass")
	if got := status(t, kid.PID, "TracerPid"); got != strconv.Itoa(tracer.PID) {
		t.Errorf("TracerPid %s, want %d", got, tracer.PID)
	}
	kid.Do("leak=30")
	wantZombies(t, kid, 30)
	waitState(t, kid, 'S')
}

func TestTracedNowAndThen(t *testing.T) {
	z := zoo.Start(t, "fork { name=kid serve } fork { name=tracer serve } serve")
	kid, tracer := z.Named("kid"), z.Named("tracer")
	kid.Do("stop")
	waitState(t, kid, 'T')
	tracer.Do("flip=%d,every=50", kid.PID)
	flips, last := 0, ""
	zoo.Within(t, soon, "ten changes", func() bool {
		now := status(t, kid.PID, "TracerPid")
		if now != last {
			flips, last = flips+1, now
		}
		return flips > 10
	})
	tracer.Do("quiet")
}

func TestStopped(t *testing.T) {
	z := zoo.Start(t, "leak=5 serve")
	z.Do("stop")
	waitState(t, z.Proc, 'T')
	z.Signal(unix.SIGCONT)
	z.Do("reap=5")
}

func TestFrozen(t *testing.T) {
	cg := zoo.NewCgroup(t, "freezer", "a b")
	z := zoo.Start(t, "cgroup=%s leak=5 serve", zoo.Quote(cg.Dir))
	cg.Freeze()
	z.Signal(unix.SIGCHLD)
	if !z.Alive() {
		t.Error("dead")
	}
	cg.Thaw()
	z.Do("reap=5")
	cg.Freeze() // and the clean-up gets rid of it
}

func TestUninterruptible(t *testing.T) {
	z := zoo.Start(t, "leak=5 serve")
	z.Do("vfork")
	waitState(t, z.Proc, 'D')
	for _, kid := range zoo.Children(z.PID) {
		if zoo.State(kid) != 'Z' {
			_ = unix.Kill(kid, unix.SIGKILL)
		}
	}
	waitState(t, z.Proc, 'S')
	z.Do("reap=6")
}

// A read that never comes back holds up whoever uses the reader's memory last, until
// the file system goes.
func TestHangingRead(t *testing.T) {
	dir := t.TempDir()
	z := zoo.Start(t, "in=mntns fork { name=fs fuse=%[1]s serve } fork { name=reader aio=%[1]s/f serve } serve", dir)
	reader := z.Named("reader")
	reader.Signal(unix.SIGKILL)
	never(t, 300*time.Millisecond, "the reader is gone", func() bool { return !reader.Alive() })
	z.Named("fs").Do("exit")
	reader.WaitDead(soon)
	if _, err := os.Stat(filepath.Join(dir, "f")); !os.IsNotExist(err) {
		t.Errorf("the mount shows outside: %v", err)
	}
}

func TestWatches(t *testing.T) {
	z := zoo.Start(t, "uid=54397 serve")
	if got := z.Do("watches=40000"); got != "40000" {
		t.Errorf("%s watches", got)
	}
	pairs, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", z.PID))
	if err != nil {
		t.Fatal(err)
	}
	watches := 0
	for _, info := range pairs {
		text, _ := os.ReadFile(info)
		watches += strings.Count(string(text), "tfd:")
	}
	if watches != 40000 {
		t.Errorf("the kernel counts %d", watches)
	}
}

func TestDyingButBlocked(t *testing.T) {
	z := zoo.Start(t, "fork=pidns { name=init fork { name=kid serve } leak=5 serve } fork { name=tracer serve } serve")
	boss, kid, tracer := z.Named("init"), z.Named("kid"), z.Named("tracer")
	tracer.Do("trace=%d", kid.PID)
	boss.Signal(unix.SIGKILL)
	kid.WaitDead(soon)
	waitState(t, kid, 'Z')
	never(t, 100*time.Millisecond, "the init is dead", func() bool { return !boss.Alive() })
	boss.Signal(unix.SIGKILL)
	never(t, 50*time.Millisecond, "the init is dead", func() bool { return !boss.Alive() })
	tracer.Do("untrace=%d", kid.PID)
	boss.WaitDead(soon)
}

func TestExec(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a b,{")
	zoo.Install(t, path)
	long := strings.Repeat("x", 8192)
	z := zoo.Start(t, "leak=5 exec=%s,%s,%s comm=%s serve",
		zoo.Quote(path), zoo.Quote(") Z 1 (\x1b[2J\n"), long, zoo.Quote("a\n\x1b[1m) \xff"))
	wantZombies(t, z.Proc, 5)
	proc := fmt.Sprintf("/proc/%d/", z.PID)
	if exe, err := os.Readlink(proc + "exe"); exe != path {
		t.Errorf("exe %q, %v", exe, err)
	}
	if got, err := os.ReadFile(proc + "cmdline"); string(got) != ") Z 1 (\x1b[2J\n\x00"+long+"\x00" {
		t.Errorf("cmdline %.30q (%d bytes), %v", got, len(got), err)
	}
	if got, err := os.ReadFile(proc + "comm"); string(got) != "a\n\x1b[1m) \xff\n" {
		t.Errorf("comm %q, %v", got, err)
	}
	z.Do("unlink=%s", zoo.Quote(path))
	if exe, err := os.Readlink(proc + "exe"); exe != path+" (deleted)" {
		t.Errorf("exe %q, %v", exe, err)
	}
	z.Do("nocmdline")
	if got, err := os.ReadFile(proc + "cmdline"); len(got) != 0 || err != nil {
		t.Errorf("cmdline %q, %v", got, err)
	}
	z.Do("reap=5")
}

func TestExecByAnotherThread(t *testing.T) {
	path := filepath.Join(t.TempDir(), "other")
	zoo.Install(t, path)
	z := zoo.Start(t, "fork { name=kid threads=3 leak=5 serve } serve")
	kid := z.Named("kid")
	started := fields(t, kid.PID)[21]
	kid.Do("threadexec=%s", zoo.Quote(path))
	zoo.Within(t, soon, "the exec", func() bool {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", kid.PID))
		return exe == path
	})
	if got := fields(t, kid.PID)[21]; got != started {
		t.Errorf("start time %s, was %s", got, started)
	}
	wantZombies(t, kid, 5)
	kid.Do("reap=5")
	wantZombies(t, z.Proc, 0)
}

// fields are those of /proc/PID/stat; comm has no spaces here.
func fields(t *testing.T, pid int) []string {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(stat))
}

func TestOtherUserAndRoot(t *testing.T) {
	dir := t.TempDir()
	z := zoo.Start(t, "copyself=%[1]s/inside chroot=%[1]s exec=/inside uid=1234 leak=5 serve", zoo.Quote(dir))
	wantZombies(t, z.Proc, 5)
	if got := strings.Fields(status(t, z.PID, "Uid")); got[0] != "1234" || got[1] != "1234" {
		t.Errorf("Uid %v", got)
	}
	if root, err := os.Readlink(fmt.Sprintf("/proc/%d/root", z.PID)); root != dir {
		t.Errorf("root %s, %v", root, err)
	}
}

func TestOtherMountNamespace(t *testing.T) {
	z := zoo.Start(t, "in=pidns,proc tmpfs=/opt mkdir=/opt/bin copyself=/opt/bin/kubelet exec=/opt/bin/kubelet leak=5 serve")
	wantZombies(t, z.Proc, 5)
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", z.PID)); exe != "/opt/bin/kubelet" {
		t.Errorf("exe %s, %v", exe, err)
	}
	if _, err := os.Stat("/opt/bin/kubelet"); err == nil {
		t.Error("it shows outside")
	}
}

func TestPidsMax(t *testing.T) {
	cg := zoo.NewCgroup(t, "pids", "few")
	cg.SetPidsMax(40)
	z := zoo.Start(t, "cgroup=%s leak=1000,full serve", zoo.Quote(cg.Dir))
	wantZombies(t, z.Proc, 39)
	if c := z.Count(); c.Failed != 1 || c.Made != 39 {
		t.Errorf("%+v", c)
	}
}

func TestStorm(t *testing.T) {
	t.Run("to a count", func(t *testing.T) {
		z := zoo.Start(t, "storm=3000 serve")
		waitZombies(t, z.Proc, 3000)
	})
	t.Run("95 of 100 reaped", func(t *testing.T) {
		z := zoo.Start(t, "storm=1000,rate=2000,reap=95 serve")
		zoo.Within(t, soon, "all made", func() bool { return z.Count().Made == 1000 })
		waitZombies(t, z.Proc, 50)
	})
	t.Run("for a time", func(t *testing.T) {
		begun := time.Now()
		z := zoo.Start(t, "storm=0,rate=500,for=400 serve")
		time.Sleep(time.Until(begun.Add(time.Second)))
		n := z.Count().Made
		if n == 0 || n > 210 {
			t.Errorf("%d children in 0.4 s at 500 a second", n)
		}
		never(t, 100*time.Millisecond, "it goes on", func() bool { return z.Count().Made != n })
	})
}

func TestFresh(t *testing.T) {
	z := zoo.Start(t, "fresh=20,age=100 serve")
	zoo.Within(t, soon, "half of them", func() bool { return z.Zombies() >= 10 })
	old := make(map[int]bool)
	for _, pid := range zoo.Children(z.PID) {
		old[pid] = true
	}
	zoo.Within(t, soon, "100 reaped", func() bool { return z.Count().Reaped > 100 })
	if n := z.Zombies(); n < 1 || n > 20 {
		t.Errorf("%d zombies", n)
	}
	for _, pid := range zoo.Children(z.PID) {
		if old[pid] {
			t.Errorf("%d was never reaped", pid)
		}
	}
}

func TestBurst(t *testing.T) {
	z := zoo.Start(t, "burst=200,every=600,hold=300 serve")
	waitZombies(t, z.Proc, 200)
	zoo.Within(t, soon, "all reaped", func() bool { return z.Count().Reaped == 200 })
	waitZombies(t, z.Proc, 200) // and again
	z.Do("quiet")
}

func TestFlash(t *testing.T) {
	z := zoo.Start(t, "flash=500,kids=2 serve")
	zoo.Within(t, soon, "300 parents", func() bool { return z.Count().Reaped >= 300 })
	z.Do("quiet")
	wantZombies(t, z.Proc, 0)
	zoo.Within(t, soon, "the keeper reaps", func() bool { return zoo.Zombies(parent(t, z.PID)) == 0 })
}

func TestPidOfChoice(t *testing.T) {
	z := zoo.Start(t, "serve")
	gone := number(t, z.Do("fork { exit }"))
	z.Do("reap=1")
	if got := z.Do("fork=tid=%d { name=again serve }", gone); got != strconv.Itoa(gone) {
		t.Errorf("pid %s, want %d", got, gone)
	}
	if p := z.Named("again"); p.PID != gone || !p.Alive() {
		t.Errorf("pid %d, alive %t", p.PID, p.Alive())
	}
	// A little ahead of the last pid, so that it soon comes.
	next := gone + 500
	if got := z.Do("churn=%d { name=churned serve }", next); got != strconv.Itoa(next) {
		t.Errorf("pid %s, want %d", got, next)
	}
	if p := z.Named("churned"); p.PID != next || !p.Alive() {
		t.Errorf("pid %d, alive %t", p.PID, p.Alive())
	}
	wantZombies(t, z.Proc, 0)
}

func TestBench(t *testing.T) {
	z := zoo.Start(t, "serve")
	for _, what := range []string{"vfork", "exec", "thread"} {
		if ns := number(t, z.Do("bench=%s,50", what)); ns < 1000 || ns > 1e9 {
			t.Errorf("%s: %d ns", what, ns)
		}
	}
	wantZombies(t, z.Proc, 0)
}

// The keeper gets rid of everything even if the test program dies without a word.
func TestNothingIsLeft(t *testing.T) {
	if os.Getenv("ZOO_TEST_DIES") != "" {
		z := zoo.Start(t, `fork=pidns { name=a leak=5 fork { term=ignore serve } serve }
			fork { name=b subreaper fork { fork { serve } ready stop } serve } ready
			hold=5 { name=tracer serve } serve`)
		fmt.Println(z.PID, z.Named("a").PID, z.Named("b").PID, z.Named("tracer").PID)
		os.Exit(0)
	}
	t.Setenv("ZOO_TEST_DIES", "1")
	out, err := exec.Command(os.Args[0], "-test.run=^TestNothingIsLeft$").Output()
	if err != nil {
		t.Fatal(err)
	}
	pids := strings.Fields(string(out))
	if len(pids) != 4 {
		t.Fatalf("output %q", out)
	}
	for _, pid := range pids {
		zoo.Within(t, soon, pid+" is gone", func() bool { return zoo.State(number(t, pid)) == 0 })
	}
}

// By hand, without a harness: steps on standard input, answers on output.
func TestByHand(t *testing.T) {
	cmd := exec.Command(zoo.Build(t), "leak=3", "serve")
	cmd.Stdin = strings.NewReader("reap=2\ncount\nexit=7\n")
	var out bytes.Buffer
	cmd.Stdout = &out
	err := cmd.Run()
	if cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("%v, want exit status 7", err)
	}
	if want := "ok 2\nok made=3 failed=0 reaped=2 chld=0 term=0\nok \n"; out.String() != want {
		t.Errorf("output %q, want %q", out.String(), want)
	}
}
