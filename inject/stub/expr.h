/* DWARF expressions as call frame information uses them. */
#ifndef PA_EXPR_H
#define PA_EXPR_H

#include "unwind.h"

/* Evaluate `length` bytes at `code` on the registers of `f`; with `initial` (the CFA) on the stack when
 * `has_initial`.  Returns 1 and the top of the stack, or 0: malformed, unknown operation, unreadable. */
HIDDEN int pa_expression(struct pa_unwinder *u, const struct pa_frame *f, const u8 *code, u32 length, int has_initial,
			 u64 initial, u64 *out);

#endif
