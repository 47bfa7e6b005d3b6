// Package readers reads what may never answer: files of /proc whose reader can be made
// to wait for ever by the process that they are about, and file systems that their
// owner serves himself. Functions flow in, and what they return flows out within a
// given time, or that it is late.
package readers

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"kzr/internal/footprint"
)

// ErrLate says that a read took longer than the patience that it was given. It still
// runs; its thread is used again when it comes back.
var ErrLate = errors.New("no answer in time")

// ErrBusy says that a read was not begun: no thread was free in time, or the key has
// all that it may have.
var ErrBusy = errors.New("earlier reads have not come back")

// Pool is a number of threads that may be lost to reads that never come back, some
// for ever: a thread in an uninterruptible wait outlives even SIGKILL.
//
// No thread is made after New. Each of the pool's goroutines is locked to a thread of
// its own, so a read that blocks holds up that thread and takes none from Go's
// scheduler. What the scheduler does need is a thread to go on with: it finds after
// 20 µs or more (sysmon) that the thread is in a system call, takes its P away, and
// looks for an idle thread to run it. There is one for each P at any time, because
// the thread that passed its P to the locked one went idle over it. So a pool costs
// its own threads, GOMAXPROCS spare ones, however many reads are blocked, and one that
// the runtime keeps for starting others (the template thread) as soon as anything is
// locked. New makes all of these. It may take idle threads that somebody else had
// made for another purpose: whoever keeps spare ones makes them after New.
//
// For the same reason a read must be an ordinary system call: one that Go's scheduler
// does not know of (RawSyscall) keeps its P, and with it the whole program at the next
// garbage collection.
type Pool struct {
	threads, perKey int
	work            chan func()

	mu       sync.Mutex
	keys     map[string]*use
	all      use
	returned chan struct{} // closed and replaced whenever a thread comes back
}

// use counts threads.
type use struct {
	out  int // with a read under way
	late int // those of them that nobody waits for any more
}

// New makes a pool of so many threads, of which no key holds more than perKey at a
// time.
func New(threads, perKey int) *Pool {
	p := &Pool{
		threads: threads, perKey: perKey,
		work:     make(chan func(), threads),
		keys:     make(map[string]*use),
		returned: make(chan struct{}),
	}
	var locked sync.WaitGroup
	for range threads {
		locked.Add(1)
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			locked.Done()
			for f := range p.work {
				f()
			}
		}()
	}
	locked.Wait()
	footprint.SpareThreads(runtime.GOMAXPROCS(0))
	return p
}

// Close lets the threads go, those that are late when they come back. No Read may be
// under way or follow.
func (p *Pool) Close() { close(p.work) }

// Lost is the number of threads whose reads are late and have not come back.
func (p *Pool) Lost() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all.late
}

// Read runs f on a thread of the pool and returns what it returns. It is back within
// patience, or when ctx is done, with ErrLate, ErrBusy or the context's error. The key
// stands for whoever decides how long f takes: at most perKey threads are lost to
// it, and once they are, it gets ErrBusy at once.
func Read[T any](ctx context.Context, p *Pool, key string, patience time.Duration, f func() (T, error)) (T, error) {
	var none T
	timer := time.NewTimer(patience)
	defer timer.Stop()
	k, err := p.acquire(ctx, key, timer.C)
	if err != nil {
		return none, err
	}
	type answer struct {
		value T
		err   error
	}
	answered := make(chan answer, 1)
	late := false // protected by p.mu
	p.work <- func() {
		value, err := f()
		answered <- answer{value, err}
		p.release(key, k, &late)
	}
	select {
	case a := <-answered:
		return a.value, a.err
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
		err = ErrLate
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case a := <-answered: // at the same moment
		return a.value, a.err
	default:
	}
	late = true
	k.late++
	p.all.late++
	return none, err
}

// acquire reserves a thread.
func (p *Pool) acquire(ctx context.Context, key string, expired <-chan time.Time) (*use, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p.mu.Lock()
		k := p.keys[key]
		if k == nil {
			k = &use{}
		}
		switch {
		case k.late >= p.perKey || p.all.late >= p.threads:
			p.mu.Unlock()
			return nil, ErrBusy
		case k.out < p.perKey && p.all.out < p.threads:
			p.keys[key] = k
			k.out++
			p.all.out++
			p.mu.Unlock()
			return k, nil
		}
		returned := p.returned
		p.mu.Unlock()
		select {
		case <-returned:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-expired:
			return nil, ErrBusy
		}
	}
}

// release gives a thread back.
func (p *Pool) release(key string, k *use, late *bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k.out--
	p.all.out--
	if *late {
		k.late--
		p.all.late--
	}
	if k.out == 0 {
		delete(p.keys, key)
	}
	close(p.returned)
	p.returned = make(chan struct{})
}
