package report

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
)

// column is one of a table. A text that is too long for the terminal is cut at its end,
// as ps and top do, or in its middle, where both ends tell something.
type column struct {
	title  string
	right  bool // numbers
	shrink shrinking
}

type shrinking int

const (
	whole shrinking = iota
	atEnd
	inMiddle
)

var (
	narrowColumns = []column{
		{"PID", true, whole}, {"WHO", false, inMiddle}, {"COMMAND", false, atEnd}, {"ZOMBIES", true, whole},
		{"OLDEST", true, whole}, {"VERDICT", false, whole},
	}
	wideColumns = []column{
		{"PID", true, whole}, {"ST", false, whole}, {"UID", true, whole}, {"WHO", false, inMiddle}, {"COMMAND", false, atEnd},
		{"ZOMBIES", true, whole}, {"REAPABLE", true, whole}, {"ADOPTED", true, whole}, {"OLDEST", true, whole},
		{"PER HOUR", true, whole}, {"VERDICT", false, whole},
	}
	workloadColumns = []column{
		{"WORKLOAD", false, inMiddle}, {"ZOMBIES", true, whole}, {"PARENTS", true, whole}, {"PIDS", true, whole},
		{"PER HOUR", true, whole}, {"FULL IN", true, whole},
	}
)

// floor is the least that a text is cut to.
const floor = 12

// WriteTable renders a document for people. Lines longer than width columns are avoided
// by shortening names; a width of 0 shortens nothing, for a reader that is not a
// terminal. Workloads are shown where they say more than their parents do, and with
// wide all of them.
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
		columns := narrowColumns
		if wide {
			columns = wideColumns
		}
		var rows [][]string
		held := false
		for _, p := range d.Parents {
			rows = append(rows, parentRow(&p, wide))
			held = held || p.Reapable != p.Zombies
		}
		writeRows(&b, columns, rows, width)
		if d.Omitted > 0 {
			fmt.Fprintf(&b, "and %s with fewer\n", count(d.Omitted, "parent"))
		}
		if held && !wide {
			b.WriteString("\n\"N of M\": the parent could reap N; a tracer or live threads hold the others\n")
		}
	}
	var rows [][]string
	for _, l := range d.Workloads {
		if wide || l.Parents > 1 || nearFull(&l) {
			rows = append(rows, workloadRow(&l))
		}
	}
	if len(rows) > 0 {
		b.WriteByte('\n')
		writeRows(&b, workloadColumns, rows, width)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("writing the table: %w", err)
	}
	return nil
}

func parentRow(p *Parent, wide bool) []string {
	pid, oldest := strconv.Itoa(p.PID), "-" // as far as this look can tell
	if age, known := p.Oldest(); known {
		oldest = Age(age)
	}
	if wide {
		return []string{pid, Sanitize(p.State), strconv.FormatUint(uint64(p.UID), 10), Who(*p), Command(*p),
			strconv.Itoa(p.Zombies), strconv.Itoa(p.Reapable), strconv.Itoa(p.Adopted), oldest, rate(p.RatePerHour), verdict(p)}
	}
	zombies := strconv.Itoa(p.Zombies)
	if p.Reapable != p.Zombies {
		zombies = fmt.Sprintf("%d of %d", p.Reapable, p.Zombies)
	}
	return []string{pid, Who(*p), Command(*p), zombies, oldest, verdict(p)}
}

func workloadRow(l *Workload) []string {
	pids, full := "-", "-"
	if l.Pids != nil {
		if pids = strconv.Itoa(*l.Pids); l.PidsLimit != nil {
			pids += " of " + strconv.Itoa(*l.PidsLimit)
		}
	}
	if l.FullInSeconds != nil {
		full = Age(time.Duration(*l.FullInSeconds * float64(time.Second)))
	}
	return []string{Sanitize(l.Name), strconv.Itoa(l.Zombies), strconv.Itoa(l.Parents), pids, rate(l.RatePerHour), full}
}

func nearFull(l *Workload) bool {
	return l.Pids != nil && l.PidsLimit != nil && 10**l.Pids >= 7**l.PidsLimit
}

func rate(perHour *float64) string {
	if perHour == nil {
		return "-"
	}
	return fmt.Sprintf("%+.0f", *perHour)
}

func writeRows(b *strings.Builder, columns []column, rows [][]string, limit int) {
	widths := make([]int, len(columns))
	titles := make([]string, len(columns))
	for i, c := range columns {
		titles[i] = c.title
	}
	rows = append([][]string{titles}, rows...)
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], ansi.StringWidth(cell))
		}
	}
	if limit > 0 {
		fit(columns, widths, limit)
	}
	for _, row := range rows {
		for i, cell := range row {
			c, room := columns[i], widths[i]
			cell = Shorten(cell, room, c.shrink == inMiddle, "+")
			pad := strings.Repeat(" ", max(0, room-ansi.StringWidth(cell)))
			switch {
			case c.right:
				cell = pad + cell
			case i < len(row)-1:
				cell += pad
			}
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString("  ")
			}
		}
		b.WriteByte('\n')
	}
}

// fit takes from the widest of the columns that may be cut until a row fits.
func fit(columns []column, widths []int, limit int) {
	over := 2*(len(columns)-1) - limit
	for _, w := range widths {
		over += w
	}
	for ; over > 0; over-- {
		widest := -1
		for i, c := range columns {
			if c.shrink != whole && widths[i] > floor && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
	}
}

// Shorten cuts sanitized text to n columns and puts mark where something is missing: at
// its end, or in its middle, which keeps a namespace in front and a container behind.
func Shorten(s string, n int, middle bool, mark string) string {
	width := ansi.StringWidth(s)
	if width <= n {
		return s
	}
	if !middle || n < 5 {
		return ansi.Truncate(s, n, mark)
	}
	front := ansi.Truncate(s, (n-1)/2, "")
	back := n - 1 - ansi.StringWidth(front)
	end := ansi.TruncateLeft(s, width-back, "")
	if ansi.StringWidth(end) > back { // it begins with half of a wide rune
		end = ansi.TruncateLeft(s, width-back+1, "")
	}
	return front + mark + end
}

// verdict is what kzr thinks, with its reason or the time that is left, and the
// rule that it goes by.
func verdict(p *Parent) string {
	s := Sanitize(p.Verdict)
	switch {
	case p.Reason != "":
		s += " " + Sanitize(p.Reason)
	case s == "watch" && p.DeadlineSeconds != nil:
		s += ", eligible in " + Age(time.Duration(*p.DeadlineSeconds*float64(time.Second)))
	}
	if p.Until != nil {
		s += " until " + p.Until.Local().Format("15:04:05")
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
