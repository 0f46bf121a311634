/* CPU time split 70/20/10 over work_70, work_20 and work_10.
 *
 *     split [seconds [cpu]]      of real or of CPU time; without: until a signal or the end of stdin
 *
 * The unit is a slice of about 100 us.  Each round deals ten slices, seven, two and one, in an order
 * shuffled anew, so that no tick can keep step with it; the shares are exact after each round.
 * Prints "done <checksum>".
 */
#include "target.h"

#include <poll.h>
#include <signal.h>

enum { STEPS_PER_SLICE = 60000 };

static volatile sig_atomic_t stopped;

static void on_signal(int number) {
    (void)number;
    stopped = 1;
}

NAMED static uint64_t work_70(uint64_t x) { return burn(x + 70, STEPS_PER_SLICE); }
NAMED static uint64_t work_20(uint64_t x) { return burn(x + 20, STEPS_PER_SLICE); }
NAMED static uint64_t work_10(uint64_t x) { return burn(x + 10, STEPS_PER_SLICE); }

static uint64_t (*deck[10])(uint64_t) = {work_70, work_70, work_70, work_70, work_70,
                                         work_70, work_70, work_20, work_20, work_10};

NAMED static uint64_t one_round(uint64_t x) {
    for (unsigned i = 9; i > 0; i--) {
        unsigned other = (unsigned)((x >> (3 * i)) % (i + 1));
        uint64_t (*swapped)(uint64_t) = deck[i];
        deck[i] = deck[other];
        deck[other] = swapped;
    }
    for (unsigned i = 0; i < 10; i++)
        x = deck[i](x);
    KEEP_FRAME();
    return x;
}

static uint64_t time_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int stdin_ended(void) {
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    char c;
    return poll(&input, 1, 0) == 1 && read(STDIN_FILENO, &c, 1) == 0;
}

int main(int argc, char **argv) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    double seconds = argc > 1 ? atof(argv[1]) : 0;
    clockid_t clock = argc > 2 && !strcmp(argv[2], "cpu") ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC;
    uint64_t end_ns = time_ns(clock) + (uint64_t)(seconds * 1e9);
    ready();
    uint64_t x = 1;
    while (!stopped) {
        x = one_round(x);
        if (seconds > 0 ? time_ns(clock) >= end_ns : stdin_ended())
            break;
    }
    printf("done %016lx\n", (unsigned long)x);
    return 0;
}
