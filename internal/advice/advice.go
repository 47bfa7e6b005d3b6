// Package advice explains one process in plain sentences: what it is, what it does not
// reap and why, what kzr does about it, and what its owner can do. Facts flow in as a
// [report.Detail], sentences flow out. It is pure: no clock, no I/O.
//
// The facts are sanitized already, so the sentences are safe to print.
package advice

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"kzr/internal/policy"
	"kzr/internal/report"
)

// Dead says that it is a zombie itself. One whose main thread alone is dead is not.
func Dead(d *report.Detail) bool { return d.State == "Z" && d.Threads <= 1 }

// dying says that it has begun to end and does not get on with it.
func dying(d *report.Detail) bool {
	return !Dead(d) && (d.Exiting || d.Reason == string(policy.Dying))
}

// namespaceInit says that it is pid 1 of a pid namespace.
func namespaceInit(d *report.Detail) bool {
	return len(d.NSPID) > 1 && d.NSPID[len(d.NSPID)-1] == 1
}

func kubernetes(d *report.Detail) bool {
	return d.Container != nil && (d.Container.PodUID != "" || d.Container.Pod != "")
}

// shim says that it is what a container runtime has on the host for each container.
func shim(d *report.Detail) bool {
	base := path.Base(d.Exe)
	return len(d.NSPID) <= 1 && (d.Container == nil || d.Reason == string(policy.Protected)) &&
		(strings.HasPrefix(base, "containerd-shim") || strings.HasPrefix(base, "conmon"))
}

// sandbox says that it is the pause process of a pod, which holds the namespaces that
// the containers of the pod share.
func sandbox(d *report.Detail) bool {
	base := path.Base(d.Exe)
	return namespaceInit(d) && kubernetes(d) && (base == "pause" || base == "pod" && d.Container.Name == "")
}

// Inits reap whatever falls to them.
var inits = map[string]bool{
	"tini": true, "tini-static": true, "docker-init": true, "dumb-init": true, "catatonit": true, "podman-init": true,
	"s6-svscan": true, "runsvdir": true, "supervisord": true, "systemd": true, "init": true,
}

func isInit(d *report.Detail) bool { return inits[program(d)] }

// imposed says that what counts against it was put on it by somebody else.
func imposed(d *report.Detail) bool {
	return d.Reason == string(policy.Foreign) && d.Reapable-d.Foreign < max(d.Threshold, 1) || 2*d.Foreign > d.Reapable
}

// holds says that most of its zombies are others' that it traces.
func holds(d *report.Detail) bool { return 2*d.HeldZombies > d.Reapable }

// own says that it forked all of its zombies, for certain.
func own(d *report.Detail) bool {
	return d.AdoptedKnown && d.Adopted+d.Foreign+d.HeldZombies == 0
}

var shells = map[string]bool{
	"bash": true, "sh": true, "dash": true, "ash": true, "hush": true, "ksh": true, "mksh": true, "zsh": true,
}

// program is the name of its program without a version, python for python3.12, and of
// one that is many, such as busybox, the one that it was started as.
func program(d *report.Detail) string {
	name := path.Base(d.Exe)
	if name == "busybox" || name == "toybox" {
		for _, arg := range d.Cmdline[:min(len(d.Cmdline), 2)] {
			if applet := strings.TrimPrefix(path.Base(arg), "-"); applet != name {
				return applet
			}
		}
	}
	if trimmed := strings.TrimRight(name, "0123456789.-"); trimmed != "" {
		return trimmed
	}
	return name
}

// What says what kind of process it is.
func What(d *report.Detail) []string {
	self := fmt.Sprintf("Process %d", d.PID)
	if d.Comm != "" {
		self += fmt.Sprintf(" (%s)", d.Comm)
	}
	if Dead(d) {
		parent := "Its parent"
		if len(d.Ancestors) > 0 {
			parent += ", process " + named(d.Ancestors[0]) + ","
		}
		return []string{self + " is a zombie. " + parent + " has not reaped it."}
	}
	where := place(d)
	switch {
	case shim(d):
		where = "belongs to a container runtime (" + path.Base(d.Exe) + ")"
		if id := flagValue(d.Cmdline, "-id", "--id", "-c", "--cid"); id != "" {
			where += " and serves container " + short(id)
		}
	case sandbox(d):
		where = "is the sandbox (pause) process of " + podName(d) + ": pid 1 for all containers of the pod"
	case namespaceInit(d):
		where = "is pid 1 of " + where
	default:
		where = "runs " + map[bool]string{true: "outside any container", false: "in " + where}[where == ""]
	}
	user := "root"
	if d.UID != 0 {
		user = fmt.Sprintf("uid %d", d.UID)
	}
	out := []string{fmt.Sprintf("%s %s. Its user is %s.", self, where, user)}
	if d.LeaderDead {
		out = append(out, fmt.Sprintf("Its main thread has exited, which is why ps shows it as a zombie; %s still running.",
			plural(d.Threads-1, "other thread is", "other threads are")))
	}
	if dying(d) {
		out = append(out, "It is exiting.")
	}
	return out
}

// place names where it runs, "" outside everything that has a name.
func place(d *report.Detail) string {
	c := d.Container
	var name string
	switch {
	case c != nil && kubernetes(d):
		name = "container " + cmp.Or(c.Name, short(c.ID)) + " in " + podName(d)
	case c != nil:
		name = "container " + cmp.Or(c.Name, short(c.ID))
	case len(d.NSPID) > 1:
		return "a pid namespace of its own"
	case d.Unit != "":
		return d.Unit
	}
	if c != nil && c.Runtime != "" {
		name += " (" + c.Runtime + ")"
	}
	return name
}

func podName(d *report.Detail) string {
	c := d.Container
	if c.Pod == "" {
		return "the pod with uid " + c.PodUID
	}
	return "pod " + path.Join(c.Namespace, c.Pod)
}

// Zombies says what it has not reaped, since when, and what that comes to.
func Zombies(d *report.Detail) []string {
	if Dead(d) {
		return nil
	}
	var out []string
	switch {
	case d.Zombies == 0:
		out = append(out, "It has no zombies.")
	case d.Reapable > 0:
		text := fmt.Sprintf("It has %s that it could reap", plural(d.Reapable, "zombie", "zombies"))
		if age, known := d.Oldest(); known && age >= time.Second {
			text += map[bool]string{true: ", for ", false: ", the oldest for "}[d.Reapable == 1] + report.Age(age)
		}
		switch {
		case d.Adopted == d.Reapable && d.Adopted > 1:
			text += "; all of them are adopted: another process forked them"
		case d.Adopted == 1 && d.Reapable == 1:
			text += "; it is adopted: another process forked it"
		case d.Adopted > 0:
			text += fmt.Sprintf("; %d of them are adopted: another process forked them", d.Adopted)
		case own(d):
			text += "; none is adopted: it forked " + them(d.Reapable) + " itself"
		}
		out = append(out, text+".")
	}
	if s := sampleNames(d); s != "" {
		out = append(out, s)
	}
	if n := d.Foreign; n > 0 {
		out = append(out, fmt.Sprintf("%s put on it (CLONE_PARENT) by another process that may not signal it.",
			plural(n, "of them was", "of them were")))
	}
	if n := d.HeldZombies; n > 0 {
		out = append(out, plural(n, "of them is the child of another process and traced by this one.", "of them are children of other processes and traced by this one."))
	}
	if n := d.TracedZombies; n > 0 {
		by := "a tracer"
		if d.ZombieTracer != 0 {
			by = fmt.Sprintf("process %d", d.ZombieTracer)
		}
		out = append(out, fmt.Sprintf("%s held by %s, which traces %s and has to wait first.",
			plural(n, "more zombie is", "more zombies are"), by, them(n)))
	}
	if n := d.DeadLeaders; n > 0 {
		out = append(out, fmt.Sprintf("%s shown as Z, but other threads of %s are still running: nobody can reap %s yet.",
			plural(n, "more child is", "more children are"), them(n), them(n)))
	}
	out = append(out, origins(d)...)
	if r := d.RatePerHour; r != nil && *r >= 1 {
		out = append(out, fmt.Sprintf("It gains about %.0f zombies per hour.", *r))
	}
	if w := d.WorkloadTotal; w != nil && w.Parents > 1 {
		text := fmt.Sprintf("The zombies are spread over its workload, %s: %d under %d parents", w.Name, w.Zombies, w.Parents)
		if w.RatePerHour != nil && *w.RatePerHour >= 1 {
			text += fmt.Sprintf(", about %.0f more per hour", *w.RatePerHour)
		}
		out = append(out, text+".")
	}
	return append(out, pids(d)...)
}

// nearFull is the share of a pid limit from which on it is worth a sentence.
const nearFull = 0.7

// pids says how full its pid limit is, if that matters.
func pids(d *report.Detail) []string {
	p := d.Pids
	if p == nil || p.Limit <= 0 {
		return nil
	}
	used := float64(p.Current) / float64(p.Limit)
	text := fmt.Sprintf("Its cgroup uses %d of %d pids (%.0f%%)", p.Current, p.Limit, 100*used)
	var full *float64
	if d.WorkloadTotal != nil {
		full = d.WorkloadTotal.FullInSeconds
	}
	switch {
	case p.Current >= p.Limit:
		return []string{text + ": it cannot fork."}
	case full != nil && *full < 7*24*3600:
		return []string{text + "; at this rate it is full in " + seconds(*full) + "."}
	case used >= nearFull:
		return []string{text + "."}
	}
	return nil
}

// origins says which containers its zombies came from.
func origins(d *report.Detail) []string {
	if len(d.ZombieOrigins) == 0 {
		return nil
	}
	const most = 4
	var names []string
	for _, o := range d.ZombieOrigins[:min(len(d.ZombieOrigins), most)] {
		name := cmp.Or(path.Join(o.Namespace, o.Pod, cmp.Or(o.Container, short(o.ContainerID))), short(o.ContainerID))
		names = append(names, fmt.Sprintf("%s (%d)", name, o.Count))
	}
	if n := len(d.ZombieOrigins) - most; n > 0 {
		names = append(names, fmt.Sprintf("%d more containers", n))
	}
	return []string{"They came from " + enumerate(names) + "."}
}

// sampleNames says what programs the zombies were, as far as the sample tells.
func sampleNames(d *report.Detail) string {
	n := map[string]int{}
	for _, z := range d.Sample {
		if z.Comm != "" {
			n[z.Comm]++
		}
	}
	if len(n) == 0 {
		return ""
	}
	all := slices.SortedFunc(maps.Keys(n), func(a, b string) int { return cmp.Or(cmp.Compare(n[b], n[a]), cmp.Compare(a, b)) })
	more := ""
	if len(all) > 4 {
		all, more = all[:4], " and others"
	}
	text := strings.Join(all, ", ") + more
	if forked(d) {
		text += ", like the process itself: it forked them, and they did not exec another program"
	}
	switch {
	case len(d.Sample) < d.Reapable:
		return fmt.Sprintf("The %d oldest were %s.", len(d.Sample), text)
	case d.Reapable == 1:
		return fmt.Sprintf("It was %s.", text)
	}
	return fmt.Sprintf("They were %s.", text)
}

// forked says that its zombies bear its own name, which they would not had they
// become another program. Of shells that tells little: what they leave behind is
// often another shell.
func forked(d *report.Detail) bool {
	if len(d.Sample) == 0 || shells[program(d)] || d.Adopted == d.Reapable && d.Adopted > 0 {
		return false
	}
	for _, z := range d.Sample {
		if z.Comm != d.Comm {
			return false
		}
	}
	return true
}

// Why gives the reasons that it does not reap, as far as they show from outside, the
// most telling first; nil if there is nothing to reap.
func Why(d *report.Detail) []string {
	if dying(d) {
		return whyDying(d)
	}
	if d.Reapable == 0 || Dead(d) {
		return nil
	}
	if s := halted(d); s != "" {
		return []string{s} // whatever it does with SIGCHLD, it does not get to it
	}
	switch {
	case holds(d):
		return []string{"It traces these processes: each waits for it, as its tracer, to wait for it or to detach. Until then its own parent cannot reap it."}
	case imposed(d):
		return []string{"It did not make these: another process put them on it with CLONE_PARENT, one that may not signal it. It may not know that they exist."}
	case shim(d):
		return []string{"Processes that are exec'd into a container, such as probes, are children of the shim, and it has to reap them. " +
			"This one does not: it has missed a SIGCHLD, or it hangs."}
	case sandbox(d):
		return []string{"As pid 1 of the shared pid namespace it is given every orphan of the pod, and has to reap them. This one does not."}
	}
	out := []string{whySignals(d)}
	switch {
	case namespaceInit(d) && isInit(d):
		out = append(out, "It is an init, whose task is to reap: it hangs, or it is configured not to.")
	case namespaceInit(d) && !forked(d) && !own(d):
		out = append(out, "As pid 1 it is given every orphan of its container: what exec probes, background services and shell jobs "+
			"leave behind. A program that is not an init does not expect them.")
		if kubernetes(d) {
			out = append(out, "If its image starts an init such as tini, `command:` in the pod spec has replaced it.")
		}
	case d.Subreaper && !own(d):
		out = append(out, "It has made itself a subreaper: it is given the orphans of all its descendants.")
	case initAbove(d) != "":
		out = append(out, fmt.Sprintf("There is an init (%s) above it, but an init can only reap its own children, and these have a living parent.",
			initAbove(d)))
	}
	return out
}

// whySignals says what its handling of SIGCHLD and its past tell.
func whySignals(d *report.Detail) string {
	never, ever := d.HasReaped != nil && !*d.HasReaped, d.HasReaped != nil && *d.HasReaped
	sig := &d.Signals
	switch {
	case sig.ChldBlocked && !ever:
		return "SIGCHLD is blocked in its main thread, so it does not learn that a child has exited. " +
			"It may have inherited that from the program that started it."
	case sig.ChldBlocked:
		return "SIGCHLD is blocked in its main thread. It has reaped children before, so it may use a signalfd or poll, " +
			"and has stopped doing so."
	case sig.Chld == "ignored":
		return "It ignores SIGCHLD. That prevents zombies only of children that exit afterwards; these exited before, " +
			"or use another exit signal."
	case sig.Chld == "caught" && never:
		return "It has a handler for SIGCHLD but has never reaped a child: the handler does not call wait."
	case sig.Chld == "caught" && own(d):
		return "It has a handler for SIGCHLD and yet left these: a handler that calls wait once per signal loses children " +
			"when several exit together."
	case sig.Chld == "caught":
		return "It has a handler for SIGCHLD and yet left these: a handler that calls wait once per signal loses children " +
			"when several exit together, and one that waits for the children it knows does not reap adopted ones."
	case never:
		return "It has never reaped a child and does not handle SIGCHLD."
	case ever:
		return "It has reaped children before but does not handle SIGCHLD: it waits for certain children only, and not for these, " +
			"or another program reaped in this process before an exec, such as an entrypoint script."
	}
	return "It does not handle SIGCHLD, so unless it calls wait on its own it does not learn that a child has exited."
}

// killableSleeps are kernel functions in which a process is in state D and yet can be
// killed.
var killableSleeps = []string{"kernel_clone", "_do_fork", "do_fork", "wait_for_vfork_done", "killable", "request_wait_answer"}

// halted says what keeps it from reaping at the moment, "" if nothing does.
func halted(d *report.Detail) string {
	switch {
	case d.Tracer != 0 && d.TracerIsChild:
		return fmt.Sprintf("It is traced by its own child, process %d: no debugger is at work, and as long as the child holds it, it does not run.", d.Tracer)
	case d.Tracer != 0:
		return fmt.Sprintf("It is traced by process %d, such as a debugger or strace, which may be holding it.", d.Tracer)
	case d.State == "T":
		return "It is stopped (SIGSTOP or job control) and does not run."
	case d.Reason == string(policy.Frozen):
		return "Its cgroup is frozen, so it does not run."
	case d.State == "D":
		return uninterruptible(d)
	case d.WaitsFor != nil:
		return fmt.Sprintf("It is waiting for one particular child, process %s, and does not look at the others until that one exits. "+
			"This is normal for a program that waits for its children in turn.", named(*d.WaitsFor))
	case d.Reason == string(policy.Waiting):
		return "It is waiting for one of its children, or may be: /proc does not say for which. It does not look at the others until that one exits."
	}
	return ""
}

// uninterruptible says what it waits for in state D, and whether it can be killed.
func uninterruptible(d *report.Detail) string {
	text := "It is in uninterruptible sleep"
	if d.WChan != "" {
		text += ", in the kernel function " + d.WChan
	}
	switch {
	case d.WChan == "":
		return text + ", usually waiting for a disk or a network file system."
	case vforks(d):
		return text + ": it waits for a vforked child to exec or exit. SIGKILL works on it."
	case slices.ContainsFunc(killableSleeps, func(s string) bool { return strings.Contains(d.WChan, s) }):
		return text + ". SIGKILL works on it."
	}
	return text + ", usually waiting for a disk or a network file system. SIGKILL takes effect only when that ends."
}

// vforks says that it is in uninterruptible sleep in vfork.
func vforks(d *report.Detail) bool {
	return slices.ContainsFunc([]string{"kernel_clone", "do_fork", "vfork"}, func(s string) bool { return strings.Contains(d.WChan, s) })
}

// whyDying says what holds up the end of a process.
func whyDying(d *report.Detail) []string {
	if len(d.BlockedBy) == 0 {
		if namespaceInit(d) {
			return []string{"It is exiting and cannot finish before all processes of its pid namespace are gone."}
		}
		return []string{"It is exiting, and the kernel has not finished that: it may be waiting for I/O or for a thread."}
	}
	var out []string
	for _, b := range d.BlockedBy {
		does := "has not reaped"
		if b.Trace {
			does = "traces"
		}
		out = append(out, fmt.Sprintf("It is exiting and waits for %s of its pid namespace that process %d (%s) %s.",
			plural(b.Dead, "dead process", "dead processes"), b.PID, b.Comm, does))
	}
	return out
}

// initAbove is the init of its own container that is an ancestor, "" if there is none.
// Pid 1 of the node is always one.
func initAbove(d *report.Detail) string {
	if d.Container == nil || namespaceInit(d) {
		return ""
	}
	for _, a := range d.Ancestors {
		if a.PID != 1 && a.Comm != "systemd" && a.Comm != "init" && (inits[a.Comm] || a.Comm == "pause") {
			return a.Comm
		}
	}
	return ""
}

// flagValue is the value of the first of these flags in a command line, "" if there is
// none.
func flagValue(args []string, names ...string) string {
	for i, arg := range args {
		name, value, joined := strings.Cut(arg, "=")
		switch {
		case !slices.Contains(names, name):
		case joined:
			return value
		case i+1 < len(args):
			return args[i+1]
		}
	}
	return ""
}

func short(id string) string { return id[:min(len(id), 12)] }

func seconds(s float64) string { return report.Age(time.Duration(s * float64(time.Second))) }

func named(r report.Relative) string { return fmt.Sprintf("%d (%s)", r.PID, r.Comm) }

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

func them(n int) string {
	if n == 1 {
		return "it"
	}
	return "them"
}

// enumerate writes a, b and c.
func enumerate(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " and " + words[last]
}
