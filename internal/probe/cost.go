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
	Exit, Empty, Clone float64
}

// MeasureExit runs load under the programs at exit and clone and under an empty one at
// exit, in turns, the given number of times each. It needs full root.
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
		Clone *ebpf.Program `ebpf:"on_clone"`
	}
	if err := spec.LoadAndAssign(&o, nil); err != nil {
		return c, fmt.Errorf("loading the eBPF programs: %w", err)
	}
	defer func() { err = errors.Join(err, o.Exit.Close(), o.Empty.Close(), o.Clone.Close()) }()
	under := func(programs ...*ebpf.Program) (err error) {
		for _, p := range programs {
			l, e := link.AttachTracing(link.TracingOptions{Program: p})
			if e != nil {
				return fmt.Errorf("attaching %v: %w", p, e)
			}
			defer func() { err = errors.Join(err, l.Close()) }()
		}
		load()
		return nil
	}
	for range rounds {
		if err := errors.Join(under(o.Exit, o.Clone), under(o.Empty)); err != nil {
			return c, err
		}
	}
	for p, mean := range map[*ebpf.Program]*float64{o.Exit: &c.Exit, o.Empty: &c.Empty, o.Clone: &c.Clone} {
		if *mean, err = perRun(p); err != nil {
			return c, err
		}
	}
	return c, nil
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
