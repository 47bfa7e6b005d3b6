package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/zoo"
)

// kzr is stopped by SIGSTOP, as by an operator or a debugger, and goes on. What
// it thought before counts for nothing then; what is true now does.
func TestFaultStoppedDaemon(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		// Many times its waits, which is what a minute is to the default ones.
		hiatus := time.Duration(often(t, "KZR_STOP_SECONDS", 10)) * time.Second
		s := newSite(t)
		k := s.start(mode, "--scope=all", "--nudge=8s")
		t.Cleanup(func() { _ = unix.Kill(k.pid, unix.SIGCONT) })

		// Three who are in the middle of the ladder when kzr stops: one reaps then,
		// one dies, one goes on leaking.
		recovers := zoo.Start(t, "exec=%s leak=20 chld=count term=count serve", s.exe)
		dies := zoo.Start(t, "exec=%s leak=20 chld=count term=ignore serve", s.exe)
		stays := zoo.Start(t, "exec=%s leak=20 chld=count term=ignore serve", s.exe)
		// And one that looked bad, but has not met the rule.
		suspect := zoo.Start(t, "exec=%s chld=count term=count serve", s.exe)
		for _, z := range []*zoo.Zoo{recovers, dies, stays} {
			k.saw(z.PID, "signal SIGCHLD")
		}
		suspect.Do("leak=20")
		k.send(unix.SIGSTOP)
		suspect.Do("reap=all")
		recovers.Do("reap=all")
		dies.Signal(unix.SIGKILL)
		dies.WaitDead(patience)
		// Zombies that come and go while nobody looks, and some that stay.
		passing := zoo.Start(t, "exec=%s chld=count term=count leak=40 serve", s.exe)
		late := zoo.Start(t, "exec=%s leak=20 serve", s.exe)
		time.Sleep(hiatus)
		passing.Do("reap=all")
		passing.Do("leak=40") // old enough by none's count
		terms := recovers.Count().TERM
		k.send(unix.SIGCONT)
		cont := time.Now()
		time.Sleep(300 * time.Millisecond)
		passing.Do("reap=all")

		stays.WaitDead(patience)
		late.WaitDead(patience)
		k.saw(late.PID, "terminated")
		waited := k.saw(late.PID, "signal SIGCHLD").Time.Sub(cont)
		if waited > patience/4 {
			t.Errorf("the one that leaked meanwhile waited %v", waited)
		}
		time.Sleep(2 * time.Second)
		alive(t, recovers.Proc, suspect.Proc, passing.Proc)
		if c := recovers.Count(); c.TERM != terms {
			t.Errorf("SIGTERM to one that had recovered: %+v", c)
		}
		for name, z := range map[string]*zoo.Zoo{"suspect": suspect, "passing": passing} {
			if c := z.Count(); c.TERM != 0 {
				t.Errorf("SIGTERM to %s: %+v", name, c)
			}
		}
		for _, e := range k.all(func(e event) bool { return isSignal(e) && e.PID == dies.PID && e.Time.After(cont) }) {
			t.Errorf("signal to the dead: %s", e.line)
		}
		record(t, 6, fmt.Sprintf("stopped for %v in the middle of three ladders: who had reaped or died got no further signal, who had not was ended; who leaked meanwhile was asked to reap %v after kzr went on",
			hiatus, waited.Round(10*time.Millisecond)))
	})
}

// /proc is unmounted under the running kzr, as by an administrator's slip: it
// holds the mount that it began with, and goes on.
func TestFaultProcUnmounted(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.startIn("mntns", mode, "--scope=all", "--sweep-interval=1s")
		z := zoo.Start(t, "exec=%s leak=20 serve", s.exe)
		k.saw(z.PID, "terminated")
		// A slave of the machine's mounts no more (mntns): nothing else sees it.
		if out, err := exec.Command("nsenter", "--target", strconv.Itoa(k.pid), "--mount", "--", "umount", "--lazy", "/proc").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/proc/self", k.pid)); err == nil {
			t.Fatal("there still is a /proc where kzr runs")
		}
		pod := zoo.NewCgroup(t, "pids", "docker/"+containerID(t))
		z = zoo.Start(t, "cgroup=%s exec=%s leak=20 serve", pod.Dir, s.exe)
		good := zoo.Start(t, "exec=%s fresh=30,age=200 serve", s.exe)
		if e := k.saw(z.PID, "terminated"); e.ContainerID != filepath.Base(pod.Dir) || e.Exe != s.exe {
			t.Errorf("who it was: %s", e.line)
		}
		k.silentAbout(0, good.PID)
		alive(t, good.Proc)
		record(t, 1, "without /proc at its place: the target was found, named and removed all the same")
	})
}

// Whoever reads a command line waits for the memory lock of its process, which a
// thread of that can hold for ever. kzr decides without; those who ask it get
// their answers, but for command lines; and it stops when it is told to.
func TestFaultHangingCmdline(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--scope=all", s.socket())
		shown := func(z *zoo.Zoo) (p parent) {
			t.Helper()
			zoo.Within(t, patience, "it is in the document", func() bool {
				var doc document
				s.wantAnswer("/v1/parents", &doc)
				var found bool
				p, found = doc.of(z.PID)
				return found
			})
			return p
		}
		questions := 0
		ask := func(z *zoo.Zoo, zombies int) {
			t.Helper()
			began := time.Now()
			var doc document
			s.wantAnswer("/v1/parents", &doc)
			if p, _ := doc.of(z.PID); p.Reapable != zombies || p.Exe != s.exe || len(p.Cmdline) != 0 {
				t.Errorf("its document: %+v", p)
			}
			var one struct{ PID, Zombies int }
			s.wantAnswer(fmt.Sprintf("/v1/parents/%d", z.PID), &one)
			if one.PID != z.PID || one.Zombies != zombies {
				t.Errorf("its own page: %+v", one)
			}
			var st status
			s.wantAnswer("/v1/status", &st)
			if took := time.Since(began); took > patience/2 {
				t.Errorf("kzr answered after %v", took)
			}
			questions += 3
		}

		tr := hangCmdlines(k)
		harmless := zoo.Start(t, "exec=%s leak=5 serve", s.exe)
		target := zoo.Start(t, "exec=%s leak=20 serve", s.exe)
		shown(harmless)
		for range 3 {
			ask(harmless, 5)
		}
		k.saw(target.PID, "terminated")
		tr.close()
		other := zoo.Start(t, "exec=%s leak=6 serve", s.exe)
		zoo.Within(t, patience, "another's command line", func() bool { return len(shown(other).Cmdline) > 0 })

		tr = hangCmdlines(k)
		last := zoo.Start(t, "exec=%s leak=7 serve", s.exe)
		shown(last)
		ask(last, 7)
		k.send(unix.SIGTERM)
		select {
		case <-k.over:
		case <-time.After(patience / 2):
			t.Error("kzr goes on after SIGTERM")
		}
		tr.close()
		k.ended = true
		_ = k.cmd.Wait() // how it ended its tracer has been told
		record(t, questions, "questions while a command line hung: all answered, without it; the target was removed, and kzr stopped at once")
	})
}

// hangCmdlines hangs the thread of kzr that is the next to read a command line.
func hangCmdlines(k *daemon) *tracer {
	tr := traceDaemon(k)
	tr.hold(func(c *call) bool {
		c.Hang = !c.Exit && c.Nr == unix.SYS_OPENAT && c.text(c.Args[1]) == "cmdline"
		return false
	})
	return tr
}

// No descriptor is left to kzr: it cannot see, says so and does nothing. It lives
// all the same, and its manager hears so. When there are some again it goes on by
// itself.
func TestFaultNoDescriptors(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		m := s.newManager(3 * time.Second)
		k := s.startUnder(m, mode, "--scope=all", "--sweep-interval=1s")
		zoo.Within(t, patience, "the first sign of life", func() bool { return m.fed() > 0 })
		var old unix.Rlimit
		if err := unix.Prlimit(k.pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: 1024}, &old); err != nil {
			t.Fatal(err)
		}
		z := zoo.Start(t, "exec=%s leak=20 serve", s.exe)
		failed := func(e event) bool { return e.Level == "ERROR" && strings.Contains(e.Error, "too many open files") }
		k.awaitN(3, "sweeps that fail", failed)
		fed := m.fed()
		time.Sleep(2 * time.Second)
		zoo.Within(t, patience, "kzr feeds the watchdog without descriptors", func() bool { return m.fed() >= fed+3 })
		alive(t, z.Proc)
		if signals := k.all(isSignal); len(signals) > 0 {
			t.Errorf("signalled blindly: %s", signals[0].line)
		}
		errors := len(k.all(failed))
		if errors > 60 {
			t.Errorf("%d errors in the log", errors)
		}
		if err := unix.Prlimit(k.pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1024, Max: 1024}, nil); err != nil {
			t.Fatal(err)
		}
		z.WaitDead(patience)
		k.saw(z.PID, "terminated")
		record(t, 1, fmt.Sprintf("without descriptors: %d errors in the log, no signal; with descriptors again: acted on", errors))
	})
}

// Clients that take every connection there is must not take the descriptors that
// kzr sees with.
func TestFaultDescriptorsTakenByClients(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.launch(command(t, "nofile=64", append(append([]string{"run"}, s.usual()...), mode, "--scope=all", "--sweep-interval=1s", s.socket())...))
		var taken []net.Conn
		t.Cleanup(func() {
			for _, c := range taken {
				c.Close()
			}
		})
		for range 200 {
			c, err := net.Dial("unix", filepath.Join(s.dir, "kzr.sock"))
			if err != nil {
				break // the backlog is full
			}
			taken = append(taken, c)
		}
		z := zoo.Start(t, "exec=%s leak=20 serve", s.exe)
		z.WaitDead(patience)
		k.saw(z.PID, "terminated")
		record(t, len(taken), fmt.Sprintf("%d connections with 64 descriptors for kzr: the target was removed meanwhile", len(taken)))
	})
}

// The disk that the log goes to is full: kzr works on, and when there is room
// again the log says how much is missing.
func TestFaultLogDiskFull(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	disk := filepath.Join(s.dir, "log")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("kzr-log", disk, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	log, err := os.OpenFile(filepath.Join(disk, "kzr.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := command(t, "", append(append([]string{"run"}, s.usual()...), "--mode=ebpf", "--scope=all")...)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Error("kzr ended with", err)
		}
	})
	contents := func() string {
		text, err := os.ReadFile(log.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	zoo.Within(t, patience, "kzr starts", func() bool { return strings.Contains(contents(), `"started"`) })
	ballast := filepath.Join(disk, "ballast")
	_ = os.WriteFile(ballast, bytes.Repeat([]byte{'x'}, 128<<10), 0o644) // until it is full
	const targets = 12
	for range targets {
		zoo.Start(t, "exec=%s leak=20 serve", s.exe).WaitDead(patience)
	}
	// What fits into the last page may still be written.
	full := contents()
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	zoo.Within(t, patience, "the log says what is missing", func() bool { return strings.Contains(contents(), "log lines were lost") })
	last := zoo.Start(t, "exec=%s leak=20 serve", s.exe)
	last.WaitDead(patience)
	zoo.Within(t, patience, "the log goes on", func() bool {
		for line := range strings.Lines(contents()) {
			if strings.Contains(line, `"event":"terminated",`) && strings.Contains(line, fmt.Sprintf(`"pid":%d,`, last.PID)) {
				return true
			}
		}
		return false
	})
	record(t, targets, fmt.Sprintf("%d targets removed while the disk was full (%d bytes of log fitted); the log said what it lost once there was room", targets, len(full)))
}
