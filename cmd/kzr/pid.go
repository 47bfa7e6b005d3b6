package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"kzr/internal/report"
)

// ids are the numbers of a thread: its process, and what it is called in each pid
// namespace from ours inwards.
type ids struct {
	process, parent int
	ns              []int
}

// nsGetParent is NS_GET_PARENT of linux/nsfs.h.
const nsGetParent = 0xb702

// readIDs reads the status of a thread in a directory such as /proc/1.
func readIDs(dir string) (ids, error) {
	b, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return ids{}, err
	}
	var out ids
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		switch {
		case key == "Tgid" && len(fields) == 1:
			out.process, err = strconv.Atoi(fields[0])
		case key == "PPid" && len(fields) == 1:
			out.parent, err = strconv.Atoi(fields[0])
		case key == "NSpid":
			for _, f := range fields {
				n, err := strconv.Atoi(f)
				if err != nil {
					return ids{}, err
				}
				out.ns = append(out.ns, n)
			}
			return out, err
		}
	}
	return out, errors.New("the kernel does not tell pids by namespace")
}

// processOf returns the process that a thread belongs to; mostly it is that thread.
func processOf(thread int) (int, error) {
	id, err := readIDs(fmt.Sprintf("/proc/%d", thread))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, fmt.Errorf("process %d: %w", thread, report.ErrNotFound)
	}
	if err != nil {
		return 0, fmt.Errorf("reading process %d: %w", thread, err)
	}
	return id.process, nil
}

// pidInside finds the process that is called pid in the pid namespace of the process
// in. A thread's number stands for its process.
func pidInside(pid, in int) (int, error) {
	inside := fmt.Sprintf("/proc/%d", in)
	at, err := readIDs(inside)
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", in, report.ErrNotFound)
	}
	level := len(at.ns) - 1
	want, err := os.Stat(inside + "/ns/pid")
	if err != nil {
		return 0, fmt.Errorf("reading the pid namespace of process %d: %w", in, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if strings.Trim(e.Name(), "0123456789") != "" {
			continue
		}
		dir := "/proc/" + e.Name()
		leader, err := readIDs(dir)
		if err != nil || len(leader.ns) <= level { // it may be gone
			continue
		}
		near := leader
		if _, err := os.Readlink(dir + "/ns/pid"); err != nil { // a zombie has none; its parent's will do
			if near, err = readIDs(fmt.Sprintf("/proc/%d", leader.parent)); err != nil || len(near.ns) <= level {
				continue
			}
		}
		if !namespaceIs(fmt.Sprintf("/proc/%d/ns/pid", near.process), want, len(near.ns)-1-level) {
			continue
		}
		if leader.ns[level] == pid {
			return leader.process, nil
		}
		tasks, err := os.ReadDir(dir + "/task")
		if err != nil {
			continue
		}
		if slices.ContainsFunc(tasks, func(task os.DirEntry) bool {
			thread, err := readIDs(dir + "/task/" + task.Name())
			return err == nil && len(thread.ns) > level && thread.ns[level] == pid
		}) {
			return leader.process, nil
		}
	}
	return 0, fmt.Errorf("process %d in the pid namespace of process %d: %w", pid, in, report.ErrNotFound)
}

// namespaceIs says whether the pid namespace so many levels above that of a process is
// a certain one.
func namespaceIs(link string, want os.FileInfo, up int) bool {
	f, err := os.Open(link)
	if err != nil {
		return false
	}
	for ; up > 0; up-- {
		fd, err := unix.IoctlRetInt(int(f.Fd()), nsGetParent)
		f.Close()
		if err != nil {
			return false
		}
		f = os.NewFile(uintptr(fd), link)
	}
	defer f.Close()
	got, err := f.Stat()
	return err == nil && os.SameFile(got, want)
}
