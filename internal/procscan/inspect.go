package procscan

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
)

// cmdlineMax is how much of a command line is kept.
const cmdlineMax = 4096

// Inspect looks closely at one process and fills in all of a task.Process but
// Container and Unit. What kzr may not read stays zero and is named in Unseen.
// The error wraps ErrGone if there is no such process, or no longer by the
// time the look ended; a pid that names a thread, not a process, is such an
// error too.
//
// State, Threads, Exiting and Comm are the last things read, so they are the
// freshest. Where the thread group's leader is dead and other threads live on,
// what it shows is that of one of those, State and Exiting too.
func (s *Scanner) Inspect(pid int) (task.Process, error) {
	var p task.Process
	err := s.frugally(func() (err error) {
		p, err = s.inspect(pid)
		return err
	})
	if gone(err) {
		err = ErrGone
	}
	if err != nil {
		return task.Process{}, fmt.Errorf("looking at process %d: %w", pid, err)
	}
	return p, nil
}

func (s *Scanner) inspect(pid int) (task.Process, error) {
	if pid <= 0 || pid > maxPID {
		return task.Process{}, ErrGone
	}
	// The directory stands for this one process: once that is reaped, nothing
	// in it can be read, whoever gets the pid next.
	dir, err := openat(s.root, strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return task.Process{}, err
	}
	defer func() { _ = unix.Close(dir) }() // O_PATH: nothing is lost

	first, err := statOf(dir)
	if err != nil {
		return task.Process{}, err
	}
	// Of a leader that is dead little is left to see, though its process lives:
	// what it ran, where, and how it is are any other thread's to show.
	body := dir
	if first.state == 'Z' && first.threads > 1 {
		if body, err = liveThread(dir); err != nil {
			return task.Process{}, err
		}
		defer func() { _ = unix.Close(body) }() // O_PATH: nothing is lost
	}
	l := look{dir: body}
	p := task.Process{ID: task.ID{PID: pid, Start: first.start}}

	b, err := readAll(dir, "status", statusMax)
	if err := l.check("status", err); err != nil {
		return task.Process{}, err
	}
	st := parseStatus(b)
	if len(b) > 0 && st.tgid != pid {
		return task.Process{}, fmt.Errorf("it is a thread of process %d: %w", st.tgid, ErrGone)
	}
	p.UID, p.NSPID = st.uid, st.nspid
	if body != dir {
		b, err := readAll(body, "status", statusMax)
		if err := l.check("status", err); err != nil {
			return task.Process{}, err
		}
		st = parseStatus(b)
	}
	p.SigCaught, p.SigIgnored, p.SigBlocked = st.sigCaught, st.sigIgnored, st.sigBlocked
	if p.Tracer.PID = st.tracer; st.tracer != 0 {
		// The kernel names the tracing thread; its process is what people know.
		if b, err := readAll(s.root, strconv.Itoa(st.tracer)+"/status", statusMax); err == nil {
			p.Tracer.PID = parseStatus(b).tgid
		}
	}
	if err := l.files(&p); err != nil {
		return task.Process{}, err
	}
	if err := s.readCgroups(&p, &l); err != nil {
		return task.Process{}, err
	}

	last, err := statOf(dir)
	if err != nil {
		return task.Process{}, err
	}
	if last.start != first.start {
		return task.Process{}, ErrGone
	}
	p.PPID, p.Comm, p.Threads = int(last.ppid), string(last.comm), int(last.threads)
	p.Waited, p.Kernel = last.waited, last.flags&pfKthread != 0
	if body != dir {
		if last, err = statOf(body); err != nil {
			return task.Process{}, err
		}
	}
	p.State, p.Exiting = last.state, last.flags&pfExiting != 0
	p.Unseen = l.unseen
	return p, nil
}

// liveThread opens the directory of a thread that lives, of the process that dir
// is about. If there is none left, the process is as good as gone.
func liveThread(dir int) (int, error) {
	list, err := openat(dir, "task", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(list) }() // opened for reading: nothing is lost
	// Only the leader stays in the list when it is dead, so the first block of it
	// will do.
	buf := make([]byte, dentsSize)
	n, err := unix.ReadDirent(list, buf)
	if err != nil {
		return -1, err
	}
	for names := buf[:n]; len(names) > 0; {
		var tid uint32
		if tid, names = nextPID(names); tid == 0 {
			continue
		}
		fd, err := openat(list, strconv.Itoa(int(tid)), unix.O_PATH|unix.O_DIRECTORY)
		if gone(err) {
			continue
		}
		if err != nil {
			return -1, err
		}
		if st, err := statOf(fd); err == nil && st.state != 'Z' && st.state != 'X' {
			return fd, nil
		}
		_ = unix.Close(fd) // O_PATH: nothing is lost
	}
	return -1, unix.ESRCH
}

func statOf(dir int) (stat, error) {
	b, err := readAll(dir, "stat", lineSize)
	if err != nil {
		return stat{}, err
	}
	st, err := parseStat(b)
	if err == nil && st.threads == 0 {
		return stat{}, unix.ESRCH
	}
	return st, err
}

// look is one Inspect under way.
type look struct {
	dir    int
	unseen []string
}

// check sorts the error of one part of a look: what is forbidden is noted, and so
// is a path longer than the kernel can tell, which anybody can have; what is not
// there is left out, and anything else ends the look. Whether the process itself
// is gone is for the last reading of stat to say: a zombie and a kernel thread
// have no executable, and never had.
func (l *look) check(what string, err error) error {
	switch {
	case err == nil, gone(err):
		return nil
	case denied(err), errors.Is(err, unix.ENAMETOOLONG):
		var errno unix.Errno
		errors.As(err, &errno) // that is what was looked at
		l.unseen = append(l.unseen, what+": "+errno.Error())
		return nil
	}
	return fmt.Errorf("reading %s: %w", what, err)
}

// files reads what has a file or link of its own.
func (l *look) files(p *task.Process) error {
	exe, err := readlinkat(l.dir, "exe")
	if errors.Is(err, unix.ENAMETOOLONG) {
		exe, err = task.LongExe, nil
	}
	if err := l.check("exe", err); err != nil {
		return err
	}
	p.Exe = exe
	if name, ok := strings.CutSuffix(exe, deletedSuffix); ok {
		literal, err := l.exists(exe)
		if err != nil {
			return fmt.Errorf("looking for the executable: %w", err)
		}
		if !literal {
			p.Exe, p.ExeDeleted = name, true
		}
	}

	for name, inode := range map[string]*uint64{"ns/pid": &p.PIDNS, "ns/mnt": &p.MntNS, "ns/user": &p.UserNS} {
		ns, err := namespace(l.dir, name)
		if err := l.check(name, err); err != nil {
			return err
		}
		*inode = ns
	}
	return nil
}

const deletedSuffix = " (deleted)"

// resolveCached is RESOLVE_CACHED of linux/openat2.h: fail rather than wait.
const resolveCached = 0x20

// exists says whether the executable really has the name that its link shows.
// The kernel adds " (deleted)" to the name of a file that was unlinked, but a
// file can be called that.
//
// The file system may be a tenant's own, which need not answer: nothing here
// asks it, only what the kernel has cached. The name of a running executable
// is; where the kernel cannot look only there (before 5.12), the suffix is
// taken for the kernel's.
func (l *look) exists(name string) (bool, error) {
	exe, err := openat(l.dir, "exe", unix.O_PATH)
	if err != nil {
		return false, unlessShort(err)
	}
	defer func() { _ = unix.Close(exe) }() // O_PATH: nothing is lost
	var want unix.Statx_t
	if cachedStat(exe, &want) != nil || want.Nlink == 0 {
		return false, nil
	}
	named := func(root int, resolve uint64) (bool, error) {
		fd, err := unix.Openat2(root, name, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: resolveCached | resolve,
		})
		if err != nil {
			return false, unlessShort(err)
		}
		defer func() { _ = unix.Close(fd) }() // O_PATH: nothing is lost
		var got unix.Statx_t
		return cachedStat(fd, &got) == nil && got.Ino == want.Ino &&
			got.Dev_major == want.Dev_major && got.Dev_minor == want.Dev_minor, nil
	}
	// The link's text starts at kzr's root where kzr can reach the file, else at
	// the root of the process's mount namespace, which may be the process's.
	if found, err := named(unix.AT_FDCWD, 0); found || err != nil {
		return found, err
	}
	root, err := openat(l.dir, "root", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return false, unlessShort(err)
	}
	defer func() { _ = unix.Close(root) }() // O_PATH: nothing is lost
	return named(root, unix.RESOLVE_IN_ROOT)
}

// unlessShort keeps only the errors that come from a want of descriptors: they
// say nothing about what was looked for.
func unlessShort(err error) error {
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return err
	}
	return nil
}

func cachedStat(fd int, st *unix.Statx_t) error {
	return unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO|unix.STATX_NLINK, st)
}

// Cmdline reads the command line of a process, at most 4 KiB of it; nil if it has
// none, is gone, or may not be read. It waits for the process's memory lock,
// which a thread stuck in the kernel can hold for ever: nobody may call it who
// has anything to decide. That is why [Scanner.Inspect] leaves it out.
func (s *Scanner) Cmdline(id task.ID) []string {
	dir, err := openat(s.root, strconv.Itoa(id.PID), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil
	}
	defer func() { _ = unix.Close(dir) }() // O_PATH: nothing is lost
	st, err := statOf(dir)
	if err != nil || st.start != id.Start || st.state == 'D' {
		return nil
	}
	body := dir
	if st.state == 'Z' && st.threads > 1 { // as in inspect
		if body, err = liveThread(dir); err != nil {
			return nil
		}
		defer func() { _ = unix.Close(body) }() // O_PATH: nothing is lost
	}
	b, err := readAll(body, "cmdline", cmdlineMax)
	if err != nil {
		return nil
	}
	return splitCmdline(b)
}

// splitCmdline takes a command line apart. What was cut off is simply missing.
func splitCmdline(b []byte) []string {
	b = bytes.TrimSuffix(b, []byte{0})
	if len(b) == 0 {
		return nil
	}
	return strings.Split(string(b), "\x00")
}
