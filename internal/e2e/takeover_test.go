package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

// A daemon that does not answer is no reason to leave the node without one; when it
// runs again it leaves the node to its successor.
func TestReplacedDaemonStops(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	socket := "--socket=" + s.dir + "/kzr.sock"
	old := s.start("--mode=proc", socket)
	if err := old.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	fresh := s.start("--mode=proc", socket)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took over after %v", took)
	}
	if !strings.Contains(fresh.log(), "took over the socket") {
		t.Error("it does not say that it took over")
	}
	old.threads = 0 // when it has ended by itself nobody counts them
	if err := old.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	old.await("stopping", func(e event) bool { return e.Event == "stopping" })
	s.scan("", "--mode=proc", socket) // of the new one, which still has it
}
