// Package task holds the types that flow between kzr's stages: what a snapshot
// of the task list says about zombies and what one look at a parent says about
// it. It imports nothing of kzr's.
//
// Two clocks appear. Start times count clock ticks since boot (USER_HZ, 100 a
// second on every Linux architecture), exactly as field 22 of /proc/PID/stat
// shows them. Every other moment is a [time.Duration] on CLOCK_MONOTONIC, which
// neither a settable wall clock nor a suspend moves.
package task

import (
	"cmp"
	"errors"
	"fmt"
	"time"
)

// TicksPerSecond is USER_HZ, the unit of start times (man 5 proc_pid_stat).
const TicksPerSecond = 100

// ID identifies a thread group for the life of the machine: a pid alone is
// reused, a pid with its start time is not.
type ID struct {
	PID   int    // thread group id, in the pid namespace kzr runs in
	Start uint64 // clock ticks since boot
}

func (id ID) String() string { return fmt.Sprintf("%d@%d", id.PID, id.Start) }

// Zombie is a dead thread group that its parent could reap. It is small (16
// bytes) because a node can hold half a million.
type Zombie struct {
	id    uint64 // pid above startBits, start time below
	times uint64 // since (ms) above sinceShift, then how long it was dead before, then flags
}

// A pid has 22 bits, and start times have a thousand years. Since has four years
// of milliseconds; what came before has six days, in steps of 64 ms.
const (
	startBits  = 42
	flagBits   = 4
	sinceShift = 27
	moment     = time.Millisecond
	beforeUnit = 64 * time.Millisecond
	beforeMax  = 1<<(sinceShift-flagBits) - 1
)

// Flag is what is known of how a zombie came to its parent.
type Flag uint64

const (
	// Adopted says that somebody else forked it, for certain: its own father died.
	Adopted Flag = 1 << iota
	// Foreign says that it was put on its parent (CLONE_PARENT) by a process that may
	// not signal that parent.
	Foreign
	// Held says that this "parent" is its tracer, who has to wait for it first.
	Held
	// Moved says that Since is the moment of its death under another parent. The
	// tracker replaces it.
	Moved
)

// NewZombie returns the zombie with this pid and start time, in clock ticks since
// boot, that began to wait for this parent at the moment since; 0 if that is not
// known.
func NewZombie(pid int, start uint64, since time.Duration, flags Flag) Zombie {
	z := Zombie{id: uint64(pid)<<startBits | start&(1<<startBits-1)}.Waiting(since, since)
	z.times |= uint64(flags)
	return z
}

// PID is its pid.
func (z Zombie) PID() int { return int(z.id >> startBits) }

// Start is its start time in clock ticks since boot.
func (z Zombie) Start() uint64 { return z.id & (1<<startBits - 1) }

// Since is when it began to wait for this parent: the exit event, where the source
// saw it happen under this same parent; else 0, and the tracker replaces it by the
// first sighting.
func (z Zombie) Since() time.Duration { return time.Duration(z.times>>sinceShift) * moment }

// Died is when it began to wait, for whomever: Since, or earlier if it has moved to
// another parent meanwhile. 0 where Since is.
func (z Zombie) Died() time.Duration {
	return z.Since() - time.Duration(z.times>>flagBits&beforeMax)*beforeUnit
}

// Has says whether it has a flag.
func (z Zombie) Has(f Flag) bool { return Flag(z.times)&f != 0 }

// Waiting returns z with another Since and Died, and not Moved. Neither ever gets
// earlier by rounding.
func (z Zombie) Waiting(since, died time.Duration) Zombie {
	ms := uint64((since + moment - 1) / moment)
	before := min(max(0, time.Duration(ms)*moment-died)/beforeUnit, beforeMax)
	z.times = ms<<sinceShift | uint64(before)<<flagBits | z.times&(1<<flagBits-1)&^uint64(Moved)
	return z
}

// Compare orders zombies by pid, and those that had the same one, one after the
// other, by start time. It is 0 for one and the same.
func (z Zombie) Compare(other Zombie) int { return cmp.Compare(z.id, other.id) }

// Children are the zombies of one parent at one moment.
type Children struct {
	Parent ID
	// Facts are what the same snapshot says of the parent itself; nil where the
	// source does not tell, as /proc does not.
	Facts *Facts
	// Reapable are those that the parent could reap now, in the order of their
	// pids.
	Reapable []Zombie
	// Held are zombies of others that it traces: they wait for its wait first.
	Held []HeldZombie
	// Traced counts zombies held by a tracer outside its own thread group; Tracer is
	// one such tracer, zero if there is none.
	Traced int
	Tracer ID
	// Leaders counts dead thread group leaders whose other threads live on:
	// shown as Z, but nobody can reap them yet.
	Leaders int
	// Unknown counts zombies of which it is not known yet whether a tracer holds
	// them. They are in none of the others.
	Unknown int
}

// HeldZombie is a zombie as its tracer has it.
type HeldZombie struct {
	Zombie
	Of ID // its parent
}

// Total is every child in state Z, whether or not it can be reaped.
func (c *Children) Total() int { return len(c.Reapable) + c.Traced + c.Leaders + c.Unknown }

// Source names what a snapshot was taken with.
type Source string

// The two sources of a snapshot, as the contract spells them.
const (
	SourceBPF  Source = "bpf"
	SourceProc Source = "proc"
)

// Snapshot is the zombies of the whole node, or of one parent, at one moment.
// It never mixes two moments' counts for one parent: what vanished while it was
// taken is simply not in it.
type Snapshot struct {
	Source Source
	Began  time.Duration // CLOCK_MONOTONIC before the first task was read
	Ended  time.Duration // CLOCK_MONOTONIC after the last one was read
	Helped time.Duration // CPU time that threads other than the caller's used for it
	Tasks  int           // threads and zombies alive or dead, as pid_max counts them; 0 in a snapshot of one parent
	// Parents holds an entry for each thread group with at least one zombie
	// child.
	Parents map[ID]*Children
}

// Zombies is the number of tasks in state Z in the whole snapshot.
func (s *Snapshot) Zombies() int {
	n := 0
	for _, c := range s.Parents {
		n += c.Total()
	}
	return n
}

// Hint is what the kernel side says between snapshots. It is never acted on by
// itself: it makes kzr look.
type Hint struct {
	PID  int  // a parent that has gathered zombies; 0 if none in particular
	Lost bool // records were dropped: look at everything
}

// LongExe stands for the path of an executable that is too long for the kernel to
// tell. Anybody can have one; the host's infrastructure has not.
const LongExe = "(a path of more than 4095 bytes)"

// Facts are what a decision needs to know of a live thread group, as the kernel's own
// structures have it. Reading them takes no reference to the process's memory and
// costs the same whatever the process has made of itself.
type Facts struct {
	PPID      int
	Comm      string // raw and hostile
	UID       uint32 // real uid, in kzr's user namespace
	State     byte   // R, S, D, T, t, Z, X, I … as in /proc/PID/stat; of a live thread where the leader is dead
	Threads   int
	Kernel    bool // PF_KTHREAD
	Exiting   bool // PF_EXITING: it is dying, even if State says S or D
	Frozen    bool // its cgroup is frozen, or about to be
	Subreaper bool // it adopts the orphans below it (PR_SET_CHILD_SUBREAPER)
	// Waited says that it has reaped a child at some time, maybe before it became
	// the program that it is now (exec keeps the counters that tell).
	Waited bool
	Tracer ID // its tracer, zero if there is none
	// TracerUnknown says that who traces it could not be found out in time: maybe
	// somebody does.
	TracerUnknown bool
	// TracerCgroup is where its tracer is; zero if that is not known.
	TracerCgroup CgroupKey
	// Signal sets of the main thread, bit n-1 for signal n: caught by a handler,
	// ignored, blocked.
	SigCaught, SigIgnored, SigBlocked uint64
	// Waits is a child, alive, that a thread of it waits for in the kernel, and
	// nothing but that child: it will reap the others after. Zero if there is none, or
	// if another thread waits for any child.
	Waits ID
	// WaitsUnnamed says that it waits so and that /proc does not tell for whom, as of
	// another user's.
	WaitsUnnamed bool
	// WaitsUnknown says that whether it does could not be found out in time.
	WaitsUnknown bool
	// NSPID is its pid in each pid namespace from kzr's inwards. See NamespaceInit
	// and ContainerInit.
	NSPID []int
	// Namespace inode numbers, 0 where unreadable.
	PIDNS, MntNS, UserNS uint64
	// OuterPIDNS is the outermost pid namespace below the one kzr runs in: what is
	// inside can make others, but not leave that one. 0 where there is none, or where
	// it is unreadable.
	OuterPIDNS uint64
	Cgroup     CgroupKey
	// Pids are the limits of the pids cgroups that it is in, from the inside outwards,
	// those that have one.
	Pids []PidsLimit
}

// CgroupKey identifies the cgroups of a process, in all hierarchies together. Two
// processes with the same one are in the same cgroups.
type CgroupKey struct {
	Set  uint64 // the kernel's css_set; it may be another one's later, with other ids
	ID   uint64 // in the unified hierarchy
	Pids uint64 // in the hierarchy with the pids controller
}

// PidsLimit is what a pids cgroup may hold and holds.
type PidsLimit struct {
	ID      uint64 // of the cgroup: the inode number of its directory
	Current int    // tasks charged to it, zombies included
	Limit   int
}

// Fuller says whether l is nearer to being reached than another limit. A limit of 0 is a
// full one.
func (l PidsLimit) Fuller(than PidsLimit) bool {
	return l.Current*than.Limit > than.Current*l.Limit // Current/Limit, in whole numbers
}

// Tightest returns the one that is nearest to being reached; false if there is none.
func Tightest(limits []PidsLimit) (tightest PidsLimit, ok bool) {
	for _, l := range limits {
		if !ok || l.Fuller(tightest) {
			tightest, ok = l, true
		}
	}
	return tightest, ok
}

// Stance is what reaping inside a process depends on, of its main thread, at one
// moment (x86-64 only).
type Stance struct {
	InCall       bool  // it is in a system call
	Call         int64 // its number
	Args         [6]uint64
	CS           uint16 // code segment of user mode: 0x33 for 64 bit
	Seccomp      int    // 0 none, 1 strict, 2 filter
	Filters      int    // how many filters it has; 0 where the kernel cannot tell (before 5.9)
	MayWait      bool   // the filter lets wait4 pass whatever its arguments; false where the kernel cannot tell
	UserDispatch bool   // syscall user dispatch
	ShadowStack  bool
	Pending      uint64 // deliverable signals, bit n-1 for signal n
}

// Process is one look at a live thread group, as good as permissions allowed.
// Everything a process can choose (Comm, Exe, Cmdline, cgroup names) is raw and
// hostile: escape it before it reaches a person.
type Process struct {
	ID
	Facts
	// Exe is the executable's path as the kernel shows it, without the
	// " (deleted)" that ExeDeleted stands for; empty if it cannot be read.
	Exe        string
	ExeDeleted bool
	Cmdline    []string // only where a person is shown it; nil if empty or unreadable; at most 4 KiB in all
	Cgroup     string   // its path in the hierarchy that names containers, as kzr sees it
	PidsCgroup string   // its path in the hierarchy with the pids controller; "" if there is none
	// Container is the outermost one that it is in, nil outside any: scope, rules
	// and limits go by it, because nothing inside can fake it.
	Container *Container
	// OuterCgroup is Container's own cgroup: what follows in Cgroup was made inside.
	OuterCgroup string
	// NamesUnknown says that Container has names that its runtime has not told,
	// not yet or not at all.
	NamesUnknown bool
	// Delegated says that Container lies where a user may make cgroups: it may be
	// a rootless container, or made to look like anybody's.
	Delegated bool
	// Inner is the innermost container where several are nested, else nil. It is
	// for people only: whoever controls Container could have made it up.
	Inner *Container
	Unit  string // systemd unit of a host process, "" if none
	// Workload is whose zombies are summed, and what limits.perWorkload counts by: the
	// outermost container (namespace/pod/container where they are known), else the
	// unit, else the user.
	Workload string
	// Owner is whose share of the node's limit a kill takes: the pod's namespace, else
	// the unit, else the user.
	Owner  string
	Unseen []string // what could not be read, for a person: "exe: permission denied"
}

// ContainerInit says whether the process is pid 1 of the outermost pid namespace
// below the one kzr runs in. What is inside can make any process the first of a
// namespace further in, but not of that one.
func (f *Facts) ContainerInit() bool {
	return len(f.NSPID) > 1 && f.NSPID[1] == 1
}

// NamespaceInit says whether the process is pid 1 of a pid namespace, whichever,
// other than the one kzr runs in.
func (f *Facts) NamespaceInit() bool {
	return len(f.NSPID) > 1 && f.NSPID[len(f.NSPID)-1] == 1
}

// Container is what is known of a container. Runtime and ID come from the
// cgroup path; PodUID too, for Kubernetes; the rest from the runtime, if it
// answers. The JSON names are part of the contract.
type Container struct {
	Runtime   string `json:"runtime"` // containerd, cri-o, docker, podman, lxc, nspawn; "" if the path does not tell
	ID        string `json:"id"`
	PodUID    string `json:"podUID"`
	Pod       string `json:"pod"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Image     string `json:"image"`
	// GracePeriod is what the pod's author gives it to exit after SIGTERM
	// (terminationGracePeriodSeconds); 0 if that is not known.
	GracePeriod time.Duration `json:"-"`
}

// ErrGone says that a process vanished, or that its pid went to another one, while
// it was looked at.
var ErrGone = errors.New("process is gone")
