/* How long was the program held?  One thread reads the clock without a pause and records the gaps.
 *
 * A line "reset" on stdin forgets what was seen so far and answers "reset".  At the end of stdin it
 * prints one line of JSON: the number of readings, the largest gap in ns, the largest without the time
 * that the thread was ready to run and the scheduler ran others (/proc/thread-self/schedstat; a thread that
 * is held is not ready), and how many gaps were below each bound.  A second thread ("sleeper") sleeps.
 */
#include "target.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>

enum { BUCKETS = 7 };

static const uint64_t bound_ns[BUCKETS] = {1000, 10000, 100000, 1000000, 10000000, 100000000, UINT64_MAX};
static const char *const bound_name[BUCKETS] = {"1us", "10us", "100us", "1ms", "10ms", "100ms", "more"};

/* Written by the spinning thread alone, read by main after it has ended. */
static struct {
    uint64_t readings;
    uint64_t largest_ns;
    uint64_t largest_held_ns;
    uint64_t below[BUCKETS];
} seen;

static _Atomic int stopping;
static _Atomic int reset_wanted;

enum { WORTH_ASKING_NS = 5000 };

/* Nanoseconds this thread has been ready without running. */
static uint64_t waited_ns(int schedstat) {
    char text[96];
    unsigned long ran, waited = 0;
    ssize_t got = pread(schedstat, text, sizeof text - 1, 0);
    if (got <= 0)
        die("schedstat");
    text[got] = 0;
    if (sscanf(text, "%lu %lu", &ran, &waited) != 2)
        die("schedstat");
    return waited;
}

NAMED static void spin_on_clock(void) {
    int schedstat = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    if (schedstat < 0)
        die("schedstat");
    uint64_t waited_before_ns = waited_ns(schedstat);
    uint64_t before_ns = now_ns();
    while (!atomic_load_explicit(&stopping, memory_order_relaxed)) {
        if (atomic_load_explicit(&reset_wanted, memory_order_acquire)) {
            memset(&seen, 0, sizeof seen);
            atomic_store_explicit(&reset_wanted, 0, memory_order_release);
            before_ns = now_ns();
        }
        uint64_t after_ns = now_ns();
        uint64_t gap_ns = after_ns - before_ns;
        before_ns = after_ns;
        seen.readings++;
        if (gap_ns > seen.largest_ns)
            seen.largest_ns = gap_ns;
        if (gap_ns > WORTH_ASKING_NS) {
            uint64_t waited = waited_ns(schedstat), ready_ns = waited - waited_before_ns;
            uint64_t held_ns = gap_ns > ready_ns ? gap_ns - ready_ns : 0;
            if (held_ns > seen.largest_held_ns)
                seen.largest_held_ns = held_ns;
            waited_before_ns = waited;
            before_ns = now_ns();
        }
        unsigned bucket = 0;
        while (gap_ns >= bound_ns[bucket])
            bucket++;
        seen.below[bucket]++;
    }
}

static void *spinner(void *argument) {
    spin_on_clock();
    KEEP_FRAME();
    return argument;
}

static void *sleeper(void *argument) {
    struct timespec long_time = {.tv_sec = 86400};
    while (!atomic_load(&stopping))
        nanosleep(&long_time, NULL); /* main does not wait for this one to end */
    return argument;
}

int main(void) {
    pthread_t spinning = start_thread("spinner", spinner, NULL);
    pthread_t sleeping = start_thread("sleeper", sleeper, NULL);
    pthread_detach(sleeping);
    ready();

    char line[64];
    while (read_line(line, sizeof line, NULL)) {
        if (strcmp(line, "reset") != 0)
            continue;
        atomic_store_explicit(&reset_wanted, 1, memory_order_release);
        while (atomic_load_explicit(&reset_wanted, memory_order_acquire))
            sched_yield();
        puts("reset");
        fflush(stdout);
    }
    atomic_store(&stopping, 1);
    pthread_join(spinning, NULL);

    printf("{\"readings\": %lu, \"largest_gap_ns\": %lu, \"largest_held_ns\": %lu, \"gaps_below\": {",
           (unsigned long)seen.readings, (unsigned long)seen.largest_ns, (unsigned long)seen.largest_held_ns);
    for (unsigned i = 0; i < BUCKETS; i++)
        printf("%s\"%s\": %lu", i ? ", " : "", bound_name[i], (unsigned long)seen.below[i]);
    puts("}}");
    return 0;
}
