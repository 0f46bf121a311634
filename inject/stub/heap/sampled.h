/* Where allocations are sampled: calls of which nothing is recorded, as nearly all are.
 *
 * Each allocation has a weight, its size and one byte more, and each thread knows after how much weight it takes the
 * next sample.  A hook that is not to do so subtracts, and jumps to the allocator: what the allocator calls itself
 * (musl's calloc calls malloc) is not kept apart there, since malloc and free call nothing that is hooked.  Other hooks
 * call it under a guard, and with nothing left to subtract from, so that what comes inside of them sees the guard.
 *
 * A free of a block that no sampled one shares its hash with jumps there as well.
 */
#ifndef PA_SAMPLED_H
#define PA_SAMPLED_H

#include "heap.h"

#define TP_HASH(tp) ((u32)(tp) * 0x9e3779b1U)
#define ADDRESS_HASH(address) ((u32)(address) * 0x9e3779b1U)
_Static_assert(PA_NEAR_THREADS == 1 << 5 && PA_FAR_THREADS == 1 << 12, "bits of the hash");

static inline u64 thread_pointer(void)
{
	u64 tp;
	__asm__ volatile("mov %%fs:0, %0" : "=r"(tp));
	return tp;
}

/* The thread's first place, or the one after that; 0: it is not there. */
static inline struct pa_sampled_thread *sampled_near(struct pa_sampled *own)
{
	u64 tp = thread_pointer();
	struct pa_sampled_thread *s = &own->near[TP_HASH(tp) >> 27];
	return LIKELY(s->tp == tp) ? s : 0;
}

static inline struct pa_sampled_thread *sampled_far(struct pa_sampled *own)
{
	u64 tp = thread_pointer();
	struct pa_sampled_thread *s = &own->far[TP_HASH(tp) >> 20];
	return s->tp == tp ? s : 0;
}

static inline struct pa_sampled_thread *sampled_thread(struct pa_sampled *own)
{
	struct pa_sampled_thread *s = sampled_near(own);
	return LIKELY(s) ? s : sampled_far(own);
}

static inline u8 *sampled_filter(struct pa_sampled *own, u64 address)
{
	return &own->filter[(u64)ADDRESS_HASH(address) * PA_FILTER >> 32];
}

/* Whether the allocation is not sampled: all is done then. */
static inline int sampled_passes(struct pa_sampled_thread *s, u64 size)
{
	u64 left;
	/* until - size - 1, in an instruction less */
	if (UNLIKELY(!__builtin_add_overflow(s->until, ~size, &left)))
		return 0;
	s->until = left;
	return 1;
}

/* The same for a function that may call others which are hooked: *left is for sampled_leave after it was called. */
static inline struct pa_sampled_thread *sampled_guard(struct pa_sampled *own, u64 size, const u64 *frame, u64 *left)
{
	struct pa_sampled_thread *s = sampled_thread(own);
	if (UNLIKELY(!s) || UNLIKELY(s->until <= size) || UNLIKELY(s->guard))
		return 0;
	*left = s->until - size - 1;
	__atomic_store_n(&s->guard, (u64)frame, __ATOMIC_RELAXED);
	s->until = 0;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	return s;
}

static inline void sampled_leave(struct pa_sampled_thread *s, u64 left)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	s->until = left;
	__atomic_store_n(&s->guard, 0, __ATOMIC_RELEASE);
}

static inline int sampled_is_unknown(struct pa_sampled *own, const void *block)
{
	return !__atomic_load_n(sampled_filter(own, (u64)block), __ATOMIC_RELAXED);
}

/* sampled.c: all other calls.  A hook enters, calls begin, the allocator, and end; 0: it only passes on. */
COLD struct pa_sampled_thread *sampled_enter(const u64 *frame) HIDDEN;
/* What is left before the next sample. */
COLD u64 sampled_begin(struct pa_sampled_thread *s) HIDDEN;
COLD void sampled_end(struct pa_sampled_thread *s, u64 left, u64 block, u64 size, const u64 *frame) HIDDEN;
/* The site of the block, which is gone then; 0: it was not sampled. */
COLD u32 sampled_free(struct pa_sampled_thread *s, u64 address, int by_free) HIDDEN;
/* It was not freed after all. */
COLD void sampled_keep(u64 address, u32 site) HIDDEN;
/* Whether it was sampled, by the table. */
int sampled_is_known(u64 address) HIDDEN;

#endif
