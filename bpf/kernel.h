/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The few kernel types the programs read, with the few members they need. CO-RE
 * relocates each access to the running kernel's layout, so neither order nor
 * size here means anything. */
#pragma once

#define bool _Bool
#define true 1
#define false 0
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

enum {
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
};

#define BPF_F_MMAPABLE (1U << 10)

enum pid_type {
	PIDTYPE_PID,
	PIDTYPE_TGID,
	PIDTYPE_PGID,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	long counter;
} atomic64_t;

typedef struct {
	__u32 val;
} kuid_t;

typedef struct {
	__u32 cap[1]; /* the first 32 */
} kernel_cap_t;

typedef struct {
	unsigned long sig[1];
} sigset_t;

struct list_head {
	struct list_head *next;
};

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

struct sigaction {
	void *sa_handler;
	unsigned long sa_flags;
};

struct k_sigaction {
	struct sigaction sa;
};

struct sighand_struct {
	struct k_sigaction action[64];
};

struct sigpending {
	sigset_t signal;
};

struct wait_queue_head {
	struct list_head head;
};

struct wait_queue_entry {
	void *private;
	struct list_head entry;
};

struct wait_opts {
	enum pid_type wo_type;
	int wo_flags;
	struct pid *wo_pid;
	struct wait_queue_entry child_wait;
};

struct signal_struct {
	atomic_t live; /* threads that have not begun to exit */
	int nr_threads; /* threads that have not been released */
	struct list_head thread_head;
	struct wait_queue_head wait_chldexit;
	struct sigpending shared_pending;
	unsigned int flags;
	unsigned int is_child_subreaper : 1;
	__u64 cutime;
	__u64 cstime;
	unsigned long cmin_flt;
	unsigned long cmaj_flt;
};

struct ns_common {
	unsigned int inum;
};

struct user_namespace {
	struct user_namespace *parent;
	kuid_t owner;
	struct ns_common ns;
};

struct mnt_namespace {
	struct ns_common ns;
};

struct nsproxy {
	struct mnt_namespace *mnt_ns;
};

struct cred {
	kuid_t uid;
	kuid_t suid;
	kuid_t euid;
	kernel_cap_t cap_effective;
	struct user_namespace *user_ns;
};

struct xa_node {
	unsigned char shift;
	void *slots[64];
};

struct xarray {
	void *xa_head;
};

struct idr {
	struct xarray idr_rt;
};

struct pid_namespace {
	struct idr idr;
	struct ns_common ns;
};

struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct pid {
	unsigned int level;
	struct hlist_head tasks[4];
	struct upid numbers[1];
};

struct kernfs_node {
	__u64 id;
};

struct cgroup_freezer_state {
	bool e_freeze; /* an int before 6.14: read as its first byte */
};

struct cgroup {
	struct kernfs_node *kn;
	struct cgroup_freezer_state freezer;
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};

struct pids_cgroup {
	struct cgroup_subsys_state css;
	atomic64_t counter;
	atomic64_t limit;
};

/* The freezer of cgroup v1. */
struct freezer {
	struct cgroup_subsys_state css;
	unsigned int state;
};

struct css_set {
	struct cgroup_subsys_state *subsys[1];
	struct cgroup *dfl_cgrp;
};

struct action_cache {
	unsigned long allow_native[1];
};

struct seccomp_filter {
	struct action_cache cache;
};

struct seccomp {
	int mode;
	atomic_t filter_count;
	struct seccomp_filter *filter;
};

struct thread_info {
	unsigned long syscall_work;
};

struct thread_struct {
	unsigned long features; /* shadow stack, where it is built in */
};

struct task_struct {
	struct thread_info thread_info;
	unsigned int __state;
	unsigned int flags;
	unsigned int ptrace;
	int exit_state;
	int exit_signal;
	unsigned long jobctl;
	int pid;
	int tgid;
	struct task_struct *real_parent;
	struct task_struct *parent;
	struct list_head children;
	struct list_head sibling;
	struct task_struct *group_leader;
	struct list_head ptraced;
	struct list_head ptrace_entry;
	struct pid *thread_pid;
	struct hlist_node pid_links[4];
	struct list_head thread_node;
	__u64 start_time;
	__u64 start_boottime;
	struct cred *real_cred;
	char comm[16];
	struct nsproxy *nsproxy;
	struct signal_struct *signal;
	struct sighand_struct *sighand;
	sigset_t blocked;
	struct sigpending pending;
	struct seccomp seccomp;
	__u64 parent_exec_id;
	__u64 self_exec_id;
	struct css_set *cgroups;
	struct thread_struct thread;
};

/* Before 5.14. */
struct task_struct___old {
	long state;
};

/* x86-64. */
struct pt_regs {
	unsigned long r10;
	unsigned long r9;
	unsigned long r8;
	unsigned long dx;
	unsigned long si;
	unsigned long di;
	unsigned long orig_ax;
	__u16 cs;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 session_id;
	__u64 seq_num;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

#pragma clang attribute pop

/* Their values depend on how the kernel was configured. */
enum cgroup_subsys_id {
	pids_cgrp_id = 1,
	freezer_cgrp_id = 2,
};

enum syscall_work_bit {
	SYSCALL_WORK_BIT_SYSCALL_USER_DISPATCH = 5,
};

#define PF_EXITING 0x00000004
#define CLONE_PARENT 0x00008000
#define CLONE_THREAD 0x00010000
#define PF_SUPERPRIV 0x00000100
#define EXIT_ZOMBIE 0x20
#define JOBCTL_TRAP_FREEZE (1UL << 23)
#define CGROUP_FREEZING 0x6 /* by itself, or by one above */
#define SIGNAL_GROUP_EXIT 0x4 /* all threads are on their way out */
#define SIGNAL_UNKILLABLE 0x40 /* of each pid namespace's first process */
#define CAP_KILL 5
#define WEXITED 4
#define SIGCHLD 17
