// Package confine takes from the running daemon what it does not need any more: the
// system calls that only an intruder would make, and the capabilities that only
// loading takes. Nothing flows out of it but an error that says what stayed open.
//
// The filter refuses, and never kills: a daemon that is ended by mistake costs the
// node. It is in force for all threads, those to come included, and nothing lifts
// it.
//
// What stays possible for who takes over the daemon, because its job is made of it:
// to send any signal to any process (CAP_KILL and pidfds); to read, by
// CAP_SYS_PTRACE, where the links in /proc/PID lead, what is mapped in a process and
// its command line; to connect to the sockets that its user may connect to, as those
// of the container runtimes; to make files, and to remove and rename, where its user
// may. The filter opens files for writing only if they are new, but for openat2, whose
// flags it cannot see and which the daemon uses: so a daemon that runs as root can still
// write /proc/PID/mem of root's processes; one that runs as the systemd unit cannot. To read it takes the process's own user
// besides CAP_SYS_PTRACE; that is nobody for the user of the systemd unit, and every
// process of root for a daemon that runs as root.
package confine

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options say what this daemon needs besides.
type Options struct {
	// Network leaves sockets of IPv4 and IPv6, for metrics.
	Network bool
	// Commands leaves only what an operator's command can do without as well, as it
	// inherits the filter: neither it nor the daemon gets at the memory of others, mounts,
	// namespaces, or the machine's administration. Capabilities are dropped all the same.
	Commands bool
	// Openat2 leaves openat2. Its flags cannot be looked at: with it, existing files
	// can be opened for writing.
	Openat2 bool
	// WithoutLoading does once what the daemon does with its eBPF programs: map
	// look-ups, iterators, test runs. It is called on a thread that has CAP_BPF and
	// CAP_PERFMON no more, so it must make its system calls itself, and not through
	// another goroutine. If it fails, as before Linux 5.19 where the kernel wants
	// CAP_BPF for every bpf(2), the daemon keeps them. Nil is a daemon without eBPF.
	WithoutLoading func() error
}

// Daemon confines this process for good. Where only a part can be done, that is
// done, and the error says what could not.
func Daemon(o Options) error {
	if o.Commands {
		// First, as who is root need not deny the commands privileges for it.
		return errors.Join(filterAll(o), dropCapabilities(o.WithoutLoading))
	}
	return errors.Join(dropCapabilities(o.WithoutLoading), filterAll(o))
}

// The capabilities that the daemon needs for good, and those for eBPF.
const (
	needed  = 1<<unix.CAP_KILL | 1<<unix.CAP_SYS_PTRACE
	loading = 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON
)

// ErrCgo says that capabilities were kept, as a program with cgo has threads that Go
// does not know.
var ErrCgo = errors.New("built with cgo")

func dropCapabilities(withoutLoading func() error) error {
	keep := uint64(needed)
	if withoutLoading != nil && onLostThread(func() error {
		if err := setCapabilities(needed, syscall.Syscall); err != nil {
			return err
		}
		return withoutLoading()
	}) != nil {
		keep |= loading
	}
	err := setCapabilities(keep, func(trap, a1, a2, a3 uintptr) (uintptr, uintptr, syscall.Errno) {
		return syscall.AllThreadsSyscall(trap, a1, a2, a3)
	})
	if errors.Is(err, unix.ENOTSUP) {
		err = ErrCgo
	}
	if err != nil {
		return fmt.Errorf("dropping capabilities: %w", err)
	}
	return nil
}

// onLostThread calls f on a thread that ends with it, so that what f does to its
// thread is nobody else's, and returns when it has ended.
func onLostThread(f func() error) error {
	done := make(chan error)
	var thread int
	go func() {
		runtime.LockOSThread()
		if thread = unix.Gettid(); thread != os.Getpid() {
			done <- f() // and ends locked, which ends the thread
			return
		}
		// The first thread of a process never ends. While it is locked, others are used.
		defer runtime.UnlockOSThread()
		done <- onLostThread(f)
	}()
	err := <-done
	gone := fmt.Sprintf("/proc/self/task/%d", thread)
	for deadline := time.Now().Add(time.Second); thread != os.Getpid() && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if _, err := os.Lstat(gone); err != nil {
			break
		}
	}
	return err
}

// setCapabilities leaves those in keep that the process has. How a system call is
// made decides for which threads.
func setCapabilities(keep uint64, call func(trap, a1, a2, a3 uintptr) (uintptr, uintptr, syscall.Errno)) error {
	head := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(head, &data[0]); err != nil {
		return err
	}
	for i := range data {
		mask := uint32(keep >> (32 * i))
		data[i].Permitted &= mask
		data[i].Effective &= mask
		data[i].Inheritable &= mask // and with it what is ambient
	}
	// Both stay where they are while each thread reads them.
	var pinned runtime.Pinner
	defer pinned.Unpin()
	pinned.Pin(head)
	pinned.Pin(&data)
	_, _, errno := call(unix.SYS_CAPSET, uintptr(unsafe.Pointer(head)), uintptr(unsafe.Pointer(&data)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func filterAll(o Options) error {
	if err := install(program(rules(o)), unix.SECCOMP_FILTER_FLAG_TSYNC); err != nil {
		return fmt.Errorf("filtering system calls: %w", err)
	}
	return nil
}

// install puts a filter on the calling thread, or with TSYNC on all.
func install(p []unix.SockFilter, flags uintptr) error {
	if len(p) == 0 {
		return fmt.Errorf("not known on %s: %w", runtime.GOARCH, errors.ErrUnsupported)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	prog := &unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	set := func() (uintptr, uintptr, unix.Errno) {
		return unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(prog)))
	}
	thread, _, errno := set()
	if errno == unix.EACCES { // who is not root may only if it cannot gain rights by exec
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("setting no_new_privs: %w", err)
		}
		thread, _, errno = set()
	}
	runtime.KeepAlive(p)
	switch {
	case errno != 0:
		return errno
	case thread != 0:
		return fmt.Errorf("thread %d has a filter that the others have not", thread)
	}
	return nil
}

// Verify says whether this kernel, and what else confines this process, lets a
// daemon confine itself and then goes on with what it lives on. It does so on a
// thread that it gives up.
func Verify() error {
	return onLostThread(func() error {
		if err := install(program(rules(Options{})), 0); err != nil {
			return fmt.Errorf("filtering system calls: %w", err)
		}
		// All zero, it does nothing where it is not refused.
		if _, _, errno := unix.RawSyscall6(unix.SYS_PROCESS_VM_WRITEV, 0, 0, 0, 0, 0, 0); errno != unix.EPERM {
			return fmt.Errorf("the filter is not in force: process_vm_writev says %w", errno)
		}
		fd, err := unix.PidfdOpen(os.Getpid(), 0)
		if err != nil {
			return fmt.Errorf("the filter refuses pidfd_open: %w", err)
		}
		defer unix.Close(fd)
		if _, err := os.ReadFile("/proc/self/stat"); err != nil {
			return fmt.Errorf("the filter refuses to read: %w", err)
		}
		return nil
	})
}

// State is how a process is confined.
type State struct {
	Filtered     bool   // on all its threads
	Capabilities uint64 // bit n for capability n, in effect on any of its threads
}

// Loads says whether it could still load eBPF programs.
func (s State) Loads() bool { return s.Capabilities&loading != 0 }

// Of reads the state of a process, as a daemon that runs.
func Of(pid int) (State, error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/task"
	threads, err := os.ReadDir(dir)
	if err != nil {
		return State{}, err
	}
	s := State{Filtered: true}
	for _, thread := range threads {
		status, err := os.ReadFile(dir + "/" + thread.Name() + "/status")
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return State{}, err
		}
		for line := range strings.Lines(string(status)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			value = strings.TrimSpace(value)
			switch key {
			case "Seccomp":
				s.Filtered = s.Filtered && value == strconv.Itoa(unix.SECCOMP_MODE_FILTER)
			case "CapEff":
				set, err := strconv.ParseUint(value, 16, 64)
				if err != nil {
					return State{}, fmt.Errorf("CapEff of %d: %w", pid, err)
				}
				s.Capabilities |= set
			}
		}
	}
	return s, nil
}
