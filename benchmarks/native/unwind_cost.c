/* What a frame costs: the stub's walk beside libunwind's, glibc's and a bare walk along frame pointers, all on
 * the same stacks of this process, in turn.
 *
 *     unwind_cost BATCHES WALKS
 *
 * Prints a line for each depth and walker: "DEPTH WALKER FRAMES NS...", nanoseconds a walk of each batch;
 * "cold" lines are single walks with an empty cache of rules.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#define UNW_LOCAL_ONLY
#include <libunwind.h>

#define HIDDEN
#include "kept.h"
#include "unwind.h"

#include "../../tests/native/module_list.h"

#define MAX_DEPTH 512
#define CACHE_LINES (1UL << 15)

static struct pa_room room;
static struct pa_cache_line *cache;
static struct pa_kept kept;
static u64 addresses[MAX_DEPTH];
static u64 low, high;
static u32 generation = 1;
static int batches, walks;
static int (*glibc_backtrace)(void **, int); /* libunwind has one of this name, too, and is found first */

static int note_module(struct dl_phdr_info *info, size_t size, void *arg)
{
	struct pa_module m = {0};
	(void)size;
	(void)arg;
	for (int i = 0; i < info->dlpi_phnum; i++)
		if (info->dlpi_phdr[i].p_type == PT_GNU_EH_FRAME) {
			m.table = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
			m.table_size = info->dlpi_phdr[i].p_memsz;
		}
	for (int i = 0; i < info->dlpi_phnum && module_count < MAX_MODULES; i++)
		if (info->dlpi_phdr[i].p_type == PT_LOAD && (info->dlpi_phdr[i].p_flags & PF_X)) {
			m.start = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
			m.end = m.start + info->dlpi_phdr[i].p_memsz;
			modules[module_count++] = m;
		}
	return 0;
}

/* As the stub does: tables are copied by the kernel. */
static int copy_tables(void *arg, void *to, u64 from, u64 bytes)
{
	struct iovec here = {to, bytes}, there = {(void *)from, bytes};
	(void)arg;
	return process_vm_readv(getpid(), &here, 1, &there, 1, 0) == (ssize_t)bytes;
}

static int no_probe(void *arg, u64 page)
{
	(void)arg;
	(void)page;
	return 0;
}

/* The registers as a signal frame would hold them. */
static inline __attribute__((always_inline)) void registers(u64 *r)
{
	__asm__ volatile("mov %%rbx, 24(%0)\n mov %%rbp, 48(%0)\n mov %%rsp, 56(%0)\n mov %%r12, 96(%0)\n"
			 "mov %%r13, 104(%0)\n mov %%r14, 112(%0)\n mov %%r15, 120(%0)\n"
			 "lea 0(%%rip), %%rcx\n mov %%rcx, 128(%0)\n"
			 :
			 : "r"(r)
			 : "rcx", "memory");
}

__attribute__((noinline)) static int ours_with(enum pa_mode mode, struct pa_kept *last)
{
	struct pa_unwinder u = {
		.stack = {low, high, 0, no_probe, 0},
		.tables = {copy_tables, 0, &room},
		.find_module = find_module,
		.cache = cache,
		.cache_lines = CACHE_LINES,
		.generation = generation,
		.mode = mode,
		.kept = last,
	};
	struct pa_frame frame = {.known = (1U << PA_REGISTERS) - 1};
	u32 depth;
	registers(frame.r);
	enum pa_end end = pa_walk(&u, &frame, addresses, MAX_DEPTH, &depth);
	if (end != PA_END_ROOT && mode == PA_UNWIND_AUTO) {
		fprintf(stderr, "the walk ended with %d at depth %u\n", (int)end, depth);
		exit(1);
	}
	return (int)depth;
}

__attribute__((noinline)) static int walk_ours(void) { return ours_with(PA_UNWIND_AUTO, &kept); }
__attribute__((noinline)) static int walk_ours_anew(void) { return ours_with(PA_UNWIND_AUTO, 0); }
__attribute__((noinline)) static int walk_ours_fp(void) { return ours_with(PA_UNWIND_FP, 0); }
__attribute__((noinline)) static int walk_libunwind(void) { return unw_backtrace((void **)addresses, MAX_DEPTH); }
__attribute__((noinline)) static int walk_glibc(void) { return glibc_backtrace((void **)addresses, MAX_DEPTH); }

__attribute__((noinline)) static int walk_step(void)
{
	unw_context_t context;
	unw_cursor_t cursor;
	int n = 0;
	unw_getcontext(&context);
	unw_init_local(&cursor, &context);
	do {
		unw_word_t ip;
		unw_get_reg(&cursor, UNW_REG_IP, &ip);
		addresses[n++] = ip;
	} while (n < MAX_DEPTH && unw_step(&cursor) > 0);
	return n;
}

__attribute__((noinline)) static int walk_pointers(void)
{
	u64 fp = (u64)__builtin_frame_address(0);
	int n = 0;
	while (n < MAX_DEPTH && fp >= low && fp < high && !(fp & 7)) {
		const u64 *frame = (const u64 *)fp;
		addresses[n++] = frame[1];
		if (frame[0] <= fp)
			break;
		fp = frame[0];
	}
	return n;
}

static const struct walker {
	const char *name;
	int (*walk)(void);
} walkers[] = {{"pa_walk", walk_ours},     {"pa_walk-anew", walk_ours_anew},  {"pa_walk-fp", walk_ours_fp},
	       {"unw_step", walk_step},    {"unw_backtrace", walk_libunwind}, {"backtrace", walk_glibc},
	       {"frame-pointers", walk_pointers}};
#define WALKERS (sizeof(walkers) / sizeof(walkers[0]))

static double now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

__attribute__((noinline)) static void measure(int depth)
{
	double *took = malloc(sizeof(double) * WALKERS * (size_t)batches);
	int frames[WALKERS];
	for (u64 w = 0; w < WALKERS; w++)
		frames[w] = walkers[w].walk();
	for (int b = 0; b < batches; b++)
		for (u64 w = 0; w < WALKERS; w++) {
			double begin = now_ns();
			for (int i = 0; i < walks; i++)
				walkers[w].walk();
			took[w * (u64)batches + (u64)b] = (now_ns() - begin) / walks;
		}
	for (u64 w = 0; w < WALKERS; w++) {
		printf("%d %s %d", depth, walkers[w].name, frames[w]);
		for (int b = 0; b < batches; b++)
			printf(" %.1f", took[w * (u64)batches + (u64)b]);
		printf("\n");
	}
	printf("%d cold %d", depth, frames[0]);
	for (int b = 0; b < batches; b++) {
		memset(cache, 0, CACHE_LINES * sizeof(*cache));
		kept.generation = 0;
		double begin = now_ns();
		walk_ours();
		printf(" %.1f", now_ns() - begin);
	}
	printf("\n");
	free(took);
}

/* Two functions by turns, with other registers saved: no walk can guess the next frame. */
__attribute__((noinline)) static u64 odd(int depth, int left, u64 x, const char *text);

__attribute__((noinline)) static u64 even(int depth, int left, u64 x, const char *text)
{
	if (left <= 0) {
		measure(depth);
		return x;
	}
	u64 y = x * 3 + (u64)left;
	u64 sum = odd(depth, left - 1, y, text);
	__asm__ volatile("" : "+r"(sum)::"memory");
	return sum + y + x + (u64)text[0];
}

__attribute__((noinline)) static u64 odd(int depth, int left, u64 x, const char *text)
{
	if (left <= 0) {
		measure(depth);
		return x;
	}
	u64 sum = even(depth, left - 1, x + 1, text);
	__asm__ volatile("" : "+r"(sum)::"memory");
	return sum + x;
}

int main(int argc, char **argv)
{
	static const int depths[] = {5, 30, 200};
	char line[512];
	if (argc != 3)
		return 2;
	batches = atoi(argv[1]);
	walks = atoi(argv[2]);
	cache = mmap(0, CACHE_LINES * sizeof(*cache), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void *libc = dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD);
	*(void **)&glibc_backtrace = libc ? dlsym(libc, "backtrace") : 0;
	if (!glibc_backtrace)
		return 3;
	glibc_backtrace((void **)addresses, MAX_DEPTH); /* loads libgcc_s, which is to be among the modules */
	FILE *maps = fopen("/proc/self/maps", "r");
	while (maps && fgets(line, sizeof(line), maps))
		if (strstr(line, "[stack]"))
			sscanf(line, "%lx-%lx", &low, &high);
	dl_iterate_phdr(note_module, 0);
	if (!high || cache == MAP_FAILED)
		return 3;
	low = ((u64)line & ~4095UL) - (256UL << 10); /* below, the stack is not mapped yet; what runs here is above */
	u64 x = 1;
	/* Besides these: the walker's two, measure(), main, two of libc's and _start. */
	for (u64 i = 0; i < sizeof(depths) / sizeof(depths[0]); i++)
		x += even(depths[i], depths[i] - 8, x, argv[0]);
	return x == 42;
}
