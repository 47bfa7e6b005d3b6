// Command kzr finds processes whose children stay defunct because the parent
// never waits for them, and removes the cause.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kzr/internal/config"
	"kzr/internal/reapinside"
	"kzr/internal/report"
)

// Exit statuses. They are part of the contract.
const (
	exitOK    = 0
	exitError = 1 // it failed at run time
	exitUsage = 2 // the command line or the configuration will not do
)

func main() {
	reapinside.Serve(os.Args) // does not come back where this is the helper
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns its exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errTargets):
		return exitTargets
	}
	fmt.Fprintln(stderr, report.ErrorPrefix(stderr)+"kzr: "+oneLine(err.Error()))
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*config.Error](err); ok {
		return exitUsage
	}
	return exitError
}

// usageError is a command line that will not do.
type usageError struct {
	command string // whose help tells more: "kzr run"
	err     error
}

func (e *usageError) Error() string { return fmt.Sprintf("%v; see '%s --help'", e.err, e.command) }
func (e *usageError) Unwrap() error { return e.err }

func badUsage(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{cmd.CommandPath(), fmt.Errorf(format, args...)}
}

// extra are commands of builds with a tag.
var extra []func() *cobra.Command

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use: "kzr",
		Long: "kzr finds processes that do not reap their children, and removes the zombies\n" +
			"before they use up a pid limit: it tells the parent to reap, reaps inside it,\n" +
			"and as a last resort terminates it.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return badUsage(cmd, "unknown command %q, did you mean %s?", args[0], strings.Join(near, " or "))
			}
			return badUsage(cmd, "unknown command %q", args[0])
		},
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Version:                    shortVersion(),
		SilenceErrors:              true, // run prints them
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2,
		CompletionOptions:          cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	cobra.EnableCommandSorting = false // as they are listed here
	root.AddCommand(newRun(), newTop(), newScan(), newExplain(), newCheck(), newVersion(), newCompletion())
	for _, command := range extra {
		root.AddCommand(command())
	}
	root.SetVersionTemplate("kzr {{.Version}}\n")
	root.SetHelpCommand(newHelp())
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { printHelp(cmd.OutOrStdout(), cmd) })
	root.SetFlagErrorFunc(flagError)
	return root
}

// flagError words a bad flag as a bad key of the file is worded.
func flagError(cmd *cobra.Command, err error) error {
	if bad, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		if _, ok := errors.AsType[*strconv.NumError](err); ok { // a flag of pflag's own, a bool
			return badUsage(cmd, "--%s: invalid value %q: expected true or false", bad.GetFlag().Name, bad.GetValue())
		}
		return badUsage(cmd, "--%s: %w", bad.GetFlag().Name, bad.Unwrap())
	}
	if missing, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		return badUsage(cmd, "--%s: needs a value", missing.GetFlag().Name)
	}
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		if short := unknown.GetSpecifiedShortnames(); short != "" {
			return badUsage(cmd, "unknown flag %q", "-"+short)
		}
		return badUsage(cmd, "unknown flag %q", "--"+unknown.GetSpecifiedName())
	}
	return badUsage(cmd, "%w", err)
}

// configured adds the flags of the configuration to a command.
func configured(cmd *cobra.Command) *config.Flags {
	cmd.Flags().SortFlags = false
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	flags := config.Register(cmd.Flags())
	for name, words := range flags.Choices() {
		if err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic("a flag that was just registered: " + err.Error())
		}
	}
	return flags
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return badUsage(cmd, "unexpected argument %q", args[0])
	}
	return nil
}

// oneLine makes a text of any origin safe and short for a terminal.
func oneLine(s string) string {
	var b strings.Builder
	for i, line := range strings.Split(strings.TrimSpace(s), "\n") { // errors.Join puts one on each
		if i > 0 {
			b.WriteString("; ")
		}
		for _, c := range line {
			if unicode.IsPrint(c) {
				b.WriteRune(c)
			} else {
				quoted := strconv.QuoteRune(c)
				b.WriteString(quoted[1 : len(quoted)-1])
			}
		}
	}
	return b.String()
}
