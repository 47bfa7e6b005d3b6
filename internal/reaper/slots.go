package reaper

import (
	"slices"
	"sync"
)

const (
	// maxSlots ladders hold a pidfd, and look, at the same time. Thousands would
	// leave no descriptor for anything else.
	maxSlots = 64
	// hurrySlots are there besides for those that are in a hurry.
	hurrySlots = 16
)

// rank says which of those who wait for a slot is the next; of the same rank it
// is the first to come.
type rank int

const (
	anyone  rank = iota
	mayKill      // it has leave to kill, for which others wait
	pressed      // its parent's zombies are why pids run out
)

// slots are what ladders take in turn. The zero value is ready.
type slots struct {
	mu    sync.Mutex
	used  int
	queue []*slot // who waits, the next first
}

type slot struct {
	ready chan struct{} // closed when it is taken
	rank  rank
}

// acquire asks for a slot. The caller must release it, whether it got it or not.
func (s *slots) acquire(r rank) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := &slot{ready: make(chan struct{}), rank: r}
	s.enqueue(x)
	s.admit()
	return x
}

// hurry puts one who waits before those that can.
func (s *slots) hurry(x *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.queue, x); i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
		x.rank = pressed
		s.enqueue(x)
		s.admit()
	}
}

func (s *slots) release(x *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.queue, x); i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
		return
	}
	s.used--
	s.admit()
}

// wanted says whether somebody waits for a slot.
func (s *slots) wanted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue) > 0
}

func (s *slots) enqueue(x *slot) {
	i, _ := slices.BinarySearchFunc(s.queue, x.rank, func(y *slot, r rank) int {
		if y.rank >= r {
			return -1
		}
		return 1
	})
	s.queue = slices.Insert(s.queue, i, x)
}

func (s *slots) admit() {
	n := 0
	for _, x := range s.queue {
		room := maxSlots
		if x.rank == pressed {
			room += hurrySlots
		}
		if s.used >= room {
			break // the others have no more room
		}
		s.used++
		close(x.ready)
		n++
	}
	s.queue = slices.Delete(s.queue, 0, n)
}
