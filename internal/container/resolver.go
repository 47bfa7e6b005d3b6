package container

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kzr/internal/task"
)

const (
	// maxCached bounds the containers remembered, about 2 KiB each at worst.
	maxCached = 1024
	// maxQueued bounds those waiting to be asked for. What finds no place is
	// asked for when it is next looked up.
	maxQueued = 256
	// retryAfter is how long a container that no runtime knows stays nameless
	// before it is asked for again; each time twice as long, up to refreshAfter.
	retryAfter = 10 * time.Second
	// refreshAfter is how long a name is believed: docker can rename.
	refreshAfter = 10 * time.Minute
	// checkAfter is how often Run looks whether the sockets answer at all.
	checkAfter = time.Minute
)

// Options configure a [Resolver]. The zero value asks at the usual places.
type Options struct {
	// Sockets are the runtimes' unix sockets. nil means [UsualSockets], of which
	// those that exist are asked; empty means that nobody is asked.
	Sockets []string
	// Named is called, in Run's goroutine, with the id of each container whose
	// names have arrived or changed. It must not block. May be nil.
	Named func(id string)
	// Logger is told when a socket stops or starts to answer. May be nil.
	Logger *slog.Logger
}

// Resolver gives containers the names that only their runtime knows. It
// answers from memory at once and asks behind the caller's back, one question
// at a time: a runtime that is slow, dead or hostile costs names and nothing
// else. Its methods may be called concurrently.
type Resolver struct {
	sockets []*socket
	usual   bool
	named   func(id string)
	log     *slog.Logger
	queue   chan Match
	mute    atomic.Pointer[[]string] // see Problems

	mu    sync.Mutex
	cache map[string]*list.Element // of *cached, by container id
	used  *list.List               // the most recently used first
}

// cached is what is known of one container.
type cached struct {
	id     string
	names  names
	known  bool
	queued bool
	due    time.Time     // when to ask (again)
	wait   time.Duration // how long it last stayed unknown
}

// NewResolver makes a Resolver. It asks nothing until Run runs.
func NewResolver(o Options) *Resolver {
	r := &Resolver{
		usual: o.Sockets == nil,
		named: o.Named,
		log:   o.Logger,
		queue: make(chan Match, maxQueued),
		cache: make(map[string]*list.Element),
		used:  list.New(),
	}
	if r.usual {
		o.Sockets = UsualSockets
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	for _, path := range o.Sockets {
		r.sockets = append(r.sockets, newSocket(path))
	}
	return r
}

// Run asks the runtimes what Lookup could not answer, until ctx ends.
func (r *Resolver) Run(ctx context.Context) {
	check := time.NewTicker(checkAfter)
	defer check.Stop()
	r.check(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-check.C:
			r.check(ctx)
		case m := <-r.queue:
			if r.ask(ctx, m) && r.named != nil {
				r.named(m.ID)
			}
		}
	}
}

// check looks which sockets give no names, before the first container is in need
// of one.
func (r *Resolver) check(ctx context.Context) {
	var mute []string
	for _, s := range r.Found(ctx) {
		if s.Err != nil && ctx.Err() == nil {
			mute = append(mute, fmt.Sprintf("%s: cannot get container names: %v", s.Socket, s.Err))
		}
	}
	r.mute.Store(&mute)
}

// Problems says, a sentence each, which runtimes were there and gave no names when
// Run last looked.
func (r *Resolver) Problems() []string {
	if mute := r.mute.Load(); mute != nil {
		return *mute
	}
	return nil
}

// Lookup returns what is known of a container now, and whether that includes
// the runtime's names, or that it has none that could be used. What is missing or
// old is asked for in the background, so looking up a container early is how to
// have its name in time.
//
// It is about the outermost container: inner ids belong to runtimes that kzr
// cannot ask, or are made up.
func (r *Resolver) Lookup(ref Ref) (task.Container, bool) {
	if !r.answerable(ref) {
		return ref.Container(), false
	}
	m := ref.Outer
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.get(m.ID)
	if !c.queued && !time.Now().Before(c.due) {
		select {
		case r.queue <- m:
			c.queued = true
		default:
		}
	}
	return c.fill(ref), c.known
}

// Resolve is Lookup for those who can wait: it asks before it answers if
// nothing is known yet. It needs no Run.
func (r *Resolver) Resolve(ctx context.Context, ref Ref) (task.Container, bool) {
	if !r.answerable(ref) {
		return ref.Container(), false
	}
	r.mu.Lock()
	due := !time.Now().Before(r.get(ref.Outer.ID).due)
	r.mu.Unlock()
	if due {
		r.ask(ctx, ref.Outer)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.get(ref.Outer.ID)
	return c.fill(ref), c.known
}

// Found asks every runtime for its version, all at once, and returns within the
// time that one call may take. Usual places where nothing exists are left out.
func (r *Resolver) Found(ctx context.Context) []RuntimeStatus {
	all := make([]RuntimeStatus, len(r.sockets))
	var wg sync.WaitGroup
	for i, s := range r.sockets {
		wg.Go(func() { all[i] = s.status(ctx) })
	}
	wg.Wait()
	return slices.DeleteFunc(all, func(st RuntimeStatus) bool { return r.absent(st.Err) })
}

// absent says whether err means a usual place that is empty.
func (r *Resolver) absent(err error) bool { return r.usual && errors.Is(err, fs.ErrNotExist) }

func (r *Resolver) answerable(ref Ref) bool {
	return !ref.Delegated && slices.ContainsFunc(r.sockets, func(s *socket) bool { return s.mayKnow(ref.Outer) })
}

// get returns the entry for id, made if need be, as the most recently used.
// r.mu is held.
func (r *Resolver) get(id string) *cached {
	if el, ok := r.cache[id]; ok {
		r.used.MoveToFront(el)
		return el.Value.(*cached)
	}
	if r.used.Len() >= maxCached {
		old := r.used.Remove(r.used.Back()).(*cached)
		delete(r.cache, old.id)
	}
	c := &cached{id: id}
	r.cache[id] = r.used.PushFront(c)
	return c
}

func (c *cached) fill(ref Ref) task.Container {
	t := ref.Container()
	if c.known {
		t.Pod, t.Namespace, t.Name, t.Image = c.names.pod, c.names.namespace, c.names.name, c.names.image
		t.GracePeriod = c.names.grace
		if t.PodUID == "" {
			t.PodUID = c.names.podUID
		}
		if t.Runtime == "" {
			t.Runtime = c.names.runtime
		}
	}
	return t
}

// ask asks for one container and remembers the answer. It reports whether the
// names are news.
func (r *Resolver) ask(ctx context.Context, m Match) (news bool) {
	n, got, until := r.askSockets(ctx, m)
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.get(m.ID)
	c.queued = false
	// Where there is no answer, an old name is better than none: the container
	// may be gone already, and its processes not yet.
	switch got {
	case answered:
		news = !c.known || c.names != n
		c.names, c.known = n, true
		c.due, c.wait = time.Now().Add(refreshAfter), 0
	case refused:
		// Who made it so must not gain by it: it has no names, and no rule waits for
		// them.
		if news = !c.known; news {
			r.log.Warn("unusable container names; rules that match by name do not apply to it", "container", m.ID)
		}
		c.known = true
		c.due, c.wait = time.Now().Add(refreshAfter), 0
	case unknown:
		c.wait = min(max(2*c.wait, retryAfter), refreshAfter)
		c.due = time.Now().Add(c.wait)
	case silent:
		c.due = until
	}
	return news
}

type outcome int

const (
	answered outcome = iota
	refused          // what it answered cannot be used
	unknown          // to all sockets that could be asked
	silent           // no socket could be asked
)

// askSockets returns the names that the first socket to know them gives or, if
// none could be asked, until when that stays so. Of other outcomes the first in
// the list counts.
func (r *Resolver) askSockets(ctx context.Context, m Match) (names, outcome, time.Time) {
	got, until := silent, time.Now().Add(lastPause)
	for _, s := range r.sockets {
		if !s.mayKnow(m) {
			continue
		}
		if t := s.paused(); time.Now().Before(t) {
			if t.Before(until) {
				until = t
			}
			continue
		}
		n, err := s.names(ctx, m)
		if ctx.Err() != nil {
			break
		}
		unusable := errors.Is(err, errGarbled) || errors.Is(err, errRefused)
		failed := err != nil && !unusable && !errors.Is(err, errUnknown)
		switch changed := s.result(!failed); {
		case changed && failed && !r.absent(err):
			r.log.Warn("container runtime does not answer", "socket", s.path, "err", s.explain(err))
		case changed && !failed:
			r.log.Info("container runtime answers again", "socket", s.path)
		case unusable:
			r.log.Debug("container runtime's answer refused", "socket", s.path, "container", m.ID, "err", err)
		}
		switch {
		case err == nil:
			return n, answered, time.Time{}
		case errors.Is(err, errRefused):
			got = refused
		case !failed:
			got = min(got, unknown)
		default:
			if t := s.paused(); t.Before(until) {
				until = t
			}
		}
	}
	return names{}, got, until
}
