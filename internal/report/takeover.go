package report

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What a daemon that starts may wait for. One that works answers within
// milliseconds; one whose thread is stuck in the kernel survives SIGKILL, and its
// socket stays.
const (
	answerPatience = 3 * time.Second  // for a daemon to say that it is there
	lockPatience   = 10 * time.Second // for another one that starts
	askAgain       = 50 * time.Millisecond
)

// acquireLock keeps two daemons that start at once from each finding the other's
// socket dead: the lock is held until its owner answers on the socket. unlock
// removes the file. With an error there is no lock, and unlock does nothing: a
// process that hangs, or somebody who may write to the directory, can hold it for
// ever, and that must not keep the node without kzr. What removeDead does is safe
// without.
func acquireLock(path string) (unlock func(), err error) {
	var f *os.File
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(askAgain) {
		f, err = tryLock(path)
		if err == nil {
			return sync.OnceFunc(func() {
				os.Remove(path)
				f.Close()
			}), nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			return func() {}, fmt.Errorf("locking %s: %w", path, err)
		}
	}
}

// tryLock locks the file at path, and not one that its owner has just removed.
func tryLock(path string) (*os.File, error) {
	// The mode keeps others from locking it. A file of theirs that is there
	// already is none of ours.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	var locked, named unix.Stat_t
	if err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == nil {
		err = unix.Fstat(fd, &locked)
	}
	switch {
	case err != nil:
	case locked.Mode&unix.S_IFMT != unix.S_IFREG || locked.Uid != 0 && int(locked.Uid) != os.Geteuid():
		err = errors.New("this is somebody else's file")
	case unix.Lstat(path, &named) != nil || !sameFile(&locked, &named):
		err = unix.EWOULDBLOCK
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// removeDead removes the socket at path if nobody answers on it. What is removed
// is what was asked, whoever else has the path in hand: a descriptor stands for
// it, and keeps its inode's number from being used again.
func removeDead(path string, log *slog.Logger) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var asked, moved unix.Stat_t
	if err := unix.Fstat(fd, &asked); err != nil {
		return err
	}
	if asked.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return errors.New("there is something that is not a socket")
	}
	silent, err := ask("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return err
	}
	aside := path + "." + rand.Text()[:8]
	if err := rename(path, aside); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("removing a socket where nobody answers: %w", err)
	}
	if err := unix.Lstat(aside, &moved); err == nil && !sameFile(&asked, &moved) {
		return rename(aside, path) // of one that came meanwhile, which the next round asks
	}
	if err := os.Remove(aside); err != nil {
		return err
	}
	if silent != "" {
		log.Warn("took over the socket of a daemon that does not answer", "socket", path, "why", silent)
	}
	return nil
}

// rename moves a file to a name that is free, where the file system can tell.
func rename(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) {
		return os.Rename(from, to)
	}
	return err
}

func sameFile(a, b *unix.Stat_t) bool { return a.Dev == b.Dev && a.Ino == b.Ino }

// ask finds out whether anybody answers on a socket: then the error says who. If
// not, silent says who does not; it is empty where nobody listens.
func ask(path string) (silent string, err error) {
	deadline := time.Now().Add(answerPatience)
	hungUp := ""
	for ; time.Now().Before(deadline); time.Sleep(askAgain) {
		c, err := net.Dial("unix", path)
		switch {
		case errors.Is(err, unix.ECONNREFUSED):
			return "", nil
		case errors.Is(err, unix.EAGAIN): // many wait already
			continue
		case err != nil:
			return "", fmt.Errorf("asking who listens: %w", err)
		}
		who := peer(c)
		answered, kzr, err := question(c, deadline)
		c.Close()
		switch {
		case kzr:
			return "", fmt.Errorf("socket already in use by kzr (%s)", who)
		case answered:
			return "", fmt.Errorf("socket already in use by another program (%s)", who)
		case errors.Is(err, os.ErrDeadlineExceeded):
			return who + " did not answer within " + answerPatience.String(), nil
		}
		hungUp = who // one that ends does that too: the next round tells
	}
	if hungUp != "" {
		return "", fmt.Errorf("socket already in use by a program that hangs up (%s)", hungUp)
	}
	return "it accepts no connection", nil
}

// question says whether anything came back, and whether kzr does so.
func question(c net.Conn, deadline time.Time) (answered, kzr bool, err error) {
	if err := c.SetDeadline(deadline); err != nil {
		return false, false, err
	}
	if _, err := io.WriteString(c, "GET /v1/status HTTP/1.1\r\nHost: kzr\r\nConnection: close\r\n\r\n"); err != nil {
		return false, false, err
	}
	r := bufio.NewReader(io.LimitReader(c, 1<<20))
	if _, err := r.Peek(1); err != nil {
		return false, false, err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return true, false, nil
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body) // cut short it is no JSON
	var answer struct{ Version, Error string }
	err = json.NewDecoder(bytes.NewReader(body)).Decode(&answer)
	return true, err == nil && answer.Version+answer.Error != "", nil
}

// peer names the process that made the socket.
func peer(c net.Conn) string {
	cred, err := credentials(c)
	switch {
	case err != nil:
		return "pid not known"
	case cred.Pid == 0:
		return "in another pid namespace"
	}
	return "pid " + strconv.Itoa(int(cred.Pid))
}

func credentials(c net.Conn) (cred *unix.Ucred, err error) {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return nil, cerr
	}
	return cred, err
}
