package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/charmbracelet/x/ansi"

	"kzr/internal/policy"
	"kzr/internal/task"
)

func children(n int) *task.Children {
	c := &task.Children{Traced: 2, Tracer: task.ID{PID: 99}, Leaders: 1}
	for i := range n {
		c.Reapable = append(c.Reapable, task.NewZombie(1000+i, uint64(i), time.Duration(i)*time.Second, 0))
	}
	if n > 0 {
		c.Reapable[0] = task.NewZombie(1000, 0, 0, task.Adopted)
	}
	return c
}

func TestDocumentJSON(t *testing.T) {
	p := NewParent(leaker(), children(3))
	p.OldestSeconds, p.Verdict = new(2.5), "watch"
	deadline := 57.5
	p.DeadlineSeconds = &deadline
	got, err := EncodeJSON(Document{Time: noon, Host: "node1", Source: task.SourceBPF, Tasks: 300, Zombies: 6, Parents: []Parent{p},
		Workloads: []Workload{{"prod/api-7f/app", 6, 1, new(90), new(100), new(120.0), new(300.0)}}})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"time":"2026-03-04T12:00:00.007Z","host":"node1","source":"bpf","tasks":300,"zombies":6,"parents":[` +
		`{"pid":4242,"starttime":9917,"comm":"sh","exe":"/bin/busybox","cmdline":["sh","-c","while :; do :; done"],` +
		`"uid":1000,"state":"S","cgroup":"","container":{"runtime":"containerd","id":"` + strings.Repeat("ab", 32) +
		`","podUID":"u-1","pod":"api-7f","namespace":"prod","name":"app","image":"img:1"},"workload":"prod/api-7f/app",` +
		`"zombies":6,"reapable":3,"adopted":1,"oldestSeconds":2.5,"ratePerHour":null,"verdict":"watch","reason":"","until":null,` +
		`"deadlineSeconds":57.5}],"workloads":[{"name":"prod/api-7f/app","zombies":6,"parents":1,"pids":90,"pidsLimit":100,` +
		`"ratePerHour":120,"fullInSeconds":300}]}` + "\n"
	if string(got) != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

// No list and no map is null where a script iterates.
func TestDocumentJSONEmpty(t *testing.T) {
	got, _ := EncodeJSON(Document{})
	if !strings.Contains(string(got), `"parents":[]`) {
		t.Errorf("no parents: %s", got)
	}
	got, _ = EncodeJSON(Document{Parents: []Parent{NewParent(&task.Process{}, nil)}})
	for _, want := range []string{`"cmdline":[]`, `"container":null`, `"deadlineSeconds":null`, `"state":""`} {
		if !strings.Contains(string(got), want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
	got, _ = EncodeJSON(NewDetail(&task.Process{}, nil, 0))
	if n := strings.Count(string(got), "null"); n != 11 { // whatever is not known
		t.Errorf("%d nulls in %s", n, got)
	}
}

func TestDocumentHostile(t *testing.T) {
	for _, tt := range hostile {
		p := leaker()
		p.Comm, p.Exe, p.Cgroup, p.Cmdline = tt.raw, tt.raw, tt.raw, []string{tt.raw, tt.raw}
		p.Container = &task.Container{Pod: tt.raw, Namespace: tt.raw, Name: tt.raw, ID: tt.raw, Image: tt.raw}
		d := Document{Host: tt.raw, Parents: []Parent{NewParent(p, children(1))}} // the host is not sanitized by its maker
		body, err := EncodeJSON(d)
		if err != nil {
			t.Fatal(err)
		}
		checkLine(t, string(body))
		var back Document
		if err := json.Unmarshal(body, &back); err != nil {
			t.Fatal(err)
		}
		for _, got := range []string{back.Parents[0].Comm, back.Parents[0].Exe, back.Parents[0].Cmdline[1], back.Parents[0].Container.Image} {
			if got != tt.want {
				t.Errorf("%s: %q reads as %q, want %q", tt.name, tt.raw, got, tt.want)
			}
		}
		d.Parents[0].Comm, d.Parents[0].Reason = tt.raw, tt.raw
		for _, width := range []int{0, 40, 80} {
			var b strings.Builder
			if err := WriteTable(&b, d, width, false); err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(b.String()) {
				checkLine(t, line)
			}
			if n := strings.Count(b.String(), "\n"); n != 6 {
				t.Errorf("%s: %d lines instead of 6:\n%s", tt.name, n, b.String())
			}
		}
	}
}

// What is made of a process is safe when it is read back, and the table is safe
// whoever made what it shows.
func FuzzDocument(f *testing.F) {
	f.Add("sh", "/bin/busybox", "sh\x00-c\x00exit", "/system.slice/x.service", "app", "api-7f", "prod", "tenants", uint8(80))
	f.Add("", "", "", "", "", "", "", "", uint8(0))
	f.Add("\x1b]0;x\a\n", "", "", "", "", "", "", "", uint8(0))
	for _, tt := range hostile {
		f.Add(tt.raw, tt.raw, tt.raw+"\x00"+tt.raw, "/"+tt.raw+".scope", tt.raw, tt.raw, tt.raw, tt.raw, uint8(40))
	}
	f.Fuzz(func(t *testing.T, comm, exe, cmdline, cgroup, container, pod, namespace, rule string, width uint8) {
		p := leaker()
		p.Comm, p.Exe, p.Cmdline, p.Cgroup, p.Unit = comm, exe, strings.Split(cmdline, "\x00"), cgroup, cgroup
		p.State, p.Unseen = (comm + "S")[0], []string{exe}
		p.Container, p.Inner = nil, nil
		if container != "" {
			p.Container = &task.Container{Runtime: container, ID: container, Pod: pod, Namespace: namespace, Name: container, Image: exe}
			p.Inner = &task.Container{Runtime: pod, ID: pod, PodUID: pod}
		}
		d := NewDetail(p, children(3), time.Minute)
		d.Verdict, d.Rule = "watch", Sanitize(rule)
		d.Parent.Rule = d.Rule
		d.Ancestors = append(d.Ancestors, NewRelative(1, comm, p.State))
		for _, v := range []any{d, Document{Host: "node1", Parents: []Parent{d.Parent}}} {
			body, err := EncodeJSON(v)
			if err != nil {
				t.Fatal(err)
			}
			checkLine(t, string(body))
			var tree any
			if err := json.Unmarshal(body, &tree); err != nil {
				t.Fatalf("%v in %s", err, body)
			}
			checkStrings(t, tree)
			// A client that reads it has all of it.
			back := reflect.New(reflect.TypeOf(v))
			if err := json.Unmarshal(body, back.Interface()); err != nil {
				t.Fatalf("%v in %s", err, body)
			}
			if again, err := EncodeJSON(back.Elem().Interface()); err != nil || !bytes.Equal(again, body) {
				t.Errorf("%s reads back as %s, %v", body, again, err)
			}
		}

		raw := d.Parent
		raw.Comm, raw.Cmdline, raw.Cgroup, raw.Container, raw.Rule, raw.Reason = comm, p.Cmdline, cgroup, p.Container, rule, rule
		for _, parent := range []Parent{d.Parent, raw} {
			table := tableOf(t, int(width), parent)
			for line := range strings.Lines(table) {
				checkLine(t, line)
			}
			if n := strings.Count(table, "\n"); n != 6 {
				t.Fatalf("%d lines instead of 6:\n%s", n, table)
			}
			// Who and command give way to the other columns, down to a floor.
			others := 2*(len(narrowColumns)-1) + len("4242") + len("ZOMBIES") + len("OLDEST") + max(len("VERDICT"), ansi.StringWidth(verdict(&parent)))
			row := strings.Split(table, "\n")[3]
			if n := ansi.StringWidth(row); width > 0 && n > max(int(width), others+2*floor) {
				t.Errorf("%d columns at width %d: %s", n, width, row)
			}
		}
	})
}

// checkStrings checks every string of a JSON value.
func checkStrings(t *testing.T, tree any) {
	t.Helper()
	switch v := tree.(type) {
	case string:
		checkSafe(t, v, v, maxText)
	case []any:
		for _, e := range v {
			checkStrings(t, e)
		}
	case map[string]any:
		for _, e := range v {
			checkStrings(t, e)
		}
	}
}

// Whatever a socket's owner answers, what is printed of it is safe.
func FuzzAnswer(f *testing.F) {
	p := NewParent(leaker(), children(3))
	p.DeadlineSeconds, p.Rule = new(57.5), "tenants"
	sound, err := EncodeJSON(Document{
		Time: noon, Host: "node1", Source: task.SourceBPF, Zombies: 6, Parents: []Parent{p}, Omitted: 7, Limitations: []string{"one"},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sound)
	f.Add([]byte(`{"host":"\u001b[2J","source":"\u202e","parents":[{"pid":-1,"cmdline":["\n","\u009b"],"container":{},` +
		`"oldestSeconds":1e300,"verdict":"watch","deadlineSeconds":-1e300,"rule":"\r"}],"omitted":-9}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var d Document
		if json.Unmarshal(body, &d) != nil {
			return
		}
		again, err := EncodeJSON(d)
		if err != nil {
			t.Fatal(err)
		}
		if body, ok := bytes.CutSuffix(again, []byte("\n")); !ok || !json.Valid(body) || bytes.ContainsFunc(body, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Fatalf("%q", again)
		}
		for _, width := range []int{0, 1, 80} {
			var b strings.Builder
			if err := WriteTable(&b, d, width, false); err != nil {
				t.Fatal(err)
			}
			want := 1
			if n := len(d.Parents); n > 0 {
				want = 3 + n // a blank line and the titles
			}
			for line := range strings.Lines(b.String()) {
				want--
				if strings.ContainsFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Fatalf("%q", line)
				}
			}
			if want < -3 || want > 0 { // what else there is to say
				t.Fatalf("%d lines too few:\n%s", want, b.String())
			}
		}
	})
}

func TestCmdlineIsBounded(t *testing.T) {
	huge := slices.Repeat([]string{strings.Repeat("\x1b", 500)}, 100)
	for _, args := range [][]string{huge, make([]string, 100_000), {strings.Repeat("a", 1<<20)}} {
		p := NewParent(&task.Process{Cmdline: args}, nil)
		total := 0
		for _, a := range p.Cmdline {
			total += len(a)
		}
		if total > maxText+len(cut) || len(p.Cmdline) > 1025 {
			t.Errorf("%d arguments with %d bytes", len(p.Cmdline), total)
		}
		if !strings.HasSuffix(p.Cmdline[len(p.Cmdline)-1], cut) {
			t.Error("a cut command line does not show it")
		}
	}
}

func TestSortAndLimit(t *testing.T) {
	d := Document{Zombies: 100, Parents: []Parent{
		{PID: 9, Reapable: 1, Zombies: 1}, {PID: 4, Reapable: 5, Zombies: 5}, {PID: 3, Reapable: 5, Zombies: 5},
		{PID: 8, Reapable: 1, Zombies: 50}, {PID: 1, Reapable: 60, Zombies: 60},
	}}
	d.Sort()
	d.Limit(4)
	var pids []int
	for _, p := range d.Parents {
		pids = append(pids, p.PID)
	}
	if want := []int{1, 3, 4, 8}; !slices.Equal(pids, want) || d.Omitted != 1 || d.Zombies != 100 {
		t.Errorf("got %v and %d omitted, want %v and 1", pids, d.Omitted, want)
	}
}

func TestWho(t *testing.T) {
	long := strings.Repeat("0123456789", 6)
	tests := []struct {
		parent Parent
		want   string
	}{
		{Parent{Container: &task.Container{Runtime: "containerd", Namespace: "prod", Pod: "api", Name: "app", ID: long}}, "prod/api/app"},
		{Parent{Container: &task.Container{Namespace: "prod", Pod: "api", ID: long}}, "prod/api/012345678901"},
		{Parent{Container: &task.Container{Runtime: "docker", ID: long}}, "docker:012345678901"},
		{Parent{Container: &task.Container{Runtime: "lxc", Name: "web"}}, "lxc:web"},
		{Parent{Cgroup: "/system.slice/nginx.service"}, "nginx.service"},
		{Parent{Cgroup: "/system.slice/nginx.service/workers/"}, "nginx.service"},
		{Parent{Cgroup: "/user.slice/user-1000.slice/session-3.scope"}, "session-3.scope"},
		{Parent{Cgroup: "/", UID: 0}, "root"},
		{Parent{Cgroup: "", UID: 1000}, "uid 1000"},
	}
	for _, tt := range tests {
		if got := Who(tt.parent); got != tt.want {
			t.Errorf("Who(%+v) = %q, want %q", tt.parent, got, tt.want)
		}
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 999 * time.Millisecond: "0s", 59 * time.Second: "59s", 312 * time.Second: "5m12s",
		3*time.Hour + 5*time.Minute: "3h05m", 52 * time.Hour: "2d04h", 4000 * time.Hour: "166d16h",
	} {
		if got := Age(d); got != want {
			t.Errorf("Age(%s) = %q, want %q", d, got, want)
		}
	}
}

func tableOf(t *testing.T, width int, parents ...Parent) string {
	t.Helper()
	var b strings.Builder
	d := Document{Host: "node1", Source: task.SourceProc, Tasks: 4000, Parents: parents}
	for _, p := range parents {
		d.Zombies += p.Zombies
	}
	if err := WriteTable(&b, d, width, false); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestTable(t *testing.T) {
	deadline := 42.0
	const want = `node1: 70 zombies under 3 parents, 4000 tasks (proc)

  PID  WHO           COMMAND   ZOMBIES  OLDEST  VERDICT
 4242  prod/api/app  sleep 1d       60   1m01s  spared rate_limited
   17  sshd.service  [sshd]          8     20s  watch, eligible in 42s
98765  uid 1000      [a]        0 of 2       -  watch

"N of M": the parent could reap N; a tracer or live threads hold the others
`
	got := tableOf(t, 80,
		Parent{PID: 4242, Container: &task.Container{Namespace: "prod", Pod: "api", Name: "app"}, Cmdline: []string{"sleep", "1d"},
			Zombies: 60, Reapable: 60, OldestSeconds: new(float64(61)), Verdict: "spared", Reason: "rate_limited"},
		Parent{PID: 17, Cgroup: "/system.slice/sshd.service", Comm: "sshd", Zombies: 8, Reapable: 8, OldestSeconds: new(float64(20)),
			Verdict: "watch", DeadlineSeconds: &deadline},
		Parent{PID: 98765, UID: 1000, Comm: "a", Cmdline: []string{""}, Zombies: 2, Verdict: "watch"})
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := tableOf(t, 80); got != "node1: 0 zombies under 0 parents, 4000 tasks (proc)\n" {
		t.Errorf("nothing to show: %q", got)
	}
}

// What README shows comes out of the program like that, beside a running daemon.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	d := Document{Host: "node7", Source: task.SourceBPF, Tasks: 412, Zombies: 60, Parents: []Parent{{
		PID: 3775, Container: &task.Container{Namespace: "shop", Pod: "web-6c9f-x2k", Name: "app"}, Cmdline: []string{"node", "server.js"},
		Zombies: 60, Reapable: 60, OldestSeconds: new(float64(64)), Verdict: string(policy.Acting),
	}}}
	var b strings.Builder
	if err := WriteTable(&b, d, 80, false); err != nil {
		t.Fatal(err)
	}
	if want := "```console\n$ kzr scan\n" + b.String() + "```\n"; !strings.Contains(string(readme), want) {
		t.Errorf("README does not have\n%s", want)
	}
}

func TestWideTable(t *testing.T) {
	until := time.Date(2026, 3, 4, 13, 30, 0, 0, time.Local)
	d := Document{Host: "node1", Source: task.SourceBPF, Tasks: 4000, Zombies: 62, Parents: []Parent{
		{PID: 4242, State: "S", UID: 1000, Container: &task.Container{Namespace: "prod", Pod: "api", Name: "app"}, Cmdline: []string{"sleep", "1d"},
			Zombies: 62, Reapable: 60, Adopted: 58, OldestSeconds: new(float64(61)), RatePerHour: new(120.4), Verdict: "spared", Reason: "rate_limited", Until: &until},
	}, Workloads: []Workload{
		{"prod/api/app", 62, 1, new(90), new(100), new(120.0), new(300.0)}, {Name: "many", Zombies: 9, Parents: 9}, {Name: "root", Zombies: 1, Parents: 1},
	}}
	const wide = `node1: 62 zombies under 1 parent, 4000 tasks (bpf)

 PID  ST   UID  WHO           COMMAND   ZOMBIES  REAPABLE  ADOPTED  OLDEST  PER HOUR  VERDICT
4242  S   1000  prod/api/app  sleep 1d       62        60       58   1m01s      +120  spared rate_limited until 13:30:00

WORKLOAD      ZOMBIES  PARENTS       PIDS  PER HOUR  FULL IN
prod/api/app       62        1  90 of 100      +120    5m00s
many                9        9          -         -        -
root                1        1          -         -        -
`
	var b strings.Builder
	if err := WriteTable(&b, d, 0, true); err != nil || b.String() != wide {
		t.Errorf("%v, got\n%s\nwant\n%s", err, b.String(), wide)
	}
	// In the narrow one those that tell nothing new are left out.
	if b.Reset(); WriteTable(&b, d, 80, false) != nil || strings.Contains(b.String(), "root") || !strings.Contains(b.String(), "\nmany ") ||
		!strings.Contains(b.String(), "60 of 62") || !strings.Contains(b.String(), "90 of 100") {
		t.Errorf("narrow:\n%s", b.String())
	}
}

func TestTableFits(t *testing.T) {
	wide := Parent{PID: 4194304, Container: &task.Container{Namespace: "production-eu", Pod: "haproxy-7d9f8b6c5-x2x4q", Name: "haproxy"},
		Cmdline: []string{"/usr/sbin/haproxy", "-f", "/etc/haproxy/日本語の設定ファイル.cfg", strings.Repeat("x", 500)},
		Zombies: 500000, Reapable: 500000, OldestSeconds: new(float64(1e6)), Verdict: "spared", Reason: "identity_changed"}
	for _, width := range []int{80, 100, 200} {
		for line := range strings.Lines(tableOf(t, width, wide)) {
			if got := ansi.StringWidth(strings.TrimSuffix(line, "\n")); got > width {
				t.Errorf("%d columns at width %d: %s", got, width, line)
			}
		}
	}
	narrow := tableOf(t, 80, wide)
	for _, want := range []string{"4194304", "prod", "oxy", "/usr/", "500000", "11d13h", "spared identity_changed"} {
		if !strings.Contains(narrow, want) {
			t.Errorf("no %q in\n%s", want, narrow)
		}
	}
	if full := tableOf(t, 0, wide); !strings.Contains(full, strings.Repeat("x", 500)) {
		t.Error("without a terminal the command is shortened")
	}
}

func TestTableToClosedPipe(t *testing.T) {
	broken := errors.New("broken pipe")
	if err := WriteTable(failing{broken}, Document{}, 80, false); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestDetail(t *testing.T) {
	p := leaker()
	p.SigBlocked, p.SigCaught, p.SigIgnored = 1<<16, 1<<14, 1<<16
	p.NSPID = []int{4242, 1}
	d := NewDetail(p, children(100), 200*time.Second)
	if d.Signals != (Signals{Chld: "ignored", ChldBlocked: true, Term: "caught"}) {
		t.Errorf("signals %+v", d.Signals)
	}
	if d.Reapable != 100 || d.TracedZombies != 2 || d.ZombieTracer != 99 || d.DeadLeaders != 1 || d.Zombies != 103 {
		t.Errorf("counts %+v", d)
	}
	// Number 0 has no Since: its age is not known, so it is not among the oldest.
	if len(d.Sample) != sampleSize || d.Sample[0].PID != 1001 || *d.Sample[0].AgeSeconds != 199 || d.Sample[19].PID != 1020 {
		t.Errorf("sample %+v", d.Sample)
	}
	d = NewDetail(p, children(3), 200*time.Second)
	if len(d.Sample) != 3 || d.Sample[2].PID != 1000 || d.Sample[2].AgeSeconds != nil {
		t.Errorf("sample %+v", d.Sample)
	}
}
