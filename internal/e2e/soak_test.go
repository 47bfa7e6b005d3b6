package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
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

// The settings of the soak. An innocent's zombies are never more than a fifth of
// the grace old; slack is what a busy machine may add to a guilty one's life.
const (
	soakThreshold = 10
	soakGrace     = 3 * time.Second
	soakNudge     = 400 * time.Millisecond
	soakTerm      = 600 * time.Millisecond
	soakSlack     = 20 * time.Second
	soakWorkers   = 12
	soakKills     = 3 // that its workload may lose
)

// A conduct is what one process of the soak does, and what has to become of it.
type conduct struct {
	name   string
	script func(c *soakCase) string // runs in the process, before it serves
	guilty bool                     // it has to be ended, and not before its zombies are soakGrace old
	asked  bool                     // an innocent that is asked to reap, and does
	inside bool                     // one whose zombies kzr reaps inside it where it can, and who is guilty elsewhere
	later  time.Duration            // a guilty one gathers its zombies only after it is ready, within this time
	host   bool                     // not in a pid namespace: its tree talks in pids
	root   bool                     // the machine's own: it does what another user may not
	boxed  bool                     // in a container of its own, whose limit then is set to what is in it
	beside string                   // more processes in its tree
	// then, if not nil, goes on with it and says whether it is guilty from now on.
	then func(c *soakCase, z *zoo.Zoo, p *zoo.Proc) bool
}

func says(script string) func(*soakCase) string { return func(*soakCase) string { return script } }

var conducts = []conduct{
	{name: "never waits", guilty: true, script: func(c *soakCase) string { return c.leak("") }},
	{name: "never waits, from a thread", guilty: true, script: func(c *soakCase) string { return c.leak(",thread") }},
	{name: "other exit signals", guilty: true, script: func(c *soakCase) string { return c.leak(",sig=" + c.one("0", "10", "12")) }},
	{name: "ignores SIGTERM", guilty: true, script: func(c *soakCase) string { return "term=ignore " + c.leak("") }},
	{name: "ends on SIGTERM, slowly", guilty: true, script: func(c *soakCase) string { return "term=exit,ms=" + c.one("1", "200", "2000") + " " + c.leak("") }},
	{name: "blocks SIGCHLD", guilty: true, script: func(c *soakCase) string { return "chld=block " + c.leak("") }},
	{name: "sees SIGCHLD and does nothing", guilty: true, script: func(c *soakCase) string { return "chld=count " + c.leak("") }},
	{name: "leaks without end", guilty: true, later: time.Second, script: func(c *soakCase) string { return "storm=0,rate=" + c.one("20", "100", "1000") }},
	{name: "reaps most, leaks some", guilty: true, script: func(c *soakCase) string { return c.leak("") + " fresh=20,age=100" }},
	{name: "leaks twice", guilty: true, script: says("leak=6 sleep=700 leak=6")},
	{name: "inherits zombies", inside: true, script: func(c *soakCase) string { return "subreaper fork { " + c.leak("") + " exit }" }},
	{name: "its leader is dead, other threads live", guilty: true, script: func(c *soakCase) string { return c.leak("") + " deadleader" }},
	{name: "executes with zombies, from a thread", guilty: true, script: func(c *soakCase) string { return c.leak("") + " threadexec=" + c.exe() }},

	{name: "few zombies", script: func(c *soakCase) string { return fmt.Sprintf("leak=%d", c.dice.IntN(soakThreshold)) }},
	{name: "few zombies through an exec", script: says("leak=9"), then: func(c *soakCase, _ *zoo.Zoo, p *zoo.Proc) bool {
		p.Do("threadexec=%s term=count serve", c.exe())
		return false
	}},
	{name: "always some fresh", script: func(c *soakCase) string {
		return fmt.Sprintf("fresh=%d,age=%d", 12+c.dice.IntN(50), 100+c.dice.IntN(500))
	}},
	{name: "bursts", script: func(c *soakCase) string {
		return fmt.Sprintf("burst=%d,every=900,hold=%d", 12+c.dice.IntN(80), 50+c.dice.IntN(500))
	}},
	{name: "reaps on SIGCHLD", asked: true, script: func(c *soakCase) string {
		return c.leak("") + " chld=reap" + c.one("", ",n=1", ",n=7")
	}},
	{name: "ignores SIGCHLD", script: says("chld=ignore storm=0,rate=100")},
	{name: "wants no zombies", script: says("chld=nocldwait storm=0,rate=100")},
	{name: "short-lived parents", script: says("flash=100,kids=12")},
	{name: "reaps late", script: func(c *soakCase) string { return c.leak("") + " sleep=500 reap=all" }},
	{name: "zombies of a tracer from outside", root: true, script: func(c *soakCase) string {
		return fmt.Sprintf("hold=%d { cgroup=%s serve }", 11+c.dice.IntN(20), c.outside.Dir)
	}},
	{name: "zombies of a tracer beside it", script: func(c *soakCase) string {
		return fmt.Sprintf("hold=%d { name=holder serve }", 11+c.dice.IntN(20))
	}, then: func(c *soakCase, z *zoo.Zoo, p *zoo.Proc) bool {
		c.note(z.Named("holder"))
		c.ended(z.Named("holder"), "holds zombies of another", time.Now())
		p.Do("reap=now")
		return false
	}},
	{name: "waits for one child", script: func(c *soakCase) string { return c.leak("") + " fork { name=awaited serve }" },
		then: func(c *soakCase, z *zoo.Zoo, p *zoo.Proc) bool {
			p.Do("await")
			c.live(p, "waiting for one child")
			z.Named("awaited").Do("exit")
			if c.dice.IntN(2) == 0 {
				return true
			}
			p.Do("reap=all")
			return false
		}},
	{name: "traced by its child", script: func(c *soakCase) string { return c.leak("") + " fork { name=shield trace=parent,pass serve }" },
		then: func(c *soakCase, z *zoo.Zoo, p *zoo.Proc) bool {
			c.live(p, "traced by its child")
			z.Named("shield").Signal(unix.SIGKILL)
			return true
		}},
	{name: "in vfork", script: func(c *soakCase) string { return c.leak("") }, then: func(c *soakCase, _ *zoo.Zoo, p *zoo.Proc) bool {
		p.Do("vfork=6500")
		c.live(p, "in vfork")
		return true
	}},
	{name: "zombies of one below it", root: true, script: says("fork { name=worker uid=998 serve }"),
		then: func(c *soakCase, z *zoo.Zoo, p *zoo.Proc) bool {
			z.Named("worker").Do("%s", c.leak(",sibling"))
			return false
		}},

	{name: "shielded at its limit", root: true, boxed: true, script: func(c *soakCase) string {
		return "term=ignore leak=60 fork { name=shield serve }"
	}, then: func(c *soakCase, z *zoo.Zoo, p *zoo.Proc) bool {
		switch shield := c.one("stop", "vfork", "await", "trace=parent,pass"); shield {
		case "trace=parent,pass":
			z.Named("shield").Do("%s", shield)
		default:
			p.Do("%s", shield)
		}
		c.squeeze()
		return true
	}},
	{name: "small parents at their limit", root: true, boxed: true, script: func(c *soakCase) string {
		return "chld=reap fork=times=9 { " + c.one("", "term=ignore") + " leak=9 serve }"
	}, then: func(c *soakCase, _ *zoo.Zoo, _ *zoo.Proc) bool {
		limit := c.squeeze()
		due := time.Now().Add(time.Second + 9*soakTerm)
		for c.box.tasks()*100 >= 85*limit {
			if time.Now().After(due.Add(soakSlack)) {
				c.fatalf("%d of %d pids are still used %v after that should be over", c.box.tasks(), limit, time.Since(due).Round(time.Millisecond))
			}
			time.Sleep(10 * time.Millisecond)
		}
		c.late(time.Since(due))
		return false
	}},

	{name: "restarts into its leak", root: true, boxed: true, script: func(c *soakCase) string {
		return "respawn { " + c.one("", "term=ignore ") + c.leak("") + " serve }"
	}, then: func(c *soakCase, _ *zoo.Zoo, p *zoo.Proc) bool {
		inBox := func(fits func(event) bool) int {
			return len(c.k.all(func(e event) bool { return e.ContainerID == c.box.id && fits(e) }))
		}
		ended := func(e event) bool { return e.Event == "terminated" }
		zoo.Within(c.t, soakKills*(soakGrace+soakNudge+soakTerm)+soakSlack+patience, "its limit is used up", func() bool {
			return inBox(func(e event) bool { return e.String() == "spared backoff" }) > 0
		})
		c.live(p, "restarting its child")
		if n := inBox(ended); n != soakKills {
			c.fatalf("%d were ended where %d may be", n, soakKills)
		}
		return false
	}},

	{name: "children with dead leaders", script: says(strings.Repeat("fork { deadleader serve } ", 12))},

	{name: "stopped", script: func(c *soakCase) string { return c.leak("") }, then: func(c *soakCase, _ *zoo.Zoo, p *zoo.Proc) bool {
		p.Signal(unix.SIGSTOP)
		c.live(p, "stopped")
		p.Signal(unix.SIGCONT)
		return true
	}},
	{name: "traced", host: true, beside: "fork { name=tracer serve }", script: func(c *soakCase) string { return c.leak("") },
		then: func(c *soakCase, z *zoo.Zoo, p *zoo.Proc) bool {
			z.Named("tracer").Do("trace=%d", p.PID)
			c.live(p, "traced")
			z.Named("tracer").Do("untrace=%d", p.PID)
			return true
		}},
	{name: "reaps in time", script: func(c *soakCase) string { return c.leak("") }, then: func(_ *soakCase, _ *zoo.Zoo, p *zoo.Proc) bool {
		p.Do("reap=all")
		return false
	}},
	{name: "lets go of its tracer's zombies", root: true, script: func(c *soakCase) string { return "hold=15 { cgroup=" + c.outside.Dir + " name=holder serve }" },
		then: func(c *soakCase, z *zoo.Zoo, p *zoo.Proc) bool {
			c.live(p, "held by a tracer")
			z.Named("holder").Signal(unix.SIGKILL)
			return true
		}},
}

// A soakCase is one tree of processes. All of it follows from the seed and its
// number.
type soakCase struct {
	*soak
	t      *testing.T
	number int
	dice   *rand.Rand
	tree   string
	box    *tenant        // of one that is boxed
	start  map[int]uint64 // of the processes it asked about, by pid
}

// A soak is one daemon and all that is done to it.
type soak struct {
	site    *site
	k       *daemon
	seed    uint64
	mode    string
	outside *zoo.Cgroup // another's container
	inside  bool        // kzr can reap inside a parent

	kills, spared, asked atomic.Int64
	mu                   sync.Mutex
	worst                time.Duration // beyond the moment that a guilty one could be ended at
	seen                 map[string]int
}

func (c *soakCase) exe() string { return c.site.exe }

func (c *soakCase) one(of ...string) string { return of[c.dice.IntN(len(of))] }

func (c *soakCase) leak(how string) string {
	return fmt.Sprintf("leak=%d%s", soakThreshold+c.dice.IntN(50), how)
}

func (c *soakCase) fatalf(format string, args ...any) {
	c.t.Helper()
	c.t.Fatalf("%s\nthe tree: %s\nagain: KZR_SOAK_SEED=%d KZR_SOAK_CASE=%d go test -run '%s' ./internal/e2e",
		fmt.Sprintf(format, args...), c.tree, c.seed, c.number, strings.SplitN(c.t.Name(), "/case", 2)[0])
}

// about returns what the log says of a process, and of no other that had its
// number.
func (c *soakCase) about(p *zoo.Proc) []event {
	return c.k.all(func(e event) bool { return e.PID == p.PID && e.StartTime == c.start[p.PID] })
}

// live wants that a process is left alone for as long as a guilty one would take
// to be ended.
func (c *soakCase) live(p *zoo.Proc, why string) {
	c.t.Helper()
	time.Sleep(soakGrace + soakNudge + soakTerm + time.Second)
	if !p.Alive() {
		c.fatalf("killed although %s: %v", why, c.about(p))
	}
	for _, e := range c.about(p) {
		if isSignal(e) {
			c.fatalf("signalled although %s: %s", why, e.line)
		}
	}
}

// squeeze leaves little room in the box.
func (c *soakCase) squeeze() (limit int) {
	c.t.Helper()
	return c.box.squeeze()
}

// ended wants that a guilty one is ended in time.
func (c *soakCase) ended(p *zoo.Proc, what string, due time.Time) {
	c.t.Helper()
	due = due.Add(soakGrace + soakNudge + soakTerm)
	for p.Alive() {
		if time.Now().After(due.Add(soakSlack)) {
			c.fatalf("%q lives %v after it should be gone; it holds %d zombies: %v", what, time.Since(due).Round(time.Millisecond), p.Zombies(), c.about(p))
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.late(time.Since(due))
}

// run makes the tree, waits and judges.
func (c *soakCase) run() {
	group := workloads(c.t, fmt.Sprintf("soak%s-%d", c.mode, c.number), 1)[0]
	act := conducts[c.number%len(conducts)]

	// The actor: what it is, then what it does.
	var is []string
	add := func(odds int, step string) {
		if c.dice.IntN(odds) == 0 {
			is = append(is, step)
		}
	}
	namespaces := !act.host && c.dice.IntN(2) == 0
	if act.boxed {
		c.box = newTenant(c.t)
		is = append(is, "cgroup="+c.box.Dir)
	}
	if !namespaces && !act.root {
		add(3, "uid="+c.one("1", "65534"))
	}
	is = append(is, c.one("exec=", "threadexec=")+c.exe()+c.one("", ",leaker,-x", `,systemd\x0a,\x1b[2J`))
	add(3, "comm="+c.one("systemd", "kubelet", `a)\x20Z\x201\x20(b`, `\xff\xfe\x0a`))
	add(3, "threads="+c.one("1", "5"))
	add(3, "setsid")
	if !act.guilty {
		is = append(is, "term=count")
	}
	actor := fmt.Sprintf("fork { name=actor %s %s serve }", strings.Join(is, " "), act.script(c))

	// Around it a few who behave, and beside it one.
	inner := fmt.Sprintf("%s %s fork { name=neighbour exec=%s term=count fresh=12,age=100 serve }", act.beside, actor, c.exe())
	depth := c.dice.IntN(3)
	for i := range depth {
		kind := ""
		if namespaces {
			kind = c.one("", "=pidns,proc", "=userns", "=userns,pidns", "=mntns")
			if act.root && strings.Contains(kind, "userns") || strings.Contains(inner, "userns") {
				kind = ""
			}
		}
		before, after := c.one("", "exec="+c.exe()+" ", "subreaper ", "setsid "), c.one("", " threads=2")
		inner = fmt.Sprintf("fork%s { name=outer%d %schld=reap term=count %s%s serve }", kind, i, before, inner, after)
	}
	first := ""
	if namespaces && c.dice.IntN(2) == 0 {
		first = "in=pidns,proc "
	}
	c.tree = fmt.Sprintf("%schld=reap cgroup=%s term=count %s serve", first, group.Dir, inner)
	began := time.Now()
	z := zoo.Start(c.t, "%s", strings.ReplaceAll(c.tree, "%", "%%"))
	p := z.Named("actor")
	c.note(p)
	ready := time.Now()
	good := []*zoo.Proc{z.Proc, z.Named("neighbour")}
	for i := range depth {
		good = append(good, z.Named(fmt.Sprintf("outer%d", i)))
	}
	for _, g := range good {
		c.note(g)
	}

	guilty := act.guilty || act.inside && !c.inside
	if act.then != nil {
		guilty = act.then(c, z, p)
		began, ready = began.Add(time.Since(ready)), time.Now()
	}
	switch {
	case guilty:
		c.ended(p, act.name, ready.Add(act.later))
		var signals []event
		zoo.Within(c.t, patience, "the log tells of its end", func() bool {
			all := c.about(p)
			signals = slices.DeleteFunc(slices.Clone(all), func(e event) bool { return !isSignal(e) })
			return slices.ContainsFunc(all, func(e event) bool { return e.Event == "terminated" })
		})
		if act.then == nil && signals[0].Time.Before(began.Add(soakGrace).Truncate(time.Millisecond)) {
			c.fatalf("%q was signalled %v after it began: %s", act.name, signals[0].Time.Sub(began), signals[0].line)
		}
		c.kills.Add(1)
	case act.asked:
		zoo.Within(c.t, patience, "it has reaped", func() bool {
			return slices.ContainsFunc(c.about(p), func(e event) bool { return e.Event == "reaped" })
		})
		c.asked.Add(1)
		good = append(good, p)
	case act.inside:
		zoo.Within(c.t, patience, "it is reaped inside", func() bool {
			return slices.ContainsFunc(c.about(p), func(e event) bool { return e.Event == "reaped" && e.By == "kzr" })
		})
		c.asked.Add(1)
		good = append(good, p)
	default:
		c.live(p, fmt.Sprintf("%q is innocent", act.name))
		c.spared.Add(1)
		good = append(good, p)
	}
	for _, g := range good {
		if !g.Alive() {
			c.fatalf("%s is dead, who did nothing: %v", g.Name, c.about(g))
		}
		for _, e := range c.about(g) {
			if isSignal(e) && (g != p || e.Signal != "SIGCHLD") {
				c.fatalf("%s was signalled, who did nothing: %s", g.Name, e.line)
			}
		}
		if n := g.Count().TERM; n != 0 {
			c.fatalf("%s got %d SIGTERM that are not in the log", g.Name, n)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[act.name]++
}

func (c *soakCase) note(p *zoo.Proc) { c.start[p.PID] = startTime(c.t, p.PID) }

func (s *soak) late(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.worst = max(s.worst, d)
}

// Trees of processes by the hundred, some of which have to be ended and most of
// which must not be, with an oracle that knows. KZR_SOAK says for how long
// (`make soak DURATION=1h`); KZR_SOAK_SEED and KZR_SOAK_CASE, which a failure
// names, do one case again.
func TestSoak(t *testing.T) {
	duration := 30 * time.Second
	if text := os.Getenv("KZR_SOAK"); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatal("KZR_SOAK: ", err)
		}
	}
	seed, only := rand.Uint64(), -1
	if text := os.Getenv("KZR_SOAK_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal("KZR_SOAK_SEED: ", err)
		}
	}
	if os.Getenv("KZR_SOAK_CASE") != "" {
		only = often(t, "KZR_SOAK_CASE", 0)
	}
	// By themselves, before the tests that run side by side: the oracle's deadlines
	// are for a machine that has time for kzr.
	for _, mode := range []string{"ebpf", "proc"} {
		t.Run(mode, func(t *testing.T) {
			t.Logf("KZR_SOAK_SEED=%d", seed)
			soakFor(t, "--mode="+mode, duration, seed, only)
		})
	}
}

func soakFor(t *testing.T, mode string, duration time.Duration, seed uint64, only int) {
	s := newSite(t)
	workers := soakWorkers
	if only >= 0 {
		workers = 1
	}
	run := &soak{site: s, seed: seed, mode: mode, inside: mode == "--mode=ebpf" && runtime.GOARCH == "amd64", seen: map[string]int{}}
	run.outside = workloads(t, "soak"+mode, 1)[0]
	k := s.start(mode, "--scope=all", "--threshold="+strconv.Itoa(soakThreshold), "--grace="+soakGrace.String(),
		"--nudge="+soakNudge.String(), "--term-timeout="+soakTerm.String(), "--sweep-interval=2s",
		"--kills-per-minute=100000", fmt.Sprintf("--per-workload-kills=%d", soakKills), "--pressure=0.85", s.socket())
	run.k = k
	before := k.usage()

	var next atomic.Int64
	next.Store(max(0, int64(only)) - 1)
	end := time.Now().Add(duration)
	var work sync.WaitGroup
	for range workers {
		work.Go(func() {
			for {
				n := int(next.Add(1))
				switch {
				case only >= 0 && n > only, only < 0 && time.Now().After(end), t.Failed():
					return
				}
				t.Run("case"+strconv.Itoa(n), func(t *testing.T) {
					c := &soakCase{soak: run, t: t, number: n, dice: rand.New(rand.NewPCG(seed, uint64(n))), start: map[int]uint64{}}
					c.run()
				})
			}
		})
	}
	var samples []usage
	over := make(chan struct{})
	go func() { work.Wait(); close(over) }()
	for sampling := true; sampling; {
		select {
		case <-over:
			sampling = false
		case <-time.After(time.Second):
			samples = append(samples, k.usage())
		}
	}
	if t.Failed() {
		return
	}
	zoo.Within(t, patience, "kzr lets go of what it opened", func() bool { return k.usage().files <= before.files+2 })
	after := k.usage()
	if after.threads != before.threads {
		t.Errorf("threads: %d at the start, %d at the end", before.threads, after.threads)
	}
	grown := 0
	if n := len(samples) / 3; n > 5 { // the first third is for what is allocated once
		peak := func(of []usage) (most int) {
			for _, u := range of {
				most = max(most, u.resident)
			}
			return most
		}
		grown = peak(samples[2*n:]) - peak(samples[n:2*n])
		if grown > 4<<20 && !raceBuild {
			t.Errorf("memory grew by %.1f MiB from the second third of the time to the last", float64(grown)/(1<<20))
		}
	}
	cases := int(run.kills.Load() + run.asked.Load() + run.spared.Load())
	t.Logf("before: %v; after: %v; %d kinds of conduct", before, after, len(run.seen))
	record(t, cases, fmt.Sprintf("%d trees in %v: %d guilty ended, the latest %v after the earliest possible moment; %d asked to reap and alive, %d left alone, no bystander touched; %+.1f MiB, %+d threads, %+d descriptors",
		cases, duration, run.kills.Load(), max(run.worst, 0).Round(10*time.Millisecond), run.asked.Load(), run.spared.Load(),
		float64(grown)/(1<<20), after.threads-before.threads, after.files-before.files))
}
