/* A thread that blocks signals and works, while the main thread sleeps in epoll_wait, where any signal that is handled
 * ends the call.
 *
 *     masked [open|now|ignored|later|cancels]
 *
 * now (the default): it blocks all it can from its begin on; open: none; ignored: now, with the C library's signal
 * ignored, as posix_spawn leaves it; later: a second of its CPU time after a line on stdin; cancels: now, and so long
 * after a line it cancels another thread, for which glibc takes a signal.
 *
 * Ends with stdin; prints "eintr N", how often the call was ended.
 */
#include "target.h"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>

static _Atomic int stopping, told;
static const char *how = "now";

NAMED static uint64_t masked_work(uint64_t x) { return burn(x, 100000); }

static double cpu_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void *idle(void *argument) {
    for (;;)
        pause();
    return argument;
}

static void after_a_second(void) {
    sigset_t all;
    if (!strcmp(how, "later")) {
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, NULL);
    } else if (!strcmp(how, "cancels")) {
        pthread_t victim = start_thread("victim", idle, NULL);
        pthread_cancel(victim);
        pthread_join(victim, NULL);
    }
}

static void *worker(void *argument) {
    uint64_t x = 1;
    double told_s = 0;
    int came = 0;
    while (!atomic_load_explicit(&stopping, memory_order_relaxed)) {
        x = masked_work(x);
        if (!told_s && atomic_load_explicit(&told, memory_order_relaxed))
            told_s = cpu_s();
        if (!came && told_s && cpu_s() > told_s + 1) {
            came = 1;
            after_a_second();
        }
    }
    return x ? argument : NULL;
}

int main(int count, char **words) {
    sigset_t all, before;
    struct epoll_event event = {.events = EPOLLIN};
    unsigned long interruptions = 0;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event))
        die("epoll");
    if (count > 1)
        how = words[1];
    if (!strcmp(how, "ignored")) {
        struct {
            void (*handler)(int);
            unsigned long flags, restorer, mask;
        } action = {SIG_IGN, 0, 0, 0};
        if (syscall(SYS_rt_sigaction, 32, &action, NULL, 8))
            die("rt_sigaction");
    }
    sigfillset(&all);
    if (!strcmp(how, "open") || !strcmp(how, "later"))
        sigemptyset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread = start_thread("masked", worker, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    char line[8];
    ready();
    do {
        while (epoll_wait(epoll, &event, 1, -1) < 0)
            interruptions++;
    } while (read_line(line, sizeof line, NULL) && (atomic_store(&told, 1), 1));
    atomic_store(&stopping, 1);
    pthread_join(thread, NULL);
    printf("eintr %lu\n", interruptions);
    return 0;
}
