package top

import (
	"fmt"
	"slices"
	"time"

	"kzr/internal/policy"
	"kzr/internal/report"
)

// headline is the one thing to know first: whether this node is in danger, whose
// fault it is, and whether something is being done about it.
type headline struct {
	badge string
	text  string
	grave grave
}

// fullSoon is how long before the process table is full at the present rate that
// alone is worth an alarm.
const fullSoon = time.Hour

// headline reads the rows in whatever order.
func (m *model) headline() headline {
	st := &m.shown.status
	if m.failed != nil {
		if m.seen.at.IsZero() {
			return headline{"NO DATA", m.failed.Error(), urgent}
		}
		return headline{"NO ANSWER", fmt.Sprintf("for %s; showing old data. %v",
			span(m.now.Sub(m.seen.at)), m.failed), urgent}
	}
	if m.shown.at.IsZero() {
		return headline{"LOADING", "waiting for the first data", calm}
	}
	if len(m.rows) == 0 {
		if len(st.Problems) > 0 {
			return headline{"UNSURE", "No zombies found, but kzr cannot see all processes.", soon}
		}
		return headline{"OK", "No zombies: all parents reap their children.", calm}
	}
	// Who is acted on comes first, then who holds most of those that will be.
	var most, next *row
	leaks := 0
	for i := range m.rows {
		r := &m.rows[i]
		if most == nil || r.Zombies > most.Zombies {
			most = r
		}
		if !r.doomed() {
			continue
		}
		leaks++
		if next == nil || r.acting() && !next.acting() || r.acting() == next.acting() && r.Zombies > next.Zombies {
			next = r
		}
	}
	left, filling := m.untilFull()
	full := st.TasksLimit > 0 && m.used() >= alarm(st.Pressure)
	var h headline
	switch {
	case most.Reason != "" && !most.acting() && st.TasksLimit > 0 && most.Reapable*10 > st.TasksLimit:
		// Whatever else goes on: this is what fills the process table.
		h = headline{"LEAK", fmt.Sprintf("%s; spared: %s", holds(most), spelled(most.Reason)), urgent}
		leaks++
	case next != nil && next.acting():
		h = headline{"ACTING", "on " + named(next) + ", " + held(next), urgent}
	case next != nil:
		h = headline{"LEAK", holds(next) + "; " + m.prospect(next), soon}
	case m.spread() != nil:
		w := m.spread()
		h = headline{"LEAK", fmt.Sprintf("%s has %s under %s, each below the threshold", w.Name, count(w.Zombies, "zombie"), count(w.Parents, "parent")), soon}
		if w.FullInSeconds != nil {
			h.text += "; its pid limit is full in " + span(seconds(*w.FullInSeconds))
			if seconds(*w.FullInSeconds) < fullSoon {
				h.grave = urgent
			}
		}
	case most.Reapable >= max(st.Threshold, 1) && most.Reason != "":
		h = headline{"LEAK", fmt.Sprintf("%s; spared: %s", holds(most), spelled(most.Reason)), soon}
	default:
		h = headline{"OK", fmt.Sprintf("no parent meets the rule: %s in total, at most %s under one parent",
			count(m.shown.doc.Zombies, "zombie"), number(most.Zombies)), calm}
	}
	if leaks > 1 {
		h.text += fmt.Sprintf("; %d more leaking", leaks-1)
	}
	switch {
	case full:
		h.badge, h.grave = "FULL", urgent
		h.text = fmt.Sprintf("%.0f%% of the pid limit used: ", 100*m.used()) + h.text
	case filling && left < fullSoon:
		h.grave = urgent
		if h.badge == "OK" {
			h.badge = "LEAK"
		}
		h.text = "full in " + span(left) + ": " + h.text
	}
	return h
}

// spread is the workload with most zombies, if it leaks though no parent of it has
// enough for the rule; else nil.
func (m *model) spread() *report.Workload {
	list, threshold := m.shown.doc.Workloads, max(m.shown.status.Threshold, 1)
	for i := range list {
		w := &list[i]
		if w.Zombies < threshold {
			break // so have the others
		}
		if w.Parents > 1 && !slices.ContainsFunc(m.rows, func(r row) bool { return r.Workload == w.Name && r.Reapable >= threshold }) {
			return w
		}
	}
	return nil
}

// doomed says that kzr acts on it, or would if it could and it goes on so.
func (r *row) doomed() bool {
	return r.acting() || r.Verdict == string(policy.Target) || r.Reason == "" && r.DeadlineSeconds != nil
}

func (r *row) acting() bool { return r.Verdict == string(policy.Acting) }

// holds says what a row has.
func holds(r *row) string { return named(r) + " has " + held(r) }

func named(r *row) string {
	if r.Container != nil {
		return fmt.Sprintf("%s (%d)", r.who, r.PID)
	}
	return fmt.Sprintf("%s (%d)", r.Comm, r.PID)
}

func held(r *row) string {
	s := count(r.Zombies, "zombie")
	if rate := perTime(r.rate); r.rate > 0 && rate != "" {
		s += " " + rate
	}
	return s
}

// prospect says what happens to a row, and by whom.
func (m *model) prospect(r *row) string {
	switch {
	case m.Alone != "":
		when, _ := r.verdict(m.elapsed(), "due")
		return when + ", but no daemon is running"
	case m.shown.status.DryRun:
		when, _ := r.verdict(m.elapsed(), "due")
		return when + " (dry run)"
	}
	when, g := r.verdict(m.elapsed(), "kzr acts")
	if g == soon {
		when += " unless it reaps"
	}
	return when
}

// used is how much of the process table is taken, 0 if unknown.
func (m *model) used() float64 {
	st := &m.shown.status
	if st.TasksLimit <= 0 {
		return 0
	}
	return float64(st.Tasks) / float64(st.TasksLimit)
}

// alarm is the fraction from which on the table counts as full.
func alarm(pressure float64) float64 {
	if pressure > 0 {
		return pressure
	}
	return 0.85
}

// untilFull is how long until no process can be made, if zombies go on to gather
// as fast as now.
func (m *model) untilFull() (time.Duration, bool) {
	st := &m.shown.status
	rate, ok := m.past.zombies.rate()
	if !ok || rate <= 0 || st.TasksLimit <= st.Tasks {
		return 0, false
	}
	s := float64(st.TasksLimit-st.Tasks) / rate
	return seconds(min(s, 1e9)), true
}

// elapsed is the time since what is shown was seen.
func (m *model) elapsed() time.Duration {
	if m.paused {
		return 0
	}
	return max(0, m.now.Sub(m.shown.at))
}
