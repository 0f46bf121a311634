/* What is recorded of an allocation and of a free. */
#include "blocks.h"
#include "tree.h"

void new_peak(i64 live)
{
	struct pa_heap *h = ph.heap;
	i64 peak = __atomic_load_n(&h->peak, __ATOMIC_RELAXED);
	while (live > peak)
		if (__atomic_compare_exchange_n(&h->peak, &peak, live, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
			__atomic_fetch_add(&h->peak_seq, 1, __ATOMIC_RELAXED);
			return;
		}
}

/* The process's live bytes.  Threads add theirs up when so many have changed, and the peak is known to as much for
 * each thread.  One that is alone looks for the peak every time, and needs nothing of what makes that safe. */
static inline void fold(struct pa_heap_thread *t)
{
	struct pa_heap *h = ph.heap;
	i64 pending = t->pending;
	if (__atomic_load_n(&h->threads_used, __ATOMIC_RELAXED) == 1) {
		i64 live = h->live + pending;
		if (live > h->peak) {
			h->peak = live;
			h->peak_seq++;
		}
	}
	if (UNLIKELY(pending >= PA_FOLD_BYTES || pending <= -PA_FOLD_BYTES)) {
		t->pending = 0;
		new_peak(__atomic_add_fetch(&h->live, pending, __ATOMIC_RELAXED));
	}
}

/* Before a count changes: how it was when the peak was highest. */
static inline void note_peak(struct pa_heap_counts *counts)
{
	u32 seq = __atomic_load_n(&ph.heap->peak_seq, __ATOMIC_RELAXED);
	if (counts->peak_seq != seq) {
		counts->at_peak = counts->allocs - counts->frees;
		counts->peak_seq = seq;
	}
}

u32 site_number(u64 size, u32 node)
{
	return tree_site(size, node);
}

static inline u32 counts_words(const struct pa_heap_counts *counts)
{
	return (u32)(((u64)counts - (u64)ph.heap - ph.heap->pool_offset) / 8);
}

/* The thread's counts of blocks of this size from this stack; 0 where there is no room. */
static struct pa_heap_counts *find_site(struct pa_heap_thread *t, u64 size, u32 node)
{
	struct pa_heap_recent *recent = heap_at(t->recent_at);
	struct pa_heap_counts *counts;
	u32 site;
	recent += ((size ^ (u64)node * HASH) * HASH >> 32) & (PA_RECENT - 1);
	if (LIKELY(recent->size == size && recent->node == node && recent->site))
		return counts_at(recent->counts);
	site = tree_site(size, node);
	counts = site ? thread_counts(t, site) : 0;
	if (!counts)
		return 0;
	if (UNLIKELY(size >> 32))
		return counts;
	recent->site = site;
	recent->size = (u32)size;
	recent->node = node;
	recent->counts = counts_words(counts);
	return counts;
}

/* The same, of the walk that it comes from. */
static inline struct pa_heap_counts *site_of(struct pa_heap_thread *t, u64 size, struct pa_memo *memo)
{
	struct pa_heap_counts *counts;
	if (LIKELY(memo->size == size && memo->counts))
		return counts_at(memo->counts);
	counts = find_site(t, size, memo->node);
	memo->size = size;
	memo->counts = counts ? counts_words(counts) : 0;
	return counts;
}

static void count_free(struct pa_heap_thread *t, u32 site, int temporary)
{
	struct pa_heap_counts *counts = thread_counts(t, site);
	if (UNLIKELY(!counts)) {
		t->lost++;
		return;
	}
	note_peak(counts);
	counts->temporary += temporary;
	if (UNLIKELY(++counts->frees == PA_COUNTS_FULL))
		thread_counts_anew(t, site);
	t->pending -= (i64)site_size(site);
	fold(t);
}

/* Where something was freed unseen, an address may still have a block. */
static void replace_block(struct pa_heap_thread *t, u64 address)
{
	u32 site = block_take(address);
	if (!site)
		return;
	t->replaced++;
	count_free(t, site, 0);
}

void account_alloc(struct pa_heap_thread *t, u64 address, u64 size, const u64 *frame)
{
	struct pa_heap *h = ph.heap;
	struct pa_heap_counts *counts;
	t->calls++;
	thread_event(t);
	if (h->flags & PA_HEAP_ATTACHED)
		replace_block(t, address);
	counts = site_of(t, size, stack_walk(t, frame[1], (u64)(frame + 2), frame[0]));
	if (UNLIKELY(!counts)) {
		t->lost++;
		return;
	}
	if (UNLIKELY(!block_put(address, counts->site)))
		__atomic_fetch_add(&h->without_block, 1, __ATOMIC_RELAXED);
	note_peak(counts);
	if (UNLIKELY(++counts->allocs == PA_COUNTS_FULL))
		thread_counts_anew(t, counts->site);
	t->last = address;
	t->pending += (i64)size;
	fold(t);
}

u32 account_free(struct pa_heap_thread *t, u64 address, int by_free)
{
	int is_last = t->last == address;
	u32 site;
	thread_event(t);
	if (is_last)
		t->last = 0;
	site = block_take(address);
	if (UNLIKELY(!site)) {
		t->unknown_frees++;
		return 0;
	}
	count_free(t, site, is_last && by_free);
	return site;
}

void account_keep(struct pa_heap_thread *t, u64 address, u32 site)
{
	struct pa_heap *h = ph.heap;
	struct pa_heap_counts *counts = thread_counts(t, site);
	if (UNLIKELY(!block_put(address, site)))
		__atomic_fetch_add(&h->without_block, 1, __ATOMIC_RELAXED);
	if (!counts)
		return;
	note_peak(counts);
	counts->frees--;
	t->pending += (i64)site_size(site);
	fold(t);
}
