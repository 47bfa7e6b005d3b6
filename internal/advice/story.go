package advice

import (
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/charmbracelet/x/ansi"

	"kzr/internal/report"
)

// Section is a part of the story.
type Section struct {
	Title     string
	Sentences []string
}

// Story is all that is to be said of a process; its Plan and Advice must be
// filled in.
func Story(d *report.Detail) []Section {
	out := []Section{
		{"Who it is", []string{Who(d)}},
		{"What it leaks", Leak(d)},
	}
	if why := Why(d); len(why) > 0 {
		out = append(out, Section{"Why it does not reap", why})
	}
	return append(out,
		Section{"What kzr does", d.Plan},
		Section{"What its owner should do", d.Advice})
}

// Fact is a line of a table.
type Fact struct {
	Name, Value string
	// Telling marks what is a reason for the leak.
	Telling bool
}

// Facts are what a story was made of, as far as it could be seen.
func Facts(d *report.Detail) []Fact {
	var out []Fact
	add := func(name, value string, telling bool) {
		if value != "" {
			out = append(out, Fact{name, value, telling})
		}
	}
	add("command", report.Command(d.Parent), false)
	add("exe", d.Exe, false)
	if c := d.Container; c != nil {
		if c.Pod != "" {
			add("pod", c.Namespace+"/"+c.Pod, false)
		}
		add("container", strings.TrimSpace(c.Name+" "+short(c.ID)+" "+c.Runtime), false)
		add("image", c.Image, false)
	}
	if c := d.Inner; c != nil {
		add("inside it", strings.TrimSpace(short(c.ID)+" "+c.Runtime)+", as its owner calls it", false)
	}
	add("unit", d.Unit, false)
	add("cgroup", d.Cgroup, false)
	state := fmt.Sprintf("%s, %s", stateName(d.State), counted(d.Threads, "thread"))
	if d.Tracer != 0 {
		state += fmt.Sprintf(", traced by %d", d.Tracer)
	}
	add("state", state, d.Tracer != 0 || d.State == "T")
	if len(d.NSPID) > 1 {
		s := make([]string, len(d.NSPID))
		for i, pid := range d.NSPID {
			s[i] = fmt.Sprint(pid)
		}
		add("pids", strings.Join(s, " > ")+", from the node inwards", false)
	}
	add("SIGCHLD", signal(d.Signals.Chld, d.Signals.ChldBlocked), d.Reapable > 0 && (d.Signals.ChldBlocked || d.Signals.Chld == "default"))
	add("SIGTERM", signal(d.Signals.Term, d.Signals.TermBlocked), false)
	if d.HasReaped != nil {
		if *d.HasReaped {
			add("waits", "it has reaped children", false)
		} else {
			add("waits", "it has never reaped a child", d.Reapable > 0)
		}
	}
	if p := d.Pids; p != nil {
		if p.Limit > 0 {
			add("pids limit", fmt.Sprintf("%d of %d (%.0f%%)", p.Current, p.Limit, 100*float64(p.Current)/float64(p.Limit)), 10*p.Current >= 8*p.Limit)
		} else {
			add("pids limit", fmt.Sprintf("none; %d now", p.Current), false)
		}
	}
	rule := fmt.Sprintf("%s for %s", counted(d.Threshold, "zombie"), seconds(d.Grace))
	if d.Rule != "" {
		rule = d.Rule + ": " + rule
	}
	add("rule", rule, false)
	verdict := d.Verdict
	if d.Reason != "" {
		verdict += ", " + strings.ReplaceAll(d.Reason, "_", " ")
	}
	add("verdict", verdict, false)
	add("unseen", strings.Join(d.Unseen, "; "), true)
	return out
}

// Node is a line of a process tree.
type Node struct {
	Depth  int
	Text   string
	Self   bool // the process that it is about
	Zombie bool
}

// Tree is the process between its ancestors and its children: pid 1 first.
func Tree(d *report.Detail) []Node {
	var out []Node
	for i := len(d.Ancestors) - 1; i >= 0; i-- {
		a := &d.Ancestors[i]
		out = append(out, Node{Depth: len(out), Text: fmt.Sprintf("%d %s", a.PID, a.Comm)})
	}
	out = append(out, Node{Depth: len(out), Text: fmt.Sprintf("%d %s", d.PID, d.Comm), Self: true})
	depth := len(out)
	for _, c := range d.Children {
		out = append(out, Node{Depth: depth, Text: fmt.Sprintf("%d %s", c.PID, c.Comm)})
	}
	if n := d.LiveChildren - len(d.Children); n > 0 {
		out = append(out, Node{Depth: depth, Text: fmt.Sprintf("and %s more that live", counted(n, "child"))})
	}
	for _, z := range d.Sample {
		text := strings.TrimRight(fmt.Sprintf("%d %s", z.PID, z.Comm), " ") + " <defunct>"
		if z.AgeSeconds != nil && *z.AgeSeconds >= 1 {
			text += " for " + seconds(*z.AgeSeconds)
		}
		out = append(out, Node{Depth: depth, Text: text, Zombie: true})
	}
	if n := d.Zombies - len(d.Sample); n > 0 && len(d.Sample) > 0 {
		out = append(out, Node{Depth: depth, Text: fmt.Sprintf("and %s more", counted(n, "zombie")), Zombie: true})
	}
	return out
}

func signal(how string, blocked bool) string {
	if how == "" {
		return ""
	}
	if blocked {
		return how + ", blocked"
	}
	return how
}

// stateName spells out a letter of /proc/PID/stat.
func stateName(s string) string {
	switch s {
	case "R":
		return "running"
	case "S":
		return "sleeping"
	case "D":
		return "in uninterruptible sleep"
	case "T":
		return "stopped"
	case "t":
		return "held by a tracer"
	case "Z":
		return "dead itself"
	case "I":
		return "idle"
	}
	return "state " + s
}

func counted(n int, noun string) string {
	switch {
	case n == 1:
		return "1 " + noun
	case noun == "child":
		return fmt.Sprintf("%d children", n)
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// Write tells the story and its facts as plain text in lines of at most width
// columns, and of at most 100 unless width is [math.MaxInt].
func Write(w io.Writer, d *report.Detail, width int) error {
	var b strings.Builder
	if width != math.MaxInt {
		width = min(max(width, 40), 100)
	}
	for i, s := range Story(d) {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(s.Title + "\n")
		for _, sentence := range s.Sentences {
			for _, line := range Wrap(sentence, width-2) {
				b.WriteString("  " + line + "\n")
			}
		}
	}
	b.WriteString("\nFacts\n")
	for _, f := range Facts(d) {
		for i, line := range Wrap(f.Value, width-13) {
			name := f.Name
			if i > 0 {
				name = ""
			}
			fmt.Fprintf(&b, "  %-10s %s\n", name, line)
		}
	}
	b.WriteString("\nTree\n")
	for _, n := range Tree(d) {
		mark := ""
		if n.Self {
			mark = "  <"
		}
		fmt.Fprintf(&b, "  %s%s%s\n", strings.Repeat(" ", min(2*n.Depth, width/3)), report.Sanitize(n.Text), mark)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("writing the story: %w", err)
	}
	return nil
}

// Wrap breaks a text at blanks into lines of at most width columns, and a word
// that is longer wherever it must. It sanitizes the text.
func Wrap(s string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(report.Sanitize(s)) {
		if line != "" && ansi.StringWidth(line)+1+ansi.StringWidth(word) <= width {
			line += " " + word
			continue
		}
		if line != "" {
			lines = append(lines, line)
		}
		for line = word; ansi.StringWidth(line) > width; {
			head := ansi.Truncate(line, width, "")
			if head == "" { // not even one of its runes fits
				break
			}
			lines, line = append(lines, head), line[len(head):]
		}
	}
	return append(lines, line)
}
