package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
)

// Feature is one thing that the kernel side needs.
type Feature struct {
	Name string
	Err  error  // nil if it is there
	Hint string // what to do about it if it is not, or what kzr does without
	// Optional is what [Open] does without.
	Optional bool
}

// Features probes, one by one, what [Open] needs, and then opens a probe and
// takes a snapshot with it: the only proof. The last ones are what kzr can do without. It asks the kernel and not its
// version, as distributions backport.
func Features(ctx context.Context, opts Options) []Feature {
	list := []Feature{
		{"host pid namespace", inHostNamespace(), "run kzr with hostPID (Kubernetes) or --pid=host (docker)", false},
		{"kernel types (BTF)", types(), "needs Linux 5.5 with CONFIG_DEBUG_INFO_BTF, and /sys mounted", false},
		{"ring buffer", denied(features.HaveMapType(ebpf.RingBuf)), "needs Linux 5.8 and CAP_BPF", false},
	}
	p, err := try(ctx, opts)
	list = append(list, Feature{
		"load, attach, snapshot", err,
		"needs Linux 5.8, CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN), and a seccomp filter that lets bpf(2) pass", false,
	})
	if err != nil {
		return list
	}
	list = append(list, Feature{"look at one process", p.look().err, "needs Linux 5.10: each look at a parent costs as much as one at the whole node", true})
	if runtime.GOARCH == "amd64" { // kzr reaps inside parents nowhere else
		list = append(list, Feature{"look at system calls", p.stance.err, "needs Linux 5.15: kzr cannot reap inside a parent", true})
	}
	if err := p.Close(); err != nil {
		list = append(list, Feature{"detach", err, "", false})
	}
	return list
}

// try opens a probe that works.
func try(ctx context.Context, opts Options) (*Probe, error) {
	opts.IterOnly = false
	p, err := Open(opts)
	if err != nil {
		return nil, err
	}
	if _, err := p.Snapshot(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// types looks for the exit tracepoint among the kernel's types.
func types() error {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return err
	}
	_, err = spec.AnyTypesByName("btf_trace_sched_process_exit")
	return err
}

func inHostNamespace() error {
	ns, err := pidNamespace()
	if err != nil {
		return err
	}
	if ns != initPIDNS {
		return fmt.Errorf("kzr runs in pid namespace %d", ns)
	}
	return nil
}

func denied(err error) error {
	if errors.Is(err, ebpf.ErrNotSupported) {
		return errors.New("the kernel does not have it")
	}
	if errors.Is(err, os.ErrPermission) {
		return errors.New("not permitted")
	}
	return err
}
