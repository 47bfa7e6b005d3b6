package main

import (
	"context"
	"log/slog"
	"os"

	"kzr/internal/config"
	"kzr/internal/confine"
	"kzr/internal/task"
)

// confine gives up what the daemon does not need any more, when all is there that is
// made once.
func (n *node) confine(c config.Config, log *slog.Logger) {
	o := confine.Options{
		Network:  c.Metrics != "" || c.Kubernetes.Events,
		Commands: len(c.OnAction) > 0,
		Openat2:  true, // procscan tells by it whether an executable's name ends in " (deleted)"
	}
	if n.probe != nil {
		works := n.probeUses()
		o.WithoutLoading = func() error {
			for _, use := range works {
				if err := use(); err != nil {
					return err
				}
			}
			return nil
		}
	}
	if err := confine.Daemon(o); err != nil {
		log.Warn("cannot give up all privileges that kzr no longer needs", "error", err)
	}
}

// probeUses are the things that the daemon does with its eBPF programs, of those that
// this kernel can do.
func (n *node) probeUses() (works []func() error) {
	ctx := context.Background()
	p := n.probe
	self, _, err := p.Facts(ctx, os.Getpid())
	if err != nil { // as the next use will say
		self = task.ID{PID: os.Getpid()}
	}
	for _, use := range []func() error{
		p.Attached,
		func() error { _, err := p.Counters(); return err },
		func() error { _, err := p.Snapshot(ctx); return err },
		func() error { _, _, err := p.Facts(ctx, self.PID); return err },
		func() error { _, err := p.SnapshotOf(ctx, self); return err },
		func() error { _, err := p.Stance(ctx, self); return err },
	} {
		if use() == nil {
			works = append(works, use)
		}
	}
	return works
}
