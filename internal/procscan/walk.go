package procscan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
)

// kind is what stands between a zombie and its parent's wait.
type kind uint32

const (
	unasked kind = iota // not known
	free                // nothing: not traced, and never to be (ptrace refuses the dead)
	own                 // traced by its own parent, whose wait sees it all the same
	held                // traced by another process, which has to wait first
	leader              // its other threads live on; with no parent, that is not certain
)

// record is one zombie of a walk; 16 bytes, because the records of the last walk
// are kept.
type record struct {
	id  uint64 // pid above startBits, start time below: in the order of pids
	who uint64 // euid above uidShift, kind above kindShift, parent's pid below
}

const (
	startBits = 42 // a thousand years
	kindShift = 22 // pids have 22 bits
	uidShift  = 32
)

func newRecord(pid uint32, start uint64, parent, uid uint32, k kind) record {
	return record{
		id:  uint64(pid)<<startBits | start&(1<<startBits-1),
		who: uint64(uid)<<uidShift | uint64(k)<<kindShift | uint64(parent),
	}
}

// compare orders records by pid.
func (r record) compare(id uint64) int { return cmp.Compare(r.id, id) }

func (r record) pid() uint32    { return uint32(r.id >> startBits) }
func (r record) start() uint64  { return r.id & (1<<startBits - 1) }
func (r record) parent() uint32 { return uint32(r.who & (1<<kindShift - 1)) }
func (r record) kind() kind     { return kind(r.who >> kindShift & (1<<(uidShift-kindShift) - 1)) }

// uid is its effective user; 0 also for one that used a privilege to become what it
// was: both may signal anybody.
func (r record) uid() uint32 { return uint32(r.who >> uidShift) }

func (r *record) become(k kind) {
	r.who = r.who&^(1<<uidShift-1) | uint64(k)<<kindShift | uint64(r.parent())
}

// census is what a walk found, in the order of the directory, which is that of
// the pids. It is not changed once it is published.
type census struct {
	began  time.Duration // CLOCK_MONOTONIC
	tick   uint64        // the same moment as start times count it
	runs   [][]record
	inodes [][]uint32        // the low half of that of each record's pidfds, 0 if it is not known
	held   map[uint32]uint32 // tracer of each held zombie
	tasks  int               // threads of all processes, if they were counted
	unseen int               // dead processes that could not be read
	helped time.Duration     // CPU time of the workers other than the caller
}

// knownMax bounds how many zombies are remembered from one walk to the next.
const knownMax = 1 << 20

// find returns what the walk found of a zombie. A process that started in the same
// tick as the walk might be another one with the same identity, so it does not count.
func (c *census) find(id uint64) (record, bool) {
	i, j, found := c.index(uint32(id >> startBits))
	if !found || c.runs[i][j].id != id || id&(1<<startBits-1) >= c.tick {
		return record{}, false
	}
	return c.runs[i][j], true
}

// findPID returns what the walk found of whoever had this pid, with the inode number.
func (c *census) findPID(pid uint32) (r record, inode uint32) {
	i, j, found := c.index(pid)
	if !found {
		return record{}, 0
	}
	return c.runs[i][j], c.inodes[i][j]
}

// index is where the record of a pid is; a walk comes by each only once.
func (c *census) index(pid uint32) (run, at int, found bool) {
	if c == nil {
		return 0, 0, false
	}
	run, _ = slices.BinarySearchFunc(c.runs, pid, func(run []record, pid uint32) int {
		return cmp.Compare(run[len(run)-1].pid(), pid)
	})
	if run == len(c.runs) {
		return 0, 0, false
	}
	at, found = slices.BinarySearchFunc(c.runs[run], pid, func(r record, pid uint32) int { return cmp.Compare(r.pid(), pid) })
	return run, at, found
}

// pass is one walk under way, shared by its workers.
type pass struct {
	root  int
	count bool // threads too

	mu   sync.Mutex
	done bool
	err  error
	census
}

// worker is one of the goroutines of a walk, with its buffers.
type worker struct {
	root   int
	counts bool    // the kernel counts a process's descriptors
	pidfs  bool    // and tells one pidfd from another
	known  *census // what an earlier walk found, may be nil
	dents  []byte
	path   []byte
	line   []byte // a stat file
	text   []byte // the beginning of a status file

	quick *allowance    // for questions in the walk; nil if none are to be asked
	usual time.Duration // what an answer may cost that is on nobody's account

	found  []record
	inodes []uint32
	inode  uint32 // of the zombie that was looked at last, 0 if it is not known
	tasks  int
	unseen int
}

const (
	// A block of the directory holds some 250 processes: enough that taking
	// turns costs nothing, few enough that two workers end together.
	dentsSize = 8 << 10
	// The longest stat line is 52 numbers and a name of 64 bytes.
	lineSize = 2 << 10
	// TracerPid is in the first 500 bytes.
	textSize = 1 << 10
)

func (s *Scanner) newWorker() *worker {
	return &worker{
		root:   s.root,
		counts: s.countsFDs,
		pidfs:  s.pidfs,
		usual:  s.usual,
		known:  s.known.Load(),
		dents:  make([]byte, dentsSize),
		path:   make([]byte, 0, 64),
		line:   make([]byte, lineSize),
		text:   make([]byte, textSize),
	}
}

// workerCount is 2 where there are two processors: the work is all the
// kernel's, and it scales. More would take too much of a node that is in trouble.
func workerCount() int { return min(2, runtime.GOMAXPROCS(0)) }

// walk asks of every process whether it is dead, and reads those that are. The
// caller holds the turn.
func (s *Scanner) walk(ctx context.Context) (*census, error) {
	if _, err := unix.Seek(s.root, 0, 0); err != nil {
		return nil, fmt.Errorf("going back to the start of %s: %w", s.path, err)
	}
	p := &pass{root: s.root, count: s.loadavg < 0 || s.ownPIDMax}
	p.held = make(map[uint32]uint32)
	p.began, p.tick = task.Now(), bootTicks()
	runtime.LockOSThread() // so that CPU time is of one thread
	defer runtime.UnlockOSThread()
	quick := newAllowance()
	p.helped = s.together(func(w *worker, moved func()) {
		w.quick = quick
		p.work(ctx, w, moved)
		w.quick = nil
	})
	if p.err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.path, p.err)
	}
	if !p.done {
		return nil, ctx.Err()
	}
	p.runs = slices.DeleteFunc(p.runs, func(run []record) bool { return len(run) == 0 })
	p.inodes = slices.DeleteFunc(p.inodes, func(run []uint32) bool { return len(run) == 0 })
	// A copy, so that the lock is not kept with it.
	found := p.census
	s.unseen.Store(int64(found.unseen))
	return &found, nil
}

// together has all workers do the same, one of them on the caller's thread. It
// returns the CPU time of the others. The caller holds the turn.
func (s *Scanner) together(f func(w *worker, moved func())) time.Duration {
	var wg sync.WaitGroup
	var helped atomic.Int64
	for _, w := range s.workers {
		w.known = s.known.Load()
	}
	for _, w := range s.workers[1:] {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			began := task.ThreadTime()
			f(w, func() {})
			helped.Add(int64(task.ThreadTime() - began))
		})
	}
	f(s.workers[0], s.moved)
	wg.Wait()
	return time.Duration(helped.Load())
}

// remember publishes a census.
func (s *Scanner) remember(c *census) {
	n := 0
	for _, run := range c.runs {
		n += len(run)
	}
	if n > knownMax {
		c = nil
	}
	s.known.Store(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.learnt) // it is in c, or asked again
}

// learn remembers until the next walk that nobody traces a zombie.
func (s *Scanner) learn(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.learnt) < familyMax {
		s.learnt[id] = struct{}{}
	}
}

func (s *Scanner) isFree(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.learnt[id]
	return ok
}

// work reads blocks of the directory until there are no more.
func (p *pass) work(ctx context.Context, w *worker, moved func()) {
	w.tasks, w.unseen = 0, 0
	for ctx.Err() == nil {
		moved()
		block, n, ok := p.block(w.dents)
		if !ok {
			break
		}
		w.found, w.inodes = w.found[:0], w.inodes[:0]
		for names := w.dents[:n]; len(names) > 0; {
			var pid uint32
			pid, names = nextPID(names)
			if pid == 0 {
				continue
			}
			if err := w.visit(p, pid); err != nil {
				p.fail(fmt.Errorf("process %d: %w", pid, err))
				return
			}
		}
		if len(w.found) > 0 {
			run, inodes := slices.Clone(w.found), slices.Clone(w.inodes)
			p.mu.Lock()
			p.runs[block], p.inodes[block] = run, inodes
			p.mu.Unlock()
		}
	}
	p.mu.Lock()
	p.tasks += w.tasks
	p.unseen += w.unseen
	p.mu.Unlock()
}

// block reads the next block of the directory into buf and says which it is.
func (p *pass) block(buf []byte) (block, n int, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done || p.err != nil {
		return 0, 0, false
	}
	n, e := rawGetdents(p.root, buf)
	switch {
	case e != 0:
		p.err = e
		return 0, 0, false
	case n == 0:
		p.done = true
		return 0, 0, false
	}
	p.runs, p.inodes = append(p.runs, nil), append(p.inodes, nil)
	return len(p.runs) - 1, n, true
}

func (p *pass) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
}

// nextPID takes one struct linux_dirent64 off b and returns the pid that it
// names, 0 if it names no process.
func nextPID(b []byte) (pid uint32, rest []byte) {
	const reclenAt, nameAt = 16, 19
	if len(b) < nameAt {
		return 0, nil
	}
	reclen := int(b[reclenAt]) | int(b[reclenAt+1])<<8 // native order: both architectures are little-endian
	if reclen < nameAt || reclen > len(b) {
		return 0, nil
	}
	for _, c := range b[nameAt:reclen] {
		if c == 0 {
			break
		}
		if c < '0' || c > '9' {
			return 0, b[reclen:]
		}
		if pid = pid*10 + uint32(c-'0'); pid > maxPID {
			return 0, b[reclen:]
		}
	}
	return pid, b[reclen:]
}

// visit looks at one process of a walk. An error means that the walk cannot be
// complete.
func (w *worker) visit(p *pass, pid uint32) error {
	if p.count {
		if n, e := w.countThreads(pid); e == 0 {
			w.tasks += n
		}
	}
	r, err := w.look(pid)
	switch {
	case gone(err):
		return nil
	case denied(err):
		w.unseen++ // alive it would not matter
		return nil
	case err == nil && r != (record{}):
		w.found, w.inodes = append(w.found, r), append(w.inodes, w.inode)
	}
	return err
}

// look returns the record of a zombie; the zero one if the process lives, and one of
// kind leader if it lives without its leader, as it seems.
func (w *worker) look(pid uint32) (record, error) {
	w.inode = 0
	if was, inode := w.known.findPID(pid); inode != 0 && was.kind() != leader {
		if r, err := w.again(was, inode); !errors.Is(err, errChanged) {
			return r, err
		}
	}
	// Who has a descriptor open lives, which is the cheapest thing to ask (Linux 6.2).
	if w.counts {
		if st, e := w.stat(pid, "/fd"); e == 0 && st.Size > 0 {
			return record{}, nil
		}
	}
	pidfd, e := rawPidfdOpen(w.root, pid)
	if e != 0 {
		return record{}, e
	}
	defer rawClose(pidfd)
	dead, e := rawDead(pidfd)
	switch {
	case e != 0:
		return record{}, e
	case dead:
		return w.zombie(pid, pidfd)
	case w.counts: // the descriptors were those of the leader
		if n, e := w.countThreads(pid); e == 0 && n > 1 {
			return newRecord(pid, 0, 0, 0, leader), nil
		}
	}
	return record{}, nil
}

// errChanged says that a pid is another process's by now.
var errChanged = errors.New("the pid was reused")

// again looks at a zombie that is known. Where the kernel tells by a pidfd who that is and
// whose child (6.13), nothing has to be read of it: that is a quarter of the cost.
func (w *worker) again(was record, inode uint32) (record, error) {
	pidfd, e := rawPidfdOpen(w.root, was.pid())
	if e != 0 {
		return record{}, e
	}
	defer rawClose(pidfd)
	st, e := rawFstat(pidfd)
	if e != 0 {
		return record{}, e
	}
	if uint32(st.Ino) != inode {
		return record{}, errChanged
	}
	info, e := rawInfo(pidfd)
	switch {
	case e == unix.ESRCH:
		return record{}, e
	case e != 0:
		return record{}, errChanged // an older kernel
	case info.ppid == 0:
		return record{}, nil
	}
	w.inode = inode
	k := was.kind()
	if k != free {
		k = unasked
	}
	return newRecord(was.pid(), was.start(), info.ppid, was.uid(), k), nil
}

// zombie reads a process that is dead.
func (w *worker) zombie(pid uint32, pidfd int) (record, error) {
	fd, e := w.open(pid, "/stat")
	if e != 0 {
		return record{}, e
	}
	defer rawClose(fd)
	// Its pid has been its own until now, so that is who was opened.
	if rawReaped(pidfd) {
		return record{}, unix.ESRCH
	}
	st, err := w.readStat(fd)
	if err != nil || st.state != 'Z' || st.ppid == 0 {
		return record{}, err
	}
	if w.pidfs {
		file, e := rawFstat(pidfd)
		if e != 0 {
			return record{}, e
		}
		w.inode = uint32(file.Ino)
	}
	r := newRecord(pid, st.start, st.ppid, 0, unasked)
	if known, ok := w.known.find(r.id); ok {
		// Its user is the same as ever, and what is free stays so.
		r.who |= known.who &^ (1<<uidShift - 1)
		if known.kind() == free {
			r.become(free)
			return r, nil
		}
	} else if st.flags&pfSuperPriv == 0 {
		// Its files are root's, as it has no memory; its directory is its own.
		owner, e := w.stat(pid, "")
		if e != 0 {
			return record{}, e
		}
		r.who |= uint64(owner.Uid) << uidShift
	}
	// The questions that cost no more than usual need not wait for their turn.
	if w.quick != nil && w.quick.left.Load() > 0 {
		began := task.ThreadTime()
		if k, _, err := w.traced(r, pidfd); err == nil && k == free {
			r.become(free)
		}
		w.quick.charge(task.ThreadTime()-began, w.usual)
	}
	return r, nil
}

// countThreads is the number of threads of a process, as its task directory has it
// in its links.
func (w *worker) countThreads(pid uint32) (int, unix.Errno) {
	st, e := w.stat(pid, "/task")
	return int(st.Nlink) - 2, e
}

func (w *worker) stat(pid uint32, file string) (unix.Statx_t, unix.Errno) {
	w.name(pid, file)
	return rawStat(w.root, w.path)
}

// trace finds out who traces a zombie. ESRCH says that it is one no more.
func (w *worker) trace(r record) (k kind, tracer uint32, err error) {
	pidfd, e := rawPidfdOpen(w.root, r.pid())
	if e != 0 {
		return unasked, 0, e
	}
	defer rawClose(pidfd)
	if dead, e := rawDead(pidfd); e != 0 || !dead {
		return unasked, 0, cmp.Or(e, unix.ESRCH)
	}
	return w.traced(r, pidfd)
}

func (w *worker) traced(r record, pidfd int) (k kind, tracer uint32, err error) {
	fd, e := w.open(r.pid(), "/status")
	if e != 0 {
		return unasked, 0, e
	}
	defer rawClose(fd)
	if rawReaped(pidfd) {
		return unasked, 0, unix.ESRCH
	}
	n, e := rawPread(fd, w.text)
	if e != 0 {
		return unasked, 0, e
	}
	tid, ok := field(w.text[:n], "\nTracerPid:\t")
	if !ok {
		return unasked, 0, fmt.Errorf("status file of process %d has no TracerPid line", r.pid())
	}
	if tid == 0 {
		return free, 0, nil
	}
	// The kernel names the thread that traces, not its process. Where that one
	// cannot be read, the thread is as good a name as there is.
	tracer = uint32(tid)
	if tgid, e := w.group(tracer); e == 0 {
		tracer = tgid
	}
	if tracer == r.parent() {
		return own, tracer, nil
	}
	return held, tracer, nil
}

func (w *worker) open(pid uint32, file string) (int, unix.Errno) {
	w.name(pid, file)
	return rawOpen(w.root, w.path)
}

func (w *worker) name(pid uint32, file string) {
	w.path = strconv.AppendUint(w.path[:0], uint64(pid), 10)
	w.path = append(w.path, file...)
	w.path = append(w.path, 0)
}

// readStat reads an open stat file. A task that was released while the line was
// made, with its state field already printed and the others zero, is gone.
func (w *worker) readStat(fd int) (stat, error) {
	n, e := rawPread(fd, w.line)
	if e != 0 {
		return stat{}, e
	}
	st, err := parseStat(w.line[:n])
	if err == nil && st.threads == 0 {
		return stat{}, unix.ESRCH
	}
	return st, err
}

// group is the process that a thread is of: the first in its list of threads is the
// leader.
func (w *worker) group(tid uint32) (uint32, unix.Errno) {
	fd, e := w.open(tid, "/task")
	if e != 0 {
		return 0, e
	}
	defer rawClose(fd)
	n, e := rawGetdents(fd, w.text)
	if e != 0 {
		return 0, e
	}
	for names := w.text[:n]; len(names) > 0; {
		var pid uint32
		if pid, names = nextPID(names); pid != 0 {
			return pid, 0
		}
	}
	return 0, unix.ESRCH
}

// bootTicks is the time since boot as start times count it. It is read in kzr's
// own time namespace, as they are.
func bootTicks() uint64 {
	return uint64(task.SinceBoot() / (time.Second / task.TicksPerSecond))
}
