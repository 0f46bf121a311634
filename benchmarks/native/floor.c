/* Preloaded into a program: empty handlers for the signals that pyattach's clocks use.
 *
 * SIGURG is for perf events that somebody else opens.  SIGUSR2 arms a timer on the CPU clock of each thread that
 * there is, FLOOR_HZ ticks a second, or deletes them all if there are some: what a tick costs with no profiler.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 256 };

static long period_ns = 10101010;
static int timers[MOST], count; /* the kernel's numbers */

static void empty(int number, siginfo_t *info, void *context) {
    (void)number, (void)info, (void)context;
}

static void arm(int tid) {
    struct sigevent how = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGPROF};
    struct itimerspec spec = {{0, period_ns}, {0, period_ns}};
    int timer;
    how._sigev_un._tid = tid;
    /* As the stub does it: the clock of a thread by its number (man clock_getcpuclockid). */
    if (count < MOST && !syscall(SYS_timer_create, (~(unsigned)tid << 3) | 6, &how, &timer)) {
        syscall(SYS_timer_settime, timer, 0, &spec, NULL);
        timers[count++] = timer;
    }
}

static void on_usr2(int number, siginfo_t *info, void *context) {
    char buffer[4096];
    long got;
    int folder;
    (void)number, (void)info, (void)context;
    if (count) {
        while (count)
            syscall(SYS_timer_delete, timers[--count]);
        return;
    }
    folder = open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    while (folder >= 0 && (got = syscall(SYS_getdents64, folder, buffer, sizeof buffer)) > 0)
        for (long at = 0; at < got;) {
            struct dirent64 *entry = (struct dirent64 *)(buffer + at);
            int tid = 0;
            for (const char *c = entry->d_name; *c >= '0' && *c <= '9'; c++)
                tid = tid * 10 + (*c - '0');
            if (tid)
                arm(tid);
            at += entry->d_reclen;
        }
    if (folder >= 0)
        close(folder);
}

static void take(int signo, void (*handler)(int, siginfo_t *, void *)) {
    /* The flags and the mask that the stub's has. */
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
    sigfillset(&action.sa_mask);
    sigaction(signo, &action, NULL);
}

__attribute__((constructor)) static void begin(void) {
    const char *hz = getenv("FLOOR_HZ");
    if (hz && atoi(hz) > 0)
        period_ns = 1000000000L / atoi(hz);
    take(SIGURG, empty);
    take(SIGPROF, empty);
    take(SIGUSR2, on_usr2);
}
