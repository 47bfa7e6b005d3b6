// Package top is the screen of `kzr top`: a node's parents with zombies, live,
// and what kzr decides about them. Documents and events flow in from a [Source],
// key strokes from the terminal; what is drawn flows out. It changes nothing.
//
// The model is pure in what it draws: its clock is the time that comes with each
// message, so a test can put any moment on the screen.
package top

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	tea "charm.land/bubbletea/v2"

	"kzr/internal/report"
)

// Source is where the picture comes from: the daemon ([report.Client]), or kzr's
// own look at the node.
type Source interface {
	Status(ctx context.Context) (report.Status, error)
	Parents(ctx context.Context) (report.Document, error)
	// Parent describes one process; the error is [report.ErrNotFound] if there is
	// none.
	Parent(ctx context.Context, pid int) (report.Detail, error)
	// Events yields what happens from now on until ctx ends.
	Events(ctx context.Context) iter.Seq2[report.StreamEvent, error]
}

// Options are what a screen is made of.
type Options struct {
	Source Source
	// Alone says, where no daemon answers, why kzr watches by itself. It never
	// acts then.
	Alone    string
	Interval time.Duration // between two looks, 1s if 0
	Input    io.Reader     // the terminal if nil
	Output   io.Writer
	// ASCII draws without any other characters, for terminals that have none.
	ASCII bool
}

// The screen is drawn at most so often: often enough for the keyboard, and no
// more than a person can read.
const framesPerSecond = 20

// Run shows the screen until it is quit or ctx ends, and puts the terminal back
// as it was. Signals are the caller's to turn into the end of ctx.
func Run(ctx context.Context, o Options) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	m := newModel(ctx, o)
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.feed.follow(ctx, o.Source)
	}()
	options := []tea.ProgramOption{tea.WithoutSignalHandler(), tea.WithOutput(o.Output), tea.WithFPS(framesPerSecond)}
	if o.Input != nil { // nil would be no keyboard at all
		options = append(options, tea.WithInput(o.Input))
	}
	p := tea.NewProgram(m, options...)
	// Given the context, the program would close the terminal under its reader.
	defer context.AfterFunc(ctx, p.Quit)()
	_, err := p.Run()
	stop()
	<-done
	if errors.Is(err, tea.ErrInterrupted) {
		return nil // that is how one leaves
	}
	return err
}
