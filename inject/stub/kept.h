/* The outer frames of a thread's last walk: where a new one comes to a frame of it, the rest is taken from there.
 *
 * A stack changes at its inner end; from main to wherever the program's loop is, it is the same for seconds.  What
 * a walk by cached rules finds from a frame on depends on that frame's ip, sp and (where a rule counts from it) fp, on
 * the rules, and on the words it reads from the stack: the return addresses and some saved frame pointers.  So
 * frames are kept with these words, and taken again only where each word is still what it was: two loads a frame, and
 * no rule.  Anything else is walked anew.
 *
 * frame[PA_KEPT - 1] is the thread's first function, frame[first] the innermost.  Only frames that lead to the root by
 * steps of the common kind are there.  One writer, and only in its own handler; in shared memory, so nothing here
 * is believed further than a read of stack that was asked for.
 */
#ifndef PA_KEPT_H
#define PA_KEPT_H

#include "unwind.h"

#define KEPT_NONE (~0UL)

/* How the walk came to a frame; a walk that is deeper than there is room overwrites its inner ones. */
struct pa_came {
	u64 sp, fp;
	u8 back;      /* its fp was read so many bytes below its sp; 0: it is the callee's */
	u8 by_fp;     /* the step counted from the callee's fp */
	u8 fp_known;
	u8 pad[5];
};

struct pa_kept_frame {
	u64 sp, ip, fp;
	u64 word;    /* what was read at sp - back besides the return address, which is at sp - 8 */
	u8 back;     /* 8: nothing besides */
	u8 needs_fp; /* the steps from here depend on fp */
	u8 pad[6];
};

struct pa_kept {
	u32 first;
	u32 generation;
	u64 pad;
	struct pa_kept_frame frame[PA_KEPT];
	struct pa_came came[PA_KEPT];
};
_Static_assert(sizeof(struct pa_kept) == PA_KEPT_BYTES, "as shared.h says");

/* A walk's use of it. */
struct kept_walk {
	struct pa_kept *kept;
	u64 next_sp; /* of the kept frame that may be met next; KEPT_NONE: none may */
	u32 next;    /* its place */
	u32 met;     /* the place of the one met; PA_KEPT: none was */
	u32 from;    /* frames of the walk from this one on lead on by steps of the common kind */
};

static inline void kept_look(struct kept_walk *k, u32 place)
{
	k->next = place;
	k->next_sp = place < PA_KEPT ? k->kept->frame[place].sp : KEPT_NONE;
}

static inline void kept_begin(struct kept_walk *k, const struct pa_unwinder *u)
{
	k->kept = u->kept;
	k->next = k->met = PA_KEPT;
	k->next_sp = KEPT_NONE;
	k->from = 0;
	if (k->kept && k->kept->generation == u->generation)
		kept_look(k, k->kept->first);
}

/* The walk goes on by steps of the common kind from frame n, where it came by another, or from the one behind it. */
static inline void kept_start(struct kept_walk *k, u32 n, u32 exact, const struct pa_frame *f)
{
	k->from = n + exact;
	if (k->kept && !exact)
		k->kept->came[n % PA_KEPT] =
			(struct pa_came){.sp = f->r[PA_REG_SP], .fp = f->r[PA_REG_FP], .fp_known = f->known >> PA_REG_FP & 1};
}

/* The walk came to frame n by a step of the common kind. */
static inline void kept_came(struct kept_walk *k, u32 n, u64 sp, const struct pa_frame *f, u32 back, u32 by_fp)
{
	if (k->kept)
		k->kept->came[n % PA_KEPT] = (struct pa_came){
			sp, f->r[PA_REG_FP], (u8)back, (u8)by_fp, f->known >> PA_REG_FP & 1, {0}};
}

/* The frames behind the one at `place`, into `out`, as long as what was read on the way to each is still there.
 * Returns the place of the first that is not so; PA_KEPT: all are. */
static inline u32 kept_same(const struct kept_walk *k, struct pa_unwinder *u, u32 place, u64 *out)
{
	const struct pa_kept_frame *frame = k->kept->frame;
	u64 low = u->stack.low + 255, high = u->stack.high, bias = u->stack.bias, ret, word;
	while (++place < PA_KEPT) {
		const struct pa_kept_frame *at = &frame[place];
		u64 sp = at->sp, second = sp - at->back;
		if (__builtin_expect(sp < low || sp > high, 0)) {
			if (!stack_word(&u->stack, second, &word) || !stack_word(&u->stack, sp - 8, &ret))
				return place;
			low = u->stack.low + 255;
			high = u->stack.high;
			bias = u->stack.bias;
		} else {
			__builtin_memcpy(&ret, (const void *)(sp - 8 + bias), 8);
			__builtin_memcpy(&word, (const void *)(second + bias), 8);
		}
		if (__builtin_expect((ret ^ at->ip) | (word ^ at->word), 0))
			return place;
		*out++ = at->ip;
	}
	return PA_KEPT;
}

/* The walk is at addresses[n - 1], a caller's frame whose sp is no lower than next_sp.  Where that frame is kept, and
 * what is behind it the same, addresses are filled to the root.  Returns how many there are then, or 0. */
static inline u32 kept_rest(struct kept_walk *k, struct pa_unwinder *u, u64 sp, const struct pa_frame *f, u64 *addresses,
			    u32 n, u32 max)
{
	const struct pa_kept_frame *frame;
	u32 same, fp_known = f->known >> PA_REG_FP & 1;
	while (k->next_sp < sp)
		kept_look(k, k->next + 1);
	if (k->next_sp != sp || k->next >= PA_KEPT)
		return 0;
	frame = &k->kept->frame[k->next];
	if (frame->ip != addresses[n - 1] || (frame->needs_fp && !(fp_known && frame->fp == f->r[PA_REG_FP])) ||
	    PA_KEPT - 1 - k->next > max - n)
		return 0;
	same = kept_same(k, u, k->next, addresses + n);
	if (same < PA_KEPT) {
		kept_look(k, same); /* from a frame before that one the way is the same, up to there */
		return 0;
	}
	k->met = k->next;
	return n + PA_KEPT - 1 - k->next;
}

/* The walk has come to the root by n frames of its own, the last of them the one met, where one was: keep them. */
static inline void kept_keep(const struct kept_walk *k, const struct pa_unwinder *u, const u64 *addresses, u32 n)
{
	struct pa_kept *kept = k->kept;
	u32 place = k->met < PA_KEPT ? k->met : PA_KEPT - 1, needs_fp, i = n;
	if (!kept || n <= k->from)
		return;
	needs_fp = k->met < PA_KEPT ? kept->frame[place].needs_fp : kept->came[(n - 1) % PA_KEPT].fp_known;
	for (;; place--) {
		const struct pa_came *came = &kept->came[--i % PA_KEPT];
		struct pa_kept_frame *to = &kept->frame[place];
		u32 read_fp = came->back && needs_fp;
		to->sp = came->sp;
		to->ip = addresses[i];
		to->fp = came->fp;
		to->word = read_fp ? came->fp : addresses[i];
		to->back = read_fp ? came->back : 8;
		to->needs_fp = (u8)needs_fp;
		if (i == k->from || !place || n - i == PA_KEPT)
			break;
		needs_fp = came->by_fp || (!came->back && needs_fp);
	}
	kept->first = place;
	kept->generation = u->generation;
}

#endif
