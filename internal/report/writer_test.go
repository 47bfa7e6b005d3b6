package report

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// soon bounds what is over in a moment, on a machine that has none to spare.
const soon = 30 * time.Second

// The reader of a pipe sleeps: logging goes on at once, and when it wakes up it
// gets what was kept, in order, and the number of what was not.
func TestWriterBlockedReader(t *testing.T) {
	r, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w := NewWriter(pw)
	log := NewLogger(w, "json", "info")
	const n = 20_000
	start := time.Now()
	for i := range n {
		log.Info("line", "i", i, "pad", strings.Repeat("x", 50))
	}
	if took := time.Since(start); took > soon {
		t.Fatalf("%d lines took %s while nobody read", n, took)
	}
	if w.Dropped() == 0 {
		t.Fatal("more than the buffer was kept")
	}

	seen, lost, last, notices := 0, 0, -1, 0
	lines := bufio.NewScanner(r)
	for last < n && lines.Scan() {
		var l struct {
			Msg  string
			I    *int
			Lost int
		}
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatalf("%v in %q", err, lines.Text())
		}
		switch {
		case l.Lost > 0:
			lost += l.Lost
			notices++
			log.Info("after", "i", n) // it works again
		case *l.I <= last:
			t.Fatalf("line %d after %d", *l.I, last)
		default:
			last = *l.I
			seen++
		}
	}
	if notices == 0 || seen-1+lost != n {
		t.Errorf("%d lines read and %d said to be lost in %d notices, %d written", seen-1, lost, notices, n)
	}
	if err := w.Close(5 * time.Second); err == nil || !strings.Contains(err.Error(), fmt.Sprint(w.Dropped())) {
		t.Errorf("Close says %v, %d lines were lost", err, w.Dropped())
	}
	pw.Close()
}

// flaky fails or writes half of it while broken.
type flaky struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	broken bool
	half   bool
	tried  int
}

func (f *flaky) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tried++
	if !f.broken {
		return f.buf.Write(p)
	}
	n := 0
	if f.half {
		n, _ = f.buf.Write(p[:len(p)/2])
		f.half = false
	}
	return n, errors.New("no space left on device")
}

func (f *flaky) set(broken, half bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken, f.half = broken, half
}

func (f *flaky) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.buf.String()
}

func TestWriterFullDisk(t *testing.T) {
	f := &flaky{}
	w := NewWriter(f)
	log := NewLogger(w, "text", "info")
	log.Info("first")
	eventually(t, "the first line", func() bool { return strings.Contains(f.String(), "msg=first") })
	f.set(true, true) // the disk fills up in the middle of a line
	for i := range 10 {
		log.Info("doomed", "i", i)
	}
	eventually(t, "ten failures", func() bool { return w.Dropped() == 10 })
	f.set(false, false)
	log.Info("second")
	if err := w.Close(5 * time.Second); err == nil {
		t.Error("Close hides that lines were lost")
	}
	lines := strings.Split(strings.TrimSpace(f.String()), "\n")
	if len(lines) != 4 || !strings.Contains(lines[0], "msg=first") ||
		!strings.Contains(lines[2], `level=WARN msg="log lines were lost" lost=10`) || !strings.Contains(lines[3], "msg=second") {
		t.Errorf("after the disk was full:\n%s", f)
	}
	if err := w.Close(time.Second); err == nil {
		t.Error("a second Close hides it")
	}
}

// What was lost is told once the disk has room, not only with the next line.
func TestWriterTellsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &flaky{broken: true}
		w := NewWriter(f)
		NewLogger(w, "json", "info").Info("doomed")
		time.Sleep(time.Minute)
		f.set(false, false)
		time.Sleep(time.Minute)
		if got := f.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `"lost":1}`) {
			t.Errorf("the log has %q", got)
		}
		_ = w.Close(time.Second)
	})
}

func TestWriterDevFull(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	w := NewWriter(full)
	log := NewLogger(w, "text", "info")
	for range 100 {
		log.Info("into the void")
	}
	if err := w.Close(5 * time.Second); err == nil || w.Dropped() != 100 {
		t.Errorf("%d of 100 lines counted as lost, Close says %v", w.Dropped(), err)
	}
}

func TestWriterClosedPipe(t *testing.T) {
	r, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pw.Close()
	r.Close()
	w := NewWriter(pw)
	NewLogger(w, "text", "info").Info("nobody")
	if err := w.Close(5 * time.Second); err == nil {
		t.Error("a line into a closed pipe counts as written")
	}
}

func TestWriterClose(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	for i := range 500 {
		fmt.Fprintf(w, "%d\n", i)
	}
	if err := w.Close(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(b.String(), "\n"); got != 500 {
		t.Errorf("%d of 500 lines written at exit", got)
	}

	r, pw := io.Pipe() // nobody reads yet
	w = NewWriter(pw)
	fmt.Fprintln(w, "stuck")
	start := time.Now()
	if err := w.Close(50 * time.Millisecond); err == nil {
		t.Error("Close of a stuck writer reports success")
	}
	if took := time.Since(start); took > soon {
		t.Errorf("Close took %s, the deadline was 50ms", took)
	}
	r.Close() // frees the goroutine
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(soon); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v still not: %s", soon, what)
		}
	}
}
