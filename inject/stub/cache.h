/* Rules found before, by address: direct-mapped, shared by all threads, without a lock.
 *
 * A line is four words, written and read in no particular order; the first is the key combined with the
 * other three, so a line that is half one rule and half another matches no key.  The key holds the module
 * table's generation: what was found before a library came or went is not believed after.
 *
 * Where a tick hits is hardly ever hit again, but its rule is that of hundreds of addresses around.  So a rule is
 * also kept by block of addresses, the last one found there, with the part of the block for which it holds. */
#ifndef PA_CACHE_H
#define PA_CACHE_H

#include "unwind.h"

static inline u64 cache_key(const struct pa_unwinder *u, u64 address)
{
	return address ^ ((u64)(u->generation & 0xffff) << 48);
}

/* Of a block: no code of a program has an address with this bit set. */
#define BLOCK_TAG USER_SPACE_END
#define BLOCK_BYTES 256UL

static inline u64 block_of(u64 address)
{
	return (address & ~(BLOCK_BYTES - 1)) | BLOCK_TAG;
}

static inline struct pa_cache_line *cache_line(const struct pa_unwinder *u, u64 address)
{
	return &u->cache[((address * 0x9e3779b97f4a7c15UL) >> 20) & (u->cache_lines - 1)];
}

/* The rule of an address as it is kept, three words; 0: there is none. */
static inline int cache_words(const struct pa_unwinder *u, u64 address, u64 *words)
{
	const struct pa_cache_line *line = cache_line(u, address);
	u64 check = __atomic_load_n(&line->check, __ATOMIC_RELAXED);
	for (u32 i = 0; i < 3; i++)
		words[i] = __atomic_load_n(&line->word[i], __ATOMIC_RELAXED);
	return (check ^ words[0] ^ words[1] ^ words[2]) == cache_key(u, address);
}

/* Rules of the common kind by their first three bytes: the CFA counts from the stack or the frame pointer, and all
 * else lies just below it. */
#define FROM_SP (PA_RULE_OFFSET | PA_REG_SP << 8 | PA_SAVED_NEAR << 16)
#define FROM_FP (PA_RULE_OFFSET | PA_REG_FP << 8 | PA_SAVED_NEAR << 16)
#define HEAD_MASK 0xffffff

static inline u64 cfa_offset(const u64 *words)
{
	return (u64)((i64)words[0] >> 32);
}

/* How many bytes below the CFA such a rule has the caller's frame pointer; 0: it is not saved. */
static inline u32 fp_back(const u64 *words)
{
	return (words[0] >> (24 + PA_SAVED_FP) & 1) ? (u32)(-8 * (i64)(i16)(words[1] >> (16 * PA_SAVED_FP))) : 0;
}

static inline int cache_get(struct pa_unwinder *u, u64 address, struct pa_rule *out)
{
	u64 word[3];
	if (!cache_words(u, address, word) || !(word[0] & 0xff))
		return 0;
	__builtin_memcpy(out, word, sizeof(word));
	return 1;
}

static inline void cache_put(struct pa_unwinder *u, u64 address, const struct pa_rule *rule)
{
	struct pa_cache_line *line = cache_line(u, address);
	u64 word[3];
	__builtin_memcpy(word, rule, sizeof(word));
	for (u32 i = 0; i < 3; i++)
		__atomic_store_n(&line->word[i], word[i], __ATOMIC_RELAXED);
	__atomic_store_n(&line->check, cache_key(u, address) ^ word[0] ^ word[1] ^ word[2], __ATOMIC_RELAXED);
}

/* The rule of an address by its block. */
static inline int cache_get_near(struct pa_unwinder *u, u64 address, struct pa_rule *out)
{
	u64 at = address & (BLOCK_BYTES - 1);
	return cache_get(u, block_of(address), out) && at >= out->below && at <= out->above;
}

/* Keep it for its block: there `below` and `above` are the first and the last place for which it holds. */
static inline void cache_put_near(struct pa_unwinder *u, u64 address, struct pa_rule rule)
{
	u64 at = address & (BLOCK_BYTES - 1), room = BLOCK_BYTES - 1 - at;
	if ((rule.kind != PA_RULE_OFFSET && rule.kind != PA_RULE_DEREF) || !(rule.below | rule.above))
		return;
	rule.below = (u8)(at - (rule.below < at ? rule.below : at));
	rule.above = (u8)(at + (rule.above < room ? rule.above : room));
	cache_put(u, block_of(address), &rule);
}

#endif
