/* The tick: everything between the kernel's signal frame and a committed record. */
#include "memory.h"
#include "ring.h"
#include "stub.h"
#include "modules.h"
#include "unwind.h"

/* A signal that is not one of our ticks goes to whom it went before. */
static void hand_on(int signo, struct siginfo *info, void *ucontext)
{
	u64 handler = pa.old.handler;
	if (handler == SIG_DFL || handler == SIG_IGN)
		return;
	if (pa.old.flags & SA_SIGINFO)
		((void (*)(int, struct siginfo *, void *))handler)(signo, info, ucontext);
	else
		((void (*)(int))handler)(signo);
}

static int is_ours(const struct pa_control *c, const struct siginfo *info)
{
	return info->code == SI_TIMER && (u32)(info->value >> 32) == c->tick_tag;
}

static u32 unwind(struct pa_control *c, struct pa_slot *slot, const void *ucontext, u64 *frames, enum pa_end *end)
{
	struct vm_reader reader = {pa.pid, pa.vm_read_forbidden};
	struct pa_unwinder u = {
		.stack = {.probe = page_readable},
		.tables = {vm_copy, &reader},
		.find_module = modules_find,
		.modules = c,
		.cache = (struct pa_cache_line *)((u8 *)c + c->cache_offset),
		.cache_lines = c->cache_lines,
		.generation = __atomic_load_n(&c->modules_seq, __ATOMIC_ACQUIRE),
		.mode = c->unwind,
	};
	const u64 *gregs = (const u64 *)((const u8 *)ucontext + UC_GREGS);
	struct pa_frame frame = {.known = (1U << PA_REGISTERS) - 1};
	u32 depth;
	for (u32 i = 0; i < PA_REGISTERS; i++)
		frame.r[pa_greg_numbers[i]] = gregs[i];
	*end = pa_walk(&u, &frame, frames, c->max_depth, &depth);
	pa.vm_read_forbidden = reader.forbidden;
	slot->hits += u.hits;
	slot->misses += u.misses;
	return depth;
}

static void record(struct pa_control *c, struct pa_slot *slot, const struct siginfo *info, const void *ucontext, u64 now)
{
	u32 index = (u32)info->value;
	u64 *frames = (u64 *)((u8 *)c + c->scratch_offset) + (u64)index * c->max_depth;
	u32 missed = info->overrun > 0 ? (u32)info->overrun : 0;
	enum pa_end end;
	u32 depth = unwind(c, slot, ucontext, frames, &end);
	struct pa_record head = {
		.clock_ns = now,
		.tid = slot->tid,
		.depth = (u16)depth,
		.end = (u8)end,
		.weight = 1 + missed,
		.slot = index,
	};
	u64 position;
	slot->missed += missed;
	if (!ring_reserve(c, RECORD_HEAD_WORDS + depth, &position)) {
		slot->dropped += head.weight;
		return;
	}
	ring_write(c, position, &head, frames);
	slot->samples++;
}

static void tick(struct pa_control *c, const struct siginfo *info, const void *ucontext)
{
	u64 start = cycles_now(), now;
	struct pa_slot *slot = slot_at(c, (u32)info->value);
	u32 state = __atomic_load_n(&c->state, __ATOMIC_RELAXED);

	if (state == PA_STATE_QUIT)
		timer_disarm(slot, PA_SLOT_FREE);
	if (state != PA_STATE_RUN)
		return; /* before any system call: STOP may have been said because a filter kills for them */
	now = clock_ns();
	if (now > __atomic_load_n(&c->lease_until_ns, __ATOMIC_RELAXED)) {
		/* Nobody reads any more.  Go quiet; pyattach, should it live, arms anew. */
		__atomic_fetch_add(&c->expired, 1, __ATOMIC_RELAXED);
		timer_disarm(slot, PA_SLOT_EXPIRED);
		return;
	}
	slot->last_clock_ns = now;
	slot->last_cycles = start;
	record(c, slot, info, ucontext, now);
	timers_serve(c, SERVE_LIMIT);
	slot->cycles += cycles_now() - start;
}

void pa_handler(int signo, struct siginfo *info, void *ucontext)
{
	struct pa_control *c = pa.control;
	if (!pa.mine || !*pa.mine) {
		hand_on(signo, info, ucontext);
		return;
	}
	__atomic_fetch_add(&c->inside, 1, __ATOMIC_ACQ_REL);
	if (is_ours(c, info) && (u32)info->value < c->slot_count) {
		tick(c, info, ucontext);
	} else if (is_ours(c, info) && (u32)info->value == PA_WAKE) {
		wake_tick(c, info->timer);
	} else {
		__atomic_fetch_add(&c->foreign, 1, __ATOMIC_RELAXED);
		hand_on(signo, info, ucontext);
	}
	__atomic_fetch_sub(&c->inside, 1, __ATOMIC_ACQ_REL);
}
