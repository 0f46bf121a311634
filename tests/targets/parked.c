/* A thread parked in a read, deep in a stack whose return addresses it knows.
 *
 *     parked [levels]     default 200
 *
 * Each level keeps PAGE bytes or so on the stack.  Once ready it prints "returns", and the return addresses
 * of all levels and of main, innermost first.  Ends when stdin does.
 */
#include "target.h"

enum { MAX_LEVELS = 1000, PAGE = 4096 };

static void *returns[MAX_LEVELS + 2];
static int count;

NAMED static void park(void) {
    returns[count++] = __builtin_return_address(0);
    ready();
    printf("returns");
    for (int i = count; i--;)
        printf(" %p", returns[i]);
    puts("");
    fflush(stdout);
    wait_for_end_of_stdin();
    KEEP_FRAME();
}

NAMED static int descend(int left) {
    volatile char room[PAGE];
    room[(unsigned)left % PAGE] = 1;
    returns[count++] = __builtin_return_address(0);
    if (left > 1)
        descend(left - 1);
    else
        park();
    KEEP_FRAME();
    return room[(unsigned)left % PAGE];
}

int main(int argc, char **argv) {
    int levels = argc > 1 ? atoi(argv[1]) : 200;
    if (levels < 1 || levels > MAX_LEVELS)
        return 2;
    returns[count++] = __builtin_return_address(0);
    return descend(levels) == 1 ? 0 : 1;
}
