/* Where allocations are sampled: those calls of which something is recorded, or may have to be.
 *
 * To record takes a context: tables to walk the stack with, which a thread has only meanwhile.  So there are as many
 * as there are threads that record at the same instant, mostly one.  A thread that is killed there leaves its context
 * to the next with its thread pointer.
 */
#include "sampled_blocks.h"
#include "sampled_chance.h"

#define SLICE (1UL << 20)      /* no more weight passes before it is looked whether all of this is still wanted */
#define NEVER (1UL << 62)
#define VISITS_TO_LOOK 4
#define MOST_FAR_PROBES 64

static void add(u64 *number)
{
	__atomic_fetch_add(number, 1, __ATOMIC_RELAXED);
}

static void leave_bytes(struct pa_sampled_thread *s, u64 left)
{
	s->rest = left > SLICE ? left - SLICE : 0;
	sampled_leave(s, left - s->rest);
}

static u64 draw(struct pa_sampled_thread *s)
{
	return exponential(&s->random) * ph.heap->sample_bytes >> 16;
}

/* Make the place the thread's, if nobody has it. */
static int take_place(struct pa_sampled_thread *s, u64 tp, int far)
{
	u64 nobody = 0;
	if (!__atomic_compare_exchange_n(&s->tp, &nobody, tp, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		return nobody == tp;
	s->random = tp * HASH ^ ph.control->nonce;
	s->until = s->rest = draw(s);
	s->until = s->until < SLICE ? s->until : SLICE;
	s->rest -= s->until;
	if (far)
		__atomic_fetch_add(&ph.heap->private_bytes, 4096, __ATOMIC_RELAXED);
	return 1;
}

static struct pa_sampled_thread *thread_place(struct pa_sampled *own)
{
	struct pa_sampled_thread *s;
	u64 tp = thread_pointer();
	s = &own->near[TP_HASH(tp) >> 27];
	if (take_place(s, tp, 0))
		return s;
	for (u32 i = 0; i < MOST_FAR_PROBES; i++) {
		s = &own->far[((TP_HASH(tp) >> 20) + i) & (PA_FAR_THREADS - 1)];
		if (take_place(s, tp, 1))
			return s;
	}
	return 0;
}

/* Calls that begin under a guard are the allocator's own, or a signal handler's; one that lies far below on the stack
 * is of a hook that was left by a jump. */
static int is_guarded(const struct pa_sampled_thread *s, u64 sp)
{
	return s->guard && !(sp >= s->guard && sp - s->guard < FAR);
}

/* Nothing is recorded any more: the thread need not come here again. */
static void go_quiet(struct pa_sampled *own)
{
	struct pa_sampled_thread *s = own->mine ? sampled_thread(own) : 0;
	if (s)
		s->until = NEVER;
}

struct pa_sampled_thread *sampled_enter(const u64 *frame)
{
	struct pa_sampled *own = ph.sampled;
	struct pa_sampled_thread *s;
	if (!own)
		return 0;
	if (!own->mine || __atomic_load_n(&ph.control->state, __ATOMIC_RELAXED) != PA_STATE_RUN) {
		go_quiet(own);
		return 0;
	}
	s = thread_place(own);
	if (!s) {
		add(&ph.heap->without_thread);
		return 0;
	}
	if (is_guarded(s, (u64)frame)) {
		add(&ph.heap->nested);
		return 0;
	}
	__atomic_store_n(&s->guard, (u64)frame, __ATOMIC_RELAXED);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	return s;
}

/* Without pyattach nobody reads this: go quiet. */
static void look_at_lease(struct pa_sampled_thread *s)
{
	if (++s->visits % VISITS_TO_LOOK)
		return;
	if (clock_ns() > __atomic_load_n(&ph.control->lease_until_ns, __ATOMIC_RELAXED)) {
		ph.heap->expired = 1;
		__atomic_store_n(&ph.control->state, PA_STATE_STOP, __ATOMIC_RELEASE);
	}
}

u64 sampled_begin(struct pa_sampled_thread *s)
{
	u64 left = s->until + s->rest;
	look_at_lease(s);
	s->until = 0;
	s->rest = left;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	return left;
}

/* Offsets from the heap's begin. */
static int context_begin(struct pa_heap_thread *t)
{
	u64 frames = (u64)ph.heap->max_depth * sizeof(struct pa_walked);
	const u64 children = PA_SAMPLED_RECENT * sizeof(struct pa_heap_child);
	u64 page = pool_take((children + 2 * frames + PA_ROOM_BYTES + 4095) >> 12);
	if (!page)
		return 0;
	t->frames_at = ph.heap->pool_offset + (page << 12);
	t->scratch_at = t->frames_at + frames;
	t->room_at = t->scratch_at + frames;
	t->children_at = t->room_at + PA_ROOM_BYTES;
	t->children_mask = PA_SAMPLED_RECENT - 1;
	return 1;
}

/* `last` says whose it is.  What it knows of a stack is of use to the thread that had it before. */
static struct pa_heap_thread *context_take(u64 tp)
{
	struct pa_heap_thread *t = heap_at(ph.heap->threads_offset);
	for (u32 i = 0; i < ph.heap->thread_count; i++, t++) {
		u64 nobody = 0;
		if (!__atomic_compare_exchange_n(&t->last, &nobody, tp, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED) && nobody != tp)
			continue;
		if (t->tp != tp) {
			t->depth = 0;
			t->stack_low = t->stack_high = 0;
			t->tp = tp;
		}
		return t->children_at || context_begin(t) ? t : 0;
	}
	return 0;
}

/* A child that a fork has made meanwhile leaves it to the parent. */
static void context_give(struct pa_heap_thread *t)
{
	if (ph.sampled->mine)
		__atomic_store_n(&t->last, 0, __ATOMIC_RELEASE);
}

/* The site of blocks of this size from this stack; 0: there is no room. */
static u32 site_of(u64 tp, u64 size, const u64 *frame)
{
	struct pa_heap_thread *t = context_take(tp);
	u32 site = 0;
	if (t) {
		site = site_number(size, stack_node(t, frame[1], (u64)(frame + 2), frame[0]));
		context_give(t);
	}
	return site;
}

static u64 size_of(u32 site)
{
	return ((const struct pa_site *)heap_at(ph.heap->sites.items_offset))[site].size;
}

static struct pa_tally *tally_of(u32 site)
{
	return (struct pa_tally *)heap_at(ph.heap->tallies_offset) + site;
}

static u64 live_of(const struct pa_tally *tally)
{
	return __atomic_load_n(&tally->allocs, __ATOMIC_RELAXED) - __atomic_load_n(&tally->frees, __ATOMIC_RELAXED);
}

/* Before a count changes: how it was when the peak was highest. */
static void note_peak(struct pa_tally *tally)
{
	u64 seq = __atomic_load_n(&ph.heap->peak_seq, __ATOMIC_RELAXED);
	u64 old = __atomic_load_n(&tally->at_peak, __ATOMIC_RELAXED);
	if (old >> 32 != seq)
		__atomic_compare_exchange_n(&tally->at_peak, &old, seq << 32 | (u32)live_of(tally), 0, __ATOMIC_RELAXED,
					    __ATOMIC_RELAXED);
}

/* To the process's live bytes, as far as sampled blocks tell them. */
static void add_live(u32 site, i64 blocks)
{
	i64 bytes = (i64)stands_for(size_of(site)) * blocks;
	new_peak(__atomic_add_fetch(&ph.heap->live, bytes, __ATOMIC_RELAXED));
}

static void count_free(u32 site, int temporary)
{
	struct pa_tally *tally = tally_of(site);
	note_peak(tally);
	if (temporary)
		add(&tally->temporary);
	add(&tally->frees);
	add_live(site, -1);
}

/* Where something was freed unseen, an address may still have a block. */
static void replace_block(u64 address)
{
	u32 site = sampled_take(address);
	struct pa_heap_thread *any = heap_at(ph.heap->threads_offset);
	if (!site)
		return;
	add(&any->replaced);
	count_free(site, 0);
}

static void put_block(u64 address, u32 site)
{
	if (UNLIKELY(!sampled_put(address, site)))
		add(&ph.heap->without_block);
}

/* Returns whether there was room. */
static int record(u64 tp, u64 address, u64 size, const u64 *frame)
{
	u32 site;
	replace_block(address);
	site = site_of(tp, size, frame);
	if (!site) {
		add(&ph.heap->without_thread);
		return 0;
	}
	put_block(address, site);
	note_peak(tally_of(site));
	add(&tally_of(site)->allocs);
	add_live(site, 1);
	return 1;
}

void sampled_end(struct pa_sampled_thread *s, u64 left, u64 block, u64 size, const u64 *frame)
{
	int is_due = left <= size;
	if (block && !is_due)
		left -= size + 1;
	if (block && is_due) {
		int recorded = record(s->tp, block, size, frame);
		left = draw(s);
		s->last = recorded ? block : 0;
		s->last_left = left;
	}
	leave_bytes(s, left);
}

u32 sampled_free(struct pa_sampled_thread *s, u64 address, int by_free)
{
	u32 site = sampled_take(address);
	int is_last = s->last == address && s->last_left == s->until + s->rest;
	if (site)
		count_free(site, is_last && by_free);
	return site;
}

void sampled_keep(u64 address, u32 site)
{
	struct pa_tally *tally = tally_of(site);
	put_block(address, site);
	note_peak(tally);
	__atomic_fetch_sub(&tally->frees, 1, __ATOMIC_RELAXED);
	add_live(site, 1);
}

int sampled_is_known(u64 address)
{
	return address && sampled_find(address);
}
