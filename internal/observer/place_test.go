package daemon

import (
	"strings"
	"testing"

	"kzr/internal/container"
	"kzr/internal/task"
	"kzr/internal/zoo"
)

// Whose a process is decides what its kills are counted by.
func TestPlace(t *testing.T) {
	const uid = "8f14e45f-ceea-467f-a0e6-0d1f1c2b3a4d"
	id, inner := strings.Repeat("a1", 32), strings.Repeat("b2", 32)
	pod := "/kubepods/pod" + uid + "/"
	named := func(ref container.Ref) (task.Container, bool) {
		c := ref.Container()
		if c.PodUID != "" {
			c.Namespace, c.Pod, c.Name = "shop", "web-0", "app"
		}
		return c, ref.HasNames()
	}
	nameless := func(ref container.Ref) (task.Container, bool) { return ref.Container(), false }
	user := "/user.slice/user-7.slice/user@7.service/user.slice/libpod-" + id + ".scope"

	// In a pid namespace, and so in a container, whatever made it.
	contained := map[string]bool{"a runtime of its own kind": true, "without a cgroup": true, "with a unit": true}
	for _, tt := range []struct {
		name, cgroup, exe string
		ask               func(container.Ref) (task.Container, bool)
		id                string // of the container, "" outside any
		inner             string // "" where nothing is nested
		workload          string
		unknown           bool
	}{
		{"a pod's container", pod + id, "/app", named, id, "", "shop/web-0/app", false},
		{"after a restart", pod + inner, "/app", named, inner, "", "shop/web-0/app", false},
		{"while it has no name", pod + id, "/app", nameless, id, "", uid, true},
		{"docker in a pod", pod + id + "/docker/" + inner, "/app", named, id, inner, "shop/web-0/app", false},
		{"docker", "/docker/" + id, "/app", named, id, "", id, false},
		{"docker without a name", "/docker/" + id, "/app", nameless, id, "", id, true},
		{"rootless podman", user, "/app", nameless, id, "", user, false},
		{"LXC", "/lxc.payload.web/system.slice/ssh.service", "/usr/sbin/sshd", nameless, "web", "", "web", false},
		{"a unit", "/system.slice/ssh.service", "/usr/sbin/sshd", nameless, "", "", "ssh.service", false},
		{"a monitor", "/machine.slice/libpod-conmon-" + id + ".scope", "/usr/bin/conmon", nameless, "", "", "libpod-conmon-" + id + ".scope", false},
		{"no unit", "/", "/opt/x", nameless, "", "", "/opt/x", false},
		{"a host process in some cgroup", "/batch/7", "/opt/x", nameless, "", "", "/opt/x", false},
		{"a runtime of its own kind", "/default/web", "/bin/sh", nameless, "", "", "/default/web", false},
		{"without a cgroup", "/", "/bin/sh", nameless, "", "", "/bin/sh", false},
		{"with a unit", "/system.slice/box.service", "/bin/sh", nameless, "", "", "box.service", false},
		{"nothing to go by", "/", "", nameless, "", "", "/", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := task.Process{Cgroup: tt.cgroup, Exe: tt.exe}
			if contained[tt.name] {
				p.NSPID = []int{4711, 1}
			}
			(&eye{name: tt.ask}).place(&p)
			var id, inner string
			if p.Container != nil {
				id = p.Container.ID
			}
			if p.Inner != nil {
				inner = p.Inner.ID
			}
			if outer, _ := container.Parse(tt.cgroup); p.OuterCgroup != outer.Outer.Cgroup || tt.inner != "" && p.OuterCgroup != pod+id {
				t.Errorf("the container's cgroup is %q", p.OuterCgroup)
			}
			if id != tt.id || inner != tt.inner || p.Workload != tt.workload || p.NamesUnknown != tt.unknown {
				t.Errorf("got container %q, inside it %q, workload %q, name unknown %v",
					id, inner, p.Workload, p.NamesUnknown)
			}
		})
	}
}

// A container's init is the one outside all others: whoever is in it can have
// another one inside.
func TestContainerInit(t *testing.T) {
	z := zoo.Start(t, "in=pidns,proc fork=pidns { name=inner serve } fork { name=kid serve } serve")
	d, _ := newDaemon(t, 0)
	for _, tt := range []struct {
		pid        int
		outer, any bool
	}{{z.PID, true, true}, {z.Named("inner").PID, false, true}, {z.Named("kid").PID, false, false}} {
		p, err := d.eye.proc.Inspect(tt.pid)
		if err != nil {
			t.Fatal(err)
		}
		if p.ContainerInit() != tt.outer || p.NamespaceInit() != tt.any {
			t.Errorf("pids %d: a container's init %t, of some namespace %t", p.NSPID, p.ContainerInit(), p.NamespaceInit())
		}
	}
}
