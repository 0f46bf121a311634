/* What programs call in place of the allocator's functions.
 *
 * The block of a free is forgotten before it is freed, that of a realloc likewise: from then on another thread may
 * have its address.  Arguments go to the allocator as they came, so what it does with those that are zero, too
 * large or not aligned is what the program sees.
 */
#include "heap.h"

#ifdef PA_HEAP_ENTRIES
/* Come to from the first instruction of the allocator's function.  Its callers may know which registers that leaves
 * alone (gcc -fipa-ra, for callers in the same file): so all are left alone here.  What passes on is returned to,
 * and is counted: pyattach must not take the code away under it. */
#define HOOKED __attribute__((visibility("default"), no_caller_saved_registers))
#define HOOK(name) pa_entry_##name
#define PASS_ON(call)                                                   \
	do {                                                            \
		__typeof__(ph.real.call) result;                        \
		__atomic_fetch_add(&heap_passing, 1, __ATOMIC_SEQ_CST); \
		result = ph.real.call;                                  \
		__atomic_fetch_sub(&heap_passing, 1, __ATOMIC_SEQ_CST); \
		return result;                                          \
	} while (0)
#else
#define HOOKED __attribute__((visibility("default")))
#define PASS_ON(call) return ph.real.call

struct pa_heap_private ph;
#endif

#ifdef PA_HEAP_PRELOADED
#define HOOK(name) name
/* Before the allocator can be called: never given back. */
#define ARENA_BYTES 65536
static u8 arena[ARENA_BYTES] __attribute__((aligned(16)));
static u64 arena_used;
#elif !defined(PA_HEAP_ENTRIES)
#define HOOK(name) pa_hook_##name
#endif

/* On the stack farther up than this is no caller of ours: the guard is of a hook that was left by a jump. */
#define FAR (8UL << 20)
#define ARENA_LIMIT (1UL << 32)

/* Calls that begin inside a hook are the allocator's own, or a signal handler's. */
static int is_nested(struct pa_heap_thread *t, u64 sp)
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

#ifdef PA_HEAP_PRELOADED
static int without_allocator(void)
{
	heap_begin();
	return !ph.real.malloc;
}

static int in_arena(const void *block)
{
	return (const u8 *)block >= arena && (const u8 *)block < arena + ARENA_BYTES;
}

/* The size stands in the word before the block. */
static void *arena_take(u64 alignment, u64 size)
{
	u64 at, end;
	do {
		at = __atomic_load_n(&arena_used, __ATOMIC_RELAXED);
		end = ((u64)arena + at + 16 + alignment - 1) / alignment * alignment - (u64)arena + size;
		if (size > ARENA_BYTES || end > ARENA_BYTES)
			return 0;
	} while (!__atomic_compare_exchange_n(&arena_used, &at, (end + 15) & ~15UL, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	*(u64 *)(arena + end - size - 8) = size;
	return arena + end - size;
}

static void *arena_move(void *block, u64 size)
{
	u64 old = ((u64 *)block)[-1];
	void *fresh = ph.real.malloc ? ph.real.malloc(size) : arena_take(16, size);
	if (fresh)
		__builtin_memcpy(fresh, block, old < size ? old : size);
	return fresh;
}
#else
static inline int without_allocator(void) { return 0; }
static inline int in_arena(const void *block) { (void)block; return 0; }
static inline void *arena_take(u64 alignment, u64 size) { (void)alignment; (void)size; return 0; }
static inline void *arena_move(void *block, u64 size) { (void)block; (void)size; return 0; }
#endif

#define BEFORE_ALLOCATOR(function) (UNLIKELY(!ph.real.function) && without_allocator())

static void *no_memory(void)
{
	if (ph.real.errno_location)
		*ph.real.errno_location() = ENOMEM;
	return 0;
}

/* Where allocations are sampled, whether this one is not: known before it is made, and all that is to be done. */
static inline int passes(struct pa_heap_thread *t, u64 size)
{
	if (!ph.heap->sample_bytes || t->until <= size)
		return 0;
	t->until -= size;
	t->last = 0; /* something else is allocated */
	t->calls++;
	thread_event(t);
	return 1;
}

/* An allocation by `call`, recorded with the size asked for. */
#define ALLOCATION(call, size)                                                                        \
	struct pa_heap_thread *t = enter(FRAME);                                                      \
	void *block;                                                                                  \
	if (UNLIKELY(!t))                                                                             \
		PASS_ON(call);                                                                        \
	if (passes(t, size)) {                                                                        \
		block = ph.real.call;                                                                 \
		leave(t);                                                                             \
		return block;                                                                         \
	}                                                                                             \
	block = ph.real.call;                                                                         \
	if (LIKELY(block))                                                                            \
		account_alloc(t, (u64)block, size, FRAME);                                            \
	leave(t);                                                                                     \
	return block

HOOKED void *HOOK(malloc)(u64 size)
{
	if (BEFORE_ALLOCATOR(malloc))
		return arena_take(16, size);
	ALLOCATION(malloc(size), size);
}

HOOKED void *HOOK(calloc)(u64 count, u64 size)
{
	if (BEFORE_ALLOCATOR(calloc))
		return size && count > ARENA_LIMIT / size ? 0 : arena_take(16, count * size);
	ALLOCATION(calloc(count, size), count * size);
}

HOOKED void *HOOK(memalign)(u64 alignment, u64 size)
{
	if (UNLIKELY(!ph.real.memalign))
		return no_memory();
	ALLOCATION(memalign(alignment, size), size);
}

HOOKED void *HOOK(aligned_alloc)(u64 alignment, u64 size)
{
	if (UNLIKELY(!ph.real.aligned_alloc))
		return no_memory();
	ALLOCATION(aligned_alloc(alignment, size), size);
}

HOOKED void *HOOK(valloc)(u64 size)
{
	if (UNLIKELY(!ph.real.valloc))
		return no_memory();
	ALLOCATION(valloc(size), size);
}

HOOKED void *HOOK(pvalloc)(u64 size)
{
	if (UNLIKELY(!ph.real.pvalloc))
		return no_memory();
	ALLOCATION(pvalloc(size), size);
}

HOOKED int HOOK(posix_memalign)(void **block, u64 alignment, u64 size)
{
	struct pa_heap_thread *t;
	int error;
	if (UNLIKELY(!ph.real.posix_memalign))
		return ENOMEM;
	t = enter(FRAME);
	if (UNLIKELY(!t))
		PASS_ON(posix_memalign(block, alignment, size));
	error = ph.real.posix_memalign(block, alignment, size);
	if (LIKELY(!error && *block))
		account_alloc(t, (u64)*block, size, FRAME);
	leave(t);
	return error;
}

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

HOOKED void *HOOK(realloc)(void *block, u64 size)
{
	struct pa_heap_thread *t;
	void *fresh;
	u32 site;
	if (UNLIKELY(in_arena(block)))
		return arena_move(block, size);
	if (BEFORE_ALLOCATOR(realloc))
		return arena_take(16, size);
	t = enter(FRAME);
	if (UNLIKELY(!t))
		PASS_ON(realloc(block, size));
	site = block ? account_free(t, (u64)block, 0) : 0;
	fresh = ph.real.realloc(block, size);
	resized(t, block, site, fresh, size != 0, size, FRAME);
	leave(t);
	return fresh;
}

HOOKED void *HOOK(reallocarray)(void *block, u64 count, u64 size)
{
	struct pa_heap_thread *t;
	void *fresh;
	u32 site;
	if (UNLIKELY(in_arena(block)) && !(size && count > ARENA_LIMIT / size))
		return arena_move(block, count * size);
	if (UNLIKELY(!ph.real.reallocarray))
		return no_memory();
	t = enter(FRAME);
	if (UNLIKELY(!t))
		PASS_ON(reallocarray(block, count, size));
	site = block ? account_free(t, (u64)block, 0) : 0;
	fresh = ph.real.reallocarray(block, count, size);
	resized(t, block, site, fresh, count && size, count * size, FRAME);
	leave(t);
	return fresh;
}

/* Where allocations are sampled, most frees are of blocks that were not: nothing is to be done, nor is the thread's
 * table needed.  The allocator's own calls of free come to the same. */
static inline int is_unrecorded(const void *block)
{
	const volatile u32 *mine = __atomic_load_n(&ph.mine, __ATOMIC_ACQUIRE);
	return mine && ph.heap->sample_bytes && !__atomic_load_n(filter_at((u64)block), __ATOMIC_RELAXED);
}

#ifdef PA_HEAP_ENTRIES
/* In it until the allocator has returned: it is returned to. */
HOOKED void HOOK(free)(void *block)
{
	struct pa_heap_thread *t = block ? enter(FRAME) : 0;
	if (UNLIKELY(!t)) {
		__atomic_fetch_add(&heap_passing, 1, __ATOMIC_SEQ_CST);
		ph.real.free(block);
		__atomic_fetch_sub(&heap_passing, 1, __ATOMIC_SEQ_CST);
		return;
	}
	if (!is_unrecorded(block))
		account_free(t, (u64)block, 1);
	ph.real.free(block);
	leave(t);
}
#else
HOOKED void HOOK(free)(void *block)
{
	struct pa_heap_thread *t;
	if (UNLIKELY(in_arena(block)) || (UNLIKELY(!ph.real.free) && without_allocator()))
		return;
	if (is_unrecorded(block)) {
		ph.real.free(block);
		return;
	}
	/* glibc and others will look there: let that and our own look be waited for together. */
	__builtin_prefetch((const u8 *)block - 16);
	t = block ? enter(FRAME) : 0;
	if (LIKELY(t)) {
		account_free(t, (u64)block, 1);
		leave(t);
	}
	ph.real.free(block);
}
#endif
