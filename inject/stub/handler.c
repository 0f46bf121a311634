/* The tick: everything between the kernel's signal frame and a committed record. */
#include "memory.h"
#include "ring.h"
#include "stub.h"
#include "modules.h"
#include "unwind.h"

/* Whether that is where pyattach's own code was interrupted: no tick says that the target was there. */
static int in_own_code(const void *ucontext)
{
	extern const char __ehdr_start[] HIDDEN; /* the linker's: where the image begins; its data comes last */
	const u64 *gregs = (const u64 *)((const u8 *)ucontext + UC_GREGS);
	return gregs[GREG_RIP] - (u64)__ehdr_start < (u64)&pa - (u64)__ehdr_start;
}

/* A signal that is not one of our ticks goes to whom it went before. */
static void hand_on(int signo, struct siginfo *info, void *ucontext)
{
	const struct kernel_sigaction *old = signo == (int)pa.spare_signal ? &pa.old_spare : &pa.old;
	u64 handler = old->handler;
	if (handler == SIG_DFL || handler == SIG_IGN)
		return;
	if (old->flags & SA_SIGINFO)
		((void (*)(int, struct siginfo *, void *))handler)(signo, info, ucontext);
	else
		((void (*)(int))handler)(signo);
}

/* The slot whose tick this is.  A timer's bears our tag; an event's is known by the number that its file has
 * in pyattach, and by the thread: the target may use such signals itself. */
static u32 slot_of_tick(struct pa_control *c, const struct siginfo *info)
{
	u32 index = (u32)info->value;
	if (info->code == SI_TIMER)
		return (u32)(info->value >> 32) == c->tick_tag && index < c->slot_count ? index : NO_SLOT;
	if (info->code != POLL_IN || !c->event_base || index - c->event_base >= c->slot_count)
		return NO_SLOT;
	index -= c->event_base;
	return slot_at(c, index)->state == PA_SLOT_EVENT && slot_at(c, index)->tid == (u32)sys0(SYS_gettid) ? index
													    : NO_SLOT;
}

/* Whether it is a tick of the whole process's clock, of this kind. */
static int is_process_tick(const struct pa_control *c, const struct siginfo *info, u32 kind)
{
	return info->code == SI_TIMER && (u32)(info->value >> 32) == c->tick_tag && (u32)info->value == kind;
}

/* What a walk needs, and some more (a test adds it up). */
#define STACK_NEEDED 2560UL

/* Whether there is as much of the signal stack, where the thread has one and this runs on it. */
static int has_stack(const void *ucontext)
{
	const u64 *uc_stack = (const u64 *)((const u8 *)ucontext + UC_STACK);
	u64 left = (u64)__builtin_frame_address(0) - uc_stack[0];
	return left > uc_stack[2] || left >= STACK_NEEDED;
}

static u32 unwind(struct pa_control *c, struct pa_slot *slot, u32 index, const void *ucontext, u64 *frames,
		  enum pa_end *end)
{
	struct vm_reader reader = {pa.pid, pa.vm_read_forbidden};
	u8 *last = (u8 *)c + c->kept_offset + index * PA_WALK_BYTES;
	struct pa_unwinder u = {
		.stack = {.probe = page_readable},
		.tables = {vm_copy, &reader, (struct pa_room *)(last + PA_KEPT_BYTES)},
		.find_module = modules_find,
		.modules = c,
		.cache = (struct pa_cache_line *)((u8 *)c + c->cache_offset),
		.cache_lines = c->cache_lines,
		.generation = __atomic_load_n(&c->modules_seq, __ATOMIC_ACQUIRE),
		.mode = c->unwind,
		.kept = (struct pa_kept *)last,
	};
	const u64 *gregs = (const u64 *)((const u8 *)ucontext + UC_GREGS);
	struct pa_frame frame = {.known = (1U << PA_REGISTERS) - 1};
	u32 depth = 1;
	if (!has_stack(ucontext)) {
		frames[0] = gregs[GREG_RIP];
		*end = PA_END_UNREADABLE;
		return depth;
	}
	for (u32 i = 0; i < PA_REGISTERS; i++)
		frame.r[pa_greg_numbers[i]] = gregs[i];
	*end = pa_walk(&u, &frame, frames, c->max_depth, &depth);
	pa.vm_read_forbidden = reader.forbidden;
	slot->hits += u.hits;
	slot->misses += u.misses;
	return depth;
}

/* So many periods may wait for a sample of their own: the next ticks come sooner for them. */
#define PERIODS_OWED 3

/* The thread's CPU time is cut into periods, one for each sample: ticks come late and some not at all (timers
 * tick with the kernel's own tick; signals don't queue), and all time is to be accounted for.  A few periods
 * may be owed, at the full rate; a sample stands for what is beyond. */
static u32 periods_begun(const struct pa_control *c, struct pa_slot *slot, u64 now)
{
	u64 periods;
	if (now < slot->cpu_ns)
		return 0;
	periods = (now - slot->cpu_ns) / c->period_ns + 1;
	if (c->jitter_ns && slot->timer_plus_1 && slot->factor <= 1) /* else no tick comes sooner */
		periods = periods > PERIODS_OWED ? periods - PERIODS_OWED : 1;
	slot->cpu_ns += periods * c->period_ns;
	return periods < MOST_PERIODS ? (u32)periods : MOST_PERIODS;
}

static void record(struct pa_control *c, struct pa_slot *slot, u32 index, u32 weight, const void *ucontext, u64 now)
{
	u64 *frames = (u64 *)((u8 *)c + c->scratch_offset) + (u64)index * c->max_depth;
	enum pa_end end;
	u32 depth = unwind(c, slot, index, ucontext, frames, &end);
	struct pa_record head = {
		.clock_ns = now,
		.tid = slot->tid,
		.depth = (u16)depth,
		.end = (u8)end,
		.weight = weight,
		.slot = index,
	};
	u64 position;
	slot->missed += weight - 1;
	if (!ring_reserve(c, RECORD_HEAD_WORDS + depth, &position)) {
		slot->dropped += weight;
		return;
	}
	ring_write(c, position, &head, frames);
	slot->samples++;
}

/* Cycles, some 20 us: of handlers that took longer it is asked whether they ran all the time. */
#define LONG_CYCLES (1UL << 16)

/* Of so many cycles since both clocks said this, those in which the thread had the processor. */
static u64 own_cycles(u64 cycles, u64 clock_then_ns, u64 cpu_then_ns)
{
	u64 passed_us, ran_us;
	if (cycles < LONG_CYCLES)
		return cycles;
	passed_us = (clock_ns() - clock_then_ns) / 1000 + 1;
	ran_us = (read_clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_then_ns) / 1000;
	return ran_us < passed_us ? cycles / passed_us * ran_us : cycles;
}

/* The handler's own time, in total and by buckets (shared.h). */
static void count_cost(struct pa_control *c, struct pa_slot *slot, u32 index, u64 cycles)
{
	u32 *costs = (u32 *)((u8 *)c + c->costs_offset) + (u64)index * PA_COSTS;
	u32 bucket = 0;
	if (cycles >> PA_COSTS_FROM) {
		u32 top = 63 - (u32)__builtin_clzl(cycles);
		bucket = 1 + (top - PA_COSTS_FROM) * 4 + (u32)(cycles >> (top - 2) & 3);
	}
	costs[bucket < PA_COSTS ? bucket : PA_COSTS - 1]++;
	slot->cycles += cycles;
}

enum busy { BUSY = 1, BUSY_AND_TICKED };

static void sample(struct pa_control *c, u32 index, const void *ucontext)
{
	u64 start = cycles_now(), cycles, now, cpu_ns;
	u32 weight;
	struct pa_slot *slot = slot_at(c, index);
	u32 state = __atomic_load_n(&c->state, __ATOMIC_RELAXED);

	if (state == PA_STATE_QUIT)
		timers_drop(c, PA_SLOT_FREE);
	if (state != PA_STATE_RUN)
		return; /* before any system call: STOP may have been said because a filter kills for them */
	now = clock_ns();
	if (now > __atomic_load_n(&c->lease_until_ns, __ATOMIC_RELAXED)) {
		/* Nobody reads any more.  Go quiet; pyattach, should it live, arms anew. */
		__atomic_fetch_add(&c->expired, 1, __ATOMIC_RELAXED);
		timers_drop(c, PA_SLOT_EXPIRED);
		return;
	}
	slot->ticks++;
	slot->last_clock_ns = now;
	slot->last_cycles = start;
	cpu_ns = read_clock_ns(CLOCK_THREAD_CPUTIME_ID);
	/* Into the handler of the process's tick, or at the edges of its own: the next stands for its time. */
	weight = in_own_code(ucontext) ? 0 : periods_begun(c, slot, cpu_ns);
	if (weight)
		record(c, slot, index, weight, ucontext, now);
	timer_again(c, slot, cpu_ns, now);
	timers_serve(c, SERVE_LIMIT);
	cycles = own_cycles(cycles_now() - start, now, cpu_ns);
	if (weight)
		count_cost(c, slot, index, cycles);
	else
		slot->cycles += cycles;
}

/* Its own signal is not blocked in the handler (stub.c).  A tick that comes into one does nothing; but where each tick
 * sets the next, that one is set by the handler it came into, or it was the thread's last. */
static void tick(struct pa_control *c, u32 index, const void *ucontext)
{
	struct pa_slot *slot = slot_at(c, index);
	u32 idle = 0;
	if (!__atomic_compare_exchange_n(&slot->busy, &idle, BUSY, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
		__atomic_store_n(&slot->busy, BUSY_AND_TICKED, __ATOMIC_RELAXED);
		return;
	}
	sample(c, index, ucontext);
	while (__atomic_exchange_n(&slot->busy, 0, __ATOMIC_RELEASE) == BUSY_AND_TICKED) {
		__atomic_store_n(&slot->busy, BUSY, __ATOMIC_RELAXED);
		timer_again(c, slot, read_clock_ns(CLOCK_THREAD_CPUTIME_ID), clock_ns());
	}
}

/* A signal meets a thread that sleeps only where the one that runs blocks it (as all do for a moment when they
 * begin), and there it ends the system call. */
static int ended_a_call(const void *ucontext)
{
	const u64 *gregs = (const u64 *)((const u8 *)ucontext + UC_GREGS);
	return returns_eintr(gregs) && page_readable(0, syscall_place(gregs)) && is_syscall(syscall_place(gregs));
}

/* The process's clock ticks once in each span of its time, whatever thread runs there: what meets one without ticks
 * of its own stands for the time of such threads, on the whole. */
static void stray_tick(struct pa_control *c, const struct siginfo *info, const void *ucontext)
{
	u64 start = cycles_now(), cycles, now, cpu_ns, thread_ns;
	u32 weight, index = NO_SLOT;
	if (!stray_goes_on(c, info->timer))
		return;
	c->process_ticks++;
	if (ended_a_call(ucontext)) {
		c->stray_woke = 1; /* once: programs may not be ready for it */
		stray_end(c);
		return;
	}
	now = clock_ns();
	cpu_ns = read_clock_ns(CLOCK_PROCESS_CPUTIME_ID);
	thread_ns = read_clock_ns(CLOCK_THREAD_CPUTIME_ID);
	weight = in_own_code(ucontext) ? 0 : stray_span(c, cpu_ns);
	if (weight)
		index = stray_take(c);
	if (index != NO_SLOT) {
		slot_at(c, index)->last_clock_ns = now;
		slot_at(c, index)->last_cycles = start;
		record(c, slot_at(c, index), index, weight, ucontext, now);
	}
	timers_serve(c, SERVE_LIMIT);
	stray_next(c, cpu_ns, now, index != NO_SLOT);
	cycles = own_cycles(cycles_now() - start, now, thread_ns);
	if (index == NO_SLOT) {
		c->process_cycles += cycles;
		return;
	}
	count_cost(c, slot_at(c, index), index, cycles);
	__atomic_store_n(&slot_at(c, index)->state, PA_SLOT_FREE, __ATOMIC_RELEASE);
}

/* On a signal stack of 8 KB the kernel's frames of two signals leave hardly any room, and for a third it ends the
 * process.  There no tick may come into another's handler: they are blocked, which the return from it undoes; and the
 * process's clock has none any more, since those would be handed to threads that sleep. */
#define SMALL_STACK 16384UL

static void be_alone(struct pa_control *c, const void *ucontext)
{
	const u64 *uc_stack = (const u64 *)((const u8 *)ucontext + UC_STACK);
	u64 ours = 1UL << (c->signal - 1);
	if ((u64)__builtin_frame_address(0) - uc_stack[0] >= uc_stack[2] || uc_stack[2] >= SMALL_STACK ||
	    __atomic_load_n(&c->state, __ATOMIC_RELAXED) != PA_STATE_RUN)
		return;
	if (c->spare_signal)
		ours |= 1UL << (c->spare_signal - 1);
	sys4(SYS_rt_sigprocmask, SIG_BLOCK, (u64)&ours, 0, 8);
	if (c->stray_timer_plus_1) {
		c->stray_woke = 2;
		stray_end(c);
	}
}

void pa_handler(int signo, struct siginfo *info, void *ucontext)
{
	struct pa_control *c = pa.control;
	if (!pa.mine || !*pa.mine) {
		hand_on(signo, info, ucontext);
		return;
	}
	__atomic_fetch_add(&c->inside, 1, __ATOMIC_ACQ_REL);
	u32 index = slot_of_tick(c, info);
	if (index != NO_SLOT) {
		be_alone(c, ucontext);
		tick(c, index, ucontext);
	} else if (is_process_tick(c, info, PA_WAKE)) {
		be_alone(c, ucontext);
		wake_tick(c, info->timer, ucontext);
	} else if (is_process_tick(c, info, PA_STRAY)) {
		be_alone(c, ucontext);
		stray_tick(c, info, ucontext);
	} else {
		__atomic_fetch_add(&c->foreign, 1, __ATOMIC_RELAXED);
		hand_on(signo, info, ucontext);
	}
	__atomic_fetch_sub(&c->inside, 1, __ATOMIC_ACQ_REL);
}
