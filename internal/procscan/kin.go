package procscan

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"

	"kzr/internal/task"
)

// Kin is a process in the words of its stat line.
type Kin struct {
	PID   int
	Comm  string // raw
	State byte
}

// LiveChildren describes the children of a process that are not among its
// zombies, at most limit of them, by pid; total is how many there are. It is for
// people: children that come and go meanwhile may be missing, and where the
// kernel keeps no lists of children, all are.
func (s *Scanner) LiveChildren(id task.ID, zombies *task.Children, limit int) (first []Kin, total int) {
	w := newWorker(s.root)
	dir := strconv.Itoa(id.PID) + "/task"
	threads, err := w.threads(dir)
	if err != nil {
		return nil, 0
	}
	var pids []int32
	for _, tid := range threads {
		b, err := w.read(fmt.Sprintf("%s/%d/children", dir, tid), 8*familyMax)
		if err != nil {
			continue // the thread has ended
		}
		for f := range bytes.FieldsSeq(b) {
			if pid, err := strconv.ParseInt(string(f), 10, 32); err == nil {
				pids = append(pids, int32(pid))
			}
		}
	}
	slices.Sort(pids)
	for _, pid := range pids {
		if zombies != nil {
			if _, dead := slices.BinarySearchFunc(zombies.Reapable, pid, func(z task.Zombie, pid int32) int { return z.PID() - int(pid) }); dead {
				continue
			}
		}
		if len(first) == limit {
			total++
			continue
		}
		st, err := s.stat(int(pid))
		if err != nil || st.dead() || int(st.ppid) != id.PID {
			continue
		}
		first = append(first, Kin{PID: int(pid), Comm: string(st.comm), State: st.state})
		total++
	}
	return first, total
}

// Comm is the name of a process, alive or dead, "" if it is gone.
func (s *Scanner) Comm(id task.ID) string {
	st, err := s.stat(id.PID)
	if err != nil || st.start != id.Start {
		return ""
	}
	return string(st.comm)
}

// stat reads the stat line of one process.
func (s *Scanner) stat(pid int) (stat, error) {
	var st stat
	err := s.frugally(func() error {
		b, err := readAll(s.root, strconv.Itoa(pid)+"/stat", lineSize)
		if err == nil {
			st, err = parseStat(b)
		}
		return err
	})
	return st, err
}
