/* All time is spent before main, in a constructor.
 *
 *     CTOR_MS=200 ctor       so many milliseconds of CPU time; prints "done"
 */
#include "target.h"

static uint64_t sum;

__attribute__((constructor)) NAMED void busy_constructor(void) {
    const char *text = getenv("CTOR_MS");
    clock_t end = clock() + (clock_t)strtoul(text ? text : "200", NULL, 10) * (CLOCKS_PER_SEC / 1000);
    while (clock() < end)
        sum = burn(sum + 1, 10000);
    KEEP_FRAME();
}

int main(void) {
    printf("done %016lx\n", (unsigned long)sum);
    return 0;
}
