package kubeevents

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"kzr/internal/policy"
	"kzr/internal/report"
	"kzr/internal/task"
	"kzr/internal/trail"
)

var noon = time.Date(2026, 3, 4, 12, 0, 0, 123456789, time.UTC)

// parent is pid 1 of a pod's container.
func parent() *task.Process {
	p := &task.Process{
		ID: task.ID{PID: 4242, Start: 99}, Exe: "/usr/bin/sleep", Workload: "shop/web-1/app",
		Container: &task.Container{Runtime: "containerd", ID: strings.Repeat("ab", 32), PodUID: "11111111-2222-3333-4444-555555555555", Pod: "web-1", Namespace: "shop", Name: "app"},
	}
	p.Comm, p.State, p.Threads, p.NSPID, p.OuterPIDNS, p.PIDNS = "sleep", 'S', 1, []int{4242, 1}, 7, 7
	return p
}

// ended is what a recorder makes of the events, the last of which is the outcome.
func ended(t *testing.T, events ...report.Event) *trail.Outcome {
	t.Helper()
	var r trail.Recorder
	for i, e := range events {
		e.Time, e.Reapable, e.Zombies, e.Oldest = noon.Add(time.Duration(i-len(events)+1)*time.Second), 60, 61, 72*time.Second
		if e.Process == nil {
			e.Process = parent()
		}
		if o, ok := r.Add(e); ok {
			return &o
		}
	}
	t.Fatal("no outcome")
	return nil
}

func TestNotes(t *testing.T) {
	signal := func(s string) report.Event {
		return report.Event{Name: report.EventSignal, Signal: s, Message: "sent " + s}
	}
	for _, c := range []struct {
		name   string
		events []report.Event
		reason string
		action string
		typ    string
		want   []string
		not    []string
	}{
		{
			"killed", []report.Event{signal("SIGCHLD"), signal("SIGKILL"), {Name: report.EventTerminated}}, ReasonTerminated, "Kill", "Warning",
			[]string{"Process 4242 (sleep, pid 1 in the container)", "60 zombies, the oldest for 1m12s", "SIGKILL", "exit code 137", "not the OOM killer", "To fix it: ", "tini"}, nil,
		},
		{
			"terminated", []report.Event{signal("SIGTERM"), {Name: report.EventTerminated}}, ReasonTerminated, "Kill", "Warning",
			[]string{"kzr sent SIGTERM and it exited", "143"}, []string{"137"},
		},
		{
			"terminated, then killed", []report.Event{signal("SIGTERM"), signal("SIGKILL"), {Name: report.EventTerminated}}, ReasonTerminated, "Kill", "Warning",
			[]string{"137"}, []string{"143"},
		},
		{
			"reaped", []report.Event{{Name: report.EventReaped, By: report.ByKzr, Reaped: 54}}, ReasonReaped, "Reap", "Normal",
			[]string{"114 zombies", "kzr reaped 54 of them inside it", "nothing was restarted", "To fix it: "}, []string{"137"},
		},
		{
			"gave up", []report.Event{signal("SIGKILL"), {Name: report.EventGaveUp, Message: "still alive \x1b[31m"}}, ReasonGaveUp, "GiveUp", "Warning",
			[]string{`still alive \x1b[31m`, "tries again later"}, nil,
		},
		{
			"limit", []report.Event{{Name: report.EventSpared, Reason: string(policy.Backoff), Until: noon.Add(time.Hour)}}, ReasonSpared, "Spare", "Warning",
			[]string{"until 13:00 UTC", "limit on kills"}, []string{"137"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := ended(t, c.events...)
			reason := reasonOf(o)
			e := newEvent(o, "node7", reason, "")
			if reason != c.reason || e.Action != c.action || e.Type != c.typ {
				t.Errorf("reason %s, action %s, type %s", reason, e.Action, e.Type)
			}
			for _, s := range c.want {
				if !strings.Contains(e.Note, s) {
					t.Errorf("the note lacks %q: %s", s, e.Note)
				}
			}
			for _, s := range c.not {
				if strings.Contains(e.Note, s) {
					t.Errorf("the note has %q: %s", s, e.Note)
				}
			}
			if len(e.Note) >= maxNote {
				t.Errorf("the note has %d bytes", len(e.Note))
			}
			if e.Regarding.FieldPath != "spec.containers{app}" || e.Regarding.UID == "" || e.Metadata.Namespace != "shop" {
				t.Errorf("it is about %+v in %s", e.Regarding, e.Metadata.Namespace)
			}
		})
	}
}

func TestNotTold(t *testing.T) {
	var r trail.Recorder
	for _, e := range []report.Event{
		{Name: report.EventReaped, By: report.ByParent},
		{Name: report.EventTerminated, DryRun: true},
		{Name: report.EventGaveUp, DryRun: true},
	} {
		e.Process = parent()
		o, ok := r.Add(e)
		if !ok {
			t.Fatalf("%+v is no outcome", e)
		}
		if reason := reasonOf(&o); reason != "" {
			t.Errorf("%s by %q, dry run %v, is told as %s", e.Name, e.By, e.DryRun, reason)
		}
	}
}

func TestLongNames(t *testing.T) {
	p := parent()
	p.Container.Pod = strings.Repeat("a", 251) + ".b"
	p.Comm = strings.Repeat("ä\x01", 8)
	o := ended(t, report.Event{Name: report.EventGaveUp, Message: strings.Repeat("ü\n", 5000), Process: p})
	o.Advice = []string{strings.Repeat("x", 2000)}
	e := newEvent(o, strings.Repeat("n", 250), ReasonGaveUp, strings.Repeat("y", 100))
	if len(e.Metadata.Name) > maxName || len(e.Note) > maxNote || len(e.ReportingInstance) > 128 {
		t.Errorf("name %d, note %d, instance %d bytes", len(e.Metadata.Name), len(e.Note), len(e.ReportingInstance))
	}
	if strings.Contains(e.Note, "xx") {
		t.Error("the note has half a sentence of advice")
	}
}

func TestBudget(t *testing.T) {
	var b budget
	now := noon
	if _, ok := b.allow("pod", "app/X", now); !ok {
		t.Fatal("the first is not told")
	}
	for range 5 {
		now = now.Add(time.Minute)
		if _, ok := b.allow("pod", "app/X", now); ok {
			t.Fatalf("told again after %v", now.Sub(noon))
		}
	}
	if _, ok := b.allow("pod", "app/Y", now); !ok {
		t.Error("another reason is not told")
	}
	earlier, ok := b.allow("pod", "app/X", noon.Add(repeatAfter))
	if !ok || earlier != "The same happened 5 times since 12:00 UTC." {
		t.Errorf("after a while: %v %q", ok, earlier)
	}
	if earlier, ok = b.allow("pod", "app/X", noon.Add(2*repeatAfter)); !ok || earlier != "" {
		t.Errorf("with nothing held back: %v %q", ok, earlier)
	}

	// One pod uses up its own share, and no other's.
	told := 0
	for i := range 100 {
		if _, ok := b.allow("many", fmt.Sprintf("c%d/X", i), noon); ok {
			told++
		}
	}
	if told != perPod {
		t.Errorf("%d of one pod are told", told)
	}
	if _, ok := b.allow("other", "app/X", noon); !ok {
		t.Error("another pod is not told of")
	}
	if _, ok := b.allow("many", "c1/X", noon.Add(window)); !ok {
		t.Error("nothing is told after the window")
	}

	for i := range 3 * maxPods {
		b.allow(fmt.Sprintf("pod%d", i), "app/X", noon.Add(2*window+time.Duration(i)))
	}
	if len(b.pods) > maxPods {
		t.Errorf("%d pods are remembered", len(b.pods))
	}
}
