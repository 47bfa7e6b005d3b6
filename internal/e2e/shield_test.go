package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/zoo"
)

// Parents that are not to be ended, or that make it look so: where nobody is hurt
// any doubt spares them, and at a limit on pids none of it protects.

// A tenant is a container of its own.
type tenant struct {
	*zoo.Cgroup
	t  *testing.T
	id string
}

func newTenant(t *testing.T) *tenant {
	t.Helper()
	id := containerID(t)
	return &tenant{zoo.NewCgroup(t, "pids", "docker/"+id), t, id}
}

// tasks counts what its limit counts: zombies as well.
func (c *tenant) tasks() int {
	c.t.Helper()
	return readNumber(c.t, filepath.Join(c.Dir, "pids.current"))
}

// squeeze limits it to a little more than it holds.
func (c *tenant) squeeze() (limit int) {
	c.t.Helper()
	limit = c.tasks() * 10 / 9
	c.SetPidsMax(limit)
	return limit
}

// wantRoom waits until its limit has room again.
func (c *tenant) wantRoom(limit int) {
	c.t.Helper()
	zoo.Within(c.t, patience, "there is room in the container", func() bool { return c.tasks()*100 < 85*limit })
}

// command is a program that runs in it.
func (c *tenant) command(program string, args ...string) *exec.Cmd {
	return exec.Command("sh", append([]string{"-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, c.Dir, program}, args...)...)
}

// rule is the one for whatever is in it.
func (c *tenant) rule() string {
	return fmt.Sprintf("{name: mine, match: {cgroup: %q}}", "*docker/"+c.id+"*")
}

// A detail is what a daemon answers about one parent.
type detail struct {
	parent
	Tracer        int    `json:"tracer"`
	TracerIsChild bool   `json:"tracerIsChild"`
	WChan         string `json:"wchan"`
	WaitsFor      *struct {
		PID int `json:"pid"`
	} `json:"waitsFor"`
}

// detail asks for it.
func (s *site) detail(pid int) (d detail) {
	s.t.Helper()
	s.wantAnswer(fmt.Sprintf("/v1/parents/%d", pid), &d)
	return d
}

// harmed is about a process and a signal that harms it.
func harmed(pid int) func(event) bool {
	return func(e event) bool { return e.PID == pid && isKill(e) }
}

// anySignal is about a process and any signal to it.
func anySignal(pid int) func(event) bool {
	return func(e event) bool { return e.PID == pid && isSignal(e) }
}

// What keeps kzr from a parent can be arranged to last for ever, while another
// process goes on putting zombies on it. That is said again as they grow, and at the
// container's limit it ends.
func TestScenario38Shielded(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		for _, c := range []struct {
			name, reason string
			hide         func(victim, helper *zoo.Proc)
		}{
			{"stopped", "stopped", func(victim, _ *zoo.Proc) { victim.Do("stop") }},
			{"in vfork", "uninterruptible", func(victim, _ *zoo.Proc) { victim.Do("vfork") }},
			{"traced by its child", "traced", func(_, helper *zoo.Proc) { helper.Do("trace=parent,pass") }},
			{"held by its child", "traced", func(_, helper *zoo.Proc) { helper.Do("trace=parent,stop") }},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				s := newSite(t)
				k := s.start(mode, "--pressure=0.85", s.socket())
				c3r := newTenant(t)
				z := zoo.Start(t, `cgroup=%s fork=pidns,proc { name=init exec=%s chld=reap term=count
					fork { name=good term=count serve }
					fork { name=victim term=ignore fork { name=helper serve } serve } serve } serve`, c3r.Dir, s.exe)
				victim, helper := z.Named("victim"), z.Named("helper")
				c.hide(victim, helper)
				helper.Do("leak=20,sibling")
				k.saw(victim.PID, "spared "+c.reason)
				helper.Do("leak=40,sibling")
				k.await("the same again, of more zombies", func(e event) bool {
					return about(victim.PID, "spared "+c.reason)(e) && e.Zombies >= 60
				})
				k.never(time.Second, "a signal", anySignal(victim.PID))

				wchan := readFile(t, fmt.Sprintf("/proc/%d/wchan", victim.PID))
				d := s.detail(victim.PID)
				if c.reason == "traced" && (d.Tracer != helper.PID || !d.TracerIsChild) {
					t.Errorf("its tracer %d: %+v", helper.PID, d)
				}
				if r := run(t, "", "explain", "--config="+s.config, mode, s.socket(), fmt.Sprint(victim.PID)); c.reason == "uninterruptible" &&
					(d.WChan != wchan || !strings.Contains(r.stdout, wchan)) {
					t.Errorf("it sleeps in %q, not %q: %s%s", wchan, d.WChan, r.stdout, r.stderr)
				}

				limit := c3r.squeeze()
				squeezed := time.Now()
				k.saw(victim.PID, "signal SIGKILL")
				victim.WaitDead(patience)
				took := time.Since(squeezed)
				k.saw(victim.PID, "terminated")
				c3r.wantRoom(limit)
				for _, name := range []string{"init", "good"} {
					k.never(0, "a kill", harmed(z.Named(name).PID))
					if n := z.Named(name).Count().TERM; n > 0 {
						t.Errorf("%s got %d SIGTERM", name, n)
					}
				}
				alive(t, z.Proc, helper)
				record(t, 1, fmt.Sprintf("%s: left alone, and freed %v after the limit was near", c.name, took.Round(10*time.Millisecond)))
			})
		}
	})
}

// Whoever traces zombies has to wait for them first. If that is one of the same
// workload, it is a parent like any other.
func TestScenario39HeldBySibling(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		const inContainer = `cgroup=%s fork=pidns,proc { name=parent chld=reap term=count hold=20 { name=tracer exec=%s term=ignore serve } serve } serve`
		for _, c := range []struct {
			name, script string
			rule         string // before the site's own
			flags        []string
			end          string
		}{
			{"ended", inContainer, "", nil, "terminated"},
			{"observed", inContainer, "{name: look, match: {exe: %q}, action: observe}", nil, "spared rule"},
			{"out of scope", `mkdir=%s term=count chld=reap hold=20 { name=tracer exec=%s term=ignore serve } serve`, "", nil, "spared out_of_scope"},
			{"protected", `mkdir=%s term=count chld=reap hold=20 { name=tracer exec=%s term=ignore serve } serve`, "", []string{"--scope=all"}, "spared protected"},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				s := newSite(t)
				if c.rule != "" {
					s.configure("", fmt.Sprintf(c.rule, s.exe), s.rule())
				}
				if c.end == "spared protected" {
					s.configure(fmt.Sprintf("protect: [%q]", s.exe), s.rule())
				}
				k := s.start(append(c.flags, mode)...)
				dir := newTenant(t).Dir
				z := zoo.Start(t, c.script, dir, s.exe)
				tracer := z.Named("tracer")
				k.saw(tracer.PID, c.end)
				if c.end == "terminated" {
					tracer.WaitDead(0)
					k.wantStory(tracer.PID, "signal SIGCHLD", "signal SIGTERM", "signal SIGKILL", "terminated")
					p := z.Named("parent")
					zoo.Within(t, patience, "their parent reaps them", func() bool { return p.Zombies() == 0 })
					k.never(0, "a kill of the parent", harmed(p.PID))
					if c := p.Count(); c.TERM > 0 || !p.Alive() {
						t.Errorf("the parent: %+v", c)
					}
					return
				}
				k.never(2*time.Second, "a signal", isSignal)
				alive(t, tracer)
			})
		}
	})
}

// Sixty parts of a job, fifty-nine of which are done, and it waits for the one that
// is not. It will wait for the others after.
func TestScenario46WaitsForOne(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, "--pressure=0.85", s.socket())
		c := newTenant(t)
		z := zoo.Start(t, `cgroup=%s fork=pidns,proc { name=init exec=%s chld=reap term=count
			fork { name=job leak=59 fork { name=last serve } serve }
			fork { name=lazy leak=59 fork { serve } serve } serve } serve`, c.Dir, s.exe)
		job, last, lazy := z.Named("job"), z.Named("last"), z.Named("lazy")
		job.Do("await")
		lazy.Do("await")
		k.saw(job.PID, "spared waiting")
		k.saw(lazy.PID, "spared waiting")
		k.never(3*time.Second, "a signal", isSignal)
		if d := s.detail(job.PID); d.WaitsFor == nil || d.WaitsFor.PID != last.PID || d.Reason != "waiting" {
			t.Errorf("whom it waits for: %+v", d)
		}
		r := run(t, "", "explain", "--config="+s.config, mode, s.socket(), fmt.Sprint(job.PID))
		if !strings.Contains(r.stdout, fmt.Sprint(last.PID)) {
			t.Errorf("explain does not name %d: %s%s", last.PID, r.stdout, r.stderr)
		}

		// It was right: as soon as that one has ended, all are waited for.
		last.Do("exit")
		if got := job.Do("reap=all"); got != "59" {
			t.Errorf("it reaped %s", got)
		}
		k.never(2*time.Second, "a kill", harmed(job.PID))

		// The other one still waits when the pids run out.
		limit := c.squeeze()
		k.saw(lazy.PID, "terminated")
		lazy.WaitDead(0)
		c.wantRoom(limit)
		alive(t, job, z.Named("init"))
		k.never(0, "another kill", func(e event) bool { return isKill(e) && e.PID != lazy.PID })
	})
}

// The system call of somebody else than root is not for kzr to read in /proc, so there
// it does not say for which child. What was deferred because it waits for one is acted
// on when that has ended and it reaps nobody after all.
func TestScenario46WaitedInVain(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode, s.socket())
		z := zoo.Start(t, `in=pidns,proc exec=%s chld=reap fork { name=job uid=65534 exec=%s leak=20
			fork { name=first serve } fork { name=last serve } serve } serve`, s.exe, s.exe)
		job, last := z.Named("job"), z.Named("last")
		job.Do("await")
		k.saw(job.PID, "spared waiting")
		k.never(0, "a signal", anySignal(job.PID))
		want := fmt.Sprintf("waiting for one particular child, process %d ", last.PID)
		d := s.detail(job.PID)
		if d.WaitsFor == nil { // one late read
			d = s.detail(job.PID)
		}
		switch named := mode != "--mode=proc" || raceBuild; { // which keeps its capabilities
		case named && (d.WaitsFor == nil || d.WaitsFor.PID != last.PID), !named && d.WaitsFor != nil:
			t.Errorf("whom it waits for: %+v", d.WaitsFor)
		case !named:
			want = "waiting for one of its children, or may be"
		}
		r := run(t, "", "explain", "--config="+s.config, mode, s.socket(), fmt.Sprint(job.PID))
		if !strings.Contains(strings.Join(strings.Fields(r.stdout), " "), want) {
			t.Errorf("explain does not say %q: %s%s", want, r.stdout, r.stderr)
		}
		last.Do("exit")
		k.saw(job.PID, "terminated")
	})
}

// The programs that real people write so. A child's status that another had reaped
// would be lost, so each has to come out right.
func TestScenario46RealPrograms(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		python, err := exec.LookPath("python3")
		if err != nil {
			t.Error("python3 is needed for half of this: ", err)
		}
		const seconds = "8" // of the part that takes longest, far more than a ladder does
		for _, c := range []struct {
			name string
			args []string
		}{
			{"go", []string{os.Args[0]}}, // see cage
			{"subprocess", []string{python, "-c", `
import subprocess, sys
parts = [subprocess.Popen(["sh", "-c", "sleep %s; exit 7" % (0.2 if i else ` + seconds + `)]) for i in range(60)]
sys.exit(any(p.wait() != 7 for p in parts))`}},
			{"multiprocessing", []string{python, "-c", `
import multiprocessing, sys, time
def part(seconds):
    time.sleep(seconds)
    sys.exit(7)
parts = [multiprocessing.get_context("fork").Process(target=part, args=(0.2 if i else ` + seconds + `,)) for i in range(60)]
for p in parts: p.start()
for p in parts: p.join()
sys.exit(any(p.exitcode != 7 for p in parts))`}},
			{"sh", []string{"sh", "-c", `
for i in $(seq 60); do
	s=0.2; [ $i -gt 1 ] || s=` + seconds + `
	sh -c "sleep $s; exit 7" & all="$all $!"
done
for pid in $all; do wait $pid; [ $? = 7 ] || exit 1; done`}},
		} {
			if c.args[0] == "" {
				continue
			}
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				c3r := newTenant(t)
				s := newSite(t, c3r.rule())
				s.ours = []string{c3r.id}
				k := s.start(mode)
				job := c3r.command(c.args[0], c.args[1:]...)
				job.Env = append(os.Environ(), "KZR_TEST_CAGE=jobs="+seconds)
				job.WaitDelay = time.Second
				out := new(strings.Builder)
				job.Stdout, job.Stderr = out, out
				if err := job.Start(); err != nil {
					t.Fatal(err)
				}
				late := time.AfterFunc(patience, func() { _ = job.Process.Kill() })
				defer late.Stop()
				err := job.Wait()
				if err != nil {
					t.Errorf("%v: %s", err, out)
				}
				k.never(0, "a signal", anySignal(job.Process.Pid))
				k.never(0, "a kill", func(e event) bool { return isKill(e) && e.ContainerID == c3r.id })
				// A shell reaps whoever ends meanwhile.
				if c.name != "sh" && len(k.all(about(job.Process.Pid, "spared waiting"))) == 0 {
					t.Error("it is not said that it was left alone because it waits")
				}
			})
		}
	})
}

// A process that its parent is above puts its children on that parent. The parent
// does not know them, cannot be expected to wait, and is not to be ended for it.
func TestScenario47Foreign(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		for name, how := range map[string]string{"serves": "", "waits for its worker": "", "they look as if they had dropped privileges": ",forged"} {
			t.Run(name, func(t *testing.T) {
				if how != "" && mode == "--mode=proc" {
					t.Skip("/proc says who has used a privilege, and not who put a zombie there")
				}
				t.Parallel()
				waits := name == "waits for its worker"
				s := newSite(t)
				k := s.start(mode, "--scope=all")
				// As su and sudo have it: root waits for somebody else's program.
				z := zoo.Start(t, "fork { name=boss exec=%s term=count chld=count fork { name=worker uid=65534 serve } serve } serve", s.exe)
				boss, worker := z.Named("boss"), z.Named("worker")
				if waits {
					boss.Do("await")
				}
				worker.Do("leak=60,sibling%s", how)
				e := k.await("why it is left alone", func(e event) bool { return e.PID == boss.PID && e.Event == "spared" })
				if want := []string{"foreign", "waiting"}; !slices.Contains(want, e.Reason) || !waits && e.Reason != "foreign" {
					t.Errorf("it is left alone as %s", e.Reason)
				}
				if how == "" {
					worker.Do("storm=0,rate=50,sibling")
				}
				k.never(4*time.Second, "a signal to the boss", harmed(boss.PID))
				worker.Do("exit")
				if waits {
					boss.Do("reap=now")
				}
				if c := boss.Count(); c.TERM > 0 {
					t.Errorf("signals came: %+v", c)
				}
				alive(t, boss)
			})
		}
		// Its own children, who became somebody else before they died, are its own.
		t.Run("its own", func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			k := s.start(mode, "--scope=all")
			z := zoo.Start(t, "fork { name=boss exec=%s fork=times=12 { uid=65534 exit } serve } serve", s.exe)
			k.saw(z.Named("boss").PID, "terminated")
		})
	})
}

// No thread of it is ever the same for long, and its leader is dead.
func TestScenario49Flickers(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode)
		c := newTenant(t)
		z := zoo.Start(t, `cgroup=%s exec=%s chld=reap term=count
			fork { name=good term=count fresh=15,age=200 serve }
			fork { name=victim term=ignore groups=65536 leak=20 flicker=3,us=1000 } serve`, c.Dir, s.exe)
		victim := z.Named("victim")
		began := time.Now()
		k.saw(victim.PID, "signal SIGKILL")
		victim.WaitDead(patience)
		took := time.Since(began)
		k.saw(victim.PID, "terminated")
		good := z.Named("good")
		k.never(0, "a kill", harmed(good.PID))
		if c := good.Count(); c.TERM > 0 {
			t.Errorf("the bystander: %+v", c)
		}
		record(t, 1, fmt.Sprintf("judged and ended in %v", took.Round(10*time.Millisecond)))
	})
}

// What keeps kzr from a parent changes every second. That is worth a few lines.
func TestScenario52Flips(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		k := s.start(mode)
		const parents = 3
		script := ""
		for i := range parents {
			script += fmt.Sprintf("fork { name=victim%d exec=%s leak=60 serve } fork { name=tracer%[1]d serve } ", i, s.exe)
		}
		z := zoo.Start(t, "cgroup=%s %s serve", newTenant(t).Dir, script)
		for i := range parents {
			victim := z.Named(fmt.Sprintf("victim%d", i))
			victim.Do("stop")
			// Else its stop and that of whoever attaches could be one, and it would run after.
			zoo.Within(t, patience, "it is stopped", func() bool { return victim.State() == 'T' })
			z.Named(fmt.Sprintf("tracer%d", i)).Do("flip=%d,every=700", victim.PID)
		}
		for i := range parents {
			k.await("why it is left alone", func(e event) bool {
				return e.PID == z.Named(fmt.Sprintf("victim%d", i)).PID && e.Event == "spared"
			})
		}
		const watched = 15 * time.Second // some twenty changes
		time.Sleep(watched)
		for i := range parents {
			pid := z.Named(fmt.Sprintf("victim%d", i)).PID
			k.never(0, "a signal", anySignal(pid))
			if story := k.story(pid); len(story) > 6 {
				t.Errorf("%d lines in %v: %v", len(story), watched, story)
			}
			if z.Named(fmt.Sprintf("victim%d", i)).State() == 0 {
				t.Error("it is gone")
			}
		}
		// When it ends, so does the mercy.
		for i := range parents {
			z.Named(fmt.Sprintf("tracer%d", i)).Signal(unix.SIGKILL)
			victim := z.Named(fmt.Sprintf("victim%d", i))
			victim.Signal(unix.SIGCONT)
			k.saw(victim.PID, "terminated")
		}
	})
}
