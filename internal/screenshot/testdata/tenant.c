// A tenant of the stage: makes children that nobody reaps. What it does comes by
// the environment, so that its command line can be anybody's.
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long setting(const char *name)
{
	const char *s = getenv(name);
	return s ? atol(s) : 0;
}

int main(void)
{
	long leak = setting("LEAK"), rate = setting("RATE"), most = setting("MOST");
	const char *kid = getenv("KID"), *groups = getenv("CGROUPS");

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (char *g = groups ? strtok(strdup(groups), " ") : NULL; g; g = strtok(NULL, " ")) {
		FILE *f = fopen(g, "w");
		if (!f || fprintf(f, "0") < 0 || fclose(f)) {
			perror(g);
			return 1;
		}
	}
	if (setting("BLOCK")) {
		sigset_t s;
		sigemptyset(&s);
		sigaddset(&s, SIGCHLD);
		sigprocmask(SIG_BLOCK, &s, NULL);
	}
	if (setting("PIDNS")) {
		if (unshare(CLONE_NEWPID)) {
			perror("unshare");
			return 1;
		}
		pid_t init = fork();
		if (init > 0) {
			while (waitpid(init, NULL, 0) < 0)
				;
			return 0;
		}
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	}
	if (setting("USER") && setuid(setting("USER")))
		return 1;
	for (long n = 0;; n++) {
		if (n < leak || (rate && n < most)) {
			pid_t child = fork();
			if (child == 0) {
				if (kid)
					prctl(PR_SET_NAME, kid);
				// An orphan outlives its father, whom the tenant waits for.
				if (setting("ADOPT") && fork() == 0)
					usleep(50000);
				_exit(0);
			}
			if (setting("ADOPT"))
				waitpid(child, NULL, 0);
		} else if (!rate || n >= most) {
			pause();
			continue;
		}
		if (n >= leak)
			nanosleep(&(struct timespec){ 0, 1000000000 / rate }, NULL);
	}
}
