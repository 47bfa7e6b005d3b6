package procscan

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
)

// waitersMax is how many threads of a process are asked what they wait for.
const waitersMax = 2048

// errUnnamed says that a thread waits for one child that lives and nobody tells which.
// One that is dead it would have got.
var errUnnamed = errors.New("it waits for a child that is not known")

// waits returns a child, alive, that a thread of the process waits for, and nothing but
// that child; zero if there is none or another thread waits for any. It is to be called
// on a thread of the pool.
func (p *process) waits(nspid []int) (task.ID, error) {
	w := p.s.newWorker()
	threads, err := w.listThreads(uint32(p.pid))
	if err != nil {
		return task.ID{}, err
	}
	var awaited task.ID
	unnamed := false
	for _, tid := range threads[:min(len(threads), waitersMax)] {
		dir := "task/" + strconv.Itoa(int(tid)) + "/"
		text, err := readAll(p.dir, dir+"syscall", 256)
		switch {
		case gone(err):
			continue // the thread, or the kernel has no such file
		case denied(err):
			// Its owner's alone (mode 0400), which takes more than CAP_SYS_PTRACE.
			text, err := readAll(p.dir, dir+"wchan", 64)
			unnamed = unnamed || err == nil && strings.HasSuffix(string(text), "do_wait")
			continue
		case err != nil:
			return task.ID{}, err
		}
		child := 0
		switch call := parseSyscall(string(text)); {
		case !call.waits:
			continue
		case call.pidfd:
			b, err := readAll(p.dir, dir+"fdinfo/"+strconv.Itoa(call.id), 4096)
			if pid, ok := field(append([]byte{'\n'}, b...), "\nPid:\t"); err == nil && ok {
				child = pid // as kzr's namespace has it
			} else {
				unnamed = unnamed || !gone(err)
			}
		case call.id <= 0:
			return task.ID{}, nil // any child, or any of a group
		case len(nspid) <= 1:
			child = call.id
		default:
			child, err = w.childCalled(p.s, p.pid, call.id, len(nspid)-1)
			if errors.Is(err, errUnsure) {
				unnamed = true
			} else if err != nil {
				return task.ID{}, err
			}
		}
		if child <= 0 || awaited != (task.ID{}) {
			continue
		}
		if awaited, err = p.s.liveChild(p.pid, child); err != nil {
			return task.ID{}, err
		}
	}
	if awaited == (task.ID{}) && unnamed {
		return task.ID{}, errUnnamed
	}
	return awaited, nil
}

// call is what a thread that waits for a child waits for.
type call struct {
	waits bool
	pidfd bool
	id    int // the child's pid in its parent's namespace, or a descriptor; 0 for any
}

// parseSyscall reads /proc/PID/syscall (man 5 proc_pid_syscall): the number in decimal
// and the arguments in hex; no number if the thread runs.
func parseSyscall(text string) call {
	f := strings.Fields(text)
	if len(f) < 3 {
		return call{}
	}
	arg := func(i int) int {
		v, err := strconv.ParseUint(strings.TrimPrefix(f[i], "0x"), 16, 64)
		if err != nil {
			return 0
		}
		return int(int32(v)) // pid_t, whatever is above it in the register
	}
	switch f[0] {
	case strconv.Itoa(unix.SYS_WAIT4):
		return call{waits: true, id: max(arg(1), 0)}
	case strconv.Itoa(unix.SYS_WAITID):
		switch arg(1) {
		case unix.P_PID:
			return call{waits: true, id: arg(2)}
		case unix.P_PIDFD:
			return call{waits: true, pidfd: true, id: arg(2)}
		}
		return call{waits: true}
	}
	return call{}
}

// childCalled finds the live child that has this pid in the pid namespace so many
// levels inwards from kzr's; 0 if there is none, with errUnsure if it may have been
// missed.
func (w *worker) childCalled(s *Scanner, parent, pid, level int) (int, error) {
	children, unsure := w.listChildren(uint32(parent))
	if errors.Is(unsure, errMany) {
		return 0, unsure // to look at thousands takes longer than anybody waits
	}
	if unsure != nil && !errors.Is(unsure, errUnsure) {
		return 0, unlessGone(unsure)
	}
	for _, child := range children {
		name, err := s.calledAlive(child, level)
		if unlessShort(err) != nil {
			return 0, err
		}
		if err == nil && name == pid {
			return int(child), nil
		}
	}
	return 0, unsure
}

// calledAlive is the pid of a live process so many levels inwards, 0 if it has none.
func (s *Scanner) calledAlive(pid uint32, level int) (int, error) {
	pidfd, e := rawPidfdOpen(s.root, pid)
	if e != 0 {
		return 0, e
	}
	defer rawClose(pidfd)
	if dead, e := rawDead(pidfd); e != 0 || dead {
		return 0, failure(e)
	}
	nspid, err := s.nspidOf(pidfd)
	if err != nil || level >= len(nspid) {
		return 0, err
	}
	return nspid[level], nil
}

// liveChild says who a live child is; zero if it is dead, or another's.
func (s *Scanner) liveChild(parent, child int) (task.ID, error) {
	dir, err := openat(s.root, strconv.Itoa(child), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return task.ID{}, unlessShort(err)
	}
	defer rawClose(dir)
	st, err := statOf(dir, "stat")
	if err != nil {
		return task.ID{}, unlessShort(err)
	}
	if int(st.ppid) != parent || st.state == 'X' || st.state == 'Z' && st.threads <= 1 {
		return task.ID{}, nil
	}
	return task.ID{PID: child, Start: st.start}, nil
}
