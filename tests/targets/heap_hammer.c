/* Four threads call the allocator by addresses taken before, with few sizes, until stdin ends; what they have written
 * to a block must be there when it is freed. */
#include "target.h"

#define THREADS 4
#define BLOCKS 16

static void *(*volatile allocate)(size_t);
static void *(*volatile zeroed)(size_t, size_t);
static void *(*volatile resize)(void *, size_t);
static void (*volatile release)(void *);
static atomic_int over;
static atomic_ulong rounds;

static void *hammer(void *argument) {
    unsigned char me = (unsigned char)(long)argument;
    unsigned char *blocks[BLOCKS] = {0};
    for (unsigned long i = 0; !atomic_load_explicit(&over, memory_order_relaxed); i++) {
        unsigned char **at = &blocks[i % BLOCKS];
        if (*at && (at[0][0] != me || at[0][50] != me))
            die("a block has changed");
        if (i % 3 == 0)
            *at = resize(*at, 101);
        else
            release(*at), *at = i % 3 == 1 ? allocate(101) : zeroed(1, 101);
        if (i % 3 == 2 && at[0][100])
            die("a block of calloc's is not zeroed");
        at[0][0] = at[0][50] = me;
        atomic_fetch_add_explicit(&rounds, 1, memory_order_relaxed);
    }
    for (int i = 0; i < BLOCKS; i++)
        release(blocks[i]);
    return NULL;
}

int main(void) {
    pthread_t ids[THREADS];
    allocate = malloc, zeroed = calloc, resize = realloc, release = free;
    for (long i = 0; i < THREADS; i++)
        ids[i] = start_thread("hammer", hammer, (void *)(i + 1));
    ready();
    wait_for_end_of_stdin();
    over = 1;
    for (int i = 0; i < THREADS; i++)
        pthread_join(ids[i], NULL);
    printf("%lu rounds\n", atomic_load(&rounds));
    return 0;
}
