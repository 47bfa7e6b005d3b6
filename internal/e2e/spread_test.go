package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"kzr/internal/zoo"
)

// Leaks that no single parent shows, and workloads that leak for ever: what is summed
// by workload, in what order they are freed, and what limits how often.

// workloadOf is what a document says of a tenant's workload, if anything.
func workloadOf(doc document, c *tenant) (workload, bool) {
	for _, w := range doc.Workloads {
		if strings.Contains(w.Name, c.id[:12]) {
			return w, true
		}
	}
	return workload{}, false
}

// Twenty parents, each of them under the threshold, are one leak. Nobody is hurt by
// it, so it is reported and no more.
func TestScenario40SpreadIsReported(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--pressure=0.85", s.socket())
		c := newTenant(t)
		z := zoo.Start(t, "cgroup=%s exec=%s chld=reap fork=times=20 { leak=8 serve } serve", c.Dir, s.exe)
		c.SetPidsMax(10_000)
		if e := k.await("a leak of the workload", func(e event) bool { return strings.Contains(e.Workload, c.id[:12]) }); e.Event != "suspect" || e.Zombies != 160 {
			t.Errorf("how it is reported: %s", e.line)
		}
		var w workload
		zoo.Within(t, patience, "it is in the document", func() bool {
			var doc document
			s.wantAnswer("/v1/parents", &doc)
			w, _ = workloadOf(doc, c)
			return w.Zombies == 160
		})
		if w.Parents != 20 || w.Pids == nil || *w.Pids != 181 || w.PidsLimit == nil || *w.PidsLimit != 10_000 {
			t.Errorf("the workload: %+v", w)
		}
		k.never(2*time.Second, "a signal", isSignal)
		alive(t, z.Proc)
	})
}

// At the limit as many of them are ended as it takes, and no more.
func TestScenario40SpreadIsFreed(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		for _, c := range []struct {
			name          string
			parents, each int
			limit         int
			how           string
			enough        int // to be ended, at most
		}{
			// A tenth of 280 is 28: when ten are gone there are less.
			{"many", 11, 22, 280, "", 10},
			{"many who ignore SIGTERM", 11, 22, 280, "term=ignore", 10},
			// One parent, under the threshold of 50, has filled the container.
			{"one", 1, 45, 48, "", 1},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				s := newSite(t)
				box := newTenant(t)
				z := zoo.Start(t, "cgroup=%s exec=%s chld=reap term=count fork=times=%d { %s leak=%d serve } serve",
					box.Dir, s.exe, c.parents, c.how, c.each)
				good := zoo.Start(t, "cgroup=%s exec=%s term=count fresh=60,age=200 serve", newTenant(t).Dir, s.exe)
				parents := zoo.Children(z.PID)
				k := s.start(mode, "--threshold=50", "--grace=1h", "--pressure=0.85", "--sweep-interval=1s")
				box.SetPidsMax(c.limit)
				began := time.Now()
				box.wantRoom(c.limit)
				took := time.Since(began)
				time.Sleep(2 * time.Second) // nobody else follows
				ended := 0
				for _, pid := range parents {
					ended += len(k.all(func(e event) bool { return e.PID == pid && e.Event == "terminated" }))
				}
				if ended == 0 || ended > c.enough {
					t.Errorf("%d of %d parents were ended, and %d are enough", ended, c.parents, c.enough)
				}
				for _, p := range []*zoo.Zoo{z, good} {
					k.never(0, "a kill of a bystander", harmed(p.PID))
					if n := p.Count().TERM; n > 0 || !p.Alive() {
						t.Errorf("a bystander got %d SIGTERM", n)
					}
				}
				record(t, c.parents, fmt.Sprintf("%s: freed in %v by ending %d of %d", c.name, took.Round(10*time.Millisecond), ended, c.parents))
			})
		}
	})
}

// Two tenants share a limit. One has split a thousand zombies over forty parents, the
// other has one parent with more of them than any of those.
func TestScenario40NeighbourIsSpared(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		node := zoo.NewCgroup(t, "pids", "kubepods")
		pod := func(n int) string {
			return node.New(fmt.Sprintf("pod0f2d4b6a-1111-4222-8333-94445555666%d/%s", n, containerID(t))).Dir
		}
		guilty := zoo.Start(t, "cgroup=%s exec=%s chld=reap term=count fork=times=40 { leak=25 serve } serve", pod(1), s.exe)
		neighbour := zoo.Start(t, "cgroup=%s exec=%s term=count leak=60 serve", pod(2), s.exe)
		k := s.start(mode, "--threshold=50", "--grace=1h", "--pressure=0.85", "--sweep-interval=1s")
		node.SetPidsMax(1250)
		began := time.Now()
		zoo.Within(t, patience, "there is room on the node", func() bool {
			return readNumber(t, filepath.Join(node.Dir, "pids.current"))*100 < 85*1250
		})
		took := time.Since(began)
		k.never(1500*time.Millisecond, "a kill of the neighbour", harmed(neighbour.PID))
		if n := neighbour.Zombies(); n != 60 {
			t.Errorf("the neighbour has %d zombies", n)
		}
		for _, z := range []*zoo.Zoo{guilty, neighbour} {
			if n := z.Count().TERM; n > 0 || !z.Alive() {
				t.Errorf("a bystander got %d SIGTERM", n)
			}
		}
		// With 38 gone the zombies are fewer than a tenth of the limit.
		if left := len(zoo.Children(guilty.PID)); left < 2 {
			t.Errorf("%d parents are left", left)
		}
		record(t, 40, fmt.Sprintf("freed in %v, and the neighbour is unharmed", took.Round(10*time.Millisecond)))
	})
}

// The workload that holds most may not be touched, however many parents it has. The
// next one is.
func TestScenario40LargestMayNotBeEnded(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		node := zoo.NewCgroup(t, "pids", "kubepods")
		pod := func(n int) string {
			return node.New(fmt.Sprintf("pod0f2d4b6a-1111-4222-8333-94445555666%d/%s", n, containerID(t))).Dir
		}
		observed := zoo.Start(t, "cgroup=%s term=count fork=times=300 { leak=4 serve } serve", pod(1))
		leaker := zoo.Start(t, "cgroup=%s exec=%s leak=100 serve", pod(2), s.exe)
		k := s.start(mode, "--threshold=200", "--grace=1h", "--pressure=0.85", "--sweep-interval=1s")
		node.SetPidsMax(1700)
		leaker.WaitDead(patience)
		k.saw(leaker.PID, "terminated")
		k.never(0, "a signal to the observed", func(e event) bool { return isSignal(e) && e.PID != leaker.PID })
		alive(t, observed.Proc)
	})
}

// A container's init starts the leaker again whenever it is ended, and the node's own
// table is full each time. When that goes on the whole container is ended, whatever
// the limits say.
func TestScenario41BurntItsKills(t *testing.T) {
	t.Parallel()
	if major, minor := kernel(t); major < 6 || major == 6 && minor < 14 {
		t.Skip("a process table of its own has a pid namespace only since Linux 6.14; the virtual machines' test fills the real one")
	}
	s, c := newSite(t), newTenant(t)
	node := zoo.Start(t, "in=pidns,proc chld=reap serve")
	lowerPidMax(t, node, 420)
	k := s.startInside(node, "--mode=proc", "--grace=1h", "--pressure=0.85", "--per-workload-kills=1", "--kills-per-minute=1")
	after := newWaiting(t, inside(node, "sh", "-c", forkScript))
	zoo.Within(t, patience, "nsenter has forked", func() bool { return len(zoo.Children(after.cmd.Process.Pid)) == 1 })
	burntKills(t, s, k, c, node, func() bool { return node.Zombies() < 10 && len(zoo.Children(node.PID)) < 10 })
	canFork(t, after)
}

// The same with the machine's own limit, and through eBPF too.
func TestScenario41MachineFull(t *testing.T) {
	ownMachine(t, "it fills the machine's process table")
	for _, mode := range []string{"ebpf", "proc"} {
		t.Run(mode, func(t *testing.T) {
			s, c := newSite(t), newTenant(t)
			node := zoo.Start(t, "chld=reap serve")
			k := s.start("--mode="+mode, "--grace=1h", "--pressure=0.85", "--per-workload-kills=1", "--kills-per-minute=1")
			after := newWaiting(t, exec.Command("sh", "-c", forkScript))
			hoardThreads()
			lowerMachine(t, "pid_max", 1500)
			burntKills(t, s, k, c, node, func() bool { return tasks(t) < 500 })
			canFork(t, after)
		})
	}
}

// burntKills has a container leak in a loop on a node whose pids run out, until its
// init is gone and there is room.
func burntKills(t *testing.T, s *site, k *daemon, c *tenant, node *zoo.Zoo, room func() bool) {
	t.Helper()
	began := time.Now()
	node.Do("fork { name=good exec=%s term=count serve }", s.exe)
	good := node.Named("good")
	node.Do(`fork { name=container cgroup=%s chld=reap
		fork=pidns,proc { name=init exec=%s term=count respawn { name=leaker term=ignore storm=0 serve } serve } serve }`, c.Dir, s.exe)
	init := node.Named("init")
	initPID, goodPID := nsPID(t, k, init.PID), nsPID(t, k, good.PID)
	overridden := k.await("a kill in spite of the limits", func(e event) bool { return isKill(e) && e.LimitsOverridden })
	if overridden.Exe != s.exe {
		t.Errorf("who it was: %s", overridden.line)
	}
	init.WaitDead(patience)
	took := time.Since(began)
	if e := k.await("the end of the init", func(e event) bool { return e.Signal == "SIGKILL" && e.PID == initPID }); !e.LimitsOverridden {
		t.Errorf("it is not said that this was beyond the limits: %s", e.line)
	}
	zoo.Within(t, patience, "there is room on the node", room)
	if n := good.Count().TERM; n > 0 || !good.Alive() {
		t.Errorf("the bystander got %d SIGTERM", n)
	}
	k.never(0, "a kill of the bystander", harmed(goodPID))
	kills := len(k.all(func(e event) bool { return e.Event == "terminated" }))
	record(t, kills, fmt.Sprintf("freed %v after it began, the init last", took.Round(10*time.Millisecond)))
}

// nsPID is the pid that kzr knows a process by.
func nsPID(t *testing.T, k *daemon, pid int) int {
	t.Helper()
	depth := len(nsPIDs(t, k.pid))
	all := nsPIDs(t, pid)
	if len(all) < depth {
		t.Fatalf("pid %d has the pids %v, and kzr is %d deep", pid, all, depth)
	}
	n, _ := strconv.Atoi(all[depth-1])
	return n
}

// nsPIDs are a process's pids, one for each pid namespace that it is in.
func nsPIDs(t *testing.T, pid int) []string {
	t.Helper()
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/status", pid))) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			return strings.Fields(rest)
		}
	}
	t.Fatalf("pid %d has no NSpid", pid)
	return nil
}

// A container that fills its own limit again and again, whoever restarts it, is ended
// again, but with a pause that doubles. Meanwhile it is asked to reap all the same.
func TestScenario42RestartsAndFills(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--threshold=50", "--grace=1h", "--pressure=0.85", "--sweep-interval=1s", "--per-workload-kills=1", s.socket())
		c := newTenant(t)
		c.SetPidsMax(60)
		z := zoo.Start(t, "cgroup=%s chld=reap serve", c.Dir)
		restart := func(name string) *zoo.Proc {
			t.Helper()
			z.Do("fork=pidns,proc { name=%s exec=%s chld=count term=exit storm=0 serve }", name, s.exe)
			return z.Named(name)
		}
		first := restart("first")
		k.saw(first.PID, "terminated")
		first.WaitDead(0)
		kill := k.all(harmed(first.PID))[0].Time

		// A minute, and it is said until when.
		second := restart("second")
		waiting := k.saw(second.PID, "spared backoff")
		if pause := waiting.Until.Sub(kill); pause < 50*time.Second || pause > 70*time.Second {
			t.Errorf("the first pause is %v: %s", pause, waiting.line)
		}
		zoo.Within(t, patience, "the document says until when", func() bool {
			var doc document
			s.wantAnswer("/v1/parents", &doc)
			p, _ := doc.of(second.PID)
			return p.Until != nil && p.Until.Round(time.Second).Equal(waiting.Until.Round(time.Second))
		})
		asked := second.Count().CHLD
		zoo.Within(t, patience, "it is asked to reap, once more", func() bool { return second.Count().CHLD > asked })
		time.Sleep(time.Until(kill.Add(45 * time.Second)))
		k.never(0, "a kill in the pause", harmed(second.PID))
		k.saw(second.PID, "terminated")
		again := k.all(harmed(second.PID))[0].Time
		if pause := again.Sub(kill); pause < 55*time.Second {
			t.Errorf("it was ended again after %v", pause)
		}

		third := restart("third")
		waiting = k.saw(third.PID, "spared backoff")
		if pause := waiting.Until.Sub(again); pause < 100*time.Second || pause > 140*time.Second {
			t.Errorf("the second pause is %v: %s", pause, waiting.line)
		}
		// Who reaps is let live, and if its handler is slow, that is said all the same.
		third.Do("quiet chld=reap,ms=300")
		if e := k.saw(third.PID, "reaped"); e.By != "parent" {
			t.Errorf("who reaped: %s", e.line)
		}
		k.never(0, "a kill of one that reaps", harmed(third.PID))
		alive(t, third)
	})
}

// Workers who lived side by side were not restarted: ending all of them is one kill.
func TestScenario43Workers(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--per-workload-kills=1")
		c := newTenant(t)
		const workers = 8
		z := zoo.Start(t, "cgroup=%s fork=pidns,proc { name=init exec=%s chld=reap term=count fork=times=%d { leak=12 serve } serve } serve",
			c.Dir, s.exe, workers)
		init := z.Named("init")
		k.awaitN(workers, "the end of all workers", func(e event) bool { return e.Event == "terminated" && e.ContainerID == c.id })
		zoo.Within(t, patience, "the init has reaped them", func() bool { return len(zoo.Children(init.PID)) == 0 })
		if n := init.Count().TERM; n > 0 {
			t.Errorf("the init got %d SIGTERM", n)
		}
		k.never(0, "a pause", func(e event) bool { return e.ContainerID == c.id && e.Reason == "backoff" })

		// One that came after is a restart.
		init.Do("fork { name=ninth leak=12 serve }")
		ninth := z.Named("ninth")
		if e := k.saw(ninth.PID, "spared backoff"); e.Until.Before(e.Time.Add(50 * time.Minute)) {
			t.Errorf("until when: %s", e.line)
		}
		k.never(0, "a kill", harmed(ninth.PID))
	})
}

// relay is a chain of subreapers, one in the other. The innermost has the zombies;
// whenever one ends, they fall to the next. inner says what each does.
func relay(depth, zombies int, inner func(i int) string) string {
	script := fmt.Sprintf("leak=%d", zombies)
	for i := range depth {
		script = fmt.Sprintf("fork { name=r%d subreaper %s %s }", i, script, inner(i))
	}
	return script
}

// Zombies that are handed on before their grace ends keep their age for the sum of
// their workload. Who has them last gets a grace of his own. (By itself: hundreds of
// parents of other tests make sweeps cost so much that they are seconds apart.)
func TestScenario44Relay(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		s := newSite(t)
		const depth, zombies, grace = 7, 20, 3 * time.Second
		k := s.start(mode, "--grace="+grace.String(), "--nudge=20s", "--sweep-interval=1s")
		c := newTenant(t)
		z := zoo.Start(t, "cgroup=%s exec=%s subreaper fork { name=last subreaper %s serve } serve", c.Dir, s.exe,
			relay(depth, zombies, func(int) string { return "serve" }))
		for i := range depth {
			time.Sleep(time.Second)
			z.Named(fmt.Sprintf("r%d", i)).Do("exit")
		}
		moved := time.Now()
		last := z.Named("last")
		zoo.Within(t, patience, "they have arrived", func() bool { return last.Zombies() == zombies+depth })

		// Nobody had them for half a grace, but the workload for more than a whole one.
		if e := k.await("the workload's leak", func(e event) bool { return strings.Contains(e.Workload, c.id[:12]) }); e.Event != "suspect" || e.Time.After(moved) {
			t.Errorf("how it is reported, %v after they came to stay: %s", e.Time.Sub(moved), e.line)
		}
		sig := k.saw(last.PID, "signal SIGCHLD")
		if waited := sig.Time.Sub(moved); waited < grace-100*time.Millisecond {
			t.Errorf("the last one had them for %v", waited)
		}

		// In the middle of the ladder it hands them on as well: nothing has recovered.
		last.Do("exit")
		time.Sleep(1500 * time.Millisecond)
		k.never(0, "a recovery", func(e event) bool { return e.Exe == s.exe && e.Reason == "recovered" })
	})
}

// At a limit the zombies' own age counts, and passing them on twice a second does not
// help. (They are adopted, and could be reaped inside whoever has them: not here.)
func TestScenario44RelayAtTheLimit(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--threshold=50", "--grace=1h", "--pressure=0.85", "--sweep-interval=1s", "--reap=off")
		c := newTenant(t)
		const depth, zombies, every = 40, 60, 500
		z := zoo.Start(t, "cgroup=%s exec=%s chld=reap term=count subreaper %s serve", c.Dir, s.exe,
			relay(depth, zombies, func(i int) string { return fmt.Sprintf("ready sleep=%d exit", (i+1)*every) }))
		began := time.Now()
		limit := c.squeeze()
		e := k.await("a kill", isKill)
		if took := e.Time.Sub(began); took > depth*every*time.Millisecond*3/4 {
			t.Errorf("nobody was ended for %v", took)
		}
		c.wantRoom(limit)
		if n := z.Count().TERM; n > 0 || !z.Alive() {
			t.Errorf("the init got %d SIGTERM", n)
		}
	})
}

// A handler that waits once for each signal is asked again as soon as it has, and the
// log tells of it once.
func TestScenario45OneForEachSignal(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--nudge=1s")
		z := zoo.Start(t, "cgroup=%s exec=%s term=count leak=400 chld=reap,n=1 serve", newTenant(t).Dir, s.exe)
		sig := k.saw(z.PID, "signal SIGCHLD")
		e := k.saw(z.PID, "reaped")
		if took := e.Time.Sub(sig.Time); took > 20*time.Second || e.By != "parent" {
			t.Errorf("%v for 391 zombies: %s", took, e.line)
		}
		k.wantStory(z.PID, "signal SIGCHLD", "reaped")
		if c := z.Count(); c.Reaped < 391 || c.TERM > 0 {
			t.Errorf("%+v", c)
		}
		record(t, 391, fmt.Sprintf("one zombie for each signal, in %v", e.Time.Sub(sig.Time).Round(10*time.Millisecond)))
	})
}

// One that makes a zombie for each that it reaps, so slowly that there are always
// enough old ones, is not asked for ever.
func TestScenario45Refills(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode)
		z := zoo.Start(t, "cgroup=%s exec=%s term=count leak=60 chld=reap,n=1,sent,refill=1,ms=60 serve", newTenant(t).Dir, s.exe)
		sig := k.saw(z.PID, "signal SIGCHLD")
		end := k.saw(z.PID, "terminated")
		if took := end.Time.Sub(sig.Time); took > 45*time.Second {
			t.Errorf("it was asked for %v", took)
		}
		story := k.story(z.PID)
		if len(story) > 6 {
			t.Errorf("%d lines: %v", len(story), story)
		}
	})
}

// Many cgroups inside one container, or many units of one user, are one owner's: the
// others keep their share of what the node's limit allows.
func TestScenario53OneOwner(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		for _, c := range []struct {
			name       string
			flag       string
			dir, other string
		}{
			{"cgroups in a container", "--scope=containers", "docker/" + containerID(t) + "/made-inside-%d", "docker/" + containerID(t)},
			{"units of a user", "--scope=all", "user.slice/user-1000.slice/user@1000.service/app.slice/app-%d.service", "system.slice/shop.service"},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				s := newSite(t)
				k := s.start(mode, c.flag, "--kills-per-minute=3", "--nudge=0")
				top := zoo.NewCgroup(t, "pids", "node")
				dirs := map[string]*zoo.Cgroup{"": top}
				at := func(path string) string { // made level by level, as others share them
					below, name := top, ""
					for part := range strings.SplitSeq(path, "/") {
						if name += "/" + part; dirs[name] == nil {
							dirs[name] = below.New(part)
						}
						below = dirs[name]
					}
					return below.Dir
				}
				script := ""
				for i := range 8 {
					script += fmt.Sprintf("fork { cgroup=%s uid=1000 exec=%s leak=20 serve } ", at(fmt.Sprintf(c.dir, i)), s.exe)
				}
				greedy := zoo.Start(t, "chld=reap %s serve", script)
				many := zoo.Children(greedy.PID)
				isGreedy := func(e event) bool { return slices.Contains(many, e.PID) }
				k.await("the first of eight", func(e event) bool { return isGreedy(e) && isKill(e) })
				other := zoo.Start(t, "cgroup=%s exec=%s leak=12 serve", at(c.other), s.exe)
				// The eight were there first, and more of them wait for their turn, but
				// of all that wait his owner has had the least.
				k.awaitN(3, "all that a minute allows", func(e event) bool {
					return e.Event == "terminated" && (isGreedy(e) || e.PID == other.PID)
				})
				time.Sleep(20 * time.Second)
				k.saw(other.PID, "terminated")
				struck := map[int]bool{}
				end := k.all(harmed(other.PID))[0].Time
				for _, e := range k.all(func(e event) bool { return isGreedy(e) && isKill(e) && e.Time.Before(end) }) {
					struck[e.PID] = true
				}
				if len(struck) > 3 {
					t.Errorf("%d of the eight were ended before it", len(struck))
				}
			})
		}
	})
}

// kzr is killed and started again all the time while a container leaks in a loop.
// What it was allowed to do before it may not do again.
func TestScenario55CrashLoop(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		const allowed = 2
		flags := []string{mode, s.socket(), "--per-workload-kills=" + strconv.Itoa(allowed), "--grace=1s"}
		c := newTenant(t)
		z := zoo.Start(t, "cgroup=%s fork=pidns,proc { name=init exec=%s chld=count respawn { name=leaker leak=15 serve } serve } serve", c.Dir, s.exe)
		init := z.Named("init")
		kills := 0
		var backoff time.Time
		for range 6 {
			k := s.start(flags...)
			time.Sleep(2500 * time.Millisecond)
			kills += len(k.all(func(e event) bool { return e.ContainerID == c.id && e.Event == "terminated" }))
			for _, e := range k.all(func(e event) bool { return e.ContainerID == c.id && e.Reason == "backoff" }) {
				if backoff.IsZero() {
					backoff = e.Until
				}
				if d := e.Until.Sub(backoff); d < -2*time.Second || d > 2*time.Second {
					t.Errorf("the pause ends %v later than before: %s", d, e.line)
				}
			}
			k.murder()
		}
		made := init.Count().Made // leakers, each of which was started when the last one had been ended
		if made != allowed+1 || kills > allowed {
			t.Errorf("%d kills in the logs, %d leakers were started, and the limit is %d", kills, made, allowed)
		}
		if backoff.IsZero() {
			t.Error("nobody said that the limit is used up")
		}
		record(t, 6, fmt.Sprintf("killed and restarted 6 times: %d kills, as without", made-1))
	})
}

// Ages are not forgotten either.
func TestScenario55GraceGoesOn(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		const grace = 12 * time.Second
		flags := []string{mode, s.socket(), "--nudge=30s", "--sweep-interval=1s", "--grace=" + grace.String()}
		k := s.start(flags...)
		z := zoo.Start(t, "in=pidns,proc exec=%s leak=20 term=count serve", s.exe)
		born := time.Now()
		k.saw(z.PID, "suspect") // half of it is over
		zoo.Within(t, patience, "it is in the state", func() bool {
			text, _ := os.ReadFile(filepath.Join(s.dir, "kzr.state"))
			return strings.Contains(string(text), fmt.Sprintf(`"pid":%d,`, z.PID))
		})
		k.murder()
		k = s.start(flags...)
		sig := k.saw(z.PID, "signal SIGCHLD")
		if waited := sig.Time.Sub(born); waited < grace-100*time.Millisecond {
			t.Errorf("signalled %v after its zombies died", waited)
		}
		if again := sig.Time.Sub(k.began); again > grace*3/4 {
			t.Errorf("signalled %v after the start, as if nothing had been known", again)
		}
		k.stop()
		// A state that is no good is not believed, and that is said.
		spoil(t, s)
		const short = 3 * time.Second
		k = s.start(append(flags, "--grace="+short.String())...)
		k.await("a line about the state", func(e event) bool { return e.Level == "WARN" && strings.Contains(e.line, "kzr.state") })
		sig = k.saw(z.PID, "signal SIGCHLD")
		if waited := sig.Time.Sub(k.began); waited < short {
			t.Errorf("signalled %v after the start, with nothing known", waited)
		}
	})
}

// spoil overwrites what kzr keeps beside its socket.
func spoil(t *testing.T, s *site) {
	t.Helper()
	path := filepath.Join(s.dir, "kzr.state")
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("{\x00\xff"), 0o600); err != nil {
		t.Fatal(err)
	}
}
