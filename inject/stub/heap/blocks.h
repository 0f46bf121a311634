/* Live blocks by address: for each KB of addresses one cache line of words, each a block that begins there (7 bits,
 * where) and its site (25 bits).
 *
 *   address  bits 22..46  directory -> leaf          bits 10..21  line in the leaf
 *            bits  3.. 9  the block's place in its KB, which also says at which word of the line to begin
 *
 * A KB with more than 16 blocks goes on at the same line of the leaf behind this one, as far as there are blocks
 * (8 leaves: 128 blocks of 8 bytes).  A word is taken by compare and swap from 0 and given back by a store: the one
 * who allocates or frees a block is alone with its word, and a lookup does not end at an empty one.
 */
#ifndef PA_BLOCKS_H
#define PA_BLOCKS_H

#include "heap.h"

/* The leaf in *place, handed out now if there is none; 0: there is no more. */
static inline u32 leaf_get(u32 *place)
{
	u32 leaf = __atomic_load_n(place, __ATOMIC_ACQUIRE), fresh;
	if (LIKELY(leaf))
		return leaf;
	if (__atomic_load_n(&ph.heap->leaves_used, __ATOMIC_RELAXED) >= ph.heap->leaf_count)
		return 0;
	fresh = __atomic_fetch_add(&ph.heap->leaves_used, 1, __ATOMIC_RELAXED);
	if (fresh >= ph.heap->leaf_count)
		return 0;
	/* Of two threads one's is left unused. */
	return __atomic_compare_exchange_n(place, &leaf, fresh, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE) ? fresh : leaf;
}

static inline u32 *leaf_line(u32 leaf, u64 address)
{
	u64 line = (address >> PA_LINE_SHIFT) & ((1U << (PA_LEAF_SHIFT - PA_LINE_SHIFT)) - 1);
	return (u32 *)heap_at(ph.heap->leaves_offset) + (u64)leaf * PA_LEAF_WORDS + line * PA_LINE_WORDS;
}

static inline u32 *leaf_place(u64 address)
{
	return (u32 *)heap_at(ph.heap->directory_offset) + ((address >> PA_LEAF_SHIFT) & (PA_DIRECTORY - 1));
}

static inline u32 *leaf_next(u32 leaf)
{
	return (u32 *)heap_at(ph.heap->next_offset) + leaf;
}

static inline u32 block_spot(u64 address)
{
	return (u32)(address >> 3) & 127;
}

/* 0 where there is no room. */
static inline int block_put(u64 address, u32 site)
{
	u32 spot = block_spot(address), word = spot << PA_SITE_BITS | site;
	for (u32 *place = leaf_place(address);;) {
		u32 leaf = leaf_get(place), *line, i = spot >> 3;
		if (UNLIKELY(!leaf))
			return 0;
		line = leaf_line(leaf, address);
		for (u32 tries = 0; tries < PA_LINE_WORDS; tries++, i++) {
			u32 *at = &line[i & (PA_LINE_WORDS - 1)], empty = 0;
			if (!__atomic_load_n(at, __ATOMIC_RELAXED) &&
			    __atomic_compare_exchange_n(at, &empty, word, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
				return 1;
		}
		place = leaf_next(leaf);
	}
}

/* The block's site, and no such block any more; 0: there is none. */
static inline u32 block_take(u64 address)
{
	u32 spot = block_spot(address);
	for (u32 *place = leaf_place(address);;) {
		u32 leaf = __atomic_load_n(place, __ATOMIC_ACQUIRE), *line, i = spot >> 3;
		if (!leaf)
			return 0;
		line = leaf_line(leaf, address);
		for (u32 tries = 0; tries < PA_LINE_WORDS; tries++, i++) {
			u32 *at = &line[i & (PA_LINE_WORDS - 1)], word = __atomic_load_n(at, __ATOMIC_RELAXED);
			if (word && word >> PA_SITE_BITS == spot) {
				__atomic_store_n(at, 0, __ATOMIC_RELAXED);
				return word & PA_SITE_MASK;
			}
		}
		place = leaf_next(leaf);
	}
}

#endif
