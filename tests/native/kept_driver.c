/* Walks that keep the last one against walks that begin anew, and both against what the stack was made of.
 *
 *     kept_driver walks SEED STEPS MAX     a thread calls, returns, changes its frame pointer, and is walked
 *     kept_driver garbage SEED ROUNDS      the kept walk's memory holds anything
 *
 * The program is imaginary: functions of random layouts, whose rules lie in the cache from the start, and a stack
 * that is filled as their code would.  Prints "walks N differ N wrong N again N frames N".
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HIDDEN
#include "cache.h"
#include "kept.h"

#define FUNCTIONS 48
#define SITES 6
#define CODE_AT 0x400000UL
#define FUNCTION_BYTES 4096UL
#define STACK_AT 0x7f0000000000UL
#define STACK_WORDS (64UL << 10)
#define MAX_DEPTH 600
#define PAGE 4096UL

enum layout { BY_SP, BY_FP, FAR_SAVE };
#define RARE 1 /* kinds of functions that end what can be kept */

struct function {
	enum layout layout;
	u64 words;   /* its frame's, with the return address */
	u64 fp_word; /* its caller's fp is saved so many words below the CFA; 0: it leaves fp alone */
};

struct call {
	u32 function;
	u64 cfa, ret; /* where it returns to; the first function's is 0 */
};

static struct function functions[FUNCTIONS];
static struct pa_cache_line *cache;
static u64 stack[STACK_WORDS];
static struct call calls[MAX_DEPTH];
static u32 depth;
static u64 fp, state;
static struct pa_kept kept, none;

static u64 any(u64 below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (state >> 11) % below;
}

static int probe(void *arg, u64 page)
{
	(void)arg;
	return page >= STACK_AT && page < STACK_AT + STACK_WORDS * 8;
}

static int copy_none(void *arg, void *to, u64 from, u64 bytes)
{
	(void)arg;
	(void)to;
	(void)from;
	(void)bytes;
	return 0;
}

static int module_none(void *arg, u64 address, struct pa_module *out)
{
	(void)arg;
	(void)address;
	(void)out;
	return 0;
}

static u64 *word(u64 address)
{
	u64 at = (address - STACK_AT) / 8;
	if (at >= STACK_WORDS) {
		fprintf(stderr, "kept_driver: off the stack\n");
		exit(2);
	}
	return &stack[at];
}

/* Behind the call with this number in the function's code: a return address. */
static u64 place(u32 function, u64 site)
{
	return CODE_AT + function * FUNCTION_BYTES + 64 + site * 331;
}

static struct pa_unwinder unwinder(struct pa_kept *last)
{
	return (struct pa_unwinder){
		.stack = {.bias = (u64)stack - STACK_AT, .probe = probe},
		.tables = {copy_none, 0},
		.find_module = module_none,
		.cache = cache,
		.cache_lines = 1 << 15,
		.generation = 1,
		.kept = last,
	};
}

static void make_rule(u32 number)
{
	const struct function *f = &functions[number];
	struct pa_unwinder u = unwinder(0);
	struct pa_rule rule = {.kind = PA_RULE_OFFSET, .cfa_register = PA_REG_SP, .saved = PA_SAVED_NEAR, .return_at = -1};
	for (u32 i = 0; i < PA_PRESERVED; i++)
		rule.saved_at[i] = PA_SAME;
	rule.cfa_offset = (i32)f->words * 8;
	if (f->layout == BY_FP) {
		rule.cfa_register = PA_REG_FP;
		rule.cfa_offset = 16;
	}
	if (f->layout == FAR_SAVE)
		rule.saved = 0;
	if (f->fp_word) {
		rule.saved_at[1] = (i16)-(i64)f->fp_word;
		rule.saved_mask = 2;
	}
	if (!number)
		rule = (struct pa_rule){.kind = PA_RULE_ROOT};
	for (u64 site = 0; site < SITES; site++)
		for (u64 less = 0; less < 2; less++)
			cache_put(&u, place(number, site) - less, &rule);
	for (u64 site = 0; site < SITES; site++)
		for (u64 less = 0; less < 2; less++)
			if (!cache_get(&u, place(number, site) - less, &rule)) {
				fprintf(stderr, "kept_driver: two places want one line of the cache\n");
				exit(2);
			}
}

static void make_program(void)
{
	for (u32 i = 0; i < FUNCTIONS; i++) {
		struct function *f = &functions[i];
		f->layout = i < RARE ? FAR_SAVE : (enum layout)any(2);
		f->words = 3 + any(12);
		f->fp_word = any(2) ? 0 : 2 + any(f->words - 2 < 7 ? f->words - 2 : 7);
		if (f->layout == BY_FP)
			f->fp_word = 2;
		if (f->layout == FAR_SAVE) {
			f->words = 16;
			f->fp_word = 9 + any(7);
		}
		make_rule(i);
	}
}

static u64 stack_pointer(void)
{
	return depth > 1 ? calls[depth - 1].cfa - functions[calls[depth - 1].function].words * 8 : calls[0].cfa;
}

static void call(void)
{
	u32 number = 1 + (u32)any(FUNCTIONS - 1);
	const struct function *f = &functions[number];
	struct call *c = &calls[depth];
	u64 cfa = stack_pointer();
	if (depth >= MAX_DEPTH - 1 || cfa - f->words * 8 < STACK_AT + 512)
		return;
	*c = (struct call){number, cfa, place(calls[depth - 1].function, any(SITES))};
	for (u64 i = 2; i <= f->words; i++)
		if (any(4) == 0)
			*word(cfa - i * 8) = any(1UL << 47); /* what it keeps there; the rest is as others left it */
	*word(cfa - 8) = c->ret;
	if (f->fp_word)
		*word(cfa - f->fp_word * 8) = fp;
	if (f->layout == BY_FP)
		fp = cfa - 16;
	depth++;
}

static void back(void)
{
	if (depth < 2)
		return;
	const struct function *f = &functions[calls[depth - 1].function];
	if (f->fp_word)
		fp = *word(calls[depth - 1].cfa - f->fp_word * 8);
	depth--;
}

/* One that saves it may use it for anything, unless its frame is found by it. */
static void change_fp(void)
{
	const struct function *f = &functions[calls[depth - 1].function];
	if (f->fp_word && f->layout != BY_FP)
		fp = any(3) ? any(1UL << 40) : stack_pointer() + 8 * any(40);
}

struct walked {
	u64 addresses[MAX_DEPTH];
	u32 depth, end;
	u64 again;
};

static void walk(struct walked *w, struct pa_kept *last, u64 ip, u64 max)
{
	struct pa_unwinder u = unwinder(last);
	struct pa_frame f = {.known = (1U << PA_REGISTERS) - 1};
	f.r[PA_REG_SP] = stack_pointer();
	f.r[PA_REG_FP] = fp;
	f.r[PA_REG_IP] = ip;
	w->end = pa_walk(&u, &f, w->addresses, (u32)max, &w->depth);
	w->again = u.again;
}

static int same(const struct walked *a, const struct walked *b)
{
	return a->end == b->end && a->depth == b->depth && !memcmp(a->addresses, b->addresses, a->depth * 8);
}

static int right(const struct walked *w, u64 max)
{
	if (w->end != (depth <= max ? PA_END_ROOT : PA_END_DEPTH) || w->depth != (depth < max ? depth : max))
		return 0;
	for (u32 i = 1; i < w->depth; i++)
		if (w->addresses[i] != calls[depth - i].ret)
			return 0;
	return 1;
}

static int walks(u64 steps, u64 max)
{
	static struct walked anew, again;
	u64 done = 0, differ = 0, wrong = 0, met = 0, frames = 0;
	for (u64 i = 0; i < steps; i++) {
		/* By turns towards the root and away from it, so that there are deep stacks and shallow ones. */
		u64 deeper = i / 700 & 1 ? 6 : 3;
		for (u64 k = 1 + any(12); k--;)
			any(9) < deeper ? call() : back();
		if (any(3) == 0)
			change_fp();
		u64 ip = place(calls[depth - 1].function, any(SITES)), *changed = 0, was = 0;
		if (any(8) == 0 && depth > 2) { /* something has overwritten a word of the stack */
			const struct call *hit = &calls[1 + any(depth - 1)], *other = &calls[1 + any(depth - 1)];
			u64 back_words = any(2) ? functions[hit->function].fp_word : 1;
			changed = word(hit->cfa - (back_words ? back_words : 2) * 8);
			was = *changed;
			*changed = any(2) ? other->ret : other->cfa - 16;
		}
		walk(&anew, 0, ip, max);
		walk(&again, &kept, ip, max);
		differ += !same(&anew, &again);
		wrong += !changed && !right(&anew, max);
		frames += anew.depth;
		met += again.again;
		done++;
		if (changed)
			*changed = was;
	}
	printf("walks %lu differ %lu wrong %lu again %lu frames %lu\n", done, differ, wrong, met, frames);
	return 0;
}

/* Not a word outside of the stack is read, whatever the kept walk says; and what is not the stack's is not believed. */
static int garbage(u64 rounds)
{
	static struct walked anew, again;
	u64 differ = 0, frames = 0;
	while (depth < 60)
		call();
	u64 ip = place(calls[depth - 1].function, 0);
	walk(&anew, 0, ip, MAX_DEPTH);
	for (u64 i = 0; i < rounds; i++) {
		walk(&again, &none, ip, MAX_DEPTH);
		for (u64 k = 1 + any(20); k--;)
			((u64 *)&none)[any(sizeof(none) / 8)] = any(2) ? any(~0UL >> 11) : STACK_AT + any(STACK_WORDS * 9);
		none.generation = 1;
		none.first = any(4) ? (u32)any(PA_KEPT) : (u32)any(1UL << 32);
		walk(&again, &none, ip, MAX_DEPTH);
		if (again.depth < 1 || again.depth > MAX_DEPTH || again.addresses[0] != ip)
			differ++;
		frames += again.depth;
	}
	printf("rounds %lu out of bounds %lu frames %lu\n", rounds, differ, frames);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	state = strtoull(argv[2], 0, 10) * 0x9e3779b97f4a7c15UL | 1;
	cache = calloc(1 << 15, sizeof(*cache));
	if (!cache)
		return 2;
	make_program();
	calls[0].cfa = STACK_AT + STACK_WORDS * 8 - 64;
	depth = 1;
	fp = 0;
	if (!strcmp(argv[1], "walks") && argc == 5)
		return walks(strtoull(argv[3], 0, 10), strtoull(argv[4], 0, 10));
	return !strcmp(argv[1], "garbage") ? garbage(strtoull(argv[3], 0, 10)) : 2;
}
