package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"kzr/internal/advice"
	"kzr/internal/config"
	"kzr/internal/report"
	"kzr/internal/top"
)

func newExplain() *cobra.Command {
	var flags *config.Flags
	var pid int
	cmd := &cobra.Command{
		Use:   "explain PID [flags]",
		Short: "Tell the story of one process and its zombies",
		Long: "Tell who a process is, what it leaks and why it does not reap, what the daemon\n" +
			"would do about it under this configuration, and what its owner should do. Where\n" +
			"a daemon runs, it is asked, and its configuration counts.",
		Args: func(cmd *cobra.Command, args []string) (err error) {
			switch {
			case len(args) == 0:
				return badUsage(cmd, "PID is missing")
			case len(args) > 1:
				return badUsage(cmd, "unexpected argument %q", args[1])
			}
			if pid, err = parsePID(args[0]); err != nil {
				return badUsage(cmd, "PID: %w", err)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runExplain(cmd.Context(), flags, pid, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
		DisableFlagsInUseLine: true,
	}
	flags = configured(cmd)
	return cmd
}

// parsePID reads the number of a process that could exist.
func parsePID(s string) (int, error) {
	const limit = 4 << 20 // PID_MAX_LIMIT of the kernel
	pid, err := strconv.ParseUint(s, 10, 32)
	if err != nil || pid < 1 || pid > limit {
		return 0, errors.New(strconv.Quote(s) + " is not the number of a process; use one from 1 to " + strconv.Itoa(limit))
	}
	return int(pid), nil
}

// runExplain writes the story of the process pid; of a zombie, that of its parent
// too, which is where the reason is.
func runExplain(ctx context.Context, flags *config.Flags, pid int, stdout, stderr io.Writer) error {
	c, err := flags.Load()
	if err != nil {
		return err
	}
	signal.Ignore(unix.SIGPIPE)
	source, alone, closeSource, err := glimpse(ctx, c)
	if err != nil {
		return err
	}
	defer closeSource()
	say(ctx, source, alone, stderr)
	d, err := explained(ctx, source, pid)
	if err != nil {
		return err
	}
	columns := cmp.Or(width(stdout), 80)
	if err := advice.Write(stdout, &d, columns); err != nil || !advice.Dead(&d) || len(d.Ancestors) == 0 {
		return written(err)
	}
	parent, err := explained(ctx, source, d.Ancestors[0].PID)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprint(stdout, "\n\n"); err != nil {
		return written(err)
	}
	return written(advice.Write(stdout, &parent, columns))
}

func explained(ctx context.Context, source top.Source, pid int) (report.Detail, error) {
	d, err := source.Parent(ctx, pid)
	if errors.Is(err, report.ErrNotFound) {
		return d, fmt.Errorf("process %d: %w", pid, err)
	}
	return d, err
}
