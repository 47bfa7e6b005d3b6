// Package report turns kzr's decisions and its view of the node into what
// people and programs read: log lines, the JSON document of `kzr scan --json`
// and the socket, and metrics. Decisions flow in, escaped text flows out;
// nothing here decides.
package report

import (
	"os"
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

// Who reaped, the `by` of `reaped`.
const (
	ByParent = "parent"
	ByKzr    = "kzr"
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
	Oldest   time.Duration // age of the oldest reapable one
	Rule     string        // name of the rule that matched, "" for none

	Signal string // SIGCHLD, SIGTERM or SIGKILL
	DryRun bool   // shown with every `signal`
	By     string // of `reaped`: ByParent or ByKzr
	// Reaped, of `reaped` by kzr, is how many, and Stopped how long the parent stood still
	// at a stretch, at most.
	Reaped  int
	Stopped time.Duration
	Reason  string    // of `spared`, one of policy's reasons
	Until   time.Time // of `spared`: when that ends, zero if nobody knows
	// LimitsOverridden says that the limits forbade this `signal` and that the node's
	// need came first.
	LimitsOverridden bool
	Failed           bool // of `reloaded`: nothing has changed, and somebody has to fix it

	// Child is the zombie of an EventZombie: Oldest is its age then.
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
	Omitted   int        `json:"omitted,omitempty"`
	Workloads []Workload `json:"workloads"` // most zombies first, then by name; never null
	// OmittedWorkloads counts those with the fewest zombies that were left out.
	OmittedWorkloads int `json:"omittedWorkloads,omitempty"`
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
	// Workload is whose zombies it counts towards: namespace/pod/container, else the
	// container, else the systemd unit, else the user.
	Workload string `json:"workload"`
	// Zombies are all its children in state Z, Reapable those that it could reap,
	// Adopted those of them that somebody else forked, for certain.
	Zombies  int `json:"zombies"`
	Reapable int `json:"reapable"`
	Adopted  int `json:"adopted"`
	// OldestSeconds is the age of the oldest reapable zombie, null if that is not
	// known.
	OldestSeconds *float64 `json:"oldestSeconds"`
	RatePerHour   *float64 `json:"ratePerHour"` // by how many its zombies grow, null if not known yet
	Verdict       string   `json:"verdict"`     // watch, target, acting or spared
	Reason        string   `json:"reason"`
	// Rule is the configured rule that matches; it is absent if none does.
	Rule string `json:"rule,omitempty"`
	// Until is when the reason ends, null if nobody knows.
	Until *time.Time `json:"until"`
	// DeadlineSeconds is how long until the rule is met if nothing changes, 0 if
	// it is met, null if it never will be at this count.
	DeadlineSeconds *float64 `json:"deadlineSeconds"`
}

// Workload is the sum over the parents of one container, unit or user.
type Workload struct {
	Name    string `json:"name"`
	Zombies int    `json:"zombies"`
	Parents int    `json:"parents"` // with zombies
	// Pids are the tasks in its cgroup, PidsLimit how many there may be: of the limits
	// on its path, the one nearest to full. Both are null if there is none.
	Pids        *int     `json:"pids"`
	PidsLimit   *int     `json:"pidsLimit"`
	RatePerHour *float64 `json:"ratePerHour"` // by how many its zombies grow, null if not known yet
	// FullInSeconds is how long until that limit is reached at this rate, null if it
	// is not growing or has no limit.
	FullInSeconds *float64 `json:"fullInSeconds"`
}

// Host is the name of this node in every output: what Kubernetes calls it, if the
// environment says so (KZR_NODE_NAME), else the host's own.
func Host() string {
	if name := os.Getenv("KZR_NODE_NAME"); name != "" {
		return Sanitize(name)
	}
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return Sanitize(name)
}
