/* Allocates the same in every run, from some threads, and keeps a part of it: heap_kept THREADS BLOCKS.  Each thread
 * makes BLOCKS blocks of 16 to 1039 bytes, by malloc, calloc and realloc in turn, and each hundredth of 100 times that;
 * then it frees three quarters of those of the next, and resizes an eighth of its own. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

static unsigned long count;
static long threads;
static void ***blocks;
static pthread_barrier_t made, freed;

static uint64_t next(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

static void *make(unsigned long i, size_t size)
{
    return i % 3 == 0 ? malloc(size) : i % 3 == 1 ? calloc(1, size) : realloc(NULL, size);
}

static void *work(void *argument)
{
    long me = (long)argument;
    uint64_t random = (uint64_t)(me + 1) * 0x9e3779b97f4a7c15u;
    for (unsigned long i = 0; i < count; i++)
        blocks[me][i] = make(i, (16 + (next(&random) >> 40) % 1024) * (i % 100 ? 1 : 100));
    pthread_barrier_wait(&made);
    for (unsigned long i = 0; i < count; i++)
        if (i % 4)
            free(blocks[(me + 1) % threads][i]);
    pthread_barrier_wait(&freed);
    for (unsigned long i = 0; i < count; i += 8)
        blocks[me][i] = realloc(blocks[me][i], 16 + (next(&random) >> 40) % 1024);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t ids[64];
    threads = argc > 1 ? strtol(argv[1], 0, 10) : 4;
    count = argc > 2 ? strtoul(argv[2], 0, 10) : 100000;
    threads = threads < 1 ? 1 : threads > 64 ? 64 : threads;
    blocks = calloc((size_t)threads, sizeof(*blocks));
    pthread_barrier_init(&made, NULL, (unsigned)threads);
    pthread_barrier_init(&freed, NULL, (unsigned)threads);
    for (long i = 0; i < threads; i++)
        blocks[i] = calloc(count, sizeof(**blocks));
    for (long i = 0; i < threads; i++)
        pthread_create(&ids[i], NULL, work, (void *)i);
    for (long i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
    _exit(0);
}
