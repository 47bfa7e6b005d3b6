// Package bench sets kzr beside what an operator could use instead, each thing in turns
// with the others, in one run, and writes docs/BENCHMARKS.md: `make bench`.
package bench

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/probe"
	"kzr/internal/report"
	"kzr/internal/zoo"
)

// script is the pipeline of the cron job that kzr replaces.
const script = `ps -eo pid,ppid,stat,cmd | awk '$3 == "Z" { print $2 }' | sort -u`

const soon = 2 * time.Minute

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// loop has a process make children, or threads, and wait for them: nanoseconds for each.
func loop(b *testing.B, z *zoo.Zoo, step string) float64 {
	b.Helper()
	ns, err := strconv.ParseFloat(strings.Fields(z.Do("bench=%s", step))[0], 64)
	if err != nil {
		b.Fatal(err)
	}
	return ns
}

// BenchmarkLoops times processes that make children and wait for them, with each of
// those running that have a program, or a listener, at every exit.
func BenchmarkLoops(b *testing.B) {
	kinds := []struct{ name, step string }{
		{"vfork, wait", "vfork,%d"}, {"fork, exec, wait", "exec,%d"}, {"thread, join", "thread,%d"},
	}
	counts := []int{pick(4000, 200), pick(500, 50), pick(4000, 200)}
	all := slices.DeleteFunc(peers(b), func(p peer) bool { return !p.events })
	zoos := []*zoo.Zoo{zoo.Start(b, "serve"), zoo.Start(b, "serve")}
	type place struct {
		peer, kind string
		cpus       int
	}
	took := map[place]spread{}
	measure := func(name string, r *running) {
		for cpus := 1; cpus <= min(2, runtime.NumCPU()); cpus++ {
			which := []int{0, 1}[:cpus]
			for _, z := range zoos[:cpus] {
				pin(z.PID, which...)
			}
			if r != nil {
				r.pin(which...)
			}
			for i, kind := range kinds {
				ns := make([]float64, cpus)
				var wg sync.WaitGroup
				for j, z := range zoos[:cpus] {
					wg.Go(func() { ns[j] = loop(b, z, fmt.Sprintf(kind.step, counts[i])) })
				}
				wg.Wait()
				at := place{name, kind.name, cpus}
				took[at] = append(took[at], slices.Max(ns))
			}
		}
	}
	measure("", nil)
	clear(took) // to warm up
	for range pick(11, 2) {
		measure("", nil)
		measure("again", nil) // what chance alone does
		for _, p := range all {
			r := p.start(b)
			measure(p.name, r)
			r.stop()
		}
	}
	s := &section{
		title: "While all is well: what it costs those who make children",
		text: "A process makes children, or threads, and waits for each; once alone with everything on one CPU, and twice side by side on two.\n" +
			"The figures are the time of a loop beside that with nothing running, in the same round. \"Nothing\" is that of a second measurement\n" +
			"without anything: what chance alone does.",
		head: []string{"running", "CPUs"},
	}
	for _, kind := range kinds {
		s.head = append(s.head, fmt.Sprintf("%s (%.0f µs)", kind.name, took[place{"", kind.name, 1}].median()/1e3))
	}
	for _, name := range append([]string{"again"}, names(all)...) {
		for cpus := 1; cpus <= min(2, runtime.NumCPU()); cpus++ {
			row := []string{strings.Replace(name, "again", "nothing", 1), strconv.Itoa(cpus)}
			for _, kind := range kinds {
				ratio := took[place{name, kind.name, cpus}].over(took[place{"", kind.name, cpus}])
				row = append(row, ratio.String())
				if name == "kzr" || name == "again" {
					unit, _, _ := strings.Cut(kind.name, ",")
					b.ReportMetric(ratio.median(), fmt.Sprintf("%s-%s-%dcpu-x", name, unit, cpus))
				}
			}
			s.rows = append(s.rows, row)
		}
	}
	sections["loops"] = s
	b.ReportMetric(0, "ns/op")
}

func names(all []peer) (list []string) {
	for _, p := range all {
		list = append(list, p.name)
	}
	return list
}

// BenchmarkExitProgram is what the kernel counts for one run of the exit program
// over that of an empty one at the same place, and the same of the one at clone. There is
// no program at the reap.
func BenchmarkExitProgram(b *testing.B) {
	var empty, exit, clone spread
	for range pick(9, 2) {
		costs, err := probe.MeasureExit(pick(4, 1), func() {
			zoo.Start(b, "serve").Do("bench=vfork,4000")
		})
		if err != nil {
			b.Fatal(err)
		}
		empty, exit, clone = append(empty, costs.Empty), append(exit, costs.Exit-costs.Empty), append(clone, costs.Clone-costs.Empty)
	}
	sections["exit"] = &section{
		title: "The programs in the kernel",
		text:  "What the kernel counts for one run, beside that of an empty program at the same place: nanoseconds.",
		head:  []string{"an empty program", "kzr's at the exit, above that", "kzr's at the fork, above that", "at the reap"},
		rows:  [][]string{{empty.format("%.0f"), exit.format("%.0f"), clone.format("%.0f"), "none"}},
		after: "Of what the exit costs, and what was tried to make it less: [ARCHITECTURE.md](ARCHITECTURE.md#events-are-hints-snapshots-are-the-truth).",
	}
	b.ReportMetric(empty.median(), "empty-ns")
	b.ReportMetric(exit.median(), "above-empty-ns")
	b.ReportMetric(clone.median(), "clone-above-empty-ns")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkQuiet is what each takes while so many processes a second end and are
// reaped.
func BenchmarkQuiet(b *testing.B) {
	rates := []int{0, 1_000, 10_000}
	d := time.Duration(pick(3000, 500)) * time.Millisecond
	z := zoo.Start(b, "serve")
	all := peers(b)
	type place struct {
		peer string
		rate int
	}
	cpu, wake, size := map[place]spread{}, map[place]spread{}, map[string]spread{}
	var exits spread // that the machine could make when asked for the most
	var job spread
	for range pick(3, 1) {
		began := procTime(b)
		shell(b, script)
		job = append(job, ms(procTime(b)-began)/60_000*100)
		for _, p := range all {
			r := p.start(b)
			r.scraped() // the first is dearer
			size[p.name] = append(size[p.name], r.resident())
			for _, rate := range rates {
				if rate > 0 {
					z.Do("storm=0,rate=%d,reap=100", rate)
				}
				before, slept, made := r.cpu(), r.wakeups(), z.Count().Made
				began := time.Now()
				r.scraped()
				time.Sleep(d)
				took := time.Since(began).Seconds()
				at := place{p.name, rate}
				cpu[at] = append(cpu[at], (r.cpu()-before).Seconds()/took*100)
				wake[at] = append(wake[at], float64(r.wakeups()-slept)/took)
				if rate == rates[len(rates)-1] {
					exits = append(exits, float64(z.Count().Made-made)/took)
				}
				z.Do("quiet")
			}
			r.stop()
		}
	}
	last := rates[len(rates)-1]
	s := &section{
		title: "While all is well: what it takes itself",
		text: fmt.Sprintf("CPU time in percent of one core, and how often its threads go to sleep, while so many processes a second end and are reaped\n"+
			"(at most %.0f on this machine); with its helper, and with one scrape in %v where there is something to scrape. The script takes\n"+
			"%s%% if it runs once a minute, and sees a leak a minute late.", exits.median(), d, job.format("%.2f")),
		head: []string{"running", "at rest", "1,000 exits/s", "10,000 exits/s", "CPU per 100,000 exits", "sleeps/s at rest", "at 10,000 exits/s", "MiB resident"},
	}
	for _, p := range all {
		row := []string{p.name}
		for _, rate := range rates {
			row = append(row, cpu[place{p.name, rate}].format("%.2f")+"%")
		}
		per := (cpu[place{p.name, last}].median() - cpu[place{p.name, 0}].median()) / 100 / exits.median() * 100_000 * 1000
		s.rows = append(s.rows, append(row, fmt.Sprintf("%.0f ms", max(per, 0)), fmt.Sprintf("%.1f", wake[place{p.name, 0}].median()),
			fmt.Sprintf("%.0f", wake[place{p.name, last}].median()), fmt.Sprintf("%.1f", size[p.name].median())))
		if p.name == "kzr" {
			b.ReportMetric(cpu[place{p.name, 0}].median(), "idle-%")
			b.ReportMetric(cpu[place{p.name, last}].median(), "busy-%")
			b.ReportMetric(size[p.name].median(), "rss-MiB")
		}
	}
	sections["quiet"] = s
	b.ReportMetric(0, "ns/op")
}

// procTime is the CPU time of the children that were waited for.
func procTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func shell(b *testing.B, command string) {
	b.Helper()
	if err := exec.CommandContext(b.Context(), "sh", "-c", command).Run(); err != nil {
		b.Fatal(err)
	}
}

// many makes so many children that live and that are zombies.
func many(b *testing.B, live, dead int) {
	b.Helper()
	makeRoom(b, live+dead)
	cmd := exec.Command(zoo.Compile(b, "many", "testdata/many.c"), strconv.Itoa(live), strconv.Itoa(dead))
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
		zoo.Within(b, soon, "they are gone", func() bool { return tasks(b) < before(live+dead) })
	})
	if text, err := bufio.NewReader(out).ReadString('\n'); text != "ready\n" {
		b.Fatalf("many says %q, %v", text, err)
	}
	zoo.Within(b, soon, "all dead", func() bool { return zoo.Zombies(cmd.Process.Pid) == dead })
}

// before is how many tasks a node may have left when n have gone.
func before(n int) int { return max(1000, n/2) }

// tasks is how many there are, as /proc/loadavg says.
func tasks(b *testing.B) int {
	b.Helper()
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		b.Fatal(err)
	}
	_, total, _ := strings.Cut(strings.Fields(string(text))[3], "/")
	n, err := strconv.Atoi(total)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// BenchmarkLooking sets the command `kzr scan` as a whole, from its start to its end,
// beside the script and a bare ps, on nodes of different sizes.
func BenchmarkLooking(b *testing.B) {
	bin, socket := build(b), filepath.Join(b.TempDir(), "kzr.sock")
	start(b, "--socket", socket)
	commands := []struct {
		name string
		argv []string
	}{
		{"the script", []string{"sh", "-c", script}},
		{"ps", []string{"ps", "-eo", "pid,ppid,stat,cmd"}},
		{"kzr scan, daemon", []string{bin, "scan", "--socket", socket}},
		{"kzr scan, alone", []string{bin, "scan", "--socket", ""}},
		{"alone, --mode proc", []string{bin, "scan", "--socket", "", "--mode", "proc"}},
	}
	type size struct{ tasks, percent int }
	var sizes []size
	for _, percent := range []int{0, 10, 100} {
		for _, n := range []int{100, 1_000, 10_000, 20_000, 100_000, 500_000} {
			// Half a million that live take more memory than most machines have.
			if n <= pick(100_000, 1_000) || n == 500_000 && percent == 100 && !quick {
				sizes = append(sizes, size{n, percent})
			}
		}
	}
	s := &section{
		title: "Looking at a node",
		text: "Each command as a whole, from its start to its end, in turns: milliseconds. `kzr scan` asks the daemon if there is one; alone it\n" +
			"looks for itself, by /proc below 10,000 tasks and by eBPF above. The daemon's answer may be a second old. Then how many times as\n" +
			"fast as the script, and as a bare ps, each is.",
		head: []string{"processes", "zombies", "the script", "ps", "`kzr scan`, daemon", "alone", "alone, `--mode proc`", "daemon: script", "ps", "alone: script", "ps"},
	}
	cost := &section{
		title: "What a look costs",
		text: "CPU time, in milliseconds, and peak memory, in MiB, of all processes of the same commands; what the daemon itself\n" +
			"takes for its answer is not in it.",
		head: []string{"processes", "zombies", "CPU: the script", "ps", "`kzr scan`, daemon", "alone", "`--mode proc`", "memory: the script", "ps", "`kzr scan`, daemon", "alone", "`--mode proc`"},
	}
	lines := map[string]map[int]*line{}
	for _, at := range sizes {
		b.Run(fmt.Sprintf("%d-%d%%", at.tasks, at.percent), func(b *testing.B) {
			dead := at.tasks * at.percent / 100
			many(b, at.tasks-dead, dead)
			took, cpu, peak := map[string]spread{}, map[string]spread{}, map[string]spread{}
			began := time.Now()
			for round := 0; round < pick(21, 2) && (round < pick(3, 2) && time.Since(began) < time.Minute || time.Since(began) < 10*time.Second); round++ {
				for _, c := range commands {
					cmd := exec.CommandContext(b.Context(), c.argv[0], c.argv[1:]...)
					var out bytes.Buffer
					cmd.Stdout = &out
					began := time.Now()
					err := cmd.Run()
					d := time.Since(began)
					if err != nil || dead > 0 && out.Len() == 0 {
						b.Fatalf("%v: %d bytes, %v", c.argv, out.Len(), err)
					}
					use := cmd.ProcessState.SysUsage().(*syscall.Rusage)
					took[c.name] = append(took[c.name], ms(d))
					cpu[c.name] = append(cpu[c.name], ms(time.Duration(use.Utime.Nano()+use.Stime.Nano())))
					peak[c.name] = append(peak[c.name], float64(use.Maxrss)/1024)
				}
			}
			row := []string{group(at.tasks), fmt.Sprintf("%d%%", at.percent)}
			for _, c := range commands {
				row = append(row, took[c.name].format("%.1f"))
				if lines[c.name] == nil {
					lines[c.name] = map[int]*line{}
				}
				l := lines[c.name][at.percent]
				if l == nil {
					l = &line{name: c.name}
					lines[c.name][at.percent] = l
				}
				l.xy = append(l.xy, [2]float64{float64(at.tasks), took[c.name].median()})
			}
			costs := slices.Clone(row[:2])
			for _, how := range []string{"daemon", "alone"} {
				kzr := took["kzr scan, "+how]
				script, ps := took["the script"].over(kzr).median(), took["ps"].over(kzr).median()
				row = append(row, times(script), times(ps))
				b.ReportMetric(kzr.median(), how+"-ms")
				b.ReportMetric(script, how+"-script-x")
				b.ReportMetric(ps, how+"-ps-x")
			}
			for _, c := range commands {
				costs = append(costs, fmt.Sprintf("%.1f", cpu[c.name].median()))
			}
			for _, c := range commands {
				costs = append(costs, fmt.Sprintf("%.0f", peak[c.name].median()))
			}
			s.rows, cost.rows = append(s.rows, row), append(cost.rows, costs)
			b.ReportMetric(0, "ns/op")
		})
	}
	for _, percent := range []int{10, 100} {
		c := chart{
			file: fmt.Sprintf("bench-looking-%d.svg", percent), title: fmt.Sprintf("Looking at a node, %d%% of it zombies", percent),
			x: "processes", y: "milliseconds",
		}
		for _, command := range commands {
			if l := lines[command.name][percent]; l != nil {
				c.lines = append(c.lines, *l)
			}
		}
		s.charts = append(s.charts, c)
	}
	sections["looking"], sections["cost"] = s, cost
}

func group(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// BenchmarkActing starts leakers one after the other and takes the time from the moment
// that each meets the rule, a grace after its last child died, to the SIGCHLD in kzr's
// log, and to the moment that none of its zombies is left: on an idle node, on a busy
// one, and beside 100,000 zombies of others.
func BenchmarkActing(b *testing.B) {
	const grace = time.Second
	s := &section{
		title: "Acting",
		text: "From the moment that a parent meets the rule (20 zombies for a second) to the SIGCHLD, and to the moment that it has reaped and none\n" +
			"is left; or, where it does not reap, to the moment that kzr has reaped them inside it, 10 ms of which it waits for the parent:\n" +
			"milliseconds. Beside it what the script takes on the same node, once it runs.",
		head: []string{"on a node", "parents", "ended", "to the signal: p50", "p99", "max", "to a clean table: p50", "p99", "max", "reaped inside: p50", "p99", "max", "the script: p50"},
	}
	for _, how := range []string{"that is idle", "with two busy loops", fmt.Sprintf("beside %s zombies of others", group(pick(100_000, 1_000)))} {
		b.Run(strings.Fields(how)[0], func(b *testing.B) {
			dir := b.TempDir()
			exe := filepath.Join(dir, "leaker")
			zoo.Install(b, exe)
			switch {
			case strings.HasPrefix(how, "with"):
				for range 2 {
					busy := exec.Command("sh", "-c", "while :; do :; done")
					busy.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
					if err := busy.Start(); err != nil {
						b.Fatal(err)
					}
					b.Cleanup(func() {
						_ = busy.Process.Kill()
						_ = busy.Wait() // killed
					})
				}
			case strings.HasPrefix(how, "beside"):
				many(b, 0, pick(100_000, 1_000))
			}
			k := start(b, "--scope", "all", "--threshold", "20", "--grace", grace.String(), "--nudge", "10ms",
				"--config", confine(b, exe))
			var signal, clean, inside, look spread
			ended := 0
			for range pick(30, 2) {
				began := time.Now()
				shell(b, script)
				look = append(look, ms(time.Since(began)))
				var all []*zoo.Zoo
				due, deaf := map[int]time.Time{}, map[int]bool{}
				for i := range 5 {
					z := zoo.Start(b, "exec=%s serve", zoo.Quote(exe))
					z.Do("leak=20")
					due[z.PID] = time.Now().Add(grace)
					if deaf[z.PID] = i == 4; !deaf[z.PID] {
						z.Do("chld=reap")
					}
					all = append(all, z)
				}
				for len(due) > 0 {
					e := k.wait(b, func(e event) bool { return !due[e.PID].IsZero() })
					late := ms(e.Time.Sub(due[e.PID]))
					switch {
					case e.Event == report.EventSignal && e.Signal == "SIGCHLD":
						signal = append(signal, late)
					case e.Event == report.EventSignal:
						ended++ // it was asked, and reaped inside, in vain
						delete(due, e.PID)
					case e.Event == report.EventReaped && deaf[e.PID]:
						inside = append(inside, late)
						delete(due, e.PID)
					case e.Event == report.EventReaped:
						clean = append(clean, late)
						delete(due, e.PID)
					}
				}
				for _, z := range all {
					z.Signal(unix.SIGKILL)
				}
			}
			if len(clean) == 0 || len(inside) == 0 {
				b.Fatalf("%d reaped, %d were reaped inside, %d ended", len(clean), len(inside), ended)
			}
			row := []string{how, strconv.Itoa(len(signal)), strconv.Itoa(ended)}
			for _, x := range []spread{signal, clean, inside} {
				row = append(row, fmt.Sprintf("%.1f", x.median()), fmt.Sprintf("%.1f", x.at(0.99)), fmt.Sprintf("%.1f", slices.Max(x)))
			}
			s.rows = append(s.rows, append(row, fmt.Sprintf("%.0f", look.median())))
			b.ReportMetric(signal.median(), "signal-p50-ms")
			b.ReportMetric(signal.at(0.99), "signal-p99-ms")
			b.ReportMetric(clean.at(0.99), "clean-p99-ms")
			b.ReportMetric(inside.at(0.99), "inside-p99-ms")
			b.ReportMetric(0, "ns/op")
		})
	}
	sections["acting"] = s
}

// BenchmarkSize is how large each is, and how long it takes from its start until it is
// ready.
func BenchmarkSize(b *testing.B) {
	s := &section{
		title: "Size",
		text:  "The program on disk, resident memory once it has come to rest, threads; for kzr with its helper, and the time from its start to the line that it watches.",
		head:  []string{"", "MiB on disk", "MiB resident", "threads", "ready after"},
	}
	var ready spread
	build(b) // which is no part of the start
	for range pick(15, 2) {
		began := time.Now()
		k := start(b)
		ready = append(ready, ms(time.Since(began)))
		k.stop()
	}
	for _, p := range peers(b) {
		path, err := exec.LookPath(p.argv[0])
		if err != nil {
			b.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		r := p.start(b)
		threads := 0
		r.threads(func(string) { threads++ })
		row := []string{p.name, fmt.Sprintf("%.1f", float64(st.Size())/(1<<20)), fmt.Sprintf("%.1f", r.resident()), strconv.Itoa(threads), ""}
		if p.name == "kzr" {
			row[4] = ready.format("%.0f") + " ms"
			b.ReportMetric(ready.median(), "ready-ms")
		}
		s.rows = append(s.rows, row)
		r.stop()
	}
	sections["size"] = s
	b.ReportMetric(0, "ns/op")
}

// BenchmarkGrowth is what a kzr takes for each zombie and each task of a node, and on
// paper what that makes on the largest.
func BenchmarkGrowth(b *testing.B) {
	n := pick(200_000, 2_000)
	type point struct{ resident, cpu, look float64 }
	at := func(dead int) point {
		var out point
		b.Run(strconv.Itoa(dead), func(b *testing.B) {
			many(b, 0, dead)
			r := kzrPeer(b).start(b)
			p := open(b)
			defer p.Close()
			var took time.Duration
			for range 5 {
				best(&took, func() {
					if _, err := p.Snapshot(b.Context()); err != nil {
						b.Fatal(err)
					}
				})
			}
			before := r.cpu()
			time.Sleep(time.Duration(pick(10_000, 1000)) * time.Millisecond)
			out = point{r.resident(), (r.cpu() - before).Seconds() / float64(pick(10, 1)) * 100, ms(took)}
			b.ReportMetric(out.resident, "rss-MiB")
			b.ReportMetric(out.look, "snapshot-ms")
			b.ReportMetric(0, "ns/op")
		})
		return out
	}
	few, lots := at(n/10), at(n)
	per := func(a, b float64) float64 { return (b - a) / float64(n-n/10) }
	bytes, us := per(few.resident, lots.resident)*(1<<20), per(few.look, lots.look)*1000
	const pids = 1 << 22
	s := &section{
		title: "Growth",
		text: fmt.Sprintf("Measured with %s and %s zombies on the node; the last line is that slope at 4 million zombies, the most that Linux has pids for:\n"+
			"reckoned, not measured.", group(n/10), group(n)),
		head: []string{"zombies", "MiB resident, with the helper", "one sweep in the kernel", "CPU while nothing changes"},
		after: fmt.Sprintf("A zombie takes %.0f bytes and %.2f µs of a sweep. The tables in the kernel are made at the start and do not grow: 10.5 MiB, of which\n"+
			"8 are for the last 524,288 deaths and 1.5 for 65,536 parents. On a larger node slots are taken over, which costs a look at a parent\n"+
			"too many and never one too few. However many CPUs the exits come from, they touch the slot of their own parent and counters of\n"+
			"their own CPU: nothing is shared by all.", bytes, us),
	}
	for _, x := range []struct {
		n int
		point
	}{{n / 10, few}, {n, lots}} {
		s.rows = append(s.rows, []string{group(x.n), fmt.Sprintf("%.1f", x.resident), fmt.Sprintf("%.1f ms", x.look), fmt.Sprintf("%.2f%%", x.cpu)})
	}
	s.rows = append(s.rows, []string{group(pids), fmt.Sprintf("%.0f", lots.resident+bytes*float64(pids-n)/(1<<20)), fmt.Sprintf("%.1f s", (lots.look+us*float64(pids-n)/1000)/1000), "—"})
	sections["growth"] = s
	b.ReportMetric(0, "ns/op")
}

func open(b *testing.B) *probe.Probe {
	b.Helper()
	p, err := probe.Open(probe.Options{Level: 50})
	if err != nil {
		b.Fatalf("%+v", err)
	}
	return p
}

// binary is where the kzr of this run is, once it is built.
var binary string

func build(b *testing.B) string {
	b.Helper()
	if binary != "" {
		return binary
	}
	bin := filepath.Join(scratch, "kzr")
	build := exec.CommandContext(b.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-o", bin, "kzr/cmd/kzr")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	binary = bin
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
- {name: mine, match: {exe: %q}, reap: all}
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
	events chan event
	stop   func()
}

type event struct {
	Time   time.Time `json:"time"`
	Event  string    `json:"event"`
	PID    int       `json:"pid"`
	Signal string    `json:"signal"`
}

func start(b *testing.B, args ...string) *kzr {
	b.Helper()
	args = append([]string{"run", "--socket", "", "--log-format", "json"}, args...)
	if !slices.Contains(args, "--config") {
		args = append(args, "--dry-run")
	}
	cmd := exec.Command(build(b), args...)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	log, err := cmd.StderrPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	k := &kzr{events: make(chan event, 1<<16)}
	go func() {
		defer close(k.events)
		for lines := bufio.NewScanner(log); lines.Scan(); {
			var e event
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				k.events <- e
			}
		}
	}()
	k.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		for range k.events { // to the end of its log
		}
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	b.Cleanup(k.stop)
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
