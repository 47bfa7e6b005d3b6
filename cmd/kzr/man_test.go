package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"kzr/internal/config"
	"kzr/internal/man"
)

// The manual pages say something about everything there is, and are what man can
// show.
func TestManualPages(t *testing.T) {
	about := man.About{Version: "1.2.3", Date: time.Date(2026, 3, 4, 0, 0, 0, 0, time.UTC)}
	yaml, err := os.ReadFile("../../deploy/kzr.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file, err := man.File(string(yaml), about)
	if err != nil {
		t.Fatal(err)
	}
	root := newRoot()
	pages := map[string]string{"kzr.8": shown(t, string(man.Command(root, about))), "kzr.yaml.5": shown(t, string(file))}

	mentions := func(page, what string) {
		t.Helper()
		if !regexp.MustCompile(`(^|[^\w-])` + regexp.QuoteMeta(what) + `($|[^\w-])`).MatchString(pages[page]) {
			t.Errorf("%s says nothing about %s", page, what)
		}
	}
	for _, cmd := range root.Commands() {
		if !cmd.Hidden {
			mentions("kzr.8", "kzr "+cmd.Name())
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) { mentions("kzr.8", "--"+f.Name) })
	}
	for _, d := range slices.Concat(config.Docs(), config.RuleDocs()) {
		mentions("kzr.yaml.5", d.Key)
		if d.Flag != "" {
			mentions("kzr.yaml.5", "--"+d.Flag)
		}
	}
	mentions("kzr.yaml.5", "rules")
}

// The file's comments are the text: a key that has none, or that nobody knows,
// is an error.
func TestManualPageOfAnotherFile(t *testing.T) {
	for yaml, want := range map[string]string{
		"# x\nthreshold: 1\n":        "nothing is said about grace",
		"# x\nlimits:\n  other: 1":   "limits.other is no key",
		"# intro\n\n# x\nunknown: 1": "unknown is no key",
	} {
		if _, err := man.File(yaml, man.About{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", yaml, err, want)
		}
	}
}

// shown is the text of a page, of which every line must be a request that man(7)
// knows or text.
func shown(t *testing.T, page string) string {
	t.Helper()
	request := regexp.MustCompile(`^\.(TH|SH|SS|TP|PP|PD|RS|RE|nf|fi|nh|ad|br)( |$)`)
	var b strings.Builder
	nest := 0
	for line := range strings.Lines(page) {
		line = strings.TrimSuffix(line, "\n")
		switch m := request.FindStringSubmatch(line); {
		case m != nil:
			nest += map[string]int{"RS": 1, "RE": -1}[m[1]]
		case strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'"):
			t.Errorf("a request that man does not know: %s", line)
		default:
			b.WriteString(strings.NewReplacer(`\fB`, "", `\fR`, "", `\-`, "-", `\&`, "").Replace(line) + "\n")
		}
	}
	if nest != 0 {
		t.Errorf("%d RS without RE", nest)
	}
	return b.String()
}
