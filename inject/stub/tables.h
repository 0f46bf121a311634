/* Where an address's FDE lies and what it and its CIE say: .eh_frame_hdr and .eh_frame.
 *
 * Each look asks the kernel, for a microsecond: an entry is read at once, with its instructions if they are few,
 * and the search table by the dozen. */
#ifndef PA_TABLES_H
#define PA_TABLES_H

#include "leb.h"
#include "unwind.h"

#define CIE_BYTES 256     /* of a CIE that are looked at, at most */
#define FDE_BYTES 128     /* of an FDE that are read at once: most of them whole */
#define HELD_BYTES 112    /* of an entry's instructions that are kept from that */
#define SEARCH_BYTES 512    /* of a search table, read at once */
#define PROGRAM_CHUNK 256   /* instructions of an FDE are read in chunks */
#define MOST_PADDING 63     /* bytes between two functions */
#define REMEMBERED 6        /* rows that instructions may put aside */

enum {
	DW_EH_PE_absptr = 0x00,
	DW_EH_PE_uleb128 = 0x01,
	DW_EH_PE_udata2 = 0x02,
	DW_EH_PE_udata4 = 0x03,
	DW_EH_PE_udata8 = 0x04,
	DW_EH_PE_sleb128 = 0x09,
	DW_EH_PE_sdata2 = 0x0a,
	DW_EH_PE_sdata4 = 0x0b,
	DW_EH_PE_sdata8 = 0x0c,
	DW_EH_PE_pcrel = 0x10,
	DW_EH_PE_datarel = 0x30,
	DW_EH_PE_indirect = 0x80,
	DW_EH_PE_omit = 0xff,
};

/* Instructions [at, end); the first `held` bytes of them are here. */
struct program {
	u64 at, end;
	u32 held;
	u8 bytes[HELD_BYTES];
};

struct entry { /* what CIE and FDE say together */
	u64 code_align;
	i64 data_align;
	u64 return_register;
	u8 pointer_encoding;
	u8 signal_frame;
	u8 has_augmentation;
	u64 start, range;
	u64 row_start, row_end; /* all addresses in between have the row that was found */
	struct program initial, program; /* the CIE's and the FDE's */
};

/* How a register of the caller is found. */
enum column_kind {
	COLUMN_SAME = 0,
	COLUMN_UNDEFINED,
	COLUMN_OFFSET,     /* at CFA + value */
	COLUMN_VAL_OFFSET, /* is CFA + value */
	COLUMN_REGISTER,   /* is another register */
	COLUMN_EXPRESSION, /* at the address an expression gives */
	COLUMN_VAL_EXPRESSION,
};

/* Expressions are kept as where they lie in the target: [at, at + length). */
struct column {
	u8 kind;
	u8 reg;
	u16 length;
	i32 value;
	u64 at;
};

struct row {
	struct column regs[PA_REGISTERS];
	u8 cfa_is_expression;
	u8 cfa_register;
	u16 cfa_length;
	i32 cfa_offset;
	u64 cfa_at;
};

struct interpreter {
	const struct pa_tables *t;
	const struct entry *e;
	struct row row, initial, remembered[REMEMBERED];
	u32 remembered_count;
	u32 left; /* instructions that may still be run */
	u64 location, target;
	u64 row_start; /* where the row begins that is being made */
};

/* What struct pa_room holds.  What is in one union is not there at the same time. */
struct room {
	struct entry entry;
	struct interpreter x;
	union {
		u8 search[SEARCH_BYTES];
		struct {
			u8 cie[CIE_BYTES], fde[FDE_BYTES];
		};
		u8 chunk[PROGRAM_CHUNK];
		u8 padding[MOST_PADDING];
	};
};
_Static_assert(sizeof(struct room) <= sizeof(struct pa_room), "room for all");

static inline struct room *room_of(const struct pa_tables *t)
{
	return (struct room *)t->room;
}

static int copy(const struct pa_tables *t, void *to, u64 from, u64 bytes)
{
	return t->copy(t->arg, to, from, bytes);
}

/* An encoded pointer; `at` is where `b`'s bytes begin in the target, `base` their first byte here. */
static u64 take_pointer(struct pa_bytes *b, u8 encoding, u64 at, const u8 *base, u64 data_base)
{
	u64 place = at + (u64)(b->at - base), value;
	switch (encoding & 0x0f) {
	case DW_EH_PE_absptr:
	case DW_EH_PE_udata8:
	case DW_EH_PE_sdata8: value = take_fixed(b, 8); break;
	case DW_EH_PE_uleb128: value = take_uleb(b); break;
	case DW_EH_PE_sleb128: value = (u64)take_sleb(b); break;
	case DW_EH_PE_udata2: value = take_fixed(b, 2); break;
	case DW_EH_PE_sdata2: value = (u64)take_signed(b, 2); break;
	case DW_EH_PE_udata4: value = take_fixed(b, 4); break;
	case DW_EH_PE_sdata4: value = (u64)take_signed(b, 4); break;
	default: b->bad = 1; return 0;
	}
	switch (encoding & 0x70) {
	case 0: return value;
	case DW_EH_PE_pcrel: return value + place;
	case DW_EH_PE_datarel: return value + data_base;
	default: b->bad = 1; return 0;
	}
}

/* A CIE or FDE that is being read: its content is [at, end) in the target, and as far as read in `b`. */
struct content {
	u64 at, end;
	u32 id_bytes; /* 8 in the 64-bit form */
	const u8 *base;
	struct pa_bytes b;
};

/* Read the entry at `at`, into `bytes` up to `room` of it.  Returns 1, 0 for the terminator, -1 when it is
 * unreadable or too long to be true. */
static int read_entry(const struct pa_tables *t, u64 at, u8 *bytes, u64 room, struct content *out)
{
	u32 length32, head = 4;
	u64 length, have = room;
	/* All at once, or where memory ends soon, no more than there is of it. */
	if (!copy(t, bytes, at, room)) {
		have = 4;
		if (!copy(t, bytes, at, 4))
			return -1;
	}
	__builtin_memcpy(&length32, bytes, 4);
	length = length32;
	if (length32 == 0xffffffffU) {
		head = 12;
		if (have < head && !copy(t, bytes, at, head))
			return -1;
		__builtin_memcpy(&length, bytes + 4, 8);
	}
	if (!length)
		return 0;
	if (length > 1UL << 30 || at + head + length < at)
		return -1;
	if (have != room) {
		have = head + length < room ? head + length : room;
		if (!copy(t, bytes, at, have))
			return -1;
	}
	out->at = at + head;
	out->end = out->at + length;
	out->id_bytes = head == 12 ? 8 : 4;
	out->base = bytes + head;
	out->b = (struct pa_bytes){bytes + head, bytes + (head + length < have ? head + length : have), 0};
	return 1;
}

static u64 place_of(const struct content *c)
{
	return c->at + (u64)(c->b.at - c->base);
}

/* The instructions from `at` to the entry's end.  0 when they would begin behind it. */
static int keep_program(struct program *p, const struct content *c, u64 at)
{
	u64 skipped = at - c->at, have = (u64)(c->b.end - c->base);
	p->at = at;
	p->end = c->end;
	p->held = 0;
	if (at < c->at || at > c->end)
		return 0;
	if (skipped < have) {
		p->held = (u32)(have - skipped < HELD_BYTES ? have - skipped : HELD_BYTES);
		__builtin_memcpy(p->bytes, c->base + skipped, p->held);
	}
	return 1;
}

/* Parse the CIE at `at` into `e`.  Returns 1, 0 when it is malformed, -1 when unreadable. */
static int read_cie(const struct pa_tables *t, u64 at, struct entry *e)
{
	u8 *bytes = room_of(t)->cie;
	struct content c;
	struct pa_bytes *b = &c.b;
	u64 instructions;
	int found = read_entry(t, at, bytes, CIE_BYTES, &c);
	if (found < 1)
		return found;
	skip_bytes(b, c.id_bytes); /* 0 in .eh_frame */
	u8 version = (u8)take_fixed(b, 1);
	const u8 *augmentation = b->at;
	while (take_fixed(b, 1) && !b->bad)
		;
	if (b->bad || (version != 1 && version != 3 && version != 4))
		return 0;
	if (augmentation[0] == 'e' && augmentation[1] == 'h') {
		skip_bytes(b, 8);
		augmentation += 2;
	}
	if (version == 4)
		skip_bytes(b, 2); /* address and segment size */
	e->code_align = take_uleb(b);
	e->data_align = take_sleb(b);
	e->return_register = version == 1 ? take_fixed(b, 1) : take_uleb(b);
	e->pointer_encoding = DW_EH_PE_absptr;
	instructions = place_of(&c);
	if (augmentation[0] == 'z') {
		u64 length = take_uleb(b);
		e->has_augmentation = 1;
		instructions = place_of(&c) + length;
		for (const u8 *a = augmentation + 1; *a && !b->bad; a++) {
			if (*a == 'R') {
				e->pointer_encoding = (u8)take_fixed(b, 1);
			} else if (*a == 'P') {
				u8 encoding = (u8)take_fixed(b, 1);
				take_pointer(b, encoding & 0x0f, 0, c.base, 0);
			} else if (*a == 'L') {
				take_fixed(b, 1);
			} else if (*a == 'S') {
				e->signal_frame = 1;
			} else if (*a != 'B') {
				break; /* unknown: its data can't be skipped, the length can */
			}
		}
	} else if (augmentation[0]) {
		return 0;
	}
	return !b->bad && keep_program(&e->initial, &c, instructions) && e->return_register < PA_REGISTERS;
}

/* Parse the FDE at `at` and its CIE.  Returns 1, 0 when malformed, -1 when unreadable. */
static int read_fde(const struct pa_tables *t, u64 at, struct entry *e)
{
	u8 *bytes = room_of(t)->fde;
	struct content c;
	struct pa_bytes *b = &c.b;
	u64 cie, instructions;
	int found = read_entry(t, at, bytes, FDE_BYTES, &c);
	if (found < 1)
		return found;
	cie = c.at - take_fixed(b, c.id_bytes);
	if (b->bad || cie == c.at)
		return 0;
	found = read_cie(t, cie, e);
	if (found < 1)
		return found;
	e->start = take_pointer(b, e->pointer_encoding, c.at, c.base, 0);
	e->range = take_pointer(b, e->pointer_encoding & 0x0f, 0, c.base, 0);
	instructions = place_of(&c);
	if (e->has_augmentation) {
		u64 length = take_uleb(b);
		if (length > c.end - c.at)
			return 0;
		instructions = place_of(&c) + length;
	}
	return !b->bad && keep_program(&e->program, &c, instructions);
}

static void index_entry(const u8 *bytes, int own, u64 data_base, u64 *start, u64 *fde)
{
	i32 relative[2];
	if (own) {
		__builtin_memcpy(start, bytes, 8);
		__builtin_memcpy(fde, bytes + 8, 8);
		return;
	}
	__builtin_memcpy(relative, bytes, 8);
	*start = data_base + (u64)(i64)relative[0];
	*fde = data_base + (u64)(i64)relative[1];
}

/* A sorted table of where functions start, and the addresses of code between which it lies. */
struct index {
	u64 table, count, data_base;
	u64 code_start, code_end;
	int own; /* struct pa_index_entry, not a pair of 32-bit offsets from data_base */
};

/* Where to look next in [low, high): in every other step where `address` should be if functions were of one size,
 * which is near enough in general; in the others in the middle, which is never far off. */
static u64 guess(u64 low, u64 high, u64 low_start, u64 high_start, u64 address, u32 step)
{
	u64 span = high - low, code = high_start - low_start;
	if ((step & 1) || address < low_start || address >= high_start || span >> 31 || code >> 32)
		return low + span / 2;
	return low + span * (address - low_start) / code;
}

/* The FDE of the last entry that starts at or below `address`; *next gets where the one behind it starts.  Each
 * look asks the kernel, so it takes many entries.  Returns 1, 0 when there is none, -1 when unreadable. */
static int search(const struct pa_tables *t, const struct index *x, u64 address, u64 *fde, u64 *next)
{
	u64 low = 0, high = x->count, width = x->own ? 16 : 8, start, low_start = x->code_start, high_start = x->code_end;
	u8 *bytes = room_of(t)->search;
	int found = 0;
	*next = ~0UL;
	/* Invariant: entries below `low` start at or below address, those from `high` on above it; *fde is the one
	 * of low - 1, *next where high starts, if there are such. */
	for (u32 steps = 0; low < high; steps++) {
		u64 held = high - low < SEARCH_BYTES / width ? high - low : SEARCH_BYTES / width;
		u64 at = guess(low, high, low_start, high_start, address, steps), other, unused;
		u64 first = at - low > held / 2 ? at - held / 2 : low;
		first = high - first < held ? high - held : first;
		if (!copy(t, bytes, x->table + first * width, held * width))
			return -1;
		index_entry(bytes, x->own, x->data_base, &start, &other);
		if (start > address) {
			high = first;
			*next = high_start = start;
			continue;
		}
		u64 a = 0, b = held;
		while (b - a > 1) {
			u64 middle = a + (b - a) / 2;
			index_entry(bytes + middle * width, x->own, x->data_base, &start, &unused);
			if (start <= address) {
				a = middle;
			} else {
				b = middle;
				*next = high_start = start;
			}
		}
		index_entry(bytes + a * width, x->own, x->data_base, &low_start, fde);
		low = first + a + 1;
		high = b < held ? first + b : high;
		found = 1;
	}
	return found;
}

/* Where the FDE for `address` lies.  Returns 1, 0 when there is none, -1 when unreadable, -2 malformed. */
static int find_fde(const struct pa_tables *t, const struct pa_module *m, u64 address, u64 *fde, u64 *next)
{
	u8 header[32];
	struct index x = {.table = m->table, .code_start = m->start, .code_end = m->end};
	if (m->flags & PA_MODULE_OWN_INDEX) {
		x.own = 1;
		x.count = m->table_size / sizeof(struct pa_index_entry);
		return search(t, &x, address, fde, next);
	}
	if (m->table_size < 12)
		return -2;
	u64 size = m->table_size < sizeof(header) ? m->table_size : sizeof(header);
	if (!copy(t, header, m->table, size))
		return -1;
	struct pa_bytes b = {header + 4, header + size, 0};
	if (header[0] != 1)
		return -2;
	if (header[1] != DW_EH_PE_omit)
		take_pointer(&b, header[1], m->table, header, m->table);
	if (header[2] == DW_EH_PE_omit || header[3] != (DW_EH_PE_datarel | DW_EH_PE_sdata4))
		return -2;
	u64 count = take_pointer(&b, header[2], m->table, header, m->table);
	u64 table = (u64)(b.at - header);
	if (b.bad || count > (m->table_size - table) / 8)
		return -2;
	x.table = m->table + table;
	x.count = count;
	x.data_base = m->table;
	return search(t, &x, address, fde, next);
}

#endif
