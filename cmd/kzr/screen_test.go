package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"kzr/internal/report"
	"kzr/internal/zoo"
)

// terminal is a real one, by tmux, in which a shell runs kzr as a person would.
type terminal struct {
	t      *testing.T
	socket string
}

// program is a kzr to run: this very binary by that name (see TestMain).
func program(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kzr")
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// open starts a terminal with a command line in it. What follows the command
// shows how it ended and what it left of the terminal.
func open(t *testing.T, width, height int, command string, env ...string) *terminal {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Fatal("these tests need tmux: ", err)
	}
	dir, err := os.MkdirTemp("", "kzr-tmux-") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	x := &terminal{t: t, socket: filepath.Join(dir, "s")}
	t.Cleanup(func() {
		if out, err := x.try("kill-server"); err != nil && !strings.Contains(out, "no server") && !strings.Contains(out, "No such file") {
			t.Errorf("ending tmux: %v: %s", err, out)
		}
		os.RemoveAll(dir)
	})
	script := fmt.Sprintf("echo before; env -u NO_COLOR LC_ALL=C.UTF-8 %s %s; echo ended $?; cat", strings.Join(env, " "), command)
	x.tmux("-u", "-f", "/dev/null", "new-session", "-d", "-x", fmt.Sprint(width), "-y", fmt.Sprint(height), script)
	return x
}

func (x *terminal) try(args ...string) (string, error) {
	cmd := exec.Command("tmux", append([]string{"-S", x.socket}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TERM=xterm-256color")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (x *terminal) tmux(args ...string) string {
	x.t.Helper()
	out, err := x.try(args...)
	if err != nil {
		x.t.Fatalf("tmux %q: %v: %s", args, err, out)
	}
	return out
}

func (x *terminal) keys(keys ...string) {
	x.t.Helper()
	x.tmux(append([]string{"send-keys"}, keys...)...)
}

func (x *terminal) screen(flags ...string) string {
	x.t.Helper()
	return x.tmux(append([]string{"capture-pane", "-p"}, flags...)...)
}

// shows waits until all of these are on the screen, and returns it.
func (x *terminal) shows(all ...string) string {
	x.t.Helper()
	return x.until(fmt.Sprintf("all of %q", all), func(s string) bool {
		for _, want := range all {
			if !strings.Contains(s, want) {
				return false
			}
		}
		return true
	})
}

func (x *terminal) until(what string, ok func(screen string) bool) string {
	x.t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		s := x.screen()
		if ok(s) {
			return s
		}
		if time.Now().After(end) {
			x.t.Fatalf("the screen never shows %s:\n%s", what, s)
		}
	}
}

// restored checks that the program ended well and that the terminal is as it
// was: the old text is back, and what is typed shows (once from the terminal, and
// once from cat).
func (x *terminal) restored() {
	x.t.Helper()
	x.shows("before", "ended 0")
	x.keys("hello", "Enter")
	x.until("what is typed", func(s string) bool { return strings.Count(s, "hello") == 2 })
}

// lineOf is the row of a pid.
func lineOf(screen string, pid int) string {
	for line := range strings.Lines(screen) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == fmt.Sprint(pid) {
			return strings.TrimRight(line, "\n")
		}
	}
	return ""
}

func TestTopOnARealTerminal(t *testing.T) {
	kzr := program(t)
	z := zoo.Start(t, "in=pidns,proc comm=leaky chld=block leak=60 serve")
	const alone = "no daemon on /nonexistent/kzr.sock: kzr only looks and does not act"
	for _, size := range []struct {
		w, h  int
		shows []string
	}{
		{80, 24, []string{"ZOMBIES", "OLDEST", "Events", "Tasks", "? help", "kzr only looks and does not act"}},
		{120, 36, []string{"ZOMBIES", "OLDEST", "Events", "Tasks", "? help", alone}},
		{200, 60, []string{"ZOMBIES", "OLDEST", "Events", "Tasks", "UID", "rule: 50 zombies for 1h00m", alone}},
		{40, 10, []string{"ZOMBIES", "VERDICT", "? help", "no daemon"}},
	} {
		t.Run(fmt.Sprintf("%dx%d", size.w, size.h), func(t *testing.T) {
			x := open(t, size.w, size.h, kzr+" top --grace 1h --socket /nonexistent/kzr.sock")
			x.shows("kzr top")
			// Other tests' zombies may be on the node: only this one's are shown.
			x.keys("/")
			x.keys("-l", fmt.Sprint(z.PID))
			x.keys("Enter")
			x.shows(size.shows...)
			x.until("the leaker", func(s string) bool {
				line := lineOf(s, z.PID)
				return strings.Contains(line, " 60 ") && strings.Contains(line, "due in 59m")
			})

			x.keys("Enter")
			x.shows(fmt.Sprintf("Process %d (leaky)", z.PID), "pid 1 of")
			x.keys("G")
			x.shows("<defunct>", "and 40 more zombies")
			x.keys("g")
			x.shows(fmt.Sprintf("Process %d (leaky)", z.PID))
			x.keys("Escape")
			x.shows("VERDICT")
			x.keys("?")
			x.shows("Keys", "page down")
			x.keys("?")
			x.keys("Space")
			x.shows("PAUSED")
			x.keys("Space")

			x.tmux("resize-window", "-x", "100", "-y", "30")
			x.shows("VERDICT", "Events", fmt.Sprint(z.PID))
			x.tmux("resize-window", "-x", "30", "-y", "6")
			x.shows("kzr top")
			x.tmux("resize-window", "-x", fmt.Sprint(size.w), "-y", fmt.Sprint(size.h))
			x.shows(size.shows...)
			x.keys("q")
			x.restored()
		})
	}
	if !z.Alive() || z.Zombies() != 60 {
		t.Error("top has done something to what it shows")
	}
}

func TestTopLeavesTheTerminalAsItWas(t *testing.T) {
	kzr := program(t)
	for _, how := range []string{"C-c", "TERM", "HUP"} {
		t.Run(how, func(t *testing.T) {
			x := open(t, 80, 24, "sh -c 'echo $$ >&2; exec "+kzr+" top --mode proc --socket /nonexistent/kzr.sock' 2>"+filepath.Join(t.TempDir(), "pid"))
			x.shows("VERDICT")
			if how == "C-c" {
				x.keys(how)
			} else {
				x.tmux("run-shell", fmt.Sprintf("pkill -%s -P $(tmux -S %s display -p '#{pane_pid}')", how, x.socket))
			}
			x.restored()
		})
	}
}

// colour is a code for any but the terminal's default (39 and 49).
var colour = regexp.MustCompile(`\x1b\[([0-9]+;)*(3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]`)

func TestTopWithoutColour(t *testing.T) {
	kzr := program(t)
	colours := func(env ...string) bool {
		x := open(t, 80, 24, kzr+" top --mode proc --socket /nonexistent/kzr.sock", env...)
		x.shows("VERDICT", "kzr only looks")
		s := x.screen("-e")
		return colour.MatchString(s)
	}
	if colours("NO_COLOR=1") {
		t.Error("NO_COLOR is set, and there are colours")
	}
	if !colours() {
		t.Error("there are no colours at all")
	}
}

// The socket of a daemon gives what the daemon does, with its own countdown.
func TestTopOfADaemon(t *testing.T) {
	kzr := program(t)
	z := zoo.Start(t, "in=pidns,proc comm=leaky leak=60 serve")
	dir, err := os.MkdirTemp("", "kzr-top-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	x := open(t, 120, 30, kzr+" top --socket "+socket)
	x.shows("no daemon on", "kzr only looks")
	x.keys("q")
	x.restored()

	daemon := startDaemon(t, kzr, "--dry-run", "--socket", socket, "--grace", "8s", "--nudge", "1s", "--term-timeout", "1s")
	x = open(t, 120, 30, kzr+" top --socket "+socket)
	x.shows("VERDICT")
	x.keys("/")
	x.keys("-l", fmt.Sprint(z.PID))
	x.keys("Enter")
	x.shows("dry run", "rule: 50 zombies for 8s")
	x.shows("SIGCHLD", "SIGKILL", fmt.Sprintf("%d leaky", z.PID))
	x.until("how it ended", func(s string) bool { return strings.Contains(lineOf(s, z.PID), "rehearsed") })

	daemon.end()
	x.shows("NO ANSWER", "showing old data", fmt.Sprint(z.PID))
	startDaemon(t, kzr, "--dry-run", "--socket", socket, "--grace", "1h")
	x.until("the new daemon", func(s string) bool {
		return strings.Contains(s, "1h00m") && !strings.Contains(s, "NO ANSWER") && strings.Contains(lineOf(s, z.PID), "due in 59m")
	})
	x.keys("q")
	x.restored()
}

type running struct {
	t   *testing.T
	cmd *exec.Cmd
	out strings.Builder
}

// startDaemon returns when it answers.
func startDaemon(t *testing.T, kzr string, args ...string) *running {
	t.Helper()
	d := &running{t: t, cmd: exec.Command(kzr, append([]string{"run"}, args...)...)}
	d.cmd.Stderr = &d.out
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.end)
	socket := ""
	for i, a := range args {
		if a == "--socket" {
			socket = args[i+1]
		}
	}
	c := report.Dial(socket)
	defer c.Close()
	zoo.Within(t, time.Minute, "an answer of the daemon", func() bool {
		_, err := c.Status(t.Context())
		return err == nil
	})
	return d
}

func (d *running) end() {
	if d.cmd.ProcessState != nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	if err := d.cmd.Wait(); err != nil {
		d.t.Errorf("the daemon: %v\n%s", err, d.out.String())
	}
}

// What a process calls itself reaches neither the terminal nor a pipe raw.
func TestTopShowsHostileNames(t *testing.T) {
	kzr := program(t)
	z := zoo.Start(t, "in=pidns,proc comm=%s leak=60 serve", zoo.Quote("\x1b[2J\x1b]0;x\a\n"))
	x := open(t, 120, 30, kzr+" top --grace 1h --socket /nonexistent/kzr.sock")
	x.shows("VERDICT")
	x.keys("/")
	x.keys("-l", fmt.Sprint(z.PID))
	x.keys("Enter")
	x.shows(fmt.Sprint(z.PID), "kzr only looks")
	x.keys("Enter")
	x.shows("What kzr does", `\x1b[2J`)
	x.keys("q", "q")
	x.restored()

	for _, args := range [][]string{{"top", "--once"}, {"top", "--once", "--json"}, {"explain", fmt.Sprint(z.PID)}} {
		out, err := exec.Command(kzr, append(args, "--socket", "/nonexistent/kzr.sock")...).Output()
		if err != nil {
			t.Fatal(args, err)
		}
		if i := strings.IndexAny(string(out), "\x1b\a\r"); i >= 0 {
			t.Errorf("%q: raw at %d: %q", args, i, out)
		}
	}
}

func TestTopForScripts(t *testing.T) {
	kzr := program(t)
	z := zoo.Start(t, "in=pidns,proc comm=leaky leak=60 serve")
	own := func(doc report.Document) bool {
		for _, p := range doc.Parents {
			if p.PID == z.PID && p.Zombies == 60 && p.Verdict == "watch" {
				return true
			}
		}
		return false
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(kzr, append([]string{"top", "--grace", "1h", "--socket", "/nonexistent/kzr.sock"}, args...)...).Output()
		if err != nil {
			t.Fatal(args, err)
		}
		return string(out)
	}
	for _, args := range [][]string{{"--once"}, nil} { // where there is no terminal, once is meant
		if out := run(args...); !strings.Contains(lineOf(out, z.PID), " 60 ") {
			t.Errorf("%q: no line with the leaker:\n%s", args, out)
		}
	}
	var doc report.Document
	if err := json.Unmarshal([]byte(run("--once", "--json")), &doc); err != nil || !own(doc) {
		t.Errorf("--once --json: %v: %+v", err, doc)
	}

	// A stream, whose reader goes away after three documents.
	cmd := exec.Command(kzr, "top", "--json", "--interval", "100ms", "--grace", "1h", "--socket", "/nonexistent/kzr.sock")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(pipe)
	for i := range 3 {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(line, &doc); err != nil || !own(doc) {
			t.Errorf("document %d: %v: %+v", i, err, doc)
		}
	}
	pipe.Close()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil || strings.Contains(stderr.String(), "pipe") {
			t.Errorf("a closed pipe ends it with %v and %q", err, stderr.String())
		}
	case <-time.After(time.Minute):
		_ = cmd.Process.Kill()
		t.Error("a closed pipe does not end it")
	}
}

func TestExplain(t *testing.T) {
	kzr := program(t)
	z := zoo.Start(t, "in=pidns,proc comm=leaky chld=block leak=60 serve")
	dir, err := os.MkdirTemp("", "kzr-explain-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	explain := func(pid int) (string, error) {
		out, err := exec.Command(kzr, "explain", fmt.Sprint(pid), "--grace", "1h", "--socket", socket).Output()
		return string(out), err
	}
	check := func(t *testing.T, want ...string) {
		t.Helper()
		out, err := explain(z.PID)
		if err != nil {
			t.Fatal(err)
		}
		out = strings.Join(strings.Fields(out), " ") // as if there were no line ends
		for _, s := range append(want, fmt.Sprintf("Process %d (leaky) is pid 1", z.PID), "60 zombies that it could reap", "SIGCHLD is blocked",
			"SIGTERM (the kernel drops it", "tini", "default, blocked", "never reaped a child", "40 more zombies", "50 zombies for 1h00m") {
			if !strings.Contains(out, s) {
				t.Errorf("does not say %q:\n%s", s, out)
			}
		}
	}
	t.Run("without a daemon", func(t *testing.T) { check(t, "sends no signals") })
	startDaemon(t, kzr, "--dry-run", "--socket", socket, "--grace", "1h")
	t.Run("with a daemon", func(t *testing.T) { check(t, "dry-run mode") })

	t.Run("a zombie", func(t *testing.T) {
		out, err := explain(zoo.Children(z.PID)[0])
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"is a zombie. Its parent", fmt.Sprintf("Process %d (leaky) is pid 1", z.PID)} {
			if !strings.Contains(out, want) {
				t.Errorf("does not say %q:\n%s", want, out)
			}
		}
	})
	t.Run("nobody", func(t *testing.T) {
		if out, err := explain(4 << 20); err == nil || out != "" {
			t.Errorf("%v, %q", err, out)
		}
	})
}
