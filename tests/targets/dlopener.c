/* Opens a library late, works in it, and closes it again.
 *
 *     dlopener /path/to/liblate.so [ANOTHER]
 *
 * It works in early_work.  The first line on stdin makes it dlopen the library ("opened") and work in
 * its late_work, the next one dlclose it ("closed"), and so on in turn, with the other library every
 * second time.  Ends when stdin does, "done".
 */
#include "target.h"

#include <dlfcn.h>
#include <poll.h>

NAMED static uint64_t early_work(uint64_t x) { return burn(x, 50000); }

static void say(const char *what) {
    puts(what);
    fflush(stdout);
}

int main(int argc, char **argv) {
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    uint64_t (*work)(uint64_t) = early_work;
    void *library = NULL;
    uint64_t x = 1;
    char line[64];
    int turn = 0;
    if (argc < 2)
        return 2;
    ready();
    for (;;) {
        x = work(x);
        if (poll(&input, 1, 0) != 1)
            continue;
        if (!read_line(line, sizeof line, NULL))
            break;
        if (library) {
            work = early_work;
            dlclose(library);
            library = NULL;
            say("closed");
            continue;
        }
        library = dlopen(argv[1 + turn++ % (argc - 1)], RTLD_NOW);
        if (!library) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
        work = (uint64_t(*)(uint64_t))dlsym(library, "late_work");
        say("opened");
    }
    printf("done %016lx\n", (unsigned long)x);
    return 0;
}
