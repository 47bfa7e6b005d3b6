// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* kzr's kernel side: one program that watches exits, one iterator that lists
 * zombies.
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
 * stops where that fails. What comes of it is a hint. The iterator, which takes
 * references, is the truth.
 *
 * Memory is fixed at load: 8 MiB stamps, 1.5 MiB parents, 64 KiB ring.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define STAMPS (1 << 19)
#define PARENTS (1 << 16)
#define WALK_MAX 512

/* When a thread group died and under which parent. Indexed by the low bits of
 * its pid; a later exit may overwrite it, so a reader compares start. */
struct stamp {
	__u32 start; /* low half of start_boottime */
	__u32 parent; /* tgid */
	__u64 exited; /* CLOCK_MONOTONIC, ns */
};

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
	__u64 exits; /* thread groups that died and left a zombie */
	__u64 walks;
	__u64 hints;
	__u64 lost; /* hints that found the ring full */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counts SEC(".maps");

/* The number of zombies that makes a parent worth a hint; set by user space,
 * also while attached. */
volatile __u32 level = 50;

/* The only parent whose zombies the iterator lists; 0 for all. */
volatile __u32 only_parent = 0;

/* These types reach Go through the object's BTF. */
const struct hint *unused_hint __attribute__((unused));

/* The kernel reaps a child by itself if its parent does not care. */
static __always_inline bool reaps_itself(struct task_struct *leader, struct task_struct *parent)
{
	struct k_sigaction *act = &parent->sighand->action[SIGCHLD - 1];

	if (leader->ptrace || leader->exit_signal != SIGCHLD)
		return false;
	return act->sa.sa_handler == SIG_IGN || (act->sa.sa_flags & SA_NOCLDWAIT);
}

/* Where a walk stands. It lives in a map: what is read back from there is
 * nothing but a number to the verifier, so the two ways through the loop's body
 * end in the same state, and the loop is verified once an iteration instead of
 * once a path. */
struct walk {
	__u64 first; /* the thread that began */
	__u64 thread; /* whose children are being looked at */
	__u64 node; /* the next link to follow */
	__u64 threads; /* head of the list of threads */
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

/* One link further. Plain addresses: container_of is beyond typed loads. */
static __always_inline bool step(struct walk *w, __u32 want)
{
	__u64 thread = w->thread, node = w->node;

	if (node == thread + AT(task_struct, children)) {
		/* The end of this thread's children. On to the next thread, past
		 * the list's head in signal_struct. */
		node = read_u64(thread + AT(task_struct, thread_node));
		if (node == w->threads)
			node = read_u64(node);
		thread = node - AT(task_struct, thread_node);
		w->thread = thread;
		w->node = read_u64(thread + AT(task_struct, children));
		return node && thread != w->first;
	}

	__u64 child = node - AT(task_struct, sibling);
	__u32 flags = read_u32(child + AT(task_struct, flags));

	if (read_u64(child + AT(task_struct, real_parent)) != thread)
		return false; /* the list changed under us */
	w->node = read_u64(node);
	w->zombies += !!(flags & PF_EXITING);
	return w->zombies < want && w->node != node;
}

/* Count parent's zombies, up to want. Those that are on their way count as
 * well: since 6.16 the tracepoint comes before the memory is torn down, and
 * dozens of children can be past it with none of them a zombie yet. So the one
 * that is exiting right now counts itself. */
static __always_inline void count_zombies(struct walk *w, struct task_struct *parent, __u32 want)
{
	struct signal_struct *signal = parent->signal;
	__u32 i;

	w->first = w->thread = (__u64)parent;
	w->node = read_u64((__u64)parent + AT(task_struct, children));
	w->threads = (__u64)signal + AT(signal_struct, thread_head);
	w->zombies = 0;
	for (i = 0; i < WALK_MAX; i++)
		if (!step(w, want))
			break;
	w->steps = i;
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

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	/* The last thread to go takes the group with it. Two that go at once may
	 * both see 0; doing this twice is harmless. */
	if (task->signal->live.counter != 0)
		return 0;

	struct task_struct *leader = task->group_leader;
	struct task_struct *parent = leader->real_parent;

	if ((parent->flags & PF_KTHREAD) || reaps_itself(leader, parent))
		return 0;

	__u32 zero = 0, pid = leader->pid, tgid = parent->tgid;
	struct counters *c = bpf_map_lookup_elem(&counts, &zero);
	__u32 i = pid & (STAMPS - 1);
	struct stamp *s = bpf_map_lookup_elem(&stamps, &i);
	__u32 j = tgid & (PARENTS - 1);
	struct parent *p = bpf_map_lookup_elem(&parents, &j);

	if (!c || !s || !p)
		return 0;
	c->exits++;
	s->start = (__u32)leader->start_boottime;
	s->parent = tgid;
	/* A traced one waits for its tracer first. For the parent it begins to wait
	 * when it is first seen without; nobody can attach to it again. */
	s->exited = leader->ptrace ? 0 : bpf_ktime_get_ns();

	/* Count first, look after: every exit up to n has set PF_EXITING before it
	 * was counted, so a walk from here on sees it, and z zombies now mean that
	 * there cannot be `level` before exit n + level - z. That holds for every
	 * CPU's n and z on its own, so it does not matter whose `due` is stored
	 * last. */
	__sync_fetch_and_add(&p->exits, 1);

	__u32 n = p->exits;
	__u32 start = parent->group_leader->start_boottime >> 20;

	if (p->tgid == tgid && p->start == start) {
		if ((__s32)(n - p->due) < 0)
			return 0;
	} else {
		p->tgid = tgid;
		p->start = start;
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

/* Nothing at the same place, to measure what the kernel's own accounting costs. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit_empty, struct task_struct *task)
{
	return 0;
}

enum {
	ZOMBIE_REAPABLE,
	ZOMBIE_TRACED,
	ZOMBIE_LEADER,
	SNAPSHOT_END,
};

struct record {
	__u32 pid;
	__u32 parent; /* tgid */
	__u64 start; /* start_boottime, ns */
	__u64 parent_start;
	__u64 exited; /* CLOCK_MONOTONIC, ns; 0 if not known, or of another parent. At the end: tasks seen */
	__u32 tracer; /* tgid, if traced */
	__u32 kind;
};

const struct record *unused_record __attribute__((unused));

SEC("iter/task")
int list_zombies(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct record r = {};

	if (!task) {
		/* Says that the list is whole. */
		r.kind = SNAPSHOT_END;
		r.exited = ctx->meta->seq_num;
		bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
		return 0;
	}
	if (task->exit_state != EXIT_ZOMBIE || task->pid != task->tgid)
		return 0;

	struct task_struct *parent = task->real_parent;

	r.parent = parent->tgid;
	if (only_parent && r.parent != only_parent)
		return 0;
	r.parent_start = parent->group_leader->start_boottime;
	r.pid = task->pid;
	r.start = task->start_boottime;
	if (task->signal->nr_threads > 1) {
		r.kind = ZOMBIE_LEADER;
	} else if (task->ptrace) {
		/* A tracer in the parent's own thread group can reap it. */
		__u32 tracer = task->parent->tgid;

		if (tracer != r.parent) {
			r.tracer = tracer;
			r.kind = ZOMBIE_TRACED;
		}
	}

	__u32 i = r.pid & (STAMPS - 1);
	struct stamp *s = bpf_map_lookup_elem(&stamps, &i);

	if (s && s->start == (__u32)r.start && s->parent == r.parent)
		r.exited = s->exited;
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	return 0;
}

/* An iterator that is cut off before its end, to test what becomes of that. */
SEC("iter/task")
int list_nothing(struct bpf_iter__task *ctx)
{
	return 0;
}
