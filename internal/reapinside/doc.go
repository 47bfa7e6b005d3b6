// Package reapinside reaps zombies inside a parent that lives: the parent stands
// still for a moment, makes wait4 calls that it does not know of, and goes on as if
// nothing had been. Nobody dies.
//
// It takes ptrace, so a helper does it: one process, made by [Start] when kzr
// starts and never again, that has CAP_SYS_PTRACE and nothing else. [Helper] is
// kzr's end of it: a parent with its zombies flows in, a [Result] flows out, which
// says how many are gone and how long the parent stood still, or why nothing was
// done. The helper believes none of it: it looks for itself who the process is,
// whose children the zombies are, and whether the process can be stopped without
// harm. What only eBPF can tell, [task.Stance], it is told, and does nothing
// without.
//
// # How
//
// The main thread is stopped in whatever it does, and its registers are set to call
// wait4 at a `syscall; ret` of its own program. Before that, a signal frame with the
// state from before is written below the red zone of its stack, where the ret leads
// to rt_sigreturn: should the helper be killed in between, the parent brings itself
// back. PTRACE_SINGLESTEP is never used, as it leaves a SIGTRAP behind, nor
// PTRACE_O_EXITKILL.
//
// A call that was interrupted goes on: the kernel restarts most by itself, and for
// those that would end with EINTR the helper turns that into a restart. Those that
// cannot be restarted without a trace, such as a write(2) of which one part is
// written, are not interrupted in the first place.
package reapinside
