//go:build amd64

package reapinside

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"kzr/internal/task"
	"kzr/internal/zoo"
)

// patienceOfTest bounds every wait for something that is to happen.
const patienceOfTest = 60 * time.Second

var scratch string

// slow is how much longer things take than on a real machine: on an emulated one, for
// which what is compiled is waiting.
var slow time.Duration = 1

// launches are done by one thread, as what it starts dies with it: tests that time
// out clean nothing up. Threads of Go's do end here, see inThreadOfItsOwn.
var launches = make(chan func())

func TestMain(m *testing.M) {
	if os.Getenv("KZR_TEST_CLIENT") != "" {
		beClient() // never returns
	}
	flag.Parse()
	if os.Getenv("KZR_COMPILED") != "" {
		slow = 5 // as MS of victim.c is there
	}
	// They mostly wait: on a small machine more of them fit than it has CPUs.
	_ = flag.Set("test.parallel", strconv.Itoa(12/int(slow)))
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests need root")
		os.Exit(1)
	}
	go func() {
		runtime.LockOSThread()
		for f := range launches {
			f()
		}
	}()
	var err error
	if scratch, err = os.MkdirTemp("", "kzr-inside-"); err == nil {
		err = os.Chmod(scratch, 0o755)
	}
	if executable = os.Getenv("KZR_BIN"); err == nil && executable == "" {
		executable, err = helperThatDies("")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent(), goleak.Cleanup(func(code int) {
		os.RemoveAll(scratch)
		os.Exit(code)
	}))
}

// helperThatDies builds the helper: one that ends at a point in its work, or one
// that does not.
func helperThatDies(point string) (string, error) {
	path := filepath.Join(scratch, "helper"+point)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	cmd := exec.Command("go", "build", "-buildvcs=false", "-ldflags", "-X kzr/internal/reapinside.dieAt="+point, "-o", path, "./testdata/helper")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the helper: %w\n%s", err, out)
	}
	return path, nil
}

var compiling sync.Mutex

func victim(t *testing.T) string {
	return zoo.Compile(t, "victim", "testdata/victim.c", "-pthread", "-no-pie", "-mno-red-zone")
}

// helper starts one that ends with the test.
func helper(t *testing.T) *Helper {
	t.Helper()
	h, err := Start(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// A subject is a program with zombies below it that it knows nothing of.
type subject struct {
	t     *testing.T
	cmd   *exec.Cmd
	id    task.ID
	pidfd int
	in    io.WriteCloser
	out   *bufio.Reader
	done  chan error
}

// launch starts a program with orphans below it, and one more every so often. inNS
// makes it pid 1 of a pid namespace.
func launch(t *testing.T, inNS bool, orphans int, every time.Duration, argv ...string) *subject {
	t.Helper()
	args := []string{"launch"}
	if inNS {
		args = append(args, "-n")
	}
	args = append(args, strconv.Itoa(orphans), strconv.Itoa(int(every/time.Microsecond)))
	s := &subject{t: t, cmd: exec.Command(victim(t), append(args, argv...)...), done: make(chan error, 1)}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.cmd.Dir = scratch
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Stdout = w
	said, stderr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Stderr = stderr
	launches <- func() { err = s.cmd.Start() }
	launches <- func() {}
	w.Close()
	stderr.Close()
	if err != nil {
		t.Fatal(err)
	}
	s.out = bufio.NewReader(out)
	lines := bufio.NewReader(said)
	first, _ := lines.ReadString('\n')
	var complaints bytes.Buffer
	var copying sync.WaitGroup
	copying.Go(func() { _, _ = io.Copy(&complaints, lines) })
	if _, err := fmt.Sscanf(first, "PID %d", &s.id.PID); err != nil {
		t.Fatalf("launching %v: %q", argv, first)
	}
	st, ok := statOf(s.id.PID)
	if !ok {
		t.Fatalf("%v is gone", argv)
	}
	s.id.Start = st.start
	if s.pidfd, err = unix.PidfdOpen(s.id.PID, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.PidfdSendSignal(s.pidfd, unix.SIGKILL, nil, 0)
		_ = s.cmd.Process.Kill()
		if len(s.done) == 0 {
			_ = s.cmd.Wait()
		}
		unix.Close(s.pidfd)
		out.Close()
		said.Close()
		copying.Wait()
		if t.Failed() && complaints.Len() > 0 {
			t.Logf("%v: %s", argv, complaints.Bytes())
		}
	})
	return s
}

// line reads one of its output.
func (s *subject) line() string {
	s.t.Helper()
	text, err := s.out.ReadString('\n')
	if err != nil && text == "" {
		s.t.Fatalf("process %v: %v, %s", s.id, err, s.stateNow())
	}
	return strings.TrimSpace(text)
}

func (s *subject) stateNow() string {
	st, ok := statOf(s.id.PID)
	if !ok || st.start != s.id.Start {
		return "dead"
	}
	return string(st.state)
}

// waited is its exit status.
func (s *subject) waited() error {
	err := s.cmd.Wait()
	s.done <- err
	return err
}

func statOf(pid int) (stat, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, false
	}
	return parseStat(b)
}

// orphans are its zombies that are not of its own making.
func (s *subject) orphans() (all []task.Zombie) {
	return s.zombies("(orphan)")
}

func (s *subject) zombies(comm string) (all []task.Zombie) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.id.PID))
	for _, list := range lists {
		b, _ := os.ReadFile(list)
		for field := range strings.FieldsSeq(string(b)) {
			pid, _ := strconv.Atoi(field)
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil || !bytes.Contains(text, []byte(comm)) {
				continue
			}
			if st, ok := parseStat(text); ok && st.state == 'Z' && st.ppid == s.id.PID {
				all = append(all, task.NewZombie(pid, st.start, 0, task.Adopted))
			}
		}
	}
	return all
}

// settled waits until it has so many orphans.
func (s *subject) settled(n int) []task.Zombie {
	s.t.Helper()
	for deadline := time.Now().Add(patienceOfTest); ; time.Sleep(2 * time.Millisecond) {
		all := s.orphans()
		if len(all) == n {
			return all
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("process %v has %d orphans, not %d", s.id, len(all), n)
		}
	}
}

// stance is what the iterator tells of it, as far as /proc does. What the test knows
// better it changes.
func (s *subject) stance(change func(*task.Stance)) func(context.Context) (task.Stance, error) {
	return func(context.Context) (task.Stance, error) {
		st := task.Stance{CS: 0x33, MayWait: true}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.id.PID))
		if err != nil {
			return st, task.ErrGone
		}
		var pending, blocked uint64
		for line := range strings.Lines(string(status)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
			switch key {
			case "Seccomp":
				st.Seccomp, _ = strconv.Atoi(value)
			case "Seccomp_filters":
				st.Filters, _ = strconv.Atoi(value)
			case "SigPnd", "ShdPnd":
				n, _ := strconv.ParseUint(value, 16, 64)
				pending |= n
			case "SigBlk":
				blocked, _ = strconv.ParseUint(value, 16, 64)
			}
		}
		st.Pending = pending &^ blocked
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/syscall", s.id.PID, s.id.PID))
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			return st, err
		}
		fields := strings.Fields(string(text))
		if len(fields) > 7 {
			st.InCall = true
			st.Call, _ = strconv.ParseInt(fields[0], 10, 64)
			for i := range st.Args {
				st.Args[i], _ = strconv.ParseUint(fields[1+i], 0, 64)
			}
		}
		if change != nil {
			change(&st)
		}
		return st, nil
	}
}

// reap reaps all its orphans, or some.
func (s *subject) reap(h *Helper, zombies []task.Zombie, change func(*task.Stance)) (Result, error) {
	return h.Reap(context.Background(), s.pidfd, Request{Parent: s.id, Zombies: zombies, Stance: s.stance(change)})
}
