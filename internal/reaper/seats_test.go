package reaper

import (
	"slices"
	"testing"
)

// Who is in a hurry comes before who has leave to kill, and he before the others;
// else it is first come, first served.
func TestSeats(t *testing.T) {
	var s seats
	seated := func(x *seat) bool {
		select {
		case <-x.ready:
			return true
		default:
			return false
		}
	}
	var all []*seat
	for range maxSeats {
		all = append(all, s.take(anyone))
	}
	if !slices.ContainsFunc(all, seated) || s.wanted() {
		t.Fatal("there are seats, and somebody waits")
	}
	first, second, third, may := s.take(anyone), s.take(anyone), s.take(anyone), s.take(mayKill)
	if seated(first) || seated(may) || !s.wanted() {
		t.Fatal("a seat for those in a hurry was taken by who is in none")
	}
	s.hurry(third)
	if !seated(third) || seated(may) || seated(first) {
		t.Fatal("want a seat for who is in a hurry, and for nobody else")
	}
	s.hurry(third) // it has one
	for range hurrySeats - 1 {
		all = append(all, s.take(pressed))
	}
	late := s.take(pressed)
	if seated(late) {
		t.Fatal("there are more seats than there should be")
	}
	s.leave(second) // it no longer waits
	s.leave(third)
	if !seated(late) {
		t.Fatal("no seat for who is in a hurry when one is left")
	}
	for _, next := range []*seat{may, first} {
		for !seated(next) {
			if len(all) == 0 {
				t.Fatal("the others never have their turn")
			}
			if seated(first) {
				t.Fatal("it was not its turn")
			}
			s.leave(all[0])
			all = all[1:]
		}
	}
	for _, x := range append(all, first, may, late) {
		s.leave(x)
	}
	if s.taken != 0 || s.wanted() {
		t.Errorf("%d seats are taken when all have left", s.taken)
	}
}
