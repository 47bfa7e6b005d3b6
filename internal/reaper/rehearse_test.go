package reaper

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestRehearse(t *testing.T) {
	if err := Rehearse(); err != nil {
		t.Fatal(err)
	}
}

// A filter that lets everything pass but the one call that matters must not stay
// unnoticed until that call does.
func TestRehearseUnderSeccomp(t *testing.T) {
	if os.Getenv("KZR_TEST_DENY") != "" {
		deny(t, map[string]uint32{
			"pidfd_open": unix.SYS_PIDFD_OPEN, "pidfd_send_signal": unix.SYS_PIDFD_SEND_SIGNAL,
		}[os.Getenv("KZR_TEST_DENY")])
		if err := Rehearse(); err != nil {
			os.Stdout.WriteString(err.Error() + "\n")
		}
		return
	}
	for call, want := range map[string]string{
		"pidfd_open":        "opening pidfd: operation not permitted",
		"pidfd_send_signal": "sending signal 0 through pidfd: operation not permitted",
	} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestRehearseUnderSeccomp$")
		cmd.Env = append(os.Environ(), "KZR_TEST_DENY="+call)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "seccomp filter") || !strings.Contains(string(out), want) {
			t.Errorf("without %s: %v: %s", call, err, out)
		}
	}
}

// deny makes a system call fail with EPERM in every thread of this process.
func deny(t *testing.T, nr uint32) {
	runtime.LockOSThread() // the filter's caller is the one whose no_new_privs counts
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		t.Fatal("installing a seccomp filter: ", errno)
	}
}
