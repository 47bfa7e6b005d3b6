package report

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t.Context(), slog.New(slog.DiscardHandler), 250*time.Millisecond, 100)
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
	c := newCache(t.Context(), slog.New(slog.DiscardHandler), time.Hour, 100)
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

// An answer that takes longer than anybody waits is made once, and there for who
// asks again after the second that the server asks for, and then is fresh no longer.
func TestCacheSlowAnswer(t *testing.T) {
	for _, takes := range []time.Duration{5300 * time.Millisecond, 5900 * time.Millisecond, 8 * time.Second, 12 * time.Second, 17500 * time.Millisecond} {
		t.Run(takes.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { slowAnswer(t, takes) })
		})
	}
}

func slowAnswer(t *testing.T, takes time.Duration) {
	c := newCache(t.Context(), slog.New(slog.DiscardHandler), answerFresh, 100)
	made := 0
	ask := func() ([]byte, error) {
		ctx, cancel := context.WithTimeout(t.Context(), viewTimeout)
		defer cancel()
		a, err := c.get(ctx, "a", func(ctx context.Context) ([]byte, error) {
			made++
			select {
			case <-time.After(takes):
				return []byte{byte(made)}, nil
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
	for n := range byte(3) {
		began := time.Now()
		for {
			body, err := ask()
			if err == nil {
				if !bytes.Equal(body, []byte{n + 1}) {
					t.Errorf("answer %d, want %d", body, n+1)
				}
				break
			}
			if !errors.Is(err, errBusy) || time.Since(began) > takes+2*time.Second {
				t.Fatalf("after %v: %v", time.Since(began), err)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(answerFresh + time.Millisecond)
	}
	if made != 3 {
		t.Errorf("%d answers were made for three", made)
	}
	// One that nobody takes does not stay.
	if _, err := ask(); !errors.Is(err, errBusy) {
		t.Errorf("%v", err)
	}
	c.making.Wait()
	time.Sleep(untaken)
	synctest.Wait()
	if len(c.answers) != 0 {
		t.Error("an answer is kept that nobody took")
	}
}

// One that never comes is given up, and the next one is made.
func TestCacheNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t.Context(), slog.New(slog.DiscardHandler), answerFresh, 100)
		never := func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }
		ctx, cancel := context.WithTimeout(t.Context(), viewTimeout)
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
		time.Sleep(untaken)
	})
}

// A fault in making an answer is in the log, also if nobody waits for it any more.
func TestCacheFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		c := newCache(t.Context(), slog.New(slog.NewJSONHandler(&log, nil)), answerFresh, 100)
		broken := func(context.Context) ([]byte, error) { time.Sleep(viewTimeout); panic("no such parent") }
		for _, wait := range []time.Duration{time.Second, time.Minute} {
			log.Reset()
			ctx, cancel := context.WithTimeout(t.Context(), wait)
			defer cancel()
			want := errBusy
			if wait > viewTimeout {
				want = errFault
			}
			if _, err := c.get(ctx, "a", broken); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
			c.making.Wait()
			if !strings.Contains(log.String(), "no such parent") || !strings.Contains(log.String(), "TestCacheFault") {
				t.Errorf("the log: %s", &log)
			}
		}
	})
}
