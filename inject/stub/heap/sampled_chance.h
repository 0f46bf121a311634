/* When the next sample is due, by chance, and what it stands for. */
#ifndef PA_SAMPLED_CHANCE_H
#define PA_SAMPLED_CHANCE_H

#include "heap.h"

/* -ln(u) of a random u in (0, 1], in 1/65536: an exponential distribution of mean 1.  The logarithm to base 2 comes
 * from its integer part, and for the rest by squaring (Knuth, The Art of Computer Programming 1.2.2, exercise 25). */
static inline u64 exponential(u64 *random)
{
	u64 x, whole, mantissa, fraction = 0;
	*random += HASH; /* splitmix64 */
	x = *random;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9UL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebUL;
	x = (x ^ (x >> 31)) | 1;
	whole = 63 - (u64)__builtin_clzl(x);
	mantissa = x << (63 - whole) >> 32; /* in [1, 2), 31 bits behind the point */
	for (u32 bit = 0; bit < 16; bit++) {
		mantissa = mantissa * mantissa >> 31;
		fraction <<= 1;
		if (mantissa >> 32) {
			mantissa >>= 1;
			fraction |= 1;
		}
	}
	return ((64UL << 16) - (whole << 16) - fraction) * 45426 >> 16; /* ln 2 */
}

/* x / (1 - exp(-x)) for x = 0, 1/2, 1, ... 8, in 1/1024: how many means a sampled block of x means stands for. */
static const u16 STANDS_FOR[] = {1024, 1301, 1620, 1977, 2369, 2789, 3233, 3696, 4172,
				 4660, 5155, 5655, 6159, 6666, 7175, 7684, 8195};

/* The bytes that a sampled block of this size stands for, to 1%; pyattach itself has them exact. */
static inline u64 stands_for(u64 size)
{
	u64 mean = ph.heap->sample_bytes, halves = 2 * size / mean, part;
	if (halves >= sizeof(STANDS_FOR) / sizeof(STANDS_FOR[0]) - 1)
		return size;
	part = STANDS_FOR[halves + 1] - (u64)STANDS_FOR[halves];
	return (mean * STANDS_FOR[halves] + (2 * size - halves * mean) * part) >> 10;
}

#endif
