package main

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"kzr/internal/config"
)

func newCheck() *cobra.Command {
	var flags *config.Flags
	cmd := &cobra.Command{
		Use:   "check [flags]",
		Short: "Check configuration, privileges and kernel",
		Long: "Check the configuration, the privileges and the kernel: what works, what does\n" +
			"not and what to do about it, and which mode the daemon would choose.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runCheck(cmd.Context(), flags, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
		DisableFlagsInUseLine: true,
	}
	flags = configured(cmd)
	return cmd
}

// runCheck writes one line for each thing that must hold, and fails if one that
// the configuration needs does not.
func runCheck(ctx context.Context, flags *config.Flags, stdout, stderr io.Writer) error {
	if _, err := flags.Load(); err != nil {
		return err
	}
	return errors.New("not wired yet")
}
