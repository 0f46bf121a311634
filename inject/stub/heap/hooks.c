/* What programs call in place of the allocator's functions.
 *
 * The block of a free is forgotten before it is freed, that of a realloc likewise: from then on another thread may
 * have its address.  Arguments go to the allocator as they came, so what it does with those that are zero, too
 * large or not aligned is what the program sees.
 */
#include "hooks.h"
#include "sampled.h"

#define HOOKED __attribute__((visibility("default")))
/* Of these most calls go on to the allocator by a jump: what they do else is in functions of their own, which need a
 * frame of their own to find the caller's.  A jump there leaves them the caller's stack as it was. */
#define PASSING __attribute__((optimize("omit-frame-pointer")))
#define APART __attribute__((noinline))

struct pa_heap_private ph;

#ifdef PA_HEAP_PRELOADED
#define HOOK(name) name
/* Before the allocator can be called: never given back. */
#define ARENA_BYTES 65536
static u8 arena[ARENA_BYTES] __attribute__((aligned(16)));
static u64 arena_used;
#else
#define HOOK(name) pa_hook_##name
#endif

#define ARENA_LIMIT (1UL << 32)

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

#ifdef PA_HEAP_PRELOADED
/* The filter takes them for sampled ones: so they are looked at. */
void mark_arena(void)
{
	for (u64 at = 0; at < arena_used; at += 16)
		*sampled_filter(ph.sampled, (u64)arena + at) = 255;
}
#else
void mark_arena(void) {}
#endif

static void *no_memory(void)
{
	if (ph.real.errno_location)
		*ph.real.errno_location() = ENOMEM;
	return 0;
}

/* An allocation by `call`, recorded with the size asked for. */
#define RECORDED(call, size)                                                                          \
	struct pa_heap_thread *t = enter(FRAME);                                                      \
	void *block;                                                                                  \
	if (UNLIKELY(!t))                                                                             \
		return ph.real.call;                                                                  \
	block = ph.real.call;                                                                         \
	if (LIKELY(block))                                                                            \
		account_alloc(t, (u64)block, size, FRAME);                                            \
	leave(t);                                                                                     \
	return block

/* The same where allocations are sampled, and this one perhaps. */
#define SAMPLED(call, size)                                                                           \
	struct pa_sampled_thread *s = sampled_enter(FRAME);                                           \
	void *block;                                                                                  \
	u64 left;                                                                                     \
	if (UNLIKELY(!s))                                                                             \
		return ph.real.call;                                                                  \
	left = sampled_begin(s);                                                                      \
	block = ph.real.call;                                                                         \
	sampled_end(s, left, (u64)block, size, FRAME);                                                \
	return block

/* One or the other. */
#define ALLOCATION(call, size)                                                                        \
	if (own_of_sampled()) {                                                                       \
		SAMPLED(call, size);                                                                  \
	}                                                                                             \
	RECORDED(call, size)

/* To be read once in a call: it is 0 when pyattach leaves (pa_forget). */
static inline struct pa_sampled *own_of_sampled(void)
{
	return __atomic_load_n(&ph.sampled, __ATOMIC_RELAXED);
}

static APART void *malloc_recorded(u64 size)
{
	if (BEFORE_ALLOCATOR(malloc))
		return arena_take(16, size);
	RECORDED(malloc(size), size);
}

static APART void *malloc_sampled(u64 size) { SAMPLED(malloc(size), size); }

static APART PASSING void *malloc_far(u64 size, struct pa_sampled *own)
{
	struct pa_sampled_thread *s = sampled_far(own);
	return s && sampled_passes(s, size) ? ph.real.malloc(size) : malloc_sampled(size);
}

HOOKED PASSING void *HOOK(malloc)(u64 size)
{
	struct pa_sampled *own = own_of_sampled();
	struct pa_sampled_thread *s;
	if (!own)
		return malloc_recorded(size);
	s = sampled_near(own);
	if (UNLIKELY(!s))
		return malloc_far(size, own);
	return LIKELY(sampled_passes(s, size)) ? ph.real.malloc(size) : malloc_sampled(size);
}

static APART void *calloc_any(u64 count, u64 size)
{
	if (BEFORE_ALLOCATOR(calloc))
		return size && count > ARENA_LIMIT / size ? 0 : arena_take(16, count * size);
	ALLOCATION(calloc(count, size), count * size);
}

HOOKED void *HOOK(calloc)(u64 count, u64 size)
{
	struct pa_sampled *own = own_of_sampled();
	struct pa_sampled_thread *s;
	u64 bytes, left;
	void *block;
	if (!own || __builtin_mul_overflow(count, size, &bytes) || !(s = sampled_guard(own, bytes, FRAME, &left)))
		return calloc_any(count, size);
	block = ph.real.calloc(count, size);
	sampled_leave(s, left);
	return block;
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

static int memalign_sampled(void **block, u64 alignment, u64 size, const u64 *frame)
{
	struct pa_sampled_thread *s = sampled_enter(frame);
	u64 left;
	int error;
	if (UNLIKELY(!s))
		return ph.real.posix_memalign(block, alignment, size);
	left = sampled_begin(s);
	error = ph.real.posix_memalign(block, alignment, size);
	sampled_end(s, left, error ? 0 : (u64)*block, size, frame);
	return error;
}

HOOKED int HOOK(posix_memalign)(void **block, u64 alignment, u64 size)
{
	struct pa_heap_thread *t;
	int error;
	if (UNLIKELY(!ph.real.posix_memalign))
		return ENOMEM;
	if (own_of_sampled())
		return memalign_sampled(block, alignment, size, FRAME);
	t = enter(FRAME);
	if (UNLIKELY(!t))
		return ph.real.posix_memalign(block, alignment, size);
	error = ph.real.posix_memalign(block, alignment, size);
	if (LIKELY(!error && *block))
		account_alloc(t, (u64)*block, size, FRAME);
	leave(t);
	return error;
}

static inline void *real_resize(int by_array, void *block, u64 count, u64 size)
{
	return by_array ? ph.real.reallocarray(block, count, size) : ph.real.realloc(block, size);
}

static inline void *resize_sampled(struct pa_sampled *own, int by_array, void *block, u64 count, u64 size,
				   const u64 *frame)
{
	u64 bytes = count * size, left;
	struct pa_sampled_thread *s = sampled_is_unknown(own, block) ? sampled_guard(own, bytes, frame, &left) : 0;
	void *fresh;
	u32 site;
	if (LIKELY(s)) {
		fresh = real_resize(by_array, block, count, size);
		sampled_leave(s, left);
		return fresh;
	}
	s = sampled_enter(frame);
	if (!s)
		return real_resize(by_array, block, count, size);
	site = sampled_is_known((u64)block) ? sampled_free(s, (u64)block, 0) : 0;
	left = sampled_begin(s);
	fresh = real_resize(by_array, block, count, size);
	if (!fresh && site && count && size)
		sampled_keep((u64)block, site);
	sampled_end(s, left, (u64)fresh, bytes, frame);
	return fresh;
}

HOOKED void *HOOK(realloc)(void *block, u64 size)
{
	struct pa_sampled *own;
	struct pa_heap_thread *t;
	void *fresh;
	u32 site;
	if (UNLIKELY(in_arena(block)))
		return arena_move(block, size);
	if (BEFORE_ALLOCATOR(realloc))
		return arena_take(16, size);
	own = own_of_sampled();
	if (own)
		return resize_sampled(own, 0, block, 1, size, FRAME);
	t = enter(FRAME);
	if (UNLIKELY(!t))
		return ph.real.realloc(block, size);
	site = block ? account_free(t, (u64)block, 0) : 0;
	fresh = ph.real.realloc(block, size);
	resized(t, block, site, fresh, size != 0, size, FRAME);
	leave(t);
	return fresh;
}

HOOKED void *HOOK(reallocarray)(void *block, u64 count, u64 size)
{
	struct pa_sampled *own;
	struct pa_heap_thread *t;
	void *fresh;
	u32 site;
	if (UNLIKELY(in_arena(block)) && !(size && count > ARENA_LIMIT / size))
		return arena_move(block, count * size);
	if (UNLIKELY(!ph.real.reallocarray))
		return no_memory();
	own = own_of_sampled();
	if (own)
		return resize_sampled(own, 1, block, count, size, FRAME);
	t = enter(FRAME);
	if (UNLIKELY(!t))
		return ph.real.reallocarray(block, count, size);
	site = block ? account_free(t, (u64)block, 0) : 0;
	fresh = ph.real.reallocarray(block, count, size);
	resized(t, block, site, fresh, count && size, count * size, FRAME);
	leave(t);
	return fresh;
}

static APART void free_recorded(void *block)
{
	struct pa_heap_thread *t;
	if (UNLIKELY(in_arena(block)) || (UNLIKELY(!ph.real.free) && without_allocator()))
		return;
	/* glibc and others will look there: let that and our own look be waited for together. */
	__builtin_prefetch((const u8 *)block - 16);
	t = block ? enter(FRAME) : 0;
	if (LIKELY(t)) {
		account_free(t, (u64)block, 1);
		leave(t);
	}
	ph.real.free(block);
}

/* Sampled, if the table says so, too. */
static APART void free_sampled(void *block)
{
	struct pa_sampled_thread *s;
	if (UNLIKELY(in_arena(block)))
		return;
	s = sampled_is_known((u64)block) ? sampled_enter(FRAME) : 0;
	if (s) {
		sampled_free(s, (u64)block, 1);
		sampled_leave(s, s->until);
	}
	ph.real.free(block);
}

HOOKED PASSING void HOOK(free)(void *block)
{
	struct pa_sampled *own = own_of_sampled();
	if (!own)
		free_recorded(block);
	else if (LIKELY(sampled_is_unknown(own, block)))
		ph.real.free(block);
	else
		free_sampled(block);
}
