package e2e

import (
	"syscall"
	"testing"
	"time"

	"kzr/internal/zoo"
)

// Parents that are not acted on for now: the reason is said, and when it passes
// they are.

func TestScenario09Deferred(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		// That it ended is found by the look that is made every second, as no sweep
		// comes in time. (Through /proc there have to be sweeps.)
		k := s.start(mode, "--grace=3s", "--sweep-interval=1h")
		freezer := zoo.NewCgroup(t, "freezer", "freezer")
		type cast struct{ tracer, victim *zoo.Proc }
		for _, c := range []struct {
			reason     string
			hold, free func(cast)
		}{
			{"traced",
				func(c cast) { c.tracer.Do("trace=%d", c.victim.PID) },
				func(c cast) { c.tracer.Do("untrace=%d", c.victim.PID) }},
			{"traced", // and held by its tracer, which then dies
				func(c cast) { c.tracer.Do("trace=%d,stop", c.victim.PID) },
				func(c cast) { c.tracer.Signal(syscall.SIGKILL) }},
			{"stopped",
				func(c cast) { c.victim.Signal(syscall.SIGSTOP) },
				func(c cast) { c.victim.Signal(syscall.SIGCONT) }},
			{"frozen",
				func(cast) { freezer.Freeze() },
				func(cast) { freezer.Thaw() }},
			{"uninterruptible",
				func(c cast) { c.victim.Do("vfork") },
				func(c cast) { kill(t, livingChild(t, c.victim)) }},
		} {
			// The tracer is outside, where it can name its tracee.
			z := zoo.Start(t, "fork { name=tracer serve } fork=pidns,proc { fork { name=victim cgroup=%s exec=%s serve } serve } serve",
				freezer.Dir, s.exe)
			who := cast{z.Named("tracer"), z.Named("victim")}
			who.victim.Do("leak=12")
			c.hold(who)
			k.saw(who.victim.PID, "spared "+c.reason)
			// Two more looks.
			k.never(2*time.Second, "a signal to one that is "+c.reason, func(e event) bool { return e.PID == who.victim.PID && isSignal(e) })
			k.wantStory(who.victim.PID, "spared "+c.reason)
			alive(t, who.victim)
			c.free(who)
			k.saw(who.victim.PID, "terminated")
			k.wantStory(who.victim.PID, "spared "+c.reason, "signal SIGCHLD", "signal SIGTERM", "terminated")
		}
	})
}

func livingChild(t *testing.T, p *zoo.Proc) int {
	t.Helper()
	for _, pid := range zoo.Children(p.PID) {
		if st := zoo.State(pid); st != 'Z' && st != 0 {
			return pid
		}
	}
	t.Fatalf("%s has no living child", p.Name)
	return 0
}

// It is stopped between SIGCHLD and SIGTERM: the wait had no meaning for it, so
// it begins anew, and the place in the ladder is kept.
func TestStoppedBetweenSignals(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--nudge=1500ms")
		z := zoo.Start(t, "in=pidns,proc exec=%s fork { name=kid leak=12 serve } serve", s.exe)
		kid := z.Named("kid")
		k.saw(kid.PID, "signal SIGCHLD")
		kid.Signal(syscall.SIGSTOP)
		k.saw(kid.PID, "spared stopped")
		time.Sleep(2 * time.Second)
		k.wantStory(kid.PID, "signal SIGCHLD", "spared stopped")
		alive(t, kid)
		freed := time.Now()
		kid.Signal(syscall.SIGCONT)
		if e := k.saw(kid.PID, "signal SIGTERM"); e.Time.Sub(freed) < 1500*time.Millisecond {
			t.Errorf("SIGTERM came %v after it went on", e.Time.Sub(freed))
		}
		k.saw(kid.PID, "terminated")
	})
}

// A container's init is killed and cannot end: a process of it that is traced
// from outside has to be reaped first.
func TestScenario10DyingButBlocked(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode)
		z := zoo.Start(t, "fork=pidns { exec=%s name=init fork { name=kid serve } serve } fork { name=tracer serve } serve", s.exe)
		boss, kid, tracer := z.Named("init"), z.Named("kid"), z.Named("tracer")
		tracer.Do("trace=%d", kid.PID)
		boss.Do("leak=12")
		k.saw(boss.PID, "signal SIGKILL")
		kid.WaitDead(patience)
		k.saw(boss.PID, "spared dying")
		time.Sleep(3 * time.Second) // time enough for a storm
		k.wantStory(boss.PID, "signal SIGCHLD", "signal SIGKILL", "spared dying")
		if !boss.Alive() {
			t.Fatal("it was not blocked")
		}
		tracer.Do("untrace=%d", kid.PID)
		boss.WaitDead(patience)
		k.saw(boss.PID, "terminated")
		k.wantStory(boss.PID, "signal SIGCHLD", "signal SIGKILL", "spared dying", "terminated")
	})
}
