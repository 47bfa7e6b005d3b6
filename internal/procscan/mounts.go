package procscan

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// mountTable knows the mounts of the host's mount namespace by their ids, which
// are the whole system's while a mount is in use. Nobody but root makes one there.
type mountTable struct {
	mu   sync.Mutex
	ns   uint64   // the namespace, 0 if not known
	file *os.File // process 1's mountinfo, nil if it cannot be read
	ids  map[uint64]struct{}
}

func (s *Scanner) openMounts() {
	s.mounts.ns = s.hostNamespace("mnt", s.namespaceOf("self", "pid") == initialPIDNS)
	if fd, err := openat(s.root, "1/mountinfo", unix.O_RDONLY); err == nil {
		s.mounts.file = os.NewFile(uintptr(fd), "mountinfo")
	}
}

// foreign says whether the executable of a process in the host's mount namespace
// is in none of that namespace's mounts. Anybody can make a mount namespace in a
// user namespace, in it a file of any path, and run that from outside, through
// /proc/PID/root. The kernel then shows the path that it has inside. It is not
// foreign where that cannot be known: before Linux 5.8, statx tells no mount id.
func (s *Scanner) foreign(dir int, mntNS uint64) (bool, error) {
	m := &s.mounts
	if m.file == nil || mntNS == 0 || mntNS != m.ns {
		return false, nil
	}
	exe, err := openat(dir, "exe", unix.O_PATH)
	if err != nil {
		return false, err
	}
	defer func() { _ = unix.Close(exe) }() // O_PATH: nothing is lost
	var st unix.Statx_t
	err = unix.Statx(exe, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st)
	if err != nil || st.Mask&unix.STATX_MNT_ID == 0 {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.refresh(); err != nil {
		return false, err
	}
	_, ok := m.ids[st.Mnt_id]
	return !ok, nil
}

// refresh reads the table again if it has changed, as poll then says. It can have
// a hundred thousand lines (fs.mount-max).
func (m *mountTable) refresh() error {
	changed := []unix.PollFd{{Fd: int32(m.file.Fd()), Events: unix.POLLPRI}}
	if n, err := unix.Poll(changed, 0); err == nil && n == 0 && m.ids != nil {
		return nil
	}
	m.ids = nil // what can be read only in part is not known
	if _, err := m.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	ids, begins := map[uint64]struct{}{}, true
	for r := bufio.NewReader(m.file); ; {
		part, err := r.ReadSlice('\n')
		if first, _, ok := bytes.Cut(part, []byte{' '}); ok && begins {
			id, err := strconv.ParseUint(string(first), 10, 64)
			if err != nil {
				return err
			}
			ids[id] = struct{}{}
		}
		begins = err == nil // else the rest of a long line follows
		switch {
		case errors.Is(err, io.EOF):
			m.ids = ids
			return nil
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return err
		}
	}
}

func (m *mountTable) close() {
	if m.file != nil {
		_ = m.file.Close() // opened for reading: nothing is lost
	}
}
