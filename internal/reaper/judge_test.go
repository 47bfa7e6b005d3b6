package reaper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"kzr/internal/config"
	"kzr/internal/policy"
	"kzr/internal/procscan"
	"kzr/internal/task"
)

// procJudge judges real processes by what /proc shows of them, with a rule of
// its own, which may be changed under mu.
type procJudge struct {
	proc *procscan.Scanner

	mu          sync.Mutex
	threshold   int
	grace       time.Duration
	nudge, term time.Duration
	reason      policy.Reason   // said of everybody, if not empty
	unknown     task.Facts      // what of those nobody can tell
	noExe       bool            // nor what it executes, for which the rule asks
	pressure    policy.Pressure // said of everybody
	adopted     bool            // all zombies are
	reap        config.Reap
	times       int           // how many zombies it seems to have for each that it has; 0 is one
	own         int           // zombies that it forked itself, where it adopted the others
	after       func(task.ID) // called when a look has been taken
	first       map[task.Zombie]time.Duration
	looks       map[task.ID]int
}

func newJudge(t *testing.T) *procJudge {
	t.Helper()
	proc, err := procscan.New("/proc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proc.Close(); err != nil {
			t.Error(err)
		}
	})
	return &procJudge{
		proc:      proc,
		threshold: 3,
		nudge:     50 * time.Millisecond,
		term:      150 * time.Millisecond,
		first:     map[task.Zombie]time.Duration{},
		looks:     map[task.ID]int{},
	}
}

func (j *procJudge) Look(ctx context.Context, id task.ID) (Look, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.looks[id]++
	if j.after != nil {
		defer j.after(id)
	}
	snap, err := j.proc.SnapshotOf(ctx, id)
	if err != nil {
		return Look{}, err
	}
	process, err := j.proc.Inspect(ctx, id.PID)
	if errors.Is(err, task.ErrGone) || err == nil && process.ID != id {
		return Look{Reason: policy.IdentityChanged}, nil
	}
	if err != nil {
		return Look{}, err
	}
	look := Look{
		Process: process, Rule: "test", Threshold: j.threshold, Grace: j.grace,
		Pressure: j.pressure, Nudge: j.nudge, TermTimeout: j.term, Reap: j.reap,
	}
	if children := snap.Parents[id]; children != nil {
		look.Zombies, look.Reapable = max(1, j.times)*children.Total(), len(children.Reapable)
		if j.adopted {
			look.Adopted = max(0, look.Reapable-j.own)
		}
		for _, z := range children.Reapable {
			name := z.Waiting(0, 0)
			if _, seen := j.first[name]; !seen {
				j.first[name] = snap.Began // by the first sighting
			}
			age := snap.Began - j.first[name]
			look.Oldest = max(look.Oldest, age)
			if age >= j.grace {
				look.Old = append(look.Old, task.NewZombie(z.PID(), z.Start(), j.first[name], 0))
			}
		}
	}
	look.Met = len(look.Old) >= j.threshold
	look.Process.TracerUnknown = process.TracerUnknown || j.unknown.TracerUnknown
	look.Process.WaitsUnknown = process.WaitsUnknown || j.unknown.WaitsUnknown
	look.Process.WaitsUnnamed = process.WaitsUnnamed || j.unknown.WaitsUnnamed
	if reason := policy.Deferred(&look.Process.Facts, policy.Circumstances{}); j.pressure == policy.NoPressure || reason == policy.Dying {
		look.Reason = reason
	}
	if j.noExe {
		look.Process.Exe, look.Reason = "", policy.ByRule
	}
	if j.reason != "" {
		look.Reason = j.reason
	}
	return look, nil
}

func (j *procJudge) Holders(ctx context.Context, zombies []task.Zombie) (map[task.ID]int, error) {
	held := map[task.ID]int{}
	for _, z := range zombies {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", z.PID()))
		if err != nil {
			continue // reaped
		}
		f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:])) // from field 3 on
		var ppid int
		if _, err := fmt.Sscan(f[1], &ppid); err != nil {
			return nil, err
		}
		if f[0] != "Z" || f[19] != fmt.Sprint(z.Start()) {
			continue
		}
		if parent, err := j.proc.Inspect(ctx, ppid); err == nil {
			held[parent.ID]++
		}
	}
	return held, nil
}

// set changes the judge while ladders use it.
func (j *procJudge) set(change func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	change()
}

// hold makes the judge say that everybody is stopped, until the returned
// function is called, so that a test can look at a ladder in the middle.
func (j *procJudge) hold() (release func()) {
	j.set(func() { j.reason = policy.Stopped })
	return func() { j.set(func() { j.reason = "" }) }
}

func (j *procJudge) lookedAt(id task.ID) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.looks[id]
}

// willingJudge says of everybody that it is a target.
type willingJudge struct{}

func (willingJudge) Look(_ context.Context, id task.ID) (Look, error) {
	return Look{Process: task.Process{ID: id, Facts: task.Facts{State: 'S'}}, Met: true, Nudge: time.Hour}, nil
}

func (willingJudge) Holders(context.Context, []task.Zombie) (map[task.ID]int, error) {
	return nil, nil
}

// eagerJudge says of everybody that it is to be asked to end at once.
type eagerJudge struct{ willingJudge }

func (j eagerJudge) Look(ctx context.Context, id task.ID) (Look, error) {
	look, err := j.willingJudge.Look(ctx, id)
	look.Nudge, look.TermTimeout = 0, time.Hour
	return look, err
}

// slowJudge says of everybody that it has reaped one of very many zombies since
// the last look.
type slowJudge struct {
	willingJudge
	mu    sync.Mutex
	looks map[task.ID]int
}

func (j *slowJudge) Look(ctx context.Context, id task.ID) (Look, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.looks[id]++
	look, err := j.willingJudge.Look(ctx, id)
	look.Nudge = time.Second
	look.Reapable = 10_000 - j.looks[id]
	look.Old = make([]task.Zombie, look.Reapable)
	return look, err
}

// blindJudge cannot look.
type blindJudge struct{ willingJudge }

var errBlind = errors.New("permission denied")

func (blindJudge) Look(context.Context, task.ID) (Look, error) { return Look{}, errBlind }

// strayJudge looks at the next owner of the pid.
type strayJudge struct{ willingJudge }

func (j strayJudge) Look(ctx context.Context, id task.ID) (Look, error) {
	id.Start++
	return j.willingJudge.Look(ctx, id)
}
