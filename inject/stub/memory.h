/* Finding out whether memory can be read, without touching it. */
#ifndef PA_MEMORY_H
#define PA_MEMORY_H

#include "sys.h"

#define PAGE 4096UL

/* The kernel reads 8 bytes at the address before it looks at `how`: EFAULT when it can't, EINVAL when it
 * can, and the mask stays as it is either way (kernel/signal.c, rt_sigprocmask). */
static inline int page_readable(void *arg, u64 page)
{
	(void)arg;
	return sys4(SYS_rt_sigprocmask, ~0UL, page, 0, 8) == -EINVAL;
}

/* Memory that another thread may unmap at any time is copied by the kernel, which sees the fault and not
 * us (man process_vm_readv, on ourselves).  Where that is forbidden, ask first and copy then. */
struct vm_reader {
	u32 pid;
	u32 forbidden;
};

static inline int probe_and_copy(void *to, u64 from, u64 bytes)
{
	for (u64 page = from & ~(PAGE - 1); page < from + bytes; page += PAGE)
		if (!page_readable(0, page))
			return 0;
	__builtin_memcpy(to, (const void *)from, bytes);
	return 1;
}

static inline int vm_copy(void *arg, void *to, u64 from, u64 bytes)
{
	struct vm_reader *r = arg;
	struct {
		u64 base, length;
	} here = {(u64)to, bytes}, there = {from, bytes};
	if (from + bytes < from || from + bytes > USER_SPACE_END)
		return 0;
	if (!r->forbidden) {
		i64 got = sys6(SYS_process_vm_readv, r->pid, (u64)&here, 1, (u64)&there, 1, 0);
		if (got == (i64)bytes)
			return 1;
		if (got == -EFAULT || got >= 0)
			return 0;
		r->forbidden = 1;
	}
	return probe_and_copy(to, from, bytes);
}

#endif
