package reaper

import (
	"slices"
	"testing"
)

// Who is in a hurry comes before who has leave to kill, and he before the others;
// else it is first come, first served.
func TestSlots(t *testing.T) {
	var s slots
	taken := func(x *slot) bool {
		select {
		case <-x.ready:
			return true
		default:
			return false
		}
	}
	var all []*slot
	for range maxSlots {
		all = append(all, s.acquire(anyone))
	}
	if !slices.ContainsFunc(all, taken) || s.wanted() {
		t.Fatal("there are slots, and somebody waits")
	}
	first, second, third, may := s.acquire(anyone), s.acquire(anyone), s.acquire(anyone), s.acquire(mayKill)
	if taken(first) || taken(may) || !s.wanted() {
		t.Fatal("a slot for those in a hurry was taken by who is in none")
	}
	s.hurry(third)
	if !taken(third) || taken(may) || taken(first) {
		t.Fatal("want a slot for who is in a hurry, and for nobody else")
	}
	s.hurry(third) // it has one
	for range hurrySlots - 1 {
		all = append(all, s.acquire(pressed))
	}
	late := s.acquire(pressed)
	if taken(late) {
		t.Fatal("there are more slots than there should be")
	}
	s.release(second) // it no longer waits
	s.release(third)
	if !taken(late) {
		t.Fatal("no slot for who is in a hurry when one is left")
	}
	for _, next := range []*slot{may, first} {
		for !taken(next) {
			if len(all) == 0 {
				t.Fatal("the others never have their turn")
			}
			if taken(first) {
				t.Fatal("it was not its turn")
			}
			s.release(all[0])
			all = all[1:]
		}
	}
	for _, x := range append(all, first, may, late) {
		s.release(x)
	}
	if s.used != 0 || s.wanted() {
		t.Errorf("%d slots are taken when all have left", s.used)
	}
}
