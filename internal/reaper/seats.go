package reaper

import (
	"slices"
	"sync"
)

const (
	// maxSeats ladders hold a pidfd, and look, at the same time. Thousands would
	// leave no descriptor for anything else.
	maxSeats = 64
	// hurrySeats are there besides for those that are in a hurry.
	hurrySeats = 16
)

// rank says which of those who wait for a seat is the next; of the same rank it
// is the first to come.
type rank int

const (
	anyone  rank = iota
	mayKill      // it has leave to kill, for which others wait
	pressed      // its parent's zombies are why pids run out
)

// seats are what ladders take in turn. The zero value is ready.
type seats struct {
	mu    sync.Mutex
	taken int
	queue []*seat // who waits, the next first
}

type seat struct {
	ready chan struct{} // closed when it is taken
	rank  rank
}

// take asks for a seat. The caller must leave it, taken or not.
func (s *seats) take(r rank) *seat {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := &seat{ready: make(chan struct{}), rank: r}
	s.enqueue(x)
	s.admit()
	return x
}

// hurry puts one who waits before those that can.
func (s *seats) hurry(x *seat) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.queue, x); i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
		x.rank = pressed
		s.enqueue(x)
		s.admit()
	}
}

func (s *seats) leave(x *seat) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.queue, x); i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
		return
	}
	s.taken--
	s.admit()
}

// wanted says whether somebody waits for a seat.
func (s *seats) wanted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue) > 0
}

func (s *seats) enqueue(x *seat) {
	i, _ := slices.BinarySearchFunc(s.queue, x.rank, func(y *seat, r rank) int {
		if y.rank >= r {
			return -1
		}
		return 1
	})
	s.queue = slices.Insert(s.queue, i, x)
}

func (s *seats) admit() {
	n := 0
	for _, x := range s.queue {
		room := maxSeats
		if x.rank == pressed {
			room += hurrySeats
		}
		if s.taken >= room {
			break // the others have no more room
		}
		s.taken++
		close(x.ready)
		n++
	}
	s.queue = slices.Delete(s.queue, 0, n)
}
