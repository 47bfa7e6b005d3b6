// hostile: processes that make it hard to look at them, for the tests of procscan.
//
//	hostile crowd PARENTS ZOMBIES GROUPS   parents whose zombies are in so many groups
//	hostile aio FILE GROUPS                has a read of FILE under way; itself in so many groups
//	hostile churn THREADS US ZOMBIES       its leader is dead, each other thread lives so long
//	hostile foreign UID ZOMBIES            zombies that a child of another user put on it
//	hostile wait HOW                       waits for one child: pid, pidfd, any, both; tracee: for
//	                                       one that is none of its as well; many: after 5000
//	                                       (one thread for the child, another for any)
//
// It says "ready" on standard output when all that is so, and lives until standard
// input ends.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/aio_abi.h>
#include <linux/sched.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void join(int n)
{
	gid_t *list = calloc(n + 1, sizeof(*list));

	for (int i = 0; i < n; i++)
		list[i] = 500000 + i;
	if (setgroups(n, list) < 0)
		die("setgroups");
	free(list);
}

static pid_t must_fork(void)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (pid == 0)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return pid;
}

// dead waits until a child is dead, and leaves it.
static void dead(pid_t pid)
{
	siginfo_t info;

	while (waitid(P_PID, pid, &info, WEXITED | WNOWAIT | __WALL) < 0 && errno == EINTR)
		;
}

static void ready(void)
{
	if (write(STDOUT_FILENO, "ready\n", 6) < 0)
		die("ready");
}

static void *until_the_end(void *unused)
{
	char c;

	(void)unused;
	while (read(STDIN_FILENO, &c, 1) > 0)
		;
	_exit(0); // children get SIGKILL
}

static void leak(int n)
{
	for (int i = 0; i < n; i++) {
		pid_t pid = must_fork();

		if (pid == 0)
			_exit(0);
		dead(pid);
	}
}

static void crowd(int parents, int zombies, int groups)
{
	int pipes[2];
	char c;

	if (pipe(pipes) < 0)
		die("pipe");
	for (int i = 0; i < parents; i++) {
		if (must_fork() != 0)
			continue;
		join(groups);
		leak(zombies);
		join(0);
		if (write(pipes[1], "x", 1) < 0)
			die("write");
		for (;;)
			pause();
	}
	for (int i = 0; i < parents; i++)
		if (read(pipes[0], &c, 1) != 1)
			die("read");
	ready();
	until_the_end(NULL);
}

static void aio(const char *file, int groups)
{
	static char buf[8192] __attribute__((aligned(4096)));
	aio_context_t context = 0;
	struct iocb request = { .aio_lio_opcode = IOCB_CMD_PREAD, .aio_nbytes = 4096, .aio_buf = (uintptr_t)buf };
	struct iocb *list[] = { &request };
	int fd = open(file, O_RDONLY | O_DIRECT);

	if (fd < 0)
		die(file);
	request.aio_fildes = fd;
	join(groups);
	if (syscall(SYS_io_setup, 1, &context) < 0 || syscall(SYS_io_submit, context, 1, list) != 1)
		die("aio");
	ready();
	until_the_end(NULL);
}

static long lifetime; // in microseconds

static void *generation(void *unused)
{
	struct timespec t = { lifetime / 1000000, lifetime % 1000000 * 1000 };
	pthread_attr_t attr;
	pthread_t next;

	(void)unused;
	prctl(PR_SET_TIMERSLACK, 1);
	nanosleep(&t, NULL);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	while (pthread_create(&next, &attr, generation, NULL) != 0)
		;
	return NULL;
}

static void churn(int threads, long us, int zombies)
{
	pthread_t t;

	lifetime = us;
	leak(zombies);
	for (int i = 0; i < threads; i++)
		if (pthread_create(&t, NULL, generation, NULL) != 0)
			die("pthread_create");
	ready();
	pthread_exit(NULL);
}

static void foreign(int uid, int zombies)
{
	int done[2];

	if (pipe(done) < 0)
		die("pipe");
	pid_t pid = must_fork();

	if (pid == 0) {
		if (setgroups(0, NULL) < 0 || setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0)
			die("setuid");
		prctl(PR_SET_PDEATHSIG, SIGKILL); // which the change of user undid
		for (int i = 0; i < zombies; i++) {
			struct clone_args args = { .flags = CLONE_PARENT };
			pid_t sibling = syscall(SYS_clone3, &args, sizeof(args));

			if (sibling == 0)
				_exit(0);
			if (sibling < 0)
				die("clone3");
		}
		if (write(done[1], "x", 1) < 0)
			die("write");
		for (;;)
			pause();
	}
	char c;
	if (read(done[0], &c, 1) != 1)
		die("read");
	ready();
	until_the_end(NULL);
}

static pid_t child_of_mine;

static void *wait_for_it(void *any)
{
	while (waitpid(any ? -1 : child_of_mine, NULL, 0) != 0)
		;
	return NULL;
}

static pid_t grandchild;

static void *wait_for_tracee(void *unused)
{
	waitpid(grandchild, NULL, __WALL);
	return unused;
}

static void wait_how(const char *how)
{
	pthread_t t;
	int heir[2];

	if (strcmp(how, "many") == 0)
		leak(5000);
	if (pipe(heir) != 0)
		die("pipe");
	child_of_mine = must_fork();
	if (child_of_mine == 0) {
		pid_t pid = must_fork();

		if (pid != 0 && write(heir[1], &pid, sizeof(pid)) != sizeof(pid))
			die("write");
		for (;;)
			pause();
	}
	if (read(heir[0], &grandchild, sizeof(grandchild)) != sizeof(grandchild))
		die("read");
	leak(3);
	if (pthread_create(&t, NULL, until_the_end, NULL) != 0)
		die("pthread_create");
	ready();
	if (strcmp(how, "pidfd") == 0) {
		int fd = syscall(SYS_pidfd_open, child_of_mine, 0);

		waitid(P_PIDFD, fd, NULL, WEXITED);
	}
	if (strcmp(how, "tracee") == 0 && (ptrace(PTRACE_SEIZE, grandchild, NULL, NULL) != 0 ||
					   pthread_create(&t, NULL, wait_for_tracee, NULL) != 0))
		die("seize");
	if (strcmp(how, "both") == 0) {
		if (must_fork() == 0) // else there is none to wait for after the three
			for (;;)
				pause();
		if (pthread_create(&t, NULL, wait_for_it, "any") != 0)
			die("pthread_create");
	}
	wait_for_it(strcmp(how, "any") == 0 ? "any" : NULL);
}

int main(int argc, char **argv)
{
	if (argc > 2 && strcmp(argv[1], "wait") == 0)
		wait_how(argv[2]);
	else if (argc > 4 && strcmp(argv[1], "crowd") == 0)
		crowd(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]));
	else if (argc > 3 && strcmp(argv[1], "aio") == 0)
		aio(argv[2], atoi(argv[3]));
	else if (argc > 4 && strcmp(argv[1], "churn") == 0)
		churn(atoi(argv[2]), atol(argv[3]), atoi(argv[4]));
	else if (argc > 3 && strcmp(argv[1], "foreign") == 0)
		foreign(atoi(argv[2]), atoi(argv[3]));
	return 2;
}
