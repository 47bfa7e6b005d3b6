package procscan

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The walk calls the kernel without telling Go's scheduler (RawSyscall). The
// files it reads never block: the kernel makes stat and status up on the spot.
// A call that the scheduler knows of may make it start a thread to replace the
// one that waits, and with a full process table that aborts the program. It is
// also some 7% faster.
//
// Everything that can block (cmdline needs the process's memory lock, cgroup
// the lock of all cgroups) goes through the ordinary calls below.

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

func rawClose(fd int) {
	_, _, _ = syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) // opened for reading: nothing is lost
}

// gone tells the errors that mean that the process is not there any more.
func gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) }

// denied tells the errors that mean that kzr may not look.
func denied(err error) bool { return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) }

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
