package reapinside

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the helper may call, for ever: ptrace and its like, reads of /proc, its
// socket, and what the Go runtime lives on. All else fails with EPERM rather than
// kill it, as a parent may stand still at that moment; the runtime's attempts to have
// what is not there are answered as an old kernel would.

// arg is a condition on the low half of an argument: with these bits it is equal to
// want. (The kernel ignores the high half of all that are looked at here.)
type arg struct {
	index, mask, want uint32
}

type rule struct {
	nr   uint32
	args []arg // one of them must hold; none is no condition
}

func requests(all ...uint32) (args []arg) {
	for _, r := range all {
		args = append(args, arg{0, ^uint32(0), r})
	}
	return args
}

func allowed(pid uint32) []rule {
	return []rule{
		{unix.SYS_PTRACE, requests(unix.PTRACE_SEIZE, unix.PTRACE_INTERRUPT, unix.PTRACE_GETREGSET, unix.PTRACE_SETREGSET,
			unix.PTRACE_SYSCALL, unix.PTRACE_CONT, unix.PTRACE_DETACH, unix.PTRACE_GETSIGINFO,
			ptraceGetSigmask, ptraceGetRseq, ptraceGetDispatch)},
		{unix.SYS_WAIT4, nil},
		{unix.SYS_PROCESS_VM_READV, nil},
		{unix.SYS_PROCESS_VM_WRITEV, nil},
		{unix.SYS_PIDFD_OPEN, nil},
		// Files are only read.
		{unix.SYS_OPENAT, []arg{{2, unix.O_ACCMODE | unix.O_CREAT | unix.O_TRUNC | unix.O_PATH, unix.O_RDONLY}}},
		{unix.SYS_READ, nil},
		{unix.SYS_PREAD64, nil},
		{unix.SYS_CLOSE, nil},
		{unix.SYS_POLL, nil},
		{unix.SYS_DUP, nil}, // in the rehearsal
		// Its socket: it has no other, and can make none.
		{unix.SYS_RECVMSG, nil},
		{unix.SYS_WRITE, nil},
		// The runtime: time, threads, memory, signals.
		{unix.SYS_NANOSLEEP, nil},
		{unix.SYS_CLOCK_GETTIME, nil},
		{unix.SYS_SCHED_YIELD, nil},
		{unix.SYS_FUTEX, nil},
		{unix.SYS_EPOLL_PWAIT, nil},
		{unix.SYS_EPOLL_CTL, nil},
		{unix.SYS_CLONE, []arg{{0, unix.CLONE_THREAD | unix.CLONE_VM, unix.CLONE_THREAD | unix.CLONE_VM}}},
		{unix.SYS_SET_ROBUST_LIST, nil},
		{unix.SYS_RSEQ, nil},
		{unix.SYS_ARCH_PRCTL, nil},
		{unix.SYS_GETTID, nil},
		{unix.SYS_GETPID, nil},
		{unix.SYS_TGKILL, []arg{{0, ^uint32(0), pid}}},
		{unix.SYS_SIGALTSTACK, nil},
		{unix.SYS_RT_SIGACTION, nil},
		{unix.SYS_RT_SIGPROCMASK, nil},
		{unix.SYS_RT_SIGRETURN, nil},
		{unix.SYS_RESTART_SYSCALL, nil},
		{unix.SYS_MMAP, []arg{{2, unix.PROT_EXEC, 0}}},
		{unix.SYS_MPROTECT, []arg{{2, unix.PROT_EXEC, 0}}},
		{unix.SYS_MUNMAP, nil},
		{unix.SYS_MADVISE, nil},
		{unix.SYS_EXIT, nil},
		{unix.SYS_EXIT_GROUP, nil},
	}
}

const (
	seccompFilterTsync = 1
	dataNR             = 0 // offsets in struct seccomp_data
	dataArch           = 4
	dataArgs           = 16
)

// program is the filter. Each rule is self-contained, so that no jump is long.
func program(rules []rule) []unix.SockFilter {
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	jump := func(k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: yes, Jf: no, K: k}
	}
	ret := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	fail := func(e unix.Errno) unix.SockFilter { return ret(unix.SECCOMP_RET_ERRNO | uint32(e)) }

	p := []unix.SockFilter{load(dataArch), jump(unix.AUDIT_ARCH_X86_64, 1, 0), fail(unix.EPERM), load(dataNR)}
	for _, r := range rules {
		if len(r.args) == 0 {
			p = append(p, jump(r.nr, 0, 1), ret(unix.SECCOMP_RET_ALLOW))
			continue
		}
		p = append(p, jump(r.nr, 0, uint8(4*len(r.args)+1)))
		for _, a := range r.args {
			p = append(p, load(dataArgs+8*a.index), unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: a.mask},
				jump(a.want, 0, 1), ret(unix.SECCOMP_RET_ALLOW))
		}
		p = append(p, fail(unix.EPERM))
	}
	return append(p, jump(unix.SYS_CLONE3, 0, 1), fail(unix.ENOSYS), fail(unix.EPERM))
}

// filter puts all threads under it, for ever.
func filter() error {
	p := program(allowed(uint32(unix.Getpid())))
	f := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	if n, _, e := syscall.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, seccompFilterTsync, uintptr(unsafe.Pointer(&f))); e != 0 {
		return e
	} else if n != 0 {
		return unix.ESRCH // a thread that has another filter
	}
	return nil
}
