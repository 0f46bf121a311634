/* gcc calls these two on its own account, -ffreestanding or not. */
#include "shared.h"

__attribute__((visibility("hidden"))) void *memcpy(void *restrict to, const void *restrict from, u64 bytes)
{
	void *start = to;
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
	return start;
}

__attribute__((visibility("hidden"))) void *memset(void *to, int value, u64 bytes)
{
	void *start = to;
	__asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(value) : "memory");
	return start;
}
