/* The stub's entry points.  They run on a borrowed thread, on a stack of pyattach's own, with all
 * signals blocked, called by boot/loader.c.  Each returns 0 or a negative error number. */
#include "stub.h"

#define PR_GET_TSC 25
#define PR_TSC_ENABLE 1

/* How many timers one borrowing makes at most: the thread is held meanwhile.  Ticks make the rest. */
#define ARM_LIMIT 128

struct pa_private pa;

EXPORT const struct pa_abi pyattach_abi = {
	.magic = PA_MAGIC,
	.version = PA_VERSION,
	.control_size = sizeof(struct pa_control),
	.slot_size = sizeof(struct pa_slot),
	.record_size = sizeof(struct pa_record),
};

EXPORT i64 pa_arm(void);
EXPORT i64 pa_stop(void);
EXPORT i64 pa_leave(void);

DEFINE_RESTORER(pa_restorer);

static int may_count_cycles(void)
{
	u32 mode = 0;
	return sys2(SYS_prctl, PR_GET_TSC, &mode) == 0 && mode == PR_TSC_ENABLE;
}

static int fits(const struct pa_control *c, u64 region_size)
{
	return c->magic == PA_MAGIC && c->version == PA_VERSION && c->control_size == sizeof(*c) &&
	       c->region_size <= region_size && c->period_ns && c->max_depth &&
	       c->ring_words && !(c->ring_words & (c->ring_words - 1)) &&
	       c->ring_offset + c->ring_words * 8 <= region_size &&
	       c->cache_lines && !(c->cache_lines & (c->cache_lines - 1)) &&
	       c->modules_offset + 2 * sizeof(struct pa_modules) <= region_size &&
	       c->cache_offset + c->cache_lines * 32 <= region_size &&
	       c->slots_offset + c->slot_count * sizeof(struct pa_slot) <= region_size &&
	       c->costs_offset + (u64)c->slot_count * PA_COSTS * 4 <= region_size && c->tick_ns &&
	       c->scratch_offset + (u64)c->slot_count * c->max_depth * 8 <= region_size &&
	       c->kept_offset + c->slot_count * PA_WALK_BYTES <= region_size;
}

static i64 make_private_page(void)
{
	i64 page = sys6(SYS_mmap, 0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, ~0UL, 0);
	if (page < 0)
		return page;
	i64 err = sys3(SYS_madvise, page, 4096, MADV_WIPEONFORK);
	if (err) {
		sys2(SYS_munmap, page, 4096);
		return err;
	}
	pa.mine = (volatile u32 *)page;
	return 0;
}

/* While a handler runs all signals are blocked but ours.  A thread that begins to block one that the process has
 * pending, as when its own tick and the process's come together, hands that to another thread, and wakes one that
 * sleeps for it (kernel/signal.c, retarget_shared_pending). */
static i64 take(const struct pa_control *c, u32 signal)
{
	struct kernel_sigaction action = {
		.handler = (u64)pa_handler,
		.flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK | SA_NODEFER | SA_RESTORER,
		.restorer = (u64)pa_restorer,
		.mask = ~(1UL << (c->signal - 1)),
	};
	if (c->spare_signal)
		action.mask &= ~(1UL << (c->spare_signal - 1));
	return sys4(SYS_rt_sigaction, signal, &action, 0, 8);
}

/* Programs started by posix_spawn (make does that), and all below them, have the C library's own signals ignored. */
static int is_unused(const struct kernel_sigaction *action)
{
	return action->handler == SIG_DFL || action->handler == SIG_IGN;
}

static i64 take_signals(struct pa_control *c)
{
	i64 err = sys4(SYS_rt_sigaction, c->signal, 0, &pa.old, 8);
	if (err)
		return err;
	c->old_handler = pa.old.handler;
	c->old_flags = pa.old.flags;
	if (c->spare_signal && (sys4(SYS_rt_sigaction, c->spare_signal, 0, &pa.old_spare, 8) || !is_unused(&pa.old_spare)))
		c->spare_signal = 0; /* taken meanwhile */
	pa.spare_signal = c->spare_signal;
	err = take(c, c->signal);
	if (!err && c->spare_signal && take(c, c->spare_signal))
		c->spare_signal = 0;
	return err;
}

/* Ignoring it first discards ticks that are still pending: with SIG_DFL in place one of them would kill the target.
 * What the target itself has installed since is left alone. */
static int give_back(u32 signal, const struct kernel_sigaction *old)
{
	struct kernel_sigaction now, ignore = {.handler = SIG_IGN};
	if (sys4(SYS_rt_sigaction, signal, 0, &now, 8) || now.handler != (u64)pa_handler)
		return 0;
	sys4(SYS_rt_sigaction, signal, &ignore, 0, 8);
	sys4(SYS_rt_sigaction, signal, old, 0, 8);
	return 1;
}

static void give_signals_back(struct pa_control *c)
{
	u32 given = give_back(c->signal, &pa.old) ? 1 : 0;
	if (c->spare_signal && give_back(c->spare_signal, &pa.old_spare))
		given |= 2;
	c->signal_given_back |= given; /* called again it finds nothing to do */
}

static void let_go(struct pa_control *c, u64 region_size)
{
	if (pa.mine)
		sys2(SYS_munmap, pa.mine, 4096);
	pa.mine = 0;
	pa.control = 0;
	sys2(SYS_munmap, c, region_size);
}

EXPORT i64 pa_init(struct pa_control *c, u64 region_size)
{
	i64 err = -EINVAL;
	/* An image that is in use already, which the loader has taken for ours: hands off. */
	if (pa.control) {
		sys2(SYS_munmap, c, region_size);
		return -EBUSY;
	}
	if (!fits(c, region_size))
		goto fail;
	err = sys3(SYS_madvise, c, region_size, MADV_DONTFORK);
	if (err)
		goto fail;
	err = make_private_page();
	if (err)
		goto fail;
	pa.counts_cycles = (u32)may_count_cycles();
	pa.pid = (u32)sys0(SYS_getpid);
	pa.vm_read_forbidden = c->flags & PA_NO_VM_READ;
	pa.control = c;
	*pa.mine = 1;
	err = take_signals(c);
	if (err)
		goto fail;
	c->init_clock_ns = clock_ns();
	c->init_cycles = cycles_now();
	timers_serve(c, ARM_LIMIT);
	return 0;
fail:
	let_go(c, region_size);
	return err;
}

EXPORT i64 pa_arm(void)
{
	stray_end(pa.control); /* boot.S has deleted it, and it is begun anew */
	timers_serve(pa.control, ARM_LIMIT);
	return 0;
}

/* No tick after this.  Handlers that run already end by themselves; pyattach looks until they have. */
EXPORT i64 pa_stop(void)
{
	struct pa_control *c = pa.control;
	__atomic_store_n(&c->state, PA_STATE_STOP, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* may_tick */
	c->timers_deleted = timers_delete_all(c);
	give_signals_back(c);
	c->stop_clock_ns = clock_ns();
	c->stop_cycles = cycles_now();
	return 0;
}

/* The last call before the image goes: only its memory is left to give back. */
EXPORT i64 pa_leave(void)
{
	let_go(pa.control, pa.control->region_size);
	return 0;
}
