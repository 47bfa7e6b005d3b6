package daemon

import (
	"fmt"
	"time"

	"kzr/internal/advice"
	"kzr/internal/observer"
	"kzr/internal/policy"
	"kzr/internal/report"
	"kzr/internal/task"
)

// say reports an event of a parent, with what was found of it.
func (d *Daemon) say(e report.Event, a *observer.Assessment) {
	proc := a.Process
	e.Time, e.Process = time.Now(), &proc
	e.Zombies, e.Reapable, e.Oldest, e.Rule = a.Zombies, a.Reapable, a.Oldest, a.Rule.Name
	d.opts.Report(e)
}

// because says why a parent is not acted on.
func because(a *observer.Assessment) string {
	if a.Reason == policy.ByRule && a.Rule.Unsure {
		what := "the container's name"
		if a.Process.Exe == "" {
			what = "the executable"
		}
		return "an observe rule may match: " + what + " is not known"
	}
	text := advice.Because(a.Reason)
	if more := observer.Detail(a); more != "" {
		text += " (" + more + ")"
	}
	return text
}

// suspectWorkloads reports workloads that leak though none of their parents is worth a
// line: many parents, each with fewer zombies than the threshold.
func (d *Daemon) suspectWorkloads(now time.Duration) {
	seen := map[string]bool{}
	for _, w := range d.observer.Workloads() {
		if w.Zombies < d.config.Threshold {
			break // the others hold fewer
		}
		if w.Old < d.config.Threshold {
			continue
		}
		seen[w.Name] = true
		s := d.leaks[w.Name]
		if s == nil {
			s = &said{}
			d.leaks[w.Name] = s
		}
		d.mu.Lock()
		largest := d.watched[w.Largest]
		known := largest != nil && (largest.suspected || len(largest.said) > 0)
		if _, acting := d.reaper.Status(w.Largest); acting {
			known = true
		}
		d.mu.Unlock()
		if known || !s.due(w.Zombies, now) {
			continue
		}
		*s = said{now, w.Zombies}
		proc, err := d.observer.Brief(w.Largest)
		if err != nil {
			continue
		}
		proc.Workload = w.Name // which one that is just ending has left already
		d.opts.Report(report.Event{
			Time: time.Now(), Name: report.EventSuspect, Process: &proc,
			Zombies: w.Zombies, Reapable: w.Zombies,
			Message: leaking(w),
		})
	}
	for name, s := range d.leaks {
		if !seen[name] && now-s.at >= sayAgain {
			delete(d.leaks, name)
		}
	}
}

func leaking(w observer.Workload) string {
	if w.Parents == 1 {
		return fmt.Sprintf("workload is leaking: %d zombies pass from parent to parent; the current parent is shown", w.Zombies)
	}
	return fmt.Sprintf("workload is leaking: %d parents hold %d zombies; the largest is shown", w.Parents, w.Zombies)
}

// stayed is the age at which a zombie is worth an event of its own to those who
// watch: by then nearly every parent has reaped.
const stayed = time.Second

// maxTold is how many zombies get such an event in one sweep. Nobody reads more.
const maxTold = 1000

// swept counts a sweep. It is called with the observer's lock held.
func (d *Daemon) swept(s observer.Sweep) {
	d.stats.sweeps.Add(1)
	if d.opts.Meter != nil {
		d.opts.Meter.ObserveSweep(s.Took)
	}
}

// tell tells those who watch of the zombies that have stayed since the sweep before.
func (d *Daemon) tell(s observer.Sweep) {
	if d.opts.Watched == nil || !d.opts.Watched() {
		return
	}
	told := 0
	for _, p := range d.observer.Parents() {
		var proc *task.Process
		for _, z := range p.Zombies() {
			if told == maxTold {
				return
			}
			if s.At-z.Since() < stayed || s.Before-z.Since() >= stayed {
				continue
			}
			if proc == nil {
				x, err := d.observer.Brief(p.ID)
				if err != nil {
					break
				}
				proc = &x
			}
			told++
			d.opts.Report(report.Event{
				Time: time.Now(), Name: report.EventZombie, Process: proc, Child: z,
				Zombies: p.Total(), Reapable: p.Reapable(), Oldest: s.At - z.Since(),
			})
		}
	}
}
