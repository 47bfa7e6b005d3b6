package procscan_test

import (
	"testing"
	"time"

	"kzr/internal/task"
	"kzr/internal/zoo"
)

// One reaped child is enough to tell; children that nobody reaps are none.
func TestWaited(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "leak=5,plain serve")
	waited := func() bool {
		t.Helper()
		p, err := s.Inspect(t.Context(), z.PID)
		if err != nil {
			t.Fatal(err)
		}
		return p.Waited
	}
	if waited() {
		t.Error("it has leaked five children and counts as one that reaps")
	}
	z.Do("reap=1")
	if !waited() {
		t.Error("it has reaped a child, and that does not show")
	}
}

func TestLiveChildren(t *testing.T) {
	s := open(t)
	z := zoo.Start(t, "leak=7 fork { name=a comm=first serve } fork { name=b comm=second serve } fork { name=c serve } serve")
	a, b := z.Named("a"), z.Named("b")
	z.Named("c")
	p, err := s.Inspect(t.Context(), z.PID)
	if err != nil {
		t.Fatal(err)
	}
	var zombies *task.Children
	zoo.Within(t, time.Minute, "7 zombies", func() bool {
		snap, err := s.SnapshotOf(t.Context(), p.ID)
		if err != nil {
			t.Fatal(err)
		}
		zombies = snap.Parents[p.ID]
		return zombies != nil && len(zombies.Reapable) == 7
	})
	live, total := s.LiveChildren(p.ID, zombies, 2)
	if total != 3 || len(live) != 2 || live[0].PID != a.PID || live[0].Comm != "first" || live[1].PID != b.PID {
		t.Errorf("%+v of %d; want %d first, %d second of 3", live, total, a.PID, b.PID)
	}
	// Without the list of zombies they are told by their state.
	if _, total := s.LiveChildren(p.ID, nil, 20); total != 3 {
		t.Errorf("%d live children, want 3", total)
	}
	dead := zombies.Reapable[0]
	if comm := s.Comm(task.ID{PID: dead.PID(), Start: dead.Start()}); comm == "" {
		t.Error("a zombie has no name")
	}
	if comm := s.Comm(task.ID{PID: dead.PID(), Start: dead.Start() + 1}); comm != "" {
		t.Errorf("another process with that pid is called %q", comm)
	}
}
