package e2e

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/zoo"
)

// The main job: a container's init that never waits.
func TestScenario04LadderInOrder(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--threshold=50", "--grace=2s", "--nudge=1s", "--term-timeout=1500ms")
		good := zoo.Start(t, "exec=%s chld=count term=count fresh=60,age=200 serve", s.exe)
		z := zoo.Start(t, "in=pidns,proc exec=%s leak=60 chld=count term=count serve", s.exe)

		// What the victim's own handlers saw, at each step.
		chld := k.saw(z.PID, "signal SIGCHLD")
		zoo.Within(t, patience, "SIGCHLD came, and nothing else", func() bool {
			c := z.Count()
			return c.CHLD == 1 && c.TERM == 0
		})
		term := k.saw(z.PID, "signal SIGTERM")
		zoo.Within(t, patience, "SIGTERM came", func() bool { return z.Count().TERM == 1 })
		kill := k.saw(z.PID, "signal SIGKILL")
		z.WaitDead(patience)
		if st := z.Status(); st.Signal() != syscall.SIGKILL {
			t.Errorf("it ended by %v", st)
		}
		end := k.saw(z.PID, "terminated")
		k.wantStory(z.PID, "signal SIGCHLD", "signal SIGTERM", "signal SIGKILL", "terminated")

		// The waits are the configured ones: never shorter, and with nothing to
		// slow kzr down not much longer.
		for _, step := range []struct {
			name     string
			from, to event
			want     time.Duration
		}{{"nudge", chld, term, time.Second}, {"termTimeout", term, kill, 1500 * time.Millisecond}} {
			if got := step.to.Time.Sub(step.from.Time); got < step.want || got > step.want+patience/2 {
				t.Errorf("%s took %v instead of %v", step.name, got, step.want)
			}
		}
		for _, e := range []event{chld, term, kill} {
			if e.Zombies != 60 || e.Oldest < 2 || e.Rule != "mine" || e.DryRun == nil || *e.DryRun ||
				e.Exe != s.exe || e.UID != 0 || e.Comm == "" || e.StartTime == 0 || e.StartTime != end.StartTime {
				t.Errorf("the trail is incomplete: %s", e.line)
			}
		}
		k.silentAbout(0, good.PID)
		if c := good.Count(); c.TERM != 0 || c.Reaped == 0 {
			t.Errorf("the bystander: %+v", c)
		}
		alive(t, good.Proc)
	})
}

func TestScenario05ReapsOnSIGCHLD(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode)
		z := zoo.Start(t, "in=pidns,proc exec=%s leak=30 chld=reap serve", s.exe)
		k.saw(z.PID, "reaped")
		k.wantStory(z.PID, "signal SIGCHLD", "reaped")
		if c := z.Count(); c.Reaped != 30 {
			t.Errorf("%+v", c)
		}

		// A handler that waits once for each signal: nudged for as long as that
		// helps, which is until it holds fewer than the threshold.
		z = zoo.Start(t, "in=pidns,proc exec=%s leak=30 chld=reap,n=1 serve", s.exe)
		k.saw(z.PID, "reaped")
		// (Where they died far from each other, it takes a second ladder.)
		zoo.Within(t, patience, "nine are left", func() bool { return z.Zombies() == 9 })
		time.Sleep(200 * time.Millisecond)
		if c := z.Count(); c.Reaped != 21 || c.CHLD != 21 {
			t.Errorf("one a signal: %+v", c)
		}
		for _, e := range k.all(func(e event) bool { return e.PID == z.PID && isSignal(e) && e.Signal != "SIGCHLD" }) {
			t.Errorf("it was reaping: %s", e.line)
		}
		// Nine zombies are below the threshold: no matter how old they get.
		n := len(k.story(z.PID))
		time.Sleep(2500 * time.Millisecond)
		if story := k.story(z.PID); len(story) != n {
			t.Errorf("after that: %v", story[n:])
		}
		alive(t, z.Proc)
	})
}

func TestScenario06SIGTERM(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode)
		for name, c := range map[string]struct {
			script string
			story  []string
			how    func(syscall.WaitStatus) bool
		}{
			"exits on it": {"in=pidns,proc exec=%s leak=12 term=exit serve",
				[]string{"signal SIGCHLD", "signal SIGTERM", "terminated"},
				func(s syscall.WaitStatus) bool { return s.Exited() && s.ExitStatus() == 0 }},
			"takes its time": {"in=pidns,proc exec=%s leak=12 term=exit,ms=200 serve",
				[]string{"signal SIGCHLD", "signal SIGTERM", "terminated"},
				func(s syscall.WaitStatus) bool { return s.Exited() && s.ExitStatus() == 0 }},
			"survives it": {"in=pidns,proc exec=%s leak=12 term=count serve",
				[]string{"signal SIGCHLD", "signal SIGTERM", "signal SIGKILL", "terminated"},
				func(s syscall.WaitStatus) bool { return s.Signal() == syscall.SIGKILL }},
			// The init of a pid namespace never sees a SIGTERM without a handler.
			"is deaf to it": {"in=pidns,proc exec=%s leak=12 serve",
				[]string{"signal SIGCHLD", "signal SIGKILL", "terminated"},
				func(s syscall.WaitStatus) bool { return s.Signal() == syscall.SIGKILL }},
		} {
			z := zoo.Start(t, c.script, s.exe)
			k.saw(z.PID, "terminated")
			k.wantStory(z.PID, c.story...)
			if st := z.Status(); !c.how(st) {
				t.Errorf("%s: it ended with %#x", name, uint32(st))
			}
		}
	})
}

// Whatever else is open at the time: all of a target's signals go through one and the
// same pidfd, and there is no other way that kzr sends any. (Signal 0 is none: it asks
// whether somebody lives.)
func TestScenario06OnePidfd(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode)
		var mu sync.Mutex
		type pidfd struct {
			pid  int
			sent []syscall.Signal
		}
		opening := map[int]int{}   // thread: the pid that it opens a pidfd for
		open := map[int64]*pidfd{} // by descriptor
		var all []*pidfd
		var others []string
		tr := traceDaemon(k)
		tr.hold(func(c *call) bool {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case c.Nr == unix.SYS_PIDFD_OPEN && !c.Exit:
				opening[c.Thread] = int(c.Args[0])
			case c.Nr == unix.SYS_PIDFD_OPEN && c.Result >= 0:
				open[c.Result] = &pidfd{pid: opening[c.Thread]}
				all = append(all, open[c.Result])
			case c.Nr == unix.SYS_PIDFD_SEND_SIGNAL && !c.Exit && c.Args[1] != 0:
				if p := open[int64(c.Args[0])]; p != nil {
					p.sent = append(p.sent, syscall.Signal(c.Args[1]))
				} else {
					others = append(others, fmt.Sprintf("through descriptor %d, which it has not opened", c.Args[0]))
				}
			case !c.Exit && (c.Nr == unix.SYS_KILL || c.Nr == unix.SYS_TKILL || c.Nr == unix.SYS_TGKILL) && int(c.Args[0]) != k.pid:
				others = append(others, fmt.Sprintf("system call %d with %d", c.Nr, c.Args[:3]))
			}
			return false
		})
		const targets = 6 // at the same time
		script := ""
		for range targets {
			cg := zoo.NewCgroup(t, "pids", "docker/"+containerID(t))
			script += fmt.Sprintf("fork { cgroup=%s exec=%s leak=12 term=count serve } ", cg.Dir, s.exe)
		}
		z := zoo.Start(t, "%s serve", script)
		pids := zoo.Children(z.PID)
		if len(pids) != targets {
			t.Fatalf("%d targets", len(pids))
		}
		for _, pid := range pids {
			k.saw(pid, "terminated")
			k.wantStory(pid, "signal SIGCHLD", "signal SIGTERM", "signal SIGKILL", "terminated")
		}
		tr.close()
		want := []syscall.Signal{syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGKILL}
		through := map[int]int{} // how many, by target
		for _, p := range all {
			if len(p.sent) == 0 {
				continue
			}
			through[p.pid]++
			if !slices.Contains(pids, p.pid) || !slices.Equal(p.sent, want) {
				t.Errorf("through one pidfd for %d went %v", p.pid, p.sent)
			}
		}
		for _, pid := range pids {
			if through[pid] != 1 {
				t.Errorf("pid %d was signalled through %d pidfds", pid, through[pid])
			}
		}
		if len(others) > 0 {
			t.Errorf("signalled in another way: %v", others)
		}
	})
}

// The parent ends while kzr waits for the effect of a signal.
func TestScenario12DiesByItself(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--nudge=20s", "--term-timeout=20s")
		z := zoo.Start(t, "in=pidns,proc exec=%s leak=12 serve", s.exe)
		k.saw(z.PID, "signal SIGCHLD")
		z.Signal(syscall.SIGKILL)
		k.saw(z.PID, "spared recovered")
		// Or it is found on its way out first.
		story := slices.DeleteFunc(k.story(z.PID), func(words string) bool { return words == "spared dying" })
		if !slices.Equal(story, []string{"signal SIGCHLD", "spared recovered"}) {
			t.Errorf("its story is %v", story)
		}

		// Before any signal: the suspicion ends with it.
		z = zoo.Start(t, "in=pidns,proc exec=%s serve", s.exe)
		k.never(0, "an event", func(e event) bool { return e.PID == z.PID })
		z.Do("leak=12")
		z.Signal(syscall.SIGKILL)
		z.WaitDead(patience)
		k.never(2500*time.Millisecond, "a signal", func(e event) bool { return e.PID == z.PID && isSignal(e) })
	})
}

// The zombies of a killed parent land on its container's init, which does not
// reap: it starts from zero with a grace of its own.
func TestScenario13ZombiesMove(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--grace=2s", "--reap=off") // else they would be reaped inside it
		z := zoo.Start(t, "in=pidns,proc exec=%s fork { name=middle leak=30 serve } serve", s.exe)
		middle := z.Named("middle")
		term := k.saw(middle.PID, "signal SIGTERM")
		end := k.saw(middle.PID, "terminated")
		if !strings.Contains(end.Msg, fmt.Sprintf("pid %d", z.PID)) {
			t.Errorf("where they went is not said: %s", end.line)
		}
		first := k.saw(z.PID, "signal SIGCHLD")
		if waited := first.Time.Sub(term.Time); waited < 2*time.Second || first.Zombies != 31 {
			t.Errorf("the init was signalled %v after the other one, for %d zombies", waited, first.Zombies)
		}
		k.saw(z.PID, "terminated")
		z.WaitDead(0)
	})
}

// A container's init leaks, and its manager restarts it for ever.
func TestScenario14ContainerLoop(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--per-workload-kills=2")
		id := containerID(t)
		cg := zoo.NewCgroup(t, "pids", "docker/"+id)
		var last *zoo.Zoo
		for i := range 3 {
			last = zoo.Start(t, "cgroup=%s fork=pidns,proc { exec=%s name=init leak=20 serve } serve", cg.Dir, s.exe)
			init := last.Named("init")
			if i == 2 {
				break
			}
			e := k.saw(init.PID, "terminated")
			if e.ContainerID != id {
				t.Errorf("container %q", e.ContainerID)
			}
			init.WaitDead(0)
			if n := init.Zombies(); n != 0 {
				t.Errorf("%d zombies are left", n)
			}
			last.Do("reap=1")
		}
		init := last.Named("init")
		k.saw(init.PID, "spared backoff")
		k.never(3*time.Second, "another kill", func(e event) bool { return e.PID == init.PID && isKill(e) })
		alive(t, init)
		doc, _ := s.scan("", mode)
		if p, _ := doc.of(init.PID); p.Container == nil || p.Container.Runtime != "docker" || p.Container.ID != id || p.Reapable != 20 {
			t.Errorf("scan: %+v", p)
		}
	})
}

// kzr is killed between SIGTERM and SIGKILL, and started again.
func TestScenario30KilledMidLadder(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		flags := []string{mode, "--grace=2s", "--nudge=500ms", "--term-timeout=1s"}
		k := s.start(flags...)
		z := zoo.Start(t, "in=pidns,proc exec=%s leak=12 chld=count term=count serve", s.exe)
		k.saw(z.PID, "signal SIGTERM")
		k.murder()

		k = s.start(flags...)
		first := k.saw(z.PID, "signal SIGCHLD")
		if c := z.Count(); c.TERM != 1 {
			t.Errorf("%+v: the new one may not go on where the old one was", c)
		}
		if waited := first.Time.Sub(k.began); waited < 2*time.Second {
			t.Errorf("the first signal came %v after the start, without a grace", waited)
		}
		k.saw(z.PID, "terminated")
		k.wantStory(z.PID, "signal SIGCHLD", "signal SIGTERM", "signal SIGKILL", "terminated")
	})
}

// SIGTERM to kzr in the middle of a ladder: the rest of it does not happen.
func TestStoppedMidLadder(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--term-timeout=2s")
		z := zoo.Start(t, "in=pidns,proc exec=%s leak=12 term=count serve", s.exe)
		k.saw(z.PID, "signal SIGTERM")
		k.stop()
		k.wantStory(z.PID, "signal SIGCHLD", "signal SIGTERM", "gave_up")
		time.Sleep(2500 * time.Millisecond)
		alive(t, z.Proc)
		if c := z.Count(); c.TERM != 1 {
			t.Errorf("%+v", c)
		}
	})
}

func TestScenario36RateLimit(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	k := s.start("--mode=ebpf", "--kills-per-minute=6", "--nudge=0", "--grace=2s")
	const targets = 50
	script := ""
	pids := map[int]bool{}
	for range targets {
		cg := zoo.NewCgroup(t, "pids", "docker/"+containerID(t))
		script += fmt.Sprintf("fork { cgroup=%s leak=10 term=count serve } ", cg.Dir)
	}
	z := zoo.Start(t, "exec=%s %s serve", s.exe, script)
	for _, pid := range zoo.Children(z.PID) {
		pids[pid] = true
	}
	if len(pids) != targets {
		t.Fatalf("%d targets", len(pids))
	}
	struck := func(e event) bool { return pids[e.PID] && (e.Signal == "SIGTERM" || e.Signal == "SIGKILL") }
	victims := func() map[int]bool {
		v := map[int]bool{}
		for _, e := range k.all(struck) {
			v[e.PID] = true
		}
		return v
	}
	// Six go, and all others are reported at once.
	waiting := k.awaitN(targets-6, "the reports of those that wait", func(e event) bool {
		return pids[e.PID] && e.String() == "spared rate_limited"
	})
	first := k.await("the first kill", struck).Time
	k.awaitN(6, "six ends", func(e event) bool { return pids[e.PID] && e.Event == "terminated" })
	if got := victims(); len(got) != 6 || len(waiting) != targets-6 {
		t.Fatalf("%d victims, %d wait", len(got), len(waiting))
	}
	// Nobody else while the first of them is less than a minute ago.
	time.Sleep(time.Until(first.Add(55 * time.Second)))
	if got := victims(); len(got) != 6 {
		t.Fatalf("%d victims in the first 55 seconds", len(got))
	}
	// Then the rest in turn.
	k.awaitN(12, "the next six", func(e event) bool { return pids[e.PID] && e.Event == "terminated" })
	next := k.all(struck)
	for _, e := range next {
		if since := e.Time.Sub(first); since > 30*time.Second && since < time.Minute {
			t.Errorf("%v after the first: %s", since, e.line)
		}
	}
	if got := victims(); len(got) != 12 {
		t.Errorf("%d victims in the second minute", len(got))
	}
}

func TestDryRunSendsNothing(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--dry-run", "--threshold=50", "--grace=2s")
		z := zoo.Start(t, "in=pidns,proc exec=%s leak=60 chld=count term=count serve", s.exe)
		k.saw(z.PID, "gave_up")
		k.wantStory(z.PID, "signal SIGCHLD", "signal SIGTERM", "signal SIGKILL", "gave_up")
		for _, e := range k.all(func(e event) bool { return e.PID == z.PID && isSignal(e) }) {
			if e.DryRun == nil || !*e.DryRun {
				t.Errorf("it does not say that it is a dry run: %s", e.line)
			}
		}
		alive(t, z.Proc)
		if c := z.Count(); c.CHLD != 0 || c.TERM != 0 {
			t.Errorf("signals came: %+v", c)
		}
		s.wantCount(mode, z.PID, 60, 60)
	})
}

// The same parent outside any container is only reported, and acted on with
// scope all.
func TestScope(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode)
		z := zoo.Start(t, "exec=%s leak=12 chld=count term=count serve", s.exe)
		k.saw(z.PID, "spared out_of_scope")
		time.Sleep(2 * time.Second) // enough for a ladder
		k.wantStory(z.PID, "spared out_of_scope")
		if c := z.Count(); c.CHLD != 0 || c.TERM != 0 {
			t.Errorf("signals came: %+v", c)
		}
		k.stop()

		k = s.start(mode, "--scope=all")
		k.saw(z.PID, "terminated")
		k.wantStory(z.PID, "signal SIGCHLD", "signal SIGTERM", "signal SIGKILL", "terminated")
	})
}

// containerID is one that a runtime could have made up.
func containerID(t *testing.T) string {
	t.Helper()
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(b)
}
