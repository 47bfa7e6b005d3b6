package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"kzr/internal/config"
	"kzr/internal/daemon"
	"kzr/internal/observer"
	"kzr/internal/policy"
	"kzr/internal/probe"
	"kzr/internal/procscan"
	"kzr/internal/report"
	"kzr/internal/task"
)

// node is what kzr sees the machine with.
type node struct {
	proc  *procscan.Scanner
	host  procscan.Host
	probe *probe.Probe // nil where zombies are seen through /proc
	once  bool         // for one look: the probe has no hints
	// why says, where mode auto came to /proc, what stands against eBPF.
	why error
	// hintsLost says why hints came in once and do so no more.
	hintsLost   atomic.Pointer[error]
	onHintsLost func(error) // told so, once
}

// openNode opens what the mode asks for.
func openNode(c config.Config, once bool) (*node, error) {
	n, err := openProc(once)
	if err != nil {
		return nil, err
	}
	if err := n.load(c); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// openProc opens /proc, which every mode needs.
func openProc(once bool) (*node, error) {
	open := procscan.New
	if once {
		open = procscan.NewOnce
	}
	proc, err := open("/proc")
	if err != nil {
		return nil, err
	}
	n := &node{proc: proc, once: once}
	if n.host, err = proc.Host(); err != nil {
		return nil, errors.Join(err, proc.Close())
	}
	return n, nil
}

// load loads the eBPF programs if the mode asks for them. For one look the exit program
// is left out: it costs the verifier more time than the look takes.
func (n *node) load(c config.Config) (err error) {
	if c.Mode == config.ModeProc {
		return nil
	}
	if n.probe, err = openProbe(n.proc, c, n.once); err == nil {
		return nil
	}
	if c.Mode == config.ModeEBPF {
		return fmt.Errorf("mode ebpf is not available here: %w", err)
	}
	n.why = err
	return nil
}

func openProbe(proc *procscan.Scanner, c config.Config, once bool) (*probe.Probe, error) {
	offsets, err := proc.Offsets()
	if err != nil {
		return nil, err
	}
	return probe.Open(probe.Options{Level: c.Threshold, Offsets: offsets, IterOnly: once})
}

// close lets go of everything. What cannot be let go of goes with the process.
func (n *node) close() {
	if n.probe != nil {
		_ = n.probe.Close()
	}
	_ = n.proc.Close()
}

// policyHost is the host side as the policy needs it.
func (n *node) policyHost() (policy.Host, error) {
	ancestors, err := n.proc.Ancestors()
	return policy.Host{PIDNS: n.host.PIDNS, MntNS: n.host.HostMntNS, UserNS: n.host.HostUserNS, Ancestors: ancestors}, err
}

// options are those of a daemon on this node.
func (n *node) options(c config.Config) (daemon.Options, error) {
	host, err := n.policyHost()
	if err != nil {
		return daemon.Options{}, err
	}
	o := daemon.Options{Config: c, Host: host, Observer: observer.Options{Source: n.proc, Proc: n.proc}}
	if n.probe != nil {
		o.Observer.Source = &fallbackSource{first: n.probe, second: n.proc, attached: n.attached}
		o.Hinted, o.SetLevel = probe.MinLevel, n.probe.SetLevel
	}
	return o, nil
}

// attached looks whether hints can come in. It is called before each snapshot.
func (n *node) attached() {
	if n.once {
		return
	}
	if err := n.probe.Attached(); err != nil {
		n.disableHints(err)
	}
}

func (n *node) disableHints(err error) {
	if n.hintsLost.CompareAndSwap(nil, &err) && n.onHintsLost != nil {
		n.onHintsLost(err)
	}
}

// watching returns what says since when, in clock ticks since boot, the exit program
// sees who is orphaned; 0 is not at all.
func (n *node) watching() func() uint64 {
	since := uint64(task.SinceBoot()/(time.Second/task.TicksPerSecond)) + 1
	return func() uint64 {
		if n.probe == nil || n.hintsLost.Load() != nil {
			return 0
		}
		return since
	}
}

// source is the name of what zombies are seen through.
func (n *node) source() task.Source {
	if n.probe != nil {
		return task.SourceBPF
	}
	return task.SourceProc
}

// complete adds what the daemon does not know: the version, what is seen through
// the kernel side, and what cannot be seen.
func (n *node) complete(st *report.Status) {
	st.Version, _ = buildVersion()
	if st.Source == "" { // nothing was seen yet
		st.Source = n.source()
	}
	if n.why != nil {
		st.Problems = append(st.Problems, "eBPF does not work here: "+oneLine(n.why.Error()))
	}
	if err := n.hintsLost.Load(); err != nil {
		st.Problems = append(st.Problems, "no hints come from the kernel, kzr sweeps instead: "+oneLine((*err).Error()))
	}
	if h, err := n.proc.Host(); err == nil {
		st.Problems = append(st.Problems, h.Limitations()...)
	}
	if n.probe != nil {
		if c, err := n.probe.Counters(); err == nil {
			st.Exits, st.Lost = c.Exits, c.Lost
		}
	}
}

// fallbackSource sees through /proc what the kernel side fails to show, so that one that
// breaks under a running daemon costs speed and not sight.
type fallbackSource struct {
	first, second observer.Source
	attached      func()
}

func (f *fallbackSource) Snapshot(ctx context.Context) (*task.Snapshot, error) {
	f.attached()
	return either(ctx, f, func(s observer.Source) (*task.Snapshot, error) { return s.Snapshot(ctx) })
}

func (f *fallbackSource) SnapshotOf(ctx context.Context, id task.ID) (*task.Snapshot, error) {
	return either(ctx, f, func(s observer.Source) (*task.Snapshot, error) { return s.SnapshotOf(ctx, id) })
}

func (f *fallbackSource) Facts(ctx context.Context, pid int) (id task.ID, facts task.Facts, err error) {
	found, err := either(ctx, f, func(s observer.Source) (p task.Process, err error) {
		p.ID, p.Facts, err = s.Facts(ctx, pid)
		return p, err
	})
	return found.ID, found.Facts, err
}

func either[T any](ctx context.Context, f *fallbackSource, look func(observer.Source) (T, error)) (T, error) {
	v, err := look(f.first)
	if err == nil || ctx.Err() != nil || errors.Is(err, task.ErrGone) {
		return v, err
	}
	v, err2 := look(f.second)
	if err2 != nil {
		return v, errors.Join(err, err2)
	}
	return v, nil
}
