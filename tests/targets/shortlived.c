/* Threads that live for a few ms: shortlived THREADS MICROSECONDS [AT_ONCE [BUSY_MS]]
 *
 * Begins with a line on stdin; the main thread uses BUSY_MS of CPU time in busy_before, then each thread uses so much CPU time in brief_work.  Prints "done" and the CPU time
 * of the process since then, in ms, and waits for the end of stdin.
 */
#include "target.h"

static uint64_t each_ns;

static uint64_t cpu_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

NAMED static uint64_t brief_work(uint64_t x) {
    while (cpu_ns(CLOCK_THREAD_CPUTIME_ID) < each_ns)
        x = burn(x, 500);
    return x;
}

NAMED static uint64_t busy_before(uint64_t x, uint64_t until_ns) {
    while (cpu_ns(CLOCK_THREAD_CPUTIME_ID) < until_ns)
        x = burn(x, 500);
    return x;
}

static void *worker(void *argument) {
    volatile uint64_t x = brief_work(1);
    (void)x;
    return argument;
}

int main(int count, char **words) {
    char line[8];
    if (count < 3)
        return 2;
    pthread_t threads[64];
    each_ns = strtoul(words[2], NULL, 10) * 1000;
    long wanted = atol(words[1]), at_once = count > 3 ? atol(words[3]) : 1;
    if (at_once < 1 || at_once > 64)
        return 2;
    ready();
    if (!read_line(line, sizeof line, NULL))
        return 0;
    uint64_t begin_ns = cpu_ns(CLOCK_PROCESS_CPUTIME_ID);
    if (count > 4) {
        volatile uint64_t x = busy_before(1, cpu_ns(CLOCK_THREAD_CPUTIME_ID) + strtoul(words[4], NULL, 10) * 1000000);
        (void)x;
    }
    for (long i = 0; i < wanted + at_once; i++) {
        if (i >= at_once && i - at_once < wanted)
            pthread_join(threads[i % at_once], NULL);
        if (i < wanted)
            threads[i % at_once] = start_thread("brief", worker, NULL);
    }
    printf("done %lu\n", (unsigned long)((cpu_ns(CLOCK_PROCESS_CPUTIME_ID) - begin_ns) / 1000000));
    fflush(stdout);
    wait_for_end_of_stdin();
    return 0;
}
