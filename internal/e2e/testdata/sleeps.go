// Sleeps for as many seconds as it is told. A garbage collector and a timer thread are
// at work meanwhile, as in any Go program.
package main

import (
	"os"
	"runtime"
	"strconv"
	"time"
)

func main() {
	seconds, err := strconv.Atoi(os.Args[1])
	if err != nil {
		os.Exit(1)
	}
	for end := time.Now().Add(time.Duration(seconds) * time.Second); time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
		runtime.GC()
	}
}
