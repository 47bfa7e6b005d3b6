package probe

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Cost is the mean time of one run of a program in nanoseconds, as the kernel
// counts it (BPF_ENABLE_STATS), which itself is most of the empty program's.
type Cost struct {
	Exit, Empty float64
}

// MeasureExit runs load under the exit program and under an empty one at the
// same place, in turns, the given number of times each. It needs full root.
func MeasureExit(rounds int, load func()) (c Cost, err error) {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return c, fmt.Errorf("enabling the kernel's run-time statistics: %w", err)
	}
	defer stats.Close()
	spec, err := loadKzr()
	if err != nil {
		return c, err
	}
	var o struct {
		Exit  *ebpf.Program `ebpf:"on_exit"`
		Empty *ebpf.Program `ebpf:"on_exit_empty"`
	}
	if err := spec.LoadAndAssign(&o, nil); err != nil {
		return c, fmt.Errorf("loading the eBPF programs: %w", err)
	}
	defer func() { err = errors.Join(err, o.Exit.Close(), o.Empty.Close()) }()
	for range rounds {
		for _, p := range []*ebpf.Program{o.Exit, o.Empty} {
			l, err := link.AttachTracing(link.TracingOptions{Program: p})
			if err != nil {
				return c, fmt.Errorf("attaching to sched_process_exit: %w", err)
			}
			load()
			if err := l.Close(); err != nil {
				return c, err
			}
		}
	}
	if c.Exit, err = perRun(o.Exit); err != nil {
		return c, err
	}
	c.Empty, err = perRun(o.Empty)
	return c, err
}

func perRun(p *ebpf.Program) (float64, error) {
	s, err := p.Stats()
	if err != nil {
		return 0, fmt.Errorf("reading the run-time statistics: %w", err)
	}
	if s.RunCount == 0 {
		return 0, errors.New("the program never ran")
	}
	return float64(s.Runtime.Nanoseconds()) / float64(s.RunCount), nil
}
