package task

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now reads CLOCK_MONOTONIC, the clock of every moment in this package. It is
// the clock that bpf_ktime_get_ns reads, so kernel and daemon agree.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("CLOCK_MONOTONIC is part of every Linux kernel: " + err.Error())
	}
	return time.Duration(ts.Nano())
}
