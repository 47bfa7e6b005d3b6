package procscan

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"kzr/internal/task"
)

// Snapshot reads the whole process table once and returns every parent that
// has zombies. Zombie.Since is always 0: /proc does not tell when a process
// died.
//
// /proc cannot be read in one moment, so this is what the counts mean. Each
// zombie was one, unreaped, with that parent at some moment between Began and
// Ended; since nothing stops being a zombie but by being reaped, those that an
// earlier snapshot already had under the same parent were there together when
// this one began. Left out is what could not be told for certain: zombies that
// changed parents or were reaped meanwhile, and parents that are younger than
// the snapshot, or could not be read in time. An error means that it could not be
// complete, and then there is none.
//
// No tenant decides what it costs. Of those alive nothing is read but who the parents
// are, once where the kernel can tell them apart (6.9), on threads that may be lost.
// Who traces a zombie is asked once for those that nobody traces, and where that takes
// longer than usual, within what a tenant may have of it; what is left over is Unknown
// until a later snapshot.
//
// Dead leaders whose threads live on are counted from Linux 6.2 on. Processes that
// kzr may not see are missing too; see [Scanner.Host].
func (s *Scanner) Snapshot(ctx context.Context) (*task.Snapshot, error) {
	var snap *task.Snapshot
	err := s.frugally(func() (err error) {
		snap, err = s.snapshot(ctx)
		return err
	})
	return snap, err
}

func (s *Scanner) snapshot(ctx context.Context) (*task.Snapshot, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.turn:
	}
	defer func() { s.turn <- struct{}{} }()
	c, err := s.walk(ctx)
	if err != nil {
		return nil, err
	}
	snap := &task.Snapshot{Source: task.SourceProc, Began: c.began, Parents: make(map[task.ID]*task.Children)}
	if err := s.gather(ctx, snap, c); err != nil {
		return nil, err
	}
	s.remember(c)
	snap.Helped = c.helped
	if c.tasks > 0 {
		s.counted.Store(&count{c.tasks, task.Now()})
	}
	if snap.Tasks, err = s.tasks(); err != nil {
		snap.Tasks = c.tasks
	}
	snap.Ended = task.Now()
	return snap, nil
}

// family is what is found out of one parent.
type family struct {
	parent
	pid      uint32
	zombies  int            // but for leaders
	children *task.Children // nil if it is not known whose they are
}

// gather sorts the zombies of a walk by parent.
func (s *Scanner) gather(ctx context.Context, snap *task.Snapshot, c *census) error {
	families := make(map[uint32]*family)
	for _, run := range c.runs {
		for i, r := range run {
			if r.kind() == leader {
				var err error
				if r, err = s.headless(ctx, r); err != nil {
					return err
				}
				run[i] = r
			}
			f := families[r.parent()]
			if f == nil {
				f = &family{pid: r.parent()}
				families[f.pid] = f
			}
			if r.kind() != leader {
				f.zombies++
			}
		}
	}
	delete(families, 0) // of leaders that are none
	for _, f := range families {
		if err := s.meet(ctx, f, c.tick); err != nil {
			return err
		}
	}
	var questions []question
	for _, run := range c.runs {
		for i := range run {
			if f := families[run[i].parent()]; f != nil && f.children != nil && run[i].kind() == unasked {
				questions = append(questions, question{&run[i], f})
			}
		}
	}
	helped, err := s.ask(ctx, questions, c.held)
	if err != nil {
		return err
	}
	c.helped += helped
	for _, f := range families {
		if f.children != nil {
			snap.Parents[f.children.Parent] = f.children
		}
	}
	for _, run := range c.runs {
		for _, r := range run {
			f := families[r.parent()]
			if f == nil || f.children == nil {
				continue
			}
			f.add(r)
			if r.kind() != held {
				continue
			}
			pid := c.held[r.pid()]
			tracer := families[pid]
			if tracer == nil {
				tracer = &family{pid: pid}
				if err := s.meet(ctx, tracer, c.tick); err != nil {
					return err
				}
				families[pid] = tracer
			}
			f.children.Tracer = task.ID{PID: int(pid), Start: tracer.start} // no start if it could not be read
			if tracer.children != nil {
				id := tracer.children.Parent
				tracer.children.Held = append(tracer.children.Held, task.HeldZombie{Zombie: f.zombie(r, task.Held), Of: f.children.Parent})
				snap.Parents[id] = tracer.children
			}
		}
	}
	return nil
}

// meet finds out who the parent is. One that started before the walk began and is
// alive after it held its pid through all of it, so that every zombie that named this
// pid meant this process. Others have no children then.
func (s *Scanner) meet(ctx context.Context, f *family, tick uint64) error {
	var err error
	f.parent, err = s.parentOf(ctx, int(f.pid))
	switch {
	case err == nil && f.start < tick:
		f.children = &task.Children{Parent: task.ID{PID: int(f.pid), Start: f.start}}
	case err == nil, gone(err), denied(err), late(err):
	default:
		return fmt.Errorf("reading parent %d: %w", f.pid, err)
	}
	return ctx.Err()
}

// headless looks at a process whose leader seems to be dead. If it is not, its record
// has no parent.
func (s *Scanner) headless(ctx context.Context, r record) (record, error) {
	p, err := s.find(ctx, int(r.pid()))
	if err == nil {
		defer p.release()
		var st stat
		if st, err = read(ctx, p, p.tenant, patience, p.leaderStat); err == nil && st.state == 'Z' && st.threads > 1 {
			return newRecord(r.pid(), st.start, st.ppid, 0, leader), nil
		}
	}
	return r, cmp.Or(unlessShort(err), ctx.Err())
}

// add counts one zombie.
func (f *family) add(r record) {
	switch r.kind() {
	case unasked:
		f.children.Unknown++
	case free, own:
		if f.children.Reapable == nil {
			f.children.Reapable = make([]task.Zombie, 0, f.zombies)
		}
		f.children.Reapable = append(f.children.Reapable, f.zombie(r, 0))
	case leader:
		f.children.Leaders++
	case held:
		f.children.Traced++
	}
}

// zombie says of one of its zombies whether somebody put it on the parent who could
// not as much as signal it. A namespace's init has adopted others than its own
// children.
func (f *family) zombie(r record, flags task.Flag) task.Zombie {
	if uid := r.uid(); uid != 0 && uid != f.ruid && uid != f.suid && !f.init {
		flags |= task.Foreign
	}
	return task.NewZombie(int(r.pid()), r.start(), 0, flags)
}

// A question is who traces a zombie.
type question struct {
	zombie *record
	family *family
}

// Reading a status file costs with the groups that the process is in: 10 µs, or, with
// 65,536 groups, 20 ms. What it costs above the usual is on the tenant's account; one
// that costs no more gives a quarter of that back, as half a million of them meet other
// things as well that take a thread's time: interrupts, and a hypervisor.
const (
	allowed  = 100 * time.Millisecond // CPU time, for each tenant and look
	turnSize = 64                     // questions that a worker takes at a time
)

// allowance is what a tenant has left of it.
type allowance struct{ left atomic.Int64 }

func newAllowance() *allowance {
	a := &allowance{}
	a.left.Store(int64(allowed))
	return a
}

// charge takes what an answer cost above the usual, or gives back.
func (a *allowance) charge(cost, usual time.Duration) {
	more := cost - usual
	if more <= 0 {
		more = -usual / 4
	}
	for {
		left := a.left.Load()
		if a.left.CompareAndSwap(left, min(left-int64(more), int64(allowed))) {
			return
		}
	}
}

// inquiry is the answering of questions.
type inquiry struct {
	mu      sync.Mutex
	tenants map[string]*allowance
	held    map[uint32]uint32
	err     error
}

// ask answers as many questions as it may. It returns the CPU time of others than the
// caller. The caller holds the turn.
func (s *Scanner) ask(ctx context.Context, questions []question, held map[uint32]uint32) (time.Duration, error) {
	if len(questions) == 0 {
		return 0, nil
	}
	q := s.newInquiry()
	q.held = held
	runtime.LockOSThread() // so that its CPU time is of one thread
	defer runtime.UnlockOSThread()
	var next atomic.Int64
	helped := s.together(func(w *worker, moved func()) {
		for ctx.Err() == nil {
			from := int(next.Add(turnSize)) - turnSize
			if from >= len(questions) {
				return
			}
			moved()
			q.answer(w, questions[from:min(from+turnSize, len(questions))])
		}
	})
	return helped, cmp.Or(q.err, ctx.Err())
}

func (s *Scanner) newInquiry() *inquiry {
	return &inquiry{tenants: make(map[string]*allowance), held: make(map[uint32]uint32)}
}

func (q *inquiry) answer(w *worker, questions []question) {
	for _, question := range questions {
		a := q.allowance(question.family.tenant)
		if a.left.Load() <= 0 {
			continue
		}
		began := task.ThreadTime()
		k, tracer, err := w.trace(*question.zombie)
		a.charge(task.ThreadTime()-began, w.usual)
		switch {
		case unlessShort(err) != nil:
			q.mu.Lock()
			q.err = err
			q.mu.Unlock()
			return
		case err != nil: // gone, or nothing to be relied upon
			continue
		}
		question.zombie.become(k)
		if k == held {
			q.mu.Lock()
			q.held[question.zombie.pid()] = tracer
			q.mu.Unlock()
		}
	}
}

func (q *inquiry) allowance(tenant string) *allowance {
	q.mu.Lock()
	defer q.mu.Unlock()
	a := q.tenants[tenant]
	if a == nil {
		a = newAllowance()
		q.tenants[tenant] = a
	}
	return a
}

// measureUsual measures what reading a status file costs on this machine: four times
// what kzr's own does.
func (s *Scanner) measureUsual() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	w := s.newWorker()
	for range 5 {
		began := task.ThreadTime()
		if fd, e := rawOpen(s.root, []byte("self/status\x00")); e == 0 {
			_, _ = rawPread(fd, w.text) // it is only about the time
			rawClose(fd)
		}
		if took := 4 * (task.ThreadTime() - began); s.usual == 0 || took < s.usual {
			s.usual = took
		}
	}
}

// tasks is how many tasks count against the limits of the node: the fourth field of
// loadavg, "running/total", every thread and zombie of the machine. In a pid namespace
// with a limit of its own it is those in the namespace.
func (s *Scanner) tasks() (int, error) {
	if s.ownPIDMax {
		return s.countTasks()
	}
	return s.machineTasks()
}

func (s *Scanner) machineTasks() (int, error) {
	var buf [128]byte
	n, e := rawPread(s.loadavg, buf[:])
	if e != 0 {
		return 0, fmt.Errorf("reading %s/loadavg: %w", s.path, e)
	}
	return parseLoadavg(string(buf[:n]))
}

func parseLoadavg(line string) (int, error) {
	f := strings.Fields(line)
	if len(f) < 4 {
		return 0, fmt.Errorf("malformed loadavg %q", line)
	}
	_, total, _ := strings.Cut(f[3], "/")
	n, err := strconv.ParseUint(total, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("malformed loadavg %q", line)
	}
	return int(n), nil
}

// count is how many tasks kzr can see.
type count struct {
	tasks int
	at    time.Duration
}

// countAge is how old a count may be to be taken for the number of now.
const countAge = time.Second

// countTasks counts the threads and zombies of the namespace.
func (s *Scanner) countTasks() (int, error) {
	if c := s.counted.Load(); c != nil && task.Now()-c.at < countAge {
		return c.tasks, nil
	}
	// A descriptor of its own: a walk may be under way.
	fd, err := openat(s.root, ".", 0)
	if err != nil {
		return 0, fmt.Errorf("counting the tasks: %w", err)
	}
	defer rawClose(fd)
	w := s.newWorker()
	total := 0
	for {
		n, e := rawGetdents(fd, w.dents)
		if e != 0 {
			return 0, fmt.Errorf("counting the tasks: %w", e)
		}
		if n == 0 {
			break
		}
		for names := w.dents[:n]; len(names) > 0; {
			var pid uint32
			if pid, names = nextPID(names); pid == 0 {
				continue
			}
			if n, e := w.countThreads(pid); e == 0 {
				total += n
			}
		}
	}
	s.counted.Store(&count{total, task.Now()})
	return total, nil
}
