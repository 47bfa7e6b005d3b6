package observer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"strings"
	"time"

	"kzr/internal/container"
	"kzr/internal/procscan"
	"kzr/internal/task"
)

// A place is where a process runs, as far as its cgroup tells.
type place struct {
	cgroup, pids string // paths, see task.Process
	ref          container.Ref
	contained    bool // ref is that of a container
	read         time.Duration
}

// places remembers them: a process that has been placed once is placed again without
// reading /proc. Where the source tells the kernel's own name for the cgroups, all
// processes with the same one share a place; else each has its own, for a while.
type places struct {
	byKey map[task.CgroupKey]*place
	byID  map[task.ID]*place
}

// placeFor is how long a process that only /proc tells of is taken to stay where it
// is. It can move within what its tenant made, and that changes nothing.
const placeFor = time.Minute

func (p *places) find(id task.ID, f *task.Facts, now time.Duration) *place {
	if f != nil && f.Cgroup != (task.CgroupKey{}) {
		return p.byKey[f.Cgroup]
	}
	if found := p.byID[id]; found != nil && now-found.read < placeFor {
		return found
	}
	return nil
}

func (p *places) add(id task.ID, f *task.Facts, found *place) {
	if p.byKey == nil {
		p.byKey, p.byID = map[task.CgroupKey]*place{}, map[task.ID]*place{}
	}
	if f != nil && f.Cgroup != (task.CgroupKey{}) {
		p.byKey[f.Cgroup] = found
		return
	}
	p.byID[id] = found
}

// maxPlaces bounds what is remembered. What is asked for again is read again.
const maxPlaces = 1 << 14

// turn forgets what has not been read for long, once there is much of it.
func (p *places) turn(now time.Duration) {
	if len(p.byID) > maxPlaces {
		maps.DeleteFunc(p.byID, func(_ task.ID, x *place) bool { return now-x.read > placeFor })
	}
	if len(p.byKey) > maxPlaces {
		clear(p.byKey)
	}
}

func placed(l procscan.Links, now time.Duration) *place {
	p := &place{cgroup: l.Cgroup, pids: l.PidsCgroup, read: now}
	p.ref, p.contained = container.Parse(l.Cgroup)
	return p
}

// put says whose a process is that runs in this place; nil is a place that nobody
// knows.
func (o *Observer) put(proc *task.Process, p *place) {
	if p == nil {
		p = &place{}
	}
	proc.Cgroup, proc.PidsCgroup = p.cgroup, p.pids
	user := fmt.Sprintf("user %d", proc.UID)
	if p.contained {
		c, named := o.opts.Name(p.ref)
		proc.Container, proc.Inner, proc.OuterCgroup = &c, p.ref.Nested(), p.ref.Outer.Cgroup
		proc.Delegated, proc.NamesUnknown = p.ref.Delegated, !named && p.ref.HasNames()
		switch {
		case proc.Delegated:
			proc.Workload = p.ref.Outer.Cgroup
		case c.Pod != "":
			proc.Workload = path.Join(c.Namespace, c.Pod, c.Name)
		default:
			// Without the pod's name its uid does: a container that restarts has
			// another id each time.
			proc.Workload = cmp.Or(c.PodUID, c.ID)
		}
		switch {
		case proc.Delegated:
			proc.Owner = cmp.Or(owningUser(p.cgroup), user)
		case c.Namespace != "":
			proc.Owner = "namespace " + c.Namespace
		default:
			proc.Owner = proc.Workload
		}
		return
	}
	proc.Unit = container.Unit(p.cgroup)
	own := ""
	if proc.OuterPIDNS != 0 {
		// A container all the same, of a runtime that cannot be recognised.
		own = unrecognised(p.cgroup, proc.OuterPIDNS)
	}
	proc.Workload = cmp.Or(proc.Unit, own, user)
	proc.Owner = cmp.Or(owningUser(p.cgroup), proc.Workload)
}

// unrecognised names a container that nothing but its pid namespace tells of: by the
// outermost two names of its cgroup, as plain containerd has them, since what follows may
// be made inside. That name is still the same after a restart.
func unrecognised(cgroup string, pidns uint64) string {
	if parts := strings.SplitN(strings.Trim(cgroup, "/"), "/", 3); parts[0] != "" {
		return "/" + strings.Join(parts[:min(2, len(parts))], "/")
	}
	return fmt.Sprintf("pid:[%d]", pidns)
}

// owningUser is whose systemd session or manager a cgroup belongs to, "" if it is
// nobody's: one user's units are one owner.
func owningUser(cgroup string) string {
	for name := range strings.SplitSeq(cgroup, "/") {
		uid, ok := strings.CutPrefix(name, "user-")
		if uid, slice := strings.CutSuffix(uid, ".slice"); ok && slice {
			return "user " + uid
		}
	}
	return ""
}

// locate returns where a process runs, from memory if it is there. One that cannot be
// read in time is nowhere.
func (o *Observer) locate(ctx context.Context, id task.ID, f *task.Facts) (*place, error) {
	now := task.Now()
	o.mu.Lock()
	p := o.places.find(id, f, now)
	o.mu.Unlock()
	if p != nil {
		return p, nil
	}
	l, err := o.opts.Proc.Links(ctx, id)
	if err != nil {
		return nil, err
	}
	p = placed(l, now)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.places.add(id, f, p)
	return p, nil
}

// identify reads who a process is: what the source says of it, its executable, and
// whose it is.
func (o *Observer) identify(ctx context.Context, id task.ID, f *task.Facts) (task.Process, error) {
	if f == nil {
		found, facts, err := o.opts.Source.Facts(ctx, id.PID)
		if err != nil {
			return task.Process{}, err
		}
		if found != id {
			return task.Process{}, task.ErrGone
		}
		f = &facts
	}
	proc := task.Process{ID: id, Facts: *f}
	now := task.Now()
	l, err := o.opts.Proc.Links(ctx, id)
	o.mu.Lock()
	p := o.places.find(id, f, now)
	if err == nil && (p == nil || p.cgroup != l.Cgroup) {
		p = placed(l, now)
		o.places.add(id, f, p)
	}
	o.mu.Unlock()
	switch {
	case errors.Is(err, task.ErrGone):
		return proc, err
	case err != nil:
		// What the kernel has said is certain, and may be enough. What is missing
		// protects nobody who is not on the host's side, and there everybody.
		proc.Unseen = append(proc.Unseen, err.Error())
	default:
		proc.Exe, proc.ExeDeleted, proc.Unseen = l.Exe, l.ExeDeleted, l.Unseen
		if l.Exe == "" && !f.Exiting {
			// One that has begun to exit meanwhile has no executable any more.
			found, facts, err := o.opts.Source.Facts(ctx, id.PID)
			switch {
			case err == nil && found == id:
				proc.Facts = facts
			case err == nil, errors.Is(err, task.ErrGone):
				proc.Exiting = true
			}
		}
	}
	o.put(&proc, p)
	return proc, nil
}

// workload is the name of a process's workload, "" if it cannot be told.
func (o *Observer) workload(ctx context.Context, id task.ID, f *task.Facts) string {
	if f == nil {
		found, facts, err := o.opts.Source.Facts(ctx, id.PID)
		if err != nil || found != id {
			return ""
		}
		f = &facts
	}
	p, err := o.locate(ctx, id, f)
	if err != nil {
		return ""
	}
	proc := task.Process{ID: id, Facts: *f}
	o.put(&proc, p)
	return proc.Workload
}
