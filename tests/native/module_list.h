/* The modules of a program as a plain list, for drivers that have no shared memory to look them up in. */
#ifndef MODULE_LIST_H
#define MODULE_LIST_H

#define MAX_MODULES 256

static struct pa_module modules[MAX_MODULES];
static u32 module_count;

static int find_module(void *arg, u64 address, struct pa_module *out)
{
	(void)arg;
	for (u32 i = 0; i < module_count; i++)
		if (address >= modules[i].start && address < modules[i].end) {
			*out = modules[i];
			return 1;
		}
	return 0;
}

#endif
