package daemon

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/advice"
	"kzr/internal/policy"
	"kzr/internal/procscan"
	"kzr/internal/report"
	"kzr/internal/task"
	"kzr/internal/tracker"
)

// fresh is how old a snapshot may be that people are shown.
const fresh = time.Second

// stats are totals since the start.
type stats struct {
	sweeps, kills, losses atomic.Uint64
	sweepBy               atomic.Int64 // when the next sweep is due at the latest, on the clock of task.Now
}

// stayed is the age at which a zombie is worth an event of its own to those who
// watch: by then nearly every parent has reaped.
const stayed = time.Second

// maxTold is how many zombies get such an event in one sweep. Decisions wait for
// it, and nobody reads more.
const maxTold = 1000

// swept tells of the zombies that have stayed since the last sweep.
func (d *Daemon) swept(l last) {
	d.stats.sweeps.Add(1)
	if d.opts.Meter != nil {
		d.opts.Meter.ObserveSweep(l.took)
	}
	d.eye.album.drop()
	if d.opts.Watched == nil || !d.opts.Watched() {
		return
	}
	told := 0
	for p := range d.eye.tracker.Parents() {
		var proc *task.Process
		for _, z := range p.Zombies() {
			if told == maxTold {
				return
			}
			if l.at-z.Since() < stayed || l.before-z.Since() >= stayed {
				continue
			}
			if proc == nil {
				x, err := d.eye.inspect(p.ID)
				if err != nil {
					break
				}
				proc = &x
			}
			told++
			d.opts.Report(report.Event{
				Time: time.Now(), Name: report.EventZombie, Process: proc, Child: z,
				Zombies: p.Total(), Reapable: p.Reapable(), Oldest: l.at - z.Since(),
			})
		}
	}
}

// Status implements [report.View], as far as the daemon knows.
func (d *Daemon) Status() report.Status {
	l := d.eye.lastSweep()
	host, kernel := uname()
	d.eye.mu.Lock()
	parents := d.eye.tracker.Len()
	c := d.eye.config
	d.eye.mu.Unlock()
	st := report.Status{
		Mode: string(c.Mode), Source: l.source, Host: host, Kernel: kernel,
		Scope: string(c.Scope), DryRun: c.DryRun, Threshold: c.Threshold, Grace: report.Seconds(c.Grace),
		Nudge: report.Seconds(c.Nudge), TermTimeout: report.Seconds(c.TermTimeout),
		SweepInterval: report.Seconds(c.SweepInterval), Pressure: c.Pressure,
		Tasks: l.tasks, Zombies: l.zombies, Parents: parents,
		Kills: d.stats.kills.Load(), Lost: d.stats.losses.Load(), Sweeps: d.stats.sweeps.Load(),
		SweepSeconds: report.Seconds(l.took),
		Problems:     []string{},
	}
	if l.at != 0 {
		st.LastSweep = time.Now().Add(l.at - task.Now())
	}
	if by := d.stats.sweepBy.Load(); by != 0 {
		st.NextSweep = time.Now().Add(time.Duration(by) - task.Now())
	}
	if n, err := d.opts.Proc.Node(); err == nil {
		st.Tasks, st.TasksLimit = n.Tasks, n.Limit
		st.UnderPressure = c.Pressure > 0 && float64(n.Tasks) >= c.Pressure*float64(n.Limit)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, w := range d.watched {
		_, acting := d.reaper.Status(id)
		switch {
		case acting, w.found.met && w.found.verdict == policy.Target:
			st.Targets++
		case !w.found.met:
			st.Suspects++
		}
	}
	return st
}

func uname() (host, release string) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", ""
	}
	return unix.ByteSliceToString(u.Nodename[:]), unix.ByteSliceToString(u.Release[:])
}

// Document implements [report.View].
func (d *Daemon) Document(ctx context.Context) (report.Document, error) {
	if err := d.eye.refresh(ctx); err != nil {
		return report.Document{}, err
	}
	host, _ := uname()
	doc := report.Document{Host: host, Parents: []report.Parent{}}
	if h, err := d.opts.Proc.Host(); err == nil {
		doc.Limitations = h.Limitations()
	}
	found, omitted, l, err := d.eye.all(ctx, report.MaxParents)
	if err != nil {
		return report.Document{}, err
	}
	doc.Time, doc.Source, doc.Tasks, doc.Zombies, doc.Omitted = time.Now(), l.source, l.tasks, l.zombies, omitted
	now := task.Now()
	lines, cancel := context.WithTimeout(ctx, cmdlinesPatience)
	defer cancel()
	size := 0
	for i, x := range found {
		if size > maxDocument {
			doc.Omitted += len(found) - i
			break
		}
		f := &x.finding
		d.shown(f, now)
		f.proc.Cmdline = d.cmdlines.of(lines, d.opts.Proc, f.proc.ID, now)
		parent := report.NewParent(&f.proc, nil)
		parent.Zombies, parent.Reapable = x.zombies, f.reapable
		fill(&parent, f, now)
		size += len(parent.Exe) + len(parent.Cgroup)
		for _, a := range parent.Cmdline {
			size += len(a)
		}
		doc.Parents = append(doc.Parents, parent)
	}
	doc.Sort()
	d.cmdlines.turn()
	return doc, nil
}

// maxDocument bounds what processes chose in a document, in bytes: the names and
// arguments of thousands could have 4 KiB each. JSON may take twice that.
const maxDocument = 4 << 20

type found struct {
	finding
	zombies int // in state Z, those that it cannot reap as well
}

// all judges the parents that hold most, as a document sorts them; omitted is how
// many others there are, or cannot be read. Nobody is looked at who will not be
// shown, and of a parent with too few zombies for any rule an old picture will do:
// that it lives the snapshot has said. Who the others are is read without the
// lock, which those who decide want. One call at a time.
func (e *eye) all(ctx context.Context, most int) (list []found, omitted int, l last, err error) {
	type parent struct {
		task.ID
		reapable, total int
	}
	e.mu.Lock()
	parents := make([]parent, 0, e.tracker.Len())
	for p := range e.tracker.Parents() { // not the parents themselves: their zombies would be kept
		parents = append(parents, parent{p.ID, p.Reapable(), p.Total()})
	}
	least := e.policy.Least().Threshold
	e.mu.Unlock()
	slices.SortFunc(parents, func(a, b parent) int {
		return cmp.Or(cmp.Compare(b.reapable, a.reapable), cmp.Compare(b.total, a.total), cmp.Compare(a.PID, b.PID))
	})
	if omitted = max(0, len(parents)-most); omitted > 0 {
		parents = parents[:most]
	}
	size := 0
	var seen []sight
	for i, p := range parents {
		if size > maxDocument {
			omitted += len(parents) - i
			break
		}
		if ctx.Err() != nil {
			return nil, 0, last{}, ctx.Err()
		}
		look := e.see
		if p.reapable < least {
			look = e.picture
		}
		s, failed := look(p.ID)
		switch {
		case failed == nil:
			size += len(s.proc.Exe) + len(s.proc.Cgroup) + len(s.proc.PidsCgroup)
			seen = append(seen, s)
		case !errors.Is(failed, procscan.ErrGone):
			err = failed
			omitted++
		}
	}
	e.album.turn()
	if len(seen) == 0 && err != nil { // nothing can be read, which is not to say that nothing is there
		return nil, omitted, last{}, err
	}
	for {
		judged, grown, l := e.found(seen)
		list = append(list, judged...)
		if len(grown) == 0 {
			return list, omitted, l, nil
		}
		seen = seen[:0]
		for _, id := range grown {
			if s, err := e.see(id); err == nil {
				seen = append(seen, s)
			}
		}
	}
}

// found judges those who were looked at, with what the loop has seen meanwhile. Who
// has come to be worth a verdict gets none by a picture, and is to be looked at.
func (e *eye) found(seen []sight) (judged []found, grown []task.ID, l last) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now, node := task.Now(), e.node()
	for _, s := range seen {
		p, ok := e.tracker.Get(s.proc.ID)
		switch {
		case !ok:
		case s.pictured && p.Reapable() >= e.policy.Least().Threshold:
			grown = append(grown, p.ID)
		default:
			judged = append(judged, found{e.weigh(s, node, now), p.Total()})
		}
	}
	return judged, grown, e.last
}

// picture is see for people, of a parent with too few zombies to fill anything.
func (e *eye) picture(id task.ID) (sight, error) {
	proc, ok := e.album.find(id)
	if !ok {
		var err error
		if proc, err = e.inspect(id); err != nil {
			return sight{}, err
		}
		e.album.add(proc)
	}
	return sight{proc: proc, pictured: true}, nil
}

// cmdlines are the command lines of those that were last shown. They are read
// outside every lock of the loop's: a process can make that hang for as long as
// it likes, so nobody waits for one for long, and while one hangs none is read.
// The zero value is ready.
type cmdlines struct {
	reading atomic.Bool // by a goroutine that has not come back

	mu          sync.Mutex
	now, before map[task.ID]cmdline
	size        int // of those in now, in bytes
}

type cmdline struct {
	args []string
	read time.Duration
}

const (
	// cmdlinePatience is how long a command line is waited for. Reading one takes
	// microseconds.
	cmdlinePatience = 500 * time.Millisecond
	// cmdlinesPatience is how long all those of a document are: the others are in it
	// without.
	cmdlinesPatience = 2 * time.Second
	// cmdlinesKept bounds what is remembered, in bytes. The others are read again
	// each time.
	cmdlinesKept = 4 << 20
)

// of returns a command line, nil also where it cannot be had now.
func (c *cmdlines) of(ctx context.Context, proc *procscan.Scanner, id task.ID, now time.Duration) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	line, ok := c.before[id]
	if !ok || now-line.read > yellowed-time.Duration(id.PID%30)*time.Second {
		args, ok := c.get(ctx, proc, id)
		if !ok {
			return nil
		}
		line = cmdline{args, now}
	}
	for _, a := range line.args {
		c.size += len(a)
	}
	if c.size < cmdlinesKept {
		if c.now == nil {
			c.now = map[task.ID]cmdline{}
		}
		c.now[id] = line
	}
	return line.args
}

// fresh is of for one that is shown alone.
func (c *cmdlines) fresh(ctx context.Context, proc *procscan.Scanner, id task.ID) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	args, _ := c.get(ctx, proc, id)
	return args
}

// get reads one. The caller holds mu, so that only one is read at a time.
func (c *cmdlines) get(ctx context.Context, proc *procscan.Scanner, id task.ID) (args []string, ok bool) {
	if ctx.Err() != nil || !c.reading.CompareAndSwap(false, true) {
		return nil, false
	}
	done := make(chan []string, 1)
	go func() {
		args := proc.Cmdline(id)
		c.reading.Store(false)
		done <- args
	}()
	late := time.NewTimer(cmdlinePatience)
	defer late.Stop()
	select {
	case args = <-done:
		return args, true
	case <-late.C:
	case <-ctx.Done():
	}
	return nil, false
}

// turn forgets those that were not asked for since the last turn.
func (c *cmdlines) turn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.before, c.now, c.size = c.now, nil, 0
}

// album keeps what was last read of parents that no rule is about, for those who
// look at the node every second: to read a thousand parents takes a fifth of a
// second. The zero value is ready.
type album struct {
	mu          sync.Mutex
	now, before map[task.ID]picture // of the document that is made, and of the last one
	at          time.Duration       // when somebody last looked
}

type picture struct {
	task.Process
	until time.Duration // when it is taken anew
}

// yellowed is the age at which a picture is taken anew. Those taken together do
// not all come due together.
const yellowed = time.Minute

// nameless is how long a picture is good that lacks names that may yet come.
const nameless = 5 * time.Second

func (a *album) find(id task.ID) (task.Process, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at = task.Now()
	p, ok := a.now[id] // of a document that was given up
	if !ok {
		p, ok = a.before[id]
	}
	if !ok || a.at > p.until {
		return task.Process{}, false
	}
	a.keep(p)
	return p.Process, true
}

// add takes a picture of one that was just read.
func (a *album) add(proc task.Process) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at = task.Now()
	until := a.at + yellowed - time.Duration(proc.PID%30)*time.Second
	if proc.NamesUnknown {
		until = a.at + nameless
	}
	a.keep(picture{proc, until})
}

func (a *album) keep(p picture) {
	if a.now == nil {
		a.now = map[task.ID]picture{}
	}
	a.now[p.ID] = p
}

// turn ends a document: who was not in it is forgotten.
func (a *album) turn() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now, a.before = nil, a.now
}

// drop forgets all once nobody has looked for a while.
func (a *album) drop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if task.Now()-a.at > 2*yellowed {
		a.now, a.before = nil, nil
	}
}

// refresh sweeps if the last snapshot is old and sweeping is cheap.
func (e *eye) refresh(ctx context.Context) error {
	l := e.lastSweep()
	if l.at != 0 && task.Now()-l.at < max(fresh, rest*l.cost) {
		return nil
	}
	_, err := e.sweep(ctx)
	return err
}

// shown puts what the loop knows over what a look at a process says.
func (d *Daemon) shown(f *finding, now time.Duration) {
	if reason, acting := d.reaper.Status(f.proc.ID); acting {
		f.verdict, f.reason = policy.Acting, reason
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.watched[f.proc.ID]
	if w == nil {
		return
	}
	w.kept.spare(f, now)
	if f.verdict == policy.Target && now < w.until {
		f.verdict, f.reason = policy.Spared, policy.Backoff
	}
}

func fill(p *report.Parent, f *finding, now time.Duration) {
	if f.oldest > 0 { // 0 is a first sighting
		p.OldestSeconds = report.Pointer(report.Seconds(f.oldest))
	}
	p.Verdict, p.Reason, p.Rule = string(f.verdict), string(f.reason), report.Sanitize(f.rule.Name)
	if !f.never {
		left := report.Seconds(max(0, f.due-now))
		p.DeadlineSeconds = &left
	}
}

func children(p *tracker.Parent) *task.Children {
	return &task.Children{Parent: p.ID, Reapable: p.Zombies(), Traced: p.Traced, Tracer: p.Tracer, Leaders: p.Leaders}
}

// relatives is how many live children are shown.
const relatives = 20

// Parent implements [report.View].
func (d *Daemon) Parent(ctx context.Context, pid int) (report.Detail, error) {
	proc, err := d.eye.read(pid)
	if errors.Is(err, procscan.ErrGone) {
		return report.Detail{}, report.ErrNotFound
	}
	if err != nil {
		return report.Detail{}, err
	}
	f, now, err := d.eye.lookAt(ctx, proc.ID)
	if errors.Is(err, procscan.ErrGone) {
		return report.Detail{}, report.ErrNotFound
	}
	if err != nil {
		return report.Detail{}, err
	}
	d.shown(&f, now)
	var zombies *task.Children
	d.eye.mu.Lock()
	if p, ok := d.eye.tracker.Get(proc.ID); ok {
		zombies = children(p)
	}
	d.eye.mu.Unlock()
	f.proc.Cmdline = d.cmdlines.fresh(ctx, d.opts.Proc, f.proc.ID)
	out := report.NewDetail(&f.proc, zombies, now)
	fill(&out.Parent, &f, now)
	out.Rule, out.RuleUnsure = out.Parent.Rule, f.rule.Unsure
	out.Threshold, out.Grace = f.rule.Threshold, report.Seconds(f.rule.Grace)
	if current, limit, ok := d.opts.Proc.PidsLimit(f.proc.PidsCgroup); ok {
		out.Pids = &report.PidsLimit{Cgroup: report.Sanitize(f.proc.PidsCgroup), Current: current, Limit: limit}
	}
	for i := range out.Sample {
		z := &out.Sample[i]
		z.Comm = report.Sanitize(d.opts.Proc.Comm(task.ID{PID: z.PID, Start: z.StartTime}))
	}
	live, total := d.opts.Proc.LiveChildren(proc.ID, zombies, relatives)
	for _, c := range live {
		out.Children = append(out.Children, report.NewRelative(c.PID, c.Comm, c.State))
	}
	out.LiveChildren = total
	out.Ancestors = append(out.Ancestors, d.ancestors(f.proc.PPID)...)
	d.eye.mu.Lock()
	c := d.eye.config
	d.eye.mu.Unlock()
	out.Ladder = advice.Steps(policy.Ladder(&f.proc.Facts, policy.Means{
		Nudge: c.Nudge, TermTimeout: c.TermTimeout, Reap: c.Reap, Reapable: out.Reapable, Adopted: out.Adopted,
		Refusal: "not available",
	}))
	advice.Complete(&out, advice.Settings{DryRun: c.DryRun, Observe: d.opts.Observe})
	return out, nil
}

// maxAncestors ends the line of a process whose ancestors die and whose pids are
// reused while it is followed.
const maxAncestors = 64

// ancestors are the process with this pid and those above it, up to pid 1 or to
// where the line is hidden.
func (d *Daemon) ancestors(pid int) []report.Relative {
	var line []report.Relative
	for pid > 0 && len(line) < maxAncestors {
		p, err := d.eye.read(pid)
		if err != nil {
			return line
		}
		line = append(line, report.NewRelative(p.PID, p.Comm, p.State))
		pid = p.PPID
	}
	return line
}
