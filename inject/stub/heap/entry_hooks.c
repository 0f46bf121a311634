/* The hooks once more, for where the allocator's own code leads to them; there each call is recorded.
 *
 * They are come to from the first instruction of the allocator's function.  Its callers may know which registers that
 * leaves alone (gcc -fipa-ra, for callers in the same file): so all are left alone here.  So what they call returns to
 * them, also where they only pass on.  That is counted: pyattach must not take the code away under it.
 */
#include "hooks.h"

#ifndef PA_HEAP_PRELOADED

#define HOOKED __attribute__((visibility("default"), no_caller_saved_registers))
#define HOOK(name) pa_entry_##name

#define PASS_ON(result, call)                                           \
	do {                                                            \
		__atomic_fetch_add(&heap_passing, 1, __ATOMIC_SEQ_CST); \
		result = ph.real.call;                                  \
		__atomic_fetch_sub(&heap_passing, 1, __ATOMIC_SEQ_CST); \
	} while (0)

/* An allocation by `call`, recorded with the size asked for. */
#define RECORDED(call, size)                               \
	struct pa_heap_thread *t = enter(FRAME);           \
	void *block;                                       \
	if (UNLIKELY(!t)) {                                \
		PASS_ON(block, call);                      \
		return block;                              \
	}                                                  \
	block = ph.real.call;                              \
	if (LIKELY(block))                                 \
		account_alloc(t, (u64)block, size, FRAME); \
	leave(t);                                          \
	return block

/* The block of before is forgotten first: from then on another thread may have its address. */
#define RESIZED(call, asked_for_any, size)                          \
	struct pa_heap_thread *t = enter(FRAME);                    \
	void *fresh;                                                \
	u32 site;                                                   \
	if (UNLIKELY(!t)) {                                         \
		PASS_ON(fresh, call);                               \
		return fresh;                                       \
	}                                                           \
	site = block ? account_free(t, (u64)block, 0) : 0;          \
	fresh = ph.real.call;                                       \
	resized(t, block, site, fresh, asked_for_any, size, FRAME); \
	leave(t);                                                   \
	return fresh

HOOKED void *HOOK(malloc)(u64 size) { RECORDED(malloc(size), size); }
HOOKED void *HOOK(calloc)(u64 count, u64 size) { RECORDED(calloc(count, size), count * size); }
HOOKED void *HOOK(memalign)(u64 alignment, u64 size) { RECORDED(memalign(alignment, size), size); }
HOOKED void *HOOK(aligned_alloc)(u64 alignment, u64 size) { RECORDED(aligned_alloc(alignment, size), size); }
HOOKED void *HOOK(valloc)(u64 size) { RECORDED(valloc(size), size); }
HOOKED void *HOOK(pvalloc)(u64 size) { RECORDED(pvalloc(size), size); }
HOOKED void *HOOK(realloc)(void *block, u64 size) { RESIZED(realloc(block, size), size != 0, size); }

HOOKED void *HOOK(reallocarray)(void *block, u64 count, u64 size)
{
	RESIZED(reallocarray(block, count, size), count && size, count * size);
}

HOOKED int HOOK(posix_memalign)(void **block, u64 alignment, u64 size)
{
	struct pa_heap_thread *t = enter(FRAME);
	int error;
	if (UNLIKELY(!t)) {
		PASS_ON(error, posix_memalign(block, alignment, size));
		return error;
	}
	error = ph.real.posix_memalign(block, alignment, size);
	if (LIKELY(!error && *block))
		account_alloc(t, (u64)*block, size, FRAME);
	leave(t);
	return error;
}

/* In it until the allocator has returned. */
HOOKED void HOOK(free)(void *block)
{
	struct pa_heap_thread *t = block ? enter(FRAME) : 0;
	if (UNLIKELY(!t)) {
		__atomic_fetch_add(&heap_passing, 1, __ATOMIC_SEQ_CST);
		ph.real.free(block);
		__atomic_fetch_sub(&heap_passing, 1, __ATOMIC_SEQ_CST);
		return;
	}
	account_free(t, (u64)block, 1);
	ph.real.free(block);
	leave(t);
}

#endif
