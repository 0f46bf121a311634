/* The row of an address: the instructions of its CIE and FDE, run up to it (DWARF 5, section 6.4).
 *
 * They are the target's and may be anything: every length is checked, every loop is bounded. */
#ifndef PA_ROW_H
#define PA_ROW_H

#include "tables.h"

#define EXPRESSION_BYTES 64
#define INSTRUCTIONS 32768 /* the longest function of gcc 12's cc1 has 13,361 */
#define LONGEST_INSTRUCTION 32

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

/* Run the instructions of `p`.  Returns 0 at the end, 1 when the row is found, -1 malformed, -2 gone. */
static int run(struct interpreter *x, const struct program *p)
{
	u8 *read = room_of(x->t)->chunk;
	const u8 *chunk = p->bytes;
	u64 from = p->at, size = p->held;
	while (from < p->end) {
		/* An instruction is at most 24 bytes without its expression: stop where one might be cut. */
		if (from != p->at || (from + size != p->end && size <= LONGEST_INSTRUCTION)) {
			size = p->end - from < PROGRAM_CHUNK ? p->end - from : PROGRAM_CHUNK;
			chunk = read;
			if (!copy(x->t, read, from, size))
				return -2;
		}
		struct pa_bytes b = {chunk, chunk + size, 0};
		const u8 *safe = from + size == p->end ? chunk + size : chunk + size - LONGEST_INSTRUCTION;
		u64 skip = 0;
		while (b.at < safe && !skip) {
			if (!x->left--)
				return -1;
			int done = instruction(x, &b, from, chunk, p->end, &skip);
			if (b.bad)
				return -1;
			if (done)
				return done;
		}
		from += (u64)(b.at - chunk) + skip;
	}
	return 0;
}

/* The bytes of the no-operation that code begins with, of those that assemblers pad with (Intel SDM, NOP); 0 where
 * there is none. */
static u32 nop_bytes(const u8 *code, u32 size)
{
	u32 at = 0, form, displacement;
	while (at < size && (code[at] == 0x66 || code[at] == 0x2e))
		at++;
	if (at < size && code[at] == 0x90)
		return at + 1;
	if (size - at < 3 || code[at] != 0x0f || code[at + 1] != 0x1f || code[at + 2] & 0x38)
		return 0;
	form = code[at + 2] >> 6;
	displacement = form == 1 ? 1 : form == 2 ? 4 : 0;
	if (form == 3)
		return 0;
	at += 3 + ((code[at + 2] & 7) == 4) + displacement;
	return at <= size ? at : 0;
}

/* Whether all from `from` to the function at `to` does nothing, so that one gets to the other. */
static int is_padding(const struct pa_tables *t, u64 from, u64 to)
{
	u8 *code = room_of(t)->padding;
	u32 size = (u32)(to - from), at = 0, step = 1;
	if (to <= from || to - from > MOST_PADDING || !copy(t, code, from, size))
		return 0;
	for (; at < size && step; at += step)
		step = nop_bytes(code + at, size - at);
	return at == size && step;
}

/* The entry and the row for `address`, in the room: entry, x.row.  Returns 1; 0: no table covers it; -1: unreadable;
 * -2: malformed.  *behind is where the next function begins, as far as that was found. */
static int find_row_here(const struct pa_tables *t, const struct pa_module *m, u64 address, u64 *behind)
{
	struct entry *e = &room_of(t)->entry;
	struct interpreter *x = &room_of(t)->x;
	u64 fde, next;
	int found = find_fde(t, m, address, &fde, &next);
	*behind = 0;
	if (found < 1)
		return found;
	*e = (struct entry){0};
	found = read_fde(t, fde, e);
	if (found < 1)
		return found < 0 ? -1 : -2;
	*behind = next;
	if (address < e->start || address - e->start >= e->range)
		return 0;
	x->t = t;
	x->e = e;
	x->row = x->initial = (struct row){0};
	x->remembered_count = 0;
	x->left = INSTRUCTIONS;
	x->location = x->row_start = e->start;
	x->target = address;
	int done = run(x, &e->initial);
	if (done == 0) {
		x->initial = x->row;
		x->location = e->start;
		done = run(x, &e->program);
	}
	if (done < 0)
		return done == -2 ? -1 : -2;
	e->row_start = done ? x->row_start : x->location;
	e->row_end = e->start + e->range < next ? e->start + e->range : next;
	if (done && x->location < e->row_end)
		e->row_end = x->location;
	return 1;
}

/* The same.  Assembly falls through into the function behind it (glibc's __memcpy_chk into memcpy): what lies in
 * between has no table, and is as the other function begins. */
static int find_row(const struct pa_tables *t, const struct pa_module *m, u64 address)
{
	u64 next, behind;
	int found = find_row_here(t, m, address, &next);
	if (found || !is_padding(t, address, next))
		return found;
	found = find_row_here(t, m, next, &behind) == 1 && room_of(t)->entry.start == next;
	room_of(t)->entry.row_start = address;
	return found;
}

#endif
