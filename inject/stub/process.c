/* The clock of the whole process, by the spare signal where there is one: no thread that runs blocks that, so none
 * that sleeps is woken for it.  Its ticks go to the thread that runs (to the main thread, before Linux 6.4) and
 * meet threads that have none of their own, because they end before anybody finds them or were not found yet. */
#include "stub.h"

static i32 process_timer(struct pa_control *c, u32 kind)
{
	struct sigevent event = {
		.value = ((u64)c->tick_tag << 32) | kind,
		.signo = (i32)(c->spare_signal ? c->spare_signal : c->signal),
		.notify = SIGEV_SIGNAL,
	};
	i32 timer = -1;
	i64 err = sys3(SYS_timer_create, CLOCK_PROCESS_CPUTIME_ID, &event, &timer);
	if (err)
		c->last_error = (i32)err;
	return timer;
}

/*
 * Stray ticks.  The process's CPU time is cut into spans, one after the other:
 *
 *     | span               | span               |     | what has to be sampled
 *          ^ tick                  ^ tick        ^        at a moment by chance in each
 *
 * The sample stands for its whole span.  A span is one period while such threads are met, and longer while none is:
 * then it only looks.
 */

/* CPU time of the process without having met one, after which spans become long: a part of that time, and no more
 * than so much.  Each tick costs the thread that it hits, and nearly all find nothing. */
#define EAGER_NS 1000000000UL
#define CALM_PART 32
#define CALM_SPAN_NS 250000000UL
#define JUMP_LIMIT_NS 1000000000UL

/* With several processors the kernel's ticks come together, and the first of them always finds the timer due if it
 * is set for less than the CPU time between: the threads on its processor would get all samples.  Twice that time
 * leaves as much again for chance. */
static u32 span_periods(const struct pa_control *c, u64 cpu_ns)
{
	u64 periods = rate_factor(c), at_least = (2UL * c->stray_jump_ns + c->period_ns - 1) / c->period_ns;
	u64 calm_ns = cpu_ns > c->stray_met_ns ? cpu_ns - c->stray_met_ns : 0, calm;
	calm = (calm_ns / CALM_PART < CALM_SPAN_NS ? calm_ns / CALM_PART : CALM_SPAN_NS) / c->period_ns + 1;
	if (calm_ns > EAGER_NS && periods < calm)
		periods = calm;
	return (u32)(periods < at_least ? at_least : periods);
}

/* The kernel lets it tick with its own tick only, so that moment is the latest that may be asked for. */
static i64 set_tick(struct pa_control *c, i32 timer, u64 soonest_ns, u64 random)
{
	u64 span_ns = c->stray_periods * c->period_ns, room = 1 + (span_ns > c->stray_jump_ns ? span_ns - c->stray_jump_ns : 0);
	u64 x = (random ^ c->nonce) * 0x9e3779b97f4a7c15UL;
	u64 next_ns = c->stray_cpu_ns + (x >> 20) % room;
	return set_timer(timer, TIMER_ABSTIME, next_ns > soonest_ns ? next_ns : soonest_ns, 0);
}

void stray_begin(struct pa_control *c)
{
	i32 timer;
	if (!__atomic_load_n(&c->stray, __ATOMIC_RELAXED) || c->stray_timer_plus_1 || c->stray_woke)
		return;
	timer = process_timer(c, PA_STRAY);
	if (timer < 0)
		return;
	c->stray_last_clock_ns = clock_ns();
	c->stray_cpu_ns = c->stray_met_ns = c->stray_last_ns = read_clock_ns(CLOCK_PROCESS_CPUTIME_ID);
	c->stray_jump_ns = (u32)c->tick_ns;
	c->stray_periods = span_periods(c, c->stray_cpu_ns);
	c->stray_timer_plus_1 = timer + 1;
	/* A borrowed thread blocks all signals, so the clock must not tick before it has gone home. */
	if (may_tick(c))
		set_tick(c, timer, c->stray_cpu_ns + 2UL * c->tick_ns, c->stray_last_clock_ns);
	else
		stray_end(c);
}

void stray_end(struct pa_control *c)
{
	i32 timer = __atomic_exchange_n(&c->stray_timer_plus_1, 0, __ATOMIC_RELAXED);
	if (timer)
		sys1(SYS_timer_delete, timer - 1);
}

int stray_goes_on(struct pa_control *c, i32 timer)
{
	u32 state = __atomic_load_n(&c->state, __ATOMIC_RELAXED);
	if (state == PA_STATE_STOP)
		return 0;
	if (state == PA_STATE_RUN && __atomic_load_n(&c->stray, __ATOMIC_RELAXED)) {
		if (clock_ns() <= __atomic_load_n(&c->lease_until_ns, __ATOMIC_RELAXED))
			return c->stray_timer_plus_1 == timer + 1;
		__atomic_fetch_add(&c->expired, 1, __ATOMIC_RELAXED);
		timers_drop(c, PA_SLOT_EXPIRED);
		return 0;
	}
	if (c->stray_timer_plus_1 == timer + 1)
		stray_end(c);
	return 0;
}

u32 stray_span(struct pa_control *c, u64 cpu_ns)
{
	u64 end_ns = c->stray_cpu_ns + c->stray_periods * c->period_ns, periods = c->stray_periods;
	if (cpu_ns < c->stray_cpu_ns)
		return 0;
	if (cpu_ns >= end_ns)
		periods += (cpu_ns - end_ns) / c->period_ns + 1;
	c->stray_cpu_ns += periods * c->period_ns;
	return periods < MOST_PERIODS ? (u32)periods : MOST_PERIODS;
}

static int has_ticks(const struct pa_control *c, u32 tid)
{
	u32 used = slots_used(c);
	for (u32 index = 0; index < used; index++) {
		const struct pa_slot *slot = slot_at((struct pa_control *)c, index);
		u32 state = __atomic_load_n(&slot->state, __ATOMIC_RELAXED);
		if (slot->tid == tid && (state == PA_SLOT_ARMED || state == PA_SLOT_EVENT))
			return 1;
	}
	return 0;
}

u32 stray_take(struct pa_control *c)
{
	u32 tid = (u32)sys0(SYS_gettid);
	if (has_ticks(c, tid))
		return NO_SLOT;
	for (u32 i = 1; i <= c->spare_slots && i <= c->slot_count; i++) {
		struct pa_slot *slot = slot_at(c, c->slot_count - i);
		u32 unused = PA_SLOT_FREE;
		if (!__atomic_compare_exchange_n(&slot->state, &unused, PA_SLOT_ARMING, 0, __ATOMIC_ACQUIRE,
						 __ATOMIC_RELAXED))
			continue;
		slot->tid = tid;
		return c->slot_count - i;
	}
	return NO_SLOT;
}

/* How much CPU time the process uses between two of the kernel's ticks: that much comes at once.  While it has a
 * timer the process's clock goes on in steps of such a tick (kernel/time/posix-cpu-timers.c, proc_sample_cputime_atomic),
 * and two of our ticks may come one right behind the other: so it is a mean over some of the kernel's. */
#define JUMP_TICKS 4
static void see_jump(struct pa_control *c, u64 cpu_ns, u64 clock_ns)
{
	u64 passed_ns = clock_ns - c->stray_last_clock_ns, used_ns = cpu_ns - c->stray_last_ns, mean;
	if (passed_ns < JUMP_TICKS * c->tick_ns || passed_ns < 1000)
		return;
	mean = (3UL * c->stray_jump_ns + used_ns / (passed_ns / 1000) * c->tick_ns / 1000) / 4;
	c->stray_jump_ns = (u32)(mean < c->tick_ns ? c->tick_ns : mean < JUMP_LIMIT_NS ? mean : JUMP_LIMIT_NS);
	c->stray_last_ns = cpu_ns;
	c->stray_last_clock_ns = clock_ns;
}

void stray_next(struct pa_control *c, u64 cpu_ns, u64 clock_ns, int met)
{
	i32 timer = __atomic_load_n(&c->stray_timer_plus_1, __ATOMIC_RELAXED);
	if (met)
		c->stray_met_ns = cpu_ns;
	see_jump(c, cpu_ns, clock_ns);
	c->stray_periods = span_periods(c, cpu_ns);
	/* What is over already would tick at once, and meet the same instruction again. */
	if (timer)
		set_tick(c, timer - 1, cpu_ns + c->tick_ns / 4, clock_ns);
}

/* CPU time of the whole process between two wake ticks. */
#define WAKE_PERIOD_NS 50000000UL

/* How many wake ticks may find no lease: pyattach may only be held up (job control stops both). */
#define IDLE_WAKES 64

/* It arms threads while none is armed, or those that are sleep. */
void wake_begin(struct pa_control *c)
{
	i32 timer = process_timer(c, PA_WAKE);
	if (timer >= 0)
		set_timer(timer, 0, WAKE_PERIOD_NS, WAKE_PERIOD_NS);
}

void wake_tick(struct pa_control *c, i32 timer, const void *ucontext)
{
	u32 state = __atomic_load_n(&c->state, __ATOMIC_RELAXED);
	u32 idle = 0;
	if (state == PA_STATE_STOP)
		return;
	__atomic_fetch_add(&c->process_ticks, 1, __ATOMIC_RELAXED);
	if (clock_ns() > __atomic_load_n(&c->lease_until_ns, __ATOMIC_RELAXED))
		idle = __atomic_add_fetch(&c->idle_wakes, 1, __ATOMIC_RELAXED);
	else
		__atomic_store_n(&c->idle_wakes, 0, __ATOMIC_RELAXED);
	if (state != PA_STATE_RUN || idle > IDLE_WAKES)
		sys1(SYS_timer_delete, timer);
	else if (!idle)
		timers_serve(c, SERVE_LIMIT);
	if (pa.on_wake && state == PA_STATE_RUN)
		pa.on_wake(c, ucontext);
}
