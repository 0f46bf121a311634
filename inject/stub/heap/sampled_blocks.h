/* Live blocks that were sampled, by address: a hash table of words, each a block's address and its site.
 *
 * A block's word is anywhere in the two cache lines that its address leads to, and a lookup reads both to their end:
 * so a word is given back by storing 0, and nothing moves.  Where all 16 words are taken the table gets another level,
 * four times as large, and goes on in all of them.  One level is 9 in 10 full by then.
 *
 * Before a word is looked for, a count of the blocks with its address's hash is (the filter): most have none.
 */
#ifndef PA_SAMPLED_BLOCKS_H
#define PA_SAMPLED_BLOCKS_H

#include "sampled.h"

#define LINE_WORDS 8
#define FIRST_LINES (PA_SAMPLED_FIRST / LINE_WORDS)
#define LEVEL_WORDS(level) ((u64)PA_SAMPLED_FIRST << 2 * (level))
#define SITE_OF(word) ((u32)((word) & ((1UL << PA_SAMPLED_SITE_BITS) - 1)))
#define FILTER_FULL 255

/* One of the two lines of the address in the level. */
static inline u64 *sampled_line(u64 address, u32 level, u32 which)
{
	u64 hash = (address >> 3) * HASH, lines = (u64)FIRST_LINES << 2 * level;
	u64 line = (which ? hash >> 16 : hash >> 32) & (lines - 1);
	u64 *words = heap_at(level ? ph.heap->more_offset : ph.heap->sampled_offset);
	/* Levels 1 to level - 1 lie in front: 4 + 16 + ... times the first. */
	u64 before = level ? (LEVEL_WORDS(level) - LEVEL_WORDS(1)) / 3 : 0;
	return words + before + line * LINE_WORDS;
}

static inline void filter_add(u64 address)
{
	u8 *count = sampled_filter(ph.sampled, address), old = __atomic_load_n(count, __ATOMIC_RELAXED);
	while (old != FILTER_FULL &&
	       !__atomic_compare_exchange_n(count, &old, old + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		;
}

static inline void filter_remove(u64 address)
{
	u8 *count = sampled_filter(ph.sampled, address), old = __atomic_load_n(count, __ATOMIC_RELAXED);
	while (old && old != FILTER_FULL &&
	       !__atomic_compare_exchange_n(count, &old, old - 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		;
}

/* The block's word, or 0. */
static inline u64 *sampled_find(u64 address)
{
	u32 top = __atomic_load_n(&ph.heap->blocks_level, __ATOMIC_ACQUIRE);
	for (u32 i = 0; i < 2 * (top + 1) && i < 2 * PA_SAMPLED_LEVELS; i++) {
		u64 *line = sampled_line(address, i / 2, i & 1);
		for (u32 k = 0; k < LINE_WORDS; k++)
			if (__atomic_load_n(&line[k], __ATOMIC_RELAXED) >> PA_SAMPLED_SITE_BITS == address >> 3)
				return &line[k];
	}
	return 0;
}

static inline int sampled_put_at(u64 address, u32 level, u64 word)
{
	for (u32 k = 0; k < 2 * LINE_WORDS; k++) {
		u64 *at = sampled_line(address, level, k / LINE_WORDS) + k % LINE_WORDS, empty = 0;
		if (!__atomic_load_n(at, __ATOMIC_RELAXED) &&
		    __atomic_compare_exchange_n(at, &empty, word, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
			return 1;
	}
	return 0;
}

/* 0 where there is no room. */
static inline int sampled_put(u64 address, u32 site)
{
	u64 word = (address >> 3) << PA_SAMPLED_SITE_BITS | site;
	filter_add(address);
	for (u32 level = 0; level < PA_SAMPLED_LEVELS; level++) {
		u32 top = level - 1;
		if (level > __atomic_load_n(&ph.heap->blocks_level, __ATOMIC_ACQUIRE))
			__atomic_compare_exchange_n(&ph.heap->blocks_level, &top, level, 0, __ATOMIC_RELEASE,
						    __ATOMIC_RELAXED);
		if (sampled_put_at(address, level, word))
			return 1;
	}
	filter_remove(address);
	return 0;
}

/* The block's site, and no such block any more; 0: there is none. */
static inline u32 sampled_take(u64 address)
{
	u64 *at = sampled_find(address), word = at ? __atomic_load_n(at, __ATOMIC_RELAXED) : 0;
	if (word >> PA_SAMPLED_SITE_BITS != address >> 3 ||
	    !__atomic_compare_exchange_n(at, &word, 0, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		return 0;
	filter_remove(address);
	return SITE_OF(word);
}

#endif
