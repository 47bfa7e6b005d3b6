// Package nodeview puts together what people and programs are shown of the node: what
// the observer knows and what the loop has decided flow in, the documents of package
// report flow out.
package nodeview

import (
	"context"
	"errors"
	"math"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/advice"
	"kzr/internal/config"
	"kzr/internal/container"
	"kzr/internal/daemon"
	"kzr/internal/observer"
	"kzr/internal/policy"
	"kzr/internal/procscan"
	"kzr/internal/report"
	"kzr/internal/task"
	"kzr/internal/tracker"
)

// View implements [report.View]. Its methods are called one at a time.
type View struct {
	Daemon *daemon.Daemon
	Proc   *procscan.Scanner
	// Name is the observer's: what is known of a container.
	Name func(container.Ref) (task.Container, bool)
	// Inside says why it cannot be reaped inside a process now, "" if it can; nil if
	// only a daemon could tell.
	Inside func(ctx context.Context, proc *task.Process) (refusal string)
	// Watching is since when, in clock ticks since boot, eBPF has seen who was orphaned;
	// nil, or 0, is never.
	Watching func() uint64
	// Observe says that there is no ladder.
	Observe bool

	album album
}

// fresh is how old a snapshot may be that people are shown, and rest how many times its
// cost: looking must not be what a node in trouble is busy with.
const (
	fresh = time.Second
	rest  = 19
)

func freshEnough(s observer.Sweep) time.Duration { return max(fresh, rest*s.Cost) }

// Status implements [report.View].
func (v *View) Status() report.Status {
	o := v.Daemon.Observer()
	c, s, n := o.Config(), o.Last(), v.Daemon.Counts()
	st := report.Status{
		Mode: string(c.Mode), Source: s.Source, Host: report.Host(), Kernel: release(),
		Scope: string(c.Scope), DryRun: c.DryRun, Threshold: c.Threshold, Grace: report.Seconds(c.Grace),
		Nudge: report.Seconds(c.Nudge), TermTimeout: report.Seconds(c.TermTimeout),
		SweepInterval: report.Seconds(c.SweepInterval), Pressure: c.Pressure,
		Tasks: s.Tasks, Zombies: s.Zombies, Parents: s.Parents,
		Suspects: n.Suspects, Targets: n.Targets,
		Kills: n.Kills, Lost: n.Losses, Sweeps: n.Sweeps, SweepSeconds: report.Seconds(s.Took),
		Problems: []string{}, Workloads: v.workloads(),
	}
	if s.At != 0 {
		st.LastSweep = time.Now().Add(s.At - task.Now())
	}
	if n.SweepBy != 0 {
		st.NextSweep = time.Now().Add(n.SweepBy - task.Now())
	}
	if node, err := v.Proc.Node(); err == nil {
		st.Tasks, st.TasksLimit = node.Tasks, node.Limit
		st.UnderPressure = policy.Near(c.Pressure, node.Tasks, node.Limit)
	}
	return st
}

func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

func (v *View) workloads() []report.Workload {
	list := []report.Workload{}
	for _, w := range v.Daemon.Observer().Workloads() {
		out := report.Workload{Name: report.Sanitize(w.Name), Zombies: w.Zombies, Parents: w.Parents}
		if w.RateKnown {
			out.RatePerHour = new(math.Round(w.RatePerHour))
		}
		if w.Pids.Limit > 0 {
			out.Pids, out.PidsLimit = new(w.Pids.Current), new(w.Pids.Limit)
			if w.RateKnown && w.RatePerHour > 0 {
				hours := float64(max(0, w.Pids.Limit-w.Pids.Current)) / w.RatePerHour
				out.FullInSeconds = new(math.Round(hours * 3600))
			}
		}
		list = append(list, out)
	}
	return list
}

// maxDocument bounds what processes chose in a document, in bytes: the names and
// arguments of thousands could have 4 KiB each. JSON may take twice that.
const maxDocument = 4 << 20

// Document implements [report.View].
func (v *View) Document(ctx context.Context) (report.Document, error) {
	o := v.Daemon.Observer()
	if err := o.Refresh(ctx, freshEnough); err != nil {
		return report.Document{}, err
	}
	doc := report.Document{Host: report.Host(), Parents: []report.Parent{}, Workloads: v.workloads()}
	if h, err := v.Proc.Host(); err == nil {
		doc.Limitations = h.Limitations()
	}
	lines, cancel := context.WithTimeout(ctx, linePatience)
	defer cancel()
	parents := o.Parents()
	least, size := o.Least(), 0
	var failed error
	for i, p := range parents {
		if i == report.MaxParents || size > maxDocument {
			doc.Omitted += len(parents) - i
			break
		}
		if ctx.Err() != nil {
			break
		}
		pic, err := v.picture(ctx, p, least)
		switch {
		case errors.Is(err, task.ErrGone):
			continue
		case err != nil:
			failed = err
			doc.Omitted++
			continue
		}
		a := o.Judge(ctx, pic.Process, p)
		a.Process.Cmdline = v.album.cmdline(lines, pic, v.Proc.Cmdline)
		until := v.Daemon.Overlay(&a)
		parent := report.NewParent(&a.Process, nil)
		v.fill(&parent, &a, until)
		size += len(parent.Exe) + len(parent.Cgroup)
		for _, arg := range parent.Cmdline {
			size += len(arg)
		}
		doc.Parents = append(doc.Parents, parent)
	}
	if ctx.Err() != nil {
		return report.Document{}, ctx.Err()
	}
	v.album.turn()
	if len(doc.Parents) == 0 && failed != nil { // nothing can be read, which is not to say that nothing is there
		return report.Document{}, failed
	}
	s := o.Last()
	doc.Time, doc.Source, doc.Tasks, doc.Zombies = time.Now(), s.Source, s.Tasks, s.Zombies
	doc.Sort()
	return doc, nil
}

// picture says who a parent is. One with enough zombies for some rule is read anew; for
// the others an old picture will do.
func (v *View) picture(ctx context.Context, p *tracker.Parent, least int) (*picture, error) {
	if p.Reapable() < least {
		if pic := v.album.find(p.ID); pic != nil {
			if p.Facts != nil {
				pic.Facts = *p.Facts
			}
			return pic, nil
		}
	}
	proc, err := v.Daemon.Observer().Identify(ctx, p)
	if err != nil {
		return nil, err
	}
	return v.album.add(&proc), nil
}

func (v *View) fill(p *report.Parent, a *observer.Assessment, until time.Time) {
	p.Zombies, p.Reapable, p.Adopted = a.Zombies, a.Reapable, a.Adopted
	if a.Reapable > 0 && !(v.Observe && a.Oldest < fresh) { // who has just begun to look knows no age
		p.OldestSeconds = new(report.Seconds(a.Oldest))
	}
	if rate, ok := v.Daemon.Observer().Rate(a); ok {
		p.RatePerHour = new(math.Round(rate))
	}
	p.Verdict, p.Reason, p.Rule = string(a.Verdict), string(a.Reason), report.Sanitize(a.Rule.Name)
	if !until.IsZero() {
		p.Until = &until
	}
	if !a.Never {
		p.DeadlineSeconds = new(report.Seconds(max(0, a.Due-a.At)))
	}
}

func children(p *tracker.Parent) *task.Children {
	if p == nil {
		return nil
	}
	return &task.Children{Parent: p.ID, Reapable: p.Zombies(), Traced: p.Traced, Tracer: p.Tracer, Leaders: p.Leaders}
}

// NeedsEBPF says why nothing is reaped inside parents with mode proc.
const NeedsEBPF = "it needs eBPF, and mode is proc"

// relatives is how many live children and others of its kin are shown.
const relatives = 20

// Parent implements [report.View].
func (v *View) Parent(ctx context.Context, pid int) (report.Detail, error) {
	o := v.Daemon.Observer()
	id, _, err := o.Facts(ctx, pid)
	var a observer.Assessment
	if err == nil {
		a, err = o.LookAt(ctx, id)
	}
	if errors.Is(err, task.ErrGone) {
		return report.Detail{}, report.ErrNotFound
	}
	if err != nil {
		return report.Detail{}, err
	}
	until := v.Daemon.Overlay(&a)
	proc := &a.Process
	zombies := children(a.Parent)
	proc.Cmdline = v.Proc.Cmdline(ctx, id)
	out := report.NewDetail(proc, zombies, a.At)
	v.fill(&out.Parent, &a, until)
	out.Rule, out.RuleUnsure = out.Parent.Rule, a.Rule.Unsure
	out.Threshold, out.Grace = a.Rule.Threshold, report.Seconds(a.Rule.Grace)
	out.WChan = report.Sanitize(v.Proc.Wchan(id))
	out.LeaderDead = proc.State != 'Z' && v.Proc.LeaderDead(id)
	v.addPids(&out, proc)
	v.addRelatives(ctx, &out, proc, zombies)
	v.addOrigins(&out, proc, zombies)
	v.addToll(ctx, &out, proc)
	for i := range out.Sample {
		z := &out.Sample[i]
		z.Comm = report.Sanitize(v.Proc.Comm(task.ID{PID: z.PID, Start: z.StartTime}))
	}
	for _, w := range v.workloads() {
		if w.Name == out.Workload {
			out.WorkloadTotal = &w
		}
	}
	out.HeldUp = report.Sanitize(v.Daemon.HeldUp(id))
	if l, ok := v.Daemon.LimitUsed(id); ok {
		out.LimitsUsed = append(out.LimitsUsed, l)
	}
	if v.Inside != nil {
		refusal := v.Inside(ctx, proc)
		out.ReapInside = &report.ReapInside{Possible: refusal == "", Refusal: refusal, Times: v.Daemon.ReapedInside(id)}
	}
	c := o.Config()
	means := o.Means(&a)
	switch {
	case out.ReapInside != nil:
		means.Refusal = out.ReapInside.Refusal
	case c.Mode == config.ModeProc:
		means.Refusal = NeedsEBPF
	default: // a daemon would know whether it can, and which of them are adopted
		means.Adopted = max(means.Adopted, 1)
	}
	out.Reap = string(means.Reap)
	if v.Watching != nil {
		since := v.Watching()
		out.AdoptedKnown = since > 0 && zombies != nil &&
			!slices.ContainsFunc(zombies.Reapable, func(z task.Zombie) bool { return z.Start() <= since })
	}
	out.Ladder, out.Pressure = advice.Steps(policy.Ladder(&proc.Facts, means)), string(a.Pressure)
	advice.Complete(&out, advice.Settings{DryRun: c.DryRun, Observe: v.Observe})
	return out, nil
}

// addPids adds the limit on pids that is nearest to being reached.
func (v *View) addPids(out *report.Detail, proc *task.Process) {
	if l, ok := task.Tightest(proc.Pids); ok {
		out.Pids = &report.PidsLimit{Cgroup: report.Sanitize(proc.PidsCgroup), Current: l.Current, Limit: l.Limit}
	}
}

// addRelatives adds those around it: its ancestors, its live children, its tracer, the
// child that it waits for.
func (v *View) addRelatives(ctx context.Context, out *report.Detail, proc *task.Process, zombies *task.Children) {
	live, total := v.Proc.LiveChildren(proc.ID, zombies, relatives)
	for _, c := range live {
		out.Children = append(out.Children, report.NewRelative(c.PID, c.Comm, c.State))
	}
	out.LiveChildren = total
	o := v.Daemon.Observer()
	for id, a := range o.Line(ctx, proc.PPID) {
		out.Ancestors = append(out.Ancestors, report.NewRelative(id.PID, a.Comm, a.State))
	}
	if proc.Tracer.PID != 0 {
		if _, t, err := o.Facts(ctx, proc.Tracer.PID); err == nil {
			out.TracerIsChild = t.PPID == proc.PID
		}
	}
	if proc.Waits.PID != 0 {
		if id, c, err := o.Facts(ctx, proc.Waits.PID); err == nil {
			out.WaitsFor = new(report.NewRelative(id.PID, c.Comm, c.State))
		}
	}
}

// sampled is how many zombies are asked which container they came from.
const sampled = 256

// addOrigins says which containers its zombies came from, where that is not its own: a
// shim's are those of what it started inside.
func (v *View) addOrigins(out *report.Detail, proc *task.Process, zombies *task.Children) {
	if zombies == nil {
		return
	}
	count := map[report.Origin]int{}
	for _, z := range zombies.Reapable[:min(len(zombies.Reapable), sampled)] {
		ref, ok := container.Parse(v.Proc.ZombieCgroup(task.ID{PID: z.PID(), Start: z.Start()}))
		if !ok || ref.Outer.Cgroup == proc.OuterCgroup {
			continue
		}
		c, _ := v.Name(ref)
		count[report.Origin{
			Namespace: report.Sanitize(c.Namespace), Pod: report.Sanitize(c.Pod),
			Container: report.Sanitize(c.Name), ContainerID: report.Sanitize(c.ID),
		}]++
	}
	for origin, n := range count {
		origin.Count = n
		out.ZombieOrigins = append(out.ZombieOrigins, origin)
	}
	slices.SortFunc(out.ZombieOrigins, func(a, b report.Origin) int {
		if a.Count != b.Count {
			return b.Count - a.Count
		}
		if path.Join(a.Namespace, a.Pod, a.ContainerID) < path.Join(b.Namespace, b.Pod, b.ContainerID) {
			return -1
		}
		return 1
	})
}
