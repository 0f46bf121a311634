/* Threads that each use a given CPU time and end: workers STAGGER_MS CPU_MS...
 *
 * Begins with a line on stdin.  Each thread starts so many ms after the one before it; their names are worker-0,
 * worker-1, ...  Prints "done" and the CPU time that each has really used, in us; waits for the end of stdin.
 */
#include "target.h"

enum { MOST = 64 };

static struct {
    uint64_t wanted_ns, used_ns;
} work[MOST];

static uint64_t cpu_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

NAMED static uint64_t use_cpu(uint64_t x, uint64_t until_ns) {
    while (cpu_ns() < until_ns)
        x = burn(x, 2000);
    return x;
}

static void *worker(void *argument) {
    long index = (long)(intptr_t)argument;
    volatile uint64_t x = use_cpu((uint64_t)index, work[index].wanted_ns);
    (void)x;
    work[index].used_ns = cpu_ns();
    return NULL;
}

int main(int count, char **words) {
    pthread_t threads[MOST];
    char line[8], name[16];
    int wanted = count - 2;
    if (wanted < 1 || wanted > MOST)
        return 2;
    long stagger_ms = atol(words[1]);
    struct timespec stagger = {stagger_ms / 1000, stagger_ms % 1000 * 1000000};
    for (int i = 0; i < wanted; i++)
        work[i].wanted_ns = strtoul(words[i + 2], NULL, 10) * 1000000;
    ready();
    if (!read_line(line, sizeof line, NULL))
        return 0;
    for (int i = 0; i < wanted; i++) {
        if (i && stagger_ms)
            nanosleep(&stagger, NULL);
        snprintf(name, sizeof name, "worker-%d", i);
        threads[i] = start_thread(name, worker, (void *)(intptr_t)i);
    }
    for (int i = 0; i < wanted; i++)
        pthread_join(threads[i], NULL);
    printf("done");
    for (int i = 0; i < wanted; i++)
        printf(" %lu", (unsigned long)(work[i].used_ns / 1000));
    printf("\n");
    fflush(stdout);
    wait_for_end_of_stdin();
    return 0;
}
