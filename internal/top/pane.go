package top

import (
	"fmt"
	"strings"
	"time"

	"charm.land/bubbles/v2/key"
	"charm.land/lipgloss/v2"

	"kzr/internal/advice"
	"kzr/internal/report"
)

func (m *model) paneTitle() string {
	if m.help {
		return "Help"
	}
	title := fmt.Sprintf("Process %d", m.detailOf.PID)
	if d := m.detail; d != nil {
		title = fmt.Sprintf("%s  %d %s", report.Who(d.Parent), d.PID, d.Comm)
	}
	if m.gone() {
		title += " (exited)"
	}
	return title
}

// fillPane puts the help or the details into the pane, which keeps its place.
func (m *model) fillPane() {
	l := m.layout()
	m.pane.SetWidth(m.w)
	m.pane.SetHeight(max(0, m.h-l.header-2))
	if m.help {
		m.pane.SetContentLines(m.helpLines())
	} else {
		m.pane.SetContentLines(m.detailLines())
	}
	m.pane.SetYOffset(m.pane.YOffset()) // the content may have shrunk
}

func (m *model) helpLines() []string {
	var out []string
	section := func(title string) { out = append(out, "", bold.Render(" "+title)) }
	show := func(all ...key.Binding) {
		for _, k := range all {
			h := k.Help()
			out = append(out, "   "+accent.Render(m.left(m.keyName(h.Key), 9))+m.cut(h.Desc, m.w-13))
		}
	}
	item := func(style paint, word, text string) {
		for i, s := range wrap(text, m.w-18) {
			if i > 0 {
				word = ""
			}
			out = append(out, "   "+style.Render(m.left(word, 13))+" "+s)
		}
	}
	section("Keys")
	show(keys.up, keys.down, keys.pageUp, keys.pageDown, keys.first, keys.last, keys.details, keys.back, keys.filter,
		keys.next, keys.reverse, keys.pause, keys.stream, keys.zombies, keys.workloads, keys.help, keys.quit)
	out = append(out, "   "+accent.Render(m.left("P W C Z O R V", 14))+"sort by pid, who, command, zombies, oldest, rate, verdict")
	out = append(out, "   "+accent.Render(m.left("mouse", 14))+"click a title to sort, a row to select it; double-click for details; wheel scrolls")
	section("Verdicts")
	item(warn, "acts in 23s", "it is not reaping and meets the rule then (\"due\" if no daemon acts)")
	item(bad, "acting", "kzr is acting on it: SIGCHLD, reaping inside it, SIGTERM, SIGKILL")
	item(dim, "watch", "it has fewer zombies than the threshold, or younger ones than grace")
	item(dim, "protected", "never acted on: pid 1, kernel threads, kzr itself, the host's infrastructure")
	item(dim, "out of scope", "not in a container, and the scope is containers")
	item(dim, "by rule", "a configured rule says observe")
	item(warn, "stopped ...", "also traced, frozen, dying, in D state, waiting (for one child): spared until that ends or a pid limit is near")
	item(warn, "rate limited", "the limit on kills is used up; \"backoff\": kzr has acted on it or its workload")
	section("Bar")
	out = append(out, "   "+good.Render(m.live)+" live tasks   "+bad.Render(m.dead)+" zombies   "+dim.Render(m.free)+" free")
	section("About")
	item(plain, "", "A zombie is a process that has exited and that its parent has not waited for. Until then it uses up a pid. "+
		"kzr top only shows: it sends no signals.")
	if notes := m.notes(); len(notes) > 0 {
		section("Notes")
		for _, n := range notes {
			for _, s := range wrap(n, m.w-4) {
				out = append(out, "   "+warn.Render(s))
			}
		}
	}
	return out[1:]
}

// twoColumns is the width from which on the facts stand beside the story.
const twoColumns = 140

func (m *model) detailLines() []string {
	d := m.detail
	switch {
	case d == nil && m.gone():
		return []string{"", dim.Render("  It has exited.")}
	case d == nil && m.detailErr != nil:
		return []string{"", bad.Render(m.cut("  "+m.detailErr.Error(), m.w))}
	case d == nil:
		return []string{"", dim.Render("  Loading" + m.more)}
	}
	if m.w < twoColumns {
		w := m.w - 2
		lines := append(m.story(d, w), "")
		return indent(append(lines, m.facts(d, w)...))
	}
	w := m.w/2 - 3
	return indent(strings.Split(lipgloss.JoinHorizontal(lipgloss.Top,
		lipgloss.NewStyle().Width(w+4).Render(strings.Join(m.story(d, w), "\n")),
		strings.Join(m.facts(d, m.w-w-6), "\n")), "\n"))
}

func indent(lines []string) []string {
	for i := range lines {
		lines[i] = " " + lines[i]
	}
	return lines
}

// story is the process in sentences.
func (m *model) story(d *report.Detail, w int) []string {
	var out []string
	for _, s := range advice.Explain(d) {
		if len(out) > 0 {
			out = append(out, "")
		}
		out = append(out, bold.Render(m.cut(s.Title, w)))
		for _, sentence := range s.Sentences {
			out = append(out, wrap(sentence, w)...)
		}
	}
	return out
}

// facts are what the story was made of.
func (m *model) facts(d *report.Detail, w int) []string {
	out := []string{bold.Render("Facts")}
	for _, f := range advice.Facts(d) {
		for i, s := range wrap(f.Value, w-11) {
			label := f.Name
			if i > 0 {
				label = ""
			}
			style := plain
			if f.Telling {
				style = warn
			}
			out = append(out, dim.Render(m.left(label, 10))+" "+style.Render(s))
		}
	}
	out = append(out, "", bold.Render("Tree"))
	for _, n := range advice.Tree(d) {
		text := strings.Repeat(" ", min(2*max(0, n.Depth-1), w/3)) // a deep tree must not leave the pane
		if n.Depth > 0 {
			text += m.tee
		}
		text = m.cut(text+n.Text, w)
		switch {
		case n.Self:
			text = bold.Render(text)
		case n.Zombie:
			text = warn.Render(text)
		}
		out = append(out, text)
	}
	if !m.detailAt.IsZero() && m.now.Sub(m.detailAt) > 5*time.Second {
		out = append(out, "", dim.Render("as of "+m.detailAt.Local().Format(time.TimeOnly)))
	}
	return out
}
