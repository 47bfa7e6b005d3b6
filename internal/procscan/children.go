package procscan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"

	"kzr/internal/task"
)

// SnapshotOf reads the zombies of one parent only. Its snapshot has one entry
// at most: none if the parent has no zombies, is gone, or is another process by
// now. What it traces is what the last snapshot of the node said, if that still holds.
//
// Where the kernel lists the children of a thread (CONFIG_PROC_CHILDREN), the
// cost is that of the parent's children. Of those that are very many, or come and go
// too fast for that list to be trusted, it looks again at the zombies that the last
// snapshot of the node found: younger ones may be missing. Only where it found none of
// them is it a snapshot of the whole node.
func (s *Scanner) SnapshotOf(ctx context.Context, id task.ID) (*task.Snapshot, error) {
	var snap *task.Snapshot
	err := s.frugally(func() (err error) {
		snap, err = s.snapshotOf(ctx, id)
		return err
	})
	return snap, err
}

func (s *Scanner) snapshotOf(ctx context.Context, id task.ID) (*task.Snapshot, error) {
	snap := &task.Snapshot{Source: task.SourceProc, Began: task.Now(), Parents: make(map[task.ID]*task.Children)}
	f := &family{pid: uint32(id.PID)}
	p, err := s.find(ctx, id.PID)
	if err == nil {
		defer p.release()
		tick := bootTicks()
		if f.parent, err = s.parentOf(ctx, id.PID); err == nil && f.start < tick {
			f.children = &task.Children{Parent: task.ID{PID: id.PID, Start: f.start}}
		}
	}
	switch {
	case gone(err), err == nil && (f.children == nil || f.start != id.Start):
		snap.Ended = task.Now()
		return snap, nil
	case err != nil:
		return nil, fmt.Errorf("reading process %d: %w", id.PID, err)
	}
	zombies, err := s.zombiesOf(f)
	if errors.Is(err, errUnsure) {
		return s.whole(ctx, id)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the children of process %d: %w", id.PID, err)
	}
	if err := s.sort(ctx, f, zombies); err != nil {
		return nil, err
	}
	if !p.gone() && (f.children.Total() > 0 || len(f.children.Held) > 0) {
		snap.Parents[id] = f.children
	}
	snap.Ended = task.Now()
	return snap, nil
}

// whole takes a snapshot of the node, and with it the one of a parent.
func (s *Scanner) whole(ctx context.Context, id task.ID) (*task.Snapshot, error) {
	snap, err := s.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	c := snap.Parents[id]
	snap.Tasks, snap.Parents = 0, make(map[task.ID]*task.Children)
	if c != nil {
		snap.Parents[id] = c
	}
	return snap, nil
}

// errUnsure says that the lists of children cannot be relied upon; errMany, which
// is one of those, that they are too long to read, the next time too.
var (
	errUnsure = errors.New("the list of children is not certain")
	errMany   = fmt.Errorf("%w: it is very long", errUnsure)
)

// familyMax is the number of children up to which their lists are read. The
// kernel walks its list from the head for every 4 KiB that it gives out, and
// holds up the forks and exits of the whole node meanwhile.
const familyMax = 4096

// zombiesOf finds the zombies of one parent, in the order of their pids.
func (s *Scanner) zombiesOf(f *family) ([]record, error) {
	w := s.newWorker()
	tick := bootTicks()
	var listed []record
	var err error
	for range 2 {
		listed, err = w.children(f.pid, tick)
		if !errors.Is(err, errUnsure) {
			return listed, err
		}
		if errors.Is(err, errMany) {
			break
		}
	}
	before := w.known.of(f.pid)
	if w.known == nil || f.start >= w.known.tick || errors.Is(err, errMany) && len(before) < familyMax/2 {
		return nil, err
	}
	still := before[:0]
	for _, was := range before {
		r, err := w.look(was.pid())
		switch {
		case err == nil && r.id == was.id && r.parent() == f.pid:
			still = append(still, r)
		case err != nil && !gone(err):
			return nil, fmt.Errorf("child %d: %w", was.pid(), err)
		}
	}
	listed = append(still, listed...)
	slices.SortFunc(listed, func(a, b record) int { return a.compare(b.id) })
	return slices.CompactFunc(listed, func(a, b record) bool { return a.id == b.id }), nil
}

// of lists the zombies of one parent, but for leaders, in a list of its own.
func (c *census) of(parent uint32) []record {
	if c == nil {
		return nil
	}
	of := func(yield func(record) bool) {
		for _, run := range c.runs {
			for _, r := range run {
				if r.parent() == parent && r.kind() != leader && !yield(r) {
					return
				}
			}
		}
	}
	n := 0
	for range of {
		n++
	}
	return slices.AppendSeq(make([]record, 0, n), of)
}

// sort fills in a family's children from its zombies, and what it traces.
func (s *Scanner) sort(ctx context.Context, f *family, zombies []record) error {
	runtime.LockOSThread() // so that its CPU time is of one thread
	defer runtime.UnlockOSThread()
	w := s.newWorker()
	q := s.newInquiry()
	f.zombies = len(zombies)
	var questions []question
	for i := range zombies {
		switch {
		case zombies[i].kind() != unasked:
		case s.isFree(zombies[i].id):
			zombies[i].become(free)
		default:
			questions = append(questions, question{&zombies[i], f})
		}
	}
	q.answer(w, questions)
	if q.err != nil {
		return q.err
	}
	for _, r := range zombies {
		if r.kind() == leader {
			var err error
			if r, err = s.headless(ctx, r); err != nil {
				return err
			}
			if r.parent() != f.pid {
				continue
			}
		}
		f.add(r)
		switch r.kind() {
		case free:
			s.learn(r.id)
		case held:
			tracer := &family{pid: q.held[r.pid()]}
			f.children.Tracer = task.ID{PID: int(tracer.pid)}
			if is, err := s.parentOf(ctx, int(tracer.pid)); err == nil {
				f.children.Tracer.Start = is.start
			}
		}
	}
	if w.known == nil {
		return nil
	}
	for pid, tracer := range w.known.held {
		if tracer != f.pid {
			continue
		}
		r, err := w.look(pid)
		if err != nil || r.kind() == leader || r.parent() == 0 {
			continue
		}
		if k, now, err := w.trace(r); err != nil || k != held || now != f.pid {
			continue
		}
		parent := &family{pid: r.parent()}
		if err := s.meet(ctx, parent, bootTicks()); err != nil {
			return err
		}
		if parent.children != nil {
			f.children.Held = append(f.children.Held, task.HeldZombie{Zombie: parent.zombie(r, task.Held), Of: parent.children.Parent})
		}
	}
	return nil
}

// children reads the zombies among the children of a process.
//
// The kernel promises little about its lists of children (man 5 proc_tid_children):
// when a child that it already gave out goes away, it may skip others. So they count
// as complete only if every child that was given out was still there after the last
// list was read. A child also moves to another list when its thread exits, so the
// threads have to be the same before and after; those of the leader, which stays
// among the threads, move to lists that are read after its own. With errUnsure it
// returns what it found all the same.
func (w *worker) children(parent uint32, tick uint64) ([]record, error) {
	threads, err := w.listThreads(parent)
	if err != nil {
		return nil, err
	}
	pids, err := w.listChildren(parent)
	if err != nil && !errors.Is(err, errUnsure) || errors.Is(err, errMany) {
		return nil, err
	}
	sure := err == nil
	var found []record
	for _, pid := range pids {
		r, err := w.look(pid)
		switch {
		case gone(err), err == nil && r != (record{}) && r.kind() != leader && (r.parent() != parent || r.start() >= tick):
			sure = false
		case err != nil:
			return nil, fmt.Errorf("child %d: %w", pid, err)
		case r != (record{}):
			found = append(found, r)
		}
	}
	again, err := w.listThreads(parent)
	if err != nil {
		return nil, err
	}
	if !sure || !slices.Equal(threads, again) {
		return found, errUnsure
	}
	return found, nil
}

// listChildren lists the children of all threads of a process, by pid. With errUnsure
// it returns what it found until then.
func (w *worker) listChildren(parent uint32) ([]uint32, error) {
	threads, err := w.listThreads(parent)
	if err != nil {
		return nil, err
	}
	var pids []uint32
	for _, tid := range threads {
		b, e := w.read(fmt.Sprintf("%d/task/%d/children", parent, tid), 8*familyMax)
		if gone(e) {
			err = errUnsure // the thread, or the kernel has no such file
			continue
		}
		if e != nil {
			return nil, e
		}
		for f := range bytes.FieldsSeq(b) {
			pid, err := strconv.ParseUint(string(f), 10, 32)
			if err != nil {
				return nil, fmt.Errorf("malformed list of children: %w", err)
			}
			pids = append(pids, uint32(pid))
		}
		if len(pids) > familyMax || len(b) == 8*familyMax {
			return pids, errMany
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), err
}

// listThreads lists the threads of a process, its leader first.
func (w *worker) listThreads(pid uint32) ([]uint32, error) {
	fd, e := w.open(pid, "/task")
	if e != 0 {
		return nil, e
	}
	defer rawClose(fd)
	var list []uint32
	for {
		n, e := rawGetdents(fd, w.dents)
		if e != 0 {
			return nil, e
		}
		if n == 0 {
			return list, nil
		}
		for names := w.dents[:n]; len(names) > 0; {
			var tid uint32
			if tid, names = nextPID(names); tid != 0 {
				list = append(list, tid)
			}
		}
	}
}

// read reads a file that never blocks, at most limit bytes of it.
func (w *worker) read(path string, limit int) ([]byte, error) {
	fd, e := rawOpen(w.root, append([]byte(path), 0))
	if e != 0 {
		return nil, e
	}
	defer rawClose(fd)
	// Nearly all are short, and ladders read one for each thread at each look.
	buf := make([]byte, min(limit, 1024))
	n := 0
	for n < limit {
		if n == len(buf) {
			buf = append(buf, make([]byte, min(len(buf), limit-n))...)
		}
		m, e := rawRead(fd, buf[n:])
		if e != 0 {
			return nil, e
		}
		if m == 0 {
			break
		}
		n += m
	}
	return buf[:n], nil
}
