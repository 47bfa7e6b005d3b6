package procscan

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
)

// Node is how full the machine's process table is.
type Node struct {
	Tasks int // threads and zombies, those that kzr cannot see included
	Limit int // of those: kernel.threads-max, or the pids that can be had if these are fewer
}

// lowPIDs are handed out once, after boot, and then left alone (RESERVED_PIDS in
// kernel/pid.c).
const lowPIDs = 300

// Node reads the node's task count and limit. It fails where /proc shows only
// processes (mounted with subset=pid).
//
// In a pid namespace with a limit of its own there are two pairs of them: the tasks of
// the namespace and its pid_max, and those of the machine and its threads-max. The one
// that is nearer to being full is returned.
func (s *Scanner) Node() (Node, error) {
	pidMax, err := readInt(s.pidMax)
	if err != nil {
		return Node{}, fmt.Errorf("reading %s/sys/kernel/pid_max: %w", s.path, err)
	}
	threads, err := readInt(s.threads)
	if err != nil {
		return Node{}, fmt.Errorf("reading %s/sys/kernel/threads-max: %w", s.path, err)
	}
	machine, err := s.machineTasks()
	if err != nil {
		return Node{}, err
	}
	if !s.ownPIDMax {
		return Node{Tasks: machine, Limit: min(pidMax-lowPIDs, threads)}, nil
	}
	own, err := s.countTasks()
	if err != nil {
		return Node{}, err
	}
	if node := (Node{Tasks: own, Limit: pidMax - lowPIDs}); node.Tasks*threads > machine*node.Limit {
		return node, nil
	}
	return Node{Tasks: machine, Limit: threads}, nil
}

// Offsets returns what kzr's time namespace adds to the kernel's clocks: what
// /proc and the system calls say has it added, what the kernel side keeps has
// not. It is zero in the initial time namespace and on kernels that have no
// others.
func (s *Scanner) Offsets() (task.Offsets, error) {
	var o task.Offsets
	err := s.frugally(func() (err error) {
		o, err = s.offsets()
		return err
	})
	return o, err
}

func (s *Scanner) offsets() (task.Offsets, error) {
	b, err := readAll(s.root, "self/timens_offsets", 4096)
	if errors.Is(err, unix.ENOENT) {
		return task.Offsets{}, nil
	}
	if err != nil {
		return task.Offsets{}, fmt.Errorf("reading the offsets of the time namespace: %w", err)
	}
	// The file speaks of the namespace that children will be born into.
	self, err := readlinkat(s.root, "self/ns/time")
	if err != nil {
		return task.Offsets{}, fmt.Errorf("reading the time namespace: %w", err)
	}
	next, err := readlinkat(s.root, "self/ns/time_for_children")
	if err != nil {
		return task.Offsets{}, fmt.Errorf("reading the time namespace: %w", err)
	}
	if self != next {
		return task.Offsets{}, errors.New("kzr is about to change its time namespace: its offsets cannot be read")
	}
	return parseOffsets(b)
}

func parseOffsets(b []byte) (o task.Offsets, err error) {
	for name, offset := range map[string]*time.Duration{"monotonic": &o.Monotonic, "boottime": &o.Boottime} {
		if *offset, err = parseOffset(b, name); err != nil {
			return task.Offsets{}, err
		}
	}
	return o, nil
}

func parseOffset(b []byte, clock string) (time.Duration, error) {
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		f := strings.Fields(sc.Text())
		if len(f) != 3 || f[0] != clock {
			continue
		}
		sec, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("offset of the time namespace: %w", err)
		}
		nsec, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("offset of the time namespace: %w", err)
		}
		const most = math.MaxInt64/int64(time.Second) - 1
		if sec < -most || sec > most || nsec < 0 || nsec >= int64(time.Second) {
			return 0, fmt.Errorf("offset of the time namespace: %d seconds and %d nanoseconds are out of range", sec, nsec)
		}
		return time.Duration(sec)*time.Second + time.Duration(nsec), nil
	}
	return 0, fmt.Errorf("no %s in the offsets of the time namespace %q", clock, b)
}
