/* Work that is hard to attach to: all the time inside locks, loaders and fresh threads.
 *
 *     storm malloc|dlopen|threads|signals|forks|mixed [LIBRARY ...]
 *
 * The main thread is one of the four that do it.  malloc: they allocate and free, sizes and order at random,
 * contents checked.  dlopen: they load and unload libraries and call into them.  threads: threads that live for
 * a moment.  signals: a thread raises SIGUSR1 without end.  forks: children that allocate, work and end.  Runs
 * until stdin ends; prints "done <operations> <errors>".
 */
#include "target.h"

#include <dlfcn.h>
#include <signal.h>
#include <sys/wait.h>

enum { BLOCKS = 64, WORKERS = 4 };

static atomic_int stopped;
static atomic_ulong operations, errors;
static char **libraries;
static int library_count;

static uint64_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

NAMED static void *storm_malloc(void *argument) {
    uint64_t state = (uintptr_t)argument + 1;
    unsigned char *blocks[BLOCKS] = {0};
    size_t sizes[BLOCKS] = {0};
    while (!stopped) {
        unsigned i = next_random(&state) % BLOCKS;
        if (blocks[i] && (blocks[i][0] != (unsigned char)i || blocks[i][sizes[i] - 1] != (unsigned char)i))
            errors++;
        free(blocks[i]);
        sizes[i] = 1 + next_random(&state) % (next_random(&state) % 50 ? 2000 : 300000);
        blocks[i] = malloc(sizes[i]);
        if (!blocks[i])
            die("malloc");
        blocks[i][0] = blocks[i][sizes[i] - 1] = (unsigned char)i;
        operations++;
    }
    for (unsigned i = 0; i < BLOCKS; i++)
        free(blocks[i]);
    return NULL;
}

NAMED static void *storm_dlopen(void *argument) {
    uint64_t state = (uintptr_t)argument + 1;
    while (!stopped) {
        void *library = dlopen(libraries[next_random(&state) % (unsigned)library_count], RTLD_NOW);
        if (!library) {
            errors++;
            continue;
        }
        uint64_t (*work)(uint64_t) = (uint64_t(*)(uint64_t))dlsym(library, "late_work");
        if (work)
            state ^= work(state) & 1;
        if (dlclose(library))
            errors++;
        operations++;
    }
    return NULL;
}

NAMED static void *short_life(void *argument) {
    *(volatile uint64_t *)argument = burn((uintptr_t)argument, 200000);
    return NULL;
}

NAMED static void *storm_threads(void *argument) {
    (void)argument;
    while (!stopped) {
        pthread_t thread;
        uint64_t result = 0;
        if (pthread_create(&thread, NULL, short_life, &result) || pthread_join(thread, NULL) || !result)
            errors++;
        operations++;
    }
    return NULL;
}

NAMED static void *storm_forks(void *argument) {
    uint64_t expected = burn(1, 20000);
    while (!stopped) {
        int status;
        pid_t child = fork();
        if (child < 0)
            die("fork");
        if (!child) {
            void *volatile block = malloc(1000);
            free(block);
            _exit(burn(1, 20000) == expected ? 5 : 6);
        }
        if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 5)
            errors++;
        operations++;
    }
    return argument;
}

static void on_signal(int number) {
    (void)number;
    operations++;
}

NAMED static void *storm_signals(void *argument) {
    uint64_t x = (uintptr_t)argument;
    while (!stopped) {
        raise(SIGUSR1);
        x = burn(x, 100);
    }
    return NULL;
}

static void *wait_for_end(void *argument) {
    char line[8];
    while (read_line(line, sizeof(line), NULL))
        ;
    stopped = 1;
    return argument;
}

int main(int argc, char **argv) {
    const char *kind = argc > 1 ? argv[1] : "mixed";
    pthread_t threads[WORKERS];
    libraries = argv + 2;
    library_count = argc - 2;
    signal(SIGUSR1, on_signal);
    static const struct {
        const char *name;
        void *(*run)(void *);
    } kinds[] = {{"malloc", storm_malloc}, {"dlopen", storm_dlopen}, {"threads", storm_threads},
                 {"signals", storm_signals}, {"forks", storm_forks}};
    void *(*run[WORKERS])(void *);
    for (int i = 0; i < WORKERS; i++) {
        int chosen = i; /* mixed: one thread of each kind */
        for (int k = 0; k < (int)(sizeof kinds / sizeof *kinds); k++)
            if (!strcmp(kind, kinds[k].name))
                chosen = k;
        if (kinds[chosen].run == storm_dlopen && !library_count)
            chosen = 0;
        run[i] = kinds[chosen].run;
    }
    ready();
    threads[0] = start_thread("stdin", wait_for_end, NULL);
    for (int i = 1; i < WORKERS; i++)
        if (pthread_create(&threads[i], NULL, run[i], (void *)(uintptr_t)i))
            die("pthread_create");
    run[0](NULL);
    for (int i = 0; i < WORKERS; i++)
        pthread_join(threads[i], NULL);
    printf("done %lu %lu\n", (unsigned long)operations, (unsigned long)errors);
    return errors != 0;
}
