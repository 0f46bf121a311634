/* The frame pointer of a function that has one, where the register itself is not told.
 *
 * It points at two words of the stack: the caller's frame pointer, and the return address.  The stack is
 * searched upwards for a return address behind a call of this very function.  That proves it, unless room that
 * the function has not written to yet still holds an older call of it.  A call through a register names no
 * function: then it is a guess, to be believed only if the walk from there reaches the root.
 */
#ifndef PA_LOST_H
#define PA_LOST_H

#include "../unwind.h"

#define SEARCH_FAR (64UL << 10)
#define SEARCH_ON 4096UL /* beyond the first guess */
#define GUESSES 4
#define GUESS_DISTANCE (1UL << 20)

struct lost {
	u64 proven;
	u64 guess[2][GUESSES]; /* those that continue a chain of frame pointers, and others */
	u32 guesses[2];
};

enum call { CALL_NONE, CALL_TO, CALL_SOMEWHERE };

/* What a jump or call through the word at `slot` leads to; 0 when it can't be read. */
static u64 word_at(const struct pa_tables *t, u64 slot)
{
	u64 word;
	return t->copy(t->arg, &word, slot, 8) ? word : 0;
}

static u64 relative(const u8 *displacement, u64 next)
{
	i32 offset;
	__builtin_memcpy(&offset, displacement, 4);
	return next + (u64)(i64)offset;
}

/* Through an entry of the procedure linkage table ([endbr64] [bnd] jmp *slot(%rip)); anything else is itself. */
static u64 behind_plt(const struct pa_tables *t, u64 target)
{
	u8 b[16];
	u32 i = 0;
	if (!t->copy(t->arg, b, target, sizeof(b)))
		return target;
	if (b[0] == 0xf3 && b[1] == 0x0f && b[2] == 0x1e && b[3] == 0xfa)
		i = 4;
	if (b[i] == 0xf2)
		i++;
	return b[i] == 0xff && b[i + 1] == 0x25 ? word_at(t, relative(&b[i + 2], target + i + 6)) : target;
}

/* The ModRM byte of `call *operand`: opcode 0xff /2 (Intel SDM, volume 2, CALL); `bytes` follow it. */
static int is_indirect(const u8 *at, u32 bytes)
{
	u32 mod = at[1] >> 6, rm = at[1] & 7, sib = mod != 3 && rm == 4;
	u32 follow = sib + (mod == 1 ? 1 : mod == 2 || (mod == 0 && rm == 5) ? 4 : 0);
	return at[0] == 0xff && ((at[1] >> 3) & 7) == 2 && follow == bytes;
}

/* The call before the return address `ret`, and what it calls. */
static enum call call_before(const struct pa_tables *t, u64 ret, u64 *target)
{
	u8 b[7];
	if (!t->copy(t->arg, b, ret - sizeof(b), sizeof(b)))
		return CALL_NONE;
	if (b[2] == 0xe8) {
		*target = relative(&b[3], ret);
		return CALL_TO;
	}
	if (b[1] == 0xff && b[2] == 0x15) {
		*target = word_at(t, relative(&b[3], ret));
		return CALL_TO;
	}
	for (u32 bytes = 0; bytes <= 5; bytes++)
		if (is_indirect(&b[5 - bytes], bytes))
			return CALL_SOMEWHERE;
	return CALL_NONE;
}

/* Whether the rule at `address` is that of a function with a frame pointer; *start: where it starts. */
static int has_frame_pointer(struct pa_unwinder *u, u64 address, u64 *start)
{
	struct pa_module module;
	struct pa_rule rule;
	if (!u->find_module(u->modules, address, &module) || !pa_cfi_start(&u->tables, &module, address, start))
		return 0;
	pa_cfi_rule(&u->tables, &module, address, &rule);
	return rule.kind == PA_RULE_OFFSET && rule.cfa_register == PA_REG_FP && rule.cfa_offset == 16;
}

/* Where the frame pointer of the function at `address` may point, with the stack pointer at `sp`. */
static void find_lost(struct pa_unwinder *u, u64 address, u64 sp, struct lost *out)
{
	u64 start, next, ret, target, end = sp + SEARCH_FAR;
	struct pa_module module;
	u32 kind;
	*out = (struct lost){0};
	if (!has_frame_pointer(u, address, &start))
		return;
	for (u64 fp = (sp + 7) & ~7UL; fp < end; fp += 8) {
		if (!stack_word(&u->stack, fp + 8, &ret))
			return;
		if (ret < 4096 || !u->find_module(u->modules, ret - 1, &module) || !stack_word(&u->stack, fp, &next))
			continue;
		switch (call_before(&u->tables, ret, &target)) {
		case CALL_TO:
			if (target == start || behind_plt(&u->tables, target) == start) {
				out->proven = fp;
				return;
			}
			break;
		case CALL_SOMEWHERE:
			kind = !(next > fp && next - fp < GUESS_DISTANCE);
			if (out->guesses[kind] < GUESSES)
				out->guess[kind][out->guesses[kind]++] = fp;
			if (end > fp + SEARCH_ON)
				end = fp + SEARCH_ON;
			break;
		default: break;
		}
	}
}

/* The word of the stack, from `sp` on, that is the return address behind a call of the function at `start`;
 * 0 when there is none. */
static u64 find_return(struct pa_unwinder *u, u64 start, u64 sp)
{
	struct pa_module module;
	u64 ret, target;
	for (u64 at = (sp + 7) & ~7UL; at < sp + SEARCH_FAR && stack_word(&u->stack, at, &ret); at += 8)
		if (ret >= 4096 && u->find_module(u->modules, ret - 1, &module) &&
		    call_before(&u->tables, ret, &target) == CALL_TO && target == start)
			return at;
	return 0;
}

#endif
