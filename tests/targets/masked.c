/* A thread that blocks all signals and works (masked open: it blocks none), while the main thread sleeps in epoll_wait, where any signal that is
 * handled ends the call.  Ends with stdin; prints "eintr N", how often that was so.
 */
#include "target.h"

#include <signal.h>
#include <sys/epoll.h>

static _Atomic int stopping;

NAMED static uint64_t masked_work(uint64_t x) { return burn(x, 100000); }

static void *worker(void *argument) {
    uint64_t x = 1;
    while (!atomic_load_explicit(&stopping, memory_order_relaxed))
        x = masked_work(x);
    return x ? argument : NULL;
}

int main(int count, char **words) {
    sigset_t all, before;
    struct epoll_event event = {.events = EPOLLIN};
    unsigned long interruptions = 0;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event))
        die("epoll");
    sigfillset(&all);
    if (count > 1 && !strcmp(words[1], "open"))
        sigemptyset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread = start_thread("masked", worker, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    ready();
    while (epoll_wait(epoll, &event, 1, -1) < 0)
        interruptions++;
    atomic_store(&stopping, 1);
    pthread_join(thread, NULL);
    printf("eintr %lu\n", interruptions);
    return 0;
}
