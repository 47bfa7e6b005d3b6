package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A tracer holds kzr at its system calls, so that a test can change the world
// exactly between one and the next. It is the one way to make a window of
// microseconds as wide as one likes, and to be in it every time.
type tracer struct {
	t     *testing.T
	pid   int
	mem   *os.File
	stops chan *stop
	quit  chan struct{}
	done  chan struct{}
	err   error

	wanted  atomic.Pointer[func(*call) bool]
	closing atomic.Bool
	close   func()
}

// A call is a system call at its entry or its exit.
type call struct {
	tr     *tracer
	Thread int
	Exit   bool
	Nr     uint64
	Args   [6]uint64
	Result int64 // at the exit; negative is an errno

	// Hang, set by wanted, keeps this one thread in this call until the tracer lets
	// go of kzr, while the others go on.
	Hang bool
}

// A stop is a thread of kzr that is held.
type stop struct {
	call
	release chan struct{}
}

// goOn lets it go on.
func (s *stop) goOn() { close(s.release) }

// text reads a string of kzr's, the first 63 bytes of it.
func (c *call) text(address uint64) string {
	b := make([]byte, 64)
	n, _ := c.tr.mem.ReadAt(b, int64(address))
	for i := range n {
		if b[i] == 0 {
			return string(b[:i])
		}
	}
	return string(b[:n])
}

// pid is the number of the process that a path below /proc is about, 0 if it is
// not about one.
func (c *call) pid(address uint64) int {
	path := c.text(address)
	end := 0
	for end < len(path) && path[end] >= '0' && path[end] <= '9' {
		end++
	}
	n, _ := strconv.Atoi(path[:end])
	return n
}

// traceDaemon traces every thread of kzr until the test ends or untrace. Whenever
// wanted says so, the thread is held and sent to stops, until it is released.
// wanted runs while only that thread is held, and must be quick.
func traceDaemon(d *daemon) *tracer {
	d.t.Helper()
	tr := &tracer{
		t: d.t, pid: d.pid,
		stops: make(chan *stop), quit: make(chan struct{}), done: make(chan struct{}),
	}
	none := func(*call) bool { return false }
	tr.wanted.Store(&none)
	var err error
	if tr.mem, err = os.Open(fmt.Sprintf("/proc/%d/mem", d.pid)); err != nil {
		d.t.Fatal(err)
	}
	ready := make(chan struct{})
	go tr.run(ready)
	<-ready
	if tr.err != nil {
		d.t.Fatal(tr.err)
	}
	tr.close = sync.OnceFunc(func() {
		close(tr.quit)
		tr.closing.Store(true)
		// Any signal ends its wait; this one means nothing to a Go program.
		for open := true; open; {
			_ = unix.Kill(tr.pid, unix.SIGURG)
			select {
			case <-tr.done:
				open = false
			case <-tick():
			}
		}
		tr.mem.Close()
	})
	d.t.Cleanup(func() { // before the one that stops kzr
		tr.close()
		if tr.err != nil {
			d.t.Error(tr.err)
		}
	})
	return tr
}

// hold says at which calls threads are held from now on; nil at none.
func (tr *tracer) hold(wanted func(*call) bool) {
	if wanted == nil {
		wanted = func(*call) bool { return false }
	}
	tr.wanted.Store(&wanted)
}

// run is the tracer's thread. Only the thread that seized another may ask ptrace
// for anything.
func (tr *tracer) run(ready chan<- struct{}) {
	runtime.LockOSThread()
	// The thread must not end with the goroutine: some daemon may have been
	// started by it, and would die with it (see Pdeathsig).
	defer runtime.UnlockOSThread()
	defer close(tr.done)

	seized := map[int]*call{}
	for more := true; more && tr.err == nil; {
		more = false
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", tr.pid))
		if err != nil {
			tr.err = err
		}
		for _, entry := range threads {
			tid, _ := strconv.Atoi(entry.Name())
			if seized[tid] != nil {
				continue
			}
			more = true // until a look finds none that is new
			if err := ptrace(unix.PTRACE_SEIZE, tid, 0, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE); err != nil {
				tr.err = fmt.Errorf("tracing thread %d of kzr: %w", tid, err)
				break
			}
			seized[tid] = &call{tr: tr, Thread: tid}
			_ = unix.PtraceInterrupt(tid)
		}
	}
	close(ready)
	for {
		var ws unix.WaitStatus
		// What is traced by this thread, but no child that it may have started in an
		// earlier life: those belong to os/exec.
		tid, err := unix.Wait4(-1, &ws, unix.WCLONE|unix.WNOTHREAD, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return // it has ended
		}
		if !ws.Stopped() {
			delete(seized, tid)
			continue
		}
		c := seized[tid]
		if c == nil {
			c = &call{tr: tr, Thread: tid}
			seized[tid] = c
		}
		sig := 0
		switch {
		case ws.StopSignal() == unix.SIGTRAP|0x80:
			if tr.stopped(c); c.Hang && !tr.closing.Load() {
				continue
			}
		case ws>>16 != 0: // a ptrace event: seized, a new thread, SIGSTOP
		default:
			sig = int(ws.StopSignal())
		}
		if tr.closing.Load() {
			// What is held for a signal can be let go of; the others are made to
			// be held once more.
			_ = unix.PtraceInterrupt(tid)
			if ptrace(unix.PTRACE_DETACH, tid, 0, uintptr(sig)) == nil {
				delete(seized, tid)
			}
			for other, c := range seized {
				if c.Hang && ptrace(unix.PTRACE_DETACH, other, 0, 0) == nil {
					delete(seized, other)
				}
				_ = unix.PtraceInterrupt(other)
			}
			if len(seized) == 0 {
				return
			}
			continue
		}
		_ = ptrace(unix.PTRACE_SYSCALL, tid, 0, uintptr(sig)) // ESRCH: it was killed
	}
}

// stopped looks at a system call and holds the thread if that is wanted.
func (tr *tracer) stopped(c *call) {
	var info [88]byte // struct ptrace_syscall_info
	if _, _, e := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(c.Thread),
		uintptr(len(info)), uintptr(unsafe.Pointer(&info)), 0, 0); e != 0 {
		return
	}
	word := func(i int) uint64 { return binary.NativeEndian.Uint64(info[24+8*i:]) }
	switch info[0] {
	case unix.PTRACE_SYSCALL_INFO_ENTRY:
		c.Exit, c.Nr, c.Result = false, word(0), 0
		for i := range c.Args {
			c.Args[i] = word(1 + i)
		}
	case unix.PTRACE_SYSCALL_INFO_EXIT:
		c.Exit, c.Result = true, int64(word(0))
	default:
		return
	}
	if tr.closing.Load() || !(*tr.wanted.Load())(c) {
		return
	}
	s := &stop{call: *c, release: make(chan struct{})}
	select {
	case tr.stops <- s:
	case <-tr.quit:
		return
	}
	select {
	case <-s.release:
	case <-tr.quit:
	}
}

func ptrace(request, tid int, addr, data uintptr) error {
	if _, _, e := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0); e != 0 {
		return e
	}
	return nil
}
