/* A main thread that waits on stdin at a place of choice.
 *
 *     places plain|deep|signal|stale|own-malloc
 *
 * plain: in read, called by main.  deep: below 300 frames of 4 KiB.  signal: in the handler of a signal that came
 * to it.  own-malloc: in a function called by the executable's own malloc (built with -DOWN_MALLOC).
 * stale: in read, below words of its stack that lie in malloc.  Prints "done" when stdin ends.
 */
#include "target.h"

#include <signal.h>

NAMED static void wait_here(void) {
    ready();
    wait_for_end_of_stdin();
    KEEP_FRAME();
}

NAMED static int descend(int levels) {
    volatile char room[4096];
    room[0] = (char)levels;
    if (levels)
        descend(levels - 1);
    else
        wait_here();
    KEEP_FRAME();
    return room[0];
}

static void on_signal(int number) {
    (void)number;
    wait_here();
}

NAMED static void *below_stale_words(void) {
    void *volatile words[8];
    for (int i = 0; i < 8; i++)
        words[i] = (char *)malloc + 8;
    wait_here();
    return words[3];
}

#ifdef OWN_MALLOC
static int waits;

void *malloc(size_t size) {
    static char pool[1 << 20];
    static atomic_size_t used;
    if (waits) {
        waits = 0;
        wait_here();
    }
    return pool + atomic_fetch_add(&used, (size + 31) & ~(size_t)15);
}
void free(void *block) { (void)block; }
void *calloc(size_t count, size_t size) { return malloc(count * size); }
void *realloc(void *block, size_t size) {
    void *new = malloc(size);
    return block ? memcpy(new, block, size) : new;
}
#endif

int main(int argc, char **argv) {
    const char *where = argc > 1 ? argv[1] : "plain";
    setvbuf(stdout, NULL, _IONBF, 0);
    if (!strcmp(where, "deep")) {
        descend(300);
    } else if (!strcmp(where, "signal")) {
        signal(SIGUSR1, on_signal);
        raise(SIGUSR1);
    } else if (!strcmp(where, "stale")) {
        below_stale_words();
#ifdef OWN_MALLOC
    } else if (!strcmp(where, "own-malloc")) {
        waits = 1;
        void *volatile block = malloc(10);
        (void)block;
#endif
    } else {
        wait_here();
    }
    puts("done");
    return 0;
}
