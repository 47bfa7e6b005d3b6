package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"kzr/internal/task"
)

var noon = time.Date(2026, 3, 4, 12, 0, 0, 7_000_000, time.UTC)

func leaker() *task.Process {
	return &task.Process{
		ID: task.ID{PID: 4242, Start: 9917}, Exe: "/bin/busybox", Facts: task.Facts{Comm: "sh", UID: 1000, State: 'S'},
		Workload: "prod/api-7f/app",
		Cmdline:  []string{"sh", "-c", "while :; do :; done"},
		Container: &task.Container{Runtime: "containerd", ID: strings.Repeat("ab", 32), PodUID: "u-1",
			Pod: "api-7f", Namespace: "prod", Name: "app", Image: "img:1"},
	}
}

func signalEvent() Event {
	return Event{
		Time: noon, Name: EventSignal, Message: "sent SIGTERM", Process: leaker(), Zombies: 62, Reapable: 60,
		Oldest: 61500 * time.Millisecond, Rule: "tenants", Signal: "SIGTERM",
	}
}

func logged(t *testing.T, format string, e Event) string {
	t.Helper()
	var b bytes.Buffer
	e.Log(t.Context(), NewLogger(&b, format, "info"))
	return b.String()
}

func TestEventText(t *testing.T) {
	want := `time=2026-03-04T12:00:00.007Z level=WARN event=signal msg="sent SIGTERM" pid=4242 starttime=9917 ` +
		`comm=sh exe=/bin/busybox uid=1000 zombies=62 reapable=60 oldestSeconds=61.5 container=app container_id=` + strings.Repeat("ab", 32) +
		` pod=api-7f namespace=prod workload=prod/api-7f/app node=node1 ` +
		"rule=tenants signal=SIGTERM dry_run=false\n"
	if got := logged(t, "text", signalEvent()); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

func TestEventJSON(t *testing.T) {
	want := `{"time":"2026-03-04T12:00:00.007Z","level":"WARN","event":"signal","msg":"sent SIGTERM","pid":4242,` +
		`"starttime":9917,"comm":"sh","exe":"/bin/busybox","uid":1000,"zombies":62,"reapable":60,"oldestSeconds":61.5,"container":"app",` +
		`"container_id":"` + strings.Repeat("ab", 32) + `","pod":"api-7f","namespace":"prod","workload":"prod/api-7f/app","node":"node1",` +
		`"rule":"tenants","signal":"SIGTERM","dry_run":false}` + "\n"
	if got := logged(t, "json", signalEvent()); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

// Only what applies is in a line.
func TestEventKeys(t *testing.T) {
	host := leaker()
	host.Container = nil
	unnamed := leaker()
	unnamed.Container = &task.Container{Runtime: "docker", ID: "0123"}
	tests := []struct {
		name  string
		event Event
		want  string
	}{
		{"started", Event{Name: EventStarted, Attrs: []any{"version", "1.0", "mode", "ebpf"}},
			"event msg node version mode"},
		{"suspect on the host", Event{Name: EventSuspect, Process: host, Reapable: 50, Oldest: time.Second},
			"event msg pid starttime comm exe uid zombies reapable oldestSeconds workload node"},
		{"id without names", Event{Name: EventSuspect, Process: unnamed, Zombies: 50},
			"event msg pid starttime comm exe uid zombies reapable container_id workload node"},
		{"reaped all", Event{Name: EventReaped, Process: host, Signal: "SIGCHLD"},
			"event msg pid starttime comm exe uid zombies reapable workload node signal"},
		{"dry run", Event{Name: EventSignal, Process: host, Zombies: 1, Signal: "SIGKILL", DryRun: true},
			"event msg pid starttime comm exe uid zombies reapable workload node signal dry_run"},
		{"spared", Event{Name: EventSpared, Process: host, Zombies: 1, Reason: "traced"},
			"event msg pid starttime comm exe uid zombies reapable workload node reason"},
		{"spared for a while", Event{Name: EventSpared, Process: host, Reason: "rate_limited", Until: noon},
			"event msg pid starttime comm exe uid zombies reapable workload node reason until"},
		{"over the limits", Event{Name: EventSignal, Process: host, Signal: "SIGKILL", LimitsOverridden: true},
			"event msg pid starttime comm exe uid zombies reapable workload node signal dry_run limits_overridden"},
		{"reaped by kzr", Event{Name: EventReaped, Process: host, By: ByKzr},
			"event msg pid starttime comm exe uid zombies reapable workload node by"},
		{"zombie", Event{Name: EventZombie, Process: host, Zombies: 1, Oldest: 1, Child: task.NewZombie(7, 8, 0, 0)},
			"event msg pid starttime comm exe uid zombies reapable oldestSeconds workload node child child_starttime"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			line := logged(t, "json", tt.event)
			var keys []string
			dec := json.NewDecoder(strings.NewReader(line))
			for depth, key := 0, true; ; {
				tok, err := dec.Token()
				if err != nil {
					break
				}
				switch {
				case tok == json.Delim('{'):
					depth++
				case tok == json.Delim('}'):
					depth--
				case depth == 1 && key:
					keys = append(keys, tok.(string))
					key = false
				default:
					key = true
				}
			}
			if got := strings.Join(keys, " "); got != "time level "+tt.want {
				t.Errorf("keys %q, want %q", got, "time level "+tt.want)
			}
		})
	}
}

func TestEventLevels(t *testing.T) {
	for _, name := range eventNames {
		want := slog.LevelInfo
		if name == EventSignal || name == EventGaveUp || name == EventLostEvents {
			want = slog.LevelWarn
		}
		if got := (&Event{Name: name}).Level(); got != want {
			t.Errorf("%s has level %v, want %v", name, got, want)
		}
	}
}

func TestLevels(t *testing.T) {
	var b bytes.Buffer
	log := NewLogger(&b, "text", "warn")
	child := log.With("part", "probe")
	Event{Name: EventSuspect}.Log(t.Context(), log)
	child.Info("quiet")
	if b.Len() > 0 {
		t.Fatalf("level warn shows %s", b.String())
	}
	SetLevel(log, "debug")
	child.Debug("loud")
	if !strings.Contains(b.String(), "msg=loud part=probe") {
		t.Fatalf("after SetLevel the log has %q", b.String())
	}
}

type secret struct{}

func (secret) LogValue() slog.Value { return slog.StringValue("resolved\n") }

type panics struct{}

func (panics) String() string { panic("a value that cannot be shown") }

func TestLogValues(t *testing.T) {
	tests := []struct {
		name       string
		args       []any
		text, json string
	}{
		{"error", []any{"err", errors.New("a\nb")}, `err="a\nb"`, `"err":"a\\nb"`},
		{"list", []any{"argv", []string{"a\x1b", `b"`}}, `argv="[a\x1b b\"]"`, `"argv":["a\\x1b","b\""]`},
		{"valuer", []any{"v", secret{}}, `v="resolved\n"`, `"v":"resolved\\n"`},
		{"group", []any{slog.Group("g", "a", 1, slog.Group("h", "b", true))}, `g.a=1 g.h.b=true`, `"g.a":1,"g.h.b":true`},
		{"duration", []any{"d", 1500 * time.Millisecond}, `d=1.5s`, `"d":1.5`},
		{"float", []any{"f", 0.85}, `f=0.85`, `"f":0.85`},
		{"empty", []any{"s", ""}, `s=""`, `"s":""`},
		{"forged pair", []any{"s", `x" event="signal`}, `s="x\" event=\"signal"`, `"s":"x\" event=\"signal"`},
		{"backslash at the end", []any{"s", `x y\`}, `s="x y\\"`, `"s":"x y\\"`},
		{"equals", []any{"s", "a=b"}, `s="a=b"`, `"s":"a=b"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for format, want := range map[string]string{"text": tt.text + "\n", "json": tt.json + "}\n"} {
				var b bytes.Buffer
				NewLogger(&b, format, "info").Info("m", tt.args...)
				if !strings.HasSuffix(b.String(), want) {
					t.Errorf("%s: %q does not end in %q", format, b.String(), want)
				}
			}
		})
	}
	var b bytes.Buffer
	log := NewLogger(&b, "json", "info")
	log.Info("m", "v", panics{})
	log.Info("m", "nan", 0/zero)
	log.WithGroup("g").With("a", 1).Info("m", "b", 2)
	for line := range strings.Lines(b.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
	if !strings.Contains(b.String(), `"g.a":1,"g.b":2`) {
		t.Errorf("groups are lost: %s", b.String())
	}
}

var zero float64

// Whatever a process calls itself, a record is one line of visible runes that
// reads back as one record.
func TestLogHostile(t *testing.T) {
	raws := []string{strings.Repeat("\x1b[2J\n", 4096), `"} {"event":"signal"`, `\`, `" pid=1`}
	for _, tt := range hostile {
		raws = append(raws, tt.raw)
	}
	for _, raw := range raws {
		checkEvent(t, raw, raw, raw, raw, raw, raw, raw)
	}
}

func FuzzEvent(f *testing.F) {
	f.Add("sh", "/bin/busybox", "/kubepods/pod1/a", "app", "api-7f", "prod", "tenants")
	f.Add("x\nKZR_EVENT=reaped\nPRIORITY=0", `" pid=1 `, `"} {"event":"signal"`, `\`, "=", " ", strings.Repeat("\x1b", 2000))
	for _, tt := range hostile {
		f.Add(tt.raw, tt.raw, tt.raw, tt.raw, tt.raw, tt.raw, tt.raw)
	}
	m := NewMetrics(func() Status { return Status{} })
	series := func(t testing.TB) (names []string) {
		for line := range strings.Lines(scrape(t, m)) {
			names = append(names, line[:strings.LastIndex(line, " ")])
		}
		return names
	}
	before := series(f)
	f.Fuzz(func(t *testing.T, comm, exe, cgroup, container, pod, namespace, rule string) {
		checkEvent(t, comm, exe, cgroup, container, pod, namespace, rule)
		e := signalEvent()
		e.Process.Comm, e.Process.Exe, e.Process.Cgroup, e.Rule, e.Message = comm, exe, cgroup, rule, rule
		e.Process.Container = &task.Container{ID: container, Pod: pod, Namespace: namespace}
		if m.Observe(e); !slices.Equal(series(t), before) {
			t.Errorf("the metrics have become %q", series(t))
		}
	})
}

// checkEvent logs a signal in every form and reads it back.
func checkEvent(t *testing.T, comm, exe, cgroup, container, pod, namespace, rule string) {
	t.Helper()
	e := signalEvent()
	e.Process.Comm, e.Process.Exe, e.Rule = comm, exe, rule
	e.Process.Container = &task.Container{Runtime: container, ID: container, Pod: pod, Namespace: namespace, Name: container}
	e.Attrs = []any{"cgroup", cgroup, "err", fmt.Errorf("reading %s", exe)}
	raws := map[string]string{"comm": comm, "exe": exe, "rule": rule, "container": container, "pod": pod, "namespace": namespace}
	maps.DeleteFunc(raws, func(_, raw string) bool { return raw == "" })
	raws["cgroup"], raws["err"] = cgroup, "reading "+exe

	line := logged(t, "json", e)
	checkLine(t, line)
	var got map[string]any
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatalf("%q: %v in %s", raws, err, line)
	}
	for key, raw := range raws {
		if s, ok := got[key].(string); !ok || s != Sanitize(raw) {
			t.Errorf("%s of %q is %q", key, raw, s)
		}
	}
	if got["event"] != EventSignal || got["pid"] != 4242.0 {
		t.Errorf("%q forged the event or the pid: %s", raws, line)
	}
	// A reader of the stream gets the same.
	if streamed := string(e.appendJSON(nil)); streamed != line {
		t.Errorf("the stream has %s, the log %s", streamed, line)
	}
	if s := e.Stream(); s.Event != EventSignal || s.PID != 4242 || s.Comm != Sanitize(comm) || s.Exe != Sanitize(exe) ||
		s.Container != Sanitize(container) || s.Pod != Sanitize(pod) || s.Namespace != Sanitize(namespace) || s.Rule != Sanitize(rule) {
		t.Errorf("%q reads as %+v", raws, s)
	}

	line = logged(t, "text", e)
	checkLine(t, line)
	pairs := parseText(t, line)
	if pairs["event"] != EventSignal || pairs["pid"] != "4242" {
		t.Errorf("%q forged the event or the pid: %s", raws, line)
	}
	if len(pairs) != len(got) {
		t.Errorf("%d keys in %s, but %d in JSON", len(pairs), line, len(got))
	}
	for key, raw := range raws {
		if utf8.ValidString(raw) && len(raw) < 400 && pairs[key] != raw {
			t.Errorf("%q reads back as %q from %s", raw, pairs[key], line)
		}
	}

	r := e.record()
	var attrs []slog.Attr
	r.Attrs(func(a slog.Attr) bool { attrs = append(attrs, a); return true })
	h := handler{journal: true}
	entry := h.render(nil, r.Time, r.Level, r.Message, attrs)
	for line := range strings.Lines(string(entry)) {
		checkLine(t, line)
	}
	fields := parseEntry(t, entry)
	if want := line[strings.Index(line, "event="):]; fields["MESSAGE"]+"\n" != want || fields["PRIORITY"] != "4" {
		t.Errorf("priority %s, message %s, want %s", fields["PRIORITY"], fields["MESSAGE"], want)
	}
	if len(fields) != 4+len(attrs) { // MESSAGE, MESSAGE_ID, PRIORITY and who says so
		t.Errorf("%d fields for %d keys in %q", len(fields), len(attrs), entry)
	}
	for key, raw := range raws {
		if got := fields["KZR_"+strings.ToUpper(key)]; got != Sanitize(raw) {
			t.Errorf("%s of %q is %q in the journal", key, raw, got)
		}
	}
}

func checkLine(t *testing.T, line string) {
	t.Helper()
	if len(line) > 128<<10 {
		t.Errorf("a line of %d bytes", len(line))
	}
	body, ok := strings.CutSuffix(line, "\n")
	if !ok || !utf8.ValidString(line) {
		t.Fatalf("not a line of UTF-8: %q", line)
	}
	for _, r := range body {
		if r < ' ' || r == 0x7f || r > 0x7f && !visible(r) {
			t.Fatalf("%U in %q", r, line)
		}
	}
}

// parseText reads key=value pairs as a log shipper does; a key that comes twice
// is an error.
func parseText(t *testing.T, line string) map[string]string {
	t.Helper()
	pairs := make(map[string]string)
	for line = strings.TrimSuffix(line, "\n"); line != ""; line = strings.TrimPrefix(line, " ") {
		key, rest, ok := strings.Cut(line, "=")
		if !ok || strings.Contains(key, " ") {
			t.Fatalf("no pair at %q", line)
		}
		var value string
		if strings.HasPrefix(rest, `"`) {
			quoted, err := strconv.QuotedPrefix(rest)
			if err != nil {
				t.Fatalf("bad quotes at %q", rest)
			}
			value, _ = strconv.Unquote(quoted)
			line = rest[len(quoted):]
		} else {
			value, _, _ = strings.Cut(rest, " ")
			line = rest[len(value):]
		}
		if _, twice := pairs[key]; twice {
			t.Fatalf("%s comes twice", key)
		}
		pairs[key] = value
	}
	return pairs
}

// The stream, its client's type and the JSON log agree on every key.
func TestStreamEventHasTheLogsKeys(t *testing.T) {
	e := signalEvent()
	e.Reason, e.By, e.Until, e.LimitsOverridden, e.DryRun, e.Child = "traced", ByKzr, noon, true, true, task.NewZombie(7, 8, 0, 0)
	dec := json.NewDecoder(strings.NewReader(logged(t, "json", e)))
	dec.DisallowUnknownFields()
	var s StreamEvent
	if err := dec.Decode(&s); err != nil {
		t.Fatal(err)
	}
	if s != e.Stream() {
		t.Errorf("the log says %+v, Stream %+v", s, e.Stream())
	}
	again, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if got := bytes.Count(again, []byte(`":`)); got != strings.Count(logged(t, "json", e), `":`) {
		t.Errorf("keys are lost: %s", again)
	}
}
