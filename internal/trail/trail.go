// Package trail puts the decisions about one process together: what was done about
// it, step by step, how it ended, and what its owner should change. Decisions flow
// in one by one, an [Outcome] flows out when one of them is the last. It is pure,
// and what it remembers is bounded.
package trail

import (
	"maps"
	"slices"
	"sync"
	"time"

	"kzr/internal/advice"
	"kzr/internal/policy"
	"kzr/internal/report"
	"kzr/internal/task"
)

// Outcome is what became of a parent that met its rule. The embedded event is the
// last decision.
type Outcome struct {
	report.Event
	// Steps are the decisions that led there, oldest first, the last one included;
	// where there were too many, those in the middle are left out.
	Steps []report.Event
	// Advice is for the owner, in sentences, the best first.
	Advice []string
}

// Lethal is the last signal of the trail that ends a process, "" if none was sent.
func (o *Outcome) Lethal() string {
	for _, e := range slices.Backward(o.Steps) {
		if e.Name == report.EventSignal && e.Signal != "SIGCHLD" && !e.DryRun {
			return e.Signal
		}
	}
	return ""
}

// The bounds: 2 MiB at most.
const (
	maxProcesses = 512
	maxSteps     = 12
)

// Recorder remembers the decisions about processes whose outcome is not known yet.
// The zero value is ready.
type Recorder struct {
	mu    sync.Mutex
	steps map[task.ID][]report.Event
}

// Add takes a decision and returns the outcome, if it is one.
func (r *Recorder) Add(e report.Event) (Outcome, bool) {
	if e.Process == nil || e.Name == report.EventZombie {
		return Outcome{}, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	id := e.Process.ID
	steps := r.steps[id]
	if len(steps) == maxSteps { // how it began is worth more than what came then
		steps = slices.Delete(steps, maxSteps/2, maxSteps/2+1)
	}
	steps = append(steps, e)
	if !isOutcome(&e) {
		r.keep(id, steps)
		return Outcome{}, false
	}
	delete(r.steps, id)
	return Outcome{Event: e, Steps: steps, Advice: adviceOn(&e)}, true
}

// keep remembers the steps, in the place of who was silent for longest if there are
// too many. Processes that end by themselves leave that way.
func (r *Recorder) keep(id task.ID, steps []report.Event) {
	if _, known := r.steps[id]; !known && len(r.steps) == maxProcesses {
		delete(r.steps, slices.MinFunc(slices.Collect(maps.Keys(r.steps)), func(a, b task.ID) int {
			return last(r.steps[a]).Compare(last(r.steps[b]))
		}))
	}
	if r.steps == nil {
		r.steps = make(map[task.ID][]report.Event)
	}
	r.steps[id] = steps
}

func last(steps []report.Event) time.Time { return steps[len(steps)-1].Time }

// isOutcome leaves out what goes on: a parent that is put off, and one that no
// longer meets the rule and was not acted on.
func isOutcome(e *report.Event) bool {
	switch e.Name {
	case report.EventReaped, report.EventTerminated, report.EventGaveUp:
		return true
	case report.EventSpared:
		return e.Reason == string(policy.RateLimited) || e.Reason == string(policy.Backoff)
	}
	return false
}

// adviceOn goes by what the decision was made on: the process may be gone by now.
func adviceOn(e *report.Event) []string {
	d := report.NewDetail(e.Process, nil, 0)
	d.Zombies, d.Reapable, d.Reason = e.Zombies, e.Reapable, e.Reason
	return advice.Owner(&d)
}
