package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version and commit are set by the linker, with -X main.version=; without, the
// build information has to do.
var version, commit string

func newVersion() *cobra.Command {
	var o *output
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show version, commit and Go version",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, c := buildVersion()
			if o.asJSON() {
				return writeJSON(cmd.OutOrStdout(), map[string]string{
					"version": v, "commit": c, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
				})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "kzr %s\ncommit %s\n%s %s/%s\n",
				v, c, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
		DisableFlagsInUseLine: true,
	}
	o = outputs(cmd)
	return cmd
}

// buildVersion returns kzr's version and the commit that it was built from,
// "devel" and "unknown" where the build did not say.
func buildVersion() (v, c string) {
	v, c = version, commit
	if info, ok := debug.ReadBuildInfo(); ok {
		if m := info.Main.Version; m != "(devel)" {
			v = cmp.Or(v, m)
		}
		modified := false
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				c = cmp.Or(c, s.Value)
			case "vcs.modified":
				modified = s.Value == "true"
			}
		}
		if modified && c != "" {
			c += " (modified)"
		}
	}
	return cmp.Or(v, "devel"), cmp.Or(c, "unknown")
}

func shortVersion() string {
	v, _ := buildVersion()
	return v
}
