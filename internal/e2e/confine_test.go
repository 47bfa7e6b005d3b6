package e2e

import (
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"kzr/internal/confine"
	"kzr/internal/zoo"
)

// The daemon gives up what it does not need, on all its threads, and does all that it
// is for: it sees, kills, answers, reads its configuration again and keeps its state.
func TestDaemonConfined(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		socket := s.dir + "/kzr.sock"
		k := s.start(mode, "--scope=all", "--socket="+socket)
		confined := func() {
			t.Helper()
			st, err := confine.Of(k.pid)
			if err != nil {
				t.Fatal(err)
			}
			const kept = 1<<unix.CAP_KILL | 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON
			if !st.Filtered || !raceBuild && st.Capabilities&^kept != 0 {
				t.Errorf("kzr is confined as %+v", st)
			}
		}
		confined()
		for range 2 {
			z := zoo.Start(t, "exec=%s leak=12 term=ignore serve", s.exe)
			k.saw(z.PID, "terminated")
			if err := k.cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			k.await("reloaded", func(e event) bool { return e.Event == "reloaded" && e.Error == "" })
		}
		s.scan("", mode, "--scope=all", "--socket="+socket)
		if _, err := os.Stat(s.dir + "/kzr.state"); err != nil {
			t.Errorf("its state: %v", err)
		}
		confined()
	})
}
