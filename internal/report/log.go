package report

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const timeFormat = "2006-01-02T15:04:05.000Z07:00"

// NewLogger returns a logger that writes one line per record to w in a single
// Write: format is json or text (key=value), level is debug, info, warn or
// error; anything else counts as text and info, since the configuration has
// been checked. The line begins with time, level, event and msg; whatever is in
// a value, the line stays one line and is safe to show on a terminal.
//
// The loop that decides must never wait for a log: give it a [Writer].
func NewLogger(w io.Writer, format, level string) *slog.Logger {
	h := &handler{w: w, mu: new(sync.Mutex), level: new(slog.LevelVar), json: format == "json"}
	h.level.Set(parseLevel(level))
	if lw, ok := w.(*Writer); ok {
		_, h.journal = lw.w.(*journal)
		lw.setNotice(func(lost uint64) []byte {
			return h.render(nil, time.Now(), slog.LevelWarn, "log lines were lost",
				[]slog.Attr{slog.Uint64("lost", lost)})
		})
	}
	return slog.New(h)
}

// SetLevel changes the level of a logger that NewLogger made and of all derived
// from it.
func SetLevel(l *slog.Logger, level string) {
	if h, ok := l.Handler().(*handler); ok {
		h.level.Set(parseLevel(level))
	}
}

func parseLevel(s string) slog.Level {
	switch s {
	case "debug":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	case "error":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// handler is a slog.Handler whose values can be hostile. slog's own escape
// neither C1 controls nor bidirectional runes in JSON, and do not bound length.
type handler struct {
	w     io.Writer
	mu    *sync.Mutex // one Write at a time
	level *slog.LevelVar
	json  bool
	// journal says that w takes the journal's entries rather than lines.
	journal bool

	attrs  []slog.Attr // of With, keys complete
	prefix string      // of WithGroup, "" or ends in a dot
}

func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	attrs := make([]slog.Attr, 0, len(h.attrs)+r.NumAttrs())
	attrs = append(attrs, h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		attrs = flatten(attrs, h.prefix, a)
		return true
	})
	b := h.render(make([]byte, 0, 512), r.Time, r.Level, r.Message, attrs)
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.w.Write(b)
	return err
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs = slices.Clip(h.attrs)
	for _, a := range attrs {
		c.attrs = flatten(c.attrs, h.prefix, a)
	}
	return &c
}

func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.prefix += name + "."
	return &c
}

// flatten appends a with its value resolved, a group as its members under
// dotted keys.
func flatten(dst []slog.Attr, prefix string, a slog.Attr) []slog.Attr {
	a.Value = a.Value.Resolve()
	if a.Value.Kind() != slog.KindGroup {
		if a.Key == "" {
			return dst
		}
		a.Key = prefix + a.Key
		return append(dst, a)
	}
	if a.Key != "" {
		prefix += a.Key + "."
	}
	for _, m := range a.Value.Group() {
		dst = flatten(dst, prefix, m)
	}
	return dst
}

// render makes what is given to w in one Write.
func (h *handler) render(dst []byte, t time.Time, level slog.Level, msg string, attrs []slog.Attr) []byte {
	if h.journal {
		return h.appendEntry(dst, t, level, msg, attrs)
	}
	return h.appendRecord(dst, t, level, msg, attrs)
}

// appendRecord renders one line. The event comes before the message: it is what
// the eye and grep look for. A text for the journal has neither time nor level,
// as the journal shows its own.
func (h *handler) appendRecord(dst []byte, t time.Time, level slog.Level, msg string, attrs []slog.Attr) []byte {
	start := len(dst)
	field := func(key string, v slog.Value) {
		switch {
		case h.json:
			dst = append(dst, ',')
			dst = appendJSONString(dst, key)
			dst = append(dst, ':')
			dst = appendJSONValue(dst, v)
		default:
			if len(dst) > start {
				dst = append(dst, ' ')
			}
			dst = appendSafe(dst, key, maxText, false)
			dst = append(dst, '=')
			dst = appendTextValue(dst, v)
		}
	}
	bare := h.journal && !h.json
	switch {
	case h.json:
		dst = append(dst, `{"time":"`...)
		dst = t.AppendFormat(dst, timeFormat)
		dst = append(dst, '"')
	case !bare:
		dst = append(dst, "time="...)
		dst = t.AppendFormat(dst, timeFormat)
	}
	if !bare {
		field(slog.LevelKey, slog.StringValue(level.String()))
	}
	event := -1
	for i := range attrs {
		if attrs[i].Key == "event" {
			field("event", attrs[i].Value)
			event = i
			break
		}
	}
	field(slog.MessageKey, slog.StringValue(msg))
	for i := range attrs {
		if i != event {
			field(attrs[i].Key, attrs[i].Value)
		}
	}
	if h.json {
		dst = append(dst, '}')
	}
	return append(dst, '\n')
}

// appendTextValue writes a value bare where it is one plain word, else quoted
// the way Go quotes. Durations are for people: 1m3.2s.
func appendTextValue(dst []byte, v slog.Value) []byte {
	s := valueText(v)
	if s != "" && len(s) <= maxText && plain(s) && !strings.ContainsAny(s, " \"=\\") {
		return append(dst, s...)
	}
	dst = append(dst, '"')
	dst = appendSafe(dst, s, maxText, true)
	return append(dst, '"')
}

// appendJSONValue writes numbers and booleans as such, a duration as seconds
// and everything else as a sanitized string.
func appendJSONValue(dst []byte, v slog.Value) []byte {
	switch v.Kind() {
	case slog.KindInt64:
		return strconv.AppendInt(dst, v.Int64(), 10)
	case slog.KindUint64:
		return strconv.AppendUint(dst, v.Uint64(), 10)
	case slog.KindBool:
		return strconv.AppendBool(dst, v.Bool())
	case slog.KindDuration:
		return strconv.AppendFloat(dst, Seconds(v.Duration()), 'f', -1, 64)
	case slog.KindFloat64:
		if f := v.Float64(); f-f == 0 { // JSON knows neither NaN nor infinity
			return strconv.AppendFloat(dst, f, 'g', -1, 64)
		}
	}
	if list, ok := v.Any().([]string); ok {
		dst = append(dst, '[')
		for i, s := range list {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendJSONString(dst, s)
		}
		return append(dst, ']')
	}
	return appendJSONString(dst, valueText(v))
}

func valueText(v slog.Value) string {
	switch v.Kind() {
	case slog.KindDuration:
		return v.Duration().Round(time.Millisecond).String()
	case slog.KindFloat64:
		return strconv.FormatFloat(v.Float64(), 'f', -1, 64)
	case slog.KindTime:
		return v.Time().Format(timeFormat)
	case slog.KindAny:
		return fmt.Sprint(v.Any()) // knows errors and Stringers, and survives their panics
	}
	return v.String()
}

// Seconds gives a duration as every JSON of kzr's does, to the millisecond.
func Seconds(d time.Duration) float64 {
	return float64(d.Round(time.Millisecond)/time.Millisecond) / 1000
}

// Level is info; warn for what interferes with a process or means that kzr does
// not do its job: a signal (even one that dryRun holds back), giving up, lost
// events; error for what somebody has to mend.
func (e *Event) Level() slog.Level {
	if e.Failed {
		return slog.LevelError
	}
	switch e.Name {
	case EventSignal, EventGaveUp, EventLostEvents:
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// Log writes the event to l under the keys of the contract.
func (e Event) Log(ctx context.Context, l *slog.Logger) {
	if !l.Enabled(ctx, e.Level()) {
		return
	}
	// The handler is called by itself so that the line has the event's own time.
	_ = l.Handler().Handle(ctx, e.record()) // a log that fails must not stop kzr
}

// record is the one place where an event becomes keys and values, for both logs
// and the stream.
func (e *Event) record() slog.Record {
	msg := e.Message
	if msg == "" {
		msg = e.Name
	}
	r := slog.NewRecord(e.Time, e.Level(), msg, 0)
	add := func(key string, v slog.Value) { r.AddAttrs(slog.Attr{Key: key, Value: v}) }
	text := func(key, s string) {
		if s != "" {
			add(key, slog.StringValue(s))
		}
	}
	text("event", e.Name)
	if p := e.Process; p != nil {
		add("pid", slog.IntValue(p.PID))
		add("starttime", slog.Uint64Value(p.Start))
		text("comm", p.Comm)
		text("exe", p.Exe)
		add("uid", slog.Uint64Value(uint64(p.UID)))
		add("zombies", slog.IntValue(e.Zombies))
		add("reapable", slog.IntValue(e.Reapable))
		if e.Oldest > 0 {
			add("oldestSeconds", slog.Float64Value(Seconds(e.Oldest)))
		}
		if c := p.Container; c != nil {
			text("container", c.Name)
			text("container_id", c.ID)
			text("pod", c.Pod)
			text("namespace", c.Namespace)
		}
		text("workload", p.Workload)
	}
	text("node", Host())
	text("rule", e.Rule)
	text("signal", e.Signal)
	if e.Name == EventSignal || e.DryRun {
		add("dry_run", slog.BoolValue(e.DryRun))
	}
	if e.LimitsOverridden {
		add("limits_overridden", slog.BoolValue(true))
	}
	text("by", e.By)
	if e.Reaped > 0 {
		add("reaped", slog.IntValue(e.Reaped))
		add("stoppedSeconds", slog.Float64Value(Seconds(e.Stopped)))
	}
	text("reason", e.Reason)
	if !e.Until.IsZero() {
		add("until", slog.TimeValue(e.Until))
	}
	if e.Child.PID() != 0 {
		add("child", slog.Int64Value(int64(e.Child.PID())))
		add("child_starttime", slog.Uint64Value(e.Child.Start()))
	}
	r.Add(e.Attrs...)
	return r
}

// appendJSON renders the event exactly as the JSON log does.
func (e *Event) appendJSON(dst []byte) []byte {
	h := handler{json: true}
	r := e.record()
	attrs := make([]slog.Attr, 0, r.NumAttrs())
	r.Attrs(func(a slog.Attr) bool {
		attrs = flatten(attrs, "", a)
		return true
	})
	return h.appendRecord(dst, r.Time, r.Level, r.Message, attrs)
}
