package runtimes

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"kzr/internal/zoo"
)

// A runtime is what can run the containers of a story.
type runtime interface {
	world() *world
	// socket is where kzr can ask for names.
	socket() string
	// match is the part of a rule that finds containers by namespace, or by name
	// where the runtime knows no namespaces.
	match(namespace, name string) string
	// run starts a container with the zoo as its pid 1.
	run(namespace, name string, script ...string) box
}

// A box is one container.
type box interface {
	identity() identity
	pid() int // of its pid 1, as the host sees it
	exitCode() (code int, exited bool)
	again() // starts it once more after its end
	exec(args ...string)
}

// identity is what the runtime calls a container.
type identity struct{ id, name, image, pod, namespace, uid string }

// orphans is how many zombies a leaker's pid 1 is left with: its child makes all
// but one, and dies.
const orphans = 31

var leaker = []string{"fork", "{", fmt.Sprintf("leak=%d", orphans-1), "exit", "}", "serve"}

func TestContainerd(t *testing.T) {
	t.Parallel()
	c := startCRI(t)
	b := makeStory(t, c)
	k := b.nameless(c)
	b.play(k)
	b.probes(k)
}

func TestDocker(t *testing.T) {
	t.Parallel()
	e := startDocker(t)
	b := makeStory(t, e)
	k := e.w.run("kzr-run", b.config(e.socket()))
	b.play(k)
	b.probes(k)
}

func TestPodman(t *testing.T) {
	t.Parallel()
	e := startPodman(t)
	b := makeStory(t, e)
	b.play(e.w.run("kzr-run", b.config(e.socket())))
}

// kzr in a container of its own does as it does on the host.
func TestInPod(t *testing.T) {
	t.Parallel()
	c := startCRI(t)
	b := makeStory(t, c)
	b.play(c.runKzr(b.config(c.socket())))
}

// A story has a container that leaks, one beside it that does not, and one that
// leaks as well but is to be left alone.
type story struct {
	*testing.T
	r                      runtime
	leaky, neighbour, kept box
	neighbourPID           int
	shim                   string // who the neighbour's parent is
	keptPID                int
}

func makeStory(t *testing.T, r runtime) *story {
	t.Helper()
	s := &story{T: t, r: r}
	s.neighbour = r.run("shop", "neighbour", "fresh=30,age=300", "serve")
	s.kept = r.run("keep-1", "keep-1", leaker...)
	s.leaky = r.run("shop", "leaky", leaker...)
	s.neighbourPID, s.keptPID = s.neighbour.pid(), s.kept.pid()
	s.shim = parent(t, s.neighbourPID)
	s.waitLeak(s.leaky)
	return s
}

// config writes a configuration that acts on nothing but the story's containers.
func (s *story) config(socket string) string {
	s.Helper()
	w := s.r.world()
	return w.write("kzr.yaml", w.settings(socket, fmt.Sprintf(`
- {name: keep, match: {%s}, action: observe}
- {name: probes, match: {%s, containerInit: true, cgroup: "%s/*"}, threshold: 8}
- {name: shop, match: {%s, containerInit: true, cgroup: "%s/*"}, reap: off}
`, s.r.match("keep*", "keep*"), s.r.match("probed", "probed"), w.cgroup(), s.r.match("shop", "leaky"), w.cgroup())))
}

func (s *story) waitLeak(b box) (pid int) {
	s.Helper()
	pid = b.pid()
	zoo.Within(s, patience, "all the zombies", func() bool { return zoo.Zombies(pid) >= orphans })
	return pid
}

// nameless starts kzr while the runtime does not answer: nobody is killed until
// the names are known.
func (s *story) nameless(r runtime) *watcher {
	s.Helper()
	w := r.world()
	late := w.path("late.sock")
	k := w.run("kzr-run", s.config(late))
	unknown := func(pid int) event {
		return k.awaitEvent("a leaker spared for want of its name", about(pid, "spared", "rule"))
	}
	for _, b := range []box{s.leaky, s.kept} {
		e := unknown(b.pid())
		if e.Rule != "keep" || !strings.Contains(e.Msg, "not known") || e.Namespace != "" || e.Container != "" || e.ContainerID != b.identity().id {
			s.Errorf("without names: %+v", e)
		}
	}
	w.explained(s.keptPID, w.path("kzr.yaml"), "rule keep, which says observe, may match it; the name of its container is not known yet")
	k.never(2*time.Second, "a signal in ignorance", func(e event) bool { return e.Event == "signal" })
	if err := os.Symlink(r.socket(), late); err != nil {
		s.Fatal(err)
	}
	return k
}

// play tells the story: the leaker dies each time it is started, until its
// workload has had enough, and nobody else does.
func (s *story) play(k *watcher) {
	s.Helper()
	for range 3 {
		s.killed(k, s.leaky, "shop")
		s.leaky.again()
	}
	pid := s.waitLeak(s.leaky)
	k.awaitEvent("the end of the kills", about(pid, "spared", "backoff"))
	k.awaitEvent("the kept one to be reported", func(e event) bool {
		return about(s.keptPID, "spared", "rule")(e) && e.Rule == "keep" && e.Container == s.kept.identity().name &&
			e.Namespace == s.kept.identity().namespace && e.Pod == s.kept.identity().pod
	})
	k.never(2*time.Second, "a signal to one that is not to be killed", func(e event) bool {
		return e.Event == "signal" && (e.PID == pid && e.Signal != "SIGCHLD" || e.PID == s.keptPID || e.PID == s.neighbourPID)
	})
	for _, b := range []box{s.leaky, s.kept} {
		if code, exited := b.exitCode(); exited {
			s.Errorf("container %s ended with %d", b.identity().name, code)
		}
	}
	s.unharmed()
	s.scan()
	s.check()
}

// killed waits until kzr has killed a container that leaks, and looks at what is
// left of it.
func (s *story) killed(k *watcher, b box, rule string) {
	s.Helper()
	pid, id := b.pid(), b.identity()
	zoo.Within(s, patience, "zombies", func() bool { return zoo.Zombies(pid) > 0 || zoo.State(pid) == 0 })
	zombies := zoo.Children(pid)
	e := k.awaitEvent("SIGKILL", about(pid, "signal", "SIGKILL"))
	want := event{Event: "signal", Msg: e.Msg, PID: pid, Container: id.name, ContainerID: id.id, Pod: id.pod, Namespace: id.namespace, Rule: rule, Signal: "SIGKILL"}
	if e != want {
		s.Errorf("got  %+v\nwant %+v", e, want)
	}
	k.awaitEvent("its end", about(pid, "terminated", ""))
	var code int
	zoo.Within(s, patience, "the runtime to see the end of its container", func() (exited bool) {
		code, exited = b.exitCode()
		return exited
	})
	if code != 137 {
		s.Errorf("the runtime says that the container ended with %d, want 137", code)
	}
	zoo.Within(s, patience, "the zombies to be gone", func() bool {
		return !slices.ContainsFunc(zombies, func(z int) bool { return zoo.State(z) == 'Z' && !strings.Contains(parent(s.T, z), "zoo") })
	})
}

func (s *story) unharmed() {
	s.Helper()
	if pid := s.neighbour.pid(); pid != s.neighbourPID || zoo.State(pid) == 0 {
		s.Errorf("the neighbour was process %d and is %d", s.neighbourPID, pid)
	}
	if p := parent(s.T, s.neighbourPID); p != s.shim {
		s.Errorf("the neighbour's shim was %s and is %s", s.shim, p)
	}
}

// probes is the leak of a health check that leaves an orphan each time: kzr reaps
// inside the container's init, and nobody is killed.
func (s *story) probes(k *watcher) {
	s.Helper()
	b := s.r.run("probed", "probed", "serve")
	pid := b.pid()
	for range 8 {
		b.exec("/zoo", "alone", "fork", "{", "ready", "sleep=100", "exit", "}", "exit")
	}
	e := k.awaitEvent("them to be reaped", about(pid, "reaped", ""))
	if id := b.identity(); e.By != "kzr" || e.Rule != "probes" || e.Container != id.name || e.Namespace != id.namespace {
		s.Errorf("got %+v", e)
	}
	zoo.Within(s, patience, "the zombies to be gone", func() bool { return zoo.Zombies(pid) == 0 })
	if code, exited := b.exitCode(); exited || b.pid() != pid {
		s.Errorf("the container has ended with %d, its process is %d and was %d", code, b.pid(), pid)
	}
	s.unharmed()
}

// scan wants the same from a kzr that has no daemon.
func (s *story) scan() {
	s.Helper()
	w := s.r.world()
	var doc struct {
		Parents []struct {
			PID       int
			Rule      string
			Reason    string
			Container *struct{ Runtime, ID, PodUID, Pod, Namespace, Name, Image string }
		}
	}
	config := s.config(s.r.socket())
	if err := json.Unmarshal([]byte(w.command(w.program(), "scan", "--json", "--config", config)), &doc); err != nil {
		s.Fatal(err)
	}
	w.explained(s.keptPID, config, "rule keep says observe")
	id := s.kept.identity()
	for _, p := range doc.Parents {
		if p.PID != s.keptPID {
			continue
		}
		c := p.Container
		if c == nil || c.Runtime == "" || c.ID != id.id || c.PodUID != id.uid || c.Pod != id.pod || c.Namespace != id.namespace ||
			c.Name != id.name || !strings.HasSuffix(c.Image, id.image) || p.Rule != "keep" || p.Reason != "rule" {
			s.Errorf("scan shows %+v of %+v, want %+v, rule keep", c, p, id)
		}
		return
	}
	s.Errorf("scan does not show process %d", s.keptPID)
}

// check wants the runtime named. What else it finds is not for here.
func (s *story) check() {
	s.Helper()
	w := s.r.world()
	out := w.command("sh", "-c", `"$0" check --config "$1" || true`, w.program(), s.config(s.r.socket()))
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "pass  container runtime ") && strings.Contains(line, s.r.socket()) {
			return
		}
	}
	s.Errorf("check does not name the runtime at %s:\n%s", s.r.socket(), out)
}

// parent is the parent of a process, as words that no other process has.
func parent(t *testing.T, pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	var state string
	var ppid int
	text := string(stat)
	if _, err := fmt.Sscan(text[strings.LastIndex(text, ")")+1:], &state, &ppid); err != nil {
		t.Fatal(err)
	}
	stat, err = os.ReadFile(fmt.Sprintf("/proc/%d/stat", ppid))
	if err != nil {
		return ""
	}
	text = string(stat)
	name := text[strings.Index(text, "(") : strings.LastIndex(text, ")")+1]
	fields := strings.Fields(text[strings.LastIndex(text, ")")+1:])
	return fmt.Sprintf("%d %s started at %s", ppid, name, fields[19])
}
