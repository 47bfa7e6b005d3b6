package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"kzr/internal/config"
	"kzr/internal/daemon"
	"kzr/internal/report"
)

func newRun() *cobra.Command {
	var flags *config.Flags
	cmd := &cobra.Command{
		Use:   "run [flags]",
		Short: "Run the daemon",
		Long: "Watch the node and act on parents that do not reap, until SIGTERM or SIGINT.\n" +
			"SIGHUP reads the configuration again.",
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
	// A log reader that is gone must not take kzr along.
	signal.Ignore(unix.SIGPIPE)
	n, err := openNode(c)
	if err != nil {
		return err
	}
	defer n.close()

	lines := report.NewWriter(stderr)
	defer lines.Close(time.Second)
	log := report.NewLogger(lines, c.LogFormat, c.LogLevel)
	o, err := n.options(c)
	if err != nil {
		return err
	}
	o.Logger = log
	o.Report = func(e report.Event) { e.Log(ctx, log) }
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	d, err := daemon.New(ctx, o)
	if err != nil {
		return err
	}

	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	if n.probe != nil {
		work.Go(func() {
			if err := n.probe.Hints(d.Hint); err != nil {
				log.Error("no more hints come from the kernel; kzr goes on with sweeps", "error", err)
			}
		})
		defer n.probe.StopHints()
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP)
	defer signal.Stop(hangups)
	work.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangups:
				reload(ctx, d, flags, log)
			}
		}
	})

	daemon.Settle()
	runtime.GC() // the kernel's types are needed no more
	debug.FreeOSMemory()
	o.Report(n.started(c))
	d.Run(ctx)
	o.Report(report.Event{Time: time.Now(), Name: report.EventStopping, Message: "kzr stops; no signal is sent any more"})
	return nil
}

// started says what kzr begins with.
func (n *node) started(c config.Config) report.Event {
	v, _ := buildVersion()
	e := report.Event{
		Time: time.Now(), Name: report.EventStarted, Message: "kzr watches this node",
		Attrs: []any{
			"version", v, "source", string(n.source()), "scope", string(c.Scope),
			"threshold", c.Threshold, "grace", c.Grace, "dry_run", c.DryRun,
		},
	}
	if n.why != nil {
		e.Message += " through /proc, as eBPF does not work here"
		e.Attrs = append(e.Attrs, "why", oneLine(n.why.Error()))
	}
	for _, l := range n.host.Limitations() {
		e.Attrs = append(e.Attrs, "limitation", l)
	}
	return e
}

// reload reads the configuration again. A bad one changes nothing.
func reload(ctx context.Context, d *daemon.Daemon, flags *config.Flags, log *slog.Logger) {
	e := report.Event{Time: time.Now(), Name: report.EventReloaded}
	c, err := flags.Load()
	if err == nil {
		err = d.Reload(ctx, c)
	}
	if err != nil {
		e.Message = "the new configuration is bad; the old one stays in force"
		e.Attrs = []any{"error", oneLine(err.Error())}
	} else {
		e.Message = "the new configuration is in force"
		report.SetLevel(log, c.LogLevel)
	}
	e.Log(ctx, log)
}
