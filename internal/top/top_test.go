package top

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"kzr/internal/report"
	"kzr/internal/task"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.Local)

func parent(pid, zombies int, f func(*report.Parent)) report.Parent {
	p := report.Parent{
		PID: pid, StartTime: uint64(pid), Comm: "app", Exe: "/srv/app", Cmdline: []string{"app", "--serve"}, State: "S",
		Zombies: zombies, Reapable: zombies, OldestSeconds: new(float64(40)), Verdict: "watch",
	}
	if f != nil {
		f(&p)
	}
	return p
}

func pod(namespace, pod, name string) *task.Container {
	return &task.Container{Runtime: "containerd", ID: strings.Repeat("c0", 32), PodUID: "u", Namespace: namespace, Pod: pod, Name: name}
}

// node is a document with one parent of each kind.
func node() report.Document {
	return report.Document{Host: "node-17", Source: task.SourceBPF, Tasks: 20000, Zombies: 12172, Parents: []report.Parent{
		parent(4242, 12000, func(p *report.Parent) {
			p.Container, p.Comm, p.DeadlineSeconds = pod("shop", "web-7f9c4d", "app"), "node", new(float64(23))
		}),
		parent(500, 75, func(p *report.Parent) {
			p.Cgroup, p.Verdict, p.Reason, p.DeadlineSeconds = "/system.slice/cron.service", "spared", "out_of_scope", new(float64(0))
		}),
		parent(6000, 60, func(p *report.Parent) { p.Container, p.Verdict = pod("ci", "runner-0", "job"), "acting" }),
		parent(7000, 25, func(p *report.Parent) { p.UID = 1000 }),
		parent(8000, 12, func(p *report.Parent) { p.UID, p.State, p.Reason = 1000, "T", "stopped" }),
	}}
}

func status() report.Status {
	return report.Status{
		Version: "1.0.0", Mode: "auto", Source: task.SourceBPF, Host: "node-17", Kernel: "6.12.0", Scope: "containers",
		Threshold: 50, Grace: 60, Nudge: 2, TermTimeout: 10, Pressure: 0.85, Tasks: 20000, TasksLimit: 32768, Zombies: 12172, Exits: 1000, Kills: 3,
	}
}

// screen is a model that has seen node once.
func screen(t *testing.T, w, h int, o Options) *model {
	t.Helper()
	m := newModel(t.Context(), o)
	m.Update(tea.WindowSizeMsg{Width: w, Height: h})
	see(m, 0, node(), status())
	return m
}

func see(m *model, after time.Duration, doc report.Document, st report.Status) {
	m.Update(sampleMsg{at: noon.Add(after), took: 10 * time.Millisecond, doc: doc, status: st})
}

func press(m *model, keys ...string) (last tea.Cmd) {
	for _, k := range keys {
		msg := tea.KeyPressMsg{}
		switch k {
		case "enter":
			msg.Code = tea.KeyEnter
		case "esc":
			msg.Code = tea.KeyEscape
		case "up":
			msg.Code = tea.KeyUp
		case "down":
			msg.Code = tea.KeyDown
		case "space":
			msg.Code, msg.Text = tea.KeySpace, " "
		case "backspace":
			msg.Code = tea.KeyBackspace
		case "ctrl+c":
			msg.Code, msg.Mod = 'c', tea.ModCtrl
		default:
			msg.Code, msg.Text = []rune(k)[0], k
		}
		_, last = m.Update(msg)
	}
	return last
}

func write(m *model, text string) {
	for _, r := range text {
		press(m, string(r))
	}
}

// text is the screen without colours.
func text(m *model) string { return ansi.Strip(m.View().Content) }

func lineWith(t *testing.T, m *model, s string) string {
	t.Helper()
	for line := range strings.Lines(text(m)) {
		if strings.Contains(line, s) {
			return strings.TrimRight(line, "\n")
		}
	}
	t.Fatalf("no line has %q:\n%s", s, text(m))
	return ""
}

func wants(t *testing.T, m *model, all ...string) {
	t.Helper()
	for _, s := range all {
		if !strings.Contains(text(m), s) {
			t.Errorf("the screen does not show %q:\n%s", s, text(m))
		}
	}
}

// pids are those of the table, from above.
func pids(m *model) []int {
	var out []int
	for _, r := range m.visible {
		out = append(out, r.PID)
	}
	return out
}

func TestReadableAt80x24(t *testing.T) {
	m := screen(t, 80, 24, Options{})
	wants(t, m,
		"kzr top node-17", "ACTING", "ci/runner-0/job (6000), 60 zombies", // what to know first
		"61%", "20,000 of 32,768", "12,172 in 5 parents", "kills 3",
		"PID", "WHO", "COMMAND", "ZOMBIES", "OLDEST", "RATE", "VERDICT",
		"12,000", "acts in 23s", "acting", "out of scope", "watch", "stopped", "cron.service",
		"Events", "? help", "q quit", "/ filter")
	if got := lineWith(t, m, "4242"); !strings.HasPrefix(got, " 4242 shop/") || !strings.Contains(got, "/app") {
		t.Errorf("a pod's row is %q", got)
	}
}

func TestUsefulAt200x60(t *testing.T) {
	m := screen(t, 200, 60, Options{})
	wants(t, m, "shop/web-7f9c4d/app", "app --serve", "spared: out of scope", "ST", "UID", "Linux 6.12.0", "kzr 1.0.0", "rule: 50 zombies for 1m00s", "1 more leaking")
}

func TestReadableAt40x10(t *testing.T) {
	m := screen(t, 40, 10, Options{})
	wants(t, m, "ACTING", "tasks 61%", "PID", "ZOMBIES", "VERDICT", "4242", "12,000", "acts in 23s", "? help")
	m = screen(t, 40, 10, Options{Alone: "no daemon answers"})
	wants(t, m, "no daemon", "due in 23s")
}

// Whatever the size and the state, the screen has exactly its lines and none is
// too wide.
func TestEverySizeFits(t *testing.T) {
	doc := node()
	doc.Parents = append(doc.Parents,
		parent(4194303, 500000, func(p *report.Parent) {
			p.Container = pod(strings.Repeat("名", 60), strings.Repeat("x", 200), "c")
			p.Cmdline = []string{strings.Repeat("界", 300)}
			p.Comm = "\x1b]0;x\a\n\u202e"
		}))
	for _, state := range []struct {
		name string
		with func(*model)
	}{
		{"table", func(*model) {}},
		{"typing", func(m *model) { press(m, "/"); write(m, strings.Repeat("界", 100)) }},
		{"filtered", func(m *model) { press(m, "/"); write(m, "no such thing"); press(m, "enter") }},
		{"details", func(m *model) { openDetails(m) }},
		{"help", func(m *model) { press(m, "?") }},
		{"no stream", func(m *model) { press(m, "e") }},
		{"workloads", func(m *model) { press(m, "w") }},
		{"paused", func(m *model) { press(m, "space") }},
		{"empty", func(m *model) { see(m, time.Second, report.Document{}, status()) }},
		{"no answer", func(m *model) { m.Update(sampleMsg{at: noon.Add(time.Hour), err: errors.New("gone")}) }},
	} {
		t.Run(state.name, func(t *testing.T) {
			for _, ascii := range []bool{false, true} {
				m := newModel(t.Context(), Options{Alone: "no daemon on /run/kzr/kzr.sock", ASCII: ascii})
				st := status()
				st.Problems = []string{"one", "two", "three"}
				see(m, 0, doc, st)
				m.Update(eventsMsg{{report.StreamEvent{Event: "signal", Signal: "SIGKILL", PID: 1, Comm: strings.Repeat("界", 90), Message: "m", Zombies: 60}, 1}})
				state.with(m)
				for _, w := range []int{0, 1, 4, 10, 22, 39, 40, 41, 60, 80, 99, 100, 119, 120, 139, 140, 200, 250} {
					for _, h := range []int{0, 1, 2, 3, 4, 6, 10, 15, 16, 24, 29, 30, 60} {
						checkScreen(t, m, w, h)
						for _, r := range text(m) {
							if ascii && r > '~' && r != '名' && r != '界' {
								t.Fatalf("%dx%d: %q is no ASCII", w, h, r)
							}
						}
					}
				}
			}
		})
	}
}

// checkScreen draws the screen in a size.
func checkScreen(t *testing.T, m *model, w, h int) {
	t.Helper()
	m.Update(tea.WindowSizeMsg{Width: w, Height: h})
	content := m.View().Content
	lines := strings.Split(content, "\n")
	if h > 0 && len(lines) != h {
		t.Fatalf("%dx%d: %d lines", w, h, len(lines))
	}
	for i, line := range lines {
		if n := ansi.StringWidth(line); n > w && w >= 10 {
			t.Fatalf("%dx%d: line %d has %d columns: %q", w, h, i, n, ansi.Strip(line))
		}
	}
	for _, r := range ansi.Strip(content) {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Fatalf("%dx%d: %q is on the screen", w, h, r)
		}
	}
}

// Whatever names there are, and whoever passed them on, the screen keeps its
// form, and no sequence is on it but kzr's own colours.
func FuzzScreen(f *testing.F) {
	f.Add("node", "/usr/bin/node", "node server.js", "/system.slice/x.service", "app", "web-1", "shop", "sent SIGTERM", uint8(80), uint8(24), 60.0)
	f.Add("\x1b]0;x\a\n", "\x1b[2J", "\u202e", "/\u009b.scope", "\xff", "\u2066", "\r", "\x1b[31m", uint8(200), uint8(60), -1e300)
	f.Add("界", strings.Repeat("名", 20), strings.Repeat("界", 60), "", "", "\u3164", "\u0301", "", uint8(39), uint8(15), 1e300)
	colours := regexp.MustCompile("\x1b\\[[0-9;]*m")
	f.Fuzz(func(t *testing.T, comm, exe, command, cgroup, name, pod, namespace, message string, w, h uint8, age float64) {
		p := parent(4242, 12000, func(p *report.Parent) {
			p.Comm, p.Exe, p.Cmdline, p.Cgroup, p.State, p.Rule = comm, exe, []string{command}, cgroup, exe, message
			p.OldestSeconds, p.DeadlineSeconds = &age, &age
			if name != "" {
				p.Container = &task.Container{Runtime: name, ID: name, Pod: pod, Namespace: namespace, Name: name, Image: exe}
			}
		})
		spared := p
		spared.PID, spared.Verdict, spared.Reason = 17, "spared", message
		st := status()
		st.Host, st.Kernel, st.Version, st.Problems = comm, exe, command, []string{message}
		m := newModel(t.Context(), Options{Alone: message})
		see(m, 0, report.Document{Host: comm, Parents: []report.Parent{p, spared}}, st)
		m.Update(eventsMsg{
			{report.StreamEvent{Event: "signal", Signal: "SIGKILL", PID: 1, Comm: comm, Container: name, Pod: pod, Namespace: namespace, Message: message, Zombies: 60, OldestSeconds: age}, 1},
			{report.StreamEvent{Event: message, PID: 2, Comm: comm, Container: name, Reason: message}, 1},
		})
		check := func() {
			checkScreen(t, m, int(w), int(h))
			if s := colours.ReplaceAllString(m.View().Content, ""); strings.ContainsRune(s, '\x1b') {
				t.Fatalf("%q", s)
			}
		}
		check()
		press(m, "/")
		m.Update(tea.PasteMsg{Content: comm})
		check()
		press(m, "esc", "enter")
		check()
		d := report.Detail{Parent: p, Unit: cgroup, Unseen: []string{exe}, Inner: p.Container, Rule: message,
			Ancestors: []report.Relative{{PID: 1, Comm: comm}}, Children: []report.Relative{{PID: 9, Comm: exe}},
			Sample: []report.ZombieChild{{PID: 9999, Comm: comm, AgeSeconds: &age}}, Plan: []string{message}, Advice: []string{command}}
		m.Update(detailMsg{id: m.detailOf, at: m.now, detail: d})
		check()
		press(m, "G")
		check()
		m.Update(sampleMsg{at: noon.Add(time.Hour), err: errors.New(message)})
		check()
	})
}

func openDetails(m *model) {
	press(m, "enter")
	never := false
	d := report.Detail{
		Parent: m.visible[m.cursor].Parent, Threads: 3, HasReaped: &never, NSPID: []int{4242, 1},
		Signals: report.Signals{Chld: "default", ChldBlocked: true, Term: "default"}, Pids: &report.PidsLimit{Current: 90, Limit: 100},
		Ancestors: []report.Relative{{PID: 1, Comm: "systemd"}}, Sample: []report.ZombieChild{{PID: 9999, Comm: "curl", AgeSeconds: new(float64(40))}},
		Threshold: 50, Grace: 60, Plan: []string{"The daemon's plan."}, Advice: []string{"The daemon's advice."},
	}
	m.Update(detailMsg{id: m.detailOf, at: m.now, detail: d})
}

func TestDetails(t *testing.T) {
	m := screen(t, 200, 60, Options{})
	if cmd := press(m, "enter"); cmd == nil {
		t.Error("enter asks nobody")
	}
	wants(t, m, "Process 4242", "Loading")
	press(m, "esc")
	openDetails(m)
	wants(t, m, "Process", "12000 zombies that it could reap", "SIGCHLD is blocked", "The daemon's plan.", "The daemon's advice.",
		"90 of 100 (90%)", "1 systemd", "4242 node", "9999 curl <defunct> for 40s", "ACTING")
	if strings.Contains(text(m), "Events") {
		t.Error("the stream is there too")
	}
	m.Update(detailMsg{id: m.detailOf, at: m.now, err: report.ErrNotFound})
	wants(t, m, "(exited)", "What kzr does") // what was last known stays
	press(m, "esc")
	wants(t, m, "Events", "VERDICT")

	m = screen(t, 80, 24, Options{})
	openDetails(m)
	if strings.Contains(text(m), "systemd") {
		t.Error("the tree fits without scrolling: the test is worth nothing")
	}
	press(m, "G")
	wants(t, m, "1 systemd", "100%")
	press(m, "q")
	wants(t, m, "VERDICT")
}

func TestHelp(t *testing.T) {
	m := screen(t, 100, 60, Options{})
	press(m, "?")
	wants(t, m, "filter", "reverse", "mouse", "acts in 23s", "out of scope", "sends no signals")
	press(m, "?")
	wants(t, m, "Events")
}

func TestSort(t *testing.T) {
	tests := []struct {
		keys []string
		want string
	}{
		{nil, "[4242 500 6000 7000 8000]"},
		{[]string{"P"}, "[500 4242 6000 7000 8000]"},
		{[]string{"P", "P"}, "[8000 7000 6000 4242 500]"},
		{[]string{"P", "r"}, "[8000 7000 6000 4242 500]"},
		{[]string{"V"}, "[6000 4242 500 7000 8000]"}, // acting, due, spared, the rest
		{[]string{"W"}, "[6000 500 4242 7000 8000]"},
		{[]string{"s", "<"}, "[4242 500 6000 7000 8000]"},
	}
	for _, tt := range tests {
		m := screen(t, 120, 30, Options{})
		press(m, tt.keys...)
		if got := fmt.Sprint(pids(m)); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.keys, got, tt.want)
		}
	}
	m := screen(t, 120, 30, Options{})
	press(m, "O")
	if title := lineWith(t, m, "VERDICT"); !strings.Contains(title, "OLDEST") || strings.Contains(title, "ZOMBIES▼") {
		t.Errorf("titles: %q", title)
	}
}

// spread is a node on which a workload leaks under many parents.
func spread() report.Document {
	doc := node()
	for i := range 6 {
		doc.Parents = append(doc.Parents, parent(9000+i, 40-i, func(p *report.Parent) { p.Workload, p.Comm = "shop/batch/worker", "worker" }))
	}
	doc.Parents[0].Workload = "shop/web-7f9c4d/app"
	doc.Workloads = []report.Workload{
		{Name: "shop/web-7f9c4d/app", Zombies: 12000, Parents: 1, Pids: new(12100), PidsLimit: new(20000), RatePerHour: new(3600.0), FullInSeconds: new(7900.0)},
		{Name: "shop/batch/worker", Zombies: 225, Parents: 6, Pids: new(300)},
	}
	return doc
}

func TestWorkloads(t *testing.T) {
	m := screen(t, 120, 36, Options{})
	see(m, time.Second, spread(), status())
	press(m, "w")
	var names []string
	for _, r := range m.visible {
		names = append(names, strings.TrimSpace(r.label("")))
	}
	want := "shop/web-7f9c4d/app;node;shop/batch/worker;worker;worker;worker;and 3 more;no workload;app;app;app;app"
	if got := strings.Join(names, ";"); got != want {
		t.Errorf("lines %s, want %s", got, want)
	}
	if got := lineWith(t, m, "shop/web-7f9c4d/app "); !strings.Contains(got, "1 parent, 12,100/20,000 pids") || !strings.Contains(got, "+1/s") || !strings.Contains(got, "full in 2h11m") {
		t.Errorf("a workload's line is %q", got)
	}
	wants(t, m, "6 parents, 300 pids", "and 3 more", "ADOPTED")
	press(m, "down", "down", "enter") // opens the second
	if got := m.selected; got.workload != "shop/batch/worker" || strings.Contains(text(m), "and 3 more") || !strings.Contains(text(m), "9005") {
		t.Errorf("opened %+v:\n%s", got, text(m))
	}
	press(m, "enter")
	wants(t, m, "and 3 more")
	press(m, "down", "enter")
	if m.detailOf.PID != 9000 {
		t.Errorf("enter on a parent opens %v", m.detailOf)
	}
	press(m, "esc", "/")
	write(m, "batch")
	press(m, "enter")
	wants(t, m, "6 of 11")
	if strings.Contains(text(m), "web-7f9c4d/app ") {
		t.Error("the filter leaves other workloads")
	}
	press(m, "esc", "w")
	wants(t, m, "cron.service")
}

// A leak that no single parent shows is what to know first.
func TestHeadlineOfASpreadLeak(t *testing.T) {
	doc := spread()
	doc.Parents, doc.Workloads = doc.Parents[5:], doc.Workloads[1:]
	doc.Workloads[0].FullInSeconds = new(600.0)
	m := screen(t, 120, 30, Options{})
	see(m, time.Second, doc, status())
	if h := m.headline(); h.badge != "LEAK" || h.grave != urgent ||
		!strings.Contains(h.text, "shop/batch/worker has 225 zombies under 6 parents, each below the threshold; its pid limit is full in 10m00s") {
		t.Errorf("%+v", h)
	}
}

func TestFilterAsYouType(t *testing.T) {
	m := screen(t, 80, 24, Options{})
	press(m, "/")
	write(m, "SHOP")
	if got := fmt.Sprint(pids(m)); got != "[4242]" {
		t.Errorf("SHOP shows %s", got)
	}
	wants(t, m, "/SHOP", "1 of 5")
	write(m, " nothing")
	wants(t, m, "No parent matches")
	press(m, "esc")
	if len(m.visible) != 5 {
		t.Error("esc does not show all")
	}
	press(m, "/")
	write(m, "qs out") // keys that mean something elsewhere
	press(m, "backspace", "backspace", "backspace", "backspace", "backspace", "backspace")
	write(m, "out scope")
	press(m, "enter")
	if got := fmt.Sprint(pids(m)); got != "[500]" {
		t.Errorf("%q shows %s", m.filter, got)
	}
	see(m, time.Second, node(), status())
	if len(m.visible) != 1 {
		t.Error("the next look forgets the filter")
	}
	press(m, "esc")
	if len(m.visible) != 5 {
		t.Error("esc does not end the filter")
	}
}

func TestSelectionStaysOnItsParent(t *testing.T) {
	m := screen(t, 80, 24, Options{})
	press(m, "down", "down")
	if m.selected.PID != 6000 {
		t.Fatalf("selected %v", m.selected)
	}
	doc := node()
	doc.Parents[2].Zombies = 50000 // now the first
	see(m, time.Second, doc, status())
	if m.selected.PID != 6000 || m.cursor != 0 {
		t.Errorf("selected %v at %d", m.selected, m.cursor)
	}
	press(m, "P")
	if m.selected.PID != 6000 || m.cursor != 2 {
		t.Errorf("sorted anew: selected %v at %d", m.selected, m.cursor)
	}
	// The same pid of another process is another parent.
	doc = node()
	doc.Parents[2].StartTime++
	see(m, 2*time.Second, doc, status())
	if got := m.visible[m.cursor].id; got != m.selected {
		t.Errorf("cursor on %v, selected %v", got, m.selected)
	}
	// One that is gone leaves the selection to its neighbour.
	doc.Parents = doc.Parents[:1]
	see(m, 3*time.Second, doc, status())
	if m.selected.PID != 4242 {
		t.Errorf("selected %v", m.selected)
	}
}

// Who has touched nothing sees what comes first, not whoever was first before.
func TestUntouchedScreenShowsTheTop(t *testing.T) {
	m := screen(t, 80, 24, Options{})
	doc := node()
	doc.Parents[4].Zombies = 90000
	see(m, time.Second, doc, status())
	if m.cursor != 0 || m.selected.PID != 8000 {
		t.Errorf("selected %v at %d", m.selected, m.cursor)
	}
}

func TestScrolling(t *testing.T) {
	m := newModel(t.Context(), Options{})
	var doc report.Document
	for i := range 1000 {
		doc.Parents = append(doc.Parents, parent(1000+i, 1000-i, nil))
	}
	see(m, 0, doc, status())
	press(m, "G")
	wants(t, m, " 1999 ")
	press(m, "g")
	wants(t, m, " 1000 ")
	for range 50 {
		press(m, "down")
	}
	wants(t, m, " 1050 ")
	m.Update(tea.MouseWheelMsg{Button: tea.MouseWheelDown})
	if m.cursor != 53 {
		t.Errorf("the wheel went to %d", m.cursor)
	}
}

func TestPause(t *testing.T) {
	m := screen(t, 80, 24, Options{})
	press(m, "space")
	wants(t, m, "PAUSED")
	doc := node()
	doc.Parents[0].Zombies = 99999
	see(m, 9*time.Second, doc, status())
	m.Update(eventsMsg{{report.StreamEvent{Event: "signal", Signal: "SIGTERM", PID: 6000}, 1}})
	wants(t, m, "12,000", "acts in 23s", "1 line since paused")
	if strings.Contains(text(m), "SIGTERM") {
		t.Error("an event is shown during the pause")
	}
	press(m, "space")
	wants(t, m, "99,999", "SIGTERM")
}

func TestCountdownRunsBetweenLooks(t *testing.T) {
	m := screen(t, 80, 24, Options{})
	m.looking = true // and takes long
	m.Update(tickMsg(noon.Add(20 * time.Second)))
	wants(t, m, "acts in 3s")
	m.Update(tickMsg(noon.Add(24 * time.Second)))
	wants(t, m, "acts now")
}

func TestMouse(t *testing.T) {
	m := screen(t, 120, 30, Options{})
	y := m.layout().header
	x := strings.Index(strings.Split(text(m), "\n")[y], "PID")
	m.Update(tea.MouseClickMsg{X: x, Y: y, Button: tea.MouseLeft})
	if m.sortBy != colPID {
		t.Errorf("a click on PID sorts by %d", m.sortBy)
	}
	m.Update(tea.MouseClickMsg{X: 5, Y: y + 3, Button: tea.MouseLeft})
	if m.selected.PID != 6000 {
		t.Errorf("a click on the third row selects %v", m.selected)
	}
	m.Update(tea.MouseClickMsg{X: 5, Y: y + 3, Button: tea.MouseLeft})
	if m.detailOf.PID != 6000 {
		t.Error("a double click does not open it")
	}
	press(m, "esc")
	m.Update(tea.MouseClickMsg{X: 5, Y: y + 20, Button: tea.MouseLeft}) // no row there
	m.Update(tea.MouseClickMsg{X: 500, Y: 500, Button: tea.MouseLeft})
	if m.selected.PID != 6000 {
		t.Error("a click beside the table selects")
	}
}

func TestQuit(t *testing.T) {
	for _, k := range []string{"q", "ctrl+c"} {
		if cmd := press(screen(t, 80, 24, Options{}), k); cmd == nil || cmd() != tea.Quit() {
			t.Errorf("%s does not quit", k)
		}
	}
	m := screen(t, 80, 24, Options{})
	press(m, "/")
	if cmd := press(m, "ctrl+c"); cmd == nil || cmd() != tea.Quit() {
		t.Error("ctrl+c does not quit while one types")
	}
}

func TestStream(t *testing.T) {
	m := screen(t, 110, 30, Options{})
	f := newFeed()
	zombie := report.StreamEvent{Time: noon, Event: report.EventZombie, PID: 4242, Comm: "node", Namespace: "shop", Pod: "web-1", Child: 77, Zombies: 61}
	for range 3 {
		f.push(zombie)
	}
	f.push(report.StreamEvent{Time: noon, Event: "signal", Signal: "SIGTERM", PID: 4242, Comm: "node", Message: "told to end", Zombies: 61, OldestSeconds: 61})
	f.push(zombie)
	f.push(report.StreamEvent{Time: noon, Event: "spared", Reason: "out_of_scope", PID: 500, Comm: "cron", Message: "because"})
	f.push(report.StreamEvent{Event: report.EventMissed, Count: 12})
	m.Update(f.next(t.Context())())
	if got := lineWith(t, m, "3 more unreaped"); !strings.Contains(got, "12:00:00 zombie") || !strings.Contains(got, "shop/web-1 4242 node") {
		t.Errorf("%q", got)
	}
	wants(t, m, "SIGTERM", "told to end", "61 zombies, oldest 1m01s", "child 77 unreaped", "out of scope: because", "12 events")
	press(m, "/")
	write(m, "sigterm 4242")
	if s := text(m); !strings.Contains(s, "told to end") || strings.Contains(s, "unreaped") {
		t.Errorf("the filter is not about the stream:\n%s", s)
	}
	press(m, "esc", "z")
	if strings.Contains(text(m), "unreaped") || !strings.Contains(text(m), "SIGTERM") {
		t.Error("z does not hide the zombies alone")
	}
	press(m, "e")
	if strings.Contains(text(m), "SIGTERM") {
		t.Error("e does not hide the stream")
	}
}

// A storm of events takes bounded memory.
func TestFeedIsBounded(t *testing.T) {
	f := newFeed()
	for i := range 100000 {
		f.push(report.StreamEvent{Event: "suspect", PID: i})
	}
	batch := f.next(t.Context())().(eventsMsg)
	if len(batch) > keep || batch[len(batch)-1].PID != 99999 {
		t.Errorf("%d lines, the last about %d", len(batch), batch[len(batch)-1].PID)
	}
}

func TestHeadline(t *testing.T) {
	calmDoc := report.Document{Zombies: 3, Parents: []report.Parent{parent(7, 3, nil)}}
	edit := func(f func(*report.Document, *report.Status)) (report.Document, report.Status) {
		doc, st := node(), status()
		f(&doc, &st)
		return doc, st
	}
	tests := []struct {
		name  string
		alone string
		edit  func(*report.Document, *report.Status)
		badge string
		text  string
		grave grave
	}{
		{"nothing", "", func(d *report.Document, _ *report.Status) { *d = report.Document{} }, "OK", "No zombies", calm},
		{"nothing that can be seen", "", func(d *report.Document, s *report.Status) { *d, s.Problems = report.Document{}, []string{"x"} }, "UNSURE", "cannot see all processes", soon},
		{"few", "", func(d *report.Document, _ *report.Status) { *d = calmDoc }, "OK", "no parent meets the rule", calm},
		{"acting", "", func(*report.Document, *report.Status) {}, "ACTING", "on ci/runner-0/job (6000), 60", urgent},
		{"due", "", func(d *report.Document, _ *report.Status) { d.Parents = d.Parents[:1] }, "LEAK", "has 12,000 zombies; kzr acts in 23s unless it reaps", soon},
		{"due, nobody acts", "no daemon", func(d *report.Document, _ *report.Status) { d.Parents = d.Parents[:1] }, "LEAK", "due in 23s, but no daemon is running", soon},
		{"due, dry run", "", func(d *report.Document, s *report.Status) { d.Parents, s.DryRun = d.Parents[:1], true }, "LEAK", "(dry run)", soon},
		{"spared", "", func(d *report.Document, _ *report.Status) { d.Parents = d.Parents[1:2] }, "LEAK", "app (500) has 75 zombies; spared: out of scope", soon},
		{"spared, and fills the table", "", func(d *report.Document, _ *report.Status) {
			d.Parents[1].Zombies, d.Parents[1].Reapable = 14000, 14000
		}, "LEAK", "14,000 zombies; spared: out of scope", urgent},
		{"full", "", func(_ *report.Document, s *report.Status) { s.Tasks = 31000 }, "FULL", "95% of the pid limit used", urgent},
	}
	held := row{Parent: report.Parent{Verdict: "acting", Reason: "rate_limited"}}
	if text, g := held.verdict(0, "acts"); text != "acting, rate limited" || g != urgent {
		t.Errorf("acting, and held up: %q", text)
	}
	for _, tt := range tests {
		m := newModel(t.Context(), Options{Alone: tt.alone})
		doc, st := edit(tt.edit)
		see(m, 0, doc, st)
		if h := m.headline(); h.badge != tt.badge || !strings.Contains(h.text, tt.text) || h.grave != tt.grave {
			t.Errorf("%s: %+v; want %s %q %d", tt.name, h, tt.badge, tt.text, tt.grave)
		}
	}
}

func TestDaemonThatDoesNotAnswer(t *testing.T) {
	m := newModel(t.Context(), Options{})
	m.Update(sampleMsg{at: noon, err: errors.New("nobody there")})
	wants(t, m, "NO DATA", "nobody there")
	see(m, time.Second, node(), status())
	m.Update(sampleMsg{at: noon.Add(31 * time.Second), err: errors.New("it hangs")})
	wants(t, m, "NO ANSWER", "for 30s; showing old data", "4242")
	see(m, time.Minute, node(), status())
	if strings.Contains(text(m), "NO ANSWER") {
		t.Error("an answer does not end the alarm")
	}
}

func TestTimeUntilFull(t *testing.T) {
	m := newModel(t.Context(), Options{})
	for i := range 21 {
		doc, st := node(), status()
		doc.Zombies = 10000 + 20*i
		st.Tasks = 20000 + 20*i
		see(m, time.Duration(i)*time.Second, doc, st)
	}
	// 32768 - 20400 at 20 a second.
	wants(t, m, "+20/s", "full in 10m18s")
	m = screen(t, 80, 24, Options{})
	see(m, 10*time.Second, node(), status())
	if strings.Contains(text(m), "full in") {
		t.Error("nothing grows, and the table is going to be full")
	}
}

func TestRate(t *testing.T) {
	at := func(s int) time.Duration { return time.Duration(s) * time.Second }
	tests := []struct {
		name string
		f    func(*series)
		want string
	}{
		{"one sample", func(s *series) { s.add(at(0), 5) }, ""},
		{"fast", func(s *series) {
			for i := range 30 {
				s.add(at(i), float64(100*i))
			}
		}, "+100/s"},
		{"ended a while ago", func(s *series) {
			for i := range 60 {
				s.add(at(i), float64(min(i, 20)))
			}
			for i := 60; i < 2000; i += 10 {
				s.add(at(i), 20)
			}
		}, ""},
		{"one in half a minute", func(s *series) {
			for i := range 600 {
				s.add(at(i), float64(i/30))
			}
		}, "/m"},
		{"a few an hour", func(s *series) {
			for i := 0; i < 3600; i += 10 {
				s.add(at(i), float64(i/600))
			}
		}, "/h"},
		{"shrinks", func(s *series) { s.add(at(0), 100); s.add(at(10), 0) }, "-10/s"},
		{"the clock stands", func(s *series) { s.add(at(0), 1); s.add(at(0), 100) }, ""},
		{"16,000 a second", func(s *series) { s.add(at(0), 0); s.add(at(1), 16000) }, "+16k/s"},
	}
	for _, tt := range tests {
		var s series
		tt.f(&s)
		r, _ := s.rate()
		if got := perTime(r); got != tt.want && (tt.want == "" || !strings.HasSuffix(got, tt.want)) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestSpark(t *testing.T) {
	var s series
	for i := range 61 {
		s.add(time.Duration(i)*time.Second, float64(i))
	}
	if got := s.spark(8, unicodeGlyphs.spark); got != "▁▂▃▄▅▆▇█" {
		t.Errorf("growing: %q", got)
	}
	var flat series
	for i := range 30 {
		flat.add(time.Duration(i)*time.Second, 60)
	}
	if got := flat.spark(8, unicodeGlyphs.spark); strings.TrimLeft(got, " ▁") != "" || !strings.HasPrefix(got, " ") {
		t.Errorf("flat for half a minute: %q", got)
	}
	if got := new(series).spark(8, unicodeGlyphs.spark); got != "" {
		t.Errorf("nothing: %q", got)
	}
}

func TestHistoryForgets(t *testing.T) {
	m := screen(t, 80, 24, Options{})
	doc := node()
	doc.Parents = doc.Parents[:1]
	for i := range 5000 {
		see(m, time.Duration(i+1)*time.Second, doc, status())
	}
	if n := len(m.past.parents); n != 1 {
		t.Errorf("%d parents are remembered", n)
	}
	for _, s := range m.past.parents {
		if len(s.fine) > 70 || len(s.coarse) > 40 {
			t.Errorf("%d and %d samples", len(s.fine), len(s.coarse))
		}
	}
}

// One look at a thousand parents and the drawing of it: this, once a second, is
// what the screen costs beside reading the document.
func BenchmarkThousandParents(b *testing.B) {
	m := newModel(b.Context(), Options{})
	m.Update(tea.WindowSizeMsg{Width: 200, Height: 60})
	doc := report.Document{Zombies: 60000}
	for i := range 1000 {
		doc.Parents = append(doc.Parents, parent(1000+i, 60, func(p *report.Parent) { p.Container = pod("shop", fmt.Sprint("web-", i), "app") }))
	}
	st := status()
	at := time.Duration(0)
	for b.Loop() {
		at += time.Second
		doc.Parents[int(at/time.Second)%1000].Zombies++
		see(m, at, doc, st)
		if m.View().Content == "" {
			b.Fatal("nothing is drawn")
		}
	}
}
