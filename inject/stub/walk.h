/* Walking a stack: registers in, return addresses and a reason for the end out. */
#ifndef PA_WALK_H
#define PA_WALK_H

#include "arch/x86_64.h"

/* Whether `bytes` bytes at `address` can be read now.  `arg` is the caller's. */
typedef int (*pa_readable)(void *arg, u64 address, u64 bytes);

/* Fill frames[0..max) with regs.ip and the return addresses found by frame pointers; *depth says how
 * many.  Returns why the walk ended (enum pa_end).  max must be at least 1. */
__attribute__((visibility("hidden"))) enum pa_end pa_walk_fp(struct pa_regs regs, u64 *frames, u32 max, u32 *depth,
							     pa_readable readable, void *arg);

#endif
