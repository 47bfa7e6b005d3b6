package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"kzr/internal/config"
	"kzr/internal/container"
	"kzr/internal/daemon"
	"kzr/internal/nodeview"
	"kzr/internal/policy"
	"kzr/internal/report"
	"kzr/internal/task"
)

// exitTargets is the status of scan --exit-status when there are targets.
const exitTargets = 3

// errTargets is that status, with nothing to say.
var errTargets = errors.New("there are targets")

func newScan() *cobra.Command {
	var flags *config.Flags
	var o *output
	var exitStatus bool
	cmd := &cobra.Command{
		Use:   "scan [flags]",
		Short: "List processes with zombie children, once",
		Long: "List processes with zombie children, and what kzr does about each. If a daemon\n" +
			"is running, its view is shown, with the ages that it knows. Otherwise, or if a\n" +
			"flag changes a setting, scan looks for itself. With mode auto it does so through\n" +
			"/proc if the node has fewer than 10,000 tasks, as that is faster. It sends no\n" +
			"signals.\n\n" +
			"One look cannot tell how long zombies have been waiting. Without a daemon,\n" +
			"--exit-status counts every parent that has as many zombies as its rule asks for\n" +
			"and that nothing spares.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			doc, alone, err := runScan(cmd.Context(), flags, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if err := written(o.document(cmd.OutOrStdout(), doc)); err != nil {
				return err
			}
			if !exitStatus {
				return nil
			}
			found := isTarget
			if alone {
				fmt.Fprintln(cmd.ErrOrStderr(), "kzr: no daemon was asked, so ages are not known: any parent with enough zombies counts as a target for --exit-status")
				found = mayBeTarget
			}
			if slices.ContainsFunc(doc.Parents, found) {
				return errTargets
			}
			return nil
		},
		DisableFlagsInUseLine: true,
	}
	o = outputs(cmd)
	cmd.Flags().BoolVar(&exitStatus, "exit-status", false, "exit with status 3 if there are targets; without a daemon, whatever the age of their zombies")
	flags = configured(cmd)
	return cmd
}

func isTarget(p report.Parent) bool {
	return p.Verdict == string(policy.Target) || p.Verdict == string(policy.Acting)
}

// mayBeTarget is isTarget for one look, which knows no ages: it has as many zombies as
// its rule asks for, and nothing but their age may stand in the way.
func mayBeTarget(p report.Parent) bool {
	return isTarget(p) || p.Reason == "" && p.DeadlineSeconds != nil
}

// runScan asks the daemon, or looks at the node once, alone.
func runScan(ctx context.Context, flags *config.Flags, stderr io.Writer) (doc report.Document, alone bool, err error) {
	c, err := flags.Load()
	if err != nil {
		return doc, false, err
	}
	signal.Ignore(unix.SIGPIPE)
	if !flags.Overridden() && c.Socket != "" {
		client := report.Dial(c.Socket)
		defer client.Close()
		say(ctx, client, "", stderr)
		doc, err := client.Parents(ctx)
		if err == nil {
			return doc, false, nil
		}
		if !errors.Is(err, report.ErrNoDaemon) {
			fmt.Fprintf(stderr, "kzr: %s; looking without it\n", oneLine(err.Error()))
		}
	}
	doc, err = lookOnce(ctx, c, stderr)
	return doc, true, err
}

// lookOnce looks at the node without a daemon. What kzr cannot see it says on stderr:
// an empty list is not "no zombies" then.
func lookOnce(ctx context.Context, c config.Config, stderr io.Writer) (report.Document, error) {
	n, err := openProc(true)
	if err != nil {
		return report.Document{}, err
	}
	defer n.close()
	// Where the number cannot be read, eBPF hardly works.
	if tasks, _ := n.proc.Node(); c.Mode == config.ModeAuto && tasks.Tasks < loadingPays {
		c.Mode = config.ModeProc
	}
	if err := n.load(c); err != nil {
		return report.Document{}, err
	}
	doc, err := n.document(ctx, c)
	if err != nil {
		return report.Document{}, err
	}
	if n.host, err = n.proc.Host(); err != nil {
		return report.Document{}, err
	}
	for _, l := range n.host.Limitations() {
		fmt.Fprintln(stderr, "kzr: "+oneLine(l))
	}
	return doc, nil
}

// loadingPays is for how many tasks on the node a program is loaded and run before
// /proc is read: 50 ms, in which a walk gets through that many (make bench).
const loadingPays = 10_000

// askTime is how long a look that is made once waits for all runtimes together.
const askTime = 3 * time.Second

// askNames asks the runtimes for names and waits for the answers, askTime in all.
// Only one may ask at a time.
func askNames(ctx context.Context, c config.Config) nameFunc {
	r := container.NewResolver(container.Options{Sockets: c.CRI})
	left := askTime
	return func(ref container.Ref) (task.Container, bool) {
		began := time.Now()
		ctx, cancel := context.WithTimeout(ctx, left)
		defer cancel()
		defer func() { left -= time.Since(began) }()
		return r.Resolve(ctx, ref)
	}
}

// document looks at the node once.
func (n *node) document(ctx context.Context, c config.Config) (report.Document, error) {
	o, err := n.options(c)
	if err != nil {
		return report.Document{}, err
	}
	o.Observe = true
	o.Observer.Name = askNames(ctx, c)
	o.Report = func(report.Event) {}
	o.Logger = slog.New(slog.DiscardHandler)
	d, err := daemon.New(ctx, o)
	if err != nil {
		return report.Document{}, err
	}
	view := nodeview.View{Daemon: d, Proc: n.proc, Name: o.Observer.Name, Observe: true}
	return view.Document(ctx)
}
