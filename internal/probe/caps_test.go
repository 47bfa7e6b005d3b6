package probe

import (
	"context"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
	"kzr/internal/zoo"
)

// keepOnly leaves this thread with these capabilities and no others. It is to end then.
func keepOnly(caps ...int) error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for _, c := range caps {
		data[c/32].Effective |= 1 << (c % 32)
		data[c/32].Permitted |= 1 << (c % 32)
	}
	return unix.Capset(&head, &data[0])
}

// What still works after loading without which capabilities. What the unit may drop
// depends on it.
func TestCapabilitiesAfterLoading(t *testing.T) {
	p, _ := open(t, 50)
	z := zoo.Start(t, "leak=10 serve")
	id := identity(t, z.PID)
	ctx := context.Background()
	calls := []struct {
		name string
		call func() error
	}{
		{"Snapshot", func() error { _, err := p.Snapshot(ctx); return err }},
		{"SnapshotOf", func() error { _, err := p.snapshotOf(ctx, id); return err }},
		{"Facts", func() error { _, _, err := p.Facts(ctx, os.Getpid()); return err }},
		{"Stance", func() error { _, err := p.Stance(ctx, id); return err }},
		{"Counters", func() error { _, err := p.Counters(); return err }},
		{"Attached", func() error { return p.Attached() }},
		{"SetLevel", func() error { return p.SetLevel(50) }},
	}
	// Since 5.19 unprivileged_bpf_disabled is about making things, not about using them.
	sysctl, _ := os.ReadFile("/proc/sys/kernel/unprivileged_bpf_disabled")
	allowed := strings.TrimSpace(string(sysctl)) == "0" || zoo.KernelAtLeast(t, 5, 19)
	for _, keep := range []struct {
		name string
		caps []int
		all  bool // must work
	}{
		{"BPF, PERFMON", []int{unix.CAP_BPF, unix.CAP_PERFMON}, true},
		{"BPF", []int{unix.CAP_BPF}, true},
		{"PERFMON", []int{unix.CAP_PERFMON}, allowed},
		{"nothing", nil, allowed},
	} {
		t.Run(keep.name, func(t *testing.T) {
			done := make(chan bool)
			go func() {
				defer close(done)
				runtime.LockOSThread() // and never unlock: the thread ends
				if err := keepOnly(keep.caps...); err != nil {
					t.Error(err)
					return
				}
				if has, err := task.Capable(unix.CAP_SYS_ADMIN); err != nil || has {
					t.Error("it has all capabilities still")
				}
				for _, c := range calls {
					if c.name == "Stance" && p.stance.err != nil {
						continue
					}
					err := c.call()
					if err != nil && keep.all {
						t.Errorf("%s: %v", c.name, err)
					} else {
						t.Logf("%s: %v", c.name, err)
					}
				}
			}()
			<-done
		})
	}
}
