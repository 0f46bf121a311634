/* Making the allocator's own code lead to the hooks, and back: for calls that go through no word that could be
 * changed.  Which bytes give way, and to what, pyattach has worked out (inject/entries.py):
 *
 *   malloc:   push %r12      -->   jmp landing       of this instruction alone bytes change, in one aligned word, by
 *             push %rbp            (push %rbp)       one store; those behind it are part of the jump as they are
 *
 *   landing:  jmp *hook
 *   +16:      push %r12; jmp *(malloc + 2)           what the hooks call in place of malloc from then on
 *
 * So a thread may be at any instruction meanwhile: none is cut in two.  Landings are written before they are made
 * executable, and those before any code leads there.
 *
 * Mostly one byte will do.  It is written through /proc/self/mem, which needs no page to be writable.  Several at once
 * the kernel may copy there one by one: those are stored here, the page being writable and executable both between two
 * system calls, as code that others run must not lose PROT_EXEC for an instant.  The kernel goes on to list that page
 * as a mapping of its own.
 */
#include "../memory.h"
#include "patch.h"

#ifndef PA_HEAP_PRELOADED

#define INT3 0xcc

u32 heap_passing;
extern u32 pa_passing __attribute__((alias("heap_passing"), visibility("default")));

static struct pa_entry *entry_at(u32 i)
{
	return (struct pa_entry *)heap_at(ph.heap->entries_offset) + i;
}

static struct pa_landing *landing_at(u32 i)
{
	return (struct pa_landing *)heap_at(ph.heap->landings_offset) + i;
}

static u32 entry_count(void)
{
	return ph.heap->entry_count < PA_ENTRIES ? ph.heap->entry_count : PA_ENTRIES;
}

static u32 landing_count(void)
{
	return ph.heap->landing_count < PA_LANDINGS ? ph.heap->landing_count : PA_LANDINGS;
}

static void copy(u64 to, const u8 *from, u32 bytes)
{
	for (u32 i = 0; i < bytes; i++)
		((volatile u8 *)to)[i] = from[i];
}

static int map_landing(u32 number)
{
	struct pa_landing *l = landing_at(number);
	i64 at = sys6(SYS_mmap, l->address, l->bytes, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, ~0UL, 0);
	if (at < 0 && at > -4096)
		return 0;
	if ((u64)at != l->address) { /* Linux before 4.17 takes the address for a wish */
		sys2(SYS_munmap, at, l->bytes);
		return 0;
	}
	/* Not zeros: behind code they are where the next thread that is borrowed would begin (inject/cave.py). */
	for (u64 i = 0; i < l->bytes; i++)
		((volatile u8 *)l->address)[i] = INT3;
	for (u32 i = 0; i < entry_count(); i++) {
		const struct pa_entry *e = entry_at(i);
		if (e->landing == number && e->lands_at >= l->address &&
		    e->lands_at + sizeof(e->code) <= l->address + l->bytes)
			copy(e->lands_at, e->code, sizeof(e->code));
	}
	if (!sys3(SYS_mprotect, l->address, l->bytes, PROT_READ | PROT_EXEC))
		return 1;
	sys2(SYS_munmap, l->address, l->bytes);
	return 0;
}

/* Write code that nobody runs, or one byte, in spite of its protection. */
static int write_code(u64 address, const void *from, u64 bytes)
{
	i64 fd = sys3(SYS_open, "/proc/self/mem", O_RDWR | O_CLOEXEC, 0), written;
	if (fd < 0)
		return 0;
	written = sys4(SYS_pwrite64, fd, from, bytes, address);
	sys1(SYS_close, fd);
	return written == (i64)bytes;
}

/* The one byte in which two words differ; 8: there are more. */
static u32 changed_byte(u64 a, u64 b)
{
	u32 at = (u32)__builtin_ctzl(a ^ b) / 8;
	return (a ^ b) >> (8 * at) > 0xff ? 8 : at;
}

static int entry_change(const struct pa_entry *e, u64 from, u64 to)
{
	struct vm_reader reader = {ph.pid, ph.vm_read_forbidden};
	u32 at = from == to ? 8 : changed_byte(from, to);
	u64 now = 0;
	if (at < 8 && vm_copy(&reader, &now, e->address, 8) && now == from &&
	    write_code(e->address + at, (const u8 *)&to + at, 1))
		return 1;
	return word_change(e->address, e->protection, from, to);
}

/* Padding between functions: nobody comes there before the entry leads there, nor when it is put back. */
static int padding_change(const struct pa_entry *e, const u8 *from, const u8 *to)
{
	struct vm_reader reader = {ph.pid, ph.vm_read_forbidden};
	u8 now[PA_JUMP];
	if (!vm_copy(&reader, now, e->jump_at, PA_JUMP))
		return 0;
	for (u32 i = 0; i < PA_JUMP; i++)
		if (now[i] != from[i])
			return 0;
	return write_code(e->jump_at, to, PA_JUMP);
}

/* What the hooks call: past the jump, or the function as it is. */
static void set_real(const struct pa_entry *e, u64 address)
{
	for (u32 i = 0; i < PA_REAL; i++)
		if (e->real & (1U << i))
			__atomic_store_n((u64 *)&ph.real + i, address, __ATOMIC_SEQ_CST);
}

static int make(const struct pa_entry *e)
{
	if (e->landing >= landing_count() || landing_at(e->landing)->state != PA_PATCH_MADE)
		return 0;
	if (e->jump_at && !padding_change(e, e->jump_before, e->jump_after))
		return 0;
	set_real(e, e->lands_at + PA_THROUGH);
	if (entry_change(e, e->before, e->after))
		return 1;
	set_real(e, e->function);
	if (e->jump_at)
		padding_change(e, e->jump_after, e->jump_before);
	return 0;
}

void entries_make(void)
{
	for (u32 i = 0; i < landing_count(); i++)
		if (landing_at(i)->state == PA_PATCH_WANTED)
			landing_at(i)->state = map_landing(i) ? PA_PATCH_MADE : PA_PATCH_REFUSED;
	for (u32 i = 0; i < entry_count(); i++) {
		struct pa_entry *e = entry_at(i);
		if (e->state == PA_PATCH_WANTED)
			e->state = make(e) ? PA_PATCH_MADE : PA_PATCH_REFUSED;
	}
}

void entries_undo(void)
{
	for (u32 i = 0; i < entry_count(); i++) {
		struct pa_entry *e = entry_at(i);
		if (e->state != PA_PATCH_MADE && e->state != PA_PATCH_LEFT)
			continue;
		e->state = entry_change(e, e->after, e->before) ? PA_PATCH_UNDONE : PA_PATCH_LEFT;
		if (e->state == PA_PATCH_UNDONE)
			set_real(e, e->function);
	}
}

static int is_needed(u32 landing)
{
	for (u32 i = 0; i < entry_count(); i++)
		if (entry_at(i)->landing == landing && entry_at(i)->state == PA_PATCH_LEFT)
			return 1;
	return 0;
}

void entries_end(void)
{
	for (u32 i = 0; i < entry_count(); i++) {
		const struct pa_entry *e = entry_at(i);
		if (e->jump_at && e->state == PA_PATCH_UNDONE)
			padding_change(e, e->jump_after, e->jump_before);
	}
	for (u32 i = 0; i < landing_count(); i++) {
		struct pa_landing *l = landing_at(i);
		if (l->state == PA_PATCH_MADE && !is_needed(i)) {
			sys2(SYS_munmap, l->address, l->bytes);
			l->state = PA_PATCH_UNDONE;
		}
	}
}

#endif
