/* One thread, blocked in read, that does nothing until stdin ends: for comparing before and after. */
#include "target.h"

int main(void) {
    ready();
    wait_for_end_of_stdin();
    puts("done");
    return 0;
}
