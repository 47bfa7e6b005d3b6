package daemon

import (
	"context"
	"time"

	"kzr/internal/observer"
	"kzr/internal/policy"
	"kzr/internal/reaper"
	"kzr/internal/task"
)

// relief is what is being done about one limit that is nearly reached and filled by
// zombies. Parents are ended in waves, all of one workload, the largest first: first
// one, and as long as that does not do, twice as many each time, but never more than
// it takes to get the zombies under a tenth of the limit. Before each wave the whole
// node is looked at again.
type relief struct {
	active   map[task.ID]bool // parents of the wave that is under way
	wave     int
	workload string
	changed  time.Duration // the end of the last wave: only a later sweep shows what it did
	idle     time.Duration // nobody was found who may be ended: not tried again before
}

const (
	// maxWave bounds a wave: each parent of it has a ladder with a pidfd.
	maxWave = 32
	// maxAssessed is how many parents are looked at in search of one that may be ended,
	// and maxRefused how many of one workload.
	maxAssessed = 4096
	maxRefused  = 256
	// forgetRelapse is after how long a workload that filled the node is one like others.
	forgetRelapse = time.Hour
)

// relapse is when the node was last freed of a workload's zombies.
type relapse struct {
	at    time.Duration // CLOCK_MONOTONIC
	ticks uint64        // the same as start times count it
	again int           // how many of those that were ended had been started after the one before
}

// relieve acts on the limits that are near.
func (d *Daemon) relieve(ctx context.Context) {
	if d.config.Pressure == 0 || ctx.Err() != nil || d.observer.Last().At == 0 {
		return
	}
	pressed := map[uint64]bool{}
	for _, load := range d.observer.Pressed() {
		pressed[load.ID] = true
		r := d.relieving[load.ID]
		if r == nil {
			r = &relief{active: map[task.ID]bool{}}
			d.relieving[load.ID] = r
		}
		switch now := task.Now(); {
		case len(r.active) > 0 || d.opts.Observe || now < r.idle:
		case r.changed != 0 && d.observer.Last().Began <= r.changed:
			d.sweepAt = min(d.sweepAt, max(now, d.rested))
		default:
			r.idle = 0
			if !d.nextWave(ctx, load, r, now) {
				r.idle = now + lookAgain
			}
		}
	}
	for id, r := range d.relieving {
		if !pressed[id] && len(r.active) == 0 {
			delete(d.relieving, id)
		}
	}
}

// urgent says whether looking often may help to free a limit.
func (d *Daemon) urgent() bool {
	for _, r := range d.relieving {
		if r.idle == 0 {
			return true
		}
	}
	return false
}

// nextWave begins to end parents of the workload whose zombies fill a limit. It is false
// if there is nobody who may be ended.
func (d *Daemon) nextWave(ctx context.Context, load observer.Load, r *relief, now time.Duration) bool {
	need := load.Zombies - (load.Limit-1)/10
	size, workload := 1, ""
	assessed, refused, refusing := 0, 0, ""
	for _, c := range d.observer.Candidates(load.ID) {
		if need <= 0 || len(r.active) == size || assessed == maxAssessed || workload != "" && c.Workload != workload {
			break
		}
		if c.Workload != refusing {
			refusing, refused = c.Workload, 0
		}
		if refused == maxRefused {
			continue
		}
		assessed++
		if len(r.active) == 0 && c.Workload == r.workload {
			size = min(2*r.wave, maxWave)
		}
		alone, ok := d.relieveOf(ctx, load, c, r, now)
		if !ok {
			refused++
		} else if workload == "" {
			workload = c.Workload
		}
		if ok || d.config.DryRun && d.rests(c.ID, now) {
			need -= c.Zombies // or would be gone
		}
		if alone {
			break
		}
	}
	if workload == "" {
		return false
	}
	r.wave, r.workload = size, workload
	return true
}

// rests says whether a parent is left alone for now.
func (d *Daemon) rests(id task.ID, now time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.watched[id]
	return w != nil && now < w.until
}

// relieveOf acts on one parent because of a limit. It returns whether it does, and
// whether everything else waits for that: a container's init takes all others along.
func (d *Daemon) relieveOf(ctx context.Context, load observer.Load, c observer.Candidate, r *relief, now time.Duration) (alone, ok bool) {
	id := c.ID
	if _, acting := d.reaper.Status(id); acting {
		d.observer.Choose(id, load.ID, false)
		d.reaper.Hurry(id)
		r.active[id] = true
		return false, true
	}
	if d.rests(id, now) {
		return false, false
	}
	d.observer.Choose(id, load.ID, false)
	a, err := d.observer.Assess(ctx, id)
	if err == nil && a.Verdict == policy.Target && load.ID == 0 && d.relapsed(c.Workload, id) {
		if init, found := d.observer.ContainerInit(ctx, &a.Process); found && init != id {
			d.observer.Release(id)
			id = init
			if _, acting := d.reaper.Status(id); acting || d.rests(id, now) {
				return false, false
			}
			d.observer.Choose(id, load.ID, true)
			a, err = d.observer.Assess(ctx, id)
		}
	}
	if err != nil || a.Verdict != policy.Target {
		d.observer.Release(id)
		if err == nil && a.Met {
			d.consider(ctx, id, a, now, nil) // says why not
		}
		return false, false
	}
	if load.ID == 0 {
		last := d.relapses[c.Workload]
		if last.at != 0 && c.ID.Start > last.ticks {
			last.again++
		}
		d.relapses[c.Workload] = relapse{now, uint64(task.SinceBoot() / (time.Second / task.TicksPerSecond)), last.again}
	}
	r.active[id] = true
	d.consider(ctx, id, a, now, nil)
	d.reaper.Hurry(id)
	return a.Process.ContainerInit(), true
}

// relapsed says whether a parent was started after the node was freed of its workload's
// zombies, for the second time: the workload is back at once, and so it will be again.
func (d *Daemon) relapsed(workload string, id task.ID) bool {
	last, ok := d.relapses[workload]
	return ok && last.again > 0 && id.Start > last.ticks
}

// relieved takes note of a ladder's end.
func (d *Daemon) relieved(out reaper.Outcome, now time.Duration) {
	for _, r := range d.relieving {
		if r.active[out.ID] {
			delete(r.active, out.ID)
			r.changed = now
			d.observer.Release(out.ID)
		}
	}
	for name, last := range d.relapses {
		if now-last.at > forgetRelapse {
			delete(d.relapses, name)
		}
	}
}
