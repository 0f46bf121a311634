/* The stack of a call, as a node of the tree of stacks.
 *
 * What a walk finds depends on the state it begins with (ip, sp, fp), the unwind tables and the words it reads from
 * the stack.  So the last walk is kept frame by frame, and wherever a new one comes to a state of the last, the
 * rest needs no rules: it is the same if the words are the same, which are compared up to the root.  Where no step
 * further out counts from fp before it is read anew, fp is no part of the state, nor of what is compared: in code
 * without frame pointers it is a register like others, and changes all the time.
 *
 * Before that it is looked whether a whole walk is kept that began here and is as it was (memo.h).
 *
 * frames[0] is next to the root, frames[depth - 1] the innermost.  Those that a later walk has found to be gone
 * may stay behind them: each is compared in full before it is believed.
 */
#include "../cache.h"
#include "../memory.h"
#include "../modules.h"
#include "tree.h"
#include "memo.h"

#define MAX_DISTANCE (256UL << 20)
#define LOWEST_CODE 4096
#define NEAR_PAGES 64

#define BIT(reg) (1U << (reg))

struct state {
	u64 ip, sp, fp;
};

struct walk {
	struct pa_heap_thread *t;
	struct pa_walked *frames, *scratch;
	u32 fresh; /* in scratch, innermost first */
	u32 max;
	int exact; /* ip is an instruction, no return address */
	int at_zero; /* it ended at a return address of 0 */
	struct vm_reader reader;
	struct pa_unwinder u;
	int u_ready;
};

static __attribute__((noinline)) int grows_to(struct pa_heap_thread *t, u64 address)
{
	if (address < t->stack_low || address + 8 < address || address - t->stack_high > MAX_DISTANCE)
		return 0;
	while (t->stack_high < address + 8) {
		if (!page_readable(0, t->stack_high))
			return 0;
		t->stack_high += PAGE;
	}
	return 1;
}

/* Whether the word can be read.  What was readable of a stack stays so while the thread is on it. */
static inline int readable(struct pa_heap_thread *t, u64 address)
{
	return LIKELY(address >= t->stack_low && address + 8 <= t->stack_high) || grows_to(t, address);
}

/* Begin with the page that sp is in: another stack, or more of the same. */
static void see_stack(struct pa_heap_thread *t, u64 sp)
{
	u64 page = sp & ~(PAGE - 1);
	if (LIKELY(sp >= t->stack_low && sp < t->stack_high))
		return;
	if (sp < t->stack_low && t->stack_low - page <= NEAR_PAGES * PAGE) {
		u64 low = t->stack_low;
		while (low > page && page_readable(0, low - PAGE))
			low -= PAGE;
		t->stack_low = low;
		if (low == page)
			return;
	}
	t->stack_low = page;
	t->stack_high = page + PAGE;
	t->depth = 0;
}

/* What it takes to look into the cache. */
static inline void begin_unwinder(struct walk *w)
{
	struct pa_control *c = ph.control;
	w->u.cache = (struct pa_cache_line *)((u8 *)c + c->cache_offset);
	w->u.cache_lines = c->cache_lines;
	w->u.generation = w->t->generation;
}

/* And all else. */
static void make_unwinder(struct walk *w)
{
	struct pa_control *c = ph.control;
	if (w->u_ready)
		return;
	w->u_ready = 1;
	w->reader = (struct vm_reader){ph.pid, ph.vm_read_forbidden};
	w->u = (struct pa_unwinder){
		.stack = {.low = w->t->stack_low, .high = w->t->stack_high, .probe = page_readable},
		.tables = {vm_copy, &w->reader, heap_at(w->t->room_at)},
		.find_module = modules_find,
		.modules = c,
		.mode = c->unwind,
	};
	begin_unwinder(w);
}

/* Any other step: the unwinder's own.  What it reads is not known here, so it is not `checked`. */
static enum pa_end step_any(struct walk *w, struct state *s)
{
	struct pa_frame f = {.known = BIT(PA_REG_FP) | BIT(PA_REG_SP) | BIT(PA_REG_IP)};
	enum pa_end end;
	make_unwinder(w);
	f.r[PA_REG_FP] = s->fp;
	f.r[PA_REG_SP] = s->sp;
	f.r[PA_REG_IP] = s->ip;
	end = pa_step(&w->u, w->exact ? s->ip : s->ip - 1, &f, &w->exact);
	s->ip = f.r[PA_REG_IP];
	s->sp = f.r[PA_REG_SP];
	s->fp = (f.known & BIT(PA_REG_FP)) ? f.r[PA_REG_FP] : 0;
	return end;
}

/* A step by a rule that finds the return address just below the caller's sp, and fp where `fp_at` says, or 0. */
static enum pa_end step_to(struct walk *w, struct state *s, struct pa_walked *at, u64 cfa, u64 fp_at)
{
	if (cfa <= s->sp || cfa - s->sp > MAX_DISTANCE)
		return PA_END_NO_PROGRESS;
	if (!readable(w->t, cfa - 8))
		return PA_END_UNREADABLE;
	if (fp_at) {
		if (fp_at < s->sp || !readable(w->t, fp_at))
			return PA_END_UNREADABLE;
		s->fp = *(const u64 *)fp_at;
	}
	at->fp_at = fp_at;
	at->checked = 1;
	s->ip = *(const u64 *)(cfa - 8);
	s->sp = cfa;
	w->exact = 0;
	return PA_END_NONE;
}

static int is_common(const struct pa_rule *rule)
{
	return rule->kind == PA_RULE_OFFSET && rule->return_at == -1 &&
	       (rule->cfa_register == PA_REG_SP || rule->cfa_register == PA_REG_FP);
}

static __attribute__((noinline)) enum pa_end step_slowly(struct walk *w, struct state *s, struct pa_walked *at)
{
	struct pa_rule rule;
	struct pa_module module;
	u64 cfa, fp_at = 0;
	make_unwinder(w);
	pa_find_rule(&w->u, w->exact ? s->ip : s->ip - 1, &rule, &module);
	at->by_fp = 1;
	if (!is_common(&rule))
		return step_any(w, s);
	at->by_fp = rule.cfa_register == PA_REG_FP || (rule.saved & PA_SAVED_FROM_FP);
	cfa = (rule.cfa_register == PA_REG_SP ? s->sp : s->fp) + (u64)(i64)rule.cfa_offset;
	if (rule.saved_at[PA_SAVED_FP] != PA_SAME)
		fp_at = ((rule.saved & PA_SAVED_FROM_FP) ? s->fp : cfa) + (u64)((i64)rule.saved_at[PA_SAVED_FP] * 8);
	return step_to(w, s, at, cfa, fp_at);
}

/* From `s` to its caller; what the step has read is noted in `at`. */
static enum pa_end step(struct walk *w, struct state *s, struct pa_walked *at)
{
	u64 words[3], sp = s->sp, changes = w->u_ready ? w->u.stack_changes : 0;
	u32 head;
	enum pa_end end;
	at->fp_at = 0;
	at->checked = 0;
	if (LIKELY(cache_words(&w->u, w->exact ? s->ip : s->ip - 1, words)) &&
	    LIKELY((head = (u32)words[0] & HEAD_MASK) == FROM_SP || head == FROM_FP)) {
		u64 cfa = (head == FROM_SP ? s->sp : s->fp) + cfa_offset(words);
		u32 back = fp_back(words);
		at->by_fp = head == FROM_FP;
		end = step_to(w, s, at, cfa, back ? cfa - back : 0);
	} else {
		end = step_slowly(w, s, at);
	}
	if (end != PA_END_NONE)
		return end;
	if (!s->ip) {
		w->at_zero = 1;
		return PA_END_ROOT;
	}
	if (s->ip < LOWEST_CODE || s->ip >= USER_SPACE_END)
		return PA_END_BAD_RETURN;
	return !w->exact && s->sp <= sp && !(w->u_ready && w->u.stack_changes > changes) ? PA_END_NO_PROGRESS : PA_END_NONE;
}

/* Whether the step from frames[k] to frames[k - 1] reads what it read then, as far as it matters. */
static inline int same_step(const struct pa_walked *frames, u32 k)
{
	const struct pa_walked *here = &frames[k], *up = &frames[k - 1];
	return here->checked && *(const u64 *)(up->sp - 8) == up->ip &&
	       (!up->needs_fp || !here->fp_at || *(const u64 *)here->fp_at == up->fp);
}

static inline int is_state(const struct pa_walked *frame, const struct state *s)
{
	return frame->sp == s->sp && frame->ip == s->ip && (!frame->needs_fp || frame->fp == s->fp);
}

static void note(struct walk *w, const struct state *s)
{
	struct pa_walked *at = &w->scratch[w->fresh++];
	at->ip = s->ip;
	at->sp = s->sp;
	at->fp = s->fp;
}

/* Take frames[from] down to frames[to], to which the steps are what they were, as frames of this walk, and go on at
 * the last.  What fp is there is not known from then, where it did not matter then. */
static void note_again(struct walk *w, struct state *s, u32 from, u32 to)
{
	for (u32 k = from;; k--) {
		const struct pa_walked *old = &w->frames[k];
		struct pa_walked *at = &w->scratch[w->fresh++];
		*at = *old;
		at->fp = s->fp;
		s->ip = old->ip;
		s->sp = old->sp;
		if (k == to || w->fresh >= w->max)
			return;
		if (old->fp_at)
			s->fp = *(const u64 *)old->fp_at;
	}
}

/* The caller's node and this return address: among those looked for lately, or in the table of all. */
static inline u32 node_of(struct pa_heap_child *children, u32 mask, u64 ip, u32 caller)
{
	u64 hash = item_hash(ip, caller);
	struct pa_heap_child *child = &children[hash >> 40 & mask];
	if (LIKELY(child->ip == ip && child->caller == caller))
		return child->node;
	u32 node = tree_node(hash, ip, caller);
	if (UNLIKELY(!node))
		return PA_NO_STACK;
	*child = (struct pa_heap_child){ip, caller, node};
	return node;
}

/* What scratch holds, on top of frames[0..kept).  Returns the innermost node. */
static u32 keep(struct walk *w, u32 kept)
{
	struct pa_heap_child *children = heap_at(w->t->children_at);
	u32 node = kept ? w->frames[kept - 1].node : 1 + w->t->end;
	u8 needs_fp = kept ? w->frames[kept - 1].needs_fp : 1;
	for (u32 i = w->fresh; i--;) {
		struct pa_walked *to = &w->frames[kept], *from = &w->scratch[i];
		node = node_of(children, w->t->children_mask, from->ip, node);
		needs_fp = from->by_fp || (!from->fp_at && needs_fp);
		*to = *from;
		to->node = node;
		to->needs_fp = needs_fp;
		kept++;
	}
	w->t->depth = kept;
	return node;
}

/* Walk from `s`; *kept says how many frames next to the root are as they were. */
static void walk_up(struct walk *w, struct state *s, u32 *kept)
{
	struct pa_heap_thread *t = w->t;
	u32 left = t->depth; /* frames[left..) lie below the stack pointer, or were not met */
	enum pa_end end = PA_END_NONE;
	*kept = 0;
	while (end == PA_END_NONE) {
		while (left && w->frames[left - 1].sp < s->sp)
			left--;
		if (left && !w->exact && is_state(&w->frames[left - 1], s)) {
			u32 from = left - 1, k = from, total = w->fresh + left;
			while (k && same_step(w->frames, k))
				k--;
			if (!k && (t->end == PA_END_DEPTH ? total == w->max : total < w->max)) {
				*kept = from + 1;
				return;
			}
			note_again(w, s, from, k);
			left = k;
		} else {
			note(w, s);
		}
		if (w->fresh >= w->max)
			end = PA_END_DEPTH;
		else
			end = step(w, s, &w->scratch[w->fresh - 1]);
	}
	t->end = end;
}

/* A walk that has not come to a root may have left the stack for what is mapped above it: that need not be there the
 * next time, so nothing that is known from it is read again unseen.  Nor is all that is zero a root. */
static void forget_what_is_above(const struct walk *w, u64 high)
{
	struct pa_heap_thread *t = w->t;
	if (t->stack_high == high || (t->end == PA_END_ROOT && !w->at_zero))
		return;
	t->stack_high = high;
	t->depth = 0;
}

/* The node of the walk from `s`, which is no walk that is kept; *depth: of its frames. */
static u32 walk_anew(struct pa_heap_thread *t, struct state s, u32 *depth)
{
	struct walk w;
	u64 high = t->stack_high;
	u32 kept, node;
	w.t = t;
	w.frames = heap_at(t->frames_at);
	w.scratch = heap_at(t->scratch_at);
	w.fresh = 0;
	w.max = ph.heap->max_depth;
	w.exact = 0;
	w.at_zero = 0;
	w.u_ready = 0;
	begin_unwinder(&w);
	walk_up(&w, &s, &kept);
	if (!w.fresh) {
		*depth = kept;
		return w.frames[kept - 1].node;
	}
	if (w.u_ready)
		ph.vm_read_forbidden = w.reader.forbidden;
	node = keep(&w, kept);
	*depth = t->depth;
	forget_what_is_above(&w, high);
	return node;
}

/* Before what is known of the last walks can be looked at. */
static inline void begin_walk(struct pa_heap_thread *t, u64 sp)
{
	u32 generation = __atomic_load_n(&ph.control->modules_seq, __ATOMIC_ACQUIRE);
	see_stack(t, sp);
	if (UNLIKELY(generation != t->generation)) {
		t->generation = generation;
		t->depth = 0;
	}
}

struct pa_memo *stack_walk(struct pa_heap_thread *t, u64 ip, u64 sp, u64 fp)
{
	struct pa_memo *memos = memos_of(t, ip, sp), *memo;
	u32 node, depth;
	begin_walk(t, sp);
	for (u32 way = 0; way < PA_MEMO_WAYS; way++) {
		memo = &memos[(memos->latest + way) & (PA_MEMO_WAYS - 1)];
		if (memo_holds(memo, t, ip, sp, fp)) {
			memos->latest = (u8)(memos->latest + way);
			return memo;
		}
	}
	memo = &memos[++memos->latest & (PA_MEMO_WAYS - 1)];
	node = walk_anew(t, (struct state){ip, sp, fp}, &depth);
	memo_make(memo, t, ip, sp, fp, depth, node);
	return memo;
}

u32 stack_node(struct pa_heap_thread *t, u64 ip, u64 sp, u64 fp)
{
	u32 depth;
	begin_walk(t, sp);
	return walk_anew(t, (struct state){ip, sp, fp}, &depth);
}
