package main

import (
	"context"
	"errors"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"kzr/internal/config"
)

func newExplain() *cobra.Command {
	var flags *config.Flags
	var pid int
	cmd := &cobra.Command{
		Use:   "explain PID [flags]",
		Short: "Tell the story of one process and its zombies",
		Long: "Tell who a process is, what it leaks and why it does not reap, what the daemon\n" +
			"would do about it under this configuration, and what its owner should do.",
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

// runExplain writes the story of the process pid.
func runExplain(ctx context.Context, flags *config.Flags, pid int, stdout, stderr io.Writer) error {
	if _, err := flags.Load(); err != nil {
		return err
	}
	return errors.New("not wired yet")
}
