/* A thread in its handler makes timers while another one stops the stub, at every moment there is between two of
 * the first one's system calls.
 *
 *     stop_driver
 *
 * Prints "MOMENTS moments, LEFT timers left"; LEFT counts timers that are still there when both have finished.
 */
#include <stdio.h>
#include <string.h>

#include "sys.h"

static i64 interrupted(u64 n, u64 a, u64 b, u64 c, u64 d);

#undef sys0
#undef sys1
#undef sys3
#undef sys4
#define sys0(n) interrupted(n, 0, 0, 0, 0)
#define sys1(n, a) interrupted(n, (u64)(a), 0, 0, 0)
#define sys3(n, a, b, c) interrupted(n, (u64)(a), (u64)(b), (u64)(c), 0)
#define sys4(n, a, b, c, d) interrupted(n, (u64)(a), (u64)(b), (u64)(c), (u64)(d))

#include "process.c"
#include "timers.c"

struct pa_private pa;

enum { THREADS = 3 };

static struct {
	struct pa_control control;
	struct pa_slot slots[THREADS];
} region;

static int stop_at, moment, stopping;

/* As pa_stop does it. */
static void stop(void)
{
	stopping = 1;
	__atomic_store_n(&region.control.state, PA_STATE_STOP, __ATOMIC_SEQ_CST);
	timers_delete_all(&region.control);
	stopping = 0;
}

static void moment_passes(void)
{
	if (!stopping && moment++ == stop_at)
		stop();
}

static i64 interrupted(u64 n, u64 a, u64 b, u64 c, u64 d)
{
	moment_passes();
	i64 result = sys6((i64)n, a, b, c, d, 0, 0);
	moment_passes();
	return result;
}

static int timers_there(void)
{
	char line[256];
	int count = 0;
	FILE *file = fopen("/proc/self/timers", "r");
	if (!file) {
		perror("/proc/self/timers");
		return -1;
	}
	while (fgets(line, sizeof line, file))
		count += !strncmp(line, "ID:", 3);
	fclose(file);
	return count;
}

/* Whether the stop came while timers were made. */
static int once(int at)
{
	struct pa_control *c = &region.control;
	memset(&region, 0, sizeof region);
	c->slots_offset = (u64)((u8 *)region.slots - (u8 *)c);
	c->slot_count = c->slots_used = THREADS;
	c->signal = 17; /* SIGCHLD: nobody minds it */
	c->period_ns = c->tick_ns = 4000000;
	c->stray = 1;
	c->state = PA_STATE_RUN;
	c->post_seq = 1;
	for (int i = 0; i < THREADS; i++)
		region.slots[i] = (struct pa_slot){.tid = (u32)sys6(SYS_gettid, 0, 0, 0, 0, 0, 0), .state = PA_SLOT_WANTED};
	moment = 0;
	stop_at = at;
	timers_serve(c, THREADS);
	return moment > at;
}

int main(void)
{
	int at = 0, left = 0;
	for (; once(at); at++)
		left += timers_there();
	if (timers_there() != THREADS + 1) {
		fprintf(stderr, "timers were not made, though nobody stopped them\n");
		return 1;
	}
	stop();
	printf("%d moments, %d timers left\n", at, left + timers_there());
	return 0;
}
