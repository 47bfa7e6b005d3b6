package policy

import (
	"testing"
	"time"

	"kzr/internal/config"
	"kzr/internal/task"
	"kzr/internal/tracker"
)

const (
	hostPID  = 100
	hostMnt  = 200
	hostUser = 300
)

var host = Host{PIDNS: hostPID, MntNS: hostMnt, UserNS: hostUser, Ancestors: []task.ID{{PID: 50, Start: 5}}}

// proc is an ordinary process in a container, changed by f.
func proc(f func(*task.Process)) *task.Process {
	p := &task.Process{
		ID: task.ID{PID: 1000, Start: 10}, Exe: "/app", Cgroup: "/docker/abc",
		Facts: task.Facts{
			Comm: "app", State: 'S', UID: 1000, Threads: 1,
			PIDNS: 101, MntNS: 201, UserNS: hostUser, NSPID: []int{1000, 1},
		},
		Container: &task.Container{Runtime: "docker", ID: "abc", Namespace: "shop", Pod: "web-1", Name: "web", Image: "reg/web:1"},
	}
	if f != nil {
		f(p)
	}
	return p
}

func onHost(exe string) func(*task.Process) {
	return func(p *task.Process) {
		p.Exe, p.PIDNS, p.MntNS, p.NSPID, p.Container, p.Cgroup = exe, hostPID, hostMnt, []int{1000}, nil, "/system.slice/x.service"
	}
}

func with(fs ...func(*task.Process)) func(*task.Process) {
	return func(p *task.Process) {
		for _, f := range fs {
			f(p)
		}
	}
}

func TestDecide(t *testing.T) {
	tests := []struct {
		name   string
		scope  config.Scope
		proc   func(*task.Process)
		want   Verdict
		reason Reason
	}{
		{"container init", "", nil, Target, ""},
		{"pid namespace without a runtime's cgroup", "", func(p *task.Process) { p.Container = nil }, Target, ""},
		{"host-pid container", "", func(p *task.Process) { p.PIDNS = hostPID }, Target, ""},
		{"host process", "", onHost("/usr/bin/app"), Spared, OutOfScope},
		{"host process, scope all", config.ScopeAll, onHost("/usr/bin/app"), Target, ""},
		{"namespaces unreadable", "", with(onHost("/usr/bin/app"), func(p *task.Process) { p.PIDNS = 0 }), Spared, OutOfScope},

		{"pid 1", config.ScopeAll, func(p *task.Process) { p.PID = 1 }, Spared, Protected},
		{"kernel thread", config.ScopeAll, func(p *task.Process) { p.Kernel = true }, Spared, Protected},
		{"kzr's parent", config.ScopeAll, func(p *task.Process) { p.ID = task.ID{PID: 50, Start: 5} }, Spared, Protected},
		{"another with its pid", config.ScopeAll, func(p *task.Process) { p.ID = task.ID{PID: 50, Start: 6} }, Target, ""},
		{"systemd", config.ScopeAll, onHost("/usr/lib/systemd/systemd"), Spared, Protected},
		{"a helper of systemd with a mount namespace of its own", config.ScopeAll, with(onHost("/usr/lib/systemd/systemd-journald"), func(p *task.Process) { p.MntNS = 999 }), Spared, Protected},
		{"shim", config.ScopeAll, onHost("/usr/bin/containerd-shim-runc-v2"), Spared, Protected},
		{"shim in its container's cgroup", "", with(onHost("/usr/bin/containerd-shim-runc-v2"), func(p *task.Process) { p.Container = &task.Container{ID: "x"} }), Spared, Protected},
		{"kubelet of a node image", config.ScopeAll, onHost("/home/kubernetes/bin/kubelet"), Spared, Protected},
		{"a user's program of that name", config.ScopeAll, onHost("/home/eve/kubelet"), Target, ""},
		{"named systemd in a container", "", func(p *task.Process) { p.Comm, p.Exe = "systemd", "/usr/lib/systemd/systemd" }, Target, ""},
		{"sshd in a host-pid container", "", func(p *task.Process) { p.Exe, p.PIDNS = "/usr/sbin/sshd", hostPID }, Target, ""},
		{"comm kubelet on the host", config.ScopeAll, with(onHost("/usr/bin/app"), func(p *task.Process) { p.Comm = "kubelet" }), Target, ""},
		{"systemd where a user has mounted it", config.ScopeAll, with(onHost("/usr/lib/systemd/systemd"), func(p *task.Process) { p.MntNS, p.UserNS = 999, 999 }), Target, ""},
		{"configured, where a user has mounted it", config.ScopeAll, with(onHost("/opt/agent/bin/agentd"), func(p *task.Process) { p.MntNS, p.UserNS = 999, 999 }), Target, ""},
		{"systemd in a user namespace that sees the host's files", config.ScopeAll, with(onHost("/usr/lib/systemd/systemd"), func(p *task.Process) { p.UserNS = 999 }), Spared, Protected},
		{"systemd in namespaces that cannot be read", config.ScopeAll, with(onHost("/usr/lib/systemd/systemd"), func(p *task.Process) { p.MntNS, p.UserNS = 0, 0 }), Spared, Protected},
		{"systemd on a stick", config.ScopeAll, onHost("/run/media/user/stick/systemd"), Target, ""},
		{"systemd in no file", config.ScopeAll, onHost("/memfd:x/systemd"), Target, ""},
		{"configured, in no file", config.ScopeAll, onHost("/memfd:x/agentd"), Target, ""},
		{"a user's program on Fedora's image", config.ScopeAll, onHost("/var/home/eve/kubelet"), Target, ""},
		{"a program where anybody may lock", config.ScopeAll, onHost("/run/lock/kubelet"), Target, ""},
		{"a program in anybody's memory", config.ScopeAll, onHost("/dev/shm/kubelet"), Target, ""},
		{"LXC's monitor", config.ScopeAll, onHost("/usr/bin/lxc-start"), Spared, Protected},
		{"LXD", config.ScopeAll, onHost("/snap/lxd/current/bin/lxd"), Spared, Protected},
		{"Incus", config.ScopeAll, onHost("/opt/incus/bin/incusd"), Spared, Protected},
		{"libvirt", config.ScopeAll, onHost("/usr/sbin/libvirtd"), Spared, Protected},
		{"libvirt's LXC driver", config.ScopeAll, onHost("/usr/lib/libvirt/libvirt_lxc"), Spared, Protected},
		{"cri-dockerd", config.ScopeAll, onHost("/usr/local/bin/cri-dockerd"), Spared, Protected},
		{"lxc-start in a container", "", func(p *task.Process) { p.Exe = "/usr/bin/lxc-start" }, Target, ""},
		{"configured", config.ScopeAll, onHost("/opt/agent/bin/agentd"), Spared, Protected},
		{"configured path inside a container", "", func(p *task.Process) { p.Exe = "/opt/agent/bin/agentd" }, Target, ""},
		{"host process whose executable cannot be read", config.ScopeAll, onHost(""), Spared, Protected},

		{"traced", "", func(p *task.Process) { p.Tracer.PID = 9 }, Spared, Traced},
		{"stopped", "", func(p *task.Process) { p.State = 'T' }, Spared, Stopped},
		{"frozen", "", func(p *task.Process) { p.Frozen = true }, Spared, Frozen},
		{"dying in its pid namespace", "", func(p *task.Process) { p.Exiting = true }, Spared, Dying},
		{"dead leader", "", func(p *task.Process) { p.State = 'Z' }, Spared, Dying},
		{"vfork", "", func(p *task.Process) { p.State = 'D' }, Spared, Uninterruptible},
		{"waits for one child", "", func(p *task.Process) { p.Waits.PID = 9 }, Spared, Waiting},
		{"maybe traced", "", func(p *task.Process) { p.TracerUnknown = true }, Spared, Traced},
		{"observed by rule", "", func(p *task.Process) { p.Container.Namespace = "keep-1" }, Spared, ByRule},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := config.Default()
			if tt.scope != "" {
				c.Scope = tt.scope
			}
			c.Protect = []string{"/opt/agent/*", "/*/agentd"}
			c.Rules = []config.Rule{{Name: "keep", Match: config.Match{Namespace: "keep*"}, Action: config.ActionObserve}}
			p, err := New(c, host)
			if err != nil {
				t.Fatal(err)
			}
			pr := proc(tt.proc)
			verdict, reason := p.Decide(pr, p.RuleFor(pr, false), Circumstances{})
			if verdict != tt.want || reason != tt.reason {
				t.Errorf("got %s %q, want %s %q", verdict, reason, tt.want, tt.reason)
			}
		})
	}
}

// Without pid 1's mount namespace nobody can tell a shim from a host-pid
// container by its path, so both are left alone.
func TestUnknownHostMountNamespaceProtects(t *testing.T) {
	h := host
	h.MntNS = 0
	p, _ := New(config.Default(), h)
	pr := proc(func(p *task.Process) { p.Exe, p.PIDNS = "/usr/bin/containerd-shim-runc-v2", hostPID })
	if !p.Protected(pr) {
		t.Error("a possible shim is not protected")
	}
}

// ruled is a rule that inherits the other defaults.
func ruled(r tracker.Rule, name string, action config.Action) Rule {
	c := config.Default()
	return Rule{Rule: r, Name: name, Action: action, TermTimeout: c.TermTimeout, Reap: c.Reap}
}

func TestRuleFor(t *testing.T) {
	uid, yes, zero := uint32(1000), true, time.Duration(0)
	c := config.Default()
	c.Rules = []config.Rule{
		{Name: "exe", Match: config.Match{Exe: "/opt/*/bin/*"}, Threshold: 7},
		{Name: "all fields", Match: config.Match{Namespace: "shop", Pod: "web-*", Image: "reg/*", UID: &uid, ContainerInit: &yes, Scope: config.ScopeContainers}, Grace: 5 * time.Second, TermTimeout: &zero, Reap: config.ReapAll},
		{Name: "by id", Match: config.Match{Container: "abc"}, Action: config.ActionObserve},
	}
	p, err := New(c, host)
	if err != nil {
		t.Fatal(err)
	}
	base := tracker.Rule{Threshold: 50, Grace: time.Minute}
	tests := []struct {
		name string
		proc func(*task.Process)
		want Rule
	}{
		{"none", onHost("/usr/bin/app"), ruled(base, "", config.ActionKill)},
		{"first wins, the rest is inherited", func(p *task.Process) { p.Exe = "/opt/x/bin/y" }, ruled(tracker.Rule{Threshold: 7, Grace: time.Minute}, "exe", config.ActionKill)},
		{"every field must match", nil, Rule{
			Rule: tracker.Rule{Threshold: 50, Grace: 5 * time.Second}, Name: "all fields", Action: config.ActionKill, Reap: config.ReapAll,
		}},
		{"one field does not", func(p *task.Process) { p.UID = 1 }, ruled(base, "by id", config.ActionObserve)},
		{"a name that it does not have matches nothing", func(p *task.Process) { p.Container.Namespace, p.Container.ID = "", "x" }, ruled(base, "", config.ActionKill)},
		{"comm and command line do not count", func(p *task.Process) {
			p.Comm, p.Cmdline, p.UID, p.Container = "/opt/x/bin/y", []string{"/opt/x/bin/y"}, 1, nil
		}, ruled(base, "", config.ActionKill)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := p.RuleFor(proc(tt.proc), false); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
	if got, want := p.Least(), (tracker.Rule{Threshold: 7, Grace: 5 * time.Second}); got != want {
		t.Errorf("least is %+v, want %+v", got, want)
	}
}

// What is made inside a container, a pid namespace or a cgroup, makes no rule match.
func TestRulesGoByTheOutside(t *testing.T) {
	yes := true
	c := config.Default()
	c.Rules = []config.Rule{
		{Name: "init", Match: config.Match{ContainerInit: &yes}, Action: config.ActionObserve},
		{Name: "cgroup", Match: config.Match{Cgroup: "/docker/*keep*"}, Action: config.ActionObserve},
	}
	p, err := New(c, host)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		proc func(*task.Process)
		want string
	}{
		{"the container's init", func(p *task.Process) { p.NSPID = []int{1000, 1} }, "init"},
		{"the init of a pid namespace in it", func(p *task.Process) { p.NSPID = []int{1000, 27, 1} }, ""},
		{"no pid namespace", func(p *task.Process) { p.NSPID = []int{1} }, ""},
		{"the container's cgroup", func(p *task.Process) { p.OuterCgroup = "/docker/keep" }, "cgroup"},
		{"a cgroup in it", func(p *task.Process) { p.Cgroup += "/keep" }, ""},
		{"a cgroup where there is no container", func(p *task.Process) {
			p.Cgroup, p.OuterCgroup, p.Container = "/docker/keep", "", nil
		}, "cgroup"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pr := proc(with(func(p *task.Process) { p.NSPID, p.OuterCgroup = []int{1000, 12}, p.Cgroup }, tt.proc))
			if got := p.RuleFor(pr, false); got.Name != tt.want {
				t.Errorf("rule %q, want %q", got.Name, tt.want)
			}
		})
	}
}

// Nobody is killed because the runtime has not said yet who it is, unless pids
// are running out.
func TestRuleForUnknownNames(t *testing.T) {
	uid := uint32(7)
	c := config.Default()
	nameless := func(p *task.Process) {
		p.NamesUnknown = true
		p.Container = &task.Container{Runtime: "containerd", ID: "abc", PodUID: "1-2"}
	}
	outsidePods := with(nameless, func(p *task.Process) { p.Container.PodUID = "" })
	base := tracker.Rule{Threshold: c.Threshold, Grace: c.Grace}
	kill, sure, unsure := ruled(base, "", config.ActionKill), ruled(base, "r", config.ActionObserve), ruled(base, "r", config.ActionObserve)
	unsure.Unsure = true
	observe := func(m config.Match) []config.Rule {
		return []config.Rule{{Name: "r", Match: m, Action: config.ActionObserve}}
	}
	tests := []struct {
		name  string
		rules []config.Rule
		proc  func(*task.Process)
		want  Rule
	}{
		{"namespace", observe(config.Match{Namespace: "keep*"}), nameless, unsure},
		{"pod", observe(config.Match{Pod: "x"}), nameless, unsure},
		{"container", observe(config.Match{Container: "x"}), nameless, unsure},
		{"image", observe(config.Match{Image: "x"}), nameless, unsure},
		{"executable", observe(config.Match{Exe: "/keep/*"}), func(p *task.Process) { p.Exe = "" }, unsure},
		{"cgroup", observe(config.Match{Cgroup: "/keep/*"}), func(p *task.Process) { p.Cgroup, p.OuterCgroup = "", "" }, unsure},
		{"an executable that is known", observe(config.Match{Exe: "/keep/*"}), nil, kill},
		{"one on its way out has none", observe(config.Match{Exe: "/keep/*"}), func(p *task.Process) { p.Exe, p.Exiting = "", true }, kill},
		{"a kill's executable", []config.Rule{{Name: "r", Match: config.Match{Exe: "/app"}, Threshold: 500}}, func(p *task.Process) { p.Exe = "" },
			ruled(tracker.Rule{Threshold: 500, Grace: base.Grace}, "", config.ActionKill)},
		{"its id is known", observe(config.Match{Container: "abc"}), nameless, sure},
		{"another field does not match", observe(config.Match{Namespace: "keep*", UID: &uid}), nameless, kill},
		{"no pod has no namespace", observe(config.Match{Namespace: "keep*"}), outsidePods, kill},
		{"no pod has an image", observe(config.Match{Image: "x"}), outsidePods, unsure},
		{"no container has no name", observe(config.Match{Container: "x"}), func(p *task.Process) { p.Container = nil }, kill},
		{"once it is known", observe(config.Match{Namespace: "keep*"}), nil, kill},
		{"a user's container has no name to match", observe(config.Match{Container: "abc"}), func(p *task.Process) { p.Delegated = true }, kill},
		{"nor does it match a kill", []config.Rule{{Name: "r", Match: config.Match{Container: "abc"}, Threshold: 2}}, func(p *task.Process) { p.Delegated = true }, kill},
		{"kill does not match", []config.Rule{{Name: "r", Match: config.Match{Namespace: "shop"}, Threshold: 2, Grace: time.Second}}, nameless, kill},
		{"but its patience counts", []config.Rule{{Name: "r", Match: config.Match{Namespace: "shop"}, Threshold: 500, Grace: time.Second}}, nameless,
			ruled(tracker.Rule{Threshold: 500, Grace: base.Grace}, "", config.ActionKill)},
		{"a later observe still matches", append([]config.Rule{{Name: "k", Match: config.Match{Namespace: "shop"}}}, observe(config.Match{Pod: "x"})...), nameless, unsure},
		{"an earlier match is enough", append([]config.Rule{{Name: "k", Match: config.Match{Exe: "/app"}}}, observe(config.Match{Pod: "x"})...), nameless,
			ruled(base, "k", config.ActionKill)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := c
			c.Rules = tt.rules
			p, err := New(c, host)
			if err != nil {
				t.Fatal(err)
			}
			if got := p.RuleFor(proc(tt.proc), false); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			// Without the time to wait for names, what is not known does not match.
			want := tt.want
			if want == unsure || want.Threshold == 500 {
				want = kill
			}
			if got := p.RuleFor(proc(tt.proc), true); got != want {
				t.Errorf("under pressure: got %+v, want %+v", got, want)
			}
		})
	}
}

// While no limit is near any doubt spares; when pids run out a SIGKILL works on what is
// stopped, traced or waiting.
func TestDeferredUnderPressure(t *testing.T) {
	for name, tt := range map[string]struct {
		proc                 func(*task.Process)
		c                    Circumstances
		none, workload, node Reason
	}{
		"nothing":             {nil, Circumstances{}, "", "", ""},
		"dying":               {func(p *task.Process) { p.Exiting = true }, Circumstances{}, Dying, Dying, Dying},
		"traced from within":  {func(p *task.Process) { p.Tracer.PID = 9 }, Circumstances{}, Traced, "", ""},
		"traced from outside": {func(p *task.Process) { p.Tracer.PID = 9 }, Circumstances{Outside: true}, Traced, Traced, ""},
		"stopped by a tracer": {func(p *task.Process) { p.State = 't' }, Circumstances{}, Traced, "", ""},
		"stopped":             {func(p *task.Process) { p.State = 'T' }, Circumstances{}, Stopped, "", ""},
		"frozen":              {func(p *task.Process) { p.Frozen = true }, Circumstances{}, Frozen, "", ""},
		"vfork":               {func(p *task.Process) { p.State = 'D' }, Circumstances{}, Uninterruptible, "", ""},
		"waits for a child":   {func(p *task.Process) { p.Waits.PID = 9 }, Circumstances{}, Waiting, "", ""},
		"waits for somebody":  {func(p *task.Process) { p.WaitsUnnamed = true }, Circumstances{}, Waiting, "", ""},
		"maybe waits":         {func(p *task.Process) { p.WaitsUnknown = true }, Circumstances{}, Waiting, "", ""},
		"foreign":             {nil, Circumstances{Foreign: true}, Foreign, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := proc(tt.proc)
			for pressure, want := range map[Pressure]Reason{NoPressure: tt.none, WorkloadPressure: tt.workload, NodePressure: tt.node} {
				tt.c.Pressure = pressure
				if got := Deferred(&p.Facts, tt.c); got != want {
					t.Errorf("pressure %q: got %q, want %q", pressure, got, want)
				}
			}
		})
	}
}

// SIGTERM is left out only where it is known to be in vain.
func TestSkipsSIGTERM(t *testing.T) {
	for name, tt := range map[string]struct {
		facts   task.Facts
		skipped bool
	}{
		"runs":                     {task.Facts{State: 'R'}, false},
		"stopped":                  {task.Facts{State: 'T'}, true},
		"frozen":                   {task.Facts{State: 'S', Frozen: true}, true},
		"traced":                   {task.Facts{State: 'S', Tracer: task.ID{PID: 9}}, true},
		"traced by who knows whom": {task.Facts{State: 't', TracerUnknown: true}, true},
		"maybe traced":             {task.Facts{State: 'S', TracerUnknown: true}, false},
		"maybe traced, stopped":    {task.Facts{State: 'T', TracerUnknown: true}, true},
	} {
		steps := Ladder(&tt.facts, Means{TermTimeout: time.Second, Pressure: true})
		if got := steps[2].Skipped != ""; steps[2].Do != Terminate || got != tt.skipped {
			t.Errorf("%s: %+v", name, steps[2])
		}
	}
}

func TestPressure(t *testing.T) {
	tests := []struct {
		fraction              float64
		tasks, limit, zombies int
		want                  bool
	}{
		{0.85, 85, 100, 10, true},
		{0.85, 84, 100, 80, false},
		{0.85, 99, 100, 9, false},
		{0, 100, 100, 100, false},
		{0.85, 100, 0, 100, false},
	}
	for _, tt := range tests {
		if got := Pressed(tt.fraction, tt.tasks, tt.limit, tt.zombies); got != tt.want {
			t.Errorf("Pressed(%v, %d, %d, %d) is %v", tt.fraction, tt.tasks, tt.limit, tt.zombies, got)
		}
	}
}
