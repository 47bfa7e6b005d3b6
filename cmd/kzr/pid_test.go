package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"kzr/internal/report"
	"kzr/internal/task"
	"kzr/internal/zoo"
)

// What explain takes for a process: a thread, and what somebody in a container calls it.
func TestExplainFindsTheProcess(t *testing.T) {
	kzr := program(t)
	outer := zoo.Start(t, "in=pidns,proc comm=outer fork { name=inner comm=inner threads=2 leak=3 serve } fork=pidns,mntns,proc { name=nested comm=nested leak=2 serve } serve")
	inner, nested := outer.Named("inner"), outer.Named("nested")
	explain := func(args ...string) (report.Detail, string, error) {
		cmd := exec.Command(kzr, append([]string{"explain", "-o", "json", "--mode", "proc", "--socket", "/nonexistent/s"}, args...)...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		var d report.Detail
		if err == nil {
			err = json.Unmarshal(out, &d)
		}
		return d, stderr.String(), err
	}
	insideOf := func(pid, level int) string {
		names, err := namesOf(pid)
		if err != nil || len(names) <= level {
			t.Fatalf("%v, %v", names, err)
		}
		return fmt.Sprint(names[level])
	}
	level := len(mustNames(t, outer.PID)) - 1
	for name, tt := range map[string]struct {
		args []string
		want int
	}{
		"itself":               {[]string{fmt.Sprint(inner.PID)}, inner.PID},
		"of a thread":          {[]string{"1", "--in", fmt.Sprint(threadsOf(t, inner.PID)[2])}, outer.PID},
		"init of a namespace":  {[]string{"1", "--in", fmt.Sprint(inner.PID)}, outer.PID},
		"from inside":          {[]string{insideOf(inner.PID, level), "--in", fmt.Sprint(outer.PID)}, inner.PID},
		"nested, from outside": {[]string{insideOf(nested.PID, level), "--in", fmt.Sprint(inner.PID)}, nested.PID},
		"nested, from inside":  {[]string{"1", "--in", fmt.Sprint(nested.PID)}, nested.PID},
	} {
		if d, stderr, err := explain(tt.args...); err != nil || d.PID != tt.want {
			t.Errorf("%s: explain %q is about %d, want %d: %v %s", name, tt.args, d.PID, tt.want, err, stderr)
		}
	}
	zombie := zoo.Children(inner.PID)[0]
	if d, _, err := explain(insideOf(zombie, level), "--in", fmt.Sprint(outer.PID)); err != nil || d.PID != zombie || d.State != "Z" {
		t.Errorf("a zombie from inside: %d %s, %v", d.PID, d.State, err)
	}
	for _, thread := range threadsOf(t, inner.PID) {
		d, stderr, err := explain(fmt.Sprint(thread))
		if err != nil || d.PID != inner.PID {
			t.Errorf("thread %d is about %d: %v", thread, d.PID, err)
		}
		if says := fmt.Sprintf("kzr: %d is a thread of process %d\n", thread, inner.PID); strings.Contains(stderr, says) != (thread != inner.PID) {
			t.Errorf("thread %d of %d: %s", thread, inner.PID, stderr)
		}
	}
	// Its first thread has the number after its own.
	named, err := strconv.Atoi(insideOf(inner.PID, level))
	if err != nil {
		t.Fatal(err)
	}
	if d, stderr, err := explain(fmt.Sprint(named+1), "--in", fmt.Sprint(outer.PID)); err != nil || d.PID != inner.PID {
		t.Errorf("a thread from inside: %d, %v, %s", d.PID, err, stderr)
	}
	if _, stderr, err := explain("9999", "--in", fmt.Sprint(outer.PID)); err == nil || !strings.Contains(stderr, "no such process") {
		t.Errorf("a pid that nobody has inside: %v, %s", err, stderr)
	}
}

// A process can make its status file cost 20 ms, or hang whoever reads it. To find a
// process takes none.
func TestFindingAProcessReadsNoStatus(t *testing.T) {
	z := zoo.Start(t, "in=pidns,proc fork=times=8 { groups=65536 serve } fork { name=last serve } serve")
	names := mustNames(t, z.Named("last").PID)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cost := func(f func()) time.Duration {
		began := task.ThreadTime()
		f()
		return task.ThreadTime() - began
	}
	reading := cost(func() {
		for _, pid := range zoo.Children(z.PID) {
			if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err != nil {
				t.Fatal(err)
			}
		}
	})
	finding := cost(func() {
		if pid, err := processOf(z.Named("last").PID); err != nil || pid != z.Named("last").PID {
			t.Errorf("%d, %v", pid, err)
		}
		if pid, err := pidInside(names[len(names)-1], z.PID); err != nil || pid != z.Named("last").PID {
			t.Errorf("%d, %v", pid, err)
		}
	})
	if finding > reading/2 {
		t.Errorf("finding a process took %s of CPU; the status files of its neighbours take %s", finding, reading)
	}
	t.Logf("%s instead of %s", finding, reading)
}

func mustNames(t *testing.T, pid int) []int {
	t.Helper()
	names, err := namesOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func threadsOf(t *testing.T, pid int) (threads []int) {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v, %v", entries, err)
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		threads = append(threads, n)
	}
	return threads
}
