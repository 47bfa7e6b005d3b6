package report

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeJournal receives entries as journald does.
type fakeJournal struct {
	conn *net.UnixConn
	out  *journal // what sends to it
}

func newFakeJournal(t *testing.T) *fakeJournal {
	t.Helper()
	path := filepath.Join(t.TempDir(), "j")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	out, err := dialJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); out.Close() })
	return &fakeJournal{conn, out}
}

// entry reads the next entry.
func (j *fakeJournal) entry(t *testing.T) map[string]string {
	t.Helper()
	b := make([]byte, 1<<18)
	if err := j.conn.SetReadDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	n, err := j.conn.Read(b)
	if err != nil {
		t.Fatal("no entry came: ", err)
	}
	return parseEntry(t, b[:n])
}

// parseEntry takes an entry apart as journald would: each line is a field.
func parseEntry(t *testing.T, b []byte) map[string]string {
	t.Helper()
	fields := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if _, twice := fields[name]; !ok || twice || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
			t.Fatalf("bad field %q in %q", line, b)
		}
		fields[name] = value
	}
	return fields
}

func TestJournalEntry(t *testing.T) {
	j := newFakeJournal(t)
	w := NewWriter(j.out)
	defer w.Close(time.Second)
	signalEvent().Log(t.Context(), NewLogger(w, "text", "info"))
	id := strings.Repeat("ab", 32)
	want := map[string]string{
		"MESSAGE": `event=signal msg="sent SIGTERM" pid=4242 starttime=9917 comm=sh exe=/bin/busybox uid=1000 zombies=62 ` +
			`reapable=60 oldestSeconds=61.5 container=app container_id=` + id + ` pod=api-7f namespace=prod workload=prod/api-7f/app ` +
			`node=node1 rule=tenants signal=SIGTERM dry_run=false`,
		"PRIORITY": "4", "MESSAGE_ID": messageIDs[EventSignal], "SYSLOG_IDENTIFIER": "kzr",
		"KZR_EVENT": "signal", "KZR_PID": "4242", "KZR_STARTTIME": "9917", "KZR_COMM": "sh", "KZR_EXE": "/bin/busybox",
		"KZR_UID": "1000", "KZR_ZOMBIES": "62", "KZR_REAPABLE": "60", "KZR_OLDEST_SECONDS": "61.5", "KZR_CONTAINER": "app", "KZR_CONTAINER_ID": id,
		"KZR_WORKLOAD": "prod/api-7f/app", "KZR_NODE": "node1", "KZR_POD": "api-7f",
		"KZR_NAMESPACE": "prod", "KZR_RULE": "tenants", "KZR_SIGNAL": "SIGTERM", "KZR_DRY_RUN": "false",
	}
	if got := j.entry(t); !maps.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}

	// Who asked for JSON gets what the log would be elsewhere.
	signalEvent().Log(t.Context(), NewLogger(w, "json", "info"))
	if got, want := j.entry(t)["MESSAGE"]+"\n", logged(t, "json", signalEvent()); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
	log := NewLogger(w, "text", "debug")
	for priority, write := range map[string]func(string, ...any){"7": log.Debug, "6": log.Info, "4": log.Warn, "3": log.Error} {
		write("m")
		if got := j.entry(t); got["PRIORITY"] != priority || got["MESSAGE"] != "msg=m" {
			t.Errorf("want priority %s, got %q", priority, got)
		}
	}
}

// Every decision has an entry in the catalogue, and the other way round. An entry is
// a line with the id, headers, a blank line and a text.
func TestCatalogue(t *testing.T) {
	b, err := os.ReadFile("../../deploy/systemd/kzr.catalog")
	if err != nil {
		t.Fatal(err)
	}
	var ids, want []string
	for _, entry := range strings.Split("\n"+string(b), "\n-- ")[1:] {
		id, rest, _ := strings.Cut(entry, "\n")
		head, text, ok := strings.Cut(rest, "\n\n")
		if !ok || !strings.HasPrefix(head, "Subject: ") || strings.TrimSpace(text) == "" {
			t.Errorf("%s: no subject or no text: %q", id, rest)
		}
		if strings.Contains(rest, "@KZR_SIGNAL@") != (id == messageIDs[EventSignal]) {
			t.Errorf("%s: only the event signal has a signal: %q", id, rest)
		}
		ids = append(ids, id)
	}
	for _, name := range eventNames {
		want = append(want, messageIDs[name])
	}
	if slices.Sort(ids); !slices.Equal(ids, slices.Sorted(slices.Values(want))) || len(messageIDs) != len(eventNames) {
		t.Errorf("entries %q, events %q", ids, want)
	}
	journalctl, err := exec.LookPath("journalctl")
	if err != nil {
		return
	}
	// systemd's own reader takes it.
	root := t.TempDir()
	for _, dir := range []string{"/usr/lib/systemd/catalog", "/var/lib/systemd/catalog"} {
		if err := os.MkdirAll(root+dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(root+"/usr/lib/systemd/catalog/kzr.catalog", b, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--update-catalog"}, append([]string{"--dump-catalog"}, ids...)} {
		if out, err := exec.Command(journalctl, append(args, "--root="+root)...).CombinedOutput(); err != nil || strings.Contains(string(out), "Failed") {
			t.Errorf("journalctl %q: %v: %s", args, err, out)
		}
	}
}

// What a process chose adds no field and no line, however it is called.
func TestJournalHostile(t *testing.T) {
	j := newFakeJournal(t)
	w := NewWriter(j.out)
	defer w.Close(time.Second)
	e := signalEvent()
	e.Process.Comm = "x\nKZR_EVENT=reaped\nPRIORITY=0"
	e.Process.Exe = "/\x00\x1b[2J" + strings.Repeat("\n", 100_000)
	e.Process.Container.Pod = "\xff\u202e"
	e.Attrs = []any{"some key\n", errors.New("a\nb")}
	e.Log(t.Context(), NewLogger(w, "text", "info"))
	got := j.entry(t)
	if got["KZR_EVENT"] != "signal" || got["PRIORITY"] != "4" {
		t.Errorf("event %q, priority %q", got["KZR_EVENT"], got["PRIORITY"])
	}
	for key, want := range map[string]string{
		"KZR_COMM":      `x\nKZR_EVENT=reaped\nPRIORITY=0`,
		"KZR_POD":       `\xff\u202e`,
		"KZR_SOME_KEY_": `a\nb`,
	} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
	if exe := got["KZR_EXE"]; len(exe) > maxText || !strings.HasPrefix(exe, `/\x00\x1b[2J\n`) {
		t.Errorf("exe of %d bytes: %.40q", len(exe), exe)
	}
}

// A journal that is away costs lines, which are counted and told of, and is
// found again at the same place.
func TestJournalComesBack(t *testing.T) {
	j := newFakeJournal(t)
	path := j.out.addr.Name
	w := NewWriter(j.out)
	defer w.Close(time.Second)
	log := NewLogger(w, "text", "info")
	j.conn.Close()
	os.Remove(path)
	log.Info("one")
	for end := time.Now().Add(soon); w.Dropped() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a line that cannot be written is not counted")
		}
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	j.conn = conn
	log.Info("two")
	if got := j.entry(t); got["MESSAGE"] != `msg="log lines were lost" lost=1` || got["KZR_LOST"] != "1" {
		t.Errorf("got %q", got)
	}
	if got := j.entry(t); got["MESSAGE"] != "msg=two" {
		t.Errorf("got %q", got)
	}
}

func TestJournalOnlyWhereSystemdConnectedIt(t *testing.T) {
	r, f, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	stream := fmt.Sprintf("%d:%d", st.Dev, st.Ino)
	if !toJournal(f, stream) {
		t.Errorf("%s is not recognised", stream)
	}
	for _, other := range []string{"", "x", "0:0", fmt.Sprintf("%d:%d", st.Dev, st.Ino+1), stream + " "} {
		if toJournal(f, other) {
			t.Errorf("%q passes for %s", other, stream)
		}
	}
	t.Setenv("JOURNAL_STREAM", stream)
	if got := ErrorPrefix(f); got != "<3>" {
		t.Errorf("an error to the journal begins with %q", got)
	}
	t.Setenv("JOURNAL_STREAM", "0:0")
	if got := ErrorPrefix(f); got != "" {
		t.Errorf("an error elsewhere begins with %q", got)
	}
	for _, w := range []io.Writer{f, new(bytes.Buffer)} {
		if got := Journal(w); got != w {
			t.Errorf("%T became %T", w, got)
		}
	}
}
