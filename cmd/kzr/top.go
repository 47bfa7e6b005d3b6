package main

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"kzr/internal/config"
)

func newTop() *cobra.Command {
	var flags *config.Flags
	var once, asJSON bool
	cmd := &cobra.Command{
		Use:   "top [flags]",
		Short: "Watch parents with zombies live",
		Long: "Watch parents with zombies, and what the daemon does about them, live. Without a\n" +
			"daemon it watches by itself. It sends no signal.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runTop(cmd.Context(), flags, once, asJSON, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
		DisableFlagsInUseLine: true,
	}
	cmd.Flags().BoolVar(&once, "once", false, "write the table once and end")
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON instead of the screen")
	flags = configured(cmd)
	return cmd
}

// runTop shows the screen, or what it shows as text.
func runTop(ctx context.Context, flags *config.Flags, once, asJSON bool, stdout, stderr io.Writer) error {
	if _, err := flags.Load(); err != nil {
		return err
	}
	return errors.New("not wired yet")
}
