package report

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// What clients may cost, whatever they do.
const (
	maxClients     = 256 // connections to the socket
	maxStreams     = 64  // of them readers of /v1/events
	maxScrapers    = 32  // connections to the metrics port
	maxHeader      = 4 << 10
	maxHeld        = 16 << 20 // bytes of answers under way to slow readers
	answerFresh    = 250 * time.Millisecond
	headerTimeout  = 5 * time.Second
	viewTimeout    = 5 * time.Second  // to wait for an answer
	makeTimeout    = time.Minute      // to make one, for who asks again
	answerTimeout  = 15 * time.Second // to make an answer and for the reader to take it
	idleTimeout    = 30 * time.Second
	streamTimeout  = 30 * time.Second       // for a reader of the stream to take what is due
	goodbyeTimeout = 300 * time.Millisecond // for answers under way when the daemon stops
)

// MaxParents is how many parents there are in a document; the others are counted.
const MaxParents = 4096

// Server answers those who look at the daemon. It cannot change anything.
type Server struct {
	View    View
	Hub     *Hub
	Metrics *Metrics
	Log     *slog.Logger
}

// Run serves the API on the listener that [Listen] made and metrics on a TCP
// listener until ctx ends, then closes both; either may be nil. It returns once
// every goroutine it started has ended. The error is that of a listener that
// broke.
func (s *Server) Run(ctx context.Context, api, metrics net.Listener) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	h := &handlers{Server: s, documents: newCache(ctx, s.Log, answerFresh, maxHeld), figures: newCache(ctx, s.Log, answerFresh, maxHeld)}
	var wg sync.WaitGroup
	errs := make(chan error, 2)
	serve := func(l net.Listener, clients int32, mux *http.ServeMux) {
		if l == nil {
			return
		}
		wg.Go(func() {
			errs <- h.serve(ctx, newLimited(l, clients), mux)
			stop() // one that breaks takes the other along
		})
	}
	serve(api, maxClients, h.api())
	serve(metrics, maxScrapers, h.scrape())
	if api == nil && metrics == nil {
		<-ctx.Done()
	}
	wg.Wait()
	h.documents.making.Wait()
	h.figures.making.Wait()
	close(errs)
	var err error
	for e := range errs {
		err = errors.Join(err, e)
	}
	return err
}

// serve returns when every connection of l has ended.
func (h *handlers) serve(ctx context.Context, l net.Listener, mux *http.ServeMux) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	var open sync.WaitGroup
	srv := &http.Server{
		Handler:           guard(mux),
		Protocols:         &protocols,
		MaxHeaderBytes:    maxHeader,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       headerTimeout,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(h.Log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, clientKey{}, c) },
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				open.Add(1)
			case http.StateClosed:
				open.Done()
			}
		},
	}
	open.Go(func() {
		<-ctx.Done()
		goodbye, cancel := context.WithTimeout(context.Background(), goodbyeTimeout)
		defer cancel()
		if srv.Shutdown(goodbye) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(l)
	stop()
	open.Wait()
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving %s: %w", l.Addr(), err)
	}
	return nil
}

// guard refuses a peer that may not ask, and a request with a body
// before anything of it is read.
func guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if c, ok := r.Context().Value(clientKey{}).(*client); ok && c.status != 0 {
			w.Header().Set("Connection", "close")
			fail(w, c.status, c.refused)
			return
		}
		if r.ContentLength != 0 {
			w.Header().Set("Connection", "close")
			fail(w, http.StatusBadRequest, "a request has no body")
			return
		}
		next.ServeHTTP(w, r)
	})
}

type handlers struct {
	*Server
	documents *cache // what takes a look at many processes,
	figures   *cache // and what must not wait for that
}

func (h *handlers) api() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		h.answer(h.figures, w, r, "status", jsonType, func(context.Context) ([]byte, error) {
			st := h.View.Status()
			st.Problems = sanitizeAll(st.Problems)
			return EncodeJSON(st)
		})
	})
	mux.HandleFunc("GET /v1/parents", func(w http.ResponseWriter, r *http.Request) {
		h.answer(h.documents, w, r, "parents", jsonType, func(ctx context.Context) ([]byte, error) {
			doc, err := h.View.Document(ctx)
			if err != nil {
				return nil, err
			}
			doc.Limit(MaxParents)
			return EncodeJSON(doc)
		})
	})
	mux.HandleFunc("GET /v1/parents/{pid}", func(w http.ResponseWriter, r *http.Request) {
		pid, err := strconv.ParseUint(r.PathValue("pid"), 10, 31)
		if err != nil || pid == 0 {
			fail(w, http.StatusBadRequest, "a pid is a positive number")
			return
		}
		h.answer(h.documents, w, r, "parents/"+strconv.FormatUint(pid, 10), jsonType, func(ctx context.Context) ([]byte, error) {
			detail, err := h.View.Parent(ctx, int(pid))
			if err != nil {
				return nil, err
			}
			detail.Plan, detail.Advice = sanitizeAll(detail.Plan), sanitizeAll(detail.Advice)
			return EncodeJSON(detail)
		})
	})
	mux.HandleFunc("GET /v1/events", h.events)
	h.addMetrics(mux)
	h.addIndex(mux, "/v1/status", "/v1/parents", "/v1/parents/PID", "/v1/events", "/metrics")
	return mux
}

// scrape is all that the metrics port serves: it asks nobody who they are.
func (h *handlers) scrape() *http.ServeMux {
	mux := http.NewServeMux()
	h.addMetrics(mux)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		h.answer(h.figures, w, r, "health", textType, func(context.Context) ([]byte, error) {
			return health(h.View.Status())
		})
	})
	h.addIndex(mux, "/metrics", "/healthz")
	return mux
}

// addIndex says what there is to who asks for /.
func (h *handlers) addIndex(mux *http.ServeMux, paths ...string) {
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		h.answer(h.figures, w, r, "index", textType, func(context.Context) ([]byte, error) {
			return []byte("kzr " + Sanitize(h.View.Status().Version) + "\n\n" + strings.Join(paths, "\n") + "\n"), nil
		})
	})
}

func (h *handlers) addMetrics(mux *http.ServeMux) {
	if h.Metrics == nil {
		return
	}
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		h.answer(h.figures, w, r, "metrics", metricsType, func(context.Context) ([]byte, error) { return h.Metrics.render() })
	})
}

// health fails when the loop that sweeps is two sweeps and more behind.
func health(st Status) ([]byte, error) {
	last, next := st.LastSweep, st.NextSweep
	if last.IsZero() {
		last, next = st.Since, st.Since
	}
	allowed := time.Duration(2*st.SweepInterval*float64(time.Second)) + 30*time.Second
	if time.Since(next) > allowed {
		return nil, fmt.Errorf("no sweep for %s", Age(time.Since(last)))
	}
	return []byte("ok\n"), nil
}

const (
	jsonType    = "application/json"
	linesType   = "application/jsonl"
	textType    = "text/plain; charset=utf-8"
	metricsType = "text/plain; version=0.0.4; charset=utf-8"
)

func (h *handlers) answer(c *cache, w http.ResponseWriter, r *http.Request, key, contentType string, render func(context.Context) ([]byte, error)) {
	ctx, cancel := context.WithTimeout(r.Context(), viewTimeout)
	defer cancel()
	a, err := c.get(ctx, key, render)
	switch {
	case errors.Is(err, ErrNotFound):
		fail(w, http.StatusNotFound, err.Error())
		return
	case err != nil:
		w.Header().Set("Retry-After", "1")
		fail(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	defer c.release(a)
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	_, _ = w.Write(a.body) // a reader that is gone is its own loss
}

// problem is the body of every answer that is not 200.
type problem struct {
	Error string `json:"error"`
}

func fail(w http.ResponseWriter, status int, why string) {
	w.Header().Set("Content-Type", jsonType)
	w.WriteHeader(status)
	body, _ := EncodeJSON(problem{Sanitize(why)}) // a string always encodes
	_, _ = w.Write(body)
}

// events streams the hub's lines until the reader or the daemon goes.
func (h *handlers) events(w http.ResponseWriter, r *http.Request) {
	q := h.Hub.subscribe(maxStreams)
	if q == nil {
		w.Header().Set("Retry-After", "1")
		fail(w, http.StatusServiceUnavailable, "too many readers of the stream")
		return
	}
	defer h.Hub.unsubscribe(q)
	rc := http.NewResponseController(w)
	// The reader has nothing more to say; when it goes, the request's context ends.
	if rc.SetReadDeadline(time.Time{}) != nil {
		return
	}
	w.Header().Set("Content-Type", linesType)
	gone := r.Context().Done()
	for stop := false; ; {
		if err := send(w, rc, q); err != nil || stop {
			return
		}
		select {
		case <-q.wake:
		case <-gone:
			stop = true // what the daemon said last is still due
		}
	}
}

// send writes what is queued, and says where lines are missing.
func send(w io.Writer, rc *http.ResponseController, q *queue) error {
	lines, gap := q.take()
	if err := rc.SetWriteDeadline(time.Now().Add(streamTimeout)); err != nil {
		return err
	}
	for _, l := range append(lines, line{gap: gap}) {
		if l.gap > 0 {
			if _, err := fmt.Fprintf(w, "{\"event\":\"missed\",\"count\":%d}\n", l.gap); err != nil {
				return err
			}
		}
		if _, err := w.Write(l.text); err != nil {
			return err
		}
	}
	return rc.Flush()
}
