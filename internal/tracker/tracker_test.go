package tracker

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"kzr/internal/task"
)

const s = time.Second

// snap is a snapshot that ended at a moment, with zombies given as pid, since
// pairs; their start time is their pid.
func snap(end time.Duration, parent task.ID, zs ...task.Zombie) *task.Snapshot {
	snapshot := &task.Snapshot{Began: end - time.Millisecond, Ended: end, Parents: map[task.ID]*task.Children{}}
	if len(zs) > 0 {
		snapshot.Parents[parent] = &task.Children{Parent: parent, Reapable: zs}
	}
	return snapshot
}

func z(pid int32, since time.Duration) task.Zombie {
	return task.NewZombie(int(pid), uint64(pid), since, 0)
}

var (
	p7 = task.ID{PID: 7, Start: 70}
	p8 = task.ID{PID: 8, Start: 80}
)

func TestAge(t *testing.T) {
	tests := []struct {
		name   string
		shots  []*task.Snapshot
		parent task.ID
		now    time.Duration
		want   time.Duration // age of the oldest
		n      int
	}{
		{"from the exit event", []*task.Snapshot{snap(10*s, p7, z(100, 4*s))}, p7, 11 * s, 7 * s, 1},
		{"older than the daemon: first sighting", []*task.Snapshot{snap(10*s, p7, z(100, 0))}, p7, 11 * s, 1 * s, 1},
		{"first sighting is kept", []*task.Snapshot{snap(10*s, p7, z(100, 0)), snap(20*s, p7, z(90, 0), z(100, 0))}, p7, 21 * s, 11 * s, 2},
		{"a forgotten exit time does not make it younger", []*task.Snapshot{snap(10*s, p7, z(100, 4*s)), snap(20*s, p7, z(100, 0))}, p7, 21 * s, 17 * s, 1},
		{"pid reused by another zombie", []*task.Snapshot{snap(10*s, p7, z(100, 0)), snap(20*s, p7, task.NewZombie(100, 101, 0, 0))}, p7, 21 * s, 1 * s, 1},
		{"moved to another parent: a grace of its own", []*task.Snapshot{snap(10*s, p7, z(100, 0)), snap(20*s, p8, z(100, 0))}, p8, 21 * s, 1 * s, 1},
		{"an exit time from the future counts from now", []*task.Snapshot{snap(10*s, p7, z(100, 99*s))}, p7, 11 * s, 1 * s, 1},
		{"reaped", []*task.Snapshot{snap(10*s, p7, z(100, 0)), snap(20*s, p7)}, p7, 21 * s, 0, 0},
		{"out of order", []*task.Snapshot{snap(10*s, p7, z(100, 0), z(50, 1*s)), snap(20*s, p7, z(100, 0), z(50, 0))}, p7, 20 * s, 19 * s, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var tr Tracker
			for _, x := range tt.shots {
				tr.Apply(x)
			}
			p, ok := tr.Get(tt.parent)
			if !ok {
				if tt.n != 0 {
					t.Fatal("parent is not tracked")
				}
				return
			}
			if p.Reapable() != tt.n || p.Oldest(tt.now) != tt.want {
				t.Errorf("got %d zombies, oldest %v; want %d, %v", p.Reapable(), p.Oldest(tt.now), tt.n, tt.want)
			}
		})
	}
}

func TestApplyToTouchesOneParent(t *testing.T) {
	var tr Tracker
	tr.Apply(snap(10*s, p7, z(100, 0)))
	tr.ApplyTo(p8, snap(11*s, p8, z(101, 0)))
	if tr.Len() != 2 {
		t.Fatalf("got %d parents, want 2", tr.Len())
	}
	tr.ApplyTo(p8, snap(12*s, p8))
	if _, ok := tr.Get(p8); ok {
		t.Error("a parent whose zombies are gone is still tracked")
	}
	if p, ok := tr.Get(p7); !ok || p.Oldest(13*s) != 3*s {
		t.Error("the other parent changed")
	}
}

// Due is the threshold-th oldest zombie's moment: compare with sorting.
func TestDue(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		n := 1 + r.IntN(200)
		zs := make([]task.Zombie, n)
		since := make([]time.Duration, n)
		for i := range zs {
			since[i] = time.Duration(1+r.IntN(100)) * time.Millisecond
			zs[i] = z(int32(i+1), since[i])
		}
		var tr Tracker
		tr.Apply(snap(s, p7, zs...))
		p, _ := tr.Get(p7)
		slices.Sort(since)
		threshold := 1 + r.IntN(220)
		due, ok := p.Due(Rule{Threshold: threshold, Grace: 5})
		if ok != (threshold <= n) {
			t.Fatalf("threshold %d of %d: due %v", threshold, n, ok)
		}
		if ok && due != since[threshold-1]+5 {
			t.Fatalf("threshold %d of %v: due at %d, want %d", threshold, since, due, since[threshold-1]+5)
		}
	}
}

func TestOlder(t *testing.T) {
	var tr Tracker
	tr.Apply(snap(10*s, p7, z(1, 3*s), z(2, 5*s), z(3, 4*s)))
	p, _ := tr.Get(p7)
	for moment, want := range map[time.Duration][]int{2 * s: {}, 4 * s: {1, 3}, 5 * s: {1, 2, 3}} {
		got := []int{}
		for _, z := range p.Older(moment) {
			got = append(got, z.PID())
		}
		if !slices.Equal(got, want) {
			t.Errorf("older than %v: %v, want %v", moment, got, want)
		}
	}
}

// A parent that always has zombies, but never an old one, is never due.
func TestSlowReaperIsNeverDue(t *testing.T) {
	var tr Tracker
	rule := Rule{Threshold: 50, Grace: 2 * s}
	for now := 10 * s; now < 100*s; now += s / 2 {
		var zs []task.Zombie
		for i := range 100 { // each lives one second
			since := now - time.Duration(i)*s/100
			zs = append(zs, z(int32(since/(s/100)), since))
		}
		tr.Apply(snap(now, p7, zs...))
		p, _ := tr.Get(p7)
		if due, ok := p.Due(rule); !ok || due <= now {
			t.Fatalf("at %v: due %v %v", now, due, ok)
		}
	}
}

// A zombie that moves to another parent brings the moment of its death along, while the
// new parent has a grace of its own: whether a sweep or a single look saw it go, and
// whether or not the kernel told when it died.
func TestMovedKeepsItsDeath(t *testing.T) {
	const step = 64 * time.Millisecond // in which the time from death to move is kept
	moved := func(pid int, died time.Duration) task.Zombie {
		return task.NewZombie(pid, uint64(pid), died, task.Moved)
	}
	for name, tt := range map[string]struct {
		steps []func(*Tracker)
		since time.Duration
	}{
		"seen by two sweeps": {[]func(*Tracker){
			func(tr *Tracker) { tr.Apply(snap(10*s, p7, z(100, 0), z(101, 0))) },
			func(tr *Tracker) { tr.Apply(snap(20*s, p8, z(90, 0), z(100, 0), z(101, 0), z(102, 0))) },
		}, 20 * s},
		"its parent was seen without it before": {[]func(*Tracker){
			func(tr *Tracker) { tr.Apply(snap(10*s, p7, z(100, 0))) },
			func(tr *Tracker) { tr.ApplyTo(p7, snap(15*s, p7)) },
			func(tr *Tracker) { tr.Apply(snap(20*s, p8, z(100, 0))) },
		}, 20 * s},
		"its new parent was seen with it before": {[]func(*Tracker){
			func(tr *Tracker) { tr.Apply(snap(10*s, p7, z(100, 0))) },
			func(tr *Tracker) { tr.ApplyTo(p8, snap(15*s, p8, z(100, 0))) },
			func(tr *Tracker) { tr.Apply(snap(20*s, p8, z(100, 0))) },
		}, 15 * s},
		"nobody was seen to have it in between": {[]func(*Tracker){
			func(tr *Tracker) { tr.Apply(snap(10*s, p7, z(100, 0))) },
			func(tr *Tracker) { tr.Apply(snap(15*s, p7, z(7, 0))) },
			func(tr *Tracker) { tr.Apply(snap(20*s, p8, z(100, 0))) },
		}, 20 * s},
		"the kernel knows": {[]func(*Tracker){
			func(tr *Tracker) { tr.Apply(snap(20*s, p8, moved(100, 10*s))) },
		}, 20 * s},
		"the kernel knows, twice": {[]func(*Tracker){
			func(tr *Tracker) { tr.Apply(snap(20*s, p8, moved(100, 10*s))) },
			func(tr *Tracker) { tr.Apply(snap(30*s, p8, moved(100, 10*s))) },
		}, 20 * s},
		"restored": {[]func(*Tracker){
			func(tr *Tracker) { tr.Restore(map[task.ID][]task.Zombie{p8: {z(100, 0).Waiting(20*s, 10*s)}}) },
			func(tr *Tracker) { tr.Apply(snap(30*s, p8, z(100, 0))) },
		}, 20 * s},
	} {
		t.Run(name, func(t *testing.T) {
			var tr Tracker
			for _, step := range tt.steps {
				step(&tr)
			}
			p, ok := tr.Get(p8)
			if !ok {
				t.Fatal("parent is not tracked")
			}
			i := slices.IndexFunc(p.Zombies(), func(z task.Zombie) bool { return z.PID() == 100 })
			if got := p.Zombies()[i]; got.Since() != tt.since || got.Died() < 10*s || got.Died() > 10*s+step {
				t.Errorf("waits since %v, died at %v; want %v and 10s", got.Since(), got.Died(), tt.since)
			}
			if dead := p.Dead(10*s + step); len(dead) == 0 || len(p.Older(14*s)) != 0 {
				t.Errorf("%d dead at 10s, %d waiting at 14s", len(dead), len(p.Older(14*s)))
			}
		})
	}
}

// What another parent's zombies did, or one of a later start, is nobody else's age.
func TestAgeIsNotInheritedByOthers(t *testing.T) {
	var tr Tracker
	tr.Apply(snap(10*s, p7, z(100, 0)))
	tr.Apply(snap(20*s, p8, task.NewZombie(100, 101, 0, 0), z(99, 0)))
	p, _ := tr.Get(p8)
	for _, z := range p.Zombies() {
		if z.Died() != 20*s {
			t.Errorf("%d died at %v, want 20s", z.PID(), z.Died())
		}
	}
}
