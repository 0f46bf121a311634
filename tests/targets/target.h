/* What every target program shares.  A target prints "ready" once it is set up, then does its work. */
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

/* A function of its own in every profile: not inlined, not cloned, not folded into a twin. */
#define NAMED __attribute__((noinline, noclone, no_icf))

/* Keeps the call before it from becoming a jump, which would take its caller off the stack. */
#define KEEP_FRAME() __asm__ volatile("" ::: "memory")

static inline void ready(void) {
    /* Yama's ptrace_scope 1 lets only ancestors attach; pyattach is a sibling in the tests and the
     * demo.  Fails harmlessly where there is no Yama. */
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    puts("ready");
    fflush(stdout);
}

static inline void die(const char *what) {
    perror(what);
    exit(2);
}

static inline uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* One line from stdin, without stdio's buffering and without its lock.  False at the end of stdin.
 * Counts interrupted reads in *eintr if it is given. */
static inline int read_line(char *line, size_t size, unsigned long *eintr) {
    size_t used = 0;
    for (;;) {
        char c;
        ssize_t got = read(STDIN_FILENO, &c, 1);
        if (got < 0 && errno == EINTR) {
            if (eintr)
                ++*eintr;
            continue;
        }
        if (got <= 0)
            return 0;
        if (c == '\n')
            break;
        if (used + 1 < size)
            line[used++] = c;
    }
    line[used] = 0;
    return 1;
}

static inline void wait_for_end_of_stdin(void) {
    char line[64];
    while (read_line(line, sizeof line, NULL))
        ;
}

/* A chain of dependent steps: its time depends on their number alone, not on their neighbours. */
static inline __attribute__((always_inline)) uint64_t burn(uint64_t x, unsigned long steps) {
    for (unsigned long i = 0; i < steps; i++) {
        x ^= x >> 29;
        x *= 0x9e3779b97f4a7c15u;
        KEEP_FRAME();
    }
    return x;
}

static inline pthread_t start_thread(const char *name, void *(*run)(void *), void *argument) {
    pthread_t thread;
    int error = pthread_create(&thread, NULL, run, argument);
    if (error) {
        errno = error;
        die("pthread_create");
    }
    pthread_setname_np(thread, name);
    return thread;
}
