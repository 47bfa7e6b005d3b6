package confine

import "golang.org/x/sys/unix"

// rule is about one system call: refused with errno, unless its arguments are of a
// kind that the daemon needs.
type rule struct {
	nr     uint32
	errno  unix.Errno
	unless []allowed // one of these
}

// allowed are arguments that pass: one of some values, none of others, with all of
// some bits and none of others. Only the low half counts, as it does for the kernel in all that is
// looked at here.
type allowed struct {
	arg        uint32
	values     []uint32
	not        []uint32
	has, lacks uint32
}

// struct seccomp_data, on a little-endian machine.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

// program assembles the filter: the first rule about a call decides, and a call
// without a rule passes. It is nil where the processor's calls are not known.
func program(rules []rule) []unix.SockFilter {
	if auditArch == 0 {
		return nil
	}
	p := []unix.SockFilter{
		// Other calls of the same kernel, as those of 32-bit programs, have other numbers.
		load(offArch), jump(unix.BPF_JEQ, auditArch, 1, 0), deny(unix.EPERM),
		load(offNr),
	}
	if x32Bit != 0 {
		p = append(p, jump(unix.BPF_JSET, x32Bit, 0, 1), deny(unix.EPERM))
	}
	// What comes with later kernels is as if this one did not have it.
	p = append(p, jump(unix.BPF_JGT, lastCall, 0, 1), deny(unix.ENOSYS))
	for _, r := range rules {
		var body []unix.SockFilter
		for _, a := range r.unless {
			body = append(body, a.assemble()...)
		}
		body = append(body, deny(r.errno))
		p = append(append(p, jump(unix.BPF_JEQ, r.nr, 0, uint8(len(body)))), body...)
	}
	return append(p, pass())
}

// assemble returns what lets a call pass, or goes on behind it.
func (a allowed) assemble() []unix.SockFilter {
	p := []unix.SockFilter{load(offArgs + 8*a.arg)}
	// Each test is followed by a jump behind all that is here, put right below.
	if len(a.values) > 0 {
		for i, v := range a.values {
			p = append(p, jump(unix.BPF_JEQ, v, uint8(len(a.values)-i), 0))
		}
		p = append(p, leave())
	}
	for _, v := range a.not {
		p = append(p, jump(unix.BPF_JEQ, v, 0, 1), leave())
	}
	if a.lacks != 0 {
		p = append(p, jump(unix.BPF_JSET, a.lacks, 0, 1), leave())
	}
	if a.has != 0 {
		p = append(p, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: a.has}, jump(unix.BPF_JEQ, a.has, 1, 0), leave())
	}
	p = append(p, pass())
	for i := range p {
		if p[i] == leave() {
			p[i].K = uint32(len(p) - i - 1)
		}
	}
	return p
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func jump(test uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | test | unix.BPF_K, K: k, Jt: yes, Jf: no}
}

func leave() unix.SockFilter { return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA} }

func deny(errno unix.Errno) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)}
}

func pass() unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
}
