package reapinside

import (
	"fmt"
	"strings"
)

// Refusal is why zombies were not reaped inside a parent.
type Refusal uint8

// The refusals. The order is the helper's and kzr's own affair: both are one program.
const (
	None Refusal = iota
	Unsupported
	Yama
	NoCapability
	Forbidden
	NoStance
	HelperGone
	HelperBusy
	Malformed
	Gone
	NoZombies
	Traced
	Stopped
	Frozen
	Uninterruptible
	Exiting
	Bits32
	SeccompStrict
	SeccompFilter
	SeccompChanged
	UserDispatch
	ShadowStack
	SignalPending
	InCall
	Moved
	NotOnStack
	LowStack
	NoWayBack
	RestartableSequence
	Slow
	Unreadable
	Vanished
	WaitFailed
	refusals
)

// what says of each refusal why, for the log and for `kzr explain`, and whether it
// may be over in a moment.
var what = [refusals]struct {
	text      string
	transient bool
}{
	None:                {"nothing stands against it", false},
	Unsupported:         {"not supported on this processor", false},
	Yama:                {"Yama forbids ptrace (kernel.yama.ptrace_scope=3)", false},
	NoCapability:        {"kzr lacks CAP_SYS_PTRACE", false},
	Forbidden:           {"ptrace is forbidden, by a security module or by a seccomp filter that kzr runs under", false},
	NoStance:            {"what the process is doing cannot be seen: needs eBPF and Linux 5.15", false},
	HelperGone:          {"kzr's helper process has ended", false},
	HelperBusy:          {"kzr's helper process is held up by other processes", true},
	Malformed:           {"kzr's helper process did not understand the request", false},
	Gone:                {"the process is gone", false},
	NoZombies:           {"the zombies are no longer its own", false},
	Traced:              {"a tracer is attached", true},
	Stopped:             {"it is stopped", true},
	Frozen:              {"its cgroup is frozen", true},
	Uninterruptible:     {"it is in uninterruptible sleep", true},
	Exiting:             {"it is exiting", false},
	Bits32:              {"it is a 32-bit program", false},
	SeccompStrict:       {"it is in seccomp's strict mode", false},
	SeccompFilter:       {"its seccomp filter forbids wait4", false},
	SeccompChanged:      {"its seccomp filter has just changed", true},
	UserDispatch:        {"it handles system calls itself (syscall user dispatch)", false},
	ShadowStack:         {"it has a shadow stack", false},
	SignalPending:       {"a signal is pending", true},
	InCall:              {"it is in a call that must not be interrupted", true},
	Moved:               {"it did not stay in one place long enough", true},
	NotOnStack:          {"its main thread is not on its own stack", true},
	LowStack:            {"its stack is nearly used up", true},
	NoWayBack:           {"no way back: statically linked without a signal handler, or not against a known libc", false},
	RestartableSequence: {"it is in a restartable sequence", true},
	Slow:                {"it did not stop in time", true},
	Unreadable:          {"its memory cannot be read", true},
	Vanished:            {"it exited or executed another program meanwhile", true},
	WaitFailed:          {"wait4 failed inside it", false},
}

// Transient says whether it makes sense to try again soon.
func (r Refusal) Transient() bool { return r < refusals && what[r].transient }

func (r Refusal) String() string {
	if r >= refusals {
		return fmt.Sprintf("refusal %d", uint8(r))
	}
	return what[r].text
}

// about is a refusal with what the helper told besides: the number of a system call,
// or of an error.
func (r Refusal) about(detail int64) string {
	switch {
	case r == InCall:
		return fmt.Sprintf("it is in %s, which must not be interrupted", callName(detail))
	case (r == WaitFailed || r == Forbidden) && detail != 0:
		return fmt.Sprintf("%s: %s", r, strings.ToLower(errnoName(detail)))
	}
	return r.String()
}
