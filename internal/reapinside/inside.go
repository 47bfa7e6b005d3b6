package reapinside

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
)

// Check says whether reaping inside can work here at all, as far as that can be told
// without trying: None, or why not. [Start] tries.
func Check() Refusal {
	if runtime.GOARCH != "amd64" {
		return Unsupported
	}
	// Without CAP_SYS_PTRACE other restrictions would apply, but those are not kzr's.
	if ok, err := task.Capable(unix.CAP_SYS_PTRACE); err != nil || !ok {
		return NoCapability
	}
	if b, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); err == nil && bytes.Equal(bytes.TrimSpace(b), []byte("3")) {
		return Yama
	}
	return None
}

// Error is why there is no helper.
type Error struct {
	Refusal Refusal
	Err     error // what stands behind it, or nil
}

// Cannot is what the message of an [Error] begins with.
const Cannot = "cannot reap inside other processes: "

func (e *Error) Error() string {
	s := Cannot + e.Refusal.String()
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Helper is the process that reaps inside others. Its methods may be called by
// several goroutines at once; it serves one batch at a time.
type Helper struct {
	pid  int
	conn *net.UnixConn
	over chan struct{} // closed at its end

	turn    chan struct{} // whoever has it may speak to the helper
	seq     uint64
	answers chan answerMsg

	closing sync.Once
}

const (
	startPatience = 20 * time.Second // it rehearses
	endPatience   = 2 * time.Second  // of a helper that has nothing under way
	// answerPatience is what the caller waits for at each of the two steps. The
	// helper answers earlier, even if a process holds it up.
	answerPatience = 8 * time.Second
)

// Start makes the helper and returns when it has shown, on a child of its own, that
// it works here. It takes no thread and no process later on. The program's main
// function must call [Serve] before anything else.
func Start(ctx context.Context) (*Helper, error) {
	if r := Check(); r != None {
		return nil, &Error{Refusal: r}
	}
	pid, conn, err := start()
	if err != nil {
		return nil, &Error{Refusal: Forbidden, Err: err}
	}
	h := &Helper{pid: pid, conn: conn, over: make(chan struct{}), turn: make(chan struct{}, 1), answers: make(chan answerMsg, 1)}
	if err := h.greet(ctx); err != nil {
		conn.Close()
		h.wait(endPatience)
		return nil, err
	}
	h.turn <- struct{}{}
	go h.listen()
	return h, nil
}

// greet waits for the helper's first word.
func (h *Helper) greet(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = h.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_ = h.conn.SetReadDeadline(time.Now().Add(startPatience))
	b := make([]byte, maxMessage)
	n, err := h.conn.Read(b)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return &Error{Refusal: HelperGone, Err: err}
	}
	var m helloMsg
	if err := decode(b[:n], kindHello, &m); err != nil {
		return &Error{Refusal: HelperGone, Err: err}
	}
	if m.Refusal != None {
		e := &Error{Refusal: m.Refusal}
		if m.Detail != 0 {
			e.Err = unix.Errno(m.Detail)
		}
		return e
	}
	return h.conn.SetReadDeadline(time.Time{})
}

// listen passes answers on until the helper is gone.
func (h *Helper) listen() {
	defer close(h.over)
	b := make([]byte, maxMessage+1)
	for {
		n, err := h.conn.Read(b)
		var m answerMsg
		if err != nil || decode(b[:n], kindAnswer, &m) != nil {
			h.conn.Close()
			h.wait(endPatience)
			return
		}
		select {
		case <-h.answers: // nobody took it: it came too late
		default:
		}
		h.answers <- m
	}
}

// wait collects the dead helper, if that is kzr's to do.
func (h *Helper) wait(patience time.Duration) {
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		pid, err := unix.Wait4(h.pid, nil, unix.WNOHANG, nil)
		if pid == h.pid || err != nil && !errors.Is(err, unix.EINTR) || time.Now().After(deadline) {
			return
		}
	}
}

// PID is the helper's.
func (h *Helper) PID() int { return h.pid }

// Over is closed when the helper has ended; kzr goes on without.
func (h *Helper) Over() <-chan struct{} { return h.over }

// Close ends the helper. What it has under way it ends well.
func (h *Helper) Close() error {
	err := error(nil)
	h.closing.Do(func() { err = h.conn.Close() })
	<-h.over
	return err
}

// Request is one parent.
type Request struct {
	Parent task.ID
	// Zombies are children of it to be waited for. The caller answers for that the
	// parent does not itself wait for them.
	Zombies []task.Zombie
	// Stance reads what the parent is doing, at the moment of the call: once for each
	// batch. It is called again as long as the parent's state keeps changing.
	Stance func(context.Context) (task.Stance, error)
	// Patience bounds how long all of it may take, with the pauses; 0 is 30 s.
	Patience time.Duration
}

// Result is what was done.
type Result struct {
	Reaped int
	Left   int // zombies that were asked for, are not reaped, and may be there yet
	// Refusal is why some are left; None if they were not reapable any more.
	Refusal Refusal
	Reason  string // the same in words
	Batches int
	// Stopped is how long the parent stood still in all, Longest the longest batch.
	Stopped, Longest time.Duration
	// Timeout is the one of the call that the parent was in, which has begun anew: the
	// parent is to be left alone until it is over. Zero if there is none.
	Timeout time.Duration
}

const (
	patience = 30 * time.Second
	// A parent that cannot be stopped right now is tried again after retryFirst, and
	// then later and later.
	retryFirst = 2 * time.Millisecond
	retryMost  = 500 * time.Millisecond
)

// Reap reaps zombies inside a parent, of which pidfd is one. It returns with what was
// done when there is nothing left to do, when it was refused for a reason that does
// not pass, when the time is up, or after a batch that made a timeout of the parent's
// begin anew. An error means that the helper is gone or could not be asked.
func (h *Helper) Reap(ctx context.Context, pidfd int, r Request) (Result, error) {
	if r.Patience == 0 {
		r.Patience = patience
	}
	// What is under way with the helper is not cut short by that: it is bounded anyway.
	waiting, cancel := context.WithTimeout(ctx, r.Patience)
	defer cancel()
	var res Result
	left := append([]task.Zombie(nil), r.Zombies...)
	retry := retryFirst
	for len(left) > 0 {
		batch := left[:min(len(left), maxBatch)]
		out, err := h.batch(ctx, waiting, pidfd, &r, batch)
		if err != nil && ctx.Err() == nil && waiting.Err() != nil {
			break // the time is up
		}
		if err != nil {
			res.Left = len(left)
			return res, err
		}
		res.Refusal, res.Reason = out.Refusal, ""
		if out.Stopped > 0 {
			res.Batches++
			res.Stopped += time.Duration(out.Stopped)
			res.Longest = max(res.Longest, time.Duration(out.Stopped))
		}
		kept, before := left[:0:0], len(left)
		for i, z := range batch {
			switch out.Fates[i] {
			case reaped:
				res.Reaped++
			case untouched:
				kept = append(kept, z)
			}
		}
		left = append(kept, left[len(batch):]...)
		res.Timeout = min(time.Duration(out.Timeout), maxTimeout)
		if res.Timeout > 0 {
			break
		}
		wait := time.Duration(0) // the helper keeps its pauses by itself
		switch {
		case out.Refusal == NoZombies:
			left = left[len(batch):]
			res.Refusal = None
		case out.Refusal.Transient():
			wait, retry = retry, min(2*retry, retryMost)
		case out.Refusal != None:
			res.Left, res.Reason = len(left), out.Refusal.about(out.Detail)
			return res, nil
		}
		if len(left) < before {
			retry = retryFirst
		}
		res.Reason = out.Refusal.about(out.Detail)
		if waiting.Err() != nil || wait > 0 && !sleep(waiting, wait) {
			break
		}
	}
	res.Left = len(left)
	if res.Left == 0 {
		res.Refusal = None
	}
	if res.Refusal == None {
		res.Reason = ""
	}
	return res, nil
}

// batch is one exchange of the two steps. For its turn it waits as long as waiting
// does.
func (h *Helper) batch(ctx, waiting context.Context, pidfd int, r *Request, zombies []task.Zombie) (answerMsg, error) {
	select {
	case <-h.turn:
	case <-h.over:
		return answerMsg{}, &Error{Refusal: HelperGone}
	case <-waiting.Done():
		return answerMsg{}, waiting.Err()
	}
	defer func() { h.turn <- struct{}{} }()
	m := prepareMsg{PID: int64(r.Parent.PID), Start: r.Parent.Start, N: uint64(len(zombies))}
	for i, z := range zombies {
		m.Zombies[i] = wireZombie{PID: int64(z.PID()), Start: z.Start()}
	}
	m.head = h.head(kindPrepare)
	out, err := h.ask(ctx, &m, unix.UnixRights(pidfd))
	if err != nil || out.Refusal != None {
		return out, err
	}
	if r.Stance == nil {
		return answerMsg{Refusal: NoStance}, nil
	}
	st, err := r.Stance(waiting)
	switch {
	case errors.Is(err, task.ErrGone):
		return answerMsg{Refusal: Gone}, nil
	case errors.Is(err, errors.ErrUnsupported):
		return answerMsg{Refusal: NoStance}, nil
	case err != nil:
		return answerMsg{}, fmt.Errorf("reading what process %d is doing: %w", r.Parent.PID, err)
	}
	return h.ask(ctx, &commitMsg{head: h.head(kindCommit), Stance: newStance(st)}, nil)
}

func (h *Helper) head(k kind) head {
	h.seq++
	return head{Magic: magic, Kind: k, Seq: h.seq}
}

// ask sends a message and waits for its answer. Whoever calls it has the turn.
func (h *Helper) ask(ctx context.Context, msg any, rights []byte) (answerMsg, error) {
	if err := h.conn.SetWriteDeadline(time.Now().Add(answerPatience)); err != nil {
		return answerMsg{}, &Error{Refusal: HelperGone, Err: err}
	}
	if _, _, err := h.conn.WriteMsgUnix(encode(msg), rights, nil); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return answerMsg{Refusal: HelperBusy}, nil
		}
		return answerMsg{}, &Error{Refusal: HelperGone, Err: err}
	}
	late := time.NewTimer(answerPatience)
	defer late.Stop()
	for {
		select {
		case out := <-h.answers:
			if out.Seq == h.seq {
				return out, nil
			}
		case <-h.over:
			return answerMsg{}, &Error{Refusal: HelperGone}
		case <-ctx.Done():
			return answerMsg{}, ctx.Err()
		case <-late.C:
			return answerMsg{Refusal: HelperBusy}, nil
		}
	}
}

// sleep returns false if the context ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
