package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"kzr/internal/config"
	"kzr/internal/report"
	"kzr/internal/top"
)

// topOptions are the flags of top alone.
type topOptions struct {
	*output
	once     bool
	interval time.Duration
}

func newTop() *cobra.Command {
	var flags *config.Flags
	var o topOptions
	cmd := &cobra.Command{
		Use:   "top [flags]",
		Short: "Watch zombies live",
		Long: "Watch processes with zombie children, and what kzr does about them, live. If a\n" +
			"daemon is running, its view and its configuration are shown; otherwise top\n" +
			"looks for itself. It sends no signals.\n\n" +
			"Press ? for help. If the output is not a terminal, top prints the table once.",
		Args: func(cmd *cobra.Command, args []string) error {
			if o.interval < 100*time.Millisecond {
				return badUsage(cmd, "--interval: %s is too short; use 100ms or more", o.interval)
			}
			return noArgs(cmd, args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			// The screen is put back whatever the reason to end.
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
			defer stop()
			signal.Ignore(unix.SIGPIPE)
			return runTop(ctx, flags, o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().BoolVar(&o.once, "once", false, "print the table once and exit; without it, -o json prints\none document per interval")
	o.output = outputs(cmd)
	cmd.Flags().DurationVar(&o.interval, "interval", time.Second, "time between updates")
	flags = configured(cmd)
	return cmd
}

// runTop shows the screen, or what it shows as text.
func runTop(ctx context.Context, flags *config.Flags, o topOptions, stdout, stderr io.Writer) error {
	c, err := flags.Load()
	if err != nil {
		return err
	}
	if o.wide() || !o.asJSON() && !screen(stdout) {
		o.once = true
	}
	client, alone := dialDaemon(ctx, c)
	if client != nil {
		defer client.Close()
	}
	if o.once {
		return topOnce(ctx, c, client, alone, o.output, stdout, stderr)
	}
	var source top.Source = client
	if client == nil {
		w, err := watch(ctx, c)
		if err != nil {
			return err
		}
		defer w.close()
		source = w
	}
	if o.asJSON() {
		say(ctx, source, alone, stderr)
		return written(topStream(ctx, source, o.interval, stdout))
	}
	return top.Run(ctx, top.Options{
		Source: source, Alone: alone, Interval: o.interval, Output: stdout, ASCII: !unicodeTerminal(),
	})
}

func topOnce(ctx context.Context, c config.Config, client *report.Client, alone string, o *output, stdout, stderr io.Writer) error {
	var doc report.Document
	var err error
	if client == nil {
		fmt.Fprintln(stderr, "kzr: "+oneLine(alone))
		doc, err = lookOnce(ctx, c, stderr)
	} else {
		say(ctx, client, "", stderr)
		doc, err = client.Parents(ctx)
	}
	if err != nil {
		return err
	}
	return written(o.document(stdout, doc))
}

// say tells, apart from the output, what must be known about it.
func say(ctx context.Context, source top.Source, alone string, stderr io.Writer) {
	if alone != "" {
		fmt.Fprintln(stderr, "kzr: "+oneLine(alone))
	}
	if st, err := source.Status(ctx); err == nil { // if not, the next question fails too
		for _, p := range st.Problems {
			fmt.Fprintln(stderr, "kzr: "+oneLine(p))
		}
	}
}

// topStream writes a document per interval until ctx or the reader ends.
func topStream(ctx context.Context, source top.Source, interval time.Duration, stdout io.Writer) error {
	next := time.NewTicker(interval)
	defer next.Stop()
	for {
		doc, err := source.Parents(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := writeJSON(stdout, doc); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
		}
	}
}

// screen says whether w is a terminal on which a screen can be drawn.
func screen(w io.Writer) bool {
	return width(w) > 0 && os.Getenv("TERM") != "" && os.Getenv("TERM") != "dumb"
}

// unicodeTerminal says whether the terminal draws more than ASCII. Where the
// environment says nothing about it, as in a container, it nearly always does.
func unicodeTerminal() bool {
	if os.Getenv("TERM") == "linux" {
		return false // the console's font has no eighths of blocks
	}
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := os.Getenv(name); v != "" {
			v = strings.ToLower(v)
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return true
}
