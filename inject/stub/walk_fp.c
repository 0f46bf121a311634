/* The frame-pointer walk.  Each frame is checked before it is believed: a register that happens not to
 * hold a frame pointer must end the walk, not crash the target. */
#include "walk.h"

/* No frame is larger, and no stack of a thread is: what lies farther off is no frame. */
#define MAX_DISTANCE (256UL << 20)

/* Why `fp` can't be the next frame's address, or PA_END_ROOT when it can. */
static enum pa_end frame_fault(u64 fp, u64 sp)
{
	if (fp & 7)
		return PA_END_UNALIGNED;
	if (fp < sp || fp - sp > MAX_DISTANCE)
		return PA_END_OUTSIDE;
	return PA_END_ROOT;
}

enum pa_end pa_walk_fp(struct pa_regs regs, u64 *frames, u32 max, u32 *depth, pa_readable readable, void *arg)
{
	u64 fp = regs.fp, sp = regs.sp;
	u32 n = 1;
	enum pa_end end = PA_END_ROOT;

	frames[0] = regs.ip;
	/* Invariant: frames[0..n) are found, the next frame must lie at or above sp. */
	while (fp) {
		end = frame_fault(fp, sp);
		if (end != PA_END_ROOT)
			break;
		if (!readable(arg, fp, 16)) {
			end = PA_END_UNREADABLE;
			break;
		}
		u64 next = ((const u64 *)fp)[0], ret = ((const u64 *)fp)[1];
		if (!ret)
			break;
		if (ret < 4096 || ret >= USER_SPACE_END) {
			end = PA_END_BAD_RETURN;
			break;
		}
		if (n == max) {
			end = PA_END_DEPTH;
			break;
		}
		frames[n++] = ret;
		sp = fp + 16;
		if (next && next <= fp) {
			end = PA_END_NO_PROGRESS;
			break;
		}
		fp = next;
	}
	*depth = n;
	return end;
}
