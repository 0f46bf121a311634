/* The library that dlopener.c opens: late_work burns CPU in it. */
#include "target.h"

uint64_t late_work(uint64_t x);

#ifndef INNER
#define INNER late_inner
#endif

NAMED static uint64_t INNER(uint64_t x) { return burn(x, 50000); }

NAMED uint64_t late_work(uint64_t x) {
    x = INNER(x);
    KEEP_FRAME();
    return x;
}
