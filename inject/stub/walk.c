/* Frame after frame, from where the tick hit to the thread's first function. */
#include "cache.h"
#include "kept.h"

/* No frame is larger, and no stack of a thread is: what lies farther off is no frame. */
#define MAX_DISTANCE (256UL << 20)

#define LOWEST_CODE 4096

/* From a thread's stack to its goroutine's and back: a walk follows so many changes of stack. */
#define STACK_CHANGES 4

#define BIT(reg) (1U << (reg))
#define AFTER_CALL (PA_PRESERVED_MASK | BIT(PA_REG_SP) | BIT(PA_REG_IP))

static int known(const struct pa_frame *f, u32 reg)
{
	return (f->known >> reg) & 1;
}

/* Whether a frame pointer that leads to no frame above leads to one on another stack: two words, the first of
 * which continues the chain there, the second of which is in such code too. */
static int other_stack(struct pa_unwinder *u, const struct pa_frame *f)
{
	struct pa_module here, there;
	u64 fp = f->r[PA_REG_FP], next, ret;
	return u->stack_changes < STACK_CHANGES && u->find_module(u->modules, f->r[PA_REG_IP] - 1, &here) &&
	       (here.flags & PA_MODULE_CHANGES_STACKS) && stack_word(&u->stack, fp, &next) &&
	       stack_word(&u->stack, fp + 8, &ret) && (!next || (next > fp && next - fp <= MAX_DISTANCE && !(next & 7))) &&
	       u->find_module(u->modules, ret - 1, &there) && (there.flags & PA_MODULE_CHANGES_STACKS);
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
	if (fp < f->r[PA_REG_SP] || fp - f->r[PA_REG_SP] > MAX_DISTANCE) {
		if (!other_stack(u, f))
			return PA_END_OUTSIDE;
		u->stack_changes++;
	}
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
	base = (rule->saved & PA_SAVED_FROM_FP) ? f->r[PA_REG_FP] : cfa;
	if ((rule->saved & PA_SAVED_FROM_FP) && !known(f, PA_REG_FP))
		return PA_END_BAD_CFI;
	for (u32 i = 0; i < PA_PRESERVED; i++) {
		if (rule->saved_at[i] == PA_SAME)
			continue;
		/* gcc's tables are wrong behind the `leave` of a function that realigns its stack: a register
		 * that can't be read is lost, and only a caller that needs it ends the walk. */
		if (stack_word(&u->stack, base + (u64)((i64)rule->saved_at[i] * 8), &f->r[pa_preserved[i]]))
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

/* Whether the code at `address` returns from a signal's handler: musl and others have no table for it, and all who
 * walk know it by its instructions, mov $15, %rax (or %eax); syscall. */
static int returns_from_signal(const struct pa_tables *t, u64 address)
{
	u64 first;
	u8 last;
	if (!t->copy(t->arg, &first, address, 8))
		return 0;
	if ((first & 0xffffffffffffffUL) == 0x050f0000000fb8UL)
		return 1;
	return first == 0x0f0000000fc0c748UL && t->copy(t->arg, &last, address + 8, 1) && last == 0x05;
}

/* The rule for `address`: known from before, or found now and remembered. */
void pa_find_rule(struct pa_unwinder *u, u64 address, struct pa_rule *rule, struct pa_module *module)
{
	if (u->cache && cache_get(u, address, rule)) {
		u->hits++;
		if (rule->kind != PA_RULE_FULL || u->find_module(u->modules, address, module))
			return;
	}
	if (u->cache && cache_get_near(u, address, rule)) {
		u->hits++;
		cache_put(u, address, rule);
		return;
	}
	u->misses++;
	if (!u->find_module(u->modules, address, module)) {
		*rule = (struct pa_rule){.kind = PA_RULE_NO_CFI};
		return;
	}
	if (module->flags & PA_MODULE_ROOT)
		*rule = (struct pa_rule){.kind = PA_RULE_ROOT};
	else if (!module->table)
		*rule = (struct pa_rule){.kind = PA_RULE_NO_CFI};
	else
		pa_cfi_rule(&u->tables, module, address, rule);
	if (rule->kind == PA_RULE_NO_CFI && returns_from_signal(&u->tables, address + 1))
		rule->kind = PA_RULE_SIGNAL;
	if (u->cache && rule->kind != PA_RULE_GONE) {
		cache_put(u, address, rule);
		cache_put_near(u, address, *rule);
	}
}

/* One step for code at `address`.  PA_END_NONE: `f` is the caller now; *exact: its ip is no return address. */
enum pa_end pa_step(struct pa_unwinder *u, u64 address, struct pa_frame *f, int *exact)
{
	struct pa_rule rule;
	struct pa_module module;
	*exact = 0;
	if (u->mode == PA_UNWIND_FP)
		return step_fp(u, f);
	pa_find_rule(u, address, &rule, &module);
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

#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)

/* The registers saved by a rule whose last two words these are. */
static inline void load_saved(struct pa_frame *f, u32 mask, u64 w1, u64 w2, u64 cfa_here)
{
	for (; mask; mask &= mask - 1) {
		u32 i = (u32)__builtin_ctz(mask), reg = pa_preserved[i];
		i64 at = (i16)((i < 4 ? w1 : w2) >> (16 * (i & 3)));
		__builtin_memcpy(&f->r[reg], (const void *)(cfa_here + (u64)(at * 8)), 8);
		f->known |= BIT(reg);
	}
}

/* Where the words of a common step may lie: [low, high), as far as known. */
static inline void see_bounds(const struct pa_unwinder *u, u64 *low, u64 *high, u64 *bias)
{
	*low = u->stack.low + PA_NEAR_WORDS * 8;
	*high = u->stack.high;
	*bias = u->stack.bias;
}

/* The common steps, without a copy of anything: cached rules of which one look at the stack's bounds is enough,
 * on stack that is known to be readable.  Stops before the first step that is anything else, with `f` as that
 * step wants it, or where the rest is as it was (k->met).  addresses[n - 1] is f's; returns how many there are then. */
static u32 walk_cached(struct pa_unwinder *u, struct pa_frame *f, u64 *addresses, u32 n, u32 max, int exact,
		       struct kept_walk *k)
{
	u64 sp = f->r[PA_REG_SP], ip = f->r[PA_REG_IP], cfa, ret;
	u64 low, high, bias;
	const u32 first = n;
	see_bounds(u, &low, &high, &bias);
	while (n < max) {
		u32 is_exact = n == first && exact;
		if (UNLIKELY(sp >= k->next_sp) && !is_exact) {
			u32 all = kept_rest(k, u, sp, f, addresses, n, max);
			if (all) {
				kept_keep(k, u, addresses, n);
				u->again += all - n;
				n = all;
				break;
			}
			see_bounds(u, &low, &high, &bias);
		}
		u64 address = ip - !is_exact;
		u64 w[3];
		if (UNLIKELY(!cache_words(u, address, w)))
			break;
		u32 head = (u32)w[0] & HEAD_MASK;
		cfa = sp + cfa_offset(w);
		if (head != FROM_SP) {
			if (UNLIKELY(head != FROM_FP || !known(f, PA_REG_FP)))
				break;
			cfa = f->r[PA_REG_FP] + cfa_offset(w);
		}
		if (UNLIKELY(cfa <= sp || cfa - sp > MAX_DISTANCE))
			break;
		if (UNLIKELY(cfa < low || cfa > high)) {
			if (!stack_word(&u->stack, cfa - 8, &ret))
				break;
			see_bounds(u, &low, &high, &bias);
			if (cfa < low || cfa > high)
				break;
		}
		__builtin_memcpy(&ret, (const void *)(cfa + bias - 8), 8);
		if (UNLIKELY(ret < LOWEST_CODE || ret >= USER_SPACE_END))
			break;
		load_saved(f, (u8)(w[0] >> 24), w[1], w[2], cfa + bias);
		f->known &= AFTER_CALL;
		sp = cfa;
		ip = ret;
		kept_came(k, n, sp, f, fp_back(w), head == FROM_FP);
		addresses[n++] = ip;
	}
	f->r[PA_REG_SP] = sp;
	f->r[PA_REG_IP] = ip;
	u->hits += n - first;
	return n;
}

enum pa_end pa_walk(struct pa_unwinder *u, struct pa_frame *f, u64 *addresses, u32 max, u32 *depth)
{
	u32 n = 0;
	int exact = 1;
	enum pa_end end = PA_END_NONE;
	struct kept_walk k;
	kept_begin(&k, u);
	/* Invariant: addresses[0..n) are found, f is the frame whose address comes next.  Each step but that
	 * out of a signal frame or to another stack raises the stack pointer; n is bounded by max in any case. */
	while (end == PA_END_NONE && n < max) {
		u32 before = n, changes = u->stack_changes;
		u64 sp;
		addresses[n++] = f->r[PA_REG_IP];
		if (u->mode != PA_UNWIND_FP && u->cache) {
			kept_start(&k, before, exact != 0, f);
			n = walk_cached(u, f, addresses, n, max, exact, &k);
			if (k.met < PA_KEPT) {
				end = PA_END_ROOT;
				break;
			}
		}
		exact = exact && n == before + 1;
		sp = f->r[PA_REG_SP];
		end = pa_step(u, exact ? f->r[PA_REG_IP] : f->r[PA_REG_IP] - 1, f, &exact);
		if (end == PA_END_ROOT)
			kept_keep(&k, u, addresses, n);
		if (end != PA_END_NONE)
			break;
		if (!f->r[PA_REG_IP])
			end = PA_END_ROOT;
		else if (f->r[PA_REG_IP] < LOWEST_CODE || f->r[PA_REG_IP] >= USER_SPACE_END)
			end = PA_END_BAD_RETURN;
		else if (!exact && changes == u->stack_changes && (n == 1 ? f->r[PA_REG_SP] < sp : f->r[PA_REG_SP] <= sp))
			end = PA_END_NO_PROGRESS; /* a leaf may already have popped its return address */
	}
	*depth = n;
	return end == PA_END_NONE ? PA_END_DEPTH : end;
}
