package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/zoo"
)

// Where kzr runs, and what it may do and see there.

// Capabilities by number (man 7 capabilities).
const (
	noPtrace = "nocap=19"
	noBPF    = "nocap=39 nocap=38 nocap=21" // CAP_BPF, CAP_PERFMON, and CAP_SYS_ADMIN, which holds both
)

func TestScenario25InsidePidNamespace(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	outside := zoo.Start(t, "exec=%s leak=12 chld=count term=count serve", s.exe)
	// The first process there leaks as well, and a rule matches it.
	z := zoo.Start(t, "in=pidns,proc exec=%s term=count fork { name=kid leak=12 serve } leak=12 serve", s.exe)
	kid := z.Named("kid")
	config := "--config=" + s.config

	finish(t, inside(z, program(t), "run", config, "--socket=", "--mode=ebpf")).refused(t, 1, "mode ebpf is not available here", "pid namespace", "hostPID", "mode: proc")
	// The /proc of one namespace says nothing about the processes of another.
	foreign := exec.Command("nsenter", "--target", fmt.Sprint(z.PID), "--pid", "--", program(t), "scan", config)
	finish(t, foreign).refused(t, 1, "another pid namespace")

	scan := finish(t, inside(z, program(t), "scan", config))
	if scan.status != 0 || !strings.Contains(scan.stdout, "24 zombies seen under 2 parents") || !strings.Contains(scan.stderr, "pid namespace of its own") {
		t.Errorf("scan: status %d\n%s%s", scan.status, scan.stdout, scan.stderr)
	}

	k := s.startInside(z, "--mode=auto", "--scope=all")
	started := k.await("started", func(e event) bool { return e.Event == "started" })
	if started.Source != "proc" || !strings.Contains(started.Why, "pid namespace") || !strings.Contains(started.line, "processes outside it are invisible") {
		t.Errorf("why it uses /proc, and what it cannot see: %s", started.line)
	}
	// Its pids are the namespace's: the second process there is 2.
	if e := k.await("the kid's end", func(e event) bool { return e.Event == "terminated" }); e.PID != 2 || e.Zombies != 12 {
		t.Errorf("who it was: %s", e.line)
	}
	kid.WaitDead(0)
	k.saw(1, "spared protected")
	time.Sleep(2 * time.Second)
	k.wantStory(1, "spared protected", "spared protected") // the kid's zombies have come to it: they have doubled
	if c := z.Count(); c.TERM != 0 {
		t.Errorf("signals came to pid 1: %+v", c)
	}
	alive(t, z.Proc, outside.Proc)
	if c := outside.Count(); c.TERM != 0 {
		t.Errorf("signals came: %+v", c)
	}
}

// kzr as the first process of a container: orphans fall to it, and it would be a
// poor killer of zombies that kept its own.
func TestFirstProcessReaps(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cmd := command(t, "mntns proc", append(append([]string{"run"}, s.usual()...), "--threshold=1", "--scope=all", s.socket())...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	k := s.launch(cmd)
	// Each shell leaves one behind that ends later.
	script := `for i in 1 2 3 4 5 6 7 8 9 10; do sh -c 'sleep 0.2 &'; done`
	if out, err := exec.Command("nsenter", "--target", fmt.Sprint(k.pid), "--pid", "--mount", "--", "sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	zoo.Within(t, patience, "no child of kzr is left but its own", func() bool { return slices.Equal(zoo.Children(k.pid), k.kids) })
	k.silentAbout(2*time.Second, 1)
	var doc document
	s.wantAnswer("/v1/parents", &doc)
	if p, found := doc.of(1); found {
		t.Errorf("kzr leaks: %+v", p)
	}
}

func TestScenario26CannotSee(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	config := "--config=" + s.config
	z := zoo.Start(t, "in=pidns,proc exec=%s leak=12 chld=count term=count serve", s.exe)

	t.Run("no proc", func(t *testing.T) {
		for _, args := range [][]string{{"run", config, "--socket="}, {"run", config, "--socket=", "--mode=proc"}, {"scan", config}, {"scan", config, "--json"}} {
			run(t, "mntns noproc", args...).refused(t, 1, "no proc file system is mounted at /proc")
		}
	})
	t.Run("hidepid", func(t *testing.T) {
		for _, args := range [][]string{{"scan", config, "--mode=proc"}, {"scan", config, "--mode=proc", "--json"}} {
			r := run(t, "mntns hidepid nobody", args...)
			if !strings.Contains(r.stderr, "hidepid=") || !strings.Contains(r.stderr, "other users' processes are invisible") {
				t.Errorf("kzr %v does not say what it cannot see: status %d\n%s%s", args, r.status, r.stdout, r.stderr)
			}
			if r.status != 0 {
				t.Errorf("kzr %v: status %d", args, r.status)
			}
			// Also for who reads only that: nothing seen is not nothing there.
			if !strings.Contains(r.stdout, "zombies seen under") && !strings.Contains(r.stdout, `"limitations":["/proc is mounted with hidepid=`) {
				t.Errorf("kzr %v claims that there is no zombie: %s", args, r.stdout)
			}
		}
		k := s.startIn("mntns hidepid nobody", "--mode=auto")
		if e := k.await("started", func(e event) bool { return e.Event == "started" }); !strings.Contains(e.line, "other users' processes are invisible") {
			t.Errorf("it does not say what it cannot see: %s", e.line)
		}
		k.silentAbout(2500*time.Millisecond, z.PID)
	})
	// Root with CAP_SYS_PTRACE sees all the same.
	t.Run("hidepid and root", func(t *testing.T) {
		doc, r := s.scan("mntns hidepid", "--mode=proc")
		if p, _ := doc.of(z.PID); p.Reapable != 12 || r.stderr != "" || doc.Limitations != nil {
			t.Errorf("%+v\n%s", p, r.stderr)
		}
	})
	t.Run("no CAP_SYS_PTRACE", func(t *testing.T) {
		// Whose executable cannot be read, of it nothing is certain.
		cg := zoo.NewCgroup(t, "pids", "docker/"+containerID(t))
		secret := zoo.Start(t, "cgroup=%s exec=%s uid=54321 leak=12 chld=count term=count serve", cg.Dir, s.exe)
		byUID := newSite(t, "{name: mine, match: {uid: 54321}}")
		k := byUID.startIn(noPtrace, "--mode=auto")
		if e := k.await("started", func(e event) bool { return e.Event == "started" }); !strings.Contains(e.line, "no CAP_SYS_PTRACE") {
			t.Errorf("it does not say what it cannot see: %s", e.line)
		}
		k.saw(secret.PID, "spared protected")
		time.Sleep(1500 * time.Millisecond)
		k.wantStory(secret.PID, "spared protected")
		if c := secret.Count(); c.CHLD != 0 || c.TERM != 0 {
			t.Errorf("signals came: %+v", c)
		}
	})
	alive(t, z.Proc)
	if c := z.Count(); c.CHLD != 0 || c.TERM != 0 {
		t.Errorf("signals came: %+v", c)
	}
}

func TestScenario27NoBPF(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, steps string }{
		{"seccomp says EPERM", "nobpf=1"},
		{"seccomp says ENOSYS", "nobpf=38"}, // as a kernel without bpf(2) does
		{"seccomp denies the links only", "nolink=1"},
		{"no BTF", "mntns nobtf"},
		{"no capability", noBPF},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			run(t, c.steps, "run", "--config="+s.config, "--socket=", "--mode=ebpf").refused(t, 1, "mode ebpf is not available here")
			run(t, c.steps, "scan", "--config="+s.config, "--mode=ebpf").refused(t, 1, "mode ebpf is not available here")

			k := s.startIn(c.steps, "--mode=auto")
			e := k.await("started", func(e event) bool { return e.Event == "started" })
			if e.Source != "proc" || e.Why == "" || !strings.Contains(e.Msg, "/proc") {
				t.Errorf("it does not say why it uses /proc: %s", e.line)
			}
			t.Log(e.Why)
			z := zoo.Start(t, "in=pidns,proc exec=%s leak=12 serve", s.exe)
			k.saw(z.PID, "terminated")
			k.wantStory(z.PID, "signal SIGCHLD", "signal SIGKILL", "terminated")
			if doc, _ := s.scan(c.steps, "--mode=auto"); doc.Source != "proc" {
				t.Errorf("scan: source %q", doc.Source)
			}
		})
	}
}

// Where no pidfd can be had, no signal could be sent, so kzr does not begin. Who
// only looks needs none.
func TestScenario27NoPidfd(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, mode := range []string{"--mode=auto", "--mode=ebpf", "--mode=proc"} {
		run(t, "nopidfd", "run", "--config="+s.config, "--socket=", mode).refused(t, 1, "could send no signal here", "pidfd_open", "function not implemented")
	}
	z := zoo.Start(t, "in=pidns,proc exec=%s leak=12 serve", s.exe)
	doc, r := s.scan("nopidfd")
	if p, _ := doc.of(z.PID); p.Reapable != 12 {
		t.Errorf("scan: %+v\n%s", p, r.stderr)
	}
}

// Without privileges kzr shows what it can see and says what it cannot.
func TestUnprivileged(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	config := "--config=" + s.config
	theirs := zoo.Start(t, "in=pidns,proc exec=%s leak=12 chld=count term=count serve", s.exe)
	own := zoo.Start(t, "in=pidns,proc uid=%d exec=%s leak=12 serve", nobody, s.exe)

	run(t, "nobody", "run", config, "--socket=", "--mode=ebpf").refused(t, 1, "mode ebpf is not available here")

	doc, r := s.scan("nobody")
	for _, z := range []*zoo.Zoo{theirs, own} {
		if p, _ := doc.of(z.PID); p.Reapable != 12 {
			t.Errorf("scan: %+v", p)
		}
	}
	if doc.Source != "proc" || !strings.Contains(r.stderr, "no CAP_SYS_PTRACE") {
		t.Errorf("scan does not say what it cannot see: %s", r.stderr)
	}
	for line := range strings.Lines(r.stderr) {
		if !strings.HasPrefix(line, "kzr: ") {
			t.Errorf("a line without a name: %q", line)
		}
	}

	k := s.startIn("nobody", "--mode=auto")
	e := k.await("started", func(e event) bool { return e.Event == "started" })
	if e.Source != "proc" || e.Why == "" || !strings.Contains(e.line, "no CAP_SYS_PTRACE") || !strings.Contains(e.line, "no CAP_KILL") {
		t.Errorf("it does not say why it uses /proc, what it cannot see and that it cannot signal: %s", e.line)
	}
	// It can end what its own user started, and that is all.
	k.saw(own.PID, "terminated")
	own.WaitDead(0)
	if c := theirs.Count(); c.CHLD != 0 || c.TERM != 0 {
		t.Errorf("signals came: %+v", c)
	}
}

// Two daemons on one node would double every limit: the second one does not
// start.
func TestSecondDaemonIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start(s.socket())
	r := run(t, "", append(append([]string{"run"}, s.usual()...), s.socket())...)
	r.refused(t, 1, "kzr.sock")
	if _, err := os.Stat(strings.TrimPrefix(s.socket(), "--socket=")); err != nil {
		t.Errorf("the first one's socket: %v", err)
	}
}
