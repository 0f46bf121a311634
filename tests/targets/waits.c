/* Threads that wait in libc's calls, each in a function named after its thread.
 *
 * Their names: sleep, futex, cond, epoll, poll, read; the main thread reads stdin.  Ends when stdin does;
 * prints "eintr N", the interruptions that all of them saw, "short N", the sleeps that came back early, and
 * "sleeps N", how many there were.
 */
#include "target.h"

#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/syscall.h>

enum { SLEEP_MS = 50 };

static _Atomic unsigned long interruptions, short_sleeps, sleeps;
static _Atomic int set_up;
static int pipe_fds[2];

static void note(long result, int error) {
    if (result < 0 && error == EINTR)
        atomic_fetch_add(&interruptions, 1);
}

NAMED static void wait_in_sleep(void) {
    struct timespec time = {.tv_nsec = SLEEP_MS * 1000000};
    uint64_t begun = now_ns();
    int error = clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
    note(error ? -1 : 0, error);
    atomic_fetch_add(&sleeps, 1);
    atomic_fetch_add(&short_sleeps, now_ns() - begun < SLEEP_MS * 1000000u);
}

NAMED static void wait_in_futex(void) {
    static int word;
    note(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0), errno);
}

NAMED static void wait_in_cond(void) {
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
    pthread_mutex_lock(&mutex);
    pthread_cond_wait(&never, &mutex);
    pthread_mutex_unlock(&mutex);
    KEEP_FRAME();
}

NAMED static void wait_in_epoll(void) {
    static int epoll_fd;
    struct epoll_event event;
    if (!epoll_fd)
        epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    note(epoll_wait(epoll_fd, &event, 1, -1), errno);
}

NAMED static void wait_in_poll(void) {
    struct pollfd poll_fd = {.fd = pipe_fds[0], .events = POLLIN};
    note(poll(&poll_fd, 1, -1), errno);
}

NAMED static void wait_in_read(void) {
    char c;
    note(read(pipe_fds[0], &c, 1), errno);
}

struct kind {
    const char *name;
    void (*wait)(void);
};

static void *waiting_thread(void *argument) {
    struct kind *self = argument;
    atomic_fetch_add(&set_up, 1);
    for (;;) {
        self->wait();
        KEEP_FRAME();
    }
    return NULL;
}

int main(void) {
    static struct kind kinds[] = {{"sleep", wait_in_sleep}, {"futex", wait_in_futex}, {"cond", wait_in_cond},
                                  {"epoll", wait_in_epoll}, {"poll", wait_in_poll},   {"read", wait_in_read}};
    const int count = sizeof kinds / sizeof kinds[0];
    if (pipe(pipe_fds))
        die("pipe");
    for (int i = 0; i < count; i++)
        start_thread(kinds[i].name, waiting_thread, &kinds[i]);
    while (atomic_load(&set_up) < count)
        sched_yield();
    ready();

    char line[64];
    unsigned long read_interruptions = 0;
    while (read_line(line, sizeof line, &read_interruptions))
        ;
    printf("eintr %lu\nshort %lu\nsleeps %lu\ndone\n", atomic_load(&interruptions) + read_interruptions,
           atomic_load(&short_sleeps), atomic_load(&sleeps));
    fflush(stdout);
    _exit(0);
}
