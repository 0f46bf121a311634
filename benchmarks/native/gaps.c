/* A thread that reads the cycle counter without a pause and keeps the gaps: gaps FILE DEPTH [THREADS]
 *
 * A gap in which a signal was delivered is told from others (the kernel's tick, the hypervisor) by what the kernel's
 * signal frame leaves below the stack, whosever handler it is.  FILE is mapped: [0] cycles in all, [1] cycles per
 * second; asked of it in [2] clock (0 none, 1 timer, 2 perf) and [3] rate: ticks of such a clock with an EMPTY
 * handler, what any profiler in a signal handler has to pay.  From word 8 on two histograms of gaps of more than
 * 0.3 us, in bins of 1/16 us: other gaps, and those with a signal.  DEPTH calls lie below the loop.
 * Of THREADS (1) all but this one sleep.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

static volatile uint64_t *shared;

static void empty(int number, siginfo_t *info, void *context) {
    (void)number, (void)info, (void)context;
}

static uint64_t ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void take(int signo) {
    struct sigaction action = {.sa_sigaction = empty, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigfillset(&action.sa_mask);
    if (sigaction(signo, &action, NULL))
        exit(3);
}

/* As inject/stub/timers.c and attacher/clock.py do it. */
static void arm(uint64_t clock, uint64_t rate) {
    static timer_t timer;
    static int has_timer, event = -1;
    long period_ns = rate ? 1000000000L / (long)rate : 0;
    if (has_timer)
        timer_delete(timer);
    if (event >= 0)
        close(event);
    has_timer = 0, event = -1;
    if (clock == 1) {
        struct sigevent how = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGPROF};
        struct itimerspec spec = {{0, period_ns}, {0, period_ns}};
        how._sigev_un._tid = (int)syscall(SYS_gettid);
        take(SIGPROF);
        has_timer = !timer_create(CLOCK_THREAD_CPUTIME_ID, &how, &timer);
        if (!has_timer || timer_settime(timer, 0, &spec, NULL))
            exit(4);
    } else if (clock == 2) {
        struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attr,
            .config = PERF_COUNT_SW_TASK_CLOCK, .sample_period = (uint64_t)period_ns, .wakeup_events = 1,
            .disabled = 1};
        struct f_owner_ex owner = {F_OWNER_TID, (int)syscall(SYS_gettid)};
        take(SIGURG);
        event = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
        if (event < 0 || fcntl(event, F_SETSIG, SIGURG) || fcntl(event, F_SETOWN_EX, &owner) ||
            fcntl(event, F_SETFL, O_ASYNC) || ioctl(event, PERF_EVENT_IOC_ENABLE, 0))
            exit(5);
    }
}

#define BINS 8192 /* the last one: 512 us and longer, which is the scheduler's */
#define CANARIES 96
#define BELOW 256 /* bytes below the stack pointer where the canaries begin: behind the red zone */

__attribute__((noinline)) static void spin(uint64_t hz) {
    volatile uint64_t *counts = shared + 8;
    uint64_t clock = 0, rate = 0, short_gap = hz / 10000 * 3 / 1000, per_bin = hz / 16000000;
    volatile uint64_t *canaries = (volatile uint64_t *)((uintptr_t)__builtin_frame_address(0) - 8 * CANARIES - BELOW - 512);
    for (int i = 0; i < CANARIES; i++)
        canaries[i] = 0x1234567;
    uint64_t last = __rdtsc();
    for (;;) {
        uint64_t all = 0;
        for (int i = 0; i < 4096; i++) {
            uint64_t now = __rdtsc(), gap = now - last;
            last = now;
            all += gap;
            if (__builtin_expect(gap > short_gap, 0)) {
                uint64_t bin = gap / per_bin, hit = 0;
                for (int k = 0; k < CANARIES; k++) {
                    hit |= canaries[k] ^ 0x1234567;
                    canaries[k] = 0x1234567;
                }
                counts[(hit ? BINS : 0) + (bin < BINS ? bin : BINS - 1)]++;
                last = __rdtsc();
            }
        }
        shared[0] += all;
        if (shared[2] != clock || shared[3] != rate) {
            clock = shared[2], rate = shared[3];
            arm(clock, rate);
            for (int k = 0; k < CANARIES; k++)
                canaries[k] = 0x1234567;
        }
        last = __rdtsc();
    }
}

__attribute__((noinline)) static uint64_t descend(int depth, uint64_t hz) {
    volatile uint64_t here = hz;
    if (depth)
        return descend(depth - 1, hz) + here;
    spin(hz);
    return here;
}

static void *sleeper(void *none) {
    for (;;)
        pause();
    return none;
}

int main(int count, char **words) {
    int file = count >= 3 ? open(words[1], O_RDWR) : -1;
    uint64_t begin_ns = ns(), begin = __rdtsc(), hz;
    if (file < 0)
        return 2;
    shared = mmap(NULL, 8 * (8 + 2 * BINS), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (shared == MAP_FAILED)
        return 2;
    while (ns() - begin_ns < 50000000)
        ;
    hz = (__rdtsc() - begin) * 1000000000u / (ns() - begin_ns);
    shared[1] = hz;
    for (int i = 1; i < (count > 3 ? atoi(words[3]) : 1); i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, sleeper, NULL))
            return 6;
    }
    puts("ready");
    fflush(stdout);
    return (int)descend(atoi(words[2]), hz);
}
