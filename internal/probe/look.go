package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"

	"kzr/internal/task"
)

// ErrNoLooks says that the kernel cannot run a program on demand: that needs Linux
// 5.10. A look at one parent then is a look at all of them.
var ErrNoLooks = errors.New("a single process cannot be looked at")

// What came of one run, as in kzr.bpf.c.
const (
	lookMore = iota
	lookDone
	lookCut
	lookGone
)

// errCut says that a list changed while it was looked at.
var errCut = errors.New("the list of children changed while it was read")

type lookObjects struct {
	Look    *ebpf.Program `ebpf:"look_at"`
	FactsOf *ebpf.Map     `ebpf:"facts_of"`
	Looks   *ebpf.Map     `ebpf:"looks"`
}

// look runs the program that looks at one process. What it finds is in memory that
// kernel and kzr share.
type look struct {
	mu    sync.Mutex
	prog  *ebpf.Program
	found io.ReaderAt // a kzrLook
	facts io.ReaderAt // two kzrFacts, of which the second is ours
	buf   []byte
	err   error // why there are none
}

// look is ready for use, or has an error. It is loaded already, unless this is a probe
// with IterOnly.
func (p *Probe) look() *look {
	p.lookOnce.Do(func() {
		if err := p.lookAt.open(&p.lookObjs, p.types); err != nil {
			p.lookAt.err = fmt.Errorf("%w: %w", ErrNoLooks, err)
		}
	})
	return &p.lookAt
}

func (l *look) open(o *lookObjects, types *ebpf.CollectionOptions) error {
	if o.Look == nil {
		spec, err := loadKzr()
		if err != nil {
			return err
		}
		spec.Maps["stamps"].MaxEntries = 1
		if err := spec.LoadAndAssign(o, types); err != nil {
			return err
		}
	}
	found, err := o.Looks.Memory()
	if err != nil {
		return fmt.Errorf("sharing memory with the kernel: %w", err)
	}
	facts, err := o.FactsOf.Memory()
	if err != nil {
		return fmt.Errorf("sharing memory with the kernel: %w", err)
	}
	l.prog, l.found, l.facts = o.Look, found, facts
	_, err = l.run(kzrRequest{Tgid: uint64(os.Getpid()), Facts: 1})
	return err
}

type lookHead struct{ Status, Found uint32 }

func (l *look) run(r kzrRequest) (head lookHead, err error) {
	if _, err := l.prog.Run(&ebpf.RunOptions{Context: r}); err != nil {
		return head, fmt.Errorf("running the program that looks at one process: %w", err)
	}
	_, err = l.found.ReadAt(bytesOf(&head), 0)
	return head, err
}

func (l *look) readFacts() (f kzrFacts, err error) {
	_, err = l.facts.ReadAt(bytesOf(&f), int64(factsSize))
	return f, err
}

// tries is how often a look begins again, at a list that changes or at an index of
// pids that is being rebuilt.
const tries = 5

// Facts looks at one process. It fails with [task.ErrGone] if there is none with this
// pid, or if it is a thread's, and with [ErrNoLooks].
func (p *Probe) Facts(ctx context.Context, pid int) (task.ID, task.Facts, error) {
	l := p.look()
	if l.err != nil {
		return task.ID{}, task.Facts{}, l.err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for range tries {
		if err := ctx.Err(); err != nil {
			return task.ID{}, task.Facts{}, err
		}
		head, err := l.run(kzrRequest{Tgid: uint64(pid), Facts: 1})
		if err != nil {
			return task.ID{}, task.Facts{}, err
		}
		if head.Status != lookDone {
			continue
		}
		f, err := l.readFacts()
		if err != nil {
			return task.ID{}, task.Facts{}, err
		}
		id, facts := p.facts(&f)
		return id, facts, nil
	}
	return task.ID{}, task.Facts{}, task.ErrGone
}

// SnapshotOf lists the zombies of one thread group, and those that it holds as their
// tracer. It costs what that group has, at a fifth of a microsecond a child. Its Tasks
// is 0.
func (p *Probe) SnapshotOf(ctx context.Context, id task.ID) (*task.Snapshot, error) {
	if p.look().err == nil {
		for range tries {
			s, err := p.snapshotOf(ctx, id)
			if !errors.Is(err, errCut) {
				return s, err
			}
		}
	}
	// It changes all the time, or has so many threads that it cannot be told.
	s, err := p.sweep(ctx)
	if err != nil {
		return nil, err
	}
	s.Tasks = 0
	// A reused pid is another parent.
	for other := range s.Parents {
		if other != id {
			delete(s.Parents, other)
		}
	}
	return s, nil
}

// snapshotOf takes one snapshot of one thread group. What is in it was there while it was
// taken; a zombie that was found twice counts once.
func (p *Probe) snapshotOf(ctx context.Context, id task.ID) (*task.Snapshot, error) {
	l := p.look()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &task.Snapshot{Source: task.SourceBPF, Began: task.Now(), Parents: map[task.ID]*task.Children{}}
	c := &task.Children{Parent: id}
	var traced, leaders []task.Zombie
	r := kzrRequest{Tgid: uint64(id.PID)}
	for done := false; !done; r.More = 1 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		head, err := l.run(r)
		if err != nil {
			return nil, err
		}
		switch head.Status {
		case lookCut:
			return nil, errCut
		case lookGone:
			if r.More == 0 && p.gone(id) {
				s.Ended = task.Now()
				return s, nil
			}
			return nil, errCut
		case lookDone:
			done = true
		}
		if r.More == 0 {
			f, err := l.readFacts()
			if err != nil {
				return nil, err
			}
			got, facts := p.facts(&f)
			if got != id {
				s.Ended = task.Now()
				return s, nil
			}
			c.Facts = &facts
		}
		if head.Found == 0 {
			continue
		}
		size := int(head.Found) * zombieSize
		l.buf = slices.Grow(l.buf[:0], size)[:size]
		if _, err := l.found.ReadAt(l.buf, int64(unsafe.Offsetof(kzrLook{}.Zombies))); err != nil {
			return nil, err
		}
		if c.Reapable == nil {
			c.Reapable = make([]task.Zombie, 0, head.Found)
		}
		for b := l.buf; len(b) > 0; b = b[zombieSize:] {
			var z kzrZombie
			copy(bytesOf(&z), b)
			zombie := p.zombie(&z)
			switch {
			case z.Kind == kindTraced && int(z.Tracer) == id.PID:
				c.Held = append(c.Held, task.HeldZombie{Zombie: zombie, Of: p.id(z.Parent, z.ParentStart)})
			case z.Kind == kindTraced:
				traced = append(traced, zombie)
				c.Tracer = p.id(z.Tracer, z.TracerStart)
			case z.Kind == kindLeader:
				leaders = append(leaders, zombie)
			default:
				c.Reapable = append(c.Reapable, zombie)
			}
		}
	}
	s.Ended = task.Now()
	c.Reapable = distinct(c.Reapable, task.Zombie.Compare)
	c.Held = distinct(c.Held, func(a, b task.HeldZombie) int { return a.Compare(b.Zombie) })
	c.Traced = len(distinct(traced, task.Zombie.Compare))
	c.Leaders = len(distinct(leaders, task.Zombie.Compare))
	if c.Total() > 0 || len(c.Held) > 0 {
		s.Parents[id] = c
	}
	return s, nil
}

// gone asks once more whether a pid is in use by a thread group, as the index of pids
// can be in the middle of a change.
func (p *Probe) gone(id task.ID) bool {
	for range tries {
		if head, err := p.look().run(kzrRequest{Tgid: uint64(id.PID), Facts: 1}); err == nil && head.Status != lookGone {
			return false
		}
	}
	return true
}

func distinct[T any](list []T, compare func(a, b T) int) []T {
	if !slices.IsSortedFunc(list, compare) {
		slices.SortFunc(list, compare)
	}
	return slices.CompactFunc(list, func(a, b T) bool { return compare(a, b) == 0 })
}
