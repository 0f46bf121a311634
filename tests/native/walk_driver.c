/* The walk over made-up frames: reads cases from stdin, answers each on stdout.
 *
 *   case     struct head, head.rules times struct cached, head.pages pages of stack
 *   answer   u32 end, u32 depth, u64 addresses[depth], u64 low, high
 *
 * The stack's bytes lie in memory whose unreadable pages can't be read, between pages that can't: a load
 * of what was not probed, or of what the probe refused, kills this program.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HIDDEN
#include "cache.h"

#define PAGES 32
#define PAGE 4096UL
#define MAX_DEPTH 4096

struct head {
	u64 r[PA_REGISTERS];
	u64 base;     /* where the first page of the stack is said to lie */
	u64 readable; /* bit n: page n can be read */
	u32 known, mode, max, pages, rules, pad;
};

struct cached {
	u64 address;
	struct pa_rule rule;
};

static struct pa_room room;
static struct head head;
static u8 *memory;
static struct pa_cache_line cache[1024];

static int probe(void *arg, u64 page)
{
	u64 index = (page - head.base) / PAGE;
	(void)arg;
	return page >= head.base && index < head.pages && (head.readable >> index & 1);
}

static int no_module(void *arg, u64 address, struct pa_module *out)
{
	(void)arg, (void)address, (void)out;
	return 0;
}

static int no_copy(void *arg, void *to, u64 from, u64 bytes)
{
	(void)arg, (void)to, (void)from, (void)bytes;
	return 0;
}

static void take(void *to, size_t bytes)
{
	if (fread(to, 1, bytes, stdin) != bytes)
		exit(3);
}

static void read_stack(void)
{
	if (mprotect(memory + PAGE, PAGES * PAGE, PROT_READ | PROT_WRITE))
		exit(4);
	take(memory + PAGE, head.pages * PAGE);
	for (u32 i = 0; i < PAGES; i++)
		if (i >= head.pages || !(head.readable >> i & 1))
			if (mprotect(memory + PAGE * (1 + i), PAGE, PROT_NONE))
				exit(4);
}

static void answer(void)
{
	static u64 addresses[MAX_DEPTH + 1];
	struct pa_unwinder u = {
		.stack = {.bias = (u64)memory + PAGE - head.base, .probe = probe},
		.tables = {no_copy, 0, &room},
		.find_module = no_module,
		.cache = cache,
		.cache_lines = sizeof(cache) / sizeof(cache[0]),
		.generation = 1,
		.mode = head.mode,
	};
	struct pa_frame frame = {.known = head.known};
	struct cached rule;
	u32 out[2];
	memset(cache, 0, sizeof(cache));
	for (u32 i = 0; i < head.rules; i++) {
		take(&rule, sizeof(rule));
		cache_put(&u, rule.address, &rule.rule);
	}
	read_stack();
	memcpy(frame.r, head.r, sizeof(frame.r));
	addresses[head.max] = 0x5afe;
	out[0] = pa_walk(&u, &frame, addresses, head.max, &out[1]);
	if (addresses[head.max] != 0x5afe || out[1] > head.max)
		abort();
	fwrite(out, sizeof(out), 1, stdout);
	fwrite(addresses, 8, out[1], stdout);
	fwrite(&u.stack.low, 8, 1, stdout);
	fwrite(&u.stack.high, 8, 1, stdout);
	fflush(stdout);
}

int main(void)
{
	memory = mmap(0, (PAGES + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return 4;
	while (fread(&head, 1, sizeof(head), stdin) == sizeof(head)) {
		if (head.pages > PAGES || head.max > MAX_DEPTH)
			return 5;
		answer();
	}
	return 0;
}
