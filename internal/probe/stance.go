package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"kzr/internal/task"
)

// ErrNoStance says that kzr cannot see what a process is in the middle of: that needs
// Linux 5.15 on x86-64, and a main thread that lives.
var ErrNoStance = errors.New("what the process is doing cannot be seen")

// stance runs the iterator that looks at what a process is in the middle of.
type stance struct {
	mu   sync.Mutex
	prog *ebpf.Program
	of   *ebpf.Variable
	err  error
}

func newStance(types *ebpf.CollectionOptions) *stance {
	s := &stance{}
	if runtime.GOARCH != "amd64" {
		s.err = ErrNoStance
		return s
	}
	spec, err := loadKzr()
	if err != nil {
		s.err = err
		return s
	}
	var o struct {
		Prog *ebpf.Program  `ebpf:"take_stance"`
		Of   *ebpf.Variable `ebpf:"stance_of"`
	}
	if err := spec.LoadAndAssign(&o, types); err != nil {
		s.err = fmt.Errorf("%w: %w", ErrNoStance, err)
		return s
	}
	s.prog, s.of = o.Prog, o.Of
	return s
}

// Bits of kzrStance.
const (
	stanceInCall = 1 << iota
	stanceMayWait
	stanceDispatch
	stanceShadowStack
	stanceDead
)

// Stance looks at what the main thread of a process is in the middle of. It fails with
// [task.ErrGone], and with [ErrNoStance].
func (p *Probe) Stance(ctx context.Context, id task.ID) (task.Stance, error) {
	s := p.stance
	if s == nil {
		return task.Stance{}, ErrNoStance
	}
	if s.err != nil {
		return task.Stance{}, s.err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.of.Set(uint32(id.PID)); err != nil {
		return task.Stance{}, fmt.Errorf("naming the process to the iterator: %w", err)
	}
	r, err := openTaskIter(s.prog.FD(), id.PID)
	if err != nil {
		return task.Stance{}, fmt.Errorf("opening the iterator over one process: %w", err)
	}
	defer r.Close()
	var k kzrStance
	for {
		if err := ctx.Err(); err != nil {
			return task.Stance{}, err
		}
		_, err := io.ReadFull(r, bytesOf(&k))
		if errors.Is(err, unix.EAGAIN) {
			continue // a million other tasks
		}
		if errors.Is(err, io.EOF) || err == nil && p.ticks(k.Start) != id.Start {
			return task.Stance{}, task.ErrGone
		}
		if err != nil {
			return task.Stance{}, fmt.Errorf("reading the iterator over one process: %w", err)
		}
		break
	}
	if k.Bits&stanceDead != 0 {
		return task.Stance{}, fmt.Errorf("%w: its main thread is dead", ErrNoStance)
	}
	st := task.Stance{
		InCall:       k.Bits&stanceInCall != 0,
		Call:         int64(k.Call),
		Args:         k.Args,
		CS:           k.Cs,
		Seccomp:      int(k.Seccomp),
		Filters:      int(k.Filters),
		MayWait:      k.Bits&stanceMayWait != 0,
		UserDispatch: k.Bits&stanceDispatch != 0,
		ShadowStack:  k.Bits&stanceShadowStack != 0,
		Pending:      k.Pending,
	}
	return st, nil
}

// openTaskIter opens a task iterator that visits one thread. A kernel before 6.1 knows
// no such thing, and visits all of them.
func openTaskIter(prog, pid int) (*os.File, error) {
	info := struct{ tid, pid, pidfd uint32 }{tid: uint32(pid)}
	create := struct {
		prog, target, attachType, flags uint32
		info                            unsafe.Pointer
		infoLen, pad                    uint32
	}{
		prog: uint32(prog), attachType: uint32(ebpf.AttachTraceIter),
		info: unsafe.Pointer(&info), infoLen: uint32(unsafe.Sizeof(info)),
	}
	link, err := bpf(unix.BPF_LINK_CREATE, unsafe.Pointer(&create), unsafe.Sizeof(create))
	if errors.Is(err, unix.ESRCH) { // nobody has this pid
		return os.Open(os.DevNull)
	}
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.EINVAL) {
		create.info, create.infoLen = nil, 0
		link, err = bpf(unix.BPF_LINK_CREATE, unsafe.Pointer(&create), unsafe.Sizeof(create))
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(link)
	iter := struct{ link, flags uint32 }{link: uint32(link)}
	fd, err := bpf(unix.BPF_ITER_CREATE, unsafe.Pointer(&iter), unsafe.Sizeof(iter))
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "task iterator"), nil
}

func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
