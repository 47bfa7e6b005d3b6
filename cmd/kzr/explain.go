package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os/signal"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"kzr/internal/advice"
	"kzr/internal/config"
	"kzr/internal/readers"
	"kzr/internal/report"
	"kzr/internal/top"
)

func newExplain() *cobra.Command {
	var flags *config.Flags
	var o *output
	var pid, in int
	var inside string
	cmd := &cobra.Command{
		Use:   "explain PID [flags]",
		Short: "Explain why a process has zombies",
		Long: "Explain why a process has zombies: what it is, why it does not reap them, what\n" +
			"kzr does about it and when, and what its owner can do. If a daemon is running,\n" +
			"it is asked, and its configuration applies.\n\n" +
			"PID may also be a zombie or a thread.",
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
			if inside != "" {
				if in, err = parsePID(inside); err != nil {
					return badUsage(cmd, "--in: %w", err)
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runExplain(cmd.Context(), flags, pid, in, o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
		DisableFlagsInUseLine: true,
	}
	o = outputs(cmd)
	cmd.Flags().StringVar(&inside, "in", "", "PID is as seen from inside the container of this `process`")
	flags = configured(cmd)
	return cmd
}

// parsePID reads the number of a process that could exist.
func parsePID(s string) (int, error) {
	const limit = 4 << 20 // PID_MAX_LIMIT of the kernel
	pid, err := strconv.ParseUint(s, 10, 32)
	if err != nil || pid < 1 || pid > limit {
		return 0, fmt.Errorf("invalid process id %q: expected a number from 1 to %d", s, limit)
	}
	return int(pid), nil
}

// runExplain explains the process pid; of a zombie it explains the parent too, which is
// where the reason is. With in, pid is what it is called in that process's pid
// namespace.
func runExplain(ctx context.Context, flags *config.Flags, pid, in int, o *output, stdout, stderr io.Writer) error {
	c, err := flags.Load()
	if err != nil {
		return err
	}
	asked := pid
	if in != 0 {
		pid, err = pidInside(pid, in)
	} else {
		pid, err = processOf(pid)
	}
	if err != nil {
		return err
	}
	if pid != asked && in == 0 {
		fmt.Fprintf(stderr, "kzr: %d is a thread of process %d\n", asked, pid)
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
	if o.asJSON() {
		return written(writeJSON(stdout, d))
	}
	columns := cmp.Or(width(stdout), 80)
	if o.wide() {
		columns = math.MaxInt
	}
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

// explained asks more than once on a node that is too busy to answer in time.
func explained(ctx context.Context, source top.Source, pid int) (d report.Detail, err error) {
	for tries := 0; tries == 0 || tries < 5 && (errors.Is(err, readers.ErrLate) || errors.Is(err, readers.ErrBusy)); tries++ {
		d, err = source.Parent(ctx, pid)
	}
	if errors.Is(err, report.ErrNotFound) {
		return d, fmt.Errorf("process %d: %w", pid, err)
	}
	return d, err
}
