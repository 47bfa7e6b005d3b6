package procscan_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"kzr/internal/procscan"
	"kzr/internal/task"
	"kzr/internal/zoo"
)

const soon = time.Minute

func TestMain(m *testing.M) {
	if arg := os.Getenv(viewEnv); arg != "" {
		if err := view(arg); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB) *procscan.Scanner {
	t.Helper()
	s, err := procscan.New("/proc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func snapshot(t testing.TB, s *procscan.Scanner) *task.Snapshot {
	t.Helper()
	snap, err := s.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// of returns what a snapshot says of the process with that pid.
func of(snap *task.Snapshot, pid int) *task.Children {
	for id, c := range snap.Parents {
		if id.PID == pid {
			return c
		}
	}
	return &task.Children{}
}

func inspect(t testing.TB, s *procscan.Scanner, pid int) task.Process {
	t.Helper()
	p, err := s.Inspect(t.Context(), pid)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// both takes a snapshot of everything and one of the parent alone, which must
// say the same. It takes them until the parent is old enough to be in them, and it is
// known of each zombie who traces it, which a slow machine has not always time for.
func both(t *testing.T, s *procscan.Scanner, pid int) *task.Children {
	t.Helper()
	id := inspect(t, s, pid).ID
	var all *task.Children
	zoo.Within(t, soon, "in the snapshot", func() bool {
		all = of(snapshot(t, s), pid)
		return all.Total() > 0 && all.Unknown == 0
	})
	var one *task.Snapshot
	zoo.Within(t, soon, "all that is alone in a snapshot is known", func() bool {
		var err error
		if one, err = s.SnapshotOf(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		c := one.Parents[id]
		return c == nil || c.Unknown == 0
	})
	if len(one.Parents) != 1 || one.Parents[id] == nil {
		t.Fatalf("snapshot of %v has %v", id, one.Parents)
	}
	if got := one.Parents[id]; !slices.Equal(got.Reapable, all.Reapable) || got.Traced != all.Traced ||
		got.Tracer != all.Tracer || got.Leaders != all.Leaders {
		t.Errorf("alone %+v, among all %+v", got, all)
	}
	if all.Parent != id {
		t.Errorf("parent %v, want %v", all.Parent, id)
	}
	return all
}

func TestSnapshotLeaker(t *testing.T) {
	for _, script := range []string{
		"leak=60 serve",
		"leak=60,sig=0 serve",
		"leak=60,sig=10 serve",
		"in=pidns,proc leak=60 serve",
		"leak=60,thread serve",
	} {
		t.Run(script, func(t *testing.T) {
			s := open(t)
			z := zoo.Start(t, "%s", script)
			began := task.Now()
			got := both(t, s, z.PID)
			if len(got.Reapable) != 60 || got.Traced+got.Leaders != 0 {
				t.Fatalf("%d reapable, %d traced, %d leaders", len(got.Reapable), got.Traced, got.Leaders)
			}
			for i, child := range got.Reapable {
				if zoo.State(child.PID()) != 'Z' || child.Start() < got.Parent.Start || child.Since() != 0 {
					t.Errorf("zombie %+v of %v", child, got.Parent)
				}
				if i > 0 && child.Compare(got.Reapable[i-1]) <= 0 {
					t.Errorf("pid %d after %d", child.PID(), got.Reapable[i-1].PID())
				}
			}
			snap := snapshot(t, s)
			if snap.Source != task.SourceProc || snap.Began < began || snap.Ended < snap.Began || snap.Ended > task.Now() {
				t.Errorf("source %q, from %v to %v", snap.Source, snap.Began, snap.Ended)
			}
			if snap.Tasks < 61 || snap.Zombies() < 60 {
				t.Errorf("%d tasks, %d zombies", snap.Tasks, snap.Zombies())
			}
			z.Do("reap=57")
			if got := both(t, s, z.PID); len(got.Reapable) != 3 {
				t.Errorf("%d are left of 3", len(got.Reapable))
			}
			z.Do("reap=all")
			if got := of(snapshot(t, s), z.PID); got.Total() != 0 {
				t.Errorf("%+v is left", got)
			}
		})
	}
}

func TestSnapshotCounts95Of100(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "leak=100 reap=95 serve")
	if got := both(t, s, z.PID); got.Total() != 5 {
		t.Errorf("%d zombies, want 5", got.Total())
	}
}

func TestSnapshotNeverSeesIgnoredChildren(t *testing.T) {
	s := open(t)
	for _, how := range []string{"ignore", "nocldwait"} {
		z := zoo.Start(t, "chld=%s leak=20 serve", how)
		if got := of(snapshot(t, s), z.PID); got.Total() != 0 {
			t.Errorf("SIGCHLD %s: %+v", how, got)
		}
	}
}

func TestSnapshotDeadLeader(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "leak=2 fork { name=kid leak=3 deadleader serve } serve")
	kid := z.Named("kid")
	zoo.Within(t, soon, "the leader is dead", func() bool { return kid.State() == 'Z' })
	leaders := 0 // in a walk an empty directory of descriptors tells, if its size does
	if zoo.KernelAtLeast(t, 6, 2) {
		leaders = 1
	}
	if got := both(t, s, z.PID); len(got.Reapable) != 2 || got.Leaders != leaders {
		t.Errorf("%+v", got)
	}
	// It is a parent itself, alive.
	if got := both(t, s, kid.PID); len(got.Reapable) != 3 {
		t.Errorf("%+v", got)
	}
	// What its leader cannot show any more, the other thread does.
	p := inspect(t, s, kid.PID)
	if p.State != 'S' || p.Threads != 2 || p.Exiting {
		t.Errorf("state %c, %d threads, exiting %v", p.State, p.Threads, p.Exiting)
	}
	if p.Exe != zoo.Build(t) || p.PIDNS == 0 || p.MntNS == 0 || len(s.Cmdline(t.Context(), p.ID)) == 0 || len(p.NSPID) != 1 {
		t.Errorf("%+v", p)
	}
}

func TestSnapshotTraced(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "leak=3 hold=10 { name=tracer serve } serve")
	tracer := z.Named("tracer")
	for range 2 { // the second time it remembers
		if got := both(t, s, z.PID); len(got.Reapable) != 3 || got.Traced != 10 || got.Tracer.PID != tracer.PID {
			t.Fatalf("%d reapable, %d traced by %v", len(got.Reapable), got.Traced, got.Tracer)
		}
	}
	tracer.Signal(unix.SIGKILL)
	tracer.WaitDead(soon)
	// Ten are free again, and the tracer is one more.
	zoo.Within(t, soon, "all free", func() bool { return len(of(snapshot(t, s), z.PID).Reapable) == 14 })
}

func TestSnapshotTracedByItsOwnParent(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "fork { name=kid serve } serve")
	kid := z.Named("kid")
	z.Do("trace=%d", kid.PID)
	kid.Signal(unix.SIGKILL)
	zoo.Within(t, soon, "dead", func() bool { return kid.State() == 'Z' })
	for range 2 {
		if got := both(t, s, z.PID); len(got.Reapable) != 1 || got.Traced != 0 {
			t.Errorf("%+v", got)
		}
	}
	z.Do("reap=pid=%d", kid.PID)
}

func TestSnapshotOfNobody(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "leak=3 serve")
	id := inspect(t, s, z.PID).ID
	for _, other := range []task.ID{
		{PID: id.PID, Start: id.Start + 1},
		{PID: id.PID, Start: id.Start - 1},
		{PID: 4194304, Start: 1},
		{PID: os.Getpid(), Start: 1},
	} {
		snap, err := s.SnapshotOf(t.Context(), other)
		if err != nil || len(snap.Parents) != 0 {
			t.Errorf("%v: %v, %v", other, snap, err)
		}
	}
}

func TestPidReuse(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "fork { name=old leak=3 serve } serve")
	old := z.Named("old")
	was := both(t, s, old.PID)
	old.Signal(unix.SIGKILL)
	old.WaitDead(soon)
	z.Do("reap=pid=%d", old.PID)
	if _, err := s.Inspect(t.Context(), old.PID); !errors.Is(err, procscan.ErrGone) {
		t.Errorf("inspecting a reaped process: %v", err)
	}
	z.Do("fork=tid=%d { name=new leak=5 serve }", old.PID)
	if z.Named("new").PID != old.PID {
		t.Fatal("the pid was not reused")
	}
	if snap, err := s.SnapshotOf(t.Context(), was.Parent); err != nil || len(snap.Parents) != 0 {
		t.Errorf("the old identity has %v, %v", snap.Parents, err)
	}
	if now := both(t, s, old.PID); now.Total() != 5 || now.Parent == was.Parent {
		t.Errorf("%+v after %v", now, was.Parent)
	}
}

// A list of children can only be trusted if none goes away while it is read:
// zombies that stay must be in every snapshot, whatever their siblings do. Those
// that a tracer holds do stay.
func TestSnapshotOfWhileSiblingsComeAndGo(t *testing.T) {
	s := open(t)
	for _, rate := range []int{100, 4000} {
		z := zoo.Start(t, "hold=40 { name=tracer serve } serve")
		id := both(t, s, z.PID).Parent
		z.Do("storm=0,rate=%d,reap=100", rate)
		zoo.Within(t, soon, "the storm", func() bool { return z.Count().Made > 60 })
		for end := time.Now().Add(time.Second); time.Now().Before(end); {
			snap, err := s.SnapshotOf(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			// Who traces it may not be known in time; but none is missing.
			if c := snap.Parents[id]; c == nil || c.Traced > 40 || c.Traced+c.Unknown < 40 {
				t.Fatalf("alone %+v, want 40 traced", c)
			}
			if c := of(snapshot(t, s), z.PID); c.Traced > 40 || c.Traced+c.Unknown < 40 {
				t.Fatalf("among all %+v, want 40 traced", c)
			}
		}
	}
}

// In a storm every count lies between what was there before and after.
func TestSnapshotInAStorm(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "fork { name=still leak=60 serve } fork { flash=300,kids=2 serve } leak=1 serve")
	still := z.Named("still")
	both(t, s, still.PID)
	both(t, s, z.PID)
	z.Do("storm=5999,rate=3000")
	for done := false; !done; {
		before := z.Zombies()
		done = before >= 6000
		snap := snapshot(t, s)
		after := z.Zombies()
		if n := of(snap, z.PID).Total(); n < before || n > after {
			t.Fatalf("%d zombies, but %d before and %d after", n, before, after)
		}
		if n := of(snap, still.PID).Total(); n != 60 {
			t.Fatalf("%d zombies of the quiet parent", n)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "leak=60 serve")
	id := both(t, s, z.PID).Parent
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				snap, err := s.Snapshot(t.Context())
				if err != nil || len(of(snap, z.PID).Reapable) != 60 {
					t.Errorf("%v", err)
				}
				if snap, err = s.SnapshotOf(t.Context(), id); err != nil || len(of(snap, z.PID).Reapable) != 60 {
					t.Errorf("%v", err)
				}
				if p, err := s.Inspect(t.Context(), z.PID); err != nil || p.ID != id {
					t.Errorf("%v, %v", p.ID, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestSnapshotCancelled(t *testing.T) {
	s := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if snap, err := s.Snapshot(ctx); !errors.Is(err, context.Canceled) || snap != nil {
		t.Errorf("%v, %v", snap, err)
	}
	snapshot(t, s) // the turn was given back
}

func TestInspect(t *testing.T) {
	s := open(t)
	path := filepath.Join(public(t), "prog")
	zoo.Install(t, path)
	z := zoo.Start(t, "in=pidns,proc,userns fork { name=main2 chld=block term=ignore serve } exec=%s,a0,%s uid=7 leak=2 serve",
		zoo.Quote(path), zoo.Quote("second one"))
	p := inspect(t, s, z.PID)
	if p.PID != z.PID || p.Comm != "prog" || p.Exe != path || p.ExeDeleted || !slices.Equal(s.Cmdline(t.Context(), p.ID), []string{"a0", "second one"}) {
		t.Errorf("%+v", p)
	}
	if (p.State != 'S' && p.State != 'R') || p.Threads != 1 || p.Tracer.PID != 0 || p.Kernel || p.Exiting || p.Frozen || len(p.Unseen) != 0 {
		t.Errorf("%+v", p)
	}
	if want := []int{z.PID, 1}; !slices.Equal(p.NSPID, want) || !p.NamespaceInit() {
		t.Errorf("NSPID %v, want %v", p.NSPID, want)
	}
	if p.UID != 100007 {
		t.Errorf("uid %d: not as kzr's user namespace has it", p.UID)
	}
	me := inspect(t, s, os.Getpid())
	if me.PPID != os.Getppid() || me.UID != uint32(os.Getuid()) || len(me.NSPID) != 1 {
		t.Errorf("%+v", me)
	}
	if me.PIDNS == 0 || me.MntNS == 0 || me.UserNS == 0 || me.PIDNS == p.PIDNS || me.MntNS == p.MntNS || me.UserNS == p.UserNS {
		t.Errorf("namespaces %d %d %d and %d %d %d", me.PIDNS, me.MntNS, me.UserNS, p.PIDNS, p.MntNS, p.UserNS)
	}
	if p.Start <= me.Start {
		t.Errorf("started at %d, this test at %d", p.Start, me.Start)
	}
	q := inspect(t, s, z.Named("main2").PID)
	if bit := func(s unix.Signal) uint64 { return 1 << (s - 1) }; q.SigBlocked&bit(unix.SIGCHLD) == 0 || q.SigIgnored&bit(unix.SIGTERM) == 0 ||
		p.SigBlocked&bit(unix.SIGCHLD) != 0 || p.SigIgnored&bit(unix.SIGTERM) != 0 || me.SigCaught&bit(unix.SIGTERM) == 0 {
		t.Errorf("signal sets: %+v", q)
	}
}

func TestInspectGone(t *testing.T) {
	s := open(t)
	for _, pid := range []int{-1, 0, 4194304, 4194305, 1 << 40} {
		if p, err := s.Inspect(t.Context(), pid); !errors.Is(err, procscan.ErrGone) {
			t.Errorf("pid %d: %v, %v", pid, p, err)
		}
	}
}

func TestInspectThread(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "threads=2 serve")
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", z.PID))
	if err != nil || len(entries) < 2 {
		t.Fatal(entries, err)
	}
	for _, e := range entries {
		tid, _ := strconv.Atoi(e.Name())
		_, err := s.Inspect(t.Context(), tid)
		if (tid == z.PID) != (err == nil) || (err != nil && !errors.Is(err, procscan.ErrGone)) {
			t.Errorf("thread %d of %d: %v", tid, z.PID, err)
		}
	}
}

// Processes that come and go by the hundred a second: a look succeeds, or says
// that they are gone.
func TestInspectVanishing(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "storm=0,rate=4000,reap=100 flash=300,kids=2 serve")
	gone := 0
	began := time.Now()
	for took := time.Duration(0); took < time.Second || gone == 0 && took < 30*time.Second; took = time.Since(began) {
		for _, pid := range append(zoo.Children(z.PID), z.PID) {
			p, err := s.Inspect(t.Context(), pid)
			switch {
			case errors.Is(err, procscan.ErrGone):
				gone++
			case err != nil:
				t.Fatal(err)
			case p.PID != pid || p.Start == 0 || p.State == 0 || len(p.NSPID) == 0:
				t.Fatalf("%+v", p)
			}
		}
	}
	if gone == 0 {
		t.Error("none vanished: nothing was tested")
	}
}

func TestInspectZombie(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "leak=1 serve")
	p := inspect(t, s, zoo.Children(z.PID)[0])
	if p.State != 'Z' || p.PPID != z.PID || !p.Exiting || p.Exe != "" || p.Cmdline != nil || len(p.Unseen) != 0 {
		t.Errorf("%+v", p)
	}
}

func TestInspectKernelThread(t *testing.T) {
	s := open(t)
	p := inspect(t, s, 2)
	if !p.Kernel || p.Comm != "kthreadd" || p.Exe != "" || p.Cmdline != nil || len(p.Unseen) != 0 {
		t.Errorf("%+v", p)
	}
}

func TestInspectHostileNames(t *testing.T) {
	s := open(t)
	for _, comm := range []string{") Z 1 (", "a\nb", "\x1b[2J", "\xff\xfe", ")", "((", " ", "kthreadd", "a\\nb"} {
		z := zoo.Start(t, "comm=%s leak=3 serve", zoo.Quote(comm))
		if p := inspect(t, s, z.PID); p.Comm != comm || (p.State != 'S' && p.State != 'R') || p.Threads != 1 {
			t.Errorf("comm %q, state %c, %d threads; want comm %q", p.Comm, p.State, p.Threads, comm)
		}
		if got := both(t, s, z.PID); len(got.Reapable) != 3 {
			t.Errorf("comm %q: %+v", comm, got)
		}
	}
}

func TestInspectCmdline(t *testing.T) {
	s := open(t)
	path := filepath.Join(t.TempDir(), "prog")
	zoo.Install(t, path)
	long := strings.Repeat("x", 3000)
	for _, tc := range []struct {
		name, script string
		want         []string
	}{
		{"hostile", "exec=" + zoo.Quote(path) + "," + zoo.Quote("a\x1b[31m\n") + "," + zoo.Quote("\xff) Z 1 ("), []string{"a\x1b[31m\n", "\xff) Z 1 ("}},
		{"long", "exec=" + zoo.Quote(path) + "," + long + "," + long, []string{long, long[:4096-3001]}},
		{"empty", "nocmdline", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			z := zoo.Start(t, "%s serve", tc.script)
			if got := s.Cmdline(t.Context(), inspect(t, s, z.PID).ID); !slices.Equal(got, tc.want) || (got == nil) != (tc.want == nil) {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

func TestInspectDeletedExe(t *testing.T) {
	s := open(t)
	dir := t.TempDir()
	for _, tc := range []struct {
		name, file, before, after string
		want                      string
		deleted                   bool
	}{
		{"there", "prog", "", "", "prog", false},
		{"deleted", "prog", "", "unlink=%s/prog", "prog", true},
		{"called so", "prog (deleted)", "", "", "prog (deleted)", false},
		{"called so, and deleted", "prog (deleted)", "", "unlink=%s/prog\\x20(deleted)", "prog (deleted)", true},
		{"called so in a chroot", "prog (deleted)", "chroot=%s", "", "prog (deleted)", false},
		{"called so in a mount namespace", "prog (deleted)", "in=mntns tmpfs=%s", "", "prog (deleted)", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fill := func(s string) string { return strings.ReplaceAll(s, "%s", zoo.Quote(dir)) }
			path := filepath.Join(dir, tc.file)
			var first string
			inside := path
			switch {
			case strings.HasPrefix(tc.before, "chroot"):
				inside = "/" + tc.file
				first = "copyself=" + zoo.Quote(path) + " " + fill(tc.before)
			default:
				first = fill(tc.before) + " copyself=" + zoo.Quote(path)
			}
			z := zoo.Start(t, "%s exec=%s %s serve", first, zoo.Quote(inside), fill(tc.after))
			t.Cleanup(func() { _ = os.Remove(path) }) // where it is not gone already
			p := inspect(t, s, z.PID)
			if p.Exe != filepath.Join(dir, tc.want) || p.ExeDeleted != tc.deleted {
				t.Errorf("%q, deleted: %v", p.Exe, p.ExeDeleted)
			}
		})
	}
	t.Run("another hard link is left", func(t *testing.T) {
		path := filepath.Join(dir, "linked")
		z := zoo.Start(t, "copyself=%s exec=%s serve", zoo.Quote(path), zoo.Quote(path))
		if err := os.Link(path, path+".old"); err != nil {
			t.Fatal(err)
		}
		z.Do("unlink=%s", zoo.Quote(path))
		if p := inspect(t, s, z.PID); p.Exe != path || !p.ExeDeleted {
			t.Errorf("%q, deleted: %v", p.Exe, p.ExeDeleted)
		}
	})
}

// deep makes directories below dir, more than a path can hold, and returns
// another way to the innermost.
func deep(t *testing.T, dir string) string {
	t.Helper()
	for range 17 {
		made := dir + "/" + strings.Repeat("d", 250)
		if err := os.Mkdir(made, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { zoo.Within(t, soon, "removing "+made, func() bool { return os.Remove(made) == nil }) })
		f, err := os.Open(made)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		dir = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
	}
	return dir
}

// Anybody can run a program from, or be in a cgroup of, a path that is longer
// than the kernel can tell. That hides the path and nothing else.
func TestInspectLongPaths(t *testing.T) {
	s := open(t)
	t.Run("executable", func(t *testing.T) {
		path := deep(t, t.TempDir()) + "/prog"
		zoo.Install(t, path)
		z := zoo.Start(t, "exec=%s comm=deep leak=3 serve", zoo.Quote(path))
		if p := inspect(t, s, z.PID); p.Comm != "deep" || p.Exe != task.LongExe || len(p.Unseen) != 0 || p.PIDNS == 0 {
			t.Errorf("%+v", p)
		}
	})
	t.Run("cgroup", func(t *testing.T) {
		cg := zoo.NewCgroup(t, "freezer", "top")
		z := zoo.Start(t, "cgroup=%s leak=3 serve", zoo.Quote(deep(t, cg.Dir)))
		p := inspect(t, s, z.PID)
		if p.Frozen || len(p.NSPID) != 1 {
			t.Errorf("%+v", p)
		}
		cg.Freeze()
		// Where the kernel does not cut such a path off, it tells nothing of it.
		if p = inspect(t, s, z.PID); !p.Frozen && !says(p.Unseen, "cgroup: file name too long") {
			t.Error("not seen to be frozen from far above")
		}
	})
}

func TestInspectStates(t *testing.T) {
	s := open(t)
	t.Run("stopped", func(t *testing.T) {
		z := zoo.Start(t, "serve")
		z.Do("stop")
		zoo.Within(t, soon, "stopped", func() bool { return inspect(t, s, z.PID).State == 'T' })
	})
	t.Run("uninterruptible", func(t *testing.T) {
		z := zoo.Start(t, "serve")
		z.Do("vfork=60000")
		zoo.Within(t, soon, "in state D", func() bool { return inspect(t, s, z.PID).State == 'D' })
		if p := inspect(t, s, z.PID); s.Cmdline(t.Context(), p.ID) != nil || len(p.Unseen) != 0 {
			t.Errorf("%+v", p)
		}
		// What is in state D cannot be ended but by its child's end.
		for _, child := range zoo.Children(z.PID) {
			if err := unix.Kill(child, unix.SIGKILL); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("traced", func(t *testing.T) {
		z := zoo.Start(t, "fork { name=kid serve } serve")
		kid := z.Named("kid")
		z.Do("trace=%d", kid.PID)
		if p := inspect(t, s, kid.PID); p.Tracer.PID != z.PID {
			t.Errorf("tracer %d, want %d", p.Tracer.PID, z.PID)
		}
	})
	t.Run("frozen", func(t *testing.T) {
		outer := zoo.NewCgroup(t, "freezer", "outer")
		cg := outer.New("inner")
		z := zoo.Start(t, "cgroup=%s leak=1 serve", zoo.Quote(cg.Dir))
		if inspect(t, s, z.PID).Frozen {
			t.Error("frozen before")
		}
		cg.Freeze()
		if !inspect(t, s, z.PID).Frozen {
			t.Error("not seen to be frozen")
		}
		cg.Thaw()
		zoo.Within(t, soon, "thawed", func() bool { return !inspect(t, s, z.PID).Frozen })
		outer.Freeze()
		if !inspect(t, s, z.PID).Frozen {
			t.Error("not seen to be frozen from above")
		}
	})
}

// pidsLimit is the limit of a cgroup, or of one around it, that is nearest to being
// reached.
func pidsLimit(s *procscan.Scanner, cgroup string) (current, limit int, ok bool) {
	l, ok := task.Tightest(s.PidsLimits(cgroup))
	return l.Current, l.Limit, ok
}

func TestPidsLimit(t *testing.T) {
	s := open(t)
	outer := zoo.NewCgroup(t, "pids", "outer")
	inner := outer.New("inner")
	z := zoo.Start(t, "cgroup=%s leak=29 serve", zoo.Quote(inner.Dir))
	p := inspect(t, s, z.PID)
	if p.PidsCgroup != inner.Path {
		t.Fatalf("pids cgroup %q, want %q", p.PidsCgroup, inner.Path)
	}
	if current, limit, ok := pidsLimit(s, p.PidsCgroup); ok {
		t.Errorf("%d of %d, but there is no limit", current, limit)
	}
	inner.SetPidsMax(100)
	if current, limit, ok := pidsLimit(s, p.PidsCgroup); current != 30 || limit != 100 || !ok {
		t.Errorf("%d of %d, %v; want 30 of 100", current, limit, ok)
	}
	outer.SetPidsMax(40) // tighter, and further out
	if current, limit, ok := pidsLimit(s, p.PidsCgroup); current != 30 || limit != 40 || !ok {
		t.Errorf("%d of %d, %v; want 30 of 40", current, limit, ok)
	}
	for _, odd := range []string{"", "/", "/../..", "/no/such/cgroup", "relative"} {
		if current, limit, ok := pidsLimit(s, odd); ok && odd != "/" {
			t.Errorf("%q: %d of %d", odd, current, limit)
		}
	}
}

func TestNode(t *testing.T) {
	s := open(t)
	before, err := s.Node()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		t.Fatal(err)
	}
	pidMax, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	if before.Tasks < 2 || before.Limit < before.Tasks || before.Limit > pidMax-300 {
		t.Errorf("%+v", before)
	}
	zoo.Start(t, "leak=2000 serve")
	if after, err := s.Node(); err != nil || after.Tasks < before.Tasks+1000 {
		t.Errorf("%+v, then %+v, %v", before, after, err)
	}
}

func TestOffsets(t *testing.T) {
	s := open(t)
	if o, err := s.Offsets(); o != (task.Offsets{}) || err != nil {
		t.Errorf("%v, %v", o, err)
	}
	v := look(t, viewOf{}, func(cmd *exec.Cmd) {
		// The shell is in the old time namespace until it becomes the test.
		// (Back by no more than the machine has been up.)
		cmd.Args = append([]string{"unshare", "--time", "--boottime", "86400", "--monotonic", "-5", "--fork", "--"}, cmd.Args...)
		path, err := exec.LookPath("unshare")
		if err != nil {
			t.Fatal(err)
		}
		cmd.Path = path
	})
	if v.Offsets != (task.Offsets{Boottime: 24 * time.Hour, Monotonic: -5 * time.Second}) || v.OffsetError != "" {
		t.Errorf("%v, %s", v.Offsets, v.OffsetError)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, root := range []string{t.TempDir(), "/proc/self/no", "/dev/null", "/sys"} {
		if s, err := procscan.New(root); err == nil {
			t.Errorf("%s is taken for a proc file system", root)
			s.Close()
		}
	}
}

// ---- The view from elsewhere: the test binary run as somebody else -------------

const viewEnv = "KZR_PROCSCAN_VIEW"

// viewOf is what the other process is to do.
type viewOf struct {
	PID         int    // look at this one
	Mount       string // mount /proc there first
	Options     string // with these options
	UID         int    // become this user then
	PIDMax      int    // and set this limit of its pid namespace
	Descriptors bool   // and use up all descriptors after opening the scanner
}

// viewed is what it saw.
type viewed struct {
	NewError    string
	Foreign     bool
	Host        procscan.Host
	Limitations []string
	Parents     int
	Zombies     int // of PID
	Alone       int // of PID, by SnapshotOf
	Process     task.Process
	Error       string
	Offsets     task.Offsets
	OffsetError string
	Node        procscan.Node
	NodeError   string
	Spare       int // descriptors that could still be opened
}

func look(t *testing.T, what viewOf, change func(*exec.Cmd)) viewed {
	t.Helper()
	arg, err := json.Marshal(what)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), viewEnv+"="+string(arg))
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	if change != nil {
		change(cmd)
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the view from elsewhere: %v\n%s", err, out)
	}
	var v viewed
	if err := json.Unmarshal(out, &v); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return v
}

func view(arg string) error {
	var what viewOf
	if err := json.Unmarshal([]byte(arg), &what); err != nil {
		return err
	}
	root := "/proc"
	if what.Mount != "" {
		root = what.Mount
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("making the mounts private: %w", err)
		}
		if err := unix.Mount("proc", root, "proc", 0, what.Options); err != nil {
			return fmt.Errorf("mounting %s: %w", root, err)
		}
	}
	if what.PIDMax != 0 {
		if err := os.WriteFile(root+"/sys/kernel/pid_max", []byte(strconv.Itoa(what.PIDMax)), 0o644); err != nil {
			return err
		}
	}
	if what.UID != 0 {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(what.UID), syscall.Setuid(what.UID)); err != nil {
			return err
		}
		// As after an exec by that user: before 5.14 it could not read its own
		// fdinfo otherwise.
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
			return err
		}
	}
	var v viewed
	s, err := procscan.New(root)
	if err != nil {
		v.NewError, v.Foreign = err.Error(), errors.Is(err, procscan.ErrForeign)
		return json.NewEncoder(os.Stdout).Encode(v)
	}
	if what.Descriptors {
		lim := unix.Rlimit{Cur: 64, Max: 64}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
			return err
		}
		for {
			if _, err := unix.Dup(0); err != nil {
				break
			}
		}
	}
	err = func() error {
		snap, err := s.Snapshot(context.Background())
		if err != nil {
			return err
		}
		v.Parents = len(snap.Parents)
		v.Zombies = of(snap, what.PID).Total()
		if what.PID != 0 {
			if v.Process, err = s.Inspect(context.Background(), what.PID); err != nil {
				return err
			}
			snap, err := s.SnapshotOf(context.Background(), v.Process.ID)
			if err != nil {
				return err
			}
			v.Alone = of(snap, what.PID).Total()
		}
		if v.Host, err = s.Host(); err != nil {
			return err
		}
		v.Limitations = v.Host.Limitations()
		return nil
	}()
	if err != nil {
		v.Error = err.Error()
	}
	if v.Offsets, err = s.Offsets(); err != nil {
		v.OffsetError = err.Error()
	}
	if v.Node, err = s.Node(); err != nil {
		v.NodeError = err.Error()
	}
	if what.Descriptors {
		for {
			if _, err := unix.Dup(0); err != nil {
				break
			}
			v.Spare++
		}
	}
	return json.NewEncoder(os.Stdout).Encode(v)
}

const nobody = 65534

func newMounts(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
}

// public is a directory that every user can enter.
func public(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "procscan-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func says(list []string, text string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, text) })
}

func TestHost(t *testing.T) {
	s := open(t)
	h, err := s.Host()
	if err != nil {
		t.Fatal(err)
	}
	me := inspect(t, s, os.Getpid())
	if h.PIDNS != me.PIDNS || h.MntNS != me.MntNS || h.UserNS != me.UserNS {
		t.Errorf("%+v", h)
	}
	if !h.InitialPIDNS || !h.InitialUserNS || !h.Ptrace || h.HidePID != "" || h.HidesInit || h.SubsetPID || h.CgroupError != "" {
		t.Errorf("%+v", h)
	}
	if want := inspect(t, s, 2).MntNS; h.HostMntNS != want || want == 0 {
		t.Errorf("host mount namespace %d, kernel threads have %d", h.HostMntNS, want)
	}
	if list := h.Limitations(); len(list) != 0 {
		t.Errorf("root in the initial namespaces is limited: %q", list)
	}
}

// leaker starts a parent of five zombies that is old enough for any snapshot.
func leaker(t *testing.T) *zoo.Zoo {
	t.Helper()
	z := zoo.Start(t, "leak=5 serve")
	both(t, open(t), z.PID)
	return z
}

func TestViewOfAnotherUser(t *testing.T) {
	z := leaker(t)
	v := look(t, viewOf{PID: z.PID, UID: nobody}, nil)
	if v.Error != "" || v.Zombies != 5 || v.Alone != 5 {
		t.Errorf("%+v", v)
	}
	if p := v.Process; p.Exe != "" || p.MntNS != 0 || p.Comm != "zoo" || !says(p.Unseen, "exe: permission denied") || !says(p.Unseen, "ns/mnt: permission denied") {
		t.Errorf("%+v", p)
	}
	if !says(v.Limitations, "CAP_SYS_PTRACE") || len(v.Limitations) != 1 {
		t.Errorf("%q", v.Limitations)
	}
}

func TestViewOfHiddenProcesses(t *testing.T) {
	z := leaker(t)
	const gid = ",gid=4242"
	for _, tc := range []struct {
		options, text string
	}{
		{"hidepid=2" + gid, "hidepid=invisible"},
		{"hidepid=1" + gid, "hidepid=noaccess"},
		{"hidepid=4", "hidepid=ptraceable"},
	} {
		t.Run(tc.options, func(t *testing.T) {
			v := look(t, viewOf{Mount: public(t), Options: tc.options, UID: nobody}, newMounts)
			if v.Error != "" || v.NewError != "" || v.Parents != 0 {
				t.Errorf("%+v", v)
			}
			if !says(v.Limitations, tc.text) {
				t.Errorf("%q", v.Limitations)
			}
			if tc.text == "hidepid=noaccess" && !says(v.Limitations, "could not be read") {
				t.Errorf("%q", v.Limitations)
			}
		})
	}
	t.Run("root", func(t *testing.T) {
		v := look(t, viewOf{PID: z.PID, Mount: public(t), Options: "hidepid=2" + gid}, newMounts)
		if v.Zombies != 5 || v.Host.HidePID != "" {
			t.Errorf("%+v", v)
		}
		// Some machines guard process 1 even from root.
		_, err := os.Readlink("/proc/1/exe")
		if says(v.Limitations, "process 1 is invisible") != (err != nil) {
			t.Errorf("%q, but process 1: %v", v.Limitations, err)
		}
	})
}

func TestViewOfProcessesOnly(t *testing.T) {
	z := leaker(t)
	v := look(t, viewOf{PID: z.PID, Mount: public(t), Options: "subset=pid"}, newMounts)
	if v.Error != "" || v.Zombies != 5 || !says(v.Limitations, "subset=pid") {
		t.Errorf("%+v", v)
	}
}

func TestViewFromAnInnerPidNamespace(t *testing.T) {
	inner := func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	}
	t.Run("the outer /proc", func(t *testing.T) {
		if v := look(t, viewOf{}, inner); !v.Foreign {
			t.Errorf("%+v", v)
		}
	})
	t.Run("its own /proc", func(t *testing.T) {
		v := look(t, viewOf{PID: 1, Mount: public(t)}, inner)
		if v.Error != "" || v.NewError != "" || v.Host.InitialPIDNS || v.Process.PID != 1 {
			t.Errorf("%+v", v)
		}
		if !says(v.Limitations, "pid namespace of its own") {
			t.Errorf("%q", v.Limitations)
		}
	})
}

func TestNoDescriptorsLeft(t *testing.T) {
	z := leaker(t)
	v := look(t, viewOf{PID: z.PID, Descriptors: true}, nil)
	if v.Error != "" || v.Zombies != 5 || v.Alone != 5 || v.Process.Comm != "zoo" {
		t.Errorf("%+v", v)
	}
	if v.Spare != 0 {
		t.Errorf("%d reserved descriptors were not taken back", v.Spare)
	}
}
