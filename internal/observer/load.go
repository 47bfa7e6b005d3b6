package observer

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"kzr/internal/policy"
	"kzr/internal/task"
	"kzr/internal/tracker"
)

// node stands for the node among the ids of cgroups.
const node = 0

// Load is how full one limit on pids is, and with how many zombies, whoever holds them.
type Load struct {
	ID      uint64 // of the pids cgroup; 0 for the node
	Current int
	Limit   int
	Zombies int
}

// member is one parent with zombies as the last sweep saw it.
type member struct {
	id       task.ID
	workload string
	owner    string
	zombies  int // that it could reap
	dead     int // of those, for long enough where a limit is near
	old      int // of those, for at least the configured grace
	chain    []task.PidsLimit
}

// Workload is what its parents hold together.
type Workload struct {
	Name, Owner string
	Zombies     int // that could be reaped
	Old         int // of those, dead for at least the configured grace
	Parents     int
	Largest     task.ID
	Pids        task.PidsLimit // the limit nearest to being reached, zero if there is none
	RatePerHour float64        // zombies that have come and stayed
	RateKnown   bool
}

// gather sums up who holds what. The caller holds mu.
func (o *Observer) gather(limits map[string][]task.PidsLimit, tasks int, now time.Duration) {
	o.members = o.members[:0]
	o.loads = map[uint64]*Load{node: {}}
	for p := range o.tracker.Parents() {
		proc := task.Process{ID: p.ID}
		pl := o.places.find(p.ID, p.Facts, now)
		m := member{
			id: p.ID, zombies: p.Reapable(),
			dead: p.CountDead(now - policy.PressureGrace), old: p.CountDead(now - o.config.Grace),
		}
		switch {
		case p.Facts != nil:
			proc.Facts, m.chain = *p.Facts, p.Facts.Pids
		case pl != nil:
			m.chain = limits[pl.pids]
		}
		if pl != nil || p.Facts != nil {
			o.put(&proc, pl)
			m.workload, m.owner = proc.Workload, proc.Owner
		}
		o.members = append(o.members, m)
		// Where pids run out, those that nobody could be asked about in time count.
		o.loads[node].Zombies += m.zombies + p.Unknown
		for _, l := range m.chain {
			load := o.loads[l.ID]
			if load == nil {
				load = &Load{ID: l.ID}
				o.loads[l.ID] = load
			}
			load.Current, load.Limit = l.Current, l.Limit
			load.Zombies += m.zombies + p.Unknown
		}
	}
	slices.SortFunc(o.members, func(a, b member) int {
		return cmp.Or(cmp.Compare(b.zombies, a.zombies), cmp.Compare(a.id.PID, b.id.PID))
	})
	o.index = make(map[task.ID]int, len(o.members))
	for i := range o.members {
		o.index[o.members[i].id] = i
	}
	o.loads[node].Current = tasks
}

// changed notes what a look at one parent found. The caller holds mu.
func (o *Observer) changed(id task.ID, p *tracker.Parent, now time.Duration) {
	i, ok := o.index[id]
	if !ok {
		return // it is new, and counts from the next sweep on
	}
	m := &o.members[i]
	before := m.zombies
	m.zombies, m.dead = 0, 0
	if p != nil {
		m.zombies, m.dead = p.Reapable(), p.CountDead(now-policy.PressureGrace)
		if p.Facts != nil {
			m.chain = p.Facts.Pids
		}
	}
	o.loads[node].Zombies += m.zombies - before
	for _, l := range m.chain {
		if load := o.loads[l.ID]; load != nil {
			load.Zombies += m.zombies - before
			if p != nil && p.Facts != nil {
				load.Current, load.Limit = l.Current, l.Limit
			}
		}
	}
}

// Pressed are the limits that are near and filled by zombies, the node's first, then
// those of the most zombies.
func (o *Observer) Pressed() []Load {
	n, err := o.opts.Proc.Node()
	o.mu.Lock()
	defer o.mu.Unlock()
	var near []Load
	for _, l := range o.loads {
		if l.ID == node {
			if err != nil {
				continue
			}
			l.Current, l.Limit = n.Tasks, n.Limit
		}
		if policy.Pressed(o.config.Pressure, l.Current, l.Limit, l.Zombies) {
			near = append(near, *l)
		}
	}
	slices.SortFunc(near, func(a, b Load) int {
		return cmp.Or(cmp.Compare(min(a.ID, 1), min(b.ID, 1)), cmp.Compare(b.Zombies, a.Zombies))
	})
	return near
}

// Candidates are the parents whose zombies fill a limit, in the order in which they are
// to be looked at: the workload that holds most first, in it the parent that holds most.
func (o *Observer) Candidates(load uint64) []Candidate {
	o.mu.Lock()
	defer o.mu.Unlock()
	sums := map[string]int{}
	var list []Candidate
	for _, m := range o.members {
		if load != node && !slices.ContainsFunc(m.chain, func(l task.PidsLimit) bool { return l.ID == load }) {
			continue
		}
		name := m.workload
		if name == "" {
			name = m.id.String()
		}
		sums[name] += m.zombies
		if m.dead > 0 {
			list = append(list, Candidate{m.id, name, m.zombies})
		}
	}
	slices.SortStableFunc(list, func(a, b Candidate) int { // members are sorted by zombies already
		return cmp.Or(cmp.Compare(sums[b.Workload], sums[a.Workload]), cmp.Compare(a.Workload, b.Workload))
	})
	return list
}

// Candidate is a parent that helps to fill a limit.
type Candidate struct {
	ID       task.ID
	Workload string
	Zombies  int
}

// choice is why a parent is acted on though it may not meet its rule.
type choice struct {
	load uint64
	init bool // it is the init of the container that fills the limit, and holds no zombies itself
}

// Choose says that a parent is to be acted on because of a limit, for as long as that is
// near; it is judged accordingly. The init of a container is even if it holds no zombies.
func (o *Observer) Choose(id task.ID, load uint64, init bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.chosen[id] = choice{load, init}
}

// Release takes Choose back.
func (o *Observer) Release(id task.ID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.chosen, id)
}

// pressureOn says for which kind of pressure a parent was chosen, if that still holds.
func (o *Observer) pressureOn(id task.ID) (p policy.Pressure, init bool) {
	o.mu.Lock()
	c, ok := o.chosen[id]
	o.mu.Unlock()
	if !ok {
		return policy.NoPressure, false
	}
	for _, l := range o.Pressed() {
		switch {
		case l.ID != c.load:
		case l.ID == node:
			return policy.NodePressure, c.init
		default:
			return policy.WorkloadPressure, c.init
		}
	}
	return policy.NoPressure, false
}

// NearLimits says whether the pids cgroup of some parent with zombies is near its limit
// now.
func (o *Observer) NearLimits() bool {
	o.mu.Lock()
	fraction := o.config.Pressure
	paths := map[string]bool{}
	for p := range o.tracker.Parents() {
		if p.Facts != nil && len(p.Facts.Pids) == 0 || len(paths) == maxPolled {
			continue
		}
		if pl := o.places.find(p.ID, p.Facts, o.last.At); pl != nil {
			paths[pl.pids] = true
		}
	}
	o.mu.Unlock()
	for path := range paths {
		for _, l := range o.opts.Proc.PidsLimits(path) {
			if policy.Near(fraction, l.Current, l.Limit) {
				return true
			}
		}
	}
	return false
}

// maxPolled bounds how many cgroups are looked at each second.
const maxPolled = 64

func (o *Observer) factsOf(id task.ID) *task.Facts {
	if p, ok := o.tracker.Get(id); ok {
		return p.Facts
	}
	return nil
}

// HeldBy says how many of these zombies are held by whom, as of what was last seen.
func (o *Observer) HeldBy(zombies []task.Zombie) map[task.ID]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	held := map[task.ID]int{}
	for p := range o.tracker.Parents() {
		for _, z := range zombies {
			if _, ok := slices.BinarySearchFunc(p.Zombies(), z, task.Zombie.Compare); ok {
				held[p.ID]++
			}
		}
	}
	return held
}

// Workloads sums up the last sweep by workload, the largest first.
func (o *Observer) Workloads() []Workload {
	o.mu.Lock()
	defer o.mu.Unlock()
	byName := map[string]*Workload{}
	recent := map[string]int{}
	now := o.last.At
	window, known := o.window(now)
	for _, m := range o.members {
		if m.workload == "" {
			continue
		}
		w := byName[m.workload]
		if w == nil {
			w = &Workload{Name: m.workload, Owner: m.owner, Largest: m.id}
			byName[m.workload] = w
		}
		w.Zombies += m.zombies
		w.Old += m.old
		w.Parents++
		for _, l := range m.chain {
			if w.Pids.Limit == 0 || l.Fuller(w.Pids) {
				w.Pids = l
			}
		}
		if p, ok := o.tracker.Get(m.id); ok {
			recent[m.workload] += p.Reapable() - p.CountDead(now-window)
		}
	}
	list := make([]Workload, 0, len(byName))
	for name, w := range byName {
		if known {
			w.RatePerHour, w.RateKnown = perHour(recent[name], window), true
		}
		list = append(list, *w)
	}
	slices.SortFunc(list, func(a, b Workload) int {
		return cmp.Or(cmp.Compare(b.Zombies, a.Zombies), cmp.Compare(a.Name, b.Name))
	})
	return list
}

// rateWindow is how long kzr must have watched to say how fast something grows.
const rateWindow = 30 * time.Second

// Rate is how many of a parent's zombies come and stay in an hour; false if kzr has not
// watched for long enough.
func (o *Observer) Rate(a *Assessment) (float64, bool) {
	o.mu.Lock()
	window, known := o.window(a.At)
	o.mu.Unlock()
	if !known || a.Parent == nil {
		return 0, false
	}
	return perHour(a.Reapable-a.Parent.CountDead(a.At-window), window), true
}

// window is the time before a moment in which zombies that came are counted; false if
// kzr has not watched for long enough. The caller holds mu.
func (o *Observer) window(now time.Duration) (time.Duration, bool) {
	window := min(time.Hour, now-o.start)
	return window, o.start != 0 && window >= rateWindow
}

func perHour(n int, window time.Duration) float64 {
	return float64(n) * float64(time.Hour) / float64(window)
}

// Detail says more about a reason than its name does, "" if there is no more to say.
func Detail(a *Assessment) string {
	switch {
	case a.Reason == policy.Waiting && a.Process.WaitsUnnamed:
		return "/proc does not say for which"
	case a.Reason == policy.Waiting && a.Process.WaitsUnknown:
		return "or may be: /proc did not answer in time"
	case a.Reason == policy.Waiting:
		return fmt.Sprintf("waiting for child %d", a.Process.Waits.PID)
	case a.Reason == policy.Traced && a.Process.Tracer.PID != 0:
		return fmt.Sprintf("traced by %d", a.Process.Tracer.PID)
	case a.Reason == policy.Traced && a.Process.TracerUnknown:
		return "or may be: its status in /proc did not answer in time"
	case a.Reason == policy.Foreign:
		return fmt.Sprintf("%d zombies were put on it by a process that may not signal it", a.Foreign)
	}
	return ""
}
