package confine

import "golang.org/x/sys/unix"

const (
	auditArch = unix.AUDIT_ARCH_X86_64
	x32Bit    = 0x40000000 // of the numbers of x32's calls
)

// deniedHere and rulesHere are about calls that only this processor's programs have.
var deniedHere = []group{
	{"makes a process", []uint32{unix.SYS_FORK, unix.SYS_VFORK}},
	{"is for drivers and for programs of other times", []uint32{
		unix.SYS_IOPERM, unix.SYS_IOPL, unix.SYS_MODIFY_LDT, unix.SYS_MKNOD, unix.SYS_USELIB,
	}},
	{"opens for writing what is there already", []uint32{unix.SYS_CREAT}},
}

var rulesHere = []rule{{unix.SYS_OPEN, unix.EPERM, readOrNew(1)}}
