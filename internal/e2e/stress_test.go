package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/zoo"
)

// What kzr may hold in memory with half a million zombies on the node.
const maxResident = 64 << 20

// usage is what a process holds.
type usage struct {
	resident, peak int // bytes
	threads, files int
	cpu            time.Duration
}

func (u usage) String() string {
	return fmt.Sprintf("%.1f MiB resident (peak %.1f), %d threads, %d descriptors, %v of CPU",
		float64(u.resident)/(1<<20), float64(u.peak)/(1<<20), u.threads, u.files, u.cpu.Round(10*time.Millisecond))
}

// usage reads what kzr holds right now.
func (d *daemon) usage() (u usage) {
	d.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.pid))
	if err != nil {
		d.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.Atoi(f[1])
		switch f[0] {
		case "VmRSS:":
			u.resident = n << 10
		case "VmHWM:":
			u.peak = n << 10
		case "Threads:":
			u.threads = n
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.pid))
	if err != nil {
		d.t.Fatal(err)
	}
	u.files = len(fds)
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.pid))
	if err != nil {
		d.t.Fatal(err)
	}
	f := statFields(string(stat))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	u.cpu = time.Duration(user+system) * (time.Second / 100)
	return u
}

// small wants that kzr never held more memory than it may. The race detector
// alone takes more than that.
func (d *daemon) small(limit int) {
	d.t.Helper()
	if u := d.usage(); u.peak > limit && !raceBuild {
		d.t.Errorf("kzr held %.1f MiB at its peak, more than %d MiB", float64(u.peak)/(1<<20), limit>>20)
		for line := range strings.Lines(readFile(d.t, fmt.Sprintf("/proc/%d/status", d.pid))) {
			if strings.HasPrefix(line, "Rss") { // of what kind it is now
				d.t.Log(strings.TrimSpace(line))
			}
		}
	}
}

// roomFor raises the machine's limits on tasks where they are lower, which
// disturbs nobody, until the test ends.
func roomFor(t *testing.T, tasks, highest int) {
	t.Helper()
	for _, l := range []struct {
		file string
		want int
		// What would be over the old limit: then the new one stays.
		used func() int
	}{
		{"/proc/sys/kernel/threads-max", tasks, func() int { return nodeTasks(t) }},
		{"/proc/sys/kernel/pid_max", highest, func() int { return highestPID(t) }},
	} {
		old := readNumber(t, l.file)
		if old >= l.want {
			continue
		}
		if err := os.WriteFile(l.file, []byte(strconv.Itoa(l.want)), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			for end := time.Now().Add(20 * time.Second); l.used() > old; time.Sleep(100 * time.Millisecond) {
				if time.Now().After(end) {
					t.Logf("%s stays at %d: more than %d is in use", l.file, l.want, old)
					return
				}
			}
			if err := os.WriteFile(l.file, []byte(strconv.Itoa(old)), 0o644); err != nil {
				t.Error(err)
			}
		})
	}
}

func readNumber(t *testing.T, file string) int {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return n
}

func nodeTasks(t *testing.T) (n int) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		t.Fatal(err)
	}
	_, total, _ := strings.Cut(strings.Fields(string(text))[3], "/")
	n, _ = strconv.Atoi(total)
	return n
}

func highestPID(t *testing.T) (highest int) {
	t.Helper()
	dir, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range dir {
		pid, _ := strconv.Atoi(e.Name())
		highest = max(highest, pid)
	}
	return highest
}

// status is the part of GET /v1/status that these tests look at.
type status struct {
	Problems []string `json:"problems"`
	Source   string   `json:"source"`
	Zombies  int      `json:"zombies"`
	Parents  int      `json:"parents"`
	Lost     int      `json:"lost"`
	Sweeps   int      `json:"sweeps"`

	LastSweep    time.Time `json:"lastSweep"`
	SweepSeconds float64   `json:"sweepSeconds"`
}

// socket is the flag that gives kzr a socket in the site's directory.
func (s *site) socket() string { return "--socket=" + filepath.Join(s.dir, "kzr.sock") }

// errAskAgain is in the error of a request that kzr has no time for.
var errAskAgain = errors.New("kzr is busy")

// open begins a request to the socket; the caller closes the answer.
func (s *site) open(path string) (io.ReadCloser, error) {
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(s.dir, "kzr.sock"))
		},
	}}
	answer, err := client.Get("http://kzr" + path)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if answer.Header.Get("Retry-After") != "" {
			err = errors.Join(err, errAskAgain)
		}
		return nil, errors.Join(fmt.Errorf("%s: %s: %s", path, answer.Status, body), err)
	}
	return answer.Body, nil
}

// get is the whole answer to a request to the socket.
func (s *site) get(path string) ([]byte, error) {
	body, err := s.open(path)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// ask gets a JSON document from the socket.
func (s *site) ask(path string, into any) error {
	body, err := s.get(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}

// wantText wants an answer. While kzr is busy it asks again.
func (s *site) wantText(path string) string {
	s.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		body, err := s.get(path)
		if err == nil {
			return string(body)
		}
		if !errors.Is(err, errAskAgain) || time.Now().After(deadline) {
			s.t.Fatal(err)
		}
	}
}

func (s *site) wantAnswer(path string, into any) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(s.wantText(path)), into); err != nil {
		s.t.Fatal(err)
	}
}

// Two parents make 16,000 zombies a second and hold them all. KZR_STORM is how
// many: `make reliability` makes 480,000, which is 30 seconds' worth, and fills a
// gigabyte of kernel memory for each 100,000.
func TestScenario22Storm(t *testing.T) {
	n := often(t, "KZR_STORM", 60_000)
	roomFor(t, n+100_000, 4<<20)
	// One after the other: it is the machine's memory that they fill.
	for _, mode := range []string{"ebpf", "proc"} {
		t.Run(mode, func(t *testing.T) { storm(t, "--mode="+mode, n) })
	}
}

// What kzr may hold with so many zombies on the node.
func residentWith(zombies int) int { return min(maxResident, 22<<20+90*zombies) }

func storm(t *testing.T, mode string, n int) {
	s := newSite(t)
	patient := strings.Replace(s.rule(), "}}", "}, grace: 1h}", 1)
	s.configure("", patient)
	m := s.newManager(30 * time.Second)
	k := s.startUnder(m, mode, "--scope=all", "--threshold=50", "--sweep-interval=10s", s.socket())
	before := k.usage()
	parents := map[*zoo.Zoo]int{
		zoo.Start(t, "exec=%s serve", s.exe): n / 2,
		zoo.Start(t, "exec=%s serve", s.exe): n - n/2,
	}

	began := time.Now()
	for z, share := range parents {
		z.Do("storm=%d,rate=8000", share)
	}
	for z, share := range parents {
		zoo.Within(t, time.Duration(n/16)*time.Millisecond*10+patience, "all are made", func() bool {
			time.Sleep(100 * time.Millisecond)
			return z.Count().Made == share
		})
	}
	took := time.Since(began)
	rate := float64(n) / took.Seconds()
	t.Logf("%d zombies in %v, %.0f a second; kzr: %v", n, took.Round(time.Second), rate, k.usage())

	// The truth with the first sweep that begins now. One may be under way.
	var st status
	zoo.Within(t, patience, "kzr says how it is", func() bool { return s.ask("/v1/status", &st) == nil })
	made, asked := st.Sweeps, time.Now()
	var seen time.Time // when kzr had made that sweep
	sweeps := 0
	zoo.Within(t, 2*patience+time.Duration(n)*300*time.Microsecond, "kzr counts them", func() bool {
		time.Sleep(250 * time.Millisecond)
		if err := s.ask("/v1/status", &st); err != nil {
			return false // busy: ask again
		}
		if seen.IsZero() && st.Sweeps >= made+2 {
			seen = time.Now()
		}
		var doc document
		if err := s.ask("/v1/parents", &doc); err != nil {
			return false
		}
		exact := true
		for z, share := range parents {
			p, _ := doc.of(z.PID)
			exact = exact && p.Reapable == share
			if p.Reapable != share && !seen.IsZero() && doc.Time.After(seen) {
				t.Fatalf("after %d sweeps kzr counts %d of %d zombies", st.Sweeps-made, p.Reapable, share)
			}
		}
		sweeps = st.Sweeps - made
		return exact
	})
	t.Logf("counted exactly after %v, %d sweeps; holding them: %v", time.Since(asked).Round(10*time.Millisecond), sweeps, k.usage())

	// They are acted on as soon as their rule says so.
	s.configure("", s.rule())
	reloaded := time.Now()
	k.send(unix.SIGHUP)
	for z := range parents {
		k.saw(z.PID, "signal SIGCHLD")
		k.saw(z.PID, "signal SIGTERM")
		z.WaitDead(patience)
		k.saw(z.PID, "terminated")
	}
	t.Logf("gone %v after the rule held; kzr: %v", time.Since(reloaded).Round(10*time.Millisecond), k.usage())
	k.small(residentWith(n))
	zoo.Within(t, patience, "the zombies are gone", func() bool {
		time.Sleep(100 * time.Millisecond)
		return nodeTasks(t) < n/2
	})
	fed := m.wantFed()
	record(t, n, fmt.Sprintf("%d zombies at the %.0f a second that the machine could make, held: counted exactly within two sweeps, %.0f MiB resident at the peak, CPU %v, parents removed, the watchdog fed every %v or sooner",
		n, rate, float64(k.usage().peak)/(1<<20), (k.usage().cpu-before.cpu).Round(10*time.Millisecond), fed.Round(100*time.Millisecond)))
}

// madeBy is how many children these have made together.
func madeBy(sources []*zoo.Zoo) (n int) {
	for _, z := range sources {
		n += z.Count().Made
	}
	return n
}

// While kzr cannot read, thousands of parents are hinted at: the ring overruns.
// Nothing is decided on what came through; kzr says so and looks at everything.
func TestScenario23RingOverrun(t *testing.T) {
	s := newSite(t)
	k := s.start("--mode=ebpf", "--scope=all", "--sweep-interval=1h", s.socket())
	var st status
	zoo.Within(t, patience, "the first sweep", func() bool { return s.ask("/v1/status", &st) == nil && st.Sweeps > 0 })
	k.send(unix.SIGSTOP)
	t.Cleanup(func() { _ = unix.Kill(k.pid, unix.SIGCONT) })
	before := st
	var sources []*zoo.Zoo
	for range 4 {
		sources = append(sources, zoo.Start(t, "exec=%s flash=0,kids=12 serve", s.exe))
	}
	const parents = 8000 // the ring has room for 4096
	zoo.Within(t, 3*patience, "short-lived parents come and go", func() bool { return madeBy(sources) >= parents })
	// This one's hint finds no room.
	late := zoo.Start(t, "exec=%s leak=30 serve", s.exe)
	for _, z := range sources {
		z.Do("quiet")
	}
	good := zoo.Start(t, "exec=%s fresh=30,age=300 serve", s.exe)
	k.send(unix.SIGCONT)
	cont := time.Now()
	lost := k.await("lost events", func(e event) bool { return e.Event == "lost_events" })
	// At once: the next one that is due by itself is an hour away.
	zoo.Within(t, patience, "a sweep after the loss", func() bool {
		return s.ask("/v1/status", &st) == nil && st.Sweeps > before.Sweeps && !st.LastSweep.Before(lost.Time)
	})
	swept := st.LastSweep.Sub(lost.Time)
	sig := k.saw(late.PID, "signal SIGCHLD")
	if sig.Zombies != 30 {
		t.Errorf("decided on an incomplete count: %s", sig.line)
	}
	late.WaitDead(patience)
	alive(t, good.Proc)
	k.silentAbout(0, good.PID)
	for _, z := range sources {
		alive(t, z.Proc)
		k.silentAbout(0, z.PID)
	}
	if lost.Level != "WARN" {
		t.Errorf("%s", lost.line)
	}
	s.wantAnswer("/v1/status", &st)
	if st.Lost == 0 {
		t.Error("the status counts no loss")
	}
	record(t, madeBy(sources), fmt.Sprintf("%d hints lost, said so; the parent whose hint was lost was found by a sweep within %v (signalled %v after kzr went on) and nobody else was touched",
		st.Lost, swept.Round(time.Millisecond), sig.Time.Sub(cont).Round(10*time.Millisecond)))
}

// The kernel side's tables are arrays and are never full. What can happen is that
// two processes share a slot, which costs the hint's precision and nothing else.
func TestScenario23SharedSlots(t *testing.T) {
	roomFor(t, 0, 4<<20)
	s := newSite(t)
	k := s.start("--mode=ebpf", "--scope=all", "--sweep-interval=1h", "--grace=2s", s.socket())
	main := zoo.Start(t, "serve")
	// Parents 65,536 apart, and zombies 524,288 apart: see bpf/kzr.bpf.c.
	const low = 1_100_000
	for i := range 4 {
		main.Do("fork=tid=%d { name=p%d exec=%s serve }", low+i*65536, i, s.exe)
	}
	var tenth [4]time.Time // a zombie each, with which it begins to meet the rule
	for n := range 30 {    // in turn, so that each takes the slot from the other
		for i := range 4 {
			if n == 9 {
				tenth[i] = time.Now()
			}
			main.Named(fmt.Sprintf("p%d", i)).Do("leak=1")
		}
	}
	for i := range 4 {
		p := main.Named(fmt.Sprintf("p%d", i))
		if e := k.saw(p.PID, "signal SIGCHLD"); e.Time.Sub(tenth[i]) < 2*time.Second {
			t.Errorf("signalled %v after its tenth zombie: %s", e.Time.Sub(tenth[i]), e.line)
		}
		p.WaitDead(patience)
		main.Do("reap=pid=%d", p.PID)
	}
	born := time.Now()
	main.Do("fork { name=pair exec=%s serve }", s.exe)
	pair := main.Named("pair")
	for i := range 12 {
		pair.Do("fork=tid=%d { exit } fork=tid=%d { exit }", low+500_000+i, low+500_000+i+524_288)
	}
	k.saw(pair.PID, "signal SIGCHLD")
	if e := k.all(about(pair.PID, "signal SIGCHLD"))[0]; e.Zombies != 24 || e.Time.Sub(born) < 2*time.Second {
		t.Errorf("after %v, 24 zombies: %s", e.Time.Sub(born), e.line)
	}
	record(t, 4*30+24, "parents and zombies that share slots of the kernel side's tables: all found by hints, none early")
}

// Parents that live for a millisecond and leave zombies to others, thousands a
// second of them if the machine can make so many.
func TestScenario34ParentStorm(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) { // the others have no time then
		s := newSite(t)
		k := s.start(mode, "--scope=all", s.socket())
		sources := []*zoo.Zoo{zoo.Start(t, "exec=%s flash=0,kids=3 serve", s.exe)}
		time.Sleep(time.Second)
		if madeBy(sources) < 2000 {
			sources = append(sources, zoo.Start(t, "exec=%s flash=0,kids=3 serve", s.exe))
		}
		half := time.Duration(often(t, "KZR_FLASH_SECONDS", 10)) * time.Second / 2
		time.Sleep(half) // first what kzr allocates once
		first, before, began := k.usage(), madeBy(sources), time.Now()
		time.Sleep(half)
		rate := float64(madeBy(sources)-before) / time.Since(began).Seconds()
		for _, z := range sources {
			z.Do("quiet")
		}
		last := k.usage()
		for _, z := range sources {
			k.silentAbout(0, z.PID)
		}
		if signals := k.all(isSignal); len(signals) > 0 {
			t.Errorf("signalled: %s", signals[0].line)
		}
		zoo.Within(t, patience, "kzr forgets the parents", func() bool {
			var doc document
			if err := s.ask("/v1/parents", &doc); err != nil {
				return false // busy: ask again
			}
			for _, p := range doc.Parents {
				if strings.HasPrefix(p.Exe, s.dir) {
					return false
				}
			}
			return true
		})
		for _, z := range sources {
			alive(t, z.Proc)
		}
		if grown := last.resident - first.resident; grown > 8<<20 && !raceBuild {
			t.Errorf("kzr grew from %v to %v", first, last)
		}
		if last.files > first.files+4 {
			t.Errorf("descriptors: from %v to %v", first, last)
		}
		record(t, madeBy(sources), fmt.Sprintf("%.0f parents a second: none left in kzr's view, no signal, %v", rate, last))
	})
}

// A waiting is a shell that was started while that was possible, and runs its
// script when told.
type waiting struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *strings.Builder
}

func newWaiting(t *testing.T, cmd *exec.Cmd) *waiting {
	t.Helper()
	w := &waiting{t: t, cmd: cmd, out: new(strings.Builder)}
	cmd.Stdout, cmd.Stderr = w.out, w.out
	cmd.WaitDelay = time.Second
	var err error
	if w.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if w.cmd.ProcessState == nil {
			_ = w.in.Close()
			_ = w.cmd.Wait()
		}
	})
	return w
}

// run says what the script printed and how it ended.
func (w *waiting) run() (output string, status int) {
	w.t.Helper()
	_, _ = io.WriteString(w.in, "go\n")
	_ = w.in.Close()
	late := time.AfterFunc(patience, func() { _ = w.cmd.Process.Kill() })
	defer late.Stop()
	_ = w.cmd.Wait()
	return w.out.String(), w.cmd.ProcessState.ExitCode()
}

// The script that kzr replaces, without its kills; and the smallest one that
// forks.
const (
	cronScript = `read go || exit 0; set -e; ps -eo pid,ppid,stat,cmd | awk '$3 == "Z" { print $2 }' | sort -u`
	forkScript = `read go || exit 0; set -e; (exit 0); /bin/true; echo forked`
)

// cannotFork wants that a script fails for want of a process.
func cannotFork(t *testing.T, w *waiting) {
	t.Helper()
	out, status := w.run()
	if status == 0 || !strings.Contains(strings.ToLower(out), "fork") {
		t.Errorf("with the table full a script ended with %d and said %q", status, out)
	}
}

func canFork(t *testing.T, w *waiting) {
	t.Helper()
	if out, status := w.run(); status != 0 || out != "forked\n" {
		t.Errorf("with room in the table a script ended with %d and said %q", status, out)
	}
}

// fill lets a process leak until nothing can fork, with kzr stopped, so that the
// table is full before kzr does anything, and stays so while it works.
func fill(t *testing.T, k *daemon, leaker *zoo.Proc) {
	t.Helper()
	k.send(unix.SIGSTOP)
	t.Cleanup(func() { _ = unix.Kill(k.pid, unix.SIGCONT) })
	leaker.Do("storm=0")
	refill(t, leaker)
}

// refill waits until the leaker has taken what the last one to end left free.
func refill(t *testing.T, leaker *zoo.Proc) {
	t.Helper()
	failed := leaker.Count().Failed
	zoo.Within(t, patience, "forks fail", func() bool { return leaker.Count().Failed > failed+3 })
}

// The process table of a pid namespace is full: nothing there can fork, root
// included. kzr, started before, is in there too and frees it.
func TestScenario28TableFull(t *testing.T) {
	t.Parallel()
	if major, minor := kernel(t); major < 6 || major == 6 && minor < 14 {
		t.Skip("a process table of its own has a pid namespace only since Linux 6.14; the virtual machines' test fills the real one")
	}
	s := newSite(t)
	z := zoo.Start(t, "in=pidns,proc chld=reap serve")
	lowerPidMax(t, z, 420)
	z.Do("fork { name=leaker exec=%s serve }", s.exe)
	leaker := z.Named("leaker")
	k := s.startInside(z, "--mode=proc", "--scope=all", "--grace=1h", "--pressure=0.85")
	began := k.usage()
	cron, before, after := newWaiting(t, inside(z, "sh", "-c", cronScript)), newWaiting(t, inside(z, "sh", "-c", forkScript)), newWaiting(t, inside(z, "sh", "-c", forkScript))
	for _, w := range []*waiting{cron, before, after} {
		zoo.Within(t, patience, "nsenter has forked", func() bool { return len(zoo.Children(w.cmd.Process.Pid)) == 1 })
	}

	fill(t, k, leaker)
	cannotFork(t, cron)
	refill(t, leaker)
	cannotFork(t, before)
	k.send(unix.SIGCONT)
	freed := time.Now()
	leaker.WaitDead(patience)
	took := time.Since(freed)
	k.await("the end of the leaker", func(e event) bool { return e.Event == "terminated" && e.Exe == s.exe })
	zoo.Within(t, patience, "its zombies are reaped", func() bool { return z.Zombies() < 5 })
	canFork(t, after)
	if u := k.usage(); u.threads != began.threads {
		t.Errorf("threads: %d before, %d after", began.threads, u.threads)
	}
	record(t, 1, fmt.Sprintf("nothing could fork, the cron script neither; kzr freed the table in %v with the threads it had", took.Round(10*time.Millisecond)))
}

// The same with a cgroup's limit around kzr itself, the leaker and everybody
// else.
func TestScenario28KzrInFullCgroup(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		box := zoo.NewCgroup(t, "pids", "full")
		enter := func(pid int) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(box.Dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		leaker := zoo.Start(t, "cgroup=%s exec=%s serve", box.Dir, s.exe)
		k := s.start(mode, "--scope=all", "--grace=1h", "--pressure=0.85")
		enter(k.pid)
		cron, before, after := newWaiting(t, exec.Command("sh", "-c", cronScript)), newWaiting(t, exec.Command("sh", "-c", forkScript)), newWaiting(t, exec.Command("sh", "-c", forkScript))
		for _, w := range []*waiting{cron, before, after} {
			enter(w.cmd.Process.Pid)
		}
		box.SetPidsMax(250)
		began := k.usage()

		fill(t, k, leaker.Proc)
		cannotFork(t, cron)
		refill(t, leaker.Proc)
		cannotFork(t, before)
		k.send(unix.SIGCONT)
		freed := time.Now()
		leaker.WaitDead(patience)
		took := time.Since(freed)
		k.saw(leaker.PID, "terminated")
		zoo.Within(t, patience, "its zombies are reaped", func() bool {
			return readNumber(t, filepath.Join(box.Dir, "pids.current")) < 100
		})
		canFork(t, after)
		if u := k.usage(); u.threads != began.threads {
			t.Errorf("threads: %d before, %d after", began.threads, u.threads)
		}
		// It is asked to reap, and not waited for.
		if story := k.floodStory(leaker.PID); len(story) < 2 || story[0] != "signal SIGCHLD" || story[1] != "signal SIGTERM" {
			t.Errorf("the story is %v", story)
		}
		record(t, 1, fmt.Sprintf("kzr in the full cgroup itself: freed in %v, no new thread", took.Round(10*time.Millisecond)))
	})
}

// Seven workloads fill a cgroup together, kzr in it, and the limits are those that
// kzr has by default: six are ended, and the seventh, which takes all the room
// that this makes, waits for its turn and no longer.
func TestScenario28MoreTargetsThanKills(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		box := zoo.NewCgroup(t, "pids", "full")
		const targets, limit, kills = 7, 700, 6
		script := ""
		for i := range targets {
			// More than a tenth of the limit each: all of them are why it is full.
			script += fmt.Sprintf("fork { name=leaker%d cgroup=%s exec=%s leak=%d serve } ",
				i, box.New("docker-"+containerID(t)+".scope").Dir, s.exe, limit/9)
		}
		others := box.New("others")
		enter := func(pid int) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(others.Dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		z := zoo.Start(t, "chld=reap %s serve", script)
		k := s.start(mode, "--grace=1h", "--pressure=0.85", fmt.Sprintf("--kills-per-minute=%d", kills), "--per-workload-kills=3")
		before, after := newWaiting(t, exec.Command("sh", "-c", forkScript)), newWaiting(t, exec.Command("sh", "-c", forkScript))
		for _, pid := range []int{k.pid, before.cmd.Process.Pid, after.cmd.Process.Pid} {
			enter(pid)
		}
		k.send(unix.SIGSTOP)
		t.Cleanup(func() { _ = unix.Kill(k.pid, unix.SIGCONT) })
		box.SetPidsMax(limit)
		pids := map[int]*zoo.Proc{}
		for i := range targets {
			p := z.Named(fmt.Sprintf("leaker%d", i))
			pids[p.PID] = p
			p.Do("storm=0,rate=500")
		}
		for _, p := range pids {
			refill(t, p)
		}
		cannotFork(t, before)
		for _, p := range pids {
			refill(t, p)
		}
		k.send(unix.SIGCONT)

		struck := func(e event) bool { return pids[e.PID] != nil && (e.Signal == "SIGTERM" || e.Signal == "SIGKILL") }
		ended := func(e event) bool { return pids[e.PID] != nil && e.Event == "terminated" }
		first := k.await("the first kill", struck)
		k.awaitN(kills, "six ends", ended)
		for _, e := range k.all(ended) {
			delete(pids, e.PID)
		}
		if len(pids) != targets-kills {
			t.Fatalf("%d of %d are left", len(pids), targets)
		}
		for pid, last := range pids {
			k.saw(pid, "spared rate_limited")
			refill(t, last)
			time.Sleep(time.Until(first.Time.Add(55 * time.Second)))
			alive(t, last)
			k.saw(pid, "terminated")
			last.WaitDead(0)
			// The minute is counted from the moment before the signal.
			if e := k.saw(pid, "signal SIGTERM"); e.Time.Sub(first.Time) < time.Minute-20*time.Millisecond {
				t.Errorf("it was ended %v after the first one", e.Time.Sub(first.Time))
			}
		}
		zoo.Within(t, patience, "the zombies are reaped", func() bool {
			return readNumber(t, filepath.Join(box.Dir, "pids.current")) < 100
		})
		canFork(t, after)
		record(t, targets, fmt.Sprintf("%d of %d ended at once, the last one when a minute was over, reported until then", kills, targets))
	})
}

// A pod that has used up its own pids.max, where kubelet puts it, is freed by the
// pressure rule, long before the grace. The other container in it is as unable to
// fork as the guilty one, and stays as it is.
func TestScenario29ContainerAtItsPidsMax(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		for _, c := range []struct {
			name, script string
			story        []string
		}{
			{"a process in it", "cgroup=%s fork=pidns,proc { name=init chld=reap fork { name=leaker exec=%s term=ignore serve } serve } serve",
				[]string{"signal SIGCHLD", "signal SIGTERM", "signal SIGKILL", "terminated"}},
			// It would never see a SIGTERM.
			{"its init", "cgroup=%s fork=pidns,proc { name=leaker exec=%s serve } serve",
				[]string{"signal SIGCHLD", "signal SIGKILL", "terminated"}},
		} {
			t.Run(c.name, func(t *testing.T) { fullPod(t, mode, c.script, c.story) })
		}
	})
}

func fullPod(t *testing.T, mode, script string, story []string) {
	s := newSite(t)
	id, other := containerID(t), containerID(t)
	pod := zoo.NewCgroup(t, "pids", "kubepods/burstable/pod0f2d4b6a-1111-4222-8333-944455556666")
	guilty, innocent := pod.New(id), pod.New(other)
	z := zoo.Start(t, script, guilty.Dir, s.exe)
	leaker := z.Named("leaker")
	good := zoo.Start(t, "cgroup=%s fork=pidns,proc { name=good exec=%s term=count fresh=15,age=200 serve } serve", innocent.Dir, s.exe).Named("good")
	after := newWaiting(t, exec.Command("sh", "-c", forkScript))
	if err := os.WriteFile(filepath.Join(innocent.Dir, "cgroup.procs"), []byte(strconv.Itoa(after.cmd.Process.Pid)), 0o644); err != nil {
		t.Fatal(err)
	}
	// Where a fork failed or what limit was in its way: which of them has the event
	// differs between cgroup v1 and v2.
	denied := func() (n int) {
		for _, g := range []*zoo.Cgroup{pod, guilty, innocent} {
			text := readFile(t, filepath.Join(g.Dir, "pids.events"))
			times, err := strconv.Atoi(strings.TrimPrefix(text, "max "))
			if err != nil {
				t.Fatalf("pids.events: %q", text)
			}
			n += times
		}
		return n
	}
	zoo.Within(t, patience, "the innocent has zombies", func() bool { return good.Zombies() >= 10 })
	pod.SetPidsMax(100)
	k := s.start(mode, "--grace=1h", "--nudge=1h", "--term-timeout=1h", "--pressure=0.85")
	fill(t, k, leaker)
	if denied() == 0 {
		t.Error("forks fail, but not at the limit of the pod")
	}
	zoo.Within(t, patience, "forks fail in the other container too", func() bool { return good.Count().Failed > 0 })
	k.send(unix.SIGCONT)
	began := time.Now()
	leaker.WaitDead(patience)
	took := time.Since(began)
	k.saw(leaker.PID, "terminated")
	if got := k.floodStory(leaker.PID); !slices.Equal(got, story) {
		t.Errorf("its story is %q, but should be %q", got, story)
	}
	if e := k.all(about(leaker.PID, "signal SIGKILL"))[0]; e.ContainerID != id {
		t.Errorf("container: %s", e.line)
	}
	zoo.Within(t, patience, "its zombies are reaped", func() bool {
		return readNumber(t, filepath.Join(pod.Dir, "pids.current")) < 50
	})
	canFork(t, after)
	k.never(0, "another signal", func(e event) bool { return isSignal(e) && e.PID != leaker.PID })
	alive(t, z.Proc, good)
	made := good.Count()
	if made.TERM != 0 {
		t.Errorf("the innocent: %+v", made)
	}
	zoo.Within(t, patience, "the innocent works on", func() bool { return good.Count().Reaped > made.Reaped })
	record(t, 1, fmt.Sprintf("no container of the pod could fork; freed %v after kzr could run, the other container is unharmed", took.Round(10*time.Millisecond)))
}

// Clients of every bad kind at once, of the socket and of the figures. The daemon
// does its job in time, who asks well is answered, and all is as it was when they
// are gone.
func TestScenario33HostileClients(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"ebpf", "proc"} { // one after the other, as both are in a hurry
		t.Run(mode, func(t *testing.T) { hostileClients(t, "--mode="+mode) })
	}
}

func hostileClients(t *testing.T, mode string) {
	s := newSite(t)
	metrics := freeAddress(t)
	k := s.start(mode, "--scope=all", "--sweep-interval=1s", s.socket(), "--metrics="+metrics)
	// What the machine has time for shows in a kzr that nobody disturbs.
	quiet := s.start(mode, "--scope=all", "--sweep-interval=1s", "--dry-run")
	path := filepath.Join(s.dir, "kzr.sock")
	var warm document
	s.wantAnswer("/v1/parents", &warm)
	before := k.usage()

	quit := make(chan struct{})
	var clients sync.WaitGroup
	sent := make([]int, 9)
	var pids atomic.Int64
	kinds := []func(c net.Conn){
		func(net.Conn) {}, // says nothing
		func(c net.Conn) { _, _ = c.Write([]byte(strings.Repeat("\x00\xff\x1b[2J garbage\r\n", 500))) },
		func(c net.Conn) { _, _ = io.WriteString(c, "GET /v1/events HTTP/1.1\r\nHost: kzr\r\n\r\n") }, // never reads
		func(c net.Conn) { // one byte now and then
			_, _ = io.WriteString(c, "GET /v1/parents HTTP/1.1\r\nHost: kzr\r\n\r\n")
			for b := make([]byte, 1); ; {
				if _, err := c.Read(b); err != nil {
					return
				}
				select {
				case <-quit:
					return
				case <-time.After(50 * time.Millisecond):
				}
			}
		},
		func(c net.Conn) { _, _ = io.WriteString(c, "GET /v1/status HTTP/1.1\r\nHost: k") }, // half a request
		func(c net.Conn) { // headers without end
			_, _ = io.WriteString(c, "GET /v1/status HTTP/1.1\r\n")
			for range 2000 {
				if _, err := io.WriteString(c, "X-A: "+strings.Repeat("a", 500)+"\r\n"); err != nil {
					return
				}
			}
		},
		func(c net.Conn) { // asks without end and never reads
			for range 20000 {
				if _, err := io.WriteString(c, "GET /v1/parents HTTP/1.1\r\nHost: kzr\r\n\r\n"); err != nil {
					return
				}
			}
		},
		func(c net.Conn) { // asks about one after the other, each of which is an answer of its own
			for range 200 {
				if _, err := fmt.Fprintf(c, "GET /v1/parents/%d HTTP/1.1\r\nHost: kzr\r\n\r\n", 1+pids.Add(1)%4000); err != nil {
					return
				}
			}
			_, _ = io.Copy(io.Discard, c)
		},
		func(c net.Conn) {
			_, _ = io.WriteString(c, "POST /v1/status HTTP/1.1\r\nHost: kzr\r\nContent-Length: 999999999\r\n\r\n"+strings.Repeat("x", 100000))
		},
	}
	var mu sync.Mutex
	attack := func(kind, each int, network, address string) {
		act := kinds[kind]
		for range each {
			clients.Go(func() {
				for {
					c, err := net.Dial(network, address)
					if err == nil {
						mu.Lock()
						sent[kind]++
						mu.Unlock()
						_ = c.SetWriteDeadline(time.Now().Add(2 * time.Second))
						_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
						act(c)
						select {
						case <-quit:
						case <-time.After(time.Second):
						}
						_ = c.Close()
					}
					select {
					case <-quit:
						return
					case <-time.After(20 * time.Millisecond):
					}
				}
			})
		}
	}
	for kind := range kinds {
		attack(kind, 50, "unix", path)
		attack(kind, 3, "tcp", metrics) // all 32 connections would leave none for who asks well
	}
	scrapes, longest := 0, time.Duration(0)
	clients.Go(func() {
		client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		for since := time.Now(); ; {
			if r, err := client.Get("http://" + metrics + "/metrics"); err == nil {
				text, err := io.ReadAll(r.Body)
				r.Body.Close()
				if err == nil && r.StatusCode == http.StatusOK && strings.Contains(string(text), "\nkzr_sweeps_total ") {
					scrapes++
					longest = max(longest, time.Since(since))
					since = time.Now()
				}
			}
			select {
			case <-quit:
				longest = max(longest, time.Since(since))
				return
			case <-time.After(500 * time.Millisecond):
			}
		}
	})
	stopClients := sync.OnceFunc(func() { close(quit); clients.Wait() })
	t.Cleanup(stopClients)

	// Meanwhile, target after target.
	var worst, usual time.Duration
	targets := 0
	for end := time.Now().Add(time.Duration(often(t, "KZR_HOSTILE_SECONDS", 15)) * time.Second); time.Now().Before(end); targets++ {
		z := zoo.Start(t, "exec=%s leak=20 chld=count serve", s.exe)
		met := time.Now().Add(time.Second)
		z.WaitDead(patience)
		late := k.saw(z.PID, "signal SIGCHLD").Time.Sub(met)
		yardstick := late // if the other one did not come to it at all
		if of := quiet.all(about(z.PID, "signal SIGCHLD")); len(of) > 0 {
			yardstick = of[0].Time.Sub(met)
		}
		if late > 3*time.Second+3*max(yardstick, 0) {
			t.Errorf("a target waited %v, and %v for a kzr that nobody disturbs", late, yardstick)
		}
		worst, usual = max(worst, late), max(usual, yardstick)
	}
	during := k.usage()
	stopClients()
	total := 0
	for _, n := range sent {
		total += n
	}
	if scrapes == 0 || longest > patience/2 {
		t.Errorf("%d scrapes, and none for %v", scrapes, longest)
	}
	zoo.Within(t, patience, "the connections are closed", func() bool { return k.usage().files <= before.files+4 })
	s.wantAnswer("/v1/parents", &warm)
	t.Logf("before %v; during %v; after %v", before, during, k.usage())
	k.small(maxResident)
	record(t, total, fmt.Sprintf("%d connections of %d bad kinds beside %d targets, each signalled within %v (%v by a kzr without clients), and %d scrapes, none later than %v after the last; %.0f MiB at the peak, %d descriptors then, %d after",
		total, len(kinds), targets, worst.Round(10*time.Millisecond), usual.Round(10*time.Millisecond), scrapes, longest.Round(100*time.Millisecond), float64(k.usage().peak)/(1<<20), during.files, k.usage().files))
}
