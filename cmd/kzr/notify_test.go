package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"kzr/internal/report"
	"kzr/internal/task"
)

func TestStatusLine(t *testing.T) {
	for want, st := range map[string]report.Status{
		"watching through eBPF: 0 zombies, 0 targets, 0 parents terminated": {Source: task.SourceBPF},
		"watching through eBPF, dry run: 61 zombies, 1 target, 0 parents terminated": {
			Source: task.SourceBPF, DryRun: true, Zombies: 61, Targets: 1},
		"watching through /proc: 1 zombie, 2 targets, 1 parent terminated; eBPF does not work here: x\\n": {
			Source: task.SourceProc, Zombies: 1, Targets: 2, Kills: 1, Problems: []string{"eBPF does not work here: x\\n"}},
		"watching through /proc: 0 zombies, 0 targets, 0 parents terminated; a; b (and 1 more)": {
			Source: task.SourceProc, Problems: []string{"a\nb", "c"}},
	} {
		if got := statusLine(st); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// A notify socket that nobody listens on, as of a manager that is gone, is no
// reason not to work. It is used when somebody does, again and again.
func TestManagerComesAndGoes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	t.Setenv("NOTIFY_SOCKET", path)
	m, err := newManager()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := m.busy(); err == nil {
			t.Error("nobody listens, and nobody says so")
		}
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := m.busy(); err != nil {
				t.Error(err)
			}
			b := make([]byte, 100)
			if n, err := l.Read(b); err != nil || string(b[:n]) != "WATCHDOG=1" {
				t.Errorf("%q, %v", b[:n], err)
			}
		}
		l.Close()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}
