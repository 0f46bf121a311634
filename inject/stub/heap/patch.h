/* Words of the target that lead to the hooks. */
#ifndef PA_PATCH_H
#define PA_PATCH_H

#include "heap.h"

void patches_make(void) HIDDEN;
void patches_undo(void) HIDDEN;

#endif
