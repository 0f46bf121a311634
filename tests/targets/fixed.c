/* The same work each time: fixed STEPS
 *
 * Begins with a line on stdin; prints "done" and the CPU time and the time that it took, us; waits for the end of
 * stdin.
 */
#include "target.h"

static uint64_t cpu_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

NAMED static uint64_t fixed_work(unsigned long steps) { return burn(1, steps); }

int main(int count, char **words) {
    char line[8];
    if (count < 2)
        return 2;
    ready();
    if (!read_line(line, sizeof line, NULL))
        return 0;
    uint64_t cpu = cpu_ns(), begin = now_ns();
    volatile uint64_t x = fixed_work(strtoul(words[1], NULL, 10));
    (void)x;
    printf("done %lu %lu\n", (unsigned long)(cpu_ns() - cpu) / 1000, (unsigned long)(now_ns() - begin) / 1000);
    fflush(stdout);
    wait_for_end_of_stdin();
    return 0;
}
