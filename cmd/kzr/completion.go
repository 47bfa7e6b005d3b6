package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func newCompletion() *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:       "completion " + strings.Join(shells, "|"),
		Short:     "Print a shell completion script",
		Long:      "Print a completion script. To use it in the current shell:\n  bash: source <(kzr completion bash)\n  zsh:  source <(kzr completion zsh)\n  fish: kzr completion fish | source",
		ValidArgs: shells,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return badUsage(cmd, "shell is missing; use bash, zsh or fish")
			}
			if !slices.Contains(shells, args[0]) {
				return badUsage(cmd, "unknown shell %q; use bash, zsh or fish", args[0])
			}
			return noArgs(cmd, args[1:])
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			root, w := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(w, true)
			case "zsh":
				return root.GenZshCompletion(w)
			default:
				return root.GenFishCompletion(w, true)
			}
		},
		DisableFlagsInUseLine: true,
	}
}
