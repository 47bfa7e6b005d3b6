package probe

import (
	"fmt"
	"os/exec"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

func TestCost(t *testing.T) {
	st, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	spec, _ := loadKzr()
	var o struct {
		OnExit      *ebpf.Program `ebpf:"on_exit"`
		OnExitEmpty *ebpf.Program `ebpf:"on_exit_empty"`
	}
	if err := spec.LoadAndAssign(&o, nil); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		for _, p := range []*ebpf.Program{o.OnExit, o.OnExitEmpty} {
			l, err := link.AttachTracing(link.TracingOptions{Program: p})
			if err != nil {
				t.Fatal(err)
			}
			a, _ := p.Stats()
			out, _ := exec.Command("/tmp/vf", "50000").Output()
			b, _ := p.Stats()
			fmt.Printf("%s %v ns/run, runs %d, loop %s", p, (b.Runtime-a.Runtime)/1, b.RunCount-a.RunCount, out)
			fmt.Println(float64(b.Runtime-a.Runtime) / float64(b.RunCount-a.RunCount))
			l.Close()
		}
	}
}
