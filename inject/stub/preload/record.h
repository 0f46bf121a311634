/* Self-profiling: a program started with the stub preloaded and PYATTACH_OUT=FILE writes its own samples. */
#ifndef PA_RECORD_H
#define PA_RECORD_H

#include "../stub.h"

/* Begin, if `envp` asks for it.  Called by the constructor, on the main thread, before there is another. */
void record_begin(char **envp) HIDDEN;

/* record_maps.c: the mappings as the kernel tells them, appended to the log, and the module table made of them.
 * Returns 0 where they are as before. */
int record_maps(struct pa_control *c) HIDDEN;

/* Appends an entry to the log; lost and counted where there is no room.  One at a time (`arming` is held). */
void log_append(struct pa_control *c, u32 kind, const void *data, u32 size) HIDDEN;

static inline struct pa_log *log_of(struct pa_control *c)
{
	return (struct pa_log *)((u8 *)c + c->log_offset);
}

#endif
