package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/zoo"
)

// The kernel side vanishes under the running daemon: its link is gone, so no hint
// comes any more, and then the iterator is, so that nothing can be listed. kzr
// goes on with sweeps, then with /proc. (The registers that this test turns into
// a close(2) of kzr's own are amd64's.)
func TestFaultKernelSideGone(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	k := s.start("--mode=ebpf", "--scope=all", "--sweep-interval=8s", s.socket())
	var st status
	s.wantAnswer("/v1/status", &st)
	if st.Source != "bpf" {
		t.Fatalf("source %s", st.Source)
	}
	links := k.links()
	if len(links) != 2 {
		t.Fatalf("kzr has the links %v", links)
	}
	for i, link := range []string{"tracing", "iter"} {
		k.closeFile(links[link])
		began := time.Now()
		z := zoo.Start(t, "exec=%s leak=20 serve", s.exe)
		good := zoo.Start(t, "exec=%s fresh=30,age=200 serve", s.exe)
		z.WaitDead(patience)
		k.saw(z.PID, "terminated")
		t.Logf("without %s: removed after %v", link, time.Since(began).Round(10*time.Millisecond))
		// From the next sweep on there are two in a grace, as without eBPF.
		k.await("a line about the hints", func(e event) bool {
			return e.Level == "ERROR" && strings.Contains(e.Msg, "no more hints")
		})
		k.silentAbout(0, good.PID)
		alive(t, good.Proc)
		s.wantAnswer("/v1/status", &st)
		if want := []string{"bpf", "proc"}[i]; st.Source != want {
			t.Errorf("without %s the source is %s, not %s", link, st.Source, want)
		}
	}
	record(t, 2, "without its exit program, then without its iterator: the target was found by the sweep, then through /proc")
}

// links are kzr's descriptors of BPF links, by type.
func (d *daemon) links() map[string]int {
	d.t.Helper()
	found := map[string]int{}
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", d.pid))
	if err != nil {
		d.t.Fatal(err)
	}
	for _, file := range all {
		text, _ := os.ReadFile(file) // one that was closed meanwhile is not it
		for line := range strings.Lines(string(text)) {
			kind, ok := strings.CutPrefix(line, "link_type:")
			if !ok {
				continue
			}
			var fd int
			if _, err := fmt.Sscan(filepath.Base(file), &fd); err != nil {
				d.t.Fatal(err)
			}
			if kind = strings.TrimSpace(kind); kind != "iter" {
				kind = "tracing" // some kernels say raw_tracepoint
			}
			found[kind] = fd
		}
	}
	return found
}

// closeFile makes kzr close a descriptor: the next harmless system call of one of
// its threads becomes close(fd), and is then made after all.
func (d *daemon) closeFile(fd int) {
	d.t.Helper()
	tr := traceDaemon(d)
	defer tr.close()
	victim := 0
	var saved syscall.PtraceRegs
	done := make(chan error, 1)
	tr.hold(func(c *call) bool {
		switch {
		case victim == 0 && !c.Exit && (c.Nr == unix.SYS_EPOLL_PWAIT || c.Nr == unix.SYS_NANOSLEEP || c.Nr == unix.SYS_FUTEX):
			if err := syscall.PtraceGetRegs(c.Thread, &saved); err != nil {
				done <- err
				return false
			}
			r := saved
			r.Orig_rax, r.Rdi = unix.SYS_CLOSE, uint64(fd)
			if err := syscall.PtraceSetRegs(c.Thread, &r); err != nil {
				done <- err
				return false
			}
			victim = c.Thread
		case victim == c.Thread && c.Exit:
			victim = -1
			// Back to the instruction, with everything as it was.
			saved.Rax = saved.Orig_rax
			saved.Rip -= 2
			err := syscall.PtraceSetRegs(c.Thread, &saved)
			if err == nil && c.Result != 0 {
				err = syscall.Errno(-c.Result)
			}
			done <- err
		}
		return false
	})
	select {
	case err := <-done:
		if err != nil {
			d.t.Fatalf("making kzr close descriptor %d: %v", fd, err)
		}
	case <-time.After(patience):
		d.t.Fatal("kzr makes no system call")
	}
	for kind, link := range d.links() { // of another file kzr may have opened it again
		if link == fd {
			d.t.Fatalf("kzr still has descriptor %d, of a %s link", fd, kind)
		}
	}
}
