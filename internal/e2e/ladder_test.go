package e2e

import (
	"syscall"
	"testing"
	"time"

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
			if got := step.to.Time.Sub(step.from.Time); got < step.want || got > step.want+5*time.Second {
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
