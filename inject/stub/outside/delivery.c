/* What one tick's delivery costs the thread that it meets: the interrupt, the kernel's timer work, the signal frame
 * and the return from it.  Measured on the calling thread, which spins reading the cycle counter while it is
 * ticked: a tick is a gap in what it reads.  The handler is empty.
 */
#include "../sys.h"

#define EXPORT __attribute__((visibility("default")))
#define PR_GET_TSC 25
#define PR_TSC_ENABLE 1
#define RUSAGE_THREAD 1

DEFINE_RESTORER(pa_delivery_restorer);

static volatile u32 ticked;

static void on_tick(int signo)
{
	(void)signo;
	ticked++;
}

static i64 take_signal(u32 signo)
{
	struct kernel_sigaction action = {
		.handler = (u64)on_tick,
		.flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK | SA_NODEFER | SA_RESTORER, /* as in stub.c */
		.restorer = (u64)pa_delivery_restorer,
		.mask = ~(1UL << (signo - 1)),
	};
	return sys4(SYS_rt_sigaction, signo, &action, 0, 8);
}

/* A timer on this thread's CPU clock, as the stub makes them. */
static i64 begin_timer(u32 signo, u64 period_ns)
{
	struct timespec each = {(i64)(period_ns / 1000000000UL), (i64)(period_ns % 1000000000UL)};
	struct itimerspec spec = {each, each};
	struct sigevent event = {
		.signo = (i32)signo,
		.notify = SIGEV_THREAD_ID,
		.tid = (i32)sys0(SYS_gettid),
	};
	i32 timer = -1;
	i64 err = sys3(SYS_timer_create, CLOCK_THREAD_CPUTIME_ID, &event, &timer);
	return err ? err : sys4(SYS_timer_settime, timer, 0, &spec, 0);
}

/* A gap in what was read, in cycles. */
struct gap {
	u64 cycles, end;
	u32 tick; /* whether the handler ran in it */
};

#define LEAST 200  /* of a gap; two readings are some 20 apart */
#define APART 2000 /* gaps that are closer belong together: an interrupt that asks for another one */

static u64 read_before; /* the reading that the next one is compared with */
static u32 seen_before;

/* The next gap that ends before `until`; else none, of 0 cycles. */
static struct gap next_gap(u64 until)
{
	for (;;) {
		/* In this order: a handler that runs between the two shows in a gap at once, and as a tick in the next. */
		u32 seen = ticked, tick = seen != seen_before;
		u64 before = read_before, now = cycle_counter();
		read_before = now;
		seen_before = seen;
		if (now - before >= LEAST || tick)
			return (struct gap){now - before, now, tick};
		if (now >= until)
			return (struct gap){0, now, 0};
	}
}

/* The next gap with a tick in it, with the one right before it. */
static struct gap next_tick(u64 until)
{
	struct gap last = {0, 0, 0}, gap = next_gap(until);
	while (gap.cycles && !gap.tick) {
		last = gap;
		gap = next_gap(until);
	}
	if (gap.cycles && last.cycles && gap.end - gap.cycles - last.end < APART)
		gap.cycles += last.cycles;
	return gap;
}

/* The longest gap that begins in [from, until) without a tick. */
static u64 longest_gap(u64 from, u64 until)
{
	u64 longest = 0;
	struct gap gap = next_gap(until);
	while (gap.cycles && !gap.tick) {
		if (gap.end - gap.cycles >= from && gap.cycles > longest)
			longest = gap.cycles;
		gap = next_gap(until);
	}
	return longest;
}

/* How often this thread has lost the processor, or given it up (getrusage(2): the last two of its words). */
static u64 switches(void)
{
	u64 usage[18];
	if (sys2(SYS_getrusage, RUSAGE_THREAD, usage))
		return 0;
	return usage[16] + usage[17];
}

/* Cycles in 1024 ns, by looking for 2 ms. */
static u64 cycle_rate(void)
{
	u64 begin_ns = clock_ns(), begin = cycle_counter(), passed_ns;
	do
		passed_ns = clock_ns() - begin_ns;
	while (passed_ns < 2000000);
	return (cycle_counter() - begin) * 1024 / passed_ns;
}

/*
 * Ticks of this thread, by a timer of its own with `period_ns` or, where that is 0, by an event that the caller has
 * enabled.  Fills `ns` with up to `most` pairs: the time that a tick took, and the longest gap without one that begins
 * about `beside_ns` later: of a timer that ticks with every other one of the kernel's own, what that one takes alone.
 * Ends after `limit_ns`.  Returns how many pairs there are, or a negative error number.
 */
EXPORT i64 pa_delivery(u32 signo, u64 period_ns, u64 beside_ns, u64 limit_ns, u32 most, u64 *ns)
{
	u32 count = 0, may_count = 0;
	u64 rate, until, beside;
	i64 err;
	if (sys2(SYS_prctl, PR_GET_TSC, &may_count) || may_count != PR_TSC_ENABLE)
		return -EINVAL;
	err = take_signal(signo);
	if (!err && period_ns)
		err = begin_timer(signo, period_ns);
	if (err)
		return err;
	rate = cycle_rate();
	beside = beside_ns * rate / 1024;
	until = cycle_counter() + limit_ns / 1024 * rate;
	while (count < most) {
		u64 before = switches(), other = 0, about;
		struct gap gap;
		seen_before = ticked;
		read_before = cycle_counter();
		gap = next_tick(until);
		if (!gap.cycles)
			break;
		about = gap.end - gap.cycles + beside;
		if (beside && !(other = longest_gap(about - beside / 32, about + beside / 32)))
			continue; /* it was not this thread that the kernel's tick met */
		if (switches() != before)
			continue; /* a gap may be what others did with the processor */
		ns[2 * count] = gap.cycles * 1024 / rate;
		ns[2 * count + 1] = other * 1024 / rate;
		count++;
	}
	return count;
}
