/* A library that somebody preloads: it says so, and counts its calls of getppid by its own answer. */
#include <unistd.h>

__attribute__((constructor)) static void say_so(void) {
    static const char text[] = "mark: loaded\n";
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0)
        _exit(3);
}
