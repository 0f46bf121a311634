/* All time is spent before main, in a constructor.
 *
 *     CTOR_MS=200 ctor       prints "done"
 */
#include "target.h"

static uint64_t sum;

__attribute__((constructor)) NAMED void busy_constructor(void) {
    const char *text = getenv("CTOR_MS");
    uint64_t end_ns = now_ns() + strtoul(text ? text : "200", NULL, 10) * 1000000;
    while (now_ns() < end_ns)
        sum = burn(sum + 1, 10000);
    KEEP_FRAME();
}

int main(void) {
    printf("done %016lx\n", (unsigned long)sum);
    return 0;
}
