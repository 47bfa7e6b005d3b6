package report

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
)

// ErrNotFound is what a [View] returns for a pid that is no live process.
var ErrNotFound = errors.New("no such process")

// View is what the daemon knows, as those who look at it need it. The server
// calls it from one goroutine at a time and shares each answer among all who
// ask within a quarter of a second.
type View interface {
	// Document is the sorted view of the node.
	Document(ctx context.Context) (Document, error)
	// Status must be cheap: metrics read it too.
	Status() Status
	// Parent describes any live thread group, with or without zombies.
	Parent(ctx context.Context, pid int) (Detail, error)
}

// Status is GET /v1/status: what the daemon is, what it does, and its counters
// since it started. Durations are seconds.
type Status struct {
	Version string      `json:"version"`
	Mode    string      `json:"mode"`   // auto, ebpf or proc, as configured
	Source  task.Source `json:"source"` // what it came to
	// Problems says in a sentence each what kzr cannot see or do; never null.
	Problems []string  `json:"problems"`
	Since    time.Time `json:"since"` // start of the daemon
	Host     string    `json:"host"`
	Kernel   string    `json:"kernel"`

	Scope         string  `json:"scope"`
	DryRun        bool    `json:"dryRun"`
	Threshold     int     `json:"threshold"`
	Grace         float64 `json:"graceSeconds"`
	Nudge         float64 `json:"nudgeSeconds"`
	TermTimeout   float64 `json:"termTimeoutSeconds"`
	SweepInterval float64 `json:"sweepIntervalSeconds"`
	Pressure      float64 `json:"pressure"`      // the setting, a fraction
	UnderPressure bool    `json:"underPressure"` // whether the node is over it now

	Tasks      int `json:"tasks"`
	TasksLimit int `json:"tasksLimit"` // the lower of threads-max and pid_max less 300, 0 if unknown
	Zombies    int `json:"zombies"`
	Parents    int `json:"parents"`  // with at least one zombie
	Suspects   int `json:"suspects"` // at or over the threshold, grace not over
	Targets    int `json:"targets"`  // meet the rule, or are being acted on

	Exits      uint64 `json:"exits"` // processes that ended; 0 where the source cannot see them
	Kills      uint64 `json:"kills"` // processes ended by a signal of kzr's
	Lost       uint64 `json:"lost"`  // kernel events that were dropped
	LogDropped uint64 `json:"logDropped"`
	Sweeps     uint64 `json:"sweeps"`

	LastSweep    time.Time `json:"lastSweep"`
	SweepSeconds float64   `json:"sweepSeconds"` // how long it took

	Workloads    []Workload `json:"-"` // those with zombies, for metrics
	NextSweep    time.Time  `json:"-"` // due at the latest, zero before the first
	ReloadFailed bool       `json:"-"` // the last one changed nothing; why is among the problems
}

// Detail is GET /v1/parents/{pid}: all that helps to understand one parent.
type Detail struct {
	Parent
	Host string `json:"host"`
	// Inner is the innermost container where Container holds others, else null. Its
	// owner could have made it up.
	Inner   *task.Container `json:"inner"`
	Unit    string          `json:"unit"` // systemd unit of a host process, "" if none
	Threads int             `json:"threads"`
	NSPID   []int           `json:"nspid"`  // its pid in each pid namespace from kzr's inwards; never null
	Unseen  []string        `json:"unseen"` // what could not be read; never null
	Tracer  int             `json:"tracer"` // pid of its own tracer, 0 if none
	// TracerIsChild says that this tracer is a child of its own, as a process that
	// wants to be left alone arranges it.
	TracerIsChild bool   `json:"tracerIsChild"`
	WChan         string `json:"wchan"`      // the kernel function that it sleeps in, "" if not known
	LeaderDead    bool   `json:"leaderDead"` // its main thread has exited and others live on: ps shows it as Z
	Exiting       bool   `json:"exiting"`    // it is dying, and something holds its end up
	Subreaper     bool   `json:"subreaper"`  // it adopts the orphans below it
	// WaitsFor is the one live child whose end it waits for in the kernel: it will reap
	// the others after. Null if there is none, or if its Reason is waiting and /proc does
	// not say for which.
	WaitsFor *Relative `json:"waitsFor"`
	// BlockedBy are, of a container's init that is dying, those whose dead children or
	// tracees in that pid namespace it has to wait for; never null.
	BlockedBy []Blocker `json:"blockedBy"`
	// Of its zombies, those that it cannot reap: held by a tracer (one such is
	// named), or dead leaders whose other threads live on.
	TracedZombies int `json:"tracedZombies"`
	ZombieTracer  int `json:"zombieTracer"`
	DeadLeaders   int `json:"deadLeaders"`
	// Foreign and HeldZombies are those of its reapable zombies that were put on it by
	// a process that may not signal it, and those of others' that it holds as their
	// tracer.
	Foreign     int `json:"foreign"`
	HeldZombies int `json:"heldZombies"`
	// AdoptedKnown says that Adopted are all that it adopted: eBPF has watched since
	// before its zombies were forked.
	AdoptedKnown bool `json:"adoptedKnown"`

	Signals Signals `json:"signals"`
	// HasReaped says whether it has ever reaped a child, maybe as another program
	// before its last exec: null if not known.
	HasReaped *bool      `json:"hasReaped"`
	Pids      *PidsLimit `json:"pids"` // of the limits on its cgroup's path, the one nearest to full; null if none is known
	// WorkloadTotal is the sum over its workload, null if it is not known.
	WorkloadTotal *Workload `json:"workloadTotal"`
	// ZombieOrigins say which containers its zombies came from, most first; never
	// null. Those from its own container are left out.
	ZombieOrigins []Origin `json:"zombieOrigins"`
	// LimitsUsed are the limits on kills that are used up and concern it; never null.
	LimitsUsed []LimitUsed `json:"limitsUsed"`
	// HeldUp says what kzr waits for while it acts on it, "" if nothing holds it up.
	HeldUp string `json:"heldUp"`
	// ReapInside says whether kzr can reap inside it, null if nobody has looked.
	ReapInside *ReapInside `json:"reapInside"`
	// KillTakes is what SIGKILL would take along, null if it is not known.
	KillTakes *KillTakes `json:"killTakes"`

	Ancestors    []Relative `json:"ancestors"` // from its parent up to pid 1; never null
	Children     []Relative `json:"children"`  // live ones, the first by pid; never null
	LiveChildren int        `json:"liveChildren"`
	// Sample are at most 20 of its reapable zombies, oldest first; never null.
	Sample []ZombieChild `json:"zombieSample"`

	Rule string `json:"rule"` // the rule that matches, "" for the settings
	// RuleUnsure says that the rule may not be about it: it says observe, and asks
	// for a name that the container's runtime has not told, or for an executable that
	// could not be read.
	RuleUnsure bool    `json:"ruleUnsure"`
	Threshold  int     `json:"threshold"`
	Grace      float64 `json:"graceSeconds"`
	Reap       string  `json:"reap"` // what is reaped inside it: off, adopted or all
	// Pressure is workload or node if one of its pid limits is nearly reached and its
	// zombies are a reason, else "".
	Pressure string `json:"pressure"`
	// Ladder is what happens to it when it meets its rule, one step after the other;
	// never null.
	Ladder []Step `json:"ladder"`
	// Plan says what kzr does about it and when, in sentences; never null.
	Plan []string `json:"plan"`
	// Advice is for its owner, in sentences; never null.
	Advice []string `json:"advice"`
}

// Step is one step of the ladder.
type Step struct {
	Step    string  `json:"step"`        // SIGCHLD, reap, SIGTERM or SIGKILL
	Wait    float64 `json:"waitSeconds"` // for its effect
	Skipped string  `json:"skipped"`     // why it is left out, "" if it is done
}

// Blocker is a process that a dying container init has to wait for.
type Blocker struct {
	PID   int    `json:"pid"`
	Comm  string `json:"comm"`
	Dead  int    `json:"dead"`  // processes of that pid namespace that it has not reaped
	Trace bool   `json:"trace"` // it traces them rather than being their parent
}

// Origin is a container that zombies came from.
type Origin struct {
	Namespace   string `json:"namespace"`
	Pod         string `json:"pod"`
	Container   string `json:"container"`
	ContainerID string `json:"containerId"`
	Count       int    `json:"count"`
}

// LimitUsed is a limit on kills that is used up.
type LimitUsed struct {
	Name  string    `json:"name"` // killsPerMinute, perWorkload, or pause: the doubling one under pressure
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
}

// ReapInside is what kzr knows of reaping inside a parent.
type ReapInside struct {
	Possible bool   `json:"possible"`
	Refusal  string `json:"refusal"` // why not, as in `its seccomp filter forbids wait4`; "" if possible
	Times    int    `json:"times"`   // how often it was done
}

// KillTakes is what ends, or loses its parent, with a process.
type KillTakes struct {
	Processes int `json:"processes"` // in the pid namespace that ends with it, without itself; 0 if none does
	// Sessions are those of them that came from outside: exec'd shells, probes, builds.
	// The first 20 by pid; never null.
	Sessions []Relative `json:"sessions"`
	// Containers are the other containers of the pod that share the pid namespace;
	// never null.
	Containers []string `json:"containers"`
	Orphans    int      `json:"orphans"` // live children that get another parent
}

// Signals is what a process does with the signals of the ladder: each of
// SIGCHLD and SIGTERM is default, ignored or caught.
type Signals struct {
	Chld        string `json:"sigchld"`
	ChldBlocked bool   `json:"sigchldBlocked"`
	Term        string `json:"sigterm"`
	TermBlocked bool   `json:"sigtermBlocked"`
}

// PidsLimit is a limit on tasks of a pids cgroup.
type PidsLimit struct {
	Cgroup  string `json:"cgroup"`
	Current int    `json:"current"`
	Limit   int    `json:"limit"` // 0 is none
}

// Relative is a process in the tree around a parent.
type Relative struct {
	PID   int    `json:"pid"`
	Comm  string `json:"comm"`
	State string `json:"state"`
}

// ZombieChild is one zombie.
type ZombieChild struct {
	PID        int      `json:"pid"`
	StartTime  uint64   `json:"starttime"`  // clock ticks since boot
	Comm       string   `json:"comm"`       // "" if it was gone already
	AgeSeconds *float64 `json:"ageSeconds"` // null if not known
}

// sampleSize is how many zombies a Detail lists.
const sampleSize = 20

// NewDetail fills in what one look at a process and its zombies tell at the
// moment now on CLOCK_MONOTONIC; no list is null. Zombies without Since are
// left out of the sample.
func NewDetail(p *task.Process, c *task.Children, now time.Duration) Detail {
	d := Detail{
		Parent:        NewParent(p, c),
		Host:          Host(),
		Exiting:       p.Exiting,
		Subreaper:     p.Subreaper,
		BlockedBy:     []Blocker{},
		ZombieOrigins: []Origin{},
		LimitsUsed:    []LimitUsed{},
		Inner:         sanitizeContainer(p.Inner),
		Unit:          Sanitize(p.Unit),
		Threads:       p.Threads,
		NSPID:         append([]int{}, p.NSPID...),
		Unseen:        sanitizeAll(p.Unseen),
		Tracer:        p.Tracer.PID,
		Signals:       signals(p),
		HasReaped:     &p.Waited,
		Ancestors:     []Relative{},
		Children:      []Relative{},
		Sample:        []ZombieChild{},
		Ladder:        []Step{},
		Plan:          []string{},
		Advice:        []string{},
	}
	if c != nil {
		d.TracedZombies, d.ZombieTracer, d.DeadLeaders = c.Traced, c.Tracer.PID, c.Leaders
		for _, z := range c.Reapable {
			if z.Has(task.Foreign) {
				d.Foreign++
			}
			if z.Has(task.Held) {
				d.HeldZombies++
			}
		}
		d.Sample = append(d.Sample, sample(c.Reapable, now)...)
	}
	return d
}

// sample picks the oldest zombies; those whose age is not known come last.
func sample(all []task.Zombie, now time.Duration) []ZombieChild {
	key := func(z task.Zombie) time.Duration {
		if z.Since() == 0 {
			return math.MaxInt64
		}
		return z.Since()
	}
	// At half a million a sort of all of them would show; keep the best few.
	best := make([]task.Zombie, 0, sampleSize+1)
	for _, z := range all {
		if len(best) == sampleSize && key(z) >= key(best[sampleSize-1]) {
			continue
		}
		i, _ := slices.BinarySearchFunc(best, z, func(a, b task.Zombie) int {
			return cmp.Or(cmp.Compare(key(a), key(b)), a.Compare(b))
		})
		best = slices.Insert(best, i, z)
		best = best[:min(len(best), sampleSize)]
	}
	out := make([]ZombieChild, len(best))
	for i, z := range best {
		out[i] = ZombieChild{PID: z.PID(), StartTime: z.Start()}
		if z.Since() != 0 {
			age := Seconds(max(0, now-z.Since()))
			out[i].AgeSeconds = &age
		}
	}
	return out
}

// NewRelative sanitizes what it is given.
func NewRelative(pid int, comm string, state byte) Relative {
	return Relative{PID: pid, Comm: Sanitize(comm), State: Sanitize(string(rune(state)))}
}

func signals(p *task.Process) Signals {
	how := func(bit uint64) string {
		switch {
		case p.SigIgnored&bit != 0:
			return "ignored"
		case p.SigCaught&bit != 0:
			return "caught"
		}
		return "default"
	}
	const chld, term = 1 << (unix.SIGCHLD - 1), 1 << (unix.SIGTERM - 1)
	return Signals{
		Chld: how(chld), ChldBlocked: p.SigBlocked&chld != 0,
		Term: how(term), TermBlocked: p.SigBlocked&term != 0,
	}
}
