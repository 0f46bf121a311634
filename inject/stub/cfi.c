/* The rule of an address, out of .eh_frame_hdr and .eh_frame (System V ABI for x86_64, 4.2.4; LSB core,
 * chapter 10; DWARF 5, section 6.4).
 *
 * The tables lie in memory that another thread may unmap: every byte is copied here before it is looked
 * at.  They are the target's and may be anything: every length is checked, every loop is bounded. */
#include "expr.h"
#include "tables.h"

#define EXPRESSION_BYTES 64
#define INSTRUCTIONS 4096
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
	const struct entry *e = &room_of(t)->entry;
	const struct row *row = &room_of(t)->x.row;
	int found = find_row(t, m, address);
	*out = (struct pa_rule){0};
	if (found < 1)
		out->kind = found == 0 ? PA_RULE_NO_CFI : found == -1 ? PA_RULE_GONE : PA_RULE_BAD;
	else if (e->signal_frame)
		out->kind = PA_RULE_SIGNAL;
	else if (row->regs[e->return_register].kind == COLUMN_UNDEFINED)
		out->kind = PA_RULE_ROOT;
	else if (!pack(t, e, row, address, out))
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
	const struct entry *e = &room_of(&u->tables)->entry;
	const struct row *row = &room_of(&u->tables)->x.row;
	struct pa_frame next = {.known = 0};
	u64 cfa;
	if (find_row(&u->tables, m, address) < 1)
		return PA_END_BAD_CFI;
	if (row->cfa_is_expression) {
		if (!evaluate(u, f, row->cfa_at, row->cfa_length, 0, &cfa))
			return PA_END_BAD_CFI;
	} else {
		if (!((f->known >> row->cfa_register) & 1))
			return PA_END_BAD_CFI;
		cfa = f->r[row->cfa_register] + (u64)(i64)row->cfa_offset;
	}
	for (u32 i = 0; i < PA_REGISTERS; i++) {
		u64 value = 0;
		int got;
		/* What a call does not preserve is lost unless the table says where it is. */
		if (i == PA_REG_IP || i == PA_REG_SP || (row->regs[i].kind == COLUMN_SAME && !((PA_PRESERVED_MASK >> i) & 1)))
			continue;
		got = column_value(u, f, &row->regs[i], i, cfa, &value);
		if (got > 0) {
			next.r[i] = value;
			next.known |= 1U << i;
		}
	}
	if (column_value(u, f, &row->regs[e->return_register], (u32)e->return_register, cfa, &next.r[PA_REG_IP]) != 1)
		return PA_END_UNREADABLE;
	next.r[PA_REG_SP] = cfa;
	if (row->regs[PA_REG_SP].kind != COLUMN_SAME &&
	    column_value(u, f, &row->regs[PA_REG_SP], PA_REG_SP, cfa, &next.r[PA_REG_SP]) != 1)
		return PA_END_UNREADABLE;
	next.known |= (1U << PA_REG_SP) | (1U << PA_REG_IP);
	*f = next;
	return PA_END_NONE;
}

int pa_cfi_start(const struct pa_tables *t, const struct pa_module *m, u64 address, u64 *start)
{
	struct entry *e = &room_of(t)->entry;
	u64 fde, next;
	if (!m->table || find_fde(t, m, address, &fde, &next) < 1 || read_fde(t, fde, e) < 1 || address - e->start >= e->range)
		return 0;
	*start = e->start;
	return 1;
}
