package runtimes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/zoo"
)

// prefix begins the name of the directory, and of the cgroup, that all of one
// test is in.
const prefix = "kzr-rt-"

// outside is what runtimes make and leave outside their worlds, no matter how
// they are configured. Removed in reverse order.
var outside = []string{
	"/run/containerd", "/run/containerd/s",
	"/run/docker", "/run/docker/plugins",
	"/run/runc",
	"/var/lib/containers", "/var/lib/containers/cache", "/var/lib/containers/cache/blob-info-cache-v1.boltdb",
}

// A world is where one runtime under test lives. Its directory holds the state
// and the sockets, and its cgroup, of the same name in each hierarchy, all the
// containers. Nothing of the machine's own runtimes is touched.
type world struct {
	t     *testing.T
	dir   string
	owned *os.File
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if _, err := buildKzr(); err != nil { // before anything is started
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		t.Fatal(err)
	}
	// /proc shows paths without symbolic links.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir}
	if w.owned, err = own(dir, os.O_CREATE); err != nil {
		t.Fatal(err)
	}
	for _, path := range outside {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			t.Cleanup(func() { os.Remove(path) }) // unless somebody else uses it by now
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
			for _, l := range logs {
				text, _ := os.ReadFile(l)
				t.Logf("the end of %s:\n%s", filepath.Base(l), text[max(0, len(text)-8000):])
			}
		}
		if left := purge(dir); len(left) > 0 {
			t.Errorf("left behind: %s", strings.Join(left, "; "))
		}
		w.owned.Close()
	})
	return w
}

// cgroup is the path of the cgroup that everything is in.
func (w *world) cgroup() string { return "/" + filepath.Base(w.dir) }

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// write makes a file and returns its path.
func (w *world) write(name, text string) string {
	w.t.Helper()
	path := w.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// program is the built kzr.
func (w *world) program() string {
	w.t.Helper()
	program, err := buildKzr()
	if err != nil {
		w.t.Fatal(err)
	}
	path := w.path("kzr")
	if _, err := os.Stat(path); err != nil {
		if err := os.WriteFile(path, program, 0o755); err != nil {
			w.t.Fatal(err)
		}
	}
	return path
}

// A service is a process that runs until the test ends.
type service struct {
	t      *testing.T
	cmd    *exec.Cmd
	log    string // the file with what it writes
	exited chan struct{}
	once   bool // stopped already
}

// serve starts one. What it writes goes to a file of its name in the world.
func (w *world) serve(name, program string, args ...string) *service {
	w.t.Helper()
	s := &service{t: w.t, cmd: exec.Command(program, args...), log: w.path(name + ".log"), exited: make(chan struct{})}
	out, err := os.Create(s.log)
	if err != nil {
		w.t.Fatal(err)
	}
	defer out.Close()
	s.cmd.Stdout, s.cmd.Stderr = out, out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := s.cmd.Start(); err != nil {
		w.t.Fatalf("starting %s: %v", name, err)
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.exited)
	}()
	w.t.Cleanup(s.stop)
	return s
}

func (s *service) stop() {
	if s.once {
		return
	}
	s.once = true
	_ = s.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-s.exited:
	case <-time.After(20 * time.Second):
		s.t.Errorf("%s lives 20s after SIGTERM", filepath.Base(s.cmd.Path))
		_ = s.cmd.Process.Kill()
		<-s.exited
	}
}

// await polls until ok, which has to become true while the service runs.
func (s *service) await(what string, ok func() bool) {
	s.t.Helper()
	zoo.Within(s.t, patience, what, func() bool {
		select {
		case <-s.exited:
			s.t.Fatalf("%s has ended (%v) before: %s", filepath.Base(s.cmd.Path), s.cmd.ProcessState, what)
		default:
		}
		time.Sleep(20 * time.Millisecond)
		return ok()
	})
}

// command runs a program to its end and returns what it writes.
func (w *world) command(program string, args ...string) string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var out bytes.Buffer
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		w.t.Fatalf("%s: %v\n%s%s", strings.Join(cmd.Args, " "), err, out.String(), stderr.String())
	}
	return out.String()
}

// purge ends all that lives in a world, takes it down, and says what it could
// not.
func purge(dir string) (left []string) {
	// Shims and monitors end by themselves once their containers are gone.
	// Those of a test that failed do not.
	deadline := time.Now().Add(20 * time.Second)
	for {
		pids := inhabitants(dir)
		if len(pids) == 0 {
			break
		}
		if time.Now().After(deadline) {
			left = append(left, fmt.Sprintf("processes %v", pids))
			break
		}
		if time.Until(deadline) < 15*time.Second {
			for _, pid := range pids {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	// Shims that were killed leave their sockets, in a directory of containerd's.
	bundles, _ := filepath.Glob(filepath.Join(dir, "state/io.containerd.runtime.v2.task/*/*/address"))
	for _, b := range bundles {
		address, _ := os.ReadFile(b)
		if socket, ok := strings.CutPrefix(string(address), "unix:///run/containerd/s/"); ok {
			os.Remove("/run/containerd/s/" + filepath.Base(socket))
		}
	}
	for _, m := range slices.Backward(mountsBelow(dir)) {
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			left = append(left, fmt.Sprintf("mount %s: %v", m, err))
		}
	}
	for _, cgroup := range cgroupsOf(dir) {
		if err := removeCgroup(cgroup); err != nil {
			left = append(left, fmt.Sprintf("cgroup: %v", err))
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		left = append(left, err.Error())
	}
	return left
}

// own takes the lock of a world, which its test holds while it runs.
func own(dir string, flags int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "owner"), os.O_RDWR|flags, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// purgeAbandoned takes down the worlds of tests that were killed themselves.
func purgeAbandoned() {
	old, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	for _, dir := range old {
		if f, err := own(dir, 0); err == nil {
			purge(dir)
			f.Close()
		}
	}
}

// inhabitants are the processes in the cgroup of a world, and those that were
// given its directory as an argument, as shims and monitors are.
func inhabitants(dir string) []int {
	pids := make(map[int]bool)
	for _, root := range cgroupsOf(dir) {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Name() == "cgroup.procs" {
				text, _ := os.ReadFile(path)
				for f := range strings.FieldsSeq(string(text)) {
					if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
						pids[pid] = true
					}
				}
			}
			return nil
		})
	}
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range all {
		pid, _ := strconv.Atoi(filepath.Base(p))
		cmdline, _ := os.ReadFile(p + "/cmdline")
		if pid != os.Getpid() && bytes.Contains(cmdline, []byte(dir+"/")) {
			pids[pid] = true
		}
	}
	var live []int
	for pid := range pids {
		if s := zoo.State(pid); s != 0 && s != 'Z' {
			live = append(live, pid)
		}
	}
	slices.Sort(live)
	return live
}

func mountsBelow(dir string) []string {
	text, _ := os.ReadFile("/proc/self/mountinfo")
	var points []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	return points
}

// cgroupsOf are the directories of a world's cgroup: one, or with cgroup v1 one
// in each hierarchy.
func cgroupsOf(dir string) []string {
	var all []string
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, _ := filepath.Glob(pattern + filepath.Base(dir))
		all = append(all, found...)
	}
	return all
}

func removeCgroup(root string) error {
	var dirs []string
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for _, d := range slices.Backward(dirs) {
		// What was its last process may be accounted for a moment.
		err := os.Remove(d)
		for end := time.Now().Add(5 * time.Second); err != nil && time.Now().Before(end); err = os.Remove(d) {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			time.Sleep(20 * time.Millisecond)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
