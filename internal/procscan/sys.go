package procscan

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"kzr/internal/readers"
)

// The walk calls the kernel without telling Go's scheduler (RawSyscall). What it
// asks never blocks: a pidfd says whether a process is dead, and of the dead the
// kernel makes stat and status up on the spot. Of the living it reads neither. Those
// take a reference to the process's memory, and should the process die meanwhile, the
// last one to let go has to tear that down, which waits for input and output under
// way: on a file system of the tenant's own, for ever. A call that the scheduler knows
// of may make it start a thread to replace the one that waits, and with a full process
// table that aborts the program. It is also some 7% faster.
//
// Everything that can block goes through the ordinary calls below, on the threads of
// a [readers.Pool].

// rawOpen opens a file named by a NUL-terminated path below dir.
func rawOpen(dir int, path []byte) (int, unix.Errno) {
	fd, _, e := syscall.RawSyscall6(unix.SYS_OPENAT, uintptr(dir), uintptr(unsafe.Pointer(&path[0])),
		unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0)
	return int(fd), e
}

func rawPread(fd int, buf []byte) (int, unix.Errno) {
	n, _, e := syscall.RawSyscall6(unix.SYS_PREAD64, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0, 0)
	return int(n), e
}

func rawRead(fd int, buf []byte) (int, unix.Errno) {
	n, _, e := syscall.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)))
	return int(n), e
}

func rawGetdents(fd int, buf []byte) (int, unix.Errno) {
	n, _, e := syscall.RawSyscall(unix.SYS_GETDENTS64, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)))
	return int(n), e
}

// Constants of linux/pidfd.h and linux/magic.h.
const (
	pidfdGetInfo = 0xC040FF0B // PIDFD_GET_INFO with the first struct pidfd_info (6.13)
	pidfsMagic   = 0x50494446 // inode numbers of pidfds are unique until the next boot (6.9)
)

// pidfdInfo is the first struct pidfd_info of linux/pidfd.h.
type pidfdInfo struct {
	mask, cgroup             uint64
	pid, tgid, ppid          uint32
	ruid, rgid, euid, egid   uint32
	suid, sgid, fsuid, fsgid uint32
	_                        uint32
}

// rawPidfdOpen opens a process. One that is not there, or is a thread, is ESRCH. Where
// there are no pidfds, before Linux 5.3 or behind a filter, its directory below root
// stands in: that too means the same process for as long as it is open. Its stat is then
// read of the living as well, who can make that hang; nobody acts there.
func rawPidfdOpen(root int, pid uint32) (int, unix.Errno) {
	fd, _, e := syscall.RawSyscall(unix.SYS_PIDFD_OPEN, uintptr(pid), 0, 0)
	switch e {
	case unix.EINVAL, unix.ENOENT:
		e = unix.ESRCH
	case unix.ENOSYS:
		path := append(strconv.AppendUint(nil, uint64(pid), 10), 0)
		fd, _, e = syscall.RawSyscall6(unix.SYS_OPENAT, uintptr(root), uintptr(unsafe.Pointer(&path[0])),
			unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0, 0, 0)
	}
	return int(fd), e
}

// rawDead says whether a process is dead with all its threads, reaped or not.
func rawDead(pidfd int) (bool, unix.Errno) {
	for {
		poll := unix.PollFd{Fd: int32(pidfd), Events: unix.POLLIN}
		var now unix.Timespec
		_, _, e := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
		switch {
		case e == unix.EINTR: // Go's scheduler interrupts its threads
			continue
		case poll.Revents&unix.POLLNVAL != 0: // no pidfd
			st, err := statOf(pidfd, "stat")
			return gone(err) || err == nil && (st.state == 'X' || st.state == 'Z' && st.threads <= 1), 0
		}
		return poll.Revents != 0, e
	}
}

// rawReaped says whether there is nothing left of a process, not even its pid. It
// asks whether a signal could be sent, and sends none.
func rawReaped(pidfd int) bool {
	_, _, e := syscall.RawSyscall6(unix.SYS_PIDFD_SEND_SIGNAL, uintptr(pidfd), 0, 0, 0, 0, 0)
	if e == unix.EBADF || e == unix.ENOSYS { // no pidfd
		_, err := statOf(pidfd, "stat")
		return gone(err)
	}
	return e == unix.ESRCH
}

// rawInfo is who a process is; it fails before Linux 6.13.
func rawInfo(pidfd int) (info pidfdInfo, e unix.Errno) {
	_, _, e = syscall.RawSyscall(unix.SYS_IOCTL, uintptr(pidfd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	return info, e
}

func rawFstat(fd int) (st unix.Stat_t, e unix.Errno) {
	_, _, e = syscall.RawSyscall(unix.SYS_FSTAT, uintptr(fd), uintptr(unsafe.Pointer(&st)), 0)
	return st, e
}

// rawStat looks at the file named by a NUL-terminated path below dir.
func rawStat(dir int, path []byte) (st unix.Statx_t, e unix.Errno) {
	_, _, e = syscall.RawSyscall6(unix.SYS_STATX, uintptr(dir), uintptr(unsafe.Pointer(&path[0])),
		unix.AT_STATX_DONT_SYNC, unix.STATX_NLINK|unix.STATX_SIZE|unix.STATX_UID, uintptr(unsafe.Pointer(&st)), 0)
	return st, e
}

func rawClose(fd int) {
	_, _, _ = syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) // opened for reading: nothing is lost
}

// failure is the error that an error number stands for: none if it is 0.
func failure(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

// gone tells the errors that mean that the process is not there any more.
func gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) }

// denied tells the errors that mean that kzr may not look.
func denied(err error) bool { return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) }

// late tells the errors of a read that has not come back, or was not begun because
// others have not.
func late(err error) bool {
	return errors.Is(err, readers.ErrLate) || errors.Is(err, readers.ErrBusy)
}

// readAll reads the file called name below dir, at most limit bytes of it.
func readAll(dir int, name string, limit int) ([]byte, error) {
	fd, err := openat(dir, name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }() // opened for reading: nothing is lost
	buf := make([]byte, 0, min(limit, 4096))
	for len(buf) < limit {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := unix.Read(fd, buf[len(buf):min(cap(buf), limit)])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, err
		case n == 0:
			return buf, nil
		}
		buf = buf[:len(buf)+n]
	}
	return buf, nil
}

func openat(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func readlinkat(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// namespace reads the inode number of a namespace link such as "ns/pid".
func namespace(dir int, name string) (uint64, error) {
	link, err := readlinkat(dir, name)
	if err != nil {
		return 0, err
	}
	if link == "" {
		return 0, unix.EACCES // how Linux 5.10 says it
	}
	_, num, _ := strings.Cut(link, ":[")
	inode, err := strconv.ParseUint(strings.TrimSuffix(num, "]"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("namespace link %q: %w", link, err)
	}
	return inode, nil
}

// readInt reads a file that holds one decimal number.
func readInt(fd int) (int, error) {
	var buf [32]byte
	n, e := rawPread(fd, buf[:])
	if e != 0 {
		return 0, e
	}
	return strconv.Atoi(strings.TrimSpace(string(buf[:n])))
}

// outermost returns the inode number of the outermost pid namespace below kzr's own, of
// which the process with this directory is in the innermost, inner; 0 if it is in kzr's
// own.
func outermost(dir int, inner, own uint64) (uint64, error) {
	if inner == 0 || own == 0 || inner == own {
		return 0, nil
	}
	ns, err := openat(dir, "ns/pid", unix.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer func() { unix.Close(ns) }()
	for outer := inner; ; {
		parent, err := unix.IoctlRetInt(ns, unix.NS_GET_PARENT)
		if err != nil {
			return 0, fmt.Errorf("asking for the parent of a pid namespace: %w", err)
		}
		unix.Close(ns)
		ns = parent
		var st unix.Stat_t
		if err := unix.Fstat(ns, &st); err != nil {
			return 0, err
		}
		if st.Ino == own {
			return outer, nil
		}
		outer = st.Ino
	}
}
