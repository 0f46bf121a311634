/* Finding out whether memory can be read, without touching it. */
#ifndef PA_MEMORY_H
#define PA_MEMORY_H

#include "sys.h"

/* Pages known to be readable during one walk: [low, high), page aligned, grown as the walk climbs. */
struct pa_window {
	u64 low, high;
};

#define PAGE 4096UL

/* The kernel reads 8 bytes at the address before it looks at `how`: EFAULT when it can't, EINVAL when it
 * can, and the mask stays as it is either way (kernel/signal.c, rt_sigprocmask). */
static inline int page_readable(u64 address)
{
	return sys4(SYS_rt_sigprocmask, ~0UL, address, 0, 8) == -EINVAL;
}

static inline int window_readable(void *arg, u64 address, u64 bytes)
{
	struct pa_window *w = arg;
	u64 first = address & ~(PAGE - 1), last = (address + bytes - 1) & ~(PAGE - 1);
	for (u64 page = first; page <= last; page += PAGE) {
		if (page >= w->low && page < w->high)
			continue;
		if (!page_readable(page))
			return 0;
		if (page == w->high) {
			w->high += PAGE;
		} else {
			w->low = page;
			w->high = page + PAGE;
		}
	}
	return 1;
}

#endif
