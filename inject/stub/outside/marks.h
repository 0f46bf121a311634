/* The heap seen from outside: what is in it, and what of it the program can still reach.  inject/scan.py mirrors the
 * structs.  Nothing here runs in the target or changes it. */
#ifndef PA_MARKS_H
#define PA_MARKS_H

#include "sys.h"

#ifndef EXPORT
#define EXPORT __attribute__((visibility("default")))
#endif

#define PA_CHUNK_WORDS 6
#define PA_SCAN_BYTES 65536UL /* read at once */

/* A part of the target's memory, moved on by who reads. */
struct pa_window {
	u64 base, filled;
	u64 bytes[PA_SCAN_BYTES / 8];
};

struct pa_chunk {
	u64 address; /* of the block */
	u64 size;    /* bytes the program may use of it */
	u64 in_use;
	u64 words[PA_CHUNK_WORDS]; /* its first, 0 behind its end */
};

/* Sorted, without overlaps: [begins[i], ends[i]). */
struct pa_ranges {
	const u64 *begins, *ends;
	u64 count;
};

struct pa_marks {
	i32 memory; /* open file: /proc/PID/mem */
	u32 pad;
	struct pa_ranges blocks;
	struct pa_ranges skipped; /* memory that is no root: free chunks, and the like */
	u8 *reached;		  /* by block: 1 where something leads to it */
	u32 *queue;		  /* by block: those that were reached, in that order */
	u64 queued;
	u64 looked_through; /* of these the words have been looked at */
	u64 bytes;	    /* read so far */
	struct pa_window *window;
};

#endif
