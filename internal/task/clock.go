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
func Now() time.Duration { return read(unix.CLOCK_MONOTONIC) }

// SinceBoot reads CLOCK_BOOTTIME, the clock of start times: Now, and the time that
// the machine was suspended.
func SinceBoot() time.Duration { return read(unix.CLOCK_BOOTTIME) }

// ThreadTime reads CLOCK_THREAD_CPUTIME_ID: the CPU time that the calling thread
// has used. Two readings can be compared on a goroutine that is locked to its
// thread.
func ThreadTime() time.Duration { return read(unix.CLOCK_THREAD_CPUTIME_ID) }

func read(clock int32) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		panic("every Linux kernel has this clock: " + err.Error())
	}
	return time.Duration(ts.Nano())
}
