/* Threads that look for the same stacks and sites at the same time, against what each is made of.
 *
 *     heap_tree_driver SEED THREADS STEPS
 *
 * Prints "looked N differ N wrong N twice N refused N nodes N sites N linked N left N lost N".
 */
#define timespec kernel_timespec
#define itimerspec kernel_itimerspec
#include "heap/tree.h"
#undef timespec
#undef itimerspec

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define ROOM (1UL << 30)
#define MOST_THREADS 8
#define HALVES 5
#define PLACES 300 /* return addresses below each upper half: the same lower halves in all */
#define DEEPEST 12

struct pa_heap_private ph;

struct job {
	u64 state, steps, differ, wrong;
};

static u64 any(u64 *state, u64 below)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return (*state >> 11) % below;
}

static u64 address_of(u32 node)
{
	const u32 *halves = heap_at(ph.heap->regions_offset);
	return (u64)(halves[node_at(node)->under >> PA_NODE_BITS] - 1) << 32 | node_at(node)->address;
}

static u32 caller_of(u32 node)
{
	return node_at(node)->under & ((1U << PA_NODE_BITS) - 1);
}

static u32 node_of(u32 site)
{
	return site_at(site)->node & ((1U << PA_NODE_BITS) - 1);
}

/* A stack of some frames, mostly of few different ones, and what is allocated there: twice, as others look too. */
static void *look(void *argument)
{
	struct job *job = argument;
	for (u64 i = 0; i < job->steps; i++) {
		u32 node = 1 + (u32)any(&job->state, 3);
		for (u64 depth = any(&job->state, DEEPEST); depth; depth--) {
			u64 ip = any(&job->state, HALVES) << 32 | (0x1000 + any(&job->state, any(&job->state, 9) ? 3 : PLACES));
			u32 found = tree_node(item_hash(ip, node), ip, node);
			job->wrong += !found || address_of(found) != ip || caller_of(found) != node;
			job->differ += tree_node(item_hash(ip, node), ip, node) != found;
			node = found;
		}
		u64 size = any(&job->state, 9) ? any(&job->state, 4) : any(&job->state, 1UL << 40);
		u32 site = tree_site(size, node);
		job->wrong += !site || site_size(site) != size || node_of(site) != node;
		job->differ += tree_site(size, node) != site;
	}
	return 0;
}

/* What a list leads to: how many items, each of which must be under `node`. */
static u64 listed(u32 ref, u32 node, u8 *seen_nodes, u8 *seen_sites, u64 *wrong)
{
	u64 count = 0;
	if (ref & REF_FAN) {
		for (u32 i = 0; i < PA_FAN; i++)
			count += listed(fan_at(ref)[i], node, seen_nodes, seen_sites, wrong);
		return count;
	}
	for (; ref && !(ref & REF_FAN); ref = *next_of(ref)) {
		u32 id = ref & REF_ID;
		u8 *seen = ref & REF_SITE ? &seen_sites[id] : &seen_nodes[id];
		*wrong += *seen || (ref & REF_SITE ? node_of(id) : caller_of(id)) != node;
		*seen = 1;
		count++;
	}
	return count + (ref ? listed(ref, node, seen_nodes, seen_sites, wrong) : 0);
}

struct pair {
	u64 key;
	u32 under, kind;
};

static int by_pair(const void *a, const void *b)
{
	return __builtin_memcmp(a, b, sizeof(struct pair));
}

/* What the lists lead to, in order, and the rest: items of which another thread had made the same just before. */
struct items {
	struct pair *linked, *left;
	u64 linked_count, left_count;
};

static void add(struct items *items, int is_linked, struct pair pair)
{
	if (is_linked)
		items->linked[items->linked_count++] = pair;
	else
		items->left[items->left_count++] = pair;
}

static struct items all_items(const u8 *seen_nodes, const u8 *seen_sites)
{
	u64 room = ph.heap->nodes.used + ph.heap->sites.used;
	struct items items = {calloc(room, sizeof(struct pair)), calloc(room, sizeof(struct pair)), 0, 0};
	if (!items.linked || !items.left)
		exit(2);
	for (u32 id = PA_FIRST_ITEM; id < ph.heap->nodes.used; id++)
		add(&items, seen_nodes[id], (struct pair){address_of(id), caller_of(id), 0});
	for (u32 id = PA_FIRST_ITEM; id < ph.heap->sites.used; id++)
		add(&items, seen_sites[id], (struct pair){site_size(id), node_of(id), REF_SITE});
	qsort(items.linked, items.linked_count, sizeof(struct pair), by_pair);
	return items;
}

/* Items with the same key under the same node. */
static u64 twice(const struct items *items)
{
	u64 same = 0;
	for (u64 i = 1; i < items->linked_count; i++)
		same += !by_pair(&items->linked[i - 1], &items->linked[i]);
	return same;
}

/* Items that no list leads to, nor to another with the same key under the same node. */
static u64 lost(const struct items *items)
{
	u64 count = 0;
	for (u64 i = 0; i < items->left_count; i++)
		count += !bsearch(&items->left[i], items->linked, items->linked_count, sizeof(struct pair), by_pair);
	return count;
}

static void begin(void)
{
	u8 *memory = mmap(0, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		exit(2);
	ph.heap = (struct pa_heap *)memory;
	ph.heap->regions_offset = 1 << 16;
	ph.heap->nodes = (struct pa_table){.items_offset = 1 << 20, .most = 1U << PA_NODE_BITS, .used = PA_FIRST_ITEM};
	ph.heap->sites = (struct pa_table){.items_offset = 128 << 20, .most = 1U << PA_SITE_BITS, .used = PA_FIRST_ITEM};
	ph.heap->fans = (struct pa_table){.items_offset = 512 << 20, .most = 1 << 20, .used = 1};
}

int main(int argc, char **argv)
{
	pthread_t threads[MOST_THREADS];
	struct job jobs[MOST_THREADS], all = {0};
	u64 count = argc == 4 ? strtoull(argv[2], 0, 10) : 0, linked = 0;
	if (!count || count > MOST_THREADS)
		return 2;
	begin();
	for (u64 i = 0; i < count; i++) {
		/* Half of them look for the very same. */
		jobs[i] = (struct job){.state = (strtoull(argv[1], 0, 10) + i / 2) * HASH | 1, .steps = strtoull(argv[3], 0, 10)};
		pthread_create(&threads[i], 0, look, &jobs[i]);
	}
	for (u64 i = 0; i < count; i++) {
		pthread_join(threads[i], 0);
		all.steps += jobs[i].steps;
		all.differ += jobs[i].differ;
		all.wrong += jobs[i].wrong;
	}
	u8 *seen_nodes = calloc(ph.heap->nodes.used, 1), *seen_sites = calloc(ph.heap->sites.used, 1);
	if (!seen_nodes || !seen_sites)
		return 2;
	for (u32 id = 0; id < ph.heap->nodes.used; id++)
		linked += listed(node_at(id)->child, id, seen_nodes, seen_sites, &all.wrong);
	struct items items = all_items(seen_nodes, seen_sites);
	printf("looked %lu differ %lu wrong %lu twice %lu refused %u nodes %u sites %u linked %lu left %lu lost %lu\n",
	       all.steps, all.differ, all.wrong, twice(&items), ph.heap->nodes.refused + ph.heap->sites.refused,
	       ph.heap->nodes.used, ph.heap->sites.used, linked, items.left_count, lost(&items));
	return 0;
}
