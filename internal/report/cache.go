package report

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"
)

// errBusy means that an answer could not be made in time or in bounds.
var errBusy = errors.New("kzr is busy")

// cache makes each answer at most once in ttl, one at a time, and shares it: two
// hundred clients cost the daemon one. An answer that takes longer than its asker
// waits is made all the same, and kept until it has been asked for again: on a
// node in trouble, which people want to see most of all, each could be such a one.
type cache struct {
	ctx   context.Context // that of the answers; they end with it
	log   *slog.Logger    // hears of faults
	ttl   time.Duration   // from the moment that an answer is first taken
	limit int             // bytes of answers under way to readers beyond which none is made
	turn  chan struct{}   // holds a token while an answer is made

	making sync.WaitGroup

	mu      sync.Mutex
	answers map[string]*answer // the fresh ones
	held    int                // bytes of those that are being read, fresh or not
}

// untaken is how long an answer is kept that nobody waited for: who was told to ask
// again after a second does so, as soon as it has time itself.
const untaken = 5 * time.Second

// errFault is the answer to who sees kzr make a mistake.
var errFault = errors.New("internal error in kzr; see its log")

type answer struct {
	body    []byte
	readers int
	taken   bool
	expiry  *time.Timer
}

func newCache(ctx context.Context, log *slog.Logger, ttl time.Duration, limit int) *cache {
	return &cache{ctx: ctx, log: log, ttl: ttl, limit: limit, turn: make(chan struct{}, 1), answers: make(map[string]*answer)}
}

// get returns a fresh answer, made by render if there is none; the caller must
// release it. Errors are not kept.
func (c *cache) get(ctx context.Context, key string, render func(context.Context) ([]byte, error)) (*answer, error) {
	if a := c.hold(key); a != nil {
		return a, nil
	}
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, errBusy
	}
	type result struct {
		answer *answer
		err    error
	}
	done := make(chan result, 1)
	c.making.Go(func() {
		r := result{err: errFault}
		defer func() {
			if p := recover(); p != nil { // the daemon's own work goes on
				c.log.Error("failed to build an answer", "answer", key, "error", fmt.Sprint(p), "stack", string(debug.Stack()))
			}
			<-c.turn
			done <- r
		}()
		r.answer, r.err = c.make(key, render)
	})
	select {
	case r := <-done:
		if r.err != nil {
			return nil, r.err
		}
		return c.keep(r.answer), nil
	case <-ctx.Done():
		return nil, errBusy
	}
}

// make has an answer made and keeps it for a while. The caller has the turn.
func (c *cache) make(key string, render func(context.Context) ([]byte, error)) (*answer, error) {
	c.mu.Lock()
	a, full := c.answers[key], c.held > c.limit
	c.mu.Unlock()
	switch {
	case a != nil: // made while this one waited
		return a, nil
	case full: // slow readers hold many old answers
		return nil, errBusy
	}
	ctx, cancel := context.WithTimeout(c.ctx, makeTimeout)
	defer cancel()
	body, err := render(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, errBusy
	case err != nil:
		return nil, err
	}
	a = &answer{body: body}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers[key] = a
	a.expiry = time.AfterFunc(untaken, func() { // no timestamps, and nothing is kept while nobody asks
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.answers[key] == a {
			delete(c.answers, key)
		}
	})
	return a, nil
}

func (c *cache) hold(key string) *answer {
	c.mu.Lock()
	a := c.answers[key]
	c.mu.Unlock()
	if a == nil {
		return nil
	}
	return c.keep(a)
}

func (c *cache) keep(a *answer) *answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !a.taken {
		a.taken = true
		a.expiry.Reset(c.ttl)
	}
	if a.readers++; a.readers == 1 {
		c.held += len(a.body)
	}
	return a
}

func (c *cache) release(a *answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.readers--; a.readers == 0 {
		c.held -= len(a.body)
	}
}
