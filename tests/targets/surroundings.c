/* What a program sees of its start: its environment, its open files, what is preloaded, its children.
 *
 *     surroundings           prints "env NAME=VALUE" and "fd N" lines
 *     surroundings child     the same, of a child that it starts
 *     surroundings exec      becomes another program
 */
#include "target.h"

#include <dirent.h>
#include <sys/wait.h>

extern char **environ;

static void show(void) {
    for (char **entry = environ; *entry; entry++)
        printf("env %s\n", *entry);
    DIR *folder = opendir("/proc/self/fd");
    if (!folder)
        die("/proc/self/fd");
    for (struct dirent *entry; (entry = readdir(folder));)
        if (entry->d_name[0] != '.' && atoi(entry->d_name) != dirfd(folder))
            printf("fd %s\n", entry->d_name);
    closedir(folder);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "exec")) {
        execl(argv[0], argv[0], (char *)NULL);
        die("exec");
    }
    if (!strcmp(what, "child")) {
        int status;
        pid_t pid = fork();
        if (!pid) {
            execl(argv[0], argv[0], (char *)NULL);
            _exit(1);
        }
        waitpid(pid, &status, 0);
        return WEXITSTATUS(status);
    }
    show();
    return 0;
}
