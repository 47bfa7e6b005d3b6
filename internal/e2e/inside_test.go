package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/zoo"
)

// Zombies that a parent adopted are reaped inside it: nobody dies, and it notices
// nothing.

// insideWorks skips a test where kzr cannot reap inside a parent and says so itself.
func insideWorks(t *testing.T) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("kzr reaps inside parents on amd64 only")
	}
}

// adopt makes n processes whose father is gone and that end soon after: orphans of the
// first process in a zoo's pid namespace.
func adopt(t *testing.T, init *zoo.Proc, n int) {
	t.Helper()
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do (sleep 0.5 &); i=$((i+1)); done", n)
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(init.PID), "--pid", "--", "sh", "-c", script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// wantReapedInside waits until kzr has reaped a parent's zombies, down to those that
// are to stay, for the nth time.
func (d *daemon) wantReapedInside(p *zoo.Proc, nth, stay int) {
	d.t.Helper()
	isReap := func(e event) bool { return e.PID == p.PID && e.Event == "reaped" && e.By == "kzr" }
	all := d.awaitN(nth, fmt.Sprintf("reaped inside %d", p.PID), isReap)
	zoo.Within(d.t, patience, "they are gone", func() bool { return p.Zombies() == stay })
	if told := strings.Contains(all[nth-1].Msg, fmt.Sprintf("tell its owner (kzr explain %d shows the cause and the fix)", p.PID)); told != (nth > 1) {
		d.t.Errorf("reaped %d times, it says %q", nth, all[nth-1].Msg)
	}
	if nth > 1 {
		if d1 := all[nth-1].Time.Sub(all[nth-2].Time); d1 < time.Second {
			d.t.Errorf("again after %v, sooner than a grace", d1)
		}
	}
	d.never(0, "a kill", harmed(p.PID))
}

func TestScenario56Adopted(t *testing.T) {
	insideWorks(t)
	t.Parallel()
	const seconds = 10 // that each of them lives
	goSleeps, classes := t.TempDir()+"/go-sleeps", t.TempDir()
	for _, argv := range [][]string{
		{"go", "build", "-o", goSleeps, "testdata/sleeps.go"},
		{"javac", "-d", classes, "testdata/Sleeps.java"},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
	}
	for name, args := range map[string][]string{
		"sleep":   {strconv.Itoa(seconds)},
		"tail":    {"--follow", "/dev/null"},
		"python3": {"-c", fmt.Sprintf("import time; time.sleep(%d)", seconds)},
		"node":    {"-e", fmt.Sprintf("setInterval(() => {}, 20); setTimeout(() => process.exit(0), %d)", seconds*1000)},
		"java":    {"-Xmx64m", "-cp", classes, "Sleeps", strconv.Itoa(seconds)},
		goSleeps:  {strconv.Itoa(seconds)},
	} {
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			program, err := exec.LookPath(name)
			if err != nil {
				t.Fatal(err)
			}
			if name == "python3" { // which may be a script that finds the real one
				out, err := exec.Command(program, "-c", "import sys; print(sys.executable)").Output()
				if err != nil {
					t.Fatal(err)
				}
				program = strings.TrimSpace(string(out))
			}
			c := newTenant(t)
			s := newSite(t, c.rule())
			s.ours = []string{c.id}
			k := s.start("--mode=ebpf")
			step := "exec=" + zoo.Quote(program) + "," + zoo.Quote(name)
			for _, arg := range args {
				step += "," + zoo.Quote(arg)
			}
			z := zoo.Start(t, "cgroup=%s fork=pidns,proc { name=init ready %s } serve", c.Dir, step)
			began := time.Now()
			init := z.Named("init")
			adopt(t, init, 15)
			zoo.Within(t, patience, "it has adopted them", func() bool { return init.Zombies() == 15 })
			k.wantReapedInside(init, 1, 0)
			adopt(t, init, 12)
			k.wantReapedInside(init, 2, 0)
			if name == "tail" {
				alive(t, init)
				return
			}
			// It goes on to its own end as if nothing had been.
			if got := z.Do("reap=1,status=0"); got != "1" {
				t.Errorf("reaped %s", got)
			}
			if lived := time.Since(began); lived < (seconds-1)*time.Second || lived > (seconds+10)*time.Second {
				t.Errorf("it lived %v instead of %d s", lived, seconds)
			}
		})
	}
}

// What it forked itself it may still want to wait for, and finds.
func TestScenario57Mixed(t *testing.T) {
	insideWorks(t)
	t.Parallel()
	t.Run("zoo", func(t *testing.T) {
		t.Parallel()
		s := newSite(t)
		c := newTenant(t)
		z := zoo.Start(t, "cgroup=%s fork=pidns,proc { name=init exec=%s term=count fork=times=3 { exit=7 } serve } serve", c.Dir, s.exe)
		k := s.start("--mode=ebpf")
		init := z.Named("init")
		init.Do("fork=times=4 { exit=7 }")
		adopt(t, init, 15)
		k.wantReapedInside(init, 1, 7)
		// Seven of its own are below the threshold, and stay for as long as it likes.
		k.never(2500*time.Millisecond, "a kill", harmed(init.PID))
		if got := init.Do("reap=7,status=7"); got != "7" {
			t.Errorf("it reaped %s", got)
		}
		if c := init.Count(); c.TERM > 0 {
			t.Errorf("%+v", c)
		}
	})
	t.Run("python3", func(t *testing.T) {
		t.Parallel()
		out, err := exec.Command("python3", "-c", "import sys; print(sys.executable)").Output()
		if err != nil {
			t.Fatal(err)
		}
		c := newTenant(t)
		s := newSite(t, c.rule())
		s.ours = []string{c.id}
		k := s.start("--mode=ebpf")
		program := `
import subprocess, sys, time
own = [subprocess.Popen(["/bin/sh", "-c", "exit 7"]) for _ in range(6)]
time.sleep(6)
sys.exit(any(p.wait() != 7 for p in own))`
		z := zoo.Start(t, "%s", "cgroup="+c.Dir+" fork=pidns,proc { name=init ready exec="+
			zoo.Quote(strings.TrimSpace(string(out)))+",python3,-c,"+zoo.Quote(program)+" } serve")
		init := z.Named("init")
		zoo.Within(t, patience, "its own have ended", func() bool { return init.Zombies() == 6 })
		adopt(t, init, 15)
		k.wantReapedInside(init, 1, 6)
		if got := z.Do("reap=1,status=0"); got != "1" {
			t.Errorf("reaped %s", got)
		}
	})
}

// Without its helper kzr goes on, says so, and does what it would do otherwise.
func TestScenario58HelperGone(t *testing.T) {
	insideWorks(t)
	t.Parallel()
	s, c := newSite(t), newTenant(t)
	k := s.start("--mode=ebpf", s.socket())
	helpers := zoo.Children(k.pid)
	if len(helpers) != 1 {
		t.Fatalf("kzr has %d children", len(helpers))
	}
	if err := unix.Kill(helpers[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var st status
	zoo.Within(t, patience, "it says that the helper has ended", func() bool {
		return s.ask("/v1/status", &st) == nil && strings.Contains(strings.Join(st.Problems, "\n"), "the helper that reaps inside other processes has ended")
	})
	z := zoo.Start(t, "cgroup=%s fork=pidns,proc { name=init exec=%s term=count serve } serve", c.Dir, s.exe)
	init := z.Named("init")
	adopt(t, init, 15)
	k.kids = nil
	if e := k.saw(init.PID, "signal SIGTERM"); !strings.Contains(e.Msg, "not reaped inside: ") {
		t.Errorf("it says %q", e.Msg)
	}
	k.saw(init.PID, "terminated")
}

// Where kzr cannot see what it needs, it says at the start that it does not reap inside.
func TestScenario58Off(t *testing.T) {
	t.Parallel()
	k := newSite(t).start("--mode=proc")
	if e := k.await("the start", func(e event) bool { return e.Event == "started" }); !strings.Contains(e.line, `"reap":"off: `) {
		t.Errorf("it starts with %s", e.line)
	}
}
