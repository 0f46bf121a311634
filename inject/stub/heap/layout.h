/* The heap profiler's part of the shared memory, from control.heap_offset on.  inject/heap_layout.py mirrors it.
 *
 *   struct pa_heap        sizes and places; then, on lines of their own, what threads hand out and add up
 *   threads_offset        struct pa_heap_thread[]   by thread pointer; each has one writer, its thread
 *   nodes.items_offset    struct pa_node[]          stacks, as a tree: return address and the caller's node
 *   sites.items_offset    struct pa_site[]          where blocks come from: size and node
 *   fans.items_offset     u32[PA_FAN] each          lists of nodes and sites, by hash (tree.h)
 *   regions_offset        u32[PA_REGIONS]           upper halves of return addresses, + 1
 *   directory_offset      u32[]                     which leaf holds the blocks of 4 MB of addresses
 *   wide_offset           u32[]                     which holds those of 64 MB that have no room there
 *   paged_offset          u32[]                     which holds those of 16 MB that have no room in either
 *   next_offset           u32[]                     by leaf of those: the one for what has no room there either
 *   leaves_offset         u32[65536] each           live blocks (blocks.h)
 *   sampled_offset        u64[256]                  sampled: live blocks (sampled_blocks.h), and from here on
 *   more_offset           u64[1024], u64[4096] ...  the further levels of that
 *   tallies_offset        struct pa_tally[]         and what is counted of each site
 *   patches_offset        struct pa_patch[]         attached: the words that lead to the hooks
 *   entries_offset        struct pa_entry[]         attached: the allocator's own code that does
 *   landings_offset       struct pa_landing[]       attached: the mappings that this code leads to first
 *   first_counts_offset   struct pa_heap_counts[]   of the first thread, by site
 *   pool_offset           pages                     of threads: struct pa_heap_counts pages, and private tables
 *
 * Sampled, threads_offset leads to contexts, which a thread has only while it records (sampled.c); what each thread
 * has for itself lies in private memory: struct pa_sampled.
 *
 * All of it is sparse: what is not used takes no memory.  All offsets but heap_offset count from struct pa_heap.
 * Nothing is locked: a thread that ends at any instruction leaves nothing held, at most one event half counted.
 */
#ifndef PA_HEAP_LAYOUT_H
#define PA_HEAP_LAYOUT_H

#include "../shared.h"

#define PA_HEAP_MAGIC 0x70616568746179f0UL
#define PA_HEAP_VERSION 5

/* Nodes below this have no return address: a stack's root, 1 + enum pa_end, says why it ended there. */
#define PA_FIRST_ITEM 16
#define PA_NO_STACK 15 /* the table of stacks is full */

/* A block's word: where in its 16 KB it begins, in 8 bytes, and its site. */
#define PA_SITE_BITS 21
#define PA_SITE_MASK ((1U << PA_SITE_BITS) - 1)

#define PA_LEAF_SHIFT 22 /* 4 MB of addresses */
#define PA_LEAF_WORDS 65536
#define PA_LEAF_MASK (PA_CROWDED - 1) /* of a directory's word: the leaf, 0: there is none */
#define PA_LINE_SHIFT 10 /* 1 KB of addresses has a cache line of words, where they are crowded */
#define PA_LINE_WORDS 16
#define PA_DIRECTORY (1U << (47 - PA_LEAF_SHIFT))
/* Else 4 KB have one; and where a KB's has no room 16 KB together, and then 4 KB as many as it takes. */
#define PA_WIDE_SHIFT 4
#define PA_WIDE_DIRECTORY (PA_DIRECTORY >> PA_WIDE_SHIFT)
#define PA_AREA (1UL << (PA_LINE_SHIFT + PA_WIDE_SHIFT))
#define PA_PAGED_SHIFT 2
#define PA_PAGED_DIRECTORY (PA_DIRECTORY >> PA_PAGED_SHIFT)
#define PA_CROWDED (1U << 31) /* of a word of this directory: its addresses are */
#define PA_CROWD 56 /* so many words of the four lines of an area are used then */

/* A node's number, and behind it that of the upper half of its address. */
#define PA_NODE_BITS 22
#define PA_REGIONS 1024
#define PA_LISTED 4 /* items in a row, before it is looked by hash (tree.h) */
#define PA_FAN_BITS 4
#define PA_FAN (1U << PA_FAN_BITS)

#define PA_FOLD_BYTES 65536 /* a thread adds its live bytes to the process's sum when so many have changed */

#define PA_REAL 11

struct pa_node {
	u32 address; /* the lower half of its return address */
	u32 under;   /* the caller's node; from bit PA_NODE_BITS on the number of the address's upper half */
	u32 child, next; /* references, tree.h: what is under it first; what else is under the same node */
};

struct pa_site {
	u32 size; /* as asked for, bytes: the lower half */
	u32 node; /* and from bit PA_NODE_BITS on the upper */
	u32 next; /* what else is under its node */
};

/* Items of one kind. */
struct pa_table {
	u64 items_offset;
	u32 most, pad0;
	u64 pad1[6];
	u32 used;    /* items from here on are not handed out yet */
	u32 refused; /* items there was no room for */
	u64 pad2[7];
};

struct pa_heap {
	/* Written by pyattach, constant. */
	u64 magic;
	u32 version, size; /* of this struct */
	u32 max_depth, flags;
	u64 sample_bytes; /* mean bytes between two sampled allocations; 0: all are recorded */
	u64 threads_offset;
	u64 directory_offset, wide_offset, paged_offset, next_offset, leaves_offset;
	u64 pool_offset;
	u32 thread_count, leaf_count; /* of threads: a power of two */
	u64 pool_pages;
	u64 tallies_offset;
	u64 patches_offset;
	u64 real[PA_REAL]; /* attached: the allocator's functions, in the order of struct pa_real */
	u32 patch_count; /* of patches_offset's: pyattach writes more, then has them made */
	u32 entry_count, landing_count;
	u32 pad0;
	u64 regions_offset, first_counts_offset;
	u64 sampled_offset, more_offset;
	u64 private_at; /* written by the stub, sampled: where its struct pa_sampled is, in the target */
	u64 entries_offset, landings_offset;
	u64 pad5[5];

	struct pa_table nodes, sites, fans;

	/* Handed out. */
	u64 pool_used; /* pages */
	u32 leaves_used;
	u32 threads_used;
	u32 expired;
	u32 at_exit; /* enum pa_at_exit */
	u32 first_taken; /* not 0: a thread has the counts at first_counts_offset */
	u32 blocks_level; /* sampled: the last level of live blocks there is */
	/* Events not recorded, by reason. */
	u64 without_thread, without_block;
	u64 private_bytes; /* of memory that is not in this file, at most */
	u64 nested; /* sampled: as each thread's where all are recorded */

	/* Live bytes as folded, their peak, and how often that has risen. */
	i64 live;
	i64 peak;
	u32 peak_seq;
	u32 pad3;
	u64 pad4[5];
};
#define PA_HEAP_WAITS 2 /* at exit(), for pyattach to look at the heap as it is then */

enum pa_at_exit {
	PA_EXIT_NOT_YET = 0,
	PA_EXIT_WAITS = 1,
	PA_EXIT_GOES_ON = 2, /* written by pyattach */
};
#define PA_HEAP_ATTACHED 1 /* blocks may be older than this, or freed unseen: what an address had before is replaced */

/* A word of the target that is made to lead to a hook, and back. */
struct pa_patch {
	u64 address;
	u64 before, after;
	u32 protection; /* of its page, PROT_*: it is given that again */
	u32 state;	/* enum pa_patch_state */
};
#define PA_PATCHES 65536
enum pa_patch_state {
	PA_PATCH_WANTED = 0,
	PA_PATCH_MADE = 1,
	PA_PATCH_REFUSED = 2, /* the word held something else, or could not be written */
	PA_PATCH_UNDONE = 3,
	PA_PATCH_LEFT = 4, /* so was it when it was to be undone */
};

/* A mapping near the allocator, where it is called at its entry: there the code lies that goes on to the hooks. */
struct pa_landing {
	u64 address;
	u32 bytes;
	u32 state; /* enum pa_patch_state */
};
#define PA_LANDINGS 16

/* A function of the allocator whose first instruction is made a jump (entries.c). */
struct pa_entry {
	u64 address;	   /* of the aligned word that is changed */
	u64 before, after; /* all of that word */
	u64 function;
	u64 lands_at; /* `code` lies there, in a landing: a jump to the hook; PA_THROUGH bytes on, the way past it */
	u64 jump_at;  /* where the first instruction has no room for the whole jump: it leads to padding, and that on */
	u8 code[48];
	u8 jump_before[8], jump_after[8];
	u32 landing; /* the number of its landing */
	u32 real;    /* bits: which of the allocator's functions it is */
	u32 protection;
	u32 state; /* enum pa_patch_state */
};
#define PA_ENTRIES 16
#define PA_THROUGH 16
#define PA_JUMP 5

/* One thread's counts of one site.  Live blocks: allocs less frees, over all threads.  A number that would outgrow its
 * word is left as it is, and new counts of the site begin: a thread may have several. */
struct pa_heap_counts {
	u32 site;
	u32 peak_seq; /* at_peak is how it was when the peak had risen so often */
	i32 allocs, frees;
	i32 temporary; /* freed by the thread that had allocated it, before it allocated anything else */
	i32 at_peak;
};
#define PA_COUNTS_IN_PAGE 170
#define PA_COUNTS_FULL (1 << 30)
struct pa_heap_page {
	u32 next; /* page of the pool + 1, 0: none */
	u32 used;
	u64 pad;
	struct pa_heap_counts counts[PA_COUNTS_IN_PAGE];
};

/* A frame of the thread's last walk. */
struct pa_walked {
	u64 ip, sp;
	u64 fp;    /* as it was when the frame was come to; of use where needs_fp */
	u64 fp_at; /* where the caller's fp was read; 0: it is the same */
	u32 node;
	u8 checked;  /* the return address below the caller's sp and the word at fp_at are all that the step read */
	u8 by_fp;    /* the step counted from fp */
	u8 needs_fp; /* this step or one further out depends on fp here */
	u8 pad;
};

/* A whole walk: where it began, the words that it read, and the node it came to (memo.h). */
#define PA_MEMO_WORDS 64
#define PA_MEMOS 128
#define PA_MEMO_WAYS 4 /* of so many any may be that of a walk */
struct pa_memo {
	u64 ip, sp, fp; /* ip is 0: none is kept here */
	u64 size;       /* of what was allocated there last */
	u32 counts;     /* and of its site, as pa_heap_recent's; 0: none */
	u32 generation, node;
	u32 span;    /* bytes from sp on, in which all the words are */
	u16 count;   /* of words */
	u8 needs_fp;
	u8 latest;   /* of the first of PA_MEMO_WAYS: which was used last */
	u32 pad;
	u16 at[PA_MEMO_WORDS]; /* in words from sp */
	u64 word[PA_MEMO_WORDS];
};

struct pa_heap_recent { /* a site looked for lately, of less than 4 GB */
	u32 size, node;
	u32 site;
	u32 counts; /* 8-byte words from the pool's begin */
};
struct pa_heap_child { /* a node looked for lately */
	u64 ip;
	u32 caller, node;
};
#define PA_RECENT 1024 /* of each */
#define PA_SAMPLED_RECENT 64

/* A thread, found by its thread pointer.  One that has ended leaves it to the next with that pointer. */
struct pa_heap_thread {
	u64 tp;
	u64 guard; /* the stack pointer of the hook that it is in, 0: in none */
	u64 stack_low, stack_high; /* known to be readable */
	u64 last;    /* the block it has allocated last, while it lives */
	i64 pending; /* live bytes not folded yet */
	u32 depth;   /* frames of the last walk */
	u32 generation;
	u32 end;     /* why it ended, enum pa_end */
	u32 events;  /* since the lease was looked at */
	u32 first_page, last_page; /* pages of counts, + 1 */
	u32 map_bits, map_used;
	u64 frames_at, scratch_at, recent_at, map_at; /* offsets; of the map: u32[1 << map_bits], as in `counts` */
	u64 unknown_frees; /* of blocks not seen before */
	u64 nested;        /* calls made inside a hook: of the allocator, or of a signal's handler */
	u64 lost;          /* calls there was no room for */
	u64 calls;
	u64 replaced;      /* blocks that were there still when their address was allocated again */
	u32 spare_page, spare_pages; /* what was a map is to be pages of counts: the first, + 1, and how many */
	u64 children_at;
	u64 room_at;
	u64 memos_at;
	u32 first; /* its counts are those at first_counts_offset */
	u32 children_mask; /* how many there are, less one */
	u64 pad[8];
};

/* Sampled.  A live block's word: its address, in 8 bytes, and its site. */
#define PA_SAMPLED_SITE_BITS 20
#define PA_SAMPLED_FIRST 256 /* words of the first level; each has four times as many as the one before */
#define PA_SAMPLED_LEVELS 10

/* All threads' counts of one site.  Live blocks: allocs less frees. */
struct pa_tally {
	u64 allocs, frees;
	u64 temporary;
	u64 at_peak; /* as in struct pa_heap_counts, and above 32 bits the peak_seq */
};

/* What a call that is not sampled needs, and what comes of it.  Found by the thread pointer. */
struct pa_sampled_thread {
	u64 tp;
	u64 until; /* so many bytes may be allocated before anything is to be done */
	u64 rest;  /* and so many more before the next sample */
	u64 guard; /* the stack pointer of the hook that it is in, as far as others have to know that */
	u64 last;  /* the block it has recorded last, and what was left then */
	u64 last_left;
	u64 random;
	u32 visits;
	u32 pad;
};

/* The stub's private memory, which the kernel wipes at fork: a child finds no thread there, and no block. */
#define PA_NEAR_THREADS 32
#define PA_FAR_THREADS 4096
#define PA_FILTER 6080 /* two pages, with what lies in front */
struct pa_sampled {
	struct pa_sampled_thread near[PA_NEAR_THREADS]; /* most programs' threads find room here */
	u32 mine; /* 0: pass on */
	u32 pad[15];
	u8 filter[PA_FILTER]; /* how many sampled blocks hash there; 255: that or more, from then on */
	struct pa_sampled_thread far[PA_FAR_THREADS];
};

_Static_assert(sizeof(struct pa_sampled_thread) == PA_LINE, "a line for each thread");
_Static_assert(__builtin_offsetof(struct pa_sampled, far) == 8192, "whole pages");
_Static_assert(sizeof(struct pa_heap_page) == 4096 && sizeof(struct pa_heap_counts) == 24, "counts");
_Static_assert(sizeof(struct pa_heap_thread) == 256, "whole lines");
_Static_assert(sizeof(struct pa_entry) == 128, "whole lines");
_Static_assert(sizeof(struct pa_node) == 16 && sizeof(struct pa_site) == 12, "items");
_Static_assert(sizeof(struct pa_table) % PA_LINE == 0 && (u64)PA_REGIONS << PA_NODE_BITS == 1UL << 32, "tables");
_Static_assert(__builtin_offsetof(struct pa_heap, nodes) % PA_LINE == 0, "the tables' lines");
_Static_assert(sizeof(struct pa_heap) % PA_LINE == 0, "whole lines");
_Static_assert(__builtin_offsetof(struct pa_heap, live) % PA_LINE == 0, "the sum's line");
_Static_assert(__builtin_offsetof(struct pa_heap, pool_used) % PA_LINE == 0, "the line of what is handed out");

#endif
