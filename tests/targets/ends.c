/* A program that works and, when it is told to by a signal, exits, executes itself anew or forks.
 *
 *     ends [again]
 *
 * SIGUSR1: exit code 3.  SIGUSR2: exec of itself with "again".  SIGHUP: a child that works for a moment and ends
 * with 5, waited for.  All by a thread of its own, whatever the others do; these block all three.  Ends with stdin,
 * printing "done FORKS WRONG": a piece of work or a child that came out otherwise than the first is wrong.
 */
#include "target.h"

#include <signal.h>
#include <sys/wait.h>

static atomic_int stopped;
static atomic_ulong forks, wrong;
static uint64_t expected;

NAMED static uint64_t piece_of_work(void) { return burn(7, 200000); }

static void *work(void *argument) {
    (void)argument;
    while (!stopped)
        if (piece_of_work() != expected)
            wrong++;
    return NULL;
}

static void have_a_child(void) {
    int status = 0;
    pid_t child = fork();
    if (child == 0)
        _exit(piece_of_work() == expected ? 5 : 6);
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 5)
        wrong++;
    forks++;
}

static void *serve(void *argument) {
    char *again[] = {"ends", "again", NULL};
    sigset_t *signals = argument;
    for (;;) {
        int number;
        if (sigwait(signals, &number))
            die("sigwait");
        if (number == SIGUSR1)
            _exit(3);
        if (number == SIGUSR2)
            execv("/proc/self/exe", again);
        else
            have_a_child();
    }
}

int main(void) {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR1);
    sigaddset(&signals, SIGUSR2);
    sigaddset(&signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    expected = piece_of_work();
    pthread_t worker = start_thread("work", work, NULL);
    start_thread("serve", serve, &signals);
    ready();
    char line[8];
    while (read_line(line, sizeof line, NULL))
        ;
    stopped = 1;
    pthread_join(worker, NULL);
    printf("done %lu %lu\n", (unsigned long)forks, (unsigned long)wrong);
    fflush(stdout);
    _exit(wrong != 0);
}
