/* A program that uses SIGPROF for itself.
 *
 * It works, and after each slice of about 1 ms sends SIGPROF to its own thread.  When stdin ends it
 * prints
 *
 *     raised N       how many it sent
 *     handled N      how many of those its handler saw
 *     foreign N      how many SIGPROF its handler saw that it had not sent
 *
 * SIGPROF does not queue: one sent while a profiler's tick is pending on the thread is merged with
 * it.  So under a profiler handled may be a little below raised; foreign must be 0.
 */
#include "target.h"

#include <poll.h>
#include <signal.h>

static volatile sig_atomic_t handled, foreign;

static void on_sigprof(int number, siginfo_t *info, void *context) {
    (void)number;
    (void)context;
    if (info->si_code == SI_TKILL && info->si_pid == getpid())
        handled++;
    else
        foreign++;
}

NAMED static uint64_t work_between_signals(uint64_t x) { return burn(x, 600000); }

int main(void) {
    struct sigaction action = {.sa_sigaction = on_sigprof, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGPROF, &action, NULL);
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    unsigned long raised = 0;
    uint64_t x = 1;
    ready();
    do {
        x = work_between_signals(x);
        pthread_kill(pthread_self(), SIGPROF);
        raised++;
    } while (poll(&input, 1, 0) <= 0);

    struct sigaction now;
    sigaction(SIGPROF, NULL, &now);
    printf("raised %lu\nhandled %d\nforeign %d\nhandler %s\ndone %016lx\n", raised, (int)handled, (int)foreign,
           now.sa_sigaction == on_sigprof ? "mine" : "replaced", (unsigned long)x);
    return 0;
}
