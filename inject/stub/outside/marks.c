/* What of the heap can be reached: a conservative mark, as LeakSanitizer's.  Every aligned word of the roots that is an
 * address inside of a block leads to it, and so on with the words of that block. */
#include "marks.h"

/* The range that `address` lies in, or the next behind it. */
static u64 find(const struct pa_ranges *r, u64 address)
{
	u64 low = 0, high = r->count;
	while (low < high) {
		u64 middle = low + (high - low) / 2;
		if (r->ends[middle] <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void mark_word(struct pa_marks *m, u64 word)
{
	const struct pa_ranges *b = &m->blocks;
	u64 i;
	if (!b->count || word < b->begins[0] || word >= b->ends[b->count - 1])
		return;
	i = find(b, word);
	if (word < b->begins[i] || m->reached[i])
		return;
	m->reached[i] = 1;
	m->queue[m->queued++] = (u32)i;
}

static void mark_words(struct pa_marks *m, const u64 *words, u64 count)
{
	for (u64 i = 0; i < count; i++)
		mark_word(m, words[i]);
}

EXPORT void pa_mark_words(struct pa_marks *m, const u64 *words, u64 count)
{
	mark_words(m, words, count);
}

/* Where the next bytes from `at` on begin that are neither a block's nor skipped, and where they end: `end` at most.
 * Both cursors are moved on, but not past what reaches beyond `end`. */
static u64 next_root(const struct pa_marks *m, u64 at, u64 end, u64 *block, u64 *skipped, u64 *until)
{
	const struct pa_ranges *b = &m->blocks, *s = &m->skipped;
	while (at < end) {
		u64 stop = end;
		while (*block < b->count && b->ends[*block] <= at)
			++*block;
		while (*skipped < s->count && s->ends[*skipped] <= at)
			++*skipped;
		if (*block < b->count && b->begins[*block] <= at) {
			at = b->ends[*block];
			continue;
		}
		if (*skipped < s->count && s->begins[*skipped] <= at) {
			at = s->ends[*skipped];
			continue;
		}
		if (*block < b->count && b->begins[*block] < stop)
			stop = b->begins[*block];
		if (*skipped < s->count && s->begins[*skipped] < stop)
			stop = s->begins[*skipped];
		*until = stop;
		break;
	}
	return at;
}

/* All words of [begin, end) but those of blocks and of what is skipped are roots.  Returns how many bytes could be
 * read; what could not is left out. */
EXPORT u64 pa_mark_roots(struct pa_marks *m, u64 begin, u64 end)
{
	u64 *buffer = m->window->bytes;
	u64 block = find(&m->blocks, begin), skipped = find(&m->skipped, begin), read = 0;
	for (u64 base = begin & ~7UL; base < end;) {
		u64 size = end - base < PA_SCAN_BYTES ? end - base : PA_SCAN_BYTES, at = base, until;
		i64 got = sys4(SYS_pread64, m->memory, buffer, size, base);
		if (got <= 0) { /* a page that is not there any more */
			base = (base & ~4095UL) + 4096;
			continue;
		}
		read += (u64)got;
		while ((at = next_root(m, at, base + (u64)got, &block, &skipped, &until)) < base + (u64)got) {
			u64 first = (at + 7) & ~7UL, last = until & ~7UL;
			if (last > first)
				mark_words(m, buffer + (first - base) / 8, (last - first) / 8);
			at = until;
		}
		base += (u64)got;
	}
	m->bytes += read;
	return read;
}

/* Look through the blocks that were reached, and those that they lead to, but not many more than `most` bytes.
 * Returns how many are still to be looked through. */
EXPORT u64 pa_mark_blocks(struct pa_marks *m, u64 most)
{
	u64 *buffer = m->window->bytes;
	u64 read = 0;
	while (m->looked_through < m->queued && read < most) {
		u32 i = m->queue[m->looked_through++];
		u64 at = (m->blocks.begins[i] + 7) & ~7UL, end = m->blocks.ends[i];
		while (at + 8 <= end) {
			u64 size = end - at < PA_SCAN_BYTES ? end - at : PA_SCAN_BYTES;
			i64 got = sys4(SYS_pread64, m->memory, buffer, size, at);
			if (got < 8)
				break;
			mark_words(m, buffer, (u64)got / 8);
			at += (u64)got & ~7UL;
			read += (u64)got;
		}
		read += 64; /* the call itself */
	}
	m->bytes += read;
	return m->queued - m->looked_through;
}
