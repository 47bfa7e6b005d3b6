package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"
	"kzr/internal/config"
	"kzr/internal/container"
	"kzr/internal/probe"
	"kzr/internal/procscan"
	"kzr/internal/reaper"
	"kzr/internal/report"
)

func newCheck() *cobra.Command {
	var flags *config.Flags
	cmd := &cobra.Command{
		Use:   "check [flags]",
		Short: "Check configuration, privileges and kernel",
		Long: "Check the configuration, the privileges and the kernel: what works, what does\n" +
			"not and what to do about it, and which mode the daemon would choose.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runCheck(cmd.Context(), flags, cmd.OutOrStdout())
		},
		DisableFlagsInUseLine: true,
	}
	flags = configured(cmd)
	return cmd
}

// runCheck writes one line for each thing that must hold, and fails if one that
// the configuration needs does not.
func runCheck(ctx context.Context, flags *config.Flags, stdout io.Writer) error {
	c, err := flags.Load()
	if err != nil {
		return err
	}
	r := &checklist{w: stdout}
	if _, err := os.Stat(flags.Path()); err == nil {
		r.pass("configuration", "%s and the flags are good", flags.Path())
	} else {
		r.pass("configuration", "there is no %s: the defaults and the flags hold", flags.Path())
	}
	proc, err := procscan.New("/proc")
	if err != nil {
		r.fail("/proc", "kzr needs it", err)
		return r.result()
	}
	defer func() { _ = proc.Close() }()
	r.view(ctx, proc)
	r.limits(proc)
	r.signals()
	r.mode(ctx, proc, c)
	r.runtimes(ctx, c)
	r.daemon(ctx, c)
	return r.result()
}

// checklist writes its lines as it goes: a check that hangs is the last line.
type checklist struct {
	w      io.Writer
	failed int
}

func (r *checklist) line(word, what, text string) {
	fmt.Fprintf(r.w, "%-4s  %-28s  %s\n", word, what, oneLine(text))
}

func (r *checklist) pass(what, format string, args ...any) {
	r.line("pass", what, fmt.Sprintf(format, args...))
}

// note is for what is missing but not needed.
func (r *checklist) note(what, format string, args ...any) {
	r.line("note", what, fmt.Sprintf(format, args...))
}

func (r *checklist) fail(what, remedy string, err error) {
	r.failed++
	r.line("FAIL", what, fmt.Sprintf("%v: %s", err, remedy))
}

func (r *checklist) result() error {
	if r.failed > 0 {
		return fmt.Errorf("%d of the checks failed", r.failed)
	}
	return nil
}

// view checks what kzr can see: that it sees all processes, and who they are.
func (r *checklist) view(ctx context.Context, proc *procscan.Scanner) {
	s, err := proc.Snapshot(ctx)
	if err != nil {
		r.fail("snapshot from /proc", "see proc(5) for its mount options", err)
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
		r.pass("view of the node", "nothing is hidden")
	}
	for _, l := range limitations {
		r.fail("view of the node", "run kzr as root in the host's pid namespace, or give it CAP_SYS_PTRACE", errors.New(l))
	}
}

func (r *checklist) limits(proc *procscan.Scanner) {
	n, err := proc.Node()
	if err != nil {
		r.note("pid limit", "%v: the pressure rule cannot see the node fill up", err)
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
		r.fail("pidfd", "kzr run would not start", err)
		return
	}
	r.pass("pidfd", "signals reach who they are meant for")
}

// mode checks what each mode needs and says what auto comes to.
func (r *checklist) mode(ctx context.Context, proc *procscan.Scanner, c config.Config) {
	offsets, err := proc.Offsets()
	if err != nil {
		r.fail("time namespace", "run kzr in the host's time namespace", err)
		return
	}
	var missing error
	for _, f := range probe.Features(ctx, probe.Options{Level: c.Threshold, Offsets: offsets}) {
		switch {
		case f.Err == nil:
			r.pass("eBPF: "+f.Name, "works")
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
		r.pass("mode", "proc, as configured")
	case missing == nil && c.Mode == config.ModeEBPF:
		r.pass("mode", "ebpf, as configured")
	case missing == nil:
		r.pass("mode", "auto chooses ebpf: everything it needs is there")
	case c.Mode == config.ModeAuto:
		r.pass("mode", "auto chooses proc: eBPF does not work here (%v)", missing)
	}
}

// runtimes asks each container runtime who it is. kzr works without them, so
// nothing here is a failure.
func (r *checklist) runtimes(ctx context.Context, c config.Config) {
	found := container.NewResolver(container.Options{Sockets: c.CRI}).Found(ctx)
	switch {
	case len(found) > 0:
	case c.CRI != nil:
		r.note("container runtimes", "cri is empty: pods, containers and images have no names here, only ids")
	default:
		r.note("container runtimes", "no socket at the usual places: names need cri, or a mount if kzr runs in a container")
	}
	named := false
	for _, s := range found {
		if s.Err != nil {
			r.note("container runtime", "%s gives no names: %v", s.Socket, s.Err)
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
			r.note("rule "+rule.Name, "asks for names, which nobody tells: it spares every container that it might be about, and nobody when the node's pids run out")
		default:
			r.note("rule "+rule.Name, "asks for names, which nobody tells: it matches nothing by them")
		}
	}
}

// daemon asks the one that runs, if it does, what is in its way: what is open to
// who checks may be closed to a service.
func (r *checklist) daemon(ctx context.Context, c config.Config) {
	if c.Socket == "" {
		r.pass("socket", "none is configured")
		return
	}
	conn, err := net.DialTimeout("unix", c.Socket, time.Second)
	if err == nil {
		conn.Close()
		r.pass("socket", "a daemon answers on %s", c.Socket)
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
		r.note("socket", "%s: not permitted", c.Socket)
		return
	}
	r.pass("socket", "%s is free: no daemon is running", c.Socket)
}
