package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"kzr/internal/readers"
	"kzr/internal/report"
)

// nsGetParent is NS_GET_PARENT of linux/nsfs.h.
const nsGetParent = 0xb702

// statuses reads status files of /proc. To read one can take half a megabyte, or for
// ever if the reader is left to tear the process's memory down; so that is the last
// resort, on threads that may be lost.
var statuses = sync.OnceValue(func() *readers.Pool { return readers.New(4, 1) })

// statusPatience is how long one may take.
const statusPatience = 500 * time.Millisecond

// namesOf are a process's numbers in each pid namespace from ours inwards. Its pidfd
// tells them without its memory.
func namesOf(pid int) ([]int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return nil, err
	}
	if names, err := nspidIn(b); err == nil {
		return names, nil
	}
	return statusNames(fmt.Sprintf("/proc/%d", pid)) // before Linux 5.5
}

// statusNames are the same for a thread or process in a directory of /proc.
func statusNames(dir string) ([]int, error) {
	b, err := readers.Read(context.Background(), statuses(), dir, statusPatience, func() ([]byte, error) {
		return os.ReadFile(filepath.Join(dir, "status"))
	})
	if err != nil {
		return nil, err
	}
	return nspidIn(b)
}

// nspidIn finds the line NSpid in a status file or in what is told of a pidfd.
func nspidIn(b []byte) (names []int, err error) {
	for line := range bytes.Lines(b) {
		list, ok := bytes.CutPrefix(line, []byte("NSpid:"))
		if !ok {
			continue
		}
		for f := range strings.FieldsSeq(string(list)) {
			n, err := strconv.Atoi(f)
			if err != nil {
				return nil, err
			}
			names = append(names, n)
		}
		return names, nil
	}
	return nil, errors.New("the kernel does not tell pids by namespace")
}

// processOf returns the process that a thread belongs to; mostly it is that thread.
func processOf(thread int) (int, error) {
	if isProcess(thread) {
		return thread, nil
	}
	for _, n := range numbersIn(fmt.Sprintf("/proc/%d/task", thread)) {
		if isProcess(n) {
			return n, nil
		}
	}
	return 0, fmt.Errorf("process %d: %w", thread, report.ErrNotFound)
}

// isProcess says that a number is a process's, dead or alive, and not a thread's.
func isProcess(pid int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

// numbersIn lists the pids or thread ids in a directory of /proc.
func numbersIn(dir string) (list []int) {
	entries, _ := os.ReadDir(dir) // what is there till it is gone
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			list = append(list, n)
		}
	}
	return list
}

// pidInside finds the process that is called pid in the pid namespace of the process
// in. A thread's number stands for its process.
func pidInside(pid, in int) (int, error) {
	in, err := processOf(in)
	if err != nil {
		return 0, err
	}
	at, err := namesOf(in)
	if err != nil {
		return 0, fmt.Errorf("reading process %d: %w", in, err)
	}
	level := len(at) - 1
	want, err := os.Stat(fmt.Sprintf("/proc/%d/ns/pid", in))
	if err != nil {
		return 0, fmt.Errorf("reading the pid namespace of process %d: %w", in, err)
	}
	var members []int
	for _, leader := range numbersIn("/proc") {
		names, err := namesOf(leader)
		if err != nil || len(names) <= level || !namespaceIs(fmt.Sprintf("/proc/%d/ns/pid", leader), want, len(names)-1-level) {
			continue
		}
		if names[level] == pid {
			return leader, nil
		}
		members = append(members, leader)
	}
	for _, leader := range members {
		dir := fmt.Sprintf("/proc/%d/task", leader)
		for _, thread := range numbersIn(dir) {
			names, err := statusNames(filepath.Join(dir, strconv.Itoa(thread)))
			if thread != leader && err == nil && len(names) > level && names[level] == pid {
				return leader, nil
			}
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
