/* Handles SIGUSR1 for a long time: argv[2] milliseconds, "busy" or "asleep" (argv[1]); with argv[3] "own" on a
 * stack of its own; with argv[4] also SIGALRM, every so many microseconds.  Works until stdin ends, then prints
 * how many SIGUSR1 it has handled. */
#include "target.h"

#include <poll.h>
#include <signal.h>
#include <sys/time.h>

static volatile sig_atomic_t handled;
static uint64_t takes_ns;
static int sleeps;

static void on_signal(int number) {
    uint64_t end = now_ns() + takes_ns, now;
    while ((now = now_ns()) < end) {
        struct timespec left = {.tv_sec = (time_t)((end - now) / 1000000000u), .tv_nsec = (long)((end - now) % 1000000000u)};
        if (sleeps)
            nanosleep(&left, NULL);
    }
    handled += number == SIGUSR1;
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    sleeps = !strcmp(argv[1], "asleep");
    takes_ns = (uint64_t)atoi(argv[2]) * 1000000u;
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    if (argc > 3 && !strcmp(argv[3], "own")) {
        stack_t own = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
        if (sigaltstack(&own, NULL))
            die("sigaltstack");
        action.sa_flags |= SA_ONSTACK;
    }
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGALRM, &action, NULL);
    if (argc > 4) {
        struct timeval every = {.tv_usec = atoi(argv[4])};
        setitimer(ITIMER_REAL, &(struct itimerval){every, every}, NULL);
    }
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    uint64_t x = 1;
    ready();
    while (poll(&input, 1, 0) <= 0)
        x = burn(x, 100000);
    printf("done %d\n", handled + !x);
    return 0;
}
