package reaper

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"kzr/internal/policy"
	"kzr/internal/task"
)

// procJudge judges real processes by what /proc shows of them, with a rule of
// its own. The fields may be changed under mu.
type procJudge struct {
	mu          sync.Mutex
	threshold   int
	grace       time.Duration
	nudge, term time.Duration
	reason      policy.Reason // said of everybody, if not empty
	first       map[task.ID]time.Duration
	after       func(task.ID) // called when a look has been taken
	looks       map[task.ID]int
}

func newJudge() *procJudge {
	return &procJudge{
		threshold: 3,
		nudge:     50 * time.Millisecond,
		term:      150 * time.Millisecond,
		first:     map[task.ID]time.Duration{},
		looks:     map[task.ID]int{},
	}
}

func (j *procJudge) Look(_ context.Context, id task.ID) (Look, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.looks[id]++
	if j.after != nil {
		defer j.after(id)
	}
	proc, ok := inspect(id.PID)
	if !ok || proc.ID != id {
		return Look{Reason: policy.IdentityChanged}, nil
	}
	look := Look{Process: proc, Rule: "test", Nudge: j.nudge, TermTimeout: j.term}
	now := task.Now()
	for _, stat := range allStats() {
		if stat.ppid != id.PID || stat.state != 'Z' {
			continue
		}
		look.Reapable++
		if _, seen := j.first[stat.id]; !seen {
			j.first[stat.id] = now
		}
		since := j.first[stat.id]
		look.Oldest = max(look.Oldest, now-since)
		if now-since >= j.grace {
			look.Zombies = append(look.Zombies, task.Zombie{PID: int32(stat.id.PID), Start: stat.id.Start, Since: since})
		}
	}
	look.Met = len(look.Zombies) >= j.threshold
	look.Reason = policy.Deferred(&proc)
	if j.reason != "" {
		look.Reason = j.reason
	}
	return look, nil
}

func (j *procJudge) Holders(_ context.Context, zombies []task.Zombie) (map[task.ID]int, error) {
	held := map[task.ID]int{}
	for _, z := range zombies {
		if stat, ok := readStat(int(z.PID)); ok && stat.state == 'Z' && stat.id.Start == z.Start {
			if parent, ok := readStat(stat.ppid); ok {
				held[parent.id]++
			}
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

func (j *procJudge) lookedAt(id task.ID) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.looks[id]
}

type stat struct {
	id    task.ID
	ppid  int
	state byte
	flags uint64
}

func readStat(pid int) (stat, bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, false
	}
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:])) // from field 3 on
	s := stat{id: task.ID{PID: pid}, state: f[0][0]}
	s.ppid, _ = strconv.Atoi(f[1])
	s.flags, _ = strconv.ParseUint(f[6], 10, 64)
	s.id.Start, _ = strconv.ParseUint(f[19], 10, 64)
	return s, true
}

func allStats() (all []stat) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if s, ok := readStat(pid); ok {
			all = append(all, s)
		}
	}
	return all
}

func inspect(pid int) (task.Process, bool) {
	s, ok := readStat(pid)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if !ok || err != nil {
		return task.Process{}, false
	}
	const exiting = 0x4 // PF_EXITING
	p := task.Process{ID: s.id, PPID: s.ppid, State: s.state, Exiting: s.flags&exiting != 0}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		switch key {
		case "TracerPid":
			p.Tracer, _ = strconv.Atoi(value)
		case "SigCgt":
			p.SigCaught, _ = strconv.ParseUint(value, 16, 64)
		case "SigBlk":
			p.SigBlocked, _ = strconv.ParseUint(value, 16, 64)
		case "NSpid":
			for _, n := range strings.Fields(value) {
				pid, _ := strconv.Atoi(n)
				p.NSPID = append(p.NSPID, pid)
			}
		}
	}
	return p, true
}
