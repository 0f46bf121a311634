/* Four threads replace blocks of many sizes until stdin ends, and hand every tenth to the next thread to free. */
#include "target.h"

#define THREADS 4
#define BLOCKS 2000

static atomic_int over;
static atomic_ulong rounds;
static _Atomic(void *) handed[THREADS];

static void *storm(void *argument) {
    long me = (long)argument;
    uint64_t x = 88172645463325252u + (uint64_t)me;
    unsigned char *blocks[BLOCKS] = {0};
    while (!atomic_load_explicit(&over, memory_order_relaxed)) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        unsigned char **at = &blocks[x % BLOCKS];
        size_t size = 16 + (x >> 32) % 3000;
        if (*at && **at != (unsigned char)me)
            die("a block has changed");
        if (x >> 60 == 0)
            free(atomic_exchange(&handed[(me + 1) % THREADS], *at)), *at = NULL;
        else if (x >> 60 == 1)
            *at = realloc(*at, size);
        else
            free(*at), *at = malloc(size);
        if (*at)
            **at = (unsigned char)me;
        rounds++;
    }
    for (int i = 0; i < BLOCKS; i++)
        free(blocks[i]);
    return NULL;
}

int main(void) {
    pthread_t ids[THREADS];
    for (long i = 0; i < THREADS; i++)
        ids[i] = start_thread("storm", storm, (void *)i);
    ready();
    wait_for_end_of_stdin();
    over = 1;
    for (int i = 0; i < THREADS; i++)
        pthread_join(ids[i], NULL);
    printf("%lu rounds\n", atomic_load(&rounds));
    return 0;
}
