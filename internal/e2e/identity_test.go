package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"kzr/internal/procscan"
	"kzr/internal/zoo"
)

// Who is who, and what a process can make kzr believe or print.

// onHost returns a process of the host's mount namespace: this one, unless the tests
// are in another, as on a root that they pivoted to; then one that they come from.
func onHost(t *testing.T) int {
	t.Helper()
	proc, err := procscan.New("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	host, err := proc.Host()
	if err != nil {
		t.Fatal(err)
	}
	for pid := os.Getpid(); pid > 1; {
		p, err := proc.Inspect(t.Context(), pid)
		if err != nil {
			t.Fatal(err)
		}
		if p.MntNS == host.HostMntNS {
			return pid
		}
		pid = p.PPID
	}
	t.Fatal("neither this process nor who started it is in the host's mount namespace")
	return 0
}

// systemDir is a directory below /opt of that root, where only root can put a file.
func systemDir(t *testing.T, root string) string {
	t.Helper()
	if err := os.MkdirAll(root+"/opt", 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(root+"/opt", "kzr-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(dir, root)
}

func TestScenario15Protected(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		host := fmt.Sprintf("/proc/%d", onHost(t))
		dir := systemDir(t, host+"/root")
		s := newSite(t, fmt.Sprintf("{name: all, match: {exe: %q}}", dir+"/*"))
		s.mine = []string{dir + "/ordinary"}
		k := s.start(mode, "--scope=all", "--protect="+dir+"/guard*")
		cg := zoo.NewCgroup(t, "pids", "docker/"+containerID(t))
		var spared []*zoo.Zoo
		for _, c := range []struct{ name, first string }{
			{"containerd-shim-e2e", ""},
			{"kubelet", ""},
			{"guardian", ""}, // by the configuration
			{"containerd-shim-runc-v2", "cgroup=" + cg.Dir}, // a shim can live in its container's cgroup
		} {
			path := filepath.Join(dir, c.name)
			zoo.Install(t, host+"/root"+path)
			z := zoo.Start(t, "%s mnt=%s/ns/mnt exec=%s leak=12 chld=count term=count serve", c.first, host, path)
			k.saw(z.PID, "spared protected")
			spared = append(spared, z)
		}
		// The same leak by a program with no such name, to show that time enough
		// went by.
		path := filepath.Join(dir, "ordinary")
		zoo.Install(t, host+"/root"+path)
		z := zoo.Start(t, "mnt=%s/ns/mnt exec=%s leak=12 serve", host, path)
		k.saw(z.PID, "terminated")

		doc, _ := s.scan("", mode, "--scope=all", "--protect="+dir+"/guard*")
		time.Sleep(time.Second)
		for _, z := range spared {
			k.wantStory(z.PID, "spared protected")
			if c := z.Count(); c.CHLD != 0 || c.TERM != 0 {
				t.Errorf("signals came: %+v", c)
			}
			if p, _ := doc.of(z.PID); p.Reapable != 12 {
				t.Errorf("scan: %+v", p)
			}
		}
	})
}

// Who started kzr is not ended by it, whatever the rules say: here it leaks, and a
// rule matches its executable.
func TestScenario15Ancestor(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		parent := filepath.Join(s.dir, "parent")
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		// Not by this process, of which another test may be forking a child that
		// would hold it open for writing.
		if out, err := exec.Command("cp", self, parent).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		cmd := command(t, "parent=12", append(append([]string{"run"}, s.usual()...), mode, "--scope=all")...)
		cmd.Path, cmd.Args[0] = parent, parent
		k := s.launch(cmd)
		pid := k.pid
		for _, child := range zoo.Children(pid) {
			if zoo.State(child) != 'Z' {
				k.pid = child
			}
		}
		if k.counted(); k.pid == pid {
			t.Fatalf("its parent has the children %v", zoo.Children(pid))
		}
		if n := zoo.Zombies(pid); n != 12 {
			t.Fatalf("kzr's parent has %d zombies", n)
		}
		e := k.saw(pid, "spared protected")
		if e.Exe != parent || e.Zombies != 12 {
			t.Errorf("who it was: %s", e.line)
		}
		// Time enough went by.
		z := zoo.Start(t, "exec=%s leak=12 serve", s.exe)
		k.saw(z.PID, "terminated")
		time.Sleep(time.Second)
		k.wantStory(pid, "spared protected")
		if zoo.Zombies(pid) != 12 {
			t.Error("kzr's parent is not what it was")
		}
	})
}

// Inside a container a name is only a name.
func TestScenario16NamedLikeTheHost(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		id := containerID(t)
		cg := zoo.NewCgroup(t, "pids", "docker/"+id)
		s := newSite(t, fmt.Sprintf("{name: mine, match: {cgroup: %q}}", cg.Path))
		s.mine = []string{"/opt/bin/"}
		k := s.start(mode)
		// A pid namespace of its own, or only a mount namespace: a container with
		// hostPID.
		for i, c := range []struct{ ns, name string }{
			{"pidns,proc", "systemd"}, {"pidns,proc", "kubelet"}, {"pidns,proc", "sshd"}, {"mntns", "conmon"},
		} {
			exe := "/opt/bin/" + c.name
			who := fmt.Sprintf("victim%d", i)
			z := zoo.Start(t, "cgroup=%s fork=%s { name=%s tmpfs=/opt mkdir=/opt/bin copyself=%s exec=%s,/lib/systemd/systemd comm=%s leak=12 serve } serve",
				cg.Dir, c.ns, who, exe, exe, c.name)
			victim := z.Named(who)
			if e := k.saw(victim.PID, "terminated"); e.Exe != exe || e.Comm != c.name {
				t.Errorf("who it was: %s", e.line)
			}
			victim.WaitDead(0)
			alive(t, z.Proc)
		}
	})
}

// Rules go by what a process cannot choose: its executable, its cgroup, its
// container, its user. Each decoy has in its name, its command line and wherever
// else it likes what a rule asks for, and not the thing itself.
func TestScenario17NamedLikeATarget(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		uid := map[string]int{"--mode=ebpf": 54325, "--mode=proc": 54327}[mode]
		id, other := containerID(t), containerID(t)
		cg, elsewhere := zoo.NewCgroup(t, "pids", "docker/"+id), zoo.NewCgroup(t, "pids", "docker/"+other)
		s := newSite(t)
		victim := filepath.Join(s.dir, "victim")
		zoo.Install(t, victim)
		s.mine = []string{s.dir + "/"}
		for _, c := range []struct {
			name, rule    string
			decoy, target string
		}{
			{"exe", fmt.Sprintf("{name: mine, match: {exe: %q}}", victim),
				fmt.Sprintf("exec=%s,%s,leak comm=victim", s.exe, victim),
				fmt.Sprintf("exec=%s,%s comm=leaker", victim, s.exe)},
			{"cgroup", fmt.Sprintf("{name: mine, match: {cgroup: %q}}", cg.Path),
				fmt.Sprintf("cgroup=%s exec=%s,%s,%s comm=%s", elsewhere.Dir, s.exe, cg.Path, cg.Dir, id[:15]),
				fmt.Sprintf("cgroup=%s exec=%s,%s", cg.Dir, s.exe, elsewhere.Path)},
			{"container", fmt.Sprintf("{name: mine, match: {container: %q}}", id),
				fmt.Sprintf("cgroup=%s exec=%s,docker-%s.scope,/docker/%s comm=%s", elsewhere.Dir, s.exe, id, id, id[:15]),
				fmt.Sprintf("cgroup=%s exec=%s,%s", cg.Dir, s.exe, other)},
			{"uid", fmt.Sprintf("{name: mine, match: {uid: %d}}", uid),
				fmt.Sprintf("uid=%d exec=%s,%d comm=%d", uid+1, s.exe, uid, uid),
				fmt.Sprintf("uid=%d exec=%s,%d comm=%d", uid, s.exe, uid+1, uid+1)},
		} {
			t.Run(c.name, func(t *testing.T) {
				s := *s
				s.t = t
				s.configure("", c.rule)
				k := s.start(mode)
				decoy := zoo.Start(t, "in=pidns,proc %s leak=12,sig=0 chld=count term=count serve", c.decoy)
				target := zoo.Start(t, "in=pidns,proc %s leak=12 serve", c.target)
				k.saw(decoy.PID, "spared rule")
				k.saw(target.PID, "terminated")
				k.wantStory(decoy.PID, "spared rule")
				alive(t, decoy.Proc)
				if c := decoy.Count(); c.CHLD != 0 || c.TERM != 0 {
					t.Errorf("signals came: %+v", c)
				}
			})
		}
	})
}

// What a hostile process can put into its names. The kernel forbids a newline in
// the name of a cgroup, and nothing else.
const (
	hostileName = "a\n\x1b[2J) Z 1 (\xff"
	hostileArg  = "\x1b]0;owned\x07\r\n\xc3\x28\u202egnp.exe\t\"\\ {\"event\":\"signal\"}"
)

func TestScenario18HostileNames(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		id := containerID(t)
		cg := zoo.NewCgroup(t, "pids", "docker/"+id+"/\x1b[31m) Z 1 (\xff")
		s := newSite(t)
		path := filepath.Join(s.dir, "ev\nil\x1b[31m) Z 1 (\xff")
		zoo.Install(t, path)
		victim := func() *zoo.Proc {
			z := zoo.Start(t, "cgroup=%s fork=pidns,proc { name=victim exec=%s,%s,%s,%s comm=%s leak=12 term=count serve } serve",
				zoo.Quote(cg.Dir), zoo.Quote(path), zoo.Quote(hostileName), zoo.Quote(hostileArg), strings.Repeat("x", 6000), zoo.Quote(hostileName))
			return z.Named("victim")
		}

		// Every other way to look first, while it stays.
		v := victim()
		look := s.start(mode, "--dry-run", s.socket(), "--metrics="+freeAddress(t))
		look.saw(v.PID, "gave_up")
		for _, e := range look.all(func(e event) bool { return e.PID == v.PID }) {
			clean(t, "JSON log", e.line)
			// Also once it is decoded.
			clean(t, "JSON log's comm", e.Comm)
			clean(t, "JSON log's exe", e.Exe)
			if !strings.Contains(e.Comm, `\n\x1b[2J) Z 1 `) || !strings.HasSuffix(e.Exe, `ev\nil\x1b[31m) Z 1 (\xff`) || e.ContainerID != id {
				t.Errorf("who it is got lost: %s", e.line)
			}
		}
		config := "--config=" + s.config
		for _, args := range [][]string{
			{"scan", config, mode, "--threshold=10"},
			{"scan", config, mode, "--threshold=10", "--json"},
			{"explain", config, mode, s.socket(), fmt.Sprint(v.PID)},
			{"top", config, mode, s.socket(), "--once"},
			{"top", config, mode, s.socket(), "--once", "--json"},
		} {
			r := run(t, "", args...)
			if r.status != 0 || !strings.Contains(r.stdout, fmt.Sprint(v.PID)) {
				t.Errorf("kzr %v: status %d: %s%s", args, r.status, r.stdout, r.stderr)
			}
			clean(t, fmt.Sprint(args), r.stdout)
			clean(t, fmt.Sprint(args), r.stderr)
		}
		doc, _ := s.scan("", mode)
		p, _ := doc.of(v.PID)
		for _, text := range append([]string{p.Comm, p.Exe, p.Cgroup}, p.Cmdline...) {
			clean(t, "scan --json", text)
		}
		if n := len(strings.Join(p.Cmdline, "")); n < 1000 || n > 5000 {
			t.Errorf("%d bytes of command line", n)
		}
		for _, url := range []string{"/v1/parents", "/v1/status", fmt.Sprintf("/v1/parents/%d", v.PID), "/metrics"} {
			clean(t, url, s.wantText(url))
		}
		look.stop()

		// The text log, of the whole ladder.
		file, err := os.Create(filepath.Join(s.dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		cmd := command(t, "", append(append([]string{"run"}, s.usual()...), mode, "--log-format=text")...)
		cmd.Stderr = file
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			if err := cmd.Wait(); err != nil {
				t.Errorf("kzr: %v", err)
			}
		})
		text := func() string {
			b, err := os.ReadFile(file.Name())
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		zoo.Within(t, patience, "the end of the victim in the log", func() bool {
			for line := range strings.Lines(text()) {
				if strings.Contains(line, " event=terminated ") && strings.Contains(line, fmt.Sprintf(" pid=%d ", v.PID)) {
					return true
				}
			}
			return false
		})
		for line := range strings.Lines(text()) {
			clean(t, "text log", line)
			if !strings.HasPrefix(line, "time=") {
				t.Errorf("a line that kzr did not begin: %q", line)
			}
		}
		v.WaitDead(0)
	})
}

// clean wants text that a terminal shows as it is.
func clean(t *testing.T, where, text string) {
	t.Helper()
	if !utf8.ValidString(text) {
		t.Errorf("%s: not UTF-8: %q", where, text)
	}
	if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
		t.Errorf("%s: raw %q in %q", where, text[i:min(i+4, len(text))], text)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Processes that hide who they are.
func TestScenario19HardToIdentify(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		place := "/opt/" + filepath.Base(s.dir) // only in a mount namespace
		s.configure("", s.rule(), fmt.Sprintf("{name: elsewhere, match: {exe: %q}}", place+"/*"))
		s.mine = append(s.mine, place+"/")
		var all []*zoo.Zoo
		cases := []struct {
			name, script string
			exe, rule    string
			cmdline      []string
		}{
			{"no command line", fmt.Sprintf("exec=%s leak=12 nocmdline serve", s.exe), s.exe, "mine", []string{}},
			{"deleted executable", fmt.Sprintf("copyself=%[1]s/gone exec=%[1]s/gone unlink=%[1]s/gone leak=12 serve", s.dir),
				s.dir + "/gone", "mine", []string{s.dir + "/gone"}},
			{"chroot", fmt.Sprintf("mkdir=%[1]s/root copyself=%[1]s/root/in chroot=%[1]s/root exec=/in leak=12 serve", s.dir),
				s.dir + "/root/in", "mine", []string{"/in"}},
			{"mount namespace", fmt.Sprintf("tmpfs=/opt mkdir=%[1]s copyself=%[1]s/in exec=%[1]s/in leak=12 serve", place),
				place + "/in", "elsewhere", []string{place + "/in"}},
		}
		// Before 5.12 the kernel cannot look a name up without the risk of waiting for
		// a tenant's file system, so there the suffix is taken for the kernel's.
		if major, minor := kernel(t); major > 5 || major == 5 && minor >= 12 {
			c := cases[1]
			c.name, c.exe, c.cmdline = "called deleted", s.dir+"/x (deleted)", []string{s.dir + "/x (deleted)"}
			c.script = fmt.Sprintf("copyself=%[1]s/x\\x20(deleted) exec=%[1]s/x\\x20(deleted) leak=12 serve", s.dir)
			cases = append(cases, c)
		}
		for _, c := range cases {
			z := zoo.Start(t, "in=pidns,proc %s", c.script)
			doc, _ := s.scan("", mode)
			p, _ := doc.of(z.PID)
			if p.Exe != c.exe || p.Reapable != 12 || !slices.Equal(p.Cmdline, c.cmdline) || p.Cmdline == nil {
				t.Errorf("%s: scan: %+v", c.name, p)
			}
			if len(c.cmdline) == 0 {
				r := run(t, "", "scan", "--config="+s.config, mode)
				if !strings.Contains(r.stdout, "["+p.Comm+"]") {
					t.Errorf("%s: no [%s] in\n%s", c.name, p.Comm, r.stdout)
				}
			}
			all = append(all, z)
		}
		k := s.start(mode)
		for i, c := range cases {
			z := all[i]
			if e := k.saw(z.PID, "terminated"); e.Exe != c.exe || e.Rule != c.rule {
				t.Errorf("%s: %s", c.name, e.line)
			}
			z.WaitDead(0)
		}
	})
}

// A program below a path longer than the kernel can tell hides its name, on the
// host's side too, and is acted on all the same.
func TestExecutableOfAPathTooLong(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		uid := map[string]int{"--mode=ebpf": 54323, "--mode=proc": 54324}[mode]
		s := newSite(t, fmt.Sprintf("{name: deep, match: {uid: %d}}", uid))
		s.mine = append(s.mine, "(a path of more than")
		dir := s.dir
		for range 17 {
			dir += "/" + strings.Repeat("d", 250)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			dir = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) // the way on
		}
		zoo.Install(t, dir+"/prog")
		k := s.start(mode, "--scope=all")
		z := zoo.Start(t, "exec=%s/prog uid=%d leak=12 serve", dir, uid)
		if _, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", z.PID)); !errors.Is(err, unix.ENAMETOOLONG) {
			t.Fatalf("its path can be read: %v", err)
		}
		if e := k.saw(z.PID, "terminated"); e.Exe != "(a path of more than 4095 bytes)" || e.Rule != "deep" {
			t.Errorf("who it was: %s", e.line)
		}
		z.WaitDead(0)
	})
}

func TestScenario24NestedNamespaces(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		id := containerID(t)
		cg := zoo.NewCgroup(t, "pids", "docker/"+id)
		s := newSite(t)
		k := s.start(mode)
		z := zoo.Start(t, "cgroup=%s fork=pidns,proc,userns { name=outer exec=%s chld=count term=count "+
			"fork=pidns,proc,userns=0 { name=inner leak=12 serve } serve } serve", cg.Dir, s.exe)
		outer, inner := z.Named("outer"), z.Named("inner")
		// The pids are those of the test's own namespace.
		e := k.saw(inner.PID, "terminated")
		if e.ContainerID != id || e.UID != 100000 || e.Zombies != 12 {
			t.Errorf("who it was: %s", e.line)
		}
		inner.WaitDead(0)
		k.silentAbout(0, outer.PID, z.PID)
		if c := outer.Count(); c.TERM != 0 {
			t.Errorf("the outer one got signals: %+v", c)
		}
	})
}

func TestScenario35ExecByAThread(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode string) {
		s := newSite(t)
		other := filepath.Join(s.dir, "other")
		zoo.Install(t, other)
		k := s.start(mode, "--grace=8s")
		z := zoo.Start(t, "in=pidns,proc exec=%s threads=3 leak=12 serve", s.exe)
		suspect := k.saw(z.PID, "suspect")
		z.Do("threadexec=%s", other)
		zoo.Within(t, patience, "the exec", func() bool {
			exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", z.PID))
			return exe == other
		})
		first := k.saw(z.PID, "signal SIGCHLD")
		if first.StartTime != suspect.StartTime || first.Exe != other || first.Zombies != 12 {
			t.Errorf("%s\nwas before the exec\n%s", first.line, suspect.line)
		}
		// The zombies' ages did not begin anew.
		if left := 8 - suspect.Oldest; first.Time.Sub(suspect.Time).Seconds() > left+3 {
			t.Errorf("signalled %v after the suspicion, with %.1f s of the grace left then", first.Time.Sub(suspect.Time), left)
		}
		k.saw(z.PID, "terminated")
		z.WaitDead(0)

		// Children that did the same before they died count once each.
		z = zoo.Start(t, "in=pidns,proc exec=%s serve", s.exe)
		for range 11 {
			z.Do("fork { threads=3 threadexec=%s exit }", other)
		}
		zoo.Within(t, patience, "eleven zombies", func() bool { return z.Zombies() == 11 })
		s.wantCount(mode, z.PID, 11, 11)
		k.saw(z.PID, "terminated")
	})
}
