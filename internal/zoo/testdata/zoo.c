// zoo: one small program that can be every kind of process kzr has to judge.
//
// It is driven by a script. Each argument is one step, run in order:
//
//	zoo leak=60 serve                      60 zombies, never waits
//	zoo in=pidns,proc leak=60 serve        the same as the init of a pid namespace
//	zoo leak=60 chld=reap serve            reaps on the next SIGCHLD
//	zoo fork { name=kid leak=5 serve } serve
//
// A step is `verb` or `verb=value,value,key=value`; \xHH in a value is that byte.
// `fork`, `churn`, `hold` and `respawn` take a block in braces, the script of a
// child. The table `steps` at the end of the file lists them all.
//
// The first process is the keeper: a subreaper that starts the script in a
// child called "main", reaps whatever falls to it, and at the end kills until
// waitpid() says that it has no child left. Every orphan falls to the keeper,
// unless a subreaper or namespace init of the script's own takes it, so that
// is proof that nothing of the zoo is left. It ends when its harness closes the
// socket ZOO_REPORT (a file descriptor number), or without one when main ends
// or on SIGTERM or SIGINT.
//
// With the first argument "alone" there is no keeper: the script runs in the
// very process, as the init of a container has to.
//
// Every process with a name says "hello NAME" on that socket when it is ready:
// the kernel adds its pid in the receiver's namespace, and it passes along the
// other end of a socket of its own, over which further steps can be sent. They
// are answered with "ok RESULT" or "err REASON". Without a harness, standard
// input and output are used for that, one line each.
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/aio_abi.h>
#include <linux/fuse.h>
#include <linux/sched.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_TOKENS 4096
#define MAX_PARTS 64
#define MSEC 1000000L // in nanoseconds

// What a process of the zoo is.
static struct {
	const char *name; // NULL: nobody needs to talk to it
	int report;       // the harness's socket, -1 if there is none
	int ready;        // a byte here says "set up" to whoever forked it, or -1
	int ctl;          // steps come in here; -1 until ready, or closed
	bool said;        // that it is ready
	bool serving;
	bool awaited;     // somebody waits for the answer to the current step
} self = { .report = -1, .ready = -1, .ctl = -1 };

// What it did, shown by the step `count`.
static volatile long made, failed, reaped, chlds, terms;

static char result[256]; // of the step that runs, for its answer

// ---- Small things -----------------------------------------------------------

static void answer(const char *verdict, const char *text)
{
	char buf[512];
	int n = snprintf(buf, sizeof(buf), "%s %s\n", verdict, text);

	if (self.report < 0)
		dprintf(STDOUT_FILENO, "%s", buf);
	else if (self.ctl >= 0)
		send(self.ctl, buf, n - 1, MSG_NOSIGNAL);
	self.awaited = false;
}

// die ends a process that cannot do what the script says. The harness makes
// that a failed test.
__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *fmt, ...)
{
	char text[400], buf[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	int n = snprintf(buf, sizeof(buf), "fail %s: %s", self.name ? self.name : "-", text);
	dprintf(STDERR_FILENO, "zoo: %s\n", buf);
	if (self.awaited)
		answer("err", text);
	if (self.report >= 0)
		send(self.report, buf, n, MSG_NOSIGNAL);
	_exit(99);
}

__attribute__((format(printf, 1, 2))) static void say(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(result, sizeof(result), fmt, ap);
	va_end(ap);
}

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000L + ts.tv_nsec;
}

// nap sleeps for the whole time, whatever signals arrive.
static void nap(int64_t ns)
{
	struct timespec ts = { ns / 1000000000L, ns % 1000000000L };

	while (ns > 0 && nanosleep(&ts, &ts) < 0 && errno == EINTR)
		;
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die("writing %s: %m", path);
	close(fd);
}

// wait_dead waits until a child is a zombie, without reaping it and without
// sitting in wait(): the kernel must see a parent that does not wait. Somebody
// who was reaped already is dead too.
static void wait_dead(pid_t pid)
{
	int fd = syscall(SYS_pidfd_open, pid, 0);
	struct pollfd p = { .fd = fd, .events = POLLIN };

	if (fd < 0)
		return;
	while (poll(&p, 1, -1) < 0 && errno == EINTR)
		;
	close(fd);
	// The lock that this takes is held until the dead one's parent has its signal.
	siginfo_t info;
	waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT | __WALL);
}

// ---- Steps and their arguments ------------------------------------------------

// One step with its arguments. The pointers go into the script.
struct step {
	const char *verb;
	int parts;
	char *part[MAX_PARTS]; // decoded; part[parts] is NULL
	char **block;          // the child's script, ends in NULL; or NULL
	char **rest;           // the steps after this one
};

static void run(char **script);
static void serve(void);

static void decode(char *s)
{
	char *out = s;

	for (; *s; s++) {
		unsigned int byte;

		if (s[0] == '\\' && s[1] == 'x' && isxdigit(s[2]) && isxdigit(s[3])) {
			sscanf(s + 2, "%2x", &byte);
			*out++ = byte;
			s += 3;
		} else {
			*out++ = *s;
		}
	}
	*out = 0;
}

// opt finds "key=value" or the bare "key" (value "") among the parts.
static const char *opt(const struct step *s, const char *key)
{
	size_t n = strlen(key);

	for (int i = 0; i < s->parts; i++) {
		if (strncmp(s->part[i], key, n) == 0) {
			if (s->part[i][n] == '=')
				return s->part[i] + n + 1;
			if (s->part[i][n] == 0)
				return "";
		}
	}
	return NULL;
}

static long number(const struct step *s, const char *text)
{
	char *end;
	long n = strtol(text, &end, 10);

	if (end == text || *end)
		die("%s: \"%s\" is not a number", s->verb, text);
	return n;
}

static long opt_number(const struct step *s, const char *key, long otherwise)
{
	const char *text = opt(s, key);

	return text ? number(s, text) : otherwise;
}

static const char *arg(const struct step *s, int i)
{
	if (i >= s->parts)
		die("%s needs %d arguments", s->verb, i + 1);
	return s->part[i];
}

static bool is(const struct step *s, const char *word)
{
	return strcmp(arg(s, 0), word) == 0;
}

// ---- Becoming ready, and new processes -----------------------------------------

// say_ready makes the process known, with a socket to talk to it, and lets the
// one that forked it go on.
static void say_ready(void)
{
	if (self.said)
		return;
	self.said = true;
	if (self.report < 0) {
		if (self.name && strcmp(self.name, "main") == 0)
			self.ctl = STDIN_FILENO;
	} else if (self.name) {
		int pair[2];
		char text[128];
		union {
			char buf[CMSG_SPACE(sizeof(int))];
			struct cmsghdr align;
		} control = { 0 };

		if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) < 0)
			die("socketpair: %m");
		struct iovec iov = { text, snprintf(text, sizeof(text), "hello %s", self.name) };
		struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1,
				      .msg_control = control.buf, .msg_controllen = sizeof(control.buf) };
		struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &pair[1], sizeof(int));
		if (sendmsg(self.report, &msg, MSG_NOSIGNAL) < 0)
			die("hello: %m");
		close(pair[1]);
		self.ctl = pair[0];
	}
	if (self.ready >= 0) {
		(void)!write(self.ready, "+", 1);
		close(self.ready);
		self.ready = -1;
	}
}

// keep copies a script that is needed after the step is over: the tokens may be on
// a stack that goes, or make room for the next order.
static char **keep(char **script)
{
	int n = 0;

	while (script[n])
		n++;
	char **copy = calloc(n + 1, sizeof(*copy));
	for (int i = 0; copy && i < n; i++)
		copy[i] = strdup(script[i]);
	if (!copy)
		die("out of memory");
	return copy;
}

static pid_t newest; // child

static void quit_background(void);

// newborn makes a forked child a process of its own: nothing of what its parent
// was or did to its signals stays.
static void newborn(int ready)
{
	sigset_t none;

	if (self.ctl >= 0)
		close(self.ctl);
	if (self.ready >= 0)
		close(self.ready);
	self.name = NULL;
	self.ctl = -1;
	self.ready = ready;
	self.said = self.serving = self.awaited = false;
	made = failed = reaped = chlds = terms = 0;
	quit_background();
	signal(SIGCHLD, SIG_DFL);
	signal(SIGTERM, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

// Options of a new process: pidns, mntns, userns[=BASE] (ids 0 to 999 are BASE
// and up outside, 100000 if not given), proc (a fresh /proc in a mount
// namespace of its own), tid=N (that pid), sig=N (its exit signal).
//
// create returns as fork() does. The child runs only once its ids are mapped.
static pid_t create(const struct step *s)
{
	unsigned long flags = 0;
	int sync[2];
	char go;

	if (opt(s, "pidns"))
		flags |= CLONE_NEWPID;
	if (opt(s, "mntns") || opt(s, "proc"))
		flags |= CLONE_NEWNS;
	if (opt(s, "userns"))
		flags |= CLONE_NEWUSER;
	long sig = opt_number(s, "sig", SIGCHLD), tid = opt_number(s, "tid", 0);

	if (pipe2(sync, O_CLOEXEC) < 0)
		die("pipe: %m");
	pid_t pid;
	if (!flags && !tid && sig == SIGCHLD) {
		pid = fork();
	} else if (!tid) {
		pid = syscall(SYS_clone, flags | sig, 0, 0, 0, 0);
	} else {
		pid_t want = tid;
		struct clone_args ca = { .flags = flags, .exit_signal = sig,
					 .set_tid = (uintptr_t)&want, .set_tid_size = 1 };

		pid = syscall(SYS_clone3, &ca, sizeof(ca));
	}
	if (pid < 0)
		die("%s: %m", s->verb);
	if (pid > 0) {
		close(sync[0]);
		if (opt(s, "userns")) {
			char path[64], map[64];
			const char *base = *opt(s, "userns") ? opt(s, "userns") : "100000";

			snprintf(map, sizeof(map), "0 %s 1000\n", base);
			snprintf(path, sizeof(path), "/proc/%d/uid_map", pid);
			write_file(path, map);
			snprintf(path, sizeof(path), "/proc/%d/gid_map", pid);
			write_file(path, map);
		}
		close(sync[1]); // go
		return pid;
	}

	close(sync[1]);
	(void)!read(sync[0], &go, 1);
	close(sync[0]);
	if (opt(s, "userns") && (setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0))
		die("becoming root of the user namespace: %m");
	if (opt(s, "userns")) // that took it away, and with it its own /proc/PID
		prctl(PR_SET_DUMPABLE, 1);
	if ((flags & CLONE_NEWNS) && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		die("making mounts private: %m");
	if (opt(s, "proc") && mount("proc", "/proc", "proc", 0, NULL) < 0)
		die("mounting /proc: %m");
	return 0;
}

// await_ready returns when the child is set up, or has ended instead.
static void await_ready(int pipe_end[2])
{
	char c;

	close(pipe_end[1]);
	while (read(pipe_end[0], &c, 1) < 0 && errno == EINTR)
		;
	close(pipe_end[0]);
}

__attribute__((noreturn)) static void child(int ready[2], char **script)
{
	close(ready[0]);
	newborn(ready[1]);
	run(script);
	_exit(0);
}

// fork=OPTIONS,times=N: so many of them, one after the other.
static void do_fork(struct step *s)
{
	for (long n = opt_number(s, "times", 1); n > 0; n--) {
		int ready[2];

		if (pipe(ready) < 0)
			die("pipe: %m");
		newest = create(s);
		if (newest == 0)
			child(ready, s->block);
		await_ready(ready);
		made++;
	}
	say("%d", newest);
}

// churn: forks until the kernel hands out the pid; whoever gets it runs the
// block. for=MS bounds the time.
static void do_churn(struct step *s)
{
	pid_t want = number(s, arg(s, 0)), pid;
	int64_t end = now_ns() + opt_number(s, "for", 60000) * MSEC;
	pid_t last = 0;
	bool crowded = false;

	while (now_ns() < end) {
		// Far from it a vfork will do, which costs half. Close to it,
		// each child could be the one.
		if (!crowded && (last < want - 16 || last >= want)) {
			pid = vfork();
			if (pid == 0)
				_exit(0);
			// If this child got it, the numbers before it are taken:
			// free the pid and go round once more, with care.
			crowded = pid == want;
		} else {
			int ready[2];

			if (pipe(ready) < 0)
				die("pipe: %m");
			pid = fork();
			if (pid == 0 && getpid() == want)
				child(ready, s->block);
			if (pid == 0)
				_exit(0);
			await_ready(ready);
			if (pid == want) {
				say("%d", pid);
				return;
			}
		}
		if (pid < 0)
			die("churn: %m");
		last = pid;
		waitpid(pid, NULL, 0);
	}
	die("churn: pid %d did not come", want);
}

// ---- Children that become zombies ---------------------------------------------

struct brood {
	long count;   // 0: without end
	long rate;    // per second, 0: as fast as it goes
	long sig;     // exit signal
	bool sibling; // the parent's children (CLONE_PARENT), who has to reap them
	bool full;    // a fork that fails is no error: the table may be full
	bool async;   // do not make sure that they are dead
	bool plain;   // fork, not vfork
	int forged;   // a namespace that no child may enter; trying marks it as one that used a privilege
};

// theirs returns a UTS namespace below a user namespace of the caller's. To enter it needs
// a privilege there, which the caller has, and one where he is, which he has not.
static int theirs(void)
{
	int ready[2], fd;
	char path[40], c;

	if (pipe2(ready, O_CLOEXEC) < 0)
		die("pipe: %m");
	pid_t pid = fork();
	if (pid == 0) {
		if (unshare(CLONE_NEWUSER | CLONE_NEWUTS) < 0 || prctl(PR_SET_DUMPABLE, 1) < 0 || write(ready[1], "", 1) < 0)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	if (pid < 0 || read(ready[0], &c, 1) != 1)
		die("forged: no user namespace");
	close(ready[0]);
	snprintf(path, sizeof(path), "/proc/%d/ns/uts", pid);
	if ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
		die("%s: %m", path);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return fd;
}

static struct brood brood_of(const struct step *s)
{
	struct brood b = {
		.count = number(s, arg(s, 0)),
		.rate = opt_number(s, "rate", 0),
		.sig = opt_number(s, "sig", SIGCHLD),
		.sibling = opt(s, "sibling"),
		.full = opt(s, "full"),
		.async = opt(s, "async"),
		.plain = opt(s, "plain"),
		.forged = opt(s, "forged") ? theirs() : -1,
	};

	if (b.sig && b.sig != SIGCHLD) // else the first one ends the parent
		signal(b.sig, SIG_IGN);
	return b;
}

// bear makes one child that ends at once; -1 if it cannot.
static pid_t bear(const struct brood *b)
{
	pid_t pid;

	if (b->sibling)
		pid = syscall(SYS_clone, CLONE_PARENT | b->sig, 0, 0, 0, 0);
	else if (b->sig == SIGCHLD && !b->plain)
		pid = vfork();
	else
		pid = syscall(SYS_clone, b->sig, 0, 0, 0, 0);
	if (pid == 0) {
		if (b->forged >= 0 && setns(b->forged, 0) == 0)
			_exit(1); // it was to be refused
		_exit(0);
	}
	if (pid > 0)
		made++;
	else if (b->full)
		failed++;
	else
		die("fork: %m");
	return pid;
}

static long leak(const struct brood *b)
{
	int64_t start = now_ns();
	long n = 0;

	for (; n < b->count; n++) {
		if (b->rate > 0)
			nap(start + n * (1000000000L / b->rate) - now_ns());
		pid_t pid = bear(b);
		if (pid < 0)
			break;
		if (!b->async)
			wait_dead(pid);
	}
	return n;
}

static void *leak_thread(void *arg)
{
	void **box = arg;

	leak(box[0]);
	close((int)(intptr_t)box[1]);
	for (;;)
		pause();
	return NULL;
}

static void do_leak(struct step *s)
{
	struct brood b = brood_of(s);

	if (!opt(s, "thread")) {
		say("%ld", leak(&b));
		return;
	}
	// From a second thread, which lives on.
	int done[2];
	pthread_t t;

	if (pipe2(done, O_CLOEXEC) < 0)
		die("pipe: %m");
	void *box[2] = { &b, (void *)(intptr_t)done[1] };
	if (pthread_create(&t, NULL, leak_thread, box) != 0)
		die("pthread_create failed");
	char c;
	while (read(done[0], &c, 1) < 0 && errno == EINTR)
		;
	close(done[0]);
	say("%ld", b.count);
}

// reap=N waits for N children of any kind, reap=all for all that there are,
// reap=now for those that are dead. pid=P for that one. status=N: what each has to
// have ended with.
static void do_reap(struct step *s)
{
	const char *pid = opt(s, "pid");
	long n = 0, want = LONG_MAX, exit_status = opt_number(s, "status", -1);
	int status;
	int flags = __WALL;

	if (pid)
		want = 1;
	else if (is(s, "now"))
		flags |= WNOHANG;
	else if (!is(s, "all"))
		want = number(s, arg(s, 0));
	while (n < want) {
		pid_t got = waitpid(pid ? number(s, pid) : -1, &status, flags);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		if (exit_status >= 0 && (!WIFEXITED(status) || WEXITSTATUS(status) != exit_status))
			die("reap: child %d ended with %x", got, status);
		n++;
	}
	reaped += n;
	if (want != LONG_MAX && n < want)
		die("reap: only %ld children", n);
	say("%ld", n);
}

// await[=PID]: sits in waitpid() for this child, by default the newest, and for no
// other, until it ends.
static void do_await(struct step *s)
{
	pid_t pid = s->parts ? number(s, arg(s, 0)) : newest;

	while (waitpid(pid, NULL, 0) < 0)
		if (errno != EINTR)
			die("waiting for %d: %m", pid);
	reaped++;
}

// ---- Work in the background of `serve` ------------------------------------------

static struct {
	// tick does what is due and returns how many milliseconds it can wait;
	// -1 when it is over.
	int (*tick)(void);
	struct brood brood;
	int64_t start, end; // end 0: never
	long done;
	long percent; // of each hundred children, reaped at once
	long n, every, hold;
	struct {
		pid_t pid;
		int64_t born;
	} *young;
	long head, alive;
	int kids;
	char **block; // of respawn
	pid_t pid;
} bg;

static void quit_background(void)
{
	bg.tick = NULL;
}

static void background(int (*tick)(void), const struct step *s)
{
	free(bg.young);
	memset(&bg, 0, sizeof(bg));
	bg.start = now_ns();
	long ms = opt_number(s, "for", 0);
	bg.end = ms ? bg.start + ms * MSEC : 0;
	bg.tick = tick;
}

// due says how many of the things that happen `rate` times a second are due, at
// most 256 at a time so that commands are heard; 0 with the wait in *ms.
static long due(long rate, int *ms)
{
	*ms = 0;
	if (rate == 0)
		return 256;
	long n = (double)(now_ns() - bg.start) * rate / 1e9 - bg.done;
	if (n <= 0)
		*ms = 1 + 1000 / rate / 2;
	return n > 256 ? 256 : n;
}

static int storm_tick(void)
{
	int ms;

	for (long n = due(bg.brood.rate, &ms); n > 0; n--) {
		if (bg.brood.count && bg.done == bg.brood.count)
			return -1;
		if (bear(&bg.brood) < 0)
			return 10; // the table is full: try again
		bg.done++;
		for (long i = 0; bg.done % 100 == 0 && i < bg.percent; i++)
			if (waitpid(-1, NULL, __WALL) > 0)
				reaped++;
	}
	return ms;
}

// storm=N,rate=R,for=MS,reap=P: leaks in the background, N children (0: without
// end), and reaps P of each hundred.
static void do_storm(struct step *s)
{
	struct brood b = brood_of(s);

	background(storm_tick, s);
	bg.brood = b;
	bg.brood.full = true;
	bg.percent = opt_number(s, "reap", 0);
}

static int fresh_tick(void)
{
	struct brood b = { .sig = SIGCHLD, .full = true };
	int64_t now = now_ns();

	while (bg.alive > 0 && now - bg.young[bg.head].born >= bg.hold * MSEC) {
		if (waitpid(bg.young[bg.head].pid, NULL, 0) > 0)
			reaped++;
		bg.head = (bg.head + 1) % bg.n;
		bg.alive--;
	}
	// Spread over the time that they are kept, so that some are always there.
	if (bg.alive < bg.n && now >= bg.start + bg.done * bg.hold * MSEC / bg.n) {
		long at = (bg.head + bg.alive) % bg.n;
		pid_t pid = bear(&b);

		if (pid < 0)
			return 10; // the table is full: try again
		bg.young[at].pid = pid;
		bg.young[at].born = now;
		bg.alive++;
		bg.done++;
	}
	return bg.n >= bg.hold ? 1 : bg.hold / bg.n / 2 + 1;
}

// fresh=K,age=MS: always about K zombies, each reaped when it is MS old.
static void do_fresh(struct step *s)
{
	background(fresh_tick, s);
	bg.n = number(s, arg(s, 0));
	bg.hold = opt_number(s, "age", 200);
	bg.young = calloc(bg.n, sizeof(*bg.young));
	if (!bg.young)
		die("out of memory");
}

static int burst_tick(void)
{
	int64_t now = now_ns();

	if (bg.kids > 0) {
		if (now < bg.start + bg.hold * MSEC)
			return (bg.start + bg.hold * MSEC - now) / MSEC + 1;
		for (; bg.kids > 0; bg.kids--)
			if (waitpid(-1, NULL, __WALL) > 0)
				reaped++;
	}
	if (now < bg.start + bg.every * MSEC && bg.done > 0)
		return (bg.start + bg.every * MSEC - now) / MSEC + 1;

	int gate[2];
	char c;

	if (pipe(gate) < 0)
		die("pipe: %m");
	for (long i = 0; i < bg.n; i++) {
		pid_t pid = syscall(SYS_clone, bg.brood.sig, 0, 0, 0, 0);
		if (pid < 0)
			die("fork: %m");
		if (pid == 0) {
			close(gate[1]);
			(void)!read(gate[0], &c, 1);
			_exit(0);
		}
		bg.kids++;
		made++;
	}
	close(gate[0]);
	close(gate[1]); // all die at once
	bg.start = now_ns();
	bg.done++;
	return bg.hold;
}

// burst=N,every=MS,hold=MS,sig=S: N children die at once and are reaped together
// after `hold`, again and again.
static void do_burst(struct step *s)
{
	struct brood b = brood_of(s);

	background(burst_tick, s);
	bg.brood = b;
	bg.n = b.count;
	bg.every = opt_number(s, "every", 2000);
	bg.hold = opt_number(s, "hold", 500);
}

static int flash_tick(void)
{
	int ms;

	for (long n = due(bg.brood.rate, &ms); n > 0; n--) {
		pid_t pid = fork();
		if (pid == 0) {
			for (int i = 0; i < bg.kids; i++)
				if (vfork() == 0)
					_exit(0);
			_exit(0);
		}
		if (pid < 0)
			return 10;
		made++;
		bg.done++;
		if (waitpid(pid, NULL, 0) > 0)
			reaped++;
	}
	return ms;
}

// flash=R,kids=K: R parents a second, each of which leaves K zombies and ends at
// once. The keeper inherits the zombies, and reaps.
static void do_flash(struct step *s)
{
	background(flash_tick, s);
	bg.brood.rate = number(s, arg(s, 0));
	bg.kids = opt_number(s, "kids", 3);
}

static int respawn_tick(void)
{
	pid_t pid;

	while ((pid = waitpid(-1, NULL, __WALL | WNOHANG)) > 0) {
		reaped++;
		if (pid == bg.pid)
			bg.pid = 0;
	}
	if (bg.pid == 0) {
		int ready[2];

		if (pipe(ready) < 0)
			die("pipe: %m");
		pid = fork();
		if (pid == 0)
			child(ready, bg.block);
		await_ready(ready);
		if (pid > 0) { // else the table is full: try again
			bg.pid = pid;
			made++;
		}
	}
	return 10;
}

// respawn { … }: an init that reaps whatever ends, and starts the block again
// whenever that one has ended.
static void do_respawn(struct step *s)
{
	background(respawn_tick, s);
	bg.block = keep(s->block);
}

static void do_quiet(struct step *s)
{
	(void)s;
	quit_background();
}

// ---- Signals ----------------------------------------------------------------------

static long reap_at_most, refill, chld_delay_ms;
static bool only_sent;
static long term_delay_ms;

static void on_chld(int sig, siginfo_t *si, void *context)
{
	int saved = errno;

	(void)sig;
	(void)context;
	if (only_sent && si->si_code != SI_USER)
		return;
	chlds++;
	nap(chld_delay_ms * MSEC);
	for (long i = 0; i < reap_at_most && waitpid(-1, NULL, WNOHANG) > 0; i++)
		reaped++;
	if (refill && chlds % refill == 0) {
		if (vfork() == 0)
			_exit(0);
		made++;
	}
	errno = saved;
}

static void on_term(int sig)
{
	(void)sig;
	terms++;
	if (term_delay_ms >= 0) {
		nap(term_delay_ms * MSEC);
		_exit(0);
	}
}

static void dispose(int sig, void (*handler)(int), int flags)
{
	struct sigaction sa = { .sa_handler = handler, .sa_flags = flags | SA_RESTART };

	sigaction(sig, &sa, NULL);
}

static void block(int sig, bool on)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, sig);
	pthread_sigmask(on ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL);
}

// chld=default|ignore|nocldwait|block|count|reap[,n=N]: what SIGCHLD does. `reap`
// reaps at most N per signal (all of them if not given); with `sent` only when a
// process sent it, not when a child ended, with ms=MS it takes its time for each
// signal, and with refill=N every Nth makes another zombie.
static void do_chld(struct step *s)
{
	struct sigaction handler = { .sa_sigaction = on_chld, .sa_flags = SA_SIGINFO | SA_RESTART };

	reap_at_most = 0;
	only_sent = opt(s, "sent");
	refill = opt_number(s, "refill", 0);
	chld_delay_ms = opt_number(s, "ms", 0);
	if (is(s, "default"))
		dispose(SIGCHLD, SIG_DFL, 0);
	else if (is(s, "ignore"))
		dispose(SIGCHLD, SIG_IGN, 0);
	else if (is(s, "nocldwait"))
		dispose(SIGCHLD, SIG_DFL, SA_NOCLDWAIT);
	else if (is(s, "count"))
		sigaction(SIGCHLD, &handler, NULL);
	else if (is(s, "reap")) {
		reap_at_most = opt_number(s, "n", LONG_MAX);
		sigaction(SIGCHLD, &handler, NULL);
	} else if (!is(s, "block"))
		die("chld: unknown \"%s\"", s->part[0]);
	block(SIGCHLD, is(s, "block"));
}

// term=default|ignore|block|count|exit[,ms=MS]: what SIGTERM does. `exit` may
// take its time.
static void do_term(struct step *s)
{
	term_delay_ms = -1;
	if (is(s, "default"))
		dispose(SIGTERM, SIG_DFL, 0);
	else if (is(s, "ignore"))
		dispose(SIGTERM, SIG_IGN, 0);
	else if (is(s, "count"))
		dispose(SIGTERM, on_term, 0);
	else if (is(s, "exit")) {
		term_delay_ms = opt_number(s, "ms", 0);
		dispose(SIGTERM, on_term, 0);
	} else if (!is(s, "block"))
		die("term: unknown \"%s\"", s->part[0]);
	block(SIGTERM, is(s, "block"));
}

// ---- Identity -----------------------------------------------------------------------

static void do_name(struct step *s)
{
	self.name = strdup(arg(s, 0));
}

static void do_comm(struct step *s)
{
	prctl(PR_SET_NAME, arg(s, 0));
}

// nocmdline: /proc/PID/cmdline becomes empty, as a kernel thread's.
static void do_nocmdline(struct step *s)
{
	char buf[4096], *field = NULL;
	unsigned long long f[52] = { 0 }; // as proc_pid_stat(5) counts them
	int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, buf, sizeof(buf) - 1);

	(void)s;
	close(fd);
	buf[n > 0 ? n : 0] = 0;
	field = strrchr(buf, ')');
	for (int i = 3; field && i < 52; i++) {
		field = strchr(field + 1, ' ');
		if (field)
			f[i] = strtoull(field, NULL, 10);
	}
	struct prctl_mm_map map = {
		.start_code = f[26], .end_code = f[27], .start_stack = f[28],
		.start_data = f[45], .end_data = f[46],
		.start_brk = f[47], .brk = (uintptr_t)sbrk(0),
		.arg_start = f[48], .arg_end = f[48],
		.env_start = f[50], .env_end = f[51],
		.exe_fd = -1,
	};
	if (prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof(map), 0) < 0)
		die("emptying cmdline: %m");
}

static void do_uid(struct step *s)
{
	long id = number(s, arg(s, 0));

	if (setgroups(0, NULL) < 0 || setresgid(id, id, id) < 0 || setresuid(id, id, id) < 0)
		die("uid=%ld: %m", id);
}

// groups=N: so many supplementary groups, with numbers as long as they get. The
// process's status then is so much longer, and its children's.
static void do_groups(struct step *s)
{
	long n = number(s, arg(s, 0));
	gid_t *group = calloc(n + 1, sizeof(*group));

	for (long i = 0; group && i < n; i++)
		group[i] = 4000000000 + i;
	if (!group || setgroups(n, group) < 0)
		die("%ld groups: %m", n);
	free(group);
}

static void do_chroot(struct step *s)
{
	if (chroot(arg(s, 0)) < 0 || chdir("/") < 0)
		die("chroot %s: %m", arg(s, 0));
}

/* As the process that has this namespace, at its root. */
static void do_mnt(struct step *s)
{
	int fd = open(arg(s, 0), O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, CLONE_NEWNS) < 0)
		die("mnt %s: %m", arg(s, 0));
	close(fd);
}

static void do_cgroup(struct step *s)
{
	char path[PATH_MAX];

	for (int i = 0; i < s->parts; i++) {
		snprintf(path, sizeof(path), "%s/cgroup.procs", s->part[i]);
		write_file(path, "0");
	}
}

static void do_mkdir(struct step *s)
{
	if (mkdir(arg(s, 0), 0755) < 0 && errno != EEXIST)
		die("mkdir %s: %m", arg(s, 0));
}

static void do_tmpfs(struct step *s)
{
	if (mount("tmpfs", arg(s, 0), "tmpfs", 0, NULL) < 0)
		die("tmpfs on %s: %m", arg(s, 0));
}

static void do_bind(struct step *s)
{
	if (mount(arg(s, 0), arg(s, 1), NULL, MS_BIND, NULL) < 0)
		die("bind %s %s: %m", arg(s, 0), arg(s, 1));
}

static void do_copyself(struct step *s)
{
	char buf[65536];
	ssize_t n;
	int in = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	int out = open(arg(s, 0), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);

	while ((n = read(in, buf, sizeof(buf))) > 0)
		if (write(out, buf, n) != n)
			n = -1;
	if (n < 0 || in < 0 || out < 0)
		die("copying myself to %s: %m", arg(s, 0));
	close(in);
	close(out);
}

static void do_unlink(struct step *s)
{
	if (unlink(arg(s, 0)) < 0)
		die("unlink %s: %m", arg(s, 0));
}

static void do_nproc(struct step *s)
{
	rlim_t n = number(s, arg(s, 0));
	struct rlimit r = { n, n };

	if (setrlimit(RLIMIT_NPROC, &r) < 0)
		die("RLIMIT_NPROC: %m");
}

static void do_subreaper(struct step *s)
{
	(void)s;
	prctl(PR_SET_CHILD_SUBREAPER, 1);
}

// setsid: a session of its own. One that leads a process group has that already.
static void do_setsid(struct step *s)
{
	(void)s;
	setsid();
}

// become executes a program file that is this program again, which goes on with
// the rest of the script. It takes the script from the environment, so that argv
// is the test's own.
static void become(struct step *s)
{
	char state[256], *script, *envp[3] = { state };
	char *argv[MAX_PARTS + 1] = { s->part[0] };
	size_t n = 0, size = 1;

	snprintf(state, sizeof(state), "ZOO_STATE=%d %d %d %d %d %s", self.report, self.ready,
		 self.ctl, self.said, self.serving, self.name ? self.name : "-");
	for (char **t = s->rest; *t; t++)
		size += strlen(*t) + 1;
	script = malloc(size + 16);
	if (!script)
		die("out of memory");
	n = sprintf(script, "ZOO=");
	for (char **t = s->rest; *t; t++)
		n += sprintf(script + n, "%s ", *t);
	envp[1] = script;
	if (s->parts > 1)
		memcpy(argv, s->part + 1, s->parts * sizeof(*argv)); // with the NULL
	// A test binary that forks at this moment may hold a fresh copy of the
	// file open for writing.
	for (int i = 0; i < 200; i++) {
		execve(arg(s, 0), argv, envp);
		if (errno != ETXTBSY)
			break;
		nap(10 * MSEC);
	}
	die("exec %s: %m", arg(s, 0));
}

static void *become_thread(void *arg)
{
	become(arg);
	return NULL;
}

// exec=PATH,ARGV0,ARGV1…; threadexec the same from a thread that is not the
// leader: pid and start time stay, the old leader dies.
static void do_threadexec(struct step *s)
{
	pthread_t t;

	if (pthread_create(&t, NULL, become_thread, s) != 0)
		die("pthread_create failed");
	for (;;)
		pause();
}

static void *idle_thread(void *arg)
{
	(void)arg;
	for (;;)
		pause();
	return NULL;
}

static void do_threads(struct step *s)
{
	pthread_t t;

	for (long n = number(s, arg(s, 0)); n > 0; n--)
		if (pthread_create(&t, NULL, idle_thread, NULL) != 0)
			die("pthread_create failed");
}

static void *go_on(void *rest)
{
	int leader_gone = 0;
	char path[64], buf[4096];

	// The leader shows as Z from the moment that it is gone.
	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", getpid());
	while (!leader_gone) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n = fd < 0 ? -1 : read(fd, buf, sizeof(buf) - 1);

		if (fd < 0 || n <= 0)
			break; // no /proc here
		close(fd);
		buf[n] = 0;
		leader_gone = strrchr(buf, ')')[2] == 'Z';
		nap(MSEC / 10);
	}
	run(rest);
	if (self.serving)
		serve();
	exit(0);
}

// deadleader: the thread group leader ends; a second thread goes on with the
// script.
static void do_deadleader(struct step *s)
{
	pthread_t t;

	if (pthread_create(&t, NULL, go_on, keep(s->rest)) != 0)
		die("pthread_create failed");
	syscall(SYS_exit, 0);
}

static pthread_attr_t brief;
static int64_t brief_life;

static void *brief_thread(void *arg)
{
	pthread_t t;

	nap(brief_life);
	while (pthread_create(&t, &brief, brief_thread, NULL) != 0)
		nap(MSEC);
	return arg;
}

// flicker=N[,us=U]: the thread group leader ends, and N threads live that each end
// after U microseconds, in favour of the next one. Says that it is ready before; it
// hears nothing any more.
static void do_flicker(struct step *s)
{
	pthread_t t;

	brief_life = opt_number(s, "us", 1000) * 1000;
	pthread_attr_init(&brief);
	pthread_attr_setdetachstate(&brief, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&brief, 65536);
	say_ready();
	for (long n = number(s, arg(s, 0)); n > 0; n--) {
		if (pthread_create(&t, &brief, brief_thread, NULL) != 0)
			die("pthread_create failed");
		nap(brief_life / 4); // not all at the same moment
	}
	syscall(SYS_exit, 0);
}

// ---- Tracers, and states other than sleeping --------------------------------------

static void seize(pid_t pid)
{
	if (ptrace(PTRACE_SEIZE, pid, 0, 0) < 0)
		die("tracing %d: %m", pid);
}

static pid_t tracee(const struct step *s)
{
	return is(s, "parent") ? getppid() : number(s, arg(s, 0));
}

static int pass_tick(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, __WALL | WNOHANG)) > 0)
		if (WIFSTOPPED(status))
			ptrace(PTRACE_CONT, pid, 0, status >> 16 ? 0 : WSTOPSIG(status));
	return 2;
}

// trace=PID|parent[,stop][,pass]: becomes the tracer of a process, pid as this
// process sees it. `pass` lets it go on whenever a signal stops it.
static void do_trace(struct step *s)
{
	pid_t pid = tracee(s);

	seize(pid);
	if (opt(s, "pass"))
		background(pass_tick, s);
	if (opt(s, "stop") && (ptrace(PTRACE_INTERRUPT, pid, 0, 0) < 0 || waitpid(pid, NULL, __WALL) < 0))
		die("stopping %d: %m", pid);
}

static void let_go(pid_t pid)
{
	int status = 0;

	ptrace(PTRACE_INTERRUPT, pid, 0, 0);
	if (waitpid(pid, &status, __WALL) < 0 && errno != ECHILD)
		die("waiting for %d: %m", pid);
	if (WIFSTOPPED(status) && ptrace(PTRACE_DETACH, pid, 0, 0) < 0)
		die("letting go of %d: %m", pid);
}

// untrace=PID: lets go of it. Of one that died, its parent hears now.
static void do_untrace(struct step *s)
{
	let_go(tracee(s));
}

static int flip_tick(void)
{
	int64_t left = bg.start + bg.done * bg.every * MSEC - now_ns();

	if (left > 0)
		return left / MSEC + 1;
	if (bg.done % 2)
		let_go(bg.pid);
	else
		seize(bg.pid);
	bg.done++;
	return bg.every;
}

// flip=PID,every=MS: traces a process, lets go of it, traces it again.
static void do_flip(struct step *s)
{
	background(flip_tick, s);
	bg.pid = tracee(s);
	bg.every = opt_number(s, "every", 1000);
}

// hold=N { … }: N zombies that a tracer holds. The block is the tracer's script.
static void do_hold(struct step *s)
{
	long n = number(s, arg(s, 0));
	pid_t kid[1024];
	int gate[2], ready[2];
	char c;

	if (n > 1024 || pipe(gate) < 0 || pipe(ready) < 0)
		die("hold: %m");
	for (long i = 0; i < n; i++) {
		kid[i] = fork();
		if (kid[i] < 0)
			die("fork: %m");
		if (kid[i] == 0) {
			close(gate[1]);
			(void)!read(gate[0], &c, 1);
			_exit(0);
		}
		made++;
	}
	pid_t tracer = fork();
	if (tracer == 0) {
		close(gate[0]);
		close(gate[1]);
		for (long i = 0; i < n; i++)
			seize(kid[i]);
		child(ready, s->block);
	}
	made++;
	await_ready(ready);
	close(gate[0]);
	close(gate[1]);
	for (long i = 0; i < n; i++)
		wait_dead(kid[i]);
	say("%d", tracer);
}

static void do_stop(struct step *s)
{
	(void)s;
	kill(getpid(), SIGSTOP);
}

// vfork[=MS]: sits in state D until the child ends, after MS milliseconds or
// when it is killed.
static void do_vfork(struct step *s)
{
	int64_t ns = s->parts ? number(s, arg(s, 0)) * MSEC : INT64_MAX;
	struct timespec ts = { ns / 1000000000L, ns % 1000000000L };

	if (vfork() == 0) {
		nanosleep(&ts, NULL);
		_exit(0);
	}
	made++;
}

// ---- What the kernel keeps for a process -------------------------------------------

static int fuse_fd;

static void fuse_answer(uint64_t unique, int error, void *data, size_t size)
{
	struct fuse_out_header head = { sizeof(head) + size, error, unique };
	struct iovec iov[] = { { &head, sizeof(head) }, { data, size } };

	// ENOENT: who asked has been interrupted.
	if (writev(fuse_fd, iov, 2) < 0 && errno != ENOENT)
		die("fuse: answering: %m");
}

static struct fuse_attr fuse_attr(uint64_t node)
{
	struct fuse_attr a = { .ino = node, .nlink = 1, .blksize = 4096 };

	a.mode = node == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0666;
	a.size = node == FUSE_ROOT_ID ? 0 : 1 << 20;
	return a;
}

static void *fuse_thread(void *arg)
{
	static char buf[1 << 20] __attribute__((aligned(8)));

	(void)arg;
	for (;;) {
		ssize_t n = read(fuse_fd, buf, sizeof(buf));
		if (n < 0 && (errno == EINTR || errno == ENOENT))
			continue;
		if (n < 0)
			return NULL; // unmounted

		struct fuse_in_header *in = (void *)buf;
		struct fuse_init_in *asked = (void *)(in + 1);
		struct fuse_init_out init = { .major = 7, .minor = 31, .max_background = 1000,
					      .congestion_threshold = 900, .max_write = 131072, .time_gran = 1 };
		struct fuse_entry_out entry = { .nodeid = 2, .entry_valid = 1000, .attr_valid = 1000,
						.attr = fuse_attr(2) };
		struct fuse_attr_out attr = { .attr_valid = 1000, .attr = fuse_attr(in->nodeid) };
		struct fuse_open_out open = { 0 };

		switch (in->opcode) {
		case FUSE_INIT:
			init.max_readahead = asked->max_readahead;
			init.flags = asked->flags & (FUSE_ASYNC_DIO | FUSE_ASYNC_READ | FUSE_BIG_WRITES);
			fuse_answer(in->unique, 0, &init, sizeof(init));
			break;
		case FUSE_LOOKUP:
			if (strcmp((char *)(in + 1), "f") == 0)
				fuse_answer(in->unique, 0, &entry, sizeof(entry));
			else
				fuse_answer(in->unique, -ENOENT, NULL, 0);
			break;
		case FUSE_GETATTR:
			fuse_answer(in->unique, 0, &attr, sizeof(attr));
			break;
		case FUSE_OPEN:
		case FUSE_OPENDIR:
			fuse_answer(in->unique, 0, &open, sizeof(open));
			break;
		case FUSE_FLUSH:
		case FUSE_RELEASE:
		case FUSE_RELEASEDIR:
		case FUSE_ACCESS:
			fuse_answer(in->unique, 0, NULL, 0);
			break;
		case FUSE_READ: // for ever
		case FUSE_WRITE:
		case FUSE_FORGET:
		case FUSE_BATCH_FORGET:
		case FUSE_INTERRUPT:
			break;
		default:
			fuse_answer(in->unique, -ENOSYS, NULL, 0);
		}
	}
}

// fuse=DIR: mounts a file system there whose one file, f, is never read to the end:
// every read hangs until this process ends. Do it in a mount namespace that goes
// with the zoo.
static void do_fuse(struct step *s)
{
	char options[128];
	pthread_t t;

	fuse_fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fuse_fd < 0)
		die("/dev/fuse: %m");
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fuse_fd);
	if (mount("zoo", arg(s, 0), "fuse", MS_NOSUID | MS_NODEV, options) < 0)
		die("mounting fuse: %m");
	if (pthread_create(&t, NULL, fuse_thread, NULL) != 0)
		die("pthread_create failed");
}

// aio=FILE: an asynchronous read of it is under way. Whoever is the last to use this
// process's memory waits for the end of that, and nothing can wake him.
static void do_aio(struct step *s)
{
	static char buf[8192] __attribute__((aligned(4096)));
	aio_context_t context = 0;
	int fd = open(arg(s, 0), O_RDWR | O_DIRECT | O_CLOEXEC);
	struct iocb read = { .aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = fd,
			     .aio_buf = (uintptr_t)buf, .aio_nbytes = 4096 }, *list = &read;

	if (fd < 0)
		die("%s: %m", arg(s, 0));
	if (syscall(SYS_io_setup, 1, &context) < 0 || syscall(SYS_io_submit, context, 1, &list) != 1)
		die("aio: %m");
}

// watches[=N]: uses up the epoll watches that its user may have
// (fs.epoll.max_user_watches), or N of them, and says how many that were.
static void do_watches(struct step *s)
{
	struct rlimit r;
	struct epoll_event e = { .events = EPOLLIN };
	static int target[16384];
	static int targets;
	int set;
	long total = 0, most = s->parts ? number(s, arg(s, 0)) : LONG_MAX;

	getrlimit(RLIMIT_NOFILE, &r);
	r.rlim_cur = r.rlim_max < 20000 ? r.rlim_max : 20000;
	setrlimit(RLIMIT_NOFILE, &r);
	while (targets < 16384 && targets < (long)r.rlim_cur * 3 / 4 &&
	       (target[targets] = eventfd(0, EFD_CLOEXEC)) >= 0)
		targets++;
	while ((set = epoll_create1(EPOLL_CLOEXEC)) >= 0) {
		for (int i = 0; i < targets; i++, total++) {
			bool full = total == most;

			if (!full && epoll_ctl(set, EPOLL_CTL_ADD, target[i], &e) < 0) {
				if (errno != ENOSPC)
					die("epoll_ctl after %ld: %m", total);
				full = true;
			}
			if (full) {
				say("%ld", total);
				return;
			}
		}
	}
	die("epoll_create after %ld watches: %m", total);
}

// ---- The rest ---------------------------------------------------------------------

static void *no_thread(void *arg) { return arg; }

// bench=vfork|exec|thread,N: nanoseconds for one child made and reaped, or thread made
// and joined.
static void do_bench(struct step *s)
{
	long n = number(s, arg(s, 1));
	bool exec = is(s, "exec"), thread = is(s, "thread");
	int64_t start = now_ns();
	pthread_t t;

	if (!exec && !thread && !is(s, "vfork"))
		die("bench: unknown \"%s\"", s->part[0]);
	for (long i = 0; i < n && thread; i++)
		if (pthread_create(&t, NULL, no_thread, NULL) != 0 || pthread_join(t, NULL) != 0)
			die("bench: thread %ld", i);
	for (long i = 0; i < n && !thread; i++) {
		pid_t pid = exec ? fork() : vfork();

		if (pid == 0 && exec)
			execle("/proc/self/exe", "zoo", NULL, (char *[]){ "ZOO_STATE=exit", NULL });
		if (pid == 0)
			_exit(exec ? 99 : 0);
		int status = -1;
		if (waitpid(pid, &status, 0) != pid || status != 0)
			die("bench: child %d ended with %x: %m", pid, status);
	}
	say("%ld", (long)((now_ns() - start) / n));
}

static void do_count(struct step *s)
{
	(void)s;
	say("made=%ld failed=%ld reaped=%ld chld=%ld term=%ld", made, failed, reaped, chlds, terms);
}

static void do_sleep(struct step *s)
{
	nap(number(s, arg(s, 0)) * MSEC);
}

static void do_exit(struct step *s)
{
	_exit(s->parts ? number(s, arg(s, 0)) : 0);
}

static void do_ready(struct step *s)
{
	(void)s;
	say_ready();
}

static void do_serve(struct step *s)
{
	(void)s;
	// Sent over the socket it changes nothing, but after an exec it does.
	if (!self.serving)
		serve();
}

// Steps that end or hold up the process are answered before they begin.
static const struct {
	const char *verb;
	void (*run)(struct step *);
	enum { PLAIN, BLOCK, MUTE } kind;
} steps[] = {
	{ "fork", do_fork, BLOCK },           // [=OPTIONS][,times=N] { … } see create()
	{ "churn", do_churn, BLOCK },         // =PID[,for=MS] { … }
	{ "hold", do_hold, BLOCK },           // =N { … }
	{ "leak", do_leak, PLAIN },           // =N[,rate=R][,sig=S][,sibling][,forged][,plain][,full][,async][,thread]
	{ "reap", do_reap, PLAIN },           // =N|all|now|pid=P[,status=N]
	{ "await", do_await, MUTE },          // [=PID]
	{ "storm", do_storm, PLAIN },         // =N[,rate=R][,for=MS][,reap=PERCENT][,sig=S][,sibling]
	{ "fresh", do_fresh, PLAIN },         // =K[,age=MS]
	{ "burst", do_burst, PLAIN },         // =N[,every=MS][,hold=MS][,sig=S]
	{ "flash", do_flash, PLAIN },         // =R[,kids=K]
	{ "respawn", do_respawn, BLOCK },     // { … }
	{ "quiet", do_quiet, PLAIN },         // ends what goes on in the background
	{ "chld", do_chld, PLAIN },           // =default|ignore|nocldwait|block|count|reap[,n=N][,sent][,ms=MS][,refill=N]
	{ "term", do_term, PLAIN },           // =default|ignore|block|count|exit[,ms=MS]
	{ "name", do_name, PLAIN },           // =NAME
	{ "comm", do_comm, PLAIN },           // =BYTES
	{ "nocmdline", do_nocmdline, PLAIN },
	{ "uid", do_uid, PLAIN },             // =N
	{ "groups", do_groups, PLAIN },       // =N
	{ "chroot", do_chroot, PLAIN },       // =DIR
	{ "mnt", do_mnt, PLAIN },             // =NAMESPACE
	{ "cgroup", do_cgroup, PLAIN },       // =DIR[,DIR…]
	{ "mkdir", do_mkdir, PLAIN },         // =DIR
	{ "tmpfs", do_tmpfs, PLAIN },         // =DIR
	{ "bind", do_bind, PLAIN },           // =FROM,TO
	{ "copyself", do_copyself, PLAIN },   // =PATH
	{ "unlink", do_unlink, PLAIN },       // =PATH
	{ "nproc", do_nproc, PLAIN },         // =N
	{ "subreaper", do_subreaper, PLAIN },
	{ "setsid", do_setsid, PLAIN },
	{ "exec", become, MUTE },             // =PATH[,ARGV0,ARGV1…]
	{ "threadexec", do_threadexec, MUTE },
	{ "threads", do_threads, PLAIN },     // =N
	{ "deadleader", do_deadleader, MUTE },
	{ "flicker", do_flicker, MUTE },      // =N[,us=U]
	{ "trace", do_trace, PLAIN },         // =PID|parent[,stop][,pass]
	{ "untrace", do_untrace, PLAIN },     // =PID|parent
	{ "flip", do_flip, PLAIN },           // =PID|parent[,every=MS]
	{ "stop", do_stop, MUTE },
	{ "vfork", do_vfork, MUTE },          // [=MS]
	{ "fuse", do_fuse, PLAIN },           // =DIR
	{ "aio", do_aio, PLAIN },             // =FILE
	{ "watches", do_watches, PLAIN },     // [=N]
	{ "bench", do_bench, PLAIN },         // =vfork|exec|thread,N
	{ "count", do_count, PLAIN },
	{ "sleep", do_sleep, PLAIN },         // =MS
	{ "exit", do_exit, MUTE },            // [=STATUS]
	{ "ready", do_ready, PLAIN },
	{ "serve", do_serve, PLAIN },
};

// end_of_block finds the brace that closes the one before script.
static char **end_of_block(char **script)
{
	for (int depth = 1; *script; script++) {
		if (strcmp(*script, "{") == 0)
			depth++;
		else if (strcmp(*script, "}") == 0 && --depth == 0)
			return script;
	}
	die("a } is missing");
}

// parse cuts a step out of the script. What it points into stays the script's.
static void parse(char **script, struct step *s)
{
	char *value = strchr(*script, '=');

	memset(s, 0, sizeof(*s));
	s->verb = *script;
	s->rest = script + 1;
	if (value) {
		*value++ = 0;
		for (char *p; (p = strsep(&value, ","));) {
			if (s->parts == MAX_PARTS - 1)
				die("%s: too many arguments", s->verb);
			decode(p);
			s->part[s->parts++] = p;
		}
	}
	if (*s->rest && strcmp(*s->rest, "{") == 0) {
		char **end = end_of_block(s->rest + 1);

		*end = NULL;
		s->block = s->rest + 1;
		s->rest = end + 1;
	}
}

static void run(char **script)
{
	while (*script) {
		struct step s;
		size_t i = 0;

		parse(script, &s);
		while (i < sizeof(steps) / sizeof(*steps) && strcmp(steps[i].verb, s.verb) != 0)
			i++;
		if (i == sizeof(steps) / sizeof(*steps))
			die("unknown step \"%s\"", s.verb);
		if ((steps[i].kind == BLOCK) != (s.block != NULL))
			die("%s: a block is %s", s.verb, s.block ? "not wanted" : "missing");
		if (steps[i].kind == MUTE && self.awaited)
			answer("ok", "");
		steps[i].run(&s);
		script = s.rest;
	}
}

static int tokens(char *text, char **token)
{
	int n = 0;

	for (char *t; (t = strsep(&text, " \t\n"));) {
		if (*t && n < MAX_TOKENS - 1)
			token[n++] = t;
	}
	token[n] = NULL;
	return n;
}

// receive reads one order: a message, or a line of standard input.
static ssize_t receive(char *text, size_t size)
{
	size_t n = 0;

	if (self.ctl != STDIN_FILENO)
		return read(self.ctl, text, size);
	while (n < size && read(self.ctl, text + n, 1) == 1)
		if (text[n++] == '\n')
			break;
	return n;
}

// serve says that the process is ready, works in the background and takes
// further steps. It never returns.
static void serve(void)
{
	static char text[65536];
	static char *token[MAX_TOKENS];

	say_ready();
	self.serving = true;
	for (;;) {
		struct pollfd p = { .fd = self.ctl, .events = POLLIN };
		int wait = -1;

		if (bg.tick) {
			wait = bg.end && now_ns() > bg.end ? -1 : bg.tick();
			if (wait < 0)
				quit_background();
		}
		if (poll(&p, 1, wait) <= 0)
			continue;
		ssize_t n = receive(text, sizeof(text) - 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) { // nobody talks to it any more
			if (self.ctl != STDIN_FILENO)
				close(self.ctl);
			self.ctl = -1;
			continue;
		}
		text[n] = 0;
		result[0] = 0;
		self.awaited = true;
		tokens(text, token);
		run(token);
		if (self.awaited)
			answer("ok", result);
	}
}

// ---- The keeper -------------------------------------------------------------------

// kill_children sends SIGKILL to each child that the keeper has at this moment.
static void kill_children(void)
{
	char path[64];
	int pid;

	snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
	FILE *f = fopen(path, "re");
	while (f && fscanf(f, "%d", &pid) == 1)
		kill(pid, SIGKILL);
	if (f)
		fclose(f);
}

// keeper runs the script in a child, and ends only when no process of the zoo is
// left.
static int keeper(char **script)
{
	struct step in = { 0 };
	sigset_t set;
	bool ending = false;
	int status = 0;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	int sigs = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (sigs < 0 || prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
		die("keeper: %m");

	in.verb = "in";
	if (*script && strncmp(*script, "in=", 3) == 0) {
		parse(script, &in);
		script++;
	}
	pid_t main_pid = create(&in);
	if (main_pid == 0) {
		newborn(-1);
		self.name = "main";
		setsid();
		run(script);
		_exit(0);
	}
	for (;;) {
		struct pollfd p[] = { { .fd = sigs, .events = POLLIN },
				      { .fd = self.report, .events = POLLIN } };
		struct signalfd_siginfo si;
		int st;
		pid_t pid;

		poll(p, 2, ending ? 20 : -1);
		if (p[1].revents) // its harness hung up, or died
			ending = true;
		while (read(sigs, &si, sizeof(si)) > 0)
			if (si.ssi_signo != SIGCHLD)
				ending = true;
		while ((pid = waitpid(-1, &st, WNOHANG | __WALL)) > 0) {
			if (pid != main_pid)
				continue;
			status = st;
			if (self.report >= 0) {
				char text[32];
				send(self.report, text, snprintf(text, sizeof(text), "exit %d", st),
				     MSG_NOSIGNAL);
			} else {
				ending = true;
			}
		}
		if (ending && pid < 0 && errno == ECHILD)
			break;
		if (ending) {
			self.report = -1; // not to be polled again
			kill_children();
		}
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv)
{
	char *state = getenv("ZOO_STATE"), *script = getenv("ZOO"), *report = getenv("ZOO_REPORT");
	static char *token[MAX_TOKENS];

	if (state && strcmp(state, "exit") == 0) // see bench
		_exit(0);
	if (state) { // see become
		char name[128];
		int said, serving;

		if (sscanf(state, "%d %d %d %d %d %127s", &self.report, &self.ready, &self.ctl, &said,
			   &serving, name) != 6)
			die("bad ZOO_STATE");
		self.said = said;
		self.name = strcmp(name, "-") == 0 ? NULL : strdup(name);
		tokens(strdup(script ? script : ""), token);
		run(token);
		if (serving)
			serve();
		return 0;
	}
	if (argc < 2) {
		fprintf(stderr, "usage: zoo STEP...   (steps: see zoo.c)\n");
		return 2;
	}
	if (report)
		self.report = atoi(report);
	// Copies, because steps are taken apart in place and cmdline is to stay.
	for (int i = 1; i < argc && i < MAX_TOKENS; i++)
		token[i - 1] = strdup(argv[i]);
	if (strcmp(token[0], "alone") == 0) {
		run(token + 1);
		return 0;
	}
	int code = keeper(token);
	return report ? 0 : code;
}
