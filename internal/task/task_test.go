package task

import (
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"
)

// A zombie's moments survive being packed: late by less than a unit, and never early.
func TestZombieMoments(t *testing.T) {
	if size := unsafe.Sizeof(Zombie{}); size != 16 {
		t.Errorf("a zombie takes %d bytes, want 16", size)
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 10000 {
		since := time.Duration(r.Int64N(int64(3 * 365 * 24 * time.Hour)))
		died := since - time.Duration(r.Int64N(int64(5*24*time.Hour)))
		died = max(died, 1)
		flags := Flag(r.IntN(16))
		z := NewZombie(r.IntN(1<<22), r.Uint64N(1<<startBits), since, flags)
		if !(z.Since() >= since && z.Since() < since+moment) || z.Died() != z.Since() {
			t.Fatalf("since %v became %v, died %v", since, z.Since(), z.Died())
		}
		for _, f := range []Flag{Adopted, Foreign, Held, Moved} {
			if z.Has(f) != (flags&f != 0) {
				t.Fatalf("flags %b: %b is %t", flags, f, z.Has(f))
			}
		}
		w := z.Waiting(since, died)
		if w.Since() < since || w.Since() >= since+moment || w.Died() < died || w.Died() >= died+beforeUnit+moment || w.Died() > w.Since() {
			t.Fatalf("since %v, died %v became %v, %v", since, died, w.Since(), w.Died())
		}
		if w.Compare(z) != 0 || w.PID() != z.PID() || w.Start() != z.Start() || w.Has(Moved) || w.Has(Adopted) != z.Has(Adopted) {
			t.Fatalf("%+v became %+v", z, w)
		}
	}
	long := NewZombie(1, 1, 0, 0).Waiting(20*24*time.Hour, time.Second)
	if long.Died() < time.Second || long.Since()-long.Died() < 6*24*time.Hour {
		t.Errorf("dead for twenty days: died at %v of %v", long.Died(), long.Since())
	}
}
