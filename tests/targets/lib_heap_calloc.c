/* A calloc that calls malloc, by a slot: to be preloaded. */
#include <stdlib.h>
#include <string.h>

void *calloc(size_t count, size_t size) {
    void *volatile block = malloc(count * size);
    return block ? memset(block, 0, count * size) : NULL;
}
