package procscan

import (
	"context"
	"fmt"
	"strconv"
	"strings"

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
// the snapshot. An error means that it could not be complete, and then there is
// none.
//
// Processes that kzr may not see are missing too; see [Scanner.Host].
func (s *Scanner) Snapshot(ctx context.Context) (*task.Snapshot, error) {
	var snap *task.Snapshot
	err := s.frugally(func() (err error) {
		snap, err = s.snapshot(ctx, 0)
		return err
	})
	return snap, err
}

func (s *Scanner) snapshot(ctx context.Context, only uint32) (*task.Snapshot, error) {
	c, err := s.walk(ctx, only)
	if err != nil {
		return nil, err
	}
	snap := &task.Snapshot{Source: task.SourceProc, Began: c.began, Helped: c.helped, Parents: make(map[task.ID]*task.Children)}
	if err := s.gather(snap, c); err != nil {
		return nil, err
	}
	if only == 0 {
		// The kernel's own count is of one moment, and has what kzr cannot see.
		if snap.Tasks, err = s.tasks(); err != nil {
			snap.Tasks = c.tasks
		}
	}
	snap.Ended = task.Now()
	return snap, nil
}

// gather sorts the zombies of a walk by parent.
func (s *Scanner) gather(snap *task.Snapshot, c *census) error {
	reapable := make(map[uint32]int)
	for _, run := range c.runs {
		for i := range run {
			n := 0
			if k := run[i].kind(); k == free || k == own {
				n = 1
			}
			reapable[run[i].parent()] += n
		}
	}
	w := newWorker(s.root)
	byPID := make(map[uint32]*task.Children, len(reapable))
	for pid, n := range reapable {
		st, err := w.holder(pid, c.tick)
		switch {
		case err == nil:
		case gone(err) || denied(err):
			continue
		default:
			return fmt.Errorf("reading parent %d: %w", pid, err)
		}
		id := task.ID{PID: int(pid), Start: st.start}
		children := &task.Children{Parent: id}
		if n > 0 {
			children.Reapable = make([]task.Zombie, 0, n)
		}
		byPID[pid], snap.Parents[id] = children, children
	}
	for _, run := range c.runs {
		for i := range run {
			if children := byPID[run[i].parent()]; children != nil {
				add(children, &run[i], c.held)
			}
		}
	}
	return nil
}

// add counts one zombie.
func add(c *task.Children, r *record, tracers map[uint32]int) {
	switch r.kind() {
	case free, own:
		c.Reapable = append(c.Reapable, task.NewZombie(int(r.pid), r.start, 0, 0))
	case held:
		c.Traced++
		c.Tracer = task.ID{PID: tracers[r.pid]}
	case leader:
		c.Leaders++
	}
}

// tasks is the fourth field of loadavg, "running/total": every thread and
// zombie of the machine, the number that the kernel holds against threads-max.
func (s *Scanner) tasks() (int, error) {
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
