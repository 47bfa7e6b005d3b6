//go:build amd64

package reapinside

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
)

// length is how long each of the long tests takes, and deaths how often a helper or a
// client dies in each: a little for every day, more for docs/RELIABILITY.md.
func length(t *testing.T) (long time.Duration, deaths int) {
	t.Helper()
	text := os.Getenv("KZR_INSIDE")
	if text == "" {
		return 3 * time.Second, 3
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal("KZR_INSIDE:", err)
	}
	return d, 30
}

// tally is what a reaper in a loop did.
type tally struct {
	mu       sync.Mutex
	reaped   int
	stops    []time.Duration // of single requests with one batch
	refusals map[Refusal]int
}

func (y *tally) add(r Result) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.reaped += r.Reaped
	if r.Batches > 0 {
		y.stops = append(y.stops, r.Longest)
	}
	if y.refusals == nil {
		y.refusals = map[Refusal]int{}
	}
	if r.Refusal != None {
		y.refusals[r.Refusal]++
	}
}

func (y *tally) String() string {
	y.mu.Lock()
	defer y.mu.Unlock()
	slices.Sort(y.stops)
	at := func(q float64) time.Duration {
		if len(y.stops) == 0 {
			return 0
		}
		return y.stops[int(q*float64(len(y.stops)-1))].Round(10 * time.Microsecond)
	}
	return fmt.Sprintf("%d orphans reaped in %d stops of %v p50, %v p99, %v max", y.reaped, len(y.stops), at(.5), at(.99), at(1))
}

// reapUntil reaps whatever comes until the context ends. It does not wait for timeouts
// to pass, as kzr does: so all the more is interrupted.
func (s *subject) reapUntil(ctx context.Context, h *Helper, y *tally) error {
	for ctx.Err() == nil {
		orphans := s.orphans()
		if len(orphans) == 0 {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		r, err := h.Reap(ctx, s.pidfd, Request{Parent: s.id, Zombies: orphans, Stance: s.stance(nil), Patience: time.Second})
		y.add(r)
		if err != nil && ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		if r.Refusal == Gone {
			return nil
		}
	}
	return nil
}

// An owner is a real program that makes and awaits children of its own.
type owner struct {
	name string
	argv func(t *testing.T, stop string) []string
	// drives is for servers, which are asked from outside: it returns what was right
	// and what was wrong.
	drives func(t *testing.T, s *subject, dir string, until time.Time) (own, wrong int)
}

func script(argv ...string) func(*testing.T, string) []string {
	return func(t *testing.T, stop string) []string {
		t.Helper()
		for i, a := range argv {
			if strings.HasPrefix(a, "own.") {
				path, err := filepath.Abs("testdata/owners/" + a)
				if err != nil {
					t.Fatal(err)
				}
				argv[i] = path
			}
		}
		return append(slices.Clone(argv), stop)
	}
}

func built(t *testing.T, name string, argv ...string) string {
	t.Helper()
	path := filepath.Join(scratch, name)
	compiling.Lock()
	defer compiling.Unlock()
	if _, err := os.Stat(path); err == nil {
		return path
	}
	for i, a := range argv {
		argv[i] = strings.ReplaceAll(a, "OUT", path)
	}
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return path
}

var owners = []owner{
	{name: "bash", argv: script("bash", "own.sh")},
	{name: "dash", argv: script("dash", "own.sh")},
	{name: "busybox", argv: script("busybox", "sh", "own.sh")},
	{name: "python subprocess", argv: script("/usr/bin/python3", "own.py", "subprocess")},
	{name: "python asyncio", argv: script("/usr/bin/python3", "own.py", "asyncio")},
	{name: "python multiprocessing", argv: script("/usr/bin/python3", "own.py", "multiprocessing")},
	{name: "node", argv: script("node", "own.js")},
	{name: "java", argv: func(t *testing.T, stop string) []string {
		dir := built(t, "classes", "javac", "-d", "OUT", "testdata/owners/Own.java")
		return []string{"java", "-Xmx64m", "-XX:TieredStopAtLevel=1", "-cp", dir, "Own", stop}
	}},
	{name: "go", argv: func(t *testing.T, stop string) []string {
		return []string{built(t, "goowner", "go", "build", "-buildvcs=false", "-o", "OUT", "./testdata/owners/goowner"), stop}
	}},
	{name: "C with epoll", argv: func(t *testing.T, stop string) []string {
		return []string{built(t, "epoll", "cc", "-O2", "-o", "OUT", "testdata/owners/own.c", "-pthread"), stop}
	}},
	{name: "redis", argv: func(t *testing.T, stop string) []string {
		dir := filepath.Dir(stop)
		return []string{"redis-server", "--port", "0", "--unixsocket", dir + "/redis.sock", "--dir", dir, "--save", "", "--logfile", dir + "/log"}
	}, drives: driveRedis},
	{name: "nginx", argv: func(t *testing.T, stop string) []string {
		dir := filepath.Dir(stop)
		config := fmt.Sprintf(`daemon off; user root; worker_processes 2; pid %[1]s/pid; error_log %[1]s/log;
events {} http { access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f;
uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s; server { listen unix:%[1]s/http.sock; return 200 "x"; } }`, dir)
		if err := os.WriteFile(dir+"/conf", []byte(config), 0o644); err != nil {
			t.Fatal(err)
		}
		return []string{"nginx", "-c", dir + "/conf", "-e", dir + "/log"}
	}, drives: func(t *testing.T, s *subject, dir string, until time.Time) (int, int) {
		// nginx makes a worker anew when it has waited for one that died.
		return driveHTTP(t, s, dir, until, func() bool { return s.killWorker() })
	}},
	{name: "haproxy", argv: func(t *testing.T, stop string) []string {
		dir := filepath.Dir(stop)
		config := fmt.Sprintf("global\n maxconn 100\ndefaults\n mode http\n timeout client 5s\n timeout server 5s\n timeout connect 5s\n"+
			"frontend f\n bind unix@%s/http.sock\n http-request return status 200 content-type text/plain string x\n", dir)
		if err := os.WriteFile(dir+"/conf", []byte(config), 0o644); err != nil {
			t.Fatal(err)
		}
		return []string{"haproxy", "-W", "-f", dir + "/conf"}
	}, drives: func(t *testing.T, s *subject, dir string, until time.Time) (int, int) {
		// Its master reads the configuration again and waits for the old worker.
		return driveHTTP(t, s, dir, until, func() bool { return unix.Kill(s.id.PID, unix.SIGUSR2) == nil })
	}},
}

// begun says whether it has made a child of its own.
func (s *subject) begun() bool {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.id.PID))
	for _, list := range lists {
		b, _ := os.ReadFile(list)
		for field := range strings.FieldsSeq(string(b)) {
			comm, err := os.ReadFile("/proc/" + field + "/comm")
			if err == nil && string(comm) != "orphan\n" && string(comm) != "spawner\n" && !strings.HasPrefix(string(comm), "victim") {
				return true
			}
		}
	}
	return false
}

// begin starts an owner as pid 1 of a pid namespace, with orphans that pour in.
func (o *owner) begin(t *testing.T, every time.Duration) (s *subject, finish func(until time.Time) (own, wrong int)) {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "owner-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	stop := dir + "/stop"
	s = launch(t, true, 20, every, o.argv(t, stop)...)
	if o.drives == nil {
		s.until(s.begun)
	}
	return s, func(until time.Time) (own, wrong int) {
		if o.drives != nil {
			return o.drives(t, s, dir, until)
		}
		time.Sleep(time.Until(until))
		if err := os.WriteFile(stop, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		line := s.line()
		if _, err := fmt.Sscanf(line, "own %d wrong %d", &own, &wrong); err != nil {
			t.Fatalf("%s said %q", o.name, line)
		}
		if err := s.waited(); err != nil {
			t.Errorf("%s: %v", o.name, err)
		}
		return own, wrong
	}
}

// Real programs, pid 1 of a namespace into which orphans pour, make and await children
// of their own: every status is right, and every orphan is reaped.
func TestScenario57RealPrograms(t *testing.T) {
	long, _ := length(t)
	h := helper(t)
	var mu sync.Mutex
	var all tally
	total := 0
	t.Run("programs", func(t *testing.T) {
		for _, o := range owners {
			t.Run(strings.ReplaceAll(o.name, " ", "_"), func(t *testing.T) {
				s, finish := o.begin(t, 10*time.Millisecond)
				ctx, cancel := context.WithCancel(context.Background())
				var y tally
				var reaping sync.WaitGroup
				reaping.Go(func() {
					if err := s.reapUntil(ctx, h, &y); err != nil {
						t.Error(err)
					}
				})
				own, wrong := finish(time.Now().Add(long))
				cancel()
				reaping.Wait()
				if wrong != 0 || own == 0 {
					t.Errorf("%d of %d wrong", wrong, own)
				}
				if y.reaped == 0 && !strings.Contains("bash dash busybox nginx haproxy redis", o.name) {
					t.Errorf("nothing was reaped: %v", y.refusals)
				}
				t.Logf("own %d, wrong %d; %v; refused %v", own, wrong, &y, y.refusals)
				mu.Lock()
				defer mu.Unlock()
				total += own
				all.reaped += y.reaped
				all.stops = append(all.stops, y.stops...)
			})
		}
	})
	record(t, len(owners), "%v; own children and requests right: %d, wrong: 0", &all, total)
}

func driveRedis(t *testing.T, s *subject, dir string, until time.Time) (own, wrong int) {
	t.Helper()
	var conn net.Conn
	s.until(func() (ok bool) {
		var err error
		conn, err = net.Dial("unix", dir+"/redis.sock")
		return err == nil
	})
	defer conn.Close()
	r := bufio.NewReader(conn)
	ask := func(command string) string {
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(conn, "%s\r\n", command)
		line, err := r.ReadString('\n')
		if err != nil {
			return err.Error()
		}
		if n, err := strconv.Atoi(strings.TrimSpace(line[1:])); err == nil && line[0] == '$' {
			b := make([]byte, n+2)
			_, _ = io.ReadFull(r, b)
			return string(b)
		}
		return strings.TrimSpace(line)
	}
	count := func(ok bool) {
		own++
		if !ok {
			wrong++
		}
	}
	for i := 0; time.Now().Before(until); i++ {
		count(ask(fmt.Sprintf("SET k%d v%d", i, i)) == "+OK")
		count(strings.TrimSpace(ask(fmt.Sprintf("GET k%d", i))) == fmt.Sprintf("v%d", i))
		if i%50 == 0 {
			count(ask("BGSAVE") == "+Background saving started")
			s.until(func() bool { return strings.Contains(ask("INFO persistence"), "rdb_bgsave_in_progress:0") })
			count(strings.Contains(ask("INFO persistence"), "rdb_last_bgsave_status:ok"))
		}
	}
	return own, wrong
}

// driveHTTP asks a server, and now and then has it lose a child, which it must notice.
func driveHTTP(t *testing.T, s *subject, dir string, until time.Time, lose func() bool) (own, wrong int) {
	t.Helper()
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", dir+"/http.sock")
		}}}
	get := func() bool {
		a, err := client.Get("http://x/")
		if err != nil {
			return false
		}
		defer a.Body.Close()
		b, err := io.ReadAll(a.Body)
		return err == nil && a.StatusCode == http.StatusOK && string(b) == "x"
	}
	s.until(get)
	lost := time.Now()
	for time.Now().Before(until) {
		own++
		// One request may be with the worker that is killed.
		right := get()
		if !right {
			right = get()
		}
		if !right {
			wrong++
		}
		if time.Since(lost) > 500*time.Millisecond {
			before := s.workers()
			if !lose() {
				continue
			}
			s.until(func() bool {
				now := s.workers()
				return len(now) >= len(before) && !slices.Equal(now, before)
			})
			own++
			lost = time.Now()
		}
	}
	// None of those that are gone is a zombie of it yet.
	s.until(func() bool { return len(s.zombies("(nginx)"))+len(s.zombies("(haproxy)")) == 0 })
	return own, wrong
}

// workers are a server's children that live.
func (s *subject) workers() (pids []int) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", s.id.PID, s.id.PID))
	for field := range strings.FieldsSeq(string(b)) {
		pid, _ := strconv.Atoi(field)
		comm, _ := os.ReadFile("/proc/" + field + "/comm")
		if st, ok := statOf(pid); ok && st.state != 'Z' && (string(comm) == "nginx\n" || string(comm) == "haproxy\n") {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (s *subject) killWorker() bool {
	w := s.workers()
	return len(w) > 0 && unix.Kill(w[0], unix.SIGKILL) == nil
}

// The helper ends at each point of its work, again and again, with the same parent:
// the parent brings itself back, and nothing it does goes wrong.
func TestScenario58HelperDiesAtEachPoint(t *testing.T) {
	_, deaths := length(t)
	programs := []owner{}
	for _, o := range owners {
		if slices.Contains([]string{"node", "python subprocess", "python asyncio", "go", "java", "C with epoll"}, o.name) {
			programs = append(programs, o)
		}
	}
	programs = append(programs, owner{name: "registers", argv: func(t *testing.T, stop string) []string {
		return []string{victim(t), "state", stop}
	}})
	times := 0
	for _, point := range []string{"ready", "set", "enter", "exit", "back"} {
		path, err := helperThatDies(point)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range programs {
			t.Run(point+"/"+strings.ReplaceAll(o.name, " ", "_"), func(t *testing.T) {
				s, finish := (&owner{name: o.name, argv: o.argv}).begin2(t, o.name == "registers")
				died := 0
				for deadline := time.Now().Add(patienceOfTest); died < deaths && time.Now().Before(deadline); {
					h, err := startWith(path)
					if err != nil {
						t.Fatal(err)
					}
					for died < deaths {
						orphans := s.orphans()
						if len(orphans) == 0 {
							time.Sleep(5 * time.Millisecond)
							continue
						}
						r, err := h.Reap(context.Background(), s.pidfd, Request{Parent: s.id, Zombies: orphans[:1], Stance: s.stance(nil), Patience: time.Second})
						if err != nil {
							died++
							break
						}
						if r.Refusal != None && !r.Refusal.Transient() {
							t.Fatalf("%+v", r)
						}
						if time.Now().After(deadline) {
							break
						}
					}
					h.Close()
				}
				if died < deaths {
					t.Errorf("the helper died %d times only", died)
				}
				times += died
				if own, wrong := finish(time.Now()); wrong != 0 || own == 0 {
					t.Errorf("%d of %d wrong", wrong, own)
				}
				if got := s.status("TracerPid"); got != "" && got != "0" {
					t.Errorf("it is traced by %s", got)
				}
			})
		}
	}
	record(t, times, "the helper died at five points of its work in seven programs: each brought itself back, and no child of theirs was lost")
}

// begin2 is begin, also for the program that says whether its registers are right.
func (o *owner) begin2(t *testing.T, registers bool) (*subject, func(time.Time) (int, int)) {
	t.Helper()
	if !registers {
		return o.begin(t, 10*time.Millisecond)
	}
	stop := filepath.Join(scratch, fmt.Sprintf("stop-%d", rand.Int()))
	s := launch(t, true, 20, 10*time.Millisecond, o.argv(t, stop)...)
	if got := s.line(); got != "READY" {
		t.Fatal(got)
	}
	return s, func(time.Time) (own, wrong int) {
		if err := os.WriteFile(stop, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if line := s.line(); !strings.HasPrefix(line, "right ") {
			t.Errorf("registers: %s", line)
		}
		return 1, 0
	}
}

func startWith(path string) (*Helper, error) {
	starting.Lock()
	defer starting.Unlock()
	usual := executable
	executable = path
	defer func() { executable = usual }()
	return Start(context.Background())
}

var starting sync.Mutex

// Whoever kills the helper, or kzr, whenever: the parent is unharmed, and a helper
// without kzr ends.
func TestScenario58KilledAtRandom(t *testing.T) {
	long, deaths := length(t)
	for _, who := range []string{"helper", "kzr"} {
		for _, name := range []string{"node", "python subprocess", "go", "C with epoll", "registers"} {
			t.Run(who+"/"+strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
				o := owner{name: name, argv: func(t *testing.T, stop string) []string { return []string{victim(t), "state", stop} }}
				if i := slices.IndexFunc(owners, func(o owner) bool { return o.name == name }); i >= 0 {
					o = owners[i]
				}
				s, finish := o.begin2(t, name == "registers")
				killed := 0
				for end := time.Now().Add(long); killed < 10*deaths || time.Now().Before(end); killed++ {
					c := startClient(t, s)
					time.Sleep(time.Duration(rand.IntN(40_000)) * time.Microsecond)
					victimPID := c.helper
					if who == "kzr" {
						victimPID = c.cmd.Process.Pid
					}
					_ = unix.Kill(victimPID, unix.SIGKILL)
					if who == "helper" {
						_ = c.cmd.Process.Kill()
					}
					_ = c.cmd.Wait()
					for deadline := time.Now().Add(patienceOfTest); unix.Kill(c.helper, 0) == nil; time.Sleep(time.Millisecond) {
						if st, ok := statOf(c.helper); !ok || st.state == 'Z' {
							break
						}
						if time.Now().After(deadline) {
							t.Fatal("the helper outlives kzr")
						}
					}
				}
				s.until(func() bool { return s.status("TracerPid") == "0" }) // threads of the dead one end later
				own, wrong := finish(time.Now())
				if wrong != 0 || own == 0 {
					t.Errorf("%d of %d wrong", wrong, own)
				}
				record(t, killed, "killed at random moments while it reaped; children of the program right: %d, wrong: 0", own)
			})
		}
	}
}

// client is another process that reaps without pause, as kzr would if it knew no rest.
type client struct {
	cmd    *exec.Cmd
	helper int
}

type clientOrder struct {
	Executable string
	PID        int
	Start      uint64
}

func startClient(t *testing.T, s *subject) client {
	t.Helper()
	order, err := json.Marshal(clientOrder{executable, s.id.PID, s.id.Start})
	if err != nil {
		t.Fatal(err)
	}
	c := client{cmd: exec.Command("/proc/self/exe")}
	c.cmd.Env = append(os.Environ(), "KZR_TEST_CLIENT="+string(order))
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	launches <- func() { err = c.cmd.Start() }
	launches <- func() {}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscan(out, &c.helper); err != nil {
		t.Fatal("the client did not begin:", err)
	}
	return c
}

func beClient() {
	var order clientOrder
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "client:", err)
			os.Exit(1)
		}
	}
	fail(json.Unmarshal([]byte(os.Getenv("KZR_TEST_CLIENT")), &order))
	executable = order.Executable
	h, err := Start(context.Background())
	fail(err)
	s := &subject{id: task.ID{PID: order.PID, Start: order.Start}}
	s.pidfd, err = unix.PidfdOpen(order.PID, 0)
	fail(err)
	fmt.Println(h.PID())
	var y tally
	fail(s.reapUntil(context.Background(), h, &y))
	os.Exit(0)
}

// Signals come meanwhile: each arrives once, in order, with its value, and no call
// ends that would not have.
func TestScenario58SignalsMeanwhile(t *testing.T) {
	const n = 1500
	h := helper(t)
	var all tally
	modes := []string{"poll", "sigsuspend", "epoll_pwait", "wait_epoll", "nanosleep", "busy"}
	t.Run("signals", func(t *testing.T) {
		for _, mode := range modes {
			t.Run(mode, func(t *testing.T) {
				t.Parallel()
				s := launch(t, false, 5, 2*time.Millisecond, victim(t), "signals", mode, strconv.Itoa(n))
				if got := s.line(); got != "READY" {
					t.Fatal(got)
				}
				ctx, cancel := context.WithCancel(context.Background())
				var reaping sync.WaitGroup
				reaping.Go(func() {
					if err := s.reapUntil(ctx, h, &all); err != nil {
						t.Error(err)
					}
				})
				if mode == "sigsuspend" || mode == "busy" {
					for range 200 {
						_ = unix.Kill(s.id.PID, unix.SIGSTOP)
						time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
						_ = unix.Kill(s.id.PID, unix.SIGCONT)
						time.Sleep(3 * time.Millisecond)
					}
				}
				if got, want := s.line(), fmt.Sprintf("right %d", n); got != want {
					t.Errorf("%s, not %s", got, want)
				}
				cancel()
				reaping.Wait()
			})
		}
	})
	if all.reaped == 0 {
		t.Error("nothing was reaped")
	}
	record(t, n*len(modes), "real-time signals, and SIGSTOP with SIGCONT, came while it was reaped inside: all in order, none lost, no call ended early; %v", &all)
}

// The parent executes another program, exits or is killed meanwhile: whoever waits for
// it learns of that at once, and rightly.
func TestScenario58EndsMeanwhile(t *testing.T) {
	long, _ := length(t)
	h := helper(t)
	t.Run("exec", func(t *testing.T) {
		s := launch(t, false, 5, time.Millisecond, victim(t), "exec", "300")
		ctx, cancel := context.WithCancel(context.Background())
		var y tally
		var reaping sync.WaitGroup
		reaping.Go(func() { _ = s.reapUntil(ctx, h, &y) })
		if got := s.line(); got != "right" {
			t.Error(got)
		}
		cancel()
		reaping.Wait()
		record(t, 300, "another thread executed the program while it was reaped inside; %v", &y)
	})
	for _, how := range []string{"exit", "SIGKILL"} {
		t.Run(how, func(t *testing.T) {
			n, slowest := 0, time.Duration(0)
			for end := time.Now().Add(long); time.Now().Before(end); n++ {
				argv := []string{"sh", "-c", fmt.Sprintf("sleep 0.0%d; exit 7", 10+rand.IntN(50))}
				if how == "SIGKILL" {
					argv = []string{"sleep", "1000"}
				}
				s := launch(t, false, 5, time.Millisecond, argv...)
				ctx, cancel := context.WithCancel(context.Background())
				var y tally
				var reaping sync.WaitGroup
				reaping.Go(func() { _ = s.reapUntil(ctx, h, &y) })
				want := "exit status 7"
				began := time.Now()
				if how == "SIGKILL" {
					time.Sleep(time.Duration(5+rand.IntN(30)) * time.Millisecond)
					began = time.Now()
					_ = unix.Kill(s.id.PID, unix.SIGKILL)
					want = "signal: killed"
				}
				if err := s.waited(); err == nil || err.Error() != want {
					t.Errorf("it ended with %v, not %s", err, want)
				}
				slowest = max(slowest, time.Since(began))
				cancel()
				reaping.Wait()
			}
			if slowest > 5*time.Second {
				t.Errorf("its parent heard of it after %v", slowest)
			}
			record(t, n, "ended by %s while it was reaped inside: its parent got the right status, after %v at most", how, slowest.Round(time.Millisecond))
		})
	}
}

// Many zombies: how fast, and how long the parent stands still.
func TestScenario56Thousands(t *testing.T) {
	const n = 3000
	h := helper(t)
	for _, argv := range [][]string{{"sleep", "1000"}, {victim(t), "be", "spin"}} {
		t.Run(filepath.Base(argv[0])[:5], func(t *testing.T) {
			s := launch(t, true, n, 0, argv...)
			orphans := s.settled(n)
			began := time.Now()
			var y tally
			for len(orphans) > 0 {
				r, err := h.Reap(context.Background(), s.pidfd, Request{Parent: s.id, Zombies: orphans[:min(len(orphans), 64)], Stance: s.stance(nil)})
				if err != nil || r.Refusal != None {
					t.Fatalf("%+v, %v", r, err)
				}
				y.add(r)
				orphans = s.orphans()
			}
			took := time.Since(began)
			if y.reaped != n {
				t.Errorf("%d of %d reaped", y.reaped, n)
			}
			record(t, n, "%v; %.0f a second, with the pauses", &y, n/took.Seconds())
		})
	}
}
