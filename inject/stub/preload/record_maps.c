/* The program's own mappings: as text for the report, and as the unwinder's module table. */
#include "../memory.h"
#include "../unwind.h"
#include "record.h"

#define PT_LOAD 1
#define PT_GNU_EH_FRAME 0x6474e550U
#define MOST_HEADERS 64

struct elf_header { /* man elf */
	u8 ident[16];
	u16 type, machine;
	u32 version;
	u64 entry, phoff, shoff;
	u32 flags;
	u16 ehsize, phentsize, phnum, shentsize, shnum, shstrndx;
};
struct program_header {
	u32 type, flags;
	u64 offset, vaddr, paddr, filesz, memsz, align;
};

struct line {
	u64 start, end, offset, inode;
	int executable;
	const char *path;
	u32 path_length;
};

static u64 hex(const char **at, const char *end)
{
	u64 value = 0;
	for (; *at < end; (*at)++) {
		char x = **at;
		u32 digit = x >= '0' && x <= '9' ? (u32)(x - '0') : x >= 'a' && x <= 'f' ? (u32)(x - 'a') + 10 : 16;
		if (digit == 16)
			break;
		value = value << 4 | digit;
	}
	return value;
}

static void skip(const char **at, const char *end, int blanks)
{
	while (*at < end && (**at == ' ') == blanks)
		(*at)++;
}

/* "start-end perms offset device inode      path" */
static struct line parse(const char *at, const char *end)
{
	struct line l = {0};
	l.start = hex(&at, end);
	at++;
	l.end = hex(&at, end);
	skip(&at, end, 1);
	l.executable = at + 2 < end && at[2] == 'x';
	skip(&at, end, 0);
	skip(&at, end, 1);
	l.offset = hex(&at, end);
	skip(&at, end, 1);
	skip(&at, end, 0);
	skip(&at, end, 1);
	for (; at < end && *at >= '0' && *at <= '9'; at++)
		l.inode = l.inode * 10 + (u64)(*at - '0');
	skip(&at, end, 1);
	l.path = at;
	l.path_length = (u32)(end - at);
	return l;
}

static int copy(void *to, u64 from, u64 bytes)
{
	struct vm_reader reader = {pa.pid ? pa.pid : (u32)sys0(SYS_getpid), pa.vm_read_forbidden};
	return vm_copy(&reader, to, from, bytes);
}

/* Where the search table of the image at `base` lies; size 0: it has none that can be searched. */
static u64 find_table(u64 base, u64 *size)
{
	struct elf_header head;
	struct program_header p;
	u64 bias = 0, table = 0;
	u8 kinds[4];
	int placed = 0;
	*size = 0;
	if (!copy(&head, base, sizeof(head)) || head.ident[0] != 0x7f || head.ident[1] != 'E' || head.ident[2] != 'L' ||
	    head.ident[3] != 'F' || head.phentsize != sizeof(p) || head.phnum > MOST_HEADERS)
		return 0;
	for (u32 i = 0; i < head.phnum; i++) {
		if (!copy(&p, base + head.phoff + i * sizeof(p), sizeof(p)))
			return 0;
		if (p.type == PT_LOAD && !p.offset && !placed) {
			bias = base - p.vaddr;
			placed = 1;
		} else if (p.type == PT_GNU_EH_FRAME) {
			table = p.vaddr;
			*size = p.memsz;
		}
	}
	/* Version 1, and a table of 4-byte values relative to itself (LSB, .eh_frame_hdr). */
	if (!placed || !table || !copy(kinds, table + bias, 4) || kinds[0] != 1 || kinds[3] != 0x3b) {
		*size = 0;
		return 0;
	}
	return table + bias;
}

static int same_text(const char *a, const char *b, u32 size)
{
	for (u32 i = 0; i < size; i++)
		if (a[i] != b[i])
			return 0;
	return 1;
}

static int holds(const char *text, u64 size, const char *word, u32 length)
{
	for (u64 i = 0; i + length <= size; i++)
		if (text[i] == word[0] && same_text(text + i, word, length))
			return 1;
	return 0;
}

/* Pyattach's rule: the table that is not in use is filled, then modules_seq moves on. */
static void publish(struct pa_control *c, const char *text, u64 size)
{
	u32 seq = c->modules_seq + 1;
	struct pa_modules *table = (struct pa_modules *)((u8 *)c + c->modules_offset) + (seq & 1);
	struct line image = {0};
	u32 count = 0;
	for (const char *at = text, *end = text + size, *next; at < end && count < PA_MODULES; at = next + 1) {
		for (next = at; next < end && *next != '\n'; next++)
			;
		struct line l = parse(at, next);
		int is_vdso = l.path_length == 6 && same_text(l.path, "[vdso]", 6);
		if (!l.offset && (l.inode || is_vdso))
			image = l; /* its headers lie here */
		if (!l.executable || l.start >= USER_SPACE_END)
			continue;
		struct pa_module *m = &table->module[count++];
		m->start = l.start;
		m->end = l.end;
		m->flags = 0;
		m->table = 0;
		m->table_size = 0;
		if ((l.inode && l.inode == image.inode) || is_vdso)
			m->table = find_table(image.start, &m->table_size);
	}
	table->count = count;
	__atomic_store_n(&c->modules_seq, seq, __ATOMIC_RELEASE);
}

/* /proc/self/maps, into `to`; its size, or 0 where it does not fit or can't be read. */
static u64 read_maps(char *to, u64 room)
{
	i64 fd = sys3(SYS_open, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0), got = 1;
	u64 size = 0;
	if (fd < 0)
		return 0;
	while (got > 0 && size < room) {
		got = sys3(SYS_read, fd, to + size, room - size);
		size += got > 0 ? (u64)got : 0;
	}
	sys1(SYS_close, fd);
	return got == 0 ? size : 0;
}

/* Only the lines of code matter: the heap grows all the time. */
static u64 keep_code(char *text, u64 size)
{
	u64 kept = 0, start = 0;
	for (u64 i = 0; i < size; i++) {
		if (text[i] != '\n')
			continue;
		struct line l = parse(text + start, text + i);
		if (l.executable || (l.inode && !l.offset)) {
			__builtin_memcpy(text + kept, text + start, i + 1 - start);
			kept += i + 1 - start;
		}
		start = i + 1;
	}
	return kept;
}

int record_maps(struct pa_control *c)
{
	static const char libseccomp[] = "/libseccomp.so", glibc[] = "/libc.so.6\n";
	static u64 last_at, last_size; /* in the log */
	struct pa_log *log = log_of(c);
	char *log_bytes = (char *)(log + 1), *text = log_bytes + log->used + sizeof(struct pa_log_entry);
	u64 taken = sizeof(*log) + log->used + sizeof(struct pa_log_entry), size;
	if (taken + PAGE > c->log_size) {
		log->lost++;
		return 0;
	}
	size = read_maps(text, c->log_size - taken);
	if (!size) {
		log->lost++;
		return 0;
	}
	size = keep_code(text, size);
	if (size == last_size && same_text(text, log_bytes + last_at, (u32)size))
		return 0;
	last_at = (u64)(text - log_bytes);
	last_size = size;
	if (!pa.control && holds(text, size, glibc, sizeof(glibc) - 1))
		c->spare_signal = PA_SPARE_SIGNAL;
	publish(c, text, size);
	log_append(c, PA_LOG_MAPS, 0, (u32)size); /* it is in place */
	return holds(text, size, libseccomp, sizeof(libseccomp) - 1) ? -1 : 1;
}
