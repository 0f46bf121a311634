/* Has all memory that is mapped from now on locked, which brings in every page of it at once.  Waits for the end of
 * stdin.  Says "limited" in place of "ready" where no more than a little may be locked. */
#include "target.h"

#include <sys/mman.h>

enum { PROBE = 1 << 30 };

int main(void) {
    void *probe = mlockall(MCL_FUTURE) ? MAP_FAILED : mmap(NULL, PROBE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (probe == MAP_FAILED) {
        puts("limited");
        return 0;
    }
    munmap(probe, PROBE);
    ready();
    wait_for_end_of_stdin();
    puts("done");
    return 0;
}
