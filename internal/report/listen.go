package report

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socketMode lets root and the socket's group ask; nobody changes anything
// through it, but command lines of other users can be read.
const socketMode = 0o660

// Listen makes the socket at path and its directory (0755) where missing. The
// socket has mode 0660 before anybody can connect; its group becomes gid unless
// that is negative. A socket on which nobody answers is replaced, and log told
// whose it was; one that answers, and anything else at path, is an error. Closing
// the listener removes the socket.
//
// Only peers that are root, this process's user or members of the socket's group
// get answers from a [Server]: what the mode says, checked again for a socket
// that was made visible elsewhere.
func Listen(path string, gid int, log *slog.Logger) (net.Listener, error) {
	l, err := listen(path, gid, log)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	return l, nil
}

func listen(path string, gid int, log *slog.Logger) (net.Listener, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if limit := len(unix.RawSockaddrUnix{}.Path) - 1; len(path) > limit {
		return nil, fmt.Errorf("the path has %d bytes, a socket's can have %d", len(path), limit)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	unlock, err := acquireLock(path + ".lock")
	if err != nil {
		log.Warn("starting without the lock on the socket", "socket", path, "error", err)
	}
	ul, err := bind(path, log)
	if err != nil {
		unlock()
		return nil, err
	}
	l := &socket{UnixListener: ul, path: path, unlock: unlock}
	if err := l.settle(gid); err != nil {
		unlock()
		ul.Close()
		os.Remove(path)
		return nil, err
	}
	return l, nil
}

// bind makes the socket, which fails if anything has that name: so one that is
// dead goes first. Who holds the lock needs one round; another round is for a
// daemon that came meanwhile, without the lock.
func bind(path string, log *slog.Logger) (*net.UnixListener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		// bind makes the file with the mode of the socket less the umask.
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), socketMode) }); cerr != nil {
			return cerr
		}
		return err
	}}
	for rounds := 3; ; rounds-- {
		if err := removeDead(path, log); err != nil {
			return nil, err
		}
		l, err := lc.Listen(context.Background(), "unix", path)
		if err == nil {
			ul := l.(*net.UnixListener)
			ul.SetUnlinkOnClose(false) // it removes whatever is there by then
			return ul, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) || rounds == 0 {
			return nil, err
		}
	}
}

// socket is a listener that lets in whom the socket's mode lets in.
type socket struct {
	*net.UnixListener
	path   string
	stat   unix.Stat_t
	once   sync.Once
	unlock func() // may be called more than once
}

// settle gives the socket its group and what the umask took of its mode.
func (l *socket) settle(gid int) error {
	if gid >= 0 {
		if err := os.Lchown(l.path, -1, gid); err != nil {
			return err
		}
	}
	if err := os.Chmod(l.path, socketMode); err != nil {
		return err
	}
	return unix.Lstat(l.path, &l.stat)
}

// Close removes the socket if it is still the one that was made: an open socket
// keeps its inode's number from being used again.
func (l *socket) Close() error {
	l.once.Do(func() {
		if !l.replaced() {
			os.Remove(l.path)
		}
		l.unlock()
	})
	return l.UnixListener.Close()
}

func (l *socket) replaced() bool {
	var st unix.Stat_t
	return unix.Lstat(l.path, &st) == nil && !sameFile(&st, &l.stat)
}

// Replaced reports whether there is another socket at the path of a listener that
// [Listen] made: another daemon took over, as this one did not answer.
func Replaced(l net.Listener) bool {
	s, ok := l.(*socket)
	return ok && s.replaced()
}

// Accept waits for the next peer. One that may not ask is let in to be told so.
// From the first call on others get an answer, and so need no lock.
func (l *socket) Accept() (net.Conn, error) {
	l.unlock()
	c, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	if !l.allowed(c) {
		return &client{Conn: c, status: http.StatusForbidden, refused: "not root and not in the socket's group"}, nil
	}
	return &client{Conn: c}, nil
}

func (l *socket) allowed(c *net.UnixConn) (ok bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	err = raw.Control(func(fd uintptr) {
		peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return
		}
		ok = peer.Uid == 0 || int(peer.Uid) == os.Geteuid() || peer.Gid == l.stat.Gid ||
			slices.Contains(peerGroups(int(fd)), l.stat.Gid)
	})
	return ok && err == nil
}

// peerGroups lists the supplementary groups of the process at the other end,
// none if it cannot be told.
func peerGroups(fd int) []uint32 {
	groups := make([]uint32, 64)
	for range 2 { // the second time with as much room as the kernel asked for
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch errno {
		case 0:
			return groups[:size/4]
		case unix.ERANGE:
			groups = make([]uint32, size/4)
		default:
			return nil
		}
	}
	return nil
}

// client is an accepted connection.
type client struct {
	net.Conn
	// status and refused are the answer to whatever it asks; 0 lets it ask.
	status  int
	refused string
	release func()
}

func (c *client) Close() error {
	if c.release != nil {
		c.release()
	}
	return c.Conn.Close()
}

// limited bounds the connections. Those beyond are not left in the backlog,
// where idle ones would shut everybody out without a word: a few more are let in
// to be told, and the rest is hung up on.
type limited struct {
	net.Listener
	limit int32
	told  int32 // how many beyond the limit are told
	open  atomic.Int32
}

// spare is how many connections beyond the limit are told.
const spare = 32

// newLimited lets in up to limit connections, and never so many that they take
// more than a quarter of the descriptors that this process may have: it sees and
// acts with the others.
func newLimited(l net.Listener, limit int32) *limited {
	out := &limited{Listener: l, limit: limit, told: spare}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil && files.Cur/4 < uint64(out.limit+out.told) {
		share := int32(files.Cur / 4)
		out.told = share / 4
		out.limit = share - out.told
	}
	return out
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c, ok := nc.(*client)
		if !ok {
			c = &client{Conn: nc}
		}
		n := l.open.Add(1)
		c.release = sync.OnceFunc(func() { l.open.Add(-1) })
		switch {
		case n > l.limit+l.told:
			_ = c.Close()
			continue
		case n > l.limit && c.status == 0:
			c.status, c.refused = http.StatusServiceUnavailable, "too many connections"
		}
		return c, nil
	}
}

// clientKey is the context key of a request's *client.
type clientKey struct{}
