package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kzr/internal/config"
	"kzr/internal/confine"
	"kzr/internal/container"
	"kzr/internal/nodeview"
	"kzr/internal/probe"
	"kzr/internal/procscan"
	"kzr/internal/reaper"
	"kzr/internal/reapinside"
	"kzr/internal/report"
)

func newCheck() *cobra.Command {
	var flags *config.Flags
	var o *output
	cmd := &cobra.Command{
		Use:   "check [flags]",
		Short: "Check configuration, privileges and kernel",
		Long: "Check the configuration, the privileges and the kernel: what works, what does\n" +
			"not, how to fix it, and which mode the daemon would choose.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := &checklist{w: cmd.OutOrStdout(), json: o.asJSON(), Checks: []checked{}}
			if err := runCheck(cmd.Context(), flags, r); err != nil {
				return err
			}
			return r.result()
		},
		DisableFlagsInUseLine: true,
	}
	o = outputs(cmd)
	flags = configured(cmd)
	return cmd
}

// runCheck goes through all that must hold. Its error is that of a configuration that
// cannot be read.
func runCheck(ctx context.Context, flags *config.Flags, r *checklist) error {
	c, err := flags.Load()
	if err != nil {
		return err
	}
	for _, file := range flags.Files() {
		r.pass("configuration", "%s is valid", file)
	}
	if len(flags.Files()) == 0 {
		r.pass("configuration", "%s does not exist; using the defaults", flags.Path())
	}
	proc, err := procscan.New("/proc")
	if err != nil {
		r.fail("/proc", "kzr cannot work without it", err)
		return nil
	}
	defer func() { _ = proc.Close() }()
	r.view(ctx, proc)
	r.limits(proc)
	r.signals()
	if err := confine.Verify(); err != nil {
		r.note("confinement", "cannot give up all privileges that kzr no longer needs: %v", err)
	} else {
		r.pass("confinement", "the daemon can give up what only its start needs")
	}
	r.inside(ctx, c, r.mode(ctx, proc, c))
	r.runtimes(ctx, c)
	r.daemon(ctx, c)
	return nil
}

// checked is one line: status is pass, note or fail.
type checked struct {
	Status string `json:"status"`
	Check  string `json:"check"`
	Text   string `json:"text"`
}

// checklist writes its lines as it goes: a check that hangs is the last line. As JSON
// it is written at the end.
type checklist struct {
	Failed int       `json:"failed"`
	Checks []checked `json:"checks"`

	w    io.Writer
	json bool
}

func (r *checklist) line(status, what, text string) {
	text = oneLine(text)
	r.Checks = append(r.Checks, checked{status, what, text})
	if r.json {
		return
	}
	if status == "fail" {
		status = "FAIL"
	}
	fmt.Fprintf(r.w, "%-4s  %-28s  %s\n", status, what, text)
}

func (r *checklist) pass(what, format string, args ...any) {
	r.line("pass", what, fmt.Sprintf(format, args...))
}

// note is for what is missing but not needed.
func (r *checklist) note(what, format string, args ...any) {
	r.line("note", what, fmt.Sprintf(format, args...))
}

func (r *checklist) fail(what, remedy string, err error) {
	r.Failed++
	r.line("fail", what, fmt.Sprintf("%v: %s", err, remedy))
}

func (r *checklist) result() error {
	if r.json {
		if err := writeJSON(r.w, r); err != nil {
			return err
		}
	}
	if r.Failed > 0 {
		return fmt.Errorf("%d checks failed", r.Failed)
	}
	return nil
}

// view checks what kzr can see: that it sees all processes, and who they are.
func (r *checklist) view(ctx context.Context, proc *procscan.Scanner) {
	s, err := proc.Snapshot(ctx)
	if err != nil {
		r.fail("snapshot from /proc", "check the mount options of /proc, see proc(5)", err)
		return
	}
	r.pass("snapshot from /proc", "%d tasks, %d zombies", s.Tasks, s.Zombies())
	host, err := proc.Host()
	if err != nil {
		r.fail("view of the node", "kzr must be able to read /proc", err)
		return
	}
	limitations := host.Limitations()
	if len(limitations) == 0 {
		r.pass("view of the node", "all processes are visible")
	}
	for _, l := range limitations {
		r.fail("view of the node", "run kzr as root in the host's pid namespace, or give it CAP_SYS_PTRACE", errors.New(l))
	}
}

func (r *checklist) limits(proc *procscan.Scanner) {
	n, err := proc.Node()
	if err != nil {
		r.note("pid limit", "%v; kzr cannot tell when the node runs out of pids", err)
		return
	}
	r.pass("pid limit", "%d of %d tasks in use", n.Tasks, n.Limit)
}

// signals checks that kzr may signal any process: CAP_KILL, and pidfds.
func (r *checklist) signals() {
	if err := reaper.MaySignal(); err != nil {
		r.fail("permission to signal", "run kzr as root or give it CAP_KILL", err)
	} else {
		r.pass("permission to signal", "CAP_KILL")
	}
	if err := reaper.Rehearse(); err != nil { // as kzr run does
		r.fail("pidfd", "kzr run cannot start without it", err)
		return
	}
	r.pass("pidfd", "works")
}

// mode checks what each mode needs and says what auto comes to. It returns what
// reaping inside lacks.
func (r *checklist) mode(ctx context.Context, proc *procscan.Scanner, c config.Config) (noInside error) {
	offsets, err := proc.Offsets()
	if err != nil {
		r.fail("time namespace", "run kzr in the host's time namespace", err)
		return err
	}
	var missing error
	for _, f := range probe.Features(ctx, probe.Options{Level: c.Threshold, Offsets: offsets}) {
		switch {
		case f.Err == nil:
			r.pass("eBPF: "+f.Name, "works")
			continue
		case f.Optional:
			if errors.Is(f.Err, probe.ErrNoStance) {
				noInside = fmt.Errorf("it needs Linux 5.15: %w", f.Err)
			}
			r.note("eBPF: "+f.Name, "%v: %s", f.Err, f.Hint)
			continue
		case c.Mode == config.ModeEBPF:
			r.fail("eBPF: "+f.Name, f.Hint, f.Err)
		default:
			r.note("eBPF: "+f.Name, "%v: %s", f.Err, f.Hint)
		}
		if missing == nil {
			missing = fmt.Errorf("%s: %w", f.Name, f.Err)
		}
	}
	switch {
	case c.Mode == config.ModeProc:
		r.pass("mode", "proc (configured)")
	case missing == nil && c.Mode == config.ModeEBPF:
		r.pass("mode", "ebpf (configured)")
	case missing == nil:
		r.pass("mode", "ebpf (chosen by auto)")
	case c.Mode == config.ModeAuto:
		r.pass("mode", "proc (chosen by auto: eBPF is not available: %v)", missing)
	}
	if missing != nil {
		return fmt.Errorf("it needs eBPF: %w", missing)
	}
	return noInside
}

// inside tries to reap inside a process of kzr's own. Without it kzr works on, and ends
// parents that could have lived.
func (r *checklist) inside(ctx context.Context, c config.Config, lacks error) {
	const what = "reaping inside"
	switch {
	case !asksInside(c):
		r.pass(what, "off (configured)")
		return
	case c.Mode == config.ModeProc:
		r.note(what, "not available: %s", nodeview.NeedsEBPF)
		return
	case lacks != nil:
		r.note(what, "not available: %v", lacks)
		return
	}
	helper, err := reapinside.Start(ctx)
	if err != nil {
		r.note(what, "not available: %s", strings.TrimPrefix(err.Error(), reapinside.Cannot))
		return
	}
	if err := helper.Close(); err != nil {
		r.note(what, "the helper process did not end: %v", err)
		return
	}
	r.pass(what, "works")
}

// runtimes asks each container runtime who it is. kzr works without them, so
// nothing here is a failure.
func (r *checklist) runtimes(ctx context.Context, c config.Config) {
	found := container.NewResolver(container.Options{Sockets: c.CRI}).Found(ctx)
	switch {
	case len(found) > 0:
	case c.CRI != nil:
		r.note("container runtimes", "none configured; pods and containers are shown by id, without names")
	default:
		r.note("container runtimes", "no socket found at the usual paths; to get names, set cri, or mount the socket if kzr runs in a container")
	}
	named := false
	for _, s := range found {
		if s.Err != nil {
			r.note("container runtime", "%s does not answer, names are not available: %v", s.Socket, s.Err)
			continue
		}
		named = true
		r.pass("container runtime", "%s %s answers on %s", s.Runtime, s.Version, s.Socket)
	}
	if named {
		return
	}
	for _, rule := range c.Rules {
		m := rule.Match
		switch {
		case m.Namespace == "" && m.Pod == "" && m.Container == "" && m.Image == "":
		case rule.Action == config.ActionObserve:
			r.note("rule "+rule.Name, "matches by name, and no runtime gives names: every container that it might match is spared, unless the node runs out of pids")
		default:
			r.note("rule "+rule.Name, "matches by name, and no runtime gives names: it matches nothing")
		}
	}
}

// daemon asks the one that runs, if it does, what is in its way: what is open to
// who checks may be closed to a service.
func (r *checklist) daemon(ctx context.Context, c config.Config) {
	if c.Socket == "" {
		r.pass("socket", "none configured")
		return
	}
	conn, err := net.DialTimeout("unix", c.Socket, time.Second)
	if err == nil {
		conn.Close()
		r.pass("socket", "a daemon is running, it answers on %s", c.Socket)
		client := report.Dial(c.Socket)
		defer client.Close()
		st, err := client.Status(ctx)
		if err != nil {
			r.note("daemon", "%v", err)
		}
		for _, p := range st.Problems {
			r.note("daemon", "%s", p)
		}
		return
	}
	if errors.Is(err, os.ErrPermission) {
		r.note("socket", "%s: permission denied", c.Socket)
		return
	}
	r.pass("socket", "%s is not in use: no daemon is running", c.Socket)
}
