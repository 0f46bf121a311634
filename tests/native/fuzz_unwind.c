/* The unwinder on anything at all: registers, stack, tables and modules out of the fuzzer's bytes.
 *
 *     clang -fsanitize=fuzzer,address,undefined ...      libFuzzer's main
 *     gcc -DFUZZ_MAIN -fsanitize=address,undefined ...   fuzz_unwind ITERATIONS SEED [SECONDS]
 *                                                        fuzz_unwind seeds COUNT DIRECTORY
 *
 * The second form writes what libFuzzer may start with.  The first mutates well-formed input with a generator of its own, the same for the same seed.  Either
 * way a run checks that the unwinder reads nothing it was not given, keeps to its bounds, and ends.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HIDDEN
#include "kept.h"
#include "unwind.h"

#include "cache.h"

#define MAX_DEPTH 64
#define PAGE 4096
#define STACK_BYTES 2048 /* of the page that are given, at most */
#define TABLES_BYTES 1024
#define STACK_AT 0x7fff00000000UL
#define TABLES_AT 0x10000UL
#define CODE_AT 0x400000UL
#define CODE_BYTES 4096UL

/* A step looks for its rule twice at most (PA_RULE_FULL).  A search halves what is left of at most 2^27
 * entries; an FDE and its CIE are ten copies; 32768 instructions come in chunks of 256 bytes, but an
 * expression ends a chunk; each of 17 columns may copy one. */
#define COPIES_PER_STEP (2UL * (64 + 10 + 2 * 32768 + 32))
/* 17 columns and the CFA, expressions of up to 64 operations that may each read a word, or two pages. */
#define PROBES_PER_STEP (18UL * 64 * 4)

struct head {
	u64 registers[PA_REGISTERS];
	u32 known;
	u8 own_index, mode, use_cache, stack_pages;
	u64 address_in_code; /* the rule asked for on its own */
};

static const u8 *tables;
static u64 tables_size, copies, probes;

static int copy_tables(void *arg, void *to, u64 from, u64 bytes)
{
	(void)arg;
	copies++;
	if (from < TABLES_AT || from - TABLES_AT > tables_size || bytes > tables_size - (from - TABLES_AT))
		return 0;
	memcpy(to, tables + (from - TABLES_AT), bytes);
	return 1;
}

/* One page of stack, found by asking, as in the handler. */
static int probe(void *arg, u64 page)
{
	(void)arg;
	probes++;
	return page == STACK_AT;
}

static struct pa_module module;

static int find_module(void *arg, u64 address, struct pa_module *out)
{
	(void)arg;
	if (address < module.start || address >= module.end)
		return 0;
	*out = module;
	return 1;
}

static void insist(int holds, const char *what)
{
	if (!holds) {
		fprintf(stderr, "fuzz_unwind: %s (copies %lu, probes %lu)\n", what, copies, probes);
		abort();
	}
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	struct head head;
	struct pa_rule rule;
	u64 *addresses;
	u32 depth = 0;
	u64 stack_size;
	if (size < sizeof(head) + 64)
		return 0;
	memcpy(&head, data, sizeof(head));
	data += sizeof(head);
	size -= sizeof(head);
	stack_size = size / 2 < STACK_BYTES ? size / 2 & ~7UL : STACK_BYTES;
	/* Each in memory of its own, so that the sanitizer sees the first byte too many. */
	u8 *stack = calloc(1, PAGE), *here = malloc(size - stack_size);
	struct pa_cache_line *cache = calloc(64, sizeof(*cache));
	struct pa_room *room = malloc(sizeof(*room));
	addresses = malloc(MAX_DEPTH * sizeof(*addresses));
	if (!room || !stack || !here || !cache || !addresses)
		abort();
	memcpy(stack, data, stack_size);
	memcpy(here, data + stack_size, size - stack_size);
	tables = here;
	tables_size = size - stack_size;
	module = (struct pa_module){
		.start = CODE_AT,
		.end = CODE_AT + CODE_BYTES,
		.table = TABLES_AT,
		.table_size = tables_size,
		.flags = head.own_index & 1 ? PA_MODULE_OWN_INDEX : 0,
	};
	struct pa_unwinder u = {
		.stack = {.bias = (u64)stack - STACK_AT, .probe = probe},
		.tables = {copy_tables, 0, room},
		.find_module = find_module,
		.cache = head.use_cache & 1 ? cache : 0,
		.cache_lines = 64,
		.generation = head.use_cache,
		.mode = head.mode % 3,
	};
	static struct pa_kept kept;
	static u64 first[MAX_DEPTH];
	u32 first_depth = 0;
	enum pa_end first_end = PA_END_NONE;
	kept.first = PA_KEPT;
	/* The second one finds its rules in the cache, the third keeps its frames, the fourth finds them kept.  Of tables
	 * that contradict themselves the cache may hold one rule or another: to be compared, all have what the first left. */
	struct pa_cache_line before[64];
	for (u32 round = 0; round < 4; round++) {
		struct pa_frame frame = {.known = head.known & ((1U << PA_REGISTERS) - 1)};
		memcpy(frame.r, head.registers, sizeof(frame.r));
		copies = probes = u.stack_changes = 0;
		if (round == 1)
			memcpy(before, cache, sizeof(before));
		else if (round)
			memcpy(cache, before, sizeof(before));
		enum pa_end end = pa_walk(&u, &frame, addresses, MAX_DEPTH, &depth);
		insist(depth >= 1 && depth <= MAX_DEPTH, "depth out of bounds");
		insist(end != PA_END_NONE && end <= PA_END_BAD_CFI, "no reason");
		insist(addresses[0] == head.registers[PA_REG_IP], "not where it was");
		insist(copies <= COPIES_PER_STEP * depth, "too many copies");
		insist(probes <= PROBES_PER_STEP * depth, "too many probes");
		if (round == 1) {
			first_end = end;
			first_depth = depth;
			memcpy(first, addresses, depth * sizeof(*first));
			u.kept = &kept;
		}
		insist(round < 2 || (end == first_end && depth == first_depth), "kept, it is another walk");
		insist(round < 2 || !memcmp(first, addresses, depth * sizeof(*first)), "kept, it goes elsewhere");
	}
	copies = 0;
	pa_cfi_rule(&u.tables, &module, CODE_AT + head.address_in_code % CODE_BYTES, &rule);
	insist(rule.kind > PA_RULE_NONE && rule.kind <= PA_RULE_GONE, "no kind of rule");
	insist(rule.kind != PA_RULE_OFFSET || rule.cfa_register < PA_REGISTERS, "no such register");
	insist(copies <= COPIES_PER_STEP, "too many copies for a rule");
	free(stack);
	free(here);
	free(cache);
	free(addresses);
	free(room);
	return 0;
}

#ifdef FUZZ_MAIN
static u64 state;

static u64 next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static u64 below(u64 limit)
{
	return next() % limit;
}

struct writer {
	u8 *bytes;
	u64 at;
};

static void put(struct writer *w, u64 value, u32 bytes)
{
	memcpy(w->bytes + w->at, &value, bytes);
	w->at += bytes;
}

/* One instruction, mostly well-formed. */
static void put_instruction(struct writer *w)
{
	static const u8 operations[] = {0x00, 0x02, 0x03, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e,
					0x0f, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x2e, 0x2f, 0x40, 0x80, 0xc0};
	static const u8 inside[] = {0x06, 0x12, 0x13, 0x14, 0x16, 0x17, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f, 0x20,
				    0x21, 0x22, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x2f, 0x31, 0x38, 0x77, 0x76};
	u8 op = operations[below(sizeof(operations))];
	if (op >= 0x40)
		op |= below(op == 0x40 ? 8 : 17);
	put(w, op, 1);
	if ((op & 0xc0) == 0x80) {
		put(w, below(20), 1);
	} else if (op == 0x02) {
		put(w, below(16), 1);
	} else if (op == 0x03) {
		put(w, below(64), 2);
	} else if (op == 0x0f || op == 0x10 || op == 0x16) {
		if (op != 0x0f)
			put(w, below(18), 1);
		u64 length = 1 + below(12);
		put(w, length, 1);
		if (length == 11 && below(2)) { /* a PLT entry's */
			memcpy(w->bytes + w->at, "\x77\x08\x80\x00\x3f\x1a\x3b\x2a\x33\x24\x22", 11);
			w->at += 11;
			return;
		}
		put(w, 0x76 + below(2), 1);
		for (u64 i = 1; i < length; i++)
			put(w, i == 1 ? below(64) : inside[below(sizeof(inside))], 1);
	} else if (op == 0x0d || op == 0x0e || op == 0x13 || op == 0x2e || (op >= 0x06 && op <= 0x08)) {
		put(w, below(18), 1);
	} else if (op == 0x05 || op == 0x09 || op == 0x0c || op == 0x11 || op == 0x12 || op == 0x14 || op == 0x15 ||
		   op == 0x2f) {
		put(w, below(18), 1);
		put(w, below(24), 1);
	}
}

static void put_cie(struct writer *w, u64 end, u8 encoding, int signal_frame)
{
	u64 start = w->at;
	put(w, end - start - 4, 4);
	put(w, 0, 4);
	put(w, 1, 1);
	memcpy(w->bytes + w->at, signal_frame ? "zRS" : "zR\0", 4);
	w->at += signal_frame ? 4 : 3;
	put(w, 1, 1);
	put(w, 0x78, 1);
	put(w, 16, 1);
	put(w, 1, 1);
	put(w, encoding, 1);
	put(w, 0x08070c, 3); /* CFA = rsp + 8 */
	put(w, 0x0190, 2);   /* the return address at CFA - 8 */
	w->at = end;
}

/* Well-formed tables for the code, with a binary search table or an own index, and a plausible stack. */
static u64 generate(u8 *bytes)
{
	struct head head = {.known = ~0U, .own_index = (u8)below(4), .mode = (u8)below(8), .use_cache = (u8)below(256)};
	struct writer w = {bytes + sizeof(head) + STACK_BYTES, 0};
	u32 fdes = 1 + (u32)below(6);
	int own = head.own_index & 1;
	u64 cie = own ? 16 * fdes : 12 + 8 * fdes, cie_end = cie + 48, each = 112;
	u64 range = CODE_BYTES / fdes;
	memset(bytes, 0, sizeof(head) + STACK_BYTES + TABLES_BYTES);
	if (!own) {
		put(&w, 0x3b031b01, 4);
		put(&w, cie - 4, 4);
		put(&w, fdes, 4);
	}
	for (u32 i = 0; i < fdes; i++) {
		u64 fde = cie_end + each * i;
		if (own) {
			put(&w, CODE_AT + range * i, 8);
			put(&w, TABLES_AT + fde, 8);
		} else {
			put(&w, CODE_AT + range * i - TABLES_AT, 4);
			put(&w, fde, 4);
		}
	}
	put_cie(&w, cie_end, 0x1b, !below(24));
	for (u32 i = 0; i < fdes; i++) {
		w.at = cie_end + each * i;
		put(&w, each - 4, 4);
		put(&w, w.at - cie, 4);
		put(&w, CODE_AT + range * i - TABLES_AT - w.at, 4);
		put(&w, range, 4);
		put(&w, 0, 1);
		while (w.at < cie_end + each * i + 80 && below(12))
			put_instruction(&w);
	}
	u64 words[STACK_BYTES / 8];
	for (u32 i = 0; i < STACK_BYTES / 8; i++)
		words[i] = below(2) ? CODE_AT + below(CODE_BYTES) : STACK_AT + 8 * below(STACK_BYTES / 8);
	memcpy(bytes + sizeof(head), words, STACK_BYTES);
	for (u32 i = 0; i < PA_REGISTERS; i++)
		head.registers[i] = below(2) ? STACK_AT + 8 * below(64) : next();
	head.registers[PA_REG_SP] = STACK_AT + 8 * below(16);
	head.registers[PA_REG_FP] = head.registers[PA_REG_SP] + 8 * below(16);
	head.registers[PA_REG_IP] = CODE_AT + below(CODE_BYTES);
	head.address_in_code = next();
	memcpy(bytes, &head, sizeof(head));
	/* The stack and the tables share the room by halves. */
	return sizeof(head) + STACK_BYTES + (w.at > STACK_BYTES ? w.at : STACK_BYTES);
}

static void mutate(u8 *bytes, u64 size)
{
	static const u64 interesting[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, ~0UL,
					  1UL << 63, ~0UL >> 1, 0xfffffffffffffff8UL};
	u64 where = below(3) ? sizeof(struct head) + STACK_BYTES : 0, room = size - where;
	for (u64 times = below(8); times; times--) {
		u64 at = where + below(below(2) ? room : room < 700 ? room : 700), bytes_here = 1UL << below(4);
		if (at + bytes_here > size)
			continue;
		if (below(3)) {
			bytes[at] = (u8)next();
		} else {
			u64 value = interesting[below(sizeof(interesting) / 8)];
			memcpy(bytes + at, &value, bytes_here);
		}
	}
}

static u8 bytes[sizeof(struct head) + 3 * STACK_BYTES];

static void start(u64 seed, u64 number)
{
	state = (seed + 1) * 0x9e3779b97f4a7c15UL ^ (number + 1) * 0xbf58476d1ce4e5b9UL;
	next();
	next();
}

static void write_seeds(const char *directory, u64 count)
{
	char path[512];
	for (u64 i = 0; i < count; i++) {
		start(1, i);
		u64 size = generate(bytes);
		snprintf(path, sizeof(path), "%s/%lu", directory, i);
		FILE *f = fopen(path, "w");
		if (!f || fwrite(bytes, 1, size, f) != size || fclose(f)) {
			perror(path);
			exit(1);
		}
	}
}

int main(int argc, char **argv)
{
	u64 iterations = argc > 1 ? strtoul(argv[1], 0, 10) : 100000, done = 0;
	if (argc == 4 && !strcmp(argv[1], "seeds")) {
		write_seeds(argv[3], strtoul(argv[2], 0, 10));
		return 0;
	}
	time_t until = argc > 3 ? time(0) + atol(argv[3]) : 0;
	u64 seed = argc > 2 ? strtoul(argv[2], 0, 10) : 1;
	for (; done < iterations && (!until || (done & 0xfff) || time(0) < until); done++) {
		start(seed, done);
		u64 size = generate(bytes);
		mutate(bytes, size);
		if (!below(16))
			size = below(size);
		LLVMFuzzerTestOneInput(bytes, size);
	}
	printf("ran %lu\n", done);
	return 0;
}
#endif
