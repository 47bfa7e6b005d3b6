// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* kzr's kernel side: a program that watches exits, an iterator that lists zombies,
 * and programs that are run on demand to look at one process.
 *
 * Why sched_process_exit, and why nothing at the reap. do_exit() decrements
 * signal->live, fires the tracepoint, and only then turns the task into a
 * zombie. The one tracepoint after a reap, sched_process_free, runs from RCU, up
 * to ten seconds late where callbacks are lazy, when the pid may be in use
 * again: a count kept as exits minus frees would see hundreds of "zombies" in a
 * plain fork/wait loop. So zombies are not counted as they come and go. Each
 * parent has a credit: how many more of its children have to exit before it
 * could possibly hold `level` zombies. When the credit is used up, the program
 * walks the parent's list of children, counts the zombies that are really there
 * (z), and either reports the parent or gives it a new credit of level - z.
 * Zombies cannot grow faster than exits, so the walk is rare, the crossing is
 * seen, and reaped children never reach user space. It is seen late by a parent
 * with hundreds of living children, which pay for their walk with a longer
 * credit, and not at all where zombies come from another parent or the list
 * changes during the walk: that is for the sweep.
 *
 * The walk takes no lock. The tasks on the list stay valid memory for the
 * tracepoint's RCU section, but the list can change under it: every task is
 * checked to be a child of the thread whose list it was found on, and the walk
 * stops where that fails. What comes of it is a hint. The snapshots are the truth.
 *
 * What a walk does for one link is a function of its own, not inlined and not
 * static: the verifier looks at it once, instead of once for every turn of the loop.
 * All that is read through plain addresses is read by bpf_probe_read_kernel, which a
 * wrong address does not harm.
 *
 * Memory is fixed at load: 8 MiB stamps, 1.5 MiB parents, 0.5 MiB seen, 64 KiB ring,
 * 80 KiB imposed, 200 KiB for what a look at one process finds.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define STAMPS (1 << 19)
#define PARENTS (1 << 16)
#define WALK_MAX 512

/* When a thread group died and under which parent, and whether somebody else than
 * its father gets it. Indexed by the low bits of its pid; a later exit may overwrite
 * it, so a reader compares start. */
struct stamp {
	__u32 start; /* low half of start_boottime */
	__u32 parent; /* tgid, 0 while it lives, and STAMP_ flags */
	__u64 written; /* CLOCK_MONOTONIC, ns: when it died, or was handed on alive; see now */
};

#define STAMP_ADOPTED 0x80000000 /* its father died before it was reaped */
#define STAMP_UNSURE 0x40000000 /* STAMP_ADOPTED may have been overwritten */
#define STAMP_TRACED 0x20000000 /* by others, when it died */
#define STAMP_TGID 0x003fffff

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, STAMPS);
	__type(key, __u32);
	__type(value, struct stamp);
} stamps SEC(".maps");

/* One parent, indexed by the low bits of its pid; another parent may take the
 * slot over. Several CPUs write it without a lock: see on_exit. */
struct parent {
	__u32 tgid;
	__u32 start; /* bits 20.. of start_boottime: about a millisecond each */
	__u32 exits; /* seen in this slot; never set back */
	__u32 due; /* at this many exits it could hold `level` zombies */
	__u32 reports; /* in a row; each doubles the distance to the next */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PARENTS);
	__type(key, __u32);
	__type(value, struct parent);
} parents SEC(".maps");

struct hint {
	__u32 parent; /* tgid */
	__u32 zombies; /* at least so many */
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} hints SEC(".maps");

struct counters {
	__u64 exits; /* thread groups that died */
	__u64 walks;
	__u64 hints;
	__u64 lost; /* hints that found the ring full */
	__u64 jiffy; /* when moment was read; see now */
	__u64 moment;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counts SEC(".maps");

/* Parents that were given a child by somebody who may not signal them: tgid to
 * start_boottime. To push one out takes a thousand such parents at once. */
#define IMPOSED 1024

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, IMPOSED);
	__type(key, __u32);
	__type(value, __u64);
} imposed SEC(".maps");

/* The number of zombies that makes a parent worth a hint; set by user space,
 * also while attached. */
volatile __u32 level = 50;

/* start_boottime from which on the programs at exit and clone have seen everything;
 * never, while they are not attached. */
volatile __u64 attached = ~0ULL;

/* Number of the snapshot that is being taken. */
volatile __u32 epoch = 0;

/* The thread group that take_stance is about. */
volatile __u32 stance_of = 0;

/* These types reach Go through the object's BTF. */
const struct hint *unused_hint __attribute__((unused));

/* Where a walk through a parent's children stands. */
struct walk {
	__u64 first; /* the thread that began */
	__u64 thread; /* whose children are being looked at */
	__u64 node; /* the next link to follow */
	__u64 threads; /* head of the list of threads */
	__u64 now;
	__u32 zombies;
	__u32 steps; /* WALK_MAX: it did not see all */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct walk);
} walks SEC(".maps");

#define AT(type, field) bpf_core_field_offset(struct type, field)
#define U64(base, type, field) read_u64((base) + AT(type, field))
#define U32(base, type, field) read_u32((base) + AT(type, field))

static __always_inline __u64 read_u64(__u64 addr)
{
	__u64 v = 0;

	bpf_probe_read_kernel(&v, sizeof(v), (void *)addr);
	return v;
}

static __always_inline __u32 read_u32(__u64 addr)
{
	__u32 v = 0;

	bpf_probe_read_kernel(&v, sizeof(v), (void *)addr);
	return v;
}

static __always_inline void begin_walk(struct walk *w, __u64 thread, __u64 signal)
{
	w->first = w->thread = thread;
	w->node = U64(thread, task_struct, children);
	w->threads = signal + AT(signal_struct, thread_head);
	w->zombies = 0;
}

/* The thread after this one, past the list's head in signal_struct. */
static __always_inline __u64 next_thread(__u64 thread, __u64 threads)
{
	__u64 node = U64(thread, task_struct, thread_node);

	if (node == threads)
		node = read_u64(node);
	return node ? node - AT(task_struct, thread_node) : 0;
}

/* One link further: the child there, 0 if a thread's list ended. Sets node to 0 where
 * the walk ends or the list changed under it. Plain addresses: container_of is beyond
 * typed loads. */
static __always_inline __u64 follow(struct walk *w)
{
	__u64 thread = w->thread, node = w->node;

	if (node == thread + AT(task_struct, children)) {
		thread = next_thread(thread, w->threads);
		w->thread = thread;
		w->node = thread && thread != w->first ? U64(thread, task_struct, children) : 0;
		return 0;
	}

	__u64 child = node - AT(task_struct, sibling), next;

	if (U64(child, task_struct, real_parent) != thread) {
		w->node = 0;
		return 0;
	}
	next = read_u64(node);
	w->node = next == node ? 0 : next;
	return child;
}

/* Goes on until it returns 0. Those that are on their way to become zombies count as
 * well: since 6.16 the tracepoint comes before the memory is torn down, and dozens of
 * children can be past it with none of them a zombie yet. So the one that is exiting
 * right now counts itself. */
__noinline int count_child(__u32 want)
{
	__u32 zero = 0;
	struct walk *w = bpf_map_lookup_elem(&walks, &zero);

	if (!w)
		return 0;

	__u64 child = follow(w);

	if (child && (U32(child, task_struct, flags) & PF_EXITING))
		w->zombies++;
	return w->node && w->zombies < want;
}

/* Loops are nested, as the verifier goes through each of them once. */
__noinline int count_some(__u32 want)
{
	for (int i = 0; i < 32; i++)
		if (!count_child(want))
			return i;
	return 32;
}

__noinline int count_children(__u32 want)
{
	int steps = 0;

	for (int i = 0; i < WALK_MAX / 32; i++) {
		int some = count_some(want);

		steps += some;
		if (some != 32)
			break;
	}
	return steps;
}

static __always_inline void count_zombies(struct walk *w, struct task_struct *parent, __u32 want)
{
	begin_walk(w, (__u64)parent, (__u64)parent->signal);
	w->steps = count_children(want);
}

/* Notes that a child of a thread group that dies will be somebody else's. It may be
 * dead already, or live on for a long time. */
__noinline int hand_on_child(void)
{
	__u32 zero = 0;
	struct walk *w = bpf_map_lookup_elem(&walks, &zero);

	if (!w)
		return 0;

	__u64 child = follow(w);

	if (child) {
		__u32 i = U32(child, task_struct, pid) & (STAMPS - 1);
		__u32 start = (__u32)U64(child, task_struct, start_boottime);
		struct stamp *s = bpf_map_lookup_elem(&stamps, &i);

		if (s && s->start == start && s->written) {
			s->parent |= STAMP_ADOPTED;
		} else if (s) {
			s->start = start;
			s->parent = STAMP_ADOPTED;
			s->written = w->now;
		}
	}
	return w->node != 0;
}

__noinline int hand_on_some(void)
{
	for (int i = 0; i < 256; i++)
		if (!hand_on_child())
			return 0;
	return 1;
}

static __always_inline void report(__u32 tgid, __u32 zombies, struct counters *c)
{
	struct hint *h = bpf_ringbuf_reserve(&hints, sizeof(*h), 0);

	if (!h) {
		c->lost++;
		return;
	}
	h->parent = tgid;
	h->zombies = zombies;
	bpf_ringbuf_submit(h, 0);
	c->hints++;
}

/* The kernel itself goes through all of them next. More than 65,536 children keep
 * what they are: taken for the new parent's own. */
__noinline int hand_on_all(void)
{
	for (int i = 0; i < 256; i++)
		if (!hand_on_some())
			return 0;
	return 1;
}

static __always_inline void hand_on(struct task_struct *task, bool all)
{
	__u32 zero = 0;
	struct walk *w = bpf_map_lookup_elem(&walks, &zero);

	if (!w)
		return;
	begin_walk(w, (__u64)task, (__u64)task->signal);
	if (!all) /* it ends where the second thread's begin */
		w->first = next_thread(w->thread, w->threads);
	w->now = bpf_ktime_get_ns();
	hand_on_all();
}

/* To read the clock is a third of what an exit costs, so each CPU does that once in a
 * tick. A moment is a tick early at most, which user space makes up for. (jiffies stand
 * still for five ticks at most when their CPU does not run.) */
static __always_inline __u64 now(struct counters *c)
{
	__u64 jiffy = bpf_jiffies64();

	if (c->jiffy != jiffy) {
		c->moment = bpf_ktime_get_ns();
		c->jiffy = jiffy;
	}
	return c->moment;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	/* The last thread to go takes the group with it. Two that go at once may
	 * both see 0; doing this twice is harmless. */
	struct signal_struct *signal = task->signal;
	bool last = signal->live.counter == 0;

	/* What a father leaves behind is adopted by others, who do not know it. The
	 * children of a thread go to one that lives on, or past those that are dying:
	 * so where all are, each notes its own, and the last what is left. */
	if ((__u64)task->children.next != (__u64)task + AT(task_struct, children)) {
		if (last || (signal->flags & SIGNAL_GROUP_EXIT))
			hand_on(task, last);
	} else if (last && signal->nr_threads > 1) {
		hand_on(task, true);
	}
	if (!last)
		return 0;

	struct task_struct *leader = task->group_leader;
	struct task_struct *parent = leader->real_parent;
	__u32 zero = 0, pid = leader->pid, tgid = parent->tgid;
	struct counters *c = bpf_map_lookup_elem(&counts, &zero);
	__u32 i = pid & (STAMPS - 1);
	struct stamp *s = bpf_map_lookup_elem(&stamps, &i);
	__u32 j = tgid & (PARENTS - 1);
	struct parent *p = bpf_map_lookup_elem(&parents, &j);

	if (!c || !s || !p)
		return 0;
	c->exits++;

	/* Count first, look after: every exit up to n has set PF_EXITING before it
	 * was counted, so a walk from here on sees it, and z zombies now mean that
	 * there cannot be `level` before exit n + level - z. That holds for every
	 * CPU's n and z on its own, so it does not matter whose `due` is stored
	 * last. And count before the stamp: an atomic operation waits for all that was
	 * written before it, and a stamp is rarely in a cache. */
	__sync_fetch_and_add(&p->exits, 1);

	__u32 n = p->exits;
	__u32 start = (__u32)leader->start_boottime, mark = 0;

	/* Only who adopts can have a child that is marked; reading what may be in no
	 * cache costs more than all the rest. */
	if ((parent->signal->flags & SIGNAL_UNKILLABLE) || BPF_CORE_READ_BITFIELD(parent->signal, is_child_subreaper)) {
		if (s->start == start)
			mark = s->parent & STAMP_ADOPTED;
		else if (s->written > leader->start_time)
			mark = STAMP_UNSURE;
	}
	/* A tracer in the parent's own thread group can reap it. */
	if (leader->ptrace && leader->parent->tgid != tgid)
		mark |= STAMP_TRACED;
	s->start = start;
	s->parent = tgid | mark;
	s->written = now(c);

	__u32 parent_start = parent->group_leader->start_boottime >> 20;

	if (p->tgid == tgid && p->start == parent_start) {
		if ((__s32)(n - p->due) < 0)
			return 0;
	} else {
		p->tgid = tgid;
		p->start = parent_start;
		p->reports = 0;
	}

	struct walk *w = bpf_map_lookup_elem(&walks, &zero);
	__u32 want = level;

	if (!w)
		return 0;
	count_zombies(w, parent, want);
	c->walks++;

	__u32 zombies = w->zombies, steps = w->steps, credit;

	if (zombies >= want || steps == WALK_MAX) {
		report(tgid, zombies, c);
		credit = (steps > want ? steps : want) << (p->reports & 15);
		if (p->reports < 10)
			p->reports++;
	} else {
		/* Steps past the living are paid for by a longer credit: two an
		 * exit. */
		p->reports = 0;
		credit = want - zombies;
		if (steps > zombies && (steps - zombies) / 2 > credit)
			credit = (steps - zombies) / 2;
	}
	p->due = n + credit;
	return 0;
}

/* kill_ok_by_cred in kernel/signal.c, and ns_capable for CAP_KILL. A program that is
 * setuid has an effective uid that says nothing of who started it, so what that may do
 * does not count. */
__noinline int may_signal(__u64 cred, __u64 target)
{
	__u32 uid = U32(cred, cred, uid), euid = U32(cred, cred, euid);
	__u32 to_uid = U32(target, cred, uid), to_suid;
	__u64 own, ns, above;

	if (uid == to_uid)
		return true;
	to_suid = U32(target, cred, suid);
	if (uid == to_suid)
		return true;
	if (uid != euid)
		return false;
	own = U64(cred, cred, user_ns);
	ns = U64(target, cred, user_ns);
	for (int i = 0; i < 33 && ns; i++) { /* they nest no deeper */
		if (ns == own)
			return U32(cred, cred, cap_effective) & (1U << CAP_KILL);
		above = U64(ns, user_namespace, parent);
		if (above == own && U32(ns, user_namespace, owner) == euid)
			return true;
		ns = above;
	}
	return false;
}

/* A child that its maker put on his own parent is one that this parent knows nothing
 * of. Where he may signal that parent, he could end it as well. The child has the
 * credentials of its maker. */
SEC("tp_btf/task_newtask")
int BPF_PROG(on_clone, struct task_struct *task, __u64 clone_flags)
{
	if ((clone_flags & (CLONE_PARENT | CLONE_THREAD)) != CLONE_PARENT)
		return 0;

	__u64 parent = U64((__u64)task, task_struct, real_parent);

	if (may_signal(U64((__u64)task, task_struct, real_cred), U64(parent, task_struct, real_cred)))
		return 0;

	__u32 tgid = U32(parent, task_struct, tgid);
	__u64 start = U64(U64(parent, task_struct, group_leader), task_struct, start_boottime);

	bpf_map_update_elem(&imposed, &tgid, &start, 0);
	return 0;
}

/* Nothing at the same place, to measure what the kernel's own accounting costs. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit_empty, struct task_struct *task)
{
	return 0;
}

/* What reaches user space of one process or zombie. Each begins with its kind. */
enum {
	ZOMBIE_REAPABLE,
	ZOMBIE_TRACED, /* by another thread group than its parent's */
	ZOMBIE_LEADER, /* of threads that live */
	SNAPSHOT_END,
	FACTS,
};

/* Flags of a zombie; the first ones are task.Flag's. */
#define ZOMBIE_ADOPTED 1
#define ZOMBIE_FOREIGN 2
#define ZOMBIE_MOVED 8

struct zombie {
	__u16 kind;
	__u16 flags;
	__u32 pid;
	__u32 parent; /* tgid */
	__u32 tracer; /* tgid, of a traced one */
	__u64 start; /* start_boottime, ns, here and below */
	__u64 parent_start;
	__u64 tracer_start;
	__u64 exited; /* CLOCK_MONOTONIC, ns; 0 if not known. At the end: tasks seen */
};

struct cgroups {
	__u64 set;
	__u64 id;
	__u64 pids;
};

struct limit {
	__u64 id;
	__u32 limit;
	__u32 current;
};

#define LEVELS 8
#define LIMITS 32

#define FACT_SUBREAPER 1
#define FACT_WAITED 2
#define FACT_FROZEN 4

struct facts {
	__u16 kind;
	__u16 limits; /* so many */
	__u32 pid;
	__u64 start;
	__u32 ppid;
	__u32 uid;
	__u32 flags;
	__u32 state; /* __state */
	__u32 exit_state;
	__u32 threads;
	__u32 bits;
	__u32 tracer;
	__u64 tracer_start;
	__u64 waits_start;
	__u32 waits;
	__u32 level; /* of its pid namespace */
	__u32 nspid[LEVELS]; /* those up to level mean something */
	__u32 innermost; /* its pid in the innermost namespace */
	__u32 pid_ns;
	__u32 mnt_ns;
	__u32 user_ns;
	__u32 outer_pid_ns; /* the outermost below the first; 0 if it is in that one */
	__u32 pad;
	__u64 caught;
	__u64 ignored;
	__u64 blocked;
	struct cgroups cgroups;
	struct cgroups tracer_cgroups;
	__u8 comm[16];
	struct limit limit[LIMITS]; /* not all of it is passed on */
};

const struct zombie *unused_zombie __attribute__((unused));
const struct facts *unused_facts __attribute__((unused));
const struct cgroups *unused_cgroups __attribute__((unused));
const struct limit *unused_limit __attribute__((unused));
const struct request *unused_request __attribute__((unused));

/* Facts are put together here: 0 by the iterator, 1 by looks at one process. User
 * space has one of each run at a time. */
enum { BY_ITERATOR, BY_LOOK };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct facts);
} facts_of SEC(".maps");

struct work {
	__u64 signal;
	__u64 live; /* a thread of it that is not dead */
	__u64 tracer;
	__u64 awaited; /* a child */
	__u64 actions[64 * 4];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct work);
} work_of SEC(".maps");

static __always_inline __u64 read_cgroup_id(__u64 cgroup)
{
	return cgroup ? U64(U64(cgroup, cgroup, kn), kernfs_node, id) : 0;
}

/* The state of a controller for a task, 0 if the kernel does not have it. */
static __always_inline __u64 read_css(__u64 set, __u32 controller)
{
	return set ? read_u64(set + AT(css_set, subsys) + 8 * controller) : 0;
}

static __always_inline __u64 read_pids_css(__u64 set)
{
	if (!bpf_core_enum_value_exists(enum cgroup_subsys_id, pids_cgrp_id))
		return 0;
	return read_css(set, bpf_core_enum_value(enum cgroup_subsys_id, pids_cgrp_id));
}

static __always_inline void read_cgroups(__u64 task, struct cgroups *c)
{
	__u64 set = U64(task, task_struct, cgroups), css = read_pids_css(set);

	c->set = set;
	c->id = read_cgroup_id(U64(set, css_set, dfl_cgrp));
	c->pids = css ? read_cgroup_id(U64(css, cgroup_subsys_state, cgroup)) : 0;
}

static __always_inline bool is_frozen(__u64 task)
{
	__u64 set = U64(task, task_struct, cgroups), css;
	__u8 frozen = 0;

	if (U64(task, task_struct, jobctl) & JOBCTL_TRAP_FREEZE)
		return true;
	bpf_probe_read_kernel(&frozen, 1, (void *)(U64(set, css_set, dfl_cgrp) + AT(cgroup, freezer.e_freeze)));
	if (frozen)
		return true;
	if (!bpf_core_enum_value_exists(enum cgroup_subsys_id, freezer_cgrp_id) || !bpf_core_type_exists(struct freezer))
		return false;
	css = read_css(set, bpf_core_enum_value(enum cgroup_subsys_id, freezer_cgrp_id));
	return css && (U32(css, freezer, state) & CGROUP_FREEZING);
}

/* Notes a limit, if there is one, and returns the cgroup above. */
__noinline __u64 note_limit(__u64 css, __u32 slot)
{
	struct facts *f = bpf_map_lookup_elem(&facts_of, &slot);
	__u64 limit, n;

	if (!f || !css)
		return 0;
	limit = U64(css, pids_cgroup, limit.counter);
	n = f->limits;
	/* PIDS_MAX, no limit, is PID_MAX_LIMIT + 1. */
	if (limit <= STAMP_TGID + 1 && n < LIMITS) {
		f->limit[n].id = read_cgroup_id(U64(css, cgroup_subsys_state, cgroup));
		f->limit[n].limit = limit;
		f->limit[n].current = U64(css, pids_cgroup, counter.counter);
		f->limits = n + 1;
	}
	return U64(css, cgroup_subsys_state, parent);
}

/* Looks at one thread and returns the next one, 0 if the list is not this group's. */
__noinline __u64 note_thread(__u64 thread, __u32 slot)
{
	struct work *w = bpf_map_lookup_elem(&work_of, &slot);

	if (!w || !thread || U64(thread, task_struct, signal) != w->signal)
		return 0;
	if (!w->live && !U32(thread, task_struct, exit_state))
		w->live = thread;
	if (!w->tracer && U32(thread, task_struct, ptrace))
		w->tracer = U64(thread, task_struct, parent);
	return next_thread(thread, w->signal + AT(signal_struct, thread_head));
}

static __always_inline __u64 read_task(__u64 pid, enum pid_type type)
{
	__u64 node = pid ? read_u64(pid + AT(pid, tasks) + 8 * type) : 0;

	return node ? node - AT(task_struct, pid_links) - 16 * type : 0;
}

/* Looks at one entry of signal->wait_chldexit: a thread in wait4 or waitid. It is part
 * of a struct wait_opts on that thread's stack, which is gone as soon as the thread
 * returns; so what was read counts only if the entry is still linked after. Returns
 * whether to go on: not if a thread waits for just any child, or if in doubt. */
__noinline int note_waiter(__u64 entry, __u32 slot)
{
	struct work *w = bpf_map_lookup_elem(&work_of, &slot);
	__u64 opts, type, flags, child, next;

	if (!w)
		return 0;
	opts = entry - AT(wait_opts, child_wait.entry);
	type = U32(opts, wait_opts, wo_type);
	flags = U32(opts, wait_opts, wo_flags);
	child = read_task(U64(opts, wait_opts, wo_pid), PIDTYPE_PID);
	if (U64(U64(opts, wait_opts, child_wait.private), task_struct, signal) != w->signal)
		goto doubt;
	/* Its neighbour must point back at it. */
	next = read_u64(entry);
	if (!next || read_u64(next + 8) != entry)
		goto doubt;
	if (type != bpf_core_enum_value(enum pid_type, PIDTYPE_PID) && type != bpf_core_enum_value(enum pid_type, PIDTYPE_TGID))
		goto doubt;
	if (!child || !(flags & WEXITED))
		return 1;
	if (U32(U64(child, task_struct, signal), signal_struct, live) == 0 || /* it is about to return */
	    U64(U64(child, task_struct, real_parent), task_struct, signal) != w->signal)
		return 1;
	if (!w->awaited)
		w->awaited = child;
	return 1;
doubt:
	w->awaited = 0;
	return 0;
}

/* The thread group of leader, which is a task's address, into facts_of[slot]. */
__noinline int gather(__u64 leader, __u32 slot)
{
	struct facts *f = bpf_map_lookup_elem(&facts_of, &slot);
	struct work *w = bpf_map_lookup_elem(&work_of, &slot);
	__u64 signal, task, cred, addr, node, head;
	int i;

	if (!f || !w)
		return 0;
	signal = U64(leader, task_struct, signal);
	f->kind = FACTS;
	f->limits = 0;
	f->pid = U32(leader, task_struct, tgid);
	f->start = U64(leader, task_struct, start_boottime);
	f->ppid = U32(U64(leader, task_struct, real_parent), task_struct, tgid);
	f->threads = U32(signal, signal_struct, nr_threads);
	bpf_probe_read_kernel(f->comm, sizeof(f->comm), (void *)(leader + AT(task_struct, comm)));

	/* A dead leader has no namespaces and, on cgroup v1, no cgroup. */
	w->signal = signal;
	w->live = w->tracer = w->awaited = 0;
	node = leader;
	for (i = 0; i < 64; i++) {
		node = note_thread(node, slot);
		if (!node || node == leader)
			break;
	}
	task = w->live ? w->live : leader;

	f->flags = U32(task, task_struct, flags);
	if (bpf_core_field_exists(struct task_struct, __state))
		f->state = U32(task, task_struct, __state);
	else
		f->state = U32(task, task_struct___old, state);
	f->exit_state = U32(task, task_struct, exit_state);
	cred = U64(task, task_struct, real_cred);
	f->uid = U32(cred, cred, uid);
	f->user_ns = U32(U64(cred, cred, user_ns), user_namespace, ns.inum);
	addr = U64(task, task_struct, nsproxy);
	f->mnt_ns = addr ? U32(U64(addr, nsproxy, mnt_ns), mnt_namespace, ns.inum) : 0;

	f->bits = 0;
	if (BPF_CORE_READ_BITFIELD_PROBED((struct signal_struct *)signal, is_child_subreaper))
		f->bits |= FACT_SUBREAPER;
	if (U64(signal, signal_struct, cutime) || U64(signal, signal_struct, cstime) ||
	    U64(signal, signal_struct, cmin_flt) || U64(signal, signal_struct, cmaj_flt))
		f->bits |= FACT_WAITED;
	if (is_frozen(task))
		f->bits |= FACT_FROZEN;

	/* The pid of the leader: it keeps that while it is dead. */
	addr = U64(leader, task_struct, thread_pid);
	f->level = addr ? U32(addr, pid, level) : 0;
	for (i = 0; i < LEVELS; i++)
		f->nspid[i] = read_u32(addr + AT(pid, numbers) + i * bpf_core_type_size(struct upid));
	f->outer_pid_ns = 0;
	if (f->level > 0)
		f->outer_pid_ns = U32(U64(addr + AT(pid, numbers) + bpf_core_type_size(struct upid), upid, ns), pid_namespace, ns.inum);
	addr += AT(pid, numbers) + (__u64)f->level * bpf_core_type_size(struct upid);
	f->innermost = U32(addr, upid, nr);
	f->pid_ns = U32(U64(addr, upid, ns), pid_namespace, ns.inum);

	f->caught = f->ignored = 0;
	f->blocked = U64(task, task_struct, blocked);
	addr = U64(task, task_struct, sighand);
	if (addr && bpf_core_type_size(struct k_sigaction) * 64 == sizeof(w->actions) &&
	    !bpf_probe_read_kernel(w->actions, sizeof(w->actions), (void *)(addr + AT(sighand_struct, action)))) {
		__u64 caught = 0, ignored = 0;

		for (i = 0; i < 64; i++) {
			__u64 handler = w->actions[i * 4]; /* SIG_DFL is 0, SIG_IGN 1 */

			caught |= (__u64)(handler > 1) << i;
			ignored |= (__u64)(handler == 1) << i;
		}
		f->caught = caught;
		f->ignored = ignored;
	}

	read_cgroups(task, &f->cgroups);
	addr = read_pids_css(f->cgroups.set);
	for (i = 0; i < LIMITS && addr; i++)
		addr = note_limit(addr, slot);

	f->tracer = 0;
	f->tracer_start = f->tracer_cgroups.set = f->tracer_cgroups.id = f->tracer_cgroups.pids = 0;
	if (w->tracer) {
		f->tracer = U32(w->tracer, task_struct, tgid);
		f->tracer_start = U64(U64(w->tracer, task_struct, group_leader), task_struct, start_boottime);
		read_cgroups(w->tracer, &f->tracer_cgroups);
	}

	head = signal + AT(signal_struct, wait_chldexit.head);
	node = read_u64(head);
	for (i = 0; i < 32 && node && node != head; i++) {
		if (!note_waiter(node, slot))
			break;
		node = read_u64(node);
	}
	if (node != head) /* too many, or one that waits for any */
		w->awaited = 0;
	f->waits = 0;
	f->waits_start = 0;
	if (w->awaited) {
		f->waits = U32(w->awaited, task_struct, tgid);
		f->waits_start = U64(U64(w->awaited, task_struct, group_leader), task_struct, start_boottime);
	}
	return 1;
}

/* Whether the orphans of others fall to the thread group of this thread. */
static __always_inline bool adopts(__u64 thread)
{
	__u64 signal = U64(thread, task_struct, signal);

	return (U32(signal, signal_struct, flags) & SIGNAL_UNKILLABLE) ||
	       BPF_CORE_READ_BITFIELD_PROBED((struct signal_struct *)signal, is_child_subreaper);
}

/* How a zombie came to its parent. mark is its stamp's `parent`, 0 if it has none.
 *
 * Adopted: its father died, seen by the exit program, or was another program: a
 * fork copies self_exec_id of the father to parent_exec_id of the child, exec counts
 * self_exec_id up, and so nothing that this parent forked can be ahead of it.
 *
 * Foreign: somebody who may not signal this parent put it there with CLONE_PARENT.
 * It inherited that somebody's credentials, as has an own child that dropped
 * privileges, which is why the program at clone says whether anybody did. Of those that
 * are older this is a guess: to drop privileges an own child has to use one, and so has
 * PF_SUPERPRIV, which is cleared by fork and kept by exec; in another user namespace
 * that means nothing. */
__noinline int flags_of(__u64 task, __u64 parent, __u32 mark)
{
	__u64 cred, target;

	if ((mark & STAMP_ADOPTED) ||
	    U64(task, task_struct, parent_exec_id) > U64(parent, task_struct, self_exec_id))
		return ZOMBIE_ADOPTED;
	cred = U64(task, task_struct, real_cred);
	target = U64(parent, task_struct, real_cred);
	if (!cred || !target || may_signal(cred, target))
		return 0;
	if (U64(task, task_struct, start_boottime) >= attached) {
		__u32 tgid = U32(parent, task_struct, tgid);
		__u64 *start = bpf_map_lookup_elem(&imposed, &tgid);

		if (!start || *start != U64(U64(parent, task_struct, group_leader), task_struct, start_boottime))
			return 0;
	} else if ((U32(task, task_struct, flags) & PF_SUPERPRIV) && U32(cred, cred, uid) == U32(cred, cred, euid) &&
		   U64(cred, cred, user_ns) == U64(target, cred, user_ns)) {
		return 0;
	}
	/* An orphan looks the same, if nobody saw its father die. */
	if (adopts(parent) && (!mark || (mark & STAMP_UNSURE) || U64(task, task_struct, start_boottime) < attached))
		return 0;
	return ZOMBIE_FOREIGN;
}

/* What the exit program noted of a zombie: into exited and flags. parent is a thread's
 * address, r->parent its tgid. */
static __always_inline void recall(struct zombie *r, __u64 task, __u64 parent)
{
	__u32 i = r->pid & (STAMPS - 1), mark = 0;
	struct stamp *s = bpf_map_lookup_elem(&stamps, &i);

	r->flags = 0;
	r->exited = 0;
	if (s && s->start == (__u32)r->start && s->written) {
		__u32 tgid = s->parent & STAMP_TGID;

		mark = s->parent;
		if (tgid)
			r->exited = s->written;
		if (tgid && r->kind == ZOMBIE_REAPABLE && (tgid != r->parent || (mark & STAMP_TRACED)))
			r->flags = ZOMBIE_MOVED;
		if (tgid && tgid != r->parent) /* it has another than when it died */
			mark |= STAMP_ADOPTED;
	}
	r->flags |= flags_of(task, parent, mark);
}

/* The parents whose facts a snapshot has: which group, of which snapshot. */
#define SEEN (1 << 16)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SEEN);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

/* Writes the facts of a thread group, if this snapshot does not have them yet. The
 * slot that has them is for the caller to fill in, once all is written: where the
 * buffer is full the kernel throws away what was written for this task, and comes by
 * again. */
static __always_inline int tell_facts(struct seq_file *file, __u64 leader, __u32 tgid, __u64 start, __u64 *key, __u32 *at)
{
	__u32 slot = BY_ITERATOR;
	struct facts *f;
	__u64 n;

	*key = (__u64)epoch << 48 | ((start >> 20) & 0x3ffffff) << 22 | tgid;
	*at = (tgid * 2654435761U) >> 16;
	for (int i = 0; i < 4; i++) {
		__u32 j = *at + i & (SEEN - 1);
		__u64 *k = bpf_map_lookup_elem(&seen, &j);

		if (k && *k == *key)
			return 0;
		if (k && *k >> 48 != (epoch & 0xffff)) {
			*at = j;
			break;
		}
	}
	gather(leader, slot);
	f = bpf_map_lookup_elem(&facts_of, &slot);
	if (!f)
		return 0;
	n = f->limits;
	barrier_var(n); /* or the compiler bounds another register than it uses */
	if (n > LIMITS)
		n = LIMITS;
	barrier_var(n);
	return bpf_seq_write(file, f, sizeof(*f) - sizeof(f->limit) + n * sizeof(struct limit)) ?: 1;
}

static __always_inline void told(__u64 key, __u32 at)
{
	__u64 *k = bpf_map_lookup_elem(&seen, &at);

	if (k)
		*k = key;
}

SEC("iter/task")
int list_zombies(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct seq_file *file = ctx->meta->seq;
	struct zombie r = {};

	if (!task) {
		/* Says that the list is whole. */
		r.kind = SNAPSHOT_END;
		r.exited = ctx->meta->seq_num;
		bpf_seq_write(file, &r, sizeof(r));
		return 0;
	}
	if (task->exit_state != EXIT_ZOMBIE || task->pid != task->tgid)
		return 0;

	struct task_struct *parent = task->real_parent, *leader = parent->group_leader, *tracer;

	r.pid = task->pid;
	r.start = task->start_boottime;
	r.parent = parent->tgid;
	r.parent_start = leader->start_boottime;
	if (task->signal->nr_threads > 1) {
		r.kind = ZOMBIE_LEADER;
	} else if (task->ptrace) {
		/* A tracer in the parent's own thread group can reap it. */
		tracer = task->parent;
		if (tracer->tgid != r.parent) {
			r.kind = ZOMBIE_TRACED;
			r.tracer = tracer->tgid;
			r.tracer_start = tracer->group_leader->start_boottime;
		}
	}

	/* As numbers, which is what functions take. */
	__u64 addr = U64((__u64)task, task_struct, group_leader);
	__u64 parent_addr = U64(addr, task_struct, real_parent);

	recall(&r, addr, parent_addr);

	__u64 key, tracer_key;
	__u32 at, tracer_at;
	int of_parent = tell_facts(file, U64(parent_addr, task_struct, group_leader), r.parent, r.parent_start, &key, &at), of_tracer = 0;

	if (r.kind == ZOMBIE_TRACED)
		of_tracer = tell_facts(file, U64(U64(addr, task_struct, parent), task_struct, group_leader), r.tracer, r.tracer_start, &tracer_key, &tracer_at);
	if (bpf_seq_write(file, &r, sizeof(r)) || of_parent < 0 || of_tracer < 0)
		return 0;
	if (of_parent > 0)
		told(key, at);
	if (of_tracer > 0)
		told(tracer_key, tracer_at);
	return 0;
}

/* An iterator that is cut off before its end, to test what becomes of that. */
SEC("iter/task")
int list_nothing(struct bpf_iter__task *ctx)
{
	return 0;
}

/* ---- One process at a time --------------------------------------------------
 *
 * Run on demand (BPF_PROG_TEST_RUN), not attached to anything. A run takes a bounded
 * number of steps, as it keeps its CPU to itself, and leaves off where the next one
 * goes on. It takes no lock: what it counts it has checked, and it says whether the
 * list came to its end. */

#define FOUND 4096

enum {
	LOOK_MORE, /* run it again */
	LOOK_DONE,
	LOOK_CUT, /* the list changed under it: begin again */
	LOOK_GONE, /* no such thread group */
};

struct look {
	__u32 status;
	__u32 found;
	__u32 tgid;
	__u32 list; /* 0: children, 1: ptraced */
	__u64 start;
	__u64 leader; /* addresses, here and below */
	__u64 signal;
	__u64 thread;
	__u64 node; /* the next link to follow */
	/* Where it left off: addresses mean nothing in the next run before the pid is
	 * found to lead there again. */
	__u64 last; /* child; 0 at the beginning of a list */
	__u64 last_start;
	__u32 last_pid;
	__u32 thread_pid;
	struct zombie zombies[FOUND];
};

const struct look *unused_look __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct look);
} looks SEC(".maps");

#define XA_RETRY ((256 << 2) | 2)

/* The task of a pid of the first namespace: find_task_by_pid_ns, by hand. */
__noinline __u64 find(__u32 nr)
{
	__u64 current = bpf_get_current_task(), pid, ns, entry, node;
	__u32 mask = bpf_core_field_size(struct xa_node, slots) / 8 - 1;
	__u8 shift = 0;

	pid = U64(current, task_struct, thread_pid);
	ns = U64(pid + AT(pid, numbers), upid, ns);
	entry = U64(ns, pid_namespace, idr.idr_rt.xa_head);
	for (int i = 0; i < 8; i++) {
		if ((entry & 3) != 2 || entry == XA_RETRY)
			break;
		node = entry - 2;
		bpf_probe_read_kernel(&shift, 1, (void *)(node + AT(xa_node, shift)));
		if (i == 0 && nr >> shift > mask)
			return 0;
		entry = read_u64(node + AT(xa_node, slots) + 8 * (nr >> shift & mask));
	}
	if (!entry || (entry & 3) || U32(entry + AT(pid, numbers), upid, nr) != nr)
		return 0;
	return read_task(entry, PIDTYPE_PID);
}

/* Goes on until it returns 0. */
__noinline int look_on(void)
{
	__u32 zero = 0;
	struct look *l = bpf_map_lookup_elem(&looks, &zero);

	if (!l)
		return 0;

	__u64 thread = l->thread, node = l->node, head, task, next, real, parent;

	head = thread + (l->list ? AT(task_struct, ptraced) : AT(task_struct, children));
	if (node == head) {
		l->last = 0;
		if (!l->list) {
			l->list = 1;
			l->node = U64(thread, task_struct, ptraced);
			return 1;
		}
		thread = next_thread(thread, l->signal + AT(signal_struct, thread_head));
		if (thread == l->leader) {
			l->status = LOOK_DONE;
			return 0;
		}
		if (!thread || U64(thread, task_struct, signal) != l->signal)
			goto cut;
		l->list = 0;
		l->thread = thread;
		l->thread_pid = U32(thread, task_struct, pid);
		l->node = U64(thread, task_struct, children);
		return 1;
	}

	task = node - (l->list ? AT(task_struct, ptrace_entry) : AT(task_struct, sibling));
	real = U64(task, task_struct, real_parent);
	parent = U64(task, task_struct, parent);
	next = read_u64(node);
	if ((l->list ? parent : real) != thread || !next || next == node)
		goto cut;
	l->node = next;
	l->last = task;
	if (U32(task, task_struct, exit_state) != EXIT_ZOMBIE)
		return 1;

	__u32 pid = U32(task, task_struct, pid);
	__u64 n = l->found;

	if (U32(task, task_struct, tgid) != pid)
		return 1; /* a thread, on the tracer's list */
	if (n >= FOUND)
		goto cut;

	asm volatile("%0 &= %1" : "+r"(n) : "i"(FOUND - 1)); /* for older verifiers */

	struct zombie *r = &l->zombies[n];

	barrier_var(r);

	__u64 start = U64(task, task_struct, start_boottime);
	bool dead = U32(U64(task, task_struct, signal), signal_struct, nr_threads) <= 1;
	__u32 tracer = U32(task, task_struct, ptrace) ? U32(parent, task_struct, tgid) : 0;

	r->pid = pid;
	r->start = start;
	r->tracer = 0;
	r->tracer_start = 0;
	if (l->list) {
		r->parent = U32(real, task_struct, tgid);
		if (!dead || r->parent == l->tgid)
			return 1; /* its own child is on the other list */
		r->parent_start = U64(U64(real, task_struct, group_leader), task_struct, start_boottime);
		r->kind = ZOMBIE_TRACED;
		r->tracer = l->tgid;
		r->tracer_start = l->start;
	} else {
		r->parent = l->tgid;
		r->parent_start = l->start;
		r->kind = dead ? ZOMBIE_REAPABLE : ZOMBIE_LEADER;
		if (dead && tracer && tracer != l->tgid) {
			r->kind = ZOMBIE_TRACED;
			r->tracer = tracer;
			r->tracer_start = U64(U64(parent, task_struct, group_leader), task_struct, start_boottime);
		}
	}
	recall(r, task, real);
	/* Still there after all that was read of it. */
	if (U32(task, task_struct, exit_state) == EXIT_ZOMBIE && U32(task, task_struct, pid) == pid)
		l->found = n + 1;
	return 1;
cut:
	l->status = LOOK_CUT;
	return 0;
}

__noinline int look_on_some(void)
{
	for (int i = 0; i < 64; i++)
		if (!look_on())
			return 0;
	return 1;
}

struct request {
	__u64 tgid;
	__u64 more; /* go on where the last run left off */
	__u64 facts; /* nothing but the facts */
};

SEC("raw_tp")
int look_at(struct request *ctx)
{
	__u32 zero = 0, slot = BY_LOOK, pid = ctx->tgid;
	struct look *l = bpf_map_lookup_elem(&looks, &zero);
	__u64 leader;

	if (!l)
		return 0;
	leader = find(pid);
	l->found = 0;
	l->status = LOOK_GONE;
	if (!leader || U32(leader, task_struct, tgid) != pid)
		return 0;
	if (!ctx->more) {
		l->tgid = pid;
		l->leader = l->thread = leader;
		l->thread_pid = pid;
		l->start = U64(leader, task_struct, start_boottime);
		l->signal = U64(leader, task_struct, signal);
		l->list = 0;
		l->last = 0;
		gather(leader, slot);
		if (ctx->facts) {
			l->status = LOOK_DONE;
			return 0;
		}
		l->node = U64(leader, task_struct, children);
	} else {
		l->status = LOOK_CUT;
		if (leader != l->leader || l->tgid != pid || U64(leader, task_struct, start_boottime) != l->start)
			return 0;
		if (find(l->thread_pid) != l->thread || U64(l->thread, task_struct, signal) != l->signal)
			return 0;
		if (!l->last)
			l->node = l->list ? U64(l->thread, task_struct, ptraced) : U64(l->thread, task_struct, children);
		else if (find(l->last_pid) != l->last || U64(l->last, task_struct, start_boottime) != l->last_start ||
			 (l->list ? U64(l->last, task_struct, parent) : U64(l->last, task_struct, real_parent)) != l->thread)
			return 0;
		else
			l->node = l->list ? U64(l->last, task_struct, ptrace_entry) : U64(l->last, task_struct, sibling);
	}
	l->status = LOOK_MORE;
	for (int i = 0; i < FOUND / 64; i++)
		if (!look_on_some())
			return 0;
	if (l->last) {
		l->last_pid = U32(l->last, task_struct, pid);
		l->last_start = U64(l->last, task_struct, start_boottime);
	}
	return 0;
}

/* ---- What a process is in the middle of -------------------------------------- */

#define STANCE_IN_CALL 1 /* it sleeps in a system call */
#define STANCE_MAY_WAIT 2
#define STANCE_DISPATCH 4
#define STANCE_SHADOW_STACK 8
#define STANCE_DEAD 16 /* but other threads live */

struct stance {
	__u64 start;
	__u64 call;
	__u64 args[6];
	__u64 pending;
	__u32 bits;
	__u16 cs;
	__u16 seccomp;
	__u32 filters;
	__u32 pad;
};

const struct stance *unused_stance __attribute__((unused));

#define CALL_WAIT4 61 /* x86-64 */

/* bpf_task_pt_regs, since 5.15, wants a task that the kernel vouches for: an
 * iterator's. x86-64 only. */
SEC("iter/task")
int take_stance(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct stance s = {};

	if (!task || (__u32)task->pid != stance_of || task->signal->live.counter == 0)
		return 0;
	s.start = task->start_boottime;
	if (task->exit_state) {
		s.bits = STANCE_DEAD;
		bpf_seq_write(ctx->meta->seq, &s, sizeof(s));
		return 0;
	}

	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
	long call = regs->orig_ax;

	s.cs = regs->cs;
	/* What a task that runs has there is of its last system call. */
	if (task->__state && call >= 0) {
		s.bits |= STANCE_IN_CALL;
		s.call = call;
		s.args[0] = regs->di;
		s.args[1] = regs->si;
		s.args[2] = regs->dx;
		s.args[3] = regs->r10;
		s.args[4] = regs->r8;
		s.args[5] = regs->r9;
	}
	s.pending = (task->pending.signal.sig[0] | task->signal->shared_pending.signal.sig[0]) & ~task->blocked.sig[0];
	s.seccomp = task->seccomp.mode;
	if (bpf_core_field_exists(struct seccomp, filter_count))
		s.filters = task->seccomp.filter_count.counter;
	if (s.seccomp && bpf_core_field_exists(struct seccomp_filter, cache.allow_native)) {
		__u64 filter = U64((__u64)task, task_struct, seccomp.filter);

		if (filter && (U64(filter, seccomp_filter, cache.allow_native) >> CALL_WAIT4 & 1))
			s.bits |= STANCE_MAY_WAIT;
	}
	if (bpf_core_enum_value_exists(enum syscall_work_bit, SYSCALL_WORK_BIT_SYSCALL_USER_DISPATCH) &&
	    (task->thread_info.syscall_work >> bpf_core_enum_value(enum syscall_work_bit, SYSCALL_WORK_BIT_SYSCALL_USER_DISPATCH) & 1))
		s.bits |= STANCE_DISPATCH;
	if (bpf_core_field_exists(struct thread_struct, features) &&
	    (U64((__u64)task, task_struct, thread.features) & 1))
		s.bits |= STANCE_SHADOW_STACK;
	bpf_seq_write(ctx->meta->seq, &s, sizeof(s));
	return 0;
}
