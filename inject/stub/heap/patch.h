/* Words of the target that lead to the hooks. */
#ifndef PA_PATCH_H
#define PA_PATCH_H

#include "heap.h"

void patches_make(void) HIDDEN;
void patches_undo(void) HIDDEN;

/* Whether the aligned word held `from`, and holds `to` now; `protection` is its page's. */
int word_change(u64 address, u32 protection, u64 from, u64 to) HIDDEN;

#ifdef PA_HEAP_PRELOADED
static inline void entries_make(void) {}
static inline void entries_undo(void) {}
static inline void entries_end(void) {}
#else
/* entries.c; entries_end when nobody can be in a landing any more. */
void entries_make(void) HIDDEN;
void entries_undo(void) HIDDEN;
void entries_end(void) HIDDEN;
#endif

#endif
