/* The heap stub's entry points, as stub.c's for the sampler: on a borrowed thread where pyattach attaches, or from
 * the constructor or the first call where the program was started with it. */
#include "patch.h"

EXPORT const struct pa_abi pyattach_abi = {
	.magic = PA_MAGIC,
	.version = PA_VERSION,
	.control_size = sizeof(struct pa_control),
	.slot_size = sizeof(struct pa_slot),
	.record_size = sizeof(struct pa_record),
};

COLD EXPORT i64 pa_init(struct pa_control *c, u64 region_size);
EXPORT i64 pa_arm(void);
EXPORT i64 pa_stop(void);
EXPORT i64 pa_forget(void);
EXPORT i64 pa_leave(void);

static u64 private_at;

static int fits(const struct pa_control *c, u64 region_size)
{
	const struct pa_heap *h = (const struct pa_heap *)((const u8 *)c + c->heap_offset);
	return c->magic == PA_MAGIC && c->version == PA_VERSION && c->control_size == sizeof(*c) &&
	       c->region_size <= region_size && c->heap_offset && c->heap_offset + sizeof(*h) <= region_size &&
	       h->magic == PA_HEAP_MAGIC && h->version == PA_HEAP_VERSION && h->size == sizeof(*h) &&
	       c->heap_offset + h->pool_offset + (h->pool_pages << 12) <= region_size &&
	       c->heap_offset + h->first_counts_offset + h->sites.most * sizeof(struct pa_heap_counts) <= region_size &&
	       h->nodes.most <= 1U << PA_NODE_BITS && h->sites.most <= 1U << PA_SITE_BITS && h->max_depth &&
	       h->thread_count && !(h->thread_count & (h->thread_count - 1)) && c->cache_lines &&
	       c->cache_offset + c->cache_lines * 32 <= region_size &&
	       !(c->cache_lines & (c->cache_lines - 1));
}

/* A word at least, or all of struct pa_sampled. */
static u64 private_size(const struct pa_heap *h)
{
	return h->sample_bytes ? (sizeof(struct pa_sampled) + 4095) & ~4095UL : 4096;
}

static void *private_memory(const struct pa_heap *h)
{
	u64 size = private_size(h);
	i64 at = sys6(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, ~0UL, 0);
	if (at < 0)
		return 0;
	if (sys3(SYS_madvise, at, size, MADV_WIPEONFORK)) {
		sys2(SYS_munmap, at, size);
		return 0;
	}
	return (void *)at;
}

static void begin_sampled(struct pa_heap *h, struct pa_sampled *own)
{
	h->private_at = (u64)own;
	h->private_bytes = __builtin_offsetof(struct pa_sampled, far);
	ph.sampled = own;
	mark_arena();
}

EXPORT i64 pa_init(struct pa_control *c, u64 region_size)
{
	const struct pa_heap *h = (const struct pa_heap *)((u8 *)c + c->heap_offset);
	struct pa_sampled *own = 0;
	volatile u32 *mine;
	i64 err = ph.control ? -EBUSY : fits(c, region_size) ? 0 : -EINVAL;
	if (!err && !(own = private_memory(h)))
		err = -ENOMEM;
	if (err) {
		sys2(SYS_munmap, c, region_size);
		return err;
	}
	private_at = (u64)own;
	mine = h->sample_bytes ? &own->mine : (u32 *)own;
	sys3(SYS_madvise, c, region_size, MADV_DONTDUMP);
	ph.pid = (u32)sys0(SYS_getpid);
	ph.vm_read_forbidden = c->flags & PA_NO_VM_READ;
	ph.heap = (struct pa_heap *)((u8 *)c + c->heap_offset);
	ph.threads = heap_at(ph.heap->threads_offset);
	ph.thread_mask = ph.heap->thread_count - 1;
	if (ph.heap->flags & PA_HEAP_ATTACHED)
		for (u32 i = 0; i < PA_REAL; i++)
			((u64 *)&ph.real)[i] = ph.heap->real[i];
	ph.control = c;
	c->init_clock_ns = clock_ns();
	if (ph.heap->sample_bytes)
		begin_sampled(ph.heap, own);
	__atomic_store_n(mine, 1, __ATOMIC_RELAXED);
	__atomic_store_n(&ph.mine, mine, __ATOMIC_RELEASE);
	return 0;
}

EXPORT i64 pa_arm(void)
{
	entries_make();
	patches_make();
	return 0;
}

/* Hooks only pass on from now on; threads that are inside of one go on recording, in memory that stays. */
EXPORT i64 pa_stop(void)
{
	__atomic_store_n(&ph.control->state, PA_STATE_STOP, __ATOMIC_RELEASE);
	entries_undo();
	patches_undo();
	if (ph.mine)
		__atomic_store_n(ph.mine, 0, __ATOMIC_RELEASE);
	ph.control->stop_clock_ns = clock_ns();
	return 0;
}

#ifdef PA_HEAP_PRELOADED
#define LOOK_NS 1000000

void heap_end(void) HIDDEN;

/* Called by exit(), when the program's own functions for that have been: what it still leads to, it leads to now.
 * Registers may lead to blocks as well: they are put on the stack, which is looked at even where they can't be. */
void heap_end(void)
{
	const volatile u32 *mine = __atomic_load_n(&ph.mine, __ATOMIC_ACQUIRE);
	struct timespec pause = {0, LOOK_NS};
	u32 not_yet = PA_EXIT_NOT_YET;
	SAVE_CALLEES_REGISTERS();
	if (!mine || !*mine || !(ph.heap->flags & PA_HEAP_WAITS))
		return;
	if (!__atomic_compare_exchange_n(&ph.heap->at_exit, &not_yet, PA_EXIT_WAITS, 0, __ATOMIC_ACQ_REL,
					 __ATOMIC_ACQUIRE))
		return;
	while (__atomic_load_n(&ph.heap->at_exit, __ATOMIC_ACQUIRE) == PA_EXIT_WAITS &&
	       __atomic_load_n(&ph.control->state, __ATOMIC_RELAXED) == PA_STATE_RUN &&
	       clock_ns() < __atomic_load_n(&ph.control->lease_until_ns, __ATOMIC_RELAXED))
		sys2(SYS_nanosleep, &pause, 0);
}
#endif

static void forget(void)
{
	__atomic_store_n(&ph.sampled, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&ph.mine, 0, __ATOMIC_SEQ_CST);
}

/* Threads that come still, by an address taken meanwhile, find no memory of ours and are passed on: the image may stay
 * without it.  Those that are there may have found it before: until they have left it is needed. */
EXPORT i64 pa_forget(void)
{
	forget();
	return 0;
}

/* No thread is inside of a hook: since pa_forget each was seen outside, or none comes any more. */
EXPORT i64 pa_leave(void)
{
	struct pa_control *c = ph.control;
	u64 size = private_size(ph.heap);
	entries_end();
	forget();
	ph.control = 0;
	sys2(SYS_munmap, private_at, size);
	sys2(SYS_munmap, c, c->region_size);
	return 0;
}
