package daemon

import (
	"runtime"

	"kzr/internal/footprint"
)

// spareThreads is more than kzr's goroutines ever block in system calls at once,
// or wait while they are locked to a thread, as a sweep is: some ten.
const spareThreads = 16

// Settle makes the threads that kzr will need; those made here are the last.
func Settle() {
	runtime.GOMAXPROCS(min(runtime.GOMAXPROCS(0), 2))
	footprint.SpareThreads(spareThreads)
}
