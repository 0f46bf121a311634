/* Works until a line arrives on stdin, then runs into a breakpoint, which nobody handles. */
#include "target.h"

#include <sys/resource.h>

static _Atomic int trap_wanted;

NAMED static uint64_t work_before_trap(uint64_t x) { return burn(x, 50000); }

static void *worker(void *argument) {
    uint64_t x = 1;
    while (!atomic_load(&trap_wanted))
        x = work_before_trap(x);
    __asm__ volatile("int3");
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
    atomic_store(&trap_wanted, 1);
    pthread_join(thread, NULL);
    return 1;
}
