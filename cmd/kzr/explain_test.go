package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/zoo"
)

// explanationOf is what explain says of a process, without line ends.
func explanationOf(t *testing.T, kzr string, pid int, args ...string) string {
	t.Helper()
	out, err := exec.Command(kzr, append([]string{"explain", fmt.Sprint(pid), "--socket", "/nonexistent/s"}, args...)...).Output()
	if err != nil {
		t.Fatalf("explain %d: %v", pid, err)
	}
	return strings.Join(strings.Fields(string(out)), " ")
}

// Real parents of each kind, and what a reader must find about them, or must not.
func TestExplainByKind(t *testing.T) {
	kzr := program(t)
	t.Setenv("KZR_NODE_NAME", "node-17")
	for _, tc := range []struct {
		name, script string
		proc         string   // whom it is about; "" is main
		want, not    []string // KID and PARENT are pids
	}{
		{"waits for one child", "fork=pidns,proc { name=parent comm=job leak=60 fork { name=kid comm=slow serve } serve } serve", "parent",
			[]string{"waiting for one particular child, process KID (slow)", "Usually nothing: it reaps once process KID exits", "waits for KID (slow)"},
			[]string{"never reaped a child and does not", "Give the container an init", "orphan"}},
		{"stopped", "fork=pidns,proc { name=parent leak=60 serve } serve", "parent",
			[]string{"It is stopped (SIGSTOP or job control)", "kill -CONT PARENT", "stopped, 1 thread"}, []string{"does not handle SIGCHLD", "an init", "wait for every child"}},
		{"one who is given children", "fork=pidns,proc { fork { name=parent fork { name=kid comm=worker uid=65534 serve } serve } serve } serve", "parent",
			[]string{"60 of them were put on it (CLONE_", "another process put them on it", "Those that are alive: KID (worker)"}, []string{"wait for every child", "does not handle SIGCHLD"}},
		{"a tracer that holds them", "fork=pidns,proc { chld=reap hold=60 { name=parent serve } serve } serve", "parent",
			[]string{"It has 60 zombies that it could reap", "It traces these processes", "Make process PARENT wait for what it traces, or detach"}, []string{"wait for every child", "does not handle SIGCHLD"}},
		{"traced by its own child", "fork=pidns,proc { name=parent leak=60 fork { name=kid trace=parent serve } serve } serve", "parent",
			[]string{"traced by its own child, process KID: no debugger", "kill -KILL KID"}, nil},
		{"traced by another", "fork=pidns,proc { name=parent leak=60 serve } fork { name=kid serve } serve", "parent",
			[]string{"It is traced by process KID, such as a debugger", "make it detach (process KID)"}, []string{"own child"}},
		{"in vfork", "fork=pidns,proc { name=parent leak=60 serve } serve", "parent",
			[]string{"uninterruptible sleep, in the kernel function", "waits for a vforked child", "SIGKILL works on it"}, []string{"disk"}},
		{"a dead leader", "fork=pidns,proc { name=parent leak=60 deadleader serve } serve", "parent",
			[]string{"Its main thread has exited, which is why ps shows it as a zombie; 1 other thread is still running", "It has 60 zombies that it could reap"}, []string{"is a zombie. Its parent"}},
		{"a sleep as pid 1", "fork=pidns,proc { name=parent leak=60 serve } serve", "parent",
			[]string{"host node-17", "reaping its adopted zombies inside it", "(sleep) is pid 1 of", "sleep never waits for children", "SIGTERM (the kernel drops it", "The container ends"}, nil},
		{"an init that takes others along", "fork=pidns,proc { name=parent leak=60 fork { serve } fork { serve } serve } serve", "parent",
			[]string{"2 other processes of its container end with it", "The container ends"}, []string{"another parent"}},
		{"a worker that leaves orphans", "fork=pidns,proc { chld=reap fork { name=parent leak=60 fork { serve } serve } serve } serve", "parent",
			[]string{"Its live child lives on and gets another parent"}, []string{"The container ends"}},
		{"an init that cannot end", "fork=pidns { name=parent fork { name=kid serve } serve } fork { name=tracer comm=tracer serve } serve", "parent",
			[]string{"It is exiting.", "waits for 1 dead process of its pid namespace that process TRACER (tracer) traces",
				"kzr sends no further signal: it is already exiting, and waits for process TRACER (tracer) to detach from 1 dead process.", "Why it does not end", "Make process TRACER (tracer) detach, or end it."}, []string{"What SIGKILL would"}},
		{"a shim with the zombies of a container", "fork { cgroup=%[2]s exec=%[1]s/containerd-shim-runc-v2,containerd-shim-runc-v2,-namespace,k8s.io,-id,0123456789abcdef name=parent fork=times=60 { cgroup=%[3]s exit } serve } serve", "parent",
			[]string{"belongs to a container runtime (containerd-shim-runc-v2) and serves container 0123456789ab", "They came from 0123456789ab (60).", "kill -CHLD PARENT", "replaces the shim"},
			[]string{"Give the container an init", "In containerd-shim"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			script := tc.script
			if strings.Contains(script, "%[") {
				dir := t.TempDir()
				if err := unix.Chmod(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				zoo.Install(t, filepath.Join(dir, "containerd-shim-runc-v2"))
				node := zoo.NewCgroup(t, "pids", "system.slice/containerd.service")
				script = fmt.Sprintf(script, dir, node.Dir, unified(t, "docker/"+strings.Repeat("0123456789abcdef", 4)))
			}
			z := zoo.Start(t, "%s", script)
			pid := z.PID
			if tc.proc != "" {
				pid = z.Named(tc.proc).PID
			}
			replace := []string{"PARENT", fmt.Sprint(pid)}
			for _, name := range []string{"kid", "tracer"} {
				if strings.Contains(script, "name="+name+" ") {
					replace = append(replace, strings.ToUpper(name), fmt.Sprint(z.Named(name).PID))
				}
			}
			switch tc.name {
			case "traced by another":
				z.Named("kid").Do("trace=%d", pid)
			case "an init that cannot end":
				z.Named("tracer").Do("trace=%d", z.Named("kid").PID)
				z.Named("parent").Signal(unix.SIGKILL)
				zoo.Within(t, patience, "its member to be dead", func() bool { return zoo.State(z.Named("kid").PID) == 'Z' })
			case "in vfork":
				z.Named("parent").Do("vfork")
				zoo.Within(t, patience, "state D", func() bool { return zoo.State(pid) == 'D' })
			case "one who is given children":
				z.Named("kid").Do("leak=60,sibling")
			case "stopped":
				z.Named("parent").Signal(unix.SIGSTOP) // its own it would not heed, as pid 1
				zoo.Within(t, patience, "state T", func() bool { return zoo.State(pid) == 'T' })
			case "a sleep as pid 1":
				z.Named("parent").Do("exec=/bin/sleep,sleep,1000")
				zoo.Within(t, patience, "exec", func() bool { return commOf(pid) == "sleep" })
			case "a dead leader":
				zoo.Within(t, patience, "state Z", func() bool { return zoo.State(pid) == 'Z' })
			case "waits for one child":
				z.Named("parent").Do("await")
				zoo.Within(t, patience, "it to wait", func() bool { return strings.Contains(wchanOf(pid), "wait") })
			}
			out := explanationOf(t, kzr, pid)
			r := strings.NewReplacer(replace...)
			for _, want := range tc.want {
				if want = r.Replace(want); !strings.Contains(out, want) {
					t.Errorf("does not say %q:\n%s", want, out)
				}
			}
			for _, not := range tc.not {
				if strings.Contains(out, r.Replace(not)) {
					t.Errorf("says %q:\n%s", not, out)
				}
			}
		})
	}
}

// A daemon tells what it has watched, and why it reaps inside nobody.
func TestExplainAsksTheDaemon(t *testing.T) {
	kzr := program(t)
	for _, tc := range []struct {
		name, mode, script string
		want, not          []string
	}{
		{"eBPF sees who forked them", "--mode=ebpf", "fork=pidns,proc { name=parent leak=60 serve } serve",
			[]string{"none is adopted: it forked them itself", "Skipped: reaping inside it (none of its zombies is known to be adopted)"},
			[]string{"orphan", "Run an init", "not available"}},
		{"in proc mode it cannot", "--mode=proc", "fork=pidns,proc { name=parent leak=60 serve } serve",
			[]string{"Skipped: reaping inside it (it needs eBPF, and mode is proc)", "Run an init", "not possible: it needs eBPF, and mode is proc"},
			[]string{"it forked them itself", "not available"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "kzr-explain-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			socket := filepath.Join(dir, "s")
			startDaemon(t, kzr, "--socket", socket, "--cri", "", "--dry-run", "--grace", "1h", tc.mode)
			time.Sleep(50 * time.Millisecond) // what began in the tick of its start may be older
			pid := zoo.Start(t, "%s", tc.script).Named("parent").PID
			out := explanationOf(t, kzr, pid, "--socket", socket)
			for _, want := range tc.want {
				if !strings.Contains(out, want) {
					t.Errorf("does not say %q:\n%s", want, out)
				}
			}
			for _, not := range tc.not {
				if strings.Contains(out, not) {
					t.Errorf("says %q:\n%s", not, out)
				}
			}
		})
	}
}

const patience = 30 * time.Second

func procFile(pid int, name string) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name)) // "" once it is gone
	return strings.TrimSpace(string(b))
}

func commOf(pid int) string  { return procFile(pid, "comm") }
func wchanOf(pid int) string { return procFile(pid, "wchan") }

// A shell session in a container, entered from outside, is named among what a kill
// would take along.
func TestExplainNamesSessions(t *testing.T) {
	kzr := program(t)
	z := zoo.Start(t, "fork=pidns,proc { name=init leak=60 serve } serve")
	session := exec.Command("nsenter", "-t", fmt.Sprint(z.Named("init").PID), "-p", "sleep", "1000")
	session.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := session.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-session.Process.Pid, syscall.SIGKILL)
		_ = session.Wait()
	}()
	pid := 0
	zoo.Within(t, patience, "the session", func() bool {
		for _, child := range zoo.Children(session.Process.Pid) {
			if commOf(child) == "sleep" {
				pid = child
			}
		}
		return pid != 0
	})
	want := fmt.Sprintf("1 other process of its container ends with it, among them what was started in it from outside (exec, probes, builds): %d (sleep)", pid)
	if out := explanationOf(t, kzr, z.Named("init").PID); !strings.Contains(out, want) {
		t.Errorf("does not say %q:\n%s", want, out)
	}
}

// unified makes a cgroup in the unified hierarchy, which is the one that a zombie's
// path is still told of, and which need not be mounted.
func unified(t *testing.T, path string) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "cgroup2")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	dir := root
	for name := range strings.SplitSeq(fmt.Sprintf("kzr-test-explain-%d/%s", os.Getpid(), path), "/") {
		dir = filepath.Join(dir, name)
		made := dir
		if err := os.Mkdir(made, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			zoo.Within(t, patience, "removing "+made, func() bool { return os.Remove(made) == nil })
		})
	}
	return dir
}
