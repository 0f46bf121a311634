/* Live blocks by address: for each KB of addresses one cache line of words, each a block that begins there (11 bits,
 * where in its 16 KB) and its site (21 bits).
 *
 *   address  bits 22..46  directory -> leaf          bits 10..21  line in the leaf
 *            bits  3.. 9  the block's place in its KB, which also says at which word of the line to begin
 *
 * A KB with more than 16 blocks goes on in a line that it has together with its neighbours, one for 16 KB: programs of
 * small blocks have 15 to 18 in a KB, and a second line for each would be empty for the most part.
 *
 *   address  bits 26..46  wide directory -> leaf     bits 14..25  line in the leaf
 *
 * Where that is full there is one for 4 KB, and another behind it, as far as there are blocks (28 for blocks of 8
 * bytes).
 *
 *   address  bits 24..46  dense directory -> leaf    bits 12..23  line in the leaf
 *
 * A word is taken by compare and swap from 0 and given back by a store: the one who allocates or frees a block is alone
 * with its word, and a lookup does not end at an empty one.
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

/* The address's line in a leaf that has one for each KB << shift. */
static inline u32 *leaf_line(u32 leaf, u64 address, u32 shift)
{
	u64 line = (address >> (PA_LINE_SHIFT + shift)) & ((1U << (PA_LEAF_SHIFT - PA_LINE_SHIFT)) - 1);
	return (u32 *)heap_at(ph.heap->leaves_offset) + (u64)leaf * PA_LEAF_WORDS + line * PA_LINE_WORDS;
}

/* The address's place in the directory of such leaves. */
static inline u32 *directory_place(u64 directory_offset, u64 address, u32 shift)
{
	u64 place = (address >> (PA_LEAF_SHIFT + shift)) & ((PA_DIRECTORY >> shift) - 1);
	return (u32 *)heap_at(directory_offset) + place;
}

static inline u32 *leaf_place(u64 address)
{
	return directory_place(ph.heap->directory_offset, address, 0);
}

static inline u32 *wide_place(u64 address)
{
	return directory_place(ph.heap->wide_offset, address, PA_WIDE_SHIFT);
}

static inline u32 *dense_place(u64 address)
{
	return directory_place(ph.heap->dense_offset, address, PA_DENSE_SHIFT);
}

static inline u32 *leaf_next(u32 leaf)
{
	return (u32 *)heap_at(ph.heap->next_offset) + leaf;
}

static inline u32 block_spot(u64 address)
{
	return (u32)(address >> 3) & ((1U << (32 - PA_SITE_BITS)) - 1);
}

/* At which word to begin of a line for so much: words are spread by their addresses. */
static inline u32 first_word(u32 spot, u32 shift)
{
	return spot >> (3 + shift);
}

/* Put the word where there is room in the line, looking from the place on; 0: there is none. */
static inline int line_put(u32 *line, u32 place, u32 word)
{
	for (u32 tries = 0; tries < PA_LINE_WORDS; tries++, place++) {
		u32 *at = &line[place & (PA_LINE_WORDS - 1)], empty = 0;
		if (!__atomic_load_n(at, __ATOMIC_RELAXED) &&
		    __atomic_compare_exchange_n(at, &empty, word, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
			return 1;
	}
	return 0;
}

/* Take the block's word out of the line: its site, or 0. */
static inline u32 line_take(u32 *line, u32 place, u32 spot)
{
	for (u32 tries = 0; tries < PA_LINE_WORDS; tries++, place++) {
		u32 *at = &line[place & (PA_LINE_WORDS - 1)], word = __atomic_load_n(at, __ATOMIC_RELAXED);
		if (word && word >> PA_SITE_BITS == spot) {
			__atomic_store_n(at, 0, __ATOMIC_RELAXED);
			return word & PA_SITE_MASK;
		}
	}
	return 0;
}

/* The same of the address's line in a leaf. */
static inline int leaf_put(u32 leaf, u64 address, u32 shift, u32 word)
{
	return line_put(leaf_line(leaf, address, shift), first_word(block_spot(address), shift), word);
}

static inline u32 leaf_take(u32 leaf, u64 address, u32 shift)
{
	u32 spot = block_spot(address);
	return line_take(leaf_line(leaf, address, shift), first_word(spot, shift), spot);
}

/* 0 where there is no room. */
static inline int block_put(u64 address, u32 site)
{
	u32 word = block_spot(address) << PA_SITE_BITS | site, leaf = leaf_get(leaf_place(address));
	if (UNLIKELY(!leaf))
		return 0;
	if (LIKELY(leaf_put(leaf, address, 0, word)))
		return 1;
	leaf = leaf_get(wide_place(address));
	if (leaf && leaf_put(leaf, address, PA_WIDE_SHIFT, word))
		return 1;
	for (u32 *place = dense_place(address); (leaf = leaf_get(place)); place = leaf_next(leaf))
		if (leaf_put(leaf, address, PA_DENSE_SHIFT, word))
			return 1;
	return 0;
}

/* The block's site, and no such block any more; 0: there is none. */
static inline u32 block_take(u64 address)
{
	u32 leaf = __atomic_load_n(leaf_place(address), __ATOMIC_ACQUIRE), site;
	if (!leaf)
		return 0;
	site = leaf_take(leaf, address, 0);
	if (LIKELY(site))
		return site;
	leaf = __atomic_load_n(wide_place(address), __ATOMIC_ACQUIRE);
	if (leaf && (site = leaf_take(leaf, address, PA_WIDE_SHIFT)))
		return site;
	for (u32 *place = dense_place(address); (leaf = __atomic_load_n(place, __ATOMIC_ACQUIRE)); place = leaf_next(leaf)) {
		site = leaf_take(leaf, address, PA_DENSE_SHIFT);
		if (site)
			return site;
	}
	return 0;
}

#endif
