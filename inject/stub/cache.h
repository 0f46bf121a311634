/* Rules found before, by address: direct-mapped, shared by all threads, without a lock.
 *
 * A line is four words, written and read in no particular order; the first is the key combined with the
 * other three, so a line that is half one rule and half another matches no key.  The key holds the module
 * table's generation: what was found before a library came or went is not believed after. */
#ifndef PA_CACHE_H
#define PA_CACHE_H

#include "unwind.h"

static inline u64 cache_key(const struct pa_unwinder *u, u64 address)
{
	return address ^ ((u64)(u->generation & 0xffff) << 48);
}

static inline struct pa_cache_line *cache_line(const struct pa_unwinder *u, u64 address)
{
	return &u->cache[((address * 0x9e3779b97f4a7c15UL) >> 20) & (u->cache_lines - 1)];
}

static inline int cache_get(struct pa_unwinder *u, u64 address, struct pa_rule *out)
{
	const struct pa_cache_line *line = cache_line(u, address);
	u64 word[3], check = __atomic_load_n(&line->check, __ATOMIC_RELAXED);
	for (u32 i = 0; i < 3; i++)
		word[i] = __atomic_load_n(&line->word[i], __ATOMIC_RELAXED);
	if ((check ^ word[0] ^ word[1] ^ word[2]) != cache_key(u, address) || !(word[0] & 0xff))
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

#endif
