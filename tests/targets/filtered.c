/* Works, then forbids itself every system call but a few, under pain of death, and works on.
 *
 *     filtered <milliseconds before> <milliseconds after>      prints "done"
 *
 * In between it waits for a line on stdin, or its end: no tick comes meanwhile.
 */
#include "target.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/syscall.h>

NAMED static void work(const char *milliseconds) {
    uint64_t x = 1, end_ns = now_ns() + strtoul(milliseconds, NULL, 10) * 1000000;
    while (now_ns() < end_ns)
        x = burn(x, 10000);
}

#define ALLOW(call) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##call, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static void forbid(void) {
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(read), ALLOW(write), ALLOW(exit_group), ALLOW(rt_sigreturn), ALLOW(clock_gettime), ALLOW(newfstatat),
        ALLOW(rt_sigprocmask),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        die("seccomp");
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    ready();
    work(argv[1]);
    forbid();
    char line[8];
    read_line(line, sizeof line, NULL);
    work(argv[2]);
    puts("done");
    return 0;
}
