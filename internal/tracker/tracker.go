// Package tracker remembers which parent has kept which zombies waiting since
// when. Snapshots flow in; counts, ages and the moment at which a parent will
// meet the rule flow out. It is pure: no clock, no I/O, and it cannot tell which
// source a snapshot came from.
package tracker

import (
	"iter"
	"maps"
	"slices"
	"time"

	"kzr/internal/task"
)

// Rule is what makes a parent a target: at least Threshold zombies, each of
// which has waited at least Grace.
type Rule struct {
	Threshold int
	Grace     time.Duration
}

// Tracker is not safe for concurrent use. The zero value is ready.
type Tracker struct {
	parents map[task.ID]*Parent
}

// Parent is one thread group with zombies, as of the last snapshot of it.
type Parent struct {
	task.ID
	Traced, Tracer, Leaders int // as in task.Children

	zombies []task.Zombie // by pid; Since is always set
}

// Apply takes a snapshot of the whole node and replaces all that was known.
// What is in it and was seen before under the same parent keeps its age. The
// tracker keeps the snapshot's slices.
func (t *Tracker) Apply(s *task.Snapshot) {
	next := make(map[task.ID]*Parent, len(s.Parents))
	for id, c := range s.Parents {
		next[id] = merge(t.parents[id], c, s)
	}
	t.parents = next
}

// ApplyTo takes a snapshot of one parent and replaces what was known of it.
func (t *Tracker) ApplyTo(id task.ID, s *task.Snapshot) {
	c, ok := s.Parents[id]
	if !ok {
		delete(t.parents, id)
		return
	}
	if t.parents == nil {
		t.parents = map[task.ID]*Parent{}
	}
	t.parents[id] = merge(t.parents[id], c, s)
}

// merge gives every zombie of c the moment since when it waits for this parent.
func merge(prev *Parent, c *task.Children, s *task.Snapshot) *Parent {
	if !slices.IsSortedFunc(c.Reapable, task.Zombie.Compare) {
		slices.SortFunc(c.Reapable, task.Zombie.Compare)
	}
	p := &Parent{ID: c.Parent, Traced: c.Traced, Tracer: c.Tracer, Leaders: c.Leaders, zombies: c.Reapable}
	var old []task.Zombie
	if prev != nil {
		old = prev.zombies
	}
	for i := range p.zombies {
		z := &p.zombies[i]
		for len(old) > 0 && old[0].Compare(*z) < 0 {
			old = old[1:]
		}
		if z.Since == 0 || z.Since > s.Ended {
			// Not seen to die under this parent: it waits from the first
			// sighting. The end of the snapshot is the later, safer moment.
			z.Since = s.Ended
		}
		if len(old) > 0 && old[0].Compare(*z) == 0 {
			z.Since = min(z.Since, old[0].Since)
		}
	}
	return p
}

// Get returns what is known of a parent.
func (t *Tracker) Get(id task.ID) (*Parent, bool) {
	p, ok := t.parents[id]
	return p, ok
}

// Parents yields every parent with zombies, in no order.
func (t *Tracker) Parents() iter.Seq[*Parent] { return maps.Values(t.parents) }

// Len is the number of parents with zombies.
func (t *Tracker) Len() int { return len(t.parents) }

// Reapable is the number of zombies that the parent could reap.
func (p *Parent) Reapable() int { return len(p.zombies) }

// Total is the number of its children in state Z.
func (p *Parent) Total() int { return len(p.zombies) + p.Traced + p.Leaders }

// Zombies returns its reapable zombies by pid. The caller must not change them.
func (p *Parent) Zombies() []task.Zombie { return p.zombies }

// Older returns those of Zombies that began to wait at the given moment or
// before. The caller must not change them.
func (p *Parent) Older(moment time.Duration) []task.Zombie {
	young := 0
	for _, z := range p.zombies {
		if z.Since > moment {
			young++
		}
	}
	if young == 0 {
		return p.zombies // as a rule; with half a million a copy would show
	}
	old := make([]task.Zombie, 0, len(p.zombies)-young)
	for _, z := range p.zombies {
		if z.Since <= moment {
			old = append(old, z)
		}
	}
	return old
}

// Oldest is the age at now of the zombie that has waited longest, 0 if there is
// none.
func (p *Parent) Oldest(now time.Duration) time.Duration {
	var oldest time.Duration
	for _, z := range p.zombies {
		oldest = max(oldest, now-z.Since)
	}
	return oldest
}

// Due is the moment at which the parent meets r if it reaps none until then: the
// moment its Threshold-th oldest zombie has waited for Grace. It is false while
// there are fewer than Threshold.
func (p *Parent) Due(r Rule) (time.Duration, bool) {
	n := max(r.Threshold, 1)
	if len(p.zombies) < n {
		return 0, false
	}
	// The n smallest, the largest of them on top.
	heap := make([]time.Duration, 0, n)
	for _, z := range p.zombies {
		if len(heap) < n {
			heap = append(heap, z.Since)
			for i := len(heap) - 1; i > 0 && heap[i] > heap[(i-1)/2]; i = (i - 1) / 2 {
				heap[i], heap[(i-1)/2] = heap[(i-1)/2], heap[i]
			}
			continue
		}
		if z.Since >= heap[0] {
			continue
		}
		heap[0] = z.Since
		for i := 0; ; {
			big := i
			for _, c := range [2]int{2*i + 1, 2*i + 2} {
				if c < n && heap[c] > heap[big] {
					big = c
				}
			}
			if big == i {
				break
			}
			heap[i], heap[big] = heap[big], heap[i]
			i = big
		}
	}
	return heap[0] + r.Grace, true
}
