/* Threads that come later.
 *
 *     spawn [interval_ms]     default 100; 0: only those asked for
 *
 * Each interval a thread "late-N" starts, works for half a second in late_thread_work and ends.  A
 * line on stdin starts one more, "asked-N", which works until the end and is announced by "started
 * <tid>".  Ends when stdin does; prints "done <number of threads started>".
 */
#include "target.h"

#include <poll.h>
#include <sys/syscall.h>

enum { LATE_THREAD_NS = 500000000 };

static _Atomic int stopping;
static _Atomic int running;
static _Atomic int asked_tid;
static _Atomic uint64_t sink;

NAMED static uint64_t late_thread_work(uint64_t x) { return burn(x, 50000); }
NAMED static uint64_t asked_thread_work(uint64_t x) { return burn(x, 50000); }

static void *late_thread(void *argument) {
    uint64_t x = 1, end_ns = now_ns() + LATE_THREAD_NS;
    while (!atomic_load(&stopping) && now_ns() < end_ns)
        x = late_thread_work(x);
    atomic_fetch_xor(&sink, x);
    atomic_fetch_sub(&running, 1);
    return argument;
}

static void *asked_thread(void *argument) {
    uint64_t x = 2;
    atomic_store(&asked_tid, (int)syscall(SYS_gettid));
    while (!atomic_load(&stopping))
        x = asked_thread_work(x);
    atomic_fetch_xor(&sink, x);
    atomic_fetch_sub(&running, 1);
    return argument;
}

static void start(const char *kind, int number, void *(*run)(void *)) {
    char name[16];
    snprintf(name, sizeof name, "%s-%d", kind, number);
    atomic_fetch_add(&running, 1);
    pthread_detach(start_thread(name, run, NULL));
}

static void start_asked(int number) {
    atomic_store(&asked_tid, 0);
    start("asked", number, asked_thread);
    while (!atomic_load(&asked_tid))
        sched_yield();
    printf("started %d\n", atomic_load(&asked_tid));
    fflush(stdout);
}

int main(int argc, char **argv) {
    int interval_ms = argc > 1 ? atoi(argv[1]) : 100;
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    char line[64];
    int started = 0;
    ready();
    uint64_t next_ns = now_ns();
    for (;;) {
        int wait_ms = -1;
        if (interval_ms > 0) {
            uint64_t time_ns = now_ns();
            if (time_ns >= next_ns) {
                start("late", started++, late_thread);
                next_ns += (uint64_t)interval_ms * 1000000u;
                continue;
            }
            wait_ms = (int)((next_ns - time_ns) / 1000000u) + 1;
        }
        if (poll(&input, 1, wait_ms) <= 0)
            continue;
        if (!read_line(line, sizeof line, NULL))
            break;
        start_asked(started++);
    }
    atomic_store(&stopping, 1);
    while (atomic_load(&running))
        sched_yield();
    printf("done %d\n", started);
    return 0;
}
