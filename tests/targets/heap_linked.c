/* 1009 blocks of 101 bytes, 503 of them freed, as often as a line comes in; how it calls is up to the build:
 * -DTAKEN by addresses taken before, -DDLSYM by dlsym.  With -DTAKES "take" takes the address of free now, and "use"
 * calls it.  With -DFIRST="..." the program has the allocator itself, which begins so. */
#include "target.h"

#include <dlfcn.h>

#ifdef FIRST
#include "own_allocator.h"
#endif

static void *(*volatile allocate)(size_t);
static void (*volatile release)(void *);
static void (*volatile taken)(void *);
static void *blocks[1009];

NAMED static void *make(size_t size) {
#if defined(TAKEN) || defined(DLSYM)
    void *block = allocate(size);
#else
    void *block = malloc(size);
#endif
    KEEP_FRAME();
    return block;
}

NAMED static void give_back(void *block) {
#if defined(TAKEN) || defined(DLSYM)
    release(block);
#else
    free(block);
#endif
    KEEP_FRAME();
}

int main(void) {
    char line[64];
#ifdef TAKEN
    allocate = malloc;
    release = free;
#endif
#ifdef DLSYM
    *(void **)&allocate = dlsym(RTLD_DEFAULT, "malloc");
    *(void **)&release = dlsym(RTLD_DEFAULT, "free");
#endif
    free(malloc(1));
    ready();
    while (read_line(line, sizeof line, NULL)) {
#ifdef TAKES
        if (!strcmp(line, "take"))
            taken = free;
        else
#endif
        if (!strcmp(line, "use"))
            taken(malloc(1));
        else {
            for (int i = 0; i < 1009; i++)
                blocks[i] = make(101);
            for (int i = 0; i < 503; i++)
                give_back(blocks[i]);
        }
        puts("done");
        fflush(stdout);
    }
    puts("end");
    return 0;
}
