/* A thread's own tables: nobody else writes there, so nothing in them is atomic.
 *
 * A thread is known by its thread pointer.  Its tables stay when it ends, and go to the next with that pointer (the
 * C library uses stacks again, and with them the pointers), so there are as many as there were threads at once.
 */
#include "heap.h"

#define FIRST_MAP_BITS 10

u64 pool_take(u64 pages)
{
	u64 page = __atomic_fetch_add(&ph.heap->pool_used, pages, __ATOMIC_RELAXED);
	return page + pages <= ph.heap->pool_pages ? page : 0;
}

static u64 pages_for(u64 bytes)
{
	return (bytes + 4095) >> 12;
}

/* Offsets from the heap's begin. */
static u64 pool_offset(u64 page)
{
	return ph.heap->pool_offset + (page << 12);
}

static int thread_begin(struct pa_heap_thread *t)
{
	u64 frames = (u64)ph.heap->max_depth * sizeof(struct pa_walked);
	const u64 recent = PA_RECENT * sizeof(struct pa_heap_recent), children = PA_RECENT * sizeof(struct pa_heap_child);
	const u64 memos = PA_MEMOS * sizeof(struct pa_memo);
	u64 page = pool_take(pages_for(recent + children + 2 * frames + PA_ROOM_BYTES + memos));
	u64 map = pool_take((4UL << FIRST_MAP_BITS) >> 12);
	if (!page || !map)
		return 0;
	t->recent_at = pool_offset(page);
	t->children_at = t->recent_at + recent;
	t->children_mask = PA_RECENT - 1;
	t->frames_at = t->children_at + children;
	t->scratch_at = t->frames_at + frames;
	t->room_at = t->scratch_at + frames;
	t->memos_at = t->room_at + PA_ROOM_BYTES;
	t->map_bits = FIRST_MAP_BITS;
	t->first = !__atomic_fetch_add(&ph.heap->first_taken, 1, __ATOMIC_RELAXED);
	/* Last: with it the thread has its tables, also in the handler of a signal that comes just now. */
	__atomic_store_n(&t->map_at, pool_offset(map), __ATOMIC_RELEASE);
	return 1;
}

struct pa_heap_thread *thread_find_slowly(u64 tp)
{
	u32 i = THREAD_HASH(tp);
	for (u32 probes = 0; probes <= ph.thread_mask && probes < 64; probes++, i++) {
		struct pa_heap_thread *t = &ph.threads[i & ph.thread_mask];
		u64 there = __atomic_load_n(&t->tp, __ATOMIC_RELAXED);
		if (LIKELY(there == tp))
			return LIKELY(t->map_at) ? t : 0;
		if (there)
			continue;
		if (!__atomic_compare_exchange_n(&t->tp, &there, tp, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
			continue;
		__atomic_fetch_add(&ph.heap->threads_used, 1, __ATOMIC_RELAXED);
		return thread_begin(t) ? t : 0;
	}
	return 0;
}

static u32 *map_of(const struct pa_heap_thread *t)
{
	return heap_at(t->map_at);
}

static u32 *map_slot(u32 *map, u32 bits, u32 site)
{
	u32 mask = (1U << bits) - 1, i = (u32)((u64)site * HASH >> 32);
	while (map[i & mask] && counts_at(map[i & mask])->site != site)
		i++;
	return &map[i & mask];
}

/* Twice the room.  The old map's pages are for counts then, of which so much room is needed soon. */
static int map_grow(struct pa_heap_thread *t)
{
	u32 bits = t->map_bits + 1, *old = map_of(t), *fresh;
	u64 page = pool_take((4UL << bits) >> 12);
	if (!page)
		return 0;
	fresh = pool_at(page);
	for (u32 i = 0; i < 1U << t->map_bits; i++)
		if (old[i])
			*map_slot(fresh, bits, counts_at(old[i])->site) = old[i];
	t->spare_page = (u32)((t->map_at - ph.heap->pool_offset) >> 12) + 1;
	t->spare_pages = (u32)((4UL << t->map_bits) >> 12);
	t->map_at = pool_offset(page);
	t->map_bits = bits;
	return 1;
}

/* An empty page, or 0. */
static u64 page_take(struct pa_heap_thread *t)
{
	u64 page, *words;
	if (!t->spare_pages)
		return pool_take(1);
	page = t->spare_page++ - 1;
	t->spare_pages--;
	words = pool_at(page);
	for (u32 i = 0; i < 512; i++)
		words[i] = 0;
	return page;
}

/* The next place in the thread's pages, or 0. */
static struct pa_heap_counts *counts_new(struct pa_heap_thread *t)
{
	struct pa_heap_page *page = t->last_page ? pool_at(t->last_page - 1) : 0;
	if (!page || page->used == PA_COUNTS_IN_PAGE) {
		u64 fresh = page_take(t);
		if (!fresh)
			return 0;
		if (page)
			page->next = (u32)fresh + 1;
		else
			t->first_page = (u32)fresh + 1;
		t->last_page = (u32)fresh + 1;
		page = pool_at(fresh);
	}
	return &page->counts[page->used];
}

/* New counts of the site, which the slot of the map leads to from now on. */
static struct pa_heap_counts *counts_at_slot(struct pa_heap_thread *t, u32 *slot, u32 site)
{
	struct pa_heap_counts *counts = counts_new(t);
	if (!counts)
		return 0;
	counts->site = site;
	((struct pa_heap_page *)((u64)counts & ~4095UL))->used++;
	*slot = (u32)(((u64)counts - (u64)ph.heap - ph.heap->pool_offset) / 8);
	return counts;
}

struct pa_heap_counts *thread_counts_by_map(struct pa_heap_thread *t, u32 site)
{
	u32 *slot = map_slot(map_of(t), t->map_bits, site);
	struct pa_heap_counts *counts;
	if (LIKELY(*slot))
		return counts_at(*slot);
	if (4 * t->map_used >= 3U << t->map_bits) {
		if (!map_grow(t))
			return 0;
		slot = map_slot(map_of(t), t->map_bits, site);
	}
	counts = counts_at_slot(t, slot, site);
	t->map_used += counts != 0;
	return counts;
}

/* The first thread's go to a page, and begin anew in their place. */
static void first_counts_anew(struct pa_heap_thread *t, u32 site)
{
	struct pa_heap_counts *counts = first_counts(site), *old = counts_new(t);
	if (!old)
		return;
	*old = *counts;
	((struct pa_heap_page *)((u64)old & ~4095UL))->used++;
	counts->allocs = counts->frees = counts->temporary = counts->at_peak = 0;
}

/* What the thread has counted of the site so far stays as it is.  Where there is no room, the numbers go on. */
void thread_counts_anew(struct pa_heap_thread *t, u32 site)
{
	struct pa_heap_recent *recent = heap_at(t->recent_at);
	struct pa_memo *memos = heap_at(t->memos_at);
	if (t->first) {
		first_counts_anew(t, site);
		return;
	}
	counts_at_slot(t, map_slot(map_of(t), t->map_bits, site), site);
	for (u32 i = 0; i < PA_RECENT; i++)
		recent[i].site = 0;
	for (u32 i = 0; i < PA_MEMOS; i++)
		memos[i].counts = 0;
}

/* Without pyattach nobody reads this: go quiet. */
void thread_look_at_lease(struct pa_heap_thread *t)
{
	t->events = 0;
	if (clock_ns() > __atomic_load_n(&ph.control->lease_until_ns, __ATOMIC_RELAXED)) {
		ph.heap->expired = 1;
		__atomic_store_n(&ph.control->state, PA_STATE_STOP, __ATOMIC_RELEASE);
	}
}
