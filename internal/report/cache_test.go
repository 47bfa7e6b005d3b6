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
		c := newCache(t.Context(), 250*time.Millisecond, 100)
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
	c := newCache(t.Context(), time.Hour, 100)
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

// An answer that takes longer than anybody waits is there for who asks again,
// and is made once.
func TestCacheSlowAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t.Context(), 250*time.Millisecond, 100)
		made := 0
		ask := func() ([]byte, error) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			a, err := c.get(ctx, "a", func(ctx context.Context) ([]byte, error) {
				made++
				select {
				case <-time.After(12 * time.Second):
					return []byte("late"), nil
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			})
			if err != nil {
				return nil, err
			}
			defer c.release(a)
			return a.body, nil
		}
		for range 2 {
			if _, err := ask(); !errors.Is(err, errBusy) {
				t.Errorf("too early: %v", err)
			}
		}
		if body, err := ask(); err != nil || string(body) != "late" || made != 1 {
			t.Errorf("%q, %v, made %d times", body, err, made)
		}
		c.making.Wait()

		// One that never comes is given up, and the next one is made.
		never := func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := c.get(ctx, "b", never); !errors.Is(err, errBusy) {
			t.Errorf("one that never comes: %v", err)
		}
		c.making.Wait()
		a, err := c.get(t.Context(), "b", func(context.Context) ([]byte, error) { return []byte("soon"), nil })
		if err != nil {
			t.Fatal(err)
		}
		c.release(a)
		c.making.Wait()
		time.Sleep(time.Second)
	})
}
