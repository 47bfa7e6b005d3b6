// Package config holds kzr's settings: their names, defaults and limits, and
// how a file and the flags become one checked [Config]. Text flows in, a Config
// or one clear error flows out; nothing here acts on a setting.
package config

import "time"

// Config is every setting, with the names of the contract. The zero value is
// not useful; start from [Default].
type Config struct {
	Mode          Mode          `yaml:"mode"`
	Scope         Scope         `yaml:"scope"`
	Threshold     int           `yaml:"threshold"`     // zombies, at least 1
	Grace         time.Duration `yaml:"grace"`         // at least 1s
	Nudge         time.Duration `yaml:"nudge"`         // 0 skips the SIGCHLD step
	Reap          Reap          `yaml:"reap"`          // not ReapAll
	TermTimeout   time.Duration `yaml:"termTimeout"`   // 0 skips the SIGTERM step
	SweepInterval time.Duration `yaml:"sweepInterval"` // at least 1s
	DryRun        bool          `yaml:"dryRun"`
	Pressure      float64       `yaml:"pressure"` // fraction of a pid limit, 0 disables
	Limits        Limits        `yaml:"limits"`
	Protect       []string      `yaml:"protect"` // absolute paths or globs of executables
	// CRI are the unix sockets of the container runtimes to ask for names, as paths.
	// nil is the usual places; an empty list, written "", is none.
	CRI        []string   `yaml:"cri"`
	Rules      []Rule     `yaml:"rules"`
	Kubernetes Kubernetes `yaml:"kubernetes"`
	// OnAction is a command, its absolute path first, that is run for each outcome; nil
	// or empty is none.
	OnAction  []string `yaml:"onAction"`
	Socket    string   `yaml:"socket"`  // "" disables
	Metrics   string   `yaml:"metrics"` // host:port, "" disables
	LogFormat string   `yaml:"logFormat"`
	LogLevel  string   `yaml:"logLevel"`
}

// Mode chooses where zombies are seen.
type Mode string

// The modes.
const (
	ModeAuto Mode = "auto"
	ModeEBPF Mode = "ebpf"
	ModeProc Mode = "proc"
)

// Scope says what may be acted on. Everything is always watched.
type Scope string

// The scopes.
const (
	ScopeContainers Scope = "containers"
	ScopeAll        Scope = "all"
)

// Reap says which zombies kzr may reap from inside their parent.
type Reap string

// What may be reaped.
const (
	ReapOff     Reap = "off"
	ReapAdopted Reap = "adopted" // those that somebody else forked, for certain
	ReapAll     Reap = "all"     // the parent's own as well, which can give it wrong exit statuses; only in a rule
)

// Limits bounds how much kzr may kill.
type Limits struct {
	KillsPerMinute int         `yaml:"killsPerMinute"` // on the node, at least 1
	PerWorkload    PerWorkload `yaml:"perWorkload"`
}

// PerWorkload bounds the kills in one workload over a sliding window.
type PerWorkload struct {
	Kills  int           `yaml:"kills"`
	Window time.Duration `yaml:"window"`
}

// Kubernetes says what kzr tells the cluster that it is a part of.
type Kubernetes struct {
	Events bool `yaml:"events"` // outcomes on the Pod
}

// Action is what a rule wants done.
type Action string

// The actions.
const (
	ActionKill    Action = "kill"
	ActionObserve Action = "observe"
)

// Rule overrides settings for the parents it matches. The first rule that matches
// wins.
type Rule struct {
	Name        string         `yaml:"name"`
	Match       Match          `yaml:"match"`
	Action      Action         `yaml:"action"`      // "" is kill
	Threshold   int            `yaml:"threshold"`   // 0 inherits
	Grace       time.Duration  `yaml:"grace"`       // 0 inherits
	Reap        Reap           `yaml:"reap"`        // "" inherits
	TermTimeout *time.Duration `yaml:"termTimeout"` // nil inherits, 0 skips the SIGTERM step
}

// Match holds what a rule asks of a parent. Strings are globs; empty fields
// match everything, and all given fields must match.
type Match struct {
	Scope         Scope   `yaml:"scope"`
	Namespace     string  `yaml:"namespace"`
	Pod           string  `yaml:"pod"`
	Container     string  `yaml:"container"` // container name or id
	Image         string  `yaml:"image"`
	Exe           string  `yaml:"exe"`
	Cgroup        string  `yaml:"cgroup"`
	UID           *uint32 `yaml:"uid"`
	ContainerInit *bool   `yaml:"containerInit"` // pid 1 of the outermost pid namespace
}

// Default returns the settings that hold where nothing else is said.
func Default() Config {
	return Config{
		Mode:          ModeAuto,
		Scope:         ScopeContainers,
		Threshold:     50,
		Grace:         time.Minute,
		Nudge:         2 * time.Second,
		Reap:          ReapAdopted,
		TermTimeout:   10 * time.Second,
		SweepInterval: 30 * time.Second,
		Pressure:      0.85,
		Limits:        Limits{KillsPerMinute: 6, PerWorkload: PerWorkload{Kills: 3, Window: time.Hour}},
		Socket:        "/run/kzr/kzr.sock",
		LogFormat:     "text",
		LogLevel:      "info",
	}
}
