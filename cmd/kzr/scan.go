package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"kzr/internal/config"
	"kzr/internal/container"
	"kzr/internal/daemon"
	"kzr/internal/nodeview"
	"kzr/internal/report"
	"kzr/internal/task"
)

func newScan() *cobra.Command {
	var flags *config.Flags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "scan [flags]",
		Short: "List parents with zombies, once, without a daemon",
		Long: "List parents with zombies, once, and what the daemon would do about each under\n" +
			"this configuration. It needs no daemon and sends no signal.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runScan(cmd.Context(), flags, asJSON, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write one JSON document")
	flags = configured(cmd)
	return cmd
}

// runScan takes one snapshot and writes it as a table or as a report.Document.
func runScan(ctx context.Context, flags *config.Flags, asJSON bool, stdout, stderr io.Writer) error {
	c, err := flags.Load()
	if err != nil {
		return err
	}
	return scan(ctx, c, asJSON, stdout, stderr)
}

// scan looks at the node once. What kzr cannot see it says on stderr: an empty
// list is not "no zombies" then.
func scan(ctx context.Context, c config.Config, asJSON bool, stdout, stderr io.Writer) error {
	n, err := openNode(c)
	if err != nil {
		return err
	}
	defer n.close()
	doc, err := n.document(ctx, c)
	if err != nil {
		return err
	}
	if n.host, err = n.proc.Host(); err != nil {
		return err
	}
	for _, l := range n.host.Limitations() {
		fmt.Fprintln(stderr, "kzr: "+oneLine(l))
	}
	return writeDocument(stdout, doc, asJSON)
}

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

// width is that of the terminal, 0 if there is none and lines may be long.
func width(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(ws.Col)
}
