/* The rule of an address, out of .eh_frame_hdr and .eh_frame (System V ABI for x86_64, 4.2.4; LSB core,
 * chapter 10; DWARF 5, section 6.4).
 *
 * The tables lie in memory that another thread may unmap: every byte is copied here before it is looked
 * at.  They are the target's and may be anything: every length is checked, every loop is bounded. */
#include "expr.h"
#include "leb.h"

#define CIE_BYTES 256     /* of a CIE or an expression that are looked at, at most */
#define PROGRAM_CHUNK 256 /* instructions of an FDE are read in chunks */
#define EXPRESSION_BYTES 64
#define REMEMBERED 6
#define INSTRUCTIONS 4096
#define SEARCH_BYTES 512 /* of a search table, read at once */

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

struct entry { /* what CIE and FDE say together */
	u64 code_align;
	i64 data_align;
	u64 return_register;
	u8 pointer_encoding;
	u8 signal_frame;
	u8 has_augmentation;
	u64 start, range;
	u64 row_start, row_end; /* all addresses in between have the row that was found */
	u64 initial, initial_end; /* the CIE's instructions */
	u64 program, program_end; /* the FDE's */
};

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

/* Length field of an entry at `at`: where its content begins and ends.  0 for the terminator. */
static int entry_extent(const struct pa_tables *t, u64 at, u64 *content, u64 *end)
{
	u32 length32;
	u64 length;
	if (!copy(t, &length32, at, 4))
		return -1;
	*content = at + 4;
	length = length32;
	if (length32 == 0xffffffffU) {
		if (!copy(t, &length, at + 4, 8))
			return -1;
		*content = at + 12;
	}
	if (!length)
		return 0;
	if (length > 1UL << 30 || *content + length < *content)
		return -1;
	*end = *content + length;
	return 1;
}

/* Parse the CIE at `at` into `e`.  Returns 1, 0 when it is malformed, -1 when unreadable. */
static int read_cie(const struct pa_tables *t, u64 at, struct entry *e)
{
	u8 bytes[CIE_BYTES];
	u64 content, end, size;
	int found = entry_extent(t, at, &content, &end);
	if (found < 1)
		return found;
	size = end - content < CIE_BYTES ? end - content : CIE_BYTES;
	if (!copy(t, bytes, content, size))
		return -1;
	struct pa_bytes b = {bytes, bytes + size, 0};
	skip_bytes(&b, content - at == 12 ? 8 : 4); /* the CIE's id: 0 in .eh_frame */
	u8 version = (u8)take_fixed(&b, 1);
	const u8 *augmentation = b.at;
	while (take_fixed(&b, 1) && !b.bad)
		;
	if (b.bad || (version != 1 && version != 3 && version != 4))
		return 0;
	if (augmentation[0] == 'e' && augmentation[1] == 'h') {
		skip_bytes(&b, 8);
		augmentation += 2;
	}
	if (version == 4)
		skip_bytes(&b, 2); /* address and segment size */
	e->code_align = take_uleb(&b);
	e->data_align = take_sleb(&b);
	e->return_register = version == 1 ? take_fixed(&b, 1) : take_uleb(&b);
	e->pointer_encoding = DW_EH_PE_absptr;
	e->initial = content + (u64)(b.at - bytes);
	if (augmentation[0] == 'z') {
		u64 length = take_uleb(&b);
		e->has_augmentation = 1;
		e->initial = content + (u64)(b.at - bytes) + length;
		for (const u8 *a = augmentation + 1; *a && !b.bad; a++) {
			if (*a == 'R') {
				e->pointer_encoding = (u8)take_fixed(&b, 1);
			} else if (*a == 'P') {
				u8 encoding = (u8)take_fixed(&b, 1);
				take_pointer(&b, encoding & 0x0f, 0, bytes, 0);
			} else if (*a == 'L') {
				take_fixed(&b, 1);
			} else if (*a == 'S') {
				e->signal_frame = 1;
			} else if (*a != 'B') {
				break; /* unknown: its data can't be skipped, the length can */
			}
		}
	} else if (augmentation[0]) {
		return 0;
	}
	e->initial_end = end;
	return !b.bad && e->initial <= end && e->return_register < PA_REGISTERS;
}

/* Parse the FDE at `at` and its CIE.  Returns 1, 0 when malformed, -1 when unreadable. */
static int read_fde(const struct pa_tables *t, u64 at, struct entry *e)
{
	u8 bytes[64];
	u64 content, end, size, cie;
	int found = entry_extent(t, at, &content, &end);
	if (found < 1)
		return found;
	size = end - content < sizeof(bytes) ? end - content : sizeof(bytes);
	if (!copy(t, bytes, content, size))
		return -1;
	struct pa_bytes b = {bytes, bytes + size, 0};
	cie = content - (content - at == 12 ? take_fixed(&b, 8) : take_fixed(&b, 4));
	if (b.bad || cie == content)
		return 0;
	found = read_cie(t, cie, e);
	if (found < 1)
		return found;
	e->start = take_pointer(&b, e->pointer_encoding, content, bytes, 0);
	e->range = take_pointer(&b, e->pointer_encoding & 0x0f, 0, bytes, 0);
	if (e->has_augmentation) {
		u64 length = take_uleb(&b);
		if (length > end - content)
			return 0;
		e->program = content + (u64)(b.at - bytes) + length;
	} else {
		e->program = content + (u64)(b.at - bytes);
	}
	e->program_end = end;
	return !b.bad && e->program <= end;
}

/* The last entry of the sorted table at `table` that starts at or below `address`; *next gets where the one behind
 * it starts. */
static int search(const struct pa_tables *t, u64 table, u64 count, int own, u64 data_base, u64 address, u64 *fde,
		  u64 *next)
{
	u64 low = 0, high = count, first = 0, held = 0, width = own ? 16 : 8;
	u8 bytes[SEARCH_BYTES]; /* entries [first, first + held): the last steps ask the kernel no more */
	*next = ~0UL;
	/* Invariant: entries below `low` start at or below address, those from `high` on above it. */
	while (low < high) {
		u64 middle = low + (high - low) / 2, start = 0;
		if (!held && (high - low) * width <= SEARCH_BYTES) {
			first = low;
			held = high - low;
			if (!copy(t, bytes, table + first * width, held * width))
				return -1;
		}
		if (held)
			__builtin_memcpy(&start, bytes + (middle - first) * width, width / 2);
		else if (!copy(t, &start, table + middle * width, width / 2))
			return -1;
		if (!own)
			start = data_base + (u64)(i64)(i32)start;
		if (start <= address)
			low = middle + 1;
		else {
			high = middle;
			*next = start;
		}
	}
	if (!low)
		return 0;
	if (own)
		return copy(t, fde, table + (low - 1) * 16 + 8, 8) ? 1 : -1;
	i32 relative;
	if (!copy(t, &relative, table + (low - 1) * 8 + 4, 4))
		return -1;
	*fde = data_base + (u64)(i64)relative;
	return 1;
}

/* Where the FDE for `address` lies.  Returns 1, 0 when there is none, -1 when unreadable, -2 malformed. */
static int find_fde(const struct pa_tables *t, const struct pa_module *m, u64 address, u64 *fde, u64 *next)
{
	u8 header[32];
	if (m->flags & PA_MODULE_OWN_INDEX)
		return search(t, m->table, m->table_size / sizeof(struct pa_index_entry), 1, 0, address, fde, next);
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
	return search(t, m->table + table, count, 0, m->table, address, fde, next);
}

struct interpreter {
	const struct pa_tables *t;
	const struct entry *e;
	struct row row, initial, remembered[REMEMBERED];
	u32 remembered_count;
	u32 left; /* instructions that may still be run */
	u64 location, target;
	u64 row_start; /* where the row begins that is being made */
};

static void set_column(struct interpreter *x, u64 reg, u8 kind, i64 value)
{
	if (reg < PA_REGISTERS)
		x->row.regs[reg] = (struct column){.kind = kind, .value = (i32)value};
}

/* A factored offset: the table may hold any number, and it must wrap, not overflow. */
static i64 factored(const struct interpreter *x, u64 value)
{
	return (i64)(value * (u64)x->e->data_align);
}

/* An expression's length and place; `at` is where the bytes of `b` begin in the target. */
static int take_expression(struct pa_bytes *b, u64 at, const u8 *base, u64 limit, u16 *length, u64 *place)
{
	u64 bytes = take_uleb(b);
	*place = at + (u64)(b->at - base);
	*length = (u16)bytes;
	if (b->bad || bytes > EXPRESSION_BYTES || *place + bytes > limit)
		return 0;
	return 1;
}

/* The row's successor begins at `location`: the row is the one wanted if that is behind the target. */
static int go_to(struct interpreter *x, u64 location)
{
	x->row_start = x->location;
	x->location = location;
	return location > x->target;
}

static int advance(struct interpreter *x, u64 delta)
{
	return go_to(x, x->location + delta * x->e->code_align);
}

/* One instruction.  Returns 0 to go on, 1 when the row is found, -1 when malformed.  `skip` gets the bytes of
 * an expression to step over, which may lie beyond the chunk. */
static int instruction(struct interpreter *x, struct pa_bytes *b, u64 at, const u8 *base, u64 limit, u64 *skip)
{
	u8 op = (u8)take_fixed(b, 1), low = op & 0x3f;
	u64 reg, value;
	i64 offset;
	u16 length;
	switch (op & 0xc0) {
	case 0x40: return advance(x, low);
	case 0x80:
		offset = factored(x, take_uleb(b));
		set_column(x, low, COLUMN_OFFSET, offset);
		return 0;
	case 0xc0:
		if (low < PA_REGISTERS)
			x->row.regs[low] = x->initial.regs[low];
		return 0;
	}
	switch (op) {
	case 0x00: return 0;
	case 0x01: /* set_loc */
		return go_to(x, take_pointer(b, x->e->pointer_encoding, at, base, 0));
	case 0x02: return advance(x, take_fixed(b, 1));
	case 0x03: return advance(x, take_fixed(b, 2));
	case 0x04: return advance(x, take_fixed(b, 4));
	case 0x05: /* offset_extended */
		reg = take_uleb(b);
		set_column(x, reg, COLUMN_OFFSET, factored(x, take_uleb(b)));
		return 0;
	case 0x06: /* restore_extended */
		reg = take_uleb(b);
		if (reg < PA_REGISTERS)
			x->row.regs[reg] = x->initial.regs[reg];
		return 0;
	case 0x07: set_column(x, take_uleb(b), COLUMN_UNDEFINED, 0); return 0;
	case 0x08: set_column(x, take_uleb(b), COLUMN_SAME, 0); return 0;
	case 0x09: /* register */
		reg = take_uleb(b);
		value = take_uleb(b);
		if (value >= PA_REGISTERS)
			return -1;
		set_column(x, reg, COLUMN_REGISTER, 0);
		if (reg < PA_REGISTERS)
			x->row.regs[reg].reg = (u8)value;
		return 0;
	case 0x0a: /* remember_state */
		if (x->remembered_count == REMEMBERED)
			return -1;
		x->remembered[x->remembered_count++] = x->row;
		return 0;
	case 0x0b: /* restore_state */
		if (!x->remembered_count)
			return -1;
		x->row = x->remembered[--x->remembered_count];
		return 0;
	case 0x0c: /* def_cfa */
	case 0x12: /* def_cfa_sf */
		reg = take_uleb(b);
		offset = op == 0x0c ? (i64)take_uleb(b) : factored(x, (u64)take_sleb(b));
		if (reg >= PA_REGISTERS)
			return -1;
		x->row.cfa_is_expression = 0;
		x->row.cfa_register = (u8)reg;
		x->row.cfa_offset = (i32)offset;
		return 0;
	case 0x0d: /* def_cfa_register */
		reg = take_uleb(b);
		if (reg >= PA_REGISTERS || x->row.cfa_is_expression)
			return -1;
		x->row.cfa_register = (u8)reg;
		return 0;
	case 0x0e: x->row.cfa_offset = (i32)take_uleb(b); return 0;
	case 0x13: x->row.cfa_offset = (i32)factored(x, (u64)take_sleb(b)); return 0;
	case 0x0f: /* def_cfa_expression */
		if (!take_expression(b, at, base, limit, &length, &value))
			return -1;
		x->row.cfa_is_expression = 1;
		x->row.cfa_at = value;
		x->row.cfa_length = length;
		*skip = length;
		return 0;
	case 0x10: /* expression */
	case 0x16: /* val_expression */
		reg = take_uleb(b);
		if (!take_expression(b, at, base, limit, &length, &value))
			return -1;
		set_column(x, reg, op == 0x10 ? COLUMN_EXPRESSION : COLUMN_VAL_EXPRESSION, 0);
		if (reg < PA_REGISTERS) {
			x->row.regs[reg].at = value;
			x->row.regs[reg].length = length;
		}
		*skip = length;
		return 0;
	case 0x11: /* offset_extended_sf */
		reg = take_uleb(b);
		set_column(x, reg, COLUMN_OFFSET, factored(x, (u64)take_sleb(b)));
		return 0;
	case 0x14: /* val_offset */
		reg = take_uleb(b);
		set_column(x, reg, COLUMN_VAL_OFFSET, factored(x, take_uleb(b)));
		return 0;
	case 0x15: /* val_offset_sf */
		reg = take_uleb(b);
		set_column(x, reg, COLUMN_VAL_OFFSET, factored(x, (u64)take_sleb(b)));
		return 0;
	case 0x2e: take_uleb(b); return 0; /* GNU_args_size */
	case 0x2f: /* GNU_negative_offset_extended */
		reg = take_uleb(b);
		set_column(x, reg, COLUMN_OFFSET, factored(x, 0 - take_uleb(b)));
		return 0;
	default: return -1;
	}
}

/* Run the instructions [from, end).  Returns 0 at the end, 1 when the row is found, -1 malformed, -2 gone. */
static int run(struct interpreter *x, u64 from, u64 end)
{
	u8 chunk[PROGRAM_CHUNK];
	while (from < end) {
		u64 size = end - from < PROGRAM_CHUNK ? end - from : PROGRAM_CHUNK;
		if (!copy(x->t, chunk, from, size))
			return -2;
		struct pa_bytes b = {chunk, chunk + size, 0};
		/* An instruction is at most 24 bytes without its expression: stop where one might be cut. */
		const u8 *safe = from + size == end ? chunk + size : chunk + size - 32;
		u64 skip = 0;
		while (b.at < safe && !skip) {
			if (!x->left--)
				return -1;
			int done = instruction(x, &b, from, chunk, end, &skip);
			if (b.bad)
				return -1;
			if (done)
				return done;
		}
		from += (u64)(b.at - chunk) + skip;
	}
	return 0;
}

/* The row for `address`.  Returns 1; 0: no table covers it; -1: unreadable; -2: malformed. */
static int find_row(const struct pa_tables *t, const struct pa_module *m, u64 address, struct entry *e, struct row *out)
{
	u64 fde, next;
	int found = find_fde(t, m, address, &fde, &next);
	if (found < 1)
		return found;
	*e = (struct entry){0};
	found = read_fde(t, fde, e);
	if (found < 1)
		return found < 0 ? -1 : -2;
	if (address < e->start || address - e->start >= e->range)
		return 0;
	struct interpreter x = {.t = t, .e = e, .left = INSTRUCTIONS, .location = e->start, .target = address};
	int done = run(&x, e->initial, e->initial_end);
	if (done == 0) {
		x.initial = x.row;
		x.location = e->start;
		done = run(&x, e->program, e->program_end);
	}
	if (done < 0)
		return done == -2 ? -1 : -2;
	e->row_start = done ? x.row_start : x.location;
	e->row_end = done ? x.location : e->start + e->range;
	e->row_end = e->row_end < next ? e->row_end : next;
	*out = x.row;
	return 1;
}

/* The three words of `row`, if it is one of the common shapes; else PA_RULE_FULL. */

static int small_words(i64 bytes, i16 *out)
{
	if (bytes % 8 || bytes / 8 < -0x7000 || bytes / 8 > 0x7000)
		return 0;
	*out = (i16)(bytes / 8);
	return 1;
}

/* `breg OFFSET` alone: its register and offset. */
static int simple_breg(const struct pa_tables *t, u64 at, u32 length, u8 *reg, i64 *offset, u8 *last)
{
	u8 bytes[EXPRESSION_BYTES];
	if (!length || length > sizeof(bytes) || !copy(t, bytes, at, length) || bytes[0] < 0x70 || bytes[0] > 0x8f)
		return 0;
	struct pa_bytes b = {bytes + 1, bytes + length, 0};
	*reg = (u8)(bytes[0] - 0x70);
	*offset = take_sleb(&b);
	*last = 0;
	if (b.at < b.end)
		*last = (u8)take_fixed(&b, 1);
	return !b.bad && b.at == b.end;
}

/* What the linker writes for PLT entries: rsp + 8 + ((rip & 15) >= N) * 8. */
static int plt_offset(const struct pa_tables *t, u64 at, u32 length, u64 address, i32 *offset)
{
	u8 b[11];
	if (length != sizeof(b) || !copy(t, b, at, length))
		return 0;
	if (b[0] != 0x77 || b[1] >= 0x40 || b[2] != 0x80 || b[3] != 0 || b[4] != 0x3f || b[5] != 0x1a || b[6] < 0x30 ||
	    b[6] > 0x4f || b[7] != 0x2a || b[8] < 0x30 || b[8] > 0x4f || b[9] != 0x24 || b[10] != 0x22)
		return 0;
	*offset = (i32)(b[1] + ((u64)((address & 15) >= (u64)(b[6] - 0x30)) << (b[8] - 0x30)));
	return 1;
}

static int pack_cfa(const struct pa_tables *t, const struct row *row, u64 address, struct pa_rule *out)
{
	i64 offset;
	u8 last;
	if (!row->cfa_is_expression) {
		out->kind = PA_RULE_OFFSET;
		out->cfa_register = row->cfa_register;
		out->cfa_offset = row->cfa_offset;
		return 1;
	}
	if (plt_offset(t, row->cfa_at, row->cfa_length, address, &out->cfa_offset)) {
		out->kind = PA_RULE_OFFSET;
		out->cfa_register = PA_REG_SP;
		out->below = out->above = 0; /* it depends on the address itself */
		return 1;
	}
	if (simple_breg(t, row->cfa_at, row->cfa_length, &out->cfa_register, &offset, &last) &&
	    out->cfa_register < PA_REGISTERS && (last == 0x06 || last == 0)) {
		out->kind = last ? PA_RULE_DEREF : PA_RULE_OFFSET;
		out->cfa_offset = (i32)offset;
		return offset == (i32)offset;
	}
	return 0;
}

/* How far the row reaches from `address`, as far as a byte can say it. */
static void pack_reach(const struct entry *e, u64 address, struct pa_rule *out)
{
	u64 below = address - e->row_start, above = e->row_end - address - 1;
	if (address < e->row_start || address >= e->row_end)
		return; /* tables that go back and forth */
	out->below = (u8)(below < 255 ? below : 255);
	out->above = (u8)(above < 255 ? above : 255);
}

static int pack(const struct pa_tables *t, const struct entry *e, const struct row *row, u64 address, struct pa_rule *out)
{
	const struct column *ra = &row->regs[e->return_register];
	int from_cfa = 0, from_fp = 0;
	pack_reach(e, address, out);
	if (ra->kind != COLUMN_OFFSET || !small_words(ra->value, &out->return_at) || !pack_cfa(t, row, address, out))
		return 0;
	if (row->regs[PA_REG_SP].kind != COLUMN_SAME)
		return 0;
	for (u32 i = 0; i < PA_PRESERVED; i++) {
		const struct column *c = &row->regs[pa_preserved[i]];
		i64 offset;
		u8 reg, last;
		out->saved_at[i] = PA_SAME;
		if (c->kind == COLUMN_SAME)
			continue;
		if (c->kind == COLUMN_OFFSET && small_words(c->value, &out->saved_at[i])) {
			from_cfa = 1;
		} else if (c->kind == COLUMN_EXPRESSION && simple_breg(t, c->at, c->length, &reg, &offset, &last) && !last &&
			   reg == PA_REG_FP && small_words(offset, &out->saved_at[i])) {
			from_fp = 1;
		} else {
			return 0;
		}
	}
	out->saved = from_fp ? PA_SAVED_FROM_FP : PA_SAVED_NEAR;
	for (u32 i = 0; i < PA_PRESERVED; i++) {
		if (out->saved_at[i] == PA_SAME)
			continue;
		out->saved_mask |= (u8)(1 << i);
		if (out->saved_at[i] >= 0 || out->saved_at[i] < -PA_NEAR_WORDS)
			out->saved &= (u8)~PA_SAVED_NEAR;
	}
	if (out->return_at != -1)
		out->saved &= (u8)~PA_SAVED_NEAR;
	return !(from_cfa && from_fp);
}

void pa_cfi_rule(const struct pa_tables *t, const struct pa_module *m, u64 address, struct pa_rule *out)
{
	struct entry e;
	struct row row;
	int found = find_row(t, m, address, &e, &row);
	*out = (struct pa_rule){0};
	if (found < 1)
		out->kind = found == 0 ? PA_RULE_NO_CFI : found == -1 ? PA_RULE_GONE : PA_RULE_BAD;
	else if (e.signal_frame)
		out->kind = PA_RULE_SIGNAL;
	else if (row.regs[e.return_register].kind == COLUMN_UNDEFINED)
		out->kind = PA_RULE_ROOT;
	else if (!pack(t, &e, &row, address, out))
		*out = (struct pa_rule){.kind = PA_RULE_FULL};
}

/* The general step. */

static int evaluate(struct pa_unwinder *u, const struct pa_frame *f, u64 at, u32 length, const u64 *initial, u64 *out)
{
	u8 bytes[EXPRESSION_BYTES];
	if (length > sizeof(bytes) || !copy(&u->tables, bytes, at, length))
		return 0;
	return pa_expression(u, f, bytes, length, initial != 0, initial ? *initial : 0, out);
}

/* Returns 1 with the value, 0 when the register is lost, -1 when memory can't be read. */
static int column_value(struct pa_unwinder *u, const struct pa_frame *f, const struct column *c, u32 self, u64 cfa, u64 *out)
{
	u64 at;
	switch (c->kind) {
	case COLUMN_SAME:
		*out = f->r[self];
		return (f->known >> self) & 1;
	case COLUMN_OFFSET: return stack_word(&u->stack, cfa + (u64)(i64)c->value, out) ? 1 : -1;
	case COLUMN_VAL_OFFSET: *out = cfa + (u64)(i64)c->value; return 1;
	case COLUMN_REGISTER:
		*out = f->r[c->reg];
		return (f->known >> c->reg) & 1;
	case COLUMN_EXPRESSION:
		if (!evaluate(u, f, c->at, c->length, &cfa, &at))
			return -1;
		return stack_word(&u->stack, at, out) ? 1 : -1;
	case COLUMN_VAL_EXPRESSION: return evaluate(u, f, c->at, c->length, &cfa, out) ? 1 : -1;
	default: return 0;
	}
}

enum pa_end pa_cfi_step(struct pa_unwinder *u, const struct pa_module *m, u64 address, struct pa_frame *f)
{
	struct entry e;
	struct row row;
	struct pa_frame next = {.known = 0};
	u64 cfa;
	if (find_row(&u->tables, m, address, &e, &row) < 1)
		return PA_END_BAD_CFI;
	if (row.cfa_is_expression) {
		if (!evaluate(u, f, row.cfa_at, row.cfa_length, 0, &cfa))
			return PA_END_BAD_CFI;
	} else {
		if (!((f->known >> row.cfa_register) & 1))
			return PA_END_BAD_CFI;
		cfa = f->r[row.cfa_register] + (u64)(i64)row.cfa_offset;
	}
	for (u32 i = 0; i < PA_REGISTERS; i++) {
		u64 value = 0;
		int got;
		/* What a call does not preserve is lost unless the table says where it is. */
		if (i == PA_REG_IP || i == PA_REG_SP || (row.regs[i].kind == COLUMN_SAME && !((PA_PRESERVED_MASK >> i) & 1)))
			continue;
		got = column_value(u, f, &row.regs[i], i, cfa, &value);
		if (got > 0) {
			next.r[i] = value;
			next.known |= 1U << i;
		}
	}
	if (column_value(u, f, &row.regs[e.return_register], (u32)e.return_register, cfa, &next.r[PA_REG_IP]) != 1)
		return PA_END_UNREADABLE;
	next.r[PA_REG_SP] = cfa;
	if (row.regs[PA_REG_SP].kind != COLUMN_SAME &&
	    column_value(u, f, &row.regs[PA_REG_SP], PA_REG_SP, cfa, &next.r[PA_REG_SP]) != 1)
		return PA_END_UNREADABLE;
	next.known |= (1U << PA_REG_SP) | (1U << PA_REG_IP);
	*f = next;
	return PA_END_NONE;
}

int pa_cfi_start(const struct pa_tables *t, const struct pa_module *m, u64 address, u64 *start)
{
	struct entry e;
	u64 fde, next;
	if (!m->table || find_fde(t, m, address, &fde, &next) < 1 || read_fde(t, fde, &e) < 1 || address - e.start >= e.range)
		return 0;
	*start = e.start;
	return 1;
}
