// Package probe is kzr's view through eBPF. Out of it flow hints (a parent has
// gathered zombies: look) and snapshots (every zombie and its parent, from the
// kernel's own task list). It is the only package that knows eBPF.
package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"kzr/internal/task"
)

// MinLevel is the least number of zombies that a hint is given for. Below it, a
// parent that forks a few children at once and waits for them would wake kzr
// each time. Parents with fewer zombies are found by sweeps.
const MinLevel = 8

// ErrNamespace says that kzr runs in a pid namespace other than the first: the
// kernel side counts in the first one's pids, which mean nothing here.
var ErrNamespace = errors.New("eBPF needs the host's pid namespace: run kzr with hostPID (Kubernetes), --pid=host (docker), or with mode: proc, which sees this namespace only")

// ErrTruncated says that a snapshot ended before the task list did. It holds
// nothing that may be decided on.
var ErrTruncated = errors.New("the task iterator ended early")

// initPIDNS is the inode number of the first pid namespace
// (PROC_PID_INIT_INO in include/linux/proc_ns.h, PID_NS_INIT_INO in
// include/uapi/linux/nsfs.h).
const initPIDNS = 4026531836

// Options change how a probe is opened. The zero value is the default.
type Options struct {
	// Level is the number of zombies from which on a parent is hinted at, at
	// least [MinLevel].
	Level int
	// Offsets are what the time namespace adds to the clocks: /proc and
	// [task.Now] have it added, the kernel side has not.
	Offsets task.Offsets
}

// Counters are running totals of the kernel side.
type Counters struct {
	Exits uint64 // thread groups that died and became a zombie for a parent that has to reap it
	Walks uint64 // times a parent's children were counted
	Hints uint64 // records sent to user space
	Lost  uint64 // records dropped because the ring was full
}

type objects struct {
	OnExit      *ebpf.Program  `ebpf:"on_exit"`
	ListZombies *ebpf.Program  `ebpf:"list_zombies"`
	Hints       *ebpf.Map      `ebpf:"hints"`
	Counts      *ebpf.Map      `ebpf:"counts"`
	Level       *ebpf.Variable `ebpf:"level"`
	OnlyParent  *ebpf.Variable `ebpf:"only_parent"`
}

func (o *objects) close() error {
	return errors.Join(o.OnExit.Close(), o.ListZombies.Close(), o.Hints.Close(), o.Counts.Close())
}

// Probe is loaded and attached. Its methods may be called from any goroutine.
type Probe struct {
	objs    objects
	exit    link.Link
	iter    *link.Iter
	ring    *ringbuf.Reader
	offsets task.Offsets

	mu  sync.Mutex // one snapshot at a time: they share only_parent and what follows
	buf []byte
	// many says how many zombies parents with a lot of them had in the last
	// snapshot. Room for as many is made at once, as a list that grows to half a
	// million in steps takes three times its memory.
	many map[task.ID]int
}

// Open loads the kernel side and attaches it. It fails with [ErrNamespace], or
// with an error that says which step the kernel refused; a verifier's log is in
// it as an [ebpf.VerifierError], whole with %+v.
func Open(opts Options) (*Probe, error) {
	switch ns, err := pidNamespace(); {
	case err != nil:
		return nil, err
	case ns != initPIDNS:
		return nil, ErrNamespace
	}
	spec, err := loadKzr()
	if err != nil {
		return nil, fmt.Errorf("reading the embedded eBPF object: %w", err)
	}
	return load(spec, opts)
}

func load(spec *ebpf.CollectionSpec, opts Options) (*Probe, error) {
	// Before 5.11 maps count against RLIMIT_MEMLOCK. Where this fails but was
	// needed, creating the map says so.
	memlock := rlimit.RemoveMemlock()

	p := &Probe{offsets: opts.Offsets, buf: make([]byte, 64<<10), many: map[task.ID]int{}}
	if err := spec.Variables["level"].Set(uint32(max(opts.Level, MinLevel))); err != nil {
		return nil, fmt.Errorf("setting the hint level: %w", err)
	}
	if err := spec.LoadAndAssign(&p.objs, nil); err != nil {
		return nil, refusal(err, memlock)
	}
	if err := p.attach(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// refusal says why the kernel did not take the programs. What the library says of a
// lack of permission is a guess, and a wrong one where it is not for memory.
func refusal(err, memlock error) error {
	// The verifier's refusal is EACCES as well, and has a reason of its own.
	if _, verified := errors.AsType[*ebpf.VerifierError](err); verified || !errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("loading the eBPF programs: %w", err)
	}
	switch {
	case !capable(unix.CAP_SYS_ADMIN) && !(capable(unix.CAP_BPF) && capable(unix.CAP_PERFMON)):
		return fmt.Errorf("loading the eBPF programs needs CAP_BPF and CAP_PERFMON: %w", os.ErrPermission)
	case memlock != nil:
		return fmt.Errorf("loading the eBPF programs needs a higher memlock limit before Linux 5.11, or is denied by a seccomp filter, lockdown or another security module: %w", os.ErrPermission)
	}
	return fmt.Errorf("loading the eBPF programs is denied, by a seccomp filter, lockdown or another security module: %w", os.ErrPermission)
}

func capable(c int) bool {
	has, err := task.Capable(c)
	return has && err == nil
}

func (p *Probe) attach() (err error) {
	if p.ring, err = ringbuf.NewReader(p.objs.Hints); err != nil {
		return fmt.Errorf("opening the ring buffer: %w", err)
	}
	if p.iter, err = link.AttachIter(link.IterOptions{Program: p.objs.ListZombies}); err != nil {
		return fmt.Errorf("attaching the task iterator: %w", err)
	}
	if p.exit, err = link.AttachTracing(link.TracingOptions{Program: p.objs.OnExit}); err != nil {
		return fmt.Errorf("attaching to sched_process_exit: %w", err)
	}
	return nil
}

// Close detaches and frees everything. No other method may be running or follow: see
// StopHints.
func (p *Probe) Close() error {
	var errs []error
	if p.exit != nil {
		errs = append(errs, p.exit.Close())
	}
	if p.iter != nil {
		errs = append(errs, p.iter.Close())
	}
	if p.ring != nil {
		errs = append(errs, p.ring.Close())
	}
	return errors.Join(append(errs, p.objs.close())...)
}

// StopHints ends [Probe.Hints]; the probe still takes snapshots.
func (p *Probe) StopHints() { _ = p.ring.Close() }

// SetLevel changes the number of zombies from which on a parent is hinted at.
func (p *Probe) SetLevel(n int) error {
	if err := p.objs.Level.Set(uint32(max(n, MinLevel))); err != nil {
		return fmt.Errorf("setting the hint level: %w", err)
	}
	return nil
}

// Attached fails if the exit program is attached no more, so that no hint comes and
// no exit is stamped. It costs one system call.
func (p *Probe) Attached() error {
	if _, err := p.exit.Info(); err != nil && !errors.Is(err, ebpf.ErrNotSupported) {
		return fmt.Errorf("the program at sched_process_exit is attached no more: %w", err)
	}
	return nil
}

// drainEvery is the rest after the ring was emptied; a hint is in time for a second.
// What comes meanwhile has to fit in: 4,096 are 200,000 a second.
const drainEvery = 20 * time.Millisecond

// Hints calls f for each hint until the probe is closed. A hint with Lost set
// follows whenever the ring overflowed.
func (p *Probe) Hints(f func(task.Hint)) error {
	var rec ringbuf.Record
	var lost uint64
	for {
		err := p.ring.ReadInto(&rec)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the ring buffer: %w", err)
		}
		if len(rec.RawSample) < 8 {
			continue
		}
		f(task.Hint{PID: int(binary.LittleEndian.Uint32(rec.RawSample))})
		if rec.Remaining > 0 {
			continue
		}
		// Records can only be lost while the ring is full, so whoever empties
		// it is sure to come by here.
		c, err := p.Counters()
		if err != nil {
			return err
		}
		if c.Lost != lost {
			lost = c.Lost
			f(task.Hint{Lost: true})
		}
		// Whoever has thousands of hints made has them read together.
		time.Sleep(drainEvery)
	}
}

// Counters sums the kernel side's totals over all CPUs.
func (p *Probe) Counters() (Counters, error) {
	var per []kzrCounters
	if err := p.objs.Counts.Lookup(uint32(0), &per); err != nil {
		return Counters{}, fmt.Errorf("reading the eBPF counters: %w", err)
	}
	var c Counters
	for _, x := range per {
		c.Exits += x.Exits
		c.Walks += x.Walks
		c.Hints += x.Hints
		c.Lost += x.Lost
	}
	return c, nil
}

// Snapshot lists every zombie of the node. It costs about a microsecond for
// each, and a tenth of one for each other task.
func (p *Probe) Snapshot(ctx context.Context) (*task.Snapshot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.snapshot(ctx, 0)
}

// SnapshotOf lists the zombies of one thread group. Its Tasks is 0.
func (p *Probe) SnapshotOf(ctx context.Context, id task.ID) (*task.Snapshot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, err := p.snapshot(ctx, id.PID)
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

const recordSize = 40

func (p *Probe) snapshot(ctx context.Context, only int) (*task.Snapshot, error) {
	if err := p.objs.OnlyParent.Set(uint32(only)); err != nil {
		return nil, fmt.Errorf("setting the iterator's filter: %w", err)
	}
	r, err := p.iter.Open()
	if err != nil {
		return nil, fmt.Errorf("opening the task iterator: %w", err)
	}
	defer r.Close()

	s := &task.Snapshot{Source: task.SourceBPF, Began: task.Now(), Parents: map[task.ID]*task.Children{}}
	var cur *task.Children // zombies of one parent tend to be neighbours
	fill := 0
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := r.Read(p.buf[fill:])
		fill += n
		whole := fill - fill%recordSize
		for b := p.buf[:whole]; len(b) > 0; b = b[recordSize:] {
			rec := decode(b)
			if rec.Kind == kindEnd {
				s.Ended, s.Tasks = task.Now(), int(rec.Exited)
				p.remember(s, only != 0)
				return s, nil
			}
			parent := task.ID{PID: int(rec.Parent), Start: p.ticks(rec.ParentStart)}
			if cur == nil || cur.Parent != parent {
				if cur = s.Parents[parent]; cur == nil {
					cur = &task.Children{Parent: parent}
					if n := p.many[parent]; n > 0 {
						cur.Reapable = make([]task.Zombie, 0, n+n/8)
					}
					s.Parents[parent] = cur
				}
			}
			p.add(cur, rec)
		}
		fill = copy(p.buf, p.buf[whole:fill])
		if errors.Is(err, io.EOF) {
			return nil, ErrTruncated
		}
		// A million tasks in a row without a zombie to tell of (MAX_ITER_OBJECTS in
		// kernel/bpf/bpf_iter.c): the next read goes on from there.
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			return nil, fmt.Errorf("reading the task iterator: %w", err)
		}
	}
}

// remember notes how much room the next snapshot will need.
func (p *Probe) remember(s *task.Snapshot, one bool) {
	const lot = 4096
	if !one {
		clear(p.many)
	}
	for id, c := range s.Parents {
		if n := len(c.Reapable); n >= lot {
			p.many[id] = n
		}
	}
}

// Kinds of records, as in kzr.bpf.c.
const (
	_ = iota // reapable
	kindTraced
	kindLeader
	kindEnd
)

func decode(b []byte) kzrRecord {
	le := binary.LittleEndian
	return kzrRecord{
		Pid:         le.Uint32(b),
		Parent:      le.Uint32(b[4:]),
		Start:       le.Uint64(b[8:]),
		ParentStart: le.Uint64(b[16:]),
		Exited:      le.Uint64(b[24:]),
		Tracer:      le.Uint32(b[32:]),
		Kind:        le.Uint32(b[36:]),
	}
}

func (p *Probe) add(c *task.Children, rec kzrRecord) {
	switch rec.Kind {
	case kindTraced:
		c.Traced++
		c.Tracer = task.ID{PID: int(rec.Tracer)}
	case kindLeader:
		c.Leaders++
	default:
		var since time.Duration
		if rec.Exited != 0 {
			since = time.Duration(rec.Exited) + p.offsets.Monotonic
		}
		c.Reapable = append(c.Reapable, task.NewZombie(int(rec.Pid), p.ticks(rec.Start), since, 0))
	}
}

// ticks turns the kernel's nanoseconds into what /proc shows for them.
func (p *Probe) ticks(ns uint64) uint64 {
	return (ns + uint64(p.offsets.Boottime)) / uint64(time.Second/task.TicksPerSecond)
}

func pidNamespace() (uint64, error) {
	var ino uint64
	target, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return 0, fmt.Errorf("finding kzr's own pid namespace: %w", err)
	}
	if _, err := fmt.Sscanf(target, "pid:[%d]", &ino); err != nil {
		return 0, fmt.Errorf("finding kzr's own pid namespace in %q: %w", target, err)
	}
	return ino, nil
}
