package top

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"charm.land/bubbles/v2/key"
	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"kzr/internal/report"
)

// layout is where things are: y of lines, 0 being the first.
type layout struct {
	compact bool
	airy    bool
	notes   int // lines of notes
	header  int // the table's titles
	rows    int // lines below it
	stream  int // the line above the stream; 0 if there is none
	events  int // lines below that
}

func (m *model) layout() layout {
	l := layout{compact: m.h < 16, airy: m.h >= 30}
	head := 4
	if l.compact {
		head = 3
	} else {
		l.notes = min(len(m.notes()), 1)
		if l.airy {
			l.notes = min(len(m.notes()), 3)
			head++ // a blank line
		}
	}
	l.header = head + l.notes
	body := m.h - l.header - 2 // titles and footer
	if !l.compact && !m.noStream {
		l.events = max(3, body*2/5-1)
		l.stream = m.h - 2 - l.events
		body -= l.events + 1
	}
	l.rows = max(body, 0)
	return l
}

// notes are what must be said of the view itself, the gravest first.
func (m *model) notes() []string {
	var out []string
	if m.Alone != "" {
		out = append(out, m.Alone)
	}
	return append(out, m.shown.status.Problems...)
}

// View implements [tea.Model].
func (m *model) View() tea.View {
	if m.drawn == "" {
		m.drawn = m.draw()
	}
	v := tea.NewView(m.drawn)
	v.AltScreen = true
	v.MouseMode = tea.MouseModeCellMotion
	v.WindowTitle = "kzr top"
	return v
}

// draw is the whole screen: exactly m.h lines, none wider than m.w.
func (m *model) draw() string {
	l := m.layout()
	lines := make([]string, 0, m.h)
	lines = append(lines, m.title(l), m.headlineLine())
	if l.compact {
		lines = append(lines, m.totals(l))
	} else {
		lines = append(lines, m.tasks(), m.totals(l))
	}
	for i, n := range m.notes()[:l.notes] {
		if more := len(m.notes()) - l.notes; more > 0 && i == l.notes-1 {
			n += fmt.Sprintf(" (and %d more)", more)
		}
		lines = append(lines, warn.Render(m.cut(" ! "+n, m.w)))
	}
	if l.airy {
		lines = append(lines, "")
	}
	if m.help || m.detailOf.PID != 0 {
		lines = append(lines, m.rule(m.paneTitle()))
		m.fillPane()
		lines = append(lines, strings.Split(m.pane.View(), "\n")...)
	} else {
		lines = append(lines, m.table(l)...)
		if l.events > 0 {
			lines = append(lines, m.stream(l)...)
		}
	}
	for len(lines) < m.h-1 {
		lines = append(lines, "")
	}
	if m.h > 0 {
		lines = append(lines[:max(0, min(len(lines), m.h-1))], m.footer())
	}
	if m.w < narrow {
		for i := range lines {
			lines[i] = ansi.Truncate(lines[i], m.w, "")
		}
	}
	return strings.Join(lines, "\n")
}

// narrow is the width below which what has to be there does not fit, and is cut.
const narrow = 40

// row of segments: what does not fit any more is left out.
type segments struct {
	b    strings.Builder
	room int
	any  bool
}

func (s *segments) add(text string) bool {
	need := ansi.StringWidth(text)
	if s.any {
		need += 2
	}
	if need > s.room {
		return false
	}
	if s.any {
		s.b.WriteString("  ")
	}
	s.b.WriteString(text)
	s.room -= need
	s.any = true
	return true
}

// title names the node and what is known of it and of kzr.
func (m *model) title(l layout) string {
	st := &m.shown.status
	host := cmp.Or(st.Host, m.shown.doc.Host)
	front := segments{room: m.w}
	front.add(bold.Render("kzr top") + " " + name.Render(m.cut(host, max(8, m.w/3))))
	if m.paused {
		front.add(paused.Render(" PAUSED "))
	}
	back := segments{room: front.room - 2}
	switch {
	case m.shown.at.IsZero():
	case l.compact && m.Alone != "":
		if !back.add(warn.Render("no daemon, view only")) {
			back.add(warn.Render("no daemon"))
		}
	default:
		dot := " " + m.dot + " "
		parts := []string{string(st.Source)}
		if st.DryRun {
			parts = append(parts, "dry run")
		}
		parts = append(parts, fmt.Sprintf("rule: %s for %s", count(st.Threshold, "zombie"), span(seconds(st.Grace))),
			"scope: "+st.Scope, "Linux "+st.Kernel, "kzr "+st.Version)
		if st.Version == "" {
			parts = parts[:len(parts)-1]
		}
		text := parts[0]
		for _, p := range parts[1:] {
			if ansi.StringWidth(text+dot+p) > back.room {
				break
			}
			text += dot + p
		}
		back.add(dim.Render(m.cut(text, back.room)))
	}
	if !back.any {
		return front.b.String()
	}
	return front.b.String() + strings.Repeat(" ", max(1, m.w-ansi.StringWidth(front.b.String())-ansi.StringWidth(back.b.String()))) + back.b.String()
}

func (g grave) badge() paint {
	switch g {
	case urgent:
		return badBar
	case soon:
		return warnBar
	}
	return goodBar
}

func (m *model) headlineLine() string {
	h := m.headline()
	badge := " " + h.badge + " "
	return h.grave.badge().Render(m.cut(badge, m.w)) +
		bold.Render(m.cut(" "+h.text, m.w-len(badge)))
}

// tasks is the process table as a bar: live tasks, zombies, room.
func (m *model) tasks() string {
	st := &m.shown.status
	tasks := max(st.Tasks, m.shown.doc.Tasks)
	s := segments{room: m.w}
	label := dim.Render("Tasks  ") + " "
	if st.TasksLimit <= 0 {
		s.add(label + bold.Render(number(tasks)) + dim.Render(" (limit unknown)"))
		return s.b.String()
	}
	used := m.used()
	style := good
	if used >= alarm(st.Pressure) {
		style = bad
	} else if used >= 0.7*alarm(st.Pressure) {
		style = warn
	}
	width := min(max(10, m.w/3), 60)
	cells := func(n int) int { return min(width, (n*width+st.TasksLimit/2)/st.TasksLimit) }
	all := cells(tasks)
	dead := min(all, cells(m.shown.doc.Zombies))
	if m.shown.doc.Zombies > 0 && used > 0.01 {
		dead = max(dead, min(1, all))
	}
	s.add(label + style.Render(strings.Repeat(m.live, all-dead)) + bad.Render(strings.Repeat(m.dead, dead)) +
		dim.Render(strings.Repeat(m.free, width-all)) + " " + style.Render(fmt.Sprintf("%.0f%%", 100*used)))
	s.add(dim.Render(number(tasks) + " of " + number(st.TasksLimit)))
	if left, ok := m.untilFull(); ok {
		style := dim
		if left < fullSoon {
			style = bad
		}
		if left < 30*24*time.Hour {
			s.add(style.Render("full in " + span(left)))
		}
	}
	return s.b.String()
}

// totals is the node in numbers.
func (m *model) totals(l layout) string {
	if m.shown.at.IsZero() {
		return ""
	}
	st := &m.shown.status
	doc := &m.shown.doc
	s := segments{room: m.w}
	style := bold
	if doc.Zombies == 0 {
		style = dim
	}
	parents := len(doc.Parents) + doc.Omitted
	s.add(dim.Render("Zombies ") + style.Render(number(doc.Zombies)) + dim.Render(" in "+count(parents, "parent")))
	if l.compact && st.TasksLimit > 0 {
		s.add(dim.Render("tasks ") + bold.Render(fmt.Sprintf("%.0f%%", 100*m.used())))
	}
	if rate, ok := m.past.zombies.rate(); ok {
		text, style := perTime(rate), dim
		switch {
		case text == "":
			text = "0/s"
		case rate > 0:
			style = warn
		}
		s.add(dim.Render("leak ") + style.Render(text) + " " + style.Render(m.past.zombies.spark(max(6, m.w/12), m.spark)))
	}
	s.add(dim.Render("kills ") + bold.Render(strconv.FormatUint(st.Kills, 10)))
	if rate, ok := m.past.exits.rate(); ok && st.Exits > 0 {
		s.add(dim.Render("exits ") + fmt.Sprintf("%.0f/s", rate))
	}
	if st.Lost > 0 {
		s.add(dim.Render("lost ") + warn.Render(strconv.FormatUint(st.Lost, 10)))
	}
	return s.b.String()
}

// place is a column on the screen.
type place struct {
	column
	title     string
	at, width int
	right     bool // numbers
}

// Least widths. Who and command take what is left over.
const (
	leastWho     = 14
	leastCommand = 12
	wide         = 120 // from here on words are spelled out
)

// columns are those that fit, from left to right.
func (m *model) columns() []place {
	pid, who := 5, len("WHO")
	for _, r := range m.visible {
		pid = max(pid, len(strconv.Itoa(r.PID)))
		if who = max(who, columnsOf(r.who)); m.grouped {
			who = max(who, columnsOf(r.Comm)+4)
		}
	}
	verdict := 13
	if m.w >= wide {
		verdict = 24
	}
	has := map[column]int{colZombies: 8, colVerdict: verdict}
	room := m.w - (8 + 1) - (verdict + 1)
	for _, c := range []struct {
		column
		width int
		from  int // only on screens so wide
	}{
		{colPID, pid, 0}, {colRate, 7, 0}, {colOldest, 6, 0}, {colCommand, leastCommand, 0}, {colSpark, 6, 100},
		{colState, 2, 100}, {colUID, 6, wide}, {colAdopted, 7, wide},
	} {
		least := leastWho
		if c.column == colPID {
			least = 8
		}
		if m.grouped && (c.column == colSpark || c.column == colUID) {
			continue // a workload's line says more where the command is
		}
		if m.w >= c.from && room-c.width-1 >= least {
			has[c.column] = c.width
			room -= c.width + 1
		}
	}
	if n := has[colSpark]; n > 0 {
		more := min(max(0, m.w/10-n), 18, max(0, room-leastWho))
		has[colSpark] += more
		room -= more
	}
	// Who gets what it needs, up to three fifths of what the two share.
	flex := room + has[colCommand]
	if has[colCommand] == 0 {
		has[colWho] = max(room, 0)
	} else {
		most := flex * 3 / 5
		if m.grouped {
			most = min(most, flex-len("1 parent, 1,000/1,000 pids...")) // see inside
		}
		has[colWho] = max(leastWho, min(who, most))
		has[colCommand] = flex - has[colWho]
	}
	var out []place
	at := 0
	for _, p := range []place{
		{column: colPID, title: "PID", right: true}, {column: colState, title: "ST"}, {column: colUID, title: "UID", right: true},
		{column: colWho, title: "WHO"}, {column: colCommand, title: "COMMAND"},
		{column: colZombies, title: "ZOMBIES", right: true}, {column: colAdopted, title: "ADOPTED", right: true}, {column: colSpark, title: "1 MIN"},
		{column: colOldest, title: "OLDEST", right: true}, {column: colRate, title: "RATE", right: true}, {column: colVerdict, title: "VERDICT"},
	} {
		p.width = has[p.column]
		if p.width <= 0 {
			continue
		}
		p.at = at
		at += p.width + 1
		out = append(out, p)
	}
	return out
}

func (m *model) table(l layout) []string {
	columns := m.columns()
	lines := make([]string, 0, l.rows+1)
	var b strings.Builder
	for i, c := range columns {
		if i > 0 {
			b.WriteByte(' ')
		}
		title, style := c.title, titles
		if c.column == m.sortBy {
			style = sorted
			arrow := m.down
			if m.reverse {
				arrow = m.up
			}
			if len(title) < c.width { // an arrow has a column of its own, or none
				title += arrow
			}
		}
		if c.right {
			b.WriteString(style.Render(m.right(title, c.width)))
		} else {
			b.WriteString(style.Render(m.left(title, c.width)))
		}
	}
	lines = append(lines, b.String())
	if len(m.visible) == 0 {
		return append(lines, m.nothing(l)...)
	}
	acts := "acts"
	if m.Alone != "" || m.shown.status.DryRun {
		acts = "due"
	}
	for i := m.offset; i < len(m.visible) && i < m.offset+l.rows; i++ {
		lines = append(lines, m.line(&m.visible[i], columns, i == m.cursor, acts))
	}
	for len(lines) < l.rows+1 {
		lines = append(lines, "")
	}
	return lines
}

// nothing is what a table without rows says.
func (m *model) nothing(l layout) []string {
	lines := make([]string, l.rows)
	text := "No zombies."
	switch {
	case m.shown.at.IsZero():
		text = "Loading" + m.more
	case m.filter != "" && len(m.rows) > 0:
		text = fmt.Sprintf("No parent matches %q; press esc to clear the filter.", m.filter)
	}
	if l.rows > 0 {
		text = m.cut(text, m.w)
		lines[l.rows/2] = strings.Repeat(" ", max(0, (m.w-ansi.StringWidth(text))/2)) + dim.Render(text)
	}
	return lines
}

func (m *model) line(r *row, columns []place, selected bool, acts string) string {
	elapsed := m.elapsed()
	verdict, g := r.verdict(elapsed, acts)
	if r.PID == 0 {
		verdict, g = r.prospect()
	} else if m.w >= wide {
		switch {
		case r.Verdict == "spared":
			verdict = "spared: " + verdict
		case r.Reason != "" && r.Verdict == "watch":
			verdict = "watch: " + verdict
		}
	}
	var b strings.Builder
	for i, c := range columns {
		text, style := "", plain
		switch c.column {
		case colVerdict, colZombies, colRate: // of all kinds of lines
		case colWho:
			switch text = r.label(m.tee); {
			case r.load != nil:
				text, style = m.middle(text, c.width), bold
			case !r.below:
				text = m.middle(text, c.width)
			}
		case colCommand:
			text, style = r.command, dim
			if r.load != nil {
				text = r.inside()
			}
		default:
			if r.PID == 0 {
				break
			}
			text, style = m.cell(r, c, elapsed)
		}
		switch c.column {
		case colZombies:
			if r.more > 0 {
				break
			}
			text, style = number(r.Zombies), bold
			if len(text) > c.width {
				text = strconv.Itoa(r.Zombies)
			}
		case colRate:
			if text = perTime(r.rate); r.rate > 0 {
				style = warn
			}
		case colVerdict:
			switch text = verdict; g {
			case urgent:
				style = bad
			case soon:
				style = warn
			case calm:
				style = dim
			}
		}
		if c.right {
			text = m.right(text, c.width)
		} else {
			text = m.left(text, c.width)
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		if selected {
			b.WriteString(text)
		} else {
			b.WriteString(style.Render(text))
		}
	}
	if selected {
		return chosen.Render(m.left(b.String(), m.w))
	}
	return b.String()
}

// cell is what only a parent has.
func (m *model) cell(r *row, c place, elapsed time.Duration) (text string, style paint) {
	switch style = dim; c.column {
	case colPID:
		text = strconv.Itoa(r.PID)
	case colState:
		text = r.State
	case colUID:
		text = strconv.FormatUint(uint64(r.UID), 10)
	case colAdopted:
		text = number(r.Adopted)
	case colSpark:
		if r.past != nil {
			text = r.past.spark(c.width, m.spark)
		}
		if r.rate > 0 {
			style = warn
		}
	case colOldest:
		style = plain
		if age, known := r.Oldest(); known {
			text = span(age + elapsed)
		} else if r.Reapable > 0 {
			text = "-"
		}
	}
	return text, style
}

// label is the name of a line.
func (r *row) label(tee string) string {
	switch {
	case r.more > 0:
		return "  " + tee + "and " + number(r.more) + " more"
	case r.below:
		return "  " + tee + r.Comm
	}
	return r.who
}

// inside is what a workload holds.
func (r *row) inside() string {
	text := count(r.load.Parents, "parent")
	if r.load.Pids != nil {
		text += ", " + number(*r.load.Pids)
		if r.load.PidsLimit != nil {
			text += "/" + number(*r.load.PidsLimit)
		}
		text += " pids"
	}
	return text
}

// prospect is what becomes of a workload.
func (r *row) prospect() (string, grave) {
	if r.load == nil || r.load.FullInSeconds == nil {
		return "", calm
	}
	left := seconds(*r.load.FullInSeconds)
	if left < fullSoon {
		return "full in " + span(left), urgent
	}
	return "full in " + span(left), calm
}

// rule is a horizontal line with a title in it.
func (m *model) rule(title string) string {
	title = m.cut(title, m.w-4)
	rest := max(0, m.w-4-ansi.StringWidth(title))
	return dim.Render(strings.Repeat(m.dash, 2)) + " " + bold.Render(title) + " " + dim.Render(strings.Repeat(m.dash, rest))
}

// stream is what happened, the newest last.
func (m *model) stream(l layout) []string {
	title := "Events"
	if m.noZombies {
		title += " (press z to show zombies)"
	}
	if n := len(m.held); n > 0 {
		title += fmt.Sprintf(" (%s since paused)", count(n, "line"))
	}
	lines := []string{m.rule(title)}
	var shown []string
	words := m.words()
	for i := len(m.events) - 1; i >= 0 && len(shown) < l.events; i-- {
		e := &m.events[i]
		if m.noZombies && e.Event == report.EventZombie {
			continue
		}
		if holdsAll(e.text(), words) {
			shown = append(shown, m.event(e))
		}
	}
	for _, line := range slices.Backward(shown) {
		lines = append(lines, line)
	}
	if len(shown) == 0 && l.events > 0 {
		text := " No events yet."
		if len(m.events) > 0 {
			text = " No events match."
		}
		lines = append(lines, dim.Render(m.cut(text, m.w)))
	}
	return lines
}

// event is a line of the stream.
func (m *model) event(e *entry) string {
	what, style := e.Event, plain
	switch e.Event {
	case report.EventZombie:
		style = dim
	case report.EventSignal:
		style = warn
		if e.Signal == "SIGKILL" {
			style = bad
		}
		what = e.Signal
	case report.EventSuspect, report.EventLostEvents, report.EventMissed:
		style = warn
	case report.EventGaveUp:
		style = bad
	case report.EventReaped, report.EventTerminated:
		style = good
	case report.EventSpared:
		style = accent
	}
	at := "        "
	if !e.Time.IsZero() {
		at = e.Time.Local().Format(time.TimeOnly)
	}
	var about, text string
	if e.PID != 0 {
		who := strings.Trim(e.Namespace+"/"+e.Pod, "/")
		if who == "" && e.Container != "" {
			who = e.Container[:min(len(e.Container), 12)]
		}
		about = strings.TrimSpace(fmt.Sprintf("%s %d %s", who, e.PID, e.Comm))
	}
	switch {
	case e.Event == report.EventZombie && e.n > 1:
		text = fmt.Sprintf("%d more unreaped, %d in total", e.n, e.Zombies)
	case e.Event == report.EventZombie:
		text = fmt.Sprintf("child %d unreaped, %d in total", e.Child, e.Zombies)
	case e.Event == report.EventMissed:
		text = fmt.Sprintf("%d events were too fast to be shown", e.Count)
	default:
		if e.Zombies > 0 {
			about += fmt.Sprintf(" (%s", count(e.Zombies, "zombie"))
			if e.OldestSeconds > 0 {
				about += ", oldest " + span(seconds(e.OldestSeconds))
			}
			about += ")"
		}
		text = e.Message
		if e.Reason != "" {
			text = spelled(e.Reason) + ": " + text
		}
	}
	front := m.left(at, 8) + " "
	mark := m.left(what, 10)
	room := m.w - 8 - 1 - 10 - 1
	if n := min(room/2, 60); columnsOf(about) < n {
		about = m.left(about, n) // what follows stands in a column
	}
	about = m.cut(about, room)
	room -= columnsOf(about) + 2
	line := dim.Render(front) + style.Render(mark) + " " + about
	if room > 0 {
		line += "  " + dim.Render(m.cut(text, room))
	}
	return line
}

func (m *model) footer() string {
	if m.typing {
		s := fmt.Sprintf("/%s", m.filter)
		hint := fmt.Sprintf("  %d of %d; enter applies, esc clears", m.matching, len(m.rows))
		return accent.Render(m.cut(s, m.w-1)) + chosen.Render(" ") + dim.Render(m.cut(hint, m.w-ansi.StringWidth(s)-1))
	}
	s := segments{room: m.w}
	show := func(all ...key.Binding) {
		for _, k := range all {
			h := k.Help()
			s.add(accent.Render(m.keyName(h.Key)) + " " + h.Desc)
		}
	}
	if m.help || m.detailOf.PID != 0 {
		show(keys.back, keys.up, keys.down)
		if !m.help {
			show(keys.pause, keys.help)
		}
		if m.pane.TotalLineCount() > m.pane.Height() {
			s.add(dim.Render(fmt.Sprintf("%.0f%%", 100*m.pane.ScrollPercent())))
		}
		return s.b.String()
	}
	if m.filter != "" {
		s.add(search.Render(m.cut(" /"+m.filter+" ", m.w/3)) + dim.Render(fmt.Sprintf(" %d of %d", m.matching, len(m.rows))))
	}
	show(keys.help, keys.quit, keys.details, keys.filter, keys.workloads, keys.next, keys.pause, keys.stream, keys.reverse, keys.zombies)
	return s.b.String()
}
