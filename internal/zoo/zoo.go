// Package zoo makes real processes that misbehave in the ways kzr must judge,
// for tests. Scripts go in; processes with known pids come out, take further
// orders while they live, and are gone when the test ends, however it ends.
//
// The processes are all one static C program, testdata/zoo.c; its first comment
// explains the scripts and its table lists the steps. [Start] runs one:
//
//	z := zoo.Start(t, "in=pidns,proc leak=60 serve")
//	z.Zombies()        // 60
//	z.Do("reap=10")    // it reaps ten of them
//
// and processes with a name of their own can be reached too:
//
//	z := zoo.Start(t, "fork { name=kid serve } fork { name=tracer serve } serve")
//	z.Named("tracer").Do("trace=%d", z.Named("kid").PID)
package zoo

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait for something that takes milliseconds on an idle
// machine.
const patience = 30 * time.Second

//go:embed testdata/zoo.c
var source []byte

var cflags = []string{"-pthread", "-static"}

var build = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("KZR_ZOO"); path != "" {
		return path, nil
	}
	return compiled("zoo", source, cflags)
})

// compiled compiles a C program, once per machine and version, and returns its path.
func compiled(name string, source []byte, args []string) (string, error) {
	args = append([]string{"-std=gnu17", "-O2", "-Wall", "-Wextra", "-Werror"}, args...)
	sum := sha256.Sum256(fmt.Append(source, args, runtime.GOARCH))
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("kzr-zoo-%d-%x", os.Geteuid(), sum[:8]))
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	// The name is predictable and the directory shared: what is run must be ours.
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return "", fmt.Errorf("looking at %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return "", fmt.Errorf("%s is somebody else's", dir)
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	// Other packages' tests may build it at the same time: the last one wins.
	tmp, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	cmd := exec.Command("cc", append(args, "-x", "c", "-o", filepath.Join(tmp, name), "-")...)
	cmd.Stdin = bytes.NewReader(source)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compiling %s (KZR_ZOO and KZR_COMPILED may name compiled ones): %w\n%s", name, err, out)
	}
	return path, os.Rename(filepath.Join(tmp, name), path)
}

// Build returns the path of the compiled program. It is compiled once per
// machine and version, and kept in the directory for temporary files. The
// environment variable KZR_ZOO can name a compiled one instead, for machines
// without a compiler.
func Build(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Quote writes s so that it can stand as one value in a script, whatever bytes
// it has.
func Quote(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c > ' ' && c < 0x7f && !strings.ContainsRune(`,\{}=%`, rune(c)) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String()
}

// A Zoo is the processes of one script. The embedded Proc is its main process.
type Zoo struct {
	*Proc
	t    testing.TB
	conn *net.UnixConn

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when anything below changes
	procs   map[string]*Proc
	failed  string // why a process could not do what the script says
	exited  bool
	status  syscall.WaitStatus
}

// A Proc is a process of the zoo that has a name.
type Proc struct {
	Name  string
	PID   int // in the pid namespace of the test
	t     testing.TB
	pidfd int // -1 if it was gone before it could be opened
	mu    sync.Mutex
	ctl   net.Conn
}

// Start runs a script, made as by [fmt.Sprintf], and returns when its main
// process is ready. When the test ends, whatever is left of it is killed, and
// the test fails if that does not work.
func Start(t testing.TB, format string, args ...any) *Zoo {
	t.Helper()
	bin := Build(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal("socketpair:", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "zoo")
	defer theirs.Close()
	ours := os.NewFile(uintptr(fds[0]), "harness")
	// The kernel then adds to each message its sender's pid, as seen from here.
	if err := unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		t.Fatal("SO_PASSCRED:", err)
	}
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		t.Fatal("socket of the zoo:", err)
	}
	z := &Zoo{
		t:       t,
		conn:    conn.(*net.UnixConn),
		changed: make(chan struct{}),
		procs:   make(map[string]*Proc),
	}

	keeper := exec.Command(bin, strings.Fields(fmt.Sprintf(format, args...))...)
	keeper.Env = []string{"ZOO_REPORT=3"}
	keeper.ExtraFiles = []*os.File{theirs}
	var stderr bytes.Buffer
	keeper.Stderr = &stderr
	// What the keeper could not kill must not hold up Wait through stderr.
	keeper.WaitDelay = time.Second
	keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := keeper.Start(); err != nil {
		t.Fatal("starting the zoo:", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		z.listen()
	}()
	t.Cleanup(func() {
		t.Helper()
		// The keeper ends when its socket closes and waitpid() says that no
		// process of the zoo is left.
		z.conn.Close()
		<-done
		late := time.AfterFunc(patience, func() {
			tree, _ := exec.Command("ps", "-eo", "pid,ppid,stat,wchan,args", "--forest").CombinedOutput()
			t.Errorf("zoo: processes are left after %v:\n%s", patience, tree)
			_ = keeper.Process.Kill()
		})
		if err := keeper.Wait(); err != nil {
			t.Errorf("zoo: keeper: %v: %s", err, stderr.Bytes())
		}
		late.Stop()
		for _, p := range z.procs {
			p.close()
		}
		if z.failed != "" && !t.Failed() {
			t.Error("zoo:", z.failed)
		}
	})
	z.Proc = z.Named("main")
	return z
}

// listen takes what the zoo's processes report until the socket is closed.
func (z *Zoo) listen() {
	buf := make([]byte, 1024)
	oob := make([]byte, 256)
	for {
		n, oobn, _, _, err := z.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) {
				z.update(func() { z.failed = "reading reports: " + err.Error() })
			}
			return
		}
		if n == 0 {
			z.update(func() {
				if z.failed == "" {
					z.failed = "its keeper is gone"
				}
			})
			return
		}
		verb, text, _ := strings.Cut(string(buf[:n]), " ")
		switch verb {
		case "hello":
			p, err := hello(z.t, text, oob[:oobn])
			z.update(func() {
				if err != nil {
					z.failed = fmt.Sprintf("%s: %v", text, err)
					return
				}
				if old := z.procs[text]; old != nil {
					old.close()
				}
				z.procs[text] = p
			})
		case "exit":
			z.update(func() {
				z.exited = true
				_, _ = fmt.Sscan(text, &z.status)
			})
		default:
			z.update(func() { z.failed = text })
		}
	}
}

func hello(t testing.TB, name string, oob []byte) (*Proc, error) {
	p := &Proc{Name: name, t: t, pidfd: -1}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parsing a control message: %w", err)
	}
	for _, m := range msgs {
		if cred, err := unix.ParseUnixCredentials(&m); err == nil {
			p.PID = int(cred.Pid)
		}
		if fds, err := unix.ParseUnixRights(&m); err == nil && len(fds) == 1 {
			f := os.NewFile(uintptr(fds[0]), name)
			p.ctl, err = net.FileConn(f)
			f.Close()
			if err != nil {
				return nil, fmt.Errorf("its socket: %w", err)
			}
		}
	}
	if p.PID == 0 || p.ctl == nil {
		return nil, errors.New("a hello without pid or socket")
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("pidfd_open: %w", err)
	}
	if err == nil {
		p.pidfd = fd
	}
	return p, nil
}

func (z *Zoo) update(f func()) {
	z.mu.Lock()
	defer z.mu.Unlock()
	f()
	close(z.changed)
	z.changed = make(chan struct{})
}

// await returns when ready does, which is called with z.mu held, and fails the
// test if that takes too long or cannot happen any more.
func (z *Zoo) await(what string, ready func() bool) {
	z.t.Helper()
	deadline := time.After(patience)
	for {
		z.mu.Lock()
		ok, failed, changed := ready(), z.failed, z.changed
		z.mu.Unlock()
		switch {
		case ok:
			return
		case failed != "":
			z.t.Fatal("zoo: ", failed)
		}
		select {
		case <-changed:
		case <-deadline:
			z.t.Fatalf("zoo: waiting for %s: nothing after %v", what, patience)
		}
	}
}

// Named is the process of that name, the newest if several had it. It waits
// until there is one.
func (z *Zoo) Named(name string) *Proc {
	z.t.Helper()
	var p *Proc
	z.await("process "+name, func() bool {
		p = z.procs[name]
		if p == nil && z.exited && z.failed == "" && name == "main" {
			z.failed = "main ended before it was ready"
		}
		return p != nil
	})
	return p
}

// Status waits until the main process has ended and been reaped, and says how.
func (z *Zoo) Status() syscall.WaitStatus {
	z.t.Helper()
	z.await("the end of main", func() bool { return z.exited })
	return z.status
}

// Do makes the process run further steps, made as by [fmt.Sprintf], and returns
// the result of the last one: the number of children for leak and reap, the pid
// for fork. Steps that end or stop the process are answered before they begin.
func (p *Proc) Do(format string, args ...any) string {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	script := fmt.Sprintf(format, args...)
	_ = p.ctl.SetDeadline(time.Now().Add(patience))
	if _, err := p.ctl.Write([]byte(script)); err != nil {
		p.t.Fatalf("zoo: telling %s %q: %v", p.Name, script, err)
	}
	buf := make([]byte, 1024)
	n, err := p.ctl.Read(buf)
	if err != nil {
		p.t.Fatalf("zoo: %s has not answered %q: %v", p.Name, script, err)
	}
	verdict, result, _ := strings.Cut(string(buf[:n]), " ")
	if verdict != "ok" {
		p.t.Fatalf("zoo: %s: %q: %s", p.Name, script, result)
	}
	return result
}

// Count is what a process of the zoo says that it did.
type Count struct {
	Made   int // children
	Failed int // forks that failed
	Reaped int // children
	CHLD   int // SIGCHLD that a handler of its own saw
	TERM   int // SIGTERM that a handler of its own saw
}

// Count asks the process what it did so far.
func (p *Proc) Count() Count {
	p.t.Helper()
	var c Count
	text := p.Do("count")
	if _, err := fmt.Sscanf(text, "made=%d failed=%d reaped=%d chld=%d term=%d",
		&c.Made, &c.Failed, &c.Reaped, &c.CHLD, &c.TERM); err != nil {
		p.t.Fatalf("zoo: count %q: %v", text, err)
	}
	return c
}

// Signal sends it a signal; to one that is dead nothing happens.
func (p *Proc) Signal(sig unix.Signal) {
	p.t.Helper()
	if p.pidfd < 0 {
		return
	}
	if err := unix.PidfdSendSignal(p.pidfd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		p.t.Fatalf("zoo: %v to %s: %v", sig, p.Name, err)
	}
}

// Alive says whether any thread of it lives.
func (p *Proc) Alive() bool { return !p.dead(0) }

// WaitDead fails the test if it still lives after d.
func (p *Proc) WaitDead(d time.Duration) {
	p.t.Helper()
	if !p.dead(d) {
		p.t.Fatalf("zoo: %s (pid %d, state %c) lives after %v", p.Name, p.PID, State(p.PID), d)
	}
}

func (p *Proc) dead(d time.Duration) bool {
	if p.pidfd < 0 {
		return true
	}
	for end := time.Now().Add(d); ; {
		fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(0, time.Until(end).Milliseconds())))
		if err == nil {
			return n > 0
		}
	}
}

// Zombies is the number of its children in state Z.
func (p *Proc) Zombies() int { return Zombies(p.PID) }

// State is its state as in /proc/PID/stat, 0 if it is gone.
func (p *Proc) State() byte { return State(p.PID) }

func (p *Proc) close() {
	p.ctl.Close()
	if p.pidfd >= 0 {
		unix.Close(p.pidfd)
		p.pidfd = -1
	}
}
