package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"kzr/internal/report"
)

// output is the form in which a command writes what it found.
type output struct {
	json   bool // the flag of that name
	format string
}

var outputFormats = []string{"json", "wide"}

// outputs adds the flags that choose it.
func outputs(cmd *cobra.Command) *output {
	o := new(output)
	cmd.Flags().VarP(o, "output", "o", "output format")
	cmd.Flags().BoolVar(&o.json, "json", false, "same as -o json")
	if err := cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputFormats, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic("a flag that was just registered: " + err.Error())
	}
	return o
}

// Set implements pflag.Value.
func (o *output) Set(s string) error {
	for _, f := range outputFormats {
		if s == f {
			o.format = f
			return nil
		}
	}
	return fmt.Errorf("unknown format %q; use json or wide", s)
}

// String implements pflag.Value.
func (o *output) String() string { return o.format }

// Type implements pflag.Value.
func (o *output) Type() string { return "json|wide" }

func (o *output) asJSON() bool { return o.json || o.format == "json" }
func (o *output) wide() bool   { return !o.asJSON() && o.format == "wide" }

// document writes a document as JSON or as a table that fits w, if that is a terminal.
func (o *output) document(w io.Writer, doc report.Document) error {
	if o.asJSON() {
		return writeJSON(w, doc)
	}
	return report.WriteTable(w, doc, width(w), o.wide())
}

func writeJSON(w io.Writer, v any) error {
	b, err := report.EncodeJSON(v)
	if err == nil {
		_, err = w.Write(b)
	}
	return err
}

// width is that of the terminal, 0 if there is none and lines may be long.
func width(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(ws.Col)
}
