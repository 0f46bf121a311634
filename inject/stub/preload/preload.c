/* The stub as a preloaded library: `pyattach run` starts a program with LD_PRELOAD=/proc/self/fd/N, where
 * N is a memfd that holds this library and, from PA_PRELOAD_REGION on, the shared memory.
 *
 * The dynamic linker runs pa_preload (DT_INIT) before all other constructors (DF_1_INITFIRST), on the main
 * thread, before there is a second one.  Nothing of the C library is used; it is not even set up yet.
 */
#include "../memory.h"
#include "../stub.h"
#include "record.h"

/* How long the program is held for pyattach to read its mappings: so long unless pyattach has been seen to
 * be at it, and then so long at most.  After that it starts with frame pointers alone. */
#define UNSEEN_NS 50000000UL
#define PREPARING_NS 1000000000UL
#define LOOK_NS 200000L

static const char ours[] = "LD_PRELOAD=/proc/self/fd/";
#define VALUE_OFFSET (sizeof("LD_PRELOAD=") - 1)

void pa_preload(void) HIDDEN;

#ifdef PA_HEAP_PRELOADED
#include "../heap/heap.h"

/* The dynamic linker itself may allocate before it comes to the constructor.  There is no second thread yet. */
void heap_begin(void)
{
	static u32 begun;
	if (begun++)
		return;
	if (real_find())
		pa_preload();
}
#endif

/* The environment on the stack, as the kernel laid it out and the C library goes on to use it: strings'
 * addresses, zero, then the auxiliary vector, which /proc shows and which is like nothing else on the stack.
 * glibc would hand the address over, musl does not.  0 where it is not found. */
#define AUXV_WORDS 8
#define MOST_WORDS (1U << 20)

static char **find_environment(void)
{
	u64 auxv[AUXV_WORDS] = {0};
	u64 *at = __builtin_frame_address(0);
	i64 fd = sys3(SYS_open, "/proc/self/auxv", O_RDONLY, 0);
	i64 got = fd < 0 ? fd : sys3(SYS_read, fd, auxv, sizeof(auxv));
	if (fd >= 0)
		sys1(SYS_close, fd);
	if (got != (i64)sizeof(auxv))
		return 0;
	for (u32 i = 0; i < MOST_WORDS; i++, at++) {
		u32 same = 0;
		if (!((u64)at & (PAGE - 1)) && !page_readable(0, (u64)at))
			return 0;
		while (same < AUXV_WORDS && at[same] == auxv[same])
			same++;
		if (same == AUXV_WORDS)
			break;
		if (i == MOST_WORDS - 1)
			return 0;
	}
	for (at--; at[-1]; at--) /* ends at the zero behind the arguments */
		;
	return (char **)at;
}

/* The number behind `ours`, or -1 where the string begins otherwise; *rest is what follows it. */
static i32 our_fd(char *entry, char **rest)
{
	u32 i = 0, number = 0;
	for (; ours[i]; i++)
		if (entry[i] != ours[i])
			return -1;
	if (entry[i] < '0' || entry[i] > '9')
		return -1;
	for (; entry[i] >= '0' && entry[i] <= '9' && number < 1U << 24; i++)
		number = number * 10 + (u32)(entry[i] - '0');
	*rest = entry + i;
	return (i32)number;
}

/* The environment as the user gave it: either his own LD_PRELOAD stood behind ours, or there was none. */
static void restore_environment(char **place, char *rest)
{
	char *entry = *place;
	if (*rest == ':') {
		char *to = entry + VALUE_OFFSET, *from = rest + 1;
		while ((*to++ = *from++))
			;
		while (to < from)
			*to++ = 0;
		return;
	}
	for (; *entry; entry++)
		*entry = 0;
	do {
		place[0] = place[1];
	} while (*place++);
}

/* The shared memory of the file, or 0 where it is none of ours or not meant for this process. */
static struct pa_control *map_region(i32 fd)
{
	struct pa_control *c, head;
	if (sys4(SYS_pread64, fd, &head, sizeof(head), PA_PRELOAD_REGION) != (i64)sizeof(head))
		return 0;
	if (head.magic != PA_MAGIC || head.preload_pid != (u32)sys0(SYS_getpid))
		return 0;
	c = (struct pa_control *)sys6(SYS_mmap, 0, head.region_size, PROT_READ | PROT_WRITE, MAP_SHARED, (u64)fd,
				      PA_PRELOAD_REGION);
	return (u64)c > -4096UL ? 0 : c;
}

/* Whether sampling is to begin: pyattach may say no. */
static int wait_for_tables(struct pa_control *c)
{
	struct timespec pause = {0, LOOK_NS};
	u64 begin = clock_ns(), waited = 0;
	u32 idle = PA_STATE_IDLE;
	while (waited < (__atomic_load_n(&c->preparing, __ATOMIC_RELAXED) ? PREPARING_NS : UNSEEN_NS)) {
		if (__atomic_load_n(&c->state, __ATOMIC_ACQUIRE) != PA_STATE_IDLE)
			break;
		sys2(SYS_nanosleep, &pause, 0);
		waited = clock_ns() - begin;
	}
	__atomic_compare_exchange_n(&c->state, &idle, PA_STATE_RUN, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
	return __atomic_load_n(&c->state, __ATOMIC_ACQUIRE) == PA_STATE_RUN;
}

#ifdef PA_HEAP_PRELOADED
static void not_started_by_pyattach(char **all)
{
	(void)all;
}

static void begin(struct pa_control *c)
{
	__atomic_store_n(&c->here, 1, __ATOMIC_RELEASE);
	if (wait_for_tables(c))
		pa_init(c, c->region_size);
}
#else
static void not_started_by_pyattach(char **all)
{
	if (all)
		record_begin(all);
}

static void begin(struct pa_control *c)
{
	struct pa_slot *slot = slot_at(c, 0);
	slot->tid = c->preload_pid;
	slot->state = PA_SLOT_WANTED;
	__atomic_store_n(&c->here, 1, __ATOMIC_RELEASE);
	if (wait_for_tables(c) && !pa_init(c, c->region_size))
		wake_begin(c);
}
#endif

void pa_preload(void)
{
	char **all = find_environment(), **envp = all;
	struct pa_control *c = 0;
	char *rest = 0;
	i32 fd = -1;
	for (; envp && *envp && (fd = our_fd(*envp, &rest)) < 0; envp++)
		;
	if (fd < 0) {
		not_started_by_pyattach(all);
		return;
	}
	c = map_region(fd);
	restore_environment(envp, rest);
	sys1(SYS_close, fd);
	if (c)
		begin(c);
}
