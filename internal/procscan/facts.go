package procscan

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/container"
	"kzr/internal/readers"
	"kzr/internal/task"
)

// Facts looks at one process. The error wraps ErrGone if there is none, it died
// meanwhile, or the pid is a thread's; what kzr may not read stays zero. A process that
// is dead and not reaped is in state Z.
//
// It comes back within a second or two whatever the process does. What takes a
// reference to its memory is read on threads that may be lost, and little is: stat, and
// for its tracer alone status, which a process can make slow. Where that is late, the
// rest is returned, with TracerUnknown; the answer is kept for the next time. From a
// tenant whose status files are slow, only one is read at a time and nobody waits for
// it.
//
// Where the leader is dead and other threads live on, State, Exiting and signal sets
// are those of one of them; R if they come and go too fast to be looked at.
func (s *Scanner) Facts(ctx context.Context, pid int) (task.ID, task.Facts, error) {
	var id task.ID
	var f task.Facts
	err := s.frugally(func() (err error) {
		id, f, _, err = s.facts(ctx, pid)
		return err
	})
	return id, f, lookError(pid, err)
}

func lookError(pid int, err error) error {
	if gone(err) {
		err = ErrGone
	}
	if err != nil {
		return fmt.Errorf("looking at process %d: %w", pid, err)
	}
	return nil
}

func (s *Scanner) facts(ctx context.Context, pid int) (id task.ID, f task.Facts, unseen []string, err error) {
	p, err := s.find(ctx, pid)
	if err != nil {
		return id, f, nil, err
	}
	defer p.release()
	l, err := read(ctx, p, p.tenant, patience, p.look)
	if err == nil {
		id, f, unseen = task.ID{PID: pid, Start: l.start}, l.Facts, l.unseen
		if f.NSPID, err = p.nspid(); err == nil {
			f.UID, _, err = s.owners(pid, p.pidfd)
		}
	}
	if err == nil && !p.dead && !f.Kernel {
		err = s.addTracer(ctx, p, id, &f)
	}
	if err == nil && !p.dead && (f.State == 'S' || f.Threads > 1) {
		nspid := f.NSPID // f is written while a read that is late goes on
		f.Waits, err = read(ctx, p, p.tenant, patience, func() (task.ID, error) { return p.waits(nspid) })
		f.WaitsUnknown, f.WaitsUnnamed = late(err), errors.Is(err, errUnnamed)
		if f.WaitsUnknown || f.WaitsUnnamed {
			err = nil
		}
	}
	if p.gone() {
		err = unix.ESRCH
	} else if gone(err) { // something else is
		err = fmt.Errorf("%w, but it lives", unlessGone(err))
	}
	if err != nil {
		return task.ID{}, task.Facts{}, nil, err
	}
	return id, f, unseen, nil
}

// errVanished stands for a file that should be there.
var errVanished = errors.New("a file is missing")

func unlessGone(err error) error {
	if gone(err) {
		return errVanished
	}
	return err
}

// look is what one reading of a process found.
type look struct {
	task.Facts
	start  uint64
	unseen []string // what could not be read, for a person
}

// check sorts the error of one part of a look: what is forbidden is noted, and so
// is a path longer than the kernel can tell, which anybody can have; what is not
// there is left out, as a zombie and a kernel thread have no executable, and never
// had. Anything else ends the look.
func (l *look) check(what string, err error) error {
	switch {
	case err == nil, gone(err):
		return nil
	case denied(err), errors.Is(err, unix.ENAMETOOLONG):
		var errno unix.Errno
		errors.As(err, &errno) // that is what was looked at
		l.unseen = append(l.unseen, what+": "+errno.Error())
		return nil
	}
	return fmt.Errorf("reading %s: %w", what, err)
}

// look reads all that is of one moment, stat last.
func (p *process) look() (*look, error) {
	l := &look{}
	ending, going := false, false
	err := p.withBody(func(b body) error {
		*l = look{}
		for name, inode := range map[string]*uint64{"ns/pid": &l.PIDNS, "ns/mnt": &l.MntNS, "ns/user": &l.UserNS} {
			ns, err := namespace(b.dir, name)
			if err := l.check(name, err); err != nil {
				return err
			}
			*inode = ns
		}
		outer, err := outermost(b.dir, l.PIDNS, p.s.pidns)
		if err := l.check("the outermost pid namespace", err); err != nil {
			return err
		}
		l.OuterPIDNS = outer
		if err := p.readCgroups(b.dir, l); err != nil {
			return err
		}
		st, err := statOf(b.dir, "stat")
		if err != nil {
			return err
		}
		l.State, l.Exiting = st.state, st.flags&pfExiting != 0
		if b.dir != p.dir {
			// A thread that ends says nothing of the others.
			ending, going = ending || l.Exiting, going || !l.Exiting
			if l.Exiting {
				return unix.ESRCH
			}
		}
		l.SigBlocked, l.SigIgnored, l.SigCaught = st.blocked, st.ignored, st.caught
		return nil
	})
	if errors.Is(err, errThreads) {
		l.State, l.Exiting, err = 'R', ending && !going, nil
		if cgErr := p.readCgroups(p.dir, l); cgErr != nil {
			return nil, cgErr
		}
	}
	if err != nil {
		return nil, err
	}
	st, err := p.leaderStat()
	if err != nil {
		return nil, err
	}
	l.start, l.PPID, l.Comm, l.Threads = st.start, int(st.ppid), string(st.comm), int(st.threads)
	l.Waited, l.Kernel = st.waited, st.flags&pfKthread != 0
	return l, nil
}

// readCgroups fills in what a process's cgroups say.
func (p *process) readCgroups(dir int, l *look) error {
	file, err := readAll(dir, "cgroup", cgroupMax)
	if err := l.check("cgroup", err); err != nil {
		return err
	}
	l.Cgroup = p.s.cgroups.key(file)
	_, pids := container.Pick(file)
	if l.Pids, err = p.s.pidsLimits(pids); err != nil {
		if err := l.check("the limits of its pids cgroups", err); err != nil {
			return err
		}
	}
	l.Frozen, err = p.s.cgroups.frozen(file)
	return l.check("the freezer of its cgroup", err)
}

// tracing is the answer to who traces a process, when it has come.
type tracing struct {
	at     time.Duration // 0: not yet
	status status
}

const (
	tracingAge = time.Minute            // how old a late answer may be
	tracingMax = 1 << 10                // how many are kept
	slowRead   = 10 * time.Millisecond  // a hundred times the usual
	slowPause  = 250 * time.Millisecond // between two reads for one slow tenant
	slowWait   = 20 * time.Millisecond
)

// addTracer adds who traces the process. Its thread is what the kernel names; its
// process is what people know.
func (s *Scanner) addTracer(ctx context.Context, p *process, id task.ID, f *task.Facts) error {
	st, err := s.status(ctx, p, id)
	switch {
	case late(err), errors.Is(err, errThreads):
		f.TracerUnknown = true
		return nil
	case denied(err):
		return nil
	case err != nil:
		return err
	}
	if _, e := rawInfo(p.pidfd); e != 0 {
		f.UID = st.uid // that was the effective one
	}
	if st.tracer == 0 {
		return nil
	}
	f.Tracer.PID = st.tracer
	tgid, e := s.newWorker().group(uint32(st.tracer))
	if e != 0 {
		return unlessShort(e) // it has let go, or cannot be seen
	}
	f.Tracer.PID = int(tgid)
	if tracer, err := s.parentOf(ctx, int(tgid)); err == nil {
		f.Tracer.Start = tracer.start
	}
	t, err := s.find(ctx, int(tgid))
	if err != nil {
		return unlessShort(err)
	}
	defer t.release()
	f.TracerCgroup, err = read(ctx, t, "cgroup", patience, func() (task.CgroupKey, error) {
		file, err := readAll(t.dir, "cgroup", cgroupMax)
		return s.cgroups.key(file), err
	})
	return unlessShort(err)
}

// status reads the beginning of a process's status file, or takes the answer to an
// earlier look that was late. The error is one of package readers if it is not known.
func (s *Scanner) status(ctx context.Context, p *process, id task.ID) (status, error) {
	now := task.Now()
	wait := patience
	s.mu.Lock()
	t := s.tracings[id]
	switch next, slow := s.slow[p.tenant]; {
	case t != nil && t.at == 0:
		s.mu.Unlock()
		return status{}, errStillReading
	case t != nil && now-t.at < tracingAge:
		delete(s.tracings, id)
		s.mu.Unlock()
		return t.status, nil
	case slow && now < next:
		s.mu.Unlock()
		return status{}, errStillReading
	case slow:
		s.slow[p.tenant] = now + slowPause
		wait = slowWait
	}
	if len(s.tracings) >= tracingMax {
		clear(s.tracings)
	}
	t = &tracing{}
	s.tracings[id] = t
	s.mu.Unlock()

	var st status
	got, err := read(ctx, p, p.tenant, wait, func() (status, error) {
		began := task.ThreadTime() // not what a busy machine adds
		err := p.withBody(func(b body) error {
			text, err := readAll(b.dir, "status", textSize)
			st = parseStatus(text)
			if err == nil && b.dir != p.dir && st.ppid != 0 {
				return errAnswered
			}
			return err
		})
		if errors.Is(err, errAnswered) {
			err = nil
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		now := task.Now()
		switch {
		case err != nil:
			delete(s.tracings, id)
		case task.ThreadTime()-began >= slowRead:
			s.slow[p.tenant] = now + slowPause
		default:
			delete(s.slow, p.tenant)
		}
		t.at, t.status = now, st
		return st, err
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(err, readers.ErrLate) {
		s.slow[p.tenant] = task.Now() + slowPause
		return status{}, err // it is kept for the next time
	}
	if s.tracings[id] == t {
		delete(s.tracings, id)
	}
	return got, err
}

// errAnswered ends a search for a thread that stays. Where each lives for a millisecond
// and its status takes twenty, none does; but what was read has a parent, so it was
// read while the thread had not been released, and its tracer with it.
var errAnswered = errors.New("the thread has answered")

// errStillReading says that an earlier read is under way, or was a moment ago.
var errStillReading = fmt.Errorf("%w: its status file is slow", readers.ErrBusy)
