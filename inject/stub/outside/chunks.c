/* Chunks of glibc's malloc, one behind the other, read over /proc/PID/mem (malloc/malloc.c, "struct malloc_chunk"):
 *
 *   header    size of the chunk before, if that is free
 *   header+8  size of this one, a multiple of 16; bit 0: the one before is in use
 *   header+16 the block that malloc has returned
 *
 * The target runs meanwhile and nothing it says is believed: a size that can't be ends the walk.
 */
#include "marks.h"

#define LEAST_CHUNK 32UL
#define PREVIOUS_IN_USE 1UL

static const u64 *window_at(i32 memory, struct pa_window *w, u64 at, u64 bytes)
{
	if (at < w->base || at + bytes > w->base + w->filled) {
		i64 got = sys4(SYS_pread64, memory, w->bytes, PA_SCAN_BYTES, at);
		w->base = at;
		w->filled = got < 0 ? 0 : (u64)got;
		if (w->filled < bytes)
			return 0;
	}
	return w->bytes + (at - w->base) / 8;
}

/* The chunks from the header at `at` to the one at `end`, at most `room` of them: all, or as `only` says those that
 * are free (1), or those whose block has just so many bytes.  Returns how many; *next is where to go on: `end`, or
 * where no chunk can be. */
EXPORT u64 pa_chunks(i32 memory, struct pa_window *w, u64 at, u64 end, u64 only, struct pa_chunk *out, u64 room,
		     u64 *next)
{
	u64 count = 0;
	w->base = w->filled = 0;
	while (at < end && count < room) {
		u64 left = end - at, size, words;
		const u64 *header = left >= LEAST_CHUNK ? window_at(memory, w, at, LEAST_CHUNK) : 0;
		if (!header)
			break;
		size = header[1] & ~15UL;
		if (size < LEAST_CHUNK || size > left || header[1] & 8)
			break;
		if (only > 1 && size - 8 != only) {
			at += size;
			continue;
		}
		out[count].address = at + 16;
		out[count].size = size - 8;
		for (words = 0; words < PA_CHUNK_WORDS; words++)
			out[count].words[words] = 0;
		words = (size - 8) / 8 < PA_CHUNK_WORDS ? (size - 8) / 8 : PA_CHUNK_WORDS;
		header = window_at(memory, w, at, 16 + words * 8);
		for (u64 i = 0; header && i < words; i++)
			out[count].words[i] = header[2 + i];
		/* Whether it is in use stands in the chunk behind it, which is the top at the end. */
		header = window_at(memory, w, at + size, 16);
		if (!header)
			break;
		out[count].in_use = header[1] & PREVIOUS_IN_USE;
		count += only != 1 || !out[count].in_use;
		at += size;
	}
	*next = at;
	return count;
}
