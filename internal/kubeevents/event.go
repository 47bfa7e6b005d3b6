package kubeevents

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"kzr/internal/report"
	"kzr/internal/task"
	"kzr/internal/trail"
)

// Reasons of the Events, for who filters by them. They are part of the contract.
const (
	ReasonReaped     = "ZombiesReaped"
	ReasonTerminated = "ZombieParentTerminated"
	ReasonGaveUp     = "ZombieParentRemains"
	ReasonSpared     = "ZombieKillLimitReached"
)

// What the API server takes: bytes.
const (
	maxNote = 1024
	maxName = 253
)

// component is who reports, as Events name it.
const component = "kzr"

// event is an Event of events.k8s.io/v1, the part of it that kzr fills in.
type event struct {
	APIVersion          string    `json:"apiVersion"`
	Kind                string    `json:"kind"`
	Metadata            metadata  `json:"metadata"`
	EventTime           string    `json:"eventTime"`
	ReportingController string    `json:"reportingController"`
	ReportingInstance   string    `json:"reportingInstance"`
	Action              string    `json:"action"`
	Reason              string    `json:"reason"`
	Type                string    `json:"type"`
	Note                string    `json:"note"`
	Regarding           reference `json:"regarding"`
	Related             reference `json:"related"`
}

type metadata struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

type reference struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
	UID        string `json:"uid,omitempty"`
	FieldPath  string `json:"fieldPath,omitempty"`
}

// reasonOf is "" for what is not told: a dry run, and what the process did itself.
func reasonOf(o *trail.Outcome) string {
	switch {
	case o.DryRun:
		return ""
	case o.Name == report.EventReaped && o.By == report.ByKzr:
		return ReasonReaped
	case o.Name == report.EventTerminated:
		return ReasonTerminated
	case o.Name == report.EventGaveUp:
		return ReasonGaveUp
	case o.Name == report.EventSpared:
		return ReasonSpared
	}
	return ""
}

// newEvent makes the Event of an outcome on c's pod. earlier says, in words, what was
// held back since the last one, "" for nothing.
func newEvent(o *trail.Outcome, node, reason, earlier string) event {
	c := o.Process.Container
	e := event{
		APIVersion: "events.k8s.io/v1", Kind: "Event",
		Metadata:            metadata{Name: eventName(c.Pod, o.Time), Namespace: c.Namespace},
		EventTime:           o.Time.UTC().Format("2006-01-02T15:04:05.000000Z07:00"),
		ReportingController: component,
		ReportingInstance:   cutTo(component+"-"+node, 128),
		Action:              action(reason),
		Reason:              reason,
		Type:                "Warning",
		Note:                note(o, earlier),
		Regarding: reference{
			APIVersion: "v1", Kind: "Pod", Namespace: c.Namespace, Name: c.Pod, UID: c.PodUID,
		},
		Related: reference{APIVersion: "v1", Kind: "Node", Name: node},
	}
	if c.Name != "" {
		e.Regarding.FieldPath = "spec.containers{" + c.Name + "}"
	}
	if reason == ReasonReaped {
		e.Type = "Normal"
	}
	return e
}

// action is what kzr did, in a word, as the API server asks for one.
func action(reason string) string {
	switch reason {
	case ReasonReaped:
		return "Reap"
	case ReasonTerminated:
		return "Kill"
	case ReasonGaveUp:
		return "GiveUp"
	}
	return "Spare"
}

func (e *event) json() ([]byte, error) { return json.Marshal(e) }

// eventName is what the object is called. It depends on nothing but the outcome, so
// that a second try of the same one is refused and not shown twice.
func eventName(pod string, t time.Time) string {
	suffix := ".kzr." + strconv.FormatInt(t.UnixNano(), 16)
	return strings.TrimRight(cutTo(pod, maxName-len(suffix)), ".-") + suffix
}

// note says what was seen, what kzr did, and what to change.
func note(o *trail.Outcome, earlier string) string {
	sentences := []string{seen(o), done(o)}
	if earlier != "" {
		sentences = append(sentences, earlier)
	}
	text := strings.Join(sentences, " ")
	for i, s := range o.Advice {
		if i == 0 {
			s = "To fix it: " + s
		}
		if len(text)+1+len(s) > maxNote { // a half sentence of advice helps nobody
			break
		}
		text += " " + s
	}
	return cutTo(text, maxNote)
}

func seen(o *trail.Outcome) string {
	p := o.Process
	var b strings.Builder
	fmt.Fprintf(&b, "Process %d", p.PID)
	if inside := insidePID(p); inside != p.PID && inside != 0 {
		fmt.Fprintf(&b, " (%s, pid %d in the container)", name(p), inside)
	} else {
		fmt.Fprintf(&b, " (%s)", name(p))
	}
	fmt.Fprintf(&b, " was not reaping its dead children: %d zombies", o.Reapable+o.Reaped) // the outcome says what is left
	if o.Oldest >= time.Second {
		fmt.Fprintf(&b, ", the oldest for %s", report.Age(o.Oldest))
	}
	return b.String() + "."
}

func done(o *trail.Outcome) string {
	switch o.Name {
	case report.EventReaped:
		which := "them"
		if o.Reapable > 0 {
			which = fmt.Sprintf("%d of them", o.Reaped)
		}
		return "kzr reaped " + which + " inside it. It goes on running and nothing was restarted."
	case report.EventTerminated:
		sig := cmp.Or(o.Lethal(), o.Signal, "a signal")
		text := fmt.Sprintf("kzr sent %s and it exited", sig)
		if o.Process.ContainerInit() {
			switch sig {
			case "SIGKILL":
				text += ", which ended the container with exit code 137; this was not the OOM killer"
			case "SIGTERM":
				text += ", which ended the container, with exit code 143 unless it chose another"
			}
		}
		return text + "."
	case report.EventGaveUp:
		return fmt.Sprintf("kzr could not end that (%s) and tries again later.", report.SanitizeTo(o.Message, 200))
	}
	text := "kzr leaves it alone"
	if !o.Until.IsZero() {
		text += " until " + o.Until.UTC().Format("15:04 MST")
	}
	return text + ": the limit on kills is used up. The zombies use up pids of the container meanwhile."
}

func name(p *task.Process) string { return cmp.Or(report.SanitizeTo(p.Comm, 64), "no name") }

// insidePID is what the container's own ps shows.
func insidePID(p *task.Process) int {
	if len(p.NSPID) == 0 {
		return 0
	}
	return p.NSPID[len(p.NSPID)-1]
}

// cutTo cuts s to n bytes, between characters.
func cutTo(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
