package probe

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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

// status is /proc/PID/status, by key.
func status(t *testing.T, pid int) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		all[key] = strings.Fields(value)
	}
	return all
}

func hex(t *testing.T, s string) uint64 {
	t.Helper()
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func inode(t *testing.T, format string, args ...any) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf(format, args...), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func factsOf(t *testing.T, p *Probe, pid int) task.Facts {
	t.Helper()
	id, f, err := p.Facts(context.Background(), pid)
	if err != nil {
		t.Fatal(err)
	}
	if want := identity(t, pid); id != want {
		t.Fatalf("the facts are of %v, want %v", id, want)
	}
	return f
}

// Everything that /proc says as well, it says the same.
func TestFactsAgreeWithProc(t *testing.T) {
	p, _ := open(t, 50)
	z := zoo.Start(t, `subreaper
		fork { name=plain leak=1 serve }
		fork { name=user uid=33 leak=1 serve }
		fork { name=threads threads=7 leak=1 serve }
		fork { name=signals chld=count term=ignore leak=1 serve }
		fork { name=blocks chld=block term=block leak=1 serve }
		fork { name=hostile comm=a\x29\x20Z\x201\x0a leak=1 serve }
		fork { name=deadleader leak=1 deadleader serve }
		fork { name=waited leak=5 reap=all leak=1 serve }
		fork=pidns,mntns { name=init leak=1 fork { name=inner leak=1 serve } serve }
		fork=pidns { name=outer fork=pidns { name=nested leak=1 serve } serve }
		fork=userns { name=userns leak=1 serve }
		fork { name=traced leak=1 serve }
		fork { name=tracer serve }
		fork { name=held threads=3 leak=1 serve }
		fork { name=stopped leak=1 serve }
		fork { name=vfork leak=1 serve }
		serve`)
	z.Named("tracer").Do("trace=%d", z.Named("traced").PID)
	// By a thread other than its first.
	for _, thread := range tids(t, z.Named("held").PID)[1:2] {
		z.Named("tracer").Do("trace=%d", thread)
	}
	z.Named("stopped").Signal(unix.SIGSTOP)
	z.Named("vfork").Do("vfork")
	zoo.Within(t, soon, "one stopped, and one in vfork", func() bool {
		return zoo.State(z.Named("stopped").PID) == 'T' && zoo.State(z.Named("vfork").PID) == 'D'
	})
	s := snapshot(t, p)
	for name := range strings.FieldsSeq("main plain user threads signals blocks hostile deadleader waited init inner outer nested userns traced tracer held stopped vfork") {
		t.Run(name, func(t *testing.T) {
			pid := z.Named(name).PID
			f := factsOf(t, p, pid)
			if c := s.Parents[identity(t, pid)]; c != nil {
				if c.Facts == nil {
					t.Fatal("the snapshot has no facts")
				}
				if a, b := fmt.Sprintf("%+v", *c.Facts), fmt.Sprintf("%+v", f); a != b {
					t.Errorf("the snapshot says\n%s, a look at it alone\n%s", a, b)
				}
			} else if slices.Contains([]string{"plain", "deadleader", "nested", "traced"}, name) {
				t.Error("it is not in the snapshot")
			}
			st := status(t, pid)
			state := st["State"][0][0]
			live := pid
			if name == "deadleader" {
				if state != 'Z' {
					t.Fatalf("its leader is in state %c", state)
				}
				live = tids(t, pid)[1]
				state = zoo.State(live)
			}
			sig := status(t, live)
			var nspid []int
			for _, s := range st["NSpid"] {
				n, _ := strconv.Atoi(s)
				nspid = append(nspid, n)
			}
			comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			if err != nil {
				t.Fatal(err)
			}
			tracer := "0"
			if name == "traced" || name == "held" {
				tracer = fmt.Sprint(z.Named("tracer").PID)
			}
			for _, c := range []struct {
				what      string
				got, want any
			}{
				{"ppid", fmt.Sprint(f.PPID), st["PPid"][0]},
				{"comm", f.Comm, strings.TrimSuffix(string(comm), "\n")},
				{"uid", fmt.Sprint(f.UID), st["Uid"][0]},
				{"state", string(f.State), string(state)},
				{"threads", fmt.Sprint(f.Threads), st["Threads"][0]},
				{"caught", f.SigCaught, hex(t, sig["SigCgt"][0])},
				{"ignored", f.SigIgnored, hex(t, sig["SigIgn"][0])},
				{"blocked", f.SigBlocked, hex(t, sig["SigBlk"][0])},
				{"NSpid", fmt.Sprint(f.NSPID), fmt.Sprint(nspid)},
				{"pid namespace", f.PIDNS, inode(t, "/proc/%d/task/%d/ns/pid", pid, live)},
				{"mount namespace", f.MntNS, inode(t, "/proc/%d/task/%d/ns/mnt", pid, live)},
				{"user namespace", f.UserNS, inode(t, "/proc/%d/task/%d/ns/user", pid, live)},
				{"tracer", fmt.Sprint(f.Tracer.PID), tracer},
				{"subreaper", f.Subreaper, name == "main"},
				{"waited", f.Waited, name == "waited"},
				{"kernel, exiting, frozen", [3]bool{f.Kernel, f.Exiting, f.Frozen}, [3]bool{}},
				{"waits", f.Waits, task.ID{}},
			} {
				if c.what == "waited" && name == "main" || c.what == "NSpid" && name == "main" && len(nspid) == 0 {
					continue
				}
				if c.got != c.want {
					t.Errorf("%s: got %q, want %q", c.what, c.got, c.want)
				}
			}
			if f.Tracer.PID != 0 {
				if f.Tracer != identity(t, f.Tracer.PID) {
					t.Errorf("the tracer is %v", f.Tracer)
				}
				if want := factsOf(t, p, f.Tracer.PID).Cgroup; f.TracerCgroup != want {
					t.Errorf("the tracer's cgroups are %v, want %v", f.TracerCgroup, want)
				}
			}
			if f.ContainerInit() != slices.Contains([]string{"init", "outer"}, name) || f.NamespaceInit() != slices.Contains([]string{"init", "outer", "nested"}, name) {
				t.Errorf("init of a container: %v, of a namespace: %v", f.ContainerInit(), f.NamespaceInit())
			}
		})
	}
}

// tids are the threads of a process, the first one first.
func tids(t *testing.T, pid int) []int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	all := []int{pid}
	for _, e := range entries {
		if n, _ := strconv.Atoi(e.Name()); n != pid {
			all = append(all, n)
		}
	}
	return all
}

func TestFactsOfKernelThread(t *testing.T) {
	p, _ := open(t, 50)
	if f := factsOf(t, p, 2); !f.Kernel || f.Comm != "kthreadd" || f.MntNS == 0 {
		t.Errorf("kthreadd is %+v", f)
	}
}

func TestFactsOfNobody(t *testing.T) {
	p, _ := open(t, 50)
	z := zoo.Start(t, "threads=2 fork { name=kid serve } serve")
	kid := z.Named("kid")
	kid.Signal(9)
	kid.WaitDead(soon)
	z.Do("reap=all")
	for what, pid := range map[string]int{"a reaped process": kid.PID, "a thread": tids(t, z.PID)[1], "no pid": 0, "no pid at all": -1, "a pid too high": math.MaxInt32} {
		if id, _, err := p.Facts(context.Background(), pid); !errors.Is(err, task.ErrGone) {
			t.Errorf("%s: got %v, %v", what, id, err)
		}
	}
	s, err := p.SnapshotOf(context.Background(), task.ID{PID: kid.PID, Start: 1})
	if err != nil || len(s.Parents) != 0 {
		t.Errorf("the snapshot of a reaped process has %v, %v", s, err)
	}
	other := identity(t, z.PID)
	other.Start++
	z.Do("leak=3")
	if s, err = p.SnapshotOf(context.Background(), other); err != nil || len(s.Parents) != 0 {
		t.Errorf("the snapshot of one that had the pid before has %v, %v", s, err)
	}
}

func TestFrozen(t *testing.T) {
	p, _ := open(t, 50)
	cg := zoo.NewCgroup(t, "freezer", "frozen/below")
	z := zoo.Start(t, "cgroup=%s leak=3 serve", cg.Dir)
	if factsOf(t, p, z.PID).Frozen {
		t.Error("frozen before it is")
	}
	cg.Freeze()
	if !factsOf(t, p, z.PID).Frozen {
		t.Error("not frozen")
	}
	if c := snapshot(t, p).Parents[identity(t, z.PID)]; c == nil || !c.Facts.Frozen {
		t.Errorf("the snapshot says %+v", c)
	}
	cg.Thaw()
	zoo.Within(t, soon, "thawed", func() bool { return !factsOf(t, p, z.PID).Frozen })
}

func TestPidsLimits(t *testing.T) {
	p, _ := open(t, 50)
	outer := zoo.NewCgroup(t, "pids", "outer")
	inner := outer.New("between/inner")
	outer.SetPidsMax(5000)
	inner.SetPidsMax(40)
	z := zoo.Start(t, "cgroup=%s leak=10 serve", inner.Dir)
	f := factsOf(t, p, z.PID)
	var want []task.PidsLimit
	for _, cg := range []*zoo.Cgroup{inner, outer} {
		text, err := os.ReadFile(filepath.Join(cg.Dir, "pids.current"))
		if err != nil {
			t.Fatal(err)
		}
		n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		want = append(want, task.PidsLimit{ID: inode(t, "%s", cg.Dir), Current: n, Limit: map[*zoo.Cgroup]int{inner: 40, outer: 5000}[cg]})
	}
	if !slices.Equal(f.Pids[:min(2, len(f.Pids))], want) {
		t.Errorf("limits %v, want %v", f.Pids, want)
	}
	if f.Cgroup.Pids != want[0].ID || f.Cgroup.Set == 0 || f.Cgroup.ID == 0 {
		t.Errorf("cgroups %+v, that of the pids controller is %d", f.Cgroup, want[0].ID)
	}
	// A tenant may make as many as it likes: the tightest are told of.
	deep := outer.New("deep")
	deep.SetPidsMax(40)
	for i := range 12 {
		deep = deep.New(fmt.Sprintf("d%d", i))
		deep.SetPidsMax(1000 + i)
	}
	z = zoo.Start(t, "cgroup=%s leak=10 serve", deep.Dir)
	f = factsOf(t, p, z.PID)
	if len(f.Pids) != 8 || f.Pids[7].Limit != 40 || f.Pids[6].Limit != 1000 || f.Pids[0].Limit != 1006 {
		t.Errorf("limits %v", f.Pids)
	}
}

// Whom a process waits for: this one, whose threads wait in different ways.
func TestWaits(t *testing.T) {
	p, _ := open(t, 50)
	start := func() *exec.Cmd {
		cmd := exec.Command(zoo.Build(t), "alone", "serve")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close() })
		return cmd
	}
	end := func(cmd *exec.Cmd) { _ = cmd.Process.Kill() }
	waits := func() task.ID { return factsOf(t, p, os.Getpid()).Waits }
	wait4 := func(cmd *exec.Cmd) { _, _ = unix.Wait4(cmd.Process.Pid, nil, 0, nil) }
	ways := map[string]func(*exec.Cmd){
		"exec.Cmd.Wait": func(cmd *exec.Cmd) { _ = cmd.Wait() },
		"wait4":         wait4,
		"waitid P_PID": func(cmd *exec.Cmd) {
			_ = unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
			wait4(cmd)
		},
		"waitid P_PIDFD": func(cmd *exec.Cmd) {
			fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Close(fd)
			_ = unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED|unix.WNOWAIT, nil)
			wait4(cmd)
		},
	}
	for name, wait := range ways {
		t.Run(name, func(t *testing.T) {
			cmd, other := start(), start()
			want := identity(t, cmd.Process.Pid)
			if got := waits(); got != (task.ID{}) {
				t.Errorf("it waits for %v before it does", got)
			}
			done := make(chan bool)
			go func() { wait(cmd); close(done) }()
			zoo.Within(t, soon, "to wait for one child", func() bool { return waits() == want })
			end(other) // is dead, and does not get reaped: as it is
			zoo.Within(t, soon, "the other's death", func() bool { return zoo.State(other.Process.Pid) == 'Z' })
			if got := waits(); got != want {
				t.Errorf("it waits for %v, want %v", got, want)
			}
			end(cmd)
			<-done
			if got := waits(); got != (task.ID{}) {
				t.Errorf("it still waits for %v", got)
			}
			wait4(other)
		})
	}
	for name, idType := range map[string]int{"any child": unix.P_ALL, "a group": unix.P_PGID} {
		t.Run("and "+name, func(t *testing.T) {
			cmd, last := start(), start()
			done, any := make(chan bool), make(chan bool)
			go func() { _ = cmd.Wait(); close(done) }()
			zoo.Within(t, soon, "to wait for one child", func() bool { return waits().PID == cmd.Process.Pid })
			go func() {
				id := 0
				if idType == unix.P_PGID {
					id = unix.Getpgrp()
				}
				_ = unix.Waitid(idType, id, nil, unix.WEXITED|unix.WNOWAIT, nil)
				close(any)
			}()
			zoo.Within(t, soon, "not to wait for one child only", func() bool { return waits() == task.ID{} })
			end(last)
			<-any
			wait4(last)
			zoo.Within(t, soon, "to wait for one child again", func() bool { return waits().PID == cmd.Process.Pid })
			end(cmd)
			<-done
		})
	}
}

// 65,536 groups make /proc/PID/status 525 KB; the kernel's structures do not care.
func TestManyGroupsCostNothing(t *testing.T) {
	p, _ := open(t, 50)
	z := zoo.Start(t, "leak=100 serve")
	groups := make([]uint32, 65536)
	for i := range groups {
		groups[i] = 1000000 + uint32(i)
	}
	cmd := exec.Command(zoo.Build(t), "alone", "leak=100", "serve")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Groups: groups}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	zoo.Within(t, soon, "100 zombies", func() bool { return zoo.Zombies(cmd.Process.Pid) == 100 })
	cost := func(pid int) time.Duration {
		id, best := identity(t, pid), time.Hour
		for range 50 {
			began := time.Now()
			s, err := p.SnapshotOf(context.Background(), id)
			if err != nil || s.Parents[id].Total() != 100 {
				t.Fatal(s, err)
			}
			best = min(best, time.Since(began))
		}
		return best
	}
	if with, without := cost(cmd.Process.Pid), cost(z.PID); with > 3*without {
		t.Errorf("a look takes %v with 65,536 groups, %v without", with, without)
	}
}

func TestStance(t *testing.T) {
	p, _ := open(t, 50)
	ctx := context.Background()
	z := zoo.Start(t, "fork { name=blocks term=block serve } fork { name=busy serve } serve")
	if p.stance.err != nil {
		if runtime.GOARCH == "amd64" && zoo.KernelAtLeast(t, 5, 15) {
			t.Fatal(p.stance.err)
		}
		if _, err := p.Stance(ctx, identity(t, z.PID)); !errors.Is(err, ErrNoStance) {
			t.Errorf("got %v", err)
		}
		return
	}
	for _, proc := range []*zoo.Proc{z.Proc, z.Named("blocks")} {
		zoo.Within(t, soon, "it sleeps in the call that /proc says", func() bool {
			got, err := p.Stance(ctx, identity(t, proc.PID))
			if err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", proc.PID))
			if err != nil {
				t.Fatal(err)
			}
			if got.CS != 0x33 || got.Seccomp != 0 || got.MayWait || got.UserDispatch || got.ShadowStack || got.Pending != 0 {
				t.Errorf("%+v", got)
			}
			want := fmt.Sprint(got.Call)
			for _, a := range got.Args {
				want += fmt.Sprintf(" %#x", a)
			}
			return got.InCall && strings.HasPrefix(string(text), want+" ")
		})
	}
	// The kernel says whether a filter lets a wait4 pass whatever its arguments are.
	victim := zoo.Compile(t, "victim", "../reapinside/testdata/victim.c", "-pthread", "-no-pie", "-mno-red-zone")
	for how, want := range map[string]task.Stance{
		"sleep":         {},
		"filter_allow":  {Seccomp: 2, Filters: 1, MayWait: true},
		"filter_kill":   {Seccomp: 2, Filters: 1},
		"filter_errno":  {Seccomp: 2, Filters: 1},
		"filter_trap":   {Seccomp: 2, Filters: 1},
		"filter_args":   {Seccomp: 2, Filters: 1},
		"filter_notify": {Seccomp: 2, Filters: 1},
		"filter_second": {Seccomp: 2, Filters: 2},
	} {
		cmd := exec.Command(victim, "be", how)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		var got task.Stance
		zoo.Within(t, soon, how+" sleeps", func() bool {
			var err error
			got, err = p.Stance(ctx, identity(t, cmd.Process.Pid))
			return err == nil && got.InCall && (got.Call == unix.SYS_CLOCK_NANOSLEEP || got.Call == unix.SYS_NANOSLEEP)
		})
		if got.Seccomp != want.Seccomp || got.Filters != want.Filters || got.MayWait != want.MayWait {
			t.Errorf("%s: mode %d, %d filters, may wait: %v", how, got.Seccomp, got.Filters, got.MayWait)
		}
	}
	blocks := z.Named("blocks")
	blocks.Signal(unix.SIGTERM)
	if got, err := p.Stance(ctx, identity(t, blocks.PID)); err != nil || got.Pending != 0 {
		t.Errorf("a signal that is blocked is deliverable: %+v, %v", got, err)
	}
	z.Signal(unix.SIGSTOP)
	zoo.Within(t, soon, "stopped", func() bool { return zoo.State(z.PID) == 'T' })
	z.Signal(unix.SIGUSR1)
	if got, err := p.Stance(ctx, identity(t, z.PID)); err != nil || got.Pending != 1<<(unix.SIGUSR1-1) {
		t.Errorf("a deliverable signal: %+v, %v", got, err)
	}
	dead := zoo.Start(t, "fork { name=dead deadleader serve } serve").Named("dead")
	if _, err := p.Stance(ctx, identity(t, dead.PID)); !errors.Is(err, ErrNoStance) {
		t.Errorf("a dead main thread: %v", err)
	}
	gone := identity(t, z.PID)
	gone.Start++
	if _, err := p.Stance(ctx, gone); !errors.Is(err, task.ErrGone) {
		t.Errorf("another process with its pid: %v", err)
	}
	if _, err := p.Stance(ctx, task.ID{PID: 4194303, Start: 1}); !errors.Is(err, task.ErrGone) {
		t.Errorf("a pid that nobody has: %v", err)
	}
}
