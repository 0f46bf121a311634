/* What seldom comes to an allocator.  "again": a block, freed by an address of free that was taken before, and one from
 * another place at its address.  "refused": a block for which reallocarray is to make more room than there is, in bytes
 * that wrap to 0.  "calloc": 100 times. */
#include "target.h"

static void (*volatile release)(void *);
static void *volatile kept;

NAMED static void *make(size_t size) {
    void *block = malloc(size);
    KEEP_FRAME();
    return block;
}

NAMED static void *make_other(size_t size) {
    void *block = malloc(size);
    KEEP_FRAME();
    return block;
}

int main(void) {
    char line[64];
    volatile size_t half = (size_t)1 << 63;
    kept = make(1);
    release = free;
    ready();
    while (read_line(line, sizeof line, NULL)) {
        if (!strcmp(line, "again")) {
            void *block = make(101);
            uintptr_t at = (uintptr_t)block;
            release(block);
            kept = make_other(101);
            if ((uintptr_t)kept != at)
                die("it is elsewhere");
        } else if (!strcmp(line, "refused")) {
            kept = make(101);
            if (reallocarray(kept, half, 2))
                die("there was so much room");
        } else
            for (int i = 0; i < 100; i++)
                kept = calloc(1, 101);
        puts("done");
        fflush(stdout);
    }
    puts("end");
    return 0;
}
