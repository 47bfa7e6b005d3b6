package procscan

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
)

// kind is what stands between a zombie and its parent's wait.
type kind uint32

const (
	free   kind = iota // nothing: not traced, and never to be (ptrace refuses the dead)
	own                // traced by its own parent, whose wait sees it all the same
	held               // traced by another process, which has to wait first
	leader             // its other threads live on
)

// record is one zombie of a walk; 16 bytes, because the records of the last walk
// are kept.
type record struct {
	start uint64
	pid   uint32
	who   uint32 // parent's pid below kindShift, kind above
}

const kindShift = 24 // pids have 22 bits

func (r *record) parent() uint32 { return r.who & (1<<kindShift - 1) }
func (r *record) kind() kind     { return kind(r.who >> kindShift) }

// census is what a walk found, in the order of the directory, which is that of
// the pids. It is not changed once it is published.
type census struct {
	began  time.Duration // CLOCK_MONOTONIC
	tick   uint64        // the same moment as start times count it
	runs   [][]record
	held   map[uint32]int // tracer of each held zombie
	tasks  int            // threads of all processes seen, zombies too
	unseen int            // processes that could not be read
	helped time.Duration  // CPU time of the workers other than the caller
}

// knownMax bounds how many zombies are remembered from one walk to the next.
const knownMax = 1 << 20

// untraced says that this walk already saw the zombie, and free, which it then
// stays for ever. A process that started in the same tick as the walk might be
// another one with the same identity, so it does not count.
func (c *census) untraced(pid uint32, start uint64) bool {
	if c == nil || start >= c.tick {
		return false
	}
	i, _ := slices.BinarySearchFunc(c.runs, pid, func(run []record, pid uint32) int {
		return cmp.Compare(run[len(run)-1].pid, pid)
	})
	if i == len(c.runs) {
		return false
	}
	run := c.runs[i]
	j, found := slices.BinarySearchFunc(run, pid, func(r record, pid uint32) int { return cmp.Compare(r.pid, pid) })
	return found && run[j].start == start && run[j].kind() == free
}

// pass is one walk under way, shared by its workers.
type pass struct {
	root  int
	only  uint32  // the one parent asked for, 0 for all
	known *census // what an earlier walk found, may be nil

	mu   sync.Mutex
	done bool
	err  error
	census
}

// worker is one of the goroutines of a walk, with its buffers.
type worker struct {
	root  int
	dents []byte
	path  []byte
	line  []byte // a stat file
	text  []byte // the beginning of a status file

	found  []record
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

func newWorker(root int) *worker {
	return &worker{
		root:  root,
		dents: make([]byte, dentsSize),
		path:  make([]byte, 0, 64),
		line:  make([]byte, lineSize),
		text:  make([]byte, textSize),
	}
}

// workerCount is 2 where there are two processors: the work is all the
// kernel's, and it scales. More would take too much of a node that is in trouble.
func workerCount() int { return min(2, runtime.GOMAXPROCS(0)) }

// walk reads every process once. The caller must not hold the turn.
func (s *Scanner) walk(ctx context.Context, only uint32) (*census, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.turn:
	}
	defer func() { s.turn <- struct{}{} }()
	if _, err := unix.Seek(s.root, 0, 0); err != nil {
		return nil, fmt.Errorf("going back to the start of %s: %w", s.path, err)
	}
	p := &pass{root: s.root, only: only, known: s.known.Load()}
	p.held = make(map[uint32]int)
	p.began, p.tick = task.Now(), bootTicks()
	var wg sync.WaitGroup
	for _, w := range s.workers[1:] {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			began := task.ThreadTime()
			p.work(ctx, w, func() {})
			p.mu.Lock()
			defer p.mu.Unlock()
			p.helped += task.ThreadTime() - began
		})
	}
	p.work(ctx, s.workers[0], s.moved)
	wg.Wait()
	if p.err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.path, p.err)
	}
	if !p.done {
		return nil, ctx.Err()
	}
	p.runs = slices.DeleteFunc(p.runs, func(run []record) bool { return len(run) == 0 })
	// A copy, as the pass holds on to what the one before it found: of a chain of
	// them nothing would ever be let go.
	found := p.census
	if only == 0 {
		s.unseen.Store(int64(found.unseen))
		s.remember(&found)
	}
	return &found, nil
}

func (s *Scanner) remember(c *census) {
	n := 0
	for _, run := range c.runs {
		n += len(run)
	}
	if n > knownMax {
		c = nil
	}
	s.known.Store(c)
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
		w.found = w.found[:0]
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
			run := slices.Clone(w.found)
			p.mu.Lock()
			p.runs[block] = run
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
	p.runs = append(p.runs, nil)
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
	st, err := w.look(p, pid)
	w.tasks += int(st.threads)
	switch {
	case gone(err):
		return nil
	case denied(err):
		w.unseen++
		return nil
	}
	return err
}

// look reads one process, and records it if it is a zombie.
func (w *worker) look(p *pass, pid uint32) (stat, error) {
	fd, e := w.open(pid, "/stat")
	if e != 0 {
		return stat{}, e
	}
	st, err := w.readStat(fd)
	rawClose(fd)
	if err != nil {
		return stat{}, err
	}
	if st.state != 'Z' || st.ppid == 0 || (p.only != 0 && st.ppid != p.only) {
		return st, nil
	}
	k := free
	switch {
	case st.threads > 1:
		k = leader
	case !p.known.untraced(pid, st.start):
		var tracer int
		if k, tracer, err = w.trace(&st); err != nil {
			return st, err
		}
		if k == held {
			p.mu.Lock()
			p.held[pid] = tracer
			p.mu.Unlock()
		}
	}
	w.found = append(w.found, record{start: st.start, pid: pid, who: st.ppid | uint32(k)<<kindShift})
	return st, nil
}

// trace finds out who traces a zombie.
//
// Should its pid go to another process before the status file is opened, then
// the answer is about that one, and does no harm: the zombie was reaped, which
// is to say that it could be, and it is in no later snapshot.
func (w *worker) trace(st *stat) (k kind, tracer int, err error) {
	tid, err := w.statusField(st.pid, "\nTracerPid:\t")
	if err != nil || tid == 0 {
		return free, 0, err
	}
	// The kernel names the thread that traces, not its process. Where that one
	// cannot be read, the thread is as good a name as there is.
	tracer, err = w.statusField(uint32(tid), "\nTgid:\t")
	if err != nil {
		return held, tid, nil //nolint:nilerr // said above
	}
	if uint32(tracer) == st.ppid {
		return own, tracer, nil
	}
	return held, tracer, nil
}

func (w *worker) statusField(pid uint32, key string) (int, error) {
	fd, e := w.open(pid, "/status")
	if e != 0 {
		return 0, e
	}
	defer rawClose(fd)
	n, e := rawPread(fd, w.text)
	if e != 0 {
		return 0, e
	}
	v, ok := field(w.text[:n], key)
	if !ok {
		return 0, fmt.Errorf("status file of process %d has no %q line", pid, key[1:len(key)-1])
	}
	return v, nil
}

func (w *worker) open(pid uint32, file string) (int, unix.Errno) {
	w.path = strconv.AppendUint(w.path[:0], uint64(pid), 10)
	w.path = append(w.path, file...)
	w.path = append(w.path, 0)
	return rawOpen(w.root, w.path)
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

// holder returns the stat line of the process that has had the pid since before
// the given tick and still has it, alive.
//
// This is what makes a parent certain. A zombie names its parent by pid alone,
// at a moment of its own. A process that started before the walk began and is
// there after the walk held its pid through all of it, so that every zombie
// that named this pid meant this process. Younger parents are left to the next
// snapshot.
func (w *worker) holder(pid uint32, tick uint64) (stat, error) {
	fd, e := w.open(pid, "/stat")
	if e != 0 {
		return stat{}, e
	}
	defer rawClose(fd)
	st, err := w.readStat(fd)
	if err != nil {
		return stat{}, err
	}
	if st.dead() || st.start >= tick {
		return stat{}, unix.ESRCH
	}
	return st, nil
}

// bootTicks is the time since boot as start times count it. It is read in kzr's
// own time namespace, as they are.
func bootTicks() uint64 {
	return uint64(task.SinceBoot() / (time.Second / task.TicksPerSecond))
}
