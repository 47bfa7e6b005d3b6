package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/zoo"
)

// lowerMachine sets a limit of the whole machine's until the test ends.
func lowerMachine(t *testing.T, limit string, n int) {
	t.Helper()
	path := "/proc/sys/kernel/" + limit
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(n)), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(path, before, 0o644); err != nil {
			t.Error(err)
		}
	})
}

// hoardThreads makes the test's own threads while it can: the Go runtime aborts
// when it needs one more and gets none. Those that have nothing to do are kept.
func hoardThreads() {
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			_ = unix.Nanosleep(&unix.Timespec{Nsec: 300e6}, nil) // in the kernel, so it takes a thread
		})
	}
	wg.Wait()
}

// The process table of the machine is full: nothing anywhere can fork, root
// included. kzr, started before, frees it; its own test has to hold its breath.
func TestScenario28MachineFull(t *testing.T) {
	ownMachine(t, "it fills the machine's process table")
	for _, c := range []struct{ name, mode, limit string }{
		{"ebpf", "ebpf", "pid_max"},
		{"proc", "proc", "pid_max"},
		{"threads-max", "ebpf", "threads-max"}, // which binds where pid_max is four million
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			leaker := zoo.Start(t, "exec=%s serve", s.exe)
			k := s.start("--mode="+c.mode, "--scope=all", "--grace=1h", "--nudge=1h", "--term-timeout=1h", "--pressure=0.85")
			cron := newWaiting(t, exec.Command("sh", "-c", cronScript))
			after := newWaiting(t, exec.Command("sh", "-c", forkScript))
			began := k.usage()
			hoardThreads()
			room := 1500 // pids below 300 are used but once: it is full at four fifths
			if c.limit == "threads-max" {
				room = tasks(t) + 1000
			}
			lowerMachine(t, c.limit, room)

			fill(t, k, leaker.Proc)
			if n := leaker.Zombies(); n < 900 {
				t.Errorf("the table is said to be full with %d zombies", n)
			}
			cannotFork(t, cron)
			k.send(unix.SIGCONT)
			freed := time.Now()
			leaker.WaitDead(patience)
			took := time.Since(freed)
			k.saw(leaker.PID, "terminated")
			zoo.Within(t, patience, "its zombies are reaped", func() bool { return tasks(t) < 500 })
			canFork(t, after)
			if u := k.usage(); u.threads != began.threads {
				t.Errorf("threads: %d before, %d after", began.threads, u.threads)
			}
			if story := k.floodStory(leaker.PID); len(story) < 2 || story[0] != "signal SIGCHLD" || story[1] != "signal SIGTERM" {
				t.Errorf("the story is %v", story)
			}
			record(t, 1, fmt.Sprintf("the machine could not fork; kzr freed it in %v with the threads it had", took.Round(10*time.Millisecond)))
		})
	}
}

// tasks is the number of tasks on the machine.
func tasks(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(text))
	_, total, _ := strings.Cut(f[3], "/")
	n, err := strconv.Atoi(total)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
