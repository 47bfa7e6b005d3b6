// Package glob matches the patterns of kzr's configuration. There is one
// language for paths, cgroups, images and names:
//
//	?      any one character, '/' included
//	*      any run of characters, none and '/' included
//	[a-z_] one of these characters; [!a-z] or [^a-z] any other
//	\x     the character x itself
//
// A pattern matches the whole string, and letters match their own case only. It
// lets '*' cross a '/' because cgroup paths and image names have a depth that
// the writer of a rule cannot know.
package glob

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

// Glob is a compiled pattern. The zero Glob matches the empty string only.
type Glob struct {
	tokens []token
}

type token struct {
	kind   kind
	char   rune   // of a literal
	negate bool   // of a class
	spans  []span // of a class
}

type kind uint8

const (
	literal kind = iota
	one
	run
	class
)

type span struct{ low, high rune }

// Compile reads a pattern. The error says what is wrong with it, without the
// pattern itself.
func Compile(pattern string) (Glob, error) {
	var g Glob
	for s := pattern; s != ""; {
		c, rest := next(s)
		t := token{char: c}
		var err error
		switch c {
		case '*':
			t.kind = run
		case '?':
			t.kind = one
		case '[':
			t, rest, err = compileClass(rest)
		case '\\':
			t.char, rest, err = escaped(rest)
		}
		if err != nil {
			return Glob{}, err
		}
		g.tokens = append(g.tokens, t)
		s = rest
	}
	return g, nil
}

// compileClass reads a class whose '[' is already read and returns what follows
// its ']'.
func compileClass(s string) (token, string, error) {
	t := token{kind: class}
	if s != "" && (s[0] == '!' || s[0] == '^') {
		t.negate, s = true, s[1:]
	}
	for {
		if s == "" {
			return t, "", errors.New("a '[' has no matching ']'")
		}
		if s[0] == ']' {
			break
		}
		var sp span
		var err error
		if sp.low, s, err = member(s); err != nil {
			return t, "", err
		}
		sp.high = sp.low
		if len(s) > 1 && s[0] == '-' && s[1] != ']' {
			if sp.high, s, err = member(s[1:]); err != nil {
				return t, "", err
			}
		}
		if sp.high < sp.low {
			return t, "", fmt.Errorf("the range %q-%q is empty", sp.low, sp.high)
		}
		t.spans = append(t.spans, sp)
	}
	if t.spans == nil {
		return t, "", errors.New("a '[]' holds no character")
	}
	return t, s[1:], nil
}

// member reads one character of a class.
func member(s string) (rune, string, error) {
	c, rest := next(s)
	if c == '\\' {
		return escaped(rest)
	}
	return c, rest, nil
}

func escaped(s string) (rune, string, error) {
	if s == "" {
		return 0, "", errors.New(`a '\' ends it; '\\' stands for one`)
	}
	c, rest := next(s)
	return c, rest, nil
}

// Match says whether all of s fits. It takes at most len(pattern)*len(s) steps,
// whatever s is: the strings come from tenants.
func (g Glob) Match(s string) bool {
	// Where to go on after a mismatch: the last '*' takes one more character.
	starred, resume := -1, ""
	i := 0
	for s != "" || i < len(g.tokens) {
		if i < len(g.tokens) {
			t := &g.tokens[i]
			if t.kind == run {
				starred, resume = i, s
				i++
				continue
			}
			if s != "" {
				if c, rest := next(s); t.fits(c) {
					s = rest
					i++
					continue
				}
			}
		}
		if starred < 0 || resume == "" {
			return false
		}
		_, resume = next(resume)
		i, s = starred+1, resume
	}
	return true
}

func (t *token) fits(c rune) bool {
	switch t.kind {
	case one:
		return true
	case class:
		for _, sp := range t.spans {
			if sp.low <= c && c <= sp.high {
				return !t.negate
			}
		}
		return t.negate
	default:
		return t.char == c
	}
}

// next splits off one character. A byte that is not UTF-8 counts as a character
// of its own, below zero so that it equals no other.
func next(s string) (rune, string) {
	c, size := utf8.DecodeRuneInString(s)
	if c == utf8.RuneError && size == 1 {
		c = -rune(s[0])
	}
	return c, s[size:]
}
