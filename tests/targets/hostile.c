/* Writes nonsense into what a profiler shares with it, and works.
 *
 *     hostile all|head|control|slots|ring [SEED]
 *
 * all: any word; head: where the ring's ends are told, and around; control: the first page; slots: the next eight
 * pages; ring: the second half.  Once a mapping of "memfd:pyattach-" that can be written is found, a word of it is
 * overwritten after each piece of work.  Ends when stdin does; prints "done <words overwritten>".
 */
#include "target.h"

#include <poll.h>

static uint64_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 20;
}

static uint64_t wild(uint64_t *state) {
    static const uint64_t words[] = {0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1ull << 47, 1ull << 63, UINT64_MAX};
    uint64_t x = next_random(state);
    return x & 1 ? words[x >> 1 & 7] : x << 24 ^ next_random(state);
}

static volatile uint64_t *find_shared(size_t *words) {
    char line[512];
    volatile uint64_t *found = NULL;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long start, end;
        char permissions[8];
        if (strstr(line, "memfd:pyattach-") && sscanf(line, "%lx-%lx %7s", &start, &end, permissions) == 3 &&
            !strcmp(permissions, "rw-s") && end - start > 65536) {
            found = (volatile uint64_t *)start;
            *words = (end - start) / 8;
        }
    }
    if (maps)
        fclose(maps);
    return found;
}

NAMED static uint64_t hostile_work(uint64_t x) { return burn(x, 20000); }

int main(int argc, char **argv) {
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    const char *where = argc > 1 ? argv[1] : "all";
    uint64_t state = argc > 2 ? (uint64_t)atoi(argv[2]) : 1, x = 1;
    unsigned long written = 0;
    ready();
    for (unsigned turn = 0; poll(&input, 1, 0) <= 0; turn++) {
        x = hostile_work(x);
        size_t words = 0, first = 0, count;
        volatile uint64_t *shared = turn % 16 ? NULL : find_shared(&words);
        if (!shared)
            continue;
        count = words;
        if (!strcmp(where, "control") || !strcmp(where, "head"))
            count = 512;
        else if (!strcmp(where, "slots"))
            first = 512, count = 4096;
        else if (!strcmp(where, "ring"))
            first = count = words / 2;
        for (int i = 0; i < 64; i++, written++)
            shared[(first + next_random(&state) % count) % words] = wild(&state);
    }
    printf("done %lu\n", written);
    return x == 0;
}
