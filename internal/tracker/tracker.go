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
	gone    []task.Zombie // what single looks have missed since the last snapshot of the node
	// missed is what that snapshot missed itself: what was on its way from one parent to
	// another then is found by the next. By pid, at most maxMissed.
	missed []task.Zombie
}

// maxMissed bounds what is remembered: a megabyte.
const maxMissed = 1 << 16

// Parent is one thread group with zombies, as of the last snapshot of it.
type Parent struct {
	task.ID
	Facts                    *task.Facts // nil if the source does not tell
	Traced, Leaders, Unknown int         // as in task.Children
	Tracer                   task.ID

	zombies []task.Zombie // by pid; Since and Died are always set
}

// Restore gives an empty tracker what another one knew, a short time ago on the same
// machine: zombies that the next snapshot finds under the same parent keep their age.
func (t *Tracker) Restore(known map[task.ID][]task.Zombie) {
	t.parents = make(map[task.ID]*Parent, len(known))
	for id, zombies := range known {
		slices.SortFunc(zombies, task.Zombie.Compare)
		t.parents[id] = &Parent{ID: id, zombies: zombies}
	}
}

// Apply takes a snapshot of the whole node and replaces all that was known.
// What is in it and was seen before under the same parent keeps its age; what has
// moved to another parent keeps the moment of its death. The tracker keeps the
// snapshot's slices.
func (t *Tracker) Apply(s *task.Snapshot) {
	gone := t.gone
	for id, p := range t.parents {
		var left []task.Zombie
		if c := s.Parents[id]; c != nil {
			left = c.Reapable
			sorted(left)
		}
		gone = missing(gone, p.zombies, left)
	}
	slices.SortFunc(gone, task.Zombie.Compare)
	next := make(map[task.ID]*Parent, len(s.Parents))
	for id, c := range s.Parents {
		p := merge(t.parents[id], c, s)
		inherit(p.zombies, gone)
		inherit(p.zombies, t.missed)
		next[id] = p
	}
	if len(gone) > maxMissed {
		gone = nil
	}
	t.parents, t.gone, t.missed = next, nil, slices.Clip(gone)
}

// ApplyTo takes a snapshot of one parent and replaces what was known of it.
func (t *Tracker) ApplyTo(id task.ID, s *task.Snapshot) {
	c, ok := s.Parents[id]
	if prev := t.parents[id]; prev != nil {
		var left []task.Zombie
		if ok {
			left = c.Reapable
			sorted(left)
		}
		t.gone = missing(t.gone, prev.zombies, left)
	}
	if !ok {
		delete(t.parents, id)
		return
	}
	if t.parents == nil {
		t.parents = map[task.ID]*Parent{}
	}
	t.parents[id] = merge(t.parents[id], c, s)
}

func sorted(zombies []task.Zombie) {
	if !slices.IsSortedFunc(zombies, task.Zombie.Compare) {
		slices.SortFunc(zombies, task.Zombie.Compare)
	}
}

// missing appends to list those of old that are not in left. Both are sorted.
func missing(list, old, left []task.Zombie) []task.Zombie {
	for _, z := range old {
		for len(left) > 0 && left[0].Compare(z) < 0 {
			left = left[1:]
		}
		if len(left) == 0 || left[0].Compare(z) != 0 {
			list = append(list, z)
		}
	}
	return list
}

// inherit gives those of zombies that are among the gone the moment of their death.
// Both are sorted; the shorter is looked up in the longer.
func inherit(zombies, gone []task.Zombie) {
	if len(gone) < len(zombies) {
		for _, g := range gone {
			if i, ok := slices.BinarySearchFunc(zombies, g, task.Zombie.Compare); ok {
				zombies[i] = zombies[i].Waiting(zombies[i].Since(), min(zombies[i].Died(), g.Died()))
			}
		}
		return
	}
	for i, z := range zombies {
		if j, ok := slices.BinarySearchFunc(gone, z, task.Zombie.Compare); ok {
			zombies[i] = z.Waiting(z.Since(), min(z.Died(), gone[j].Died()))
		}
	}
}

// merge gives every zombie of c the moment since when it waits for this parent, and
// the moment of its death.
func merge(prev *Parent, c *task.Children, s *task.Snapshot) *Parent {
	sorted(c.Reapable)
	p := &Parent{ID: c.Parent, Facts: c.Facts, Traced: c.Traced, Tracer: c.Tracer, Leaders: c.Leaders, Unknown: c.Unknown, zombies: c.Reapable}
	var old []task.Zombie
	if prev != nil {
		old = prev.zombies
	}
	for i := range p.zombies {
		z := &p.zombies[i]
		for len(old) > 0 && old[0].Compare(*z) < 0 {
			old = old[1:]
		}
		since, died := z.Since(), z.Since()
		if since == 0 || since > s.Ended || z.Has(task.Moved) {
			// Not seen to die under this parent: it waits from the first
			// sighting. The end of the snapshot is the later, safer moment.
			since = s.Ended
		}
		if died == 0 || died > s.Ended {
			died = since
		}
		if len(old) > 0 && old[0].Compare(*z) == 0 {
			since, died = min(since, old[0].Since()), min(died, old[0].Died())
		}
		*z = z.Waiting(since, died)
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
func (p *Parent) Total() int { return len(p.zombies) + p.Traced + p.Leaders + p.Unknown }

// Zombies returns its reapable zombies by pid. The caller must not change them.
func (p *Parent) Zombies() []task.Zombie { return p.zombies }

// Older returns those of Zombies that began to wait for this parent at the given
// moment or before. The caller must not change them.
func (p *Parent) Older(moment time.Duration) []task.Zombie {
	return p.until(moment, task.Zombie.Since)
}

// Dead returns those of Zombies that died at the given moment or before, whoever had
// them then. The caller must not change them.
func (p *Parent) Dead(moment time.Duration) []task.Zombie {
	return p.until(moment, task.Zombie.Died)
}

// CountDead is the length of Dead.
func (p *Parent) CountDead(moment time.Duration) int { return p.count(moment, task.Zombie.Died) }

func (p *Parent) count(moment time.Duration, began func(task.Zombie) time.Duration) (n int) {
	for _, z := range p.zombies {
		if began(z) <= moment {
			n++
		}
	}
	return n
}

func (p *Parent) until(moment time.Duration, began func(task.Zombie) time.Duration) []task.Zombie {
	n := p.count(moment, began)
	if n == len(p.zombies) {
		return p.zombies // as a rule; with half a million a copy would show
	}
	old := make([]task.Zombie, 0, n)
	for _, z := range p.zombies {
		if began(z) <= moment {
			old = append(old, z)
		}
	}
	return old
}

// Count is the number of Zombies with the flag.
func (p *Parent) Count(f task.Flag) (n int) {
	for _, z := range p.zombies {
		if z.Has(f) {
			n++
		}
	}
	return n
}

// Oldest is the age at now of the zombie that has waited longest for this parent, 0
// if there is none.
func (p *Parent) Oldest(now time.Duration) time.Duration {
	var oldest time.Duration
	for _, z := range p.zombies {
		oldest = max(oldest, now-z.Since())
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
			heap = append(heap, z.Since())
			for i := len(heap) - 1; i > 0 && heap[i] > heap[(i-1)/2]; i = (i - 1) / 2 {
				heap[i], heap[(i-1)/2] = heap[(i-1)/2], heap[i]
			}
			continue
		}
		if z.Since() >= heap[0] {
			continue
		}
		heap[0] = z.Since()
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
