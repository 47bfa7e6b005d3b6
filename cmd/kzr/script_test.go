package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"kzr/internal/reapinside"
)

func TestMain(m *testing.M) {
	reapinside.Serve(os.Args) // a daemon's helper is this program too
	testscript.Main(leakChecked{m}, map[string]func(){"kzr": main})
}

// leakChecked fails if the tests pass and leave goroutines behind.
type leakChecked struct{ *testing.M }

func (m leakChecked) Run() int {
	status := m.M.Run()
	if status != 0 {
		return status
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, "goleak:", err)
		return 1
	}
	return 0
}

var oneLineOfKzr = regexp.MustCompile(`^kzr: [[:print:]]+\n$`)

// The scripts run the real command line. `status N cmd args…` runs a program
// and wants exactly that exit status; `refuse N cmd args…` also wants nothing on
// standard output and one line on standard error that names kzr.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": status,
			"refuse": func(ts *testscript.TestScript, neg bool, args []string) {
				status(ts, neg, args)
				if out := ts.ReadFile("stdout"); out != "" {
					ts.Fatalf("standard output has %q", out)
				}
				if text := ts.ReadFile("stderr"); !oneLineOfKzr.MatchString(text) {
					ts.Fatalf("standard error is not one line: %q", text)
				}
			},
		},
	})
}

func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N program args…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}
