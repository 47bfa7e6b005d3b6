// Package report turns kzr's decisions and its view of the node into what
// people and programs read: log lines, the JSON document of `kzr scan --json`
// and the socket, and metrics. Decisions flow in, escaped text flows out;
// nothing here decides.
package report

import (
	"time"

	"kzr/internal/task"
)

// Names of the events, the `event` of a log line. They are part of the contract.
const (
	EventStarted    = "started"
	EventSuspect    = "suspect"
	EventSignal     = "signal"
	EventReaped     = "reaped"
	EventTerminated = "terminated"
	EventSpared     = "spared"
	EventGaveUp     = "gave_up"
	EventLostEvents = "lost_events"
	EventReloaded   = "reloaded"
	EventStopping   = "stopping"
)

// EventZombie names a zombie that kzr has seen stay. It is no decision: it is
// streamed to those who watch and never logged.
const EventZombie = "zombie"

// Event is one decision. Fields that do not apply are zero and are left out of
// every rendering. Comm, Exe and the container's strings are raw.
type Event struct {
	Time    time.Time
	Name    string // one of the constants above
	Message string // a sentence for a person, made by kzr alone

	Process  *task.Process // the parent it is about; nil if none
	Zombies  int           // its children in state Z at the decision
	Reapable int           // those of them that it could reap
	Oldest   time.Duration // age of the oldest of these
	Rule     string        // name of the rule that matched, "" for none

	Signal string // SIGCHLD, SIGTERM or SIGKILL
	DryRun bool   // shown with every `signal`
	// LimitsOverridden, of `signal`: a limit would have refused this kill, but the
	// node's pids run out.
	LimitsOverridden bool
	By               string        // of `reaped`: "parent" or "kzr"
	Reaped           int           // of `reaped` by kzr: how many
	Stopped          time.Duration // of `reaped` by kzr: how long the parent stood still at a stretch, at most
	Reason           string        // of `spared`, one of policy's reasons
	Until            time.Time     // of `spared` for a limit: when the next kill may come
	Failed           bool          // of `reloaded`: nothing has changed, and somebody has to mend it

	// Child is the zombie of an EventZombie: Oldest is its age then, and Zombies
	// how many its parent holds.
	Child task.Zombie

	// Attrs are further key-value pairs of `started`, `reloaded`, `lost_events`,
	// `gave_up` and `stopping`.
	Attrs []any
}

// Document is the view of the node: `kzr scan --json`, `kzr top --once --json`
// and GET /v1/parents give exactly this.
type Document struct {
	Time    time.Time   `json:"time"`
	Host    string      `json:"host"`
	Source  task.Source `json:"source"`
	Tasks   int         `json:"tasks"`
	Zombies int         `json:"zombies"`
	Parents []Parent    `json:"parents"` // most reapable zombies first, then by pid; never null
	// Omitted counts the parents with the fewest zombies that were left out to
	// bound the size; it is absent where all are there.
	Omitted int `json:"omitted,omitempty"`
	// Limitations says, in sentences, what kzr cannot see from where it runs. With
	// any, a parent that is missing and a count of 0 prove nothing.
	Limitations []string `json:"limitations,omitempty"`
}

// Parent is one thread group with zombies.
type Parent struct {
	PID       int             `json:"pid"`
	StartTime uint64          `json:"starttime"` // clock ticks since boot
	Comm      string          `json:"comm"`
	Exe       string          `json:"exe"`
	Cmdline   []string        `json:"cmdline"` // never null
	UID       uint32          `json:"uid"`
	State     string          `json:"state"` // one letter
	Cgroup    string          `json:"cgroup"`
	Container *task.Container `json:"container"`
	// Zombies are all its children in state Z, Countable those it could reap.
	Zombies       int     `json:"zombies"`
	Countable     int     `json:"countable"`
	OldestSeconds float64 `json:"oldestSeconds"` // age of the oldest countable zombie as far as known
	Verdict       string  `json:"verdict"`       // watch, target, acting or spared
	Reason        string  `json:"reason"`
	// Rule is the configured rule that matches; it is absent if none does.
	Rule string `json:"rule,omitempty"`
	// DeadlineSeconds is how long until the rule is met if nothing changes, 0 if
	// it is met, null if it never will be at this count.
	DeadlineSeconds *float64 `json:"deadlineSeconds"`
}
