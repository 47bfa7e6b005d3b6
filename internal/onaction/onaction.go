// Package onaction runs the operator's own command for each outcome: to mail it, to
// post it to a chat, to open a ticket. Outcomes flow in; one process at a time flows
// out, which is given one JSON document. Nothing here decides, and nothing that
// decides waits for it.
//
// The command is the only process that kzr starts while it runs. It costs no thread
// of kzr's: where the machine can make no more, the Go runtime would end kzr for
// one. Its output and its end are waited for through the runtime's poller.
package onaction

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/report"
	"kzr/internal/task"
	"kzr/internal/trail"
)

// What became of an outcome, as it is counted.
const (
	Sent    = "sent"    // the command ended with status 0
	Failed  = "failed"  // it ended otherwise, or was killed for its time
	Refused = "refused" // it could not be started
	Dropped = "dropped" // the queue was full
)

// Results are all that [Options.Count] is called with.
func Results() []string { return []string{Sent, Failed, Refused, Dropped} }

// The bounds.
const (
	queued    = 64       // outcomes that wait
	maxStderr = 4 << 10  // of its standard error, for the log
	maxInput  = 60 << 10 // less than a pipe takes, so that writing it never waits
)

// DefaultTimeout is how long a command may take. Then it is killed, with all that it
// started and that did not leave its process group.
const DefaultTimeout = 30 * time.Second

// Options say what to run.
type Options struct {
	Command []string      // the executable's absolute path, and its arguments
	Timeout time.Duration // 0 is DefaultTimeout
	Node    string
	Log     *slog.Logger
	Count   func(result string) // may be nil
}

// Document is what a command reads from its standard input: one line of JSON.
// Strings that a process chose are escaped, as in the log.
type Document struct {
	Time             time.Time       `json:"time"`
	Node             string          `json:"node"`
	Event            string          `json:"event"` // reaped, terminated, gave_up or spared
	Message          string          `json:"message"`
	Namespace        string          `json:"namespace"`
	Pod              string          `json:"pod"`
	Container        *task.Container `json:"container"` // null outside any
	Workload         string          `json:"workload"`
	PID              int             `json:"pid"`
	Comm             string          `json:"comm"`
	Exe              string          `json:"exe"`
	UID              uint32          `json:"uid"`
	Zombies          int             `json:"zombies"`
	Reapable         int             `json:"reapable"`
	OldestSeconds    float64         `json:"oldestSeconds"`
	Rule             string          `json:"rule,omitempty"`
	By               string          `json:"by,omitempty"`
	Reason           string          `json:"reason,omitempty"`
	Until            *time.Time      `json:"until"`
	DryRun           bool            `json:"dryRun"`
	Advice           []string        `json:"advice"`
	Trail            []Step          `json:"trail"`
	LimitsOverridden bool            `json:"limitsOverridden,omitempty"`
}

// Step is one decision of the trail.
type Step struct {
	Time     time.Time `json:"time"`
	Event    string    `json:"event"`
	Message  string    `json:"message"`
	Signal   string    `json:"signal,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Reapable int       `json:"reapable"`
}

// NewDocument describes an outcome.
func NewDocument(o *trail.Outcome, node string) Document {
	p := report.NewParent(o.Process, nil)
	d := Document{
		Time: o.Time, Node: node, Event: o.Name, Message: report.Sanitize(o.Message),
		Container: p.Container, Workload: p.Workload, PID: p.PID, Comm: p.Comm, Exe: p.Exe, UID: p.UID,
		Zombies: o.Zombies, Reapable: o.Reapable, OldestSeconds: report.Seconds(o.Oldest),
		Rule: o.Rule, By: o.By, Reason: o.Reason, DryRun: o.DryRun, LimitsOverridden: o.LimitsOverridden,
		Advice: o.Advice, Trail: make([]Step, 0, len(o.Steps)),
	}
	if d.Advice == nil {
		d.Advice = []string{}
	}
	if p.Container != nil {
		d.Namespace, d.Pod = p.Container.Namespace, p.Container.Pod
	}
	if !o.Until.IsZero() {
		d.Until = &o.Until
	}
	for _, e := range o.Steps {
		d.Trail = append(d.Trail, Step{
			Time: e.Time, Event: e.Name, Message: report.SanitizeTo(e.Message, 512), Signal: e.Signal, Reason: e.Reason, Reapable: e.Reapable,
		})
		d.LimitsOverridden = d.LimitsOverridden || e.LimitsOverridden
	}
	return d
}

// Runner runs the command, one at a time.
type Runner struct {
	opts    Options
	queue   chan trail.Outcome
	dropped atomic.Uint64 // since the last command
}

// New returns a runner whose Run has to be called.
func New(o Options) *Runner {
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	return &Runner{opts: o, queue: make(chan trail.Outcome, queued)}
}

// Offer takes an outcome and never waits.
func (r *Runner) Offer(o trail.Outcome) {
	if o.Process == nil {
		return
	}
	select {
	case r.queue <- o:
	default:
		r.dropped.Add(1)
		r.count(Dropped)
	}
}

// Run runs the command for what is offered until ctx ends, which kills one that runs.
func (r *Runner) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case o := <-r.queue:
			if n := r.dropped.Swap(0); n > 0 {
				r.opts.Log.Warn("onAction: the command is too slow; it did not run for every outcome", "dropped", n)
			}
			r.tell(ctx, &o)
		}
	}
}

func (r *Runner) count(result string) {
	if r.opts.Count != nil {
		r.opts.Count(result)
	}
}

func (r *Runner) tell(ctx context.Context, o *trail.Outcome) {
	log := r.opts.Log.With("command", r.opts.Command[0], "for", o.Name, "pid", o.Process.PID)
	began := time.Now()
	result, err := r.run(ctx, NewDocument(o, r.opts.Node))
	took := time.Since(began).Round(time.Millisecond)
	var args []any
	if result.stderr != "" {
		args = append(args, "stderr", result.stderr)
	}
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM):
		r.count(Refused)
		log.Warn("onAction: skipped, no process can be started now", "error", err)
	case err != nil:
		r.count(Refused)
		log.Error("onAction: the command cannot be started", "error", err)
	case result.timedOut:
		r.count(Failed)
		log.Warn("onAction: killed the command after its time was up", append(args, "timeout", r.opts.Timeout)...)
	case result.status.Signaled():
		r.count(Failed)
		log.Warn("onAction: a signal ended the command", append(args, "signal", unix.SignalName(result.status.Signal()))...)
	case result.status.ExitStatus() != 0:
		r.count(Failed)
		log.Warn("onAction: the command failed", append(args, "status", result.status.ExitStatus(), "took", took)...)
	default:
		r.count(Sent)
		log.Info("onAction: the command ran", append(args, "status", 0, "took", took)...)
	}
}

// ended is how a command ended.
type ended struct {
	status   unix.WaitStatus
	timedOut bool
	stderr   string
}

// run starts the command and waits for it. The error is about the start.
func (r *Runner) run(ctx context.Context, d Document) (ended, error) {
	input, err := encode(d)
	if err != nil {
		return ended{}, err
	}
	stdin, err := filled(input)
	if err != nil {
		return ended{}, err
	}
	defer stdin.Close()
	stderr, theirs, err := os.Pipe()
	if err != nil {
		return ended{}, err
	}
	defer stderr.Close()
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return ended{}, err
	}
	defer null.Close()

	// kzr ignores SIGCHLD, so that the kernel reaps for it, and would never learn the
	// status. While a command runs kzr reaps itself.
	reaping := make(chan os.Signal, 1)
	signal.Notify(reaping, unix.SIGCHLD)
	defer reapAll()
	defer func() { signal.Stop(reaping); signal.Ignore(unix.SIGCHLD) }()

	pidfd := -1
	cmd := exec.Cmd{
		Path: r.opts.Command[0], Args: r.opts.Command,
		Dir: "/", Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"},
		Stdin: stdin, Stdout: null, Stderr: theirs,
		SysProcAttr: &unix.SysProcAttr{Setpgid: true, PidFD: &pidfd},
	}
	if err := start(&cmd); err != nil {
		return ended{}, err
	}
	theirs.Close()
	pid := cmd.Process.Pid
	defer func() { _ = cmd.Process.Release() }() // it is waited for here

	ctx, cancel := context.WithTimeout(ctx, r.opts.Timeout)
	defer cancel()
	var out ended
	said := make(chan string, 1)
	go func() { said <- head(stderr, maxStderr) }()
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(killed)
		killGroup(pid)
	})
	if err := awaitEnd(pidfd); err != nil {
		r.opts.Log.Error("onAction: the command cannot be waited for", "error", err)
	}
	if !stop() {
		<-killed
		out.timedOut = true
	}
	// What is left of its group would hold the pipe open, and has lost its leader.
	killGroup(pid)
	for {
		_, err := unix.Wait4(pid, &out.status, 0, nil) // it is dead: this does not wait
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	_ = stderr.SetReadDeadline(time.Now().Add(time.Second)) // who left the group may keep it open
	out.stderr = <-said
	return out, nil
}

// killGroup ends a command and what it started. It is a child of kzr's that has not
// been waited for, so the group's number is still its own. Signals to others are the
// reaper's alone.
func killGroup(pid int) {
	_ = unix.Kill(-pid, unix.SIGKILL) //nolint:forbidigo // see above; an empty group is no error
}

// head reads all of f and returns its first n bytes.
func head(f *os.File, n int64) string {
	text, _ := io.ReadAll(io.LimitReader(f, n)) // what there was before an error is shown
	_, _ = io.Copy(io.Discard, f)
	return strings.TrimSpace(string(text))
}

// filled is a pipe that holds data and then ends. It has room for all of it.
func filled(data []byte) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if _, err := w.Write(data); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// encode leaves out what is too much for the pipe, which takes names of 4 KiB and
// more.
func encode(d Document) ([]byte, error) {
	for {
		b, err := json.Marshal(d)
		if err != nil || len(b) < maxInput || len(d.Trail) == 0 {
			return append(b, '\n'), err
		}
		d.Trail = d.Trail[1:]
	}
}

// awaitEnd waits until the process of the pidfd, which it closes, is dead. It takes no
// thread meanwhile.
func awaitEnd(pidfd int) error {
	if pidfd < 0 {
		return errors.New("no pidfd")
	}
	if err := unix.SetNonblock(pidfd, true); err != nil {
		return err
	}
	f := os.NewFile(uintptr(pidfd), "pidfd")
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		var n int
		n, failed = unix.Poll(fds, 0)
		return n > 0 || failed != nil && !errors.Is(failed, unix.EINTR)
	})
	return errors.Join(err, failed)
}

// reapAll takes what ended while kzr did not ignore SIGCHLD, other than the command.
func reapAll() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if pid <= 0 && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// start begins the command without the ambient capabilities that let a kzr that is
// not root signal and look at everybody. They are the thread's, and come back.
func start(cmd *exec.Cmd) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var held []uintptr
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if set, err := unix.PrctlRetInt(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, c, 0, 0); err == nil && set == 1 {
			held = append(held, c)
		}
	}
	if held != nil {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
			return fmt.Errorf("dropping ambient capabilities: %w", err)
		}
		defer func() {
			for _, c := range held {
				err = errors.Join(err, unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0))
			}
		}()
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", cmd.Path, err)
	}
	return nil
}
