/* Live blocks by address: a cache line of words for each 4 KB of addresses, each word a block that begins there (11
 * bits, where in its 16 KB) and its site (21 bits).
 *
 *   address  bits 24..46  paged directory -> leaf    bits 12..23  line in the leaf
 *            bits  5..11  the block's place in its 4 KB, which also says at which word of the line to begin
 *
 * Programs of small blocks have more than 16 in 4 KB.  Where that is seen, the 16 MB around are crowded from then on, and
 * have a line for each KB:
 *
 *   address  bits 22..46  directory -> leaf          bits 10..21  line in the leaf
 *
 * A KB with more than 16 blocks goes on in a line that it has together with its neighbours, one for 16 KB: most such
 * programs have 15 to 18 in a KB, and a second line for each would be empty for the most part.
 *
 *   address  bits 26..46  wide directory -> leaf     bits 14..25  line in the leaf
 *
 * What has no room there either goes to the line of its 4 KB, and to another behind it, as far as there are blocks (28
 * for blocks of 8 bytes).
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
	u32 there = __atomic_load_n(place, __ATOMIC_ACQUIRE), fresh;
	if (LIKELY(there & PA_LEAF_MASK))
		return there & PA_LEAF_MASK;
	if (__atomic_load_n(&ph.heap->leaves_used, __ATOMIC_RELAXED) >= ph.heap->leaf_count)
		return 0;
	fresh = __atomic_fetch_add(&ph.heap->leaves_used, 1, __ATOMIC_RELAXED);
	if (fresh >= ph.heap->leaf_count)
		return 0;
	while (!__atomic_compare_exchange_n(place, &there, there | fresh, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		if (there & PA_LEAF_MASK)
			return there & PA_LEAF_MASK; /* of two threads one's is left unused */
	return fresh;
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

static inline u32 *paged_place(u64 address)
{
	return directory_place(ph.heap->paged_offset, address, PA_PAGED_SHIFT);
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

/* A line of 4 KB is full: whether the 16 KB around are about as full, and not by chance this one alone. */
static __attribute__((noinline)) void see_crowd(u32 *place, u32 leaf, u64 address)
{
	const u32 lines = 1 << (PA_WIDE_SHIFT - PA_PAGED_SHIFT), *first = leaf_line(leaf, address & -PA_AREA, PA_PAGED_SHIFT);
	u32 used = 0;
	for (u32 i = 0; i < lines * PA_LINE_WORDS; i++)
		used += __atomic_load_n(&first[i], __ATOMIC_RELAXED) != 0;
	if (used >= PA_CROWD)
		__atomic_fetch_or(place, PA_CROWDED, __ATOMIC_RELAXED);
}

/* 0 where there is no room. */
static inline int block_put(u64 address, u32 site)
{
	u32 word = block_spot(address) << PA_SITE_BITS | site, leaf, *paged = paged_place(address);
	if (!(__atomic_load_n(paged, __ATOMIC_RELAXED) & PA_CROWDED)) {
		leaf = leaf_get(paged);
		if (UNLIKELY(!leaf))
			return 0;
		if (LIKELY(leaf_put(leaf, address, PA_PAGED_SHIFT, word)))
			return 1;
		see_crowd(paged, leaf, address);
	}
	leaf = leaf_get(leaf_place(address));
	if (UNLIKELY(!leaf))
		return 0;
	if (LIKELY(leaf_put(leaf, address, 0, word)))
		return 1;
	leaf = leaf_get(wide_place(address));
	if (leaf && leaf_put(leaf, address, PA_WIDE_SHIFT, word))
		return 1;
	for (u32 *place = paged; (leaf = leaf_get(place)); place = leaf_next(leaf))
		if (leaf_put(leaf, address, PA_PAGED_SHIFT, word))
			return 1;
	return 0;
}

/* The block's site, and no such block any more; 0: there is none.  In a crowd some may be that were there before. */
static inline u32 block_take(u64 address)
{
	u32 *paged = paged_place(address), leaf = __atomic_load_n(paged, __ATOMIC_ACQUIRE), site;
	if (leaf && !(leaf & PA_CROWDED) && (site = leaf_take(leaf, address, PA_PAGED_SHIFT)))
		return site;
	leaf = __atomic_load_n(leaf_place(address), __ATOMIC_ACQUIRE);
	if (leaf && (site = leaf_take(leaf, address, 0)))
		return site;
	leaf = __atomic_load_n(wide_place(address), __ATOMIC_ACQUIRE);
	if (leaf && (site = leaf_take(leaf, address, PA_WIDE_SHIFT)))
		return site;
	for (u32 *place = paged; (leaf = __atomic_load_n(place, __ATOMIC_ACQUIRE) & PA_LEAF_MASK); place = leaf_next(leaf)) {
		site = leaf_take(leaf, address, PA_PAGED_SHIFT);
		if (site)
			return site;
	}
	return 0;
}

#endif
