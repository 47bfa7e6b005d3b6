package reaper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
)

// errGone says that a pid belongs to no thread group any more.
var errGone = errors.New("no such process")

// pidfd is a handle to one thread group. It means the same one for as long as
// it is open, whoever gets the number next.
type pidfd struct {
	file    *os.File
	conn    syscall.RawConn
	dead    chan struct{} // closed once the whole thread group is dead
	watched chan struct{} // closed when watch has returned
}

// openPidfd returns a handle to the thread group that has the number pid now,
// or errGone. Close ends what it starts.
func openPidfd(pid int) (*pidfd, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.EINVAL) { // the flag came with 5.10, pidfd_open with 5.3
		if fd, err = unix.PidfdOpen(pid, 0); err == nil {
			err = unix.SetNonblock(fd, true)
		}
	}
	switch {
	case err == nil:
	case nobody(err):
		return nil, errGone
	default:
		return nil, fmt.Errorf("opening pidfd: %w", err)
	}

	// A non-blocking descriptor goes to the runtime's poller, so waiting for a
	// death costs a goroutine and never a thread: kzr must live on when the
	// process table has no room for one.
	p := &pidfd{
		file:    os.NewFile(uintptr(fd), "pidfd"),
		dead:    make(chan struct{}),
		watched: make(chan struct{}),
	}
	if p.conn, err = p.file.SyscallConn(); err != nil {
		_ = p.file.Close()
		return nil, fmt.Errorf("watching pidfd: %w", err)
	}
	// The poller takes deadlines only for what it watches. Others of kzr's user can use
	// up all the watches that the kernel allows (fs.epoll.max_user_watches): then the
	// death is asked for now and then.
	if p.file.SetDeadline(time.Time{}) == nil {
		go p.watch()
	} else {
		go p.poll()
	}
	return p, nil
}

// pollEvery is the time between two questions whether a process is dead that the poller
// does not watch.
const pollEvery = 20 * time.Millisecond

// poll is watch without the poller.
func (p *pidfd) poll() {
	defer close(p.watched)
	for ; ; time.Sleep(pollEvery) {
		switch dead, err := p.exited(); {
		case err != nil: // closed
			return
		case dead:
			close(p.dead)
			return
		}
	}
}

// nobody says whether pidfd_open failed because no thread group has the number.
func nobody(err error) bool {
	// The last two say that it now belongs to a thread that leads no group (EINVAL,
	// since 6.16 ENOENT), so the group that had it is gone.
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT)
}

// gone says whether it is certain that no live thread group has the number pid.
func gone(pid int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nobody(err)
	}
	defer unix.Close(fd)
	dead, err := readable(fd)
	return dead && err == nil
}

// watch closes p.dead at the death, or returns when the pidfd is closed.
func (p *pidfd) watch() {
	defer close(p.watched)
	err := p.conn.Read(func(fd uintptr) bool {
		dead, err := readable(int(fd))
		return dead && err == nil
	})
	if err == nil {
		close(p.dead)
	}
}

// exited asks the kernel, without waiting, whether the thread group is dead.
func (p *pidfd) exited() (dead bool, err error) {
	if cerr := p.conn.Control(func(fd uintptr) { dead, err = readable(int(fd)) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return false, fmt.Errorf("polling pidfd: %w", err)
	}
	return dead, nil
}

// signal sends sig. Success is not delivery, let alone death: the kernel also
// accepts a signal for a zombie, or one that it drops at once.
func (p *pidfd) signal(sig unix.Signal) (err error) {
	if cerr := p.conn.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); cerr != nil {
		err = cerr
	}
	if errors.Is(err, unix.ESRCH) {
		return errGone
	}
	if err != nil {
		return fmt.Errorf("sending %s through pidfd: %w", cmp.Or(unix.SignalName(sig), "signal 0"), err)
	}
	return nil
}

// reap lets zombies be reaped in the name of the thread group.
func (p *pidfd) reap(ctx context.Context, inside Inside, look *Look) (done Insided, err error) {
	if cerr := p.conn.Control(func(fd uintptr) { done, err = inside.Reap(ctx, int(fd), look) }); cerr != nil {
		err = cerr
	}
	return done, err
}

// close releases the handle and the goroutine that watched it.
func (p *pidfd) close() {
	_ = p.file.Close() // nothing was written to it
	<-p.watched
}

// readable says whether a pidfd polls as readable, which means that every
// thread of the group is dead (and POLLHUP, that it has been reaped as well).
func readable(fd int) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return n > 0 && fds[0].Revents&(unix.POLLIN|unix.POLLHUP) != 0, err
		}
	}
}

// ErrNoKill says that kzr can signal only what runs as its own user.
var ErrNoKill = errors.New("no CAP_KILL: processes of other users cannot be signalled")

// MaySignal says whether kzr may signal any process of its user namespace: nil,
// [ErrNoKill], or why that cannot be known.
func MaySignal() error {
	may, err := task.Capable(unix.CAP_KILL)
	if err == nil && !may {
		err = ErrNoKill
	}
	return err
}

// Rehearse makes the system calls of a ladder on kzr itself, with the signal
// that does nothing, so that a kernel or a seccomp filter that refuses one of
// them does so when kzr starts, and not when a node depends on it.
func Rehearse() error {
	err := rehearse()
	if err != nil {
		return fmt.Errorf("kzr could send no signal here: it takes Linux 5.3, and a seccomp filter that lets pidfd_open and pidfd_send_signal pass: %w", err)
	}
	return nil
}

func rehearse() error {
	p, err := openPidfd(os.Getpid())
	if err != nil {
		return err
	}
	defer p.close()
	if _, err := p.exited(); err != nil {
		return err
	}
	return p.signal(0)
}
