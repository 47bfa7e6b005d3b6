package main

import (
	"context"
	"errors"
	"slices"
	"time"

	"kzr/internal/config"
	"kzr/internal/policy"
	"kzr/internal/probe"
	"kzr/internal/reaper"
	"kzr/internal/reapinside"
	"kzr/internal/task"
)

// inside reaps inside parents that live, through the helper, with what eBPF says of them.
// It implements [reaper.Inside].
type inside struct {
	helper *reapinside.Helper
	probe  *probe.Probe
}

// asksInside says whether the configuration asks for it anywhere, and wantsInside whether
// in a mode in which it can work.
func asksInside(c config.Config) bool {
	return c.Reap != config.ReapOff ||
		slices.ContainsFunc(c.Rules, func(r config.Rule) bool { return r.Reap != "" && r.Reap != config.ReapOff })
}

func wantsInside(c config.Config) bool { return asksInside(c) && c.Mode != config.ModeProc }

var errInsideNeedsEBPF = errors.New("it needs eBPF")

// insidePatience is how long one step may take, and insideHurry while pids run out.
const (
	insidePatience = 30 * time.Second
	insideHurry    = time.Second
)

func (i *inside) Reap(ctx context.Context, pidfd int, look *reaper.Look) (reaper.Insided, error) {
	id := look.Process.ID
	zombies := make([]task.Zombie, 0, len(look.Old))
	for _, z := range look.Old {
		if look.Reap == config.ReapAll || z.Has(task.Adopted) {
			zombies = append(zombies, z)
		}
	}
	patience := insidePatience
	if look.Pressure != policy.NoPressure {
		patience = insideHurry
	}
	res, err := i.helper.Reap(ctx, pidfd, reapinside.Request{
		Parent: id, Zombies: zombies,
		Stance:   func(ctx context.Context) (task.Stance, error) { return i.stance(ctx, id) },
		Patience: patience,
	})
	return reaper.Insided{
		Reaped: res.Reaped, Left: res.Left, Stopped: res.Longest,
		Refused: res.Reason, Transient: res.Refusal.Transient(), Alone: res.Timeout,
	}, err
}

func (i *inside) stance(ctx context.Context, id task.ID) (task.Stance, error) {
	st, err := i.probe.Stance(ctx, id)
	if errors.Is(err, probe.ErrNoStance) {
		err = errors.Join(err, errors.ErrUnsupported)
	}
	return st, err
}

// refusal says why it could not be reaped inside a process now, as far as that can be
// told without touching it; "" if nothing stands against it.
func (i *inside) refusal(ctx context.Context, proc *task.Process) string {
	select {
	case <-i.helper.Over():
		return reapinside.HelperGone.String()
	default:
	}
	st, err := i.stance(ctx, proc.ID)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return reapinside.NoStance.String()
	case err != nil:
		return err.Error()
	}
	return reapinside.Judge(st)
}
