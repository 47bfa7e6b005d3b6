package daemon

import (
	"context"
	"errors"
	"os"
	"time"

	"kzr/internal/policy"
	"kzr/internal/procscan"
	"kzr/internal/report"
	"kzr/internal/task"
	"kzr/internal/tracker"
)

// fresh is how old a snapshot may be that people are shown.
const fresh = time.Second

// Document implements [report.View].
func (d *Daemon) Document(ctx context.Context) (report.Document, error) {
	if err := d.eye.refresh(ctx); err != nil {
		return report.Document{}, err
	}
	e := d.eye
	e.mu.Lock()
	defer e.mu.Unlock()
	now := task.Now()
	host, _ := os.Hostname() // an empty name hides nothing
	doc := report.Document{
		Time: time.Now(), Host: host, Source: e.last.source,
		Tasks: e.last.tasks, Zombies: e.last.zombies, Parents: []report.Parent{},
	}
	for p := range e.tracker.Parents() {
		f, err := e.judge(p.ID, now)
		switch {
		case errors.Is(err, procscan.ErrGone):
			continue
		case err != nil:
			return report.Document{}, err
		}
		d.shown(&f, now)
		parent := report.NewParent(&f.proc, children(p))
		fill(&parent, &f, now)
		doc.Parents = append(doc.Parents, parent)
	}
	doc.Sort()
	return doc, nil
}

// refresh sweeps if the last snapshot is old and sweeping is cheap.
func (e *eye) refresh(ctx context.Context) error {
	l := e.lastSweep()
	if l.at != 0 && task.Now()-l.at < max(fresh, rest*l.took) {
		return nil
	}
	_, err := e.sweep(ctx)
	return err
}

// shown puts what the loop knows over what a look at a process says.
func (d *Daemon) shown(f *finding, now time.Duration) {
	if st, ok := d.reaper.Status(f.proc.ID); ok {
		f.verdict, f.reason = policy.Acting, st.Reason
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if w := d.watched[f.proc.ID]; w != nil && f.verdict == policy.Target && now < w.until {
		f.verdict, f.reason = policy.Spared, policy.Backoff
	}
}

func fill(p *report.Parent, f *finding, now time.Duration) {
	p.OldestSeconds = report.Seconds(f.oldest)
	p.Verdict, p.Reason = string(f.verdict), string(f.reason)
	if !f.never {
		left := report.Seconds(max(0, f.due-now))
		p.DeadlineSeconds = &left
	}
}

func children(p *tracker.Parent) *task.Children {
	return &task.Children{Parent: p.ID, Reapable: p.Zombies(), Traced: p.Traced, Tracer: p.Tracer, Leaders: p.Leaders}
}
