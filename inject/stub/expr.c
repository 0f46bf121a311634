/* DWARF 5, section 2.5.  Only operations that make sense in call frame information; each costs bounded
 * time, and their number is bounded too. */
#include "expr.h"
#include "leb.h"

#define DEPTH 16
#define STEPS 128

struct machine {
	struct pa_unwinder *u;
	const struct pa_frame *f;
	struct pa_bytes code;
	const u8 *start;
	u64 stack[DEPTH];
	u32 depth;
	int bad;
};

static void push(struct machine *m, u64 value)
{
	if (m->depth == DEPTH)
		m->bad = 1;
	else
		m->stack[m->depth++] = value;
}

static u64 pop(struct machine *m)
{
	if (!m->depth) {
		m->bad = 1;
		return 0;
	}
	return m->stack[--m->depth];
}

static u64 peek(struct machine *m, u64 below)
{
	if (below >= m->depth) {
		m->bad = 1;
		return 0;
	}
	return m->stack[m->depth - 1 - below];
}

static u64 register_value(struct machine *m, u64 number)
{
	if (number >= PA_REGISTERS || !(m->f->known & (1U << number))) {
		m->bad = 1;
		return 0;
	}
	return m->f->r[number];
}

static void deref(struct machine *m, u32 bytes)
{
	u64 word = 0, address = pop(m);
	if (m->bad || !bytes || bytes > 8 || !stack_word(&m->u->stack, address, &word)) {
		m->bad = 1;
		return;
	}
	push(m, bytes == 8 ? word : word & ((1UL << (8 * bytes)) - 1));
}

static void jump(struct machine *m, int taken)
{
	i64 distance = take_signed(&m->code, 2);
	i64 target = (m->code.at - m->start) + distance;
	if (m->code.bad || target < 0 || target > m->code.end - m->start)
		m->bad = 1;
	else if (taken)
		m->code.at = m->start + target;
}

/* Operations on the two topmost values: 0x1a and .. 0x27 xor, 0x29 eq .. 0x2e ne. */
static int binary(struct machine *m, u8 op)
{
	u64 b = peek(m, 0), a = peek(m, 1), value;
	switch (op) {
	case 0x1a: value = a & b; break;
	case 0x1b:
		if (!b || ((i64)b == -1 && a == 1UL << 63))
			return 0;
		value = (u64)((i64)a / (i64)b);
		break;
	case 0x1c: value = a - b; break;
	case 0x1d:
		if (!b)
			return 0;
		value = a % b;
		break;
	case 0x1e: value = a * b; break;
	case 0x21: value = a | b; break;
	case 0x22: value = a + b; break;
	case 0x24: value = b < 64 ? a << b : 0; break;
	case 0x25: value = b < 64 ? a >> b : 0; break;
	case 0x26: value = (u64)((i64)a >> (b < 64 ? b : 63)); break;
	case 0x27: value = a ^ b; break;
	case 0x29: value = a == b; break;
	case 0x2a: value = (i64)a >= (i64)b; break;
	case 0x2b: value = (i64)a > (i64)b; break;
	case 0x2c: value = (i64)a <= (i64)b; break;
	case 0x2d: value = (i64)a < (i64)b; break;
	case 0x2e: value = a != b; break;
	default: return 0;
	}
	pop(m);
	pop(m);
	push(m, value);
	return 1;
}

static int constant(struct machine *m, u8 op)
{
	struct pa_bytes *c = &m->code;
	if (op >= 0x30 && op <= 0x4f) {
		push(m, op - 0x30U);
		return 1;
	}
	switch (op) {
	case 0x03: push(m, take_fixed(c, 8)); return 1;
	case 0x08: push(m, take_fixed(c, 1)); return 1;
	case 0x09: push(m, (u64)take_signed(c, 1)); return 1;
	case 0x0a: push(m, take_fixed(c, 2)); return 1;
	case 0x0b: push(m, (u64)take_signed(c, 2)); return 1;
	case 0x0c: push(m, take_fixed(c, 4)); return 1;
	case 0x0d: push(m, (u64)take_signed(c, 4)); return 1;
	case 0x0e: push(m, take_fixed(c, 8)); return 1;
	case 0x0f: push(m, take_fixed(c, 8)); return 1;
	case 0x10: push(m, take_uleb(c)); return 1;
	case 0x11: push(m, (u64)take_sleb(c)); return 1;
	default: return 0;
	}
}

static int shuffle(struct machine *m, u8 op)
{
	u64 a, b, c;
	switch (op) {
	case 0x12: push(m, peek(m, 0)); return 1;
	case 0x13: pop(m); return 1;
	case 0x14: push(m, peek(m, 1)); return 1;
	case 0x15: push(m, peek(m, take_fixed(&m->code, 1))); return 1;
	case 0x16:
		a = pop(m), b = pop(m);
		push(m, a), push(m, b);
		return 1;
	case 0x17:
		a = pop(m), b = pop(m), c = pop(m);
		push(m, a), push(m, c), push(m, b);
		return 1;
	default: return 0;
	}
}

static int one_operation(struct machine *m)
{
	u8 op = (u8)take_fixed(&m->code, 1);
	u64 a;
	if (constant(m, op) || shuffle(m, op))
		return 1;
	if (op >= 0x50 && op <= 0x6f) { /* DW_OP_reg: in expressions of CFI only seen where breg was meant */
		push(m, register_value(m, op - 0x50U));
		return 1;
	}
	if (op >= 0x70 && op <= 0x8f) {
		a = register_value(m, op - 0x70U);
		push(m, a + (u64)take_sleb(&m->code));
		return 1;
	}
	switch (op) {
	case 0x06: deref(m, 8); return 1;
	case 0x94: deref(m, (u32)take_fixed(&m->code, 1)); return 1;
	case 0x19: a = pop(m); push(m, (i64)a < 0 ? 0 - a : a); return 1;
	case 0x1f: push(m, 0 - pop(m)); return 1;
	case 0x20: push(m, ~pop(m)); return 1;
	case 0x23: a = pop(m); push(m, a + take_uleb(&m->code)); return 1;
	case 0x28: jump(m, pop(m) != 0); return 1;
	case 0x2f: jump(m, 1); return 1;
	case 0x92:
		a = register_value(m, take_uleb(&m->code));
		push(m, a + (u64)take_sleb(&m->code));
		return 1;
	case 0x96: return 1; /* DW_OP_nop */
	default: return binary(m, op);
	}
}

int pa_expression(struct pa_unwinder *u, const struct pa_frame *f, const u8 *code, u32 length, int has_initial,
		  u64 initial, u64 *out)
{
	struct machine m = {.u = u, .f = f, .code = {code, code + length, 0}, .start = code};
	if (has_initial)
		push(&m, initial);
	for (u32 steps = 0; m.code.at < m.code.end; steps++)
		if (steps == STEPS || !one_operation(&m) || m.bad || m.code.bad)
			return 0;
	*out = pop(&m);
	return !m.bad;
}
