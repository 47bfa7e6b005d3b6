package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
)

// Kinds of records, as in kzr.bpf.c.
const (
	kindReapable = iota
	kindTraced
	kindLeader
	kindEnd
	kindFacts
)

const (
	zombieSize = int(unsafe.Sizeof(kzrZombie{}))
	factsSize  = int(unsafe.Sizeof(kzrFacts{}))
	limitSize  = int(unsafe.Sizeof(kzrFacts{}.Limit[0]))
)

// Snapshot lists every zombie of the node, and the facts of each parent. It costs
// about a microsecond for each zombie, three for each parent, and a tenth of one for
// each other task.
func (p *Probe) Snapshot(ctx context.Context) (*task.Snapshot, error) {
	s, err := p.sweep(ctx)
	if err != nil {
		return nil, err
	}
	// Of a parent that slipped through the table of those seen.
	for id, c := range s.Parents {
		if c.Facts != nil {
			continue
		}
		if got, f, err := p.Facts(ctx, id.PID); err == nil && got == id {
			c.Facts = &f
		}
	}
	return s, nil
}

func (p *Probe) sweep(ctx context.Context) (*task.Snapshot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.epoch++
	if err := p.objs.Epoch.Set(uint32(p.epoch)); err != nil {
		return nil, fmt.Errorf("numbering the snapshot: %w", err)
	}
	r, err := p.iter.Open()
	if err != nil {
		return nil, fmt.Errorf("opening the task iterator: %w", err)
	}
	defer r.Close()

	s := &task.Snapshot{Source: task.SourceBPF, Began: task.Now(), Parents: map[task.ID]*task.Children{}}
	b := builder{p: p, s: s}
	fill := 0
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := r.Read(p.buf[fill:])
		fill += n
		used := 0
		for {
			size, end := b.record(p.buf[used:fill])
			if end {
				p.remember(s)
				return s, nil
			}
			if size == 0 {
				break
			}
			used += size
		}
		fill = copy(p.buf, p.buf[used:fill])
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
func (p *Probe) remember(s *task.Snapshot) {
	const lot = 4096
	clear(p.many)
	for id, c := range s.Parents {
		if n := len(c.Reapable); n >= lot {
			p.many[id] = n
		}
	}
}

// builder puts records together to a snapshot.
type builder struct {
	p   *Probe
	s   *task.Snapshot
	cur *task.Children // zombies of one parent tend to be neighbours
}

func (b *builder) children(id task.ID) *task.Children {
	if b.cur != nil && b.cur.Parent == id {
		return b.cur
	}
	b.cur = b.s.Parents[id]
	if b.cur == nil {
		b.cur = &task.Children{Parent: id}
		if n := b.p.many[id]; n > 0 {
			b.cur.Reapable = make([]task.Zombie, 0, n+n/8)
		}
		b.s.Parents[id] = b.cur
	}
	return b.cur
}

// record takes the first record off buf and returns its size, 0 if it is not all
// there; or the end of the snapshot.
func (b *builder) record(buf []byte) (size int, end bool) {
	if len(buf) < 8 {
		return 0, false
	}
	if buf[0] == kindFacts {
		var f kzrFacts
		size = factsSize - (len(f.Limit)-int(buf[2]))*limitSize
		if len(buf) < size {
			return 0, false
		}
		copy(bytesOf(&f), buf[:size])
		id, facts := b.p.facts(&f)
		b.children(id).Facts = &facts
		return size, false
	}
	if len(buf) < zombieSize {
		return 0, false
	}
	var z kzrZombie
	copy(bytesOf(&z), buf)
	if z.Kind == kindEnd {
		b.s.Ended, b.s.Tasks = task.Now(), int(z.Exited)
		return 0, true
	}
	parent := b.p.id(z.Parent, z.ParentStart)
	c := b.children(parent)
	zombie := b.p.zombie(&z)
	switch z.Kind {
	case kindTraced:
		c.Traced++
		c.Tracer = b.p.id(z.Tracer, z.TracerStart)
		tracer := b.children(c.Tracer)
		tracer.Held = append(tracer.Held, task.HeldZombie{Zombie: zombie, Of: parent})
	case kindLeader:
		c.Leaders++
	default:
		c.Reapable = append(c.Reapable, zombie)
	}
	return zombieSize, false
}

// bytesOf is the memory of a record.
func bytesOf[T any](record *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(record)), unsafe.Sizeof(*record))
}

func (p *Probe) zombie(z *kzrZombie) task.Zombie {
	flags := task.Flag(z.Flags)
	if z.Kind == kindTraced {
		flags |= task.Held
	}
	var since time.Duration
	if z.Exited != 0 {
		// What the exit program noted is a tick early at most: nothing is made older.
		since = time.Duration(z.Exited) + p.tick + p.offsets.Monotonic
	}
	return task.NewZombie(int(z.Pid), p.ticks(z.Start), since, flags)
}

func (p *Probe) id(pid uint32, start uint64) task.ID {
	if pid == 0 {
		return task.ID{}
	}
	return task.ID{PID: int(pid), Start: p.ticks(start)}
}

// ticks turns the kernel's nanoseconds into what /proc shows for them.
func (p *Probe) ticks(ns uint64) uint64 {
	return (ns + uint64(p.offsets.Boottime)) / uint64(time.Second/task.TicksPerSecond)
}

// Bits of kzrFacts.
const (
	factSubreaper = 1 << iota
	factWaited
	factFrozen
)

// Bits of a task's flags: include/linux/sched.h.
const (
	pfExiting = 0x00000004
	pfKthread = 0x00200000
)

func (p *Probe) facts(f *kzrFacts) (task.ID, task.Facts) {
	facts := task.Facts{
		PPID:         int(f.Ppid),
		Comm:         unix.ByteSliceToString(f.Comm[:]),
		UID:          f.Uid,
		State:        state(f.State, f.ExitState),
		Threads:      int(f.Threads),
		Kernel:       f.Flags&pfKthread != 0,
		Exiting:      f.Flags&pfExiting != 0,
		Frozen:       f.Bits&factFrozen != 0,
		Subreaper:    f.Bits&factSubreaper != 0,
		Waited:       f.Bits&factWaited != 0,
		Tracer:       p.id(f.Tracer, f.TracerStart),
		TracerCgroup: cgroups(f.TracerCgroups),
		SigCaught:    f.Caught,
		SigIgnored:   f.Ignored,
		SigBlocked:   f.Blocked,
		Waits:        p.id(f.Waits, f.WaitsStart),
		PIDNS:        uint64(f.PidNs),
		MntNS:        uint64(f.MntNs),
		UserNS:       uint64(f.UserNs),
		OuterPIDNS:   uint64(f.OuterPidNs),
		Cgroup:       cgroups(f.Cgroups),
		Pids:         limits(f.Limit[:f.Limits]),
	}
	for _, pid := range f.Nspid[:min(int(f.Level)+1, len(f.Nspid))] {
		facts.NSPID = append(facts.NSPID, int(pid))
	}
	if int(f.Level) >= len(f.Nspid) {
		facts.NSPID = append(facts.NSPID, int(f.Innermost))
	}
	return p.id(f.Pid, f.Start), facts
}

func cgroups(c kzrCgroups) task.CgroupKey {
	return task.CgroupKey{Set: c.Set, ID: c.Id, Pids: c.Pids}
}

// state is the letter that /proc shows: task_state_index in include/linux/sched.h.
func state(running, exit uint32) byte {
	const (
		report = 0x7f
		idle   = 0x402
		dstate = 0x02
		hidden = 0x1000 | 0x8000 // in an rt lock, frozen: shown as D
	)
	s := (running | exit) & report
	if running&idle == idle {
		return 'I'
	}
	if running&hidden != 0 {
		s = dstate
	}
	letter := byte('R')
	for _, l := range []byte("SDTtXZP") {
		if s&1 != 0 {
			letter = l
		}
		s >>= 1
	}
	return letter
}

// limits returns the tightest of those on the path of a process, from the inside
// outwards.
func limits(all []kzrLimit) []task.PidsLimit {
	const most = 8
	var list []task.PidsLimit
	for _, l := range all {
		list = append(list, task.PidsLimit{ID: l.Id, Current: int(l.Current), Limit: int(l.Limit)})
	}
	for len(list) > most {
		widest, room := 0, 0
		for i, l := range list {
			if r := l.Limit - l.Current; r >= room {
				widest, room = i, r
			}
		}
		list = slices.Delete(list, widest, widest+1)
	}
	return list
}
