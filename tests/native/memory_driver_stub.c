/* External names for what memory_driver.c calls: sys.h and the C library's headers can't share a file. */
#include "memory.h"

int readable(u64 page);
int copy(u32 pid, u32 *forbidden, void *to, u64 from, u64 bytes);

int readable(u64 page)
{
	return page_readable(0, page);
}

int copy(u32 pid, u32 *forbidden, void *to, u64 from, u64 bytes)
{
	struct vm_reader reader = {pid, *forbidden};
	int got = vm_copy(&reader, to, from, bytes);
	*forbidden = reader.forbidden;
	return got;
}
