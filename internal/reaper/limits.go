package reaper

import (
	"slices"
	"sync"
	"time"

	"kzr/internal/config"
)

// limits counts kills against what the node and each workload allow. A kill is
// a victim that got SIGTERM or SIGKILL; one that got both counts once. Both
// windows slide.
//
// A ladder that is about to kill takes a ticket. The answer comes at once if
// there is room; otherwise the ticket waits, first come first served, but for
// those in a hurry, who come first. A granted ticket holds its place in both
// windows from the grant on, so ladders that run side by side cannot overshoot,
// and it holds its workload, so a second victim there waits until the first is
// gone: killing a container's init takes everything else in it along. A ladder
// that is put off leaves its ticket, so that the workload is the next one's, and
// has to take it up again before it goes on. A kill counts once, however often.
//
// What it remembers is bounded by the kills of the longest window, plus one
// entry per ticket.
type limits struct {
	mu        sync.Mutex
	set       config.Limits
	kills     []kill // on the node, of the last minute, oldest first
	reserved  int    // tickets granted and not yet spent
	workloads map[string]*workload
	queue     []*ticket // not yet answered
	wake      *time.Timer
}

type workload struct {
	kills  []kill  // of the last window, oldest first
	holder *ticket // whose victim is not gone yet
}

type kill struct {
	at        time.Time
	rehearsed bool // in a dry run: nobody was killed
}

// ticket is one ladder's leave to kill.
type ticket struct {
	limits   *limits
	workload string
	answer   chan struct{} // closed at the answer; another one once it is taken up again
	refused  time.Time     // if not zero: the workload has no kill left before this
	spent    bool
	urgent   bool
}

func newLimits(set config.Limits) *limits {
	return &limits{set: set, workloads: map[string]*workload{}}
}

// change puts other limits in force, for those who wait as well. Kills of the
// past still count.
func (l *limits) change(set config.Limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set = set
	l.admit()
}

// forget drops the kills that were none.
func (l *limits) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	rehearsed := func(k kill) bool { return k.rehearsed }
	l.kills = slices.DeleteFunc(l.kills, rehearsed)
	for _, w := range l.workloads {
		w.kills = slices.DeleteFunc(w.kills, rehearsed)
	}
}

// exhausted returns the moment before which the workload has no kill left, zero
// if it has one.
func (l *limits) exhausted(name string) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.prune(time.Now())
	return l.exhaustedLocked(l.workloads[name])
}

func (l *limits) exhaustedLocked(w *workload) time.Time {
	switch allowed := l.set.PerWorkload.Kills; {
	case allowed <= 0:
		return time.Now().Add(l.set.PerWorkload.Window)
	case w == nil || len(w.kills) < allowed:
		return time.Time{}
	default:
		return w.kills[len(w.kills)-allowed].at.Add(l.set.PerWorkload.Window)
	}
}

// take asks for leave to kill one process of a workload. The caller must leave
// the ticket, whatever the answer.
func (l *limits) take(name string) *ticket {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := &ticket{limits: l, workload: name, answer: make(chan struct{})}
	l.queue = append(l.queue, t)
	l.admit()
	return t
}

// resume asks for the workload of a spent ticket that was left. Its victim has
// had its signal, so it comes before those who wait for room.
func (t *ticket) resume() {
	l := t.limits
	l.mu.Lock()
	defer l.mu.Unlock()
	t.answer = make(chan struct{})
	l.queue = slices.Insert(l.queue, 0, t)
	l.admit()
}

// held says whether the workload is the ticket's.
func (t *ticket) held() bool {
	l := t.limits
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.workloads[t.workload]
	return w != nil && w.holder == t
}

// hurry puts the ticket before those that can wait.
func (t *ticket) hurry() {
	l := t.limits
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.urgent {
		return
	}
	t.urgent = true
	slices.SortStableFunc(l.queue, func(a, b *ticket) int {
		switch {
		case a.urgent == b.urgent:
			return 0
		case a.urgent:
			return -1
		}
		return 1
	})
	l.admit()
}

// spend counts the kill. The ticket must have been granted.
func (t *ticket) spend(rehearsed bool) {
	l := t.limits
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.spent {
		return
	}
	t.spent = true
	k, w := kill{time.Now(), rehearsed}, l.workloads[t.workload]
	l.reserved--
	l.kills = append(l.kills, k)
	w.kills = append(w.kills, k)
	l.admit() // no room was made, but the moment at which there will be is now known
}

// leave gives everything but a spent kill back: the victim is gone, is put off,
// or is not to be killed after all.
func (t *ticket) leave() {
	l := t.limits
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.queue, t); i >= 0 {
		l.queue = slices.Delete(l.queue, i, i+1)
	}
	if w := l.workloads[t.workload]; w != nil && w.holder == t {
		w.holder = nil
		if !t.spent {
			l.reserved--
		}
	}
	l.admit()
}

// admit answers every ticket that can be answered, in order, and sees to it
// that it is called again when the node's window has room for the rest.
func (l *limits) admit() {
	now := time.Now()
	l.prune(now)
	l.queue = slices.DeleteFunc(l.queue, func(t *ticket) bool {
		w := l.workloads[t.workload]
		busy := w != nil && w.holder != nil
		if !t.spent {
			if t.refused = l.exhaustedLocked(w); !t.refused.IsZero() {
				close(t.answer)
				return true
			}
			busy = busy || len(l.kills)+l.reserved >= l.set.KillsPerMinute
		}
		if busy {
			return false
		}
		if w == nil {
			w = &workload{}
			l.workloads[t.workload] = w
		}
		w.holder = t
		if !t.spent {
			l.reserved++
		}
		close(t.answer)
		return true
	})
	if l.wake != nil {
		l.wake.Stop()
		l.wake = nil
	}
	if len(l.queue) > 0 && len(l.kills) > 0 {
		l.wake = time.AfterFunc(l.kills[0].at.Add(time.Minute).Sub(now), func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.admit()
		})
	}
}

// prune forgets what has left its window.
func (l *limits) prune(now time.Time) {
	l.kills = since(l.kills, now.Add(-time.Minute))
	for name, w := range l.workloads {
		w.kills = since(w.kills, now.Add(-l.set.PerWorkload.Window))
		if len(w.kills) == 0 && w.holder == nil {
			delete(l.workloads, name)
		}
	}
}

// since drops the kills up to and including start.
func since(kills []kill, start time.Time) []kill {
	n := 0
	for n < len(kills) && !kills[n].at.After(start) {
		n++
	}
	return slices.Delete(kills, 0, n)
}
