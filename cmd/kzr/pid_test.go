package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"kzr/internal/report"
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
		id, err := readIDs(fmt.Sprintf("/proc/%d", pid))
		if err != nil || len(id.ns) <= level {
			t.Fatalf("%+v, %v", id, err)
		}
		return fmt.Sprint(id.ns[level])
	}
	level := len(mustIDs(t, outer.PID).ns) - 1
	for name, tt := range map[string]struct {
		args []string
		want int
	}{
		"itself":               {[]string{fmt.Sprint(inner.PID)}, inner.PID},
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
	if _, stderr, err := explain("9999", "--in", fmt.Sprint(outer.PID)); err == nil || !strings.Contains(stderr, "no such process") {
		t.Errorf("a pid that nobody has inside: %v, %s", err, stderr)
	}
}

func mustIDs(t *testing.T, pid int) ids {
	t.Helper()
	id, err := readIDs(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		t.Fatal(err)
	}
	return id
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
