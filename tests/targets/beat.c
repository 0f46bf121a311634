/* CPU time split 70/20/10 over beat_70, beat_20 and beat_10, in a beat: beat MICROSECONDS [threads]
 *
 * Each beat of so many us of the thread's CPU time is 70% the first, 20% the second, 10% the third, in this
 * order.  A sampler that ticks in step with the beat always meets the same one.
 */
#include "target.h"

static uint64_t beat_ns;
static _Atomic int stopping;

static uint64_t cpu_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline __attribute__((always_inline)) uint64_t until(uint64_t x, uint64_t end_ns) {
    while (cpu_ns() < end_ns)
        x = burn(x, 500);
    return x;
}

NAMED static uint64_t beat_70(uint64_t x, uint64_t end_ns) { return until(x, end_ns); }
NAMED static uint64_t beat_20(uint64_t x, uint64_t end_ns) { return until(x, end_ns); }
NAMED static uint64_t beat_10(uint64_t x, uint64_t end_ns) { return until(x, end_ns); }

static void *worker(void *argument) {
    uint64_t x = 1, begin_ns = cpu_ns();
    while (!atomic_load_explicit(&stopping, memory_order_relaxed)) {
        x = beat_70(x, begin_ns + beat_ns * 7 / 10);
        x = beat_20(x, begin_ns + beat_ns * 9 / 10);
        x = beat_10(x, begin_ns + beat_ns);
        begin_ns += beat_ns;
    }
    KEEP_FRAME();
    return argument;
}

int main(int count, char **words) {
    pthread_t threads[64];
    int wanted = count > 2 ? atoi(words[2]) : 1;
    beat_ns = count > 1 ? strtoul(words[1], NULL, 10) * 1000 : 4000000;
    if (!beat_ns || wanted < 1 || wanted > 64)
        die("beat MICROSECONDS [threads]");
    for (int i = 0; i < wanted; i++)
        threads[i] = start_thread("beat", worker, NULL);
    ready();
    wait_for_end_of_stdin();
    atomic_store(&stopping, 1);
    for (int i = 0; i < wanted; i++)
        pthread_join(threads[i], NULL);
    return 0;
}
