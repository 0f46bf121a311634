/* A library that comes late and allocates: its stack leads through its caller. */
#include <stdlib.h>

void *heap_late_alloc(size_t size);
void *heap_late_alloc(size_t size) { return malloc(size); }
void heap_late_free(void *block);
void heap_late_free(void *block) { free(block); }
