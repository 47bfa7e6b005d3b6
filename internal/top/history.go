package top

import (
	"time"

	"kzr/internal/task"
)

// sample is a count at a moment, which is the time since the first look.
type sample struct {
	at time.Duration
	n  float64
}

// series is the recent past of one count: fine for a minute, coarse for a
// quarter of an hour. The zero value is ready.
type series struct {
	fine   []sample
	coarse []sample
}

const (
	fineSpan   = time.Minute
	coarseStep = 30 * time.Second
	coarseSpan = 15 * time.Minute
	rateSpan   = 15 * time.Second
	// enough is the least change that a rate is taken from: less is mostly
	// chance, and a longer span tells better.
	enough = 5
)

func (s *series) add(at time.Duration, n float64) {
	if l := len(s.fine); l > 0 && at <= s.fine[l-1].at {
		return
	}
	s.fine = append(drop(s.fine, at-fineSpan), sample{at, n})
	if l := len(s.coarse); l == 0 || at-s.coarse[l-1].at >= coarseStep {
		s.coarse = append(drop(s.coarse, at-coarseSpan), sample{at, n})
	}
}

// drop removes what was before limit, in place.
func drop(all []sample, limit time.Duration) []sample {
	i := 0
	for i < len(all) && all[i].at < limit {
		i++
	}
	if i == 0 {
		return all
	}
	return append(all[:0], all[i:]...)
}

// rate is the change per second, from the shortest span in which enough
// happened; else from the longest there is. It is false while one sample is all.
func (s *series) rate() (perSecond float64, ok bool) {
	if len(s.fine) == 0 {
		return 0, false
	}
	last := s.fine[len(s.fine)-1]
	try := func(first sample, whole bool) bool {
		took, change := (last.at - first.at).Seconds(), last.n-first.n
		if took <= 0 || (!whole && max(change, -change) < enough) {
			return false
		}
		perSecond, ok = change/took, true
		return true
	}
	for _, x := range s.fine {
		if last.at-x.at <= rateSpan {
			if try(x, false) {
				return perSecond, ok
			}
			break
		}
	}
	if try(s.fine[0], false) {
		return perSecond, ok
	}
	if len(s.coarse) > 0 && s.coarse[0].at < s.fine[0].at {
		try(s.coarse[0], true)
		return perSecond, ok
	}
	try(s.fine[0], true)
	return perSecond, ok
}

// spark draws the last minute in width cells, each from levels. A flat line is a
// low one; small changes stay small.
func (s *series) spark(width int, levels []rune) string {
	if len(s.fine) == 0 || width <= 0 {
		return ""
	}
	end := s.fine[len(s.fine)-1].at
	out := make([]rune, width)
	low, high := s.fine[0].n, s.fine[0].n
	for _, x := range s.fine {
		low, high = min(low, x.n), max(high, x.n)
	}
	span := max(high-low, high/8, 8)
	// Each cell stands for an equal share of the minute and shows its last
	// sample; before the first sample there is nothing.
	j := 0
	for i := range out {
		until := end - fineSpan*time.Duration(width-1-i)/time.Duration(width)
		for j < len(s.fine) && s.fine[j].at <= until {
			j++
		}
		if j == 0 {
			out[i] = ' '
			continue
		}
		level := int((s.fine[j-1].n - low) / span * float64(len(levels)-1))
		out[i] = levels[min(max(level, 0), len(levels)-1)]
	}
	return string(out)
}

// history is the past of the node and of its parents.
type history struct {
	began          time.Time
	zombies, exits series
	parents        map[task.ID]*series
}

func (h *history) add(s *sampleMsg) {
	if h.began.IsZero() {
		h.began = s.at
	}
	at := s.at.Sub(h.began)
	h.zombies.add(at, float64(s.doc.Zombies))
	h.exits.add(at, float64(s.status.Exits))
	next := make(map[task.ID]*series, len(s.doc.Parents))
	for i := range s.doc.Parents {
		p := &s.doc.Parents[i]
		id := task.ID{PID: p.PID, Start: p.StartTime}
		x := h.parents[id]
		if x == nil {
			x = &series{}
		}
		x.add(at, float64(p.Zombies))
		next[id] = x
	}
	h.parents = next // who is gone is forgotten
}
