/* The live blocks of the heap profiler's table (heap/blocks.h), in the order of their addresses. */
#include "../heap/layout.h"
#include "marks.h"

#define SPOTS 128 /* places of a KB where a block may begin */

/* Those of 4 MB of addresses from `base` on, which `count` leaves hold, the first a line for each KB, the second one
 * for each 16 KB of the 64 MB that `base` is in, the others one for each 4 KB of the 16 MB; one that there is not is
 * null.  `sites` has two words for each of `site_count` sites, the first the block's size.  Of each block its address,
 * its end (a block of 0 bytes has one) and its site; there is room for all that the leaves can hold.  With `rounded` a
 * block ends where glibc's malloc lets it end.  Returns how many. */
EXPORT u64 pa_live_blocks(const u32 *const *leaves, u32 count, u64 base, const u64 *sites, u64 site_count, int rounded,
			  u64 *begins, u64 *ends, u32 *site_of)
{
	const u32 lines = PA_LEAF_WORDS / PA_LINE_WORDS;
	u64 found = 0;
	for (u32 line = 0; line < lines; line++) {
		u32 at[SPOTS] = {0};
		int any = 0;
		for (u32 leaf = 0; leaf < count; leaf++) {
			u32 shift = leaf == 0 ? 0 : leaf == 1 ? PA_WIDE_SHIFT : PA_PAGED_SHIFT;
			u64 its_line = ((base >> PA_LINE_SHIFT) + line) >> shift & (lines - 1);
			for (u32 i = 0; leaves[leaf] && i < PA_LINE_WORDS; i++) {
				u32 word = leaves[leaf][its_line * PA_LINE_WORDS + i];
				u32 spot = word >> PA_SITE_BITS;
				if (!word || spot / SPOTS != (line & ((1 << PA_WIDE_SHIFT) - 1)))
					continue;
				at[spot % SPOTS] = word & PA_SITE_MASK;
				any = 1;
			}
		}
		for (u32 spot = 0; any && spot < SPOTS; spot++) {
			u64 size;
			if (!at[spot])
				continue;
			size = at[spot] < site_count ? sites[2 * (u64)at[spot]] : 0;
			begins[found] = base + ((u64)line << PA_LINE_SHIFT) + spot * 8;
			if (rounded) /* malloc/malloc.c, request2size */
				size = size < 24 ? 24 : ((size + 8 + 15) & ~15UL) - 8;
			ends[found] = begins[found] + (size ? size : 1);
			/* One that was freed while the table was read may seem to overlap the next. */
			if (found && ends[found - 1] > begins[found])
				ends[found - 1] = begins[found];
			site_of[found++] = at[spot];
		}
	}
	return found;
}
