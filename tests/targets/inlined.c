/* Spends its time three inlined calls deep, each on a line of its own; runs until stdin ends. */
#include "target.h"

#include <poll.h>

static inline __attribute__((always_inline)) uint64_t innermost(uint64_t x) {
    for (int i = 0; i < 20000; i++)
        x = x * 6364136223846793005u + 1442695040888963407u;
    return x;
}

static inline __attribute__((always_inline)) uint64_t middle(uint64_t x) {
    x ^= x >> 7;
    return innermost(x);
}

static inline __attribute__((always_inline)) uint64_t outer(uint64_t x) {
    if (x & 1)
        x = middle(x);
    return middle(x + 1);
}

NAMED static uint64_t calls_inlined(uint64_t x) {
    x = outer(x);
    KEEP_FRAME();
    return x;
}

int main(void) {
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    uint64_t x = 1;
    ready();
    while (poll(&input, 1, 0) <= 0)
        x = calls_inlined(x);
    printf("done %d\n", x != 0);
    return 0;
}
