// Package threads makes threads ahead of need.
package threads

import (
	"runtime"
	"sync"
)

// Spare makes n threads and leaves them idle. The Go runtime makes a thread whenever
// goroutines block in system calls, and ends the program if it cannot: when the process
// table is full, of all moments. It keeps idle ones and prefers them.
func Spare(n int) {
	var locked sync.WaitGroup
	gate := make(chan struct{})
	for range n {
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
