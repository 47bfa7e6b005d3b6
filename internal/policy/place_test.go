package policy

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"kzr/internal/config"
	"kzr/internal/procscan"
	"kzr/internal/zoo"
)

// Real processes with an executable that is called systemd: a service with a
// mount namespace of its own is one, what a user made is none.
func TestPlacesOfExecutables(t *testing.T) {
	proc, err := procscan.New("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	h, err := proc.Host()
	if err != nil || h.HostMntNS == 0 || h.HostUserNS == 0 {
		t.Fatalf("%+v, %v", h, err)
	}
	c := config.Default()
	c.Scope = config.ScopeAll
	p, err := New(c, Host{PIDNS: h.PIDNS, MntNS: h.HostMntNS, UserNS: h.HostUserNS})
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, pid int, exe string, want bool) {
		t.Helper()
		x, err := proc.Inspect(t.Context(), pid)
		if err != nil || x.Exe != exe {
			t.Fatalf("%s: executable %q, want %q; %v", what, x.Exe, exe, err)
		}
		if got := p.Protected(&x); got != want {
			t.Errorf("%s: protected %t, want %t", what, got, want)
		}
	}
	for _, tc := range []struct {
		ns   string
		want bool
	}{{"mntns", true}, {"userns,mntns", false}} {
		z := zoo.Start(t, "fork=%s { name=leaker tmpfs=/opt mkdir=/opt/bin copyself=/opt/bin/systemd exec=/opt/bin/systemd serve } serve", tc.ns)
		check(tc.ns, z.Named("leaker").PID, "/opt/bin/systemd", tc.want)
	}

	fd, err := unix.MemfdCreate("x/systemd", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	memory := os.NewFile(uintptr(fd), "memfd")
	defer memory.Close()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := memory.Write(program); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", fd), "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	check("memfd", cmd.Process.Pid, "/memfd:x/systemd", false)
}
