package reapinside

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// executable is what the helper is made of; tests have another one.
var executable = "/proc/self/exe"

// start makes the process and the connection to it.
func start() (pid int, conn *net.UnixConn, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, nil, fmt.Errorf("making a socket for the reaping helper: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "helper"), pair[1]
	defer ours.Close()
	defer unix.Close(theirs)
	if err := unix.SetNonblock(theirs, false); err != nil {
		return 0, nil, err
	}
	made := make(chan error)
	go inThreadOfItsOwn(func() {
		var err error
		pid, err = fork(theirs)
		made <- err
	})
	if err := <-made; err != nil {
		return 0, nil, fmt.Errorf("starting the reaping helper: %w", err)
	}
	c, err := net.FileConn(ours)
	if err != nil {
		return 0, nil, err
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return 0, nil, errors.New("the helper's socket is none")
	}
	return pid, conn, nil
}

// inThreadOfItsOwn runs f on a thread that ends after it, never the main one: that is
// who the whole process seems to be.
func inThreadOfItsOwn(f func()) {
	runtime.LockOSThread() // and never unlocked
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		inThreadOfItsOwn(f)
	}()
	<-done
	runtime.UnlockOSThread()
}

// fork starts the helper from a thread that has given up every capability but
// CAP_SYS_PTRACE, and the right to get any back: all threads of the helper are
// without them from its first instruction, whatever uid it runs under.
func fork(socket int) (pid int, err error) {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, err
	}
	for c := range unix.CAP_LAST_CAP + 1 {
		if c != unix.CAP_SYS_PTRACE {
			// Without CAP_SETPCAP the bounding set stays; no_new_privs does the same.
			_ = unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		}
	}
	caps := [2]unix.CapUserData{}
	caps[0].Permitted = 1 << unix.CAP_SYS_PTRACE
	caps[0].Effective = caps[0].Permitted
	sys := &syscall.SysProcAttr{Pdeathsig: syscall.SIGCONT} // stopped, it would not see its socket end
	if unix.Geteuid() != 0 {
		caps[0].Inheritable = caps[0].Permitted
		sys.AmbientCaps = []uintptr{unix.CAP_SYS_PTRACE}
	}
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &caps[0]); err != nil {
		return 0, err
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(null)
	return syscall.ForkExec(executable, []string{helperName}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{environment},
		Files: []uintptr{uintptr(null), uintptr(null), uintptr(null), uintptr(socket)},
		Sys:   sys,
	})
}
