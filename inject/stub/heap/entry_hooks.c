/* The hooks once more, for where the allocator's own code leads to them. */
#ifndef PA_HEAP_PRELOADED
#define PA_HEAP_ENTRIES
#include "hooks.c"
#endif
