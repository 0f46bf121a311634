/* What setitimer(ITIMER_PROF) sees, to be preloaded: counts SIGPROF by the name of the thread it meets.
 *
 * ITIMER_US is the period; at the program's end a line "COUNT NAME" for each name is written to ITIMER_OUT.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/time.h>

enum { NAMES = 256, LENGTH = 16 };

static struct {
	_Atomic int taken;
	char name[LENGTH];
	_Atomic long count;
} seen[NAMES];

static void on_tick(int number)
{
	char name[LENGTH] = "";
	(void)number;
	prctl(PR_GET_NAME, name);
	for (int i = 0; i < NAMES; i++) {
		int taken = atomic_load(&seen[i].taken);
		/* 1: being named by another thread; it then is counted as if it had another name. */
		if (!taken && atomic_compare_exchange_strong(&seen[i].taken, &taken, 1)) {
			memcpy(seen[i].name, name, LENGTH);
			atomic_store(&seen[i].taken, 2);
			taken = 2;
		}
		if (taken == 2 && !memcmp(seen[i].name, name, LENGTH)) {
			atomic_fetch_add(&seen[i].count, 1);
			return;
		}
	}
}

__attribute__((constructor)) static void begin(void)
{
	const char *period = getenv("ITIMER_US");
	struct sigaction action = {.sa_handler = on_tick, .sa_flags = SA_RESTART};
	struct itimerval timer = {{0, period ? atol(period) : 10000}, {0, period ? atol(period) : 10000}};
	sigaction(SIGPROF, &action, NULL);
	setitimer(ITIMER_PROF, &timer, NULL);
}

__attribute__((destructor)) static void end(void)
{
	struct itimerval none = {{0, 0}, {0, 0}};
	const char *path = getenv("ITIMER_OUT");
	FILE *out = path ? fopen(path, "w") : NULL;
	setitimer(ITIMER_PROF, &none, NULL);
	if (!out)
		return;
	for (int i = 0; i < NAMES && atomic_load(&seen[i].taken) == 2; i++)
		fprintf(out, "%ld %.16s\n", atomic_load(&seen[i].count), seen[i].name);
	fclose(out);
}
