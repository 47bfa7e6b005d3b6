package procscan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"kzr/internal/container"
	"kzr/internal/task"
)

// Links are what only /proc tells of a live process, in every mode.
type Links struct {
	Exe        string // as in [task.Process]
	ExeDeleted bool
	Cgroup     string // its path in the hierarchy that names containers
	PidsCgroup string // its path in the hierarchy with the pids controller
	Unseen     []string
}

// Links reads them. It comes back in about a second at most. The error wraps ErrGone if
// the process is gone, or one of package readers if it could not be read in time.
func (s *Scanner) Links(ctx context.Context, id task.ID) (Links, error) {
	var links Links
	err := s.frugally(func() (err error) {
		links, err = s.links(ctx, id)
		return err
	})
	return links, lookError(id.PID, err)
}

func (s *Scanner) links(ctx context.Context, id task.ID) (Links, error) {
	p, err := s.findID(ctx, id)
	if err != nil {
		return Links{}, err
	}
	defer p.release()
	links, err := read(ctx, p, p.tenant, patience, p.links)
	if p.gone() {
		return Links{}, unix.ESRCH
	}
	return links, unlessGone(err)
}

// Inspect is Facts and Links of one process.
func (s *Scanner) Inspect(ctx context.Context, pid int) (task.Process, error) {
	var p task.Process
	err := s.frugally(func() error {
		id, f, unseen, err := s.facts(ctx, pid)
		if err != nil {
			return err
		}
		l, err := s.links(ctx, id)
		p = task.Process{
			ID: id, Facts: f, Exe: l.Exe, ExeDeleted: l.ExeDeleted, Cgroup: l.Cgroup, PidsCgroup: l.PidsCgroup,
			Unseen: append(l.Unseen, unseen...),
		}
		slices.Sort(p.Unseen)
		p.Unseen = slices.Compact(p.Unseen)
		return err
	})
	if err != nil {
		return task.Process{}, lookError(pid, err)
	}
	return p, nil
}

// findID opens the process with this identity.
func (s *Scanner) findID(ctx context.Context, id task.ID) (*process, error) {
	p, err := s.find(ctx, id.PID)
	if err != nil {
		return nil, err
	}
	start, err := p.start(ctx)
	if err == nil && start != id.Start {
		err = unix.ESRCH
	}
	if err != nil {
		p.release()
		return nil, err
	}
	return p, nil
}

func (p *process) start(ctx context.Context) (uint64, error) {
	if p.dead {
		st, err := statOf(p.dir, "stat")
		return st.start, err
	}
	is, err := p.s.parentOf(ctx, p.pid)
	if p.gone() { // and its pid may be another one's
		err = unix.ESRCH
	}
	return is.start, err
}

func (p *process) links() (Links, error) {
	var links Links
	err := p.withBody(func(b body) error {
		links = Links{}
		l := look{}
		exe, err := readlinkat(b.dir, "exe")
		if errors.Is(err, unix.ENAMETOOLONG) {
			exe, err = task.LongExe, nil
		}
		if err := l.check("exe", err); err != nil {
			return err
		}
		links.Exe = exe
		if name, ok := strings.CutSuffix(exe, deletedSuffix); ok {
			literal, err := exists(b.dir, exe)
			if err != nil {
				return fmt.Errorf("looking for the executable: %w", err)
			}
			if !literal {
				links.Exe, links.ExeDeleted = name, true
			}
		}
		file, err := readAll(b.dir, "cgroup", cgroupMax)
		if err := l.check("cgroup", err); err != nil {
			return err
		}
		links.Cgroup, links.PidsCgroup = container.Pick(file)
		links.Unseen = l.unseen
		return nil
	})
	return links, err
}

const deletedSuffix = " (deleted)"

// resolveCached is RESOLVE_CACHED of linux/openat2.h: fail rather than wait.
const resolveCached = 0x20

// exists says whether the executable really has the name that its link shows.
// The kernel adds " (deleted)" to the name of a file that was unlinked, but a
// file can be called that.
//
// The file system may be a tenant's own, which need not answer: nothing here
// asks it, only what the kernel has cached. The name of a running executable
// is; where the kernel cannot look only there (before 5.12), the suffix is
// taken for the kernel's.
func exists(dir int, name string) (bool, error) {
	exe, err := openat(dir, "exe", unix.O_PATH)
	if err != nil {
		return false, unlessShort(err)
	}
	defer func() { _ = unix.Close(exe) }() // O_PATH: nothing is lost
	var want unix.Statx_t
	if cachedStat(exe, &want) != nil || want.Nlink == 0 {
		return false, nil
	}
	named := func(root int, resolve uint64) (bool, error) {
		fd, err := unix.Openat2(root, name, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: resolveCached | resolve,
		})
		if err != nil {
			return false, unlessShort(err)
		}
		defer func() { _ = unix.Close(fd) }() // O_PATH: nothing is lost
		var got unix.Statx_t
		return cachedStat(fd, &got) == nil && got.Ino == want.Ino &&
			got.Dev_major == want.Dev_major && got.Dev_minor == want.Dev_minor, nil
	}
	// The link's text starts at kzr's root where kzr can reach the file, else at
	// the root of the process's mount namespace, which may be the process's.
	if found, err := named(unix.AT_FDCWD, 0); found || err != nil {
		return found, err
	}
	root, err := openat(dir, "root", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return false, unlessShort(err)
	}
	defer func() { _ = unix.Close(root) }() // O_PATH: nothing is lost
	return named(root, unix.RESOLVE_IN_ROOT)
}

// unlessShort keeps only the errors that come from a want of descriptors: they
// say nothing about what was looked for.
func unlessShort(err error) error {
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return err
	}
	return nil
}

func cachedStat(fd int, st *unix.Statx_t) error {
	return unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO|unix.STATX_NLINK, st)
}

// Cmdline reads the command line of a process, at most 4 KiB of it; nil if it has
// none, is gone, may not be read, or it takes too long: it needs the process's memory,
// and the lock of that, which a thread stuck in the kernel can hold for ever.
func (s *Scanner) Cmdline(ctx context.Context, id task.ID) []string {
	args, err := s.cmdline(ctx, id)
	if err != nil {
		return nil // said above
	}
	return args
}

func (s *Scanner) cmdline(ctx context.Context, id task.ID) ([]string, error) {
	p, err := s.findID(ctx, id)
	if err != nil {
		return nil, err
	}
	defer p.release()
	return readOn(ctx, p.s.cmdlines, p, p.tenant, patience, func() (args []string, err error) {
		err = p.withBody(func(b body) error {
			if b.stat.state == 'D' {
				return nil
			}
			text, err := readAll(b.dir, "cmdline", cmdlineMax)
			args = splitCmdline(text)
			return err
		})
		return args, err
	})
}

// cmdlineMax is how much of a command line is kept.
const cmdlineMax = 4096

// splitCmdline takes a command line apart. What was cut off is simply missing.
func splitCmdline(b []byte) []string {
	b = bytes.TrimSuffix(b, []byte{0})
	if len(b) == 0 {
		return nil
	}
	return strings.Split(string(b), "\x00")
}

// Comm is the name of a process, alive or dead, "" if it is gone.
func (s *Scanner) Comm(id task.ID) string { return s.small(id, "comm") }

// Wchan is the function of the kernel that a process sleeps in, "" if it runs or that
// cannot be read.
func (s *Scanner) Wchan(id task.ID) string {
	if name := s.small(id, "wchan"); name != "0" {
		return name
	}
	return ""
}

// LeaderDead says that the main thread of a process has ended, which makes ps show it as
// a zombie. Facts tell of a thread that lives.
func (s *Scanner) LeaderDead(id task.ID) bool {
	st, err := parseStat([]byte(s.small(id, "stat") + "\n"))
	return err == nil && st.state == 'Z'
}

// small reads a short file of a process that takes no reference to its memory.
func (s *Scanner) small(id task.ID, name string) string {
	ctx := context.Background() // it has its patience
	p, err := s.findID(ctx, id)
	if err != nil {
		return ""
	}
	defer p.release()
	text, err := read(ctx, p, p.tenant, patience, func() ([]byte, error) { return readAll(p.dir, name, 4096) })
	if err != nil {
		return ""
	}
	return string(bytes.TrimSuffix(text, []byte{'\n'}))
}

// ZombieCgroup is the path of the cgroup that a zombie was in: what is left of the
// container that it came from. "" if it is gone, or lives.
func (s *Scanner) ZombieCgroup(id task.ID) string {
	p, err := s.findID(context.Background(), id)
	if err != nil {
		return ""
	}
	defer p.release()
	if !p.dead {
		return ""
	}
	file, err := read(context.Background(), p, "cgroup", patience, func() ([]byte, error) {
		return readAll(p.dir, "cgroup", cgroupMax)
	})
	if err != nil {
		return ""
	}
	if unified, ok := valueOf(file, "0::"); ok {
		return strings.TrimSuffix(string(unified), deletedSuffix)
	}
	name, _ := container.Pick(file)
	return name
}

// Kin is a process in the words of its stat line.
type Kin struct {
	PID   int
	Comm  string // raw
	State byte
}

// LiveChildren describes the children of a process that are not among its
// zombies, at most limit of them, by pid; total is how many there are. It is for
// people: children that come and go meanwhile may be missing, and where the
// kernel keeps no lists of children, all are.
func (s *Scanner) LiveChildren(id task.ID, zombies *task.Children, limit int) (first []Kin, total int) {
	w := s.newWorker()
	pids, err := w.listChildren(uint32(id.PID))
	if err != nil && !errors.Is(err, errUnsure) {
		return nil, 0
	}
	for _, pid := range pids {
		if zombies != nil {
			if _, dead := slices.BinarySearchFunc(zombies.Reapable, int(pid), func(z task.Zombie, pid int) int { return z.PID() - pid }); dead {
				continue
			}
		}
		if len(first) == limit {
			total++
			continue
		}
		k, ok := s.kin(int(pid))
		if ok {
			first = append(first, k)
			total++
		}
	}
	return first, total
}

// kin describes a child that lives.
func (s *Scanner) kin(pid int) (Kin, bool) {
	ctx := context.Background() // it has its patience
	p, err := s.find(ctx, pid)
	if err != nil {
		return Kin{}, false
	}
	defer p.release()
	if p.dead {
		return Kin{}, false
	}
	st, err := read(ctx, p, p.tenant, patience, p.leaderStat)
	if err != nil {
		return Kin{}, false
	}
	return Kin{PID: pid, Comm: string(st.comm), State: st.state}, true
}
