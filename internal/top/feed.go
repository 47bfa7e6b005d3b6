package top

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"

	"kzr/internal/report"
)

// entry is a line of the stream: an event, or several zombies of one parent that
// came one after the other.
type entry struct {
	report.StreamEvent
	n int
}

// text is what the filter looks at.
func (e *entry) text() string {
	return strings.Join([]string{
		strconv.Itoa(e.PID), e.Comm, e.Exe, e.Namespace + "/" + e.Pod, e.Container, e.Event, e.Signal, spelled(e.Reason), e.Message,
	}, "\n")
}

const (
	// keep is how many lines can be scrolled back to.
	keep = 1000
	// breath is the least time between two batches: a storm of events redraws
	// the screen ten times a second, not ten thousand.
	breath    = 100 * time.Millisecond
	reconnect = 2 * time.Second
)

// feed takes events off the source as they come and hands them to the model in
// batches. What the model is too slow for is merged or dropped, oldest first.
type feed struct {
	ready chan struct{}

	mu  sync.Mutex
	new []entry
}

func newFeed() *feed { return &feed{ready: make(chan struct{}, 1)} }

// follow reads the source until ctx ends, and connects again when it hangs up.
// That it did the screen learns from the next look, which fails too.
func (f *feed) follow(ctx context.Context, s Source) {
	for {
		for e, err := range s.Events(ctx) {
			if err != nil {
				break
			}
			f.push(e)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(reconnect):
		}
	}
}

func (f *feed) push(e report.StreamEvent) {
	f.mu.Lock()
	f.new = add(f.new, entry{e, 1})
	f.mu.Unlock()
	select {
	case f.ready <- struct{}{}:
	default:
	}
}

// add appends a line, or makes one of it and the last.
func add(all []entry, e entry) []entry {
	if l := len(all); l > 0 && e.Event == report.EventZombie {
		if last := &all[l-1]; last.Event == e.Event && last.PID == e.PID && last.StartTime == e.StartTime {
			e.n += last.n
			*last = e
			return all
		}
	}
	if len(all) >= keep {
		all = append(all[:0], all[len(all)-keep+1:]...)
	}
	return append(all, e)
}

// eventsMsg is a batch.
type eventsMsg []entry

// next waits for a batch.
func (f *feed) next(ctx context.Context) tea.Cmd {
	return func() tea.Msg {
		select {
		case <-f.ready:
		case <-ctx.Done():
			return nil
		}
		select {
		case <-time.After(breath):
		case <-ctx.Done():
			return nil
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		batch := eventsMsg(f.new)
		f.new = nil
		return batch
	}
}
