package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cage changes what this process may and can see, step by step, and becomes the
// program in os.Args[1:]. The test binary is started again to do it, because a
// test's own threads must stay as they are.
//
//	mntns        a mount namespace of its own
//	proc         a fresh /proc, as in a new pid namespace
//	noproc       an empty /proc
//	hidepid      /proc mounted with hidepid=2
//	nobtf        the kernel's type information is hidden
//	nobody       uid and gid 65534, no capability
//	user=N       uid and gid N, and the capabilities of the service
//	nocap=N      capability N is taken away
//	nobpf=ERRNO  bpf(2) fails with that number
//	nolink=ERRNO  bpf(2) does all but attach programs
//	timens=SECONDS  a time namespace, its clocks so much ahead
//	nopidfd      pidfd_open(2) fails with ENOSYS, as before 5.3
//	nofile=N     no more than N descriptors
//	parent=N     it becomes the program's parent instead, one with N zombies
//	jobs=SECONDS  it becomes the program itself: a job in parts, see beJobs
func cage(steps []string) {
	if seconds, ok := strings.CutPrefix(steps[0], "jobs="); ok {
		os.Exit(beJobs(seconds))
	}
	runtime.LockOSThread() // credentials and filters are a thread's, and exec keeps the caller's
	for _, s := range steps {
		verb, value, _ := strings.Cut(s, "=")
		n, _ := strconv.Atoi(value)
		if err := cageStep(verb, n); err != nil {
			fmt.Fprintf(os.Stderr, "cage: %s: %v\n", s, err)
			os.Exit(99)
		}
	}
	os.Unsetenv("KZR_TEST_CAGE")
	if slices.ContainsFunc(steps, func(s string) bool { return strings.HasPrefix(s, "parent=") }) {
		os.Exit(beParent())
	}
	err := unix.Exec(os.Args[1], os.Args[1:], os.Environ())
	fmt.Fprintf(os.Stderr, "cage: exec %s: %v\n", os.Args[1], err)
	os.Exit(99)
}

// beParent runs the program in a child and returns its status. Until then it
// waits for nobody else, and after that for all.
func beParent() int {
	child, err := syscall.ForkExec(os.Args[1], os.Args[1:], &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "cage: starting %s: %v\n", os.Args[1], err)
		return 99
	}
	var status syscall.WaitStatus
	for {
		if _, err = syscall.Wait4(child, &status, 0, nil); err != syscall.EINTR {
			break
		}
	}
	for err == nil || err == syscall.EINTR {
		_, err = syscall.Wait4(-1, nil, 0, nil)
	}
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// beJobs starts sixty processes, all of which end at once but the first, and waits
// for them in turn. All have to end with 7.
func beJobs(seconds string) int {
	var parts []*exec.Cmd
	for range 60 {
		part := exec.Command("sh", "-c", "sleep "+seconds+"; exit 7")
		if err := part.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 99
		}
		parts, seconds = append(parts, part), "0.2"
	}
	status := 0
	for _, part := range parts {
		if err := part.Wait(); part.ProcessState.ExitCode() != 7 {
			fmt.Fprintln(os.Stderr, err)
			status = 1
		}
	}
	return status
}

func cageStep(verb string, n int) error {
	switch verb {
	case "mntns":
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	case "proc":
		return unix.Mount("proc", "/proc", "proc", 0, "")
	case "noproc":
		return unix.Mount("none", "/proc", "tmpfs", 0, "")
	case "hidepid":
		return unix.Mount("proc", "/proc", "proc", 0, "hidepid=2")
	case "nobtf":
		return unix.Mount("none", "/sys/kernel/btf", "tmpfs", 0, "")
	case "nobody":
		if err := unix.Setgroups(nil); err != nil {
			return err
		}
		if err := unix.Setresgid(nobody, nobody, nobody); err != nil {
			return err
		}
		return unix.Setresuid(nobody, nobody, nobody)
	case "user":
		return becomeUser(n)
	case "nocap":
		return dropCapability(n)
	case "nobpf":
		return deny(unix.SYS_BPF, unix.Errno(n))
	case "nolink":
		return deny(unix.SYS_BPF, unix.Errno(n), unix.BPF_LINK_CREATE)
	case "nofile":
		return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(n), Max: uint64(n)})
	case "timens":
		if err := unix.Unshare(unix.CLONE_NEWTIME); err != nil {
			return err
		}
		// Entered at the exec.
		return os.WriteFile("/proc/self/timens_offsets", fmt.Appendf(nil, "monotonic %[1]d 0\nboottime %[1]d 0\n", n), 0)
	case "parent":
		for range n {
			if _, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{}); err != nil {
				return err
			}
		}
		return nil
	case "nopidfd":
		return deny(unix.SYS_PIDFD_OPEN, unix.ENOSYS)
	}
	return fmt.Errorf("unknown step")
}

const nobody = 65534

// becomeUser keeps what kzr needs, as systemd does for the user of a service.
func becomeUser(n int) error {
	if err := errors.Join(unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0), unix.Setgroups(nil), unix.Setresgid(n, n, n), unix.Setresuid(n, n, n)); err != nil {
		return err
	}
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	caps := []int{unix.CAP_KILL, unix.CAP_SYS_PTRACE, unix.CAP_PERFMON, unix.CAP_BPF}
	for _, c := range caps {
		d[c/32].Permitted |= 1 << (c % 32)
	}
	for i := range d {
		d[i].Effective, d[i].Inheritable = d[i].Permitted, d[i].Permitted
	}
	if err := unix.Capset(&h, &d[0]); err != nil {
		return err
	}
	for _, c := range caps {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// dropCapability takes one capability from the bounding set: root gets those
// that are left at its next exec.
func dropCapability(n int) error {
	if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0); err != nil {
		return err
	}
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return err
	}
	d[n/32].Inheritable &^= 1 << (n % 32)
	return unix.Capset(&h, &d[0])
}

// deny makes a system call of this architecture fail, for this thread and what
// it executes; or only with one of these values as its first argument.
func deny(call int, errno unix.Errno, only ...uint32) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: uint32(call)},
		allow,
	}
	if len(only) > 0 {
		filter = append(filter, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 16}) // the low half of args[0]
		for i, value := range only {
			filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: uint8(len(only) - i), K: value})
		}
		filter = append(filter, allow)
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)})
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, e := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if e != 0 {
		return e
	}
	return nil
}
