/* Works on a thread of its own until a line arrives on stdin, then prints "bye" and exits with the
 * number in that line, without waiting for the thread. */
#include "target.h"

static _Atomic uint64_t sink;

NAMED static uint64_t work_before_exit(uint64_t x) { return burn(x, 50000); }

static void *worker(void *argument) {
    for (uint64_t x = 1;;) {
        x = work_before_exit(x);
        atomic_store(&sink, x);
    }
    return argument;
}

int main(void) {
    char line[64] = "0";
    start_thread("worker", worker, NULL);
    ready();
    read_line(line, sizeof line, NULL);
    puts("bye");
    fflush(stdout);
    _exit(atoi(line));
}
