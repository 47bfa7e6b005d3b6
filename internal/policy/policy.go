// Package policy decides what may be done about a parent: nothing, not now, or
// act, with the reason. What is known of a process flows in, a decision flows
// out. It is pure: no clock, no I/O.
package policy

import (
	"cmp"
	"path"
	"slices"
	"strings"
	"time"

	"kzr/internal/config"
	"kzr/internal/glob"
	"kzr/internal/task"
	"kzr/internal/tracker"
)

// Host is what the host side looks like from where kzr runs.
type Host struct {
	PIDNS uint64 // kzr's own pid namespace
	// Pid 1's mount and user namespace, 0 if they cannot be read.
	MntNS, UserNS uint64
	// Ancestors are kzr itself and those above it.
	Ancestors []task.ID
}

// Policy is a compiled configuration. It does not change.
type Policy struct {
	host    Host
	scope   config.Scope
	base    Rule
	rules   []rule
	protect []glob.Glob
}

type rule struct {
	config.Rule
	namespace, pod, container, image, exe, cgroup *glob.Glob
}

// Rule is what holds for one parent.
type Rule struct {
	tracker.Rule
	Name        string // of the first rule that matched, "" if none did
	Action      config.Action
	TermTimeout time.Duration
	Reap        config.Reap
	// Unsure says that nobody can tell whether the rule matches: it says observe
	// and asks for a name that the container's runtime has not told.
	Unsure bool
}

// New compiles the parts of a validated configuration that decide about parents.
func New(c config.Config, host Host) (*Policy, error) {
	p := &Policy{host: host, scope: c.Scope, base: Rule{
		Rule:   tracker.Rule{Threshold: c.Threshold, Grace: c.Grace},
		Action: config.ActionKill, TermTimeout: c.TermTimeout, Reap: c.Reap,
	}}
	for _, s := range c.Protect {
		g, err := glob.Compile(s)
		if err != nil {
			return nil, err
		}
		p.protect = append(p.protect, g)
	}
	for _, r := range c.Rules {
		out := rule{Rule: r}
		for _, f := range []struct {
			pattern string
			to      **glob.Glob
		}{
			{r.Match.Namespace, &out.namespace}, {r.Match.Pod, &out.pod}, {r.Match.Container, &out.container},
			{r.Match.Image, &out.image}, {r.Match.Exe, &out.exe}, {r.Match.Cgroup, &out.cgroup},
		} {
			if f.pattern == "" {
				continue
			}
			g, err := glob.Compile(f.pattern)
			if err != nil {
				return nil, err
			}
			*f.to = &g
		}
		p.rules = append(p.rules, out)
	}
	return p, nil
}

// Least is the lowest threshold and the shortest grace of any rule: a parent
// that does not meet it meets none.
func (p *Policy) Least() tracker.Rule {
	least := p.base.Rule
	for _, r := range p.rules {
		if r.Threshold > 0 {
			least.Threshold = min(least.Threshold, r.Threshold)
		}
		if r.Grace > 0 {
			least.Grace = min(least.Grace, r.Grace)
		}
	}
	return least
}

// RuleFor returns the threshold, grace and action that hold for a process.
//
// Where a rule asks for what is not known, names of a container or an executable that
// did not answer in time, nobody is killed in ignorance:
// one that says observe counts as matching, and of one that says kill only a
// higher threshold or a longer grace counts. When the node's pids run out (full)
// there is no time for that, and such rules do not match.
func (p *Policy) RuleFor(proc *task.Process, full bool) Rule {
	out := p.base
	var least tracker.Rule // what rules ask for that may be about it
	for i := range p.rules {
		r := &p.rules[i]
		match := p.matches(r, proc)
		if match == unknown && !full && r.Action != config.ActionObserve {
			least.Threshold, least.Grace = max(least.Threshold, r.Threshold), max(least.Grace, r.Grace)
		}
		if match == no || match == unknown && (full || r.Action != config.ActionObserve) {
			continue
		}
		out.Name = r.Name
		out.Unsure = match == unknown
		out.Action = cmp.Or(r.Action, out.Action)
		out.Threshold = cmp.Or(r.Threshold, out.Threshold)
		out.Grace = cmp.Or(r.Grace, out.Grace)
		out.Reap = cmp.Or(r.Reap, out.Reap)
		if r.TermTimeout != nil {
			out.TermTimeout = *r.TermTimeout
		}
		break
	}
	out.Threshold, out.Grace = max(out.Threshold, least.Threshold), max(out.Grace, least.Grace)
	return out
}

// answer says whether a rule matches. The least of several holds for them all.
type answer int

const (
	no answer = iota
	unknown
	yes
)

func (p *Policy) matches(r *rule, proc *task.Process) answer {
	m := &r.Match
	fits := func(g *glob.Glob, s string) bool { return g == nil || s != "" && g.Match(s) }
	path := func(g *glob.Glob, s string) answer {
		switch {
		case fits(g, s):
			return yes
		case s == "" && !proc.Exiting: // who is on its way out has no executable any more
			return unknown
		}
		return no
	}
	paths := min(path(r.exe, proc.Exe), path(r.cgroup, cmp.Or(proc.OuterCgroup, proc.Cgroup)))
	if paths == no || m.Scope == config.ScopeContainers && !p.InContainer(proc) ||
		m.UID != nil && *m.UID != proc.UID ||
		m.ContainerInit != nil && *m.ContainerInit != proc.ContainerInit() {
		return no
	}
	if r.namespace == nil && r.pod == nil && r.container == nil && r.image == nil {
		return paths
	}

	c := proc.Container
	if c == nil || proc.Delegated {
		// A user could give his container anybody's id, and so that one's rule.
		return no
	}
	named := func(g *glob.Glob, s string, has bool) answer {
		switch {
		case fits(g, s):
			return yes
		case has && proc.NamesUnknown:
			return unknown
		}
		return no
	}
	name := named(r.container, c.Name, true)
	if fits(r.container, c.ID) {
		name = yes
	}
	inPod := c.PodUID != ""
	return min(paths, named(r.namespace, c.Namespace, inPod), named(r.pod, c.Pod, inPod), name, named(r.image, c.Image, true))
}

// InContainer says whether a process is in a pid namespace other than the
// host's, or in a cgroup that a container runtime made. Where neither can be
// known, it is not.
func (p *Policy) InContainer(proc *task.Process) bool {
	return proc.Container != nil || proc.PIDNS != 0 && proc.PIDNS != p.host.PIDNS
}

// Circumstances are what a decision depends on besides the parent itself.
type Circumstances struct {
	Pressure Pressure
	// Foreign says that it meets its rule only with zombies that were put on it by a
	// process that may not signal it.
	Foreign bool
	// Outside says that its tracer is not of its own workload, or may not be.
	Outside bool
}

// Decide says whether a parent that meets its rule is a target, and if not, why
// not. It does not look at zombies: the caller knows that the rule is met.
func (p *Policy) Decide(proc *task.Process, r Rule, c Circumstances) (Verdict, Reason) {
	switch {
	case p.Protected(proc):
		return Spared, Protected
	case r.Action == config.ActionObserve:
		return Spared, ByRule
	case p.scope != config.ScopeAll && !p.InContainer(proc):
		return Spared, OutOfScope
	}
	if reason := Deferred(&proc.Facts, c); reason != "" {
		return Spared, reason
	}
	return Target, ""
}

// Deferred says why a process is not acted on right now though it may be later; ""
// if nothing stands in the way. While pids run out hardly anything does: a SIGKILL
// works on what is stopped, traced or waiting. What is dying already is left alone,
// and, until the node itself runs out, what somebody outside its workload traces: a
// person looks at it.
func Deferred(f *task.Facts, c Circumstances) Reason {
	switch {
	case f.Exiting || f.State == 'Z' || f.State == 'X' || f.State == 'x':
		return Dying
	case (f.Tracer.PID != 0 || f.TracerUnknown || f.State == 't') && (c.Pressure == NoPressure || c.Pressure == WorkloadPressure && c.Outside):
		return Traced
	case c.Pressure != NoPressure:
		return ""
	case f.State == 'T':
		return Stopped
	case f.Frozen:
		return Frozen
	case f.State == 'D':
		return Uninterruptible
	case f.Waits.PID != 0 || f.WaitsUnnamed || f.WaitsUnknown:
		return Waiting
	case c.Foreign:
		return Foreign
	}
	return ""
}

// Protected says whether a process is one that kzr never signals: pid 1, a
// kernel thread, kzr or an ancestor of it, or host-side infrastructure. What a
// tenant can choose, its comm, its command line, a path inside its own mount
// namespace, protects nobody.
func (p *Policy) Protected(proc *task.Process) bool {
	if proc.PID == 1 || proc.Kernel || slices.Contains(p.host.Ancestors, proc.ID) {
		return true
	}
	if !p.hostSide(proc) {
		return false
	}
	if proc.Exe == "" {
		// It may be anything. A pid that is not certain is never a target.
		return true
	}
	if strings.HasPrefix(proc.Exe, memory) {
		return false
	}
	return infrastructure(proc.Exe) ||
		slices.ContainsFunc(p.protect, func(g glob.Glob) bool { return g.Match(proc.Exe) })
}

// hostSide says whether an executable's path means what it says on the host. In
// the host's mount namespace it does. Services with a mount namespace of their
// own (PrivateTmp and the like) count as well, as long as no container runtime
// made their cgroup. But anybody can make a user namespace, in it a mount
// namespace, and in that a file of any path, so whoever is in both of his own
// does not, be it a service with PrivateUsers.
func (p *Policy) hostSide(proc *task.Process) bool {
	if proc.PIDNS != 0 && proc.PIDNS != p.host.PIDNS {
		return false
	}
	// Where namespaces cannot be compared, it gets the benefit of the doubt.
	same := func(own, host uint64) bool { return own == 0 || host == 0 || own == host }
	if same(proc.MntNS, p.host.MntNS) {
		return true // also of a shim that was put into its container's cgroup
	}
	return proc.Container == nil && same(proc.UserNS, p.host.UserNS)
}

// memory is where the kernel shows an executable that is in no file system
// (memfd_create). Whoever made it chose the rest of the name.
const memory = "/memfd:"

// Executables of the host's infrastructure, by name. They live in many places
// (/usr/bin, /opt/bin, /var/lib/rancher/…, /nix/store/…), so the place is not
// asked, except that it must not be one where any user can put a file.
var infrastructureNames = []string{
	"systemd", "systemd-*", "init",
	"containerd", "containerd-shim*", "dockerd", "docker-proxy",
	"crio", "crio-*", "conmon", "conmonrs", "podman", "runc", "crun",
	"kubelet", "kubelite", "k3s", "k3s-*", "k0s", "rke2", "rke2-*",
	"sshd", "sshd-session", "sshd-auth",
	"dbus-daemon", "dbus-broker", "dbus-broker-launch",
	"lxc-start", "lxc-monitored", "lxcfs", "lxd", "incusd", "incus-agent",
	"libvirtd", "libvirt_lxc", "virtqemud", "virtlxcd", "virtlogd", "virtlockd", "cri-dockerd",
}

var userWritable = []string{
	"/home/", "/var/home/", "/tmp/", "/var/tmp/", "/dev/", "/run/user/", "/run/lock/", "/var/lock/",
	"/media/", "/run/media/", "/var/crash/",
}

// kubeletHome is where Google's node images keep kubelet and its runtime.
const kubeletHome = "/home/kubernetes/bin/"

func infrastructure(exe string) bool {
	if !strings.HasPrefix(exe, kubeletHome) &&
		slices.ContainsFunc(userWritable, func(dir string) bool { return strings.HasPrefix(exe, dir) }) {
		return false
	}
	name := path.Base(exe)
	return slices.ContainsFunc(infrastructureNames, func(pattern string) bool {
		prefix, open := strings.CutSuffix(pattern, "*")
		return name == prefix || open && strings.HasPrefix(name, prefix)
	})
}
