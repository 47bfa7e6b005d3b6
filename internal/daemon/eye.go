package daemon

import (
	"cmp"
	"context"
	"errors"
	"path"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kzr/internal/config"
	"kzr/internal/container"
	"kzr/internal/policy"
	"kzr/internal/procscan"
	"kzr/internal/reaper"
	"kzr/internal/task"
	"kzr/internal/tracker"
)

// Source takes snapshots: probe where eBPF works, procscan everywhere.
type Source interface {
	Snapshot(ctx context.Context) (*task.Snapshot, error)
	SnapshotOf(ctx context.Context, id task.ID) (*task.Snapshot, error)
}

// eye looks: at the whole node for the loop, at one parent for the reaper. It
// holds the one tracker that both see, so that a zombie has the same age
// wherever it is looked at from.
type eye struct {
	source Source
	proc   *procscan.Scanner
	name   func(container.Ref) (task.Container, bool)
	swept  func(last) // called after each sweep, with mu held
	busy   func()     // called now and then by what takes long

	reading chan struct{} // holds a token for each process that is being read

	waiting atomic.Int32 // looks at one parent that are under way or wait for mu

	mu      sync.Mutex // held while a snapshot is taken, so that they apply in order
	tracker tracker.Tracker
	began   time.Duration // when the last snapshot of the whole node began,
	ended   time.Duration // and when it ended
	single  time.Duration // what the last snapshot of one parent took
	last    last
	album   album
	rules
}

// rules is what a reload replaces.
type rules struct {
	config config.Config
	policy *policy.Policy
}

// last is what the last snapshot of the whole node said.
type last struct {
	source task.Source
	at     time.Duration // when it ended
	before time.Duration // when the one before it ended
	took   time.Duration
	// cost is the CPU time of it, which on a node that is overloaded is far less
	// than the time it took: there, of all places, kzr must not look less often.
	// Nor must it because of what clients cost meanwhile, so it is that of threads.
	cost    time.Duration
	tasks   int
	zombies int
}

func (e *eye) set(r rules) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rules = r
}

// sweep looks at the whole node.
func (e *eye) sweep(ctx context.Context) (last, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := task.ThreadTime()
	s, err := e.whole(ctx)
	if err != nil {
		return last{}, err
	}
	took := s.Ended - s.Began
	e.last = last{
		source: s.Source, at: s.Ended, before: e.last.at, took: took, cost: min(took, task.ThreadTime()-began+s.Helped),
		tasks: s.Tasks, zombies: s.Zombies(),
	}
	e.swept(e.last)
	return e.last, nil
}

// whole takes a snapshot of the whole node in. The caller holds mu.
func (e *eye) whole(ctx context.Context) (*task.Snapshot, error) {
	s, err := e.source.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	e.tracker.Apply(s)
	e.began, e.ended = s.Began, s.Ended
	return s, nil
}

// finding is what a look at one parent found.
type finding struct {
	proc     task.Process
	rule     policy.Rule
	reapable int
	oldest   time.Duration
	due      time.Duration // when it meets its rule
	never    bool          // it does not with this many zombies
	met      bool          // it does
	pressed  bool          // a pid limit is nearly reached, and its zombies are why
	verdict  policy.Verdict
	reason   policy.Reason // also of a parent that does not meet its rule: what will spare it
}

// A sight is one look at a process, and at how many pids are left around it.
type sight struct {
	proc     task.Process
	chain    []procscan.PidsLimit // of its cgroup, and those around that
	pictured bool                 // an old one, and without the chain: see album
}

// weigh says what is to be thought of a parent as the tracker knows it, with the
// node as it is. The caller holds mu.
func (e *eye) weigh(s sight, node procscan.Node, now time.Duration) finding {
	f := finding{proc: s.proc, never: true}
	p, ok := e.tracker.Get(s.proc.ID)
	full := false
	if ok && e.config.Pressure > 0 && p.Reapable() >= e.policy.Least().Threshold {
		near := func(current, limit int) bool { return policy.UnderPressure(e.config.Pressure, current, limit, p.Reapable()) }
		full = node.Limit > 0 && near(node.Tasks, node.Limit)
		f.pressed = full || slices.ContainsFunc(s.chain, func(l procscan.PidsLimit) bool { return near(l.Current, l.Limit) })
	}
	f.rule = e.policy.RuleFor(&f.proc, full)
	if f.pressed {
		f.rule.Grace = min(f.rule.Grace, policy.PressureGrace)
	}
	if ok {
		f.reapable = p.Reapable()
		f.oldest = p.Oldest(now)
		due, ok := p.Due(f.rule.Rule)
		f.due, f.never, f.met = due, !ok, ok && due <= now
	}
	f.verdict, f.reason = e.policy.Decide(&f.proc, f.rule)
	if !f.met {
		f.verdict = policy.Watch
	}
	return f
}

// maxReading is how many processes are read at a time. The kernel can make all of
// them wait, for the lock of the cgroups or for memory, and each that waits has a
// thread: of those kzr makes no more, see [Settle].
const maxReading = 3

// read reads who has a pid, when it is its turn.
func (e *eye) read(pid int) (task.Process, error) {
	e.reading <- struct{}{}
	defer func() { <-e.reading }()
	return e.proc.Inspect(pid)
}

// inspect reads who a parent is. A pid that was reused is gone.
func (e *eye) inspect(id task.ID) (task.Process, error) {
	proc, err := e.read(id.PID)
	if err != nil {
		return proc, err
	}
	if proc.ID != id {
		return proc, procscan.ErrGone
	}
	e.place(&proc)
	return proc, nil
}

// see is inspect of a parent with enough zombies to fill something. The caller
// does not hold mu, which those who decide want.
func (e *eye) see(id task.ID) (sight, error) {
	proc, err := e.inspect(id)
	if err != nil {
		return sight{}, err
	}
	e.reading <- struct{}{}
	defer func() { <-e.reading }()
	return sight{proc: proc, chain: e.proc.PidsLimits(proc.PidsCgroup)}, nil
}

// node reads how many pids are left on the node, nothing if that cannot be had or
// makes no difference. The caller holds mu.
func (e *eye) node() procscan.Node {
	if e.config.Pressure == 0 {
		return procscan.Node{}
	}
	n, err := e.proc.Node()
	if err != nil {
		return procscan.Node{}
	}
	return n
}

// place says whose a process is, by its cgroup.
func (e *eye) place(proc *task.Process) {
	ref, ok := container.Parse(proc.Cgroup)
	if !ok {
		proc.Unit = container.Unit(proc.Cgroup)
		own := ""
		if len(proc.NSPID) > 1 && proc.Cgroup != "/" {
			// A container all the same, of a runtime that cannot be recognised: what it
			// runs, others run too.
			own = proc.Cgroup
		}
		proc.Workload = cmp.Or(proc.Unit, own, proc.Exe, proc.Cgroup)
		return
	}
	c, named := e.name(ref)
	proc.Container, proc.Inner, proc.OuterCgroup = &c, ref.Nested(), ref.Outer.Cgroup
	proc.Delegated, proc.NamesUnknown = ref.Delegated, !named && ref.HasNames()
	switch {
	case proc.Delegated:
		proc.Workload = ref.Outer.Cgroup
	case c.Pod != "":
		proc.Workload = path.Join(c.Namespace, c.Pod, c.Name)
	default:
		// Without the pod's name its uid does: a container that restarts has
		// another id each time.
		proc.Workload = cmp.Or(c.PodUID, c.ID)
	}
}

// Look implements [reaper.Judge].
func (e *eye) Look(ctx context.Context, id task.ID) (reaper.Look, error) {
	f, now, err := e.lookAt(ctx, id)
	if errors.Is(err, procscan.ErrGone) {
		return reaper.Look{Reason: policy.IdentityChanged}, nil
	}
	if err != nil {
		return reaper.Look{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	look := reaper.Look{
		Process:     f.proc,
		Met:         f.met,
		Threshold:   f.rule.Threshold,
		Grace:       f.rule.Grace,
		Reapable:    f.reapable,
		Oldest:      f.oldest,
		Rule:        f.rule.Name,
		Pressed:     f.pressed,
		Nudge:       e.config.Nudge,
		TermTimeout: e.config.TermTimeout,
	}
	if f.met {
		look.Reason = f.reason
	}
	if f.pressed {
		look.Nudge, look.TermTimeout = 0, min(look.TermTimeout, pressureTermTimeout)
	}
	if p, ok := e.tracker.Get(id); ok {
		look.Zombies = p.Older(now - f.rule.Grace)
	}
	return look, nil
}

// pressureTermTimeout is the wait after SIGTERM when pids run out.
const pressureTermTimeout = time.Second

// Holders implements [reaper.Judge]. Fifty ladders that end at once need one
// snapshot and not fifty: one that began while this call waited for its turn is
// as good as its own.
func (e *eye) Holders(ctx context.Context, zombies []task.Zombie) (map[task.ID]int, error) {
	asked := task.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.began <= asked {
		if _, err := e.whole(ctx); err != nil {
			return nil, err
		}
	}
	held := map[task.ID]int{}
	for p := range e.tracker.Parents() {
		for _, z := range zombies {
			if _, ok := slices.BinarySearchFunc(p.Zombies(), z, task.Zombie.Compare); ok {
				held[p.ID]++
			}
		}
	}
	return held, nil
}

func (e *eye) lastSweep() last {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last
}

// crowded judges every parent with at least n zombies that it could reap, as of
// the last snapshot. Those that are gone meanwhile, or cannot be looked at, have
// an error instead. Who they are is read without the lock, which ladders want too.
func (e *eye) crowded(n int, now time.Duration) map[task.ID]judgement {
	e.mu.Lock()
	all := map[task.ID]judgement{}
	for p := range e.tracker.Parents() {
		if p.Reapable() >= n {
			all[p.ID] = judgement{}
		}
	}
	e.mu.Unlock()
	seen := make(map[task.ID]sight, len(all))
	for id := range all {
		s, err := e.see(id)
		if err != nil {
			all[id] = judgement{err: err}
		} else {
			seen[id] = s
		}
		e.busy()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	node := e.node()
	for id, s := range seen {
		all[id] = judgement{finding: e.weigh(s, node, now)}
	}
	return all
}

// A judgement is what came of a look at a parent.
type judgement struct {
	finding
	err error
}

// lookAt takes a snapshot of one parent and judges it. It returns the moment
// that the judgement is about.
func (e *eye) lookAt(ctx context.Context, id task.ID) (finding, time.Duration, error) {
	now, err := e.glimpse(ctx, id)
	if err != nil {
		return finding{}, 0, err
	}
	s, err := e.see(id)
	if err != nil {
		return finding{}, now, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.weigh(s, e.node(), now), now, nil
}

// glimpse brings what is known of one parent up to date. Where so many want that
// at once that one look at the whole node is the cheaper way, it serves them all:
// one that began while this call waited for its turn is as good as its own.
func (e *eye) glimpse(ctx context.Context, id task.ID) (time.Duration, error) {
	asked := task.Now()
	e.waiting.Add(1)
	defer e.waiting.Add(-1)
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.began > asked:
		return e.ended, nil
	case time.Duration(e.waiting.Load())*e.single > e.last.took && e.last.at != 0:
		_, err := e.whole(ctx)
		return e.ended, err
	}
	s, err := e.source.SnapshotOf(ctx, id)
	if err != nil {
		return 0, err
	}
	e.single = s.Ended - s.Began
	e.tracker.ApplyTo(id, s)
	return s.Ended, nil
}
