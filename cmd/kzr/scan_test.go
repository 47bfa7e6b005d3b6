package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kzr/internal/report"
	"kzr/internal/zoo"
)

// scan asks the daemon, which knows ages and verdicts; without one it makes none up.
func TestScan(t *testing.T) {
	kzr := program(t)
	t.Setenv("KZR_NODE_NAME", "node-17")
	z := zoo.Start(t, "in=pidns,proc comm=leaky leak=60 serve")
	dir, err := os.MkdirTemp("", "kzr-scan-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := filepath.Join(dir, "kzr.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "socket: %s/s\ncri: \"\"\n", dir), 0o600); err != nil {
		t.Fatal(err)
	}
	scan := func(args ...string) (own report.Parent, table string, status int) {
		t.Helper()
		for _, form := range []string{"wide", "json"} {
			out, err := exec.Command(kzr, append([]string{"scan", "--config", config, "-o", form, "--exit-status"}, args...)...).Output()
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				status = exit.ExitCode()
			} else if err != nil {
				t.Fatal(err)
			}
			if form == "wide" {
				table = string(out)
				continue
			}
			var doc report.Document
			if err := json.Unmarshal(out, &doc); err != nil || doc.Host != "node-17" {
				t.Fatalf("%v: host %s", err, doc.Host)
			}
			for _, p := range doc.Parents {
				if p.PID == z.PID {
					own = p
				}
			}
		}
		return own, table, status
	}
	p, table, status := scan()
	if p.Zombies != 60 || p.OldestSeconds != nil || p.RatePerHour != nil || p.Verdict != "watch" {
		t.Errorf("without a daemon: %+v, status %d", p, status)
	}
	if line := strings.Join(strings.Fields(lineOf(table, z.PID)), " "); !strings.Contains(line, " 60 60 0 - - watch") {
		t.Errorf("an age or a rate that nobody knows: %q", line)
	}
	if !strings.Contains(table, "ADOPTED") || !strings.HasPrefix(table, "node-17: ") {
		t.Errorf("wide:\n%s", table)
	}

	// A dry run that waits after its SIGCHLD is at work all the while.
	startDaemon(t, kzr, "--config", config, "--socket", filepath.Join(dir, "s"), "--dry-run", "--grace", "2s", "--nudge", "5m")
	zoo.Within(t, patience, "the daemon to act", func() bool {
		p, _, status = scan()
		return p.Verdict == "acting" && status == exitTargets
	})
	if p.OldestSeconds == nil || *p.OldestSeconds < 2 {
		t.Errorf("with a daemon: %+v", p)
	}
	// A flag that changes a setting asks for another look than the daemon's.
	if p, _, _ := scan("--threshold", "500"); p.Verdict != "watch" || p.OldestSeconds != nil {
		t.Errorf("with another threshold: %+v", p)
	}
}
