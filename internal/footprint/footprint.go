// Package footprint settles what the program has of its machine once it has started:
// threads made ahead of need, memory given back.
package footprint

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"
)

// SpareThreads makes n threads and leaves them idle. The Go runtime makes a thread whenever
// goroutines block in system calls, and ends the program if it cannot: when the process
// table is full, of all moments. It keeps idle ones and prefers them.
func SpareThreads(n int) {
	var locked, unlocked sync.WaitGroup
	gate := make(chan struct{})
	locked.Add(n)
	for range n {
		unlocked.Go(func() {
			runtime.LockOSThread()
			locked.Done()
			<-gate
			runtime.UnlockOSThread()
		})
	}
	locked.Wait()
	close(gate)
	unlocked.Wait() // until then none of them is idle
}

// GiveBack gives the memory back that only the start needed: what the heap does not
// use, and the pages of the program's own text, a third of what is resident. What is
// needed of that again the kernel maps again, from the page cache.
func GiveBack() {
	debug.FreeOSMemory()
	maps, err := os.ReadFile("/proc/self/maps")
	exe, err2 := os.Readlink("/proc/self/exe")
	if err != nil || err2 != nil {
		return // it is only memory
	}
	for line := range bytes.Lines(maps) {
		var from, to uintptr
		var mode string
		if n, _ := fmt.Sscanf(string(line), "%x-%x %s", &from, &to, &mode); n != 3 || !bytes.HasSuffix(line, []byte(" "+exe+"\n")) {
			continue
		}
		// Constants are written to when a program is loaded at an address of chance.
		if mode == "r-xp" || mode == "r--p" && to < 1<<31 {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED)
		}
	}
}
