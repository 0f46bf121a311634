/* The heap profiler's stacks, which are taken from the thread's last walk as far as that goes, against stacks that are
 * walked anew, and both against what the stack was made of.
 *
 *     heap_stack_driver SEED STEPS MAX
 *
 * Prints "walks N differ N wrong N frames N nodes N".
 *
 *     heap_stack_driver above RETURN
 *
 * A walk that leaves the stack for a mapping above it, where there is this return address; then the mapping is gone.
 * From FUNCTION_BYTES behind CODE_AT it goes on by the stack pointer, to a return address of 0.
 * Prints "first END again END".
 */
#define timespec kernel_timespec
#include "heap/heap.h"
#undef timespec

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "imaginary.h"

#define ROOM (256UL << 20)
#define NODES (1U << 20)
#define FANS (1U << 16)

struct pa_heap_private ph;

static u64 used = 4096;

/* Zeroed memory behind the heap's head: its offset. */
static u64 take(u64 bytes)
{
	u64 at = used;
	used += (bytes + 4095) & ~4095UL;
	if (used > ROOM)
		exit(2);
	return at;
}

static void begin_thread(struct pa_heap_thread *t)
{
	t->recent_at = take(PA_RECENT * sizeof(struct pa_heap_recent));
	t->children_at = take(PA_RECENT * sizeof(struct pa_heap_child));
	t->children_mask = PA_RECENT - 1;
	t->frames_at = take(MAX_DEPTH * sizeof(struct pa_walked));
	t->scratch_at = take(MAX_DEPTH * sizeof(struct pa_walked));
	t->room_at = take(PA_ROOM_BYTES);
	t->memos_at = take(PA_MEMOS * sizeof(struct pa_memo));
}

static struct pa_cache_line *begin_heap(u64 max)
{
	u8 *memory = calloc(1, ROOM);
	if (!memory)
		exit(2);
	ph.heap = (struct pa_heap *)memory;
	ph.control = (struct pa_control *)(memory + take(sizeof(struct pa_control)));
	ph.pid = (u32)getpid();
	ph.heap->max_depth = (u32)max;
	ph.heap->nodes.used = PA_FIRST_ITEM;
	ph.heap->nodes.most = NODES;
	ph.heap->nodes.items_offset = take(NODES * sizeof(struct pa_node));
	ph.heap->fans.used = 1;
	ph.heap->fans.most = FANS;
	ph.heap->fans.items_offset = take(FANS * PA_FAN * 4UL);
	ph.heap->regions_offset = take(PA_REGIONS * 4UL);
	u64 lines = take(CACHE_LINES * sizeof(struct pa_cache_line));
	ph.control->modules_seq = 1;
	ph.control->modules_offset = (u64)memory + take(2 * sizeof(struct pa_modules)) - (u64)ph.control;
	ph.control->cache_offset = (u64)memory + lines - (u64)ph.control;
	ph.control->cache_lines = CACHE_LINES;
	return (struct pa_cache_line *)(memory + lines);
}

/* Whether the node's path is the program's stack, with `ip` in front. */
static int right(u32 node, u64 ip, u64 max)
{
	const struct pa_node *nodes = heap_at(ph.heap->nodes.items_offset);
	const u32 *halves = heap_at(ph.heap->regions_offset);
	u32 end = depth < max ? PA_END_ROOT : PA_END_DEPTH;
	for (u32 i = 0; i < depth && i < max; i++) {
		if (node < PA_FIRST_ITEM || node >= ph.heap->nodes.used)
			return 0;
		u64 upper = halves[nodes[node].under >> PA_NODE_BITS] - 1UL;
		if ((upper << 32 | nodes[node].address) != (i ? calls[depth - i].ret : ip))
			return 0;
		node = nodes[node].under & ((1U << PA_NODE_BITS) - 1);
	}
	return node == 1 + end;
}

static void leave_the_stack(u64 returns_to)
{
	struct pa_heap_thread t = {0};
	struct pa_unwinder u = {.cache_lines = CACHE_LINES, .generation = 1};
	struct pa_rule rule = {.kind = PA_RULE_OFFSET, .cfa_register = PA_REG_FP, .cfa_offset = 16, .return_at = -1};
	u64 stack_at = (u64)mmap(0, 3 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), above = stack_at + 4096;
	u64 sp = stack_at + 1024, by_fp = above + 64, ends[2];
	if (mprotect((void *)stack_at, 2 * 4096, PROT_READ | PROT_WRITE))
		exit(2);
	u.cache = begin_heap(64);
	begin_thread(&t);
	for (u32 i = 0; i < PA_PRESERVED; i++)
		rule.saved_at[i] = PA_SAME;
	for (u64 ip = CODE_AT - 1; ip <= CODE_AT; ip++)
		cache_put(&u, ip, &rule);
	rule.cfa_register = PA_REG_SP;
	for (u64 ip = CODE_AT + FUNCTION_BYTES - 1; ip <= CODE_AT + FUNCTION_BYTES; ip++)
		cache_put(&u, ip, &rule);
	((u64 *)by_fp)[1] = returns_to;
	for (u32 i = 0; i < 2; i++) {
		stack_walk(&t, CODE_AT, sp, by_fp);
		ends[i] = t.end;
		munmap((void *)above, 4096);
	}
	printf("first %lu again %lu\n", ends[0], ends[1]);
}

int main(int argc, char **argv)
{
	struct pa_heap_thread anew = {0}, again = {0};
	u64 differ = 0, wrong = 0, frames = 0, was = 0;
	if (argc == 3 && !strcmp(argv[1], "above")) {
		leave_the_stack(strtoull(argv[2], 0, 0));
		return 0;
	}
	if (argc != 4)
		return 2;
	u64 steps = strtoull(argv[2], 0, 10), max = strtoull(argv[3], 0, 10);
	struct pa_cache_line *lines = begin_heap(max);
	begin(strtoull(argv[1], 0, 10), lines);
	begin_thread(&anew);
	begin_thread(&again);
	for (u64 i = 0; i < steps; i++) {
		if (any(2)) /* else it is where it was: programs allocate there again and again */
			go_on(i);
		u64 ip = place(calls[depth - 1].function, any(SITES)), *changed = overwrite(&was);
		anew.depth = 0;
		__builtin_memset(heap_at(anew.memos_at), 0, PA_MEMOS * sizeof(struct pa_memo));
		u32 expected = stack_walk(&anew, ip, stack_pointer(), fp)->node;
		u32 node = stack_walk(&again, ip, stack_pointer(), fp)->node;
		differ += node != expected;
		wrong += !changed && !right(node, ip, max);
		frames += depth;
		if (changed)
			*changed = was;
	}
	printf("walks %lu differ %lu wrong %lu frames %lu nodes %u\n", steps, differ, wrong, frames, ph.heap->nodes.used);
	return 0;
}
