package kubeevents

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// The bounds on what one pod may cost the API server. A leak that comes back every
// minute is one story, and an owner who is told it sixty times an hour reads none.
const (
	repeatAfter = 10 * time.Minute // the same of the same container is told again
	perPod      = 10               // Events within window
	window      = time.Hour
	maxPods     = 1024 // remembered
)

// budget says what is told of each pod.
type budget struct{ pods map[string]*spending }

// spending is one pod's.
type spending struct {
	sent []time.Time        // within window, oldest first
	told map[string]*repeat // by container and reason
}

type repeat struct {
	at   time.Time // told last
	held int       // since then
}

// allow says whether to tell this one, and if so what was held back before it.
func (b *budget) allow(pod, what string, now time.Time) (earlier string, ok bool) {
	s := b.pods[pod]
	if s == nil {
		s = b.add(pod)
	}
	s.sent = slices.DeleteFunc(s.sent, func(t time.Time) bool { return now.Sub(t) >= window })
	r := s.told[what]
	if r == nil {
		if len(s.told) >= perPod { // a container's name is its pod's to choose
			return "", false
		}
		r = new(repeat)
		s.told[what] = r
	}
	if len(s.sent) >= perPod || !r.at.IsZero() && now.Sub(r.at) < repeatAfter {
		r.held++
		return "", false
	}
	if r.held > 0 {
		earlier = fmt.Sprintf("The same happened %d times since %s.", r.held, r.at.UTC().Format("15:04 MST"))
		if r.held == 1 {
			earlier = fmt.Sprintf("The same happened once since %s.", r.at.UTC().Format("15:04 MST"))
		}
		if r.at.IsZero() {
			earlier = ""
		}
	}
	*r = repeat{at: now}
	s.sent = append(s.sent, now)
	return earlier, true
}

// add makes room for a pod: the one that was told of longest ago is forgotten.
func (b *budget) add(pod string) *spending {
	if len(b.pods) >= maxPods {
		delete(b.pods, slices.MinFunc(slices.Collect(maps.Keys(b.pods)), func(x, y string) int {
			return b.pods[x].last().Compare(b.pods[y].last())
		}))
	}
	if b.pods == nil {
		b.pods = make(map[string]*spending)
	}
	s := &spending{told: make(map[string]*repeat)}
	b.pods[pod] = s
	return s
}

func (s *spending) last() (t time.Time) {
	if n := len(s.sent); n > 0 {
		t = s.sent[n-1]
	}
	return t
}
