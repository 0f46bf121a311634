/* A deep stack: recurse calls itself, at its end deep_leaf burns CPU.
 *
 *     recurse [depth]     default 200: so many frames of recurse above main
 *
 * Ends when stdin does, "done".
 */
#include "target.h"

#include <poll.h>

NAMED static uint64_t deep_leaf(uint64_t x) { return burn(x, 50000); }

NAMED static uint64_t recurse(int depth, uint64_t x) {
    x = depth > 1 ? recurse(depth - 1, x) : deep_leaf(x);
    KEEP_FRAME();
    return x + 1;
}

int main(int argc, char **argv) {
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    int depth = argc > 1 ? atoi(argv[1]) : 200;
    uint64_t x = 1;
    ready();
    do
        x = recurse(depth, x);
    while (poll(&input, 1, 0) <= 0);
    printf("done %016lx\n", (unsigned long)x);
    return 0;
}
