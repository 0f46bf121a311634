/* The memory that pyattach and the stub share: one memfd, mapped shared into the target, opened by
 * pyattach.  inject/layout.py mirrors this file; a test compares the two, field by field.
 *
 *   offset 0                 struct pa_control     one writer for each cache line
 *   control.modules_offset   struct pa_modules[2]  where code and its unwind tables lie; one is in use
 *   control.index_offset     struct pa_index_entry[]  for modules without a search table of their own
 *   control.cache_offset     struct pa_cache_line[]   unwind rules found before
 *   control.slots_offset     struct pa_slot[]      one for each thread
 *   control.costs_offset     u32[PA_COSTS] each    how often its ticks took how long, one for each slot
 *   control.scratch_offset   u64[max_depth] each   where a handler walks, one for each slot
 *   control.kept_offset      struct pa_kept[]      its last walk (kept.h), and room for tables, one for each slot
 *   control.ring_offset      u64[]                 the ring, a power of two of bytes
 *   control.heap_offset      struct pa_heap        the heap profiler's, where there is one (heap/layout.h)
 *
 * The ring.  head and tail count 8-byte words since the start and never wrap; word w lies at
 * ring[w & (words - 1)].  A handler reserves by moving head, writes the record behind its first word,
 * and commits by storing that first word, which names the record's own position: what an earlier lap
 * left there names another, so nothing needs to be cleared and a record that was never committed is
 * seen as such.  A full ring drops and counts.
 */
#ifndef PA_SHARED_H
#define PA_SHARED_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef short i16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long u64;
typedef long i64;

#define PA_MAGIC 0x68636174746179f0UL /* "yattach" and a byte that is no text */
#define PA_VERSION 1
#define PA_LINE 64

/* So many frames of a thread's last walk are kept, in so many bytes; behind them there is room to read tables into. */
#define PA_KEPT 256
#define PA_KEPT_BYTES 16400UL
#define PA_ROOM_BYTES 3840UL
#define PA_WALK_BYTES (PA_KEPT_BYTES + PA_ROOM_BYTES)

/* Ticks of ours carry the session's tick_tag in the upper half of si_value, the slot's number in the
 * lower.  The tag is this with 16 random bits: the timers of a session that was killed may still tick. */
#define PA_TICK_TAG 0x70790000U

enum pa_state {
	PA_STATE_IDLE = 0,
	PA_STATE_RUN = 1,
	PA_STATE_STOP = 2, /* nothing is recorded any more, and ticks make no system call */
	PA_STATE_QUIT = 3, /* nothing is recorded any more, and the next tick deletes the timers */
};

/* A tick of the whole process's clock, in a program started with the stub preloaded: it serves threads
 * that no other tick could.  In the lower half of si_value, where others have the slot's number. */
#define PA_WAKE 0xffffffffU

/* A tick of the whole process's clock for threads that have no ticks of their own, or not yet: it samples the
 * thread it meets, unless that has. */
#define PA_STRAY 0xfffffffeU

/* Where the shared memory begins in the file that is preloaded; the stub's image lies in front of it. */
#define PA_PRELOAD_REGION 0x40000UL

/* glibc's SIGCANCEL: no program can block it by glibc's functions, and it has its default action until the first
 * pthread_cancel (from glibc 2.34 on), which then takes it without asking.  Its handler ignores our ticks. */
#define PA_SPARE_SIGNAL 32

/* A slot's life: pyattach writes tid, then WANTED; a handler takes it through ARMING to ARMED (or
 * FAILED, with the error); pyattach sets RETIRE once the thread is gone; a handler frees it.  Or pyattach
 * writes EVENT, and FREE in the end. */
enum pa_slot_state {
	PA_SLOT_FREE = 0,
	PA_SLOT_WANTED = 1,
	PA_SLOT_ARMING = 2,
	PA_SLOT_ARMED = 3,
	PA_SLOT_FAILED = 4,
	PA_SLOT_RETIRE = 5,
	PA_SLOT_EXPIRED = 6, /* the lease was gone: disarmed by the first tick that saw it */
	PA_SLOT_EVENT = 7,   /* pyattach's own perf event ticks, no timer is made; pyattach frees it */
};

/* Why a stack ended where it did. */
enum pa_end {
	PA_END_ROOT = 0,        /* the thread's first function: undefined or zero return address or frame pointer */
	PA_END_DEPTH = 1,       /* max_depth reached */
	PA_END_UNALIGNED = 2,   /* the frame pointer is no multiple of 8 */
	PA_END_OUTSIDE = 3,     /* it points below the stack pointer or too far above it */
	PA_END_UNREADABLE = 4,  /* memory of the stack can't be read */
	PA_END_BAD_RETURN = 5,  /* the return address is no user-space address */
	PA_END_NO_PROGRESS = 6, /* the caller's frame does not lie above */
	PA_END_NO_CFI = 7,      /* no call frame information, and no frame pointer to go on with */
	PA_END_BAD_CFI = 8,     /* call frame information that is malformed or asks for a lost register */
	PA_END_NONE = 255,      /* not ended */
};

struct pa_control {
	/* Written by pyattach before the stub is loaded, constant after that. */
	u64 magic;
	u32 version;
	u32 control_size;
	u64 nonce;
	u64 region_size;
	u64 period_ns; /* CPU time between two ticks of a thread */
	u32 slot_count;
	u32 max_depth;
	u64 slots_offset;
	u64 scratch_offset;
	u64 kept_offset;
	u64 ring_offset;
	u64 ring_words; /* a power of two */
	u32 signal;
	u32 unwind; /* enum pa_mode */
	u64 modules_offset;
	u64 index_offset;
	u64 cache_offset;
	u64 cache_lines; /* a power of two */
	u32 flags; /* PA_NO_VM_READ */
	u32 tick_tag;
	u64 jitter_ns; /* how much later than in even distances a timer may tick, by chance; 0: not at all */
	u32 event_base; /* pyattach's event for slot n is its file event_base + n: what si_fd says; 0: none */
	u32 spare_slots; /* so many at the end of the table are for ticks of threads that have none */
	u64 tick_ns; /* between two of the kernel's own ticks: timers tick with these */
	u64 costs_offset;
	u64 log_offset; /* of a program that records itself: struct pa_log; 0: none */
	u64 log_size;
	u64 heap_offset; /* struct pa_heap (heap/layout.h); 0: there is none */
	u32 spare_signal; /* one that threads don't block though they block `signal` (clock.py); 0: none */
	u32 pad1;
	u64 pad2[7];

	/* Written by pyattach while the stub runs. */
	u64 lease_until_ns; /* CLOCK_MONOTONIC as the target sees it */
	u64 tail;           /* words read */
	u32 state;          /* enum pa_state; the stub too sets STOP */
	u32 post_seq;       /* moved on after slots were set to WANTED or RETIRE */
	u32 modules_seq;    /* its lowest bit says which module table is in use */
	u32 slots_used;     /* slots from this one on have never been given to a thread */
	u32 rate_factor;    /* ticks come every period_ns times this; only ever made greater */
	u32 preload_pid;    /* the process to be sampled, where the stub is preloaded */
	u32 preparing;      /* pyattach has seen `here` and makes the tables: worth to be waited for */
	u32 stray;          /* 1: threads without ticks of their own are to be met by the process's clock */
	u32 owner_pid;      /* the pyattach that brought it in: whoever finds the stub asks whether that lives */
	u32 owner_namespace; /* the pid namespace in which that number counts (inode of /proc/PID/ns/pid) */
	u64 owner_start;    /* field 22 of its /proc/PID/stat: the number may be used again */

	/* Written by handlers. */
	u64 head; /* words reserved */
	u64 pad3[7];

	u32 inside;   /* handlers that run now */
	u32 seen_seq; /* the post_seq up to which slots were looked at */
	u32 arming;   /* taken by trying, never waited for */
	u32 idle_wakes; /* wake ticks in a row that found no lease */
	u64 foreign;  /* signals that were not ours, handed on */
	u64 expired;  /* ticks that found no lease */
	u64 handle;   /* the loader, before init: of dlopen; 0: the stub is mapped without */
	u64 pad4[3];

	/* Written by the ticks of the whole process's clock, one at a time (process.c). */
	i32 stray_timer_plus_1; /* the POSIX timer's id + 1 */
	u32 stray_periods;      /* the length of the present span: its sample stands for so many periods */
	u64 stray_cpu_ns;       /* CPU time of the process at which it begins */
	u64 stray_met_ns;       /* the same, when a thread without ticks of its own was last met */
	u64 stray_last_ns;      /* the same, at the latest tick */
	u64 stray_last_clock_ns; /* CLOCK_MONOTONIC then */
	u64 process_ticks;      /* ticks of the whole process's clocks, stray and wake */
	u64 process_cycles;     /* spent in those that took no sample */
	u32 stray_jump_ns;      /* CPU time of the process between two of the kernel's ticks, about */
	u32 stray_woke;         /* there are no more, since: 1: one has ended a system call of a thread that slept;
				 * 2: a thread's signal stack is too small for two signals */

	/* Written once, by init and by stop. */
	u64 init_clock_ns;
	u64 init_cycles;
	u64 stop_clock_ns;
	u64 stop_cycles;
	u64 old_handler; /* what `signal` did before: 0 default, 1 ignored, else a function */
	u64 old_flags;
	u32 timers_deleted;
	i32 last_error;        /* of the last timer that could not be made */
	u32 signal_given_back; /* bits 0: signal, 1: spare_signal; 0: the target has changed it, it was left alone */
	u32 here;              /* the preloaded stub was reached: the main thread is posted, in slot 0 */
};

#define PA_NO_VM_READ 1 /* don't try process_vm_readv, a filter may kill for it */

/* One executable range, or a part of one: [start, end) at run time, and where its unwind tables lie. */
struct pa_module {
	u64 start, end;
	u64 table;      /* address of .eh_frame_hdr; with PA_MODULE_OWN_INDEX offset of our index; 0: none */
	u64 table_size; /* bytes */
	u32 flags;
	u32 pad;
};
#define PA_MODULE_OWN_INDEX 1 /* `table` is an array of struct pa_index_entry in the shared memory */
#define PA_MODULE_ROOT 2      /* a function that nobody waits for: walks end there */
/* Code that changes the stack pointer alone: the frame pointer may lead to a frame on another stack. */
#define PA_MODULE_CHANGES_STACKS 4

struct pa_index_entry {
	u64 start, fde;
};

/* Sorted by start.  pyattach fills the table that is not in use, then moves modules_seq on. */
#define PA_MODULES 1024
struct pa_modules {
	u32 count;
	u32 pad[3];
	struct pa_module module[PA_MODULES];
};

/* One thread.  Counters are written by that thread's own ticks alone. */
struct pa_slot {
	u32 tid;
	u32 state;
	i32 timer_plus_1; /* the POSIX timer's id + 1; 0: none */
	i32 error;
	u64 samples;
	u64 missed; /* ticks that did not come: what samples weigh beyond one */
	u64 dropped;
	u64 cycles; /* spent in the handler */
	u64 last_clock_ns; /* both clocks at the start of the last sample */
	u64 last_cycles;
	u64 hits; /* of the rule cache */
	u64 misses;
	u64 cpu_ns; /* the thread's CPU time at which the next period begins that has no sample yet */
	u32 factor; /* the rate_factor its timer was armed with */
	u32 busy;  /* 1: its handler runs; 2: and a tick came meanwhile (handler.c) */
	u64 ticks; /* that came, also those that took no sample */
	char name[16]; /* of a thread that records itself, as last logged */
	u32 by_spare;  /* 1: it blocks the signal, its timer takes the spare one */
	u32 armed_cpu; /* the thread's CPU time when its timer was first made: 1024 ns, the lowest 32 bits; 0: not yet */
};

/* Ticks by how many cycles their handlers took: the first bucket ends at 1 << PA_COSTS_FROM, then four to each
 * octave, the last without end. */
#define PA_COSTS 64
#define PA_COSTS_FROM 9

/* What follows a record's first word.  frames[0] is where the tick hit, then return addresses. */
struct pa_record {
	u64 clock_ns;
	u32 tid;
	u16 depth;
	u8 end; /* enum pa_end */
	u8 flags;
	u32 weight; /* periods of CPU time this sample stands for */
	u32 slot;
	u64 frames[];
};

/* The first word: position in words (48 bits) and length in words, first word included (16 bits). */
#define PA_RECORD_WORD(position, words) (((position) << 16) | (words))

/* What a program that records itself writes beside its samples, for whoever reads them later. */
struct pa_log {
	u64 used; /* bytes of entries */
	u64 lost; /* entries there was no room for */
	u64 cpu_ns, clock_ns; /* of the process, at the latest look; CLOCK_MONOTONIC then */
	u64 began_ns; /* CLOCK_REALTIME */
	u64 pad[3];
};

enum pa_log_kind {
	PA_LOG_MAPS = 1,    /* lines of /proc/PID/maps: those of code, and of the files' first pages */
	PA_LOG_NAME = 2,    /* u32 tid, char[16] */
	PA_LOG_COMMAND = 3, /* /proc/PID/cmdline */
	PA_LOG_EXE = 4,     /* the link /proc/PID/exe */
};

struct pa_log_entry {
	u64 clock_ns;
	u32 kind;
	u32 size; /* of what follows, bytes; the next entry begins at a multiple of 8 */
};

/* What the stub exports as `pyattach_abi`, checked before it is brought in.  Its entry points are the
 * exported functions pa_init, pa_arm, pa_stop and pa_leave. */
struct pa_abi {
	u64 magic;
	u32 version;
	u32 control_size;
	u32 slot_size;
	u32 record_size;
};

_Static_assert(sizeof(struct pa_slot) == 2 * PA_LINE, "no two slots in a cache line");
_Static_assert(sizeof(struct pa_record) == 24, "record head");
_Static_assert(sizeof(struct pa_control) % PA_LINE == 0, "control is whole cache lines");
_Static_assert(__builtin_offsetof(struct pa_control, lease_until_ns) % PA_LINE == 0, "pyattach's line");
_Static_assert(__builtin_offsetof(struct pa_control, head) % PA_LINE == 0, "the ring's line");
_Static_assert(__builtin_offsetof(struct pa_control, inside) % PA_LINE == 0, "the handlers' line");
_Static_assert(__builtin_offsetof(struct pa_control, stray_timer_plus_1) % PA_LINE == 0, "the process clock's line");
_Static_assert(__builtin_offsetof(struct pa_control, init_clock_ns) % PA_LINE == 0, "the results' line");

#endif
