package procscan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/container"
	"kzr/internal/readers"
)

// A live process is looked at on the threads of a pool, because whatever takes a
// reference to its memory can keep its reader for ever. A tenant can have
// threadsPerTenant of them that way.
const (
	poolThreads      = 16
	threadsPerTenant = 3
	patience         = 500 * time.Millisecond // for one read
)

// Command lines are the easiest to hang, and only shown: they have threads of their
// own, so that containers which hang theirs keep nobody from being looked at.
const cmdlineThreads = 4

// process is one that is being looked at: its pidfd says whether it lives, and what
// is read below its directory is about this one or fails, whoever gets its pid next.
type process struct {
	s      *Scanner
	pid    int
	pidfd  int
	dir    int
	dead   bool // when it was opened
	tenant string
	users  atomic.Int32 // reads under way, late ones too, and whoever opened it
}

// find opens a process. The error is ESRCH if there is none, or the pid is a thread's.
func (s *Scanner) find(ctx context.Context, pid int) (*process, error) {
	if pid <= 0 || pid > maxPID {
		return nil, unix.ESRCH
	}
	pidfd, e := rawPidfdOpen(s.root, uint32(pid))
	if e != 0 {
		return nil, e
	}
	dir, err := openat(s.root, strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		rawClose(pidfd)
		return nil, err
	}
	p := &process{s: s, pid: pid, pidfd: pidfd, dir: dir}
	p.users.Store(1)
	if err := p.begin(ctx); err != nil {
		p.release()
		return nil, err
	}
	return p, nil
}

func (p *process) begin(ctx context.Context) (err error) {
	if rawReaped(p.pidfd) { // and the directory may be another one's
		return unix.ESRCH
	}
	var e unix.Errno
	if p.dead, e = rawDead(p.pidfd); e != 0 {
		return e
	}
	if !p.dead { // else it has no memory
		p.tenant, err = p.findTenant(ctx)
	}
	return err
}

func (p *process) release() {
	if p.users.Add(-1) == 0 {
		rawClose(p.pidfd)
		rawClose(p.dir)
	}
}

// gone says whether it has died, or been reaped if it was dead.
func (p *process) gone() bool {
	if p.dead {
		return rawReaped(p.pidfd)
	}
	dead, e := rawDead(p.pidfd)
	return e == 0 && dead
}

// read runs f on a thread of the pool. The process stays open until f is back.
func read[T any](ctx context.Context, p *process, key string, patience time.Duration, f func() (T, error)) (T, error) {
	return readOn(ctx, p.s.pool, p, key, patience, f)
}

func readOn[T any](ctx context.Context, pool *readers.Pool, p *process, key string, patience time.Duration, f func() (T, error)) (T, error) {
	var begun atomic.Bool
	p.users.Add(1)
	v, err := readers.Read(ctx, pool, key, patience, func() (v T, err error) {
		if !begun.CompareAndSwap(false, true) {
			return v, ctx.Err()
		}
		defer p.release()
		return f()
	})
	if err != nil && begun.CompareAndSwap(false, true) {
		p.release()
		if errors.Is(err, readers.ErrLate) {
			err = readers.ErrBusy // it will not be begun: there is no answer to wait for
		}
	}
	return v, err
}

// findTenant finds a name for whoever decides what becomes of a process, one that
// nobody inside can change: its outermost container, else what no user can make of
// its cgroup's path.
func (p *process) findTenant(ctx context.Context) (string, error) {
	file, err := read(ctx, p, "cgroup", patience, func() ([]byte, error) { return readAll(p.dir, "cgroup", cgroupMax) })
	if err != nil && !errors.Is(err, unix.ENAMETOOLONG) {
		return "", fmt.Errorf("cgroup: %w", err)
	}
	name, _ := container.Pick(file)
	if ref, ok := container.Parse(name); ok && !ref.Delegated {
		return ref.Outer.Cgroup, nil
	}
	if part := strings.SplitN(name, "/", 4); len(part) > 3 {
		name = strings.Join(part[:3], "/")
	}
	if name != "/" && name != "" {
		return name, nil
	}
	ns, err := read(ctx, p, "ns", patience, func() (string, error) { return readlinkat(p.dir, "ns/pid") })
	if err != nil && !denied(err) && !gone(err) {
		return "", fmt.Errorf("ns/pid: %w", err)
	}
	return ns, nil
}

// leaderStat reads the stat line of the leader. As a thread's it tells what that of the
// process does, but does not go through all threads for it.
func (p *process) leaderStat() (stat, error) {
	st, err := statOf(p.dir, "task/"+strconv.Itoa(p.pid)+"/stat")
	if err == nil && int(st.pid) != p.pid {
		return stat{}, unix.ESRCH
	}
	return st, err
}

// parent is what does not change of a live process, but for its users.
type parent struct {
	inode      uint64 // of its pidfds
	start      uint64
	tenant     string
	ruid, suid uint32
	init       bool // pid 1 of a pid namespace
}

// parentsMax bounds how many processes are remembered.
const parentsMax = 1 << 14

// parentOf says who has a pid now, alive. Where the kernel gives a process's pidfds
// an inode number of their own, each is read only once.
func (s *Scanner) parentOf(ctx context.Context, pid int) (parent, error) {
	var inode uint64
	if s.pidfs {
		pidfd, e := rawPidfdOpen(s.root, uint32(pid))
		if e != 0 {
			return parent{}, e
		}
		known, err := s.knownParent(pid, pidfd)
		rawClose(pidfd)
		if err != nil || known.start != 0 {
			return known, err
		}
		inode = known.inode
	}
	p, err := s.find(ctx, pid)
	if err != nil {
		return parent{}, err
	}
	defer p.release()
	if p.dead {
		return parent{}, unix.ESRCH
	}
	st, err := read(ctx, p, p.tenant, patience, p.leaderStat)
	if p.gone() {
		err = unix.ESRCH
	}
	if err != nil {
		return parent{}, err
	}
	nspid, err := p.nspid()
	if err != nil {
		return parent{}, err
	}
	is := parent{
		inode: inode, start: st.start, tenant: p.tenant,
		init: len(nspid) > 1 && nspid[len(nspid)-1] == 1,
	}
	if is.ruid, is.suid, err = s.owners(pid, p.pidfd); err != nil {
		return parent{}, err
	}
	if s.pidfs {
		s.mu.Lock()
		if len(s.parents) >= parentsMax {
			clear(s.parents)
		}
		s.parents[pid] = is
		s.mu.Unlock()
	}
	return is, nil
}

// knownParent returns what is remembered of a live process, with its users as they are
// now; of one that is not, only the inode number.
func (s *Scanner) knownParent(pid, pidfd int) (parent, error) {
	if dead, e := rawDead(pidfd); e != 0 || dead {
		return parent{}, cmp.Or(e, unix.ESRCH)
	}
	st, e := rawFstat(pidfd)
	if e != 0 {
		return parent{}, e
	}
	s.mu.Lock()
	known := s.parents[pid]
	s.mu.Unlock()
	if known.inode != st.Ino {
		return parent{inode: st.Ino}, nil
	}
	var err error
	known.ruid, known.suid, err = s.owners(pid, pidfd)
	return known, err
}

// owners are a process's real and its saved user, whom its children have to be to
// signal it; before Linux 6.13 its effective one for both, which /proc tells without
// its memory.
func (s *Scanner) owners(pid, pidfd int) (ruid, suid uint32, err error) {
	if info, e := rawInfo(pidfd); e == 0 {
		return info.ruid, info.suid, nil
	}
	st, e := rawStat(s.root, append(strconv.AppendInt(nil, int64(pid), 10), 0))
	if rawReaped(pidfd) {
		e = unix.ESRCH
	}
	return st.Uid, st.Uid, failure(e)
}

// nspid is its pid in each pid namespace from kzr's inwards.
func (p *process) nspid() ([]int, error) { return p.s.nspidOf(p.pidfd) }

func (s *Scanner) nspidOf(pidfd int) ([]int, error) {
	b, err := readAll(s.root, "self/fdinfo/"+strconv.Itoa(pidfd), 4096)
	if err != nil {
		return nil, fmt.Errorf("fdinfo: %w", err)
	}
	list, ok := valueOf(b, "NSpid:")
	if !ok { // no pidfd, or a kernel without pid namespaces
		if b, err = readAll(pidfd, "status", statusMax); err != nil {
			return nil, nil //nolint:nilerr,nilnil // said above
		}
		list, _ = valueOf(b, "NSpid:")
	}
	return ints(list), nil
}

// errThreads says that the leader is dead and no other thread stayed long enough to be
// looked at.
var errThreads = errors.New("its threads come and go too fast")

// body is the part of a process that shows what it is: its leader, or, if that is
// dead, any other thread.
type body struct {
	dir  int
	stat stat
}

// withBody runs f on the directory of the leader, or of a live thread if the leader is
// dead. Where that thread ends meanwhile, f runs again on another one. It is to be
// called on a thread of the pool.
func (p *process) withBody(f func(b body) error) error {
	st, err := p.leaderStat()
	if err != nil {
		return err
	}
	if st.state != 'Z' || st.threads <= 1 {
		return f(body{p.dir, st})
	}
	list, err := openat(p.dir, "task", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(list) }() // opened for reading: nothing is lost
	const rounds = 20
	buf := make([]byte, dentsSize)
	for range rounds {
		if _, err := unix.Seek(list, 0, 0); err != nil {
			return err
		}
		// Only the leader stays in the list when it is dead, so the first block of it
		// will do.
		n, err := unix.ReadDirent(list, buf)
		if err != nil {
			return err
		}
		for names := buf[:n]; len(names) > 0; {
			var tid uint32
			if tid, names = nextPID(names); tid == 0 || int(tid) == p.pid {
				continue
			}
			err := onThread(list, tid, f)
			if !gone(err) {
				return err
			}
		}
		if p.gone() {
			return unix.ESRCH
		}
	}
	return errThreads
}

// onThread runs f on one thread; ESRCH if that does not live.
func onThread(list int, tid uint32, f func(b body) error) error {
	dir, err := openat(list, strconv.Itoa(int(tid)), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dir) }() // O_PATH: nothing is lost
	st, err := statOf(dir, "stat")
	if err != nil {
		return err
	}
	if st.state == 'Z' || st.state == 'X' {
		return unix.ESRCH
	}
	if err := f(body{dir, st}); err != nil {
		return err
	}
	// What it lacked it may have lacked for its end.
	_, err = statOf(dir, "stat")
	return err
}

func statOf(dir int, name string) (stat, error) {
	b, err := readAll(dir, name, lineSize)
	if err != nil {
		return stat{}, err
	}
	st, err := parseStat(b)
	if err == nil && st.threads == 0 {
		return stat{}, unix.ESRCH
	}
	return st, err
}
