package report

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/text/width"
)

// The table's columns.
const (
	colPID = iota
	colWho
	colCommand
	colZombies
	colOldest
	colVerdict
	columns
)

// floor is the least that who and command shrink to.
const floor = 12

// WriteTable renders a document for people. Lines longer than width columns are
// avoided by shortening who and command; a width of 0 shortens nothing, for a
// reader that is not a terminal.
func WriteTable(w io.Writer, d Document, width int, wide bool) error {
	var b strings.Builder
	zombies := count(d.Zombies, "zombie")
	if len(d.Limitations) > 0 {
		zombies += " seen"
	}
	fmt.Fprintf(&b, "%s: %s under %s, %d tasks (%s)\n", Sanitize(d.Host),
		zombies, count(len(d.Parents)+d.Omitted, "parent"), d.Tasks, Sanitize(string(d.Source)))
	if len(d.Parents) > 0 {
		b.WriteByte('\n')
		held := writeRows(&b, d.Parents, width)
		if d.Omitted > 0 {
			fmt.Fprintf(&b, "and %s with fewer\n", count(d.Omitted, "parent"))
		}
		if held {
			b.WriteString("\n\"N of M\": the parent could reap N; a tracer or live threads hold the others\n")
		}
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("writing the table: %w", err)
	}
	return nil
}

// writeRows says whether some parent has zombies that it could not reap.
func writeRows(b *strings.Builder, parents []Parent, limit int) (held bool) {
	rows := make([][columns]string, 1, len(parents)+1)
	rows[0] = [columns]string{"PID", "WHO", "COMMAND", "ZOMBIES", "OLDEST", "VERDICT"}
	for _, p := range parents {
		zombies := strconv.Itoa(p.Zombies)
		if p.Reapable != p.Zombies {
			zombies = fmt.Sprintf("%d of %d", p.Reapable, p.Zombies)
			held = true
		}
		oldest := "-" // as far as this look can tell
		if age, known := p.Oldest(); known {
			oldest = Age(age)
		}
		rows = append(rows, [columns]string{strconv.Itoa(p.PID), Who(p), Command(p), zombies, oldest, verdict(p)})
	}
	var wide [columns]int
	for _, r := range rows {
		for i, cell := range r {
			wide[i] = max(wide[i], textWidth(cell))
		}
	}
	if limit > 0 {
		fit(&wide, limit)
	}
	for _, r := range rows {
		r[colWho] = cutMiddle(r[colWho], wide[colWho])
		r[colCommand] = cutEnd(r[colCommand], wide[colCommand])
		for i, cell := range r {
			pad := strings.Repeat(" ", max(0, wide[i]-textWidth(cell)))
			switch i {
			case colPID, colZombies, colOldest:
				b.WriteString(pad + cell + "  ")
			case columns - 1:
				b.WriteString(cell + "\n")
			default:
				b.WriteString(cell + pad + "  ")
			}
		}
	}
	return held
}

// fit takes from the wider of who and command until a row fits.
func fit(wide *[columns]int, limit int) {
	over := 2*(columns-1) - limit
	for _, w := range wide {
		over += w
	}
	for ; over > 0; over-- {
		widest := colCommand
		if wide[colWho] > wide[colCommand] {
			widest = colWho
		}
		if wide[widest] <= floor {
			return
		}
		wide[widest]--
	}
}

// verdict is what kzr thinks, with its reason or the time that is left, and the
// rule that it goes by.
func verdict(p Parent) string {
	s := Sanitize(p.Verdict)
	switch {
	case p.Reason != "":
		s += " " + Sanitize(p.Reason)
	case s == "watch" && p.DeadlineSeconds != nil:
		s += ", due in " + Age(time.Duration(*p.DeadlineSeconds*float64(time.Second)))
	}
	if p.Rule != "" {
		s += " [" + Sanitize(p.Rule) + "]"
	}
	return s
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// textWidth counts the columns of sanitized text, in which every rune takes one
// or, in East Asian scripts and pictures, two.
func textWidth(s string) int {
	n := 0
	for _, r := range s {
		n += runeWidth(r)
	}
	return n
}

func runeWidth(r rune) int {
	if r < 0x1100 {
		return 1
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// cutEnd shortens s to n columns and marks the place with a +, as ps and top do
// on any terminal.
func cutEnd(s string, n int) string {
	if textWidth(s) <= n {
		return s
	}
	return head(s, n-1) + "+"
}

// cutMiddle keeps both ends: a namespace in front, a container behind.
func cutMiddle(s string, n int) string {
	if textWidth(s) <= n {
		return s
	}
	front := head(s, (n-1)/2)
	return front + "+" + tail(s, n-1-textWidth(front))
}

func head(s string, n int) string {
	for i, r := range s {
		if n -= runeWidth(r); n < 0 {
			return s[:i]
		}
	}
	return s
}

func tail(s string, n int) string {
	i := len(s)
	for i > 0 {
		r, size := utf8.DecodeLastRuneInString(s[:i])
		if n -= runeWidth(r); n < 0 {
			break
		}
		i -= size
	}
	return s[i:]
}
