/* An imaginary program, for drivers of what walks stacks: functions of random layouts, whose rules lie in a cache from
 * the start, and a stack that is filled as their code would, by calls, returns and changes of the frame pointer. */
#ifndef IMAGINARY_H
#define IMAGINARY_H

#include <stdio.h>
#include <stdlib.h>

#include "cache.h"

#define FUNCTIONS 48
#define SITES 6
#define CODE_AT 0x400000UL
#define FUNCTION_BYTES 4096UL
#define STACK_AT ((u64)stack)
#define STACK_WORDS (64UL << 10)
#define MAX_DEPTH 600
#define CACHE_LINES (1UL << 15)

enum layout { BY_SP, BY_FP, FAR_SAVE, FAR_RETURN };
#define RARE 3 /* functions of the last two kinds, of which not all can be kept; the first is the root */

struct function {
	enum layout layout;
	u64 words;   /* its frame's, with the return address */
	u64 fp_word; /* its caller's fp is saved so many words below the CFA; 0: it leaves fp alone */
	u64 ret_word; /* and the return address */
};

struct call {
	u32 function;
	u64 cfa, ret; /* where it returns to; the first function's is 0 */
};

static struct function functions[FUNCTIONS];
static struct pa_cache_line *cache;
static u64 stack[STACK_WORDS] __attribute__((aligned(4096)));
static struct call calls[MAX_DEPTH];
static u32 depth;
static u64 fp, state;

static u64 any(u64 below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (state >> 11) % below;
}

static u64 *word(u64 address)
{
	u64 at = (address - STACK_AT) / 8;
	if (at >= STACK_WORDS) {
		fprintf(stderr, "off the stack\n");
		exit(2);
	}
	return &stack[at];
}

/* Behind the call with this number in the function's code: a return address. */
static u64 place(u32 function, u64 site)
{
	return CODE_AT + function * FUNCTION_BYTES + 64 + site * 331;
}

static void make_rule(u32 number)
{
	const struct function *f = &functions[number];
	struct pa_unwinder u = {.cache = cache, .cache_lines = CACHE_LINES, .generation = 1};
	struct pa_rule rule = {.kind = PA_RULE_OFFSET, .cfa_register = PA_REG_SP, .saved = PA_SAVED_NEAR};
	rule.return_at = (i16)-(i64)f->ret_word;
	for (u32 i = 0; i < PA_PRESERVED; i++)
		rule.saved_at[i] = PA_SAME;
	rule.cfa_offset = (i32)f->words * 8;
	if (f->layout == BY_FP) {
		rule.cfa_register = PA_REG_FP;
		rule.cfa_offset = 16;
	}
	if (f->layout == FAR_SAVE || f->layout == FAR_RETURN)
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
				fprintf(stderr, "two places want one line of the cache\n");
				exit(2);
			}
}

static void make_program(void)
{
	for (u32 i = 0; i < FUNCTIONS; i++) {
		struct function *f = &functions[i];
		f->layout = i < RARE ? FAR_SAVE + i % 2 : (enum layout)any(2);
		f->ret_word = f->layout == FAR_RETURN ? 2 : 1;
		f->words = 3 + any(12);
		f->fp_word = any(2) ? 0 : 2 + any(f->words - 2 < 7 ? f->words - 2 : 7);
		if (f->layout == BY_FP)
			f->fp_word = 2;
		if (f->layout == FAR_SAVE) {
			f->words = 16;
			f->fp_word = 9 + any(7);
		}
		if (f->layout == FAR_RETURN)
			f->fp_word = any(2) ? 0 : 3;
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
	if (number < RARE && any(3))
		return;
	struct call *c = &calls[depth];
	u64 cfa = stack_pointer();
	if (depth >= MAX_DEPTH - 1 || cfa - f->words * 8 < STACK_AT + 512)
		return;
	*c = (struct call){number, cfa, place(calls[depth - 1].function, any(SITES))};
	for (u64 i = 2; i <= f->words; i++)
		if (any(4) == 0)
			*word(cfa - i * 8) = any(1UL << 47); /* what it keeps there; the rest is as others left it */
	*word(cfa - f->ret_word * 8) = c->ret;
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

/* A program from this seed, and its first function. */
static void begin(u64 seed, struct pa_cache_line *lines)
{
	state = seed * 0x9e3779b97f4a7c15UL | 1;
	cache = lines;
	make_program();
	calls[0].cfa = STACK_AT + STACK_WORDS * 8 - 64;
	depth = 1;
	fp = 0;
}

/* Some calls and returns: by turns more of the ones and of the others, so that there are deep stacks and shallow ones. */
static void go_on(u64 round)
{
	u64 deeper = round / 700 & 1 ? 6 : 3;
	for (u64 k = 1 + any(12); k--;)
		any(9) < deeper ? call() : back();
	if (any(3) == 0)
		change_fp();
}

/* At times, something overwrites a word that walks read: where, and what was there; 0: it does not. */
static u64 *overwrite(u64 *was)
{
	if (any(8) || depth < 3)
		return 0;
	const struct call *hit = &calls[1 + any(depth - 1)], *other = &calls[1 + any(depth - 1)];
	u64 back_words = any(2) ? functions[hit->function].fp_word : functions[hit->function].ret_word;
	u64 *changed = word(hit->cfa - (back_words ? back_words : functions[hit->function].ret_word) * 8);
	*was = *changed;
	*changed = any(2) ? other->ret : other->cfa - 16;
	return changed;
}

#endif
