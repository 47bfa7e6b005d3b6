package main

import (
	"testing"

	"kzr/internal/report"
	"kzr/internal/task"
)

func TestStatusLine(t *testing.T) {
	for want, st := range map[string]report.Status{
		"watching through eBPF: 0 zombies, 0 targets, 0 parents ended": {Source: task.SourceBPF},
		"watching through eBPF, dry run: 61 zombies, 1 target, 0 parents ended": {
			Source: task.SourceBPF, DryRun: true, Zombies: 61, Targets: 1},
		"watching through /proc: 1 zombie, 2 targets, 1 parent ended; eBPF does not work here: x\\n": {
			Source: task.SourceProc, Zombies: 1, Targets: 2, Kills: 1, Problems: []string{"eBPF does not work here: x\\n"}},
		"watching through /proc: 0 zombies, 0 targets, 0 parents ended; a; b (and 1 more)": {
			Source: task.SourceProc, Problems: []string{"a\nb", "c"}},
	} {
		if got := statusLine(st); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
