/* The writer's side of the ring drawn in shared.h. */
#ifndef PA_RING_H
#define PA_RING_H

#include "shared.h"

#define RECORD_HEAD_WORDS (1 + sizeof(struct pa_record) / 8)

/* Reserve `words` words.  Returns 1 and the position, or 0 when the reader is too far behind. */
static inline int ring_reserve(struct pa_control *c, u64 words, u64 *position)
{
	u64 head = __atomic_load_n(&c->head, __ATOMIC_RELAXED);
	do {
		u64 tail = __atomic_load_n(&c->tail, __ATOMIC_ACQUIRE);
		if (head + words - tail > c->ring_words)
			return 0;
	} while (!__atomic_compare_exchange_n(&c->head, &head, head + words, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	*position = head;
	return 1;
}

static inline u64 *ring_word(struct pa_control *c, u64 position)
{
	return (u64 *)((u8 *)c + c->ring_offset) + (position & (c->ring_words - 1));
}

/* Write one record word by word (it may run over the ring's end), then commit it. */
static inline void ring_write(struct pa_control *c, u64 position, const struct pa_record *head, const u64 *frames)
{
	const u64 *h = (const u64 *)head;
	u64 at = position + 1, words = RECORD_HEAD_WORDS + head->depth;
	for (u32 i = 0; i < sizeof(*head) / 8; i++)
		*ring_word(c, at++) = h[i];
	for (u32 i = 0; i < head->depth; i++)
		*ring_word(c, at++) = frames[i];
	__atomic_store_n(ring_word(c, position), PA_RECORD_WORD(position, words), __ATOMIC_RELEASE);
}

#endif
