package procscan_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/procscan"
	"kzr/internal/task"
	"kzr/internal/zoo"
)

// hostile starts testdata/hostile.c and returns when it is as it should be.
func hostile(t *testing.T, change func(*exec.Cmd), args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(zoo.Compile(t, "hostile", "testdata/hostile.c", "-pthread", "-static"), args...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(cmd)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // that says that it was killed
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("hostile %q says %q, %v", args, line, err)
	}
	return cmd
}

func facts(t *testing.T, s *procscan.Scanner, pid int) task.Facts {
	t.Helper()
	_, f, err := s.Facts(t.Context(), pid)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// cpu is the CPU time of this process.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		t.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// Zombies in 65,536 groups make their own parents wait for an answer, and nobody else:
// a snapshot takes CPU time for a bounded number of them.
func TestSnapshotOfACrowdWithGroups(t *testing.T) {
	s := open(t)
	neighbour := zoo.Start(t, "leak=60 serve")
	const parents, each = 20, 51
	crowd := hostile(t, nil, "crowd", strconv.Itoa(parents), strconv.Itoa(each), "65536")
	pids := zoo.Children(crowd.Process.Pid)
	if len(pids) != parents {
		t.Fatalf("%d parents", len(pids))
	}
	known := func(snap *task.Snapshot) (n int) {
		for _, pid := range pids {
			c := of(snap, pid)
			if c.Total() != each || len(c.Reapable)+c.Unknown != each {
				t.Errorf("%+v", c)
			}
			n += len(c.Reapable)
		}
		return n
	}
	both(t, s, neighbour.PID)
	before, asked := cpu(t), 0
	const sweeps = 5
	for range sweeps {
		snap := snapshot(t, s)
		if got := of(snap, neighbour.PID); len(got.Reapable) != 60 {
			t.Errorf("the neighbour has %+v", got)
		}
		n := known(snap)
		if n <= asked || n == parents*each {
			t.Errorf("%d are known, before %d of %d", n, asked, parents*each)
		}
		asked = n
	}
	// What is allowed, in the walk and for the tenant, one more for each worker, and
	// an ordinary snapshot. All of them would take 20 s.
	if took := (cpu(t) - before) / sweeps; took > 600*time.Millisecond {
		t.Errorf("a snapshot took %v", took)
	}
	// A look at one of them goes on with it.
	id := inspect(t, s, pids[parents-1]).ID
	last := 0
	for range 3 {
		one, err := s.SnapshotOf(t.Context(), id)
		if err != nil || one.Parents[id] == nil || one.Parents[id].Total() != each {
			t.Fatalf("%v, %v", one, err)
		}
		n := len(one.Parents[id].Reapable)
		if n <= last && n < each {
			t.Errorf("%d are known, before %d", n, last)
		}
		last = n
	}
}

// A process whose status file is slow is looked at all the same, and not again and
// again: the first answer that comes is kept.
func TestFactsOfASlowProcess(t *testing.T) {
	s := open(t)
	slow := hostile(t, nil, "aio", "/proc/self/exe", "65536").Process.Pid
	known, unknown := 0, 0
	for range 100 {
		began := time.Now()
		f := facts(t, s, slow)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("a look took %v", took)
		}
		if f.State != 'S' && f.State != 'R' || f.UID != 0 || f.Threads != 1 || f.Tracer != (task.ID{}) {
			t.Errorf("%+v", f)
		}
		if f.TracerUnknown {
			unknown++
		} else {
			known++
		}
		if known > 1 && unknown > 1 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	// Where the kernel writes half a megabyte in less time than that, none is slow.
	fastest := time.Hour
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for range 5 {
		began := task.ThreadTime()
		if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", slow)); err != nil {
			t.Fatal(err)
		}
		fastest = min(fastest, task.ThreadTime()-began)
	}
	t.Logf("its status takes %v", fastest)
	if known < 2 || fastest > 15*time.Millisecond {
		t.Errorf("its tracer was known %d times, and not known %d times", known, unknown)
	}
}

// fuse serves a file system with one file, "file", that can be opened and never read.
type fuse struct {
	dir string
	fd  int
	up  sync.WaitGroup
}

func mountFUSE(t *testing.T) *fuse {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		t.Skip("this kernel has no FUSE: nobody can have a file system of his own")
	}
	if err != nil {
		t.Fatal(err)
	}
	f := &fuse{dir: t.TempDir(), fd: fd}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)
	if err := unix.Mount("hostile", f.dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Fatalf("mounting: %v", err)
	}
	f.up.Go(f.serve)
	t.Cleanup(func() {
		f.stop()
		f.up.Wait()
		unix.Close(fd)
	})
	return f
}

// stop answers every read with an error.
func (f *fuse) stop() {
	_ = unix.Unmount(f.dir, unix.MNT_FORCE) // the second time it is gone
	_ = unix.Unmount(f.dir, unix.MNT_DETACH)
}

// serve answers everything but reads: linux/fuse.h.
func (f *fuse) serve() {
	const (
		lookup, getattr, open, read, release, initialize = 1, 3, 14, 15, 18, 26
		flush, opendir, releasedir, forget, interrupt    = 25, 27, 29, 2, 36
		enosys, enoent                                   = 38, 2
	)
	le := binary.LittleEndian
	attr := func(ino uint64) []byte {
		b := make([]byte, 88)
		le.PutUint64(b[0:], ino)
		le.PutUint64(b[8:], 1<<20)
		mode := uint32(unix.S_IFREG | 0o444)
		if ino == 1 {
			mode = unix.S_IFDIR | 0o555
		}
		le.PutUint32(b[60:], mode)
		le.PutUint32(b[64:], 1)
		le.PutUint32(b[80:], 4096)
		return b
	}
	buf := make([]byte, 1<<17)
	for {
		n, err := unix.Read(f.fd, buf)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil || n < 40 {
			return // unmounted
		}
		unique, node, body := le.Uint64(buf[8:]), le.Uint64(buf[16:]), buf[40:n]
		var errno int32
		var out []byte
		switch le.Uint32(buf[4:]) {
		case read, forget, interrupt:
			continue
		case initialize:
			out = make([]byte, 64)
			le.PutUint32(out[0:], 7)
			le.PutUint32(out[4:], 31)
			le.PutUint32(out[8:], le.Uint32(body[8:]))
			le.PutUint32(out[12:], le.Uint32(body[12:])&(1|1<<15)) // asynchronous reads
			le.PutUint16(out[16:], 100)
			le.PutUint16(out[18:], 90)
			le.PutUint32(out[20:], 1<<16)
			le.PutUint32(out[24:], 1)
		case lookup:
			if strings.TrimRight(string(body), "\x00") != "file" {
				errno = -enoent
				break
			}
			out = make([]byte, 40, 128)
			le.PutUint64(out[0:], 2)
			le.PutUint64(out[16:], 1000)
			le.PutUint64(out[24:], 1000)
			out = append(out, attr(2)...)
		case getattr:
			out = make([]byte, 16, 104)
			le.PutUint64(out[0:], 1000)
			out = append(out, attr(node)...)
		case open, opendir:
			out = make([]byte, 16)
		case flush, release, releasedir:
		default:
			errno = -enosys
		}
		reply := make([]byte, 16, 16+len(out))
		le.PutUint32(reply[0:], uint32(16+len(out)))
		le.PutUint32(reply[4:], uint32(errno))
		le.PutUint64(reply[8:], unique)
		if _, err := unix.Write(f.fd, append(reply, out...)); err != nil && !errors.Is(err, unix.ENOENT) {
			return
		}
	}
}

// A process that dies while it is read leaves its memory to the reader, and with it an
// input that never ends: that costs a thread, and no look anything else.
func TestAProcessHangsItsReader(t *testing.T) {
	s := open(t)
	fs := mountFUSE(t)
	defer fs.stop() // or the victims never end
	neighbour := zoo.Start(t, "leak=60 serve")
	both(t, s, neighbour.PID)
	for try := 0; s.Lost() == 0; try++ {
		if try == 50 {
			t.Fatal("no read has hung: nothing was tested")
		}
		victim := hostile(t, nil, "aio", filepath.Join(fs.dir, "file"), "65536").Process
		var looks sync.WaitGroup
		looks.Go(func() {
			for began := time.Now(); ; began = time.Now() {
				_, f, err := s.Facts(t.Context(), victim.Pid)
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("a look took %v", took)
				}
				// One that was not read as it died hangs in its own end.
				if errors.Is(err, procscan.ErrGone) || f.State == 'Z' || f.Exiting {
					return
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
		time.Sleep(time.Duration(5+try%10) * time.Millisecond)
		if err := victim.Signal(unix.SIGKILL); err != nil {
			t.Error(err)
		}
		looks.Wait()
	}
	if n := s.Lost(); n != 1 {
		t.Errorf("%d threads are lost, want 1", n)
	}
	for range 3 {
		if got := both(t, s, neighbour.PID); len(got.Reapable) != 60 {
			t.Errorf("%+v", got)
		}
		if f := facts(t, s, neighbour.PID); f.State != 'S' {
			t.Errorf("%+v", f)
		}
	}
	fs.stop()
	zoo.Within(t, soon, "the thread is back", func() bool { return s.Lost() == 0 })
}

// A dead leader whose threads come and go is alive.
func TestFactsOfThreadsThatComeAndGo(t *testing.T) {
	s := open(t)
	for _, us := range []string{"200", "5000"} {
		pid := hostile(t, nil, "churn", "8", us, "60").Process.Pid
		zoo.Within(t, soon, "the leader is dead", func() bool { return zoo.State(pid) == 'Z' })
		for range 50 {
			p := inspect(t, s, pid)
			if p.Exiting || !slices.Contains([]byte("RSD"), p.State) {
				t.Errorf("threads of %s µs: %+v", us, p.Facts)
			}
		}
		if got := both(t, s, pid); len(got.Reapable) != 60 {
			t.Errorf("%+v", got)
		}
	}
}

func TestForeign(t *testing.T) {
	s := open(t)
	pid := hostile(t, nil, "foreign", "4242", "60").Process.Pid
	zoo.Within(t, soon, "all of them are dead", func() bool { return zoo.Zombies(pid) == 60 })
	got := both(t, s, pid)
	if len(got.Reapable) != 60 {
		t.Fatalf("%d zombies", len(got.Reapable))
	}
	for _, z := range got.Reapable {
		if !z.Has(task.Foreign) {
			t.Fatalf("%+v is not foreign", z)
		}
	}
	// A child of its own that gave its privilege away is not.
	z := zoo.Start(t, "leak=5 fork { uid=4242 } serve")
	zoo.Within(t, soon, "all of them are dead", func() bool { return zoo.Zombies(z.PID) == 6 })
	for _, child := range both(t, s, z.PID).Reapable {
		if child.Has(task.Foreign) {
			t.Errorf("%+v is foreign", child)
		}
	}
	// Nor is what the init of a namespace holds.
	inner := hostile(t, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	}, "foreign", "4242", "3")
	zoo.Within(t, soon, "all of them are dead", func() bool { return zoo.Zombies(inner.Process.Pid) == 3 })
	for _, child := range both(t, s, inner.Process.Pid).Reapable {
		if child.Has(task.Foreign) {
			t.Errorf("%+v of an init is foreign", child)
		}
	}
}

// The tracer has the zombies that it holds.
func TestHeld(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "leak=3 hold=10 { name=tracer serve } serve")
	tracer := z.Named("tracer")
	id := both(t, s, z.PID).Parent
	holder := inspect(t, s, tracer.PID).ID
	var snap *task.Snapshot
	zoo.Within(t, soon, "the tracer is old enough", func() bool {
		snap = snapshot(t, s)
		return snap.Parents[holder] != nil
	})
	one, err := s.SnapshotOf(t.Context(), holder)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*task.Children{snap.Parents[holder], one.Parents[holder]} {
		if c == nil || len(c.Held) != 10 || c.Total() != 0 {
			t.Fatalf("%+v", c)
		}
		for _, held := range c.Held {
			if held.Of != id || !held.Has(task.Held) || zoo.State(held.PID()) != 'Z' {
				t.Errorf("%+v", held)
			}
		}
	}
	if c := snap.Parents[id]; c.Tracer != holder {
		t.Errorf("tracer %v, want %v", c.Tracer, holder)
	}
}

func TestWaits(t *testing.T) {
	s := open(t)
	if _, err := os.ReadFile("/proc/self/syscall"); errors.Is(err, os.ErrNotExist) {
		t.Skip("this kernel does not tell what a thread waits in (CONFIG_HAVE_ARCH_TRACEHOOK)")
	}
	for _, inner := range []bool{false, true} {
		for how, want := range map[string]bool{"pid": true, "pidfd": true, "tracee": true, "many": true, "any": false, "both": false} {
			t.Run(fmt.Sprintf("%s, in a namespace: %v", how, inner), func(t *testing.T) {
				pid := hostile(t, func(cmd *exec.Cmd) {
					if inner {
						cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
					}
				}, "wait", how).Process.Pid
				if !want {
					// Until it does what it is to do, it may wait for nothing at all.
					time.Sleep(50 * time.Millisecond)
					if f := facts(t, s, pid); f.Waits != (task.ID{}) {
						t.Errorf("waits for %v, want none", f.Waits)
					}
					return
				}
				var child int
				for _, c := range zoo.Children(pid) {
					if zoo.State(c) != 'Z' {
						child = c
					}
				}
				if how == "many" && inner { // what the kernel lists first is not all, and a slow machine is late
					zoo.Within(t, soon, "it waits", func() bool { f := facts(t, s, pid); return f.WaitsUnnamed || f.WaitsUnknown })
					return
				}
				zoo.Within(t, soon, "it waits", func() bool { return facts(t, s, pid).Waits.PID == child })
				if f := facts(t, s, pid); f.Waits != inspect(t, s, child).ID {
					t.Errorf("waits for %v", f.Waits)
				}
			})
		}
	}
}

// What identifies a cgroup is what the directory says.
func TestFactsCgroups(t *testing.T) {
	s := open(t)
	outer := zoo.NewCgroup(t, "pids", "outer")
	inner := outer.New("inner")
	outer.SetPidsMax(500)
	inner.SetPidsMax(100)
	z := zoo.Start(t, "cgroup=%s leak=29 serve", zoo.Quote(inner.Dir))
	f := facts(t, s, z.PID)
	inode := func(c *zoo.Cgroup) uint64 {
		var st unix.Stat_t
		if err := unix.Stat(c.Dir, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	want := []task.PidsLimit{{ID: inode(inner), Current: 30, Limit: 100}, {ID: inode(outer), Current: 30, Limit: 500}}
	if len(f.Pids) < 2 || !slices.Equal(f.Pids[:2], want) || f.Cgroup.Pids != inode(inner) {
		t.Errorf("%+v of %+v, want %+v", f.Pids, f.Cgroup, want)
	}
	other := facts(t, s, zoo.Start(t, "cgroup=%s serve", zoo.Quote(outer.New("beside").Dir)).PID)
	if other.Cgroup.Set == f.Cgroup.Set || other.Cgroup.Pids == f.Cgroup.Pids {
		t.Errorf("%+v and %+v", other.Cgroup, f.Cgroup)
	}
	same := facts(t, s, zoo.Start(t, "cgroup=%s serve", zoo.Quote(inner.Dir)).PID)
	if same.Cgroup != f.Cgroup {
		t.Errorf("%+v and %+v", same.Cgroup, f.Cgroup)
	}
}

func TestZombieCgroup(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "leak=1 serve")
	c := both(t, s, z.PID)
	id := task.ID{PID: c.Reapable[0].PID(), Start: c.Reapable[0].Start()}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", id.PID))
	if err != nil {
		t.Fatal(err)
	}
	_, want, _ := strings.Cut("\n"+string(text), "\n0::")
	want, _, _ = strings.Cut(want, "\n")
	if got := s.ZombieCgroup(id); got != want || got == "" {
		t.Errorf("%q, want %q", got, want)
	}
	if got := s.ZombieCgroup(c.Parent); got != "" {
		t.Errorf("its parent is dead in %q", got)
	}
}

func TestWchan(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "serve")
	got := s.Wchan(inspect(t, s, z.PID).ID)
	if got == "" && !zoo.KernelAtLeast(t, 5, 16) {
		t.Skip("before Linux 5.16 the kernel may not know where a process sleeps")
	}
	if !strings.Contains(got, "poll") {
		t.Errorf("%q, want something of poll", got)
	}
}

// In a pid namespace with a limit of its own the tasks are those of the namespace.
func TestNodeInANamespaceWithItsOwnLimit(t *testing.T) {
	if !zoo.KernelAtLeast(t, 6, 14) {
		t.Skip("before Linux 6.14 pid_max is the machine's")
	}
	before, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		t.Fatal(err)
	}
	zoo.Start(t, "leak=1000 serve") // that fills nothing of the machine's
	v := look(t, viewOf{Mount: public(t), PIDMax: 400}, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	})
	if after, err := os.ReadFile("/proc/sys/kernel/pid_max"); err != nil || string(after) != string(before) {
		_ = os.WriteFile("/proc/sys/kernel/pid_max", before, 0o644)
		t.Fatalf("pid_max of the machine is %s, was %s", after, before)
	}
	if v.NodeError != "" || v.Node.Limit != 100 || v.Node.Tasks < 10 || v.Node.Tasks > 100 {
		t.Errorf("%+v, %s", v.Node, v.NodeError)
	}
}
