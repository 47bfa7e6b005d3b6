package reaper

import (
	"cmp"
	"slices"
	"time"

	"kzr/internal/task"
)

// State is what a restart of kzr must not forget. Its moments are on CLOCK_BOOTTIME,
// so it is worth something only until the machine boots again: the caller sees to
// that.
type State struct {
	Kills []Kill `json:"kills,omitempty"` // oldest first, at most maxKills
	// Pauses counts, by workload, the kills that were granted in spite of
	// limits.perWorkload since its window was empty last, under its own pressure.
	Pauses map[string]int `json:"pauses,omitempty"`
	// Acting are the parents that have been sent SIGTERM or SIGKILL, or were about to
	// be, and may live: they need a fresh grace.
	Acting []task.ID `json:"acting,omitempty"`
}

// Kill is one victim: a parent that was sent SIGTERM, SIGKILL or both.
type Kill struct {
	At       time.Duration `json:"at"` // nanoseconds on CLOCK_BOOTTIME
	Victim   task.ID       `json:"victim"`
	Workload string        `json:"workload"`
	Owner    string        `json:"owner"`
	// Counted says that it counts for limits.perWorkload too: no other was killed
	// there since the victim started.
	Counted   bool `json:"counted,omitempty"`
	Rehearsed bool `json:"rehearsed,omitempty"` // in a dry run: nobody was killed
}

// State returns what a restart must not forget.
func (r *Reaper) State() State {
	st := r.limits.state()
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.acting {
		st.Acting = append(st.Acting, id)
	}
	slices.SortFunc(st.Acting, func(a, b task.ID) int {
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.Start, b.Start))
	})
	return st
}

// save gives the state to who keeps it.
func (r *Reaper) save() {
	if r.Save == nil {
		return
	}
	r.saving.Lock()
	defer r.saving.Unlock()
	r.Save(r.State())
}
