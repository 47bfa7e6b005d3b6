// Package bench measures what kzr promises about its speed, each thing beside
// what it is compared with, in one run: `make bench`.
package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/probe"
	"kzr/internal/procscan"
	"kzr/internal/report"
	"kzr/internal/task"
	"kzr/internal/zoo"
)

// script is the pipeline of the cron job that kzr replaces.
const script = `ps -eo pid,ppid,stat,cmd | awk '$3 == "Z" { print $2 }' | sort -u`

const soon = time.Minute

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// BenchmarkLoop times a process that makes children and waits for them, with the
// probe attached and without, in turns. "ratio" compares the medians of the
// rounds; "noise" does the same for the unattached rounds among themselves, and
// says how much of the ratio means anything.
func BenchmarkLoop(b *testing.B) {
	for _, how := range []struct {
		name, step string
		rounds     int
	}{{"vfork", "bench=vfork,4000", 40}, {"exec", "bench=exec,800", 24}} {
		b.Run(how.name, func(b *testing.B) {
			z := zoo.Start(b, "serve")
			round := func() float64 {
				ns, err := strconv.ParseFloat(strings.Fields(z.Do("%s", how.step))[0], 64)
				if err != nil {
					b.Fatal(err)
				}
				return ns
			}
			round()
			var free, attached []float64
			for range b.N * how.rounds {
				free = append(free, round())
				p := open(b)
				attached = append(attached, round())
				if err := p.Close(); err != nil {
					b.Fatal(err)
				}
			}
			half := len(free) / 2
			b.ReportMetric(median(free), "free-ns")
			b.ReportMetric(median(attached), "attached-ns")
			b.ReportMetric(median(attached)/median(free), "ratio")
			b.ReportMetric(median(free[:half])/median(free[half:]), "noise")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkExitProgram is what the kernel counts for one run of the exit program
// over that of an empty one at the same place, and the same of the one at clone. There is
// no program at the reap.
func BenchmarkExitProgram(b *testing.B) {
	costs, err := probe.MeasureExit(b.N*10, func() {
		zoo.Start(b, "serve").Do("bench=vfork,4000")
	})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(costs.Empty, "empty-ns")
	b.ReportMetric(costs.Exit, "exit-ns")
	b.ReportMetric(costs.Exit-costs.Empty, "above-empty-ns")
	b.ReportMetric(costs.Clone-costs.Empty, "clone-above-empty-ns")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkReaped has 100,000 children die and be reaped under a running kzr:
// what it burns, and how many records the kernel sends for them.
func BenchmarkReaped(b *testing.B) {
	k := start(b, "--threshold", "50")
	p := open(b)
	records := map[int]int{}
	ended := make(chan error)
	go func() { ended <- p.Hints(func(h task.Hint) { records[h.PID]++ }) }()
	z := zoo.Start(b, "serve")
	before := k.cpu(b)
	for range b.N {
		z.Do("bench=vfork,100000")
	}
	b.ReportMetric(ms(k.cpu(b)-before)/float64(b.N), "daemon-cpu-ms")
	p.StopHints()
	if err := <-ended; err != nil {
		b.Error(err)
	}
	b.ReportMetric(float64(records[z.PID])/float64(b.N), "records")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkSnapshot sets snapshots beside the script. "bpf-x" and "proc-x" say
// how many times faster they are; "first-x" is a scanner's first walk, which has
// to look for a tracer of every zombie: what `kzr scan --mode proc` pays.
func BenchmarkSnapshot(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			makeRoom(b, n)
			z := zoo.Start(b, "leak=%d,async serve", n)
			zoo.Within(b, soon, "all dead", func() bool { return z.Zombies() == n })
			take := func(s source) {
				snap, err := s.Snapshot(context.Background())
				if err != nil {
					b.Fatal(err)
				}
				if snap.Zombies() < n {
					b.Fatalf("%d zombies, want %d", snap.Zombies(), n)
				}
			}
			p, s := open(b), scanner(b)
			defer p.Close()
			defer s.Close()
			take(s)
			// The best of five of each, in turns: others use the machine too.
			var theirs, bpf, proc, first time.Duration
			for range b.N * 5 {
				best(&theirs, func() {
					out, err := exec.CommandContext(b.Context(), "sh", "-c", script).Output()
					if err != nil || len(out) == 0 {
						b.Fatalf("the script finds %d bytes, %v", len(out), err)
					}
				})
				best(&bpf, func() { take(p) })
				best(&proc, func() { take(s) })
				best(&first, func() {
					s := scanner(b)
					take(s)
					s.Close()
				})
			}
			b.ReportMetric(ms(theirs), "script-ms")
			b.ReportMetric(ms(bpf), "bpf-ms")
			b.ReportMetric(ms(proc), "proc-ms")
			b.ReportMetric(float64(theirs)/float64(bpf), "bpf-x")
			b.ReportMetric(float64(theirs)/float64(proc), "proc-x")
			b.ReportMetric(float64(theirs)/float64(first), "first-x")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkScanCommand sets the command `kzr scan` as a whole, from its start to its
// end, beside the script and beside a bare ps: the medians of rounds in turns. "ps-x"
// and "script-x" say how many times faster it is.
func BenchmarkScanCommand(b *testing.B) {
	bin := build(b)
	for _, n := range []int{0, 1_000, 20_000, 100_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			makeRoom(b, n)
			z := zoo.Start(b, "leak=%d,async serve", n)
			zoo.Within(b, soon, "all dead", func() bool { return z.Zombies() == n })
			times := map[string][]float64{}
			for range b.N * 15 {
				for name, argv := range map[string][]string{
					"kzr":    {bin, "scan", "--socket", ""},
					"ps":     {"ps", "-eo", "pid,ppid,stat,cmd"},
					"script": {"sh", "-c", script},
				} {
					began := time.Now()
					out, err := exec.CommandContext(b.Context(), argv[0], argv[1:]...).Output()
					if err != nil || n > 0 && len(out) == 0 {
						b.Fatalf("%v: %d bytes, %v", argv, len(out), err)
					}
					times[name] = append(times[name], ms(time.Since(began)))
				}
			}
			kzr := median(times["kzr"])
			b.ReportMetric(kzr, "kzr-ms")
			b.ReportMetric(median(times["ps"])/kzr, "ps-x")
			b.ReportMetric(median(times["script"])/kzr, "script-x")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkRuleToSignal starts leakers one after the other and takes the time
// from the moment that each meets the rule, a grace after its last child died,
// to the SIGCHLD in kzr's log.
func BenchmarkRuleToSignal(b *testing.B) {
	const grace = time.Second
	dir := b.TempDir()
	exe := filepath.Join(dir, "leaker")
	zoo.Install(b, exe)
	k := start(b, "--scope", "all", "--threshold", "20", "--grace", grace.String(), "--nudge", "10ms",
		"--config", confine(b, exe))
	var late []time.Duration
	for range b.N * 20 {
		due := map[int]time.Time{}
		for range 5 {
			z := zoo.Start(b, "exec=%s serve", zoo.Quote(exe))
			z.Do("leak=20")
			due[z.PID] = time.Now().Add(grace)
			z.Do("chld=reap")
			defer z.Signal(unix.SIGKILL)
		}
		for len(due) > 0 {
			e := k.wait(b, func(e event) bool { return e.Event == report.EventSignal && !due[e.PID].IsZero() })
			late = append(late, e.Time.Sub(due[e.PID]))
			delete(due, e.PID)
		}
	}
	slices.Sort(late)
	b.ReportMetric(ms(late[len(late)/2]), "p50-ms")
	b.ReportMetric(ms(late[len(late)*99/100]), "p99-ms")
	b.ReportMetric(ms(late[len(late)-1]), "max-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkIdle is a kzr with nothing to do for 20 seconds.
func BenchmarkIdle(b *testing.B) {
	k := start(b)
	time.Sleep(2 * time.Second) // its start is not idleness
	before := k.cpu(b)
	d := time.Duration(b.N) * 20 * time.Second
	time.Sleep(d)
	b.ReportMetric(100*float64(k.cpu(b)-before)/float64(d), "cpu-%")
	b.ReportMetric(float64(k.status(b, "VmRSS"))/1024, "rss-MiB")
	b.ReportMetric(float64(k.status(b, "Threads")), "threads")
	b.ReportMetric(0, "ns/op")
}

type source interface {
	Snapshot(ctx context.Context) (*task.Snapshot, error)
}

func open(b *testing.B) *probe.Probe {
	b.Helper()
	p, err := probe.Open(probe.Options{Level: 50})
	if err != nil {
		b.Fatalf("%+v", err)
	}
	return p
}

func scanner(b *testing.B) *procscan.Scanner {
	b.Helper()
	s, err := procscan.New("/proc")
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func median(xs []float64) float64 {
	xs = slices.Sorted(slices.Values(xs))
	return xs[len(xs)/2]
}

func build(b *testing.B) string {
	b.Helper()
	bin := filepath.Join(b.TempDir(), "kzr")
	build := exec.CommandContext(b.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-o", bin, "kzr/cmd/kzr")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	return bin
}

func best(d *time.Duration, f func()) {
	begin := time.Now()
	f()
	if took := time.Since(begin); *d == 0 || took < *d {
		*d = took
	}
}

// makeRoom raises pid_max for n more processes, until the benchmark ends.
func makeRoom(b *testing.B, n int) {
	b.Helper()
	const file = "/proc/sys/kernel/pid_max"
	old, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	limit, err := strconv.Atoi(string(bytes.TrimSpace(old)))
	if err != nil {
		b.Fatal(err)
	}
	if limit >= n+20_000 {
		return
	}
	if err := os.WriteFile(file, []byte(strconv.Itoa(n+20_000)), 0o644); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.WriteFile(file, old, 0o644); err != nil {
			b.Error(err)
		}
	})
}

// confine writes a configuration that acts on one executable only.
func confine(b *testing.B, exe string) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "kzr.yaml")
	text := fmt.Sprintf(`rules:
- {name: mine, match: {exe: %q}}
- {name: others, match: {exe: "*"}, action: observe}
`, exe)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	return path
}

// kzr is a running daemon. Unless told otherwise it is a dry run, so that it
// does nothing to whatever else is on the machine.
type kzr struct {
	pid    int
	events chan event
}

type event struct {
	Time  time.Time `json:"time"`
	Event string    `json:"event"`
	PID   int       `json:"pid"`
}

func start(b *testing.B, args ...string) *kzr {
	b.Helper()
	args = append([]string{"run", "--socket", "", "--log-format", "json"}, args...)
	if !slices.Contains(args, "--config") {
		args = append(args, "--dry-run")
	}
	cmd := exec.Command(build(b), args...)
	log, err := cmd.StderrPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	k := &kzr{pid: cmd.Process.Pid, events: make(chan event, 1<<16)}
	go func() {
		defer close(k.events)
		for lines := bufio.NewScanner(log); lines.Scan(); {
			var e event
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				k.events <- e
			}
		}
	}()
	b.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		for range k.events { // to the end of its log
		}
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	k.wait(b, func(e event) bool { return e.Event == report.EventStarted })
	return k
}

// wait returns the next event that fits; those before it are gone.
func (k *kzr) wait(b *testing.B, fits func(event) bool) event {
	b.Helper()
	timeout := time.After(soon)
	for {
		select {
		case e, ok := <-k.events:
			if !ok {
				b.Fatal("kzr ended too early")
			}
			if fits(e) {
				return e
			}
		case <-timeout:
			b.Fatal("kzr does not say what is expected of it")
		}
	}
}

// cpu is what all its threads have run, by the scheduler's count.
func (k *kzr) cpu(b *testing.B) time.Duration {
	b.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", k.pid))
	if err != nil || len(files) == 0 {
		b.Fatal("no schedstat", err)
	}
	var sum time.Duration
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			b.Fatal(err)
		}
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}

// status reads a number from its /proc/PID/status.
func (k *kzr) status(b *testing.B, key string) int {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", k.pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, key+":"); ok {
			n, err := strconv.Atoi(strings.Fields(v)[0])
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatalf("no %s", key)
	return 0
}
