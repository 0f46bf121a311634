/* Which module an address lies in: pyattach writes the tables, handlers read them at any time. */
#ifndef PA_MODULES_H
#define PA_MODULES_H

#include "unwind.h"

static inline int modules_search(const struct pa_modules *table, u64 address, struct pa_module *out)
{
	u32 low = 0, high = table->count < PA_MODULES ? table->count : PA_MODULES;
	/* Invariant: modules below `low` end at or below address, those from `high` on start above it. */
	while (low < high) {
		u32 middle = low + (high - low) / 2;
		if (table->module[middle].start > address)
			high = middle;
		else if (table->module[middle].end <= address)
			low = middle + 1;
		else {
			*out = table->module[middle];
			return 1;
		}
	}
	return 0;
}

/* A copy of the module that holds `address`.  pyattach never writes to the table that modules_seq names,
 * so an answer is whole if modules_seq has not moved meanwhile; it moves ten times a second at most. */
static inline int modules_find(void *arg, u64 address, struct pa_module *out)
{
	struct pa_control *c = arg;
	const struct pa_modules *tables = (const struct pa_modules *)((u8 *)c + c->modules_offset);
	for (u32 tries = 0; tries < 3; tries++) {
		u32 seq = __atomic_load_n(&c->modules_seq, __ATOMIC_ACQUIRE);
		int found = modules_search(&tables[seq & 1], address, out);
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if (__atomic_load_n(&c->modules_seq, __ATOMIC_RELAXED) != seq)
			continue;
		if (found && (out->flags & PA_MODULE_OWN_INDEX))
			out->table += (u64)c;
		return found;
	}
	return 0;
}

#endif
