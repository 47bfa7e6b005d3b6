package policy

import (
	"time"

	"kzr/internal/config"
	"kzr/internal/task"
)

// Do is what a step of the ladder does.
type Do string

// The steps, in their order.
const (
	Nudge     Do = "SIGCHLD"
	Reap      Do = "reap" // inside the parent
	Terminate Do = "SIGTERM"
	Kill      Do = "SIGKILL"
)

// Step is one step of the ladder.
type Step struct {
	Do      Do
	Wait    time.Duration // after a signal, for its effect
	Skipped string        // why it is left out, in words; "" if it is done
}

// Means are what the steps of a ladder depend on.
type Means struct {
	Nudge, TermTimeout time.Duration // as configuration, pod and pressure leave them
	Pressure           bool          // SIGCHLD is sent whatever Nudge is
	Reap               config.Reap
	Reapable, Adopted  int
	// Refusal says why nothing can be reaped inside it, "" if it can.
	Refusal string
}

// Ladder is what is done to a parent that meets its rule, step by step, for as long as
// it meets it. What the log tells and what explain foretells both come from here.
func Ladder(f *task.Facts, m Means) []Step {
	steps := []Step{{Do: Nudge, Wait: m.Nudge}, {Do: Reap}, {Do: Terminate, Wait: m.TermTimeout}, {Do: Kill}}
	halted := ""
	if Halted(f) {
		halted = "it is " + string(Deferred(f, Circumstances{})) + " and runs no code"
	}
	switch {
	case m.Nudge <= 0 && !m.Pressure:
		steps[0].Skipped = "nudge is 0"
	default:
		steps[0].Skipped = halted
	}
	switch {
	case halted != "":
		steps[1].Skipped = halted
	case m.Reap != config.ReapAdopted && m.Reap != config.ReapAll:
		steps[1].Skipped = "reap is off"
	case m.Refusal != "":
		steps[1].Skipped = m.Refusal
	case m.Reap == config.ReapAdopted && m.Adopted == 0:
		steps[1].Skipped = "none of its zombies is known to be adopted"
	}
	switch {
	case m.TermTimeout <= 0:
		steps[2].Skipped = "termTimeout is 0"
	case DeafToTerm(f):
		steps[2].Skipped = "the kernel drops it: it is pid 1 of a pid namespace and has no handler for it"
	case halted != "":
		steps[2].Skipped = halted
	case f.State == 'D':
		steps[2].Skipped = "it is in uninterruptible sleep"
	}
	return steps
}

// Halted says whether a process runs no handler of a signal, for as long as somebody
// else likes. That nobody could tell in time who traces it is no reason to think so.
func Halted(f *task.Facts) bool {
	known := *f
	known.TracerUnknown = false
	switch Deferred(&known, Circumstances{}) {
	case Traced, Stopped, Frozen:
		return true
	}
	return false
}

// DeafToTerm says whether the kernel would drop a SIGTERM: it protects the init of a
// pid namespace from signals without a handler. A blocked one it keeps, as such an
// init may well fetch it with sigwait or a signalfd.
func DeafToTerm(f *task.Facts) bool {
	const sigterm = 15
	const term = 1 << (sigterm - 1)
	return len(f.NSPID) > 1 && f.NSPID[len(f.NSPID)-1] == 1 && (f.SigCaught|f.SigBlocked)&term == 0
}
