/* Making words of the target lead to the hooks, and back: on a borrowed thread, since a word that other threads call
 * through must change as a whole, which writes from outside do not promise.
 *
 * A word is changed only where it holds what pyattach has seen there.  It is looked at through the kernel first: its
 * library may have gone meanwhile.  Its page is made writable in any case: the dynamic linker may have taken that away
 * since pyattach has looked, and the store of a thread that has all signals blocked must not fail.
 */
#include "../memory.h"
#include "patch.h"

int word_change(u64 address, u32 protection, u64 from, u64 to)
{
	struct vm_reader reader = {ph.pid, ph.vm_read_forbidden};
	u64 page = address & ~(PAGE - 1), word = 0;
	int changed;
	if ((address & 7) || !vm_copy(&reader, &word, address, 8) || word != from)
		return 0;
	if (sys3(SYS_mprotect, page, PAGE, protection | PROT_WRITE))
		return 0;
	changed = __atomic_compare_exchange_n((u64 *)address, &from, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	if (!(protection & PROT_WRITE))
		sys3(SYS_mprotect, page, PAGE, protection);
	return changed;
}

static int change(const struct pa_patch *patch, u64 from, u64 to)
{
	return word_change(patch->address, patch->protection, from, to);
}

static struct pa_patch *patch_at(u32 i)
{
	return (struct pa_patch *)heap_at(ph.heap->patches_offset) + i;
}

static u32 patch_count(void)
{
	u32 count = __atomic_load_n(&ph.heap->patch_count, __ATOMIC_ACQUIRE);
	return count < PA_PATCHES ? count : PA_PATCHES;
}

void patches_make(void)
{
	for (u32 i = 0; i < patch_count(); i++) {
		struct pa_patch *patch = patch_at(i);
		if (patch->state == PA_PATCH_WANTED)
			patch->state = change(patch, patch->before, patch->after) ? PA_PATCH_MADE : PA_PATCH_REFUSED;
	}
}

void patches_undo(void)
{
	for (u32 i = 0; i < patch_count(); i++) {
		struct pa_patch *patch = patch_at(i);
		if (patch->state == PA_PATCH_MADE || patch->state == PA_PATCH_LEFT)
			patch->state = change(patch, patch->after, patch->before) ? PA_PATCH_UNDONE : PA_PATCH_LEFT;
	}
}
