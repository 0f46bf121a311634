/* oracle_c [ROUNDS [quick]]: quick leaves out what exit() does.
 *
 * Code that unwinders stumble over, run a few times: alloca, variable-length arrays, realigned stacks, tail
 * calls, nested signal handlers, callbacks from the C library, hand-written string functions. */
#include <alloca.h>
#include <math.h>
#include <regex.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

static volatile uint64_t sink;
static jmp_buf back;

NOINLINE static int by_value(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

NOINLINE static uint64_t with_alloca(unsigned n) {
    char *p = alloca(n + 1);
    memset(p, 'x', n);
    p[n] = 0;
    return strlen(p);
}

NOINLINE static uint64_t with_vla(unsigned n) {
    int values[n];
    for (unsigned i = 0; i < n; i++)
        values[i] = (int)((i * 7919) % 104729);
    qsort(values, n, sizeof(values[0]), by_value);
    return (uint64_t)values[n / 2];
}

typedef double wide __attribute__((vector_size(64)));

NOINLINE static double realigned(unsigned n) {
    wide sums = {0};
    volatile wide spilled = sums;
    char *p = alloca(n);
    memset(p, 1, n);
    for (unsigned i = 0; i < n; i++)
        spilled[i % 8] += p[i];
    sums = spilled;
    return sums[0] + sums[7];
}

NOINLINE static uint64_t tail_end(uint64_t x) { return x * 3 + 1; }
NOINLINE static uint64_t tail_call(uint64_t x) { return tail_end(x + 1); }

NOINLINE static uint64_t recurse(unsigned n) { return n ? recurse(n - 1) + (sink & 1) : with_alloca(20); }

static void inner_handler(int number) { sink += (uint64_t)number + with_alloca(33); }

static void outer_handler(int number) {
    sink += recurse(3);
    raise(SIGUSR2);
    sink += (uint64_t)number;
}

NOINLINE static void jump_out(unsigned n) {
    if (!n)
        longjmp(back, 1);
    jump_out(n - 1);
    sink++;
}

NOINLINE static void libc_calls(void) {
    char text[256];
    regex_t regex;
    regmatch_t matches[4];
    for (int i = 0; i < 4; i++) {
        snprintf(text, sizeof(text), "%d %s %.17g %x %Lf", i, "words", sqrt(i + 0.1), i * 255, (long double)i / 3);
        sink += (uint64_t)strtod(text + 2 + 6, NULL);
    }
    if (!regcomp(&regex, "^([a-z]+)[0-9]*(foo|bar)+$", REG_EXTENDED)) {
        sink += (uint64_t)regexec(&regex, "abc123foobarfoo", 4, matches, 0);
        regfree(&regex);
    }
    char *copy = strdup(text);
    sink += (uint64_t)(strstr(copy, "words") - copy) + (uint64_t)atoi(copy);
    free(copy);
}

int main(int argc, char **argv) {
    unsigned rounds = argc > 1 ? (unsigned)atoi(argv[1]) : 3;
    signal(SIGUSR1, outer_handler);
    signal(SIGUSR2, inner_handler);
    for (volatile unsigned round = 0; round < rounds; round++) {
        sink += with_vla(60 + round) + with_alloca(100) + tail_call(round) + (uint64_t)realigned(200);
        sink += recurse(20);
        raise(SIGUSR1);
        if (!setjmp(back))
            jump_out(5);
        libc_calls();
    }
    printf("done %d\n", sink != 0);
    if (argc > 2)
        _exit(0);
    return 0;
}
