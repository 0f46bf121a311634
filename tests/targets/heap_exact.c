/* Allocates by every function there is, from threads, and keeps the books itself: heap_exact REPORT MODE [LIBRARY].
 *
 * Each allocating function below is a site of its own.  The report has "site NAME ALLOCS BYTES LIVE LIVEBYTES
 * TEMPORARY" and "block ADDRESS SIZE" lines; it is written before the end, which MODE chooses: exit, _exit, crash,
 * fork (a child frees and allocates meanwhile), dlopen (the library allocates too).  "attach" waits for a line of
 * stdin before the work and another after it.  Books are kept in static memory, under a lock; the blocks that are
 * kept until the end are in them. */
#include "target.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <sys/wait.h>

#define THREADS 7
#define BLOCKS 40000

enum { MALLOC, CALLOC, REALLOC_NEW, REALLOC_GROWN, REALLOCARRAY, POSIX, ALIGNED, MEMALIGN, VALLOC, PVALLOC, THREAD,
       STRDUP, LATE, OLD, SITES };
static const char *const names[SITES] = {"by_malloc", "by_calloc", "by_realloc_new", "by_realloc_grown",
    "by_reallocarray", "by_posix_memalign", "by_aligned_alloc", "by_memalign", "by_valloc", "by_pvalloc",
    "by_thread", "by_strdup", "late_alloc", "by_old"};

static struct { unsigned long allocs, bytes, live, live_bytes, temporary; } books[SITES];
static struct { void *at; size_t size; int site; } blocks[BLOCKS];
static int used;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void *(*library_alloc)(size_t);

static int booked(void *block, size_t size, int site) {
    pthread_mutex_lock(&lock);
    books[site].allocs++;
    books[site].bytes += size;
    books[site].live++;
    books[site].live_bytes += size;
    int i = used++;
    blocks[i].at = block;
    blocks[i].size = size;
    blocks[i].site = site;
    pthread_mutex_unlock(&lock);
    return i;
}

static void *unbooked(int i) {
    pthread_mutex_lock(&lock);
    void *block = blocks[i].at;
    books[blocks[i].site].live--;
    books[blocks[i].site].live_bytes -= blocks[i].size;
    blocks[i].at = NULL;
    pthread_mutex_unlock(&lock);
    return block;
}

static void release(int i) { free(unbooked(i)); }

#define SITE(name, number, call)                                                                      \
    NAMED static int name(size_t size) {                                                              \
        void *block = call;                                                                           \
        KEEP_FRAME();                                                                                 \
        return booked(block, size, number);                                                           \
    }
SITE(by_malloc, MALLOC, malloc(size))
SITE(by_calloc, CALLOC, calloc(1, size))
SITE(by_realloc_new, REALLOC_NEW, realloc(NULL, size))
SITE(by_reallocarray, REALLOCARRAY, reallocarray(NULL, 1, size))
SITE(by_aligned_alloc, ALIGNED, aligned_alloc(64, size))
SITE(by_memalign, MEMALIGN, memalign(256, size))
SITE(by_valloc, VALLOC, valloc(size))
SITE(by_pvalloc, PVALLOC, pvalloc(size))
SITE(by_thread, THREAD, malloc(size))
SITE(by_old, OLD, malloc(size))
SITE(late_alloc, LATE, library_alloc(size))

NAMED static int by_posix_memalign(size_t size) {
    void *block = NULL;
    int error = posix_memalign(&block, 128, size);
    KEEP_FRAME();
    return error ? -1 : booked(block, size, POSIX);
}

NAMED static int by_strdup(const char *text) {
    char *block = strdup(text);
    KEEP_FRAME();
    return booked(block, strlen(text) + 1, STRDUP);
}

NAMED static int by_realloc_grown(int old, size_t size) {
    void *block = realloc(unbooked(old), size);
    KEEP_FRAME();
    return booked(block, size, REALLOC_GROWN);
}

static void each(int (*site)(size_t), int count, size_t size, int freed) {
    int first = used;
    for (int i = 0; i < count; i++)
        site(size);
    for (int i = 0; i < freed; i++)
        release(first + i);
}

static volatile size_t too_much = SIZE_MAX / 2, zero;

/* What an allocator refuses, or treats as nothing. */
static void edges(void) {
    void *block = NULL, *kept = blocks[by_malloc(1013)].at;
    int there;
    if (malloc(too_much) || errno != ENOMEM)
        die("malloc of too much");
    errno = 0;
    if (calloc(too_much, 4) || errno != ENOMEM)
        die("calloc that overflows");
    if (realloc(kept, too_much) || reallocarray(kept, too_much, 4))
        die("realloc of too much");
    if (posix_memalign(&block, 3, 8) != EINVAL || block)
        die("an alignment that is none");
    there = by_malloc(zero);
    release(there);
    books[MALLOC].temporary++;
    by_malloc(zero);
    there = by_malloc(1019);
    if (realloc(unbooked(there), zero))
        die("realloc to nothing");
    free(NULL);
}

static void temporary(void) {
    for (int i = 0; i < 211; i++) {
        release(by_malloc(307));
        books[MALLOC].temporary++;
    }
}

static int given[THREADS][1009];
static pthread_barrier_t all_given;

static void *worker(void *argument) {
    static const size_t sizes[THREADS] = {11, 101, 499, 1009, 4099, 30011, 200003};
    long me = (long)argument;
    for (int i = 0; i < 1009; i++)
        given[me][i] = by_thread(sizes[me]);
    pthread_barrier_wait(&all_given);
    for (int i = 0; i < 997; i++)
        release(given[(me + 1) % THREADS][i]);
    return NULL;
}

static void threads(void) {
    pthread_t ids[THREADS];
    pthread_barrier_init(&all_given, NULL, THREADS);
    for (long i = 0; i < THREADS; i++)
        ids[i] = start_thread("worker", worker, (void *)i);
    for (int i = 0; i < THREADS; i++)
        pthread_join(ids[i], NULL);
}

static void work(void) {
    each(by_malloc, 1009, 101, 503);
    each(by_calloc, 1013, 103, 509);
    each(by_realloc_new, 1019, 107, 521);
    each(by_reallocarray, 1021, 109, 523);
    each(by_posix_memalign, 1031, 113, 541);
    each(by_aligned_alloc, 1033, 127, 547);
    each(by_memalign, 1039, 131, 557);
    each(by_valloc, 101, 137, 53);
    each(by_pvalloc, 103, 139, 59);
    for (int i = 0; i < 311; i++)
        by_strdup("thirty-one characters, no more.");
    for (int i = 0; i < 401; i++)
        by_realloc_grown(by_malloc(149), (size_t)(151 + i * 997));
    edges();
    temporary();
    threads();
}

static void report(const char *path) {
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    for (int i = 0; i < SITES; i++)
        dprintf(file, "site %s %lu %lu %lu %lu %lu\n", names[i], books[i].allocs, books[i].bytes, books[i].live,
                books[i].live_bytes, books[i].temporary);
    for (int i = 0; i < used; i++)
        if (blocks[i].at && blocks[i].site != OLD)
            dprintf(file, "block %lx %lu\n", (unsigned long)blocks[i].at, blocks[i].size);
    close(file);
}

static void in_a_child(void) {
    pid_t child = fork();
    if (!child) {
        for (int i = 0; i < used; i++)
            free(blocks[i].at);
        for (int i = 0; i < 1009; i++)
            by_malloc(211);
        _exit(0);
    }
    int status;
    if (waitpid(child, &status, 0) != child || status)
        die("the child");
}

int main(int argc, char **argv) {
    const char *mode = argc > 2 ? argv[2] : "exit";
    int attach = !strcmp(mode, "attach"), old = used;
    char line[64];
    if (attach)
        each(by_old, 601, 613, 0);
    ready();
    if (attach)
        read_line(line, sizeof line, NULL);
    if (!strcmp(mode, "dlopen") || (attach && argc > 3)) {
        void *library = dlopen(argv[3], RTLD_NOW);
        *(void **)&library_alloc = library ? dlsym(library, "heap_late_alloc") : NULL;
        if (!library_alloc)
            die(dlerror());
        if (attach) {
            puts("loaded");
            fflush(stdout);
            read_line(line, sizeof line, NULL);
        }
        each(late_alloc, 1049, 157, 563);
    }
    work();
    if (attach)
        for (int i = 0; i < 307; i++)
            release(old + i);
    if (!strcmp(mode, "fork"))
        in_a_child();
    report(argv[1]);
    if (attach) {
        puts("done");
        fflush(stdout);
        read_line(line, sizeof line, NULL);
        for (int i = 0; i < used; i++)
            free(blocks[i].at);
        each(by_malloc, 1009, 223, 1009);
    }
    if (!strcmp(mode, "crash"))
        raise(SIGSEGV);
    if (!strcmp(mode, "_exit"))
        _exit(0);
    return 0;
}
