package nodeview

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"kzr/internal/config"
	"kzr/internal/container"
	"kzr/internal/daemon"
	"kzr/internal/observer"
	"kzr/internal/policy"
	"kzr/internal/procscan"
	"kzr/internal/report"
	"kzr/internal/task"
	"kzr/internal/zoo"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// source sees through /proc; looks at who somebody is can be made to wait.
type source struct {
	*procscan.Scanner
	hold atomic.Pointer[chan struct{}]
}

func (s *source) Facts(ctx context.Context, pid int) (task.ID, task.Facts, error) {
	if hold := s.hold.Load(); hold != nil {
		<-*hold
	}
	return s.Scanner.Facts(ctx, pid)
}

// stall has everybody who asks who somebody is wait until they may go on.
func (s *source) stall() (goOn func()) {
	hold := make(chan struct{})
	s.hold.Store(&hold)
	return func() {
		s.hold.Store(nil)
		close(hold)
	}
}

// newView shows what a daemon that only looks sees, with a rule for five zombies.
func newView(t *testing.T) (*View, *source) {
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
	s := &source{Scanner: proc}
	name := func(ref container.Ref) (task.Container, bool) { return ref.Container(), false }
	d, err := daemon.New(t.Context(), daemon.Options{
		Config: c, Host: policy.Host{}, Observer: observer.Options{Source: s, Proc: proc, Name: name}, Observe: true,
		Logger: slog.New(slog.DiscardHandler), Report: func(report.Event) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &View{Daemon: d, Proc: proc, Name: name, Observe: true}, s
}

func leaker(t *testing.T, v *View, zombies int) (*zoo.Zoo, task.ID) {
	t.Helper()
	z := zoo.Start(t, "leak=%d serve", zombies)
	id, _, err := v.Daemon.Observer().Facts(t.Context(), z.PID)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second / task.TicksPerSecond) // what began in this tick is not in a snapshot
	return z, id
}

func document(t *testing.T, v *View) report.Document {
	t.Helper()
	doc, err := v.Document(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func sweep(t *testing.T, v *View) {
	t.Helper()
	if _, err := v.Daemon.Observer().Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func find(doc report.Document, pid int) (report.Parent, bool) {
	i := slices.IndexFunc(doc.Parents, func(p report.Parent) bool { return p.PID == pid })
	if i < 0 {
		return report.Parent{}, false
	}
	return doc.Parents[i], true
}

// A document has each parent with its numbers, and the sum of its workload.
func TestDocument(t *testing.T) {
	v, _ := newView(t)
	z, id := leaker(t, v, 7)
	doc := document(t, v)
	p, ok := find(doc, z.PID)
	if !ok || p.StartTime != id.Start || p.Zombies != 7 || p.Reapable != 7 || p.Verdict != "watch" {
		t.Errorf("%+v", p)
	}
	if p.OldestSeconds != nil || p.RatePerHour != nil {
		t.Errorf("an age and a rate at the first look: %v, %v", p.OldestSeconds, p.RatePerHour)
	}
	i := slices.IndexFunc(doc.Workloads, func(w report.Workload) bool { return w.Name == p.Workload })
	if i < 0 || doc.Workloads[i].Zombies < 7 || doc.Workloads[i].Parents < 1 {
		t.Errorf("workload %q in %+v", p.Workload, doc.Workloads)
	}
}

// A document of very many parents takes long. Nobody who decides waits for it, and
// it is given up when nobody waits for it any more.
func TestADocumentHoldsUpNobody(t *testing.T) {
	v, s := newView(t)
	leaker(t, v, 6)
	sweep(t, v)
	goOn := s.stall()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		_, err := v.Document(ctx)
		answer <- err
	}()
	swept := make(chan error, 1)
	for range 100 { // in one of them at least it is under way
		go func() {
			_, err := v.Daemon.Observer().Sweep(t.Context())
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
	if doc := document(t, v); len(doc.Parents) < 1 {
		t.Error("no parents afterwards")
	}
}

// Who had too few zombies for any rule when a document was made is shown by a picture;
// who has enough is looked at, and judged by what it is now.
func TestNoVerdictByAnOldPicture(t *testing.T) {
	v, _ := newView(t)
	z, id := leaker(t, v, 2)
	sweep(t, v)
	old, err := v.Daemon.Observer().Inspect(t.Context(), z.PID)
	if err != nil {
		t.Fatal(err)
	}
	old.Exe = "/was/another"
	v.album.add(&old)
	if p, _ := find(document(t, v), id.PID); p.Exe != old.Exe || p.Reapable != 2 || p.Zombies != 2 {
		t.Errorf("%+v", p)
	}
	z.Do("leak=5")
	sweep(t, v)
	if p, _ := find(document(t, v), id.PID); p.Exe == old.Exe || p.Reapable != 7 {
		t.Errorf("%+v", p)
	}
}

// When the time for a document's command lines is over no more of them are read.
func TestCmdlinesHaveTheirTime(t *testing.T) {
	v, _ := newView(t)
	self, err := v.Daemon.Observer().Inspect(t.Context(), os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	own := func(args []string) bool { // behind that of an emulator, if one runs it
		return len(args) >= len(os.Args) && slices.Equal(args[len(args)-len(os.Args):], os.Args)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	pic := v.album.add(&self)
	if args := v.album.cmdline(over, pic, v.Proc.Cmdline); args != nil {
		t.Errorf("%q", args)
	}
	if args := v.album.cmdline(t.Context(), pic, v.Proc.Cmdline); !own(args) {
		t.Errorf("%q, want %q", args, os.Args)
	}
	if args := v.album.cmdline(over, pic, v.Proc.Cmdline); !own(args) {
		t.Errorf("what was read before: %q", args)
	}
}

// Pictures outlive a document that was given up, and one more, but not those who look.
func TestAlbum(t *testing.T) {
	var a album
	p := task.Process{ID: task.ID{PID: 30, Start: 1}}
	a.add(&p)
	if a.find(p.ID) == nil {
		t.Error("a document that is made anew has no picture")
	}
	a.turn()
	if a.find(p.ID) == nil {
		t.Error("the next document has no picture")
	}
	a.turn()
	a.turn()
	if a.find(p.ID) != nil {
		t.Error("a picture stays of who was not shown")
	}
}

// Before the first sweep there was none, and not one at the machine's start.
func TestNoSweepYet(t *testing.T) {
	v, _ := newView(t)
	if st := v.Status(); !st.LastSweep.IsZero() || st.Sweeps != 0 {
		t.Errorf("%+v", st)
	}
	began := time.Now()
	sweep(t, v)
	if st := v.Status(); st.LastSweep.Before(began.Add(-time.Second)) || st.LastSweep.After(time.Now().Add(time.Second)) || st.Sweeps != 1 {
		t.Errorf("%+v", st)
	}
}
