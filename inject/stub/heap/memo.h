/* Whole walks of a thread, by where they began.
 *
 * A program allocates again and again in the same places.  What a walk comes to depends on ip, sp and fp (the latter
 * only where a step counts from it) and on the words that it read from the stack: where those are what they were then,
 * so is the stack, and no frame of it need be looked at.  A walk is kept where all of its words are known; those that
 * begin in the same place and came another way are beside it.
 */
#ifndef PA_MEMO_H
#define PA_MEMO_H

#include "heap.h"

/* The first of those that may be of walks from here. */
static inline struct pa_memo *memos_of(const struct pa_heap_thread *t, u64 ip, u64 sp)
{
	struct pa_memo *memos = heap_at(t->memos_at);
	return &memos[((ip ^ (sp << 20)) * HASH >> 40) & (PA_MEMOS - PA_MEMO_WAYS)];
}

/* Whether the walk from here is the one that is kept. */
static inline int memo_holds(const struct pa_memo *m, const struct pa_heap_thread *t, u64 ip, u64 sp, u64 fp)
{
	const u64 *stack = (const u64 *)sp, *word = m->word;
	const u16 *at = m->at;
	if (m->ip != ip || m->sp != sp || m->generation != t->generation || (m->needs_fp && m->fp != fp) ||
	    sp + m->span > t->stack_high)
		return 0;
	for (const u16 *end = at + m->count; at < end; at += 4, word += 4)
		if (((stack[at[0]] ^ word[0]) | (stack[at[1]] ^ word[1])) |
		    ((stack[at[2]] ^ word[2]) | (stack[at[3]] ^ word[3])))
			return 0;
	return 1;
}

static inline int memo_add(struct pa_memo *m, u64 address)
{
	u64 at = (address - m->sp) >> 3;
	if (m->count >= PA_MEMO_WORDS || at > 0xffff)
		return 0;
	m->at[m->count] = (u16)at;
	m->word[m->count++] = *(const u64 *)address;
	if (8 * (u32)at + 8 > m->span)
		m->span = 8 * (u32)at + 8;
	return 1;
}

/* Of the walk that frames[depth - 1], down to frames[0], are; whether all that it read is known, and has room. */
static int memo_add_all(struct pa_memo *m, const struct pa_walked *frames, u32 depth)
{
	for (u32 k = depth - 1; k; k--) {
		const struct pa_walked *here = &frames[k], *up = &frames[k - 1];
		if (!here->checked || !memo_add(m, up->sp - 8))
			return 0;
		if (up->needs_fp && here->fp_at && !memo_add(m, here->fp_at))
			return 0;
	}
	while (m->count & 3) /* they are compared by four */
		if (!memo_add(m, m->sp + 8 * (u64)m->at[m->count - 1]))
			return 0;
	return 1;
}

/* The walk that came to `node` by frames[depth - 1] down to frames[0].  What can't be kept says so, and has the node. */
static void memo_make(struct pa_memo *m, const struct pa_heap_thread *t, u64 ip, u64 sp, u64 fp, u32 depth, u32 node)
{
	const struct pa_walked *frames = heap_at(t->frames_at);
	m->count = 0;
	m->span = 0;
	m->sp = sp;
	m->fp = fp;
	m->node = node;
	m->counts = 0;
	m->generation = t->generation;
	m->needs_fp = frames[depth - 1].needs_fp;
	m->ip = node != PA_NO_STACK && memo_add_all(m, frames, depth) ? ip : 0;
}

#endif
