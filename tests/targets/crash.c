/* Works on a thread of its own until a line arrives on stdin, then that thread dies of SIGSEGV, or, where the
 * line says "trap", of a breakpoint that nobody handles. */
#include "target.h"

#include <sys/resource.h>

enum { CRASH = 1, TRAP };
static _Atomic int crash_wanted;

NAMED static uint64_t work_before_crash(uint64_t x) { return burn(x, 50000); }

NAMED static void crash_here(uint64_t x) {
    volatile uint64_t *volatile nowhere = NULL;
    *nowhere = x;
}

static void *worker(void *argument) {
    uint64_t x = 1;
    while (!atomic_load(&crash_wanted))
        x = work_before_crash(x);
    if (atomic_load(&crash_wanted) == TRAP)
        __asm__ volatile("int3");
    else
        crash_here(x);
    return argument;
}

int main(void) {
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    pthread_t thread = start_thread("worker", worker, NULL);
    ready();
    char line[64];
    if (!read_line(line, sizeof line, NULL))
        return 0;
    atomic_store(&crash_wanted, strcmp(line, "trap") ? CRASH : TRAP);
    pthread_join(thread, NULL);
    return 1;
}
