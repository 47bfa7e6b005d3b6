// Package observer knows the node: which parents hold which zombies since when, whose
// they are, and which limits on pids are nearly reached. Snapshots and looks at single
// processes flow in; assessments and a judge for the reaper flow out. It is the only
// one that asks the sources, and everybody else asks it.
//
// Order of locks: turn, then mu. turn is held while the whole node is looked at, so
// that snapshots apply in order. mu is held for no system call: a look that does not
// come back holds up nobody else.
package observer

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"time"

	"kzr/internal/config"
	"kzr/internal/container"
	"kzr/internal/policy"
	"kzr/internal/procscan"
	"kzr/internal/task"
	"kzr/internal/tracker"
)

// Source sees processes: probe where eBPF works, procscan everywhere.
type Source interface {
	// Snapshot lists the zombies of the whole node.
	Snapshot(ctx context.Context) (*task.Snapshot, error)
	// SnapshotOf lists those of one parent, at a cost that depends on that parent only.
	SnapshotOf(ctx context.Context, id task.ID) (*task.Snapshot, error)
	// Facts says who has a pid; the error wraps task.ErrGone if no thread group does.
	Facts(ctx context.Context, pid int) (task.ID, task.Facts, error)
}

// Options are what an observer is made of.
type Options struct {
	Source Source
	Proc   *procscan.Scanner
	// Name says what is known of a container, and whether that includes the names that
	// only its runtime knows. It must not wait.
	Name func(container.Ref) (task.Container, bool)
	// Swept hears of each snapshot of the node. Progress is called now and then by what
	// takes long. Neither may wait.
	Swept    func(Sweep)
	Progress func()
}

// Observer looks. Its methods may be called from any goroutine.
type Observer struct {
	opts Options
	turn chan struct{} // holds the right to look at the whole node

	mu      sync.Mutex
	config  config.Config
	policy  *policy.Policy
	tracker tracker.Tracker
	places  places
	last    Sweep
	changes uint64             // snapshots applied, of the node or of one parent
	start   time.Duration      // the end of the first sweep: what it found may be much older
	members []member           // who holds zombies, as of the last sweep, the most first
	index   map[task.ID]int    // of members
	loads   map[uint64]*Load   // by the cgroup's id; node for the node
	chosen  map[task.ID]choice // parents to be acted on because a limit is near
}

// Sweep is what the last snapshot of the whole node said.
type Sweep struct {
	Source  task.Source
	Began   time.Duration
	At      time.Duration // when it ended
	Before  time.Duration // when the one before it ended
	Took    time.Duration
	Cost    time.Duration // CPU time of the threads that looked: less than Took on a node that is overloaded
	Tasks   int
	Zombies int
	Parents int
}

// New returns an observer that has not looked yet.
func New(o Options, c config.Config, p *policy.Policy) *Observer {
	if o.Name == nil {
		o.Name = func(ref container.Ref) (task.Container, bool) { return ref.Container(), false }
	}
	if o.Swept == nil {
		o.Swept = func(Sweep) {}
	}
	if o.Progress == nil {
		o.Progress = func() {}
	}
	return &Observer{
		opts: o, turn: make(chan struct{}, 1),
		config: c, policy: p, chosen: map[task.ID]choice{}, loads: map[uint64]*Load{node: {}},
	}
}

// Set puts another configuration in force.
func (o *Observer) Set(c config.Config, p *policy.Policy) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.config, o.policy = c, p
}

// Config is the configuration in force.
func (o *Observer) Config() config.Config {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.config
}

// Last is the last sweep, zero before the first.
func (o *Observer) Last() Sweep {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last
}

// Sweep looks at the whole node.
func (o *Observer) Sweep(ctx context.Context) (Sweep, error) {
	return o.sweep(ctx, func(Sweep) bool { return true })
}

// Refresh sweeps if the last one ended longer ago than age.
func (o *Observer) Refresh(ctx context.Context, age func(Sweep) time.Duration) error {
	_, err := o.sweep(ctx, func(last Sweep) bool { return last.At == 0 || task.Now()-last.At >= age(last) })
	return err
}

// sweep looks at the whole node if that is still wanted when it is its turn.
func (o *Observer) sweep(ctx context.Context, wanted func(Sweep) bool) (Sweep, error) {
	select {
	case o.turn <- struct{}{}:
	case <-ctx.Done():
		return Sweep{}, ctx.Err()
	}
	defer func() { <-o.turn }()
	last := o.Last()
	if !wanted(last) {
		return last, nil
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := task.ThreadTime()
	s, err := o.opts.Source.Snapshot(ctx)
	if err != nil {
		return Sweep{}, err
	}
	o.charge(ctx, s)
	o.locateAll(ctx, s)
	limits := o.limits(s)

	o.mu.Lock()
	defer o.mu.Unlock()
	o.tracker.Apply(s)
	o.changes++
	if last.At == 0 {
		o.start = s.Ended + time.Millisecond
	}
	o.gather(limits, s.Tasks, s.Ended)
	o.places.turn(s.Ended)
	took := s.Ended - s.Began
	o.last = Sweep{
		Source: s.Source, Began: s.Began, At: s.Ended, Before: last.At, Took: took,
		Cost:  min(task.Now()-s.Began, task.ThreadTime()-began+s.Helped),
		Tasks: s.Tasks, Zombies: s.Zombies(), Parents: len(s.Parents),
	}
	o.opts.Swept(o.last)
	return o.last, nil
}

// charge lets zombies that are held by a tracer count against it, if it is in the
// workload of their parent: then it is the tracer who does not wait. Others count
// against nobody: somebody may be looking at them.
func (o *Observer) charge(ctx context.Context, s *task.Snapshot) {
	for id, c := range s.Parents {
		if len(c.Held) == 0 {
			continue
		}
		tracer := o.workload(ctx, id, c.Facts)
		same := map[task.ID]bool{}
		for _, z := range c.Held {
			ok, asked := same[z.Of]
			if !asked {
				var facts *task.Facts
				if of := s.Parents[z.Of]; of != nil {
					facts = of.Facts
				}
				ok = tracer != "" && o.workload(ctx, z.Of, facts) == tracer
				same[z.Of] = ok
			}
			if ok {
				c.Reapable = append(c.Reapable, z.Zombie)
			}
		}
		slices.SortFunc(c.Reapable, task.Zombie.Compare)
		c.Held = nil
	}
}

// In one sweep so many places are read anew, and so long is taken for it; the others
// are nowhere until the next one.
const (
	newPlaces     = 1024
	placePatience = 200 * time.Millisecond
)

// locateAll finds out where the parents of a snapshot run.
func (o *Observer) locateAll(ctx context.Context, s *task.Snapshot) {
	var unknown []*task.Children
	o.mu.Lock()
	for id, c := range s.Parents {
		if o.places.find(id, c.Facts, s.Ended) == nil {
			unknown = append(unknown, c)
		}
	}
	o.mu.Unlock()
	slices.SortFunc(unknown, func(a, b *task.Children) int { return b.Total() - a.Total() })
	end := task.Now() + placePatience
	for i, c := range unknown {
		if i == newPlaces || task.Now() > end || ctx.Err() != nil {
			return
		}
		_, _ = o.locate(ctx, c.Parent, c.Facts) // found by many at once where they share one; else nowhere
	}
}

// limits are the limits on pids around the parents of a snapshot whose source does not
// tell them, by the path of their cgroup.
func (o *Observer) limits(s *task.Snapshot) map[string][]task.PidsLimit {
	found := map[string][]task.PidsLimit{}
	if o.Config().Pressure == 0 {
		return found
	}
	for id, c := range s.Parents {
		if c.Facts != nil {
			continue
		}
		o.mu.Lock()
		p := o.places.find(id, nil, s.Ended)
		o.mu.Unlock()
		if p == nil {
			continue
		}
		if _, ok := found[p.pids]; !ok {
			found[p.pids] = o.opts.Proc.PidsLimits(p.pids)
		}
	}
	return found
}

// Holders says how many of these zombies, whose parent is dead, are still zombies under
// which parent. Fifty ladders that end at once need one snapshot and not fifty: one that
// began while this call waited for its turn is as good as its own.
func (o *Observer) Holders(ctx context.Context, zombies []task.Zombie) (map[task.ID]int, error) {
	asked := task.Now()
	if _, err := o.sweep(ctx, func(last Sweep) bool { return last.Began <= asked }); err != nil {
		return nil, err
	}
	return o.HeldBy(zombies), nil
}

// Changes counts what may have changed what the observer knows.
func (o *Observer) Changes() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changes
}

// Known is what the observer knows of parents and their zombies, for
// [Observer.Restore] of another one: of each parent the most that have waited longest.
func (o *Observer) Known(most int) map[task.ID][]task.Zombie {
	o.mu.Lock()
	defer o.mu.Unlock()
	known := make(map[task.ID][]task.Zombie, o.tracker.Len())
	for p := range o.tracker.Parents() {
		zombies := p.Zombies()
		if len(zombies) > most {
			zombies = slices.Clone(zombies)
			slices.SortFunc(zombies, func(a, b task.Zombie) int { return int(a.Since() - b.Since()) })
			zombies = zombies[:most]
		}
		if len(zombies) > 0 {
			known[p.ID] = zombies
		}
	}
	return known
}

// Restore gives an observer that has not looked yet what another one knew.
func (o *Observer) Restore(known map[task.ID][]task.Zombie) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tracker.Restore(known)
}
