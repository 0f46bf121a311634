/* An allocator in the program itself.  Its functions begin with FIRST, and go on in C. */
#pragma once

#include <stdint.h>
#include <string.h>

#define OWN_BYTES (64UL << 20)
#ifndef OWN_ALIGN
#define OWN_ALIGN "6"
#endif
#define OWN_CLASSES 4096 /* of 16 bytes each; what is larger is not used again */

static char own_arena[OWN_BYTES] __attribute__((aligned(16)));
static size_t own_used;
static void *own_lists[OWN_CLASSES];
static char own_lock;
long own_word; /* for a first instruction that reads it */

static void *own_take(size_t class) {
    void *block = class < OWN_CLASSES ? own_lists[class] : NULL;
    if (block)
        own_lists[class] = *(void **)block;
    else if ((class + 1) * 16 <= OWN_BYTES - own_used) {
        block = own_arena + own_used + 16;
        own_used += (class + 1) * 16;
        ((size_t *)block)[-1] = class;
    }
    return block;
}

__attribute__((used, noinline)) static void *own_malloc(size_t size) {
    while (__atomic_test_and_set(&own_lock, __ATOMIC_ACQUIRE))
        ;
    void *block = own_take((size + 15) / 16 + !size);
    __atomic_clear(&own_lock, __ATOMIC_RELEASE);
    return block;
}

__attribute__((used, noinline)) static void own_free(void *block) {
    if (!block || ((size_t *)block)[-1] >= OWN_CLASSES)
        return;
    while (__atomic_test_and_set(&own_lock, __ATOMIC_ACQUIRE))
        ;
    *(void **)block = own_lists[((size_t *)block)[-1]];
    own_lists[((size_t *)block)[-1]] = block;
    __atomic_clear(&own_lock, __ATOMIC_RELEASE);
}

__attribute__((used, noinline)) static void *own_calloc(size_t count, size_t size) {
    void *block = own_malloc(count * size);
    return block ? memset(block, 0, count * size) : NULL;
}

__attribute__((used, noinline)) static void *own_realloc(void *block, size_t size) {
    void *fresh = own_malloc(size);
    size_t old = block ? 16 * ((size_t *)block)[-1] : 0;
    if (fresh && block)
        memcpy(fresh, block, old < size ? old : size), own_free(block);
    return fresh;
}

#define OWN_FUNCTION(name)                                       \
    __asm__(".text\n.p2align " OWN_ALIGN "\n.globl " #name "\n"              \
            ".type " #name ", @function\n" #name ":\n.cfi_startproc\n" FIRST \
            "\njmp own_" #name "\n.cfi_endproc\n.size " #name ", . - " #name "\n.p2align 4\n")

OWN_FUNCTION(malloc);
OWN_FUNCTION(free);
OWN_FUNCTION(calloc);
OWN_FUNCTION(realloc);
