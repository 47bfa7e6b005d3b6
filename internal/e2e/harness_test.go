package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"kzr/internal/zoo"
)

// patience bounds every wait for something that is to happen: it takes
// milliseconds on an idle machine, or the second or two that the test's own
// settings say.
const patience = 60 * time.Second

// inBothModes runs a test once with each source of snapshots.
func inBothModes(t *testing.T, f func(t *testing.T, mode string)) {
	t.Helper()
	t.Parallel()
	eachMode(t, f)
}

// eachMode is inBothModes for a test beside which no other is to run.
func eachMode(t *testing.T, f func(t *testing.T, mode string)) {
	t.Helper()
	for _, mode := range []string{"ebpf", "proc"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			f(t, "--mode="+mode)
		})
	}
}

// ownMachine skips a test that would take the machine from those who use it. In the
// machines of `make vmtest`, which say that they are the tests' own, it runs.
func ownMachine(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("KZR_OWN_MACHINE") != "1" {
		t.Skipf("%s: `make vmtest` does it in a virtual machine", why)
	}
}

// A site is where one test's processes live: executables in its directory are
// what its kzr may act on.
type site struct {
	t      *testing.T
	dir    string
	exe    string   // a copy of the zoo's program
	config string   // the file with the rules
	mine   []string // prefixes of the executables that may be signalled
	ours   []string // ids of the containers in which anybody may be
}

// newSite makes one. The rules are put before the one that keeps kzr from
// everything else; without any, everything in the directory may be acted on.
func newSite(t *testing.T, rules ...string) *site {
	t.Helper()
	dir, err := publicDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &site{t: t, dir: dir, exe: filepath.Join(dir, "leaker"), config: filepath.Join(dir, "kzr.yaml")}
	s.mine = []string{dir + "/"}
	zoo.Install(t, s.exe)
	if len(rules) == 0 {
		rules = []string{s.rule()}
	}
	s.configure("", rules...)
	return s
}

// rule is the one for everything in the directory.
func (s *site) rule() string {
	return fmt.Sprintf("{name: mine, match: {exe: %q}}", s.dir+"/*")
}

// configure writes the file anew: further keys and rules.
func (s *site) configure(keys string, rules ...string) {
	s.t.Helper()
	text := keys + "\nrules:\n"
	for _, r := range append(rules, "{name: rest, action: observe}") {
		text += "- " + r + "\n"
	}
	if err := os.WriteFile(s.config, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// An event is one line of the log.
type event struct {
	Time      time.Time `json:"time"`
	Level     string    `json:"level"`
	Event     string    `json:"event"`
	Msg       string    `json:"msg"`
	PID       int       `json:"pid"`
	StartTime uint64    `json:"starttime"`
	Comm      string    `json:"comm"`
	Exe       string    `json:"exe"`
	UID       uint32    `json:"uid"`
	Zombies   int       `json:"zombies"`
	Reapable  int       `json:"reapable"`
	Oldest    float64   `json:"oldestSeconds"`
	Rule      string    `json:"rule"`
	Signal    string    `json:"signal"`
	DryRun    *bool     `json:"dry_run"`
	By        string    `json:"by"`
	Reason    string    `json:"reason"`
	Until     time.Time `json:"until"`
	Workload  string    `json:"workload"`
	Source    string    `json:"source"`
	Why       string    `json:"why"`
	Error     string    `json:"error"`

	ContainerID      string `json:"container_id"`
	LimitsOverridden bool   `json:"limits_overridden"`

	line string
}

// String is an event in two words: "signal SIGTERM", "spared traced".
func (e event) String() string {
	word := e.Event
	if word == "" {
		word = strings.ToLower(e.Level)
	}
	return strings.TrimSpace(word + " " + e.Signal + e.Reason)
}

// A daemon is a running `kzr run`, with what it logged.
type daemon struct {
	t       *testing.T
	site    *site
	cmd     *exec.Cmd
	pid     int // of kzr itself
	began   time.Time
	threads int
	kids    []int // children: the helper that reaps inside parents, if it has one

	mu      sync.Mutex
	events  []event
	foreign []string // lines that are no JSON
	changed chan struct{}
	over    chan struct{} // closed at the end of its log
	ended   bool
}

// usual are the settings of most tests: quick, and without what the rest of the
// machine could set off. Those given to start come after them, and win.
func (s *site) usual() []string {
	return []string{
		"--config=" + s.config, "--socket=", "--log-format=json", "--pressure=0",
		"--threshold=10", "--grace=1s", "--nudge=300ms", "--term-timeout=500ms",
		"--kills-per-minute=1000", "--per-workload-kills=1000",
	}
}

// command is kzr, or kzr in a cage.
func command(t *testing.T, steps string, args ...string) *exec.Cmd {
	t.Helper()
	if steps == "" {
		return exec.CommandContext(context.Background(), program(t), args...)
	}
	cmd := exec.CommandContext(context.Background(), os.Args[0], append([]string{program(t)}, args...)...)
	cmd.Env = append(os.Environ(), "KZR_TEST_CAGE="+steps)
	return cmd
}

// start starts the daemon and returns when it watches.
func (s *site) start(flags ...string) *daemon {
	s.t.Helper()
	return s.launch(command(s.t, "", append(append([]string{"run"}, s.usual()...), flags...)...))
}

// startIn is start in a cage.
func (s *site) startIn(steps string, flags ...string) *daemon {
	s.t.Helper()
	return s.launch(command(s.t, steps, append(append([]string{"run"}, s.usual()...), flags...)...))
}

// launch starts the command. When the test ends, so does the daemon, and it has
// to do that well.
func (s *site) launch(cmd *exec.Cmd) *daemon {
	t := s.t
	t.Helper()
	d := &daemon{t: t, site: s, cmd: cmd, changed: make(chan struct{}), over: make(chan struct{}), began: time.Now()}
	// A pipe of our own: Wait must not close what is still to be read.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = w
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	// A test that times out runs no cleanup.
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	err = cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		t.Fatal("starting kzr:", err)
	}
	d.pid = cmd.Process.Pid
	go d.listen(r)
	t.Cleanup(func() {
		d.stop()
		if stdout.Len() > 0 {
			t.Errorf("kzr run writes to standard output: %q", stdout.String())
		}
		if t.Failed() {
			t.Logf("the log of kzr %d:\n%s", d.pid, d.log())
		}
	})
	d.await("started", func(e event) bool { return e.Event == "started" })
	d.counted()
	return d
}

// counted keeps what the daemon began with. More it may never have, and no dead child.
func (d *daemon) counted() { d.threads, d.kids = threads(d.pid), zoo.Children(d.pid) }

// A manager is a service manager as kzr knows it: the socket that it notifies.
type manager struct {
	t    *testing.T
	path string
	// watchdog is how long it may be left without a sign of life.
	watchdog time.Duration
	conn     *net.UnixConn
	done     chan struct{}

	mu    sync.Mutex
	ready bool
	beats []time.Time // when the watchdog was fed
}

func (s *site) newManager(watchdog time.Duration) *manager {
	s.t.Helper()
	m := &manager{t: s.t, path: filepath.Join(s.dir, "notify.sock"), watchdog: watchdog, done: make(chan struct{})}
	var err error
	if m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"}); err != nil {
		s.t.Fatal(err)
	}
	go m.listen()
	s.t.Cleanup(func() { m.conn.Close(); <-m.done })
	return m
}

// startUnder is start as the service of a manager.
func (s *site) startUnder(m *manager, flags ...string) *daemon {
	s.t.Helper()
	cmd := command(s.t, "", append(append([]string{"run"}, s.usual()...), flags...)...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.path, fmt.Sprintf("WATCHDOG_USEC=%d", m.watchdog.Microseconds()))
	return s.launch(cmd)
}

func (m *manager) listen() {
	defer close(m.done)
	for b := make([]byte, 4096); ; {
		n, err := m.conn.Read(b)
		if err != nil {
			return // closed
		}
		m.mu.Lock()
		for line := range strings.Lines(string(b[:n])) {
			switch strings.TrimSuffix(line, "\n") {
			case "READY=1":
				m.ready = true
			case "WATCHDOG=1":
				m.beats = append(m.beats, time.Now())
			}
		}
		m.mu.Unlock()
	}
}

// fed returns how often the watchdog was fed so far.
func (m *manager) fed() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.beats)
}

// wantFed wants that kzr was ready, and fed the watchdog in time until now. It
// returns the longest time between two signs of life.
func (m *manager) wantFed() (longest time.Duration) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.ready || len(m.beats) == 0 {
		m.t.Fatalf("the manager was told ready: %t, and %d signs of life", m.ready, len(m.beats))
	}
	for i, b := range m.beats {
		next := time.Now()
		if i+1 < len(m.beats) {
			next = m.beats[i+1]
		}
		longest = max(longest, next.Sub(b))
	}
	if longest > m.watchdog {
		m.t.Errorf("the watchdog was not fed for %v", longest)
	}
	return longest
}

func (d *daemon) listen(r io.ReadCloser) {
	defer close(d.over)
	defer r.Close()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		d.mu.Lock()
		e := event{line: lines.Text()}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			d.foreign = append(d.foreign, e.line)
		} else {
			d.events = append(d.events, e)
		}
		close(d.changed)
		d.changed = make(chan struct{})
		d.mu.Unlock()
	}
}

// log is all that kzr wrote.
func (d *daemon) log() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b strings.Builder
	for _, e := range d.events {
		// The whole machine's parents are in it; what matters is the test's own.
		if e.Rule == "rest" && !strings.HasPrefix(e.Exe, d.site.dir) {
			continue
		}
		b.WriteString(e.line + "\n")
	}
	for _, l := range d.foreign {
		b.WriteString(l + "\n")
	}
	return b.String()
}

// all returns the events so far that fit.
func (d *daemon) all(fits func(event) bool) []event {
	d.mu.Lock()
	events := d.events
	d.mu.Unlock()
	var out []event
	for _, e := range events {
		if fits(e) {
			out = append(out, e)
		}
	}
	return out
}

// await returns the first event that fits, in the past or when it comes.
func (d *daemon) await(what string, fits func(event) bool) event {
	d.t.Helper()
	return d.awaitN(1, what, fits)[0]
}

// awaitN returns the events that fit as soon as there are n.
func (d *daemon) awaitN(n int, what string, fits func(event) bool) []event {
	d.t.Helper()
	deadline := time.After(patience)
	over := d.over
	for last := false; ; {
		d.mu.Lock()
		changed := d.changed
		d.mu.Unlock()
		got := d.all(fits)
		if len(got) >= n {
			return got
		}
		if last {
			d.t.Fatalf("kzr ended before the log showed %s; the log:\n%s", what, d.log())
		}
		select {
		case <-changed:
		case <-over:
			last = true // what came last is looked at as well
		case <-deadline:
			d.t.Fatalf("nothing in the log after %v: %s, %d of %d", patience, what, len(got), n)
		}
	}
}

// saw waits for an event, in the words of event.String, about a process.
func (d *daemon) saw(pid int, words string) event {
	d.t.Helper()
	return d.await(fmt.Sprintf("%q for pid %d", words, pid), func(e event) bool { return e.PID == pid && e.String() == words })
}

// story is what was done about a process and why, in the words of event.String.
// Suspicion is left out: a slow machine can come to a target late and never
// merely suspect it.
func (d *daemon) story(pid int) []string {
	var words []string
	for _, e := range d.all(func(e event) bool { return e.PID == pid && e.Event != "suspect" }) {
		words = append(words, e.String())
	}
	return words
}

// floodStory is the story of one that forks as fast as it can: at times it is found
// in the kernel, and put off.
func (d *daemon) floodStory(pid int) []string {
	return slices.DeleteFunc(d.story(pid), func(words string) bool { return words == "spared uninterruptible" })
}

// wantStory compares the story of a process.
func (d *daemon) wantStory(pid int, want ...string) {
	d.t.Helper()
	if got := d.story(pid); !slices.Equal(got, want) {
		d.t.Errorf("the story of pid %d is\n\t%s\nbut should be\n\t%s", pid, strings.Join(got, ", "), strings.Join(want, ", "))
	}
}

// silentAbout watches for a while and wants no event at all about these
// processes, from the start on. One about the workload, which the tests share, can
// name any of them.
func (d *daemon) silentAbout(window time.Duration, pids ...int) {
	d.t.Helper()
	d.never(window, "an event", func(e event) bool { return slices.Contains(pids, e.PID) && !ofWorkload(e) })
}

// never watches for a while and wants no event that fits, from the start on.
func (d *daemon) never(window time.Duration, what string, fits func(event) bool) {
	d.t.Helper()
	select {
	case <-time.After(window):
	case <-d.over:
		d.t.Fatalf("kzr has ended; its log:\n%s", d.log())
	}
	for _, e := range d.all(fits) {
		d.t.Errorf("there should not be %s: %s", what, e.line)
	}
}

// ofWorkload is about all parents of a workload together, of which it names the largest:
// no rule is said to match, and one of a site's matches every parent.
func ofWorkload(e event) bool { return e.Event == "suspect" && e.Rule == "" }

func isSignal(e event) bool { return e.Event == "signal" }

// isKill is a signal that harms.
func isKill(e event) bool { return isSignal(e) && e.Signal != "SIGCHLD" }

func about(pid int, words string) func(event) bool {
	return func(e event) bool { return e.PID == pid && e.String() == words }
}

// send sends kzr a signal.
func (d *daemon) send(sig syscall.Signal) {
	d.t.Helper()
	if err := syscall.Kill(d.pid, sig); err != nil {
		d.t.Fatalf("%v to kzr: %v", sig, err)
	}
}

// murder ends kzr without a chance to do anything.
func (d *daemon) murder() {
	d.t.Helper()
	d.send(syscall.SIGKILL)
	d.ended = true
	_ = d.cmd.Wait()
	<-d.over
}

// stop ends kzr as its service manager does, and wants that it goes at once, well
// and without another signal. It also wants what holds for every run: no child and
// no thread more than at the start, and nobody signalled but the test's own.
func (d *daemon) stop() {
	d.t.Helper()
	if d.ended {
		return
	}
	d.ended = true
	if d.threads > 0 {
		if n := threads(d.pid); n != d.threads {
			d.t.Errorf("kzr has %d threads, it began with %d", n, d.threads)
		}
		if kids := zoo.Children(d.pid); !slices.Equal(kids, d.kids) {
			d.t.Errorf("kzr has the children %v, it began with %v", kids, d.kids)
		}
		if n := zoo.Zombies(d.pid); n > 0 {
			d.t.Errorf("kzr has %d zombies itself", n)
		}
	}
	asked := time.Now()
	_ = syscall.Kill(d.pid, syscall.SIGTERM) // if it has ended by itself, Wait says how
	// An nsenter in between stops itself when kzr is stopped.
	_ = d.cmd.Process.Signal(syscall.SIGCONT)
	late := time.AfterFunc(patience, func() {
		_ = syscall.Kill(d.pid, syscall.SIGKILL)
		_ = d.cmd.Process.Kill()
	})
	err := d.cmd.Wait()
	late.Stop()
	<-d.over
	if err != nil {
		d.t.Errorf("kzr ended after SIGTERM with: %v", err)
	}
	// Ladders end where they are; nothing of them is waited for.
	if took := time.Since(asked); took > patience/2 {
		d.t.Errorf("kzr took %v to stop", took)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(d.events); n == 0 || d.events[n-1].Event != "stopping" {
		d.t.Error("the log does not end with stopping")
	}
	for _, line := range d.foreign {
		d.t.Errorf("a line that is not JSON: %q", line)
	}
	for _, e := range d.events {
		ours := slices.Contains(d.site.ours, e.ContainerID) ||
			slices.ContainsFunc(d.site.mine, func(prefix string) bool { return strings.HasPrefix(e.Exe, prefix) })
		if isSignal(e) && !ours {
			d.t.Errorf("a stranger was signalled: %s", e.line)
		}
	}
}

func threads(pid int) int {
	list, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return len(list)
}

// A result is how a command that ends by itself ended.
type result struct {
	stdout, stderr string
	status         int
}

// run runs kzr in a cage (or none) to its end.
func run(t *testing.T, steps string, args ...string) result {
	t.Helper()
	return finish(t, command(t, steps, args...))
}

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	err := cmd.Wait()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// refused wants one clear line and nothing else.
func (r result) refused(t *testing.T, status int, words ...string) {
	t.Helper()
	if raceBuild { // whose runtime has its say where there is no /proc
		lines := slices.DeleteFunc(strings.SplitAfter(r.stderr, "\n"), func(l string) bool { return strings.HasPrefix(l, "==") })
		r.stderr = strings.Join(lines, "")
	}
	if r.status != status || r.stdout != "" || strings.Count(r.stderr, "\n") != 1 || !strings.HasPrefix(r.stderr, "kzr: ") {
		t.Fatalf("want status %d and one line of kzr's, got %d\n%s%s", status, r.status, r.stdout, r.stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.stderr, w) {
			t.Errorf("%q is not in %q", w, r.stderr)
		}
	}
}

// A document is what `kzr scan --json` prints, as the contract has it.
type document struct {
	Time    time.Time `json:"time"`
	Host    string    `json:"host"`
	Source  string    `json:"source"`
	Tasks   int       `json:"tasks"`
	Zombies int       `json:"zombies"`
	Parents []parent  `json:"parents"`
	Omitted int       `json:"omitted"`

	Workloads   []workload `json:"workloads"`
	Limitations []string   `json:"limitations"`
}

type parent struct {
	PID             int        `json:"pid"`
	StartTime       uint64     `json:"starttime"`
	Comm            string     `json:"comm"`
	Exe             string     `json:"exe"`
	Cmdline         []string   `json:"cmdline"`
	UID             uint32     `json:"uid"`
	State           string     `json:"state"`
	Cgroup          string     `json:"cgroup"`
	Container       *container `json:"container"`
	Zombies         int        `json:"zombies"`
	Workload        string     `json:"workload"`
	Reapable        int        `json:"reapable"`
	Adopted         int        `json:"adopted"`
	OldestSeconds   *float64   `json:"oldestSeconds"`
	Verdict         string     `json:"verdict"`
	Reason          string     `json:"reason"`
	Until           *time.Time `json:"until"`
	DeadlineSeconds *float64   `json:"deadlineSeconds"`
}

type workload struct {
	Name          string   `json:"name"`
	Zombies       int      `json:"zombies"`
	Parents       int      `json:"parents"`
	Pids          *int     `json:"pids"`
	PidsLimit     *int     `json:"pidsLimit"`
	FullInSeconds *float64 `json:"fullInSeconds"`
}

type container struct {
	Runtime   string `json:"runtime"`
	ID        string `json:"id"`
	PodUID    string `json:"podUID"`
	Pod       string `json:"pod"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Image     string `json:"image"`
}

// scan is `kzr scan --json` with the site's rules, its standard error and the
// document.
func (s *site) scan(steps string, flags ...string) (document, result) {
	s.t.Helper()
	args := append([]string{"scan", "--json", "--config=" + s.config, "--threshold=10", "--grace=1s", "--pressure=0"}, flags...)
	r := run(s.t, steps, args...)
	if r.status != 0 {
		s.t.Fatalf("scan: status %d: %s", r.status, r.stderr)
	}
	var doc document
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil {
		s.t.Fatalf("scan: %v in %s", err, r.stdout)
	}
	return doc, r
}

// of returns what the document says of a process, if anything.
func (d document) of(pid int) (parent, bool) {
	i := slices.IndexFunc(d.Parents, func(p parent) bool { return p.PID == pid })
	if i < 0 {
		return parent{}, false
	}
	return d.Parents[i], true
}

// wantCount wants that a scan counts a process's children exactly so.
func (s *site) wantCount(mode string, pid, zombies, reapable int) parent {
	s.t.Helper()
	doc, _ := s.scan("", mode)
	p, ok := doc.of(pid)
	if p.Zombies != zombies || p.Reapable != reapable || ok != (zombies > 0) {
		s.t.Fatalf("scan counts %d zombies of pid %d, %d reapable; want %d and %d", p.Zombies, pid, p.Reapable, zombies, reapable)
	}
	return p
}

// alive fails the test if a process has ended.
func alive(t *testing.T, procs ...*zoo.Proc) {
	t.Helper()
	for _, p := range procs {
		if !p.Alive() {
			t.Fatalf("%s (pid %d) is dead", p.Name, p.PID)
		}
	}
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}
