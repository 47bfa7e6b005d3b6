package report

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(250*time.Millisecond, 100)
		made := 0
		ask := func(key string) (*answer, error) {
			return c.get(t.Context(), key, func(context.Context) ([]byte, error) {
				made++
				time.Sleep(10 * time.Millisecond)
				return make([]byte, 60), nil
			})
		}
		// All who ask at once and soon after share one answer.
		for range 50 {
			go func() {
				a, err := ask("a")
				if err != nil {
					t.Error(err)
					return
				}
				c.release(a)
			}()
		}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if made != 1 || c.held != 0 {
			t.Fatalf("%d answers made, %d bytes held", made, c.held)
		}
		// Nothing is kept when nobody asks.
		time.Sleep(time.Second)
		synctest.Wait()
		if len(c.answers) != 0 {
			t.Error("an old answer is kept")
		}
		// Readers that do not finish hold up to the limit and one more; then none is
		// made until they do.
		first, _ := ask("a")
		time.Sleep(time.Second)
		second, _ := ask("a")
		time.Sleep(time.Second)
		if first == second {
			t.Error("an old answer is given")
		}
		if _, err := ask("a"); !errors.Is(err, errBusy) {
			t.Errorf("with 120 of 100 bytes held: %v", err)
		}
		c.release(first)
		third, err := ask("a")
		if err != nil {
			t.Errorf("after a reader has finished: %v", err)
		}
		c.release(second)
		c.release(third)
		if c.held != 0 {
			t.Errorf("%d bytes held by nobody", c.held)
		}
		time.Sleep(time.Second)
	})
}

func TestCacheErrors(t *testing.T) {
	c := newCache(time.Hour, 100)
	broken := errors.New("broken")
	if _, err := c.get(t.Context(), "a", func(context.Context) ([]byte, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	c.turn <- struct{}{} // an answer that never comes
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.get(ctx, "a", nil); !errors.Is(err, errBusy) {
		t.Errorf("got %v", err)
	}
}
