//go:build amd64 || arm64

package confine

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"kzr/internal/zoo"
)

// mine is what the filter under test says, and the kernel itself does not.
const mine = unix.EXFULL

// confined calls f on a thread with the filter.
func confined(t *testing.T, o Options, f func()) {
	t.Helper()
	all := rules(o)
	for i := range all {
		if all[i].errno == unix.EPERM {
			all[i].errno = mine
		}
	}
	if err := onLostThread(func() error {
		if err := install(program(all), 0); err != nil {
			return err
		}
		f()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// Every call on the list is refused, with the reason for it.
func TestDenied(t *testing.T) {
	const none = ^uintptr(0) // makes nothing good of a call that is let through
	seen := make(map[uint32]bool)
	for _, group := range append(slices.Clone(denied), deniedHere...) {
		if group.reason == "" {
			t.Errorf("no reason for %v", group.calls)
		}
		for _, nr := range group.calls {
			if seen[nr] || nr > lastCall {
				t.Errorf("call %d is there twice, or newer than the list", nr)
			}
			seen[nr] = true
			confined(t, Options{}, func() {
				r, _, errno := unix.RawSyscall6(uintptr(nr), none, none, none, none, none, none)
				if errno == 0 && r == 0 && strings.HasPrefix(group.reason, "makes a process") {
					_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0)
				}
				if errno != mine {
					t.Errorf("call %d: %v", nr, errno)
				}
			})
		}
	}
}

func TestArguments(t *testing.T) {
	pid, tid := uintptr(os.Getpid()), uintptr(1)
	old := filepath.Join(t.TempDir(), "old")
	if err := os.WriteFile(old, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	name := func(s string) uintptr {
		b, err := unix.BytePtrFromString(s)
		if err != nil {
			t.Fatal(err)
		}
		var pinned runtime.Pinner
		pinned.Pin(b)
		t.Cleanup(pinned.Unpin)
		return uintptr(unsafe.Pointer(b))
	}
	const here = ^uintptr(99) // AT_FDCWD
	const bad = ^uintptr(0)
	fresh := filepath.Join(t.TempDir(), "fresh")
	for _, tt := range []struct {
		name string
		nr   uintptr
		args [4]uintptr
		o    Options
		want syscall.Errno // of the filter, or of the kernel behind it
	}{
		{"a process", unix.SYS_CLONE, [4]uintptr{uintptr(unix.SIGCHLD)}, Options{}, mine},
		{"a process by vfork's flags", unix.SYS_CLONE, [4]uintptr{unix.CLONE_VFORK | unix.CLONE_VM}, Options{}, mine},
		{"a namespace", unix.SYS_CLONE, [4]uintptr{unix.CLONE_THREAD | unix.CLONE_NEWUSER}, Options{}, mine},
		{"clone3", unix.SYS_CLONE3, [4]uintptr{bad, bad}, Options{}, unix.ENOSYS},
		{"kill itself", unix.SYS_KILL, [4]uintptr{pid}, Options{}, 0},
		{"kill another", unix.SYS_KILL, [4]uintptr{1}, Options{}, mine},
		{"kill a group", unix.SYS_KILL, [4]uintptr{0}, Options{}, mine},
		{"kill all", unix.SYS_KILL, [4]uintptr{bad}, Options{}, mine},
		{"a thread of its own", unix.SYS_TGKILL, [4]uintptr{pid, pid}, Options{}, 0},
		{"a thread of another's", unix.SYS_TGKILL, [4]uintptr{1, tid}, Options{}, mine},
		{"a pidfd", unix.SYS_PIDFD_SEND_SIGNAL, [4]uintptr{bad}, Options{}, unix.EBADF},
		{"a pidfd's group", unix.SYS_PIDFD_SEND_SIGNAL, [4]uintptr{bad, 0, 0, 4}, Options{}, mine},
		{"limits of another", unix.SYS_PRLIMIT64, [4]uintptr{1}, Options{}, mine},
		{"its own limits", unix.SYS_PRLIMIT64, [4]uintptr{0}, Options{}, 0},
		{"unix", unix.SYS_SOCKET, [4]uintptr{unix.AF_UNIX, bad}, Options{}, unix.EINVAL},
		{"inet", unix.SYS_SOCKET, [4]uintptr{unix.AF_INET, bad}, Options{}, mine},
		{"inet with metrics", unix.SYS_SOCKET, [4]uintptr{unix.AF_INET6, bad}, Options{Network: true}, unix.EINVAL},
		{"netlink", unix.SYS_SOCKET, [4]uintptr{unix.AF_NETLINK, bad}, Options{Network: true}, mine},
		{"crypto", unix.SYS_SOCKET, [4]uintptr{unix.AF_ALG, bad}, Options{Network: true}, mine},
		{"code", unix.SYS_MPROTECT, [4]uintptr{0, 0, unix.PROT_EXEC | unix.PROT_READ}, Options{}, mine},
		{"data", unix.SYS_MPROTECT, [4]uintptr{0, 0, unix.PROT_READ}, Options{}, 0},
		{"code mapped", unix.SYS_MMAP, [4]uintptr{0, 4096, unix.PROT_EXEC, unix.MAP_PRIVATE | unix.MAP_ANON}, Options{}, mine},
		{"typing", unix.SYS_IOCTL, [4]uintptr{bad, unix.TIOCSTI}, Options{}, mine},
		{"pasting", unix.SYS_IOCTL, [4]uintptr{bad, unix.TIOCLINUX}, Options{}, mine},
		{"size", unix.SYS_IOCTL, [4]uintptr{bad, unix.TIOCGWINSZ}, Options{}, unix.EBADF},
		{"a look-up", unix.SYS_BPF, [4]uintptr{unix.BPF_MAP_LOOKUP_ELEM, 0, 0}, Options{}, unix.EINVAL},
		{"a program", unix.SYS_BPF, [4]uintptr{unix.BPF_PROG_LOAD, 0, 0}, Options{}, mine},
		{"a map", unix.SYS_BPF, [4]uintptr{unix.BPF_MAP_CREATE, 0, 0}, Options{}, mine},
		{"a map by its id", unix.SYS_BPF, [4]uintptr{unix.BPF_MAP_GET_FD_BY_ID, 0, 0}, Options{}, mine},
		{"a pinned map", unix.SYS_BPF, [4]uintptr{unix.BPF_OBJ_GET, 0, 0}, Options{}, mine},
		{"read", unix.SYS_OPENAT, [4]uintptr{here, name(old), unix.O_RDONLY}, Options{}, 0},
		{"path", unix.SYS_OPENAT, [4]uintptr{here, name(old), unix.O_PATH}, Options{}, 0},
		{"write", unix.SYS_OPENAT, [4]uintptr{here, name(old), unix.O_WRONLY}, Options{}, mine},
		{"read and write", unix.SYS_OPENAT, [4]uintptr{here, name(old), unix.O_RDWR}, Options{}, mine},
		{"neither", unix.SYS_OPENAT, [4]uintptr{here, name(old), unix.O_ACCMODE}, Options{}, mine},
		{"truncate", unix.SYS_OPENAT, [4]uintptr{here, name(old), unix.O_TRUNC}, Options{}, mine},
		{"create", unix.SYS_OPENAT, [4]uintptr{here, name(fresh), unix.O_WRONLY | unix.O_CREAT, 0o600}, Options{}, mine},
		{"create anew", unix.SYS_OPENAT, [4]uintptr{here, name(fresh), unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL, 0o600}, Options{}, 0},
		{"without a name", unix.SYS_OPENAT, [4]uintptr{here, name(filepath.Dir(fresh)), unix.O_TMPFILE | unix.O_RDWR, 0o600}, Options{}, mine},
		{"openat2", unix.SYS_OPENAT2, [4]uintptr{here, bad, bad, 0}, Options{}, unix.ENOSYS},
		{"openat2 allowed", unix.SYS_OPENAT2, [4]uintptr{here, bad, bad, 0}, Options{Openat2: true}, unix.EINVAL},
		{"of a later kernel", lastCall + 1, [4]uintptr{}, Options{}, unix.ENOSYS},
	} {
		confined(t, tt.o, func() {
			_, _, errno := unix.RawSyscall6(tt.nr, tt.args[0], tt.args[1], tt.args[2], tt.args[3], 0, 0)
			if errno != tt.want {
				t.Errorf("%s: %v, want %v", tt.name, errno, tt.want)
			}
		})
	}
}

// No thread is left over, least of all the first, which cannot end.
func TestLostThread(t *testing.T) {
	for range 100 {
		var thread int
		if err := onLostThread(func() error { thread = unix.Gettid(); return unix.EXFULL }); !errors.Is(err, unix.EXFULL) {
			t.Fatal(err)
		}
		if thread == os.Getpid() {
			t.Fatal("the first thread would be lost")
		}
		if _, err := os.Stat("/proc/self/task/" + strconv.Itoa(thread)); err == nil {
			t.Fatalf("thread %d is still there", thread)
		}
	}
}

func TestVerify(t *testing.T) {
	if err := Verify(); err != nil {
		t.Error(err)
	}
	if s, err := Of(os.Getpid()); err != nil || s.Filtered {
		t.Errorf("this process after Verify: %+v, %v", s, err)
	}
}

// daemonEnv names testdata/daemon where there is no Go to build it with.
const daemonEnv = "KZR_CONFINED"

// build makes testdata/daemon as the product is built.
func build(t *testing.T) string {
	t.Helper()
	if exe := os.Getenv(daemonEnv); exe != "" {
		return exe
	}
	dir, err := os.MkdirTemp("", "kzr-confine-") // other users run it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "daemon")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", exe, "./testdata/daemon")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return exe
}

// A confined daemon has all its threads confined, those made later too, and does what
// it is for.
func TestDaemonLives(t *testing.T) {
	needRoot(t)
	exe := build(t)
	for _, mode := range []string{"proc", "ebpf"} {
		t.Run(mode, func(t *testing.T) {
			out, err := exec.Command(exe, "live", mode).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			var s State
			if err := json.Unmarshal(out, &s); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			want := uint64(needed)
			if mode == "ebpf" && !zoo.KernelAtLeast(t, 5, 19) {
				want |= loading // every bpf(2) takes CAP_BPF
			}
			if !s.Filtered || s.Capabilities != want {
				t.Errorf("%+v, want the capabilities %x", s, want)
			}
		})
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// An intruder with the capabilities of the unit can write into a process of root's;
// one in a confined daemon cannot, as root neither.
func TestIntruder(t *testing.T) {
	needRoot(t)
	exe := build(t)
	unit := &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: 65534, Gid: 65534},
		AmbientCaps: []uintptr{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_KILL, unix.CAP_SYS_PTRACE},
	}
	for _, tt := range []struct {
		name     string
		attr     *syscall.SysProcAttr
		confined string
		memory   string // what becomes of the victim's
		want     map[string]string
	}{
		{"unit", unit, "", "PWNED", map[string]string{"process_vm_writev": "done", "mem": "EACCES", "exec": "done", "exe": "done", "signal": "done"}},
		{"unit, confined", unit, "confined", "untou", nil},
		{"root", nil, "", "PWNED", map[string]string{"process_vm_writev": "done", "mem": "done"}},
		{"root, confined", nil, "confined", "untou", nil},
		// The unit's user cannot open the victim's memory in any case.
		{"unit, with commands", unit, "commands", "untou", map[string]string{
			"process_vm_writev": "EPERM", "process_vm_readv": "EPERM", "mem": "EACCES", "pidfd_getfd": "EPERM",
			"exec": "done", "bpf": "EPERM", "exe": "done", "signal": "done",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			victim := exec.Command(exe, "victim")
			in, err := victim.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := victim.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := victim.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = victim.Wait() }()
			defer in.Close()
			line := make([]byte, 64)
			n, err := out.Read(line)
			if err != nil {
				t.Fatal(err)
			}
			args := []string{"intruder", strconv.Itoa(victim.Process.Pid), strings.TrimSpace(string(line[:n]))}
			if tt.confined != "" {
				args = append(args, tt.confined)
			}
			if tt.confined == "confined" {
				tt.want = map[string]string{
					"process_vm_writev": "EPERM", "process_vm_readv": "EPERM", "mem": "EPERM", "pidfd_getfd": "EPERM",
					"exec": "EPERM", "bpf": "EPERM", "exe": "done", "signal": "done",
				}
			}
			cmd := exec.Command(exe, args...)
			cmd.SysProcAttr, cmd.Dir = tt.attr, "/"
			got, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, got)
			}
			var said map[string]string
			if err := json.Unmarshal(got, &said); err != nil {
				t.Fatalf("%v: %s", err, got)
			}
			for what, want := range tt.want {
				if said[what] != want {
					t.Errorf("%s: %s, want %s", what, said[what], want)
				}
			}
			if foreign, ok := said["foreign"]; tt.confined != "" && ok && foreign != "EPERM" {
				t.Errorf("a call as a 32-bit program makes it: %s", foreign)
			}
			in.Close()
			if n, err = out.Read(line); err != nil || string(line[:min(n, 5)]) != tt.memory {
				t.Errorf("the victim has %q, want %s: %v", line[:n], tt.memory, err)
			}
		})
	}
}
