package reaper

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"kzr/internal/config"
	"kzr/internal/policy"
	"kzr/internal/report"
	"kzr/internal/task"
	"kzr/internal/zoo"
)

// soon bounds what takes milliseconds on an idle machine.
const soon = time.Minute

func TestMain(m *testing.M) {
	if target := os.Getenv("KZR_TEST_UNPRIVILEGED"); target != "" {
		actUnprivileged(target)
		return
	}
	goleak.VerifyTestMain(m)
}

// rig is a reaper with everything it says written down.
type rig struct {
	*Reaper
	t      *testing.T
	cancel context.CancelFunc
	// at holds what to do at a line of the story, before the ladder goes on; set
	// it before the ladder starts.
	at map[string]func()

	mu       sync.Mutex
	events   []report.Event
	outcomes map[task.ID]Outcome
}

var plenty = Settings{Limits: config.Limits{KillsPerMinute: 1000, PerWorkload: config.PerWorkload{Kills: 1000, Window: time.Hour}}}

// quick are waits for tests.
var quick = timing{
	look: 20 * time.Millisecond, check: 20 * time.Millisecond,
	urgent: 50 * time.Millisecond, stalled: 300 * time.Millisecond, nudges: soon, inside: soon,
	kill: soon, dying: soon, next: soon, reap: time.Second,
}

func newRig(t *testing.T, judge Judge, set Settings) *rig {
	t.Helper()
	return newRigWith(t, judge, set, Options{})
}

// newRigWith takes Inside, Save and State from o.
func newRigWith(t *testing.T, judge Judge, set Settings, o Options) *rig {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &rig{t: t, cancel: cancel, outcomes: map[task.ID]Outcome{}}
	r.Reaper = New(ctx, Options{Judge: judge, Settings: set, Report: func(e report.Event) {
		if do := r.at[line(e)]; do != nil {
			do()
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.events = append(r.events, e)
	}, Inside: o.Inside, Save: o.Save, State: o.State})
	r.timing = quick
	var receiver sync.WaitGroup
	receiver.Go(func() {
		for {
			select {
			case out := <-r.Outcomes():
				r.mu.Lock()
				r.outcomes[out.ID] = out
				r.mu.Unlock()
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		r.Wait()
		receiver.Wait()
		if t.Failed() {
			for _, line := range r.story(0) {
				t.Log(line)
			}
		}
	})
	return r
}

// line is an event's name, and its signal or reason.
func line(e report.Event) string { return strings.TrimSpace(e.Name + " " + e.Signal + e.Reason) }

// story is what was said of a process, one line per event; with pid 0 it is what
// was said of all, in full.
func (r *rig) story(pid int) (lines []string) {
	for _, e := range r.said(pid) {
		text := line(e)
		if pid == 0 {
			text = fmt.Sprintf("%s %d %s (%s)", e.Time.Format("05.000"), e.Process.PID, text, e.Message)
		}
		lines = append(lines, text)
	}
	return lines
}

func (r *rig) said(pid int) (events []report.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if pid == 0 || e.Process.PID == pid {
			events = append(events, e)
		}
	}
	return events
}

// event waits for a line of the story and returns its event.
func (r *rig) event(pid int, line string) (e report.Event) {
	r.t.Helper()
	zoo.Within(r.t, soon, "event "+line, func() bool {
		i := slices.Index(r.story(pid), line)
		if i >= 0 {
			e = r.said(pid)[i]
		}
		return i >= 0
	})
	return e
}

func (r *rig) outcome(id task.ID) (out Outcome) {
	r.t.Helper()
	zoo.Within(r.t, soon, "the end of the ladder of "+id.String(), func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		var ok bool
		out, ok = r.outcomes[id]
		return ok
	})
	return out
}

// wantStory compares the story of a process. On a slow machine dying can take
// long enough to be mentioned, and any process can be found waiting for a disk.
func (r *rig) wantStory(pid int, want ...string) {
	r.t.Helper()
	got := slices.DeleteFunc(r.story(pid), func(line string) bool {
		return (line == "spared dying" || line == "spared uninterruptible") && !slices.Contains(want, line)
	})
	if !slices.Equal(got, want) {
		r.t.Errorf("what happened to pid %d:\n got %s\nwant %s", pid, strings.Join(got, ", "), strings.Join(want, ", "))
	}
}

func (r *rig) act(p *zoo.Proc) task.ID {
	r.t.Helper()
	id := idOf(r.t, p)
	if !r.Act(id, Who{}) {
		r.t.Fatalf("no ladder was started for %s", id)
	}
	return id
}

// idOf returns the identity of a process whose zombies then are in snapshots:
// one from /proc leaves out what began in the current clock tick.
func idOf(t *testing.T, p *zoo.Proc) task.ID {
	t.Helper()
	time.Sleep(2 * time.Second / task.TicksPerSecond)
	return inspect(t, p.PID).ID
}

func inspect(t *testing.T, pid int) task.Process {
	t.Helper()
	process, err := newJudge(t).proc.Inspect(t.Context(), pid)
	if err != nil {
		t.Fatal(err)
	}
	return process
}

// Scenario 4: SIGCHLD, SIGTERM, SIGKILL, in this order and with these waits, as
// the victim sees them.
func TestLadder(t *testing.T) {
	z := zoo.Start(t, "leak=5 chld=count term=count serve")
	judge := newJudge(t)
	judge.nudge, judge.term = 200*time.Millisecond, 300*time.Millisecond
	r := newRig(t, judge, plenty)
	var release func()
	r.at = map[string]func(){
		"signal SIGCHLD": func() {
			zoo.Within(t, soon, "it sees SIGCHLD", func() bool { return z.Count().CHLD == 1 })
		},
		"signal SIGTERM": func() { release = judge.hold() },
	}
	id := r.act(z.Proc)

	chld := r.event(z.PID, "signal SIGCHLD")
	term := r.event(z.PID, "signal SIGTERM")
	zoo.Within(t, soon, "it sees SIGTERM", func() bool { return z.Count().TERM == 1 })
	if c := z.Count(); c.CHLD != 1 {
		t.Errorf("it saw %d SIGCHLD", c.CHLD)
	}
	r.event(z.PID, "spared stopped")
	if status, ok := r.Status(id); !ok || status.Reason != policy.Stopped {
		t.Errorf("status %+v, %v", status, ok)
	}
	release()
	kill := r.event(z.PID, "signal SIGKILL")
	if out := r.outcome(id); out.Result != Terminated {
		t.Errorf("outcome %+v", out)
	}
	if e := r.event(z.PID, "terminated"); e.Message != "ended after SIGKILL; its zombies are gone" {
		t.Errorf("message %q", e.Message)
	}
	if s := z.Status(); s.Signal() != unix.SIGKILL {
		t.Errorf("it ended with status %#x", s)
	}
	r.wantStory(z.PID, "signal SIGCHLD", "signal SIGTERM", "spared stopped", "signal SIGKILL", "terminated")
	if d := term.Time.Sub(chld.Time); d < judge.nudge {
		t.Errorf("SIGTERM %s after SIGCHLD, want at least %s", d, judge.nudge)
	}
	if d := kill.Time.Sub(term.Time); d < judge.term {
		t.Errorf("SIGKILL %s after SIGTERM, want at least %s", d, judge.term)
	}
	if chld.Process.ID != id || chld.Zombies != 5 || chld.Rule != "test" || chld.DryRun {
		t.Errorf("event %+v", chld)
	}
	zoo.Within(t, soon, "the ladder is forgotten", func() bool { _, ok := r.Status(id); return !ok })
}

func TestOutcomes(t *testing.T) {
	const (
		chld, term, kill = "signal SIGCHLD", "signal SIGTERM", "signal SIGKILL"
	)
	for _, tc := range []struct {
		name, script string
		judge        func(*procJudge)
		want         Result
		story        []string
		alive        bool
	}{
		{
			name: "scenario 5, reaps on SIGCHLD", script: "leak=60 chld=reap serve",
			want: Reaped, story: []string{chld, "reaped"}, alive: true,
		}, {
			// 6 zombies, and with fewer than 3 it is off the hook.
			name: "reaps one per SIGCHLD", script: "leak=6 chld=reap,n=1 serve",
			want: Reaped, story: []string{chld, "reaped"}, alive: true,
		}, {
			// Children that do not send SIGCHLD pile up faster than it reaps.
			name: "reaps one per SIGCHLD and leaks more", script: "leak=100 chld=reap,n=1 storm=0,rate=1000,sig=0 serve",
			want: Terminated, story: []string{chld, term, "terminated"},
		}, {
			name: "scenario 6, dies of SIGTERM", script: "leak=5 serve",
			want: Terminated, story: []string{chld, term, "terminated"},
		}, {
			name: "scenario 6, exits on SIGTERM", script: "leak=5 term=exit,ms=20 serve",
			judge: func(j *procJudge) { j.term = soon },
			want:  Terminated, story: []string{chld, term, "terminated"},
		}, {
			name: "scenario 6, ignores SIGTERM", script: "leak=5 term=ignore serve",
			want: Terminated, story: []string{chld, term, kill, "terminated"},
		}, {
			name: "no nudge", script: "leak=5 chld=reap serve",
			judge: func(j *procJudge) { j.nudge = 0 },
			want:  Terminated, story: []string{term, "terminated"},
		}, {
			name: "no nudge, no SIGTERM", script: "leak=5 term=exit serve",
			judge: func(j *procJudge) { j.nudge, j.term = 0, 0 },
			want:  Terminated, story: []string{kill, "terminated"},
		}, {
			name: "recovered before anything was done", script: "leak=2 serve",
			want: Spared, story: []string{"spared recovered"}, alive: true,
		}, {
			name: "protected", script: "leak=5 serve",
			judge: func(j *procJudge) { j.reason = policy.Protected },
			want:  Spared, story: []string{"spared protected"}, alive: true,
		}, {
			name: "init of a pid namespace without a handler", script: "in=pidns,proc leak=5 serve",
			want: Terminated, story: []string{chld, kill, "terminated"},
		}, {
			name: "init of a pid namespace with a handler", script: "in=pidns,proc leak=5 term=exit serve",
			want: Terminated, story: []string{chld, term, "terminated"},
		}, {
			// It could fetch the signal by itself, as tini does; this one does not.
			name: "init of a pid namespace that blocks SIGTERM", script: "in=pidns,proc leak=5 term=block serve",
			want: Terminated, story: []string{chld, term, kill, "terminated"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			z := zoo.Start(t, "%s", tc.script)
			judge := newJudge(t)
			if tc.judge != nil {
				tc.judge(judge)
			}
			r := newRig(t, judge, plenty)
			if nudges := 0; strings.Contains(tc.script, "chld=reap") {
				r.at = map[string]func(){chld: func() { // a slow machine must not make it a slow reaper
					nudges++
					zoo.Within(t, soon, "it sees SIGCHLD", func() bool { return z.Count().CHLD >= nudges })
				}}
			}
			out := r.outcome(r.act(z.Proc))
			if out.Result != tc.want {
				t.Errorf("outcome %+v, want %s", out, tc.want)
			}
			r.wantStory(z.PID, tc.story...)
			if z.Alive() != tc.alive {
				t.Errorf("alive: %v, want %v", !tc.alive, tc.alive)
			}
			if skipped := !slices.Contains(tc.story, term); slices.Contains(tc.story, kill) {
				if e := r.event(z.PID, kill); strings.Contains(e.Message, "SIGTERM was skipped") != skipped {
					t.Errorf("SIGTERM skipped: %v, but SIGKILL says %q", skipped, e.Message)
				}
			}
		})
	}
}

// A parent that reaps what is fresh and leaks the rest must not seem to reap
// because of the nudge.
func TestFreshZombiesAreNoProgress(t *testing.T) {
	z := zoo.Start(t, "leak=5 fresh=10,age=50 serve")
	judge := newJudge(t)
	judge.grace = 3 * time.Second
	id := idOf(t, z.Proc)
	zoo.Within(t, soon, "its zombies are old", func() bool {
		look, err := judge.Look(t.Context(), id)
		return err == nil && look.Met
	})
	r := newRig(t, judge, plenty)
	r.act(z.Proc)
	if out := r.outcome(id); out.Result != Terminated {
		t.Errorf("outcome %+v", out)
	}
	r.wantStory(z.PID, "signal SIGCHLD", "signal SIGTERM", "terminated")
}

// What was seen is worth nothing once kzr has stood still: stopped, starved of CPU, or
// waiting for a disk.
func TestStandsStill(t *testing.T) {
	z := zoo.Start(t, "leak=5 chld=count term=count serve")
	judge := newJudge(t)
	r := newRig(t, judge, plenty)
	r.at = map[string]func(){"signal SIGCHLD": func() {
		judge.set(func() {
			judge.after = func(task.ID) {
				judge.after = nil
				z.Do("reap=all")
				time.Sleep(stale + judge.nudge)
			}
		})
	}}
	if out := r.outcome(r.act(z.Proc)); out.Result != Reaped {
		t.Errorf("outcome %+v", out)
	}
	r.wantStory(z.PID, "signal SIGCHLD", "reaped")
	if c := z.Count(); c.TERM != 0 {
		t.Errorf("signals came: %+v", c)
	}
}

// Where who traces a parent, or for whom it waits, is known at every second look only, as
// of one whose status file is slow to read, each wait for the answer is no reason to wait for anything else.
func TestKnownAtEverySecondLook(t *testing.T) {
	for reason, unknown := range map[policy.Reason]task.Facts{policy.Traced: {TracerUnknown: true}, policy.Waiting: {WaitsUnknown: true}} {
		t.Run(string(reason), func(t *testing.T) {
			z := zoo.Start(t, "leak=5 chld=count term=ignore serve")
			judge := newJudge(t)
			judge.after = func(id task.ID) {
				if judge.unknown = (task.Facts{}); judge.looks[id]%2 == 1 {
					judge.unknown = unknown
				}
			}
			r := newRig(t, judge, plenty)
			if out := r.outcome(r.act(z.Proc)); out.Result != Terminated {
				t.Errorf("outcome %+v", out)
			}
			r.wantStory(z.PID, "signal SIGCHLD", "signal SIGTERM", "signal SIGKILL", "terminated")
		})
	}
}

// One that waits for a child, whoever that is, gets its whole time again when that has
// ended. One look that could not tell is no such news.
func TestWaitsForSomebody(t *testing.T) {
	for name, tc := range map[string]struct {
		seen  task.Facts
		noExe bool
		story []string
	}{
		"no executable": {task.Facts{}, true, []string{"signal SIGCHLD", "signal SIGTERM", "terminated"}},
		"unnamed":       {task.Facts{WaitsUnnamed: true}, false, []string{"signal SIGCHLD", "spared waiting", "signal SIGTERM", "terminated"}},
		"unknown":       {task.Facts{WaitsUnknown: true}, false, []string{"signal SIGCHLD", "signal SIGTERM", "terminated"}},
	} {
		t.Run(name, func(t *testing.T) {
			z := zoo.Start(t, "leak=5 chld=count serve")
			judge := newJudge(t)
			judge.nudge = 300 * time.Millisecond
			r := newRig(t, judge, plenty)
			r.at = map[string]func(){"signal SIGCHLD": func() {
				judge.set(func() {
					judge.unknown, judge.noExe = tc.seen, tc.noExe
					judge.after = func(task.ID) { judge.unknown, judge.noExe = task.Facts{}, false }
				})
			}}
			if out := r.outcome(r.act(z.Proc)); out.Result != Terminated {
				t.Errorf("outcome %+v", out)
			}
			r.wantStory(z.PID, tc.story...)
			said := r.said(z.PID)
			if waited := said[len(tc.story)-2].Time.Sub(said[len(tc.story)-3].Time); name == "unnamed" && waited < judge.nudge {
				t.Errorf("SIGTERM came %v after it had waited, want its %v again", waited, judge.nudge)
			}
		})
	}
}

// One that has not reaped is not said to have, only because the rule asks for more
// now than when it got its signal.
func TestRuleChanges(t *testing.T) {
	for _, tc := range []struct {
		name, script string
		change       func(*procJudge)
		want         Result
		story        []string
	}{
		{
			"another threshold", "leak=5 chld=count serve", func(j *procJudge) { j.threshold = 6 },
			Spared, []string{"signal SIGCHLD", "spared recovered"},
		}, {
			"another grace", "leak=5 chld=count serve", func(j *procJudge) { j.grace = time.Hour },
			Spared, []string{"signal SIGCHLD", "spared recovered"},
		}, {
			"and it reaps", "leak=5 chld=reap,n=1 serve", func(j *procJudge) { j.threshold = 6 },
			Reaped, []string{"signal SIGCHLD", "reaped"},
		}, {
			"to an easier one, and it reaps", "leak=5 chld=reap serve", func(j *procJudge) { j.threshold = 1 },
			Reaped, []string{"signal SIGCHLD", "reaped"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			z := zoo.Start(t, "%s", tc.script)
			judge := newJudge(t)
			r := newRig(t, judge, plenty)
			r.at = map[string]func(){"signal SIGCHLD": func() {
				zoo.Within(t, soon, "it sees SIGCHLD", func() bool { return z.Count().CHLD == 1 })
				judge.set(func() { tc.change(judge) })
			}}
			if out := r.outcome(r.act(z.Proc)); out.Result != tc.want {
				t.Errorf("outcome %+v, want %s", out, tc.want)
			}
			r.wantStory(z.PID, tc.story...)
			if e := r.said(z.PID)[1]; (tc.want == Spared) != strings.Contains(e.Message, "no longer meets the rule, which has changed") {
				t.Errorf("message %q", e.Message)
			}
		})
	}
}

// Scenario 12.
func TestVanishes(t *testing.T) {
	t.Run("before", func(t *testing.T) {
		z := zoo.Start(t, "fork { name=kid leak=5 serve } serve")
		id := idOf(t, z.Named("kid"))
		z.Named("kid").Do("exit")
		z.Do("reap=1")
		r := newRig(t, newJudge(t), plenty)
		r.Act(id, Who{})
		if out := r.outcome(id); out.Result != Spared || out.Reason != policy.Recovered {
			t.Errorf("outcome %+v", out)
		}
	})
	t.Run("before, and is not reaped", func(t *testing.T) {
		z := zoo.Start(t, "fork { name=kid leak=5 serve } serve")
		id := idOf(t, z.Named("kid"))
		z.Named("kid").Do("exit")
		z.Named("kid").WaitDead(soon)
		r := newRig(t, newJudge(t), plenty)
		r.Act(id, Who{})
		if out := r.outcome(id); out.Result != Spared || out.Reason != policy.Recovered {
			t.Errorf("outcome %+v", out)
		}
		r.wantStory(id.PID, "spared recovered")
	})
	t.Run("during a wait", func(t *testing.T) {
		z := zoo.Start(t, "leak=5 serve")
		judge := newJudge(t)
		judge.nudge = time.Hour
		r := newRig(t, judge, plenty)
		id := r.act(z.Proc)
		r.event(z.PID, "signal SIGCHLD")
		z.Do("exit")
		if out := r.outcome(id); out.Result != Spared || out.Reason != policy.Recovered {
			t.Errorf("outcome %+v", out)
		}
		r.wantStory(z.PID, "signal SIGCHLD", "spared recovered")
	})
	t.Run("between the look and the signal", func(t *testing.T) {
		// Nobody reaps it, and the kernel would accept a signal.
		kid := zoo.Start(t, "fork { name=kid leak=5 serve } serve").Named("kid")
		judge := newJudge(t)
		judge.after = func(task.ID) {
			kid.Signal(unix.SIGKILL)
			kid.WaitDead(soon)
		}
		r := newRig(t, judge, plenty)
		if out := r.outcome(r.act(kid)); out.Result != Spared || out.Reason != policy.Recovered {
			t.Errorf("outcome %+v", out)
		}
		r.wantStory(kid.PID, "spared recovered")
	})
}

// Another process has the pid, or it is that of a thread.
func TestIdentity(t *testing.T) {
	z := zoo.Start(t, "threads=1 leak=5 term=count serve")
	r := newRig(t, newJudge(t), plenty)
	id := idOf(t, z.Proc)
	z.Do("chld=count") // from now on: the last child's own signal may be late
	id.Start--
	r.Act(id, Who{})
	if out := r.outcome(id); out.Result != Spared || out.Reason != policy.IdentityChanged {
		t.Errorf("outcome %+v", out)
	}
	tids, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", z.PID))
	if err != nil || len(tids) != 2 {
		t.Fatalf("threads %q, %v", tids, err)
	}
	for _, dir := range tids {
		var tid int
		if _, err := fmt.Sscan(filepath.Base(dir), &tid); err != nil {
			t.Fatal(err)
		}
		if tid == z.PID {
			continue
		}
		r.Act(task.ID{PID: tid, Start: 1}, Who{})
		if out := r.outcome(task.ID{PID: tid, Start: 1}); out.Result != Spared {
			t.Errorf("outcome %+v", out)
		}
	}
	if c := z.Count(); c.CHLD+c.TERM != 0 {
		t.Errorf("it got signals: %+v", c)
	}
}

// A ladder that waits and has given its pidfd to another: the next owner of the pid,
// who meets the rule as well, gets no signal.
func TestReusedWhileItWaits(t *testing.T) {
	for _, tc := range []struct {
		name, put string // off, with this
		stop      bool
		want      []string
	}{
		{"for the limits", "spared rate_limited", false, []string{"signal SIGCHLD", "spared rate_limited", "spared recovered"}},
		{"because it is stopped", "spared stopped", true, []string{"signal SIGCHLD", "signal SIGTERM", "spared stopped", "terminated"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			z := zoo.Start(t, "fork { name=kid leak=5 term=count serve } serve")
			kid := z.Named("kid")
			set := plenty
			set.Limits.KillsPerMinute = 0
			if tc.stop {
				set = plenty
			}
			r := newRig(t, newJudge(t), set)
			r.timing.look, r.timing.check = 2*time.Second, time.Hour
			var others []*slot
			for range maxSlots - 1 {
				others = append(others, r.slots.acquire(anyone))
			}
			wants := sync.OnceFunc(func() { others = append(others, r.slots.acquire(anyone)) })
			r.at = map[string]func(){"signal SIGCHLD": wants, "signal SIGTERM": func() { kid.Signal(unix.SIGSTOP) }}
			id := r.act(kid)
			r.event(kid.PID, tc.put)
			zoo.Within(t, soon, "it has given its slot away", func() bool { return !r.slots.wanted() })
			kid.Signal(unix.SIGKILL)
			kid.WaitDead(soon)
			z.Do("reap=pid=%d", kid.PID)
			z.Do("fork=tid=%d { name=heir leak=5 chld=count term=count serve }", kid.PID)
			heir := z.Named("heir")
			if heir.PID != kid.PID || idOf(t, heir) == id {
				t.Fatalf("the heir is %d, not %d", heir.PID, kid.PID)
			}
			r.Set(plenty)
			for _, s := range others {
				r.slots.release(s)
			}
			if out := r.outcome(id); out.Result == GaveUp {
				t.Errorf("%+v", out)
			}
			r.wantStory(kid.PID, tc.want...)
			if c := heir.Count(); c.CHLD+c.TERM != 0 || !heir.Alive() {
				t.Errorf("the heir got signals: %+v", c)
			}
		})
	}
}

// A look at another process counts for nothing, whatever it says.
func TestLookAtAnother(t *testing.T) {
	z := zoo.Start(t, "leak=5 chld=count term=count serve")
	id := idOf(t, z.Proc)
	r := newRig(t, strayJudge{}, plenty)
	before := z.Count()
	r.Act(id, Who{})
	if out := r.outcome(id); out.Result != Spared || out.Reason != policy.IdentityChanged {
		t.Errorf("outcome %+v", out)
	}
	if c := z.Count(); c != before {
		t.Errorf("it got signals: %+v", c)
	}
}

// Scenario 9: deferred, said once, and acted on when that ends, with the wait
// after the last signal begun anew.
func TestDeferred(t *testing.T) {
	for _, tc := range []struct {
		reason        policy.Reason
		begin, finish func(z *zoo.Zoo)
	}{
		{
			policy.Stopped,
			func(z *zoo.Zoo) { z.Named("kid").Signal(unix.SIGSTOP) },
			func(z *zoo.Zoo) { z.Named("kid").Signal(unix.SIGCONT) },
		}, {
			policy.Traced,
			func(z *zoo.Zoo) { z.Named("tracer").Do("trace=%d", z.Named("kid").PID) },
			func(z *zoo.Zoo) { z.Named("tracer").Do("untrace=%d", z.Named("kid").PID) },
		},
	} {
		t.Run(string(tc.reason), func(t *testing.T) {
			z := zoo.Start(t, "fork { name=kid leak=5 term=count serve } fork { name=tracer serve } serve")
			kid := z.Named("kid")
			judge := newJudge(t)
			judge.nudge = 100 * time.Millisecond
			r := newRig(t, judge, plenty)

			tc.begin(z)
			zoo.Within(t, soon, string(tc.reason), func() bool {
				p := inspect(t, kid.PID)
				return policy.Deferred(&p.Facts, policy.Circumstances{}) == tc.reason
			})
			id := r.act(kid)
			r.event(kid.PID, "spared "+string(tc.reason))
			looks := judge.lookedAt(id)
			zoo.Within(t, soon, "looked at again", func() bool { return judge.lookedAt(id) > looks+3 })
			r.wantStory(kid.PID, "spared "+string(tc.reason))
			judge.set(func() { judge.nudge = time.Hour })
			tc.finish(z)
			r.event(kid.PID, "signal SIGCHLD")
			r.cancel()
			r.Wait()

			// The same in the middle of the ladder.
			judge.set(func() { judge.nudge, judge.term = 500*time.Millisecond, time.Millisecond })
			r = newRig(t, judge, plenty)
			r.at = map[string]func(){"signal SIGCHLD": func() { tc.begin(z) }}
			r.act(kid)
			r.event(kid.PID, "spared "+string(tc.reason))
			freed := time.Now()
			tc.finish(z)
			term := r.event(kid.PID, "signal SIGTERM")
			if d := term.Time.Sub(freed); d < judge.nudge {
				t.Errorf("SIGTERM %s after it could run again, want at least %s", d, judge.nudge)
			}
			if out := r.outcome(id); out.Result != Terminated {
				t.Errorf("outcome %+v", out)
			}
			r.wantStory(kid.PID, "signal SIGCHLD", "spared "+string(tc.reason), "signal SIGTERM", "signal SIGKILL", "terminated")
		})
	}
}

// dying are waits for tests of what does not die at once.
func dying(kill, dying time.Duration) timing {
	out := quick
	out.kill, out.dying = kill, dying
	return out
}

// Scenario 10: one SIGKILL, then the reason why it is not dead yet, once, and no
// storm of looks either.
func TestDyingButBlocked(t *testing.T) {
	const script = `fork=pidns { name=init fork { name=kid serve } leak=5 serve }
		fork { name=tracer serve } serve`
	start := func(t *testing.T, judge *procJudge, timing timing) (z *zoo.Zoo, r *rig, id task.ID) {
		z = zoo.Start(t, "%s", script)
		z.Named("tracer").Do("trace=%d", z.Named("kid").PID)
		r = newRig(t, judge, plenty)
		r.timing = timing
		id = r.act(z.Named("init"))
		r.event(id.PID, "spared dying")
		if !z.Named("init").Alive() {
			t.Fatal("it is not blocked")
		}
		return z, r, id
	}
	t.Run("and ends", func(t *testing.T) {
		judge := newJudge(t)
		z, r, id := start(t, judge, dying(50*time.Millisecond, soon))
		looks := judge.lookedAt(id)
		zoo.Within(t, soon, "looked at again", func() bool { return judge.lookedAt(id) > looks+3 })
		z.Named("tracer").Do("untrace=%d", z.Named("kid").PID)
		if out := r.outcome(id); out.Result != Terminated {
			t.Errorf("outcome %+v", out)
		}
		r.wantStory(id.PID, "signal SIGCHLD", "signal SIGKILL", "spared dying", "terminated")
	})
	t.Run("and does not end", func(t *testing.T) {
		judge := newJudge(t)
		z, r, id := start(t, judge, dying(50*time.Millisecond, 200*time.Millisecond))
		if out := r.outcome(id); out.Result != GaveUp || !out.Tried {
			t.Errorf("outcome %+v", out)
		}
		r.wantStory(id.PID, "signal SIGCHLD", "signal SIGKILL", "spared dying", "gave_up")
		// Asked again, it waits for the end and sends nothing.
		zoo.Within(t, soon, "a second ladder", func() bool { return r.Act(id, Who{}) })
		looks := judge.lookedAt(id)
		zoo.Within(t, soon, "looked at again", func() bool { return judge.lookedAt(id) > looks+5 })
		z.Named("tracer").Do("untrace=%d", z.Named("kid").PID)
		r.event(id.PID, "spared recovered")
		r.wantStory(id.PID, "signal SIGCHLD", "signal SIGKILL", "spared dying", "gave_up", "spared recovered") // dying was said already
	})
	t.Run("and holds up nobody", func(t *testing.T) {
		_, r, _ := start(t, newJudge(t), dying(soon, soon))
		other := zoo.Start(t, "leak=5 serve")
		if out := r.outcome(r.act(other.Proc)); out.Result != Terminated {
			t.Errorf("outcome %+v", out)
		}
	})
}

// Scenario 13: where the zombies went is known.
func TestZombiesMove(t *testing.T) {
	z := zoo.Start(t, "in=pidns,proc fork { name=middle leak=30 serve } serve")
	r := newRig(t, newJudge(t), plenty)
	r.timing.reap = 100 * time.Millisecond
	middle := z.Named("middle")
	out := r.outcome(r.act(middle))
	if out.Result != Terminated {
		t.Errorf("outcome %+v", out)
	}
	want := fmt.Sprintf("ended after SIGTERM; zombies moved to pid %d, which has not reaped them: 30", z.PID)
	if e := r.event(middle.PID, "terminated"); e.Message != want {
		t.Errorf("message %q, want %q", e.Message, want)
	}
}

func TestDryRun(t *testing.T) {
	z := zoo.Start(t, "leak=5 chld=count term=count serve")
	set := plenty
	set.DryRun = true
	set.Limits.PerWorkload.Kills = 1
	judge := newJudge(t)
	r := newRig(t, judge, set)
	begun := time.Now()
	id := idOf(t, z.Proc)
	r.Act(id, Who{Workload: "pod"})
	if out := r.outcome(id); out.Result != Rehearsed {
		t.Errorf("outcome %+v", out)
	}
	if d := time.Since(begun); d < judge.nudge+judge.term {
		t.Errorf("it took %s, less than the waits", d)
	}
	r.wantStory(z.PID, "signal SIGCHLD", "signal SIGTERM", "signal SIGKILL", "gave_up")
	for _, e := range r.said(z.PID) {
		if !e.DryRun || e.Name == report.EventSignal && !strings.HasPrefix(e.Message, "would send ") {
			t.Errorf("event %s does not say that it is a dry run: %+v", e.Name, e)
		}
	}
	// Limits hold as they would.
	zoo.Within(t, soon, "a second ladder", func() bool { return r.Act(id, Who{Workload: "pod"}) })
	r.event(z.PID, "spared backoff")
	if c := z.Count(); c.CHLD+c.TERM != 0 || !z.Alive() {
		t.Errorf("it got signals: %+v", c)
	}
}

// A dry run that is asked for in the middle of a ladder begins at once.
func TestDryRunSetLate(t *testing.T) {
	z := zoo.Start(t, "leak=5 chld=count term=count serve")
	r := newRig(t, newJudge(t), plenty)
	set := plenty
	set.DryRun = true
	r.at = map[string]func(){"signal SIGCHLD": func() { r.Set(set) }}
	id := r.act(z.Proc)
	if out := r.outcome(id); out.Result != Rehearsed {
		t.Errorf("outcome %+v", out)
	}
	r.Set(plenty)
	if c := z.Count(); c.CHLD != 1 || c.TERM != 0 || !z.Alive() {
		t.Errorf("signals: %+v", c)
	}
}

// Whatever a ladder does when kzr stops, it stops at once and sends nothing more.
func TestCancel(t *testing.T) {
	for _, tc := range []struct {
		name, at string // cancelled at this event
		want     []string
		judge    func(*procJudge)
		set      Settings
		stop     bool
	}{
		{name: "after SIGCHLD", at: "signal SIGCHLD", want: []string{"signal SIGCHLD", "gave_up"}, set: plenty,
			judge: func(j *procJudge) { j.nudge = time.Hour }},
		{name: "after SIGTERM", at: "signal SIGTERM", want: []string{"signal SIGCHLD", "signal SIGTERM", "gave_up"}, set: plenty,
			judge: func(j *procJudge) { j.term = time.Hour }},
		{name: "put off", at: "spared stopped", want: []string{"spared stopped"}, set: plenty, stop: true},
		{name: "waiting for its turn", at: "spared rate_limited", want: []string{"signal SIGCHLD", "spared rate_limited", "gave_up"},
			set: Settings{Limits: config.Limits{KillsPerMinute: 0, PerWorkload: plenty.Limits.PerWorkload}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			z := zoo.Start(t, "leak=5 chld=count term=count serve")
			judge := newJudge(t)
			if tc.judge != nil {
				tc.judge(judge)
			}
			if tc.stop {
				z.Signal(unix.SIGSTOP)
				zoo.Within(t, soon, "stopped", func() bool { return z.State() == 'T' })
			}
			r := newRig(t, judge, tc.set)
			id := r.act(z.Proc)
			r.event(z.PID, tc.at)
			r.cancel()
			waited := make(chan struct{})
			go func() { r.Wait(); close(waited) }()
			select {
			case <-waited:
			case <-time.After(soon):
				t.Fatal("it does not stop")
			}
			r.wantStory(z.PID, tc.want...)
			if r.Act(id, Who{}) {
				t.Error("a ladder was started after the end")
			}
			z.Signal(unix.SIGCONT)
			count := func(line string) (n int) {
				for _, l := range tc.want {
					if l == line {
						n++
					}
				}
				return n
			}
			// Of SIGCHLDs only the first is told.
			zoo.Within(t, soon, "what was sent arrives", func() bool {
				c := z.Count()
				return (c.CHLD > 0) == (count("signal SIGCHLD") > 0) && c.TERM == count("signal SIGTERM")
			})
		})
	}
	t.Run("in the middle of a look", func(t *testing.T) {
		z := zoo.Start(t, "leak=5 chld=count term=count serve")
		judge := newJudge(t)
		r := newRig(t, judge, plenty)
		judge.after = func(task.ID) { r.cancel() }
		r.act(z.Proc)
		r.Wait()
		r.wantStory(z.PID)
		if c := z.Count(); c.CHLD+c.TERM != 0 {
			t.Errorf("it got signals: %+v", c)
		}
	})
}

// Scenario 36 in small: as many as the limit allows, the others in turn.
func TestRateLimited(t *testing.T) {
	set := plenty
	set.Limits.KillsPerMinute = 2
	judge := newJudge(t)
	judge.nudge = 0
	r := newRig(t, judge, set)
	var zoos []*zoo.Zoo
	for range 4 {
		z := zoo.Start(t, "leak=5 serve")
		zoos = append(zoos, z)
		r.act(z.Proc)
		// Their order is that in which they came.
		zoo.Within(t, soon, "its turn, or none", func() bool { return len(r.said(z.PID)) > 0 })
	}
	for _, z := range zoos[:2] {
		z.WaitDead(soon)
	}
	for _, z := range zoos[2:] {
		r.wantStory(z.PID, "spared rate_limited")
		if !z.Alive() {
			t.Errorf("pid %d died in spite of the limit", z.PID)
		}
	}
	if status, _ := r.Status(idOf(t, zoos[2].Proc)); status.Reason != policy.RateLimited || !strings.Contains(status.Message, "limits.killsPerMinute (2)") {
		t.Errorf("status %+v", status)
	}
	set.Limits.KillsPerMinute = 3
	r.Set(set)
	zoos[2].WaitDead(soon)
	if !zoos[3].Alive() {
		t.Error("the last one died in spite of the limit")
	}
	// Who recovers while it waits is left alone when its turn comes, and its turn
	// is not lost for the next.
	last := zoo.Start(t, "leak=5 serve")
	r.act(last.Proc)
	r.event(last.PID, "spared rate_limited")
	zoos[3].Do("reap=5")
	set.Limits.KillsPerMinute = 4
	r.Set(set)
	last.WaitDead(soon)
	r.event(zoos[3].PID, "spared recovered")
	if !zoos[3].Alive() {
		t.Error("one that recovered died")
	}
}

// One whose zombies have become the reason why pids run out goes before those who
// came first, whether that shows when it comes or while it waits.
func TestPressedComesFirst(t *testing.T) {
	for _, early := range []bool{true, false} {
		t.Run(fmt.Sprint("when it comes ", early), func(t *testing.T) {
			set := plenty
			set.Limits.KillsPerMinute = 1
			judge := newJudge(t)
			judge.nudge = 0
			r := newRig(t, judge, set)
			start := func() (*zoo.Zoo, task.ID) {
				z := zoo.Start(t, "leak=5 serve")
				id := r.act(z.Proc)
				zoo.Within(t, soon, "its turn, or none", func() bool { return len(r.said(z.PID)) > 0 })
				return z, id
			}
			first, _ := start()
			first.WaitDead(soon)
			second, _ := start()
			if early {
				judge.set(func() { judge.pressure = policy.WorkloadPressure })
			}
			culprit, id := start()
			if !early {
				r.Hurry(id)
			}
			r.event(culprit.PID, "spared rate_limited")
			set.Limits.KillsPerMinute = 2
			r.Set(set)
			culprit.WaitDead(soon)
			if !second.Alive() {
				t.Error("the other one died in spite of the limit")
			}
			r.Hurry(id) // it is gone
		})
	}
}

// No descriptor is free for a pidfd: the ladder waits for one, and does not give
// its parent up for what is not its fault.
func TestNoDescriptorForAPidfd(t *testing.T) {
	r := newRig(t, newJudge(t), plenty)
	z := zoo.Start(t, "leak=5 serve")
	id := idOf(t, z.Proc)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	restore := sync.OnceFunc(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(restore)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	if !r.Act(id, Who{}) {
		t.Fatal("no ladder was started")
	}
	time.Sleep(3 * r.timing.look)
	if _, running := r.Status(id); !running {
		t.Error("it was given up at once")
	}
	restore()
	z.WaitDead(soon)
	if out := r.outcome(id); out.Result != Terminated {
		t.Errorf("%+v", out)
	}
}

// In one workload the second victim has its turn when the first is gone, and is
// looked at again then; what comes after those that lived side by side is refused.
func TestPerWorkloadOneByOne(t *testing.T) {
	set := plenty
	set.Limits.PerWorkload.Kills = 1
	r := newRig(t, newJudge(t), set)
	var pids []int
	var ids []task.ID
	for range 3 {
		id := idOf(t, zoo.Start(t, "leak=5 term=ignore serve").Proc)
		ids, pids = append(ids, id), append(pids, id.PID)
	}
	for _, id := range ids {
		r.Act(id, Who{Workload: "pod"})
	}
	other := zoo.Start(t, "leak=5 term=ignore serve")
	r.Act(idOf(t, other.Proc), Who{Workload: "other"})
	for _, pid := range pids {
		zoo.Within(t, soon, "an end", func() bool {
			return slices.Contains(r.story(pid), "terminated")
		})
	}
	other.WaitDead(soon)

	dead, victim := 0, 0
	for _, e := range r.said(0) {
		if !slices.Contains(pids, e.Process.PID) {
			continue
		}
		switch {
		case e.Signal == "SIGTERM" && victim != 0:
			t.Errorf("SIGTERM to pid %d while %d was not gone", e.Process.PID, victim)
		case e.Signal == "SIGTERM":
			victim = e.Process.PID
		case e.Name == report.EventTerminated:
			victim = 0
			dead++
		}
	}
	if dead != 3 {
		t.Errorf("%d of the workload died, want 3", dead)
	}

	// From here on there is nothing but SIGCHLD.
	late := zoo.Start(t, "leak=5 chld=count term=count serve")
	id := idOf(t, late.Proc)
	r.Act(id, Who{Workload: "pod"})
	out := r.outcome(id)
	if out.Result != Spared || out.Reason != policy.Backoff || time.Until(out.Until) < 59*time.Minute {
		t.Errorf("outcome %+v", out)
	}
	r.wantStory(late.PID, "signal SIGCHLD", "spared backoff")
	e := r.event(late.PID, "spared backoff")
	if !e.Until.Equal(out.Until) || !strings.HasPrefix(e.Message, "limits.perWorkload (1 in 1h) used up since ") ||
		!strings.HasSuffix(e.Message, "; next kill at "+out.Until.Format(time.TimeOnly)) {
		t.Errorf("event %+v", e)
	}
	if c := late.Count(); c.CHLD != 1 || c.TERM != 0 {
		t.Errorf("signals: %+v", c)
	}
}

// One that stops when it is asked to end holds up no other of its workload, and
// is ended all the same when it goes on. They lived side by side, and count as one.
func TestDeferredHoldsUpNobody(t *testing.T) {
	set := plenty
	set.Limits.PerWorkload.Kills = 1
	r := newRig(t, newJudge(t), set)
	first := zoo.Start(t, "leak=5 term=count serve")
	second := zoo.Start(t, "leak=5 term=ignore serve")
	stop := sync.OnceFunc(func() {
		zoo.Within(t, soon, "it sees SIGTERM", func() bool { return first.Count().TERM == 1 })
		first.Signal(unix.SIGSTOP)
		zoo.Within(t, soon, "it is stopped", func() bool { return first.State() == 'T' })
	})
	r.at = map[string]func(){"signal SIGTERM": stop}
	id, other := idOf(t, first.Proc), idOf(t, second.Proc)
	r.Act(id, Who{Workload: "pod"})
	r.event(first.PID, "spared stopped")
	r.Act(other, Who{Workload: "pod"})
	second.WaitDead(soon)
	if out := r.outcome(other); out.Result != Terminated {
		t.Errorf("the second: %+v", out)
	}
	if !first.Alive() {
		t.Error("it died while it was stopped")
	}
	first.Signal(unix.SIGCONT)
	if out := r.outcome(id); out.Result != Terminated {
		t.Errorf("the first: %+v", out)
	}
	r.wantStory(first.PID, "signal SIGCHLD", "signal SIGTERM", "spared stopped", "signal SIGKILL", "terminated")
	third := zoo.Start(t, "leak=5 serve")
	id = idOf(t, third.Proc)
	r.Act(id, Who{Workload: "pod"})
	if out := r.outcome(id); out.Reason != policy.Backoff {
		t.Errorf("a second kill, of one: %+v", out)
	}
}

// Where nothing can be seen, nothing is sent.
func TestBlind(t *testing.T) {
	z := zoo.Start(t, "leak=5 chld=count term=count serve")
	r := newRig(t, blindJudge{}, plenty)
	if out := r.outcome(r.act(z.Proc)); out.Result != GaveUp || out.Tried {
		t.Errorf("outcome %+v", out)
	}
	r.wantStory(z.PID, "gave_up")
	if e := r.event(z.PID, "gave_up"); !strings.Contains(e.Message, errBlind.Error()) {
		t.Errorf("message %q", e.Message)
	}
	if c := z.Count(); c.CHLD+c.TERM != 0 {
		t.Errorf("it got signals: %+v", c)
	}
}

// A signal that may not be sent ends the ladder.
func TestNotPermitted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have a process that another user may not signal")
	}
	z := zoo.Start(t, "leak=5 chld=count term=count serve")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"KZR_TEST_UNPRIVILEGED=" + fmt.Sprint(z.PID)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if want := "gave_up true\nsending SIGCHLD through pidfd: operation not permitted\n"; err != nil || string(out) != want {
		t.Errorf("output %q, %v, want %q", out, err, want)
	}
	if c := z.Count(); c.CHLD+c.TERM != 0 {
		t.Errorf("it got signals: %+v", c)
	}
}

func actUnprivileged(target string) {
	var pid int
	if _, err := fmt.Sscan(target, &pid); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var last report.Event
	r := New(ctx, Options{Judge: willingJudge{}, Settings: plenty, Report: func(e report.Event) { last = e }})
	r.Act(task.ID{PID: pid}, Who{})
	out := <-r.Outcomes()
	cancel()
	r.Wait()
	fmt.Printf("%s %t\n%s\n", out.Result, out.Tried, last.Message)
}

// entries is how many there are in a directory.
func entries(t *testing.T, dir string) int {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// crowd is many processes whose parent does not reap, so that their numbers are
// theirs for as long as it lives.
func crowd(t *testing.T, n int) []int {
	t.Helper()
	z := zoo.Start(t, "%s serve", strings.Repeat("fork { serve } ", n))
	kids := zoo.Children(z.PID)
	if len(kids) != n {
		t.Fatalf("%d children", len(kids))
	}
	return kids
}

func killAll(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Error(err)
		}
	}
}

func (r *rig) ends() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.outcomes)
}

// Hundreds of ladders that wait need no thread: with a full process table there
// is none to be had. Nor do they take all descriptors, or leave any behind: those
// that have none wait for their turn.
func TestWaitingNeedsNoThread(t *testing.T) {
	const n = 300
	kids := crowd(t, n+1)
	kids, late := kids[:n], kids[n]
	r := newRig(t, willingJudge{}, plenty)
	before, files := entries(t, "/proc/self/task"), entries(t, "/proc/self/fd")
	for _, pid := range kids {
		r.Act(task.ID{PID: pid}, Who{})
	}
	asked := func() int { return len(r.said(0)) }
	zoo.Within(t, soon, "as many as may are asked to reap", func() bool { return asked() == maxSlots })
	time.Sleep(3 * r.timing.look)
	waiting := 0
	for _, pid := range kids {
		status, ok := r.Status(task.ID{PID: pid})
		if !ok {
			t.Errorf("there is no ladder for %d", pid)
		}
		if status.Reason == policy.RateLimited {
			waiting++
		}
	}
	if got := asked(); got+waiting != n || got != maxSlots {
		t.Errorf("%d are asked to reap, and %d wait for their turn", got, waiting)
	}
	// The runtime may add one for reasons of its own.
	if during := entries(t, "/proc/self/task"); during > before+3 {
		t.Errorf("%d threads with %d ladders, %d before", during, n, before)
	}
	if during := entries(t, "/proc/self/fd"); during > files+maxSlots {
		t.Errorf("%d open files with %d ladders, %d before", during, n, files)
	}
	// There is a slot for one that is in a hurry.
	r.Act(task.ID{PID: late}, Who{})
	r.Hurry(task.ID{PID: late})
	r.event(late, "signal SIGCHLD")

	killAll(t, append(kids, late))
	zoo.Within(t, soon, "every ladder hears of the end", func() bool { return r.ends() == n+1 })
	if during := entries(t, "/proc/self/task"); during > before+3 {
		t.Errorf("%d threads after the ladders, %d before", during, before)
	}
	zoo.Within(t, soon, "no file is left open", func() bool { return entries(t, "/proc/self/fd") == files })
}

// Those that wait for the limits hold no more than there is, and hear of the end of
// theirs.
func TestWaitingNeedsNoDescriptor(t *testing.T) {
	const n = 200
	kids := crowd(t, n)
	files := entries(t, "/proc/self/fd")
	none := plenty
	none.Limits.KillsPerMinute = 0
	r := newRig(t, eagerJudge{}, none)
	for _, pid := range kids {
		r.Act(task.ID{PID: pid}, Who{})
	}
	zoo.Within(t, soon, "all wait for the limits", func() bool { return len(r.said(0)) == n })
	// What was looked at last may be open for a moment more.
	zoo.Within(t, soon, "no more files are open than there are slots", func() bool { return entries(t, "/proc/self/fd")-files <= maxSlots })
	killAll(t, kids[:n/2])
	zoo.Within(t, soon, "the ladders of the dead end", func() bool { return r.ends() == n/2 })
	// The others have their turn, each with a slot for the time after SIGTERM.
	r.Set(plenty)
	zoo.Within(t, soon, "all die", func() bool { return r.ends() == n })
	for _, pid := range kids[n/2:] {
		r.wantStory(pid, "spared rate_limited", "signal SIGTERM", "terminated")
	}
	zoo.Within(t, soon, "no file is left open", func() bool { return entries(t, "/proc/self/fd") == files })
}

// A parent that reaps one zombie each time that it is asked to is asked for as
// long as it takes, but not before everybody else.
func TestSlowOnesTakeTurns(t *testing.T) {
	const n = maxSlots
	kids := crowd(t, n)
	r := newRig(t, &slowJudge{looks: map[task.ID]int{}}, plenty)
	for _, pid := range kids {
		r.Act(inspect(t, pid).ID, Who{})
	}
	zoo.Within(t, soon, "all are asked to reap", func() bool { return len(r.said(0)) >= n })
	z := zoo.Start(t, "serve")
	r.act(z.Proc)
	r.event(z.PID, "signal SIGCHLD")
	if ends := r.ends(); ends != 0 {
		t.Errorf("%d of those that reap slowly have ended", ends)
	}
	killAll(t, kids)
}

// As many as there are slots have stopped for good. They keep nobody from his turn.
func TestStoppedOnesKeepNoSlot(t *testing.T) {
	kids := crowd(t, maxSlots)
	judge := newJudge(t)
	judge.threshold = 0
	r := newRig(t, judge, plenty)
	for _, pid := range kids {
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			t.Error(err)
		}
		zoo.Within(t, soon, "it stops", func() bool { return zoo.State(pid) == 'T' })
		r.Act(inspect(t, pid).ID, Who{})
	}
	zoo.Within(t, soon, "all are put off", func() bool { return len(r.said(0)) == maxSlots })
	z := zoo.Start(t, "leak=5 serve")
	if out := r.outcome(r.act(z.Proc)); out.Result != Terminated {
		t.Errorf("%+v", out)
	}
	if n := r.ends(); n != 1 {
		t.Errorf("%d ladders have ended, want 1", n)
	}
	killAll(t, kids)
	zoo.Within(t, soon, "every ladder hears of the end", func() bool { return r.ends() == maxSlots+1 })
}
