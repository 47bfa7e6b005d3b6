package reapinside

import (
	"bytes"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
)

// parent is one whose zombies are to be reaped, as the helper itself sees it.
type parent struct {
	pid     int
	start   uint64
	pidfd   int
	level   int // of pid namespaces, 0 for the one that kzr sees
	ways    ways
	noWay   Refusal // why there are none; what the stance says goes first
	sleeps  place   // where in the kernel it was asleep
	zombies []zombie
}

// zombie is one of them. Its pidfd is kept: as long as it has a pid, nobody else has
// the same one.
type zombie struct {
	fd     int // a pidfd, -1 if it is none of this parent's
	info   int // /proc/self/fdinfo of that
	inside int // its pid in the parent's pid namespace
}

// place is the name of a kernel function, cut.
type place struct {
	name [64]byte
	n    int
}

func (p *place) is(name string) bool { return string(p.name[:p.n]) == name }

// stat is what /proc/PID/stat tells.
type stat struct {
	state byte
	ppid  int
	flags uint64
	start uint64
}

const pfExiting = 0x4 // PF_EXITING

func parseStat(b []byte) (st stat, ok bool) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return st, false
	}
	for n, field := 2, b[i+1:]; ; n++ {
		field = bytes.TrimLeft(field, " ")
		word, rest, more := bytes.Cut(field, []byte(" "))
		var err error
		switch n {
		case 2:
			if len(word) == 1 {
				st.state = word[0]
			}
		case 3:
			st.ppid, err = strconv.Atoi(string(word))
		case 8:
			st.flags, err = strconv.ParseUint(string(word), 10, 64)
		case 21:
			st.start, err = strconv.ParseUint(string(word), 10, 64)
			return st, err == nil && st.state != 0
		}
		if err != nil || !more {
			return st, false
		}
		field = rest
	}
}

// openProc opens a file of a process. It tells the scheduler, as all that reads of
// processes here does.
func (w *worker) openProc(pid int, name string) (int, error) {
	path := append(strconv.AppendInt(w.path[:0], int64(pid), 10), '/')
	path = append(append(path, name...), 0)
	return w.open(path)
}

func (w *worker) open(path []byte) (int, error) {
	for {
		fd, _, e := syscall.Syscall6(unix.SYS_OPENAT, uintptr(w.proc), uintptr(unsafe.Pointer(&path[0])), openFlags, 0, 0, 0)
		switch e {
		case 0:
			return int(fd), nil
		case unix.EINTR:
		default:
			return -1, e
		}
	}
}

const openFlags = unix.O_RDONLY | unix.O_CLOEXEC

// readProc reads the beginning of a small file of a process.
func (w *worker) readProc(pid int, name string, b []byte) ([]byte, error) {
	fd, err := w.openProc(pid, name)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	n, err := unix.Pread(fd, b, 0)
	if err != nil {
		return nil, err
	}
	return b[:n], nil
}

func (w *worker) stat(pid int) (st stat, ok bool) {
	b, err := w.readProc(pid, "stat", w.small[:])
	if err != nil {
		return st, false
	}
	return parseStat(b)
}

// eachLine calls f for each line of a file until it returns false. What follows the
// first few hundred bytes of a longer line is left out, but for its end.
func (w *worker) eachLine(fd int, f func(line []byte) bool) error {
	have := 0
	for {
		n, err := unix.Read(fd, w.text[have:])
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		b := w.text[:have+n]
		for {
			i := bytes.IndexByte(b, '\n')
			if i < 0 {
				break
			}
			if !f(b[:i]) {
				return nil
			}
			b = b[i+1:]
		}
		if have = copy(w.text[:], b); have == len(w.text) {
			have = longLine // the rest of it is of no use
		}
	}
}

// longLine is what is kept of a line that does not fit, such as the groups of a
// process that has 65,536.
const longLine = 512

// pids reads what a pidfd's fdinfo says: the pid as kzr sees it, -1 once it has been
// waited for, the one in the namespace that is level levels further in, and how many
// levels there are below. A zombie's status could have half a megabyte of groups.
func (w *worker) pids(info, level int) (pid, inside, depth int, ok bool) {
	n, err := unix.Pread(info, w.small[:], 0)
	if err != nil {
		return 0, 0, 0, false
	}
	for line := range bytes.Lines(w.small[:n]) {
		if rest, found := bytes.CutPrefix(line, []byte("Pid:\t")); found {
			if pid, err = strconv.Atoi(string(bytes.TrimSpace(rest))); err != nil {
				return 0, 0, 0, false
			}
		}
		if rest, found := bytes.CutPrefix(line, []byte("NSpid:\t")); found {
			for field := range bytes.FieldsSeq(rest) {
				n, err := strconv.Atoi(string(field))
				if err != nil {
					return 0, 0, 0, false
				}
				if depth == level {
					inside = n
				}
				depth++
			}
			return pid, inside, depth, true
		}
	}
	return pid, 0, 0, pid == -1
}

func (w *worker) openInfo(fd int) (int, error) {
	return w.open(append(strconv.AppendInt(append(w.path[:0], "self/fdinfo/"...), int64(fd), 10), 0))
}

func readable(fd int) bool {
	p := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	n, _, _ := syscall.RawSyscall(unix.SYS_POLL, uintptr(unsafe.Pointer(&p)), 1, 0)
	return n != 0
}

// look judges the parent by what can be seen from outside.
func (w *worker) look(p *parent) Refusal {
	st, ok := w.stat(p.pid)
	// The pidfd comes last: if its process lives now, all of that was about it.
	if !ok || st.start != p.start || readable(p.pidfd) {
		return Gone
	}
	if st.flags&pfExiting != 0 {
		return Exiting
	}
	switch st.state {
	case 'R', 'S':
	case 'T':
		return Stopped
	case 't':
		return Traced
	case 'D':
		return Uninterruptible
	default:
		return Exiting
	}
	// A frozen process of cgroup v2 sleeps like any other.
	var at place
	w.place(p.pid, &at)
	if at.is("do_freezer_trap") || at.is("get_signal") || at.is("__refrigerator") {
		return Frozen
	}
	return None
}

// place reads where in the kernel a process is asleep; "0" if it is not.
func (w *worker) place(pid int, at *place) {
	b, _ := w.readProc(pid, "wchan", at.name[:])
	at.n = len(b)
}

// prepare looks at everything that does not depend on the moment, so that what does
// is decided quickly.
func (w *worker) prepare(m *prepareMsg, pidfd int) Refusal {
	p := &w.parent
	p.pid, p.start, p.pidfd = int(m.PID), m.Start, pidfd
	info, err := w.openInfo(pidfd)
	if err != nil {
		return Malformed
	}
	pid, _, depth, ok := w.pids(info, 0)
	unix.Close(info)
	if !ok || depth == 0 {
		return Malformed // no pidfd, or of a process that kzr cannot see
	}
	if pid != p.pid {
		return Gone
	}
	p.level = depth - 1
	if refusal := w.look(p); refusal != None {
		return refusal
	}
	found := false
	for _, z := range m.Zombies[:m.N] {
		opened := w.zombie(p, int(z.PID), z.Start)
		found = found || opened.fd >= 0
		p.zombies = append(p.zombies, opened)
	}
	if !found {
		return NoZombies
	}
	// What is final is looked at twice: it may have executed another program meanwhile.
	for range 2 {
		if p.ways, p.noWay = w.findWays(p.pid); p.noWay != NoWayBack {
			break
		}
	}
	return None
}

// zombie looks at a child that is said to be a zombie.
func (w *worker) zombie(p *parent, pid int, start uint64) (z zombie) {
	none := zombie{fd: -1}
	fd, _, e := syscall.Syscall(unix.SYS_PIDFD_OPEN, uintptr(pid), 0, 0)
	if e != 0 {
		return none
	}
	z.fd = int(fd)
	var err error
	if z.info, err = w.openInfo(z.fd); err != nil {
		unix.Close(z.fd)
		return none
	}
	st, ok := w.stat(pid)
	ok = ok && st.state == 'Z' && st.ppid == p.pid && st.start == start
	if ok {
		// Again the pidfd last.
		var now int
		now, z.inside, _, ok = w.pids(z.info, p.level)
		ok = ok && now == pid && z.inside > 0
	}
	if !ok {
		z.close()
		return none
	}
	return z
}

func (z *zombie) close() {
	unix.Close(z.info)
	unix.Close(z.fd)
	z.fd = -1
}

// still says whether a zombie has its pid yet.
func (w *worker) still(z *zombie) bool {
	_, inside, _, ok := w.pids(z.info, w.parent.level)
	return ok && inside == z.inside
}

// forget lets go of what prepare opened.
func (w *worker) forget() {
	p := &w.parent
	for i := range p.zombies {
		if z := &p.zombies[i]; z.fd >= 0 {
			z.close()
		}
	}
	if p.pidfd >= 0 {
		unix.Close(p.pidfd)
	}
	*p = parent{pidfd: -1, zombies: p.zombies[:0]}
}

// judge is what the stance says.
func judge(st *wireStance) (Refusal, int64) {
	switch {
	case st.CS != userCode64:
		return Bits32, 0
	case st.Seccomp == seccompStrict:
		return SeccompStrict, 0
	case st.Seccomp != 0 && !st.MayWait:
		return SeccompFilter, 0
	case st.UserDispatch:
		return UserDispatch, 0
	case st.ShadowStack:
		return ShadowStack, 0
	case st.Pending != 0:
		return SignalPending, 0
	case st.InCall && !interruptible(st.Call, &st.Args):
		return InCall, st.Call
	}
	return None, 0
}

// Judge says what a stance tells against reaping inside a process, "" if nothing.
func Judge(s task.Stance) string {
	st := newStance(s)
	if r, detail := judge(&st); r != None {
		return r.about(detail)
	}
	return ""
}

const seccompStrict = 1

// commit reaps in the parent that was prepared.
func (w *worker) commit(st *wireStance, out *answerMsg) (Refusal, int64) {
	p := &w.parent
	if refusal, detail := judge(st); refusal != None {
		return refusal, detail
	}
	if p.noWay != None {
		return p.noWay, 0
	}
	if refusal := w.look(p); refusal != None {
		return refusal, 0
	}
	// If it is asleep where it was before kzr looked at its stance, it has hardly been
	// anywhere else meanwhile: the stance is what it is in.
	var now place
	if w.place(p.pid, &now); now != p.sleeps {
		return Moved, 0
	}
	return w.reap(p, st, out)
}

// recheck is what can have changed until the stop.
func (w *worker) recheck(t *tracee, p *parent, st *wireStance) Refusal {
	if readable(p.pidfd) {
		return Vanished
	}
	if t.dispatches() {
		return UserDispatch
	}
	fd, err := w.openProc(p.pid, "status")
	if err != nil {
		return Vanished
	}
	defer unix.Close(fd)
	mode, filters, refusal := int64(-1), int64(0), None
	err = w.eachLine(fd, func(line []byte) bool {
		key, value, _ := bytes.Cut(line, []byte(":"))
		switch string(key) {
		case "Seccomp":
			mode = number(value)
		case "Seccomp_filters":
			filters = number(value)
		case "x86_Thread_features":
			if bytes.Contains(value, []byte("shstk")) {
				refusal = ShadowStack
			}
			return false // nothing of interest comes after it
		}
		return true
	})
	switch {
	case err != nil || mode < 0:
		return Vanished
	case mode != int64(st.Seccomp) || st.Filters != 0 && filters != int64(st.Filters):
		return SeccompChanged
	}
	return refusal
}

func number(b []byte) int64 {
	n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// tracer says whether a process has one.
func (w *worker) tracer(pid int) (found bool) {
	fd, err := w.openProc(pid, "status")
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	_ = w.eachLine(fd, func(line []byte) bool {
		value, ok := bytes.CutPrefix(line, []byte("TracerPid:"))
		found = ok && number(value) != 0
		return !ok
	})
	return found
}

func (w *worker) whyNotSeized(pid int, err error) (Refusal, int64) {
	switch {
	case err == unix.ESRCH:
		return Vanished, 0
	case w.tracer(pid):
		return Traced, 0
	}
	if r := Check(); r != None {
		return r, 0
	}
	e, _ := err.(unix.Errno)
	return Forbidden, int64(e)
}
