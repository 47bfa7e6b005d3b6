package reaper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/config"
	"kzr/internal/policy"
	"kzr/internal/report"
	"kzr/internal/task"
	"kzr/internal/zoo"
)

// byRequest reaps inside a process of the zoo, which does it itself when it is told
// to over its socket.
type byRequest struct {
	t    *testing.T
	proc *zoo.Proc
	do   func(call int, look *Look) (Insided, error)

	mu    sync.Mutex
	calls []time.Time
}

func (b *byRequest) Reap(_ context.Context, pidfd int, look *Look) (Insided, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd))
	if err != nil || !strings.Contains(string(info), fmt.Sprintf("Pid:\t%d\n", b.proc.PID)) || look.Process.PID != b.proc.PID {
		b.t.Errorf("it is asked for another process: %+v, %s, %v", look.Process.ID, info, err)
	}
	b.calls = append(b.calls, time.Now())
	return b.do(len(b.calls), look)
}

func (b *byRequest) called() []time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.calls)
}

func TestReapInside(t *testing.T) {
	reap := func(b *byRequest, n, left int) (Insided, error) {
		b.proc.Do("reap=%d", n)
		return Insided{Reaped: n, Left: left, Stopped: 3 * time.Millisecond}, nil
	}
	errLost := errors.New("the helper is gone")
	for _, tc := range []struct {
		name   string
		judge  func(*procJudge)
		timing func(*timing)
		do     func(b *byRequest, call int) (Insided, error)
		dryRun bool
		calls  int // -1 is several
		want   Result
		until  bool
		story  []string
		says   map[string]string // what the message of an event has in it
		alive  bool
	}{
		{
			name:  "all of them",
			do:    func(b *byRequest, _ int) (Insided, error) { return reap(b, 20, 0) },
			calls: 1, want: Reaped, alive: true,
			story: []string{"signal SIGCHLD", "reaped"},
			says:  map[string]string{"reaped": "reaped 20 zombies inside it (paused for at most 3ms); 0 left"},
		}, {
			name:  "in several batches",
			do:    func(b *byRequest, call int) (Insided, error) { return reap(b, 5, 20-5*call) },
			calls: 4, want: Reaped, alive: true,
			story: []string{"signal SIGCHLD", "reaped"},
			says:  map[string]string{"reaped": "reaped 20 zombies"},
		}, {
			name:  "not enough",
			judge: func(j *procJudge) { j.own = 10 },
			do:    func(b *byRequest, _ int) (Insided, error) { return reap(b, 10, 0) },
			calls: 1, want: Terminated,
			story: []string{"signal SIGCHLD", "reaped", "signal SIGTERM", "terminated"},
			says:  map[string]string{"reaped": "reaped 10 zombies inside it (paused for at most 3ms); 10 left"},
		}, {
			// It does good, only slowly: that is no reason to end it.
			name:   "more than there is time for",
			timing: func(t *timing) { t.inside = 100 * time.Millisecond },
			do: func(b *byRequest, call int) (Insided, error) {
				time.Sleep(60 * time.Millisecond)
				return reap(b, 1, 20-call)
			},
			calls: -1, want: Reaped, until: true, alive: true,
			story: []string{"signal SIGCHLD", "reaped"},
			says:  map[string]string{"reaped": "more to reap inside it, not before "},
		}, {
			name: "until a timeout of its own is over",
			do: func(b *byRequest, _ int) (Insided, error) {
				done, err := reap(b, 5, 15)
				done.Alone = time.Hour
				return done, err
			},
			calls: 1, want: Reaped, until: true, alive: true,
			story: []string{"signal SIGCHLD", "reaped"},
			says:  map[string]string{"reaped": "; 15 more to reap inside it, not before "},
		}, {
			name:  "and adopts more meanwhile",
			judge: func(j *procJudge) { j.own = 2 },
			do: func(b *byRequest, _ int) (Insided, error) {
				done, err := reap(b, 18, 0)
				b.proc.Do("leak=3")
				return done, err
			},
			calls: 1, want: Reaped, until: true, alive: true,
			story: []string{"signal SIGCHLD", "reaped"},
			says:  map[string]string{"reaped": "; 3 more to reap inside it, not before "},
		}, {
			name:  "in spite of a timeout, under pressure",
			judge: func(j *procJudge) { j.pressure = policy.NodePressure },
			do: func(b *byRequest, _ int) (Insided, error) {
				done, err := reap(b, 5, 15)
				done.Alone = time.Hour
				return done, err
			},
			calls: 1, want: Terminated,
			story: []string{"signal SIGCHLD", "reaped", "signal SIGTERM", "terminated"},
		}, {
			name:  "refused",
			do:    func(*byRequest, int) (Insided, error) { return Insided{Refused: "it has a seccomp filter"}, nil },
			calls: 1, want: Terminated,
			story: []string{"signal SIGCHLD", "signal SIGTERM", "terminated"},
			says:  map[string]string{"signal SIGTERM": "sent SIGTERM; not reaped inside: it has a seccomp filter"},
		}, {
			name: "refused for the moment",
			do: func(b *byRequest, call int) (Insided, error) {
				if call < 3 {
					return Insided{Refused: "it writes", Transient: true}, nil
				}
				return reap(b, 20, 0)
			},
			calls: 3, want: Reaped, alive: true,
			story: []string{"signal SIGCHLD", "reaped"},
		}, {
			name:   "refused for too long",
			timing: func(t *timing) { t.inside = 200 * time.Millisecond },
			do:     func(*byRequest, int) (Insided, error) { return Insided{Refused: "it writes", Transient: true}, nil },
			calls:  -1, want: Terminated,
			story: []string{"signal SIGCHLD", "signal SIGTERM", "terminated"},
			says:  map[string]string{"signal SIGTERM": "not reaped inside: it writes"},
		}, {
			name:  "refused for the moment under pressure",
			judge: func(j *procJudge) { j.pressure = policy.WorkloadPressure },
			do:    func(*byRequest, int) (Insided, error) { return Insided{Refused: "it writes", Transient: true}, nil },
			calls: 1, want: Terminated,
			story: []string{"signal SIGCHLD", "signal SIGTERM", "terminated"},
		}, {
			name:  "no helper any more",
			do:    func(*byRequest, int) (Insided, error) { return Insided{}, errLost },
			calls: 1, want: Terminated,
			story: []string{"signal SIGCHLD", "signal SIGTERM", "terminated"},
			says:  map[string]string{"signal SIGTERM": "not reaped inside: the helper is gone"},
		}, {
			name:  "switched off",
			judge: func(j *procJudge) { j.reap = config.ReapOff },
			do:    func(b *byRequest, _ int) (Insided, error) { return reap(b, 20, 0) },
			calls: 0, want: Terminated,
			story: []string{"signal SIGCHLD", "signal SIGTERM", "terminated"},
		}, {
			name:  "its own",
			judge: func(j *procJudge) { j.adopted = false },
			do:    func(b *byRequest, _ int) (Insided, error) { return reap(b, 20, 0) },
			calls: 0, want: Terminated,
			story: []string{"signal SIGCHLD", "signal SIGTERM", "terminated"},
		}, {
			name:  "its own, on request",
			judge: func(j *procJudge) { j.adopted, j.reap = false, config.ReapAll },
			do:    func(b *byRequest, _ int) (Insided, error) { return reap(b, 20, 0) },
			calls: 1, want: Reaped, alive: true,
			story: []string{"signal SIGCHLD", "reaped"},
		}, {
			name:   "in a dry run",
			do:     func(b *byRequest, _ int) (Insided, error) { return reap(b, 20, 0) },
			dryRun: true,
			calls:  0, want: Rehearsed, alive: true,
			story: []string{"signal SIGCHLD", "gave_up"},
			says:  map[string]string{"gave_up": "dry run: nothing was sent; 20 zombies left; would reap 20 zombies inside it"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			z := zoo.Start(t, "leak=20 serve")
			judge := newJudge(t)
			judge.adopted, judge.reap = true, config.ReapAdopted
			if tc.judge != nil {
				tc.judge(judge)
			}
			inside := &byRequest{t: t, proc: z.Proc}
			inside.do = func(call int, _ *Look) (Insided, error) { return tc.do(inside, call) }
			set := plenty
			set.DryRun = tc.dryRun
			r := newRigWith(t, judge, set, Options{Inside: inside})
			if tc.timing != nil {
				tc.timing(&r.timing)
			}
			out := r.outcome(r.act(z.Proc))
			if out.Result != tc.want || out.Until.IsZero() == tc.until {
				t.Errorf("outcome %+v, want %s", out, tc.want)
			}
			r.wantStory(z.PID, tc.story...)
			if n := len(inside.called()); n != tc.calls && (tc.calls >= 0 || n < 2) {
				t.Errorf("tried %d times, want %d", n, tc.calls)
			}
			if z.Alive() != tc.alive {
				t.Errorf("alive: %v, want %v", !tc.alive, tc.alive)
			}
			for line, part := range tc.says {
				if e := r.event(z.PID, line); !strings.Contains(e.Message, part) {
					t.Errorf("%s: message %q does not say %q", line, e.Message, part)
				}
			}
			for _, e := range r.said(z.PID) {
				if e.Name == report.EventReaped && (e.By != "kzr" || e.Reaped == 0 || e.Stopped != 3*time.Millisecond) {
					t.Errorf("event %+v", e)
				}
			}
		})
	}
}

// A workload that has no kill left is nudged and reaped inside all the same each time
// that it is tried, and said once to be in backoff. Inside, no sooner than a grace
// after the last time.
func TestHarmlessInBackoff(t *testing.T) {
	z := zoo.Start(t, "leak=30 chld=count serve")
	judge := newJudge(t)
	judge.adopted, judge.reap, judge.grace, judge.own = true, config.ReapAdopted, 2*time.Second, 20
	set := plenty
	set.Limits.PerWorkload.Kills = 0
	inside := &byRequest{t: t, proc: z.Proc}
	inside.do = func(int, *Look) (Insided, error) {
		inside.proc.Do("reap=10")
		return Insided{Reaped: 10}, nil
	}
	r := newRigWith(t, judge, set, Options{Inside: inside})
	id := idOf(t, z.Proc)
	zoo.Within(t, soon, "its zombies are old", func() bool {
		look, err := judge.Look(t.Context(), id)
		return err == nil && look.Met
	})
	for i := range 2 {
		if i > 0 {
			z.Do("leak=10")
		}
		zoo.Within(t, soon, "a ladder", func() bool { return r.Act(id, Who{Workload: "pod"}) })
		zoo.Within(t, soon, "its end", func() bool { _, running := r.Status(id); return !running })
		if out := r.outcome(id); out.Reason != policy.Backoff || time.Until(out.Until) < 59*time.Minute || !strings.Contains(out.Message, "limits.perWorkload (0 in 1h)") {
			t.Errorf("outcome %+v", out)
		}
	}
	r.wantStory(z.PID, "signal SIGCHLD", "reaped", "spared backoff", "signal SIGCHLD", "reaped")
	if e := r.event(z.PID, "spared backoff"); time.Until(e.Until) < 59*time.Minute {
		t.Errorf("until %v", e.Until)
	}
	calls := inside.called()
	if len(calls) != 2 || calls[1].Sub(calls[0]) < judge.grace {
		t.Errorf("reaped inside at %v, with a grace of %s", calls, judge.grace)
	}
	if c := z.Count(); c.CHLD < 2 || !z.Alive() {
		t.Errorf("%+v", c)
	}
}

// A handler that waits once per signal: in seconds, with one line in the log.
func TestReapsOneAtATime(t *testing.T) {
	z := zoo.Start(t, "leak=400 chld=reap,n=1 serve")
	judge := newJudge(t)
	judge.threshold, judge.nudge = 50, 2*time.Second
	r := newRig(t, judge, plenty)
	r.timing = defaultTiming
	began := time.Now()
	if out := r.outcome(r.act(z.Proc)); out.Result != Reaped {
		t.Errorf("outcome %+v", out)
	}
	if d := time.Since(began); d > 25*time.Second {
		t.Errorf("it took %s", d)
	} else {
		t.Logf("it took %s", d)
	}
	r.wantStory(z.PID, "signal SIGCHLD", "reaped")
	e := r.event(z.PID, "reaped")
	if e.By != "parent" || !strings.Contains(e.Message, "; sent SIGCHLD ") {
		t.Errorf("event %+v", e)
	}
	if n := z.Zombies(); n >= 50 {
		t.Errorf("%d zombies left", n)
	}
}

// One that reaps for each SIGCHLD, and makes new zombies as fast, is not nudged for
// ever.
func TestReapsAndRefills(t *testing.T) {
	z := zoo.Start(t, "leak=100 chld=reap,n=1 serve")
	judge := newJudge(t)
	var refill sync.Once
	r := newRig(t, judge, plenty)
	r.at = map[string]func(){"signal SIGCHLD": func() { refill.Do(func() { z.Do("storm=0,rate=1000,sig=0") }) }}
	began := time.Now()
	if out := r.outcome(r.act(z.Proc)); out.Result != Terminated {
		t.Errorf("outcome %+v", out)
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("it took %s", d)
	}
	r.wantStory(z.PID, "signal SIGCHLD", "signal SIGTERM", "terminated")
}

// What holds a parent up and lets go again and again is said once for each reason,
// and again when its zombies have doubled.
func TestFlip(t *testing.T) {
	z := zoo.Start(t, "fork { name=kid leak=5 serve } fork { name=tracer serve } serve")
	kid, tracer := z.Named("kid"), z.Named("tracer")
	judge := newJudge(t)
	judge.nudge = time.Hour // it may be found running for a moment
	r := newRig(t, judge, plenty)
	id := idOf(t, kid)
	spared := func() []string {
		return slices.DeleteFunc(r.story(kid.PID), func(line string) bool { return !strings.HasPrefix(line, "spared ") })
	}
	seen := func(reason policy.Reason) func() bool {
		return func() bool { status, _ := r.Status(id); return status.Reason == reason }
	}
	kid.Signal(unix.SIGSTOP)
	zoo.Within(t, soon, "it is stopped", func() bool { return kid.State() == 'T' })
	r.Act(id, Who{})
	for range 10 {
		zoo.Within(t, soon, "stopped", seen(policy.Stopped))
		tracer.Do("trace=%d", kid.PID)
		zoo.Within(t, soon, "traced", seen(policy.Traced))
		tracer.Do("untrace=%d", kid.PID)
	}
	zoo.Within(t, soon, "stopped", seen(policy.Stopped))
	if got := spared(); len(got) != 2 {
		t.Errorf("said %q, want each reason once", got)
	}

	judge.set(func() { judge.times = 2 })
	zoo.Within(t, soon, "said again", func() bool { return len(spared()) == 3 })
	judge.set(func() { judge.times = 3 })
	looks := judge.lookedAt(id)
	zoo.Within(t, soon, "looked at again", func() bool { return judge.lookedAt(id) > looks+3 })
	if got := spared(); len(got) != 3 || got[2] != "spared stopped" {
		t.Errorf("said %q, want one more", got)
	}
}

// Under pressure what is stopped, traced or in vfork gets SIGKILL at once: it would
// not act on anything else.
func TestPressureKillsTheHalted(t *testing.T) {
	for reason, halt := range map[policy.Reason]func(kid, tracer *zoo.Proc){
		policy.Stopped:         func(kid, _ *zoo.Proc) { kid.Signal(unix.SIGSTOP) },
		policy.Traced:          func(kid, tracer *zoo.Proc) { tracer.Do("trace=%d", kid.PID) },
		policy.Uninterruptible: func(kid, _ *zoo.Proc) { kid.Do("vfork") },
	} {
		t.Run(string(reason), func(t *testing.T) {
			z := zoo.Start(t, "fork { name=kid leak=5 serve } fork { name=tracer serve } serve")
			kid := z.Named("kid")
			id := idOf(t, kid)
			halt(kid, z.Named("tracer"))
			zoo.Within(t, soon, string(reason), func() bool {
				p := inspect(t, kid.PID)
				return policy.Deferred(&p.Facts, policy.Circumstances{}) == reason
			})
			judge := newJudge(t)
			judge.term = time.Hour
			r := newRig(t, judge, plenty)
			r.Act(id, Who{})
			r.event(kid.PID, "spared "+string(reason))
			judge.set(func() { judge.pressure = policy.WorkloadPressure })
			r.Hurry(id)
			if out := r.outcome(id); out.Result != Terminated {
				t.Errorf("outcome %+v", out)
			}
			want := []string{"spared " + string(reason), "signal SIGKILL", "terminated"}
			if reason == policy.Uninterruptible {
				want = slices.Insert(want, 1, "signal SIGCHLD")
			}
			r.wantStory(kid.PID, want...)
			if e := r.event(kid.PID, "signal SIGKILL"); !strings.HasPrefix(e.Message, "sent SIGKILL; SIGTERM was skipped: it is ") {
				t.Errorf("message %q", e.Message)
			}
		})
	}
}

// Pressure that comes while a ladder waits for the limits, or for the effect of
// SIGTERM, shortens that.
func TestPressureComesLate(t *testing.T) {
	set := plenty
	set.Limits.KillsPerMinute = 0
	judge := newJudge(t)
	judge.nudge, judge.term = 0, time.Hour
	r := newRig(t, judge, set)
	z := zoo.Start(t, "leak=5 term=ignore serve")
	id := r.act(z.Proc)
	r.event(z.PID, "spared rate_limited")
	if r.event(z.PID, "spared rate_limited").LimitsOverridden {
		t.Error("limits overridden before anything was done")
	}
	judge.set(func() { judge.pressure = policy.NodePressure })
	r.Hurry(id)
	e := r.event(z.PID, "signal SIGTERM")
	if !e.LimitsOverridden || !strings.Contains(e.Message, "limits overridden") {
		t.Errorf("event %+v", e)
	}
	judge.set(func() { judge.term = 50 * time.Millisecond })
	r.Hurry(id)
	if out := r.outcome(id); out.Result != Terminated {
		t.Errorf("outcome %+v", out)
	}
	r.wantStory(z.PID, "spared rate_limited", "signal SIGTERM", "signal SIGKILL", "terminated")
}

// Under the node's pressure the victims of all workloads go one at a time.
func TestNodePressureOneByOne(t *testing.T) {
	judge := newJudge(t)
	judge.nudge, judge.pressure = 0, policy.NodePressure
	set := plenty
	set.Limits = config.Limits{KillsPerMinute: 1, PerWorkload: config.PerWorkload{Kills: 1, Window: time.Hour}}
	r := newRig(t, judge, set)
	var zoos []*zoo.Zoo
	for range 4 {
		z := zoo.Start(t, "leak=5 term=ignore serve")
		zoos = append(zoos, z)
		r.act(z.Proc)
	}
	victim, overridden := 0, 0
	for _, z := range zoos {
		z.WaitDead(soon)
		r.event(z.PID, "terminated")
	}
	for _, e := range r.said(0) {
		switch {
		case e.Signal == "SIGTERM" && victim != 0:
			t.Errorf("SIGTERM to pid %d while %d was not gone", e.Process.PID, victim)
		case e.Signal == "SIGTERM":
			victim = e.Process.PID
			if e.LimitsOverridden {
				overridden++
			}
		case e.Name == report.EventTerminated:
			victim = 0
		}
	}
	if overridden != 3 {
		t.Errorf("%d kills say that limits were overridden, want 3", overridden)
	}
}

// Workers that leaked side by side are dealt with as one, however few kills there are.
func TestSideBySideProcesses(t *testing.T) {
	set := plenty
	set.Limits.PerWorkload.Kills = 1
	r := newRig(t, newJudge(t), set)
	var ids []task.ID
	for range 4 {
		ids = append(ids, idOf(t, zoo.Start(t, "leak=5 serve").Proc))
	}
	for _, id := range ids {
		r.Act(id, Who{Workload: "pod"})
	}
	for _, id := range ids {
		if out := r.outcome(id); out.Result != Terminated {
			t.Errorf("%s: %+v", id, out)
		}
	}
	id := idOf(t, zoo.Start(t, "leak=5 serve").Proc)
	r.Act(id, Who{Workload: "pod"})
	if out := r.outcome(id); out.Reason != policy.Backoff {
		t.Errorf("one that came after: %+v", out)
	}
}

// A kill is saved before its signal is sent, and counts after a restart; whom a
// ladder was at is known too.
func TestRestart(t *testing.T) {
	var mu sync.Mutex
	var saved []State
	z := zoo.Start(t, "leak=5 term=count serve")
	judge := newJudge(t)
	judge.term = time.Hour
	set := plenty
	set.Limits.PerWorkload.Kills = 1
	r := newRigWith(t, judge, set, Options{Save: func(st State) {
		mu.Lock()
		defer mu.Unlock()
		saved = append(saved, st)
		if c := z.Count(); c.TERM != 0 {
			t.Errorf("saved after SIGTERM: %+v", c)
		}
	}})
	id := idOf(t, z.Proc)
	r.Act(id, Who{Workload: "pod", Owner: "ns"})
	r.event(z.PID, "signal SIGTERM")
	mu.Lock()
	st := saved[0]
	mu.Unlock()
	if len(st.Kills) != 1 || st.Kills[0].Victim != id || st.Kills[0].Workload != "pod" || st.Kills[0].Owner != "ns" ||
		!slices.Equal(st.Acting, []task.ID{id}) {
		t.Errorf("saved %+v", st)
	}
	r.cancel()
	r.Wait()
	if st := r.State(); !slices.Equal(st.Acting, []task.ID{id}) {
		t.Errorf("after the end nothing is known of a victim: %+v", st)
	}

	judge.set(func() { judge.term = 50 * time.Millisecond })
	r = newRigWith(t, judge, set, Options{State: st})
	r.Act(id, Who{Workload: "pod", Owner: "ns"}) // goes on, and counts once
	if out := r.outcome(id); out.Result != Terminated {
		t.Errorf("outcome %+v", out)
	}
	next := idOf(t, zoo.Start(t, "leak=5 serve").Proc)
	r.Act(next, Who{Workload: "pod", Owner: "ns"})
	if out := r.outcome(next); out.Reason != policy.Backoff {
		t.Errorf("a second kill, of one: %+v", out)
	}
	if st := r.State(); len(st.Acting) != 0 {
		t.Errorf("state %+v", st)
	}
}
