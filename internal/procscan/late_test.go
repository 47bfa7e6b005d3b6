package procscan

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"kzr/internal/readers"
)

// "No answer in time" promises one later. A process whose tracer waits for it would be
// "traced" for ever otherwise, and never acted on: seen where threads were held up so
// long that time was over before the read had begun.
func TestLateMeansUnderWay(t *testing.T) {
	s, err := New("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	p, err := s.find(ctx, os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.release()
	results := map[string]int{}
	for i := range 5_000 {
		began := make(chan bool)
		_, err := read(ctx, p, "key", time.Duration(i%200)*time.Microsecond, func() (bool, error) {
			close(began)
			time.Sleep(100 * time.Microsecond)
			return true, nil
		})
		switch {
		case errors.Is(err, readers.ErrLate):
			results["late"]++
			select {
			case <-began:
			case <-time.After(10 * time.Second):
				t.Fatalf("read %d is late and has not begun", i)
			}
		case errors.Is(err, readers.ErrBusy):
			results["not begun"]++
			select {
			case <-began:
				t.Fatalf("read %d has begun though it was said not to", i)
			default:
			}
		case err != nil:
			t.Fatal(err)
		}
	}
	if results["late"] == 0 || results["not begun"] == 0 {
		t.Errorf("not all that can happen has happened: %v", results)
	}
	t.Log(results)
}
