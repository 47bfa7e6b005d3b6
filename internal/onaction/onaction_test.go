package onaction

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/footprint"
	"kzr/internal/report"
	"kzr/internal/task"
	"kzr/internal/trail"
)

// TestMain ignores SIGCHLD as the daemon does, and plays the daemon in the tests that
// need a process of their own.
func TestMain(m *testing.M) {
	signal.Ignore(unix.SIGCHLD)
	if play := os.Getenv("KZR_TEST_PLAY"); play != "" {
		os.Exit(map[string]func() int{"full": playFull, "ambient": playAmbient}[play]())
	}
	os.Exit(m.Run())
}

// outcome is one that has everything.
func outcome() trail.Outcome {
	now := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	p := &task.Process{
		ID: task.ID{PID: 4242, Start: 99}, Exe: "/bin/evil\n\x1b[31m", Workload: "shop/web-1/app",
		Container: &task.Container{Runtime: "containerd", ID: strings.Repeat("ab", 32), PodUID: "u-1", Pod: "web-1", Namespace: "shop", Name: "app"},
	}
	p.Comm, p.UID, p.State, p.Threads = "node", 1000, 'S', 1
	signalled := report.Event{Time: now.Add(-time.Second), Name: report.EventSignal, Signal: "SIGKILL", Message: "sent SIGKILL", Process: p, Reapable: 60}
	e := report.Event{Time: now, Name: report.EventTerminated, Message: "exited after SIGKILL", Process: p, Zombies: 62, Reapable: 60, Oldest: time.Minute, Rule: "tenants"}
	return trail.Outcome{Event: e, Steps: []report.Event{signalled, e}, Advice: []string{"Reap."}}
}

// log collects what is logged.
type log struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.String()
}

// runner runs a shell script, in the test only.
func runner(t *testing.T, script string, timeout time.Duration) (*Runner, *log, func() map[string]int) {
	t.Helper()
	var mu sync.Mutex
	counts := make(map[string]int)
	l := new(log)
	r := New(Options{
		Command: []string{"/bin/sh", "-c", script, "command"}, Timeout: timeout, Node: "node7",
		Log: slog.New(slog.NewTextHandler(l, nil)),
		Count: func(result string) {
			mu.Lock()
			defer mu.Unlock()
			counts[result]++
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { r.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return r, l, func() map[string]int {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(counts)
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20s: %s", what)
		}
	}
}

func TestCommandGetsTheDocument(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("KZR_SECRET", "not for the command")
	r, l, counts := runner(t, "cat >"+dir+"/document; env >"+dir+"/env; pwd >"+dir+"/pwd", 0)
	r.Offer(outcome())
	eventually(t, "the command ran", func() bool { return counts()[Sent] == 1 })
	data, err := os.ReadFile(dir + "/document")
	if err != nil {
		t.Fatal(err)
	}
	var d Document
	if err := json.Unmarshal(data, &d); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	if bytes.Count(data, []byte("\n")) != 1 || d.Node != "node7" || d.Namespace != "shop" || d.Pod != "web-1" || d.Event != "terminated" ||
		d.Reapable != 60 || d.OldestSeconds != 60 || len(d.Advice) != 1 || len(d.Trail) != 2 || d.Trail[0].Signal != "SIGKILL" {
		t.Errorf("the document is %s", data)
	}
	if d.Exe != `/bin/evil\n\x1b[31m` {
		t.Errorf("exe is %q", d.Exe)
	}
	env, _ := os.ReadFile(dir + "/env")
	for line := range strings.Lines(string(env)) {
		switch name, _, _ := strings.Cut(line, "="); name {
		case "PATH", "LANG", "PWD", "SHLVL", "_", "OLDPWD": // the latter are the shell's own
		default:
			t.Errorf("the environment has %s", line)
		}
	}
	if pwd, _ := os.ReadFile(dir + "/pwd"); string(pwd) != "/\n" {
		t.Errorf("the command ran in %s", pwd)
	}
	if !strings.Contains(l.String(), "status=0") {
		t.Errorf("the log is %s", l)
	}
}

// TestStatusAndStderr also is about SIGCHLD, which is ignored: without more, no status
// would be known.
func TestStatusAndStderr(t *testing.T) {
	r, l, counts := runner(t, "echo no such chat >&2; exit 3", 0)
	r.Offer(outcome())
	eventually(t, "the command failed", func() bool { return counts()[Failed] == 1 })
	if s := l.String(); !strings.Contains(s, "status=3") || !strings.Contains(s, "no such chat") {
		t.Errorf("the log is %s", s)
	}
}

func TestMuchStderr(t *testing.T) {
	r, l, counts := runner(t, "head -c 1000000 /dev/zero | tr '\\0' x >&2", 10*time.Second)
	r.Offer(outcome())
	eventually(t, "the command ran", func() bool { return counts()[Sent] == 1 })
	if n := strings.Count(l.String(), "x"); n < maxStderr || n > maxStderr+100 {
		t.Errorf("%d bytes of standard error were logged, not %d", n, maxStderr)
	}
}

func TestSignalledCommand(t *testing.T) {
	r, l, counts := runner(t, "kill -SEGV $$", 0)
	r.Offer(outcome())
	eventually(t, "the command failed", func() bool { return counts()[Failed] == 1 })
	if !strings.Contains(l.String(), "signal=SIGSEGV") {
		t.Errorf("the log is %s", l)
	}
}

func TestNoSuchCommand(t *testing.T) {
	r, l, counts := runner(t, "", 0)
	r.opts.Command = []string{"/no/such/command"}
	r.Offer(outcome())
	eventually(t, "it is refused", func() bool { return counts()[Refused] == 1 })
	if s := l.String(); !strings.Contains(s, "cannot be started") || !strings.Contains(s, "no such file") {
		t.Errorf("the log is %s", s)
	}
}

// TestTimeout also looks for what the command left behind.
func TestTimeout(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	r, l, counts := runner(t, "sleep 1000 & echo $! >"+file+"; wait", 500*time.Millisecond)
	r.Offer(outcome())
	eventually(t, "its time was up", func() bool { return counts()[Failed] == 1 })
	if !strings.Contains(l.String(), "its time was up") {
		t.Errorf("the log is %s", l)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	eventually(t, "its child is gone", func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
}

// TestLeftBehind: what a command starts and leaves ends with it.
func TestLeftBehind(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	r, _, counts := runner(t, "sleep 1000 & echo $! >"+file, 10*time.Second)
	r.Offer(outcome())
	eventually(t, "the command ran", func() bool { return counts()[Sent] == 1 })
	data, _ := os.ReadFile(file)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	eventually(t, "its child is gone", func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
}

func TestOneAtATimeAndNeverInTheWay(t *testing.T) {
	dir := t.TempDir()
	r, l, counts := runner(t, "mkdir "+dir+"/lock || exit 9; sleep .02; rmdir "+dir+"/lock", 0)
	began := time.Now()
	for range 200 {
		r.Offer(outcome())
	}
	if took := time.Since(began); took > 100*time.Millisecond {
		t.Errorf("200 outcomes took %v", took)
	}
	eventually(t, "all are counted", func() bool { c := counts(); return c[Sent]+c[Failed]+c[Dropped] == 200 })
	if c := counts(); c[Failed] > 0 || c[Sent] < queued || c[Dropped] < 200-2*queued {
		t.Errorf("%v", c)
	}
	if !strings.Contains(l.String(), "did not run for every outcome") {
		t.Error("the log does not say that outcomes were dropped")
	}
}

// TestOthersAreReaped: children of kzr's that end while a command runs do not stay.
func TestOthersAreReaped(t *testing.T) {
	r, _, counts := runner(t, "sleep .3", 0)
	r.Offer(outcome())
	time.Sleep(100 * time.Millisecond)
	other := exec.Command("/bin/true")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the command ran", func() bool { return counts()[Sent] == 1 })
	eventually(t, "the other child is reaped", func() bool { return unix.Kill(other.Process.Pid, 0) == unix.ESRCH })
}

// TestNoThread: a command that runs holds no thread of kzr's.
func TestNoThread(t *testing.T) {
	r, _, counts := runner(t, "sleep .05", 0)
	for range 3 {
		r.Offer(outcome())
	}
	eventually(t, "the first commands ran", func() bool { return counts()[Sent] == 3 })
	before := blocked(t)
	slow, _, slowCounts := runner(t, "sleep 1", 0)
	slow.Offer(outcome())
	time.Sleep(500 * time.Millisecond)
	if during := blocked(t); during > before {
		t.Errorf("%d threads wait in wait4, waitid or read while a command runs, %d before", during, before)
	}
	eventually(t, "the slow command ran", func() bool { return slowCounts()[Sent] == 1 })
}

// blocked counts threads of this process in a system call that waits for a child or
// a pipe.
func blocked(t *testing.T) (n int) {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range threads {
		call, _ := os.ReadFile("/proc/self/task/" + d.Name() + "/syscall")
		number, _, _ := strings.Cut(string(call), " ")
		switch number {
		case strconv.Itoa(unix.SYS_WAIT4), strconv.Itoa(unix.SYS_WAITID), strconv.Itoa(unix.SYS_READ):
			if d.Name() != strconv.Itoa(unix.Gettid()) {
				n++
			}
		}
	}
	return n
}

// play runs this test's binary as somebody else.
func play(t *testing.T, name string, attr *unix.SysProcAttr) string {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "kzr-onaction") // t.TempDir is root's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	exe := dir + "/play"
	if err := os.WriteFile(exe, self, 0o755); err != nil {
		t.Fatal(err)
	}
	out, status := dir+"/out", dir+"/status"
	cmd := exec.Command("/bin/sh", "-c", `"$0" >`+out+` 2>&1; echo $? >`+status, exe)
	cmd.Env = []string{"KZR_TEST_PLAY=" + name, "KZR_TEST_DIR=" + dir}
	cmd.SysProcAttr, cmd.Dir = attr, "/"
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the play has ended", func() bool {
		s, err := os.ReadFile(status)
		return err == nil && len(s) > 0
	})
	text, _ := os.ReadFile(out)
	if s, _ := os.ReadFile(status); string(s) != "0\n" {
		t.Fatalf("status %s%s", s, text)
	}
	return string(text)
}

// TestNothingCanFork: the limit on processes holds for threads too, and the Go runtime
// ends a program that cannot have one.
func TestNothingCanFork(t *testing.T) {
	out := play(t, "full", &unix.SysProcAttr{Credential: &syscall.Credential{Uid: 64738, Gid: 64738}})
	if !strings.Contains(out, "no process can be started now") {
		t.Errorf("it says %s", out)
	}
	if !strings.Contains(out, "after: sent=1 refused=3") {
		t.Errorf("the command did not run once processes could be made again: %s", out)
	}
}

func playFull() int {
	runtime.GOMAXPROCS(2) // as daemon.Settle does
	footprint.SpareThreads(24)
	counts := make(map[string]int)
	r := New(Options{Command: []string{"/bin/true"}, Log: slog.New(slog.NewTextHandler(os.Stdout, nil)), Count: func(s string) { counts[s]++ }})
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &old); err != nil {
		fmt.Println(err)
		return 1
	}
	if err := unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: 1, Max: old.Max}); err != nil {
		fmt.Println(err)
		return 1
	}
	o := outcome()
	for range 3 {
		r.tell(context.Background(), &o)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NPROC, &old); err != nil {
		fmt.Println(err)
		return 1
	}
	r.tell(context.Background(), &o)
	fmt.Printf("after: sent=%d refused=%d\n", counts[Sent], counts[Refused])
	return 0
}

// TestNoCapabilities: the command of a kzr that systemd gave capabilities has none, and
// kzr keeps its own.
func TestNoCapabilities(t *testing.T) {
	out := play(t, "ambient", &unix.SysProcAttr{
		Credential:  &syscall.Credential{Uid: 64738, Gid: 64738},
		AmbientCaps: []uintptr{unix.CAP_KILL, unix.CAP_SYS_PTRACE},
	})
	want := fmt.Sprintf("%016x", 1<<unix.CAP_KILL|1<<unix.CAP_SYS_PTRACE)
	if !strings.Contains(out, "command CapEff:\t0000000000000000") || !strings.Contains(out, "kzr CapAmb:\t"+want) {
		t.Errorf("it says %s", out)
	}
}

func playAmbient() int {
	file := os.Getenv("KZR_TEST_DIR") + "/caps"
	r := New(Options{
		Command: []string{"/bin/sh", "-c", "grep CapEff /proc/self/status >" + file},
		Log:     slog.New(slog.NewTextHandler(os.Stdout, nil)),
	})
	o := outcome()
	r.tell(context.Background(), &o)
	caps, err := os.ReadFile(file)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Printf("command %s", caps)
	threads, _ := filepath.Glob("/proc/self/task/*/status")
	for _, f := range threads { // all of them, as any may start the next command
		status, _ := os.ReadFile(f)
		for line := range strings.Lines(string(status)) {
			if strings.HasPrefix(line, "CapAmb") {
				fmt.Printf("kzr %s", line)
			}
		}
	}
	return 0
}
