package confine

import "golang.org/x/sys/unix"

const (
	auditArch = unix.AUDIT_ARCH_AARCH64
	x32Bit    = 0
)

// Every call that the processor's programs have is in rules.go.
var (
	deniedHere []group
	rulesHere  []rule
)
