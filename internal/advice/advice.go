// Package advice puts what is known of one process into plain sentences: who it
// is, what it leaks and why, what kzr does about it, and what its owner should
// do. Facts flow in as a [report.Detail], sentences flow out. It is pure: no
// clock, no I/O.
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

// Settings are what a plan depends on and a Detail does not say.
type Settings struct {
	Nudge       time.Duration // 0 skips SIGCHLD
	TermTimeout time.Duration // 0 skips SIGTERM
	DryRun      bool
	Observe     bool // this kzr has no ladder: it only looks
}

// Who says what kind of process it is.
func Who(d *report.Detail) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Process %d", d.PID)
	if d.Comm != "" {
		fmt.Fprintf(&b, " (%s)", d.Comm)
	}
	b.WriteString(" is ")
	if Dead(d) {
		b.WriteString("dead: a zombie that its parent")
		if len(d.Ancestors) > 0 {
			fmt.Fprintf(&b, ", process %d (%s),", d.Ancestors[0].PID, d.Ancestors[0].Comm)
		}
		b.WriteString(" has not reaped.")
		return b.String()
	}
	if namespaceInit(d) {
		b.WriteString("pid 1 of ")
	} else {
		b.WriteString("a process ")
		if c := d.Container; c != nil || len(d.NSPID) > 1 || d.Unit != "" {
			b.WriteString("in ")
		}
	}
	c := d.Container
	switch {
	case c != nil && c.Pod != "":
		fmt.Fprintf(&b, "container %s of pod %s", cmp.Or(c.Name, short(c.ID)), path.Join(c.Namespace, c.Pod))
	case c != nil && c.PodUID != "":
		fmt.Fprintf(&b, "container %s of the pod with uid %s", short(c.ID), c.PodUID)
	case c != nil:
		fmt.Fprintf(&b, "container %s", cmp.Or(c.Name, short(c.ID)))
	case len(d.NSPID) > 1:
		b.WriteString("a pid namespace of its own")
	case d.Unit != "":
		fmt.Fprintf(&b, "the unit %s", d.Unit)
	default:
		b.WriteString("outside any container")
	}
	if c != nil && c.Runtime != "" {
		fmt.Fprintf(&b, " (%s)", c.Runtime)
	}
	if d.UID == 0 {
		b.WriteString(" and runs as root.")
	} else {
		fmt.Fprintf(&b, " and runs as uid %d.", d.UID)
	}
	return b.String()
}

// Leak says what it holds and since when.
func Leak(d *report.Detail) []string {
	var out []string
	switch {
	case Dead(d):
		return []string{"The dead leak nothing."}
	case d.Zombies == 0:
		return []string{"None of its children is dead and waiting: it leaks nothing."}
	case d.Reapable == 1:
		out = append(out, "One dead child waits for it to reap it"+since(", for at least ", d)+".")
	case d.Reapable > 1:
		out = append(out, fmt.Sprintf("%d dead children wait for it to reap them", d.Reapable)+since(", the oldest for at least ", d)+".")
	}
	if names := names(d); names != "" {
		out = append(out, names)
	}
	if n := d.TracedZombies; n > 0 {
		by := ""
		if d.ZombieTracer != 0 {
			by = fmt.Sprintf(" (process %d)", d.ZombieTracer)
		}
		out = append(out, fmt.Sprintf("%s held by a tracer%s: it cannot reap %s until that lets go.",
			areHeld(n), by, them(n)))
	}
	if n := d.DeadLeaders; n > 0 {
		out = append(out, fmt.Sprintf("%s shown as Z though other threads of %s live on: nobody can reap %s yet.",
			areHeld(n), them(n), them(n)))
	}
	return out
}

// since words the age of the oldest zombie, if more than a first look is known.
func since(words string, d *report.Detail) string {
	age, known := d.Oldest()
	if !known || age < time.Second {
		return ""
	}
	return words + report.Age(age)
}

// names says what programs the zombies were, as far as the sample tells.
func names(d *report.Detail) string {
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
		text += ", as it is itself: it forked them, and they ran no other program"
	}
	if len(d.Sample) < d.Reapable {
		return fmt.Sprintf("The %d oldest are called %s.", len(d.Sample), text)
	}
	if d.Reapable == 1 {
		return fmt.Sprintf("It is called %s.", text)
	}
	return fmt.Sprintf("They are called %s.", text)
}

// forked says that its zombies bear its own name, which they would not had they
// become another program. Of shells that tells little: what they leave behind is
// often another shell.
func forked(d *report.Detail) bool {
	if len(d.Sample) == 0 || shells[program(d.Exe)] {
		return false
	}
	for _, z := range d.Sample {
		if z.Comm != d.Comm {
			return false
		}
	}
	return true
}

var shells = map[string]bool{
	"bash": true, "sh": true, "dash": true, "ash": true, "ksh": true, "mksh": true, "zsh": true, "busybox": true,
}

// Why gives the reasons that it does not reap, as far as they show from outside,
// the most telling first; nil if there is nothing to reap.
func Why(d *report.Detail) []string {
	if d.Reapable == 0 {
		return nil
	}
	var out []string
	if s := halted(d); s != "" {
		out = append(out, s)
	}
	never, ever := d.HasReaped != nil && !*d.HasReaped, d.HasReaped != nil && *d.HasReaped
	sig := &d.Signals
	switch {
	case sig.ChldBlocked && !ever:
		out = append(out, "SIGCHLD is blocked in its main thread, so the news that a child died does not reach it. "+
			"It may have inherited that from whoever started it.")
	case sig.ChldBlocked:
		out = append(out, "SIGCHLD is blocked in its main thread. It has reaped children before, so it may learn of them "+
			"by a signalfd or by asking, and has stopped doing so.")
	case sig.Chld == "ignored":
		out = append(out, "It ignores SIGCHLD, which spares it zombies only of children that die afterwards: "+
			"these died before, or were made with another exit signal.")
	case sig.Chld == "caught" && never:
		out = append(out, "It has a handler for SIGCHLD, but has never reaped a child: the handler does not wait.")
	case sig.Chld == "caught":
		out = append(out, "It has a handler for SIGCHLD and left these all the same: one that waits once for each signal "+
			"loses children when several die together, and one that waits for the children it knows leaves those it adopted.")
	case never:
		out = append(out, "It has never reaped a child, and SIGCHLD has its default meaning, which is to do nothing: "+
			"it does not know that it has children to wait for.")
	case ever:
		out = append(out, "It has reaped children before, but does not listen to SIGCHLD: either it waits for some "+
			"children that it started, and these are not among them, or what reaped was the program that it was "+
			"before an exec, such as an entrypoint script.")
	default:
		out = append(out, "SIGCHLD has its default meaning, which is to do nothing: unless it asks, it does not learn that a child died.")
	}
	switch {
	case namespaceInit(d) && isInit(d):
		out = append(out, "It is an init, whose work is to reap: it hangs, or was told not to.")
	case namespaceInit(d) && !forked(d):
		out = append(out, "As pid 1 it is given every orphan of its container: what exec probes, services that put "+
			"themselves in the background and shell jobs leave behind. A program that is no init expects none of them.")
		if kubernetes(d) {
			out = append(out, "If its image begins with an init such as tini, `command:` in the pod has replaced that init.")
		}
	case reaperAbove(d) != "":
		out = append(out, fmt.Sprintf("There is an init (%s) above it, but that reaps only what falls to it: "+
			"these children have a living parent.", reaperAbove(d)))
	}
	return out
}

// halted says what keeps it from running at all, "" if nothing does.
func halted(d *report.Detail) string {
	switch {
	case d.Tracer != 0:
		return fmt.Sprintf("Process %d traces it, and may be holding it: a process that is held reaps nothing.", d.Tracer)
	case d.State == "T":
		return "It is stopped, so it runs no code at all."
	case d.Reason == string(policy.Frozen):
		return "Its cgroup is frozen, so it runs no code at all."
	case d.State == "D":
		return "It is in uninterruptible sleep: the kernel makes it wait, mostly for a disk or a network file system."
	case d.Reason == string(policy.Dying):
		return "It is dying already, and its end is held up in the kernel."
	}
	return ""
}

// Plan says what kzr does about it and when.
func Plan(d *report.Detail, s Settings) []string {
	rule := "the settings"
	if d.Rule != "" {
		rule = "rule " + d.Rule
	}
	grace := report.Age(time.Duration(d.Grace * float64(time.Second)))
	ask := fmt.Sprintf("By %s, kzr acts on a parent that holds at least %d zombies, each for at least %s.", rule, d.Threshold, grace)
	switch {
	case Dead(d):
		return []string{"Nothing: to the dead a signal means nothing. What kzr does is about its parent."}
	case d.Reapable == 0:
		return []string{"Nothing: it holds no zombie that it could reap.", ask}
	case s.DryRun && d.Reason == string(policy.Backoff):
		return []string{ask, "It does. This is a dry run: the log shows the signals that it would have got. kzr looks at it again within the hour."}
	case d.RuleUnsure && d.Verdict != string(policy.Acting):
		return []string{fmt.Sprintf("It is spared while nobody can tell whether rule %s, which says observe, is about it: "+
			"the container's runtime has not told its name.", d.Rule)}
	case d.Reason == string(policy.ByRule) && d.Verdict != string(policy.Acting):
		return []string{fmt.Sprintf("It is spared: rule %s says observe.", d.Rule)}
	case d.Reason != "" && d.Verdict != string(policy.Acting):
		return []string{"It is spared: " + Because(policy.Reason(d.Reason)) + "."}
	case d.Verdict == string(policy.Watch) && d.DeadlineSeconds == nil:
		return []string{fmt.Sprintf("Nothing for now: it holds %d.", d.Reapable), ask}
	}
	out := []string{ask}
	switch {
	case d.Verdict == string(policy.Acting):
		out = append(out, "It does, and kzr is at work on it now.")
	case d.Verdict == string(policy.Watch) && *d.DeadlineSeconds > 0:
		out = append(out, fmt.Sprintf("It will in %s, unless it reaps.", seconds(*d.DeadlineSeconds)))
	default:
		out = append(out, "It does, now.")
	}
	if s.Observe {
		return append(out, "This kzr only watches and sends no signal. A daemon with this configuration would act: "+ladder(d, s))
	}
	out = append(out, "kzr acts: "+ladder(d, s))
	if s.DryRun {
		out = append(out, "This is a dry run: the log shows each signal, and none is sent.")
	}
	return out
}

// ladder lists the signals that this process would get.
func ladder(d *report.Detail, s Settings) string {
	var steps []string
	if s.Nudge > 0 {
		steps = append(steps, fmt.Sprintf("SIGCHLD asks it to reap, and it has %s", s.Nudge))
	}
	skipped := namespaceInit(d) && d.Signals.Term != "caught"
	if s.TermTimeout > 0 && !skipped {
		steps = append(steps, fmt.Sprintf("SIGTERM asks it to end, and it has %s", s.TermTimeout))
	}
	steps = append(steps, "SIGKILL ends it")
	out := strings.Join(steps, "; then ") + "."
	if s.TermTimeout > 0 && skipped {
		out += " (SIGTERM is left out: the kernel keeps it from a pid 1 that does not handle it.)"
	}
	if namespaceInit(d) {
		out += " With its pid 1 the container ends, and its runtime starts it again if it is told to."
	}
	return out
}

// Because finishes "It is spared: ".
func Because(r policy.Reason) string {
	switch r {
	case policy.Protected:
		return "kzr never signals pid 1, a kernel thread, itself, or the host's infrastructure"
	case policy.OutOfScope:
		return "it is in no container, and the scope is containers"
	case policy.ByRule:
		return "its rule says observe"
	case policy.Traced:
		return "it is being traced; kzr looks again every second"
	case policy.Stopped:
		return "it is stopped; kzr looks again every second"
	case policy.Frozen:
		return "its cgroup is frozen; kzr looks again every second"
	case policy.Dying:
		return "it is dying already; kzr looks again every second"
	case policy.Uninterruptible:
		return "it is in uninterruptible sleep; kzr looks again every second"
	case policy.RateLimited:
		return "the limit on kills is reached; it has to wait for its turn"
	case policy.Backoff:
		return "it was acted on a short while ago, and is left alone for a time"
	case policy.Recovered:
		return "it has begun to reap"
	case policy.IdentityChanged:
		return "it is not the process that it was"
	}
	return "kzr leaves it alone"
}

// Owner says what the owner of the process should do, the best first.
func Owner(d *report.Detail) []string {
	if Dead(d) {
		return []string{"Look at its parent: that is where it has to be reaped."}
	}
	if d.Zombies == 0 {
		return []string{"Nothing."}
	}
	var out []string
	switch {
	case d.Tracer != 0:
		out = append(out, fmt.Sprintf("Let the tracer (process %d) go.", d.Tracer))
	case d.State == "T":
		out = append(out, fmt.Sprintf("Let it run again: kill -CONT %d.", d.PID))
	case d.Reason == string(policy.Frozen):
		out = append(out, "Thaw its cgroup.")
	}
	if d.TracedZombies > 0 && d.ZombieTracer != 0 {
		out = append(out, fmt.Sprintf("Let the tracer of its children (process %d) go.", d.ZombieTracer))
	}
	if d.Reapable == 0 {
		return append(out, "Apart from that, nothing: it holds no zombie that it could reap.")
	}
	first, second := initAdvice(d), language(d)
	if forked(d) {
		first, second = second, first // an init reaps orphans, and these are none
	}
	for _, s := range []string{first, second} {
		if s != "" {
			out = append(out, s)
		}
	}
	if d.Signals.ChldBlocked {
		out = append(out, "Unblock SIGCHLD when it starts (sigprocmask), or start it from something that does not block it.")
	}
	return out
}

// initAdvice is how to put a real init in front of a container's pid 1, "" where
// that is not wanting.
func initAdvice(d *report.Detail) string {
	switch {
	case !namespaceInit(d) || isInit(d):
		return ""
	case kubernetes(d):
		return "Give the container an init: make tini or dumb-init the ENTRYPOINT of the image and pass the program in `args:`, " +
			"since `command:` replaces the ENTRYPOINT; or set `shareProcessNamespace: true` in the pod, so that the pause container reaps."
	case d.Container != nil && d.Container.Runtime == "docker":
		return "Give the container an init: `docker run --init`, or `init: true` in a compose file."
	case d.Container != nil && d.Container.Runtime == "podman":
		return "Give the container an init: `podman run --init`."
	}
	return "Put an init such as tini or dumb-init in front of it as pid 1."
}

// Inits reap whatever falls to them.
var inits = map[string]bool{
	"tini": true, "tini-static": true, "docker-init": true, "dumb-init": true, "catatonit": true, "podman-init": true,
	"s6-svscan": true, "runsvdir": true, "systemd": true, "init": true, "pause": true,
}

func isInit(d *report.Detail) bool { return inits[path.Base(d.Exe)] }

// reaperAbove is the init of its own container that is an ancestor, "" if there
// is none. Ancestors outside the container do not count: at most as many are in
// it as its pid there allows to tell, and pid 1 of the node is always one.
func reaperAbove(d *report.Detail) string {
	if d.Container == nil || namespaceInit(d) {
		return ""
	}
	for _, a := range d.Ancestors {
		if a.PID != 1 && a.Comm != "systemd" && a.Comm != "init" && inits[a.Comm] {
			return a.Comm
		}
	}
	return ""
}

// language words the advice in the terms of what the program is written in, as
// far as its executable tells; "" where the program is not at fault.
func language(d *report.Detail) string {
	first := namespaceInit(d)
	name := program(d.Exe)
	if shells[name] {
		return "In a shell script, `wait` for background jobs (`job & ... wait`), and do not `exec` into a program that does not reap " +
			"while jobs are running."
	}
	switch name {
	case "node", "nodejs", "bun", "deno":
		if first {
			return "Node.js reaps the children that it starts, and no orphans: with an init in front it is fine."
		}
		return "Node.js reaps the children that it starts while its event loop runs: look for code that blocks the loop, " +
			"and for native add-ons that fork."
	case "python", "pypy":
		return "In Python, call wait() or communicate() on every Popen (subprocess.run does), join() every multiprocessing.Process, " +
			"and os.waitpid() for every os.fork()."
	case "java":
		if first {
			return "A JVM reaps the children that it starts by ProcessBuilder, and no orphans: with an init in front it is fine."
		}
		return "A JVM reaps the children that it starts by ProcessBuilder: look for native code that forks."
	case "php", "php-fpm":
		return "In PHP, call pcntl_waitpid() for every pcntl_fork() and proc_close() for every proc_open()."
	case "ruby", "puma":
		return "In Ruby, Process.wait or Process.detach every child that spawn or fork starts."
	case "perl":
		return "In Perl, waitpid() for every child, or set $SIG{CHLD} = 'IGNORE' before the first fork."
	case "beam.smp", "erl":
		return "In Erlang, start programs through ports, not through code of its own that forks."
	case "tini", "tini-static", "docker-init", "dumb-init", "catatonit", "podman-init", "pause":
		return ""
	case "sleep", "tail", "cat":
		return fmt.Sprintf("`%s` never waits for anything: it must not be what a container runs as pid 1.", path.Base(d.Exe))
	}
	return "Wait for every child: waitpid() in C, cmd.Wait() for every cmd.Start() in Go, wait() on every Child in Rust. " +
		"If nobody needs to know how children ended, ignore SIGCHLD before the first fork (signal(SIGCHLD, SIG_IGN)): the kernel then keeps none."
}

// program is the base name of an executable without a version: python3.12 is
// python.
func program(exe string) string {
	name := path.Base(exe)
	if trimmed := strings.TrimRight(name, "0123456789.-"); trimmed != "" {
		return trimmed
	}
	return name
}

// Dead says that it is a zombie itself. A dead leader with live threads is not.
func Dead(d *report.Detail) bool { return d.State == "Z" && d.Threads <= 1 }

func namespaceInit(d *report.Detail) bool {
	return len(d.NSPID) > 1 && d.NSPID[len(d.NSPID)-1] == 1
}

func kubernetes(d *report.Detail) bool {
	return d.Container != nil && (d.Container.PodUID != "" || d.Container.Pod != "")
}

func short(id string) string { return id[:min(len(id), 12)] }

func seconds(s float64) string { return report.Age(time.Duration(s * float64(time.Second))) }

func areHeld(n int) string {
	if n == 1 {
		return "One child is"
	}
	return strconv.Itoa(n) + " children are"
}

func them(n int) string {
	if n == 1 {
		return "it"
	}
	return "them"
}

// Complete fills in the plan and the advice where they are missing.
func Complete(d *report.Detail, s Settings) {
	if len(d.Plan) == 0 {
		d.Plan = Plan(d, s)
	}
	if len(d.Advice) == 0 {
		d.Advice = Owner(d)
	}
}
