package reapinside

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strconv"

	"golang.org/x/sys/unix"
)

func cpuid(leaf, sub uint32) (eax, ebx, ecx, edx uint32)

// The instructions that the way back consists of: where wait4 is called from, and
// where the return after it leads to, which every libc has for its signal handlers.
var (
	syscallRet = []byte{0x0f, 0x05, 0xc3}                         // syscall; ret
	restorer   = []byte{0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 5} // mov $15, %rax; syscall
)

// ways is where in a process's memory that is.
type ways struct {
	syscallRet, restorer uint64
	stackLow, stackHigh  uint64
}

const (
	scanPiece = 256 << 10
	// scanMost bounds what is read of a program: the largest in use have less.
	scanMost = 512 << 20
)

// mapping is one line of /proc/PID/maps.
type mapping struct {
	low, high  uint64
	executable bool
	stack      bool
	libc       bool // it may be: only a hint where to look first
}

func parseMapping(line []byte) (m mapping, ok bool) {
	span, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok || len(rest) < 4 {
		return m, false
	}
	from, to, ok := bytes.Cut(span, []byte("-"))
	if !ok {
		return m, false
	}
	var err1, err2 error
	m.low, err1 = strconv.ParseUint(string(from), 16, 64)
	m.high, err2 = strconv.ParseUint(string(to), 16, 64)
	if err1 != nil || err2 != nil {
		return m, false
	}
	// The kernel's own page with the old time calls cannot be called like that, and
	// shared anonymous memory could be changed by another process.
	m.executable = rest[0] == 'r' && rest[2] == 'x' && !bytes.HasSuffix(line, []byte("[vsyscall]"))
	m.stack = bytes.HasSuffix(line, []byte(" [stack]"))
	name := line[bytes.LastIndexByte(line, '/')+1:]
	m.libc = bytes.HasPrefix(name, []byte("libc.so")) || bytes.HasPrefix(name, []byte("libc-")) || bytes.HasPrefix(name, []byte("ld-musl"))
	return m, true
}

// findWays reads the program.
func (w *worker) findWays(pid int) (found ways, refusal Refusal) {
	f, err := w.openProc(pid, "maps")
	if err != nil {
		return found, Gone
	}
	defer unix.Close(f)
	code := w.maps[:0]
	bad := w.eachLine(f, func(line []byte) bool {
		m, ok := parseMapping(line)
		switch {
		case !ok:
		case m.stack:
			found.stackLow, found.stackHigh = m.low, m.high
		case m.executable && len(code) < cap(code):
			code = append(code, m)
			if m.libc {
				code[0], code[len(code)-1] = m, code[0]
			}
		}
		return true
	})
	if bad != nil {
		return found, Unreadable
	}
	left, missing := uint64(scanMost), NoWayBack
	for _, m := range code {
		for at := m.low; at < m.high && left > 0; at += scanPiece - uint64(len(restorer)) {
			n := min(m.high-at, scanPiece)
			b := w.scan[:n]
			if !peek(pid, at, b) {
				missing = Unreadable // it may be about to execute another program
				break
			}
			if found.syscallRet == 0 {
				if i := bytes.Index(b, syscallRet); i >= 0 {
					found.syscallRet = at + uint64(i)
				}
			}
			if found.restorer == 0 {
				if i := bytes.Index(b, restorer); i >= 0 {
					found.restorer = at + uint64(i)
				}
			}
			if found.syscallRet != 0 && found.restorer != 0 {
				if found.stackHigh == 0 {
					return found, NoWayBack
				}
				return found, None
			}
			if n < scanPiece {
				break
			}
			left -= min(left, n)
		}
	}
	return found, missing
}

// A signal frame as rt_sigreturn takes it (arch/x86/include/uapi/asm/sigcontext.h,
// asm/sigframe.h): the return address, a ucontext, a siginfo that nobody reads.
const (
	redZone    = 128 // below the stack pointer, the function's own (System V ABI)
	frameSize  = 8 + ucontextSize + 128
	ucFlags    = 0
	ucSSFlags  = 24
	ucGregs    = 40
	ucSegments = ucGregs + 144
	ucFPState  = ucGregs + 184
	ucSigmask  = ucGregs + 256

	ucontextSize = ucSigmask + 8

	ucHasXState     = 1
	ucSegmentSS     = 2
	ucStrictSegment = 4

	noAltStack = 0xffffffff // flags that sigaltstack refuses: the one there is stays
)

// The XSAVE image: the legacy area with what the kernel wants to know in bytes
// that the processor leaves free, a header, the rest.
const (
	swReserved  = 464
	xsaveHeader = 512
	xMagic1     = 0x46505853
	xMagic2     = 0x46505845
	tileData    = 18 // AMX, the only state so far that a process must ask for
)

// spare is what is left of the stack for the kernel and for signal handlers.
const spare = 8 << 10

// userState cuts an XSAVE image to what the kernel accepts in a signal frame of a
// process that has not asked for more, and returns the features in it.
func userState(image []byte) (size int, features uint64) {
	features = binary.LittleEndian.Uint64(image[swReserved:])
	inUse := binary.LittleEndian.Uint64(image[xsaveHeader:])
	if features&(1<<tileData) == 0 || inUse&(1<<tileData) != 0 {
		return len(image), features
	}
	features &^= 1 << tileData
	size = xsaveHeader + 64
	for i := uint32(2); i < 63; i++ {
		if features&(1<<i) != 0 {
			bytes, offset, _, _ := cpuid(0xd, i)
			size = max(size, int(offset+bytes))
		}
	}
	return min(size, len(image)), features
}

// layWayBack writes onto the stack of a stopped thread what makes it restore back by
// itself, and returns the stack pointer to make calls with: a ret there restores.
func (w *worker) layWayBack(t *tracee, at *ways, back *registers) (sp uint64, refusal Refusal) {
	if back.rsp < at.stackLow || back.rsp >= at.stackHigh {
		return 0, NotOnStack
	}
	var b [16]byte
	for addr, want := range map[uint64][]byte{at.syscallRet: syscallRet, at.restorer: restorer} {
		if !peek(t.tid, addr, b[:len(want)]) || !bytes.Equal(b[:len(want)], want) {
			return 0, Moved
		}
	}
	image, err := t.xstate(w.xsave[:len(w.xsave)-8])
	switch {
	case err == nil:
	case errors.Is(err, unix.ESRCH):
		return 0, Vanished
	default: // a processor without XSAVE
		return 0, NoWayBack
	}
	le := binary.LittleEndian
	size, features := userState(image)
	x := w.xsave[:size+4]
	clear(x[swReserved:xsaveHeader])
	le.PutUint32(x[swReserved:], xMagic1)
	le.PutUint32(x[swReserved+4:], uint32(len(x)))
	le.PutUint64(x[swReserved+8:], features)
	le.PutUint32(x[swReserved+16:], uint32(size))
	le.PutUint32(x[size:], xMagic2)

	fp := (back.rsp - redZone - uint64(len(x))) &^ 63
	frame := (fp-frameSize)&^15 - 8
	if frame < at.stackLow+spare {
		return 0, LowStack
	}
	mask, err := t.signalMask()
	if err != nil {
		return 0, Vanished
	}
	f := w.frame[:]
	clear(f)
	le.PutUint64(f, at.restorer)
	uc := f[8:]
	le.PutUint64(uc[ucFlags:], ucHasXState|ucSegmentSS|ucStrictSegment)
	le.PutUint32(uc[ucSSFlags:], noAltStack)
	for i, v := range [...]uint64{
		back.r8, back.r9, back.r10, back.r11, back.r12, back.r13, back.r14, back.r15, back.rdi, back.rsi, back.rbp,
		back.rbx, back.rdx, back.rax, back.rcx, back.rsp, back.rip, back.eflags,
	} {
		le.PutUint64(uc[ucGregs+8*i:], v)
	}
	le.PutUint16(uc[ucSegments:], uint16(back.cs))
	le.PutUint16(uc[ucSegments+6:], uint16(back.ss))
	le.PutUint64(uc[ucFPState:], fp)
	le.PutUint64(uc[ucSigmask:], mask)
	if !poke(t.tid, fp, x) || !poke(t.tid, frame, f) {
		return 0, LowStack
	}
	return frame, None
}
