package report

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoDaemon means that nobody listens on the socket.
var ErrNoDaemon = errors.New("no kzr daemon is running")

// Bounds on what a client reads: the other end may not be kzr.
const (
	maxAnswer = 64 << 20
	maxLine   = 256 << 10
	patience  = 10 * time.Second // for an answer, if ctx gives no less
)

// Client asks a daemon. It is safe for concurrent use.
type Client struct {
	path string
	http http.Client
}

// Dial returns a client of the daemon whose socket is path. It connects when
// asked something; [ErrNoDaemon] says then that there is none.
func Dial(path string) *Client {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &Client{path: path, http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
		Protocols:              &protocols,
		DisableCompression:     true,
		MaxIdleConns:           2,
		IdleConnTimeout:        idleTimeout / 2, // before the daemon hangs up
		MaxResponseHeaderBytes: maxHeader,
		ResponseHeaderTimeout:  patience,
	}}}
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks what the daemon is doing.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, "/v1/status")
}

// Parents asks for the document.
func (c *Client) Parents(ctx context.Context) (Document, error) {
	return get[Document](ctx, c, "/v1/parents")
}

// Parent asks about one process; the error is [ErrNotFound] if there is none.
func (c *Client) Parent(ctx context.Context, pid int) (Detail, error) {
	return get[Detail](ctx, c, "/v1/parents/"+strconv.Itoa(pid))
}

// StreamEvent is one line of GET /v1/events: an [Event], or `missed` with Count,
// the number of lines that this reader was too slow for. What does not apply is
// zero.
type StreamEvent struct {
	Time           time.Time `json:"time,omitzero"`
	Level          string    `json:"level,omitempty"`
	Event          string    `json:"event"`
	Message        string    `json:"msg,omitempty"`
	PID            int       `json:"pid,omitempty"`
	StartTime      uint64    `json:"starttime,omitempty"`
	Comm           string    `json:"comm,omitempty"`
	Exe            string    `json:"exe,omitempty"`
	UID            uint32    `json:"uid,omitempty"`
	Zombies        int       `json:"zombies,omitempty"`
	Reapable       int       `json:"reapable,omitempty"`
	OldestSeconds  float64   `json:"oldestSeconds,omitempty"`
	Container      string    `json:"container,omitempty"`
	ContainerID    string    `json:"container_id,omitempty"`
	Pod            string    `json:"pod,omitempty"`
	Namespace      string    `json:"namespace,omitempty"`
	Workload       string    `json:"workload,omitempty"`
	Node           string    `json:"node,omitempty"`
	Rule           string    `json:"rule,omitempty"`
	Signal         string    `json:"signal,omitempty"`
	DryRun         bool      `json:"dry_run,omitempty"`
	Overridden     bool      `json:"limits_overridden,omitempty"`
	By             string    `json:"by,omitempty"`
	Reason         string    `json:"reason,omitempty"`
	Until          time.Time `json:"until,omitzero"`
	Child          int       `json:"child,omitempty"` // pid of the zombie of EventZombie
	ChildStartTime uint64    `json:"child_starttime,omitempty"`
	Count          uint64    `json:"count,omitempty"`
}

// EventMissed names the line that tells a reader of the stream what it missed.
const EventMissed = "missed"

// Stream gives an event as a reader of the stream would see it.
func (e *Event) Stream() StreamEvent {
	var s StreamEvent
	// One rendering is the truth; this is for a program that watches by itself.
	if err := json.Unmarshal(e.appendJSON(nil), &s); err != nil {
		s.Event, s.Message = e.Name, Sanitize(e.Message)
	}
	return s
}

// Events yields what happens from now on until ctx or the daemon ends; in the
// latter case the last value is an error.
func (c *Client) Events(ctx context.Context) iter.Seq2[StreamEvent, error] {
	return func(yield func(StreamEvent, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		body, err := c.open(ctx, "/v1/events")
		if err != nil {
			yield(StreamEvent{}, err)
			return
		}
		defer body.Close()
		lines := bufio.NewScanner(body)
		lines.Buffer(make([]byte, 0, 4<<10), maxLine)
		for lines.Scan() {
			var e StreamEvent
			err := json.Unmarshal(lines.Bytes(), &e)
			if _, ok := errors.AsType[*json.UnmarshalTypeError](err); err != nil && !ok { // a key of a later version may differ
				yield(e, fmt.Errorf("reading events: %w", err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
		err = lines.Err()
		if err == nil {
			err = io.EOF
		}
		yield(StreamEvent{}, fmt.Errorf("reading events: %w", err))
	}
}

func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	var answer, none T
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	body, err := c.open(ctx, path)
	if err != nil {
		return none, err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(&answer); err != nil {
		return none, fmt.Errorf("reading %s from %s: %w", path, c.path, err)
	}
	return answer, nil
}

// open returns the body of a good answer.
func (c *Client) open(ctx context.Context, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://kzr"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
			return nil, fmt.Errorf("%w on %s", ErrNoDaemon, c.path)
		}
		return nil, fmt.Errorf("asking the daemon on %s: %w", c.path, errors.Unwrap(err))
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var p problem
	if json.NewDecoder(io.LimitReader(resp.Body, 4<<10)).Decode(&p) != nil || p.Error == "" {
		p.Error = resp.Status
	} else if resp.StatusCode == http.StatusNotFound {
		return nil, ErrNotFound
	}
	return nil, fmt.Errorf("daemon on %s: %s", c.path, Sanitize(p.Error))
}
