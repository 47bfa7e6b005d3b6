package report

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	logBuffer  = 256 << 10       // bytes of lines that wait for a slow log
	logRetryIn = 5 * time.Second // between attempts to say what was lost
)

// Writer stands between the loop that decides and a log that may be slow, full
// or gone. Its Write takes one line and neither waits nor fails: a goroutine
// writes, and lines beyond 256 KiB of backlog and lines that cannot be written
// are dropped and counted. As soon as writing works again a line says how many.
//
// While the underlying writer blocks in a system call it holds one thread, and
// no more. A program whose log is its standard error must also ignore SIGPIPE,
// or the Go runtime ends it when the reader is gone.
type Writer struct {
	w       io.Writer
	q       *queue
	notice  atomic.Pointer[func(lost uint64) []byte]
	failed  atomic.Uint64
	closing chan struct{}
	closed  sync.Once
	done    chan struct{}
}

// NewWriter starts the goroutine that writes to w; Close ends it.
func NewWriter(w io.Writer) *Writer {
	lw := &Writer{w: w, q: newQueue(logBuffer), closing: make(chan struct{}), done: make(chan struct{})}
	lw.setNotice(func(n uint64) []byte { return fmt.Appendf(nil, "%d log lines were lost\n", n) })
	go lw.run()
	return lw
}

// setNotice gives the form of the line that tells of lost ones.
func (w *Writer) setNotice(f func(lost uint64) []byte) { w.notice.Store(&f) }

// Write queues one line. It always succeeds.
func (w *Writer) Write(p []byte) (int, error) {
	w.q.push(bytes.Clone(p))
	return len(p), nil
}

// Dropped counts the lines that were never written.
func (w *Writer) Dropped() uint64 { return w.q.lost() + w.failed.Load() }

// Close writes what is queued, waiting at most timeout, and says if some of it
// was not written. What is written to w later is lost.
func (w *Writer) Close(timeout time.Duration) error {
	w.closed.Do(func() { close(w.closing) })
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-w.done:
	case <-t.C:
		return fmt.Errorf("writing the last log lines: the reader did not take them within %s", timeout)
	}
	if n := w.Dropped(); n > 0 {
		return fmt.Errorf("writing the log: %d lines were lost", n)
	}
	return nil
}

func (w *Writer) run() {
	defer close(w.done)
	out := lineWriter{w: w.w}
	var lost uint64 // lines lost and not told of yet
	tell := func() bool {
		if lost > 0 && out.write((*w.notice.Load())(lost)) {
			lost = 0
		}
		return lost == 0
	}
	for stop := false; ; {
		lines, gap := w.q.take()
		for _, l := range lines {
			lost += l.gap
			if !tell() || !out.write(l.text) {
				lost++
				w.failed.Add(1)
			}
		}
		lost += gap
		tell()
		if stop {
			return
		}
		var again <-chan time.Time
		if lost > 0 {
			again = time.After(logRetryIn)
		}
		select {
		case <-w.q.wake:
		case <-again:
		case <-w.closing:
			stop = true // one more round
		}
	}
}

// lineWriter writes whole lines: what is left of one that was cut off by an
// error is ended before the next begins.
type lineWriter struct {
	w    io.Writer
	torn bool
}

func (l *lineWriter) write(text []byte) bool {
	if l.torn {
		if n, _ := l.w.Write([]byte{'\n'}); n != 1 {
			return false
		}
		l.torn = false
	}
	n, _ := l.w.Write(text) // a short write is an error by io.Writer's contract
	l.torn = n > 0 && n < len(text)
	return n == len(text)
}
