package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/config"
	"kzr/internal/container"
	"kzr/internal/daemon"
	"kzr/internal/nodeview"
	"kzr/internal/report"
	"kzr/internal/task"
	"kzr/internal/top"
)

// backlog is how many events wait for the screen before some are lost.
const backlog = 1024

// dialDaemon returns a client of the daemon; or, if it does not answer, nil and
// why kzr has to look by itself.
func dialDaemon(ctx context.Context, c config.Config) (*report.Client, string) {
	const self = "kzr only looks and does not act"
	if c.Socket == "" {
		return nil, "no socket configured: " + self
	}
	client := report.Dial(c.Socket)
	_, err := client.Status(ctx)
	switch {
	case err == nil:
		return client, ""
	case errors.Is(err, report.ErrNoDaemon):
		return nil, fmt.Sprintf("no daemon on %s: %s", c.Socket, self)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return nil, fmt.Sprintf("permission denied on %s (root and its group only): %s", c.Socket, self)
	}
	return nil, fmt.Sprintf("the daemon on %s does not answer (%s): %s", c.Socket, oneLine(err.Error()), self)
}

// watcher is a daemon of one's own that only looks. It implements [top.Source].
type watcher struct {
	daemon  *daemon.Daemon
	view    nodeview.View
	node    *node
	since   time.Time
	events  chan report.Event
	watched atomic.Bool
	missed  atomic.Uint64
	stop    context.CancelFunc
	work    sync.WaitGroup
}

var (
	_ top.Source = (*watcher)(nil)
	_ top.Source = (*report.Client)(nil)
)

// glimpse returns what a question that is asked once is answered by: the daemon,
// or an own look, and then why.
func glimpse(ctx context.Context, c config.Config) (source top.Source, alone string, closeSource func(), err error) {
	client, alone := dialDaemon(ctx, c)
	if client != nil {
		return client, "", client.Close, nil
	}
	w, err := newWatcher(ctx, c, true, func(*watcher) nameFunc { return askNames(ctx, c) })
	if err != nil {
		return nil, "", nil, err
	}
	return w, alone, w.close, nil
}

// watch looks at the node from now on; the caller must close it.
func watch(ctx context.Context, c config.Config) (*watcher, error) {
	var names *container.Resolver
	w, err := newWatcher(ctx, c, false, func(w *watcher) nameFunc {
		names = container.NewResolver(container.Options{Sockets: c.CRI, Named: func(string) { w.daemon.Hint(task.Hint{}) }})
		return names.Lookup
	})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	w.stop = stop
	w.work.Go(func() { names.Run(ctx) })
	w.work.Go(func() { w.daemon.Run(ctx) })
	return w, nil
}

// nameFunc is [daemon.Options.Name].
type nameFunc = func(container.Ref) (task.Container, bool)

// newWatcher makes one that looks when it is asked. Whoever watches for longer
// adds the work.
func newWatcher(ctx context.Context, c config.Config, once bool, names func(*watcher) nameFunc) (*watcher, error) {
	n, err := openNode(c, once)
	if err != nil {
		return nil, err
	}
	o, err := n.options(c)
	if err != nil {
		n.close()
		return nil, err
	}
	w := &watcher{node: n, since: time.Now(), events: make(chan report.Event, backlog), stop: func() {}}
	o.Observe, o.Report, o.Watched, o.Observer.Name = true, w.report, w.watched.Load, names(w)
	o.Logger = slog.New(slog.DiscardHandler) // what fails is shown
	if n.probe != nil {
		// Whoever looks once a second needs no hints.
		o.Hinted, o.SetLevel = 0, nil
		if err := n.probe.SetLevel(math.MaxInt32); err != nil {
			n.close()
			return nil, err
		}
	}
	if w.daemon, err = daemon.New(ctx, o); err != nil {
		n.close()
		return nil, err
	}
	w.view = nodeview.View{Daemon: w.daemon, Proc: n.proc, Name: o.Observer.Name, Observe: true}
	return w, nil
}

func (w *watcher) close() {
	w.stop()
	w.work.Wait()
	w.node.close()
}

// report takes an event for whoever reads them. It does not wait.
func (w *watcher) report(e report.Event) {
	if !w.watched.Load() {
		return
	}
	select {
	case w.events <- e:
	default:
		w.missed.Add(1)
	}
}

// Status implements [top.Source].
func (w *watcher) Status(context.Context) (report.Status, error) {
	st := w.view.Status()
	st.Since = w.since
	w.node.complete(&st)
	return st, nil
}

// Parents implements [top.Source].
func (w *watcher) Parents(ctx context.Context) (report.Document, error) {
	return w.view.Document(ctx)
}

// Parent implements [top.Source].
func (w *watcher) Parent(ctx context.Context, pid int) (report.Detail, error) {
	return w.view.Parent(ctx, pid)
}

// Events implements [top.Source] for one reader.
func (w *watcher) Events(ctx context.Context) iter.Seq2[report.StreamEvent, error] {
	return func(yield func(report.StreamEvent, error) bool) {
		w.watched.Store(true)
		defer w.watched.Store(false)
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-w.events:
				if n := w.missed.Swap(0); n > 0 &&
					!yield(report.StreamEvent{Time: time.Now(), Event: report.EventMissed, Count: n}, nil) {
					return
				}
				if !yield(e.Stream(), nil) {
					return
				}
			}
		}
	}
}

// written passes on how writing for a reader ended. One that is gone has what it
// wanted.
func written(err error) error {
	if errors.Is(err, unix.EPIPE) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}
