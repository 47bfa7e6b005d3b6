package nodeview

import (
	"context"
	"sync"
	"time"

	"kzr/internal/task"
)

// album keeps what was last read of the parents that were shown, for those who look at
// the node every second. Whom a rule may be about is always read anew. The zero value is
// ready.
type album struct {
	mu          sync.Mutex
	now, before map[task.ID]*picture // of the document that is made, and of the last one
	size        int                  // of the command lines in now, in bytes
}

type picture struct {
	task.Process
	until time.Duration // when it is taken anew
	lined bool          // its command line was asked for
}

const (
	// faded is the age at which a picture is taken anew. Those taken together do not all
	// come due together.
	faded = time.Minute
	// nameless is how long a picture is good that lacks names that may yet come.
	nameless = 5 * time.Second
	// linesKept bounds the command lines that are remembered, in bytes. The others are
	// read again each time.
	linesKept = 4 << 20
	// linePatience is how long all the command lines of a document are waited for: the
	// others are in it without.
	linePatience = 2 * time.Second
)

// find returns the picture of a process, nil if there is none that is good.
func (a *album) find(id task.ID) *picture {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.now[id] // of a document that was given up
	if p == nil {
		p = a.before[id]
	}
	if p == nil || task.Now() > p.until {
		return nil
	}
	a.keep(p)
	return p
}

// add takes a picture of a process that was just read.
func (a *album) add(proc *task.Process) *picture {
	a.mu.Lock()
	defer a.mu.Unlock()
	until := task.Now() + faded - time.Duration(proc.PID%30)*time.Second
	if proc.NamesUnknown {
		until = task.Now() + nameless
	}
	p := &picture{Process: *proc, until: until}
	if old := a.before[proc.ID]; old != nil {
		p.Cmdline, p.lined = old.Cmdline, old.lined && old.Exe == proc.Exe
	}
	a.keep(p)
	return p
}

func (a *album) keep(p *picture) {
	if a.now == nil {
		a.now = map[task.ID]*picture{}
	}
	a.now[p.ID] = p
}

// cmdline returns a process's command line, nil also where it cannot be had now. The
// process can make reading it hang, so nobody waits for one for long.
func (a *album) cmdline(ctx context.Context, p *picture, read func(context.Context, task.ID) []string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	line, lined := p.Cmdline, p.lined
	if !lined && ctx.Err() == nil {
		a.mu.Unlock()
		line = read(ctx, p.ID)
		a.mu.Lock()
		for _, arg := range line {
			a.size += len(arg)
		}
		if lined = line != nil && a.size < linesKept; lined {
			p.Cmdline, p.lined = line, true
		}
	}
	return line
}

// turn ends a document: who was not in it is forgotten.
func (a *album) turn() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now, a.before, a.size = nil, a.now, 0
	for _, p := range a.before {
		for _, arg := range p.Cmdline {
			a.size += len(arg)
		}
	}
}
