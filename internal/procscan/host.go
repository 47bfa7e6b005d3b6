package procscan

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"kzr/internal/task"
)

// Inode numbers that the kernel gives to the initial namespaces:
// PROC_PID_INIT_INO and PROC_USER_INIT_INO in include/linux/proc_ns.h.
const (
	initialPIDNS  = 0xEFFFFFFC
	initialUserNS = 0xEFFFFFFD
)

// Host is where kzr stands and how much of the host it can see from there.
type Host struct {
	// Inode numbers of kzr's own namespaces, 0 where unreadable.
	PIDNS, MntNS, UserNS uint64
	InitialPIDNS         bool // its pids are the host's
	InitialUserNS        bool
	// The mount and user namespace of process 1. Where that one is not to be
	// looked at, those of the kernel's own threads, which never leave the
	// namespaces that the machine booted with; 0 if neither can be read. In an
	// inner pid namespace, process 1 is that namespace's.
	HostMntNS, HostUserNS uint64

	HidePID     string // the mount's hidepid option in force for kzr: noaccess, invisible, ptraceable; "" if none
	SubsetPID   bool   // /proc shows processes only, not the node's limits
	Ptrace      bool   // kzr has CAP_SYS_PTRACE
	Unreadable  int    // processes that the last snapshot saw but could not read
	HidesInit   bool   // not even process 1 is visible
	CgroupError string // why cgroups cannot be read, "" if they can
}

// Host looks at kzr's own place. It is cheap enough to be asked each time
// something is reported.
func (s *Scanner) Host() (Host, error) {
	var h Host
	err := s.frugally(func() (err error) {
		h, err = s.host()
		return err
	})
	return h, err
}

func (s *Scanner) host() (Host, error) {
	var h Host
	b, err := readAll(s.root, "self/status", statusMax)
	if err != nil {
		return Host{}, fmt.Errorf("reading %s/self/status: %w", s.path, err)
	}
	st := parseStatus(b)
	h.Ptrace = st.capEff&(1<<unix.CAP_SYS_PTRACE) != 0
	h.PIDNS = s.namespaceOf("self", "pid")
	h.MntNS = s.namespaceOf("self", "mnt")
	h.UserNS = s.namespaceOf("self", "user")
	h.InitialPIDNS = h.PIDNS == initialPIDNS
	// A kernel without user namespaces has no link, and but one namespace.
	h.InitialUserNS = h.UserNS == initialUserNS || h.UserNS == 0
	h.HostMntNS = s.hostNamespace("mnt", h.InitialPIDNS)
	h.HostUserNS = s.hostNamespace("user", h.InitialPIDNS)

	if _, err := readAll(s.root, "1/stat", lineSize); err != nil {
		if !gone(err) && !denied(err) {
			return Host{}, fmt.Errorf("reading %s/1/stat: %w", s.path, err)
		}
		h.HidesInit = true
	}
	h.SubsetPID = s.loadavg < 0
	if !h.Ptrace { // else nothing is hidden from kzr, and a node of containers has thousands of mounts to read
		options, err := s.mountOptions()
		if err != nil {
			return Host{}, err
		}
		h.HidePID = hidden(options, &st)
	}
	h.Unreadable = int(s.unseen.Load())
	switch {
	case s.cgroups.err != nil:
		h.CgroupError = s.cgroups.err.Error()
	case !s.cgroups.unified.ok && !s.cgroups.pids.ok:
		h.CgroupError = "no cgroup file system is mounted"
	}
	return h, nil
}

func (s *Scanner) namespaceOf(pid, name string) uint64 {
	inode, err := namespace(s.root, pid+"/ns/"+name)
	if err != nil {
		return 0
	}
	return inode
}

func (s *Scanner) hostNamespace(name string, initial bool) uint64 {
	if inode := s.namespaceOf("1", name); inode != 0 || !initial {
		return inode
	}
	b, err := readAll(s.root, "2/stat", lineSize)
	if err != nil {
		return 0
	}
	if st, err := parseStat(b); err != nil || st.flags&pfKthread == 0 {
		return 0
	}
	return s.namespaceOf("2", name)
}

// mountOptions are the options of the proc mount itself, found by the mount id
// of the held descriptor: there may be several mounts, and one on top of another.
func (s *Scanner) mountOptions() (map[string]string, error) {
	b, err := readAll(s.root, "self/fdinfo/"+strconv.Itoa(s.root), 4096)
	if err != nil {
		return nil, fmt.Errorf("looking up the mount of %s: %w", s.path, err)
	}
	id, ok := field(append([]byte{'\n'}, b...), "\nmnt_id:\t")
	if !ok {
		return nil, errors.New("fdinfo without a mount id")
	}
	mounts, err := s.fs.GetMounts()
	if err != nil {
		return nil, fmt.Errorf("reading the mounts: %w", err)
	}
	for _, m := range mounts {
		if m.MountID == id {
			return m.SuperOptions, nil
		}
	}
	return nil, nil // mounted outside kzr's root
}

// hidden returns the name of the hidepid option if it holds for a process with
// this status, as fs/proc/base.c decides it.
func hidden(options map[string]string, st *status) string {
	mode := options["hidepid"]
	switch mode {
	case "1":
		mode = "noaccess"
	case "2":
		mode = "invisible"
	case "4":
		mode = "ptraceable"
	case "0", "off":
		mode = ""
	}
	if mode == "" || st.capEff&(1<<unix.CAP_SYS_PTRACE) != 0 {
		return ""
	}
	gid, err := strconv.Atoi(options["gid"])
	if err != nil {
		gid = 0 // the option's default
	}
	if mode != "ptraceable" && (os.Getegid() == gid || slices.Contains(st.groups, gid)) {
		return ""
	}
	return mode
}

// Limitations says, in sentences for an operator, what kzr cannot see from
// where it stands. It is empty if nothing is hidden from it.
func (h *Host) Limitations() []string {
	var list []string
	add := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	if !h.InitialPIDNS {
		add("kzr runs in a pid namespace of its own (%d): processes outside it are invisible", h.PIDNS)
	}
	switch h.HidePID {
	case "":
		if h.HidesInit {
			add("process 1 is invisible: something hides processes from kzr")
		}
	case "noaccess":
		add("/proc is mounted with hidepid=noaccess, and kzr has no CAP_SYS_PTRACE and is not in its gid=: other users' processes cannot be read")
	case "ptraceable":
		add("/proc is mounted with hidepid=ptraceable, and kzr has no CAP_SYS_PTRACE: processes that it may not trace are invisible")
	default:
		add("/proc is mounted with hidepid=%s, and kzr has no CAP_SYS_PTRACE and is not in its gid=: other users' processes are invisible", strings.ToValidUTF8(h.HidePID, "?"))
	}
	if h.Unreadable > 0 {
		add("%d processes could not be read: whether they are zombies is not known", h.Unreadable)
	}
	switch {
	case !h.Ptrace:
		add("kzr has no CAP_SYS_PTRACE: executables and namespaces of other users' processes cannot be read")
	case !h.InitialUserNS:
		add("kzr runs in a user namespace of its own (%d): executables and namespaces of processes outside it cannot be read", h.UserNS)
	}
	if h.SubsetPID {
		add("/proc is mounted with subset=pid: the node's task count and limit are unknown")
	}
	if h.CgroupError != "" {
		add("%s: frozen processes and pids limits are not recognised", h.CgroupError)
	}
	return list
}

// Ancestors are this process and those above it, as far up as they can be seen. They
// are nobody's who means harm: no look at them hangs.
func (s *Scanner) Ancestors() ([]task.ID, error) {
	const tries = 3
	for i := 1; ; i++ {
		var ancestors []task.ID
		pid := os.Getpid()
		for pid > 0 {
			st, err := statOf(s.root, strconv.Itoa(pid)+"/stat")
			if gone(err) || denied(err) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("finding kzr's ancestors: process %d: %w", pid, err)
			}
			ancestors = append(ancestors, task.ID{PID: pid, Start: st.start})
			pid = int(st.ppid)
		}
		// An ancestor that ended while we looked leaves us to another one. One that
		// is never there is hidden from kzr (hidepid), and so no target either.
		if pid == 0 || i == tries {
			return ancestors, nil
		}
	}
}
