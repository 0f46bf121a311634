/* What all hooks have in common where each call is recorded: in, out, and what became of a block. */
#ifndef PA_HOOKS_H
#define PA_HOOKS_H

#include "heap.h"

/* Calls that begin inside a hook are the allocator's own, or a signal handler's. */
static inline int is_nested(struct pa_heap_thread *t, u64 sp)
{
	u64 guard = t->guard;
	if (LIKELY(!guard))
		return 0;
	if (sp >= guard && sp - guard < FAR)
		return 0;
	t->nested++;
	return 1;
}

static inline struct pa_heap_thread *enter(const u64 *frame)
{
	struct pa_heap_thread *t;
	const volatile u32 *mine = __atomic_load_n(&ph.mine, __ATOMIC_ACQUIRE);
	u64 tp;
	if (UNLIKELY(!mine || !*mine) ||
	    UNLIKELY(__atomic_load_n(&ph.control->state, __ATOMIC_RELAXED) != PA_STATE_RUN))
		return 0;
	__asm__ volatile("mov %%fs:0, %0" : "=r"(tp));
	t = thread_find(tp);
	if (UNLIKELY(!t)) {
		__atomic_fetch_add(&ph.heap->without_thread, 1, __ATOMIC_RELAXED);
		return 0;
	}
	if (UNLIKELY(is_nested(t, (u64)frame)))
		return 0;
	__atomic_store_n(&t->guard, (u64)frame, __ATOMIC_RELAXED);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	return t;
}

static inline void leave(struct pa_heap_thread *t)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	__atomic_store_n(&t->guard, 0, __ATOMIC_RELEASE);
}

#define FRAME ((const u64 *)__builtin_frame_address(0))

/* A block that was resized: that of before is gone, unless the allocator refused.  A result of 0 for a size of 0
 * says that it was freed. */
static inline void resized(struct pa_heap_thread *t, void *block, u32 site, void *fresh, int asked_for_any, u64 size,
			   const u64 *frame)
{
	if (LIKELY(fresh))
		account_alloc(t, (u64)fresh, size, frame);
	else if (site && asked_for_any)
		account_keep(t, (u64)block, site);
}

#endif
