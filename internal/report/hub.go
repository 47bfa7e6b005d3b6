package report

import (
	"sync"
	"sync/atomic"
)

// streamBuffer bounds what waits for one reader of the stream, in bytes. The
// lines themselves are shared among all readers.
const streamBuffer = 128 << 10

// Hub hands events to everyone who watches the stream. The zero value is ready.
type Hub struct {
	watchers atomic.Int32

	mu   sync.Mutex
	subs map[*queue]struct{}
}

// Publish passes an event on and never waits: a reader that lags loses it and is
// told so. Without readers it costs next to nothing.
func (h *Hub) Publish(e Event) {
	if !h.Watched() {
		return
	}
	text := e.appendJSON(make([]byte, 0, 512)) // once for all readers
	h.mu.Lock()
	defer h.mu.Unlock()
	for q := range h.subs {
		q.push(text)
	}
}

// Watched says whether somebody reads the stream, so that what is only for the
// stream need not be made in vain.
func (h *Hub) Watched() bool { return h.watchers.Load() > 0 }

// subscribe returns a queue of rendered lines, or nil if limit readers are there
// already; unsubscribe ends it.
func (h *Hub) subscribe(limit int) *queue {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.subs) >= limit {
		return nil
	}
	if h.subs == nil {
		h.subs = make(map[*queue]struct{})
	}
	q := newQueue(streamBuffer)
	h.subs[q] = struct{}{}
	h.watchers.Add(1)
	return q
}

func (h *Hub) unsubscribe(q *queue) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.subs[q]; ok {
		delete(h.subs, q)
		h.watchers.Add(-1)
	}
}
