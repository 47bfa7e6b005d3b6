package daemon

import (
	"time"

	"kzr/internal/reaper"
	"kzr/internal/task"
)

// State is what a kzr leaves to the next one on the same boot of the same machine.
type State struct {
	Limits  reaper.State `json:"limits"`
	Parents []Known      `json:"parents"`
}

// Known are zombies of one parent, those that have waited longest.
type Known struct {
	PID     int        `json:"pid"`
	Start   uint64     `json:"start"`   // clock ticks since boot
	Zombies [][4]int64 `json:"zombies"` // pid, start, and in ms on CLOCK_MONOTONIC since when it waits and when it died
}

const (
	// keptZombies is how many times its threshold is remembered of a parent, and
	// maxKept of all parents together: some 4 MB of text.
	keptZombies = 2
	maxKept     = 1 << 16
)

// save keeps what is known, now or when it is time again.
func (d *Daemon) save(now bool) {
	if d.opts.Save == nil {
		return
	}
	d.saving.Lock()
	defer d.saving.Unlock()
	at := task.Now()
	changes := d.observer.Changes()
	if !now && (at < d.savedAt+saveEvery || changes == d.savedChanges) {
		return
	}
	s := State{Limits: d.reaper.State()}
	n := 0
	for id, zombies := range d.observer.Known(max(64, keptZombies*d.observer.Config().Threshold)) {
		if n += len(zombies); n > maxKept {
			break
		}
		k := Known{PID: id.PID, Start: id.Start, Zombies: make([][4]int64, len(zombies))}
		for i, z := range zombies {
			k.Zombies[i] = [4]int64{int64(z.PID()), int64(z.Start()), int64(z.Since() / time.Millisecond), int64(z.Died() / time.Millisecond)}
		}
		s.Parents = append(s.Parents, k)
	}
	empty := len(s.Parents)+len(s.Limits.Kills)+len(s.Limits.Pauses)+len(s.Limits.Acting) == 0
	if empty && d.savedEmpty {
		return
	}
	if err := d.opts.Save(s); err != nil {
		if d.saveError != err.Error() {
			d.saveError = err.Error()
			d.opts.Logger.Warn("cannot save state; a restart would forget limits and ages", "error", err)
		}
	} else {
		d.saveError = ""
	}
	d.savedAt, d.savedEmpty, d.savedChanges = task.Now(), empty, changes
}

// restore takes over what an earlier kzr left. A parent that it was signalling gets its
// grace anew: nobody knows what the signals did.
func (d *Daemon) restore(s State) {
	acting := map[task.ID]bool{}
	for _, id := range s.Limits.Acting {
		acting[id] = true
	}
	known := make(map[task.ID][]task.Zombie, len(s.Parents))
	now := task.Now()
	for _, k := range s.Parents {
		id := task.ID{PID: k.PID, Start: k.Start}
		if acting[id] {
			continue
		}
		for _, z := range k.Zombies {
			since, died := time.Duration(z[2])*time.Millisecond, time.Duration(z[3])*time.Millisecond
			if z[0] <= 0 || died <= 0 || died > since || since > now {
				continue
			}
			known[id] = append(known[id], task.NewZombie(int(z[0]), uint64(z[1]), 0, 0).Waiting(since, died))
		}
	}
	d.observer.Restore(known)
}
