/* What the stub's files know of each other. */
#ifndef PA_STUB_H
#define PA_STUB_H

#include "shared.h"
#include "sys.h"

#ifndef EXPORT
#define EXPORT __attribute__((visibility("default")))
#endif
#ifndef HIDDEN
#define HIDDEN __attribute__((visibility("hidden")))
#endif

/* Private to this process.  `mine` lies on a page that the kernel wipes at fork (MADV_WIPEONFORK): a
 * child reads 0 there and keeps its hands off the shared memory, which it has not got (MADV_DONTFORK). */
struct pa_private {
	struct pa_control *control;
	volatile u32 *mine;
	u32 counts_cycles;
	u32 pid;
	u32 vm_read_forbidden;
	void (*on_wake)(struct pa_control *, const void *ucontext); /* what a wake tick does beside, where nobody reads along */
	u32 spare_signal; /* as in control, which a child has not got */
	struct kernel_sigaction old, old_spare;
};
extern struct pa_private pa HIDDEN;

static inline struct pa_slot *slot_at(struct pa_control *c, u32 index)
{
	return (struct pa_slot *)((u8 *)c + c->slots_offset) + index;
}

/* The cycle counter, or 0 where the target forbade itself to read it (prctl PR_SET_TSC). */
static inline u64 cycles_now(void)
{
	return pa.counts_cycles ? cycle_counter() : 0;
}

/* Work for the whole process is done in small bites, so that no tick takes long. */
#define SERVE_LIMIT 16

#define NO_SLOT (~0U)

/* No sample stands for more: a thread that could not be ticked for hours says nothing of what it did. */
#define MOST_PERIODS 60000

u32 rate_factor(const struct pa_control *c) HIDDEN;
/* Slots from this one on have never been used, their memory was never touched. */
u32 slots_used(const struct pa_control *c) HIDDEN;
/* First at `first_ns` (from now, or with TIMER_ABSTIME of the clock's own time), then every `period_ns`. */
i64 set_timer(i32 timer, u32 how, u64 first_ns, u64 period_ns) HIDDEN;
/* Whether a timer that was made just now, its number stored, may be set: else it is to be deleted. */
int may_tick(struct pa_control *c) HIDDEN;
/* timers.c: make the timer of the slot's thread. */
void timer_arm(struct pa_control *c, struct pa_slot *slot, u32 index) HIDDEN;
/* Look at the slots pyattach posted; arm or free at most `limit` of them. */
void timers_serve(struct pa_control *c, u32 limit) HIDDEN;
/* Called by the slot's own thread after each tick: set the next, or take a rate_factor that has changed. */
void timer_again(struct pa_control *c, struct pa_slot *slot, u64 cpu_ns, u64 random) HIDDEN;
void timer_disarm(struct pa_slot *slot, u32 state) HIDDEN;
/* All timers go, the process's too, unless somebody makes some just now: then at the next tick.  With
 * PA_SLOT_EXPIRED they are made anew, should pyattach live. */
void timers_drop(struct pa_control *c, u32 state) HIDDEN;
u32 timers_delete_all(struct pa_control *c) HIDDEN;

/* process.c: the whole process's clock, for threads without ticks of their own.  The one call of `stray_begin` at
 * a time makes the timer, where it is wanted and not there. */
void stray_begin(struct pa_control *c) HIDDEN;
void stray_end(struct pa_control *c) HIDDEN;
/* Whether ticks go on, of this timer; deletes it where they don't. */
int stray_goes_on(struct pa_control *c, i32 timer) HIDDEN;
/* The span that `cpu_ns` of the process's time lies in ends: for how many periods its sample stands; 0: it has not
 * even begun. */
u32 stray_span(struct pa_control *c, u64 cpu_ns) HIDDEN;
/* A slot to sample this thread with, or NO_SLOT where it has ticks of its own (or none is free). */
u32 stray_take(struct pa_control *c) HIDDEN;
/* Set the next tick; `met`: this one met a thread without ticks. */
void stray_next(struct pa_control *c, u64 cpu_ns, u64 clock_ns, int met) HIDDEN;
void wake_begin(struct pa_control *c) HIDDEN;
void wake_tick(struct pa_control *c, i32 timer, const void *ucontext) HIDDEN;

/* stub.c */
EXPORT i64 pa_init(struct pa_control *c, u64 region_size);

/* handler.c */
void pa_handler(int signo, struct siginfo *info, void *ucontext) HIDDEN;

#endif
