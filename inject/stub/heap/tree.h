/* Stacks as a tree, and where blocks come from: each once, by a number of its own.
 *
 *   node   a return address and the caller's node          site   a size and a node, of the stack that allocates it
 *
 * Both are found from the node that they are under, by its list:
 *
 *   node.child -> one -> another -> ...      (`next` of each, of nodes and sites alike)
 *
 * Most nodes have one child, which was made right after them and so lies next to them.  A list ends after PA_LISTED: then
 * come PA_FAN lists, by a hash, and each of those may go on like that.  Items are only ever added, each by a compare
 * and swap of 0 at the end of its list, so there are no two of the same and nobody waits.
 *
 * Of a return address a node has the lower 32 bits and a number, of the table of all upper ones that were met.  Of a
 * size a site has 42 bits: what is larger counts as one that there was no room for.
 */
#ifndef PA_TREE_H
#define PA_TREE_H

#include "heap.h"

/* What a reference is to. */
#define REF_SITE (1U << 30)
#define REF_FAN (1U << 31)
#define REF_ID (REF_SITE - 1)

#define MOST_STEPS 4096

static inline u64 item_hash(u64 key, u32 under)
{
	u64 x = (key ^ ((u64)under << 40) ^ under) * HASH;
	return (x ^ (x >> 32)) * HASH;
}

static inline struct pa_node *node_at(u32 id)
{
	return (struct pa_node *)heap_at(ph.heap->nodes.items_offset) + id;
}

static inline struct pa_site *site_at(u32 id)
{
	return (struct pa_site *)heap_at(ph.heap->sites.items_offset) + id;
}

static inline u64 site_size(u32 id)
{
	return site_at(id)->size | (u64)(site_at(id)->node >> PA_NODE_BITS) << 32;
}

static inline u32 *fan_at(u32 ref)
{
	return (u32 *)heap_at(ph.heap->fans.items_offset) + PA_FAN * (u64)(ref & REF_ID);
}

/* A new item's number, or 0 when the table is full. */
static inline u32 item_new(struct pa_table *table)
{
	u32 id = table->most;
	if (__atomic_load_n(&table->used, __ATOMIC_RELAXED) < table->most)
		id = __atomic_fetch_add(&table->used, 1, __ATOMIC_RELAXED);
	if (id < table->most)
		return id;
	__atomic_fetch_add(&table->refused, 1, __ATOMIC_RELAXED);
	return 0;
}

/* The number of the upper half of an address; PA_REGIONS where there is no room for another. */
static inline u32 region_of(u64 address)
{
	u32 *regions = heap_at(ph.heap->regions_offset), half = (u32)(address >> 32) + 1;
	u32 i = (u32)(half * HASH >> 50);
	for (u32 probes = 0; probes < PA_REGIONS; probes++, i++) {
		u32 *at = &regions[i & (PA_REGIONS - 1)], there = __atomic_load_n(at, __ATOMIC_RELAXED);
		if (LIKELY(there == half) ||
		    (!there && (__atomic_compare_exchange_n(at, &there, half, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED) ||
				there == half)))
			return i & (PA_REGIONS - 1);
	}
	return PA_REGIONS;
}

/* What is looked for: as its item has it. */
struct wanted {
	u32 key;   /* of a node the lower half of its address; of a site that of the size */
	u32 under; /* of a node the caller's, with the address's region; of a site its node, with the size's upper half */
	u32 kind;  /* 0 or REF_SITE */
};

static inline int is_wanted(u32 ref, const struct wanted *w)
{
	u32 id = ref & REF_ID;
	if ((ref & REF_SITE) != w->kind)
		return 0;
	if (w->kind)
		return site_at(id)->size == w->key && site_at(id)->node == w->under;
	return node_at(id)->address == w->key && node_at(id)->under == w->under;
}

/* The reference to a new item, or 0.  What is under what is written last: pyattach may read it meanwhile. */
static inline u32 wanted_new(const struct wanted *w)
{
	u32 id = item_new(w->kind ? &ph.heap->sites : &ph.heap->nodes);
	if (!id)
		return 0;
	if (w->kind) {
		site_at(id)->size = w->key;
		__atomic_store_n(&site_at(id)->node, w->under, __ATOMIC_RELEASE);
	} else {
		node_at(id)->address = w->key;
		__atomic_store_n(&node_at(id)->under, w->under, __ATOMIC_RELEASE);
	}
	return id | w->kind;
}

static inline u32 *next_of(u32 ref)
{
	return ref & REF_SITE ? &site_at(ref & REF_ID)->next : &node_at(ref & REF_ID)->next;
}

/* The list that `at` ends goes on as so many by hash.  Where there is no room for that it just goes on. */
static __attribute__((noinline)) void fan_out(u32 *at)
{
	u32 fan = item_new(&ph.heap->fans), end = 0;
	if (fan)
		__atomic_compare_exchange_n(at, &end, fan | REF_FAN, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
}

/* The item's number, made if there is none yet; 0 when its table is full.  `at` is where the list begins. */
static inline u32 tree_find(u32 *at, const struct wanted *w, u64 hash)
{
	u32 listed = 0, fresh = 0;
	for (u32 steps = 0; steps < MOST_STEPS; steps++) {
		u32 ref = __atomic_load_n(at, __ATOMIC_ACQUIRE);
		if (ref & REF_FAN) {
			at = &fan_at(ref)[hash & (PA_FAN - 1)];
			hash = hash >> PA_FAN_BITS | hash << (64 - PA_FAN_BITS);
			listed = 0;
		} else if (ref) {
			if (is_wanted(ref, w))
				return ref & REF_ID;
			at = next_of(ref);
			listed++;
		} else if (listed == PA_LISTED) {
			fan_out(at);
			listed++;
		} else {
			if (!fresh && !(fresh = wanted_new(w)))
				return 0;
			if (__atomic_compare_exchange_n(at, &ref, fresh, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
				return fresh & REF_ID;
		}
	}
	return 0;
}

/* The node of this return address under its caller's, which `hash` is the item_hash of. */
static inline u32 tree_node(u64 hash, u64 address, u32 caller)
{
	u32 region = region_of(address);
	struct wanted w = {(u32)address, caller | region << PA_NODE_BITS, 0};
	if (UNLIKELY(region == PA_REGIONS)) {
		__atomic_fetch_add(&ph.heap->nodes.refused, 1, __ATOMIC_RELAXED);
		return 0;
	}
	return tree_find(&node_at(caller)->child, &w, hash);
}

/* The site of blocks of this size from this stack. */
static inline u32 tree_site(u64 size, u32 node)
{
	struct wanted w = {(u32)size, node | (u32)(size >> 32) << PA_NODE_BITS, REF_SITE};
	if (UNLIKELY(size >> (64 - PA_NODE_BITS))) {
		__atomic_fetch_add(&ph.heap->sites.refused, 1, __ATOMIC_RELAXED);
		return 0;
	}
	return tree_find(&node_at(node)->child, &w, item_hash(size, node));
}

#endif
