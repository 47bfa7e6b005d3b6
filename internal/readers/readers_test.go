package readers

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 50 * time.Millisecond

// fifo is a file that nobody can open for reading until it is let go.
type fifo struct {
	path string
	once sync.Once
}

func newFIFO(t *testing.T) *fifo {
	t.Helper()
	f := &fifo{path: filepath.Join(t.TempDir(), "fifo")}
	if err := unix.Mkfifo(f.path, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.letGo(t) })
	return f
}

// open is a read that blocks in the kernel.
func (f *fifo) open() (string, error) {
	fd, err := unix.Open(f.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	return "opened", unix.Close(fd)
}

// letGo ends all reads of the file, and those that have yet to begin.
func (f *fifo) letGo(t *testing.T) {
	f.once.Do(func() {
		fd, err := unix.Open(f.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
	})
}

func newPool(t *testing.T, threads, perKey int) *Pool {
	p := New(threads, perKey)
	t.Cleanup(p.Close)
	return p
}

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

// block begins a read that is late, and says how it ended.
func block(t *testing.T, p *Pool, key string, f *fifo) error {
	t.Helper()
	began := time.Now()
	got, err := Read(t.Context(), p, key, patience, f.open)
	if took := time.Since(began); took > patience+time.Second {
		t.Errorf("a read of %s took %v, want %v", key, took, patience)
	}
	if err == nil {
		t.Errorf("read %q from a file that does not answer", got)
	}
	return err
}

func TestRead(t *testing.T) {
	p := newPool(t, 2, 1)
	mine := errors.New("mine")
	if got, err := Read(t.Context(), p, "a", time.Minute, func() (int, error) { return 42, nil }); got != 42 || err != nil {
		t.Errorf("got %d, %v, want 42", got, err)
	}
	if _, err := Read(t.Context(), p, "a", time.Minute, func() (int, error) { return 0, mine }); !errors.Is(err, mine) {
		t.Errorf("got %v, want the read's own error", err)
	}
}

// A read that never answers costs its patience and a thread; the second of the same
// key nothing, and those of others go on. What comes back is used again.
func TestLateReads(t *testing.T) {
	p := newPool(t, 3, 1)
	f := newFIFO(t)
	if err := block(t, p, "hung", f); !errors.Is(err, ErrLate) {
		t.Errorf("got %v, want ErrLate", err)
	}
	if n := p.Lost(); n != 1 {
		t.Errorf("%d threads lost, want 1", n)
	}
	began := time.Now()
	if _, err := Read(t.Context(), p, "hung", time.Minute, f.open); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v, want ErrBusy", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("ErrBusy took %v", took)
	}
	if got, err := Read(t.Context(), p, "other", time.Minute, func() (int, error) { return 1, nil }); got != 1 || err != nil {
		t.Errorf("another key got %d, %v", got, err)
	}
	f.letGo(t)
	within(t, "the thread is back", func() bool { return p.Lost() == 0 })
	if got, err := Read(t.Context(), p, "hung", time.Minute, f.open); got != "opened" || err != nil {
		t.Errorf("after it came back: got %q, %v", got, err)
	}
	within(t, "no key is kept", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.keys) == 0 })
}

// With every thread lost, reads fail at once instead of waiting for their patience
// each.
func TestAllThreadsLost(t *testing.T) {
	p := newPool(t, 2, 1)
	f := newFIFO(t)
	for _, key := range []string{"a", "b"} {
		if err := block(t, p, key, f); !errors.Is(err, ErrLate) {
			t.Errorf("got %v, want ErrLate", err)
		}
	}
	if err := block(t, p, "c", f); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v, want ErrBusy", err)
	}
	f.letGo(t)
	within(t, "the threads are back", func() bool { return p.Lost() == 0 })
}

// A thread in use is waited for, as long as patience lasts, and no longer than the
// context.
func TestWaitingForAThread(t *testing.T) {
	p := newPool(t, 1, 1)
	f := newFIFO(t)
	first := make(chan error, 1)
	go func() {
		_, err := Read(t.Context(), p, "a", time.Minute, f.open)
		first <- err
	}()
	within(t, "the thread is in use", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.all.out == 1 })
	if err := block(t, p, "b", f); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v, want ErrBusy", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := Read(ctx, p, "b", time.Minute, f.open); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's error", err)
	}
	second := make(chan error, 1)
	go func() {
		_, err := Read(t.Context(), p, "b", time.Minute, f.open)
		second <- err
	}()
	f.letGo(t)
	if err := <-first; err != nil {
		t.Errorf("the first read: %v", err)
	}
	if err := <-second; err != nil {
		t.Errorf("the read that waited: %v", err)
	}
}

// A cancelled read leaves its thread in the kernel: it counts as lost until it is
// back.
func TestCancel(t *testing.T) {
	p := newPool(t, 1, 1)
	f := newFIFO(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := Read(ctx, p, "a", time.Minute, f.open); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's error", err)
	}
	if n := p.Lost(); n != 1 {
		t.Errorf("%d threads lost, want 1", n)
	}
	f.letGo(t)
	within(t, "the thread is back", func() bool { return p.Lost() == 0 })
}

// However many reads block, and however the program is busy meanwhile, Go's runtime
// makes no thread.
func TestNoThreadIsMadeLater(t *testing.T) {
	const threads = 8
	p := newPool(t, threads, threads)
	f := newFIFO(t)
	made := func() int { return pprof.Lookup("threadcreate").Count() }
	before := made()
	var wg sync.WaitGroup
	busy, stop := context.WithCancel(t.Context())
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for busy.Err() == nil {
				runtime.GC()
			}
		})
	}
	for i := range threads - 1 {
		wg.Go(func() {
			if _, err := Read(t.Context(), p, strconv.Itoa(i), patience, f.open); !errors.Is(err, ErrLate) {
				t.Errorf("got %v, want ErrLate", err)
			}
		})
	}
	within(t, "the reads are late", func() bool { return p.Lost() == threads-1 })
	for range 200 {
		_, err := Read(t.Context(), p, "other", time.Minute, func() (string, error) {
			b, err := os.ReadFile("/proc/self/stat")
			return string(b), err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	f.letGo(t)
	within(t, "the threads are back", func() bool { return p.Lost() == 0 })
	stop()
	wg.Wait()
	if after := made(); after != before {
		t.Errorf("%d threads were made after New", after-before)
	}
}
