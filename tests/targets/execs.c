/* Executes itself again and again, each time after some work: execs TIMES [milliseconds of work].
 *
 * Prints "ready" before the first, and "done" at the end of the last image. */
#include "target.h"

NAMED static uint64_t work_between_execs(uint64_t x) { return burn(x, 10000); }

int main(int count, char **words) {
    long left = count > 1 ? atol(words[1]) : 0;
    uint64_t end_ns = now_ns() + (count > 2 ? (uint64_t)atol(words[2]) * 1000000u : 1000000u), x = 1;
    char text[32];
    if (count < 4)
        ready();
    while (now_ns() < end_ns)
        x = work_between_execs(x);
    if (left <= 0) {
        puts("done");
        return x == 0;
    }
    snprintf(text, sizeof text, "%ld", left - 1);
    execl("/proc/self/exe", words[0], text, count > 2 ? words[2] : "1", "again", (char *)NULL);
    die("execl");
}
