package report

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
)

// view is a daemon of one leaking parent. It counts what it is asked.
type view struct {
	documents, busy atomic.Int32
	overlap         atomic.Bool
	err             error
	parents         int
	hang, panics    bool
}

func (v *view) enter() func() {
	if v.busy.Add(1) > 1 {
		v.overlap.Store(true)
	}
	return func() { v.busy.Add(-1) }
}

func (v *view) Status() Status {
	defer v.enter()()
	return Status{Version: "test", Mode: "proc", Source: task.SourceProc, Host: "node1", Since: time.Now(), Zombies: 60}
}

func (v *view) Document(ctx context.Context) (Document, error) {
	defer v.enter()()
	v.documents.Add(1)
	if v.panics {
		panic("no such parent")
	}
	if v.hang {
		<-ctx.Done()
		return Document{}, ctx.Err()
	}
	d := Document{Host: "node1", Source: task.SourceProc, Zombies: 60}
	for i := range max(1, v.parents) {
		p := NewParent(leaker(), children(60))
		p.PID += i
		d.Parents = append(d.Parents, p)
	}
	return d, v.err
}

func (v *view) Parent(_ context.Context, pid int) (Detail, error) {
	defer v.enter()()
	if pid != leaker().PID {
		return Detail{}, fmt.Errorf("looking at %d: %w", pid, ErrNotFound)
	}
	return NewDetail(leaker(), children(60), time.Hour), nil
}

// server runs a Server on a socket in a directory of its own until the test
// ends, and checks that it ends cleanly.
type server struct {
	path string
	hub  *Hub
	view *view
	log  bytes.Buffer // to be read after stop
	stop func()
}

func serve(t *testing.T, v *view) *server {
	t.Helper()
	s := &server{path: filepath.Join(t.TempDir(), "run", "kzr.sock"), hub: new(Hub), view: v}
	l, err := Listen(s.path, -1, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- (&Server{View: v, Hub: s.hub, Metrics: NewMetrics(v.Status), Log: slog.New(slog.NewJSONHandler(&s.log, nil))}).Run(ctx, l, nil)
	}()
	s.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("the server ended with %v", err)
			}
		case <-time.After(soon):
			t.Error("the server does not end")
		}
		if _, err := os.Lstat(s.path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
		if v.overlap.Load() {
			t.Error("the view was asked twice at once")
		}
	})
	t.Cleanup(s.stop)
	return s
}

func (s *server) client(t *testing.T) *Client {
	c := Dial(s.path)
	t.Cleanup(c.Close)
	return c
}

func (s *server) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(soon))
	return c
}

// answers fails unless the server answers a good client soon.
func (s *server) answers(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	start := time.Now()
	if _, err := s.client(t).Status(ctx); err != nil {
		t.Fatalf("a good client: %v after %s", err, time.Since(start))
	}
}

func TestServer(t *testing.T) {
	s := serve(t, &view{})
	c := s.client(t)
	st, err := c.Status(t.Context())
	if err != nil || st.Host != "node1" || st.Problems == nil {
		t.Errorf("status %+v, %v", st, err)
	}
	d, err := c.Parents(t.Context())
	if err != nil || len(d.Parents) != 1 || d.Parents[0].PID != 4242 || d.Parents[0].Container.Pod != "api-7f" {
		t.Errorf("document %+v, %v", d, err)
	}
	p, err := c.Parent(t.Context(), 4242)
	if err != nil || p.Reapable != 60 || len(p.Sample) != sampleSize {
		t.Errorf("detail %+v, %v", p, err)
	}
	if _, err := c.Parent(t.Context(), 1); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown pid: %v", err)
	}
	s.view.err = errors.New("sweep failed: \x1b[2J")
	eventually(t, "the error", func() bool { _, err = c.Parents(t.Context()); return err != nil })
	if !strings.Contains(err.Error(), `sweep failed: \x1b[2J`) {
		t.Errorf("the daemon's error reads %q", err)
	}
}

func TestServerRoutes(t *testing.T) {
	s := serve(t, &view{})
	tests := []struct {
		request string
		status  int
		has     string
	}{
		{"GET /v1/status", 200, `"version":"test"`},
		{"GET /v1/parents", 200, `"parents":[{"pid":4242`},
		{"GET /v1/parents/4242", 200, `"zombieSample":[`},
		{"HEAD /v1/parents", 200, ""},
		{"GET /metrics", 200, "kzr_zombies 60\n"},
		{"GET /v1/parents/1", 404, "no such process"},
		{"GET /v1/parents/x", 400, "positive number"},
		{"GET /v1/parents/-1", 400, "positive number"},
		{"GET /v1/parents/0", 400, "positive number"},
		{"GET /v1/parents/99999999999999999999", 400, "positive number"},
		{"GET /v1/parents/4242/x", 404, ""},
		{"GET /v2/status", 404, ""},
		{"GET /", 200, "/v1/parents\n"},
		{"GET /healthz", 404, ""}, // of the metrics port only
		{"POST /v1/status", 405, ""},
		{"DELETE /v1/parents/4242", 405, ""},
	}
	for _, tt := range tests {
		t.Run(tt.request, func(t *testing.T) {
			conn := s.dial(t)
			fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: kzr\r\nConnection: close\r\n\r\n", tt.request)
			resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: strings.Fields(tt.request)[0]})
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != tt.status || !strings.Contains(string(body), tt.has) {
				t.Errorf("%d %s, want %d with %s", resp.StatusCode, body, tt.status, tt.has)
			}
		})
	}
}

func TestServerEvents(t *testing.T) {
	s := serve(t, &view{})
	if s.hub.Watched() {
		t.Error("watched before anybody connects")
	}
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan StreamEvent, 10)
	ended := make(chan error, 1)
	go func() {
		var last error
		for e, err := range s.client(t).Events(ctx) {
			if last = err; err == nil {
				got <- e
			}
		}
		ended <- last
	}()
	eventually(t, "the reader", s.hub.Watched)
	s.hub.Publish(signalEvent())
	e := signalEvent()
	if first := receive(t, got); first != e.Stream() {
		t.Errorf("got %+v", first)
	}
	s.hub.Publish(Event{Time: noon, Name: EventZombie, Process: leaker(), Child: task.NewZombie(7, 8, 0, 0), Zombies: 3})
	if z := receive(t, got); z.Event != EventZombie || z.Child != 7 || z.PID != 4242 || z.Zombies != 3 {
		t.Errorf("got %+v", z)
	}
	cancel()
	if err := receive(t, ended); err != nil {
		t.Errorf("a reader that stops gets %v", err)
	}
	eventually(t, "the reader to be forgotten", func() bool { return !s.hub.Watched() })
}

func receive[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(soon):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// stopSoon is long after goodbyeTimeout, and before the answers that are under way
// time out, which a stop could wait for and does not.
const stopSoon = 2 * answerTimeout / 3

// What is published just before the end still reaches the readers, and they
// learn that it is the end.
func TestServerStopsWithReaders(t *testing.T) {
	s := serve(t, &view{})
	type result struct {
		last StreamEvent
		err  error
	}
	results := make(chan result, 10)
	for range cap(results) {
		go func() {
			var r result
			for e, err := range s.client(t).Events(context.Background()) {
				if r.err = err; err == nil {
					r.last = e
				}
			}
			results <- r
		}()
	}
	eventually(t, "ten readers", func() bool { return s.hub.watchers.Load() == 10 })
	s.dial(t)                                    // says nothing
	fmt.Fprint(s.dial(t), "GET /v1/status HTTP") // says half
	s.hub.Publish(Event{Name: EventStopping})
	start := time.Now()
	s.stop()
	if took := time.Since(start); took > stopSoon {
		t.Errorf("stopping took %s", took)
	}
	for range cap(results) {
		if r := receive(t, results); r.last.Event != EventStopping || !errors.Is(r.err, io.EOF) {
			t.Errorf("a reader saw %+v", r)
		}
	}
}

// A reader that does not read costs a bounded queue; when it reads again it
// learns exactly how much it missed.
func TestServerLaggingReader(t *testing.T) {
	s := serve(t, &view{})
	conn := s.dial(t)
	fmt.Fprint(conn, "GET /v1/events HTTP/1.1\r\nHost: kzr\r\n\r\n")
	eventually(t, "the reader", s.hub.Watched)
	const n = 20_000
	e := signalEvent()
	start := time.Now()
	for i := range n {
		e.Zombies = i + 1
		s.hub.Publish(e)
	}
	if took := time.Since(start); took > soon {
		t.Errorf("publishing %d events to a sleeping reader took %s", n, took)
	}
	s.answers(t)

	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	defer conn.Close() // before the body, which ends only with the stream
	var seen, missed uint64
	next := uint64(1)
	s.hub.Publish(Event{Name: EventReloaded}) // may itself be missed
	for lines := bufio.NewScanner(resp.Body); next <= n && lines.Scan(); {
		var e StreamEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%v in %s", err, lines.Text())
		}
		switch e.Event {
		case EventMissed:
			missed += e.Count
			next += e.Count
		case EventSignal:
			if uint64(e.Zombies) != next {
				t.Fatalf("event %d, expected %d", e.Zombies, next)
			}
			seen++
			next++
		}
	}
	if missed == 0 || seen == 0 || seen+missed < n || seen+missed > n+1 {
		t.Errorf("%d seen, %d missed of %d", seen, missed, n)
	}
}

// Two hundred clients who ask all the time cost the daemon four answers a
// second.
func TestServerManyClients(t *testing.T) {
	v := &view{parents: 20}
	s := serve(t, v)
	start := time.Now()
	var wg sync.WaitGroup
	var asked atomic.Int32
	for range 200 {
		wg.Go(func() {
			c := s.client(t)
			for range 3 {
				d, err := c.Parents(t.Context())
				if err != nil {
					t.Errorf("one of many: %v", err)
					return
				}
				if len(d.Parents) != 20 {
					t.Errorf("%d parents", len(d.Parents))
				}
				asked.Add(1)
			}
		})
	}
	wg.Wait()
	allowed := int32(time.Since(start)/answerFresh) + 2
	if made := v.documents.Load(); made > allowed || asked.Load() != 600 {
		t.Errorf("%d documents made in %s for %d answers", made, time.Since(start), asked.Load())
	}
}

func TestServerBoundsTheDocument(t *testing.T) {
	s := serve(t, &view{parents: MaxParents + 10})
	d, err := s.client(t).Parents(t.Context())
	if err != nil || len(d.Parents) != MaxParents || d.Omitted != 10 {
		t.Errorf("%d parents, %d omitted, %v", len(d.Parents), d.Omitted, err)
	}
}

func TestServerGarbage(t *testing.T) {
	s := serve(t, &view{})
	for _, garbage := range []string{
		"\x00\x01\x02\x03\r\n\r\n",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", // TLS
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET\r\n\r\n",
		"GET /v1/status HTTP/9.9\r\n\r\n",
		"GET /v1/../../etc/passwd HTTP/1.1\r\nHost: kzr\r\n\r\n",
		"GET /v1/parents/%00%1b HTTP/1.1\r\nHost: kzr\r\n\r\n",
		"GET /" + strings.Repeat("a", 1<<20) + " HTTP/1.1\r\n\r\n",
		"GET /v1/status HTTP/1.1\r\nHost: kzr\r\n" + strings.Repeat("X-A: b\r\n", 1<<16) + "\r\n",
		"GET /v1/status HTTP/1.1\r\nHost: kzr\r\nContent-Length: 1000000000\r\n\r\nbody",
		"GET /v1/status HTTP/1.1\r\nHost: kzr\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n" + strings.Repeat("a", 1<<16),
		"GET /v1/events HTTP/1.1\r\nHost: kzr\r\nContent-Length: 5\r\n\r\nbody!",
		"GET /v1/status HTTP/1.1\r\nHost: kzr\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n",
		"CONNECT kzr:1 HTTP/1.1\r\nHost: kzr\r\n\r\n",
	} {
		conn := s.dial(t)
		_, _ = io.WriteString(conn, garbage) // it may hang up first
		if err := conn.(*net.UnixConn).CloseWrite(); err == nil {
			answer, _ := io.ReadAll(conn) // ends, or the deadline fails the test
			if first, _, _ := strings.Cut(string(answer), "\r\n"); strings.Contains(first, " 200 ") {
				t.Errorf("%.40q is answered with %q", garbage, first)
			}
		}
		conn.Close()
	}
	// Descriptors sent along are nobody's.
	conn := s.dial(t).(*net.UnixConn)
	fds := countFDs(t)
	for range 20 {
		_, _, _ = conn.WriteMsgUnix([]byte("x"), unix.UnixRights(0, 1, 2), nil)
	}
	s.answers(t)
	if now := countFDs(t); now > fds+5 {
		t.Errorf("%d descriptors became %d", fds, now)
	}
	s.answers(t)
}

func countFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// Connections that are opened and left alone fill the limit; those beyond are
// told so at once, and room comes back with each that goes.
func TestServerConnectionLimit(t *testing.T) {
	s := serve(t, &view{})
	idle := make([]net.Conn, maxClients)
	for i := range idle {
		idle[i] = s.dial(t)
	}
	if _, err := s.client(t).Status(t.Context()); err == nil || !strings.Contains(err.Error(), "too many connections") {
		t.Errorf("beyond the limit: %v", err)
	}
	for range spare {
		s.dial(t)
	}
	if _, err := s.client(t).Status(t.Context()); err == nil {
		t.Error("an answer far beyond the limit")
	}
	for _, c := range idle[:2*spare] {
		c.Close()
	}
	eventually(t, "room for a good client", func() bool {
		_, err := s.client(t).Status(t.Context())
		return err == nil
	})
}

func TestServerStreamLimit(t *testing.T) {
	s := serve(t, &view{})
	for range maxStreams {
		fmt.Fprint(s.dial(t), "GET /v1/events HTTP/1.1\r\nHost: kzr\r\n\r\n")
	}
	eventually(t, "all streams", func() bool { return s.hub.watchers.Load() == maxStreams })
	for _, err := range s.client(t).Events(t.Context()) {
		if err == nil || !strings.Contains(err.Error(), "too many readers") {
			t.Errorf("beyond the limit: %v", err)
		}
	}
	s.answers(t)
}

// A client that connects and never sends its request is dropped.
func TestServerSlowHeader(t *testing.T) {
	t.Parallel() // it waits
	s := serve(t, &view{})
	conn := s.dial(t)
	start := time.Now()
	fmt.Fprint(conn, "GET /v1/status HTTP/1.1\r\nHost:")
	answer, err := io.ReadAll(conn)
	if err != nil || strings.Contains(string(answer), " 200 ") || time.Since(start) > soon {
		t.Errorf("half a request: %q, %v after %s", answer, err, time.Since(start))
	}
}

// A fault in what is shown costs an answer and not the daemon, and is in the log.
func TestServerPanickingView(t *testing.T) {
	s := serve(t, &view{panics: true})
	for range 3 {
		if _, err := s.client(t).Parents(t.Context()); err == nil {
			t.Error("an answer from a view that panics")
		}
	}
	s.answers(t)
	s.stop()
	if log := s.log.String(); !strings.Contains(log, "no such parent") || !strings.Contains(log, "Document(") {
		t.Errorf("the log: %s", log)
	}
}

// A loop that hangs makes answers fail, not pile up, and does not hold up the end.
func TestServerHangingView(t *testing.T) {
	s := serve(t, &view{hang: true})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := s.client(t).Parents(t.Context()); err == nil {
				t.Error("an answer from a view that hangs")
			}
		})
	}
	eventually(t, "the view to be asked", func() bool { return s.view.documents.Load() > 0 })
	start := time.Now()
	s.stop()
	if took := time.Since(start); took > stopSoon {
		t.Errorf("stopping took %s", took)
	}
	wg.Wait()
}

func TestMetricsPort(t *testing.T) {
	v := &view{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- (&Server{View: v, Hub: new(Hub), Metrics: NewMetrics(v.Status), Log: slog.New(slog.DiscardHandler)}).Run(ctx, nil, l)
	}()
	defer func() {
		cancel()
		if err := receive(t, done); err != nil {
			t.Error(err)
		}
	}()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: soon}
	for path, want := range map[string]string{"/": "/healthz\n", "/metrics": "kzr_zombies 60\n", "/healthz": "ok\n", "/v1/status": "404", "/v1/parents": "404"} {
		resp, err := client.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.Contains(string(body), want) {
			t.Errorf("%s: %s %s", path, resp.Status, body)
		}
	}
}

func TestHealth(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		name   string
		status Status
		ok     bool
	}{
		{"just started", Status{Since: now, SweepInterval: 30}, true},
		{"swept", Status{Since: now.Add(-time.Hour), LastSweep: now.Add(-40 * time.Second), NextSweep: now.Add(-10 * time.Second), SweepInterval: 30}, true},
		{"sweeps cost much", Status{Since: now.Add(-time.Hour), LastSweep: now.Add(-5 * time.Minute), NextSweep: now.Add(time.Minute), SweepInterval: 30}, true},
		{"stuck", Status{Since: now.Add(-time.Hour), LastSweep: now.Add(-5 * time.Minute), NextSweep: now.Add(-270 * time.Second), SweepInterval: 30}, false},
		{"never swept", Status{Since: now.Add(-time.Hour), SweepInterval: 30}, false},
	} {
		if _, err := health(tt.status); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// A listener that breaks under the server is an error, not a silent end.
func TestServerBrokenListener(t *testing.T) {
	l, err := Listen(filepath.Join(t.TempDir(), "s"), -1, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	v := &view{}
	err = (&Server{View: v, Hub: new(Hub), Log: slog.New(slog.DiscardHandler)}).Run(t.Context(), l, nil)
	if !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestClientWithoutDaemon(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, path := range []string{filepath.Join(dir, "absent"), stale} {
		c := Dial(path)
		if _, err := c.Status(t.Context()); !errors.Is(err, ErrNoDaemon) {
			t.Errorf("%s: %v", path, err)
		}
		for _, err := range c.Events(t.Context()) {
			if !errors.Is(err, ErrNoDaemon) {
				t.Errorf("%s: events: %v", path, err)
			}
		}
	}
}

// The other end may be anybody: whatever it sends, the client ends with an error
// and within bounds.
func TestClientHostileDaemon(t *testing.T) {
	for name, answer := range map[string]string{
		"nothing":   "",
		"not HTTP":  "SSH-2.0-OpenSSH\r\n",
		"not JSON":  "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"cut off":   "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"version\":",
		"long line": "HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat("a", 1<<20),
		"headers":   "HTTP/1.1 200 OK\r\n" + strings.Repeat("X-A: b\r\n", 1<<14) + "\r\n{}",
		"escape":    "HTTP/1.1 500 \x1b[2J\r\n\r\n{\"error\":\"\\u001b[2J\"}",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					_, _ = c.Read(make([]byte, 4096))
					_ = c.SetWriteDeadline(time.Now().Add(5 * time.Second))
					_, _ = io.WriteString(c, answer)
					c.Close()
				}
			})
			defer wg.Wait()
			defer l.Close()
			c := Dial(path)
			defer c.Close()
			if _, err := c.Status(t.Context()); err == nil || strings.Contains(err.Error(), "\x1b") {
				t.Errorf("Status: %v", err)
			}
			n := 0
			for _, err = range c.Events(t.Context()) {
				n++
			}
			if err == nil || n != 1 || strings.Contains(err.Error(), "\x1b") {
				t.Errorf("Events: %d values, the last %v", n, err)
			}
		})
	}
}

func TestListenMode(t *testing.T) {
	gid := 12345
	if os.Geteuid() != 0 {
		gid = os.Getgid()
	}
	for _, mask := range []int{0, 0o077, 0o777} {
		dir := t.TempDir()
		path := filepath.Join(dir, "new", "kzr.sock")
		old := unix.Umask(mask &^ 0o700) // the owner's bits are for the directory
		l, err := Listen(path, gid, slog.New(slog.DiscardHandler))
		unix.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		fi, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode() != fs.ModeSocket|0o660 || fi.Sys().(*syscall.Stat_t).Gid != uint32(gid) {
			t.Errorf("umask %03o: mode %v, gid %d", mask, fi.Mode(), fi.Sys().(*syscall.Stat_t).Gid)
		}
		l.Close()
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("still there after Close: %v", err)
		}
	}
}

func TestListenInTheWay(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link, dir, filepath.Join(file, "below"), filepath.Join(dir, strings.Repeat("x", 120))} {
		if l, err := Listen(path, -1, slog.New(slog.DiscardHandler)); err == nil {
			l.Close()
			t.Errorf("listens on %s", path)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file in the way: %q, %v", b, err)
	}
}

const askEnv = "KZR_TEST_ASK"

// TestAsk is no test by itself: TestListenPeers runs it as other users.
func TestAsk(t *testing.T) {
	path := os.Getenv(askEnv)
	if path == "" {
		return
	}
	c := Dial(path)
	defer c.Close()
	_, err := c.Status(context.Background())
	fmt.Printf("answer: %v\n", err)
}

// The peer's credentials decide even where the mode has been widened.
func TestListenPeers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become other users")
	}
	t.Parallel() // a big program starts five times
	const gid = 54321
	// The directories of t.TempDir are closed to others.
	dir, err := os.MkdirTemp("", "kzr-peers-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	exe := filepath.Join(dir, "ask")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(exe, self, 0o755)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "kzr.sock")
	l, err := Listen(path, gid, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	v := &view{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- (&Server{View: v, Hub: new(Hub), Log: slog.New(slog.DiscardHandler)}).Run(ctx, l, nil)
	}()
	defer func() {
		cancel()
		if err := receive(t, done); err != nil {
			t.Error(err)
		}
	}()
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		cred syscall.Credential
		want string
	}{
		{"root", syscall.Credential{}, "<nil>"},
		{"group", syscall.Credential{Uid: 65534, Gid: gid}, "<nil>"},
		{"supplementary group", syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{1, gid}}, "<nil>"},
		{"many groups", syscall.Credential{Uid: 65534, Gid: 65534, Groups: groups(100, gid)}, "<nil>"},
		{"other", syscall.Credential{Uid: 65534, Gid: 65534, Groups: groups(100)}, "not root and not in the socket's group"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestAsk$", "-test.v")
			cmd.Env = []string{askEnv + "=" + path}
			cmd.Dir = "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &tt.cred}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			_, answer, _ := strings.Cut(string(out), "answer: ")
			if answer, _, _ = strings.Cut(answer, "\n"); !strings.Contains(answer, tt.want) {
				t.Errorf("the answer is %q, want %q", answer, tt.want)
			}
		})
	}
}

func groups(n int, more ...uint32) []uint32 {
	for i := range n {
		more = append(more, uint32(60000+i))
	}
	return more
}
