package main

import (
	"strings"
	"testing"
)

// Help must fit a terminal: the root's in a screen of 24 lines, every one in 80
// columns.
func TestHelpFits(t *testing.T) {
	root := newRoot()
	for _, cmd := range append(root.Commands(), root) {
		cmd.InitDefaultHelpFlag()
		var b strings.Builder
		printHelp(&b, cmd)
		lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
		if cmd == root && len(lines) > 23 { // and the prompt
			t.Errorf("%d lines", len(lines))
		}
		for _, line := range lines {
			if len(line) > 80 {
				t.Errorf("kzr %s: %d columns: %s", cmd.Name(), len(line), line)
			}
		}
	}
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"plain é":              "plain é",
		"a\nb\n":               "a; b",
		"\x1b[31m\r\u202e\xff": `\x1b[31m\r\u202e�`,
	} {
		if got := oneLine(in); got != want {
			t.Errorf("oneLine(%q) = %q, want %q", in, got, want)
		}
	}
}
