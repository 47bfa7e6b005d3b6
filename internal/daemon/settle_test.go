package daemon

import (
	"testing"
	"time"

	"kzr/internal/reaper"
	"kzr/internal/task"
)

// One that could not be looked at is tried again soon. One that could not be
// removed, or that kzr may not signal, is left alone for longer each time.
func TestPauses(t *testing.T) {
	d, _ := newDaemon(t, 0)
	id := task.ID{PID: 1 << 22, Start: 1}
	w := &watched{}
	d.watched[id] = w
	for i, step := range []struct {
		tried bool
		want  time.Duration
	}{
		{false, blindPause}, {false, blindPause}, {true, gaveUpPause}, {true, 2 * gaveUpPause},
		{false, blindPause}, {true, 4 * gaveUpPause}, {true, 8 * gaveUpPause}, {true, 16 * gaveUpPause},
		{true, 32 * gaveUpPause}, {true, maxPause}, {true, maxPause},
	} {
		before := task.Now()
		d.settle(reaper.Outcome{ID: id, Result: reaper.GaveUp, Tried: step.tried})
		if pause := w.until - before; pause < step.want || pause > step.want+time.Minute/2 {
			t.Errorf("pause %d is %v, want %v", i, pause, step.want)
		}
	}
}
