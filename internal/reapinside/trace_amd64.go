package reapinside

import (
	"encoding/binary"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What golang.org/x/sys/unix does not name (include/uapi/linux/ptrace.h, elf.h).
const (
	ptraceGetSigmask  = 0x420a
	ptraceGetRseq     = 0x420f // since 5.13
	ptraceGetDispatch = 0x4211 // since 6.4
	eventStop         = 128    // PTRACE_EVENT_STOP
	syscallStop       = unix.SIGTRAP | 0x80
	prstatus          = 1
	xstateSet         = 0x202

	siSeccomp      = 1 // si_code of SIGSYS
	siUserDispatch = 2

	wait4Nr = 61
	wall    = unix.WALL | unix.WNOHANG
)

// What a call returns inside the kernel when it is to be restarted; user mode never
// sees it.
const (
	eINTR           = -4
	eRESTARTSYS     = -512
	eRESTARTNOINTR  = -513
	eRESTARTNOHAND  = -514
	eRESTARTBLOCK   = -516
	userCode64      = 0x33
	syscallInsnSize = 2
)

// The bounds of one stop, in the order of how it goes on.
const (
	firstStop  = 2 * time.Second       // for it to stop at all; it runs, or sleeps, meanwhile
	batchTime  = 10 * time.Millisecond // then nothing new is begun
	stopEnd    = 50 * time.Millisecond // then it is interrupted once more, and brought back
	collecting = 100 * time.Millisecond
)

// registers is struct user_regs_struct.
type registers struct {
	r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi uint64
	origRAX, rip, cs, eflags, rsp, ss, fsBase, gsBase, ds, es, fs, gs       uint64
}

// call is the system call that they were stopped in, negative if none.
func (r *registers) call() int64      { return int64(r.origRAX) }
func (r *registers) result() int64    { return int64(r.rax) }
func (r *registers) args() *[6]uint64 { return &[6]uint64{r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9} }
func (r *registers) willRestart() bool {
	switch r.result() {
	case eRESTARTSYS, eRESTARTNOINTR, eRESTARTNOHAND, eRESTARTBLOCK:
		return true
	}
	return false
}

// ptrace never blocks. It keeps the Go scheduler out, as the thread that traces is
// the only one that may.
//
//go:uintptrescapes
func ptrace(request, tid int, addr, data uintptr) error {
	if _, _, e := syscall.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0); e != 0 {
		return e
	}
	return nil
}

// peek and poke can block where the process decides that (a file system of its own
// below its memory), so they tell the scheduler.
func peek(pid int, addr uint64, b []byte) bool {
	return transfer(unix.SYS_PROCESS_VM_READV, pid, addr, b)
}

func poke(pid int, addr uint64, b []byte) bool {
	return transfer(unix.SYS_PROCESS_VM_WRITEV, pid, addr, b)
}

func transfer(nr uintptr, pid int, addr uint64, b []byte) bool {
	local := unix.Iovec{Base: &b[0]}
	local.SetLen(len(b))
	remote := unix.RemoteIovec{Base: uintptr(addr), Len: len(b)}
	n, _, e := syscall.Syscall6(nr, uintptr(pid), uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1, 0)
	return e == 0 && int(n) == len(b)
}

// tracee is a main thread that is being traced.
type tracee struct {
	tid    int
	signal int // to hand over when it is let go of
	// changed says that it has registers that are not its own.
	changed bool
}

// stop is what wait4 tells of a tracee.
type stop struct {
	status unix.WaitStatus
	gone   bool // it is dead and has been waited for, or was taken over by exec
	none   bool // nothing in time
}

func (s stop) event() int { return int(s.status) >> 16 }

// trap says whether it is the stop that PTRACE_INTERRUPT asks for.
func (s stop) trap() bool {
	return !s.gone && !s.none && s.event() == eventStop && s.status.StopSignal() == unix.SIGTRAP
}

// bySignal says whether it is about to take a signal.
func (s stop) bySignal() bool {
	return !s.gone && !s.none && s.event() == 0 && s.status.StopSignal() != syscallStop
}

func (s stop) bySyscall() bool {
	return !s.gone && !s.none && s.event() == 0 && s.status.StopSignal() == syscallStop
}

// poll looks once.
func (t *tracee) poll() stop {
	var status uint32
	for {
		pid, _, e := syscall.RawSyscall6(unix.SYS_WAIT4, uintptr(t.tid), uintptr(unsafe.Pointer(&status)), wall, 0, 0, 0)
		switch {
		case e == unix.EINTR:
		case e != 0:
			return stop{gone: true}
		case pid == 0:
			return stop{none: true}
		default:
			s := stop{status: unix.WaitStatus(status)}
			s.gone = s.status.Exited() || s.status.Signaled()
			return s
		}
	}
}

// spins is how often wait looks before it begins to sleep: a stop takes a few
// microseconds when the process has a CPU to itself.
const spins = 200

// wait waits for the next stop.
func (t *tracee) wait(patience time.Duration) stop {
	began := time.Now()
	for i := 0; ; i++ {
		s := t.poll()
		if !s.none {
			return s
		}
		if i < spins {
			_, _, _ = syscall.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
			continue
		}
		if time.Since(began) > patience {
			return s
		}
		pause(20 * time.Microsecond)
	}
}

// mustStop waits for a stop of a thread with changed registers, for as long as it
// takes: there is nothing to go back to without one. One that is frozen or has no
// CPU is interrupted again, as it then stops where it is.
func (w *worker) mustStop(t *tracee, until time.Time) stop {
	for {
		if s := t.wait(max(time.Until(until), time.Millisecond)); !s.none {
			return s
		}
		_ = ptrace(unix.PTRACE_INTERRUPT, t.tid, 0, 0)
		until = time.Now().Add(stopEnd)
	}
}

func pause(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_, _, _ = syscall.Syscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
}

func (t *tracee) registers(r *registers) (size int, err error) {
	size, err = t.regset(unix.PTRACE_GETREGSET, prstatus, unsafe.Slice((*byte)(unsafe.Pointer(r)), unsafe.Sizeof(*r)))
	return size, err
}

func (t *tracee) setRegisters(r *registers) error {
	_, err := t.regset(unix.PTRACE_SETREGSET, prstatus, unsafe.Slice((*byte)(unsafe.Pointer(r)), unsafe.Sizeof(*r)))
	return err
}

func (t *tracee) xstate(b []byte) ([]byte, error) {
	n, err := t.regset(unix.PTRACE_GETREGSET, xstateSet, b)
	if err == nil && n < xsaveHeader+64 {
		err = unix.EIO
	}
	return b[:n], err
}

func (t *tracee) regset(request, set int, b []byte) (int, error) {
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	err := ptrace(request, t.tid, uintptr(set), uintptr(unsafe.Pointer(&v)))
	runtime.KeepAlive(b)
	return int(v.Len), err
}

func (t *tracee) signalMask() (mask uint64, err error) {
	err = ptrace(ptraceGetSigmask, t.tid, unsafe.Sizeof(mask), uintptr(unsafe.Pointer(&mask)))
	return mask, err
}

func (t *tracee) timespec(addr uint64) time.Duration {
	var ts unix.Timespec
	if !peek(t.tid, addr, unsafe.Slice((*byte)(unsafe.Pointer(&ts)), unsafe.Sizeof(ts))) {
		return maxTimeout
	}
	return span64(&ts)
}

// inSequence says whether it may be in a restartable sequence: the kernel would send
// it to the sequence's abort handler, with our registers.
func (t *tracee) inSequence() bool {
	var c struct {
		area        uint64
		size, sig   uint32
		flags, zero uint32
	}
	if err := ptrace(ptraceGetRseq, t.tid, unsafe.Sizeof(c), uintptr(unsafe.Pointer(&c))); err != nil {
		// Before 5.13 nobody can tell.
		return true
	}
	if c.area == 0 {
		return false
	}
	// It is cleared late: this errs on the safe side.
	var b [8]byte
	return !peek(t.tid, c.area+8, b[:]) || binary.NativeEndian.Uint64(b[:]) != 0
}

// dispatches says whether it has switched on syscall user dispatch since kzr looked.
func (t *tracee) dispatches() bool {
	var c struct{ mode, selector, offset, length uint64 }
	return ptrace(ptraceGetDispatch, t.tid, unsafe.Sizeof(c), uintptr(unsafe.Pointer(&c))) == nil && c.mode != 0
}

// signalOfCall says whether the signal that it is about to take comes from a system
// call that was made in its name.
func (t *tracee) signalOfCall() bool {
	var info [128]byte // struct siginfo
	if ptrace(unix.PTRACE_GETSIGINFO, t.tid, 0, uintptr(unsafe.Pointer(&info))) != nil {
		return false
	}
	code := int32(binary.NativeEndian.Uint32(info[8:]))
	return code == siSeccomp || code == siUserDispatch
}

// takeUp reads the registers of a thread that has just stopped. A call that has failed
// for that, with EINTR, is given the code with which the kernel makes it again, unless
// it runs a handler: the signal that it may stop for has one or is ignored. (Who is
// traced is told of ignored ones as well, SIGCHLD among them.) timeout is for how long
// at most the call begins anew.
func (t *tracee) takeUp(r *registers) (timeout time.Duration, refusal Refusal) {
	size, err := t.registers(r)
	if err != nil {
		return 0, Vanished
	}
	if size != int(unsafe.Sizeof(*r)) || r.cs != userCode64 {
		return 0, Bits32
	}
	if r.call() < 0 {
		return 0, None
	}
	var insn [syscallInsnSize]byte
	if !peek(t.tid, r.rip-syscallInsnSize, insn[:]) || insn != [...]byte{0x0f, 0x05} {
		return 0, Moved
	}
	if r.result() != eINTR {
		return 0, None
	}
	c, args := calls[r.call()], r.args()
	if !interruptible(r.call(), args) {
		return 0, InCall
	}
	r.rax = ^uint64(-eRESTARTNOHAND - 1)
	if t.setRegisters(r) != nil {
		return 0, Vanished
	}
	if c.anew != nil {
		timeout = c.anew(args, t.timespec)
	}
	return timeout, None
}

// reap does one batch. What it refuses it has left as it was.
func (w *worker) reap(p *parent, st *wireStance, out *answerMsg) (Refusal, int64) {
	t := &tracee{tid: p.pid}
	if err := ptrace(unix.PTRACE_SEIZE, t.tid, 0, unix.PTRACE_O_TRACESYSGOOD); err != nil {
		return w.whyNotSeized(p.pid, err)
	}
	if err := ptrace(unix.PTRACE_INTERRUPT, t.tid, 0, 0); err != nil {
		w.collect(t)
		return Vanished, 0
	}
	s := t.wait(firstStop)
	stoppedAt := time.Now()
	switch {
	case s.none:
		w.linger(t)
		return Slow, 0
	case s.gone:
		return Vanished, 0
	case !s.bySignal() && !s.trap():
		return w.release(t, Stopped), 0
	}
	defer func() { out.Stopped = int64(time.Since(stoppedAt)) }()

	// At once: should the helper end now, it goes on all the same.
	var before registers
	timeout, refusal := t.takeUp(&before)
	if timeout > 0 {
		out.Timeout = int64(timeout)
	}
	switch {
	case s.bySignal():
		t.signal = int(s.status.StopSignal())
		return w.release(t, SignalPending), 0
	case refusal == InCall:
		return w.release(t, refusal), before.call()
	case refusal == None && before.call() < 0 && t.inSequence():
		refusal = RestartableSequence
	}
	if refusal != None {
		return w.release(t, refusal), 0
	}
	if refusal := w.recheck(t, p, st); refusal != None {
		return w.release(t, refusal), 0
	}
	back := before
	if back.call() >= 0 && back.willRestart() {
		back.rip -= syscallInsnSize
		back.rax = back.origRAX
	}
	sp, refusal := w.layWayBack(t, &p.ways, &back)
	if refusal != None {
		return w.release(t, refusal), 0
	}
	w.at("ready")

	at := before
	if w.strand {
		at.rip, at.rsp, at.origRAX = p.ways.restorer, sp+8, ^uint64(0)
		if t.setRegisters(&at) != nil {
			return w.release(t, Vanished), 0
		}
		return w.release(t, None), 0
	}
	at.rip, at.rsp, at.origRAX = p.ways.syscallRet, sp, ^uint64(0)
	at.rsi, at.rdx, at.r10 = 0, wall, 0
	end := stoppedAt.Add(stopEnd)
	for i := range p.zombies {
		z := &p.zombies[i]
		if z.fd < 0 || !w.still(z) {
			out.Fates[i] = stale
			continue
		}
		if time.Since(stoppedAt) > batchTime-200*time.Microsecond {
			break
		}
		at.rax, at.rdi = wait4Nr, uint64(z.inside)
		var result int64
		if result, s = w.callInside(t, &at, end); !s.bySyscall() {
			break
		}
		// A filter that sends SIGSYS leaves the call's number, as if that were a pid.
		trapped := result == wait4Nr && w.still(z)
		switch {
		case trapped || result != int64(z.inside) && result != 0 && result != -int64(unix.ECHILD):
			return w.bringBack(t, &before, s, WaitFailed, trapped), max(0, -result)
		case result == int64(z.inside):
			out.Fates[i] = reaped
		default:
			out.Fates[i] = stale
		}
	}
	return w.bringBack(t, &before, s, None, false), 0
}

// callInside makes it do one system call; its result is good if the stop is one by
// a system call, the second, after it.
func (w *worker) callInside(t *tracee, r *registers, end time.Time) (result int64, s stop) {
	t.changed = true
	if t.setRegisters(r) != nil {
		return 0, stop{none: true}
	}
	w.at("set")
	for _, point := range [...]string{"enter", "exit"} {
		if ptrace(unix.PTRACE_SYSCALL, t.tid, 0, 0) != nil {
			return 0, stop{none: true}
		}
		if s = w.mustStop(t, end); !s.bySyscall() {
			return 0, s
		}
		w.at(point)
	}
	var got registers
	if _, err := t.registers(&got); err != nil {
		return 0, stop{none: true}
	}
	return got.result(), s
}

// bringBack gives it its own registers, in the stop s, and lets go. A SIGSYS that is on
// its way for a call of ours is waited for.
func (w *worker) bringBack(t *tracee, before *registers, s stop, refusal Refusal, trapped bool) Refusal {
	if t.changed && s.bySyscall() {
		// Not from here: after a system call nobody looks whether one is to be restarted.
		if (trapped || ptrace(unix.PTRACE_INTERRUPT, t.tid, 0, 0) == nil) && ptrace(unix.PTRACE_CONT, t.tid, 0, 0) == nil {
			s = w.mustStop(t, time.Now().Add(stopEnd))
		}
	}
	switch {
	case s.gone:
		return Vanished
	case s.none:
		w.collect(t)
		return Vanished
	case s.bySignal():
		if t.changed && s.status.StopSignal() == unix.SIGSYS && t.signalOfCall() {
			refusal = WaitFailed
		} else {
			t.signal = int(s.status.StopSignal())
		}
	}
	w.at("back")
	if t.changed && t.setRegisters(before) != nil {
		w.collect(t)
		return Vanished
	}
	return w.release(t, refusal)
}

// release lets go of a stopped thread.
func (w *worker) release(t *tracee, refusal Refusal) Refusal {
	if ptrace(unix.PTRACE_DETACH, t.tid, 0, uintptr(t.signal)) != nil {
		w.collect(t)
		return Vanished
	}
	return refusal
}

// collect takes note of the end of one that was killed: before that its own parent
// does not hear of it.
func (w *worker) collect(t *tracee) {
	if s := t.wait(collecting); !s.gone {
		w.lingering = append(w.lingering, *t)
	}
}

// linger keeps one that did not stop, to let go of it when it does.
func (w *worker) linger(t *tracee) { w.lingering = append(w.lingering, *t) }

// tend looks after those.
func (w *worker) tend() {
	kept := w.lingering[:0]
	for i := range w.lingering {
		t := &w.lingering[i]
		switch s := t.poll(); {
		case s.gone:
		case s.none:
			kept = append(kept, *t)
		default:
			if s.bySignal() {
				t.signal = int(s.status.StopSignal())
			}
			if s.bySignal() || s.trap() {
				_, _ = t.takeUp(&registers{})
			}
			if ptrace(unix.PTRACE_DETACH, t.tid, 0, uintptr(t.signal)) != nil {
				kept = append(kept, *t)
			}
		}
	}
	w.lingering = kept
}
