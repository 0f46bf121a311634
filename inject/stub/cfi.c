/* The rule of an address, out of .eh_frame_hdr and .eh_frame (System V ABI for x86_64, 4.2.4; LSB core,
 * chapter 10): its row, packed into three words where it is of a common shape; else a step by the row itself.
 *
 * The tables (tables.h, row.h) lie in memory that another thread may unmap: every byte is copied here before it is
 * looked at. */
#include "expr.h"
#include "row.h"

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

/* The three words of `row`.  0 where it is of no common shape: then the rule is PA_RULE_FULL. */
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
