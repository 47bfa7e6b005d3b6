package e2e

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"kzr/internal/zoo"
)

// What counts as a zombie of whom.

func TestScenario03LeaksSome(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		z := zoo.Start(t, "in=pidns,proc exec=%s storm=100,reap=95 serve", s.exe)
		zoo.Within(t, patience, "95 of 100 children are reaped", func() bool {
			c := z.Count()
			return c.Made == 100 && c.Reaped == 95
		})
		s.wantCount(mode, z.PID, 5, 5)
		const grace = 3 * time.Second
		k := s.start(mode, "--threshold=6", "--grace="+grace.String())
		k.silentAbout(grace+1500*time.Millisecond, z.PID)

		// The sixth makes it a target once it is as old as the five have long been.
		leaked := time.Now()
		z.Do("leak=1")
		if e := k.saw(z.PID, "signal SIGCHLD"); e.Time.Sub(leaked.Truncate(time.Millisecond)) < grace {
			t.Errorf("signalled %v after the sixth: %s", e.Time.Sub(leaked), e.line)
		}
		if e := k.saw(z.PID, "signal SIGKILL"); e.Zombies != 6 {
			t.Errorf("%d zombies: %s", e.Zombies, e.line)
		}
		z.WaitDead(patience)
		k.saw(z.PID, "terminated")
	})
}

func TestScenario07DeadLeader(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--threshold=3")
		z := zoo.Start(t, "exec=%s serve", s.exe)
		for range 4 {
			z.Do("fork { name=kid deadleader serve }")
		}
		zoo.Within(t, patience, "four dead leaders", func() bool { return z.Zombies() == 4 })
		s.wantCount(mode, z.PID, 4, 0)
		k.silentAbout(2500*time.Millisecond, z.PID)

		// Once the last thread is gone they are zombies like all others.
		for _, kid := range zoo.Children(z.PID) {
			kill(t, kid)
		}
		zoo.Within(t, patience, "they count", func() bool {
			doc, _ := s.scan("", mode)
			p, _ := doc.of(z.PID)
			return p.Reapable == 4
		})
		k.saw(z.PID, "spared out_of_scope")
	})
}

// The tracer is of another workload: a person who looks at them. (Scenario 39 has
// one of the same.)
func TestScenario08HeldByTracer(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode)
		z := zoo.Start(t, "cgroup=%s fork=pidns,proc { name=parent exec=%s hold=12 { cgroup=%s name=tracer serve } serve } serve",
			newTenant(t).Dir, s.exe, newTenant(t).Dir)
		p, tracer := z.Named("parent"), z.Named("tracer")
		zoo.Within(t, patience, "12 held zombies", func() bool { return p.Zombies() == 12 })
		s.wantCount(mode, p.PID, 12, 0)
		k.never(2500*time.Millisecond, "a decision", func(e event) bool {
			return (e.PID == p.PID || e.PID == tracer.PID) && e.Event != "suspect"
		})
		r := run(t, "", "explain", "--config="+s.config, mode, "--socket="+s.dir+"/none", strconv.Itoa(p.PID))
		if !strings.Contains(r.stdout, strconv.Itoa(tracer.PID)) {
			t.Errorf("the tracer %d is not named: status %d\n%s%s", tracer.PID, r.status, r.stdout, r.stderr)
		}

		// The tracer goes, and the parent has them to reap.
		tracer.Do("exit")
		k.saw(p.PID, "terminated")
	})
}

func TestScenario20OtherExitSignals(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode)
		// 0: nobody is told. 10: SIGUSR1. And what is not SIGCHLD stays a zombie
		// though SIGCHLD is ignored.
		for _, script := range []string{"leak=12,sig=0", "leak=12,sig=10", "chld=ignore leak=12,sig=0"} {
			z := zoo.Start(t, "in=pidns,proc exec=%s %s serve", s.exe, script)
			k.saw(z.PID, "terminated")
			z.WaitDead(0)
			if got := k.saw(z.PID, "signal SIGKILL").Zombies; got != 12 {
				t.Errorf("%s: %d zombies", script, got)
			}
		}
	})
}

// A parent whose first thread has ended is a parent like any other: nobody gets
// away with that, and it is known for who it is.
func TestDeadLeaderLeaks(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		id := containerID(t)
		cg := zoo.NewCgroup(t, "pids", "docker/"+id)
		s := newSite(t)
		z := zoo.Start(t, "cgroup=%s fork { name=parent exec=%s deadleader leak=12 term=count serve } serve", cg.Dir, s.exe)
		p := z.Named("parent")
		if p.State() != 'Z' {
			t.Fatalf("its leader is %c", p.State())
		}
		if doc := s.wantCount(mode, p.PID, 12, 12); doc.Exe != s.exe || doc.Container == nil || doc.State != "S" {
			t.Errorf("scan: %+v", doc)
		}
		k := s.start(mode)
		if e := k.saw(p.PID, "terminated"); e.ContainerID != id || e.Exe != s.exe {
			t.Errorf("who it was: %s", e.line)
		}
		k.wantStory(p.PID, "signal SIGCHLD", "signal SIGTERM", "signal SIGKILL", "terminated")
		p.WaitDead(0)
	})
}

// A parent's threads are one parent, whichever of them forked.
func TestThreadsLeakTogether(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		z := zoo.Start(t, "in=pidns,proc exec=%s leak=5,thread leak=4,thread leak=3 serve", s.exe)
		s.wantCount(mode, z.PID, 12, 12)
		k := s.start(mode, "--threshold=12")
		k.saw(z.PID, "terminated")
		z.WaitDead(0)
	})
}

// Two hundred parents with one zombie each are two hundred parents, not one.
func TestThresholdIsPerParent(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--threshold=2")
		z := zoo.Start(t, "in=pidns,proc exec=%s serve", s.exe)
		for range 30 {
			z.Do("fork { leak=1 serve }")
		}
		k.never(2500*time.Millisecond, "an event about one of them", func(e event) bool { return e.Exe == s.exe })
	})
}

func TestZombiesOlderThanKzr(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		z := zoo.Start(t, "in=pidns,proc exec=%s leak=12 serve", s.exe)
		time.Sleep(1500 * time.Millisecond)
		k := s.start(mode, "--grace=3s")
		first := k.saw(z.PID, "signal SIGCHLD")
		// Their age counts from the first sighting.
		if waited := first.Time.Sub(k.began); waited < 3*time.Second {
			t.Errorf("signalled %v after the start", waited)
		}
		k.saw(z.PID, "terminated")
		z.WaitDead(0)
	})
}

// Zombies that a subreaper outside any container inherits are its own.
func TestSubreaperAdopts(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--scope=all", "--reap=off") // else they would be reaped inside it
		z := zoo.Start(t, "fork { exec=%s name=sub subreaper fork { leak=12 exit } serve } serve", s.exe)
		sub := z.Named("sub")
		zoo.Within(t, patience, "13 zombies", func() bool { return sub.Zombies() == 13 })
		if e := k.saw(sub.PID, "signal SIGCHLD"); e.Zombies != 13 {
			t.Errorf("%d zombies", e.Zombies)
		}
		k.saw(sub.PID, "terminated")
		sub.WaitDead(0)
		alive(t, z.Proc)
	})
}
