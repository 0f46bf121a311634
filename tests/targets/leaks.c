/* Blocks that are lost, and blocks that something leads to still, by functions of known names: leaks [exit|wait|spin|_exit].
 *
 * lost_* are leaks, kept_* are none.  "wait" and "spin" say ready first, do their work at a line of stdin, and end at
 * another; in between the main thread sleeps, or holds a block by a register alone. */
#include "target.h"

#include <sys/mman.h>

struct node {
    struct node *next, *other;
    char name[80];
};

static struct node *volatile list, *volatile tree;
static char *volatile middle;
static __thread void *volatile of_thread;
static void **mapped;
static pthread_barrier_t meet;

NAMED static void *make(size_t size) {
    void *block = malloc(size);
    memset(block, 7, size);
    KEEP_FRAME();
    return block;
}

NAMED static void lost_plain(void) {
    for (int i = 0; i < 11; i++)
        make(31);
    KEEP_FRAME();
}

NAMED static void lost_list(void) { /* its head is gone, so all of it is */
    struct node *head = NULL;
    for (int i = 0; i < 23; i++) {
        struct node *node = make(sizeof *node);
        node->next = head;
        node->other = NULL;
        head = node;
    }
    KEEP_FRAME();
}

NAMED static void lost_cycle(void) {
    for (int i = 0; i < 5; i++) {
        struct node *one = make(sizeof *one), *two = make(sizeof *two);
        one->next = one->other = two;
        two->next = two->other = one;
    }
    KEEP_FRAME();
}

NAMED static void lost_behind_freed(void) { /* only a block that is free again holds the address still */
    struct node *volatile holders[13];
    for (int i = 0; i < 13; i++) {
        holders[i] = make(sizeof(struct node));
        memset(holders[i], 0, sizeof(struct node));
        *(void *volatile *)(holders[i]->name + 40) = make(67);
    }
    for (int i = 0; i < 13; i++)
        free(holders[i]);
    KEEP_FRAME();
}

NAMED static void *lost_by_thread(void *unused) { /* on the stack of a thread that has ended */
    void *volatile blocks[17];
    (void)unused;
    for (int i = 0; i < 17; i++)
        blocks[i] = make(71);
    KEEP_FRAME();
    return (void *)(uintptr_t)(blocks[0] == NULL);
}

NAMED static void kept_in_list(void) {
    for (int i = 0; i < 1000; i++) {
        struct node *node = make(sizeof *node);
        node->other = NULL;
        node->next = list;
        list = node;
    }
    KEEP_FRAME();
}

NAMED static struct node *kept_in_tree(int depth) {
    struct node *node = make(sizeof *node);
    node->next = depth ? kept_in_tree(depth - 1) : NULL;
    node->other = depth ? kept_in_tree(depth - 1) : NULL;
    KEEP_FRAME();
    return node;
}

NAMED static void kept_by_its_middle(void) {
    middle = (char *)make(5000) + 1234;
    KEEP_FRAME();
}

NAMED static void kept_in_a_mapping(void) {
    mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 29; i++)
        mapped[i] = make(101);
    KEEP_FRAME();
}

NAMED static void *kept_by_thread(void *unused) { /* one on its stack, one in its own data */
    void *volatile on_stack = make(211);
    (void)unused;
    of_thread = make(223);
    pthread_barrier_wait(&meet);
    for (;;)
        pause();
    return on_stack;
}

NAMED static void *kept_by_register(void) {
    void *block = make(307);
    KEEP_FRAME();
    return block;
}

NAMED static void scrub(void) {
    volatile char below[1 << 16];
    for (size_t i = 0; i < sizeof below; i++)
        below[i] = 0;
}

NAMED static void work(void) {
    pthread_t thread;
    pthread_barrier_init(&meet, NULL, 2);
    pthread_create(&thread, NULL, kept_by_thread, NULL);
    pthread_barrier_wait(&meet);
    pthread_create(&thread, NULL, lost_by_thread, NULL);
    pthread_join(thread, NULL);
    lost_plain();
    lost_list();
    lost_cycle();
    lost_behind_freed();
    kept_in_list();
    tree = kept_in_tree(7);
    kept_by_its_middle();
    kept_in_a_mapping();
    KEEP_FRAME();
}

static volatile int go_on = 1;

static void *ends_spin(void *unused) {
    char line[16];
    (void)unused;
    read_line(line, sizeof line, NULL);
    go_on = 0;
    return NULL;
}

int main(int count, char **words) {
    const char *mode = count > 1 ? words[1] : "exit";
    char line[16];
    if (!strcmp(mode, "exit") || !strcmp(mode, "_exit")) {
        work();
        scrub();
        if (*mode == '_')
            _exit(0);
        return 0;
    }
    ready();
    read_line(line, sizeof line, NULL);
    if (!strcmp(mode, "spin")) {
        pthread_t thread; /* before work(): later it would have the stack of one that has ended, with what is there */
        pthread_create(&thread, NULL, ends_spin, NULL);
    }
    work();
    scrub();
    if (!strcmp(mode, "spin")) {
        register void *block __asm__("r12") = kept_by_register();
        scrub();
        puts("done");
        fflush(stdout);
        while (go_on)
            __asm__ volatile("" : "+r"(block));
        return 0;
    }
    puts("done");
    fflush(stdout);
    read_line(line, sizeof line, NULL);
    return 0;
}
