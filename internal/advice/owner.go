package advice

import (
	"fmt"
	"path"
	"strings"

	"kzr/internal/policy"
	"kzr/internal/report"
)

// Owner says what its owner can do, the best first; nil if there is nothing to do.
func Owner(d *report.Detail) []string {
	switch {
	case Dead(d):
		return []string{"See its parent: only that can reap it."}
	case dying(d):
		return ownerOfDying(d)
	case d.Zombies == 0:
		return nil
	}
	var out []string
	now := ownerOfHalted(d)
	if now != "" {
		out = append(out, now)
	}
	if d.TracedZombies > 0 && d.ZombieTracer != 0 {
		out = append(out, fmt.Sprintf("Zombies that are traced: make process %d detach or reap them.", d.ZombieTracer))
	}
	if d.Reapable == 0 || now != "" && !shim(d) {
		return out // whatever it does otherwise, it does not get to it
	}
	switch {
	case holds(d):
		return append(out, fmt.Sprintf("Make process %d wait for what it traces, or detach: only then can the parents of these zombies reap them. "+
			"If it is a debugger or strace that nobody uses any more, end it.", d.PID))
	case imposed(d):
		return append(out, ownerOfImposed(d))
	case shim(d):
		return append(out,
			fmt.Sprintf("Run kill -CHLD %d: that is harmless and makes a shim look for children to reap.", d.PID),
			"If the zombies stay, restart the pod or container that it serves, which replaces the shim. Update the container runtime.")
	case sandbox(d):
		out = append(out, "Recreate the pod"+kubectlDelete(d)+". Ending the sandbox has the same effect: all containers of the pod restart.")
		return append(out, "Update the pause image of the container runtime: current ones reap. Or stop sharing the pid namespace "+
			"(shareProcessNamespace) and give each container an init.")
	case d.PID == 1:
		return append(out, "If it is systemd, systemctl daemon-reexec restarts it in place. Otherwise plan a reboot.")
	case isInit(d) && namespaceInit(d):
		return append(out, restart(d), "An init that does not reap is stuck or misconfigured: check its options and version.")
	}
	if r := d.ReapInside; r != nil && r.Times >= 2 {
		out = append(out, fmt.Sprintf("Tell its owner: kzr has reaped inside it %d times and will have to again. "+
			"Nobody is killed for that, but only a change of the program or its image ends the leak:", r.Times))
	}
	first, second := initAdvice(d), programAdvice(d)
	switch {
	case own(d):
		first = "" // an init reaps orphans, and these are none
	case forked(d):
		first, second = second, first // they seem to be none
	}
	for _, s := range []string{first, second} {
		if s != "" {
			out = append(out, s)
		}
	}
	if d.Signals.ChldBlocked {
		out = append(out, "Unblock SIGCHLD when it starts (sigprocmask), or start it from a program that does not block it.")
	}
	if s := restart(d); s != "" && !namespaceInit(d) {
		out = append(out, "Until then: "+strings.ToLower(s[:1])+s[1:])
	}
	return out
}

// ownerOfHalted is for a process that does not get to reap at the moment, in the order of
// [halted]; "" for any other.
func ownerOfHalted(d *report.Detail) string {
	switch {
	case d.Tracer != 0 && d.TracerIsChild:
		return fmt.Sprintf("End the child that traces it: kill -KILL %d.", d.Tracer)
	case d.Tracer != 0:
		return fmt.Sprintf("End the tracer or make it detach (process %d).", d.Tracer)
	case d.State == "T":
		return fmt.Sprintf("Let it run again: kill -CONT %d.", d.PID)
	case d.Reason == string(policy.Frozen):
		return "Thaw its cgroup (docker unpause, or the cgroup's freezer), or find out who froze it."
	case d.State == "D" && vforks(d):
		return "Usually nothing: it goes on once its vforked child exits or executes a program. If that child hangs, end it."
	case d.State == "D":
		return fmt.Sprintf("Find out what it waits for: cat /proc/%d/stack; look at the disk or the network file system behind that. "+
			"It can reap once that is over.", d.PID)
	case d.WaitsFor != nil:
		return fmt.Sprintf("Usually nothing: it reaps once process %d exits. If that one hangs, end it.", d.WaitsFor.PID)
	case d.Reason == string(policy.Waiting):
		return "Usually nothing: it reaps once the child that it waits for exits. If none does, see which of them hangs."
	}
	return ""
}

// ownerOfImposed says whom to look at: only another child of the same parent can have put
// children there.
func ownerOfImposed(d *report.Detail) string {
	const most = 4
	var live []string
	for _, c := range d.Children[:min(len(d.Children), most)] {
		live = append(live, named(c))
	}
	text := "Leave this process as it is and look at the one that put them there: it is another child of this process"
	switch {
	case len(live) == 0:
		return text + ", and has exited. The names of the zombies may tell what it was."
	case d.LiveChildren > len(live):
		live = append(live, fmt.Sprintf("%d more", d.LiveChildren-len(live)))
	}
	return text + ", or was. Those that are alive: " + enumerate(live) + ". It calls clone with CLONE_PARENT and has to stop doing so, or to end."
}

// ownerOfDying is for a process that cannot end.
func ownerOfDying(d *report.Detail) []string {
	var out []string
	for _, b := range d.BlockedBy {
		if b.Trace {
			out = append(out, fmt.Sprintf("Make process %d (%s) detach, or end it.", b.PID, b.Comm))
		} else {
			out = append(out, fmt.Sprintf("Make process %d (%s) reap: kill -CHLD %d. If that does not help, restart it.", b.PID, b.Comm, b.PID))
		}
	}
	if out == nil {
		out = append(out, "Wait, or find out what it waits for: cat /proc/"+fmt.Sprint(d.PID)+"/stack.")
	}
	return out
}

// restart says how to restart what it is part of, "" if kzr does not know.
func restart(d *report.Detail) string {
	switch {
	case kubernetes(d):
		return "Restart the pod" + kubectlDelete(d) + "."
	case d.Container != nil && d.Container.Runtime == "docker", d.Container != nil && d.Container.Runtime == "podman":
		name := d.Container.Name
		if name == "" {
			name = short(d.Container.ID)
		}
		return fmt.Sprintf("Restart the container: %s restart %s.", d.Container.Runtime, name)
	case d.Container != nil || len(d.NSPID) > 1:
		return "Restart the container."
	}
	unit, user := d.Unit, ""
	if manager, own, ok := strings.Cut(d.Unit, "/"); ok { // user@1000.service/x.service
		user = strings.TrimSuffix(strings.TrimPrefix(manager, "user@"), ".service")
		unit = own
	}
	switch {
	case !strings.HasSuffix(unit, ".service") || strings.HasPrefix(unit, "user@"):
		return ""
	case user != "":
		return fmt.Sprintf("Restart the service: systemctl --user --machine=%s@ restart %s.", user, unit)
	}
	return fmt.Sprintf("Restart the service: systemctl restart %s.", unit)
}

func kubectlDelete(d *report.Detail) string {
	c := d.Container
	if c.Pod == "" || c.Namespace == "" {
		return ""
	}
	return fmt.Sprintf(" (kubectl delete pod -n %s %s)", c.Namespace, c.Pod)
}

// initAdvice is how to put an init in front of a container's pid 1, "" where that would
// not help.
func initAdvice(d *report.Detail) string {
	switch {
	case !namespaceInit(d) || isInit(d):
		return ""
	case kubernetes(d):
		return "Give the container an init: make tini or dumb-init the ENTRYPOINT of the image and pass the program in `args:` " +
			"(`command:` replaces the ENTRYPOINT), or set `shareProcessNamespace: true` in the pod spec, so that the pause container reaps."
	case d.Container != nil && d.Container.Runtime == "docker":
		return "Give the container an init: docker run --init, or `init: true` in a compose file."
	case d.Container != nil && d.Container.Runtime == "podman":
		return "Give the container an init: podman run --init."
	}
	return "Run an init such as tini or dumb-init as pid 1, with this program as its child."
}

// programAdvice is in the terms of what the program is, as far as its executable tells;
// "" if the program is not at fault.
func programAdvice(d *report.Detail) string {
	first := namespaceInit(d) && !own(d)
	name := program(d)
	if shells[name] {
		return "In the shell script, wait for background jobs (job & ... wait), and do not exec another program while jobs are running."
	}
	switch name {
	case "node", "nodejs", "bun", "deno":
		if first {
			return "Node.js reaps the children that it starts, but not orphans: an init is all that it needs."
		}
		return "Node.js reaps its children while its event loop runs: look for code that blocks the loop, and for native add-ons that fork."
	case "python", "pypy":
		return "In Python, call wait() or communicate() on every Popen (subprocess.run does), join() every multiprocessing.Process, " +
			"and os.waitpid() after every os.fork()."
	case "java":
		if first {
			return "A JVM reaps the children that it starts with ProcessBuilder, but not orphans: an init is all that it needs."
		}
		return "A JVM reaps the children that it starts with ProcessBuilder: look for native code that forks."
	case "php", "php-fpm":
		return "In PHP, call pcntl_waitpid() after every pcntl_fork() and proc_close() after every proc_open()."
	case "ruby", "puma":
		return "In Ruby, call Process.wait or Process.detach for every child that spawn or fork starts."
	case "perl":
		return "In Perl, call waitpid() for every child, or set $SIG{CHLD} = 'IGNORE' before the first fork."
	case "beam.smp", "erl":
		return "In Erlang, start programs through ports, not from native code that forks."
	case "sleep", "tail", "cat", "pause":
		if own(d) {
			return fmt.Sprintf("%s never waits for children: what ran in this process before it, such as a shell script, started these. "+
				"There, wait for them, or do not exec %s.", name, name)
		}
		return fmt.Sprintf("%s never waits for children: do not run it as pid 1 of a container without an init.", name)
	case "cron", "crond", "sshd", "dropbear", "inetd", "supervise":
		if own(d) {
			return fmt.Sprintf("%s reaps the children that it starts, but left these: it hangs, or is misconfigured. Restart it.", name)
		}
		return fmt.Sprintf("%s reaps the children that it starts, but not orphans of theirs.", name)
	}
	if isInit(d) {
		return ""
	}
	return fmt.Sprintf("In %s, wait for every child: waitpid() in C, cmd.Wait() after cmd.Start() in Go, wait() on every Child in Rust. "+
		"If exit statuses do not matter, ignore SIGCHLD before the first fork (signal(SIGCHLD, SIG_IGN)): then there are no zombies.",
		orElse(path.Base(d.Exe), "its code"))
}

func orElse(name, other string) string {
	if name == "." || name == "/" || name == "" {
		return other
	}
	return name
}
