/* A parent that sleeps, and children that work: one is there when it says "ready", a grandchild too.
 *
 *     family
 *
 * The child works in child_work and is called "child", its own child in grandchild_work.  Each line on
 * stdin starts another child, "late", that works in late_work ("late <pid>" is printed), or, where the
 * line is "short", a hundred that end at once ("ended" is printed), or, where it is "vfork", one that
 * waits for the end of stdin in vfork, with its parent's memory ("waits <pid>", before its wait).  At the
 * end of stdin the children end; prints "done", or "died <status>" of any child.
 */
#include "target.h"

#include <signal.h>
#include <sys/wait.h>

static volatile uint64_t sink;
static int all_ok = 1;

NAMED static void child_work(void) {
    for (;;)
        sink = burn(sink, 20000);
}
NAMED static void grandchild_work(void) {
    for (;;)
        sink = burn(sink + 1, 20000);
}
NAMED static void late_work(void) {
    for (;;)
        sink = burn(sink + 2, 20000);
}

static pid_t start(const char *name, void (*work)(void)) {
    pid_t parent = getpid(), pid = fork();
    if (pid < 0)
        die("fork");
    if (pid)
        return pid;
    prctl(PR_SET_NAME, name);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    if (getppid() != parent)
        _exit(0);
    work();
    _exit(3);
}

static void with_grandchild(void) {
    start("grandchild", grandchild_work);
    child_work();
}

static void reap(pid_t pid, int expected) {
    int status;
    if (waitpid(pid, &status, 0) != pid || status != expected) {
        printf("died %x\n", (unsigned)status);
        all_ok = 0;
    }
}

static void end_at_once(void) { _exit(0); }

static void wait_in_vfork(void) {
    pid_t pid = vfork();
    if (!pid) {
        char text[32];
        int length = snprintf(text, sizeof text, "waits %d\n", (int)getpid());
        if (write(STDOUT_FILENO, text, (size_t)length) != length || read(STDIN_FILENO, text, 1) < 0)
            _exit(4);
        _exit(0);
    }
    reap(pid, 0);
}

int main(void) {
    enum { MOST = 16 };
    pid_t children[MOST];
    int count = 0;
    char line[16];
    children[count++] = start("child", with_grandchild);
    ready();
    while (read_line(line, sizeof line, NULL)) {
        if (!strcmp(line, "short")) {
            for (int i = 0; i < 100; i++)
                reap(start("short", end_at_once), 0);
            puts("ended");
        } else if (!strcmp(line, "vfork")) {
            wait_in_vfork();
            puts("waited");
        } else if (count < MOST) {
            children[count++] = start("late", late_work);
            printf("late %d\n", (int)children[count - 1]);
        }
        fflush(stdout);
    }
    for (int i = 0; i < count; i++) {
        kill(children[i], SIGTERM);
        reap(children[i], SIGTERM);
    }
    puts(all_ok ? "done" : "failed");
    return 0;
}
