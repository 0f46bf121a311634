/* Busy threads and threads blocked in the calls that a stop may interrupt.
 *
 *     threads [busy] [blocked]     default 2 3; blocked ones take turns: futex, nanosleep, epoll
 *
 * Their names are busy-0, futex-0, nanosleep-1, epoll-2, ...  Ends when stdin does; prints "eintr N",
 * the interruptions that the blocked threads and the reading main thread saw, and "done".
 */
#include "target.h"

#include <linux/futex.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>

enum { MAX_THREADS = 1024, NEVER_S = 86400 };

static _Atomic int stopping;
static _Atomic int set_up;
static _Atomic unsigned long interruptions;
static _Atomic uint64_t sink;

struct blocked {
    long (*call)(void);
    _Atomic int ended;
};

static void ignore_wake_up(int number) { (void)number; }

NAMED static uint64_t busy_work(uint64_t x) { return burn(x, 100000); }

static void *busy_thread(void *argument) {
    uint64_t x = (uint64_t)(uintptr_t)argument;
    atomic_fetch_add(&set_up, 1);
    while (!atomic_load_explicit(&stopping, memory_order_relaxed))
        x = busy_work(x);
    atomic_fetch_xor(&sink, x);
    return NULL;
}

/* Raw calls: glibc's wrappers hide an EINTR here and there. */
NAMED static long block_in_futex(void) {
    static int word;
    return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}

NAMED static long block_in_nanosleep(void) {
    struct timespec long_time = {.tv_sec = NEVER_S};
    return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &long_time, NULL);
}

NAMED static long block_in_epoll(void) {
    static _Thread_local int epoll_fd = -1;
    struct epoll_event event;
    if (epoll_fd < 0 && (epoll_fd = epoll_create1(EPOLL_CLOEXEC)) < 0)
        die("epoll_create1");
    return syscall(SYS_epoll_pwait, epoll_fd, &event, 1, -1, NULL, 0);
}

static void *blocked_thread(void *argument) {
    struct blocked *self = argument;
    atomic_fetch_add(&set_up, 1);
    while (!atomic_load(&stopping))
        if (self->call() < 0 && errno == EINTR && !atomic_load(&stopping))
            atomic_fetch_add(&interruptions, 1);
    atomic_store(&self->ended, 1);
    return NULL;
}

/* A signal that comes just before the thread enters its call is lost, so it is sent until heard. */
static void wake_until_ended(pthread_t thread, struct blocked *blocked) {
    struct timespec pause = {.tv_nsec = 1000000};
    while (!atomic_load(&blocked->ended)) {
        pthread_kill(thread, SIGUSR2);
        nanosleep(&pause, NULL);
    }
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        long (*call)(void);
    } kinds[] = {{"futex", block_in_futex}, {"nanosleep", block_in_nanosleep}, {"epoll", block_in_epoll}};
    static pthread_t threads[MAX_THREADS];
    static struct blocked blocked[MAX_THREADS];
    int busy_count = argc > 1 ? atoi(argv[1]) : 2;
    int blocked_count = argc > 2 ? atoi(argv[2]) : 3;
    int count = busy_count + blocked_count;
    if (busy_count < 0 || blocked_count < 0 || count > MAX_THREADS)
        return 2;

    struct sigaction action = {.sa_handler = ignore_wake_up};
    sigaction(SIGUSR2, &action, NULL);

    char name[16];
    for (int i = 0; i < busy_count; i++) {
        snprintf(name, sizeof name, "busy-%d", i);
        threads[i] = start_thread(name, busy_thread, (void *)(uintptr_t)(i + 1));
    }
    for (int i = 0; i < blocked_count; i++) {
        blocked[i].call = kinds[i % 3].call;
        snprintf(name, sizeof name, "%s-%d", kinds[i % 3].name, i);
        threads[busy_count + i] = start_thread(name, blocked_thread, &blocked[i]);
    }
    while (atomic_load(&set_up) < count)
        sched_yield();
    ready();

    char line[64];
    unsigned long read_interruptions = 0;
    while (read_line(line, sizeof line, &read_interruptions))
        ;
    atomic_store(&stopping, 1);
    for (int i = 0; i < blocked_count; i++)
        wake_until_ended(threads[busy_count + i], &blocked[i]);
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    printf("eintr %lu\ndone\n", atomic_load(&interruptions) + read_interruptions);
    return 0;
}
