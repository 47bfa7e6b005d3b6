// Package procscan sees zombies, their parents and the node through /proc. The
// kernel's text flows in; task.Snapshot and task.Process values flow out. It
// decides nothing and changes nothing.
//
// It is the only source where eBPF is not to be had, and in every mode the one
// that looks at a single process closely.
package procscan

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"kzr/internal/readers"
	"kzr/internal/task"
)

// ErrGone is task.ErrGone.
var ErrGone = task.ErrGone

// ErrForeign says that the proc file system shows another pid namespace than
// the one kzr runs in: its pids are not those that kzr could signal.
var ErrForeign = errors.New("shows the processes of another pid namespace")

// reserved is how many descriptors a Scanner holds back for the moment when no
// others are left: five for a look at a process, or three for each worker of a walk.
const reserved = 6

// Scanner reads one mounted proc file system. Its methods may be called
// concurrently; whole walks take turns.
//
// What can be opened before it is needed, is: the mount itself, the files of the
// node's limits, the cgroup mounts. Nothing here starts a process, the system calls of
// the walk never hand their thread over, and the threads for what may not come back
// are made at the start, so that a full process table does not stop it.
type Scanner struct {
	path    string
	fs      procfs.FS
	root    int // the mount, open for reading
	loadavg int // -1 if it cannot be read, as with subset=pid
	pidMax  int
	threads int
	cgroups hierarchies

	pidfs     bool          // a process's pidfds have an inode number of their own
	countsFDs bool          // see look
	pidns     uint64        // kzr's own pid namespace
	ownPIDMax bool          // pid_max is that of that namespace alone
	usual     time.Duration // see measureUsual

	pool     *readers.Pool // for what may never come back
	cmdlines *readers.Pool

	turn    chan struct{} // holds one token: the right to walk
	workers []*worker     // used by the holder of the turn
	known   atomic.Pointer[census]
	counted atomic.Pointer[count]
	unseen  atomic.Int64 // dead processes that the last walk could not read
	moved   func()       // see OnProgress

	mu       sync.Mutex
	parents  map[int]parent // those that were read, where pidfs tells them apart
	tracings map[task.ID]*tracing
	learnt   map[uint64]struct{}      // zombies that nobody traces and known does not know of
	slow     map[string]time.Duration // tenants with slow status files, and when to read the next

	reserveMu sync.Mutex
	reserve   []int
}

// New opens the proc file system mounted at root, normally "/proc". The error
// says so if there is none there, and wraps ErrForeign if it belongs to another
// pid namespace.
func New(root string) (*Scanner, error) { return newScanner(root, poolThreads, cmdlineThreads) }

// NewOnce is New for who looks once, and ends if it hangs: with few threads.
func NewOnce(root string) (*Scanner, error) { return newScanner(root, threadsPerTenant+1, 1) }

func newScanner(root string, poolThreads, cmdlineThreads int) (*Scanner, error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the proc file system at %s: %w", root, err)
	}
	s := &Scanner{path: root, root: fd, loadavg: -1, pidMax: -1, threads: -1, turn: make(chan struct{}, 1), moved: func() {},
		parents: make(map[int]parent), learnt: make(map[uint64]struct{}), tracings: make(map[task.ID]*tracing), slow: make(map[string]time.Duration)}
	s.turn <- struct{}{}
	if err := s.open(); err != nil {
		_ = s.Close()
		return nil, err
	}
	s.pool = readers.New(poolThreads, threadsPerTenant)
	s.cmdlines = readers.New(cmdlineThreads, 1)
	return s, nil
}

func (s *Scanner) open() error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(s.root, &st); err != nil {
		return fmt.Errorf("looking at the file system of %s: %w", s.path, err)
	}
	if st.Type != unix.PROC_SUPER_MAGIC {
		return fmt.Errorf("no proc file system is mounted at %s", s.path)
	}
	if err := s.checkOwn(); err != nil {
		return err
	}
	var err error
	if s.fs, err = procfs.NewFS(s.path); err != nil {
		return fmt.Errorf("opening the proc file system at %s: %w", s.path, err)
	}
	for name, fd := range map[string]*int{
		"loadavg":                &s.loadavg,
		"sys/kernel/pid_max":     &s.pidMax,
		"sys/kernel/threads-max": &s.threads,
	} {
		if f, err := unix.Openat(s.root, name, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			*fd = f
		}
	}
	s.cgroups = openHierarchies(s.fs)
	if err := s.findFeatures(); err != nil {
		return err
	}
	s.measureUsual()
	for range workerCount() {
		s.workers = append(s.workers, s.newWorker())
	}
	s.fillReserve()
	return nil
}

// findFeatures finds out what this kernel can tell.
func (s *Scanner) findFeatures() error {
	pidfd, e := rawPidfdOpen(s.root, uint32(os.Getpid()))
	if e != 0 {
		return fmt.Errorf("opening a pidfd: %w", e)
	}
	defer rawClose(pidfd)
	var fs unix.Statfs_t
	s.pidfs = unix.Fstatfs(pidfd, &fs) == nil && fs.Type == pidfsMagic
	st, e := s.newWorker().stat(uint32(os.Getpid()), "/fd")
	s.countsFDs = e == 0 && st.Size > 0
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("asking for the kernel's version: %w", err)
	}
	s.pidns = s.namespaceOf("self", "pid")
	s.ownPIDMax = s.pidns != initialPIDNS && ownPIDMax(unix.ByteSliceToString(u.Release[:]))
	return nil
}

// ownPIDMax says whether a kernel has a pid_max for each pid namespace. There is no
// telling but by its version: inside, the file looks the same.
func ownPIDMax(release string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > 6 || major == 6 && minor >= 14
}

// checkOwn compares what the mount calls this process with what the kernel
// calls it. A pid alone could agree by chance; a mount that belongs to an outer
// namespace shows a second NSpid.
func (s *Scanner) checkOwn() error {
	self, err := readlinkat(s.root, "self")
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("the proc file system at %s %w", s.path, ErrForeign)
	}
	if err != nil {
		return fmt.Errorf("reading %s/self: %w", s.path, err)
	}
	b, err := readAll(s.root, "self/status", statusMax)
	if err != nil {
		return fmt.Errorf("reading %s/self/status: %w", s.path, err)
	}
	// Kernels without pid namespaces have no NSpid line.
	if self != strconv.Itoa(os.Getpid()) || len(parseStatus(b).nspid) > 1 {
		return fmt.Errorf("the proc file system at %s %w", s.path, ErrForeign)
	}
	return nil
}

// OnProgress has f called every few hundred processes of a walk. No walk may be
// under way.
func (s *Scanner) OnProgress(f func()) { s.moved = f }

// Lost is how many of the Scanner's threads are with reads that have not come back.
func (s *Scanner) Lost() int { return s.pool.Lost() + s.cmdlines.Lost() }

// Close gives the descriptors back. No other method may be running or follow. Where
// reads have not come back it gives none: those would go on with somebody else's.
func (s *Scanner) Close() error {
	if s.pool != nil {
		s.pool.Close()
		s.cmdlines.Close()
		if s.Lost() > 0 {
			return nil
		}
	}
	s.dropReserve()
	for _, fd := range []int{s.loadavg, s.pidMax, s.threads} {
		if fd >= 0 {
			_ = unix.Close(fd) // opened for reading: nothing is lost
		}
	}
	s.cgroups.close()
	if err := unix.Close(s.root); err != nil {
		return fmt.Errorf("closing the proc file system: %w", err)
	}
	return nil
}

// frugally runs f, and once more with the reserved descriptors given up if it
// failed for want of one.
func (s *Scanner) frugally(f func() error) error {
	err := f()
	if unlessShort(err) == nil {
		return err
	}
	s.dropReserve()
	defer s.fillReserve()
	return f()
}

func (s *Scanner) dropReserve() {
	s.reserveMu.Lock()
	defer s.reserveMu.Unlock()
	for _, fd := range s.reserve {
		_ = unix.Close(fd) // a duplicate of root: nothing is lost
	}
	s.reserve = s.reserve[:0]
}

func (s *Scanner) fillReserve() {
	s.reserveMu.Lock()
	defer s.reserveMu.Unlock()
	for len(s.reserve) < reserved {
		fd, err := unix.FcntlInt(uintptr(s.root), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return // still short: the next call tries again
		}
		s.reserve = append(s.reserve, fd)
	}
}
