/* A thread that is ended, and all others with it, should it make a memfd, which the main thread may do.  Prints "done"
 * when stdin ends. */
#include "target.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/syscall.h>

static _Atomic int forbidden;

static void *sandboxed(void *unused) {
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_memfd_create, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        die("seccomp");
    atomic_store(&forbidden, 1);
    for (;;)
        pause();
    return unused;
}

int main(void) {
    start_thread("sandboxed", sandboxed, NULL);
    while (!atomic_load(&forbidden))
        sched_yield();
    ready();
    wait_for_end_of_stdin();
    puts("done");
    fflush(stdout);
    _exit(0);
}
