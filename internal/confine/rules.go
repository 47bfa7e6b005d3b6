//go:build amd64 || arm64

package confine

import (
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// lastCall is the newest system call that this list was made with.
const lastCall = unix.SYS_RSEQ_SLICE_YIELD

// group is calls that are refused whatever their arguments, and the reason.
type group struct {
	reason string
	calls  []uint32
}

// deniedToAll are refused to the daemon and to the commands that it starts.
var deniedToAll = []group{
	{"reads or changes the memory of another process, or takes its descriptors; reaping inside a parent is a helper's", []uint32{
		unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD, unix.SYS_PROCESS_MADVISE,
		unix.SYS_PROCESS_MRELEASE, unix.SYS_KCMP, unix.SYS_MOVE_PAGES, unix.SYS_MIGRATE_PAGES,
	}},
	{"changes its namespaces or what is mounted, or leaves them by a handle", []uint32{
		unix.SYS_SETNS, unix.SYS_UNSHARE, unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT,
		unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_OPEN_TREE_ATTR, unix.SYS_MOUNT_SETATTR, unix.SYS_FSOPEN,
		unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_OPEN_BY_HANDLE_AT,
	}},
	{"is a large part of the kernel that the daemon has no use for, and that others have broken out by", []uint32{
		unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_USERFAULTFD, unix.SYS_PERF_EVENT_OPEN,
		unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_FANOTIFY_INIT, unix.SYS_FANOTIFY_MARK, unix.SYS_VMSPLICE,
		unix.SYS_IO_SETUP, unix.SYS_IO_SUBMIT,
	}},
	{"is for the machine's administration", []uint32{
		unix.SYS_REBOOT, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
		unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME,
		unix.SYS_SYSLOG, unix.SYS_ACCT, unix.SYS_VHANGUP, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD,
	}},
}

// denied are refused to the daemon besides, if it starts no commands.
var denied = []group{
	{"starts a program: the daemon starts none, as nothing may fork when the process table is full", []uint32{
		unix.SYS_EXECVE, unix.SYS_EXECVEAT,
	}},
	{"makes it another user, or gives it back what it gave up", []uint32{
		unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID,
		unix.SYS_SETFSUID, unix.SYS_SETFSGID, unix.SYS_SETGROUPS, unix.SYS_CAPSET, unix.SYS_PERSONALITY,
	}},
	{"signals a pid, which can be another process's by then: kzr signals pidfds", []uint32{
		unix.SYS_TKILL, unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO,
	}},
	{"gives a process more or less of the machine", []uint32{
		unix.SYS_SETPRIORITY, unix.SYS_IOPRIO_SET, unix.SYS_SCHED_SETAFFINITY, unix.SYS_SCHED_SETPARAM, unix.SYS_SCHED_SETSCHEDULER,
		unix.SYS_SCHED_SETATTR,
	}},
	{"leaves something behind that others find, or is for devices", []uint32{
		unix.SYS_SHMGET, unix.SYS_SHMAT, unix.SYS_SEMGET, unix.SYS_MSGGET, unix.SYS_MQ_OPEN, unix.SYS_MKNODAT,
	}},
	{"changes a file by its name, that of another process's memory too", []uint32{unix.SYS_TRUNCATE}},
}

// readOrNew are the flags of an open that cannot change what is there already.
func readOrNew(arg uint32) []allowed {
	return []allowed{
		{arg: arg, lacks: unix.O_ACCMODE | unix.O_TRUNC},
		{arg: arg, has: unix.O_CREAT | unix.O_EXCL},
	}
}

// newNamespaces are the flags of clone that make one.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
	unix.CLONE_NEWPID | unix.CLONE_NEWNET

func rules(o Options) []rule {
	groups := deniedToAll
	if !o.Commands {
		groups = slices.Concat(groups, denied, deniedHere)
	}
	var all []rule
	for _, group := range groups {
		for _, nr := range group.calls {
			all = append(all, rule{nr: nr, errno: unix.EPERM})
		}
	}
	// What is loaded is used; nothing else is loaded, found by its id or in a file
	// system, pinned, or read of the kernel's statistics. A link can be made: only of
	// its own programs.
	all = append(all, rule{unix.SYS_BPF, unix.EPERM, []allowed{{arg: 0, values: []uint32{
		unix.BPF_MAP_LOOKUP_ELEM, unix.BPF_MAP_UPDATE_ELEM, unix.BPF_MAP_DELETE_ELEM, unix.BPF_MAP_GET_NEXT_KEY,
		unix.BPF_MAP_LOOKUP_AND_DELETE_ELEM, unix.BPF_MAP_LOOKUP_BATCH, unix.BPF_MAP_LOOKUP_AND_DELETE_BATCH,
		unix.BPF_MAP_UPDATE_BATCH, unix.BPF_MAP_DELETE_BATCH, unix.BPF_PROG_TEST_RUN, unix.BPF_OBJ_GET_INFO_BY_FD,
		unix.BPF_RAW_TRACEPOINT_OPEN, unix.BPF_LINK_CREATE, unix.BPF_LINK_DETACH, unix.BPF_ITER_CREATE,
	}}}})
	if o.Commands {
		return all
	}
	self := []uint32{uint32(os.Getpid())}
	families := []uint32{unix.AF_UNIX}
	if o.Network {
		families = append(families, unix.AF_INET, unix.AF_INET6)
	}
	all = append(all, []rule{
		// Threads of its own, as Go makes them, and no process.
		{unix.SYS_CLONE, unix.EPERM, []allowed{{arg: 0, has: unix.CLONE_THREAD, lacks: newNamespaces}}},
		// Its flags are in memory, where a filter cannot look. Who has it not uses clone.
		{unix.SYS_CLONE3, unix.ENOSYS, nil},
		// Go preempts its threads by a signal, and ends by one.
		{unix.SYS_KILL, unix.EPERM, []allowed{{arg: 0, values: self}}},
		{unix.SYS_TGKILL, unix.EPERM, []allowed{{arg: 0, values: self}}},
		// One process, and neither its group nor its session.
		{unix.SYS_PIDFD_SEND_SIGNAL, unix.EPERM, []allowed{{arg: 3, values: []uint32{0}}}},
		// Its own limits.
		{unix.SYS_PRLIMIT64, unix.EPERM, []allowed{{arg: 0, values: []uint32{0}}, {arg: 0, values: self}}},
		{unix.SYS_SOCKET, unix.EPERM, []allowed{{arg: 0, values: families}}},
		// What it was loaded as, no code is made of: the kernel compiles eBPF.
		{unix.SYS_MMAP, unix.EPERM, []allowed{{arg: 2, lacks: unix.PROT_EXEC}}},
		{unix.SYS_MPROTECT, unix.EPERM, []allowed{{arg: 2, lacks: unix.PROT_EXEC}}},
		{unix.SYS_PKEY_MPROTECT, unix.EPERM, []allowed{{arg: 2, lacks: unix.PROT_EXEC}}},
		// The terminal that it was started on is not typed into.
		{unix.SYS_IOCTL, unix.EPERM, []allowed{{arg: 1, not: []uint32{unix.TIOCSTI, unix.TIOCLINUX}}}},
		{unix.SYS_OPENAT, unix.EPERM, readOrNew(2)},
	}...)
	if !o.Openat2 {
		// As it is for a kernel before 5.6.
		all = append(all, rule{unix.SYS_OPENAT2, unix.ENOSYS, nil})
	}
	return append(all, rulesHere...)
}
