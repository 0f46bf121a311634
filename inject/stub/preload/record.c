/* Nobody is beside: this file does what pyattach does otherwise.  The shared memory is the file that PYATTACH_OUT
 * names, so what was sampled is there however the program ends; the ring is never read, so it holds the whole
 * run or says what it had no room for.  `pyattach report` reads it.
 *
 *   PYATTACH_OUT      the file; %p is the process id, and only then do programs that this one starts get files too
 *   PYATTACH_HZ       10 to 1000 (99)
 *   PYATTACH_MB       room for samples, 1 to 4096 (64); the file is sparse
 *   PYATTACH_THREADS  all, main, or names with or without a * at their end, between commas
 */
#include "../memory.h"
#include "../unwind.h"
#include "record.h"

#define SYS_write 1
#define SYS_ftruncate 77
#define SYS_readlink 89
#define O_CREAT 0100
#define O_TRUNC 01000
#define O_NOFOLLOW 0400000
#define CLOCK_REALTIME 0
#define CLOCK_MONOTONIC_COARSE 6
#define SYS_clock_getres 229
#define SYS_tgkill 234
#define SYS_getrlimit 97
#define RLIMIT_FSIZE 1
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#define PR_GET_NAME 16
#define ESRCH 3
#define SIGURG 23 /* ignored where it is not handled, and hardly ever is (attacher/clock.py) */

#define SLOTS 1024
#define SPARE_SLOTS 4
#define MAX_DEPTH 512
#define INDEX_BYTES (4UL << 20) /* inject/region.py */
#define CACHE_LINES (1UL << 13)
#define CACHE_LINE 32UL
#define LOG_BYTES (8UL << 20)
#define NAMES 256 /* bytes of PYATTACH_THREADS */
#define RING_STEP (1UL << 15) /* words; more than all threads write in 50 ms of CPU time */

/* The mappings are looked at once in so long, and more often while the program is young. */
#define LOOK_NS 1000000000UL
#define YOUNG_NS 2000000000UL
#define YOUNG_LOOK_NS 50000000UL

static char wanted_names[NAMES]; /* "": all */
static u64 looked_ns, began_ns;

static u32 length_of(const char *text)
{
	u32 n = 0;
	while (text[n])
		n++;
	return n;
}

static void complain(const char *what)
{
	static const char head[] = "pyattach: nothing is sampled: ";
	sys3(SYS_write, 2, head, sizeof(head) - 1);
	sys3(SYS_write, 2, what, length_of(what));
	sys3(SYS_write, 2, "\n", 1);
}

/* The value of `name`, "PYATTACH_...=", or 0; *place is where it stands. */
static char *value_of(char **envp, const char *name, char ***place)
{
	for (; *envp; envp++) {
		u32 i = 0;
		while (name[i] && (*envp)[i] == name[i])
			i++;
		if (!name[i]) {
			if (place)
				*place = envp;
			return *envp + i;
		}
	}
	return 0;
}

/* The number of PYATTACH_..., `otherwise` where it is not set; 0 where it is none from `least` to `most`. */
static u64 number_of(char **envp, const char *name, u64 otherwise, u64 least, u64 most)
{
	const char *text = value_of(envp, name, 0);
	u64 value = 0;
	if (!text)
		return otherwise;
	for (; *text >= '0' && *text <= '9' && value <= most; text++)
		value = value * 10 + (u64)(*text - '0');
	return *text || value < least || value > most ? 0 : value;
}

/* `pattern` with %p as the process id, into `path`; whether it had one.  -1: too long. */
static i32 expand(const char *pattern, char *path, u32 room, u32 pid)
{
	u32 at = 0;
	i32 has_pid = 0;
	for (; *pattern; pattern++) {
		if (pattern[0] == '%' && pattern[1] == 'p') {
			char digits[12];
			u32 n = 0;
			for (u32 rest = pid; rest || !n; rest /= 10)
				digits[n++] = (char)('0' + rest % 10);
			while (n && at < room - 1)
				path[at++] = digits[--n];
			has_pid = 1;
			pattern++;
		} else if (at < room - 1) {
			path[at++] = *pattern;
		}
		if (at >= room - 1)
			return -1;
	}
	path[at] = 0;
	return has_pid;
}

static u64 pages(u64 bytes)
{
	return (bytes + PAGE - 1) & ~(PAGE - 1);
}

/* As inject/region.py divides it; the log behind. */
static void divide(struct pa_control *c, u64 ring_words)
{
	c->modules_offset = pages(sizeof(*c));
	c->index_offset = pages(c->modules_offset + 2 * sizeof(struct pa_modules));
	c->cache_offset = c->index_offset + INDEX_BYTES;
	c->slots_offset = pages(c->cache_offset + CACHE_LINES * CACHE_LINE);
	c->costs_offset = pages(c->slots_offset + SLOTS * sizeof(struct pa_slot));
	c->scratch_offset = pages(c->costs_offset + SLOTS * PA_COSTS * 4);
	c->kept_offset = pages(c->scratch_offset + (u64)SLOTS * MAX_DEPTH * 8);
	c->ring_offset = pages(c->kept_offset + SLOTS * PA_WALK_BYTES);
	c->ring_words = ring_words;
	c->cache_lines = CACHE_LINES;
	c->region_size = pages(c->ring_offset + ring_words * 8);
	c->log_offset = c->region_size;
	c->log_size = LOG_BYTES;
}

static void fill(struct pa_control *c, u32 pid, u64 hz)
{
	struct timespec tick = {0, 4000000};
	sys2(SYS_clock_getres, CLOCK_MONOTONIC_COARSE, &tick);
	c->version = PA_VERSION;
	c->control_size = sizeof(*c);
	c->nonce = clock_ns() * 0x9e3779b97f4a7c15UL ^ pid;
	c->period_ns = 1000000000UL / hz;
	c->slot_count = SLOTS;
	c->max_depth = MAX_DEPTH;
	c->signal = SIGURG;
	c->unwind = PA_UNWIND_AUTO;
	c->tick_tag = PA_TICK_TAG | (u32)(c->nonce >> 48);
	c->tick_ns = (u64)tick.nsec;
	c->jitter_ns = c->period_ns > c->tick_ns ? c->period_ns - c->tick_ns : 0;
	c->lease_until_ns = ~0UL;
	c->rate_factor = 1;
	c->preload_pid = pid;
	if (!wanted_names[0]) {
		c->spare_slots = SPARE_SLOTS;
		c->stray = 1;
	}
	c->post_seq = 1;
	c->slots_used = 1;
	c->state = PA_STATE_RUN;
	/* Last: a file that bears it is read as a recording, which may be at any moment. */
	__atomic_store_n(&c->magic, PA_MAGIC, __ATOMIC_RELEASE);
}

/* Whether the disk has room for this part of the file, which it keeps from then on: a store into a page that it has no
 * room for would end the program (SIGBUS).  Before Linux 5.14 it can't be asked. */
static int has_room(const void *at, u64 bytes)
{
	u64 start = (u64)at & ~(PAGE - 1);
	i64 err = sys3(SYS_madvise, start, pages((u64)at + bytes) - start, MADV_POPULATE_WRITE);
	return !err || err == -EINVAL;
}

/* The same for all that belongs to a slot. */
static int slot_has_room(struct pa_control *c, u32 index)
{
	const u8 *base = (const u8 *)c;
	return has_room(slot_at(c, index), sizeof(struct pa_slot)) &&
	       has_room(base + c->costs_offset + (u64)index * PA_COSTS * 4, PA_COSTS * 4) &&
	       has_room(base + c->scratch_offset + (u64)index * c->max_depth * 8, c->max_depth * 8UL) &&
	       has_room(base + c->kept_offset + index * PA_WALK_BYTES, PA_WALK_BYTES);
}

/* Nobody reads the ring: `tail` is where its size reaches to the end of what the disk has room for. */
static int ring_has_room(struct pa_control *c)
{
	u64 room = c->tail + c->ring_words, head = __atomic_load_n(&c->head, __ATOMIC_RELAXED);
	if (room - head >= RING_STEP || room == c->ring_words)
		return 1;
	if (!has_room((u8 *)c + c->ring_offset + room * 8, RING_STEP * 8))
		return 0;
	__atomic_store_n(&c->tail, c->tail + RING_STEP, __ATOMIC_RELEASE);
	return 1;
}

/* For what every program needs.  The control block and the module tables come before it. */
static int has_room_to_begin(struct pa_control *c)
{
	int has = has_room((u8 *)c + c->cache_offset, CACHE_LINES * CACHE_LINE) && slot_has_room(c, 0) &&
		  has_room(log_of(c), sizeof(struct pa_log)) && ring_has_room(c);
	for (u32 i = 1; has && i <= c->spare_slots; i++)
		has = slot_has_room(c, c->slot_count - i);
	return has;
}

void log_append(struct pa_control *c, u32 kind, const void *data, u32 size)
{
	struct pa_log *log = log_of(c);
	u64 whole = sizeof(struct pa_log_entry) + ((u64)size + 7) / 8 * 8;
	struct pa_log_entry *entry = (struct pa_log_entry *)((u8 *)(log + 1) + log->used);
	if (sizeof(*log) + log->used + whole > c->log_size || !has_room(entry, whole)) {
		log->lost++;
		return;
	}
	entry->clock_ns = clock_ns();
	entry->kind = kind;
	entry->size = size;
	if (data)
		__builtin_memcpy(entry + 1, data, size);
	__atomic_store_n(&log->used, log->used + whole, __ATOMIC_RELEASE);
}

/* A file of /proc, at most `room` bytes of it. */
static void log_file(struct pa_control *c, u32 kind, const char *path)
{
	static char buffer[4096];
	i64 fd = sys3(SYS_open, path, O_RDONLY | O_CLOEXEC, 0), got;
	if (fd < 0)
		return;
	got = sys3(SYS_read, fd, buffer, sizeof(buffer));
	sys1(SYS_close, fd);
	if (got > 0)
		log_append(c, kind, buffer, (u32)got);
}

struct thread_name {
	u32 tid;
	char name[16];
};

/* Logged when it is met first and when it has changed. */
static void note_name(struct pa_control *c, struct pa_slot *slot)
{
	struct thread_name now = {.tid = slot->tid};
	if (sys2(SYS_prctl, PR_GET_NAME, now.name))
		return;
	for (u32 i = 0; i < sizeof(now.name); i++) {
		if (now.name[i] != slot->name[i]) {
			__builtin_memcpy(slot->name, now.name, sizeof(now.name));
			log_append(c, PA_LOG_NAME, &now, sizeof(now));
			return;
		}
	}
}

/* Whether PYATTACH_THREADS has this thread, which runs here. */
static int wanted(u32 tid, u32 pid)
{
	char name[16] = {0};
	const char *at = wanted_names;
	if (!*at)
		return 1;
	sys2(SYS_prctl, PR_GET_NAME, name);
	while (*at) {
		const char *word = at;
		u32 i = 0;
		while (*at && *at != ',')
			at++;
		if (at - word == 4 && word[0] == 'm' && word[1] == 'a' && word[2] == 'i' && word[3] == 'n' && tid == pid)
			return 1;
		while (word + i < at && i < sizeof(name) - 1 && word[i] != '*' && word[i] == name[i])
			i++;
		if ((word + i < at && word[i] == '*') || (word + i == at && i < sizeof(name) && !name[i]))
			return 1;
		if (*at)
			at++;
	}
	return 0;
}

static int is_gone(const struct pa_control *c, u32 tid)
{
	return sys3(SYS_tgkill, c->preload_pid, tid, 0) == -ESRCH;
}

/* The thread this tick has met: give it ticks of its own, if it has none. */
static void adopt(struct pa_control *c, const void *ucontext)
{
	u32 tid = (u32)sys0(SYS_gettid), index, used = slots_used(c), end = c->slot_count - c->spare_slots;
	for (index = 0; index < used; index++) {
		struct pa_slot *slot = slot_at(c, index);
		if (slot->tid == tid && slot->state == PA_SLOT_ARMED) {
			note_name(c, slot);
			return;
		}
	}
	if (!wanted(tid, c->preload_pid))
		return;
	if (used == end) { /* the table is full: of threads that have ended, mostly */
		for (index = 0; index < used && !is_gone(c, slot_at(c, index)->tid); index++)
			;
		if (index == used)
			return;
		timer_disarm(slot_at(c, index), PA_SLOT_FREE);
	} else if (slot_has_room(c, used)) {
		__atomic_store_n(&c->slots_used, used + 1, __ATOMIC_RELEASE);
		index = used;
	} else {
		return;
	}
	slot_at(c, index)->tid = tid;
	slot_at(c, index)->name[0] = 0;
	slot_at(c, index)->by_spare = *(const u64 *)((const u8 *)ucontext + UC_SIGMASK) >> (c->signal - 1) & 1;
	timer_arm(c, slot_at(c, index), index);
	note_name(c, slot_at(c, index));
}

/* Fifty milliseconds of CPU time have passed. */
static void record_wake(struct pa_control *c, const void *ucontext)
{
	u64 now = clock_ns(), cpu_ns = read_clock_ns(CLOCK_PROCESS_CPUTIME_ID);
	/* Whoever does the rest below may have lost the processor: the time goes on. */
	if (cpu_ns > log_of(c)->cpu_ns) {
		log_of(c)->clock_ns = now;
		log_of(c)->cpu_ns = cpu_ns;
	}
	if (__atomic_exchange_n(&c->arming, 1, __ATOMIC_ACQUIRE))
		return;
	ring_has_room(c);
	adopt(c, ucontext);
	if (now - looked_ns > (now - began_ns < YOUNG_NS ? YOUNG_LOOK_NS : LOOK_NS)) {
		looked_ns = now;
		record_maps(c);
	}
	__atomic_store_n(&c->arming, 0, __ATOMIC_RELEASE);
}

static struct pa_control *make_file(const char *path, u64 ring_words)
{
	struct pa_control sizes = {0}, *c;
	struct {
		u64 now, most;
	} limit = {0};
	u64 size;
	i64 fd, err;
	divide(&sizes, ring_words);
	size = sizes.log_offset + sizes.log_size;
	if (sys2(SYS_getrlimit, RLIMIT_FSIZE, &limit) || limit.now < size)
		return 0; /* ftruncate would end the program (SIGXFSZ) */
	fd = sys3(SYS_open, path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return 0;
	err = sys2(SYS_ftruncate, fd, size);
	c = err ? 0 : (struct pa_control *)sys6(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_SHARED, (u64)fd, 0);
	sys1(SYS_close, fd);
	if (!c || (u64)c > -4096UL || !has_room(c, sizes.index_offset))
		return 0;
	divide(c, ring_words);
	c->tail = -ring_words;
	return c;
}

static void remove(char **place)
{
	do {
		place[0] = place[1];
	} while (*place++);
}

static int take_names(char **envp)
{
	const char *names = value_of(envp, "PYATTACH_THREADS=", 0);
	if (!names || (length_of(names) == 3 && names[0] == 'a' && names[1] == 'l' && names[2] == 'l'))
		return 1;
	if (length_of(names) >= NAMES)
		return 0;
	__builtin_memcpy(wanted_names, names, length_of(names) + 1);
	return 1;
}

void record_begin(char **envp)
{
	static char path[4096];
	char **place = 0;
	char *out = value_of(envp, "PYATTACH_OUT=", &place);
	u64 hz, megabytes, ring_words = 1;
	u32 pid = (u32)sys0(SYS_getpid);
	struct pa_control *c;
	i32 each;
	if (!out || !*out)
		return;
	hz = number_of(envp, "PYATTACH_HZ=", 99, 10, 1000);
	megabytes = number_of(envp, "PYATTACH_MB=", 64, 1, 4096);
	each = expand(out, path, sizeof(path), pid);
	if (!each)
		remove(place); /* programs that this one starts would write over its file */
	if (!hz || !megabytes || each < 0 || !take_names(envp)) {
		complain(!hz ? "PYATTACH_HZ is no number from 10 to 1000"
			 : !megabytes ? "PYATTACH_MB is no number from 1 to 4096"
			 : each < 0 ? "PYATTACH_OUT is too long" : "PYATTACH_THREADS is too long");
		return;
	}
	while (ring_words * 16 <= megabytes << 20)
		ring_words *= 2;
	c = make_file(path, ring_words);
	if (!c) {
		complain("the file of PYATTACH_OUT can't be made");
		return;
	}
	fill(c, pid, hz);
	if (!has_room_to_begin(c)) {
		complain("there is no room for the file of PYATTACH_OUT");
		return;
	}
	began_ns = looked_ns = log_of(c)->clock_ns = clock_ns();
	log_of(c)->began_ns = read_clock_ns(CLOCK_REALTIME);
	log_file(c, PA_LOG_COMMAND, "/proc/self/cmdline");
	i64 got = sys3(SYS_readlink, "/proc/self/exe", path, sizeof(path));
	if (got > 0)
		log_append(c, PA_LOG_EXE, path, (u32)got);
	if (record_maps(c) < 0) {
		complain("the program has loaded libseccomp: its filter could kill it for a tick's system calls");
		return;
	}
	if (wanted(pid, pid)) {
		slot_at(c, 0)->tid = pid;
		slot_at(c, 0)->state = PA_SLOT_WANTED;
	}
	pa.on_wake = record_wake;
	if (pa_init(c, c->region_size))
		complain("its signal or memory can't be had");
	else
		wake_begin(c);
}
