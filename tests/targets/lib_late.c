/* The library that dlopener.c opens: late_work burns CPU in it. */
#include "target.h"

uint64_t late_work(uint64_t x);

NAMED static uint64_t late_inner(uint64_t x) { return burn(x, 50000); }

NAMED uint64_t late_work(uint64_t x) {
    x = late_inner(x);
    KEEP_FRAME();
    return x;
}
