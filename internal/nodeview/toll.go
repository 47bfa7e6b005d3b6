package nodeview

import (
	"cmp"
	"context"
	"os"
	"slices"
	"strconv"
	"time"

	"kzr/internal/report"
	"kzr/internal/task"
)

// walkPatience bounds the walk over all processes that an explanation may need.
const walkPatience = 3 * time.Second

// addToll says what a SIGKILL would take along, and what holds up the end of an init.
func (v *View) addToll(ctx context.Context, out *report.Detail, proc *task.Process) {
	toll := &report.KillTakes{Sessions: []report.Relative{}, Containers: []string{}}
	out.KillTakes = toll
	if !proc.NamespaceInit() || proc.PIDNS == 0 {
		toll.Orphans = out.LiveChildren
		return
	}
	ctx, cancel := context.WithTimeout(ctx, walkPatience)
	defer cancel()
	all := v.everybody(ctx)
	if ctx.Err() != nil { // half of it is not the truth
		out.KillTakes = nil
		return
	}
	// Nested namespaces end with it too; who is in one descends from somebody who is
	// known to be inside.
	inside := func(p *task.Process) bool { return p.PIDNS == proc.PIDNS }
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if parent := all[p.PPID]; !inside(p) && len(p.NSPID) > len(proc.NSPID) && parent != nil && inside(parent) {
				p.PIDNS, grown = proc.PIDNS, true
			}
		}
	}
	blockers := make(map[int]*report.Blocker)
	cgroups := make(map[task.CgroupKey]int)
	for _, p := range all {
		if p.PID == proc.PID || !inside(p) {
			continue
		}
		parent := all[p.PPID]
		if p.State == 'Z' && p.Threads <= 1 {
			waiter, traces := parent, false
			if p.Tracer.PID != 0 {
				waiter, traces = all[p.Tracer.PID], true
			}
			if waiter == nil || inside(waiter) {
				continue
			}
			b := blockers[waiter.PID]
			if b == nil {
				b = &report.Blocker{PID: waiter.PID, Comm: report.Sanitize(waiter.Comm), Trace: traces}
				blockers[waiter.PID] = b
			}
			b.Dead++
			continue
		}
		toll.Processes++
		if p.Facts.Cgroup != proc.Facts.Cgroup {
			cgroups[p.Facts.Cgroup] = p.PID
		}
		if parent == nil || !inside(parent) {
			toll.Sessions = append(toll.Sessions, report.NewRelative(p.PID, p.Comm, p.State))
		}
	}
	slices.SortFunc(toll.Sessions, func(a, b report.Relative) int { return cmp.Compare(a.PID, b.PID) })
	toll.Sessions = toll.Sessions[:min(len(toll.Sessions), relatives)]
	for _, pid := range cgroups {
		p, err := v.Daemon.Observer().Inspect(ctx, pid)
		if err != nil || p.Container == nil || p.Container.Name == "" || proc.Container != nil && p.Container.ID == proc.Container.ID {
			continue
		}
		if name := report.Sanitize(p.Container.Name); !slices.Contains(toll.Containers, name) {
			toll.Containers = append(toll.Containers, name)
		}
	}
	slices.Sort(toll.Containers)
	if !proc.Exiting {
		return // whoever has dead ones there may yet wait for them
	}
	for _, b := range blockers {
		out.BlockedBy = append(out.BlockedBy, *b)
	}
	slices.SortFunc(out.BlockedBy, func(a, b report.Blocker) int { return cmp.Or(cmp.Compare(b.Dead, a.Dead), cmp.Compare(a.PID, b.PID)) })
}

// everybody is all processes by pid, as far as they can be seen in time.
func (v *View) everybody(ctx context.Context) map[int]*task.Process {
	all := make(map[int]*task.Process)
	dir, err := os.Open("/proc")
	if err != nil {
		return all
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return all
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if id, facts, err := v.Daemon.Observer().Facts(ctx, pid); err == nil {
			all[pid] = &task.Process{ID: id, Facts: facts}
		}
	}
	return all
}
