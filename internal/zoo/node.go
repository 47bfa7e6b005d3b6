package zoo

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Within calls ok until it returns true, and fails the test if it has not after
// d. What says what was waited for.
func Within(t testing.TB, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("after %v still not: %s", d, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// State is the state of a task as in /proc/PID/stat, 0 if it is gone.
func State(pid int) byte {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	i := bytes.LastIndex(stat, []byte(") "))
	if err != nil || i < 0 {
		return 0
	}
	return stat[i+2]
}

// Parent is the parent of a process, 0 if it is gone.
func Parent(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	i := bytes.LastIndex(stat, []byte(") "))
	if err != nil || i < 0 {
		return 0
	}
	parent, _ := strconv.Atoi(strings.Fields(string(stat[i+2:]))[1])
	return parent
}

// Exiting says that a process has no memory any more, but is not gone.
func Exiting(pid int) bool {
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	return err == nil && bytes.HasPrefix(statm, []byte("0 "))
}

// Children are the children of a process, dead or alive.
func Children(pid int) []int {
	var all []int
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list) // a thread that vanished has none
		for field := range strings.FieldsSeq(string(text)) {
			child, _ := strconv.Atoi(field)
			all = append(all, child)
		}
	}
	return all
}

// Zombies is the number of children of a process that are in state Z, for
// whatever reason.
func Zombies(pid int) int {
	n := 0
	for _, child := range Children(pid) {
		if State(child) == 'Z' {
			n++
		}
	}
	return n
}

// KernelAtLeast says whether this machine's kernel is of this version or a later one.
func KernelAtLeast(t testing.TB, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	var x, y int
	err := unix.Uname(&u)
	if err == nil {
		_, err = fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &x, &y)
	}
	if err != nil {
		t.Fatal("the kernel's version:", err)
	}
	return x > major || x == major && y >= minor
}

// Compile compiles the C program in a file with these arguments to the compiler, once
// per machine and version, and returns its path. On a machine without a compiler it
// takes NAME from the directory KZR_COMPILED.
func Compile(t testing.TB, name, file string, args ...string) string {
	t.Helper()
	if dir := os.Getenv("KZR_COMPILED"); dir != "" {
		return filepath.Join(dir, name)
	}
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	path, err := compiled(name, source, args)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Install puts a copy of the program at path, which must be free, until the test
// ends. The step exec=PATH runs it.
func Install(t testing.TB, path string) {
	t.Helper()
	program, err := os.ReadFile(Build(t))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
	_, err = f.Write(program)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// A Cgroup is one that a test made. A zoo enters it by the step cgroup=DIR.
type Cgroup struct {
	Dir        string // where its files are
	Path       string // as /proc/PID/cgroup names it
	controller string
	t          testing.TB
	v2         bool
}

var cgroups atomic.Int64

// NewCgroup makes a cgroup with the given controller (pids or freezer; on cgroup
// v2 the freezer is built in), at path below one that nobody else makes, and
// removes both when the test ends. Make it before the zoo that is to enter it,
// so that it is empty by then.
func NewCgroup(t testing.TB, controller, path string) *Cgroup {
	t.Helper()
	root := "/sys/fs/cgroup"
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		t.Fatalf("statfs %s: %v", root, err)
	}
	c := &Cgroup{Dir: root, controller: controller, t: t, v2: st.Type == unix.CGROUP2_SUPER_MAGIC}
	if !c.v2 {
		c.Dir = filepath.Join(root, controller)
	}
	return c.New(fmt.Sprintf("kzr-test-%d-%d/%s", os.Getpid(), cgroups.Add(1), path))
}

// New makes another at path below c.
func (c *Cgroup) New(path string) *Cgroup {
	c.t.Helper()
	below := *c
	for name := range strings.SplitSeq(path, "/") {
		if c.v2 && c.controller != "freezer" {
			below.write("cgroup.subtree_control", "+"+c.controller)
		}
		below.Dir, below.Path = filepath.Join(below.Dir, name), below.Path+"/"+name
		dir := below.Dir
		if err := os.Mkdir(dir, 0o755); err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() {
			// Its last process was reaped, but may be accounted for a moment.
			Within(c.t, patience, "removing "+dir, func() bool { return os.Remove(dir) == nil })
		})
	}
	return &below
}

func (c *Cgroup) write(file, text string) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.Dir, file), []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// SetPidsMax limits the number of its tasks, zombies among them.
func (c *Cgroup) SetPidsMax(n int) {
	c.t.Helper()
	c.write("pids.max", strconv.Itoa(n))
}

// Freeze stops everything in it, and returns when it has. When the test ends it
// is thawed: on cgroup v1 nothing frozen can be killed.
func (c *Cgroup) Freeze() {
	c.t.Helper()
	c.t.Cleanup(c.Thaw)
	file, line := "freezer.state", "FROZEN"
	if c.v2 {
		c.write("cgroup.freeze", "1")
		file, line = "cgroup.events", "frozen 1"
	} else {
		c.write("freezer.state", "FROZEN")
	}
	Within(c.t, patience, "frozen: "+c.Dir, func() bool {
		text, _ := os.ReadFile(filepath.Join(c.Dir, file))
		return bytes.Contains(text, []byte(line))
	})
}

// Thaw lets it go on.
func (c *Cgroup) Thaw() {
	c.t.Helper()
	if c.v2 {
		c.write("cgroup.freeze", "0")
	} else {
		c.write("freezer.state", "THAWED")
	}
}
