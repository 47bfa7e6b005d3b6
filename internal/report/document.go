package report

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"kzr/internal/task"
)

// NewParent describes p and its zombies for a [Document], with every string
// sanitized. Age, verdict, reason and deadline are the caller's to fill in.
func NewParent(p *task.Process, c *task.Children) Parent {
	out := Parent{
		PID:       p.PID,
		StartTime: p.Start,
		Comm:      Sanitize(p.Comm),
		Exe:       Sanitize(p.Exe),
		Cmdline:   sanitizeAll(p.Cmdline),
		UID:       p.UID,
		Cgroup:    Sanitize(p.Cgroup),
		Container: sanitizeContainer(p.Container),
		Workload:  Sanitize(p.Workload),
	}
	if p.State != 0 {
		out.State = Sanitize(string(rune(p.State)))
	}
	if c != nil {
		out.Zombies, out.Reapable = c.Total(), len(c.Reapable)
		for _, z := range c.Reapable {
			if z.Has(task.Adopted) {
				out.Adopted++
			}
		}
	}
	return out
}

// sanitizeAll sanitizes arguments, at most maxText bytes of them in all.
func sanitizeAll(args []string) []string {
	out := make([]string, 0, len(args))
	room := maxText
	for i, a := range args {
		if room < 16 || i == 1024 { // empty arguments take no room
			return append(out, cut)
		}
		a = SanitizeTo(a, room)
		room -= len(a)
		out = append(out, a)
	}
	return out
}

func sanitizeContainer(c *task.Container) *task.Container {
	if c == nil {
		return nil
	}
	return &task.Container{
		Runtime:   Sanitize(c.Runtime),
		ID:        Sanitize(c.ID),
		PodUID:    Sanitize(c.PodUID),
		Pod:       Sanitize(c.Pod),
		Namespace: Sanitize(c.Namespace),
		Name:      Sanitize(c.Name),
		Image:     Sanitize(c.Image),
	}
}

// Sort puts the parents in the document's order, most reapable zombies first, then
// most zombies, then by pid; and the workloads, most zombies first, then by name.
func (d *Document) Sort() {
	slices.SortFunc(d.Workloads, compareWorkloads)
	slices.SortFunc(d.Parents, func(a, b Parent) int {
		return cmp.Or(cmp.Compare(b.Reapable, a.Reapable), cmp.Compare(b.Zombies, a.Zombies),
			cmp.Compare(a.PID, b.PID), cmp.Compare(a.StartTime, b.StartTime))
	})
}

func compareWorkloads(a, b Workload) int {
	return cmp.Or(cmp.Compare(b.Zombies, a.Zombies), cmp.Compare(a.Name, b.Name))
}

// Limit keeps the first n parents and workloads of a sorted document and counts the
// others as omitted. The totals stay those of the whole node.
func (d *Document) Limit(n int) {
	if len(d.Parents) > n {
		d.Omitted += len(d.Parents) - n
		d.Parents = d.Parents[:n]
	}
	if len(d.Workloads) > n {
		d.OmittedWorkloads += len(d.Workloads) - n
		d.Workloads = d.Workloads[:n]
	}
}

// EncodeJSON renders a Document, Status or Detail as every part of kzr does: one
// line that ends in a newline, with < and & as they are.
func EncodeJSON(v any) ([]byte, error) {
	if d, ok := v.(Document); ok {
		if d.Parents == nil {
			d.Parents = []Parent{}
		}
		if d.Workloads == nil {
			d.Workloads = []Workload{}
		}
		v = d
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encoding JSON: %w", err)
	}
	return escapeRunes(b.Bytes()), nil
}

// escapeRunes escapes what encoding/json leaves as it is though a terminal would
// act on it. Beyond ASCII JSON holds nothing but strings. NewParent has
// sanitized most of them, which also protects who prints the decoded string;
// this protects whatever else was put in.
func escapeRunes(b []byte) []byte {
	safe := func(r rune) bool { return r < 0x7f || visible(r) }
	if bytes.IndexFunc(b, func(r rune) bool { return !safe(r) }) < 0 {
		return b
	}
	out := make([]byte, 0, len(b)+len(b)/8)
	for _, r := range string(b) {
		if safe(r) {
			out = utf8.AppendRune(out, r)
			continue
		}
		for _, u := range utf16.AppendRune(nil, r) {
			out = appendHex(out, 'u', uint32(u), 4)
		}
	}
	return out
}

// Who names a parent the way an operator thinks of it: namespace/pod/container,
// else the container, else the systemd unit, else the user.
func Who(p Parent) string {
	if c := p.Container; c != nil {
		name := c.Name
		if name == "" {
			name = c.ID
			if len(name) > 12 { // as docker and crictl shorten it
				name = name[:12]
			}
		}
		switch {
		case c.Pod != "":
			return Sanitize(path.Join(c.Namespace, c.Pod, name))
		case c.Runtime != "":
			return Sanitize(c.Runtime + ":" + name)
		}
		return Sanitize(name)
	}
	for _, name := range slices.Backward(strings.Split(p.Cgroup, "/")) {
		if strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".scope") {
			return Sanitize(name)
		}
	}
	if p.UID == 0 {
		return "root"
	}
	return "uid " + strconv.FormatUint(uint64(p.UID), 10)
}

// Command is the command line of a parent in one sanitized string, or, as ps has
// it, the comm in brackets where there is none.
func Command(p Parent) string {
	if s := strings.Join(p.Cmdline, " "); strings.TrimSpace(s) != "" {
		return Sanitize(s)
	}
	return "[" + Sanitize(p.Comm) + "]"
}

// Oldest is the age of its oldest reapable zombie, false if that is not known.
func (p *Parent) Oldest() (time.Duration, bool) {
	if p.OldestSeconds == nil {
		return 0, false
	}
	return time.Duration(*p.OldestSeconds * float64(time.Second)), true
}

// Age is a duration for a narrow column: 0s, 42s, 5m12s, 3h05m, 2d04h.
func Age(d time.Duration) string {
	s := int64(max(d, 0) / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	}
	return fmt.Sprintf("%dd%02dh", s/86400, s/3600%24)
}
