package top

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"

	"kzr/internal/advice"
	"kzr/internal/report"
)

// paint is a style as the codes before and after a text. A screen has hundreds of
// painted texts; to lay each of them out as a block of its own costs too much.
type paint struct{ on, off string }

func painted(s lipgloss.Style) paint {
	on, off, _ := strings.Cut(s.Render("x"), "x")
	return paint{on, off}
}

// Render paints a text of one line.
func (p paint) Render(s string) string {
	if s == "" {
		return ""
	}
	return p.on + s + p.off
}

// The colours are the terminal's own, so that they suit its background, and each
// means one thing. Without colour the words say the same.
var (
	none   = lipgloss.NewStyle()
	red    = none.Foreground(lipgloss.Red).Bold(true)
	yellow = none.Foreground(lipgloss.Yellow)
	green  = none.Foreground(lipgloss.Green)
	cyan   = none.Foreground(lipgloss.Cyan)

	bad     = painted(red)
	warn    = painted(yellow)
	good    = painted(green)
	accent  = painted(cyan)
	dim     = painted(none.Faint(true))
	bold    = painted(none.Bold(true))
	plain   = painted(none)
	chosen  = painted(none.Reverse(true))
	name    = painted(cyan.Bold(true))
	paused  = painted(yellow.Reverse(true))
	search  = painted(cyan.Reverse(true))
	titles  = painted(none.Faint(true).Underline(true))
	sorted  = painted(none.Bold(true).Underline(true))
	badBar  = painted(red.Reverse(true))
	warnBar = painted(yellow.Bold(true).Reverse(true))
	goodBar = painted(green.Bold(true).Reverse(true))
)

// glyphs are the characters beyond text.
type glyphs struct {
	spark                    []rune
	live, dead, free, dash   string
	down, up, more, dot, tee string
}

var (
	unicodeGlyphs = glyphs{[]rune("▁▂▃▄▅▆▇█"), "█", "▓", "░", "─", "▼", "▲", "…", "·", "└ "}
	asciiGlyphs   = glyphs{[]rune("_.-=+*#@"), "#", "z", ".", "-", "v", "^", "+", "|", "`- "}
)

// cut shortens s to w columns. All text goes through here before it is coloured,
// so this is also where it is made safe for a terminal, whoever sent it.
func (g *glyphs) cut(s string, w int) string {
	if w <= 0 {
		return ""
	}
	if len(s) <= w && ascii(s) {
		return s
	}
	return ansi.Truncate(report.Sanitize(s), w, g.more)
}

// ascii says whether s is printable ASCII, so that each byte takes a column.
func ascii(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func columnsOf(s string) int {
	if ascii(s) {
		return len(s)
	}
	return ansi.StringWidth(s)
}

// left fits s into exactly w columns.
func (g *glyphs) left(s string, w int) string {
	s = g.cut(s, w)
	return s + strings.Repeat(" ", max(0, w-columnsOf(s)))
}

// right fits s into exactly w columns, blanks first.
func (g *glyphs) right(s string, w int) string {
	s = g.cut(s, w)
	return strings.Repeat(" ", max(0, w-columnsOf(s))) + s
}

// middle shortens s to w columns and keeps both ends: a namespace in front, a
// container behind.
func (g *glyphs) middle(s string, w int) string {
	if w <= 0 {
		return ""
	}
	return report.Shorten(report.Sanitize(s), w, true, g.more)
}

// keyName spells out the arrows where they cannot be drawn.
func (g *glyphs) keyName(s string) string {
	if g == &asciiGlyphs {
		return strings.NewReplacer("↑", "up", "↓", "down").Replace(s)
	}
	return s
}

// number groups the digits of n: 12,310.
func number(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// perTime words a change per second in the unit that suits it: +183/s, +12/m,
// +3/h. Nothing is "".
func perTime(r float64) string {
	for _, u := range []struct {
		factor float64
		name   string
	}{{1, "s"}, {60, "m"}, {3600, "h"}} {
		v := r * u.factor
		switch a := math.Abs(v); {
		case a >= 9999.5:
			return fmt.Sprintf("%+.0fk/%s", v/1000, u.name)
		case a >= 9.95:
			return fmt.Sprintf("%+.0f/%s", v, u.name)
		case a >= 0.95:
			return strings.Replace(fmt.Sprintf("%+.1f/%s", v, u.name), ".0", "", 1)
		}
	}
	return ""
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// span is a length of time for a sentence, in two units at most.
func span(d time.Duration) string { return report.Age(d) }

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return number(n) + " " + noun + "s"
}

// wrap breaks a sentence into lines of at most w columns.
func wrap(s string, w int) []string { return advice.Wrap(s, max(w, 10)) }
