/* The unwinder on pyattach's own side: walks a thread that sleeps in the kernel, over /proc/PID/mem.
 *
 * Of such a thread the kernel tells two registers, the stack pointer and where it goes on; all else is
 * unknown until a frame has saved it (a lost frame pointer is looked for: lost.h).  Nothing here runs in the target or changes it.
 */
#include "cache.h"
#include "lost.h"
#include "modules.h"
#include "sys.h"

#define EXPORT __attribute__((visibility("default")))
#define PAGE 4096UL
#define WINDOW_PAGES 64
#define READ_PAGES 4

/* Kept by pyattach from walk to walk; inject/outside.py mirrors it. */
struct pa_outside {
	i32 memory; /* open file: /proc/PID/mem */
	u32 mode;   /* enum pa_mode */
	u32 generation; /* to be moved on when the modules change */
	u32 cache_lines; /* a power of two */
	const struct pa_modules *modules;
	u64 region; /* where the shared memory lies in the target: indexes of our own are offsets into it */
	struct pa_cache_line *cache;
	u64 (*start_of)(u64 address); /* where the function that it lies in starts, for code without tables; 0: unknown */
	u8 *window; /* pa_outside_window() bytes: the part of the stack that was copied */
};

/* One walk: the stack's bytes from `base` on lie in the window, up to `filled`. */
struct walk {
	struct pa_outside *o;
	struct pa_stack *stack;
	u64 base, filled;
	struct pa_room room;
};

static i64 read_memory(const struct pa_outside *o, void *to, u64 from, u64 bytes)
{
	return sys4(SYS_pread64, o->memory, to, bytes, from);
}

static int copy_table(void *arg, void *to, u64 from, u64 bytes)
{
	return from < USER_SPACE_END && read_memory(arg, to, from, bytes) == (i64)bytes;
}

static int find_module(void *arg, u64 address, struct pa_module *out)
{
	const struct pa_outside *o = arg;
	if (!modules_search(o->modules, address, out))
		return 0;
	if (out->flags & PA_MODULE_OWN_INDEX)
		out->table += o->region;
	return 1;
}

/* Begin the window anew at `page`.  Its last page stays where it goes on from there: a word may lie across. */
static void move_window(struct walk *w, u64 page)
{
	struct pa_stack *s = w->stack;
	int goes_on = s->high == page && s->high > s->low;
	w->base = goes_on ? page - PAGE : page;
	if (goes_on)
		__builtin_memcpy(w->o->window, (const void *)(page - PAGE + s->bias), PAGE);
	w->filled = page;
	s->bias = (u64)w->o->window - w->base;
	s->low = w->base;
	s->high = page; /* the caller makes it one page longer */
}

/* Asked by stack_word for a page that is not in [low, high): copies it into the window, and some more. */
static int copy_page(void *arg, u64 page)
{
	struct walk *w = arg;
	u64 room, size = READ_PAGES * PAGE;
	i64 got;
	if (page >= USER_SPACE_END)
		return 0;
	if (page != w->stack->high || page - w->base >= WINDOW_PAGES * PAGE)
		move_window(w, page);
	if (page + PAGE <= w->filled)
		return 1;
	room = w->base + WINDOW_PAGES * PAGE - page;
	got = read_memory(w->o, w->o->window + (page - w->base), page, size < room ? size : room);
	if (got < (i64)PAGE)
		return 0;
	w->filled = page + ((u64)got & ~(PAGE - 1));
	return 1;
}

EXPORT u64 pa_outside_window(void)
{
	return WINDOW_PAGES * PAGE;
}

/* Go on from `from`, the frame of addresses[first], with `fp` as its frame pointer. */
static enum pa_end go_on(struct pa_unwinder *u, const struct pa_frame *from, u64 fp, u64 *addresses, u32 first,
			 u32 max, u32 *depth)
{
	struct pa_frame frame = *from;
	enum pa_end end;
	frame.r[PA_REG_FP] = fp;
	frame.known |= 1U << PA_REG_FP;
	/* A walk looks its first address up as it is, and a return address is to be looked up one byte before. */
	frame.r[PA_REG_IP] -= first > 0;
	end = pa_walk(u, &frame, addresses + first, max - first, depth);
	addresses[first] += first > 0;
	*depth += first;
	return end;
}

/* The walk ended at `frame`, addresses[*depth - 1], for want of the frame pointer: find it in the stack. */
static enum pa_end find_and_go_on(struct pa_unwinder *u, const struct pa_frame *frame, enum pa_end end,
				  u64 *addresses, u32 max, u32 *depth)
{
	u32 first = *depth - 1, reached;
	struct lost lost;
	find_lost(u, frame->r[PA_REG_IP] - (first > 0), frame->r[PA_REG_SP], &lost);
	if (lost.proven)
		return go_on(u, frame, lost.proven, addresses, first, max, depth);
	for (u32 kind = 0; kind < 2; kind++)
		for (u32 i = 0; i < lost.guesses[kind]; i++)
			if (go_on(u, frame, lost.guess[kind][i], addresses, first, max, &reached) == PA_END_ROOT) {
				*depth = reached;
				return PA_END_ROOT;
			}
	return end;
}

/* Go's code has no tables, and its system calls are made by functions without a frame: the frame pointer is
 * known once a function with one was passed, which keeps its caller's below the return address. */
static int step_by_call(struct pa_unwinder *u, const struct pa_outside *o, u64 address, struct pa_frame *f)
{
	struct pa_module module;
	u64 start, sp = f->r[PA_REG_SP], at;
	if (!o->start_of || !find_module(u->modules, address, &module) || !(module.flags & PA_MODULE_CHANGES_STACKS))
		return 0;
	start = o->start_of(address);
	at = start ? find_return(u, start, sp) : 0;
	if (!at || !stack_word(&u->stack, at, &f->r[PA_REG_IP]))
		return 0;
	if (at != sp && stack_word(&u->stack, at - 8, &f->r[PA_REG_FP]))
		f->known |= 1U << PA_REG_FP;
	f->r[PA_REG_SP] = at + 8;
	return 1;
}

static struct pa_unwinder unwinder_of(struct pa_outside *o, struct walk *w)
{
	return (struct pa_unwinder){
		.stack = {.probe = copy_page, .arg = w},
		.tables = {copy_table, o, &w->room},
		.find_module = find_module,
		.modules = o,
		.cache = o->cache,
		.cache_lines = o->cache_lines,
		.generation = o->generation,
		.mode = o->mode,
	};
}

/* A stopped thread's whole stack, every frame of it certain: by the tables alone, with all registers known (in the
 * order of their DWARF numbers), no frame guessed.  A signal's frame is told as PA_END_NONE: whatever was interrupted
 * there.  Returns enum pa_end; PA_END_ROOT says that all of the stack was walked. */
EXPORT u32 pa_outside_walk_stopped(struct pa_outside *o, const u64 *registers, u64 *addresses, u32 max, u32 *depth)
{
	struct walk w = {.o = o};
	struct pa_unwinder u = unwinder_of(o, &w);
	struct pa_frame frame = {.known = (1U << PA_REGISTERS) - 1};
	u32 n = 0;
	int exact = 1;
	w.stack = &u.stack;
	u.mode = PA_UNWIND_CFI;
	for (u32 i = 0; i < PA_REGISTERS; i++)
		frame.r[i] = registers[i];
	*depth = 0;
	while (n < max) {
		u64 ip = frame.r[PA_REG_IP], sp = frame.r[PA_REG_SP];
		int signal;
		enum pa_end end;
		addresses[n++] = ip;
		*depth = n;
		end = pa_step(&u, exact ? ip : ip - 1, &frame, &signal);
		if (end != PA_END_NONE)
			return (u32)end;
		if (signal)
			return PA_END_NONE;
		exact = 0;
		if (!frame.r[PA_REG_IP])
			return PA_END_ROOT;
		if (n == 1 ? frame.r[PA_REG_SP] < sp : frame.r[PA_REG_SP] <= sp)
			return PA_END_NO_PROGRESS;
	}
	return PA_END_DEPTH;
}

/* Walk from (sp, ip), the only registers that are known; as pa_walk else.  Returns enum pa_end. */
EXPORT u32 pa_outside_walk(struct pa_outside *o, u64 sp, u64 ip, u64 *addresses, u32 max, u32 *depth)
{
	struct walk w = {.o = o};
	struct pa_unwinder u = unwinder_of(o, &w);
	struct pa_frame frame = {.known = 1U << PA_REG_SP | 1U << PA_REG_IP};
	enum pa_end end;
	w.stack = &u.stack;
	frame.r[PA_REG_SP] = sp;
	frame.r[PA_REG_IP] = ip;
	end = pa_walk(&u, &frame, addresses, max, depth);
	if (end == PA_END_BAD_CFI && !(frame.known >> PA_REG_FP & 1))
		end = find_and_go_on(&u, &frame, end, addresses, max, depth);
	while (end == PA_END_NO_CFI && !(frame.known >> PA_REG_FP & 1) && *depth < max) {
		u32 first = *depth;
		if (!step_by_call(&u, o, addresses[first - 1] - (first > 1), &frame))
			break;
		/* Looked up as it is, so one byte before: it is a return address. */
		frame.r[PA_REG_IP]--;
		end = pa_walk(&u, &frame, addresses + first, max - first, depth);
		addresses[first]++;
		*depth += first;
	}
	return (u32)end;
}
