package advice

import (
	"cmp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/charmbracelet/x/ansi"

	"kzr/internal/config"
	"kzr/internal/policy"
	"kzr/internal/report"
	"kzr/internal/task"
)

// leaker is pid 1 of a container of a pod, in Node.js, that never waits, changed
// by f.
func leaker(f ...func(*report.Detail)) *report.Detail {
	never := false
	left := 23.0
	d := &report.Detail{
		Parent: report.Parent{
			PID: 4242, StartTime: 99, Comm: "node", Exe: "/usr/local/bin/node", Cmdline: []string{"node", "server.js"}, UID: 1000,
			State: "S", Zombies: 60, Reapable: 60, OldestSeconds: new(float64(312)), Verdict: "watch", DeadlineSeconds: &left,
			Container: &task.Container{Runtime: "containerd", ID: strings.Repeat("ab", 32), PodUID: "u-1", Pod: "web-1", Namespace: "shop", Name: "app", Image: "reg/web:1"},
		},
		Threads: 11, NSPID: []int{4242, 1}, HasReaped: &never,
		Signals: report.Signals{Chld: "default", Term: "default"},
		Ancestors: []report.Relative{
			{PID: 900, Comm: "containerd-shim", State: "S"}, {PID: 1, Comm: "systemd", State: "S"},
		},
		Sample:    []report.ZombieChild{{PID: 5000, Comm: "sh"}, {PID: 5001, Comm: "curl"}, {PID: 5002, Comm: "sh"}},
		Threshold: 50, Grace: 60,
	}
	for _, f := range f {
		f(d)
	}
	return d
}

func onHost(d *report.Detail) {
	d.Container, d.NSPID, d.Unit = nil, []int{4242}, "cron.service"
}
func inside(d *report.Detail) { d.NSPID = []int{4242, 7} }
func exe(s string) func(*report.Detail) {
	return func(d *report.Detail) { d.Exe = s }
}
func spared(r policy.Reason) func(*report.Detail) {
	return func(d *report.Detail) { d.Verdict, d.Reason = "spared", string(r) }
}

// forkedAll says that it is known to have forked all of its zombies.
func forkedAll(d *report.Detail) { d.AdoptedKnown = true }
func imposedOn(d *report.Detail) {
	d.Verdict, d.Reason, d.Foreign = "spared", "foreign", 58
	d.Children, d.LiveChildren = []report.Relative{{PID: 4300, Comm: "worker"}}, 1
}
func tracing(d *report.Detail)              { d.HeldZombies = 60 }
func inState(s string) func(*report.Detail) { return func(d *report.Detail) { d.State = s } }
func waits(d *report.Detail)                { yes := true; d.HasReaped = &yes }

// steps are those of a ladder for d as it is.
func steps(d *report.Detail) {
	f := &task.Facts{NSPID: d.NSPID}
	if d.Signals.Term == "caught" {
		f.SigCaught = 1 << 14
	}
	m := policy.Means{Nudge: 2 * time.Second, TermTimeout: 10 * time.Second, Reap: cmp.Or(config.Reap(d.Reap), config.ReapAdopted), Reapable: d.Reapable, Adopted: d.Adopted}
	if d.ReapInside != nil {
		m.Refusal = d.ReapInside.Refusal
	}
	d.Ladder = Steps(policy.Ladder(f, m))
}

func adopted(d *report.Detail) { d.Adopted = 58 }
func noPod(runtime string) func(*report.Detail) {
	return func(d *report.Detail) { d.Container.Runtime, d.Container.PodUID, d.Container.Pod = runtime, "", "" }
}
func argv(args ...string) func(*report.Detail) {
	return func(d *report.Detail) { d.Cmdline = args }
}
func shimOf(d *report.Detail) {
	onHost(d)
	d.Exe, d.Comm, d.Reason, d.Unit = "/usr/bin/containerd-shim-runc-v2", "containerd-shim", "protected", ""
	d.Cmdline = []string{d.Exe, "-namespace", "k8s.io", "-id", strings.Repeat("cd", 32), "-address", "/run/containerd/containerd.sock"}
	d.ZombieOrigins = []report.Origin{{Namespace: "shop", Pod: "web-1", Container: "app", Count: 58}, {ContainerID: strings.Repeat("ef", 32), Count: 2}}
}
func pause(d *report.Detail) {
	d.Exe, d.Comm, d.Container.Name, d.Container.Image = "/pause", "pause", "", ""
}
func dyingInit(d *report.Detail) {
	d.Exiting, d.Zombies, d.Reapable, d.Reason = true, 0, 0, "dying"
	d.BlockedBy = []report.Blocker{{PID: 900, Comm: "containerd-shim", Dead: 3}, {PID: 77, Comm: "gdb", Dead: 1, Trace: true}}
}

// Each case says what a part of the explanation must tell, and must not.
func TestExplain(t *testing.T) {
	with := func(s Settings) func(*report.Detail) []string {
		return func(d *report.Detail) []string { steps(d); return Plan(d, s) }
	}
	plan := with(Settings{})
	whole := func(d *report.Detail) (all []string) {
		steps(d)
		Complete(d, Settings{})
		for _, s := range Explain(d) {
			all = append(append(all, s.Title), s.Sentences...)
		}
		return all
	}
	until := time.Date(2026, 3, 4, 12, 30, 0, 0, time.Local)
	tests := []struct {
		name string
		part func(*report.Detail) []string
		d    *report.Detail
		want []string
		not  []string
	}{
		{"pod", What, leaker(), []string{"Process 4242 (node) is pid 1 of container app in pod shop/web-1 (containerd). Its user is uid 1000."}, nil},
		{"pod without names", What, leaker(func(d *report.Detail) { d.Container.Pod, d.Container.Name = "", "" }), []string{"container abababababab", "uid u-1"}, nil},
		{"unit", What, leaker(onHost), []string{"runs in cron.service"}, []string{"container"}},
		{"nothing in particular", What, leaker(onHost, func(d *report.Detail) { d.Unit = "" }), []string{"runs outside any container"}, nil},
		{"a zombie", What, leaker(func(d *report.Detail) { d.State, d.Threads = "Z", 1 }), []string{"is a zombie. Its parent, process 900 (containerd-shim), has not reaped it."}, nil},
		{"a dead leader is no zombie", What, leaker(func(d *report.Detail) { d.LeaderDead = true }), []string{"pid 1 of container", "Its main thread has exited, which is why ps shows it as a zombie; 10 other threads are still running."}, []string{"Its parent"}},
		{"a shim", What, leaker(shimOf), []string{"belongs to a container runtime (containerd-shim-runc-v2) and serves container cdcdcdcdcdcd"}, []string{"outside any container"}},
		{"a tenant's shim", What, leaker(exe("/usr/bin/containerd-shim-runc-v2")), []string{"pid 1 of container app"}, []string{"runtime"}},
		{"pause", What, leaker(pause), []string{"the sandbox (pause) process of pod shop/web-1"}, nil},

		{"how many, how long, what", Zombies, leaker(), []string{"It has 60 zombies that it could reap, the oldest for 5m12s.", "sh, curl"}, []string{"forked", "adopted"}},
		{"adopted", Zombies, leaker(adopted), []string{"58 of them are adopted: another process forked them"}, nil},
		{"all adopted", Zombies, leaker(func(d *report.Detail) { d.Adopted = 60 }), []string{"all of them are adopted"}, nil},
		{"one", Zombies, leaker(func(d *report.Detail) { d.Zombies, d.Reapable, d.Sample = 1, 1, d.Sample[:1] }), []string{"It has 1 zombie that it could reap, for 5m12s.", "It was sh"}, []string{"oldest"}},
		{"age not known", Zombies, leaker(func(d *report.Detail) { d.OldestSeconds = nil }), []string{"It has 60 zombies that it could reap."}, []string{"for "}},
		{"none", Zombies, leaker(func(d *report.Detail) { d.Zombies, d.Reapable, d.Sample = 0, 0, nil }), []string{"It has no zombies."}, nil},
		{"held by a tracer", Zombies, leaker(func(d *report.Detail) { d.TracedZombies, d.ZombieTracer = 3, 77 }), []string{"3 more zombies are held by process 77, which traces them"}, nil},
		{"dead leaders", Zombies, leaker(func(d *report.Detail) { d.DeadLeaders = 1 }), []string{"1 more child is shown as Z, but other threads of it are still running"}, nil},
		{"forked all", Zombies, leaker(forkedAll), []string{"none is adopted: it forked them itself"}, nil},
		{"put on it", Zombies, leaker(imposedOn), []string{"58 of them were put on it (CLONE_PARENT) by another process"}, nil},
		{"traced by it", Zombies, leaker(tracing), []string{"60 of them are children of other processes and traced by this one."}, nil},
		{"its own forks", Zombies, leaker(func(d *report.Detail) { d.Sample = []report.ZombieChild{{Comm: "node"}} }), []string{"it forked them"}, nil},
		{"a shim's come from pods", Zombies, leaker(shimOf), []string{"They came from shop/web-1/app (58) and efefefefefef (2)."}, nil},
		{"growth", Zombies, leaker(func(d *report.Detail) { d.RatePerHour = new(120.0) }), []string{"about 120 zombies per hour"}, nil},
		{"spread", Zombies, leaker(func(d *report.Detail) {
			d.WorkloadTotal = &report.Workload{Name: "shop/web-1/app", Zombies: 900, Parents: 30, RatePerHour: new(600.0)}
		}), []string{"spread over its workload, shop/web-1/app: 900 under 30 parents, about 600 more per hour."}, nil},
		{"filling", Zombies, leaker(func(d *report.Detail) {
			d.Pids = &report.PidsLimit{Current: 500, Limit: 1000}
			d.WorkloadTotal = &report.Workload{Parents: 1, FullInSeconds: new(7200.0)}
		}), []string{"uses 500 of 1000 pids (50%); at this rate it is full in 2h00m."}, []string{"spread"}},
		{"full", Zombies, leaker(func(d *report.Detail) { d.Pids = &report.PidsLimit{Current: 1000, Limit: 1000} }), []string{"it cannot fork"}, nil},
		{"room enough", Zombies, leaker(func(d *report.Detail) { d.Pids = &report.PidsLimit{Current: 100, Limit: 1000} }), nil, []string{"pids"}},

		{"never waits", Why, leaker(), []string{"has never reaped a child", "every orphan of its container", "`command:`"}, nil},
		{"blocked", Why, leaker(func(d *report.Detail) { d.Signals.ChldBlocked = true }), []string{"SIGCHLD is blocked"}, nil},
		{"blocked, but has waited", Why, leaker(waits, func(d *report.Detail) { d.Signals.ChldBlocked = true }), []string{"SIGCHLD is blocked", "has reaped children before"}, nil},
		{"ignored", Why, leaker(func(d *report.Detail) { d.Signals.Chld = "ignored" }), []string{"ignores SIGCHLD", "exit afterwards"}, nil},
		{"handler that never waits", Why, leaker(func(d *report.Detail) { d.Signals.Chld = "caught" }), []string{"handler does not call wait"}, nil},
		{"handler that waits once", Why, leaker(waits, func(d *report.Detail) { d.Signals.Chld = "caught" }), []string{"once per signal"}, nil},
		{"waits for some", Why, leaker(waits), []string{"has reaped children before", "does not handle SIGCHLD", "before an exec"}, []string{"never"}},
		{"unknown", Why, leaker(func(d *report.Detail) { d.HasReaped = nil }), []string{"unless it calls wait"}, []string{"never"}},
		{"stopped", Why, leaker(func(d *report.Detail) { d.State = "T" }), []string{"It is stopped"}, []string{"SIGCHLD", "orphan"}},
		{"traced", Why, leaker(func(d *report.Detail) { d.Tracer = 88 }), []string{"traced by process 88"}, []string{"own child"}},
		{"traced by its child", Why, leaker(func(d *report.Detail) { d.Tracer, d.TracerIsChild = 88, true }), []string{"traced by its own child, process 88: no debugger"}, nil},
		{"frozen", Why, leaker(spared(policy.Frozen)), []string{"frozen"}, nil},
		{"uninterruptible", Why, leaker(func(d *report.Detail) { d.State = "D" }), []string{"uninterruptible"}, []string{"SIGKILL"}},
		{"vfork", Why, leaker(func(d *report.Detail) { d.State, d.WChan = "D", "kernel_clone" }), []string{"in the kernel function kernel_clone", "vforked child", "SIGKILL works"}, nil},
		{"NFS", Why, leaker(func(d *report.Detail) { d.State, d.WChan = "D", "rpc_wait_bit_killable" }), []string{"SIGKILL works"}, []string{"vfork"}},
		{"disk", Why, leaker(func(d *report.Detail) { d.State, d.WChan = "D", "io_schedule" }), []string{"io_schedule", "SIGKILL takes effect only when that ends"}, nil},
		{"waits for one child", Why, leaker(func(d *report.Detail) { d.WaitsFor = &report.Relative{PID: 4300, Comm: "sleep"} }), []string{"waiting for one particular child, process 4300 (sleep)"}, []string{"never", "orphan"}},
		{"waits for one that is not known", Why, leaker(spared(policy.Waiting)), []string{"waiting for one of its children, or may be"}, []string{"never", "orphan"}},
		{"docker has no command:", Why, leaker(noPod("docker")), []string{"orphan"}, []string{"`command:`"}},
		{"an init that does not", Why, leaker(exe("/sbin/tini")), []string{"It is an init"}, []string{"orphan of its container"}},
		{"below an init", Why, leaker(inside, func(d *report.Detail) { d.Ancestors[0].Comm = "tini" }), []string{"There is an init (tini) above it"}, []string{"orphan"}},
		{"a subreaper", Why, leaker(inside, func(d *report.Detail) { d.Subreaper = true }), []string{"subreaper"}, nil},
		{"its own forks are no orphans", Why, leaker(func(d *report.Detail) { d.Sample = []report.ZombieChild{{Comm: "node"}} }), nil, []string{"orphan"}},
		{"nothing to reap", Why, leaker(func(d *report.Detail) { d.Reapable = 0 }), nil, []string{"SIGCHLD"}},
		{"forked all", Why, leaker(forkedAll), []string{"has never reaped a child"}, []string{"orphan", "`command:`", "adopted"}},
		{"forked all, with a handler", Why, leaker(forkedAll, waits, func(d *report.Detail) { d.Signals.Chld = "caught" }), []string{"once per signal"}, []string{"adopted"}},
		{"put on it", Why, leaker(imposedOn), []string{"another process put them on it", "may not signal it"}, []string{"orphan", "never reaped"}},
		{"most its own", Why, leaker(imposedOn, func(d *report.Detail) { d.Reason, d.Foreign = "", 2 }), []string{"never reaped"}, []string{"put them on it"}},
		{"traced by it", Why, leaker(tracing), []string{"It traces these processes"}, []string{"orphan", "never reaped"}},
		{"a shim", Why, leaker(shimOf), []string{"exec'd into a container"}, []string{"does not handle"}},
		{"a dying init", Why, leaker(dyingInit), []string{"3 dead processes of its pid namespace that process 900 (containerd-shim) has not reaped", "1 dead process of its pid namespace that process 77 (gdb) traces"}, nil},

		{"due, and TERM would be lost", plan, leaker(), []string{"at least 50 zombies, each for at least 1m00s", "eligible in 23s, unless it reaps",
			"SIGCHLD, then 2s to reap; SIGKILL.", "Skipped: reaping inside it (none of its zombies is known to be adopted); SIGTERM (the kernel drops it"}, nil},
		{"adopted ones", plan, leaker(adopted), []string{"SIGCHLD, then 2s to reap; reaping the 58 adopted zombies inside it, which does not end it; SIGKILL."}, []string{"none of its"}},
		{"adopted ones, refused", plan, leaker(adopted, func(d *report.Detail) {
			d.ReapInside = &report.ReapInside{Refusal: "its seccomp filter forbids wait4"}
		}), []string{"Skipped: reaping inside it (its seccomp filter forbids wait4)"}, []string{"reaping the 58"}},
		{"reaped twice", plan, leaker(adopted, func(d *report.Detail) { d.ReapInside = &report.ReapInside{Possible: true, Times: 2} }), []string{"2 times already", "owner should be told"}, nil},
		{"all of them", plan, leaker(func(d *report.Detail) { d.Reap = "all" }), []string{"reaping the 60 zombies inside it", "takes the exit statuses of its own children too"}, []string{"adopted"}},
		{"what only a daemon knows", with(Settings{Observe: true}), leaker(adopted), []string{"reaping its adopted zombies inside it, if it has any and the kernel allows it"}, []string{"Skipped: reaping", "58"}},
		{"pid 1 with a handler gets TERM", plan, leaker(func(d *report.Detail) { d.Signals.Term = "caught" }), []string{"SIGTERM, then 10s to exit; SIGKILL."}, []string{"SIGTERM (the kernel"}},
		{"not pid 1", plan, leaker(inside), []string{"SIGTERM, then 10s"}, []string{"SIGTERM ("}},
		{"rule", plan, leaker(func(d *report.Detail) { d.Rule = "tenants" }), []string{"Rule tenants: at least"}, nil},
		{"too few", plan, leaker(func(d *report.Detail) { d.Reapable, d.DeadlineSeconds = 12, nil }), []string{"It has 12: nothing happens now.", "at least 50"}, []string{"SIGKILL"}},
		{"too few, but growing", plan, leaker(func(d *report.Detail) { d.Reapable, d.DeadlineSeconds, d.RatePerHour = 20, nil, new(60.0) }), []string{"eligible in about 31m00s"}, nil},
		{"target", plan, leaker(func(d *report.Detail) { d.Verdict, d.DeadlineSeconds = "target", new(0.0) }), []string{"It meets the rule now."}, nil},
		{"acting", plan, leaker(func(d *report.Detail) { d.Verdict = "acting" }), []string{"acting on it now"}, nil},
		{"a limit", plan, leaker(spared(policy.RateLimited), func(d *report.Detail) {
			d.DeadlineSeconds, d.Until = new(0.0), &until
			d.LimitsUsed = []report.LimitUsed{{Name: "perWorkload", Since: until.Add(-time.Hour), Until: until}}
		}), []string{"the limit on kills is used up, until 2026-03-04 12:30:00", "limits.perWorkload, since 2026-03-04 11:30:00", "go on"}, nil},
		{"acting, at a limit", plan, leaker(func(d *report.Detail) {
			d.Verdict, d.Reason, d.Until, d.HeldUp = "acting", "rate_limited", &until, "limits.killsPerMinute (6) used up since 12:29:00; next kill at 12:30:00"
			d.LimitsUsed = []report.LimitUsed{{Name: "killsPerMinute", Since: until.Add(-time.Minute), Until: until}}
		}), []string{"kzr is acting on it now; its next step is held up until 2026-03-04 12:30:00: limits.killsPerMinute (6) used up since 12:29:00",
			"limits.killsPerMinute, since 2026-03-04 12:29:00"}, nil},
		{"acting, after another", plan, leaker(func(d *report.Detail) {
			d.Verdict, d.Reason, d.HeldUp = "acting", "rate_limited", "waiting for pid 7 of the same workload to exit"
		}), []string{"its next step is held up: waiting for pid 7 of the same workload to exit."}, []string{"until 2", "limit on kills"}},
		{"a pause", plan, leaker(spared(policy.Backoff), func(d *report.Detail) {
			d.DeadlineSeconds, d.Until = new(0.0), &until
			d.LimitsUsed = []report.LimitUsed{{Name: "pause", Since: until.Add(-time.Minute), Until: until}}
		}), []string{"kzr has recently acted on it or its workload, until 2026", "the pause between kills in one workload, since 2026-03-04 12:29:00"}, nil},
		{"waiting", plan, leaker(spared(policy.Waiting), func(d *report.Detail) { d.DeadlineSeconds = new(0.0) }), []string{"It is spared: it is waiting for one child", "or when a pid limit is almost reached"}, nil},
		{"pressure", plan, leaker(func(d *report.Detail) { d.Verdict, d.DeadlineSeconds, d.Pressure = "target", new(0.0), "workload" }), []string{"A pid limit of its workload is almost reached"}, []string{"at least 50"}},
		{"dry run", with(Settings{DryRun: true}), leaker(), []string{"dry-run"}, nil},
		{"dry run done", with(Settings{DryRun: true}), leaker(spared(policy.Backoff), func(d *report.Detail) { d.DeadlineSeconds = new(0.0) }), []string{"dry run has been through the steps"}, []string{"acted on"}},
		{"only watching", with(Settings{Observe: true}), leaker(), []string{"sends no signals", "daemon with this configuration would"}, nil},
		{"a zombie", plan, leaker(func(d *report.Detail) { d.State, d.Threads = "Z", 1 }), []string{"Its parent is what counts"}, []string{"SIGKILL"}},
		{"protected", plan, leaker(shimOf), []string{"only reported"}, []string{"SIGKILL", "eligible"}},
		{"observed", plan, leaker(spared(policy.ByRule), func(d *report.Detail) { d.Rule = "keep" }), []string{"rule keep says observe"}, []string{"SIGKILL"}},
		{"perhaps observed, by what it executes", plan, leaker(spared(policy.ByRule), func(d *report.Detail) { d.Rule, d.RuleUnsure, d.Exe = "keep", true, "" }), []string{"may match it; its executable is not known yet"}, nil},
		{"perhaps observed", plan, leaker(spared(policy.ByRule), func(d *report.Detail) { d.Rule, d.RuleUnsure = "keep", true }), []string{"may match it", "not known yet"}, []string{"SIGKILL"}},
		{"dying", plan, leaker(dyingInit), []string{"kzr sends no further signal: it is already exiting, and waits for process 900 (containerd-shim) to reap 3 dead processes and process 77 (gdb) to detach from 1 dead process."}, []string{"SIGKILL", "Nothing"}},
		{"dying, nobody knows why", plan, leaker(func(d *report.Detail) { d.Exiting = true }), []string{"waits for all processes of its pid namespace to be gone"}, nil},

		{"a kill's toll", Impact, leaker(func(d *report.Detail) {
			d.KillTakes = &report.KillTakes{Processes: 12, Sessions: []report.Relative{{PID: 5, Comm: "bash"}, {PID: 6, Comm: "make"}}}
		}), []string{"12 other processes of its container end with it", "5 (bash) and 6 (make)", "The container ends"}, []string{"another parent"}},
		{"a pod", Impact, leaker(pause, func(d *report.Detail) {
			d.KillTakes = &report.KillTakes{Processes: 1, Containers: []string{"app", "sidecar"}}
		}), []string{"The whole pod ends with it, with the containers app and sidecar", "1 other process"}, []string{"The container ends"}},
		{"orphans", Impact, leaker(inside, func(d *report.Detail) { d.KillTakes = &report.KillTakes{Orphans: 3} }), []string{"3 live children live on and get another parent"}, []string{"container"}},
		{"never killed", Impact, leaker(shimOf, func(d *report.Detail) { d.KillTakes = &report.KillTakes{Orphans: 3} }), nil, []string{"child"}},

		{"pod", Owner, leaker(), []string{"ENTRYPOINT", "shareProcessNamespace", "Node.js"}, []string{"docker run"}},
		{"docker", Owner, leaker(noPod("docker")), []string{"docker run --init"}, []string{"shareProcessNamespace", "kubectl"}},
		{"podman", Owner, leaker(noPod("podman")), []string{"podman run --init"}, nil},
		{"not pid 1 needs no init", Owner, leaker(inside), []string{"event loop", "kubectl delete pod -n shop web-1"}, []string{"tini"}},
		{"python of any version", Owner, leaker(onHost, exe("/usr/bin/python3.12")), []string{"Popen", "os.waitpid", "systemctl restart cron.service"}, nil},
		{"a user's unit", Owner, leaker(onHost, func(d *report.Detail) { d.Unit = "user@1000.service/app.service" }), []string{"systemctl --user --machine=1000@ restart app.service"}, nil},
		{"a scope cannot be restarted", Owner, leaker(onHost, func(d *report.Detail) { d.Unit = "session-3.scope" }), nil, []string{"systemctl"}},
		{"java", Owner, leaker(onHost, exe("/opt/jdk-21/bin/java")), []string{"ProcessBuilder"}, nil},
		{"bash", Owner, leaker(onHost, exe("/usr/bin/bash")), []string{"job & ... wait"}, nil},
		{"go and the rest", Owner, leaker(onHost, exe("/srv/agent")), []string{"In agent,", "cmd.Wait()", "waitpid()", "SIG_IGN"}, nil},
		{"sleep as pid 1", Owner, leaker(exe("/bin/sleep")), []string{"sleep never waits"}, nil},
		{"busybox sleep", Owner, leaker(exe("/bin/busybox"), argv("sleep", "inf")), []string{"sleep never waits"}, []string{"shell"}},
		{"busybox by name", Owner, leaker(exe("/bin/busybox"), argv("busybox", "crond", "-f")), []string{"crond reaps"}, []string{"shell"}},
		{"busybox sh", Owner, leaker(exe("/bin/busybox"), argv("/bin/sh", "/start.sh")), []string{"shell script"}, nil},
		{"blocked", Owner, leaker(func(d *report.Detail) { d.Signals.ChldBlocked = true }), []string{"Unblock SIGCHLD"}, nil},
		{"stopped", Owner, leaker(inState("T")), []string{"kill -CONT 4242"}, []string{"tini", "Node.js"}},
		{"traced", Owner, leaker(func(d *report.Detail) { d.Tracer = 88 }), []string{"(process 88)"}, []string{"tini", "Node.js"}},
		{"traced by its child", Owner, leaker(func(d *report.Detail) { d.Tracer, d.TracerIsChild = 88, true }), []string{"kill -KILL 88"}, []string{"tini", "Node.js"}},
		{"frozen", Owner, leaker(spared(policy.Frozen)), []string{"Thaw its cgroup"}, []string{"tini", "Node.js"}},
		{"uninterruptible", Owner, leaker(inState("D")), []string{"/proc/4242/stack", "network file system"}, []string{"tini", "Node.js"}},
		{"in vfork", Owner, leaker(inState("D"), func(d *report.Detail) { d.WChan = "kernel_clone" }), []string{"vforked child"}, []string{"tini", "Node.js", "disk"}},
		{"a stopped shim", Owner, leaker(shimOf, inState("T")), []string{"kill -CONT 4242", "kill -CHLD 4242", "restart the pod"}, nil},
		{"forked all", Owner, leaker(forkedAll), []string{"Node.js reaps its children while its event loop runs"}, []string{"ENTRYPOINT", "orphans", "an init"}},
		{"a sleep after an exec", Owner, leaker(forkedAll, exe("/bin/sleep")), []string{"do not exec sleep"}, []string{"an init"}},
		{"crond that hangs", Owner, leaker(forkedAll, exe("/usr/sbin/crond")), []string{"it hangs"}, []string{"orphans"}},
		{"put on it", Owner, leaker(imposedOn), []string{"Leave this process as it is", "Those that are alive: 4300 (worker)"}, []string{"tini", "Node.js"}},
		{"put on it by one that is gone", Owner, leaker(imposedOn, func(d *report.Detail) { d.Children, d.LiveChildren = nil, 0 }), []string{"has exited"}, []string{"alive"}},
		{"traced by it", Owner, leaker(tracing), []string{"Make process 4242 wait for what it traces, or detach"}, []string{"tini", "Node.js"}},
		{"waits for one child", Owner, leaker(func(d *report.Detail) { d.WaitsFor = &report.Relative{PID: 4300, Comm: "sleep"} }), []string{"once process 4300 exits"}, []string{"tini", "Node.js"}},
		{"waits for one that is not known", Owner, leaker(spared(policy.Waiting)), []string{"once the child that it waits for exits"}, []string{"tini", "Node.js"}},
		{"nothing leaks", Owner, leaker(func(d *report.Detail) { d.Zombies, d.Reapable = 0, 0 }), nil, []string{"tini", "Nothing"}},
		{"only held ones", Owner, leaker(func(d *report.Detail) { d.Zombies, d.Reapable, d.TracedZombies, d.ZombieTracer = 2, 0, 2, 77 }), []string{"process 77"}, []string{"tini", "Node.js"}},
		{"reaped inside twice", Owner, leaker(func(d *report.Detail) { d.ReapInside = &report.ReapInside{Possible: true, Times: 2} }),
			[]string{"Tell its owner: kzr has reaped inside it 2 times", "tini"}, nil},
		{"reaped inside once", Owner, leaker(func(d *report.Detail) { d.ReapInside = &report.ReapInside{Possible: true, Times: 1} }), []string{"tini"}, []string{"Tell its owner"}},
		{"a shim", Owner, leaker(shimOf), []string{"kill -CHLD 4242", "replaces the shim"}, []string{"tini", "SIG_IGN"}},
		{"pause", Owner, leaker(pause), []string{"Recreate the pod (kubectl delete pod -n shop web-1)", "all containers of the pod"}, []string{"shareProcessNamespace: true", "ENTRYPOINT"}},
		{"OpenShift's pod", Owner, leaker(pause, exe("/usr/bin/pod")), []string{"Recreate the pod"}, []string{"ENTRYPOINT"}},
		{"systemd in a container", Owner, leaker(exe("/usr/lib/systemd/systemd")), []string{"Restart the pod", "stuck or misconfigured"}, []string{"tini", "waitpid"}},
		{"the node's systemd", Owner, leaker(onHost, exe("/usr/lib/systemd/systemd"), func(d *report.Detail) { d.PID = 1 }), []string{"daemon-reexec"}, []string{"waitpid"}},
		{"a dying init", Owner, leaker(dyingInit), []string{"kill -CHLD 900", "process 77 (gdb) detach"}, []string{"Nothing"}},

		{"a dying init as a whole", whole, leaker(dyingInit), []string{"Why it does not end"}, []string{"Why it does not reap"}},
		{"nothing to tell", whole, leaker(func(d *report.Detail) { d.Zombies, d.Reapable, d.Sample, d.DeadlineSeconds = 0, 0, nil, nil }), []string{"It has no zombies."}, []string{"Why", "What to do"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := strings.Join(tt.part(tt.d), "\n")
			for _, s := range tt.want {
				if !strings.Contains(got, s) {
					t.Errorf("does not say %q:\n%s", s, got)
				}
			}
			for _, s := range tt.not {
				if strings.Contains(got, s) {
					t.Errorf("says %q:\n%s", s, got)
				}
			}
		})
	}
}

// What an init cannot cure is not answered with an init first.
func TestOwnForksAreTheProgramsToReap(t *testing.T) {
	d := leaker(exe("/usr/bin/python3"), func(d *report.Detail) {
		d.Comm, d.Sample = "python3", []report.ZombieChild{{Comm: "python3"}}
	})
	got := Owner(d)
	if len(got) < 2 || !strings.Contains(got[0], "Python") || !strings.Contains(got[1], "tini") {
		t.Errorf("%q", got)
	}
}

// Whatever a process is, each part of its explanation is whole sentences, and none is
// empty.
func TestSentences(t *testing.T) {
	for _, d := range []*report.Detail{
		{}, leaker(), leaker(onHost), leaker(forkedAll), leaker(imposedOn), leaker(tracing), leaker(inState("D")), leaker(shimOf), leaker(pause), leaker(dyingInit), leaker(func(d *report.Detail) { d.State, d.Threads = "Z", 1 }),
		leaker(func(d *report.Detail) { d.DeadlineSeconds, d.HasReaped, d.Signals = nil, nil, report.Signals{} }),
		leaker(func(d *report.Detail) { d.Verdict, d.Reason = "spared", "a reason of a later version" }),
	} {
		steps(d)
		Complete(d, Settings{})
		for _, s := range Explain(d) {
			if s.Title == "" || len(s.Sentences) == 0 {
				t.Errorf("%d: section %q with %d sentences", d.PID, s.Title, len(s.Sentences))
			}
			for _, sentence := range s.Sentences {
				if !unicode.IsUpper(rune(sentence[0])) && !strings.HasPrefix(sentence, "kzr ") && !unicode.IsDigit(rune(sentence[0])) && sentence[0] != '`' ||
					!strings.HasSuffix(strings.TrimSuffix(sentence, ")"), ".") {
					t.Errorf("%s: %q", s.Title, sentence)
				}
			}
		}
	}
}

func TestReasonsAreExplained(t *testing.T) {
	unknown := Because("")
	for _, r := range []policy.Reason{
		policy.Protected, policy.OutOfScope, policy.ByRule, policy.Traced, policy.Stopped, policy.Frozen,
		policy.Dying, policy.Uninterruptible, policy.Waiting, policy.Foreign, policy.IdentityChanged, policy.Recovered, policy.RateLimited, policy.Backoff,
	} {
		if Because(r) == unknown {
			t.Errorf("%s is not explained", r)
		}
	}
}

func TestTree(t *testing.T) {
	d := leaker(func(d *report.Detail) {
		d.Children, d.LiveChildren = []report.Relative{{PID: 4300, Comm: "worker"}}, 4
	})
	var got []string
	for _, n := range Tree(d) {
		got = append(got, strings.Repeat(".", n.Depth)+n.Text)
	}
	want := []string{
		"1 systemd", ".900 containerd-shim", "..4242 node", "...4300 worker", "...and 3 more live children",
		"...5000 sh <defunct>", "...5001 curl <defunct>", "...5002 sh <defunct>", "...and 57 more zombies",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestWrite(t *testing.T) {
	d := leaker(func(d *report.Detail) {
		d.Pids = &report.PidsLimit{Current: 90, Limit: 100}
		d.Cmdline = []string{strings.Repeat("x", 300), "\x1b[31m\nforged"}
		d.Unseen = []string{"exe: permission denied"}
	})
	Complete(d, Settings{})
	var b strings.Builder
	if err := Write(&b, d, 80); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > 80 {
			t.Errorf("%d columns: %q", n, line)
		}
	}
	for _, want := range []string{"90 of 100 (90%)", "has never reaped a child", "4242 > 1", "permission denied", "50 zombies for 1m00s", `\x1b[31m\nforged`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("does not say %q:\n%s", want, b.String())
		}
	}
	if strings.ContainsAny(b.String(), "\x1b\r") {
		t.Errorf("raw: %q", b.String())
	}
}

// Whatever names there are, and whoever passed them on, the story keeps its form
// and its width.
func FuzzWrite(f *testing.F) {
	f.Add("node", "/usr/bin/node", "node server.js", "/kubepods/x", "app", "web-1", "shop", "tenants", int16(80), 60.0)
	f.Add("\x1b[2J", "\n\nFacts\n", "\u202e", "a\nTree\n  1 init  <", "\xff", "\u009b", "\r", " ", int16(0), -1e300)
	f.Add("界界", "", strings.Repeat("界", 120), "\t", "", "", strings.Repeat("x ", 60), "\u3164", int16(-1), 1e300)
	f.Fuzz(func(t *testing.T, comm, exe, command, cgroup, name, pod, namespace, rule string, width int16, age float64) {
		d := leaker(func(d *report.Detail) {
			d.Comm, d.Exe, d.Cmdline, d.Cgroup, d.Unit = comm, exe, []string{command}, cgroup, cgroup
			d.Container = &task.Container{Runtime: name, ID: name, PodUID: pod, Pod: pod, Namespace: namespace, Name: name, Image: name}
			d.Inner = &task.Container{Runtime: pod, ID: pod}
			if name == "" {
				d.Container, d.Inner = nil, nil
			}
			d.State, d.Rule, d.Reason, d.Unseen = exe, rule, rule, []string{cgroup, comm}
			d.OldestSeconds, d.DeadlineSeconds, d.Grace = &age, &age, age
			for i := range d.Ancestors {
				d.Ancestors[i].Comm = comm
			}
			for i := range d.Sample {
				d.Sample[i].Comm, d.Sample[i].AgeSeconds = comm, &age
			}
			d.Children, d.LiveChildren = []report.Relative{{PID: 4300, Comm: exe}}, 2
		})
		Complete(d, Settings{})
		var b strings.Builder
		if err := Write(&b, d, int(width)); err != nil {
			t.Fatal(err)
		}
		var titles []string
		wide, tree := min(max(int(width), 40), 100), false
		for line := range strings.Lines(b.String()) {
			line = strings.TrimSuffix(line, "\n")
			if strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Fatalf("raw: %q", line)
			}
			if n := ansi.StringWidth(line); n > wide && !tree {
				t.Fatalf("%d columns of %d: %q", n, wide, line)
			}
			if line != "" && !strings.HasPrefix(line, "  ") {
				titles = append(titles, line)
			}
			tree = tree || line == "Tree"
		}
		var want []string
		for _, s := range Explain(d) {
			want = append(want, s.Title)
		}
		if want = append(want, "Facts", "Tree"); !slices.Equal(titles, want) {
			t.Errorf("the sections are %q, want %q", titles, want)
		}
	})
}

func TestWrap(t *testing.T) {
	tests := []struct {
		s     string
		width int
		want  []string
	}{
		{"", 10, []string{""}},
		{"one two three", 7, []string{"one two", "three"}},
		{"--long-option --other", 14, []string{"--long-option", "--other"}},
		{"abcdefghij k", 4, []string{"abcd", "efgh", "ij k"}},
		{"界界界", 4, []string{"界界", "界"}},
		{"界", 1, []string{"界"}},
		{"a\x1b[31mb", 40, []string{`a\x1b[31mb`}},
	}
	for _, tt := range tests {
		if got := Wrap(tt.s, tt.width); !slices.Equal(got, tt.want) {
			t.Errorf("%q in %d: %q, want %q", tt.s, tt.width, got, tt.want)
		}
	}
}
