/* Allocates and frees as fast as it can: heap_storm THREADS LIVE ROUNDS.  Each thread keeps LIVE / THREADS blocks of
 * 16 to 1039 bytes and replaces one by chance in each round; LIVE 0: malloc and free of 64 bytes, nothing else.
 * Prints the nanoseconds of a pair. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static unsigned long live, rounds;

static uint64_t next(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

__attribute__((noinline)) static void *make(uint64_t random)
{
    char *block = malloc(16 + (random >> 40) % 1024);
    block[0] = 1;
    return block;
}

static void *storm(void *argument)
{
    uint64_t random = (uint64_t)(uintptr_t)argument * 0x9e3779b97f4a7c15u + 1;
    void **blocks = calloc(live, sizeof(*blocks));
    for (unsigned long i = 0; i < rounds; i++) {
        void **at = &blocks[next(&random) % live];
        free(*at);
        *at = make(random);
    }
    for (unsigned long i = 0; i < live; i++)
        free(blocks[i]);
    free(blocks);
    return 0;
}

static void *tight(void *argument)
{
    for (unsigned long i = 0; i < rounds; i++) {
        void *block = malloc(64);
        __asm__ volatile("" : : "r"(block) : "memory");
        free(block);
    }
    return argument;
}

int main(int argc, char **argv)
{
    unsigned long threads = argc > 1 ? strtoul(argv[1], 0, 10) : 1;
    live = (argc > 2 ? strtoul(argv[2], 0, 10) : 100000) / threads;
    rounds = argc > 3 ? strtoul(argv[3], 0, 10) : 1000000;
    struct timespec begin, end;
    pthread_t ids[64];
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (unsigned long i = 1; i < threads && i < 64; i++)
        pthread_create(&ids[i], 0, live ? storm : tight, (void *)(i + 1));
    (live ? storm : tight)((void *)1);
    for (unsigned long i = 1; i < threads && i < 64; i++)
        pthread_join(ids[i], 0);
    clock_gettime(CLOCK_MONOTONIC, &end);
    double ns = (double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec);
    printf("%.1f ns a pair\n", ns / (double)rounds);
    return 0;
}
