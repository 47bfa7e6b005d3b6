//go:build amd64

package reapinside

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
	"kzr/internal/zoo"
)

// record says, for docs/RELIABILITY.md, how often something was tried and what came
// of it.
func record(t *testing.T, times int, format string, args ...any) {
	t.Helper()
	t.Logf(format, args...)
	if t.Failed() {
		return
	}
	t.Attr("times", strconv.Itoa(times))
	t.Attr("result", fmt.Sprintf(format, args...))
}

// Each call that a parent can be blocked in is interrupted, zombies are reaped, and it
// goes on: it returns what it would have returned, when it would have, or, where a
// timeout had to begin anew, that much later, which the answer says. Those that cannot
// go on without a trace are not interrupted.
func TestScenario57BlockingCalls(t *testing.T) {
	blocked, interrupted := 800*slow*time.Millisecond, 500*slow*time.Millisecond
	h := helper(t)
	cases := []struct {
		name, want string
		refused    Refusal
		timeout    time.Duration
		unbounded  bool // a timeout that cannot be seen
	}{
		{name: "nanosleep", want: "0 -"},
		{name: "clock_nanosleep_abs", want: "0 -"},
		{name: "poll_timeout", want: "0 -"},
		{name: "poll", want: "1 -"},
		{name: "ppoll_timeout", want: "0 -"},
		{name: "select_timeout", want: "0 -"},
		{name: "pselect_timeout", want: "0 -"},
		{name: "epoll_wait_timeout", want: "0 -", timeout: blocked},
		{name: "epoll_wait", want: "1 -"},
		{name: "epoll_pwait_signal", want: "-1 EINTR"},
		{name: "epoll_pwait2_timeout", want: "0 -", timeout: blocked},
		{name: "read_pipe", want: "1 -"},
		{name: "read_tty", want: "2 -"},
		{name: "read_inotify", want: "1 -"},
		{name: "read_eventfd", want: "8 -"},
		{name: "read_signalfd", want: "1 -"},
		{name: "read_timerfd", want: "8 -"},
		{name: "recv", want: "1 -"},
		{name: "recvmsg", want: "1 -"},
		{name: "recv_timeout", want: "-1 EAGAIN", timeout: maxTimeout, unbounded: true},
		{name: "recv_all", want: "20 -", refused: InCall},
		{name: "accept", want: "1 -"},
		{name: "accept4", want: "1 -"},
		{name: "accept_timeout", want: "-1 EAGAIN", timeout: maxTimeout, unbounded: true},
		{name: "connect_unix", want: "0 -", refused: InCall},
		{name: "connect_tcp", want: "0 -", refused: InCall},
		{name: "futex", want: "0 -"},
		{name: "futex_timeout", want: "-1 ETIMEDOUT"},
		{name: "futex_abs", want: "-1 ETIMEDOUT"},
		{name: "futex_lock_pi", want: "0 -", refused: InCall},
		{name: "futex_waitv", want: "0 -"},
		{name: "pause", want: "-1 EINTR"},
		{name: "sigsuspend", want: "-1 EINTR"},
		{name: "sigtimedwait", want: "-1 EAGAIN", timeout: blocked},
		{name: "sigwaitinfo", want: "10 -"},
		{name: "semop", want: "0 -"},
		{name: "semop_call", want: "0 -"},
		{name: "semtimedop", want: "-1 EAGAIN", timeout: blocked},
		{name: "msgrcv", want: "8 -"},
		{name: "mq_receive", want: "1 -"},
		{name: "mq_timedreceive", want: "-1 ETIMEDOUT"},
		{name: "flock", want: "0 -"},
		{name: "fcntl_lock", want: "0 -", refused: InCall},
		{name: "wait4", want: "7 -"},
		{name: "waitid", want: "7 -"},
		{name: "io_getevents", want: "0 -", timeout: blocked},
		{name: "io_uring_enter", want: "0 -"},
		{name: "io_uring_submit", want: "1 -", refused: InCall},
		{name: "write_pipe", want: "1048576 -", refused: InCall},
		{name: "send", want: "4194304 -", refused: InCall},
		{name: "sendfile", want: "1048576 -", refused: InCall},
		{name: "open_fifo", want: "1 -", refused: InCall},
		{name: "vfork", want: "1 -", refused: Uninterruptible},
		{name: "busy", want: "1 -"},
	}
	var mu sync.Mutex
	var stops []time.Duration
	t.Run("calls", func(t *testing.T) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				needs(t, c.name)
				s := launch(t, false, 3, 0, victim(t), "call", c.name)
				if got := s.line(); got != "READY" {
					t.Fatal(got)
				}
				began := time.Now()
				orphans := s.settled(3)
				time.Sleep(time.Until(began.Add(interrupted)))
				patience := 150 * slow * time.Millisecond
				if c.refused == None {
					patience = 250 * slow * time.Millisecond
				}
				res, err := s.reapAll(h, Request{Parent: s.id, Zombies: orphans, Stance: s.stance(nil), Patience: patience})
				at := time.Since(began)
				if err != nil {
					t.Error(err)
				}
				if res.Refusal != c.refused || c.refused == None && res.Reaped != 3 || c.refused != None && (res.Reaped != 0 || res.Stopped != 0) {
					t.Errorf("%+v", res)
				}
				if res.Timeout != c.timeout {
					t.Errorf("timeout %v, not %v", res.Timeout, c.timeout)
				}
				line := s.line()
				i := strings.LastIndexByte(line, ' ')
				ms, _ := strconv.Atoi(line[i+1:])
				if line[:i] != c.want {
					t.Errorf("it returned %s, not %s", line[:i], c.want)
				}
				took, most := time.Duration(ms)*time.Millisecond, blocked+400*slow*time.Millisecond
				if c.timeout != 0 {
					most += at
				}
				if c.name == "connect_tcp" || c.name == "busy" {
					most += slow * time.Second // a retransmission; twice the work
				}
				// What ends the call begins to wait a little earlier than it.
				if took < blocked-150*slow*time.Millisecond || took > most {
					t.Errorf("it returned after %v", took)
				}
				mu.Lock()
				stops = append(stops, res.Longest)
				mu.Unlock()
			})
		}
	})
	slices.Sort(stops)
	record(t, len(cases), "blocked in each, reaped or refused as it should be, and each returned as if nothing had been; longest stop %v", stops[len(stops)-1].Round(10*time.Microsecond))
}

// needs skips what this machine's kernel is too old for.
func needs(t *testing.T, name string) {
	t.Helper()
	for _, n := range []struct {
		name         string
		major, minor int
		why          string
	}{
		{"epoll_pwait2_timeout", 5, 11, "there is no such call"},
		{"futex_waitv", 5, 16, "there is no such call"},
		{"user dispatch", 5, 11, "there is none"},
		{"user dispatch after the stance", 6, 4, "a tracer is not told"},
		{"frozen", 5, 15, "only the stance tells, which kzr cannot read"},
		{"busy", 5, 13, "a tracer is not told of restartable sequences, and outside a call there may be one"},
		{"spinning", 5, 13, "a tracer is not told of restartable sequences, and outside a call there may be one"},
	} {
		if n.name == name && !zoo.KernelAtLeast(t, n.major, n.minor) {
			t.Skipf("before Linux %d.%d %s", n.major, n.minor, n.why)
		}
	}
}

// reapAll is one request; an emulated machine may need several for its zombies.
func (s *subject) reapAll(h *Helper, req Request) (Result, error) {
	res, err := h.Reap(context.Background(), s.pidfd, req)
	for tries := 1; slow > 1 && err == nil && res.Left > 0 && (res.Refusal == None || res.Refusal == RestartableSequence) && tries < 100; tries++ {
		had := res
		req.Zombies = s.orphans()
		if res, err = h.Reap(context.Background(), s.pidfd, req); err == nil {
			res.Reaped, res.Batches, res.Stopped = res.Reaped+had.Reaped, res.Batches+had.Batches, res.Stopped+had.Stopped
			res.Longest = max(res.Longest, had.Longest)
		}
	}
	return res, err
}

// What must not be touched is not, and goes on.
func TestScenario58Refusals(t *testing.T) {
	h := helper(t)
	none := func(*task.Stance) {}
	forbids := func(st *task.Stance) { st.MayWait = false }
	be := func(name string) []string { return []string{victim(t), "be", name} }
	frozen := Uninterruptible
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		frozen = Frozen // in version 2 it sleeps like any other
	}
	cases := []struct {
		name   string
		argv   []string
		change func(*task.Stance)
		do     func(t *testing.T, s *subject) // before
		want   Refusal
	}{
		{name: "sleep", argv: be("sleep"), want: None},
		{name: "spinning", argv: be("spin"), want: None},
		{name: "seccomp strict", argv: be("strict"), want: SeccompStrict},
		{name: "filter kills", argv: be("filter_kill"), change: forbids, want: SeccompFilter},
		{name: "filter fails", argv: be("filter_errno"), change: forbids, want: SeccompFilter},
		{name: "filter traps", argv: be("filter_trap"), change: forbids, want: SeccompFilter},
		{name: "filter looks at arguments", argv: be("filter_args"), change: forbids, want: SeccompFilter},
		{name: "filter allows", argv: be("filter_allow"), want: None},
		// Should kzr be wrong about a filter, that is seen and it does no harm.
		{name: "filter fails, unknown", argv: be("filter_errno"), want: WaitFailed},
		{name: "filter traps, unknown", argv: be("filter_trap"), want: WaitFailed},
		{name: "filter after the stance", argv: be("filter_late"), want: SeccompChanged, do: func(t *testing.T, s *subject) {
			s.in.Write([]byte("x"))
			s.until(func() bool { return s.status("Seccomp") == "2" && s.stateNow() == "S" })
		}, change: func(st *task.Stance) { st.Seccomp, st.Filters = 0, 0 }},
		{name: "second filter after the stance", argv: be("filter_allow"), want: SeccompChanged, change: func(st *task.Stance) { st.Filters++ }},
		{name: "user dispatch", argv: be("dispatch"), want: UserDispatch, change: func(st *task.Stance) { st.UserDispatch = true }},
		{name: "user dispatch after the stance", argv: be("dispatch"), want: UserDispatch},
		{name: "shadow stack", argv: be("sleep"), want: ShadowStack, change: func(st *task.Stance) { st.ShadowStack = true }},
		{name: "32-bit stance", argv: be("sleep"), want: Bits32, change: func(st *task.Stance) { st.CS = 0x23 }},
		{name: "pending signal", argv: be("sleep"), want: SignalPending, change: func(st *task.Stance) { st.Pending = 1 << 9 }},
		{name: "int 0x80 of a 64-bit program", argv: be("int80"), want: Moved, change: func(st *task.Stance) { st.InCall = false }},
		{name: "vfork", argv: be("vfork"), want: Uninterruptible},
		{name: "dead leader", argv: be("leaderless"), want: Exiting, do: func(t *testing.T, s *subject) {
			s.until(func() bool { return s.stateNow() == "Z" })
		}},
		{name: "another stack", argv: be("other_stack"), want: NotOnStack},
		{name: "stopped", argv: be("sleep"), want: Stopped, do: func(t *testing.T, s *subject) {
			unix.Kill(s.id.PID, unix.SIGSTOP)
			s.until(func() bool { return s.stateNow() == "T" })
			t.Cleanup(func() { unix.Kill(s.id.PID, unix.SIGCONT) })
		}},
		{name: "frozen", argv: be("sleep"), want: frozen, do: freeze},
		{name: "traced", argv: be("sleep"), want: Traced, do: func(t *testing.T, s *subject) {
			traceFor(t, s.id.PID)
		}},
		{name: "32-bit program", argv: []string{zoo.Compile(t, "bare32", "testdata/bare.c", "-m32", "-nostdlib", "-static", "-fno-stack-protector", "-fno-pie", "-no-pie")}, want: Bits32, change: func(st *task.Stance) { st.CS = 0x23 }},
		{name: "no libc", argv: []string{zoo.Compile(t, "bare", "testdata/bare.c", "-nostdlib", "-static", "-fno-stack-protector", "-fno-pie", "-no-pie")}, want: NoWayBack},
	}
	t.Run("cases", func(t *testing.T) {
		for _, c := range cases {
			t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
				t.Parallel()
				if c.name != "frozen" || frozen == Frozen {
					needs(t, c.name)
				}
				s := launch(t, false, 3, 0, c.argv...)
				orphans := s.settled(3)
				if len(c.argv) > 1 {
					if got := s.line(); got != "READY" {
						t.Fatal(got)
					}
					time.Sleep(50 * time.Millisecond)
				} else {
					s.until(func() bool { return strings.HasPrefix(s.status("Name"), "bare") && s.stateNow() == "S" })
				}
				if c.do != nil {
					c.do(t, s)
				}
				before := s.stateNow()
				if c.change == nil {
					c.change = none
				}
				res, err := s.reapAll(h, Request{Parent: s.id, Zombies: orphans, Stance: s.stance(c.change), Patience: 500 * slow * time.Millisecond})
				if err != nil || res.Refusal != c.want || (res.Reaped == 3) != (c.want == None) || res.Left+res.Reaped != 3 {
					t.Fatalf("%+v, %v; want %v", res, err, c.want)
				}
				t.Log(res.Reason)
				if c.want != None && (res.Reason == "" || len(s.orphans()) != 3) {
					t.Errorf("reason %q, %d orphans", res.Reason, len(s.orphans()))
				}
				time.Sleep(20 * slow * time.Millisecond)
				if after := s.stateNow(); after != before {
					t.Errorf("it was %s and is %s", before, after)
				}
			})
		}
	})
	record(t, len(cases), "reaped where it may be, refused with its reason where not, and untouched by that")
}

// until waits for something.
func (s *subject) until(done func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(patienceOfTest); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("process %v is not as it should be: %s", s.id, s.stateNow())
		}
	}
}

func (s *subject) status(key string) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.id.PID))
	for line := range strings.Lines(string(b)) {
		if k, v, _ := strings.Cut(line, ":"); k == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// freeze freezes a process, in whichever hierarchy there is.
func freeze(t *testing.T, s *subject) {
	dir, file, on, off := "/sys/fs/cgroup/freezer", "freezer.state", "FROZEN", "THAWED"
	if _, err := os.Stat(dir); err != nil {
		dir, file, on, off = "/sys/fs/cgroup", "cgroup.freeze", "1", "0"
	}
	dir += fmt.Sprintf("/kzr-inside-%d", s.id.PID)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o644); err != nil {
			t.Error(err)
		}
	}
	write("cgroup.procs", strconv.Itoa(s.id.PID))
	write(file, on)
	t.Cleanup(func() {
		write(file, off)
		_ = unix.PidfdSendSignal(s.pidfd, unix.SIGKILL, nil, 0)
		for range 1000 {
			if os.Remove(dir) == nil {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	time.Sleep(50 * time.Millisecond)
}

// traceFor has somebody else trace a process until the test ends.
func traceFor(t *testing.T, pid int) {
	began, end, over := make(chan error), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		inThreadOfItsOwn(func() {
			began <- ptrace(unix.PTRACE_SEIZE, pid, 0, 0)
			<-end
		})
	}()
	if err := <-began; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(end); <-over })
}
