/* Walks that keep the last one against walks that begin anew, and both against what the stack was made of.
 *
 *     kept_driver walks SEED STEPS MAX     a thread calls, returns, changes its frame pointer, and is walked
 *     kept_driver garbage SEED ROUNDS      the kept walk's memory holds anything
 *
 * Prints "walks N differ N wrong N again N frames N".
 */
#include <string.h>

#define HIDDEN
#include "kept.h"

#include "imaginary.h"

static struct pa_room room;
static struct pa_kept kept, none;

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

static struct pa_unwinder unwinder(struct pa_kept *last)
{
	return (struct pa_unwinder){
		.stack = {.probe = probe},
		.tables = {copy_none, 0, &room},
		.find_module = module_none,
		.cache = cache,
		.cache_lines = CACHE_LINES,
		.generation = 1,
		.kept = last,
	};
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
		go_on(i);
		u64 ip = place(calls[depth - 1].function, any(SITES)), was = 0, *changed = overwrite(&was);
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
	struct pa_cache_line *lines = calloc(CACHE_LINES, sizeof(*lines));
	if (!lines)
		return 2;
	begin(strtoull(argv[2], 0, 10), lines);
	if (!strcmp(argv[1], "walks") && argc == 5)
		return walks(strtoull(argv[3], 0, 10), strtoull(argv[4], 0, 10));
	return !strcmp(argv[1], "garbage") ? garbage(strtoull(argv[3], 0, 10)) : 2;
}
