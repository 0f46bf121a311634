/* One POSIX timer on each thread's CPU clock.  Any thread of the process can create them. */
#include "stub.h"

u32 rate_factor(const struct pa_control *c)
{
	u32 factor = __atomic_load_n(&c->rate_factor, __ATOMIC_RELAXED);
	return factor ? factor : 1;
}

static struct timespec in_ns(u64 ns)
{
	return (struct timespec){(i64)(ns / 1000000000UL), (i64)(ns % 1000000000UL)};
}

i64 set_timer(i32 timer, u32 how, u64 first_ns, u64 period_ns)
{
	struct itimerspec spec = {.interval = in_ns(period_ns), .value = in_ns(first_ns)};
	return sys4(SYS_timer_settime, timer, how, &spec, 0);
}

/* Threads that start together must not tick together: the first shots are spread over the period, and as later
 * ones are: a thread that ends before its first period does has a sample with the same chance. */
static u64 phase_ns(const struct pa_control *c, u32 factor, u32 tid)
{
	u64 longer = c->period_ns * (factor - 1), x = (c->nonce ^ tid) * 0x9e3779b97f4a7c15UL;
	if (!c->jitter_ns)
		return 1 + (x >> 20) % (c->period_ns + longer);
	return 1 + longer / 2 + (x >> 20) % (longer + c->jitter_ns);
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
	u64 soonest_ns = cpu_ns + c->tick_ns / 32; /* what is over already would tick at once, at the same place */
	if (!timer)
		return;
	/* Should it have been deleted since, the number names nothing: the kernel counts them up. */
	if (c->jitter_ns)
		set_timer(timer - 1, TIMER_ABSTIME, next_ns > soonest_ns ? next_ns : soonest_ns, 0);
	else if (factor != slot->factor)
		set_timer(timer - 1, 0, period_ns, period_ns);
	slot->factor = factor;
}

/* To be asked between the number of a new timer being where pa_stop looks for it and its first shot.  Either pa_stop
 * has seen the number, or this sees that it has been: a thread that was in its handler meanwhile must leave no timer
 * behind, which would tick when the signal is no longer ours, and end the process. */
int may_tick(struct pa_control *c)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	u32 state = __atomic_load_n(&c->state, __ATOMIC_RELAXED);
	return state != PA_STATE_STOP && state != PA_STATE_QUIT;
}

void timer_arm(struct pa_control *c, struct pa_slot *slot, u32 index)
{
	struct sigevent event = {
		.value = ((u64)c->tick_tag << 32) | index,
		.signo = (i32)(slot->by_spare && c->spare_signal ? c->spare_signal : c->signal),
		.notify = SIGEV_THREAD_ID,
		.tid = (i32)slot->tid,
	};
	i32 timer = -1;
	i64 err = sys3(SYS_timer_create, thread_cpu_clock(slot->tid), &event, &timer);
	if (!err) {
		slot->factor = rate_factor(c);
		u64 period_ns = c->period_ns * slot->factor;
		slot->cpu_ns = read_clock_ns(thread_cpu_clock(slot->tid));
		if (!slot->armed_cpu)
			slot->armed_cpu = (u32)(slot->cpu_ns >> 10) | 1;
		slot->timer_plus_1 = timer + 1;
		/* ARMED before the first shot can come. */
		__atomic_store_n(&slot->state, PA_SLOT_ARMED, __ATOMIC_RELEASE);
		if (!may_tick(c)) {
			timer_disarm(slot, PA_SLOT_FREE);
			return;
		}
		err = set_timer(timer, 0, phase_ns(c, slot->factor, slot->tid), c->jitter_ns ? 0 : period_ns);
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
u32 slots_used(const struct pa_control *c)
{
	u32 used = __atomic_load_n(&c->slots_used, __ATOMIC_ACQUIRE);
	return used < c->slot_count ? used : c->slot_count;
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
			timer_arm(c, slot, index);
			done++;
		} else if (state == PA_SLOT_RETIRE) {
			timer_disarm(slot, PA_SLOT_FREE);
			done++;
		}
	}
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

/* Some thread has seen that nobody wants ticks any more: those that sleep now are not to tick when they run. */
void timers_drop(struct pa_control *c, u32 state)
{
	u32 used = slots_used(c);
	if (__atomic_exchange_n(&c->arming, 1, __ATOMIC_ACQUIRE))
		return; /* whoever holds it makes timers; they tick, and come here again */
	for (u32 index = 0; index < used; index++)
		if (__atomic_load_n(&slot_at(c, index)->timer_plus_1, __ATOMIC_RELAXED))
			timer_disarm(slot_at(c, index), state);
	stray_end(c);
	__atomic_store_n(&c->arming, 0, __ATOMIC_RELEASE);
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
