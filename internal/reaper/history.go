package reaper

import (
	"time"

	"kzr/internal/policy"
	"kzr/internal/task"
)

// sayAgain is how long a reason that comes and goes is said once only.
const sayAgain = 10 * time.Minute

// history is what was said of and done to parents, by ladders that may have ended.
type history map[task.ID]*record

type record struct {
	keep   time.Time       // it means nothing after
	said   map[string]said // by reason
	until  time.Duration   // the end of the backoff that was said last
	inside time.Time       // when its zombies were reaped inside it last
	helped bool            // some were
	alone  time.Duration   // how long it is to be left alone since, besides the grace
}

type said struct {
	at      time.Time
	zombies int
}

// of returns what is known of a parent, and forgets of others what means nothing
// any more.
func (h history) of(id task.ID, now time.Time) *record {
	r := h[id]
	if r == nil {
		r = &record{said: map[string]said{}}
		h[id] = r
		if len(h)%256 == 0 { // now and then
			for id, r := range h {
				if now.After(r.keep) {
					delete(h, id)
				}
			}
			h[id] = r
		}
	}
	return r
}

// news says whether a reason is to be said of a parent with so many zombies: it is
// another one than just now and has not been said for long, or the zombies have
// doubled since.
func (r *record) news(reason string, changed bool, zombies int, now time.Time) bool {
	last, before := r.said[reason]
	doubled := zombies >= 2*max(last.zombies, 1)
	if before && !doubled && (!changed || now.Sub(last.at) < sayAgain) {
		return false
	}
	r.said[reason] = said{now, zombies}
	r.keep = later(r.keep, now.Add(sayAgain))
	return true
}

// backoffNews says whether it is to be said that its workload's limit is used up: when
// that has another end than before, or as with any reason.
func (r *record) backoffNews(why *refusal, zombies int, now time.Time) bool {
	reason := string(policy.Backoff)
	if r.until != why.moment {
		delete(r.said, reason)
	}
	r.until = why.moment
	news := r.news(reason, false, zombies, now)
	r.keep = later(r.keep, why.until)
	return news
}

// reapedInside notes that it was tried to reap inside it.
func (r *record) reapedInside(now time.Time, helped bool, grace, alone time.Duration) {
	r.inside, r.helped, r.alone = now, helped, alone
	r.keep = later(r.keep, now.Add(max(grace, alone)))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
