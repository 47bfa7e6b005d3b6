package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
	"kzr/internal/zoo"
)

// The daemon's own life.

// The wall clock belongs to the whole machine, so it is set only where that is
// the test's own. Elsewhere TestTimeNamespace shows that ages do not come from a
// clock that can be offset.
func TestScenario31ClockJumps(t *testing.T) {
	ownMachine(t, "it sets the machine's clock")
	for _, mode := range []string{"--mode=ebpf", "--mode=proc"} {
		for _, jump := range []time.Duration{time.Hour, -time.Hour} {
			t.Run(fmt.Sprint(mode, jump), func(t *testing.T) {
				s := newSite(t)
				k := s.start(mode, "--grace=4s", "--nudge=2s", "--term-timeout=2s")
				z := zoo.Start(t, "in=pidns,proc exec=%s leak=12 term=count serve", s.exe)
				k.saw(z.PID, "suspect")
				t.Cleanup(func() { setClock(t, -jump) })
				setClock(t, jump)
				asked := time.Now()
				k.saw(z.PID, "signal SIGCHLD")
				chld := time.Now()
				setClock(t, jump) // and in the middle of the ladder
				t.Cleanup(func() { setClock(t, -jump) })
				k.saw(z.PID, "terminated")
				// Monotonic times of the test, as the log's own have jumped.
				if waited := chld.Sub(asked); waited > patience {
					t.Errorf("the grace took %v", waited)
				}
				if took := time.Since(chld); took < 4*time.Second || took > patience {
					t.Errorf("the ladder took %v", took)
				}
				if e := k.saw(z.PID, "signal SIGCHLD"); e.Oldest < 4 || e.Oldest > patience.Seconds() {
					t.Errorf("an age of %.1f s", e.Oldest)
				}
			})
		}
	}
}

func setClock(t *testing.T, by time.Duration) {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
		t.Fatal(err)
	}
	then := unix.NsecToTimeval(now.Nano() + by.Nanoseconds())
	if err := unix.Settimeofday(&then); err != nil {
		t.Fatal(err)
	}
}

// The machine is suspended to memory while a parent has half of its grace left.
// It has that half when the machine is back, however long it slept.
func TestScenario31Suspend(t *testing.T) {
	ownMachine(t, "it suspends the machine")
	const grace, asleep = 20 * time.Second, 40 * time.Second
	type watched struct {
		k *daemon
		z *zoo.Zoo
	}
	var all []watched
	born := task.Now()
	for _, mode := range []string{"--mode=ebpf", "--mode=proc"} {
		s := newSite(t)
		k := s.start(mode, "--scope=all", "--sweep-interval=1s", "--grace="+grace.String())
		all = append(all, watched{k, zoo.Start(t, "exec=%s leak=12 serve", s.exe)})
	}
	for _, w := range all {
		w.k.saw(w.z.PID, "suspect")
	}
	for _, w := range all {
		w.k.never(0, "a signal before half of the grace is over", isSignal)
	}
	slept := suspend(t, asleep)
	for _, w := range all {
		e := w.k.saw(w.z.PID, "signal SIGCHLD")
		// The moment on the clock that stood still.
		if at := task.Now() - time.Since(e.Time); at-born < grace {
			t.Errorf("%s: after %v of a grace of %v, and %v of sleep: %s", w.k.cmd.Args, at-born, grace, slept, e.line)
		}
		if most := task.Now() - born; e.Oldest < grace.Seconds() || e.Oldest > most.Seconds() {
			t.Errorf("%s: an age of %.1f s, %v after the beginning", w.k.cmd.Args, e.Oldest, most)
		}
		w.k.saw(w.z.PID, "terminated")
	}
	record(t, len(all), fmt.Sprintf("suspended for %v with half of a grace of %v over: the other half was waited for after that, with either source", slept.Round(time.Second), grace))
}

// suspend suspends the machine until its clock wakes it, and returns for how long
// the monotonic clock stood still.
func suspend(t *testing.T, d time.Duration) time.Duration {
	t.Helper()
	still := func() time.Duration { return task.SinceBoot() - task.Now() }
	before := still()
	for _, w := range []struct{ file, text string }{
		{"/sys/class/rtc/rtc0/wakealarm", "0"},
		{"/sys/class/rtc/rtc0/wakealarm", fmt.Sprintf("+%.0f", d.Seconds())},
		{"/sys/power/mem_sleep", "deep"},
		{"/sys/power/state", "mem"},
	} {
		if err := os.WriteFile(w.file, []byte(w.text), 0); err != nil {
			t.Fatal(err)
		}
	}
	slept := still() - before
	if slept < d/2 {
		t.Fatalf("the machine slept for %v only", slept)
	}
	return slept
}

// In a time namespace the monotonic and the boot-time clock differ from the
// kernel's own; ages and identities must not.
func TestTimeNamespace(t *testing.T) {
	if major, minor := kernel(t); major < 6 || major == 6 && minor < 1 {
		t.Skip("a process enters its time namespace by exec only since Linux 6.1")
	}
	for _, offset := range []int{86400, -600} {
		t.Run(strconv.Itoa(offset), func(t *testing.T) {
			inBothModes(t, func(t *testing.T, mode string) {
				s := newSite(t)
				k := s.startIn(fmt.Sprintf("timens=%d", offset), mode, "--grace=3s", "--nudge=1s")
				born := time.Now()
				z := zoo.Start(t, "in=pidns,proc exec=%s leak=12 serve", s.exe)
				e := k.saw(z.PID, "signal SIGCHLD")
				if waited := e.Time.Sub(born); waited < 3*time.Second || e.Oldest < 3 || e.Oldest > 3+patience.Seconds() {
					t.Errorf("the first signal came %v after the first zombie: %s", waited, e.line)
				}
				k.saw(z.PID, "terminated")
				z.WaitDead(0)
			})
		})
	}
}

func TestScenario32Reload(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		s.configure("grace: 1h", s.rule())
		flags := []string{mode}
		k := s.launch(command(t, "", append([]string{
			"run", "--config=" + s.config, "--socket=", "--log-format=json", "--pressure=0",
			"--threshold=10", "--nudge=300ms", "--term-timeout=3s",
		}, flags...)...))
		reloads := func() []event { return k.all(func(e event) bool { return e.Event == "reloaded" }) }
		reload := func() event {
			n := len(reloads())
			k.send(syscall.SIGHUP)
			return k.awaitN(n+1, "a reload", func(e event) bool { return e.Event == "reloaded" })[n]
		}
		z := zoo.Start(t, "in=pidns,proc exec=%s leak=12 chld=count term=count serve", s.exe)

		// Files that will not do: the old one stays, and the line says why.
		for text, want := range map[string]string{
			"grace: 1s\nthreshold: -5\n": "kzr.yaml:2: threshold: ",
			"grace: [1s\n":               "kzr.yaml:",
			"grace: 1s\nkillAll: true\n": "kzr.yaml:2: killAll: unknown key",
		} {
			if err := os.WriteFile(s.config, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			if e := reload(); !strings.Contains(e.Error, want) || !strings.Contains(e.Msg, "old one stays") {
				t.Errorf("%q: %s", text, e.line)
			}
		}
		if err := os.Remove(s.config); err != nil {
			t.Fatal(err)
		}
		if e := reload(); !strings.Contains(e.Error, "no such file") {
			t.Errorf("no file: %s", e.line)
		}
		k.never(1500*time.Millisecond, "a signal", isSignal)

		// A shorter grace holds for one that waits already.
		s.configure("grace: 2s", s.rule())
		if e := reload(); e.Error != "" {
			t.Errorf("a good file: %s", e.line)
		}
		k.saw(z.PID, "signal SIGTERM")

		// And a rule that spares it stops a ladder that is under way.
		s.configure("grace: 2s", fmt.Sprintf("{name: keep, match: {exe: %q}, action: observe}", s.exe))
		reload()
		k.saw(z.PID, "spared rule")
		time.Sleep(3500 * time.Millisecond)
		alive(t, z.Proc)
		if c := z.Count(); c.TERM != 1 || slices.Contains(k.story(z.PID), "signal SIGKILL") {
			t.Errorf("the ladder went on: %+v, %v", c, k.story(z.PID))
		}
		// What it says is about the rule in force.
		if e := k.saw(z.PID, "spared rule"); e.Rule != "keep" {
			t.Errorf("the rule: %s", e.line)
		}
	})
}

// A pids cgroup around kzr lets it have the threads that it began with and not
// one more, and counts each try. Then all kinds of things happen.
func TestScenario37NoChildrenNoThreads(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		cg := zoo.NewCgroup(t, "pids", "kzr")
		k := s.start(mode, s.socket())
		if err := os.WriteFile(filepath.Join(cg.Dir, "cgroup.procs"), []byte(strconv.Itoa(k.pid)), 0o644); err != nil {
			t.Fatal(err)
		}
		current := func() string { return readFile(t, filepath.Join(cg.Dir, "pids.current")) }
		had := current()
		n, err := strconv.Atoi(had)
		if err != nil || n != k.threads {
			t.Fatalf("kzr counts %s tasks, it began with %d", had, k.threads)
		}
		cg.SetPidsMax(n)

		var victims []*zoo.Zoo
		for range 8 {
			v := zoo.NewCgroup(t, "pids", "docker/"+containerID(t))
			victims = append(victims, zoo.Start(t, "cgroup=%s fork=pidns,proc { name=victim exec=%s leak=30 term=count serve } serve", v.Dir, s.exe))
		}
		storm := zoo.Start(t, "exec=%s burst=300,every=400,hold=200 serve", s.exe)
		for range 20 {
			var doc document
			s.wantAnswer("/v1/parents", &doc)
			k.send(syscall.SIGHUP)
			time.Sleep(50 * time.Millisecond)
		}
		for _, z := range victims {
			k.saw(z.Named("victim").PID, "terminated")
		}
		storm.Do("quiet")
		if now := current(); now != had {
			t.Errorf("kzr counts %s tasks, it began with %s", now, had)
		}
		if tries := readFile(t, filepath.Join(cg.Dir, "pids.events")); tries != "max 0" {
			t.Errorf("kzr tried to make a task: %s", tries)
		}
		if kids := zoo.Children(k.pid); !slices.Equal(kids, k.kids) {
			t.Errorf("kzr has the children %v", kids)
		}
	})
}

// The same when all that kzr talks to hangs: a command line that cannot be read, a
// log that nobody takes, and a container runtime that does not answer, while its
// figures are asked for all the time.
func TestScenario37EverythingHangs(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		mute, err := net.Listen("unix", filepath.Join(s.dir, "cri.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer mute.Close() // it takes connections, and never reads
		var log [2]int
		if err := unix.Pipe2(log[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(log[0])
		stderr := os.NewFile(uintptr(log[1]), "stderr")
		defer stderr.Close()
		metrics := freeAddress(t)
		cmd := command(t, "", append(append([]string{"run"}, s.usual()...), mode, "--sweep-interval=1s", s.socket(), "--metrics="+metrics, "--cri="+mute.Addr().String())...)
		cmd.Stderr = stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		k := &daemon{t: t, site: s, cmd: cmd, pid: cmd.Process.Pid}
		stop := sync.OnceValue(func() error {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
			defer late.Stop()
			return cmd.Wait()
		})
		t.Cleanup(func() { _ = stop() })
		var st status
		zoo.Within(t, patience, "kzr has looked", func() bool { return s.ask("/v1/status", &st) == nil && st.Sweeps > 0 })
		k.counted()
		// Another way into the same pipe, of which kzr's does not become non-blocking.
		ballast, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", log[1]), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(ballast)
		for err == nil {
			_, err = unix.Write(ballast, []byte{'\n'})
		}
		if !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}

		cg := zoo.NewCgroup(t, "pids", "kzr")
		if err := os.WriteFile(filepath.Join(cg.Dir, "cgroup.procs"), []byte(strconv.Itoa(k.pid)), 0o644); err != nil {
			t.Fatal(err)
		}
		had := readFile(t, filepath.Join(cg.Dir, "pids.current"))
		n, err := strconv.Atoi(had)
		if err != nil {
			t.Fatal(err)
		}
		cg.SetPidsMax(n)
		tr := hangCmdlines(k)

		pod := zoo.NewCgroup(t, "pids", "kubepods/pod0f2d4b6a-1111-4222-8333-944455556666")
		// Some who stay, so that there are command lines to be shown, and names to be
		// asked for.
		for range 5 {
			zoo.Start(t, "cgroup=%s exec=%s leak=5 serve", pod.New(containerID(t)).Dir, s.exe)
		}
		var scrapes, documents int
		quit, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
			for {
				select {
				case <-quit:
					return
				case <-time.After(20 * time.Millisecond):
				}
				if r, err := client.Get("http://" + metrics + "/metrics"); err == nil {
					_, _ = io.Copy(io.Discard, r.Body)
					r.Body.Close()
					scrapes++
				}
				var doc document
				if s.ask("/v1/parents", &doc) == nil {
					documents++
				}
			}
		}()
		targets := 0
		for ; targets < 5; targets++ {
			z := zoo.Start(t, "cgroup=%s fork=pidns,proc { name=target exec=%s leak=30 serve } serve", pod.New(containerID(t)).Dir, s.exe)
			z.Named("target").WaitDead(patience)
		}
		close(quit)
		<-done
		if scrapes == 0 || documents == 0 {
			t.Errorf("%d times its figures, %d documents", scrapes, documents)
		}
		if now := readFile(t, filepath.Join(cg.Dir, "pids.current")); now != had {
			t.Errorf("kzr counts %s tasks, it began with %s", now, had)
		}
		if tries := readFile(t, filepath.Join(cg.Dir, "pids.events")); tries != "max 0" {
			t.Errorf("kzr tried to make a task: %s", tries)
		}
		if kids := zoo.Children(k.pid); !slices.Equal(kids, k.kids) {
			t.Errorf("kzr has the children %v", kids)
		}
		tr.close()
		if err := stop(); err != nil {
			t.Errorf("kzr ended with %v", err)
		}
		record(t, targets, fmt.Sprintf("with a command line, the log and a runtime that hang: %d targets removed, %d scrapes and %d documents answered, no task made", targets, scrapes, documents))
	})
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// The reader of the log dies; kzr does its work all the same.
func TestDeadLogReader(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		cmd := command(t, "", append(append([]string{"run"}, s.usual()...), mode)...)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = w
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		err = cmd.Start()
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			if err := cmd.Wait(); err != nil {
				t.Errorf("kzr: %v", err)
			}
		})
		if _, err := r.Read(make([]byte, 1)); err != nil { // it runs
			t.Fatal(err)
		}
		r.Close()
		z := zoo.Start(t, "in=pidns,proc exec=%s leak=12 serve", s.exe)
		z.WaitDead(patience)
		if st := z.Status(); st.Signal() != syscall.SIGKILL {
			t.Errorf("it ended with %#x", uint32(st))
		}
	})
}
