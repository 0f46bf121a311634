/* What the heap profiler's files know of each other.
 *
 *   hooks.c    the functions that programs call, in place of the allocator's
 *   hooks.h    what those and the ones of entry_hooks.c have in common
 *   account.c  what is recorded of an allocation and of a free
 *   stack.c    the stack of a call, as a node
 *   memo.h     whole walks, by where they began
 *   tree.h     nodes and sites, each once
 *   blocks.h   live blocks by address
 *   sampled.h  sampled: calls of which nothing is recorded
 *   sampled.c  sampled: those of which something is
 *   sampled_blocks.h, sampled_chance.h  their live blocks by address; when samples are due
 *   thread.c   a thread's own tables
 *   real.c     the allocator's functions
 *   patch.c    words that lead to the hooks
 *   entries.c  the allocator's own code that does
 *   entry_hooks.c  the hooks for that
 *   entry.c    the stub's entry points
 */
#ifndef PA_HEAP_H
#define PA_HEAP_H

#include "../sys.h"
#include "layout.h"

#ifndef HIDDEN
#define HIDDEN __attribute__((visibility("hidden")))
#endif
#ifndef EXPORT
#define EXPORT __attribute__((visibility("default")))
#endif

#define LIKELY(condition) __builtin_expect(!!(condition), 1)
#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)
/* Seldom called: small before fast.  The library itself takes memory, too. */
#define COLD __attribute__((cold))
#define HASH 0x9e3779b97f4a7c15UL
#define ENOMEM 12
/* On the stack farther up than this is no caller of ours: the guard is of a hook that was left by a jump. */
#define FAR (8UL << 20)

/* The allocator's functions, 0 where it has none.  In this order in pyattach, too. */
struct pa_real {
	void *(*malloc)(u64);
	void *(*calloc)(u64, u64);
	void *(*realloc)(void *, u64);
	void *(*reallocarray)(void *, u64, u64);
	void (*free)(void *);
	int (*posix_memalign)(void **, u64, u64);
	void *(*aligned_alloc)(u64, u64);
	void *(*memalign)(u64, u64);
	void *(*valloc)(u64);
	void *(*pvalloc)(u64);
	int *(*errno_location)(void);
};
_Static_assert(sizeof(struct pa_real) == PA_REAL * 8, "struct pa_real");

/* Threads in a hook that has passed on and is returned to: of those that the allocator's own code leads to. */
extern u32 heap_passing HIDDEN;

/* Private to this process.  `mine` lies on a page that the kernel wipes at fork: a child reads 0 there and its
 * hooks only pass on.  It has the shared memory still, so that a fork from a signal handler that interrupted a
 * hook leads back into valid memory. */
struct pa_heap_private {
	struct pa_control *control;
	struct pa_heap *heap;
	volatile u32 *mine;
	struct pa_heap_thread *threads;
	u32 thread_mask;
	struct pa_sampled *sampled; /* where `mine` lies, if allocations are sampled; else 0 */
	u32 pid;
	u32 vm_read_forbidden;
	struct pa_real real;
};
extern struct pa_heap_private ph HIDDEN;

static inline void *heap_at(u64 offset)
{
	return (u8 *)ph.heap + offset;
}

static inline void *pool_at(u64 page)
{
	return (u8 *)ph.heap + ph.heap->pool_offset + (page << 12);
}

static inline struct pa_heap_counts *counts_at(u32 words)
{
	return (struct pa_heap_counts *)((u8 *)ph.heap + ph.heap->pool_offset + (u64)words * 8);
}

/* thread.c */
u64 pool_take(u64 pages) HIDDEN;
#define THREAD_HASH(tp) ((u32)(((tp) >> 6) * HASH >> 40))
struct pa_heap_thread *thread_find_slowly(u64 tp) HIDDEN;
struct pa_heap_counts *thread_counts_by_map(struct pa_heap_thread *t, u32 site) HIDDEN;
void thread_counts_anew(struct pa_heap_thread *t, u32 site) HIDDEN;
void thread_look_at_lease(struct pa_heap_thread *t) HIDDEN;

/* The first thread's are an array by site: mostly it is the only one, or has the most sites. */
static inline struct pa_heap_counts *first_counts(u32 site)
{
	return (struct pa_heap_counts *)heap_at(ph.heap->first_counts_offset) + site;
}

/* The thread's counts of a site; 0: there is no room. */
static inline struct pa_heap_counts *thread_counts(struct pa_heap_thread *t, u32 site)
{
	struct pa_heap_counts *counts;
	if (UNLIKELY(!t->first))
		return thread_counts_by_map(t, site);
	counts = first_counts(site);
	counts->site = site;
	return counts;
}

/* The thread's tables, made when there are none; 0: there is no room. */
static inline struct pa_heap_thread *thread_find(u64 tp)
{
	struct pa_heap_thread *t = ph.threads + (THREAD_HASH(tp) & ph.thread_mask);
	if (LIKELY(__atomic_load_n(&t->tp, __ATOMIC_RELAXED) == tp) && LIKELY(t->map_at))
		return t;
	return thread_find_slowly(tp);
}

/* To be called for each event: every so often it is looked whether pyattach is there still. */
#define LEASE_EVENTS 4096
static inline void thread_event(struct pa_heap_thread *t)
{
	if (UNLIKELY(++t->events >= LEASE_EVENTS))
		thread_look_at_lease(t);
}

/* stack.c: the stack whose innermost frame goes on at ip, with this sp and fp: its node is what counts.  The thread's
 * until its next walk. */
struct pa_memo *stack_walk(struct pa_heap_thread *t, u64 ip, u64 sp, u64 fp) HIDDEN;
/* The node alone, for a thread that keeps no whole walks. */
u32 stack_node(struct pa_heap_thread *t, u64 ip, u64 sp, u64 fp) HIDDEN;

/* account.c */
void new_peak(i64 live) HIDDEN;
u32 site_number(u64 size, u32 node) HIDDEN; /* 0: there is no room */
void account_alloc(struct pa_heap_thread *t, u64 address, u64 size, const u64 *frame) HIDDEN;
/* The site of the block, which is gone then; 0: not known. */
u32 account_free(struct pa_heap_thread *t, u64 address, int by_free) HIDDEN;
/* It was not freed after all. */
void account_keep(struct pa_heap_thread *t, u64 address, u32 site) HIDDEN;

/* hooks.c: frees of blocks from before the allocator could be called are to be seen. */
COLD void mark_arena(void) HIDDEN;

/* real.c: find what is not found yet behind this library; whether all that matters is. */
COLD int real_find(void) HIDDEN;

/* Where the program was started with this library: map the shared memory at the first call. */
COLD void heap_begin(void) HIDDEN;

#endif
