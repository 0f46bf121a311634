/* One POSIX timer on each thread's CPU clock.  Any thread of the process can create them. */
#include "stub.h"

static u32 rate_factor(const struct pa_control *c)
{
	u32 factor = __atomic_load_n(&c->rate_factor, __ATOMIC_RELAXED);
	return factor ? factor : 1;
}

static struct timespec in_ns(u64 ns)
{
	return (struct timespec){(i64)(ns / 1000000000UL), (i64)(ns % 1000000000UL)};
}

/* First at `first_ns` (from now, or with TIMER_ABSTIME of the thread's CPU time), then every `period_ns`. */
static i64 set_timer(i32 timer, u32 how, u64 first_ns, u64 period_ns)
{
	struct itimerspec spec = {.interval = in_ns(period_ns), .value = in_ns(first_ns)};
	return sys4(SYS_timer_settime, timer, how, &spec, 0);
}

static u64 phase_ns(u64 period_ns, struct pa_control *c, u32 tid)
{
	/* Threads that start together must not tick together: spread the first shots over the period. */
	u64 x = (c->nonce ^ tid) * 0x9e3779b97f4a7c15UL;
	return 1 + (x >> 20) % period_ns;
}

/* With jitter each tick sets the next, to a moment by chance in the next period: one in each, and no work that
 * goes by a beat of its own is in step with them; where one is owed already, to the kernel's next look.  Without, the
 * timer goes on until the rate changes. */
void timer_again(struct pa_control *c, struct pa_slot *slot, u64 cpu_ns, u64 random)
{
	i32 timer = __atomic_load_n(&slot->timer_plus_1, __ATOMIC_RELAXED);
	u32 factor = rate_factor(c);
	u64 period_ns = c->period_ns * factor, longer = period_ns - c->period_ns;
	u64 x = (random ^ slot->tid ^ c->nonce) * 0x9e3779b97f4a7c15UL;
	u64 next_ns = slot->cpu_ns + longer / 2 + (x >> 20) % (longer + c->jitter_ns + 1);
	if (!timer)
		return;
	/* Should it have been deleted since, the number names nothing: the kernel counts them up. */
	if (c->jitter_ns)
		set_timer(timer - 1, TIMER_ABSTIME, next_ns > cpu_ns ? next_ns : cpu_ns + 1, 0);
	else if (factor != slot->factor)
		set_timer(timer - 1, 0, period_ns, period_ns);
	slot->factor = factor;
}

static void arm(struct pa_control *c, struct pa_slot *slot, u32 index)
{
	struct sigevent event = {
		.value = ((u64)c->tick_tag << 32) | index,
		.signo = (i32)c->signal,
		.notify = SIGEV_THREAD_ID,
		.tid = (i32)slot->tid,
	};
	i32 timer = -1;
	i64 err = sys3(SYS_timer_create, thread_cpu_clock(slot->tid), &event, &timer);
	if (!err) {
		slot->factor = rate_factor(c);
		u64 period_ns = c->period_ns * slot->factor;
		slot->cpu_ns = read_clock_ns(thread_cpu_clock(slot->tid));
		slot->timer_plus_1 = timer + 1;
		/* ARMED before the first shot can come. */
		__atomic_store_n(&slot->state, PA_SLOT_ARMED, __ATOMIC_RELEASE);
		err = set_timer(timer, 0, phase_ns(period_ns, c, slot->tid), c->jitter_ns ? 0 : period_ns);
		if (!err)
			return;
		slot->timer_plus_1 = 0;
		sys1(SYS_timer_delete, timer);
	}
	slot->error = (i32)err;
	c->last_error = (i32)err;
	__atomic_store_n(&slot->state, PA_SLOT_FAILED, __ATOMIC_RELEASE);
}

/* Memory of slots beyond was never touched, and is not to be. */
static u32 slots_used(const struct pa_control *c)
{
	u32 used = __atomic_load_n(&c->slots_used, __ATOMIC_ACQUIRE);
	return used < c->slot_count ? used : c->slot_count;
}

static i32 process_timer(struct pa_control *c, u32 kind, u64 period_ns)
{
	struct sigevent event = {
		.value = ((u64)c->tick_tag << 32) | kind,
		.signo = (i32)c->signal,
		.notify = SIGEV_SIGNAL,
	};
	i32 timer = -1;
	i64 err = sys3(SYS_timer_create, CLOCK_PROCESS_CPUTIME_ID, &event, &timer);
	if (!err)
		err = set_timer(timer, 0, period_ns, period_ns);
	if (err)
		c->last_error = (i32)err;
	return timer;
}

static void stray_begin(struct pa_control *c)
{
	c->stray_timer_plus_1 = process_timer(c, PA_STRAY, c->period_ns) + 1;
}

static void stray_end(struct pa_control *c)
{
	i32 timer = __atomic_exchange_n(&c->stray_timer_plus_1, 0, __ATOMIC_RELAXED);
	if (timer)
		sys1(SYS_timer_delete, timer - 1);
}

static int has_ticks(struct pa_control *c, u32 tid)
{
	u32 used = slots_used(c);
	for (u32 index = 0; index < used; index++) {
		const struct pa_slot *slot = slot_at(c, index);
		u32 state = __atomic_load_n(&slot->state, __ATOMIC_RELAXED);
		if (slot->tid == tid && (state == PA_SLOT_ARMED || state == PA_SLOT_EVENT))
			return 1;
	}
	return 0;
}

u32 stray_take(struct pa_control *c, i32 timer)
{
	u32 state = __atomic_load_n(&c->state, __ATOMIC_RELAXED), tid;
	if (state == PA_STATE_STOP)
		return NO_SLOT;
	if (state != PA_STATE_RUN || !__atomic_load_n(&c->stray, __ATOMIC_RELAXED) ||
	    clock_ns() > __atomic_load_n(&c->lease_until_ns, __ATOMIC_RELAXED)) {
		if (c->stray_timer_plus_1 == timer + 1)
			stray_end(c);
		return NO_SLOT;
	}
	timers_serve(c, SERVE_LIMIT);
	tid = (u32)sys0(SYS_gettid);
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

void timers_serve(struct pa_control *c, u32 limit)
{
	u32 seq = __atomic_load_n(&c->post_seq, __ATOMIC_ACQUIRE), done = 0, index = 0;
	u32 used;
	if (seq == __atomic_load_n(&c->seen_seq, __ATOMIC_RELAXED))
		return;
	/* Tried, never waited for: whoever holds it does the work. */
	if (__atomic_exchange_n(&c->arming, 1, __ATOMIC_ACQUIRE))
		return;
	used = slots_used(c);
	for (; index < used && done < limit; index++) {
		struct pa_slot *slot = slot_at(c, index);
		u32 state = __atomic_load_n(&slot->state, __ATOMIC_ACQUIRE);
		if (state == PA_SLOT_WANTED) {
			__atomic_store_n(&slot->state, PA_SLOT_ARMING, __ATOMIC_RELAXED);
			arm(c, slot, index);
			done++;
		} else if (state == PA_SLOT_RETIRE) {
			timer_disarm(slot, PA_SLOT_FREE);
			done++;
		}
	}
	if (__atomic_load_n(&c->stray, __ATOMIC_RELAXED) && !c->stray_timer_plus_1)
		stray_begin(c);
	if (index == used)
		__atomic_store_n(&c->seen_seq, seq, __ATOMIC_RELAXED);
	__atomic_store_n(&c->arming, 0, __ATOMIC_RELEASE);
}

void timer_disarm(struct pa_slot *slot, u32 state)
{
	i32 timer = __atomic_exchange_n(&slot->timer_plus_1, 0, __ATOMIC_RELAXED);
	if (timer)
		sys1(SYS_timer_delete, timer - 1);
	__atomic_store_n(&slot->state, state, __ATOMIC_RELEASE);
}

u32 timers_delete_all(struct pa_control *c)
{
	u32 count = 0, used = slots_used(c);
	stray_end(c);
	for (u32 index = 0; index < used; index++) {
		struct pa_slot *slot = slot_at(c, index);
		if (slot->timer_plus_1)
			count++;
		timer_disarm(slot, PA_SLOT_FREE);
	}
	return count;
}

/* CPU time of the whole process between two wake ticks. */
#define WAKE_PERIOD_NS 50000000UL

/* How many wake ticks may find no lease: pyattach may only be held up (job control stops both). */
#define IDLE_WAKES 64

/* One timer on the clock of all threads together, whose signal goes to the thread that runs (to the main
 * thread, before Linux 6.4).  It arms threads while none is armed, or those that are sleep. */
void wake_begin(struct pa_control *c)
{
	process_timer(c, PA_WAKE, WAKE_PERIOD_NS);
}

void wake_tick(struct pa_control *c, i32 timer)
{
	u32 state = __atomic_load_n(&c->state, __ATOMIC_RELAXED);
	u32 idle = 0;
	if (state == PA_STATE_STOP)
		return;
	if (clock_ns() > __atomic_load_n(&c->lease_until_ns, __ATOMIC_RELAXED))
		idle = __atomic_add_fetch(&c->idle_wakes, 1, __ATOMIC_RELAXED);
	else
		__atomic_store_n(&c->idle_wakes, 0, __ATOMIC_RELAXED);
	if (state != PA_STATE_RUN || idle > IDLE_WAKES)
		sys1(SYS_timer_delete, timer);
	else if (!idle)
		timers_serve(c, SERVE_LIMIT);
}
