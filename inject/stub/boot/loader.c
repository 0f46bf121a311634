/* Runs on the borrowed thread, on the boot area's stack, with all signals blocked: brings the stub in,
 * calls it, or takes it out.  Freestanding and position independent; one flat binary whose first
 * function is the entry.  Vector and x87 state is saved around everything, as dlopen uses it. */
#include "boot.h"
#include "../sys.h"

#define HIGHEST_ERROR 4095UL

typedef u64 (*dlopen_fn)(const char *, i32);
typedef i32 (*dlclose_fn)(u64);
typedef i32 *(*errno_fn)(void);

/* Room for XSAVE: 11 KiB with AMX, and what later processors add. */
#define XSAVE_ROOM 24576

static inline int failed(i64 value)
{
	return (u64)value > -HIGHEST_ERROR - 1;
}

/* How much XSAVE writes for the state the kernel has enabled; 0 where there is no XSAVE, only FXSAVE. */
static u32 xsave_bytes(void)
{
	u32 a = 1, b, c = 0, d;
	__asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	if (!(c & (1U << 27))) /* OSXSAVE */
		return 0;
	a = 0xd;
	c = 0;
	__asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	return b;
}

static void save_vectors(void *area, u32 bytes)
{
	if (bytes)
		__asm__ volatile("xsave64 (%0)" : : "r"(area), "a"(~0U), "d"(~0U) : "memory");
	else
		__asm__ volatile("fxsave64 (%0)" : : "r"(area) : "memory");
}

static void restore_vectors(void *area, u32 bytes)
{
	if (bytes)
		__asm__ volatile("xrstor64 (%0)" : : "r"(area), "a"(~0U), "d"(~0U) : "memory");
	else
		__asm__ volatile("fxrstor64 (%0)" : : "r"(area) : "memory");
}

/* 0, or the error to fail with where a test wants this step to. */
static i64 fault(const struct boot_args *a, enum boot_step step)
{
	return a->fault == step ? -EFAULT : 0;
}

/* A program that has all its memory locked (mlockall, MCL_FUTURE) is given every page of a new mapping at once: of the
 * heap's tables that would be gigabytes, of which hardly any are ever touched.  What can't be accessed is left out. */
static i64 map_untouched(const struct boot_args *a, i32 fd)
{
	i64 at = sys6(SYS_mmap, a->shared, a->shared_size, PROT_NONE, MAP_SHARED, (u64)fd, a->shared_offset), err;
	if (failed(at))
		return at;
	sys2(SYS_munlock, at, a->shared_size);
	err = sys3(SYS_mprotect, at, a->shared_size, PROT_READ | PROT_WRITE);
	if (err)
		sys2(SYS_munmap, at, a->shared_size);
	return err ? err : at;
}

static i64 map_shared(struct boot_args *a, i32 fd)
{
	i64 at = fault(a, BOOT_STEP_SHARED);
	if (!at)
		at = map_untouched(a, fd);
	if (failed(at)) {
		a->step = BOOT_STEP_SHARED;
		return at;
	}
	a->shared = (u64)at;
	/* Whoever finds the stub when its pyattach was killed needs it. */
	((struct pa_control *)at)->handle = a->handle;
	return 0;
}

/* dlopen and what it leaves behind: errno.  The handle is a struct link_map, whose first word is the
 * load address (glibc's link.h, musl's dynlink.c).  Its error text stays in the target. */
static i64 open_image(struct boot_args *a)
{
	i32 *errno_at = a->errno_location ? ((errno_fn)a->errno_location)() : 0;
	i32 errno_was = errno_at ? *errno_at : 0;
	a->handle = fault(a, BOOT_STEP_DLOPEN) ? 0 : ((dlopen_fn)a->dlopen)(a->path, (i32)a->dlopen_flags);
	if (errno_at)
		*errno_at = errno_was;
	if (!a->handle) {
		a->step = BOOT_STEP_DLOPEN;
		return -EINVAL;
	}
	a->base = *(u64 *)a->handle;
	return 0;
}

static i64 close_image(struct boot_args *a)
{
	i32 *errno_at = a->errno_location ? ((errno_fn)a->errno_location)() : 0;
	i32 errno_was = errno_at ? *errno_at : 0;
	i32 err = ((dlclose_fn)a->dlclose)(a->handle);
	if (errno_at)
		*errno_at = errno_was;
	a->step = err ? BOOT_STEP_UNLOAD : BOOT_STEP_NONE;
	return err ? -EINVAL : 0;
}

static i64 map_segment(const struct boot_segment *s, u64 base, i32 fd)
{
	u64 start = s->vaddr & ~4095UL, skew = s->vaddr - start;
	u64 file_end = (s->vaddr + s->file_bytes + 4095) & ~4095UL, end = (s->vaddr + s->memory_bytes + 4095) & ~4095UL;
	i64 at = 0;
	if (file_end > start)
		at = sys6(SYS_mmap, base + start, file_end - start, s->prot, MAP_PRIVATE | MAP_FIXED, (u64)fd,
			  s->offset - skew);
	if (failed(at))
		return at;
	if (end > file_end)
		at = sys6(SYS_mmap, base + file_end, end - file_end, s->prot,
			  MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, ~0UL, 0);
	if (failed(at))
		return at;
	if ((s->prot & PROT_WRITE) && s->memory_bytes > s->file_bytes)
		for (u64 p = base + s->vaddr + s->file_bytes; p < base + file_end; p++)
			*(volatile u8 *)p = 0;
	return 0;
}

/* Map the image without the loader: its segments, each with its own protection, never W and X at once.
 * It has no relocations to apply; the build checks that. */
static i64 map_image(struct boot_args *a, i32 fd)
{
	i64 at = sys6(SYS_mmap, 0, a->image_span, 0, MAP_PRIVATE | MAP_ANONYMOUS, ~0UL, 0);
	a->step = BOOT_STEP_IMAGE;
	if (failed(at))
		return at;
	a->base = (u64)at;
	for (u32 i = 0; i < a->segment_count; i++) {
		i64 err = i ? fault(a, BOOT_STEP_IMAGE) : 0;
		if (!err)
			err = map_segment(&a->segments[i], a->base, fd);
		if (err) {
			sys2(SYS_munmap, a->base, a->image_span);
			return err;
		}
	}
	a->step = BOOT_STEP_NONE;
	return 0;
}

static i64 remove_image(struct boot_args *a, int by_loader)
{
	return by_loader ? close_image(a) : sys2(SYS_munmap, a->base, a->image_span);
}

static i64 load(struct boot_args *a, i32 fd, int by_loader)
{
	i64 err = by_loader ? open_image(a) : map_image(a, fd);
	if (err)
		return err;
	err = map_shared(a, fd);
	if (!err) {
		if (fault(a, BOOT_STEP_CALL))
			((struct pa_control *)a->shared)->magic = 0;
		/* pa_init gives the shared memory back itself when it fails. */
		err = ((i64(*)(u64, u64))(a->base + a->call))(a->shared, a->shared_size);
		if (err)
			a->step = BOOT_STEP_CALL;
	}
	if (err) {
		u32 step = a->step;
		remove_image(a, by_loader);
		a->step = step;
	}
	return err;
}

static i64 unload(struct boot_args *a, int by_loader)
{
	i64 err = ((i64(*)(void))a->call)();
	if (!err && fault(a, BOOT_STEP_UNLOAD)) {
		a->step = BOOT_STEP_UNLOAD;
		err = -EFAULT;
	}
	return err ? err : remove_image(a, by_loader);
}

static i64 run(struct boot_args *a, i32 fd)
{
	if (a->command == BOOT_LOAD_DLOPEN || a->command == BOOT_LOAD_MAP)
		return load(a, fd, a->command == BOOT_LOAD_DLOPEN);
	if (a->command == BOOT_UNLOAD_DLCLOSE || a->command == BOOT_UNLOAD_MAP)
		return unload(a, a->command == BOOT_UNLOAD_DLCLOSE);
	if (a->command == BOOT_CALL)
		return ((i64(*)(void))a->call)();
	return -EINVAL;
}

__attribute__((section(".text.entry"), visibility("hidden"))) void loader(struct boot_args *a, i32 fd)
{
	_Alignas(64) u8 area[XSAVE_ROOM];
	/* XRSTOR wants the header's reserved bytes to be zero; the memfd is, but say so. */
	for (u32 i = 512; i < 576; i++)
		((volatile u8 *)area)[i] = 0;
	a->entered_ns = clock_ns();
	u32 bytes = xsave_bytes();
	if (bytes > sizeof(area)) {
		a->error = -EINVAL;
	} else {
		save_vectors(area, bytes);
		a->error = (i32)run(a, fd);
		restore_vectors(area, bytes);
	}
	a->left_ns = clock_ns();
	__atomic_store_n(&a->done, 1, __ATOMIC_RELEASE);
}
