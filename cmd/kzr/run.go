package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"kzr/internal/config"
	"kzr/internal/container"
	"kzr/internal/daemon"
	"kzr/internal/footprint"
	"kzr/internal/nodeview"
	"kzr/internal/reaper"
	"kzr/internal/reapinside"
	"kzr/internal/report"
	"kzr/internal/state"
	"kzr/internal/task"
)

func newRun() *cobra.Command {
	var flags *config.Flags
	cmd := &cobra.Command{
		Use:   "run [flags]",
		Short: "Run the daemon",
		Long: "Watch the node and act on parents that do not reap, until SIGTERM or SIGINT.\n" +
			"SIGHUP reloads the configuration.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			return runDaemon(ctx, flags, cmd.ErrOrStderr())
		},
		DisableFlagsInUseLine: true,
	}
	flags = configured(cmd)
	return cmd
}

// runDaemon runs until ctx ends, which is not an error.
func runDaemon(ctx context.Context, flags *config.Flags, stderr io.Writer) error {
	c, err := flags.Load()
	if err != nil {
		return err
	}
	// Before anything else: nothing is forked later, and the helper inherits little.
	helper, noHelper := startHelper(ctx, c)
	if helper != nil {
		defer func() { _ = helper.Close() }() // it ends by itself when kzr does
	}
	// A log reader that is gone must not take kzr along. And where kzr is the
	// first process of a container, the kernel reaps what falls to it.
	signal.Ignore(unix.SIGPIPE, unix.SIGCHLD)
	reapEarly()
	if err := reaper.Rehearse(); err != nil {
		return err
	}
	n, err := openNode(c, false)
	if err != nil {
		return err
	}
	defer n.close()
	lines := report.NewWriter(report.Journal(stderr))
	defer func() { _ = lines.Close(time.Second) }() // nobody is left to tell
	log := report.NewLogger(lines, c.LogFormat, c.LogLevel)
	// The sockets come before anything acts: a second kzr on the node stops here.
	api, metrics, err := listen(c, log)
	if err != nil {
		return err
	}

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s := &service{node: n, log: log, lines: lines, config: c, since: time.Now()}
	s.metrics = report.NewMetrics(s.Status)
	tell := s.tellOthers(c)
	o, err := n.options(c)
	if err != nil {
		return err
	}
	o.Logger, o.Report, o.Watched, o.Meter = s.log, s.report, s.hub.Watched, s.metrics
	resolver := container.NewResolver(container.Options{Sockets: c.CRI, Named: s.named, Logger: s.log})
	o.Observer.Name, s.names = resolver.Lookup, resolver
	if s.manager, err = newManager(); err != nil {
		return err
	}
	o.Beat, o.BeatEvery = func() { s.heard(s.manager.beat(s.Status())) }, s.manager.every
	o.Busy = func() { s.heard(s.manager.busy()) }
	if err := s.restore(&o, c); err != nil {
		return err
	}
	s.view = nodeview.View{Proc: n.proc, Name: resolver.Lookup, Inside: s.whyNotInside, Watching: n.watching()}
	s.reapInside(&o, helper, noHelper)
	if s.Daemon, err = daemon.New(ctx, o); err != nil {
		return err
	}
	s.view.Daemon = s.Daemon

	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	if n.probe != nil {
		n.onHintsLost = func(err error) {
			s.log.Error("no more hints from the kernel; sweeping instead", "error", err)
			s.DisableHints()
		}
		work.Go(func() {
			if err := n.probe.Hints(s.Hint); err != nil {
				n.disableHints(err)
			}
		})
		defer n.probe.StopHints()
	}
	// The server is the last to go: its readers are told that kzr stops.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	work.Go(func() {
		server := &report.Server{View: s, Hub: &s.hub, Metrics: s.metrics, Log: s.log}
		if err := server.Run(serving, api, metrics); err != nil {
			s.log.Error("serving the socket failed; continuing without it", "error", err)
		}
	})
	work.Go(func() { s.stopWhenReplaced(ctx, stop, api) })
	work.Go(func() { resolver.Run(ctx) })
	for _, run := range tell {
		work.Go(func() { run(ctx) })
	}
	work.Go(func() { s.reloadOnHangup(ctx, flags) })
	if helper != nil {
		work.Go(func() { s.watchHelper(ctx, helper) })
	}

	settle()
	n.confine(c, log)
	started := n.started(c)
	if why := s.noInside.Load(); why != nil {
		started.Attrs = append(started.Attrs, "reap", "off: "+*why)
	} else if asksInside(c) && c.Mode == config.ModeProc { // chosen so, and no problem
		started.Attrs = append(started.Attrs, "reap", "off: "+errInsideNeedsEBPF.Error())
	}
	s.report(started)
	s.Run(ctx)
	s.heard(s.manager.stopping())
	s.report(report.Event{Time: time.Now(), Name: report.EventStopping, Message: "stopping; no further signals"})
	return nil
}

// replacedEvery is how often it is looked whether another kzr has the socket.
const replacedEvery = 2 * time.Second

// stopWhenReplaced stops a daemon that could not run for a while, as one that was
// stopped or frozen, and has a successor by now: two would act on the node.
func (s *service) stopWhenReplaced(ctx context.Context, stop func(), api net.Listener) {
	tick := time.NewTicker(replacedEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if report.Replaced(api) {
			s.log.Error("another kzr has taken over the socket; stopping", "socket", s.config.Socket)
			stop()
		}
	}
}

// memoryLimit keeps the collector ahead of half a million zombies, for which
// kzr may take 64 MiB; the rest is for the program itself and its stacks.
const memoryLimit = 40 << 20

// gcPercent is half of Go's usual: with 60,000 zombies in mode proc 3 MiB less at the
// peak, and no CPU time that could be measured.
const gcPercent = 50

// reapEarly reaps what fell to kzr before it ignored SIGCHLD: where it is the first
// process of a container, what the helper tried itself on.
func reapEarly() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL, nil)
		if pid <= 0 || err != nil {
			return
		}
	}
}

// startHelper starts the process that reaps inside others, if the configuration asks for
// it; else, or if it cannot work here, there is none, and why.
func startHelper(ctx context.Context, c config.Config) (*reapinside.Helper, error) {
	if !wantsInside(c) {
		return nil, nil
	}
	return reapinside.Start(ctx)
}

// reapInside hands the helper to the daemon.
func (s *service) reapInside(o *daemon.Options, helper *reapinside.Helper, err error) {
	switch {
	case err == nil && helper == nil:
		return
	case err == nil && s.node.probe == nil:
		err = errInsideNeedsEBPF
	case err == nil:
		in := &inside{helper: helper, probe: s.node.probe}
		o.Inside, s.view.Inside = in, in.refusal
		return
	}
	s.noInside.Store(new(strings.TrimPrefix(oneLine(err.Error()), reapinside.Cannot)))
}

// whyNotInside says why a daemon without a helper reaps inside nobody.
func (s *service) whyNotInside(context.Context, *task.Process) string {
	switch why := s.noInside.Load(); {
	case why != nil:
		return *why
	case s.config.Mode == config.ModeProc:
		return nodeview.NeedsEBPF
	}
	return "reap was off when kzr was started"
}

// watchHelper tells of a helper that ends before kzr does.
func (s *service) watchHelper(ctx context.Context, helper *reapinside.Helper) {
	select {
	case <-ctx.Done():
	case <-helper.Over():
		const why = "the helper that reaps inside other processes has ended"
		s.noInside.Store(new(why))
		s.log.Error(why + "; going on without it")
	}
}

// settle comes after all that is done once: what follows takes no new thread and
// little memory.
func settle() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	daemon.Settle()
	footprint.GiveBack() // the kernel's types, needed to load the programs, are most of the heap
}

// listen opens what the configuration asks for; nil is nothing.
func listen(c config.Config, log *slog.Logger) (api, metrics net.Listener, err error) {
	if c.Socket != "" {
		if api, err = report.Listen(c.Socket, -1, log); err != nil {
			return nil, nil, err
		}
	}
	if c.Metrics != "" {
		if metrics, err = net.Listen("tcp", c.Metrics); err != nil {
			if api != nil {
				err = errors.Join(err, api.Close())
			}
			if errors.Is(err, unix.EAFNOSUPPORT) {
				err = fmt.Errorf("%w: under systemd a drop-in opens the network, see kzr(8)", err)
			}
			return nil, nil, fmt.Errorf("listening for metrics: %w", err)
		}
	}
	return api, metrics, nil
}

// service is a daemon with those who hear of it.
type service struct {
	*daemon.Daemon
	view    nodeview.View
	node    *node
	hub     report.Hub
	metrics *report.Metrics
	log     *slog.Logger
	lines   *report.Writer
	manager *manager
	config  config.Config // of the start
	names   *container.Resolver
	since   time.Time
	refused atomic.Pointer[string] // why the last reload changed nothing
	others  others
	// noInside says why nothing is reaped inside parents though the configuration asks
	// for it.
	noInside atomic.Pointer[string]
}

// heard takes note of a manager that cannot be told something.
func (s *service) heard(err error) {
	if err != nil {
		s.log.Warn("cannot notify systemd", "error", err)
	}
}

// report passes a decision on. Nothing in it waits.
func (s *service) report(e report.Event) {
	s.metrics.Observe(e)
	s.hub.Publish(e)
	s.others.report(e)
	if e.Name != report.EventZombie {
		e.Log(context.Background(), s.log)
	}
}

// named makes the daemon look again: a rule may be about the container whose name
// has come.
func (s *service) named(string) { s.Hint(task.Hint{}) }

// Status is the daemon's with what it does not know about itself.
func (s *service) Status() report.Status {
	st := s.view.Status()
	st.Mode = string(s.config.Mode)
	st.Since, st.LogDropped = s.since, s.lines.Dropped()
	s.node.complete(&st)
	if err := reaper.MaySignal(); err != nil {
		st.Problems = append(st.Problems, err.Error())
	}
	st.Problems = append(st.Problems, s.names.Problems()...)
	st.Problems = append(st.Problems, s.others.problems...)
	if why := s.noInside.Load(); why != nil {
		st.Problems = append(st.Problems, "reaping inside parents is not available: "+*why)
	}
	if why := s.refused.Load(); why != nil {
		// First, as it is for somebody to mend: at the next start kzr would not come up.
		st.Problems = append([]string{"the configuration on disk is invalid and not in force: " + *why}, st.Problems...)
		st.ReloadFailed = true
	}
	return st
}

// Document implements [report.View].
func (s *service) Document(ctx context.Context) (report.Document, error) { return s.view.Document(ctx) }

// Parent implements [report.View].
func (s *service) Parent(ctx context.Context, pid int) (report.Detail, error) {
	return s.view.Parent(ctx, pid)
}

// restore takes over what an earlier kzr left beside the socket, and keeps it for a later
// one. What cannot be trusted is left alone.
func (s *service) restore(o *daemon.Options, c config.Config) error {
	if c.Socket == "" {
		return nil
	}
	file, err := state.Beside(c.Socket)
	if err != nil {
		return err
	}
	var saved daemon.State
	switch found, err := file.Load(&saved); {
	case err != nil:
		s.log.Warn("ignoring the saved state; limits and ages start from zero", "error", err)
	case found:
		o.Saved = saved
	}
	o.Save = func(st daemon.State) error { return file.Save(st) }
	return nil
}

// reloadOnHangup reads the configuration again at each SIGHUP, and when the ConfigMap
// that it comes from has changed. An invalid one changes nothing.
func (s *service) reloadOnHangup(ctx context.Context, flags *config.Flags) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP)
	defer signal.Stop(hangups)
	volume := time.NewTicker(10 * time.Second)
	defer volume.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
		case <-volume.C:
			if !flags.Changed() {
				continue
			}
		}
		s.heard(s.manager.reloading())
		e := report.Event{Time: time.Now(), Name: report.EventReloaded, Message: "configuration reloaded"}
		c, err := flags.Load()
		if err == nil {
			err = s.Reload(ctx, c)
		}
		if err == nil {
			s.refused.Store(nil)
			report.SetLevel(s.log, c.LogLevel)
			if keys := needRestart(s.config, c); len(keys) > 0 {
				e.Message += "; some settings take effect after a restart"
				e.Attrs = []any{"needs_restart", strings.Join(keys, ",")}
			}
		} else {
			e.Message, e.Failed = "the new configuration is invalid; the old one stays in force", true
			why := oneLine(err.Error())
			e.Attrs = []any{"error", why}
			s.refused.Store(&why)
		}
		s.report(e)
		s.heard(s.manager.reloaded())
	}
}

// needRestart names the settings that are read at the start only and have
// changed since.
func needRestart(old, c config.Config) (keys []string) {
	for _, k := range []struct {
		name    string
		changed bool
	}{
		{"mode", c.Mode != old.Mode},
		{"socket", c.Socket != old.Socket},
		{"metrics", c.Metrics != old.Metrics},
		{"cri", !slices.Equal(c.CRI, old.CRI)},
		{"kubernetes.events", c.Kubernetes != old.Kubernetes},
		{"onAction", !slices.Equal(c.OnAction, old.OnAction)},
		{"logFormat", c.LogFormat != old.LogFormat},
		{"reap", wantsInside(c) && !wantsInside(old)},
	} {
		if k.changed {
			keys = append(keys, k.name)
		}
	}
	return keys
}

// started says what kzr begins with.
func (n *node) started(c config.Config) report.Event {
	v, _ := buildVersion()
	e := report.Event{
		Time: time.Now(), Name: report.EventStarted, Message: "watching this node",
		Attrs: []any{
			"version", v, "source", string(n.source()), "scope", string(c.Scope),
			"threshold", c.Threshold, "grace", c.Grace, "dry_run", c.DryRun,
		},
	}
	if n.why != nil {
		e.Message += " through /proc, as eBPF does not work here"
		e.Attrs = append(e.Attrs, "why", oneLine(n.why.Error()))
	}
	l := n.host.Limitations()
	if err := reaper.MaySignal(); err != nil {
		l = append(l, err.Error())
	}
	if len(l) > 0 {
		e.Attrs = append(e.Attrs, "limitations", l)
	}
	return e
}
