package glob

import (
	"path"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true},
		{"", "a", false},
		{"keep", "keep", true},
		{"keep", "Keep", false},
		{"keep", "keeper", false},
		{"keep*", "keep", true},
		{"keep*", "keep-me", true},
		{"*", "", true},
		{"*", "/a/b", true},
		{"/opt/*", "/opt/a/b/c", true},
		{"/opt/*/java", "/opt/jdk/21/bin/java", true},
		{"/opt/*/java", "/opt/java", false},
		{"*a*b", "xaxbxab", true},
		{"*a*b", "xaxbxa", false},
		{"**", "x", true},
		{"a?c", "a/c", true},
		{"a?c", "ac", false},
		{"a?c", "aéc", true},
		{"?", "\xff", true},
		{"\xff", "\xff", true},
		{"\xff", "\xfe", false},
		{"\xff", "\ufffd", false},
		{"[a-c]x", "bx", true},
		{"[a-c]x", "dx", false},
		{"[!a-c]x", "dx", true},
		{"[^a-c]x", "ax", false},
		{"[a-]", "-", true},
		{"[-a]", "-", true},
		{`[\]]`, "]", true},
		{`[\a-\c]`, "b", true},
		{"[a-c]", "\xff", false},
		{`\*`, "*", true},
		{`\*`, "x", false},
		{`a\\b`, `a\b`, true},
		{"]", "]", true},
		{"new\nline", "new\nline", true},
	} {
		g, err := Compile(tt.pattern)
		if err != nil {
			t.Errorf("Compile(%q): %v", tt.pattern, err)
			continue
		}
		if got := g.Match(tt.s); got != tt.want {
			t.Errorf("%q matches %q: %v, want %v", tt.pattern, tt.s, got, tt.want)
		}
	}
}

func TestCompileErrors(t *testing.T) {
	for pattern, want := range map[string]string{
		"[":      "no matching",
		"a[b":    "no matching",
		"[!":     "no matching",
		"[]":     "no character",
		"[!]":    "no character",
		"[z-a]":  "is empty",
		`a\`:     `'\' ends it`,
		`[a\`:    `'\' ends it`,
		`[a-\`:   `'\' ends it`,
		`[\]`:    "no matching",
		"ok/[a-": "no matching",
	} {
		if _, err := Compile(pattern); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Compile(%q) = %v, want an error with %q", pattern, err, want)
		}
	}
}

// A tenant chooses the string: it must not be able to make a match slow.
func TestMatchCostIsBounded(t *testing.T) {
	g, err := Compile(strings.Repeat("*a", 50) + "b")
	if err != nil {
		t.Fatal(err)
	}
	s := strings.Repeat("a", 64<<10)
	began := time.Now()
	if g.Match(s) {
		t.Fatal("matched")
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Fatalf("one match took %v", d)
	}
}

// Where no class and no '/' is about, the language is that of path.Match.
func FuzzMatch(f *testing.F) {
	f.Add("a*b?[c-e]", "axxbzd")
	f.Add(`\*[^x]`, "*y")
	f.Add("a", "*")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		g, err := Compile(pattern)
		if err != nil {
			return
		}
		got := g.Match(s)
		// Escaped, a text is itself and nothing else.
		literal, err := Compile(strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `\`, `\\`).Replace(s))
		if err != nil || !literal.Match(s) || literal.Match(pattern) != (pattern == s) {
			t.Errorf("%q, escaped, is an error (%v), does not match itself, or matches %q", s, err, pattern)
		}
		if strings.Contains(pattern, "[") || strings.Contains(s, "/") || !utf8.ValidString(pattern+s) {
			return
		}
		if want, err := path.Match(pattern, s); err == nil && got != want {
			t.Errorf("%q matches %q: %v, path.Match says %v", pattern, s, got, want)
		}
	})
}
