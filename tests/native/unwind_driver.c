/* One walk or one rule, for the tests of tests/test_unwind_cfi.py: all input comes in one file of words.
 *
 *     unwind_driver walk   registers[17] known mode pages, then the stack at STACK_AT, then the tables
 *     unwind_driver rule   the same; the rule for registers[16]
 *     unwind_driver near   the same; each rule of the code kept by block and asked for at all addresses around
 *     unwind_driver torn   cache lines of random words, and of two rules' words mixed
 *     unwind_driver flip   threads flip the module tables while others search them
 *
 * The file: 17 registers, known, mode, own index, the module's flags, words of stack, bytes of tables, stack,
 * tables.  A walk is done again with a cache, empty and then full, and must end the same way.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HIDDEN
#include "unwind.h"

#include "cache.h"
#include "modules.h"

#define STACK_AT 0x7fff00000000UL
#define TABLES_AT 0x10000UL
#define CODE_AT 0x400000UL

struct input {
	u64 registers[PA_REGISTERS], known, mode, own_index, flags, stack_words, tables_bytes;
};

static struct pa_room room;
static struct input in;
static u8 *tables;
static struct pa_module module;
static u64 copies;

static int copy_tables(void *arg, void *to, u64 from, u64 bytes)
{
	(void)arg;
	copies++;
	if (from < TABLES_AT || from - TABLES_AT > in.tables_bytes || bytes > in.tables_bytes - (from - TABLES_AT))
		return 0;
	memcpy(to, tables + (from - TABLES_AT), bytes);
	return 1;
}

static int no_probe(void *arg, u64 page)
{
	(void)arg;
	(void)page;
	return 0;
}

static int find_module(void *arg, u64 address, struct pa_module *out)
{
	(void)arg;
	if (address < module.start || address >= module.end)
		return 0;
	*out = module;
	return 1;
}

static void fail(const char *what)
{
	fprintf(stderr, "unwind_driver: %s\n", what);
	exit(1);
}

static struct pa_cache_line cache[256];

static void walk_with_cache(struct pa_unwinder u, struct pa_frame f, enum pa_end end, const struct pa_frame *last,
			    const u64 *addresses, u32 depth)
{
	u64 found[64], copied = copies;
	u32 n;
	u.cache = cache;
	u.cache_lines = sizeof(cache) / sizeof(*cache);
	u.stack_changes = 0;
	if (pa_walk(&u, &f, found, 64, &n) != end || n != depth || memcmp(found, addresses, n * 8) || f.known != last->known)
		fail("with a cache the walk is another");
	for (u32 i = 0; i < PA_REGISTERS; i++)
		if ((f.known >> i & 1) && f.r[i] != last->r[i])
			fail("with a cache a register is another");
	copies = copied;
}

/* What a block says of an address is what the tables say. */
static int near_rules(const struct pa_unwinder *u)
{
	u64 said = 0, silent = 0;
	for (u64 at = CODE_AT; at < CODE_AT + 0x1000; at++) {
		struct pa_rule rule, by_block, by_tables;
		memset(cache, 0, sizeof(cache));
		pa_cfi_rule(&u->tables, &module, at, &rule);
		cache_put_near((struct pa_unwinder *)u, at, rule);
		for (u64 other = at > 300 ? at - 300 : 0; other < at + 300; other += 1 + (other & 3)) {
			if (!cache_get_near((struct pa_unwinder *)u, other, &by_block)) {
				silent++;
				continue;
			}
			pa_cfi_rule(&u->tables, &module, other, &by_tables);
			by_block.below = by_block.above = by_tables.below = by_tables.above = 0;
			if (memcmp(&by_block, &by_tables, sizeof(by_block)))
				fail("a block says another rule than the tables");
			said++;
		}
	}
	printf("said %lu silent %lu\n", said, silent);
	return 0;
}

static int run(const char *what)
{
	u64 addresses[64];
	u32 depth;
	struct pa_rule rule;
	static u8 *stack;
	if (fread(&in, sizeof(in), 1, stdin) != 1 || in.stack_words % 512)
		fail("short input, or no whole pages of stack");
	stack = malloc(in.stack_words * 8 + 1);
	tables = malloc(in.tables_bytes + 1);
	if (!stack || !tables || fread(stack, 8, in.stack_words, stdin) != in.stack_words ||
	    fread(tables, 1, in.tables_bytes, stdin) != in.tables_bytes)
		fail("short input");
	module = (struct pa_module){
		.start = CODE_AT,
		.end = CODE_AT + 0x10000,
		.table = in.tables_bytes ? TABLES_AT : 0,
		.table_size = in.tables_bytes,
		.flags = (u32)in.flags | (in.own_index ? PA_MODULE_OWN_INDEX : 0),
	};
	if (in.own_index)
		module.table_size = in.own_index * 16;
	struct pa_unwinder u = {
		.stack = {STACK_AT, STACK_AT + in.stack_words * 8, (u64)stack - STACK_AT, no_probe, 0},
		.tables = {copy_tables, 0, &room},
		.find_module = find_module,
		.mode = (u32)in.mode,
	};
	struct pa_frame frame = {.known = (u32)in.known};
	memcpy(frame.r, in.registers, sizeof(frame.r));
	if (!strcmp(what, "near")) {
		u.cache = cache;
		u.cache_lines = sizeof(cache) / sizeof(*cache);
		return near_rules(&u);
	}
	if (!strcmp(what, "rule")) {
		pa_cfi_rule(&u.tables, &module, frame.r[PA_REG_IP], &rule);
		printf("kind %u register %u offset %d from %u return %d copies %lu\n", rule.kind, rule.cfa_register,
		       rule.cfa_offset, rule.saved & PA_SAVED_FROM_FP, rule.return_at, copies);
		return 0;
	}
	struct pa_frame again = frame, more = frame;
	enum pa_end end = pa_walk(&u, &frame, addresses, 64, &depth);
	walk_with_cache(u, again, end, &frame, addresses, depth);
	walk_with_cache(u, more, end, &frame, addresses, depth);
	printf("end %u depth %u known %x copies %lu\n", end, depth, frame.known, copies);
	for (u32 i = 0; i < depth; i++)
		printf("%lx ", addresses[i]);
	printf("\n");
	for (u32 i = 0; i < PA_REGISTERS; i++)
		printf("%lx ", frame.r[i]);
	printf("\n");
	return 0;
}

static u64 state = 88172645463325252UL;

static u64 next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static int torn(void)
{
	struct pa_cache_line lines[8], a, b;
	struct pa_unwinder u = {.cache = lines, .cache_lines = 8, .generation = 1};
	struct pa_rule rule, first = {.kind = PA_RULE_OFFSET, .cfa_register = 7, .cfa_offset = 8, .return_at = -1};
	struct pa_rule second = {.kind = PA_RULE_OFFSET, .cfa_register = 6, .cfa_offset = 16, .return_at = -1};
	u64 mixed = 0;
	for (u32 i = 0; i < PA_PRESERVED; i++) {
		first.saved_at[i] = PA_SAME;
		second.saved_at[i] = (i16)(-2 - (i32)i);
	}
	memset(lines, 0, sizeof(lines));
	if (cache_get(&u, 0, &rule) || cache_get(&u, CODE_AT, &rule))
		fail("an empty line matched");
	for (u64 i = 0; i < 2000000; i++) {
		for (u32 w = 0; w < sizeof(lines) / 8; w++)
			((u64 *)lines)[w] = next();
		if (cache_get(&u, next() >> 17, &rule))
			fail("random words matched a key");
	}
	/* Two writers of the same line: every mix of their words must match neither key, or be one of both whole. */
	u64 address = CODE_AT, other = CODE_AT;
	do
		other += 1;
	while (cache_line(&u, other) != cache_line(&u, address));
	cache_put(&u, address, &first);
	a = *cache_line(&u, address);
	cache_put(&u, other, &second);
	b = *cache_line(&u, address);
	for (u32 mix = 0; mix < 16; mix++) {
		struct pa_cache_line *line = cache_line(&u, address);
		line->check = mix & 1 ? a.check : b.check;
		for (u32 w = 0; w < 3; w++)
			line->word[w] = mix & (2U << w) ? a.word[w] : b.word[w];
		if (cache_get(&u, address, &rule)) {
			mixed++;
			if (memcmp(&rule, &first, sizeof(rule)))
				fail("a mixed line matched");
		}
		if (cache_get(&u, other, &rule)) {
			mixed++;
			if (memcmp(&rule, &second, sizeof(rule)))
				fail("a mixed line matched");
		}
	}
	cache_put(&u, address, &first);
	if (!cache_get(&u, address, &rule) || memcmp(&rule, &first, sizeof(rule)))
		fail("a line that was written is not found");
	u.generation++;
	if (cache_get(&u, address, &rule))
		fail("a line of an older generation matched");
	printf("whole %lu\n", mixed);
	return 0;
}

static struct pa_control *control;
static u32 stop;

static void fill(struct pa_modules *t, u64 round)
{
	/* Even rounds have modules of 0x1000 bytes, odd ones of 0x800; every field says which round it was. */
	u64 size = round & 1 ? 0x800 : 0x1000;
	t->count = 512 + (u32)(round % 8);
	for (u32 i = 0; i < t->count; i++)
		t->module[i] = (struct pa_module){
			.start = CODE_AT + i * 0x1000,
			.end = CODE_AT + i * 0x1000 + size,
			.table = round << 16 | i,
			.table_size = round,
			.flags = 0,
		};
}

static void *search_forever(void *arg)
{
	u64 *found = arg, seed = (u64)arg;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		struct pa_module m;
		seed = seed * 6364136223846793005UL + 1442695040888963407UL;
		u64 index = (seed >> 33) % 512, address = CODE_AT + index * 0x1000 + (seed >> 50) % 0x1000;
		if (!modules_find(control, address, &m))
			continue;
		++*found;
		u64 round = m.table_size;
		if (m.table != (round << 16 | index) || m.start != CODE_AT + index * 0x1000 ||
		    m.end != m.start + (round & 1 ? 0x800 : 0x1000) || address >= m.end)
			fail("a module that is half one table's and half another's");
	}
	return 0;
}

static int flip(void)
{
	pthread_t threads[3];
	u64 found[3][8] = {0};
	u64 offset = (sizeof(struct pa_control) + 63) & ~63UL;
	control = calloc(1, offset + 2 * sizeof(struct pa_modules));
	if (!control)
		fail("memory");
	control->modules_offset = offset;
	struct pa_modules *both = (struct pa_modules *)((u8 *)control + offset);
	fill(&both[0], 0);
	for (u32 i = 0; i < 3; i++)
		pthread_create(&threads[i], 0, search_forever, found[i]);
	for (u32 round = 1; round < 40000; round++) { /* without a pause: far harder than pyattach does it */
		fill(&both[round & 1], round);
		__atomic_store_n(&control->modules_seq, round, __ATOMIC_RELEASE);
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (u32 i = 0; i < 3; i++)
		pthread_join(threads[i], 0);
	printf("found %lu\n", found[0][0] + found[1][0] + found[2][0]);
	free(control);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 2 && (!strcmp(argv[1], "walk") || !strcmp(argv[1], "rule") || !strcmp(argv[1], "near")))
		return run(argv[1]);
	if (argc == 2 && !strcmp(argv[1], "torn"))
		return torn();
	if (argc == 2 && !strcmp(argv[1], "flip"))
		return flip();
	return 2;
}
