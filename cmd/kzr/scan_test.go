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

	"golang.org/x/sys/unix"

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

// Without a daemon nobody knows an age. Whoever asks by --exit-status hears of every
// parent that may be a target.
func TestScanExitStatusWithoutDaemon(t *testing.T) {
	kzr := program(t)
	z := zoo.Start(t, "in=pidns,proc fork=mntns { name=own uid=54321 leak=60 serve } serve")
	dir := t.TempDir()
	for i, tt := range []struct {
		name, rule, args string
		stopped          bool
		want             int
	}{
		{"enough zombies", "action: kill", "", false, exitTargets},
		{"too few for its rule", "threshold: 61", "", false, 0},
		{"observed", "action: observe", "", false, 0},
		{"eBPF", "action: kill", "--mode=ebpf", false, exitTargets},
		{"stopped", "action: kill", "", true, 0},
	} {
		config := filepath.Join(dir, fmt.Sprintf("%d.yaml", i))
		// Others on the machine may leak too.
		text := fmt.Sprintf("cri: \"\"\npressure: 0\nrules:\n- {name: own, match: {uid: 54321}, %s}\n- {name: others, match: {cgroup: \"*\"}, action: observe}\n", tt.rule)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if tt.stopped {
			z.Named("own").Signal(unix.SIGSTOP)
			zoo.Within(t, patience, "state T", func() bool { return zoo.State(z.Named("own").PID) == 'T' })
		}
		args := []string{"scan", "--config", config, "--socket", filepath.Join(dir, "none"), "--exit-status"}
		cmd := exec.Command(kzr, append(args, strings.Fields(tt.args)...)...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != tt.want) || err == nil && tt.want != 0 {
			t.Errorf("%s: %v, want %d:\n%s%s", tt.name, err, tt.want, out, stderr.String())
		}
		if !strings.Contains(stderr.String(), "ages are not known") {
			t.Errorf("%s: does not say that ages are not known: %q", tt.name, stderr.String())
		}
	}
}
