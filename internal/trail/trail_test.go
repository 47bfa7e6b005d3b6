package trail

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"kzr/internal/policy"
	"kzr/internal/report"
	"kzr/internal/task"
)

func about(pid int, e report.Event) report.Event {
	p := &task.Process{ID: task.ID{PID: pid, Start: 1}, Exe: "/usr/bin/python3.12"}
	p.Comm, p.State, p.Threads = "python", 'S', 1
	e.Process, e.Zombies, e.Reapable = p, 60, 60
	return e
}

func TestOutcome(t *testing.T) {
	var r Recorder
	for _, e := range []report.Event{
		{Name: report.EventSuspect},
		{Name: report.EventSignal, Signal: "SIGCHLD"},
		{Name: report.EventSpared, Reason: string(policy.Stopped)},
		{Name: report.EventSignal, Signal: "SIGTERM"},
	} {
		if _, ok := r.Add(about(101, e)); ok {
			t.Errorf("%s %s is an outcome", e.Name, e.Reason)
		}
		r.Add(about(102, report.Event{Name: report.EventSuspect})) // another one's steps stay apart
	}
	o, ok := r.Add(about(101, report.Event{Name: report.EventTerminated}))
	if !ok || o.Name != report.EventTerminated || o.Process.PID != 101 {
		t.Fatalf("%v %+v", ok, o.Event)
	}
	var names []string
	for _, s := range o.Steps {
		names = append(names, s.Name)
	}
	if got := strings.Join(names, " "); got != "suspect signal spared signal terminated" {
		t.Errorf("steps: %s", got)
	}
	if o.Lethal() != "SIGTERM" {
		t.Errorf("the lethal signal is %q", o.Lethal())
	}
	if len(o.Advice) == 0 || !strings.Contains(o.Advice[0], "Popen") {
		t.Errorf("advice: %q", o.Advice)
	}
	if o, ok := r.Add(about(101, report.Event{Name: report.EventGaveUp})); !ok || len(o.Steps) != 1 {
		t.Errorf("after an outcome: %v, %d steps", ok, len(o.Steps))
	}
}

func TestWhatIsNoOutcome(t *testing.T) {
	var r Recorder
	for _, e := range []report.Event{{Name: report.EventStarted}, {Name: report.EventLostEvents}} {
		if _, ok := r.Add(e); ok {
			t.Errorf("%s is an outcome", e.Name)
		}
	}
	for _, reason := range []policy.Reason{policy.Protected, policy.OutOfScope, policy.ByRule, policy.Recovered, policy.Traced} {
		if _, ok := r.Add(about(101, report.Event{Name: report.EventSpared, Reason: string(reason)})); ok {
			t.Errorf("spared as %s is an outcome", reason)
		}
	}
	for _, reason := range []policy.Reason{policy.RateLimited, policy.Backoff} {
		if _, ok := r.Add(about(101, report.Event{Name: report.EventSpared, Reason: string(reason)})); !ok {
			t.Errorf("spared as %s is no outcome", reason)
		}
	}
}

func TestDryRunIsNotLethal(t *testing.T) {
	var r Recorder
	r.Add(about(101, report.Event{Name: report.EventSignal, Signal: "SIGKILL", DryRun: true}))
	if o, _ := r.Add(about(101, report.Event{Name: report.EventGaveUp, DryRun: true})); o.Lethal() != "" {
		t.Errorf("%q was sent", o.Lethal())
	}
}

func TestBounds(t *testing.T) {
	var r Recorder
	start := time.Now()
	for i := range 10 * maxProcesses {
		e := about(i, report.Event{Name: report.EventSuspect})
		e.Time = start.Add(time.Duration(i))
		r.Add(e)
	}
	if len(r.steps) != maxProcesses {
		t.Errorf("%d processes are remembered", len(r.steps))
	}
	if _, ok := r.steps[task.ID{PID: 10*maxProcesses - 1, Start: 1}]; !ok {
		t.Error("the latest is forgotten")
	}
	for i := range 100 {
		r.Add(about(7, report.Event{Name: report.EventSignal, Signal: "SIGCHLD", Message: fmt.Sprint(i)}))
	}
	o, _ := r.Add(about(7, report.Event{Name: report.EventReaped}))
	if len(o.Steps) != maxSteps || o.Steps[0].Message != "0" || o.Steps[maxSteps-2].Message != "99" {
		t.Errorf("%d steps from %s to %s", len(o.Steps), o.Steps[0].Message, o.Steps[maxSteps-2].Message)
	}
}
