// Makes and awaits children from an epoll loop, with a signalfd for SIGCHLD and waits
// for its own pids only, and spins in another thread, until a file is there.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

static void *spin(void *x) { for (volatile unsigned long n = 0;; n++) if (n % 4096 == 0) usleep(100); return x; }

int main(int argc, char **argv)
{
	enum { N = 4 };
	pid_t kids[N] = {0};
	unsigned own = 0, wrong = 0;
	sigset_t s;
	pthread_t t;
	if (argc < 2)
		return 2;
	sigemptyset(&s);
	sigaddset(&s, SIGCHLD);
	sigprocmask(SIG_BLOCK, &s, NULL);
	pthread_create(&t, NULL, spin, NULL);
	int sfd = signalfd(-1, &s, SFD_NONBLOCK), ep = epoll_create1(0);
	struct epoll_event e = {.events = EPOLLIN};
	epoll_ctl(ep, EPOLL_CTL_ADD, sfd, &e);
	for (;;) {
		int stop = access(argv[1], F_OK) == 0, left = 0;
		for (int i = 0; i < N; i++) {
			if (!kids[i] && !stop && (kids[i] = fork()) == 0) {
				usleep(1000 * i);
				_exit(40 + i);
			}
			left += kids[i] != 0;
		}
		if (stop && !left)
			break;
		int r = epoll_wait(ep, &e, 1, 100);
		if (r < 0)
			wrong++;
		struct signalfd_siginfo si;
		while (read(sfd, &si, sizeof si) > 0)
			;
		for (int i = 0; i < N; i++) {
			int st = 0;
			pid_t k = kids[i] ? waitpid(kids[i], &st, WNOHANG) : 0;
			if (k == 0)
				continue;
			own++;
			if (k != kids[i] || !WIFEXITED(st) || WEXITSTATUS(st) != 40 + i)
				wrong++;
			kids[i] = 0;
		}
	}
	printf("own %u wrong %u\n", own, wrong);
	return 0;
}
