/* The borrowing of a thread: what boot.S, loader.c and inject/borrow.py agree on.
 *
 *   in the target, at an address pyattach picked in a gap of its maps:
 *
 *   mail                  one private page; boot.S writes, pyattach reads (all that follows is
 *                         reserved with it, so that nothing of the target's can get in between)
 *     +0   the nonce, once the rest is valid
 *     +8   the memfd's number in the target, or a negative error
 *     +16  CLOCK_MONOTONIC when boot.S was ready for pyattach, ns
 *   mail + 4096           the boot area: BOOT_SIZE bytes of the memfd, shared, at offset `boot_offset`
 *     +0          struct boot_args
 *     +...        stack of the loader, growing down from the end
 *   mail + 4096 + BOOT_SIZE   the loader's code: LOADER_SIZE bytes of the memfd behind the boot area, r-x
 *
 * boot.S waits, for at most `limit_ns`, until the memfd has the size that pyattach gives it last: that
 * is the sign to go on.  pyattach never writes to the target's memory by address after the thread was
 * let go, only to the memfd; so it can come too late, or never, and nothing breaks.
 */
#ifndef PA_BOOT_H
#define PA_BOOT_H

#define MAIL_SIZE 4096
#define BOOT_SIZE 131072
#define LOADER_SIZE 8192

/* Offsets into the data block that pyattach writes in front of boot.S's code. */
#define D_RIP 0
#define D_RSP 8
#define D_RFLAGS 16
#define D_RAX 24
#define D_RBX 32
#define D_RCX 40
#define D_RDX 48
#define D_RSI 56
#define D_RDI 64
#define D_RBP 72
#define D_R8 80
#define D_R9 88
#define D_R10 96
#define D_R11 104
#define D_R12 112
#define D_R13 120
#define D_R14 128
#define D_R15 136
#define D_ALL_SIGNALS 144
#define D_OLD_MASK 152
#define D_MAIL 160
#define D_NONCE 168
#define D_FILE_SIZE 176
#define D_BOOT_OFFSET 184
#define D_LIMIT_NS 192
#define D_MEMFD_FLAGS 200
#define D_NAME 208 /* at most 32 bytes, the last of them 0 */
#define D_TIMER 240 /* one to delete first, plus 1; 0: none */
#define D_PROCESSOR 248
#define BOOT_DATA_SIZE 256

#ifndef __ASSEMBLER__
#include "../shared.h"

enum boot_command {
	BOOT_LOAD_DLOPEN = 1,
	BOOT_LOAD_MAP = 2,
	BOOT_CALL = 3,
	BOOT_UNLOAD_DLCLOSE = 4,
	BOOT_UNLOAD_MAP = 5,
};

/* Which step failed; `error` says how. */
enum boot_step {
	BOOT_STEP_NONE = 0,
	BOOT_STEP_SHARED = 1, /* mapping the shared memory */
	BOOT_STEP_DLOPEN = 2,
	BOOT_STEP_IMAGE = 3, /* mapping the stub directly */
	BOOT_STEP_CALL = 4,  /* the stub's own entry point */
	BOOT_STEP_UNLOAD = 5,
};

#define BOOT_SEGMENTS 6

struct boot_segment {
	u64 offset, vaddr, file_bytes, memory_bytes, prot;
};

struct boot_args {
	/* pyattach -> loader */
	u32 command;
	u32 segment_count;
	u64 dlopen, dlclose, errno_location; /* addresses in the target */
	u64 dlopen_flags;
	u64 call;   /* BOOT_LOAD_*: offset of pa_init in the image; BOOT_CALL, BOOT_UNLOAD_*: absolute address */
	u64 handle; /* of dlopen; written by BOOT_LOAD_DLOPEN */
	u64 base;   /* where the image lies; written by BOOT_LOAD_* */
	u64 image_span;
	u64 shared_offset, shared_size;
	struct boot_segment segments[BOOT_SEGMENTS];
	char path[192];
	u64 shared; /* where it is wanted, 0: anywhere; then where it lies */
	/* loader -> pyattach */
	u32 step;
	i32 error;
	u64 entered_ns, left_ns; /* CLOCK_MONOTONIC as the target sees it */
	u32 done;                /* 1: all of the above is valid */
	/* pyattach -> loader */
	u32 fault; /* enum boot_step: that one fails, for tests (inject/fault.py); 0: none */
};
_Static_assert(sizeof(struct boot_args) < 1024, "the stack is far away");
#endif

#endif
