package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"kzr/internal/config"
	"kzr/internal/policy"
	"kzr/internal/procscan"
	"kzr/internal/report"
	"kzr/internal/task"
	"kzr/internal/zoo"
)

// counted counts the snapshots that are taken through it, and makes each of them
// take a while, as on a node with very many tasks.
type counted struct {
	*procscan.Scanner
	whole, single atomic.Int32
	delay, helped time.Duration
}

func (c *counted) Snapshot(ctx context.Context) (*task.Snapshot, error) {
	c.whole.Add(1)
	s, err := c.Scanner.Snapshot(ctx)
	return c.late(s), err
}

func (c *counted) SnapshotOf(ctx context.Context, id task.ID) (*task.Snapshot, error) {
	c.single.Add(1)
	s, err := c.Scanner.SnapshotOf(ctx, id)
	return c.late(s), err
}

func (c *counted) late(s *task.Snapshot) *task.Snapshot {
	time.Sleep(c.delay)
	if s != nil {
		s.Ended = task.Now()
		s.Helped += c.helped
	}
	return s
}

// newDaemon makes one that only looks, with a rule for five zombies.
func newDaemon(t *testing.T, delay time.Duration) (*Daemon, *counted) {
	t.Helper()
	proc, err := procscan.New("/proc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proc.Close(); err != nil {
			t.Error(err)
		}
	})
	c := config.Default()
	c.Threshold, c.Pressure = 5, 0
	source := &counted{Scanner: proc, delay: delay}
	d, err := New(t.Context(), Options{
		Config: c, Host: policy.Host{}, Source: source, Proc: proc, Observe: true,
		Logger: slog.New(slog.DiscardHandler), Report: func(report.Event) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d, source
}

// leakers are parents with so many zombies each, which a snapshot shows.
func leakers(t *testing.T, zombies ...int) []task.ID {
	t.Helper()
	proc, err := procscan.New("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	var ids []task.ID
	for _, n := range zombies {
		z := zoo.Start(t, "leak=%d serve", n)
		p, err := proc.Inspect(z.PID)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, p.ID)
	}
	time.Sleep(2 * time.Second / task.TicksPerSecond) // what began in this tick is not in a snapshot
	return ids
}

// Fifty ladders look at once, on a node where a look takes long: they share
// looks, and each gets what is true after it asked.
func TestManyLooksShareASnapshot(t *testing.T) {
	d, source := newDaemon(t, 20*time.Millisecond)
	ids := leakers(t, slices.Repeat([]int{6}, 50)...)
	if _, err := d.eye.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	source.whole.Store(0)
	began := time.Now()
	var looks sync.WaitGroup
	for _, id := range ids {
		looks.Go(func() {
			for range 2 {
				if look, err := d.eye.Look(t.Context(), id); err != nil || look.Reapable != 6 || look.Process.ID != id {
					t.Errorf("%s: %+v, %v", id, look, err)
				}
			}
			if held, err := d.eye.Holders(t.Context(), nil); err != nil || len(held) != 0 {
				t.Errorf("%s: %v, %v", id, held, err)
			}
		})
	}
	looks.Wait()
	if n := source.whole.Load() + source.single.Load(); n > 50 {
		t.Errorf("150 looks at once took %d snapshots, %d of them of the whole node", n, source.whole.Load())
	}
	t.Logf("150 looks in %v: %d snapshots of the node, %d of one parent", time.Since(began).Round(time.Millisecond), source.whole.Load(), source.single.Load())

	// One alone asks about itself alone, where the whole node takes longer, and sees
	// what has just changed.
	d.eye.mu.Lock()
	d.eye.last.took = time.Minute
	d.eye.mu.Unlock()
	whole := source.whole.Load()
	z := zoo.Start(t, "leak=7 serve")
	p, err := source.Inspect(z.PID)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second / task.TicksPerSecond)
	for want := 7; want > 0; want-- {
		look, err := d.eye.Look(t.Context(), p.ID)
		if err != nil || look.Reapable != want {
			t.Errorf("%+v, %v, want %d", look, err, want)
		}
		z.Do("reap=1")
	}
	if source.whole.Load() != whole {
		t.Error("a look at one parent took a snapshot of the node")
	}
}

// Of more parents than can be shown the greatest are, and nobody looks at the
// others.
func TestTheGreatestAreShown(t *testing.T) {
	d, _ := newDaemon(t, 0)
	ids := leakers(t, 21, 3, 23, 22, 2)
	if _, err := d.eye.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	all, none, _, err := d.eye.all(t.Context(), 1000)
	if err != nil || none != 0 || len(all) < len(ids) {
		t.Fatalf("%d parents, %d omitted, %v", len(all), none, err)
	}
	least := 0
	for _, f := range all {
		if f.reapable >= 21 {
			least++
		}
	}
	some, omitted, _, err := d.eye.all(t.Context(), least)
	// Of the machine's others some may be gone by now.
	if err != nil || omitted != d.eye.tracker.Len()-least || len(some) < 3 || len(some) > least {
		t.Fatalf("%d parents, %d omitted of %d, %v", len(some), omitted, d.eye.tracker.Len(), err)
	}
	for i, id := range ids {
		shown := slices.ContainsFunc(some, func(f found) bool { return f.proc.ID == id })
		if want := i != 1 && i != 4; shown != want {
			t.Errorf("parent %d is shown: %v", i, shown)
		}
	}
	for _, i := range []int{1, 4} {
		if _, looked := d.eye.album.before[ids[i]]; looked {
			t.Errorf("parent %d was looked at, and not shown", i)
		}
	}
}

// stall has everybody who reads a process wait, as if the kernel made them, until
// they may go on.
func stall(d *Daemon) (goOn func()) {
	for range maxReading {
		d.eye.reading <- struct{}{}
	}
	return func() {
		for range maxReading {
			<-d.eye.reading
		}
	}
}

// A document of very many parents takes long. Nobody who decides waits for it, and
// it is given up when nobody waits for it any more.
func TestADocumentHoldsUpNobody(t *testing.T) {
	d, _ := newDaemon(t, 0)
	leakers(t, 6, 6, 6)
	if _, err := d.eye.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	goOn := stall(d)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		_, err := d.Document(ctx)
		answer <- err
	}()
	swept := make(chan error, 1)
	for range 100 { // in one of them at least it is under way
		go func() {
			_, err := d.eye.sweep(t.Context())
			swept <- err
		}()
		select {
		case err := <-swept:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("a sweep waits for a document")
		}
	}
	select {
	case err := <-answer:
		t.Fatalf("a document without a look at anybody: %v", err)
	default:
	}
	cancel()
	goOn()
	if err := <-answer; !errors.Is(err, context.Canceled) {
		t.Errorf("given up with %v", err)
	}
	if doc, err := d.Document(t.Context()); err != nil || len(doc.Parents) < 3 {
		t.Errorf("afterwards: %d parents, %v", len(doc.Parents), err)
	}
}

// What a sweep costs is what it used itself, and not what those use who ask kzr
// things meanwhile: they would make it look less often.
func TestCostIsTheSweepsOwn(t *testing.T) {
	const delay = 300 * time.Millisecond // which it waits
	d, source := newDaemon(t, delay)
	leakers(t, 6)
	var others sync.WaitGroup
	var over atomic.Bool
	for range 2 * runtime.GOMAXPROCS(0) {
		others.Go(func() {
			for !over.Load() {
			}
		})
	}
	time.AfterFunc(2*delay, stall(d)) // to look at the leaker takes as long
	d.sweep(t.Context())
	swept := task.Now()
	over.Store(true)
	others.Wait()
	if cost := d.eye.lastSweep().cost; cost <= 0 || cost > delay/3 {
		t.Errorf("a sweep costs %v", cost)
	}
	if pause := d.rested - swept; pause > rest*delay/3 {
		t.Errorf("the loop rests for %v", pause)
	}
	// The second worker of a walk is a part of it.
	source.helped = time.Hour
	if last, err := d.eye.sweep(t.Context()); err != nil || last.cost != last.took {
		t.Errorf("with much help it costs %v of %v, %v", last.cost, last.took, err)
	}
}

// Who had too few zombies for any rule when a document was begun, and has enough
// when it is judged, is judged by what it is now.
func TestNoVerdictByAnOldPicture(t *testing.T) {
	d, _ := newDaemon(t, 0)
	z := zoo.Start(t, "leak=2 serve")
	time.Sleep(2 * time.Second / task.TicksPerSecond)
	if _, err := d.eye.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	old, err := d.eye.read(z.PID)
	if err != nil {
		t.Fatal(err)
	}
	old.Exe = "/was/another"
	d.eye.album.add(old)
	shown := func() (f found) {
		t.Helper()
		list, _, _, err := d.eye.all(t.Context(), 1000)
		i := slices.IndexFunc(list, func(f found) bool { return f.proc.ID == old.ID })
		if err != nil || i < 0 {
			t.Errorf("it is not shown: %v", err)
			return found{}
		}
		return list[i]
	}
	if f := shown(); f.proc.Exe != old.Exe || f.reapable != 2 || f.zombies != 2 {
		t.Errorf("%+v", f)
	}

	// A document waits for its turn to read another parent, of whom there is no
	// picture, while the loop sees that this one has come to the threshold.
	leakers(t, 1)
	if _, err := d.eye.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	goOn := stall(d)
	answer := make(chan found)
	go func() { answer <- shown() }()
	zoo.Within(t, time.Minute, "its picture was looked at", func() bool {
		d.eye.album.mu.Lock()
		defer d.eye.album.mu.Unlock()
		_, looked := d.eye.album.now[old.ID]
		return looked
	})
	z.Do("leak=5")
	if _, err := d.eye.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	goOn()
	if f := <-answer; f.proc.Exe == old.Exe || f.reapable != 7 {
		t.Errorf("%+v", f)
	}
}

// When the time for a document's command lines is over no more of them are read.
func TestCmdlinesHaveTheirTime(t *testing.T) {
	d, source := newDaemon(t, 0)
	self, err := source.Inspect(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	own := func(args []string) bool { // behind that of an emulator, if one runs it
		return len(args) >= len(os.Args) && slices.Equal(args[len(args)-len(os.Args):], os.Args)
	}
	var c cmdlines
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if args := c.of(over, d.opts.Proc, self.ID, task.Now()); args != nil || c.reading.Load() {
		t.Errorf("%q, being read: %t", args, c.reading.Load())
	}
	if args := c.of(t.Context(), d.opts.Proc, self.ID, task.Now()); !own(args) {
		t.Errorf("%q, want %q", args, os.Args)
	}
	c.turn()
	if args := c.of(over, d.opts.Proc, self.ID, task.Now()); !own(args) {
		t.Errorf("what was read before: %q", args)
	}
}

// Pictures outlive a document that was given up, and not those who look.
func TestAlbum(t *testing.T) {
	var a album
	p := task.Process{ID: task.ID{PID: 30, Start: 1}}
	a.add(p)
	a.drop() // a sweep, meanwhile
	if _, ok := a.find(p.ID); !ok {
		t.Error("a sweep loses the picture of a document that is being made")
	}
	a.turn()
	a.drop()
	if _, ok := a.find(p.ID); !ok {
		t.Error("the next document has no picture")
	}
	a.turn()
	a.at -= 2*yellowed + time.Second
	a.drop()
	if _, ok := a.find(p.ID); ok || len(a.before) > 0 {
		t.Error("a picture stays though nobody looks")
	}
}

// Before the first sweep there was none, and not one at the machine's start.
func TestNoSweepYet(t *testing.T) {
	d, _ := newDaemon(t, 0)
	if st := d.Status(); !st.LastSweep.IsZero() || st.Sweeps != 0 {
		t.Errorf("%+v", st)
	}
	began := time.Now()
	if _, err := d.eye.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := d.Status(); st.LastSweep.Before(began.Add(-time.Second)) || st.LastSweep.After(time.Now().Add(time.Second)) || st.Sweeps != 1 {
		t.Errorf("%+v", st)
	}
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A sweep that takes longer than the watchdog's patience feeds it while it gets on,
// and one that others make does not.
func TestLongSweepIsAlive(t *testing.T) {
	d, _ := newDaemon(t, 0)
	leakers(t, 6, 6, 6)
	var beats atomic.Int32
	d.opts.Busy, d.opts.BeatEvery = func() { beats.Add(1) }, time.Nanosecond
	d.sweep(t.Context())            // the first: not ready before
	if n := beats.Swap(0); n == 0 { // its parents are judged after it
		t.Error("no beat while parents were judged")
	}
	d.sweep(t.Context())
	if n := beats.Swap(0); n < 4 {
		t.Errorf("%d beats in a sweep with three parents", n)
	}
	if _, err := d.eye.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := beats.Load(); n != 0 {
		t.Errorf("%d beats though the loop did nothing", n)
	}
}

// What a parent could not use of its time it gets back, a grace at most.
func TestKeeping(t *testing.T) {
	const grace = 60 * time.Second
	var k keeping
	at := func(second int, kept bool) { k.note(kept, time.Duration(second)*time.Second, grace) }
	want := func(second int, until int) {
		t.Helper()
		f := finding{met: true, verdict: policy.Target}
		now := time.Duration(second) * time.Second
		k.spare(&f, now)
		if until == 0 && !f.met || until != 0 && (f.met || f.verdict != policy.Watch || f.due != time.Duration(until)*time.Second) {
			t.Errorf("at %d s: %+v", second, f)
		}
	}
	at(1, false)
	want(1, 0)
	at(20, true) // once, for a moment
	at(80, false)
	want(80, 0)
	at(100, true)
	at(110, true)
	at(120, true)
	at(121, false) // 20 s
	want(121, 141)
	want(140, 141)
	want(141, 0)
	at(200, true)
	at(900, true)
	at(901, false) // the other 40 s
	want(902, 941)
	at(1000, true)
	at(1100, true)
	at(1101, false)
	want(1101, 0)
}
