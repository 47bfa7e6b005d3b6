// Package probe is kzr's view through eBPF. Out of it flow hints (a parent has
// gathered zombies: look) and snapshots (every zombie and its parent, from the
// kernel's own task list). It is the only package that knows eBPF.
package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
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
	// IterOnly leaves out the exit program, whose maps and verification are most of
	// what opening costs: there are no hints, no exit times and no stances. What looks
	// at a single process is loaded when that is first done.
	IterOnly bool
}

// Counters are running totals of the kernel side.
type Counters struct {
	Exits uint64 // thread groups that died
	Walks uint64 // times a parent's children were counted
	Hints uint64 // records sent to user space
	Lost  uint64 // records dropped because the ring was full
}

type objects struct {
	ListZombies *ebpf.Program  `ebpf:"list_zombies"`
	Level       *ebpf.Variable `ebpf:"level"`
	Epoch       *ebpf.Variable `ebpf:"epoch"`
	Attached    *ebpf.Variable `ebpf:"attached"`
}

// exitObjects are what IterOnly leaves out.
type exitObjects struct {
	OnExit  *ebpf.Program `ebpf:"on_exit"`
	OnClone *ebpf.Program `ebpf:"on_clone"`
	Hints   *ebpf.Map     `ebpf:"hints"`
	Counts  *ebpf.Map     `ebpf:"counts"`
}

// Probe is loaded and attached. Its methods may be called from any goroutine.
type Probe struct {
	objs    objects
	exits   exitObjects
	exit    link.Link // nil with IterOnly, as are clone, ring and stance
	clone   link.Link
	ring    *ringbuf.Reader
	iter    *link.Iter
	stance  *stance
	offsets task.Offsets
	tick    time.Duration // how early the exit program's moments may be

	types    *ebpf.CollectionOptions // for what is loaded later
	lookOnce sync.Once
	lookObjs lookObjects
	lookAt   look

	mu    sync.Mutex // one snapshot at a time
	epoch uint16
	buf   []byte
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

	var tick unix.Timespec // the coarse clock goes on with each
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick); err != nil {
		return nil, fmt.Errorf("asking for the length of a tick: %w", err)
	}
	p := &Probe{offsets: opts.Offsets, tick: time.Duration(tick.Nano()), buf: make([]byte, 64<<10), many: map[task.ID]int{}}
	if err := spec.Variables["level"].Set(uint32(max(opts.Level, MinLevel))); err != nil {
		return nil, fmt.Errorf("setting the hint level: %w", err)
	}
	// The kernel's types take longer to read than a program to load.
	p.types = &ebpf.CollectionOptions{Cache: btf.NewCache()}
	var err error
	if opts.IterOnly {
		// What nobody fills need not be there.
		spec.Maps["stamps"].MaxEntries = 1
		spec.Maps["imposed"].MaxEntries = 1
		err = spec.LoadAndAssign(&p.objs, p.types)
	} else {
		all := struct {
			*objects
			*exitObjects
			*lookObjects
		}{&p.objs, &p.exits, &p.lookObjs}
		err = spec.LoadAndAssign(&all, p.types)
	}
	if err != nil {
		return nil, refusal(err, memlock)
	}
	if err := p.attach(opts.IterOnly); err != nil {
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

func (p *Probe) attach(iterOnly bool) (err error) {
	if p.iter, err = link.AttachIter(link.IterOptions{Program: p.objs.ListZombies}); err != nil {
		return fmt.Errorf("attaching the task iterator: %w", err)
	}
	if iterOnly {
		return nil
	}
	p.look()
	p.stance = newStance(p.types)
	p.types = nil
	if p.ring, err = ringbuf.NewReader(p.exits.Hints); err != nil {
		return fmt.Errorf("opening the ring buffer: %w", err)
	}
	if p.exit, err = link.AttachTracing(link.TracingOptions{Program: p.exits.OnExit}); err != nil {
		return fmt.Errorf("attaching to sched_process_exit: %w", err)
	}
	if p.clone, err = link.AttachTracing(link.TracingOptions{Program: p.exits.OnClone}); err != nil {
		return fmt.Errorf("attaching to task_newtask: %w", err)
	}
	if err := p.objs.Attached.Set(uint64(task.SinceBoot() - p.offsets.Boottime)); err != nil {
		return fmt.Errorf("noting when the programs were attached: %w", err)
	}
	return nil
}

// Close detaches and frees everything. No other method may be running or follow: see
// StopHints.
func (p *Probe) Close() error {
	var errs []error
	for _, l := range []link.Link{p.exit, p.clone} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	if p.iter != nil {
		errs = append(errs, p.iter.Close())
	}
	if p.ring != nil {
		errs = append(errs, p.ring.Close())
	}
	if p.stance != nil {
		errs = append(errs, p.stance.prog.Close())
	}
	l, x := &p.lookObjs, &p.exits
	return errors.Join(append(errs, p.objs.ListZombies.Close(), l.Look.Close(), l.FactsOf.Close(), l.Looks.Close(),
		x.OnExit.Close(), x.OnClone.Close(), x.Hints.Close(), x.Counts.Close())...)
}

// StopHints ends [Probe.Hints]; the probe still takes snapshots.
func (p *Probe) StopHints() {
	if p.ring != nil {
		_ = p.ring.Close()
	}
}

// SetLevel changes the number of zombies from which on a parent is hinted at.
func (p *Probe) SetLevel(n int) error {
	if err := p.objs.Level.Set(uint32(max(n, MinLevel))); err != nil {
		return fmt.Errorf("setting the hint level: %w", err)
	}
	return nil
}

// Attached fails if one of the programs at exit and clone is attached no more, so that
// no hint comes and no exit is stamped. It costs two system calls.
func (p *Probe) Attached() error {
	for _, l := range []struct {
		link link.Link
		at   string
	}{{p.exit, "sched_process_exit"}, {p.clone, "task_newtask"}} {
		if l.link == nil {
			return fmt.Errorf("the program at %s was not attached", l.at)
		}
		if _, err := l.link.Info(); err != nil && !errors.Is(err, ebpf.ErrNotSupported) {
			return fmt.Errorf("the program at %s is attached no more: %w", l.at, err)
		}
	}
	return nil
}

// drainEvery is the rest after the ring was emptied; a hint is in time for a second.
// What comes meanwhile has to fit in: 4,096 are 200,000 a second.
const drainEvery = 20 * time.Millisecond

// Hints calls f for each hint until the probe is closed. A hint with Lost set
// follows whenever the ring overflowed.
func (p *Probe) Hints(f func(task.Hint)) error {
	if p.ring == nil {
		return nil
	}
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
	if p.exits.Counts == nil {
		return Counters{}, nil
	}
	if err := p.exits.Counts.Lookup(uint32(0), &per); err != nil {
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
