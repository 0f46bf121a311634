/* 1009 blocks of 101 bytes, 503 of them freed, as often as a line comes in; how it calls is up to the build:
 * -DTAKEN by addresses taken before, -DDLSYM by dlsym.  With -DTAKES "take" takes the address of free now, and "use"
 * calls it; "pass" has it in a frame that ends, in a thread that works on ("pass on") or in this one, and "hold" in one
 * that goes on.  With -DFIRST="..." the program has the allocator itself, which begins so. */
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

#ifdef TAKES
/* Deep down, where nothing else comes. */
NAMED static void pass(int hold) {
    void (*volatile room[4096])(void *);
    room[0] = free;
    if (hold) {
        char line[64];
        puts("done");
        fflush(stdout);
        read_line(line, sizeof line, NULL);
        room[0](malloc(1));
    }
    KEEP_FRAME();
}

static volatile int passed;

static void *pass_and_work(void *argument) {
    pass(0);
    for (volatile uint64_t x = 1;; passed = 1)
        x = burn(x, 1000);
    return argument;
}
#endif

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
        else if (!strcmp(line, "pass on"))
            for (start_thread("passer", pass_and_work, NULL); !passed;)
                usleep(1000);
        else if (!strcmp(line, "pass") || !strcmp(line, "hold"))
            pass(*line == 'h');
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
