package bench

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/zoo"
)

// peersDir holds those of the others that are not installed: see deploy/dev/bench.sh.
func peersDir() string {
	dir := os.Getenv("KZR_PEERS")
	if dir == "" {
		dir = "../../.cache/peers"
	}
	return dir
}

// peer is something that an operator could run to know about processes that end.
type peer struct {
	name   string
	argv   []string
	events bool // it hears of every exit, or has a program there
	scrape int  // the port at which it answers a scrape, 0 if it does not
}

const (
	nodePort    = 19100
	processPort = 19256
)

func kzrPeer(b *testing.B, args ...string) peer {
	name := "kzr"
	if len(args) > 0 {
		name += " " + strings.Join(args, " ")
	}
	return peer{name: name, argv: append([]string{build(b), "run", "--socket", "", "--dry-run", "--log-format", "json"}, args...), events: len(args) == 0}
}

// peers are kzr and the others. What they print goes to /dev/null, which costs them
// least.
func peers(b *testing.B) []peer {
	b.Helper()
	extracted := func(name string) string {
		for _, dir := range []string{"usr/bin", "usr/sbin", "bin", "sbin"} {
			path := filepath.Join(peersDir(), "root", dir, name)
			if _, err := os.Stat(path); err == nil {
				return path
			}
		}
		b.Fatalf("%s is not there: make bench gets it", name)
		return ""
	}
	return []peer{
		kzrPeer(b),
		kzrPeer(b, "--mode=proc"),
		{name: "forkstat", argv: []string{"forkstat", "-e", "exit"}, events: true},
		{name: "exitsnoop", argv: []string{"exitsnoop"}, events: true},
		{name: "bpftrace", argv: []string{"bpftrace", "-e", `tracepoint:sched:sched_process_exit { printf("%d %s\n", pid, comm); }`}, events: true},
		{name: "node_exporter", argv: []string{extracted("prometheus-node-exporter"), "--collector.disable-defaults", "--collector.processes",
			fmt.Sprintf("--web.listen-address=127.0.0.1:%d", nodePort)}, scrape: nodePort},
		{name: "process-exporter", argv: []string{extracted("prometheus-process-exporter"), "-procnames", "kzr,bash",
			fmt.Sprintf("-web.listen-address=127.0.0.1:%d", processPort)}, scrape: processPort},
		{name: "earlyoom", argv: []string{extracted("earlyoom"), "--dryrun", "-r", "0"}},
	}
}

// running is a peer that has settled.
type running struct {
	peer
	b    *testing.B
	cmd  *exec.Cmd
	once sync.Once
}

// start starts a peer and waits until it sleeps.
func (p peer) start(b *testing.B) *running {
	b.Helper()
	r := &running{peer: p, b: b, cmd: exec.Command(p.argv[0], p.argv[1:]...)}
	r.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		b.Fatalf("%s: %v", p.name, err)
	}
	b.Cleanup(r.stop)
	deadline := time.Now().Add(soon)
	for before, quiet := time.Duration(-1), 0; quiet < 3; {
		time.Sleep(100 * time.Millisecond)
		if time.Now().After(deadline) {
			b.Fatalf("%s does not come to rest", p.name)
		}
		if err := unix.Kill(r.cmd.Process.Pid, 0); err != nil || zoo.State(r.cmd.Process.Pid) == 'Z' {
			b.Fatalf("%s has ended", p.name)
		}
		cpu := r.cpu()
		if quiet++; cpu-before > 3*time.Millisecond {
			quiet = 0
		}
		before = cpu
	}
	return r
}

func (r *running) stop() {
	r.once.Do(func() {
		late := time.AfterFunc(10*time.Second, func() { _ = r.cmd.Process.Kill() })
		defer late.Stop()
		_ = r.cmd.Process.Signal(unix.SIGTERM)
		_ = r.cmd.Wait() // some end by the signal
	})
}

// family are the pids of it and its children: kzr has a helper.
func (r *running) family() []int {
	pid := r.cmd.Process.Pid
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	all := []int{pid}
	for f := range strings.FieldsSeq(string(text)) {
		if n, err := strconv.Atoi(f); err == nil {
			all = append(all, n)
		}
	}
	return all
}

// threads calls f with the directory of each of its threads in /proc.
func (r *running) threads(f func(dir string)) {
	for _, pid := range r.family() {
		dirs, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		for _, dir := range dirs {
			f(dir)
		}
	}
}

// cpu is what all its threads have run, by the scheduler's count.
func (r *running) cpu() (sum time.Duration) {
	r.threads(func(dir string) {
		text, err := os.ReadFile(dir + "/schedstat")
		if f := strings.Fields(string(text)); err == nil && len(f) > 0 {
			ns, _ := strconv.ParseInt(f[0], 10, 64)
			sum += time.Duration(ns)
		}
	})
	return sum
}

// wakeups is how often its threads have gone to sleep.
func (r *running) wakeups() (n int) {
	r.threads(func(dir string) { n += statusOf(dir+"/status", "voluntary_ctxt_switches") })
	return n
}

// resident is its memory in MiB.
func (r *running) resident() float64 {
	var kb int
	for _, pid := range r.family() {
		kb += statusOf(fmt.Sprintf("/proc/%d/status", pid), "VmRSS")
	}
	return float64(kb) / 1024
}

func statusOf(file, key string) int {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, key+":"); ok {
			n, _ := strconv.Atoi(strings.Fields(v)[0])
			return n
		}
	}
	return 0
}

// pin lets it run on these CPUs only.
func (r *running) pin(cpus ...int) {
	r.threads(func(dir string) {
		if tid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			pin(tid, cpus...)
		}
	})
}

func pin(tid int, cpus ...int) {
	var set unix.CPUSet
	for _, c := range cpus {
		set.Set(c)
	}
	_ = unix.SchedSetaffinity(tid, &set) // a thread that has ended needs none
}

// scraped asks it for its metrics, if it has any.
func (r *running) scraped() {
	if r.scrape == 0 {
		return
	}
	client := http.Client{Timeout: soon, Transport: &http.Transport{DisableKeepAlives: true, DialContext: new(net.Dialer).DialContext}}
	resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", r.scrape))
	if err != nil {
		r.b.Fatalf("%s: %v", r.name, err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n == 0 {
		r.b.Fatalf("%s: %d bytes, %v", r.name, n, err)
	}
}
