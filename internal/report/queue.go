package report

import "sync"

// queue hands lines from producers that must never wait to one consumer that
// may be slow. It holds at most max bytes; a line that finds no room is dropped
// and counted, and the consumer learns where the gap is and how wide.
type queue struct {
	wake chan struct{} // holds one token while there is something to take
	max  int

	mu      sync.Mutex
	lines   []line
	size    int
	gap     uint64 // dropped since the last line that found room
	dropped uint64 // dropped ever
}

type line struct {
	gap  uint64 // lines dropped just before this one
	text []byte // not changed once queued
}

// perLine is what a queued line costs beyond its text, about.
const perLine = 64

func newQueue(max int) *queue { return &queue{wake: make(chan struct{}, 1), max: max} }

// push queues text, which the queue then owns.
func (q *queue) push(text []byte) {
	q.mu.Lock()
	if q.size+len(text)+perLine > q.max {
		q.gap++
		q.dropped++
	} else {
		q.lines = append(q.lines, line{q.gap, text})
		q.size += len(text) + perLine
		q.gap = 0
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take empties the queue. The second result counts the lines dropped after the
// last one taken.
func (q *queue) take() ([]line, uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	lines, gap := q.lines, q.gap
	q.lines, q.size, q.gap = nil, 0, 0
	return lines, gap
}

func (q *queue) lost() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.dropped
}
