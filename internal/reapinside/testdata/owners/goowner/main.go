// Command goowner makes and awaits children until a file is there.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
)

func main() {
	var own, wrong atomic.Int64
	var all sync.WaitGroup
	for k := range 3 {
		all.Go(func() {
			for {
				if _, err := os.Stat(os.Args[1]); err == nil {
					return
				}
				err := exec.Command("sh", "-c", fmt.Sprintf("exit %d", k)).Run()
				code := 0
				if e, ok := errors.AsType[*exec.ExitError](err); ok {
					code = e.ExitCode()
				} else if err != nil {
					code = -1
				}
				own.Add(1)
				if code != k {
					wrong.Add(1)
					fmt.Fprintln(os.Stderr, err)
				}
			}
		})
	}
	all.Wait()
	fmt.Println("own", own.Load(), "wrong", wrong.Load())
}
