/* Threads that live for a few ms, one after the other: shortlived THREADS MICROSECONDS
 *
 * Begins with a line on stdin; each thread uses so much CPU time in brief_work.  Prints "done" and the CPU time
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

static void *worker(void *argument) {
    volatile uint64_t x = brief_work(1);
    (void)x;
    return argument;
}

int main(int count, char **words) {
    char line[8];
    if (count < 3)
        return 2;
    each_ns = strtoul(words[2], NULL, 10) * 1000;
    ready();
    if (!read_line(line, sizeof line, NULL))
        return 0;
    uint64_t begin_ns = cpu_ns(CLOCK_PROCESS_CPUTIME_ID);
    for (long i = atol(words[1]); i > 0; i--)
        pthread_join(start_thread("brief", worker, NULL), NULL);
    printf("done %lu\n", (unsigned long)((cpu_ns(CLOCK_PROCESS_CPUTIME_ID) - begin_ns) / 1000000));
    fflush(stdout);
    wait_for_end_of_stdin();
    return 0;
}
