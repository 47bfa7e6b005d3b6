package advice

import (
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/charmbracelet/x/ansi"

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
func waits(d *report.Detail) { yes := true; d.HasReaped = &yes }

var settings = Settings{Nudge: 2 * time.Second, TermTimeout: 10 * time.Second}

// Each case says what a part of the story must tell, and must not.
func TestStory(t *testing.T) {
	who := func(d *report.Detail) []string { return []string{Who(d)} }
	plan := func(d *report.Detail) []string { return Plan(d, settings) }
	with := func(s Settings) func(*report.Detail) []string {
		return func(d *report.Detail) []string { return Plan(d, s) }
	}
	tests := []struct {
		name string
		part func(*report.Detail) []string
		d    *report.Detail
		want []string
		not  []string
	}{
		{"pod", who, leaker(), []string{"Process 4242 (node) is pid 1 of container app of pod shop/web-1 (containerd)", "uid 1000"}, nil},
		{"pod without names", who, leaker(func(d *report.Detail) { d.Container.Pod, d.Container.Name = "", "" }), []string{"container abababababab", "uid u-1"}, nil},
		{"unit", who, leaker(onHost), []string{"a process in the unit cron.service"}, []string{"container"}},
		{"nothing in particular", who, leaker(onHost, func(d *report.Detail) { d.Unit = "" }), []string{"is a process outside any container"}, nil},
		{"a zombie", who, leaker(func(d *report.Detail) { d.State, d.Threads = "Z", 1 }), []string{"zombie that its parent, process 900 (containerd-shim), has not reaped"}, nil},
		{"a dead leader is no zombie", who, leaker(func(d *report.Detail) { d.State = "Z" }), []string{"pid 1 of container"}, []string{"zombie"}},

		{"how many, how long, what", Leak, leaker(), []string{"60 dead children", "5m12s", "sh, curl"}, []string{"forked"}},
		{"one", Leak, leaker(func(d *report.Detail) { d.Zombies, d.Reapable, d.Sample = 1, 1, d.Sample[:1] }), []string{"One dead child", "It is called sh"}, []string{"children"}},
		{"seen just now", Leak, leaker(func(d *report.Detail) { d.OldestSeconds = nil }), []string{"60 dead"}, []string{"at least", "0s"}},
		{"none", Leak, leaker(func(d *report.Detail) { d.Zombies, d.Reapable = 0, 0 }), []string{"leaks nothing"}, nil},
		{"held by a tracer", Leak, leaker(func(d *report.Detail) { d.TracedZombies, d.ZombieTracer = 3, 77 }), []string{"3 children are held by a tracer (process 77)"}, nil},
		{"dead leaders", Leak, leaker(func(d *report.Detail) { d.DeadLeaders = 1 }), []string{"One child is shown as Z though other threads of it live"}, nil},
		{"its own forks", Leak, leaker(func(d *report.Detail) { d.Sample = []report.ZombieChild{{Comm: "node"}} }), []string{"it forked them"}, nil},

		{"never waits", Why, leaker(), []string{"has never reaped a child", "every orphan of its container", "`command:`"}, nil},
		{"blocked", Why, leaker(func(d *report.Detail) { d.Signals.ChldBlocked = true }), []string{"SIGCHLD is blocked"}, nil},
		{"blocked, but has waited", Why, leaker(waits, func(d *report.Detail) { d.Signals.ChldBlocked = true }), []string{"SIGCHLD is blocked", "has reaped children before"}, nil},
		{"ignored", Why, leaker(func(d *report.Detail) { d.Signals.Chld = "ignored" }), []string{"ignores SIGCHLD", "die afterwards"}, nil},
		{"handler that never waits", Why, leaker(func(d *report.Detail) { d.Signals.Chld = "caught" }), []string{"handler does not wait"}, nil},
		{"handler that waits once", Why, leaker(waits, func(d *report.Detail) { d.Signals.Chld = "caught" }), []string{"once for each signal"}, nil},
		{"waits for some", Why, leaker(waits), []string{"has reaped children before", "does not listen", "before an exec"}, []string{"never"}},
		{"unknown", Why, leaker(func(d *report.Detail) { d.HasReaped = nil }), []string{"unless it asks"}, []string{"never"}},
		{"stopped", Why, leaker(func(d *report.Detail) { d.State = "T" }), []string{"It is stopped"}, nil},
		{"traced", Why, leaker(func(d *report.Detail) { d.Tracer = 88 }), []string{"Process 88 traces it"}, nil},
		{"frozen", Why, leaker(spared(policy.Frozen)), []string{"frozen"}, nil},
		{"uninterruptible", Why, leaker(func(d *report.Detail) { d.State = "D" }), []string{"uninterruptible"}, nil},
		{"docker has no command:", Why, leaker(func(d *report.Detail) { d.Container.Pod, d.Container.PodUID = "", "" }), []string{"orphan"}, []string{"`command:`"}},
		{"an init that does not", Why, leaker(exe("/sbin/tini")), []string{"It is an init"}, []string{"orphan of its container"}},
		{"below an init", Why, leaker(inside, func(d *report.Detail) { d.Ancestors[0].Comm = "tini" }), []string{"There is an init (tini) above it"}, []string{"orphan"}},
		{"its own forks are no orphans", Why, leaker(func(d *report.Detail) { d.Sample = []report.ZombieChild{{Comm: "node"}} }), nil, []string{"orphan"}},
		{"nothing to reap", Why, leaker(func(d *report.Detail) { d.Reapable = 0 }), nil, []string{"SIGCHLD"}},

		{"due, and TERM would be lost", plan, leaker(), []string{"at least 50 zombies, each for at least 1m00s", "in 23s", "SIGCHLD asks it to reap, and it has 2s; then SIGKILL", "SIGTERM is left out", "the container ends"}, nil},
		{"pid 1 with a handler gets TERM", plan, leaker(func(d *report.Detail) { d.Signals.Term = "caught" }), []string{"SIGTERM asks it to end, and it has 10s; then SIGKILL"}, []string{"left out"}},
		{"not pid 1", plan, leaker(inside), []string{"SIGTERM asks it to end"}, []string{"left out", "the container ends"}},
		{"no nudge", with(Settings{TermTimeout: time.Second}), leaker(inside), []string{"SIGTERM"}, []string{"SIGCHLD"}},
		{"no term", with(Settings{}), leaker(inside), []string{"SIGKILL ends it"}, []string{"SIGTERM", "SIGCHLD"}},
		{"rule", plan, leaker(func(d *report.Detail) { d.Rule = "tenants" }), []string{"By rule tenants,"}, nil},
		{"too few", plan, leaker(func(d *report.Detail) { d.Reapable, d.DeadlineSeconds = 12, nil }), []string{"Nothing for now: it holds 12.", "at least 50"}, []string{"SIGKILL"}},
		{"target", plan, leaker(func(d *report.Detail) { d.Verdict = "target" }), []string{"It does, now."}, nil},
		{"acting", plan, leaker(func(d *report.Detail) { d.Verdict = "acting" }), []string{"at work on it now"}, nil},
		{"dry run", with(Settings{DryRun: true}), leaker(), []string{"dry run"}, nil},
		{"dry run done", with(Settings{DryRun: true}), leaker(spared(policy.Backoff)), []string{"dry run", "the signals that it would have got"}, []string{"acted on"}},
		{"only watching", with(Settings{Observe: true}), leaker(), []string{"only watches and sends no signal", "A daemon with this configuration would"}, nil},
		{"a zombie", plan, leaker(func(d *report.Detail) { d.State, d.Threads = "Z", 1 }), []string{"about its parent"}, []string{"SIGKILL"}},

		{"pod", Owner, leaker(), []string{"ENTRYPOINT", "shareProcessNamespace", "Node.js"}, []string{"docker run"}},
		{"docker", Owner, leaker(func(d *report.Detail) {
			d.Container.Runtime, d.Container.PodUID, d.Container.Pod = "docker", "", ""
		}), []string{"docker run --init"}, []string{"shareProcessNamespace"}},
		{"podman", Owner, leaker(func(d *report.Detail) {
			d.Container.Runtime, d.Container.PodUID, d.Container.Pod = "podman", "", ""
		}), []string{"podman run --init"}, nil},
		{"not pid 1 needs no init", Owner, leaker(inside), []string{"event loop"}, []string{"tini"}},
		{"python of any version", Owner, leaker(onHost, exe("/usr/bin/python3.12")), []string{"Popen", "os.waitpid"}, nil},
		{"java", Owner, leaker(onHost, exe("/opt/jdk-21/bin/java")), []string{"ProcessBuilder"}, nil},
		{"bash", Owner, leaker(onHost, exe("/usr/bin/bash")), []string{"`wait`"}, nil},
		{"go and the rest", Owner, leaker(onHost, exe("/srv/agent")), []string{"cmd.Wait()", "waitpid()", "SIG_IGN"}, nil},
		{"sleep as pid 1", Owner, leaker(exe("/bin/sleep")), []string{"`sleep` never waits"}, nil},
		{"blocked", Owner, leaker(func(d *report.Detail) { d.Signals.ChldBlocked = true }), []string{"Unblock SIGCHLD"}, nil},
		{"stopped", Owner, leaker(func(d *report.Detail) { d.State = "T" }), []string{"kill -CONT 4242"}, nil},
		{"traced", Owner, leaker(func(d *report.Detail) { d.Tracer = 88 }), []string{"(process 88) go"}, nil},
		{"nothing leaks", Owner, leaker(func(d *report.Detail) { d.Zombies, d.Reapable = 0, 0 }), []string{"Nothing."}, []string{"tini"}},
		{"only held ones", Owner, leaker(func(d *report.Detail) { d.Zombies, d.Reapable, d.TracedZombies, d.ZombieTracer = 2, 0, 2, 77 }), []string{"process 77"}, []string{"tini", "Node.js"}},
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

// Whatever a process is, each part of its story is whole sentences.
func TestSentences(t *testing.T) {
	for _, d := range []*report.Detail{
		{}, leaker(), leaker(onHost), leaker(func(d *report.Detail) { d.State, d.Threads = "Z", 1 }),
		leaker(func(d *report.Detail) { d.DeadlineSeconds, d.HasReaped, d.Signals = nil, nil, report.Signals{} }),
		leaker(func(d *report.Detail) { d.Verdict, d.Reason = "spared", "a reason of a later version" }),
	} {
		Complete(d, settings)
		for _, s := range Story(d) {
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
		policy.Dying, policy.Uninterruptible, policy.IdentityChanged, policy.Recovered, policy.RateLimited, policy.Backoff,
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
		"1 systemd", ".900 containerd-shim", "..4242 node", "...4300 worker", "...and 3 children more that live",
		"...5000 sh <defunct>", "...5001 curl <defunct>", "...5002 sh <defunct>", "...and 57 zombies more",
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
	Complete(d, settings)
	var b strings.Builder
	if err := Write(&b, d, 80); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > 80 {
			t.Errorf("%d columns: %q", n, line)
		}
	}
	for _, want := range []string{"90 of 100 (90%)", "it has never reaped a child", "4242 > 1", "permission denied", "50 zombies for 1m00s", `\x1b[31m\nforged`} {
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
		Complete(d, settings)
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
		for _, s := range Story(d) {
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
