package top

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"charm.land/bubbles/v2/key"
	"charm.land/bubbles/v2/viewport"
	tea "charm.land/bubbletea/v2"

	"kzr/internal/report"
	"kzr/internal/task"
)

// sampleMsg is one look at the source.
type sampleMsg struct {
	at     time.Time
	took   time.Duration
	status report.Status
	doc    report.Document
	err    error
}

// detailMsg is one look at one parent.
type detailMsg struct {
	id     task.ID
	at     time.Time
	detail report.Detail
	err    error
}

// tickMsg moves the countdowns.
type tickMsg time.Time

// rest, in times of what a look took, is left between two looks: a big node is
// looked at less often rather than with more of a CPU.
const rest = 30

type model struct {
	Options
	*glyphs
	ctx  context.Context
	feed *feed

	w, h  int
	now   time.Time
	drawn string // the screen, "" when it has to be drawn anew

	// What was seen, and what of it is shown: the same, unless paused.
	seen   sampleMsg
	shown  sampleMsg
	past   history
	failed error // of the last look
	since  time.Time
	paused bool

	looking  bool
	lookNext time.Time

	rows     []row           // all, as shown
	visible  []row           // filtered, sorted and maybe grouped
	matching int             // of rows that the filter lets pass
	grouped  bool            // by workload
	opened   map[string]bool // workloads that show all their parents
	sortBy   column
	reverse  bool
	filter   string
	typing   bool
	selected lineID
	touched  bool // the selection was made by a person, and stays
	cursor   int  // index into visible
	offset   int  // first visible row on the screen

	events     []entry
	held       []entry // came while paused
	noStream   bool
	noZombies  bool
	detail     *report.Detail
	detailOf   task.ID // what the details are about; 0 when they are closed
	detailErr  error
	detailAt   time.Time
	pane       viewport.Model // of the details and the help
	help       bool
	lastClick  lineID
	clickedAt  time.Time
	detailBusy bool
}

func newModel(ctx context.Context, o Options) *model {
	if o.Interval <= 0 {
		o.Interval = time.Second
	}
	m := &model{Options: o, glyphs: &unicodeGlyphs, ctx: ctx, feed: newFeed(), w: 80, h: 24, pane: viewport.New(), sortBy: colZombies}
	if o.ASCII {
		m.glyphs = &asciiGlyphs
	}
	m.pane.KeyMap = viewport.KeyMap{Up: keys.up, Down: keys.down, PageUp: keys.pageUp, PageDown: keys.pageDown}
	return m
}

// Init implements [tea.Model].
func (m *model) Init() tea.Cmd {
	m.looking = true
	return tea.Batch(m.look(), m.tick(), m.feed.next(m.ctx))
}

func (m *model) tick() tea.Cmd {
	return tea.Tick(min(m.Interval, time.Second), func(t time.Time) tea.Msg { return tickMsg(t) })
}

func (m *model) look() tea.Cmd {
	ctx, source := m.ctx, m.Source
	return func() tea.Msg {
		began := time.Now()
		var s sampleMsg
		if s.doc, s.err = source.Parents(ctx); s.err == nil {
			s.status, s.err = source.Status(ctx)
		}
		s.at = time.Now()
		s.took = s.at.Sub(began)
		return s
	}
}

func (m *model) inspect() tea.Cmd {
	if m.detailBusy {
		return nil
	}
	m.detailBusy = true
	ctx, source, id := m.ctx, m.Source, m.detailOf
	return func() tea.Msg {
		d, err := source.Parent(ctx, id.PID)
		if err == nil && d.StartTime != id.Start {
			err = report.ErrNotFound
		}
		return detailMsg{id: id, at: time.Now(), detail: d, err: err}
	}
}

// Update implements [tea.Model].
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	if tick, ok := msg.(tickMsg); ok {
		return m, m.ticked(time.Time(tick))
	}
	m.drawn = ""
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.w, m.h = msg.Width, msg.Height
		m.settle()
	case sampleMsg:
		return m, m.sampled(msg)
	case detailMsg:
		m.detailBusy = false
		if msg.id != m.detailOf {
			if m.detailOf.PID != 0 { // another one was opened meanwhile
				return m, m.inspect()
			}
			break
		}
		m.detailAt, m.detailErr = msg.at, msg.err
		if msg.err == nil {
			m.detail = &msg.detail
		}
	case eventsMsg:
		for _, e := range msg {
			if m.paused {
				m.held = add(m.held, e)
			} else {
				m.events = add(m.events, e)
			}
		}
		return m, m.feed.next(m.ctx)
	case tea.KeyPressMsg:
		return m, m.pressed(msg)
	case tea.PasteMsg:
		if m.typing {
			m.setFilter(m.filter + msg.Content)
		}
	case tea.MouseClickMsg:
		if msg.Button == tea.MouseLeft {
			return m, m.clicked(msg.X, msg.Y)
		}
	case tea.MouseWheelMsg:
		m.wheeled(msg)
	}
	return m, nil
}

// ticked begins the next look, which then moves the time. Only where that is not
// due, or takes long, time moves by itself.
func (m *model) ticked(now time.Time) tea.Cmd {
	if !m.looking && !now.Before(m.lookNext) {
		m.looking = true
		return tea.Batch(m.tick(), m.look())
	}
	m.now, m.drawn = now, ""
	return m.tick()
}

func (m *model) sampled(s sampleMsg) tea.Cmd {
	m.looking = false
	m.now = s.at
	m.lookNext = s.at.Add(max(m.Interval, rest*s.took) - m.Interval/2)
	if m.failed = s.err; s.err != nil {
		if m.since.IsZero() {
			m.since = s.at
		}
		return nil
	}
	m.since = time.Time{}
	m.seen = s
	m.past.add(&s)
	if !m.paused {
		m.show()
	}
	if m.detailOf.PID != 0 && !m.paused {
		return m.inspect()
	}
	return nil
}

// show puts what was seen last on the screen.
func (m *model) show() {
	m.shown = m.seen
	m.rows = newRows(&m.shown.doc, &m.past, m.shown.status.DryRun)
	m.arrange()
}

// arrange filters and sorts the rows; the selection stays on its parent. If that
// is gone, it goes to whoever is in its place.
func (m *model) arrange() {
	sortRows(m.rows, m.sortBy, m.reverse)
	words := m.words()
	m.visible = nil
	for _, r := range m.rows {
		if r.matches(words) {
			m.visible = append(m.visible, r)
		}
	}
	m.matching = len(m.visible)
	if m.grouped {
		m.visible = grouped(m.visible, m.shown.doc.Workloads, m.sortBy, m.reverse, m.opened)
	}
	if !m.touched {
		m.cursor = 0
	} else if i := slices.IndexFunc(m.visible, func(r row) bool { return r.id == m.selected }); i >= 0 {
		m.cursor = i
	}
	m.settle()
}

// words are those of the filter, in lower case.
func (m *model) words() []string { return strings.Fields(strings.ToLower(m.filter)) }

// settle keeps the cursor on a row and its row on the screen.
func (m *model) settle() {
	m.cursor = max(0, min(m.cursor, len(m.visible)-1))
	if len(m.visible) > 0 {
		m.selected = m.visible[m.cursor].id
	}
	n := m.layout().rows
	m.offset = min(m.offset, m.cursor, max(0, len(m.visible)-n))
	m.offset = max(m.offset, m.cursor-n+1, 0)
}

// move moves the selection. At the very top nothing is selected for good: there
// the screen shows what comes first, whoever that is.
func (m *model) move(by int) {
	m.cursor += by
	m.settle()
	m.touched = m.cursor > 0
}

func (m *model) setFilter(s string) {
	m.filter = report.SanitizeTo(s, 200)
	m.arrange()
}

func (m *model) setSort(by column) {
	if by == m.sortBy {
		m.reverse = !m.reverse
	} else {
		m.sortBy, m.reverse = by, false
	}
	m.arrange()
}

func (m *model) pressed(msg tea.KeyPressMsg) tea.Cmd {
	if msg.String() == "ctrl+c" {
		return tea.Quit
	}
	switch {
	case m.typing:
		m.typed(msg)
	case m.help || m.detailOf.PID != 0:
		return m.pressedPane(msg)
	default:
		return m.pressedTable(msg)
	}
	return nil
}

// typed edits the filter.
func (m *model) typed(msg tea.KeyPressMsg) {
	switch msg.String() {
	case "enter", "ctrl+j", "down", "up":
		m.typing = false
	case "esc":
		m.typing = false
		m.setFilter("")
	case "backspace", "ctrl+h":
		if r := []rune(m.filter); len(r) > 0 {
			m.setFilter(string(r[:len(r)-1]))
		} else {
			m.typing = false
		}
	case "ctrl+u":
		m.setFilter("")
	case "ctrl+w":
		m.setFilter(m.filter[:strings.LastIndexByte(strings.TrimRight(m.filter, " "), ' ')+1])
	default:
		if msg.Text != "" {
			m.setFilter(m.filter + msg.Text)
		}
	}
}

// pressedPane handles keys while the details or the help are open.
func (m *model) pressedPane(msg tea.KeyPressMsg) tea.Cmd {
	switch {
	case key.Matches(msg, keys.quit):
		if msg.String() == "q" { // one step back, as in a pager
			m.closePane()
			return nil
		}
		return tea.Quit
	case key.Matches(msg, keys.back), key.Matches(msg, keys.details), m.help && key.Matches(msg, keys.help):
		m.closePane()
	case key.Matches(msg, keys.help):
		m.help = true
		m.pane.GotoTop()
	case key.Matches(msg, keys.pause):
		m.setPaused(!m.paused)
	case key.Matches(msg, keys.first):
		m.pane.GotoTop()
	case key.Matches(msg, keys.last):
		m.fillPane()
		m.pane.GotoBottom()
	default:
		m.fillPane()
		m.pane, _ = m.pane.Update(msg)
	}
	return nil
}

func (m *model) closePane() {
	if m.help {
		m.help = false
	} else {
		m.detailOf, m.detail, m.detailErr = task.ID{}, nil, nil
	}
	m.pane.GotoTop()
}

func (m *model) pressedTable(msg tea.KeyPressMsg) tea.Cmd {
	page := max(1, m.layout().rows-1)
	if by, ok := direct[msg.String()]; ok {
		m.setSort(by)
		return nil
	}
	switch {
	case key.Matches(msg, keys.quit):
		return tea.Quit
	case key.Matches(msg, keys.up):
		m.move(-1)
	case key.Matches(msg, keys.down):
		m.move(1)
	case key.Matches(msg, keys.pageUp):
		m.move(-page)
	case key.Matches(msg, keys.pageDown):
		m.move(page)
	case key.Matches(msg, keys.first):
		m.move(-len(m.visible))
	case key.Matches(msg, keys.last):
		m.move(len(m.visible))
	case key.Matches(msg, keys.details):
		return m.open()
	case key.Matches(msg, keys.filter):
		m.typing = true
	case key.Matches(msg, keys.back):
		m.setFilter("")
	case key.Matches(msg, keys.pause):
		m.setPaused(!m.paused)
	case key.Matches(msg, keys.next):
		i, step := slices.Index(sortable, m.sortBy), 1
		if msg.String() == "<" {
			step = len(sortable) - 1
		}
		m.sortBy, m.reverse = sortable[(i+step)%len(sortable)], false
		m.arrange()
	case key.Matches(msg, keys.reverse):
		m.setSort(m.sortBy)
	case key.Matches(msg, keys.stream):
		m.noStream = !m.noStream
		m.settle()
	case key.Matches(msg, keys.zombies):
		m.noZombies = !m.noZombies
	case key.Matches(msg, keys.workloads):
		m.grouped, m.touched = !m.grouped, false
		m.arrange()
	case key.Matches(msg, keys.help):
		m.help = true
		m.pane.GotoTop()
	}
	return nil
}

// open shows the details of the selected parent, or all parents of the selected
// workload.
func (m *model) open() tea.Cmd {
	if len(m.visible) == 0 {
		return nil
	}
	m.touched = true
	if m.selected.PID == 0 {
		if m.opened == nil {
			m.opened = make(map[string]bool)
		}
		m.opened[m.selected.workload] = !m.opened[m.selected.workload]
		m.selected.more = false // that line is gone
		m.arrange()
		return nil
	}
	m.detailOf, m.detail, m.detailErr = m.selected.ID, nil, nil
	m.pane.GotoTop()
	return m.inspect()
}

func (m *model) setPaused(on bool) {
	m.paused = on
	if on {
		return
	}
	for _, e := range m.held {
		m.events = add(m.events, e)
	}
	m.held = nil
	m.show()
}

// doubleClick is how far apart two clicks may be.
const doubleClick = 400 * time.Millisecond

func (m *model) clicked(x, y int) tea.Cmd {
	l := m.layout()
	switch {
	case m.help, m.detailOf.PID != 0:
	case y == l.header:
		for _, c := range m.columns() {
			if x >= c.at && x < c.at+c.width && slices.Contains(sortable, c.column) {
				m.setSort(c.column)
			}
		}
	case y > l.header && y <= l.header+l.rows:
		i := m.offset + y - l.header - 1
		if i >= len(m.visible) {
			break
		}
		m.cursor, m.touched = i, true
		m.settle()
		// Time runs on with every message; clicks have no other clock.
		if now := time.Now(); m.lastClick == m.selected && now.Sub(m.clickedAt) < doubleClick {
			m.lastClick = lineID{}
			return m.open()
		}
		m.lastClick, m.clickedAt = m.selected, time.Now()
	}
	return nil
}

func (m *model) wheeled(msg tea.MouseWheelMsg) {
	by := 3
	switch msg.Button {
	case tea.MouseWheelUp:
		by = -3
	case tea.MouseWheelDown:
	default:
		return
	}
	if m.help || m.detailOf.PID != 0 {
		m.fillPane()
		m.pane.SetYOffset(m.pane.YOffset() + by)
		return
	}
	m.move(by)
}

// gone says that the parent of the details is no more.
func (m *model) gone() bool { return errors.Is(m.detailErr, report.ErrNotFound) }
