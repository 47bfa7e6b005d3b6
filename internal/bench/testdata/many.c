// many LIVE DEAD: so many children that sleep and so many that are zombies, until its
// standard input ends. It says "ready" when all are there.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	long live = argc > 1 ? atol(argv[1]) : 0, dead = argc > 2 ? atol(argv[2]) : 0;
	char c;

	for (long i = 0; i < live + dead; i++) {
		pid_t pid = fork();

		if (pid < 0) {
			perror("fork");
			return 1;
		}
		if (pid == 0 && i >= live)
			_exit(0);
		if (pid == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (;;)
				pause();
		}
	}
	puts("ready");
	fflush(stdout);
	return read(0, &c, 1) < 0;
}
