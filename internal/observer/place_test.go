package observer

import (
	"strings"
	"testing"

	"kzr/internal/config"
	"kzr/internal/container"
	"kzr/internal/procscan"
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

	for _, tt := range []struct {
		name, cgroup string
		pidns        uint64 // the outermost below kzr's
		ask          func(container.Ref) (task.Container, bool)
		id           string // of the container, "" outside any
		inner        string // "" where nothing is nested
		workload     string
		owner        string
		unknown      bool
	}{
		{"a pod's container", pod + id, 7, named, id, "", "shop/web-0/app", "namespace shop", false},
		{"after a restart", pod + inner, 8, named, inner, "", "shop/web-0/app", "namespace shop", false},
		{"while it has no name", pod + id, 7, nameless, id, "", uid, uid, true},
		{"docker in a pod", pod + id + "/docker/" + inner, 7, named, id, inner, "shop/web-0/app", "namespace shop", false},
		{"a cgroup made in a pod's container", pod + id + "/mine", 7, named, id, "", "shop/web-0/app", "namespace shop", false},
		{"docker", "/docker/" + id, 7, named, id, "", id, id, false},
		{"docker without a name", "/docker/" + id, 7, nameless, id, "", id, id, true},
		{"rootless podman", user, 7, nameless, id, "", user, "user 7", false},
		{"LXC", "/lxc.payload.web/system.slice/ssh.service", 7, nameless, "web", "", "web", "web", false},
		{"a unit", "/system.slice/ssh.service", 0, nameless, "", "", "ssh.service", "ssh.service", false},
		{"a user's unit", "/user.slice/user-7.slice/user@7.service/app.slice/a.service", 0, nameless, "", "", "user@7.service/a.service", "user 7", false},
		{"another unit of that user", "/user.slice/user-7.slice/user@7.service/app.slice/b.service", 0, nameless, "", "", "user@7.service/b.service", "user 7", false},
		{"a user's session", "/user.slice/user-7.slice/session-3.scope", 0, nameless, "", "", "session-3.scope", "user 7", false},
		{"a monitor", "/machine.slice/libpod-conmon-" + id + ".scope", 0, nameless, "", "", "libpod-conmon-" + id + ".scope", "libpod-conmon-" + id + ".scope", false},
		{"no unit", "/", 0, nameless, "", "", "user 33", "user 33", false},
		{"a host process in some cgroup", "/batch/7", 0, nameless, "", "", "user 33", "user 33", false},
		{"a runtime of its own kind", "/default/web", 7, nameless, "", "", "/default/web", "/default/web", false},
		{"a cgroup made there", "/default/web/mine", 7, nameless, "", "", "/default/web", "/default/web", false},
		{"without a cgroup", "/", 7, nameless, "", "", "pid:[7]", "pid:[7]", false},
		{"with a unit", "/system.slice/box.service", 7, nameless, "", "", "box.service", "box.service", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := task.Process{Facts: task.Facts{UID: 33, OuterPIDNS: tt.pidns}}
			o := New(Options{Name: tt.ask}, config.Default(), nil)
			o.put(&p, placed(procscan.Links{Cgroup: tt.cgroup}, 0))
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
			if id != tt.id || inner != tt.inner || p.Workload != tt.workload || p.Owner != tt.owner || p.NamesUnknown != tt.unknown {
				t.Errorf("got container %q, inside it %q, workload %q, owner %q, name unknown %v",
					id, inner, p.Workload, p.Owner, p.NamesUnknown)
			}
		})
	}
}

// A container's init is the one outside all others: whoever is in it can have
// another one inside.
func TestContainerInit(t *testing.T) {
	z := zoo.Start(t, "in=pidns,proc fork=pidns { name=inner serve } fork { name=kid serve } serve")
	o := newObserver(t)
	init, err := o.Inspect(t.Context(), z.PID)
	if err != nil || init.PIDNS == 0 || init.OuterPIDNS != init.PIDNS {
		t.Fatalf("pid namespace %d, the outermost %d: %v", init.PIDNS, init.OuterPIDNS, err)
	}
	for _, tt := range []struct {
		pid        int
		outer, any bool
	}{{z.PID, true, true}, {z.Named("inner").PID, false, true}, {z.Named("kid").PID, false, false}} {
		p, err := o.Inspect(t.Context(), tt.pid)
		if err != nil {
			t.Fatal(err)
		}
		if p.ContainerInit() != tt.outer || p.NamespaceInit() != tt.any {
			t.Errorf("pids %d: a container's init %t, of some namespace %t", p.NSPID, p.ContainerInit(), p.NamespaceInit())
		}
		if p.OuterPIDNS != init.PIDNS || p.Workload != init.Workload {
			t.Errorf("pids %d: outermost namespace %d, workload %q; the init's %d, %q", p.NSPID, p.OuterPIDNS, p.Workload, init.PIDNS, init.Workload)
		}
		if found, ok := o.ContainerInit(t.Context(), &p); !ok || found != init.ID {
			t.Errorf("pids %d: container's init %v (%t), want %v", p.NSPID, found, ok, init.ID)
		}
	}
}
