/* Becomes itself again and again, and forks.
 *
 *     execs <execs> [milliseconds]   so many times execve, using so much CPU time (default 2) in between
 *     execs -f <forks>               so many times fork; each child works a little and exits
 *     execs -t <execs>               so many times execve by a thread that is not the first
 *
 * Begins with a line on stdin; prints "done" at the end of all, or "died <status>" of a child.
 */
#include "target.h"

#include <sys/wait.h>

static volatile uint64_t sink;

NAMED static uint64_t work_between(uint64_t x) { return burn(x, 20000); }

static uint64_t cpu_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Of CPU time: what there is to be sampled does not depend on what else the machine does. */
static void work_ms(int milliseconds) {
    uint64_t end_ns = cpu_ns() + (uint64_t)milliseconds * 1000000u;
    while (cpu_ns() < end_ns)
        sink = work_between(sink);
}

static void forks(int count) {
    for (int i = 0; i < count; i++) {
        int status;
        pid_t child = fork();
        if (child < 0)
            die("fork");
        if (!child) {
            sink = work_between(sink);
            _exit(0);
        }
        if (waitpid(child, &status, 0) != child || status) {
            printf("died %x\n", (unsigned)status);
            exit(1);
        }
    }
}

static void *become_again(void *left) {
    char *next[] = {"execs", "-t", left, "again", NULL};
    execv("/proc/self/exe", next);
    die("execv");
    return NULL;
}

int main(int argc, char **argv) {
    char left[16], line[8];
    if (argc < 2)
        return 2;
    if (argc < 4) {
        ready();
        read_line(line, sizeof line, NULL);
    }
    if (!strcmp(argv[1], "-f")) {
        forks(atoi(argv[2]));
    } else if (!strcmp(argv[1], "-t")) {
        if (atoi(argv[2]) > 0) {
            snprintf(left, sizeof left, "%d", atoi(argv[2]) - 1);
            pthread_join(start_thread("next", become_again, left), NULL);
        }
    } else if (atoi(argv[1]) > 0) {
        char *pause = argc > 2 ? argv[2] : "2";
        work_ms(atoi(pause));
        snprintf(left, sizeof left, "%d", atoi(argv[1]) - 1);
        char *next[] = {argv[0], left, pause, "again", NULL};
        execv("/proc/self/exe", next);
        die("execv");
    }
    puts("done");
    fflush(stdout);
    if (argc >= 4)
        wait_for_end_of_stdin();
    return 0;
}
