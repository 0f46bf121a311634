/* The unwinder: registers and ways to read in; return addresses and a reason for the end out.
 *
 * It takes no lock, allocates nothing, calls nothing outside the stub, and its work is bounded.  Files:
 *   walk.c     frame after frame, the loop and its invariants
 *   cache.h    the rule of an address, found before
 *   kept.h     the thread's last walk, of which the outer frames are mostly those of the next
 *   cfi.c      the rule of an address, out of .eh_frame (cold): tables.h finds and reads the entry, row.h runs it
 *   expr.c     DWARF expressions
 *   modules.h  which module an address lies in
 *   arch/      which registers there are and which a call preserves
 */
#ifndef PA_UNWIND_H
#define PA_UNWIND_H

#include "arch/x86_64.h"

#ifndef HIDDEN
#define HIDDEN __attribute__((visibility("hidden")))
#endif

/* Stack memory of the thread that is walked.  [low, high), whole pages, is known to be readable; beyond it
 * `probe` is asked, page by page.  Reads within are plain loads. */
struct pa_stack {
	u64 low, high;
	u64 bias; /* added to an address to get where its bytes are here: 0 in the target itself */
	int (*probe)(void *arg, u64 page);
	void *arg;
};

/* Memory that another thread may unmap at any time (a library's tables): copied, never dereferenced.
 * Returns 1, or 0 when not all of it can be read. */
struct pa_tables {
	int (*copy)(void *arg, void *to, u64 from, u64 bytes);
	void *arg;
	struct pa_room *room;
};

/* Where they are copied to and worked on.  Not on the stack: a handler may run on a signal stack of 8 KB, of which
 * the kernel takes 3.6 for the registers of AVX-512. */
struct pa_room {
	u64 words[PA_ROOM_BYTES / 8];
};

/* Registers of one frame, numbered as DWARF does; regs.r[PA_REG_IP] is where it is or goes on.  A bit of
 * `known` is set for each that holds what it held there. */
struct pa_frame {
	u64 r[PA_REGISTERS];
	u32 known;
};

/* How to get from a frame to its caller's, in three words: what the cache keeps. */
enum pa_rule_kind {
	PA_RULE_NONE = 0,   /* nothing cached */
	PA_RULE_OFFSET = 1, /* CFA = register + offset */
	PA_RULE_DEREF = 2,  /* CFA = *(register + offset): a realigned stack (DRAP) */
	PA_RULE_SIGNAL = 3, /* the kernel's signal frame lies at the stack pointer */
	PA_RULE_ROOT = 4,   /* the return address is undefined: the thread's first function */
	PA_RULE_FULL = 5,   /* needs the tables each time */
	PA_RULE_NO_CFI = 6, /* no table covers the address */
	PA_RULE_BAD = 7,    /* the table that should is malformed */
	PA_RULE_GONE = 8,   /* it could not be read */
};

#define PA_SAME ((i16)0x7fff) /* the register is as it was */
#define PA_SAVED_FROM_FP 1 /* saved_at[] counts from the frame pointer, not from the CFA */
#define PA_SAVED_NEAR 2    /* all of it is from the CFA and in the PA_NEAR_WORDS below; the return address just there */
#define PA_NEAR_WORDS 8

struct pa_rule {
	u8 kind;
	u8 cfa_register;
	u8 saved;      /* PA_SAVED_* */
	u8 saved_mask; /* which of saved_at[] are not PA_SAME */
	i32 cfa_offset;
	i16 saved_at[PA_PRESERVED]; /* where the callee-saved registers lie, in words; PA_SAME: not saved */
	i16 return_at;              /* where the return address lies, in words from the CFA */
	u8 below, above; /* it holds for so many addresses before and behind this one, too, at least */
};
_Static_assert(sizeof(struct pa_rule) == 24, "three words");

/* Finds the module of `address`; 0 when there is none.  The answer is a copy, never torn. */
typedef int (*pa_find_module)(void *arg, u64 address, struct pa_module *out);

struct pa_cache_line {
	u64 check, word[3];
};

struct pa_unwinder {
	struct pa_stack stack;
	struct pa_tables tables;
	pa_find_module find_module;
	void *modules;
	struct pa_cache_line *cache; /* cache_lines of them, or 0 */
	u64 cache_lines;             /* a power of two */
	u32 generation;              /* of the module table: older rules are not believed */
	u32 mode;                    /* enum pa_mode */
	u64 hits, misses;
	u64 again;                   /* of the hits, frames taken as the last walk found them */
	u32 stack_changes;           /* so far, in this walk */
	struct pa_kept *kept;        /* the thread's last walk (kept.h), or 0 */
};

enum pa_mode { PA_UNWIND_AUTO = 0, PA_UNWIND_FP = 1, PA_UNWIND_CFI = 2 };

/* Fill addresses[0..max) with where `frame` is and its callers' return addresses; *depth says how many
 * (at least 1).  `frame` is consumed.  Returns why the walk ended. */
HIDDEN enum pa_end pa_walk(struct pa_unwinder *u, struct pa_frame *frame, u64 *addresses, u32 max, u32 *depth);

/* One step of such a walk, for code at `address`.  PA_END_NONE: `frame` is the caller now; *exact: its ip is no
 * return address. */
HIDDEN enum pa_end pa_step(struct pa_unwinder *u, u64 address, struct pa_frame *frame, int *exact);

/* The rule for `address`, from the cache or the tables; `module` is set where the rule is PA_RULE_FULL. */
HIDDEN void pa_find_rule(struct pa_unwinder *u, u64 address, struct pa_rule *rule, struct pa_module *module);

/* The rule for code at `address` of module `m`, from its tables. */
HIDDEN void pa_cfi_rule(const struct pa_tables *t, const struct pa_module *m, u64 address, struct pa_rule *out);

/* Where the function that `address` lies in starts, by its tables; 0 when they do not say. */
HIDDEN int pa_cfi_start(const struct pa_tables *t, const struct pa_module *m, u64 address, u64 *start);

/* One step by the tables alone, for rules of PA_RULE_FULL. */
HIDDEN enum pa_end pa_cfi_step(struct pa_unwinder *u, const struct pa_module *m, u64 address, struct pa_frame *f);

/* Load one word of the stack; 0 when it can't be read. */
static inline int stack_word(struct pa_stack *s, u64 address, u64 *out)
{
	if (address + 8 < address)
		return 0;
	if (address < s->low || address + 8 > s->high) {
		u64 first = address & ~4095UL, last = (address + 7) & ~4095UL;
		for (u64 page = first; page <= last; page += 4096) {
			if (page >= s->low && page < s->high)
				continue;
			if (!s->probe(s->arg, page))
				return 0;
			if (page == s->high) {
				s->high += 4096;
			} else {
				s->low = page;
				s->high = page + 4096;
			}
		}
	}
	__builtin_memcpy(out, (const void *)(address + s->bias), 8);
	return 1;
}

#endif
