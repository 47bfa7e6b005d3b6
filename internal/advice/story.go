package advice

import (
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/charmbracelet/x/ansi"

	"kzr/internal/report"
)

// Section is a part of the explanation.
type Section struct {
	Title     string
	Sentences []string
}

// Explain is all that is to be said of a process; its Plan and Advice must be filled
// in.
func Explain(d *report.Detail) []Section {
	why := "Why it does not reap"
	if dying(d) {
		why = "Why it does not end"
	}
	var out []Section
	for _, s := range []Section{
		{"Process", What(d)},
		{"Zombies", Zombies(d)},
		{why, Why(d)},
		{"What kzr does", d.Plan},
		{"What SIGKILL would take along", Impact(d)},
		{"What to do", d.Advice},
	} {
		if len(s.Sentences) > 0 {
			out = append(out, s)
		}
	}
	return out
}

// Fact is a line of a table.
type Fact struct {
	Name, Value string
	// Telling marks what is a reason for the leak.
	Telling bool
}

// Facts are what an explanation was made of, as far as it could be seen.
func Facts(d *report.Detail) []Fact {
	var out []Fact
	add := func(name, value string, telling bool) {
		if value != "" {
			out = append(out, Fact{name, value, telling})
		}
	}
	add("host", d.Host, false)
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
		add("nested", strings.TrimSpace(short(c.ID)+" "+c.Runtime)+" (its owner could have made this up)", false)
	}
	add("unit", d.Unit, false)
	add("cgroup", d.Cgroup, false)
	state := fmt.Sprintf("%s, %s", stateName(d), plural(d.Threads, "thread", "threads"))
	if d.Tracer != 0 {
		state += fmt.Sprintf(", traced by %d", d.Tracer)
	}
	add("state", state, d.Tracer != 0 || d.State == "T")
	if len(d.NSPID) > 1 {
		s := make([]string, len(d.NSPID))
		for i, pid := range d.NSPID {
			s[i] = fmt.Sprint(pid)
		}
		add("pids", strings.Join(s, " > ")+" (node > container)", false)
	}
	add("SIGCHLD", signal(d.Signals.Chld, d.Signals.ChldBlocked), d.Reapable > 0 && (d.Signals.ChldBlocked || d.Signals.Chld == "default"))
	add("SIGTERM", signal(d.Signals.Term, d.Signals.TermBlocked), false)
	if d.HasReaped != nil {
		if *d.HasReaped {
			add("wait", "has reaped children before", false)
		} else {
			add("wait", "has never reaped a child", d.Reapable > 0)
		}
	}
	if w := d.WaitsFor; w != nil {
		add("waits for", named(*w), true)
	}
	if d.Subreaper {
		add("subreaper", "yes", false)
	}
	if d.Reapable > 0 {
		add("adopted", fmt.Sprintf("%d of %d", d.Adopted, d.Reapable), false)
	}
	if r := d.ReapInside; r != nil {
		text := "possible"
		if !r.Possible {
			text = "not possible: " + r.Refusal
		}
		if r.Times > 0 {
			text += fmt.Sprintf("; done %s so far", plural(r.Times, "time", "times"))
		}
		add("inside", text, false)
	}
	if p := d.Pids; p != nil {
		if p.Limit > 0 {
			add("pids limit", fmt.Sprintf("%d of %d (%.0f%%)", p.Current, p.Limit, 100*float64(p.Current)/float64(p.Limit)), 10*p.Current >= 8*p.Limit)
		} else {
			add("pids limit", fmt.Sprintf("none (uses %d)", p.Current), false)
		}
	}
	if w := d.WorkloadTotal; w != nil {
		add("workload", fmt.Sprintf("%s: %s, %s", w.Name, plural(w.Zombies, "zombie", "zombies"), plural(w.Parents, "parent", "parents")), false)
	}
	rule := fmt.Sprintf("%s for %s", plural(d.Threshold, "zombie", "zombies"), seconds(d.Grace))
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
		out = append(out, Node{Depth: depth, Text: fmt.Sprintf("and %s", plural(n, "more live child", "more live children"))})
	}
	for _, z := range d.Sample {
		text := strings.TrimRight(fmt.Sprintf("%d %s", z.PID, z.Comm), " ") + " <defunct>"
		if z.AgeSeconds != nil && *z.AgeSeconds >= 1 {
			text += " for " + seconds(*z.AgeSeconds)
		}
		out = append(out, Node{Depth: depth, Text: text, Zombie: true})
	}
	if n := d.Zombies - len(d.Sample); n > 0 && len(d.Sample) > 0 {
		out = append(out, Node{Depth: depth, Text: fmt.Sprintf("and %s", plural(n, "more zombie", "more zombies")), Zombie: true})
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
func stateName(d *report.Detail) string {
	switch d.State {
	case "R":
		return "running"
	case "S":
		return "sleeping"
	case "D":
		if d.WChan != "" {
			return "in uninterruptible sleep in " + d.WChan
		}
		return "in uninterruptible sleep"
	case "T":
		return "stopped"
	case "t":
		return "stopped by a tracer"
	case "Z":
		return "zombie"
	case "I":
		return "idle"
	}
	return "state " + d.State
}

// Write explains a process as plain text in lines of at most width
// columns, and of at most 100 unless width is [math.MaxInt].
func Write(w io.Writer, d *report.Detail, width int) error {
	var b strings.Builder
	if width != math.MaxInt {
		width = min(max(width, 40), 100)
	}
	for i, s := range Explain(d) {
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
		return fmt.Errorf("writing the explanation: %w", err)
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
