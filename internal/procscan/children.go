package procscan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"kzr/internal/task"
)

// SnapshotOf reads the zombies of one parent only. Its snapshot has one entry
// at most: none if the parent has no zombies, is gone, or is another process by
// now.
//
// Where the kernel lists the children of a thread (CONFIG_PROC_CHILDREN), the
// cost is that of the parent's children; else, or if they come and go too fast
// for that list to be trusted, or are very many, that of a whole walk.
func (s *Scanner) SnapshotOf(ctx context.Context, id task.ID) (*task.Snapshot, error) {
	var snap *task.Snapshot
	err := s.frugally(func() (err error) {
		snap, err = s.snapshotOf(ctx, id)
		return err
	})
	return snap, err
}

func (s *Scanner) snapshotOf(ctx context.Context, id task.ID) (*task.Snapshot, error) {
	for range 2 {
		snap, err := s.family(id)
		if errors.Is(err, errMany) {
			break
		}
		if !errors.Is(err, errUnsure) {
			return snap, err
		}
	}
	snap, err := s.snapshot(ctx, uint32(id.PID))
	if err != nil {
		return nil, err
	}
	for other := range snap.Parents {
		if other != id {
			delete(snap.Parents, other)
		}
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

// family takes the snapshot of one parent from the lists of its threads'
// children.
//
// The kernel promises little about such a list (man 5 proc_tid_children): when
// a child that it already gave out goes away, it may skip others. So it counts
// as complete only if every child that was given out was still there, of the
// same parent, after the last list was read. A child also moves to another list
// when its thread exits, so the threads have to be the same before and after.
func (s *Scanner) family(id task.ID) (*task.Snapshot, error) {
	w := newWorker(s.root)
	p := pass{root: s.root, only: uint32(id.PID), known: s.known.Load()}
	p.held = make(map[uint32]int)
	p.began, p.tick = task.Now(), bootTicks()
	snap := &task.Snapshot{Source: task.SourceProc, Began: p.began, Parents: make(map[task.ID]*task.Children)}

	before, err := w.holder(p.only, p.tick)
	if err == nil && before.start == id.Start {
		err = w.children(&p)
	}
	after := before
	if err == nil {
		after, err = w.holder(p.only, p.tick)
	}
	switch {
	case gone(err), err == nil && after.start != id.Start:
		snap.Ended = task.Now()
		return snap, nil
	case err != nil:
		return nil, fmt.Errorf("reading the children of process %d: %w", id.PID, err)
	case (before.state == 'Z') != (after.state == 'Z'):
		return nil, errUnsure // a leader that exits stays among the threads, but its children move
	}
	if len(w.found) > 0 {
		children := &task.Children{Parent: id}
		for i := range w.found {
			add(children, &w.found[i], p.held)
		}
		snap.Parents[id] = children
	}
	snap.Ended = task.Now()
	return snap, nil
}

// children records the zombies among the children of p.only.
func (w *worker) children(p *pass) error {
	dir := strconv.Itoa(int(p.only)) + "/task"
	threads, err := w.threads(dir)
	if err != nil {
		return err
	}
	var pids []uint32
	for _, tid := range threads {
		b, err := w.read(fmt.Sprintf("%s/%d/children", dir, tid), 8*familyMax)
		if gone(err) {
			return errUnsure // the thread, or the kernel has no such file
		}
		if err != nil {
			return err
		}
		for f := range bytes.FieldsSeq(b) {
			pid, err := strconv.ParseUint(string(f), 10, 32)
			if err != nil {
				return fmt.Errorf("malformed list of children: %w", err)
			}
			pids = append(pids, uint32(pid))
		}
		if len(pids) > familyMax || len(b) == 8*familyMax {
			return errMany
		}
	}
	slices.Sort(pids)
	for _, pid := range pids {
		st, err := w.look(p, pid)
		if gone(err) || (err == nil && (st.ppid != p.only || st.start >= p.tick)) {
			return errUnsure
		}
		if err != nil {
			return fmt.Errorf("child %d: %w", pid, err)
		}
	}
	again, err := w.threads(dir)
	if err != nil {
		return err
	}
	if !slices.Equal(threads, again) {
		return errUnsure
	}
	return nil
}

// threads lists the threads below a task directory.
func (w *worker) threads(dir string) ([]uint32, error) {
	fd, e := rawOpen(w.root, append([]byte(dir), 0))
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
