package task

import (
	"time"

	"golang.org/x/sys/unix"
)

// Offsets are what kzr's time namespace adds to the clocks that the kernel
// itself keeps; 0 in the initial one.
type Offsets struct {
	Monotonic time.Duration // of the moments that [Now] shows
	Boottime  time.Duration // of start times
}

// Now reads CLOCK_MONOTONIC, the clock of every moment in this package. It is
// the clock that bpf_ktime_get_ns reads, but for [Offsets]: kernel and daemon
// agree.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("CLOCK_MONOTONIC is part of every Linux kernel: " + err.Error())
	}
	return time.Duration(ts.Nano())
}

// ThreadTime reads CLOCK_THREAD_CPUTIME_ID: the CPU time that the calling thread
// has used. Two readings can be compared on a goroutine that is locked to its
// thread.
func ThreadTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		panic("CLOCK_THREAD_CPUTIME_ID is part of every Linux kernel: " + err.Error())
	}
	return time.Duration(ts.Nano())
}
