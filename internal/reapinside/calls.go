package reapinside

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// regular arguments of calls that decide whether they can be interrupted.
const (
	msgWaitAll      = 0x100 // recv: wait for all of it
	futexCmdMask    = 0x7f  // without FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME
	futexWait       = 0
	futexWaitBitset = 9
	uringExtArg     = 1 << 3 // io_uring_enter: argument 4 is a struct with a timeout
)

// span tells, of a call that would end with EINTR and is made to start over, for how
// long it then waits anew: 0 if for ever. timespec reads one of the process's memory.
type span func(args *[6]uint64, timespec func(addr uint64) time.Duration) time.Duration

// A call that can be interrupted without a trace, by its number on x86-64: the kernel
// restarts it, or does so once -ERESTARTNOHAND stands in place of -EINTR. Each has
// been tried on a real kernel (TestScenario57BlockingCalls). In user mode anything can be.
type call struct {
	name string
	// except says with which arguments it cannot be; nil is with none.
	except func(args *[6]uint64) bool
	// anew is nil where there is no timeout or the kernel keeps its deadline.
	anew span
}

func milliseconds(i int) span {
	return func(args *[6]uint64, _ func(uint64) time.Duration) time.Duration {
		return time.Duration(max(0, int32(args[i]))) * time.Millisecond
	}
}

func timespecAt(i int) span {
	return func(args *[6]uint64, timespec func(uint64) time.Duration) time.Duration {
		if args[i] == 0 {
			return 0
		}
		return timespec(args[i])
	}
}

// socketTimeout is of calls that end with EINTR only on a socket with SO_RCVTIMEO,
// which cannot be read from outside.
func socketTimeout(*[6]uint64, func(uint64) time.Duration) time.Duration { return maxTimeout }

func uringTimeout(args *[6]uint64, timespec func(uint64) time.Duration) time.Duration {
	if args[3]&uringExtArg == 0 || args[4] == 0 {
		return 0
	}
	return maxTimeout // a pointer in a struct, of two layouts: not worth it
}

func withFlag(i int, bit uint64) func(*[6]uint64) bool {
	return func(args *[6]uint64) bool { return args[i]&bit != 0 }
}

func notWaiting(args *[6]uint64) bool {
	op := args[1] & futexCmdMask
	return op != futexWait && op != futexWaitBitset
}

var calls = map[int64]call{
	0:   {name: "read", anew: socketTimeout},
	7:   {name: "poll"},
	23:  {name: "select"},
	34:  {name: "pause"},
	35:  {name: "nanosleep"},
	43:  {name: "accept", anew: socketTimeout},
	45:  {name: "recvfrom", except: withFlag(3, msgWaitAll), anew: socketTimeout},
	47:  {name: "recvmsg", except: withFlag(2, msgWaitAll), anew: socketTimeout},
	61:  {name: "wait4"},
	65:  {name: "semop"},
	70:  {name: "msgrcv"},
	73:  {name: "flock"},
	128: {name: "rt_sigtimedwait", anew: timespecAt(2)},
	130: {name: "rt_sigsuspend"},
	202: {name: "futex", except: notWaiting},
	208: {name: "io_getevents", anew: timespecAt(4)},
	219: {name: "restart_syscall"},
	220: {name: "semtimedop", anew: timespecAt(3)},
	230: {name: "clock_nanosleep"},
	232: {name: "epoll_wait", anew: milliseconds(3)},
	243: {name: "mq_timedreceive"},
	247: {name: "waitid"},
	270: {name: "pselect6"},
	271: {name: "ppoll"},
	281: {name: "epoll_pwait", anew: milliseconds(3)},
	288: {name: "accept4", anew: socketTimeout},
	333: {name: "io_pgetevents", anew: timespecAt(4)},
	// What it has submitted by then it would not say a second time.
	426: {name: "io_uring_enter", except: func(args *[6]uint64) bool { return args[1] != 0 }, anew: uringTimeout},
	441: {name: "epoll_pwait2", anew: timespecAt(3)},
	449: {name: "futex_waitv"},
}

// Names of calls that must not be interrupted, for people.
var otherCalls = map[int64]string{
	1: "write", 2: "open", 16: "ioctl", 17: "pread64", 18: "pwrite64", 19: "readv", 20: "writev", 40: "sendfile", 42: "connect",
	44: "sendto", 46: "sendmsg", 56: "clone", 57: "fork", 58: "vfork", 59: "execve", 69: "msgsnd", 72: "fcntl", 74: "fsync",
	75: "fdatasync", 242: "mq_timedsend", 257: "openat", 275: "splice", 299: "recvmmsg", 307: "sendmmsg", 435: "clone3",
}

// interruptible says whether a call can be interrupted without a trace.
func interruptible(nr int64, args *[6]uint64) bool {
	c, ok := calls[nr]
	return ok && (c.except == nil || !c.except(args))
}

func callName(nr int64) string {
	name := calls[nr].name
	if name == "" {
		name = otherCalls[nr]
	}
	if name == "" {
		return fmt.Sprintf("system call %d", nr)
	}
	if m := nr; m == 45 || m == 47 {
		return name + "(2) with MSG_WAITALL"
	}
	return name + "(2)"
}

func span64(ts *unix.Timespec) time.Duration {
	if ts.Sec < 0 || ts.Nsec < 0 {
		return 0
	}
	if ts.Sec >= int64(maxTimeout/time.Second) {
		return maxTimeout
	}
	return time.Duration(ts.Sec)*time.Second + time.Duration(ts.Nsec)
}
