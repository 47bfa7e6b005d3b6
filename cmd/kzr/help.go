package main

import (
	"cmp"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kzr/internal/config"
)

func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:    "help [COMMAND]",
		Short:  "Show help for a command",
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return badUsage(cmd.Root(), "unknown command %q", args[0])
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// printHelp writes the help of a command: what it does, how it is called, and
// its flags in groups.
func printHelp(w io.Writer, cmd *cobra.Command) {
	fmt.Fprintf(w, "%s\n\nUsage:\n", cmp.Or(cmd.Long, cmd.Short))
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(w, "  %s COMMAND [flags]\n\nCommands:\n", cmd.CommandPath())
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() {
				fmt.Fprintf(w, "  %-13s %s\n", sub.Name(), sub.Short)
			}
		}
		fmt.Fprintf(w, "\nConfiguration: %s\nMore: %s COMMAND --help\n", config.DefaultPath, cmd.CommandPath())
		return
	}
	fmt.Fprintf(w, "  %s\n", cmd.UseLine())

	groups := make(map[string]*pflag.FlagSet)
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		title := ""
		if a := f.Annotations[config.GroupAnnotation]; a != nil {
			title = a[0]
		}
		if groups[title] == nil {
			groups[title] = pflag.NewFlagSet("", pflag.ContinueOnError)
			groups[title].SortFlags = false
		}
		groups[title].AddFlag(f)
	})
	for _, title := range append([]string{""}, config.Groups...) {
		if set := groups[title]; set != nil {
			fmt.Fprintf(w, "\n%s:\n%s", cmp.Or(title, "Flags"), set.FlagUsagesWrapped(80))
		}
	}
	if len(groups) > 1 {
		fmt.Fprintf(w, "\nA flag overrides the setting of that name in the configuration file.\n")
	}
}
