/* Pairs of a key and a number, each kept once, by a number of its own.
 *
 * Items are only ever added.  They are found by an index, open addressing, of which there are several: one that is
 * filled for the most part is followed by the next, twice as large.  Each item that is new, or found in the older one
 * only, moves a few places of that to the newest, so nobody waits; when it is through, pyattach takes the older one's
 * memory back.  Two threads that add the same pair at the same time to different indexes make two items of it, as
 * does one that is late in moving its places; whoever reads them adds up by key anyway.
 */
#ifndef PA_INTERN_H
#define PA_INTERN_H

#include "heap.h"

#define MOST_PROBES 512
#define MOVED_AT_ONCE 32

static inline u64 item_hash(u64 key, u32 from)
{
	u64 x = (key ^ ((u64)from << 40) ^ from) * HASH;
	return (x ^ (x >> 32)) * HASH;
}

static inline struct pa_item *item_at(const struct pa_intern *t, u32 id)
{
	return (struct pa_item *)heap_at(t->items_offset) + id;
}

static inline u32 *level_at(const struct pa_intern *t, u32 level)
{
	return (u32 *)heap_at(t->index_offset) + ((1UL << (PA_FIRST_LEVEL + level)) - (1UL << PA_FIRST_LEVEL));
}

static inline int item_is(const struct pa_intern *t, u32 id, u64 key, u32 from)
{
	const struct pa_item *item = item_at(t, id);
	return item->key == key && item->under == from;
}

static inline u32 level_find(const struct pa_intern *t, u32 level, u64 hash, u64 key, u32 from)
{
	const u32 *slots = level_at(t, level);
	u64 mask = (1UL << (PA_FIRST_LEVEL + level)) - 1, i = hash >> 20;
	for (u32 probes = 0; probes < MOST_PROBES; probes++, i++) {
		u32 id = __atomic_load_n(&slots[i & mask], __ATOMIC_ACQUIRE);
		if (!id)
			return 0;
		if (item_is(t, id, key, from))
			return id;
	}
	return 0;
}

/* Put `id` into the level; what is there instead, if another thread was first; 0: there is no room. */
static inline u32 level_add(struct pa_intern *t, u32 level, u64 hash, u32 id)
{
	const struct pa_item *item = item_at(t, id);
	u32 *slots = level_at(t, level);
	u64 mask = (1UL << (PA_FIRST_LEVEL + level)) - 1, i = hash >> 20;
	for (u32 probes = 0; probes < MOST_PROBES; probes++, i++) {
		u32 there = 0;
		if (__atomic_compare_exchange_n(&slots[i & mask], &there, id, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
			__atomic_fetch_add(&t->fill[level], 1, __ATOMIC_RELAXED);
			return id;
		}
		if (item_is(t, there, item->key, item->under))
			return there;
	}
	return 0;
}

static inline u32 item_new(struct pa_intern *t, u64 key, u32 from)
{
	u32 id;
	if (__atomic_load_n(&t->used, __ATOMIC_RELAXED) >= t->most)
		return 0;
	id = __atomic_fetch_add(&t->used, 1, __ATOMIC_RELAXED);
	if (id >= t->most)
		return 0;
	item_at(t, id)->under = from;
	item_at(t, id)->key = key;
	return id;
}

/* Some of what the level below the newest holds is put there. */
static inline void move_some(struct pa_intern *t)
{
	u32 top = __atomic_load_n(&t->level, __ATOMIC_ACQUIRE), places, first;
	const u32 *slots;
	if (__atomic_load_n(&t->given, __ATOMIC_RELAXED) >= top)
		return;
	places = 1U << (PA_FIRST_LEVEL + top - 1);
	first = __atomic_fetch_add(&t->moved, MOVED_AT_ONCE, __ATOMIC_RELAXED);
	if (first >= places)
		return; /* another thread has the last of them in hand */
	slots = level_at(t, top - 1);
	for (u32 i = first; i < first + MOVED_AT_ONCE; i++) {
		u32 id = __atomic_load_n(&slots[i], __ATOMIC_ACQUIRE);
		if (id)
			level_add(t, top, item_hash(item_at(t, id)->key, item_at(t, id)->under), id);
	}
	if (first + MOVED_AT_ONCE == places)
		__atomic_store_n(&t->given, top, __ATOMIC_RELEASE);
}

/* The item's number, or 0 when the table is full. */
static __attribute__((noinline)) u32 intern_slowly(struct pa_intern *t, u64 hash, u64 key, u32 from)
{
	u32 top = __atomic_load_n(&t->level, __ATOMIC_ACQUIRE), id = 0, there = 0;
	for (u32 below = top; below-- > __atomic_load_n(&t->given, __ATOMIC_RELAXED) && !id;)
		id = level_find(t, below, hash, key, from);
	move_some(t);
	if (!id)
		id = item_new(t, key, from);
	if (!id) {
		__atomic_fetch_add(&t->refused, 1, __ATOMIC_RELAXED);
		return 0;
	}
	while (!there) {
		u32 next = top + 1;
		if (__atomic_load_n(&t->fill[top], __ATOMIC_RELAXED) <= (3UL << (PA_FIRST_LEVEL + top)) / 4)
			there = level_add(t, top, hash, id);
		if (there)
			break;
		if (next >= t->levels)
			return id; /* it can't be found again, but it is right */
		if (__atomic_compare_exchange_n(&t->level, &top, next, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
			__atomic_store_n(&t->moved, 0, __ATOMIC_RELAXED);
		top = __atomic_load_n(&t->level, __ATOMIC_ACQUIRE);
	}
	return there;
}

static inline u32 intern_hashed(struct pa_intern *t, u64 hash, u64 key, u32 from)
{
	u32 id = level_find(t, __atomic_load_n(&t->level, __ATOMIC_ACQUIRE), hash, key, from);
	return LIKELY(id) ? id : intern_slowly(t, hash, key, from);
}

static inline u32 intern(struct pa_intern *t, u64 key, u32 from)
{
	return intern_hashed(t, item_hash(key, from), key, from);
}

#endif
