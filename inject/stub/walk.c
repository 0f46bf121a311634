/* Frame after frame, from where the tick hit to the thread's first function. */
#include "cache.h"

/* No frame is larger, and no stack of a thread is: what lies farther off is no frame. */
#define MAX_DISTANCE (256UL << 20)

#define BIT(reg) (1U << (reg))
#define AFTER_CALL (PA_PRESERVED_MASK | BIT(PA_REG_SP) | BIT(PA_REG_IP))

static int known(const struct pa_frame *f, u32 reg)
{
	return (f->known >> reg) & 1;
}

/* One step by the frame pointer: it points at the caller's, and the return address lies above it.  Each
 * is checked before it is believed: a register that happens to hold something else must end the walk. */
static enum pa_end step_fp(struct pa_unwinder *u, struct pa_frame *f)
{
	u64 fp = f->r[PA_REG_FP], next, ret;
	if (!known(f, PA_REG_FP))
		return PA_END_NO_CFI;
	if (!fp)
		return PA_END_ROOT;
	if (fp & 7)
		return PA_END_UNALIGNED;
	if (fp < f->r[PA_REG_SP] || fp - f->r[PA_REG_SP] > MAX_DISTANCE)
		return PA_END_OUTSIDE;
	if (!stack_word(&u->stack, fp, &next) || !stack_word(&u->stack, fp + 8, &ret))
		return PA_END_UNREADABLE;
	f->r[PA_REG_FP] = next;
	f->r[PA_REG_SP] = fp + 16;
	f->r[PA_REG_IP] = ret;
	f->known = BIT(PA_REG_FP) | BIT(PA_REG_SP) | BIT(PA_REG_IP);
	return PA_END_NONE;
}

/* One step by a packed rule. */
static enum pa_end step_rule(struct pa_unwinder *u, const struct pa_rule *rule, struct pa_frame *f)
{
	u64 cfa, base, ret;
	if (!known(f, rule->cfa_register))
		return PA_END_BAD_CFI;
	cfa = f->r[rule->cfa_register] + (u64)(i64)rule->cfa_offset;
	if (rule->kind == PA_RULE_DEREF && !stack_word(&u->stack, cfa, &cfa))
		return PA_END_UNREADABLE;
	if (cfa <= f->r[PA_REG_SP] || cfa - f->r[PA_REG_SP] > MAX_DISTANCE)
		return PA_END_NO_PROGRESS;
	if (!stack_word(&u->stack, cfa + (u64)((i64)rule->return_at * 8), &ret))
		return PA_END_UNREADABLE;
	base = rule->saved_from ? f->r[PA_REG_FP] : cfa;
	if (rule->saved_from && !known(f, PA_REG_FP))
		return PA_END_BAD_CFI;
	for (u32 i = 0; i < PA_PRESERVED; i++) {
		if (rule->saved[i] == PA_SAME)
			continue;
		/* gcc's tables are wrong behind the `leave` of a function that realigns its stack: a register
		 * that can't be read is lost, and only a caller that needs it ends the walk. */
		if (stack_word(&u->stack, base + (u64)((i64)rule->saved[i] * 8), &f->r[pa_preserved[i]]))
			f->known |= BIT(pa_preserved[i]);
		else
			f->known &= ~BIT(pa_preserved[i]);
	}
	f->r[PA_REG_SP] = cfa;
	f->r[PA_REG_IP] = ret;
	f->known &= AFTER_CALL;
	return PA_END_NONE;
}

/* Out of a signal handler: the kernel has left all registers at the stack pointer. */
static enum pa_end step_signal(struct pa_unwinder *u, struct pa_frame *f)
{
	u64 at = f->r[PA_REG_SP] + UC_GREGS;
	struct pa_frame next = {.known = (1U << PA_REGISTERS) - 1};
	for (u32 i = 0; i < PA_REGISTERS; i++)
		if (!stack_word(&u->stack, at + 8 * i, &next.r[pa_greg_numbers[i]]))
			return PA_END_UNREADABLE;
	*f = next;
	return PA_END_NONE;
}

/* The rule for `address`: known from before, or found now and remembered. */
static void find_rule(struct pa_unwinder *u, u64 address, struct pa_rule *rule, struct pa_module *module)
{
	if (u->cache && cache_get(u, address, rule)) {
		u->hits++;
		if (rule->kind != PA_RULE_FULL || u->find_module(u->modules, address, module))
			return;
	}
	u->misses++;
	if (!u->find_module(u->modules, address, module) || !module->table) {
		*rule = (struct pa_rule){.kind = PA_RULE_NO_CFI};
		return;
	}
	pa_cfi_rule(&u->tables, module, address, rule);
	if (u->cache && rule->kind != PA_RULE_GONE)
		cache_put(u, address, rule);
}

/* One step for code at `address`.  PA_END_NONE: `f` is the caller now; *exact: its ip is no return address. */
static enum pa_end step(struct pa_unwinder *u, u64 address, struct pa_frame *f, int *exact)
{
	struct pa_rule rule;
	struct pa_module module;
	*exact = 0;
	if (u->mode == PA_UNWIND_FP)
		return step_fp(u, f);
	find_rule(u, address, &rule, &module);
	switch (rule.kind) {
	case PA_RULE_OFFSET:
	case PA_RULE_DEREF: return step_rule(u, &rule, f);
	case PA_RULE_SIGNAL: *exact = 1; return step_signal(u, f);
	case PA_RULE_ROOT: return PA_END_ROOT;
	case PA_RULE_FULL: return pa_cfi_step(u, &module, address, f);
	case PA_RULE_BAD: return PA_END_BAD_CFI;
	default: return u->mode == PA_UNWIND_CFI ? PA_END_NO_CFI : step_fp(u, f);
	}
}

enum pa_end pa_walk(struct pa_unwinder *u, struct pa_frame *f, u64 *addresses, u32 max, u32 *depth)
{
	u32 n = 0;
	int exact = 1;
	enum pa_end end = PA_END_NONE;
	/* Invariant: addresses[0..n) are found, f is the frame whose address comes next.  Each step but that
	 * out of a signal frame raises the stack pointer; n is bounded by max in any case. */
	while (end == PA_END_NONE) {
		u64 ip = f->r[PA_REG_IP], sp = f->r[PA_REG_SP];
		if (n == max) {
			end = PA_END_DEPTH;
			break;
		}
		addresses[n++] = ip;
		end = step(u, exact ? ip : ip - 1, f, &exact);
		if (end != PA_END_NONE)
			break;
		ip = f->r[PA_REG_IP];
		if (!ip)
			end = PA_END_ROOT;
		else if (ip < 4096 || ip >= USER_SPACE_END)
			end = PA_END_BAD_RETURN;
		else if (!exact && (n == 1 ? f->r[PA_REG_SP] < sp : f->r[PA_REG_SP] <= sp))
			end = PA_END_NO_PROGRESS; /* a leaf may already have popped its return address */
	}
	*depth = n;
	return end;
}
