package observer

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"sync"
	"time"

	"kzr/internal/config"
	"kzr/internal/policy"
	"kzr/internal/reaper"
	"kzr/internal/task"
	"kzr/internal/tracker"
)

// Assessment is what is to be thought of one parent at one moment.
type Assessment struct {
	At      time.Duration // the moment it is about
	Process task.Process
	Rule    policy.Rule
	// Zombies are all its children in state Z, Reapable those that it could reap, and
	// Adopted and Foreign those of them with that flag.
	Zombies, Reapable, Adopted, Foreign int
	Oldest                              time.Duration // age of the oldest reapable one
	Due                                 time.Duration // when it meets its rule
	Never                               bool          // it does not with so many zombies
	Met                                 bool          // it does
	Pressure                            policy.Pressure
	Verdict                             policy.Verdict
	// Reason is also that of a parent that does not meet its rule: what will spare it.
	Reason policy.Reason
	// Parent is what it was judged by; nil if it has no zombies.
	Parent *tracker.Parent
}

// old are the zombies that the rule counts.
func (a *Assessment) old() []task.Zombie {
	switch {
	case a.Parent == nil:
		return nil
	case a.Pressure != policy.NoPressure:
		return a.Parent.Dead(a.At - policy.PressureGrace)
	}
	return a.Parent.Older(a.At - a.Rule.Grace)
}

// Assess judges a parent by what was last seen of its zombies.
func (o *Observer) Assess(ctx context.Context, id task.ID) (Assessment, error) {
	o.mu.Lock()
	p, _ := o.tracker.Get(id)
	at := o.last.At
	o.mu.Unlock()
	return o.assess(ctx, id, p, max(at, 1))
}

// LookAt looks at one parent and judges it.
func (o *Observer) LookAt(ctx context.Context, id task.ID) (Assessment, error) {
	s, err := o.opts.Source.SnapshotOf(ctx, id)
	if err != nil {
		return Assessment{}, err
	}
	o.charge(ctx, s)
	o.mu.Lock()
	o.tracker.ApplyTo(id, s)
	o.changes++
	p, _ := o.tracker.Get(id)
	o.changed(id, p, s.Ended)
	o.mu.Unlock()
	return o.assess(ctx, id, p, s.Ended)
}

// Facts says who has a pid, and what the kernel tells of that process.
func (o *Observer) Facts(ctx context.Context, pid int) (task.ID, task.Facts, error) {
	return o.opts.Source.Facts(ctx, pid)
}

// Inspect says who has a pid, with what /proc tells besides.
func (o *Observer) Inspect(ctx context.Context, pid int) (task.Process, error) {
	id, facts, err := o.opts.Source.Facts(ctx, pid)
	if err != nil {
		return task.Process{}, err
	}
	return o.identify(ctx, id, &facts)
}

// Brief says who a parent with zombies is, as of the last snapshot of it.
func (o *Observer) Brief(id task.ID) (task.Process, error) {
	o.mu.Lock()
	facts := o.factsOf(id)
	o.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), placePatience)
	defer cancel()
	return o.identify(ctx, id, facts)
}

// Identify says who a parent with zombies is, as of now.
func (o *Observer) Identify(ctx context.Context, p *tracker.Parent) (task.Process, error) {
	return o.identify(ctx, p.ID, p.Facts)
}

// Judge says what is to be thought of a parent, given who it is. Names of containers that
// have come meanwhile count.
func (o *Observer) Judge(ctx context.Context, proc task.Process, p *tracker.Parent) Assessment {
	o.mu.Lock()
	at := o.last.At
	pl := o.places.find(proc.ID, p.Facts, at)
	o.mu.Unlock()
	if pl != nil {
		o.put(&proc, pl)
	}
	return o.judge(ctx, proc, p, at)
}

// Least is the lowest threshold of any rule.
func (o *Observer) Least() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.policy.Least().Threshold
}

// maxAncestors ends the line of a process whose ancestors die and whose pids are
// reused while it is followed.
const maxAncestors = 64

// Line yields the process with a pid and its ancestors, up to the first that cannot be
// seen.
func (o *Observer) Line(ctx context.Context, pid int) iter.Seq2[task.ID, task.Facts] {
	return func(yield func(task.ID, task.Facts) bool) {
		for n := 0; pid > 0 && n < maxAncestors; n++ {
			id, facts, err := o.opts.Source.Facts(ctx, pid)
			if err != nil || !yield(id, facts) {
				return
			}
			pid = facts.PPID
		}
	}
}

// ContainerInit finds the init of the container that a process is in, among it and its
// ancestors: whatever is orphaned inside comes to the init in the end.
func (o *Observer) ContainerInit(ctx context.Context, proc *task.Process) (task.ID, bool) {
	for id, facts := range o.Line(ctx, proc.PID) {
		switch {
		case facts.ContainerInit():
			return id, true
		case facts.OuterPIDNS == 0:
			return task.ID{}, false
		}
	}
	return task.ID{}, false
}

func (o *Observer) assess(ctx context.Context, id task.ID, p *tracker.Parent, now time.Duration) (Assessment, error) {
	var facts *task.Facts
	if p != nil {
		facts = p.Facts
	}
	proc, err := o.identify(ctx, id, facts)
	if err != nil {
		return Assessment{}, err
	}
	return o.judge(ctx, proc, p, now), nil
}

// judge says what is to be thought of a process with these zombies.
func (o *Observer) judge(ctx context.Context, proc task.Process, p *tracker.Parent, now time.Duration) Assessment {
	outside := false
	if proc.Tracer.PID != 0 {
		outside = proc.Workload == "" || o.workload(ctx, proc.Tracer, nil) != proc.Workload
	}
	pressure, init := o.pressureOn(proc.ID)
	o.mu.Lock()
	rules := o.policy
	o.mu.Unlock()

	a := Assessment{At: now, Process: proc, Never: true, Pressure: pressure, Parent: p}
	a.Rule = rules.RuleFor(&proc, pressure == policy.NodePressure)
	if pressure != policy.NoPressure {
		a.Rule.Threshold, a.Rule.Grace = 1, min(a.Rule.Grace, policy.PressureGrace)
	}
	foreign := false
	if p != nil {
		a.Zombies, a.Reapable, a.Oldest = p.Total(), p.Reapable(), p.Oldest(now)
		a.Adopted, a.Foreign = p.Count(task.Adopted), p.Count(task.Foreign)
		if pressure != policy.NoPressure {
			a.Met = len(a.old()) > 0
			a.Never, a.Due = a.Reapable == 0, now
			if !a.Met {
				a.Due = now + policy.PressureGrace
			}
		} else {
			due, ok := p.Due(a.Rule.Rule)
			a.Due, a.Never, a.Met = due, !ok, ok && due <= now
			foreign = a.Foreign > 0 && ownOld(a.old()) < a.Rule.Threshold
		}
	}
	if init {
		a.Met, a.Never, a.Due = true, false, now
	}
	a.Verdict, a.Reason = rules.Decide(&a.Process, a.Rule, policy.Circumstances{Pressure: pressure, Foreign: foreign, Outside: outside})
	if !a.Met {
		a.Verdict = policy.Watch
	}
	return a
}

// ownOld counts those that nobody else put there.
func ownOld(zombies []task.Zombie) (n int) {
	for _, z := range zombies {
		if !z.Has(task.Foreign) {
			n++
		}
	}
	return n
}

// Result is an assessment, or why there is none.
type Result struct {
	Assessment
	Err error
}

const (
	// perWorkload is how many parents of one workload are assessed after a sweep, those
	// with the most zombies: only one of them is acted on at a time, and whoever makes
	// thousands makes nobody else wait.
	perWorkload = 64
	// assessors is how many are assessed at a time: one that has to be waited for holds
	// up a part of the others at most.
	assessors = 4
)

// Crowded assesses the parents with at least n zombies that they could reap, as of the
// last sweep; skipped are those that it did not come to.
func (o *Observer) Crowded(ctx context.Context, n int) (results map[task.ID]Result, skipped map[task.ID]bool) {
	results, skipped = map[task.ID]Result{}, map[task.ID]bool{}
	o.mu.Lock()
	at := o.last.At
	taken := map[string]int{}
	var list []*tracker.Parent
	for _, m := range o.members { // the largest first
		p, ok := o.tracker.Get(m.id)
		switch {
		case !ok || p.Reapable() < n:
		case taken[m.workload] == perWorkload:
			skipped[m.id] = true
		default:
			taken[m.workload]++
			list = append(list, p)
		}
	}
	o.mu.Unlock()

	var mu sync.Mutex
	var work sync.WaitGroup
	next := make(chan *tracker.Parent)
	for range min(assessors, len(list)) {
		work.Go(func() {
			for p := range next {
				a, err := o.assess(ctx, p.ID, p, at)
				mu.Lock()
				results[p.ID] = Result{a, err}
				mu.Unlock()
			}
		})
	}
	for _, p := range list {
		next <- p
		o.opts.Progress()
	}
	close(next)
	work.Wait()
	return results, skipped
}

// Look implements [reaper.Judge].
func (o *Observer) Look(ctx context.Context, id task.ID) (reaper.Look, error) {
	a, err := o.LookAt(ctx, id)
	if errors.Is(err, task.ErrGone) {
		return reaper.Look{Reason: policy.IdentityChanged}, nil
	}
	if err != nil {
		return reaper.Look{}, err
	}
	means := o.Means(&a)
	look := reaper.Look{
		Process: a.Process, Met: a.Met, Threshold: a.Rule.Threshold, Grace: a.Rule.Grace,
		Zombies: a.Zombies, Reapable: a.Reapable, Adopted: a.Adopted, Oldest: a.Oldest,
		Rule: a.Rule.Name, Old: a.old(), Pressure: a.Pressure,
		Nudge: means.Nudge, TermTimeout: means.TermTimeout, Reap: means.Reap,
	}
	if a.Met {
		look.Reason, look.Deferred = a.Reason, Detail(&a)
	}
	return look, nil
}

// Means are what the steps of a parent's ladder depend on, as far as the observer knows.
func (o *Observer) Means(a *Assessment) policy.Means {
	m := policy.Means{
		Nudge: o.Config().Nudge, TermTimeout: o.termTimeout(a), Pressure: a.Pressure != policy.NoPressure,
		Reap: cmp.Or(a.Rule.Reap, config.ReapOff), Reapable: a.Reapable, Adopted: a.Adopted,
	}
	if m.Pressure {
		m.Nudge = 0
	}
	return m
}

// pressureTermTimeout is the wait after SIGTERM when pids run out.
const pressureTermTimeout = time.Second

// termTimeout is how long a parent has after SIGTERM: what the configuration says, or
// its pod, if that is longer and no limit is near.
func (o *Observer) termTimeout(a *Assessment) time.Duration {
	d := a.Rule.TermTimeout
	if a.Pressure != policy.NoPressure {
		return min(d, pressureTermTimeout)
	}
	if c := a.Process.Container; c != nil && d > 0 {
		d = max(d, c.GracePeriod)
	}
	return d
}

// Parents are all parents with zombies as of now, the largest first.
func (o *Observer) Parents() []*tracker.Parent {
	o.mu.Lock()
	list := make([]*tracker.Parent, 0, o.tracker.Len())
	for p := range o.tracker.Parents() {
		list = append(list, p)
	}
	o.mu.Unlock()
	slices.SortFunc(list, func(a, b *tracker.Parent) int {
		return cmp.Or(cmp.Compare(b.Reapable(), a.Reapable()), cmp.Compare(b.Total(), a.Total()), cmp.Compare(a.PID, b.PID))
	})
	return list
}
