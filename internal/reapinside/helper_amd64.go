package reapinside

import (
	"errors"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"kzr/internal/footprint"
)

// The command lines that make kzr's program the helper, or what the helper tries
// itself on. Nobody else calls it so.
const (
	helperName    = "kzr-reap"
	rehearsalName = "kzr-reap-rehearsal"
	channel       = 3 // the descriptor of the socket
	// No preemption by signals, which would come to the thread that traces, and no
	// file of cgroups held open.
	environment = "GODEBUG=asyncpreemptoff=1,containermaxprocs=0,updatemaxprocs=0"
)

const (
	workers = 3 // that trace: a process can hold one up for as long as it likes

	// What a step of a request may take before the worker counts as held up.
	stepPatience = firstStop + time.Second
	// A stance is about a moment that is over by then.
	commitWithin = time.Second

	restBetween = 90 * time.Millisecond // for a parent, from one stop to the next
	// leaving is what a stop under way has once kzr is gone. A parent that stands
	// still after that brings itself back.
	leaving = 10 * time.Second

	collectEvery = 64 // requests
)

// dieAt is set by the linker in tests: where in a batch the helper ends, once it has
// rehearsed.
var (
	dieAt     string
	rehearsed bool
)

func (w *worker) at(point string) {
	if dieAt != "" && dieAt == point && rehearsed {
		os.Exit(3)
	}
}

// Serve is the whole life of the helper, if args, those of the process, say that
// this is it; else it returns at once.
func Serve(args []string) {
	if len(args) != 1 {
		return
	}
	switch args[0] {
	case helperName:
		os.Exit(serve())
	case rehearsalName:
		os.Exit(beRehearsed())
	}
}

// worker is one thread that traces.
type worker struct {
	proc      int // a descriptor of /proc
	jobs      chan job
	answers   chan answerMsg
	busy      bool // of the server
	parent    parent
	strand    bool
	lingering []tracee

	maps  []mapping
	path  [64]byte
	small [1024]byte
	text  [16 << 10]byte
	scan  [scanPiece]byte
	xsave [20 << 10]byte
	frame [frameSize]byte
}

// job is a request that makes sense.
type job struct {
	prepare   *prepareMsg
	pidfd     int
	notBefore time.Time
	commit    *wireStance
	strand    bool // of a commit: leave it to its own way back
}

func newWorker(proc int) *worker {
	w := &worker{proc: proc, jobs: make(chan job), answers: make(chan answerMsg, 1), maps: make([]mapping, 0, 1024)}
	w.parent = parent{pidfd: -1, zombies: make([]zombie, 0, maxBatch)}
	return w
}

// run never leaves its thread, as only that may speak to those that it traces.
func (w *worker) run() {
	runtime.LockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1000, 0, 0, 0) // ns; 50 us would be half of a stop
	for {
		var j job
		if len(w.lingering) == 0 {
			j = <-w.jobs
		} else {
			select {
			case j = <-w.jobs:
			case <-time.After(2 * time.Millisecond):
				w.tend()
				continue
			}
		}
		w.answers <- w.do(j)
	}
}

func (w *worker) do(j job) (out answerMsg) {
	if j.prepare != nil {
		w.forget()
		if out.Refusal = w.prepare(j.prepare, j.pidfd); out.Refusal != None {
			w.forget()
			return out
		}
		time.Sleep(time.Until(j.notBefore))
		w.place(w.parent.pid, &w.parent.sleeps)
		return out
	}
	w.strand = j.strand
	out.Refusal, out.Detail = w.commit(j.commit, &out)
	w.forget()
	return out
}

// server takes requests and has one worker do each.
type server struct {
	fd      int
	workers []*worker
	current *worker // has a parent prepared
	ready   time.Time
	pid     int // of that parent
	stops   [64]struct {
		pid  int
		over time.Time
	}
	next int

	packet  [8192]byte
	extra   [256]byte
	prep    prepareMsg
	commits commitMsg
}

func serve() int {
	if err := confine(); err != nil {
		return 2
	}
	s := &server{fd: channel}
	proc, err := unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		s.hello(Forbidden, err)
		return 2
	}
	for range workers {
		s.workers = append(s.workers, newWorker(proc))
	}
	if refusal := Check(); refusal != None {
		s.hello(refusal, nil)
		return 2
	}
	child, err := startRehearsal()
	if err != nil {
		s.hello(Forbidden, err)
		return 2
	}
	for _, w := range s.workers {
		go w.run()
	}
	settle()
	footprint.GiveBack()
	if err := filter(); err != nil {
		s.hello(Forbidden, err)
		return 2
	}
	for _, w := range s.workers {
		if refusal, err := s.rehearse(w, child); refusal != None {
			child.end()
			s.hello(refusal, err)
			return 2
		}
	}
	child.end()
	rehearsed = true
	debug.FreeOSMemory()
	debug.SetGCPercent(-1) // not while a process stands still; see below
	s.hello(None, nil)
	for n := 1; s.one(); n++ {
		if n%collectEvery == 0 {
			runtime.GC()
		}
	}
	s.leave()
	return 0
}

// settle makes all threads before the filter, and the process table, stand against
// more.
func settle() {
	footprint.SpareThreads(6)
	<-time.After(time.Millisecond) // the timers' part of the runtime
}

// confine takes away what the helper does not need. It was started with no
// capability but the one; see [Start].
func confine() error {
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU,
		unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM)
	runtime.GOMAXPROCS(1)
	if err := unix.SetsockoptInt(channel, unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<10); err != nil {
		return err // it is no socket: nobody of kzr started this
	}
	unix.CloseOnExec(channel)
	if err := closeOthers(); err != nil {
		return err
	}
	_ = os.WriteFile("/proc/self/comm", []byte(helperName), 0)
	_ = os.Chdir("/")
	// No core: it could hold what was read of other processes.
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	if os.Geteuid() == 0 { // else /proc/self would not be its own any more
		_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	}
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil {
		files.Cur = min(files.Max, 4096)
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &files)
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// closeOthers closes what kzr was started with and passed on by mistake. The runtime's
// own are of no file.
func closeOthers() error {
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range all {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= channel {
			continue
		}
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(to, "anon_inode:") {
			unix.Close(fd)
		}
	}
	return nil
}

func (s *server) send(msg any) { _, _ = unix.Write(s.fd, encode(msg)) }

func (s *server) hello(refusal Refusal, err error) {
	m := helloMsg{head: head{Magic: magic, Kind: kindHello}, Refusal: refusal}
	if e, ok := errors.AsType[unix.Errno](err); ok {
		m.Detail = int64(e)
	}
	s.send(&m)
}

// one serves one request. It returns false when kzr is gone.
func (s *server) one() bool {
	n, extra, _, _, err := unix.Recvmsg(s.fd, s.packet[:], s.extra[:], unix.MSG_CMSG_CLOEXEC)
	if err == unix.EINTR {
		return true
	}
	if err != nil || n == 0 {
		return false
	}
	b, fds := s.packet[:n], received(s.extra[:extra])
	var out answerMsg
	out.Refusal = Malformed
	switch {
	case len(fds) == 1 && decode(b, kindPrepare, &s.prep) == nil && s.prep.check() == nil:
		out = s.prepare(fds[0])
		fds = nil
	case len(fds) == 0 && decode(b, kindCommit, &s.commits) == nil:
		out = s.commit()
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	var h head
	_ = decodeHead(b, &h)
	out.head = head{Magic: magic, Kind: kindAnswer, Seq: h.Seq}
	s.send(&out)
	return true
}

// received are the descriptors that came with a message.
func received(b []byte) (fds []int) {
	all, err := unix.ParseSocketControlMessage(b)
	if err != nil {
		return nil
	}
	for i := range all {
		if got, err := unix.ParseUnixRights(&all[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

func (s *server) prepare(pidfd int) answerMsg {
	s.current = nil
	w := s.idle()
	if w == nil {
		unix.Close(pidfd)
		return answerMsg{Refusal: HelperBusy}
	}
	m := s.prep // a worker that is late still reads it
	j := job{prepare: &m, pidfd: pidfd}
	for _, stop := range s.stops {
		if stop.pid == int(m.PID) {
			j.notBefore = stop.over.Add(restBetween)
		}
	}
	out := w.ask(j)
	if out.Refusal == None {
		s.current, s.ready, s.pid = w, time.Now(), int(m.PID)
	}
	return out
}

func (s *server) commit() answerMsg {
	w := s.current
	s.current = nil
	if w == nil || time.Since(s.ready) > commitWithin {
		return answerMsg{Refusal: Moved}
	}
	stance := s.commits.Stance
	out := w.ask(job{commit: &stance})
	for i := range s.stops {
		if s.stops[i].pid == s.pid {
			s.stops[i].pid = 0
		}
	}
	s.stops[s.next].pid, s.stops[s.next].over = s.pid, time.Now()
	s.next = (s.next + 1) % len(s.stops)
	return out
}

// idle is a worker that nothing holds up.
func (s *server) idle() *worker {
	for _, w := range s.workers {
		if w.busy {
			select {
			case <-w.answers: // too late for whoever asked
				w.busy = false
			default:
				continue
			}
		}
		return w
	}
	return nil
}

// ask has a worker do something. One that is not done in time is busy until it is.
func (w *worker) ask(j job) answerMsg {
	w.busy = true
	select {
	case w.jobs <- j:
	case <-time.After(stepPatience):
		// It looks after one that lingers; it does that quickly.
		w.busy = false
		return answerMsg{Refusal: HelperBusy}
	}
	select {
	case out := <-w.answers:
		w.busy = false
		return out
	case <-time.After(stepPatience):
		return answerMsg{Refusal: HelperBusy}
	}
}

// leave ends when all stops are over.
func (s *server) leave() {
	enough := time.After(leaving)
	for _, w := range s.workers {
		if w.busy {
			select {
			case <-w.answers:
			case <-enough:
				return
			}
		}
	}
}

// The rehearsal: a child of the helper's own, with a zombie for each worker, in which
// it reaps at its start, through its own filter. It shows that ptrace is allowed here
// and does what it should on this kernel and processor, and that the way back is one.

// rehearsal is the helper's end of it.
type rehearsal struct {
	pid, pidfd, fd int
	stance         wireStance
}

func startRehearsal() (*rehearsal, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pair[1])
	pid, err := syscall.ForkExec("/proc/self/exe", []string{rehearsalName}, &syscall.ProcAttr{
		Env:   []string{environment},
		Files: []uintptr{0, 1, 2, uintptr(pair[1])},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return nil, err
	}
	r := &rehearsal{pid: pid, fd: pair[0]}
	r.stance = wireStance{CS: userCode64, MayWait: true}
	if mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); err == nil {
		r.stance.Seccomp = int32(mode)
	}
	if r.pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
		r.end()
		return nil, err
	}
	return r, nil
}

// pulse has the child's main thread say that it lives; with it comes a zombie.
func (r *rehearsal) pulse() (zombie int, ok bool) {
	var b [8]byte
	if _, err := unix.Write(r.fd, b[:1]); err != nil {
		return 0, false
	}
	p := unix.PollFd{Fd: int32(r.fd), Events: unix.POLLIN}
	_, _, _ = syscall.Syscall(unix.SYS_POLL, uintptr(unsafe.Pointer(&p)), 1, 5000)
	n, err := unix.Read(r.fd, b[:])
	return int(*(*uint64)(unsafe.Pointer(&b))), err == nil && n == len(b)
}

// end is its end, at the end of the socket.
func (r *rehearsal) end() {
	unix.Close(r.fd)
	_, _ = unix.Wait4(r.pid, nil, 0, nil)
	unix.Close(r.pidfd)
}

// rehearse leaves the child to bring itself back, and then reaps a zombie of it.
func (s *server) rehearse(w *worker, r *rehearsal) (Refusal, error) {
	for _, strand := range []bool{true, false} {
		refusal := Slow
		for deadline := time.Now().Add(5 * time.Second); refusal.Transient(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				return refusal, nil
			}
			out, err := s.rehearseOnce(w, r, strand)
			if err != nil {
				return NoWayBack, err
			}
			if refusal = out.Refusal; refusal == None && !strand {
				switch out.Fates[0] {
				case untouched: // the machine is busy, and the time was up before
					refusal = Slow
				case stale:
					return WaitFailed, nil
				}
			}
		}
		if refusal != None {
			return refusal, nil
		}
	}
	if _, ok := r.pulse(); !ok {
		return NoWayBack, nil
	}
	return None, nil
}

func (s *server) rehearseOnce(w *worker, r *rehearsal, strand bool) (answerMsg, error) {
	pid, ok := r.pulse()
	if !ok {
		return answerMsg{}, unix.EIO
	}
	st, ok := s.statOf(r.pid)
	z, ok2 := s.statOf(pid)
	if !ok || !ok2 {
		return answerMsg{}, unix.ENOENT
	}
	fd, err := unix.Dup(r.pidfd)
	if err != nil {
		return answerMsg{}, err
	}
	m := prepareMsg{PID: int64(r.pid), Start: st.start, N: 1}
	m.Zombies[0] = wireZombie{PID: int64(pid), Start: z.start}
	out := w.ask(job{prepare: &m, pidfd: fd})
	if out.Refusal == None {
		out = w.ask(job{commit: &r.stance, strand: strand})
	}
	return out, nil
}

func (s *server) statOf(pid int) (stat, bool) {
	b := make([]byte, 1024)
	w := worker{proc: s.workers[0].proc}
	b, err := w.readProc(pid, "stat", b)
	if err != nil {
		return stat{}, false
	}
	return parseStat(b)
}

// beRehearsed is the child's life: a zombie for each byte that comes.
func beRehearsed() int {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		_ = syscall.Exec("/proc/self/exe", []string{rehearsalName}, nil)
		return 2
	}
	came := make(chan bool)
	go func() {
		var b [1]byte
		for {
			n, err := unix.Read(channel, b[:])
			came <- err == nil && n == 1
		}
	}()
	// Whoever adopts them may be a parent that does not reap either.
	defer func() {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
				return
			}
		}
	}()
	for <-came {
		pid, _, e := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if e == 0 && pid == 0 {
			_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0) // it does not come back
		}
		if e != 0 {
			return 2
		}
		var info [128]byte
		// It is a zombie when this returns, and stays one.
		_, _, _ = syscall.Syscall6(unix.SYS_WAITID, 1, pid, uintptr(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOWAIT, 0, 0)
		b := (*[8]byte)(unsafe.Pointer(&pid))
		if _, err := unix.Write(channel, b[:]); err != nil {
			return 2
		}
	}
	return 0
}
