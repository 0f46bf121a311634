/* Reading little-endian numbers and LEB128 out of bytes that are already here. */
#ifndef PA_LEB_H
#define PA_LEB_H

#include "shared.h"

struct pa_bytes {
	const u8 *at, *end;
	int bad; /* set when something was read past the end, and stays set */
};

static inline u64 take_fixed(struct pa_bytes *b, u32 bytes)
{
	u64 value = 0;
	if ((u64)(b->end - b->at) < bytes) {
		b->bad = 1;
		b->at = b->end;
		return 0;
	}
	for (u32 i = 0; i < bytes; i++)
		value |= (u64)b->at[i] << (8 * i);
	b->at += bytes;
	return value;
}

static inline i64 take_signed(struct pa_bytes *b, u32 bytes)
{
	u64 value = take_fixed(b, bytes);
	u32 shift = 64 - 8 * bytes;
	return (i64)(value << shift) >> shift;
}

static inline u64 take_uleb(struct pa_bytes *b)
{
	u64 value = 0;
	for (u32 shift = 0;; shift += 7) {
		u8 byte = (u8)take_fixed(b, 1);
		if (b->bad)
			return 0;
		if (shift < 64)
			value |= (u64)(byte & 0x7f) << shift;
		if (!(byte & 0x80))
			return value;
		if (shift > 70) {
			b->bad = 1;
			return 0;
		}
	}
}

static inline i64 take_sleb(struct pa_bytes *b)
{
	u64 value = 0;
	for (u32 shift = 0;;) {
		u8 byte = (u8)take_fixed(b, 1);
		if (b->bad)
			return 0;
		if (shift < 64)
			value |= (u64)(byte & 0x7f) << shift;
		shift += 7;
		if (!(byte & 0x80)) {
			if (shift < 64 && (byte & 0x40))
				value |= ~0UL << shift;
			return (i64)value;
		}
		if (shift > 70) {
			b->bad = 1;
			return 0;
		}
	}
}

static inline void skip_bytes(struct pa_bytes *b, u64 bytes)
{
	if ((u64)(b->end - b->at) < bytes) {
		b->bad = 1;
		b->at = b->end;
	} else {
		b->at += bytes;
	}
}

#endif
