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

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"kzr/internal/task"
)

// ErrGone is task.ErrGone.
var ErrGone = task.ErrGone

// ErrForeign says that the proc file system shows another pid namespace than
// the one kzr runs in: its pids are not those that kzr could signal.
var ErrForeign = errors.New("shows the processes of another pid namespace")

// reserved is how many descriptors a Scanner holds back for the moment when no
// others are left: five for a look at a process, or one for each worker of a walk.
const reserved = 5

// Scanner reads one mounted proc file system. Its methods may be called
// concurrently; whole walks take turns.
//
// What can be opened before it is needed, is: the mount itself, the files of the
// node's limits, the cgroup mounts. Nothing here starts a process, and the
// system calls of the walk never hand their thread over, so that a full process
// table does not stop it.
type Scanner struct {
	path    string
	fs      procfs.FS
	root    int // the mount, open for reading
	loadavg int // -1 if it cannot be read, as with subset=pid
	pidMax  int
	threads int
	cgroups hierarchies

	turn    chan struct{} // holds one token: the right to walk
	workers []*worker     // used by the holder of the turn
	known   atomic.Pointer[census]
	unseen  atomic.Int64 // processes that the last whole walk could not read
	moved   func()       // see OnProgress

	reserveMu sync.Mutex
	reserve   []int
}

// New opens the proc file system mounted at root, normally "/proc". The error
// says so if there is none there, and wraps ErrForeign if it belongs to another
// pid namespace.
func New(root string) (*Scanner, error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the proc file system at %s: %w", root, err)
	}
	s := &Scanner{path: root, root: fd, loadavg: -1, pidMax: -1, threads: -1, turn: make(chan struct{}, 1), moved: func() {}}
	s.turn <- struct{}{}
	if err := s.open(); err != nil {
		_ = s.Close()
		return nil, err
	}
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
	for range workerCount() {
		s.workers = append(s.workers, newWorker(s.root))
	}
	s.fillReserve()
	return nil
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

// Close gives the descriptors back. No other method may be running or follow.
func (s *Scanner) Close() error {
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
