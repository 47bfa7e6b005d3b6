package reapinside

import (
	"context"
	"testing"
	"time"
)

func TestReap(t *testing.T) {
	began := time.Now()
	h := helper(t)
	t.Log("started in", time.Since(began))
	s := launch(t, false, 5, 0, "sleep", "1000")
	res, err := s.reap(h, s.settled(5), nil)
	t.Logf("%+v %v", res, err)
	if err != nil || res.Reaped != 5 {
		t.Fatal("not reaped")
	}
	s.settled(0)
	_ = context.Background
}
