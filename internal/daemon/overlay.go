package daemon

import (
	"time"

	"kzr/internal/observer"
	"kzr/internal/policy"
	"kzr/internal/report"
	"kzr/internal/task"
)

// Counts are totals since the start, and what is going on now.
type Counts struct {
	Sweeps, Kills, Losses uint64
	SweepBy               time.Duration // when the next sweep is due at the latest; 0 before the first
	Suspects, Targets     int
}

// Counts sums up.
func (d *Daemon) Counts() Counts {
	c := Counts{
		Sweeps: d.stats.sweeps.Load(), Kills: d.stats.kills.Load(), Losses: d.stats.losses.Load(),
		SweepBy: time.Duration(d.stats.sweepBy.Load()),
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, w := range d.watched {
		_, acting := d.reaper.Status(id)
		switch {
		case acting, w.found.Met && w.found.Verdict == policy.Target:
			c.Targets++
		case !w.found.Met:
			c.Suspects++
		}
	}
	return c
}

// Overlay puts what the loop and the reaper know over what a look at a parent says, and
// returns until when its reason holds, zero if nobody knows.
func (d *Daemon) Overlay(a *observer.Assessment) (until time.Time) {
	id := a.Process.ID
	if s, acting := d.reaper.Status(id); acting {
		a.Verdict, a.Reason = policy.Acting, s.Reason
		return s.Until
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.watched[id]
	if w == nil {
		return time.Time{}
	}
	now := task.Now()
	w.deferral.postpone(a, now)
	if limited := w.limited.Until; limited.After(time.Now()) && a.Reapable > 0 {
		a.Verdict, a.Reason = policy.Spared, policy.Backoff
		return limited
	}
	if a.Verdict == policy.Target && now < w.until {
		a.Verdict, a.Reason = policy.Spared, policy.Backoff
		if until = w.limited.Until; until.Before(time.Now()) {
			until = time.Now().Add(w.until - now)
		}
	}
	return until
}

// HeldUp says in words what a parent's ladder waits for; "" if nothing holds it up, or
// there is none.
func (d *Daemon) HeldUp(id task.ID) string {
	s, _ := d.reaper.Status(id)
	return s.Message
}

// LimitUsed is the limit on kills that keeps a parent from being ended, if one does.
func (d *Daemon) LimitUsed(id task.ID) (report.LimitUsed, bool) {
	if s, acting := d.reaper.Status(id); acting {
		return report.LimitUsed{Name: s.Limit.Name, Since: s.Limit.Since, Until: s.Until}, s.Limit.Name != "" && !s.Until.IsZero()
	}
	d.mu.Lock()
	w := d.watched[id]
	d.mu.Unlock()
	if w == nil || w.limited.Until.Before(time.Now()) {
		return report.LimitUsed{}, false
	}
	return w.limited, true
}

// ReapedInside is how often kzr has reaped inside a parent.
func (d *Daemon) ReapedInside(id task.ID) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.inside[id]
}
