package daemon

import (
	"runtime"
	"sync"
)

// spareThreads is more than kzr's goroutines ever block in system calls at once,
// or wait while they are locked to a thread, as a sweep is: some ten.
const spareThreads = 16

// Settle makes the threads that kzr will need and leaves them idle. The Go
// runtime makes a thread whenever goroutines block in system calls, and ends the
// program if it cannot: when the process table is full, of all moments. It keeps
// idle ones and prefers them, so those made here are the last.
func Settle() {
	runtime.GOMAXPROCS(min(runtime.GOMAXPROCS(0), 2))
	var locked sync.WaitGroup
	gate := make(chan struct{})
	for range spareThreads {
		locked.Add(1)
		go func() {
			runtime.LockOSThread()
			locked.Done()
			<-gate
			runtime.UnlockOSThread()
		}()
	}
	locked.Wait()
	close(gate)
}
