// Processes for the tests of reaping inside.
//
//   victim launch [-n] ORPHANS PERIOD PROGRAM [ARGUMENT]...
//       executes PROGRAM with ORPHANS zombies below it that it knows nothing of, and
//       every PERIOD microseconds (0: never) one more. -n: as pid 1 of a pid
//       namespace; else it is a subreaper. Prints "PID n" on descriptor 2 first.
//   victim call NAME
//       prints READY, makes one blocking call, and prints what it returned.
//   victim signals HOW N
//       prints READY, and gets N queued real-time signals while it is blocked HOW:
//       each must come once, in order, with its value, and no call may end otherwise.
//       Prints "right N" in the end.
//   victim exec N
//       another thread than the main one executes the program N times; "right N".
//   victim state FILE
//       spins with a pattern in its vector and general registers, and sleeps with
//       one, until FILE is there; "right N".
//   victim be NAME
//       prints READY and is for ever what must not be touched.
//
// The zombies are called "orphan".
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <pty.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <linux/aio_abi.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>

#ifndef MS
#define MS 800 // after which each call returns; an emulated machine needs more
#endif

static _Noreturn void die(const char *what) { perror(what); _exit(99); }
static int must(int r, const char *what) { if (r < 0) die(what); return r; }
static int64_t now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000 + t.tv_nsec / 1000000; }

// orphan leaves a zombie to whoever adopts: the child is there until its father is
// dead, or the father would be it that it is left to.
static void orphan(void)
{
	pid_t father = must(fork(), "fork");
	if (father == 0) {
		pid_t me = getpid();
		if (must(fork(), "fork") == 0) {
			prctl(PR_SET_NAME, "orphan");
			while (getppid() == me)
				usleep(100);
			_exit(0);
		}
		_exit(0);
	}
	waitpid(father, NULL, 0);
}

static void launch(char **argv)
{
	int ns = !strcmp(argv[0], "-n");
	argv += ns;
	int orphans = atoi(argv[0]), period = atoi(argv[1]);
	if (ns) {
		must(unshare(CLONE_NEWPID | CLONE_NEWNS), "unshare");
		pid_t init = must(fork(), "fork");
		if (init > 0) {
			dprintf(2, "PID %d\n", init);
			int st;
			while (waitpid(init, &st, 0) < 0)
				;
			if (WIFSIGNALED(st)) { signal(WTERMSIG(st), SIG_DFL); raise(WTERMSIG(st)); }
			_exit(WEXITSTATUS(st));
		}
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL);
		must(mount("proc", "/proc", "proc", 0, NULL), "mounting proc");
	} else {
		dprintf(2, "PID %d\n", getpid());
		must(prctl(PR_SET_CHILD_SUBREAPER, 1), "prctl");
	}
	for (int i = 0; i < orphans; i++)
		orphan();
	if (period > 0 && must(fork(), "fork") == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		prctl(PR_SET_NAME, "spawner");
		for (int i = 0; i < 3; i++)
			close(i);
		for (;;) { usleep(period); orphan(); }
	}
	execvp(argv[2], argv + 2);
	die(argv[2]);
}

static pid_t me;
static char big[4 << 20];
static struct timespec span = {MS / 1000, MS % 1000 * 1000000L};
static struct timeval spanv = {MS / 1000, MS % 1000 * 1000L};
static int p[2], sp[2];
static char path[64];
static sigset_t usr1, none;

// later has a child do something when the call has blocked for MS.
#define later(...) do { if (must(fork(), "fork") == 0) { prctl(PR_SET_PDEATHSIG, SIGKILL); usleep(MS * 1000); __VA_ARGS__; _exit(7); } } while (0)

static int64_t began;
static void ready(void) { printf("READY\n"); fflush(stdout); began = now(); errno = 0; }
static void nothing(int s) { (void)s; }
static struct timespec deadline(clockid_t c)
{
	struct timespec t;
	clock_gettime(c, &t);
	t.tv_sec += MS / 1000;
	t.tv_nsec += MS % 1000 * 1000000L;
	if (t.tv_nsec >= 1000000000) { t.tv_sec++; t.tv_nsec -= 1000000000; }
	return t;
}
static void put(int fd) { if (write(fd, "x", 1) != 1) die("write"); }
static void drain(int fd)
{
	fcntl(fd, F_SETFL, O_NONBLOCK);
	for (int i = 0; i < 200; i++)
		if (read(fd, big, 65536) <= 0)
			usleep(10000);
}
static int epoll_of(int fd)
{
	int ep = epoll_create1(0);
	struct epoll_event e = {.events = EPOLLIN};
	must(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e), "epoll_ctl");
	return ep;
}
static struct epoll_event event;
static int unix_listener(int backlog, struct sockaddr_un *a)
{
	int l = must(socket(AF_UNIX, SOCK_STREAM, 0), "socket");
	*a = (struct sockaddr_un){.sun_family = AF_UNIX};
	sprintf(a->sun_path + 1, "victim%d", me);
	must(bind(l, (void *)a, sizeof *a), "bind");
	must(listen(l, backlog), "listen");
	return l;
}
static uint32_t *word;

static long c_nanosleep(void) { ready(); return syscall(SYS_nanosleep, &span, NULL); }
static long c_clock_nanosleep_abs(void) { struct timespec t = deadline(CLOCK_MONOTONIC); ready(); return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL); }
static long c_poll_timeout(void) { struct pollfd f = {p[0], POLLIN, 0}; ready(); return poll(&f, 1, MS); }
static long c_poll(void) { struct pollfd f = {p[0], POLLIN, 0}; later(put(p[1])); ready(); return poll(&f, 1, -1); }
static long c_ppoll_timeout(void) { struct pollfd f = {p[0], POLLIN, 0}; ready(); return ppoll(&f, 1, &span, &usr1); }
static long c_select_timeout(void) { fd_set s; FD_ZERO(&s); FD_SET(p[0], &s); ready(); return select(p[0] + 1, &s, NULL, NULL, &spanv); }
static long c_pselect_timeout(void) { fd_set s; FD_ZERO(&s); FD_SET(p[0], &s); ready(); return pselect(p[0] + 1, &s, NULL, NULL, &span, &usr1); }
static long c_epoll_wait_timeout(void) { int e = epoll_of(p[0]); ready(); return epoll_wait(e, &event, 1, MS); }
static long c_epoll_wait(void) { int e = epoll_of(p[0]); later(put(p[1])); ready(); return epoll_wait(e, &event, 1, -1); }
static long c_epoll_pwait_signal(void)
{
	int e = epoll_of(p[0]);
	signal(SIGUSR1, nothing);
	sigprocmask(SIG_BLOCK, &usr1, NULL);
	later(kill(me, SIGUSR1));
	ready();
	return epoll_pwait(e, &event, 1, -1, &none);
}
static long c_epoll_pwait2_timeout(void) { int e = epoll_of(p[0]); ready(); return syscall(441, e, &event, 1, &span, NULL, 0); }
static long c_read_pipe(void) { later(put(p[1])); ready(); return read(p[0], big, 1); }
static long c_read_tty(void)
{
	int m, s;
	must(openpty(&m, &s, NULL, NULL, NULL), "openpty");
	later(if (write(m, "y\n", 2) != 2) die("write"));
	ready();
	return read(s, big, 10);
}
static long c_read_inotify(void)
{
	int i = inotify_init();
	must(mkdir(path, 0700), "mkdir");
	inotify_add_watch(i, path, IN_ATTRIB);
	later(chmod(path, 0750));
	ready();
	long r = read(i, big, 4096) > 0;
	int e = errno;
	rmdir(path);
	errno = e;
	return r;
}
static long c_read_eventfd(void) { int e = eventfd(0, 0); later(eventfd_write(e, 1)); ready(); return read(e, big, 8); }
static long c_read_signalfd(void)
{
	sigprocmask(SIG_BLOCK, &usr1, NULL);
	int s = signalfd(-1, &usr1, 0);
	later(kill(me, SIGUSR1));
	ready();
	return read(s, big, 4096) > 0;
}
static long c_read_timerfd(void)
{
	int t = timerfd_create(CLOCK_MONOTONIC, 0);
	struct itimerspec it = {.it_value = span};
	timerfd_settime(t, 0, &it, NULL);
	ready();
	return read(t, big, 8);
}
static long c_recv(void) { later(put(sp[1])); ready(); return recv(sp[0], big, 1, 0); }
static long c_recvmsg(void)
{
	struct iovec v = {big, 1};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
	later(put(sp[1]));
	ready();
	return recvmsg(sp[0], &m, 0);
}
static long c_recv_timeout(void) { setsockopt(sp[0], SOL_SOCKET, SO_RCVTIMEO, &spanv, sizeof spanv); ready(); return recv(sp[0], big, 1, 0); }
static long c_recv_all(void)
{
	later(if (write(sp[1], "0123456789", 10) != 10) die("write"));
	if (write(sp[1], "0123456789", 10) != 10)
		die("write");
	ready();
	return recv(sp[0], big, 20, MSG_WAITALL);
}
static long c_accept(void)
{
	struct sockaddr_un a;
	int l = unix_listener(1, &a);
	later(connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&a, sizeof a); sleep(1));
	ready();
	return accept(l, NULL, NULL) > 0;
}
static long c_accept4(void)
{
	struct sockaddr_un a;
	int l = unix_listener(1, &a);
	later(connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&a, sizeof a); sleep(1));
	ready();
	return accept4(l, NULL, NULL, SOCK_CLOEXEC) > 0;
}
static long c_accept_timeout(void)
{
	struct sockaddr_un a;
	int l = unix_listener(1, &a);
	setsockopt(l, SOL_SOCKET, SO_RCVTIMEO, &spanv, sizeof spanv);
	ready();
	return accept(l, NULL, NULL);
}
static long c_connect_unix(void)
{
	struct sockaddr_un a;
	int l = unix_listener(0, &a);
	must(connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&a, sizeof a), "connect");
	later(close(accept(l, NULL, NULL)); sleep(1));
	int s = socket(AF_UNIX, SOCK_STREAM, 0);
	ready();
	return connect(s, (void *)&a, sizeof a);
}
static long c_connect_tcp(void)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t n = sizeof a;
	int l = socket(AF_INET, SOCK_STREAM, 0);
	must(bind(l, (void *)&a, n), "bind");
	must(listen(l, 0), "listen");
	getsockname(l, (void *)&a, &n);
	must(connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&a, n), "connect");
	struct pollfd queued = {.fd = l, .events = POLLIN};
	must(poll(&queued, 1, -1), "poll"); // the queue is full only then
	later(close(accept(l, NULL, NULL)); sleep(1));
	int s = socket(AF_INET, SOCK_STREAM, 0);
	ready();
	return connect(s, (void *)&a, n);
}
static long c_futex(void) { later(*word = 1; syscall(SYS_futex, word, FUTEX_WAKE, 9, NULL, NULL, 0)); ready(); return syscall(SYS_futex, word, FUTEX_WAIT, 0, NULL, NULL, 0); }
static long c_futex_timeout(void) { ready(); return syscall(SYS_futex, word, FUTEX_WAIT, 0, &span, NULL, 0); }
static long c_futex_abs(void) { struct timespec t = deadline(CLOCK_MONOTONIC); ready(); return syscall(SYS_futex, word, FUTEX_WAIT_BITSET, 0, &t, NULL, -1); }
static long c_futex_lock_pi(void)
{
	// The owner dies with it; what is returned then, the caller must handle.
	pid_t k = must(fork(), "fork");
	if (k == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (syscall(SYS_futex, word, FUTEX_LOCK_PI, 0, NULL, NULL, 0))
			die("lock");
		usleep(MS * 1000 + 100000);
		if (syscall(SYS_futex, word, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0))
			die("unlock");
		_exit(0);
	}
	usleep(100000);
	ready();
	return syscall(SYS_futex, word, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
}
static long c_futex_waitv(void)
{
	struct { uint64_t val, addr; uint32_t flags, reserved; } w = {0, (uintptr_t)word, 2, 0};
	later(*word = 1; syscall(SYS_futex, word, FUTEX_WAKE, 9, NULL, NULL, 0));
	ready();
	return syscall(449, &w, 1, 0, NULL, 0);
}
static long c_pause(void) { signal(SIGUSR1, nothing); later(kill(me, SIGUSR1)); ready(); return pause(); }
static long c_sigsuspend(void) { signal(SIGUSR1, nothing); sigprocmask(SIG_BLOCK, &usr1, NULL); later(kill(me, SIGUSR1)); ready(); return sigsuspend(&none); }
static long c_sigtimedwait(void) { siginfo_t i; sigprocmask(SIG_BLOCK, &usr1, NULL); ready(); return sigtimedwait(&usr1, &i, &span); }
static long c_sigwaitinfo(void) { siginfo_t i; sigprocmask(SIG_BLOCK, &usr1, NULL); later(kill(me, SIGUSR1)); ready(); return syscall(SYS_rt_sigtimedwait, &usr1, &i, NULL, 8); }
static int sem = -1, queue = -1;
static long c_semop(void)
{
	struct sembuf down = {0, -1, 0};
	sem = must(semget(IPC_PRIVATE, 1, 0600), "semget");
	later(struct sembuf up = {0, 1, 0}; semop(sem, &up, 1));
	ready();
	return semop(sem, &down, 1);
}
static long c_semop_call(void)
{
	struct sembuf down = {0, -1, 0};
	sem = must(semget(IPC_PRIVATE, 1, 0600), "semget");
	later(struct sembuf up = {0, 1, 0}; semop(sem, &up, 1));
	ready();
	return syscall(SYS_semop, sem, &down, 1);
}
static long c_semtimedop(void)
{
	struct sembuf down = {0, -1, 0};
	sem = must(semget(IPC_PRIVATE, 1, 0600), "semget");
	ready();
	return semtimedop(sem, &down, 1, &span);
}
struct note { long type; char text[8]; };
static long c_msgrcv(void)
{
	struct note n;
	queue = must(msgget(IPC_PRIVATE, 0600), "msgget");
	later(struct note m = {1, "x"}; msgsnd(queue, &m, 8, 0));
	ready();
	return msgrcv(queue, &n, 8, 0, 0);
}
static long c_mq_receive(void)
{
	struct mq_attr a = {.mq_maxmsg = 1, .mq_msgsize = 8};
	sprintf(path, "/victim%d", me);
	mqd_t q = must(mq_open(path, O_CREAT | O_RDWR, 0600, &a), "mq_open");
	mq_unlink(path);
	later(mq_send(q, "x", 1, 0));
	ready();
	return mq_receive(q, big, 8, NULL);
}
static long c_mq_timedreceive(void)
{
	struct mq_attr a = {.mq_maxmsg = 1, .mq_msgsize = 8};
	sprintf(path, "/victim%d", me);
	mqd_t q = must(mq_open(path, O_CREAT | O_RDWR, 0600, &a), "mq_open");
	mq_unlink(path);
	struct timespec t = deadline(CLOCK_REALTIME);
	ready();
	return mq_timedreceive(q, big, 8, NULL, &t);
}
static long c_flock(void)
{
	int a = must(open(path, O_CREAT | O_RDWR, 0600), path), b = must(open(path, O_RDWR), path);
	unlink(path);
	must(flock(a, LOCK_EX), "flock");
	later();
	close(a);
	ready();
	return flock(b, LOCK_EX);
}
static long c_fcntl_lock(void)
{
	struct flock l = {.l_type = F_WRLCK};
	int f = must(open(path, O_CREAT | O_RDWR, 0600), path);
	unlink(path);
	if (must(fork(), "fork") == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fcntl(f, F_SETLKW, &l);
		put(p[1]);
		usleep(MS * 1000);
		_exit(0);
	}
	if (read(p[0], big, 1) != 1)
		die("read");
	ready();
	return fcntl(f, F_SETLKW, &l);
}
static long c_wait4(void) { pid_t k = must(fork(), "fork"); if (k == 0) { usleep(MS * 1000); _exit(7); } int st; ready(); return wait4(k, &st, 0, NULL) == k ? WEXITSTATUS(st) : -1; }
static long c_waitid(void) { pid_t k = must(fork(), "fork"); if (k == 0) { usleep(MS * 1000); _exit(7); } siginfo_t i = {0}; ready(); return waitid(P_PID, k, &i, WEXITED) == 0 ? i.si_status : -1; }
static long c_io_getevents(void) { aio_context_t x = 0; must(syscall(SYS_io_setup, 4, &x), "io_setup"); struct io_event e; ready(); return syscall(SYS_io_getevents, x, 1, 1, &e, &span); }
static long uring(int together)
{
	struct io_uring_params q = {0};
	int u = must(syscall(SYS_io_uring_setup, 4, &q), "io_uring_setup");
	unsigned char *sq = mmap(NULL, q.sq_off.array + q.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, u, IORING_OFF_SQ_RING);
	struct io_uring_sqe *e = mmap(NULL, q.sq_entries * sizeof *e, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, u, IORING_OFF_SQES);
	static struct __kernel_timespec k = {MS / 1000, MS % 1000 * 1000000L};
	*e = (struct io_uring_sqe){.opcode = IORING_OP_TIMEOUT, .addr = (uintptr_t)&k, .len = 1};
	*(unsigned *)(sq + q.sq_off.array) = 0;
	*(unsigned *)(sq + q.sq_off.tail) = 1;
	if (together) {
		ready();
		return syscall(SYS_io_uring_enter, u, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0);
	}
	must(syscall(SYS_io_uring_enter, u, 1, 0, 0, NULL, 0), "io_uring_enter");
	ready();
	return syscall(SYS_io_uring_enter, u, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
}
static long c_io_uring_enter(void) { return uring(0); }
static long c_io_uring_submit(void) { return uring(1); }
static long c_write_pipe(void) { later(drain(p[0])); ready(); return write(p[1], big, 1 << 20); }
static long c_send(void) { later(drain(sp[1])); ready(); return send(sp[0], big, 4 << 20, 0); }
static long c_sendfile(void)
{
	int f = memfd_create("x", 0);
	if (write(f, big, 1 << 20) != 1 << 20)
		die("write");
	lseek(f, 0, SEEK_SET);
	later(drain(sp[1]));
	ready();
	return sendfile(sp[0], f, NULL, 1 << 20);
}
static long c_open_fifo(void)
{
	must(mkfifo(path, 0600), path);
	later(open(path, O_WRONLY); sleep(1));
	ready();
	long r = open(path, O_RDONLY) > 0;
	int e = errno;
	unlink(path);
	errno = e;
	return r;
}
static long c_vfork(void)
{
	ready();
	pid_t k = vfork();
	if (k == 0) {
		syscall(SYS_nanosleep, &span, NULL);
		_exit(0);
	}
	return k > 0;
}
static long c_busy(void)
{
	// Floating point, twice the same, on the way that is interrupted and without.
	ready();
	double x = 0, y = 0;
	unsigned long n = 0;
	while (now() - began < MS)
		for (int i = 0; i < 100000; i++)
			x += 1.0 / (1 + n++);
	for (unsigned long i = 0; i < n; i++)
		y += 1.0 / (1 + i);
	errno = 0;
	return x == y;
}

#define C(n) {#n, c_##n}
static const struct { const char *name; long (*f)(void); } calls[] = {
	C(nanosleep), C(clock_nanosleep_abs), C(poll_timeout), C(poll), C(ppoll_timeout), C(select_timeout), C(pselect_timeout),
	C(epoll_wait_timeout), C(epoll_wait), C(epoll_pwait_signal), C(epoll_pwait2_timeout), C(read_pipe), C(read_tty),
	C(read_inotify), C(read_eventfd), C(read_signalfd), C(read_timerfd), C(recv), C(recvmsg), C(recv_timeout), C(recv_all),
	C(accept), C(accept4), C(accept_timeout), C(connect_unix), C(connect_tcp), C(futex), C(futex_timeout), C(futex_abs),
	C(futex_lock_pi), C(futex_waitv), C(pause), C(sigsuspend), C(sigtimedwait), C(sigwaitinfo), C(semop), C(semop_call), C(semtimedop),
	C(msgrcv), C(mq_receive), C(mq_timedreceive), C(flock), C(fcntl_lock), C(wait4), C(waitid), C(io_getevents),
	C(io_uring_enter), C(io_uring_submit), C(write_pipe), C(send), C(sendfile), C(open_fifo), C(vfork), C(busy),
};

static int make_call(const char *name)
{
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
		if (strcmp(calls[i].name, name))
			continue;
		long r = calls[i].f();
		int e = errno;
		long ms = now() - began;
		if (sem >= 0)
			semctl(sem, 0, IPC_RMID);
		if (queue >= 0)
			msgctl(queue, IPC_RMID, NULL);
		printf("%ld %s %ld\n", r, r < 0 ? strerrorname_np(e) : "-", ms);
		return 0;
	}
	return 2;
}

// A filter that allows all but wait4, for which it does action; args looks at its
// third argument instead, which then is what it is here.
static void filter(uint32_t action, int args)
{
	struct sock_filter plain[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_wait4, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	}, deep[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_wait4, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, WNOHANG | __WALL, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog f = {args ? 6 : 4, args ? deep : plain};
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
	must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &f), "seccomp");
}
static _Noreturn void sleep_for_ever(void) { for (;;) sleep(1); }
static void b_strict(void) { prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT); char b; syscall(SYS_read, p[0], &b, 1); }
static void b_filter_kill(void) { filter(SECCOMP_RET_KILL_PROCESS, 0); sleep_for_ever(); }
static void b_filter_errno(void) { filter(SECCOMP_RET_ERRNO | EPERM, 0); sleep_for_ever(); }
static void b_filter_trap(void) { filter(SECCOMP_RET_TRAP, 0); sleep_for_ever(); }
static void b_filter_args(void) { filter(SECCOMP_RET_KILL_PROCESS, 1); sleep_for_ever(); }
static void b_filter_allow(void) { filter(SECCOMP_RET_ALLOW, 0); sleep_for_ever(); }
static void b_filter_notify(void) { filter(SECCOMP_RET_USER_NOTIF, 0); sleep_for_ever(); }
static void b_filter_second(void) { filter(SECCOMP_RET_ALLOW, 0); filter(SECCOMP_RET_KILL_PROCESS, 0); sleep_for_ever(); }
static void b_filter_late(void) { char b; if (read(0, &b, 1) != 1) _exit(1); filter(SECCOMP_RET_KILL_PROCESS, 0); sleep_for_ever(); }
static volatile char selector;
static void b_dispatch(void) { must(prctl(59, 1, 0, 0, &selector), "prctl"); for (;;) ; }
static void b_vfork(void) { if (!vfork()) { prctl(PR_SET_PDEATHSIG, SIGKILL); for (;;) sleep(9); } }
static _Noreturn void *stay(void *x) { (void)x; for (;;) sleep(9); }
static void b_leaderless(void) { pthread_t t; pthread_create(&t, NULL, stay, NULL); pthread_exit(NULL); }
static void b_int80(void) { for (;;) { long r = 162, z[2] = {1, 0}; static int ts[2] = {3600, 0}; (void)z; __asm__ volatile("int $0x80" : "+a"(r) : "b"((long)ts), "c"(0L) : "memory"); } }
static void b_sleep(void) { sleep_for_ever(); }
static void b_spin(void) { for (;;) ; }
// Its main thread is on a stack of its own making.
static char other[1 << 20];
static void b_other_stack(void)
{
	__asm__ volatile("mov %0, %%rsp\n call sleep_there" :: "r"(other + sizeof other - 64) : "memory");
}
void sleep_there(void);
__attribute__((used)) void sleep_there(void) { sleep_for_ever(); }
#define B(n) {#n, b_##n}
static const struct { const char *name; void (*f)(void); } beings[] = {
	B(strict), B(filter_kill), B(filter_errno), B(filter_trap), B(filter_args), B(filter_allow), B(filter_notify), B(filter_second), B(filter_late), B(dispatch),
	B(vfork), B(leaderless), B(int80), B(sleep), B(spin), B(other_stack),
};

static volatile int next_value;
static int wanted;
static void take(int s, siginfo_t *i, void *u)
{
	(void)s, (void)u;
	if (i->si_value.sival_int != next_value || i->si_pid == 0) {
		printf("wrong: value %d of %d, not %d\n", i->si_value.sival_int, i->si_pid, next_value);
		fflush(stdout);
		_exit(1);
	}
	next_value++;
}
static void finished(int s) { (void)s; printf("%s %d\n", next_value == wanted ? "right" : "wrong", next_value); fflush(stdout); _exit(0); }
static int signals(const char *how, int n)
{
	struct sigaction a = {.sa_sigaction = take, .sa_flags = SA_SIGINFO};
	sigset_t rt;
	wanted = n;
	sigemptyset(&rt);
	sigaddset(&rt, SIGRTMIN);
	sigaction(SIGRTMIN, &a, NULL);
	signal(SIGTERM, finished);
	if (*how == 's' || *how == 'e')
		sigprocmask(SIG_BLOCK, &rt, NULL);
	ready();
	if (must(fork(), "fork") == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		usleep(200000);
		for (int i = 0; i < n; i++) {
			union sigval v = {.sival_int = i};
			while (sigqueue(me, SIGRTMIN, v))
				usleep(1000);
			usleep(500 + rand() % 1500);
		}
		usleep(500000);
		kill(me, SIGTERM);
		_exit(0);
	}
	int ep = epoll_create1(0);
	for (;;) {
		int r = -1, before = next_value;
		struct timespec long_time = {100, 0};
		errno = 0;
		switch (*how) {
		case 'p': r = poll(NULL, 0, 100000); break;
		case 's': r = sigsuspend(&none); break;
		case 'e': r = epoll_pwait(ep, &event, 1, -1, &none); break;
		case 'w': r = epoll_wait(ep, &event, 1, -1); break;
		case 'n': r = nanosleep(&long_time, NULL); break;
		default: // busy
			for (volatile int i = 0; i < 20000; i++)
				;
			continue;
		}
		// It may have come between the reading of the count and the call.
		if (r != -1 || errno != EINTR || (next_value == before && (*how == 's' || *how == 'e'))) {
			printf("wrong: returned %d %s, signals %d and %d\n", r, strerrorname_np(errno), before, next_value);
			return 1;
		}
	}
}

static void *exec_again(void *n)
{
	char left[16];
	usleep(rand() % 3000);
	sprintf(left, "%d", *(int *)n - 1);
	execl("/proc/self/exe", "victim", "exec", left, NULL);
	die("exec");
}
static int exec_by_thread(int n)
{
	srand(getpid() + n);
	if (n == 0) {
		printf("right\n");
		return 0;
	}
	pthread_t t;
	pthread_create(&t, NULL, exec_again, &n);
	for (;;)
		sleep(9);
}

// turn loads a pattern into registers, lets time pass, and looks whether it is there.
static int turn(uint64_t seed, int asleep)
{
	uint64_t in[4] = {seed, ~seed, seed * 3, seed ^ 0x5555}, out[16][4], r8, r9, r12, r13, flags;
	uint64_t nr = asleep ? SYS_nanosleep : 0;
	static struct timespec ms = {0, 3000000};
	__asm__ volatile(
		"vmovdqu (%[in]), %%ymm0\n vmovdqu (%[in]), %%ymm7\n vmovdqu (%[in]), %%ymm15\n"
		"mov (%[in]), %%r8\n mov 8(%[in]), %%r9\n mov 16(%[in]), %%r12\n mov 24(%[in]), %%r13\n"
		"stc\n"
		"mov %[nr], %%rax\n test %%rax, %%rax\n jz 1f\n"
		"mov %[ms], %%rdi\n xor %%esi, %%esi\n syscall\n stc\n jmp 3f\n"
		"1: mov $200000, %%ecx\n stc\n"
		"2: dec %%ecx\n jnz 2b\n"
		"3: pushfq\n pop %[flags]\n"
		"vmovdqu %%ymm0, (%[out])\n vmovdqu %%ymm7, 32(%[out])\n vmovdqu %%ymm15, 64(%[out])\n"
		"mov %%r8, %[r8]\n mov %%r9, %[r9]\n mov %%r12, %[r12]\n mov %%r13, %[r13]\n"
		: [r8] "=m"(r8), [r9] "=m"(r9), [r12] "=m"(r12), [r13] "=m"(r13), [flags] "=&m"(flags)
		: [in] "b"(in), [out] "d"(out), [nr] "m"(nr), [ms] "r"(&ms)
		: "rax", "rcx", "rdi", "rsi", "r8", "r9", "r11", "r12", "r13", "memory", "cc", "xmm0", "xmm7", "xmm15");
	for (int i = 0; i < 3; i++)
		if (memcmp(out[i], in, sizeof in))
			return 0;
	return r8 == in[0] && r9 == in[1] && r12 == in[2] && r13 == in[3] && (flags & 1);
}
static int state(const char *file)
{
	uint64_t n = 0, seed = 88172645463325252ULL;
	ready();
	for (;; n++) {
		seed ^= seed << 13; seed ^= seed >> 7; seed ^= seed << 17;
		if (!turn(seed, n % 2)) {
			printf("wrong %lu\n", n);
			return 1;
		}
		if (n % 16 == 0 && access(file, F_OK) == 0)
			break;
	}
	printf("right %lu\n", n);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	if (!strcmp(argv[1], "launch"))
		launch(argv + 2);
	me = getpid();
	sprintf(path, "/tmp/victim-%d", me);
	must(pipe(p), "pipe");
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, sp), "socketpair");
	sigemptyset(&none);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!strcmp(argv[1], "call"))
		return make_call(argv[2]);
	if (!strcmp(argv[1], "signals") && argc > 3)
		return signals(argv[2], atoi(argv[3]));
	if (!strcmp(argv[1], "exec"))
		return exec_by_thread(atoi(argv[2]));
	if (!strcmp(argv[1], "state"))
		return state(argv[2]);
	for (size_t i = 0; i < sizeof beings / sizeof *beings; i++)
		if (!strcmp(beings[i].name, argv[2])) {
			ready();
			beings[i].f();
			return 0;
		}
	return 2;
}
