//go:build man

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"kzr/internal/man"
)

// With the build tag man, kzr has a command that writes its own manual pages; see
// `make man`.
func init() { extra = append(extra, newMan) }

func newMan() *cobra.Command {
	return &cobra.Command{
		Use:    "man FILE.yaml DIR",
		Hidden: true,
		Args:   cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			about := man.About{Date: time.Now()}
			about.Version, _ = buildVersion()
			if epoch := os.Getenv("SOURCE_DATE_EPOCH"); epoch != "" {
				seconds, err := strconv.ParseInt(epoch, 10, 64)
				if err != nil {
					return fmt.Errorf("reading SOURCE_DATE_EPOCH: %w", err)
				}
				about.Date = time.Unix(seconds, 0)
			}
			yaml, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			file, err := man.File(string(yaml), about)
			if err != nil {
				return fmt.Errorf("reading %s: %w", args[0], err)
			}
			if err := os.WriteFile(filepath.Join(args[1], "kzr.yaml.5"), file, 0o644); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(args[1], "kzr.8"), man.Command(cmd.Root(), about), 0o644)
		},
	}
}
