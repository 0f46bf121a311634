/* The allocator's functions: the first definitions behind this library in the order of symbol search, as
 * dlsym(RTLD_NEXT) would find them.  Read from the loaded objects themselves: dlsym allocates.
 *
 * The list of objects is where debuggers find it: auxiliary vector -> program headers -> DT_DEBUG (<link.h>).
 */
#include "heap.h"

#define AT_NULL 0
#define AT_PHDR 3
#define AT_PHNUM 5
#define PT_DYNAMIC 2
#define PT_PHDR 6
#define DT_NULL 0
#define DT_HASH 4
#define DT_STRTAB 5
#define DT_SYMTAB 6
#define DT_DEBUG 21
#define DT_VERSYM 0x6ffffff0L
#define DT_GNU_HASH 0x6ffffef5L
#define SYMBOL_FUNC 2
#define VERSION_HIDDEN 0x8000

#define MOST_OBJECTS 4096
#define MOST_AUXV 64

struct phdr {
	u32 type, flags;
	u64 offset, vaddr, paddr, file_bytes, memory_bytes, align;
};
struct dyn {
	i64 tag;
	u64 value;
};
struct symbol {
	u32 name;
	u8 info, other;
	u16 section;
	u64 value, size;
};
struct link_map {
	u64 base;
	const char *name;
	const struct dyn *dynamic;
	const struct link_map *next, *previous;
};
struct r_debug {
	i32 version;
	const struct link_map *map;
};

extern const struct dyn _DYNAMIC[] HIDDEN;

struct object {
	u64 base;
	const char *strings;
	const struct symbol *symbols;
	const u32 *gnu_hash, *sysv_hash;
	const u16 *versions;
};

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

/* No table: the addresses in it would need relocations. */
static const char *name_of(u32 i)
{
	switch (i) {
	case 0: return "malloc";
	case 1: return "calloc";
	case 2: return "realloc";
	case 3: return "reallocarray";
	case 4: return "free";
	case 5: return "posix_memalign";
	case 6: return "aligned_alloc";
	case 7: return "memalign";
	case 8: return "valloc";
	case 9: return "pvalloc";
	default: return "__errno_location";
	}
}

static const struct link_map *loaded_objects(void)
{
	u64 auxv[2 * MOST_AUXV] = {0}, base = 0;
	const struct phdr *headers = 0;
	const struct dyn *dynamic = 0;
	u64 count = 0;
	i64 fd = sys3(SYS_open, "/proc/self/auxv", O_RDONLY, 0);
	if (fd < 0)
		return 0;
	sys3(SYS_read, fd, auxv, sizeof(auxv) - 16);
	sys1(SYS_close, fd);
	for (u32 i = 0; auxv[i] != AT_NULL; i += 2) {
		if (auxv[i] == AT_PHDR)
			headers = (const struct phdr *)auxv[i + 1];
		if (auxv[i] == AT_PHNUM)
			count = auxv[i + 1];
	}
	for (u64 i = 0; headers && i < count; i++)
		if (headers[i].type == PT_PHDR)
			base = (u64)headers - headers[i].vaddr;
	for (u64 i = 0; headers && i < count; i++)
		if (headers[i].type == PT_DYNAMIC)
			dynamic = (const struct dyn *)(base + headers[i].vaddr);
	for (; dynamic && dynamic->tag != DT_NULL; dynamic++)
		if (dynamic->tag == DT_DEBUG && dynamic->value)
			return ((const struct r_debug *)dynamic->value)->map;
	return 0;
}

/* glibc has put the base onto the addresses in the dynamic section, musl and the vdso have not. */
static const void *placed(const struct link_map *map, u64 value)
{
	return (const void *)(value < map->base ? value + map->base : value);
}

static int open_object(const struct link_map *map, struct object *o)
{
	*o = (struct object){.base = map->base};
	for (const struct dyn *d = map->dynamic; d && d->tag != DT_NULL; d++) {
		switch (d->tag) {
		case DT_STRTAB: o->strings = placed(map, d->value); break;
		case DT_SYMTAB: o->symbols = placed(map, d->value); break;
		case DT_HASH: o->sysv_hash = placed(map, d->value); break;
		case DT_GNU_HASH: o->gnu_hash = placed(map, d->value); break;
		case DT_VERSYM: o->versions = placed(map, d->value); break;
		default: break;
		}
	}
	return o->strings && o->symbols && (o->gnu_hash || o->sysv_hash);
}

static void *defined(const struct object *o, u32 i, const char *name)
{
	const struct symbol *s = &o->symbols[i];
	if (!s->section || (s->info & 15) != SYMBOL_FUNC || !same(o->strings + s->name, name))
		return 0;
	if (o->versions && (o->versions[i] & VERSION_HIDDEN))
		return 0;
	return (void *)(o->base + s->value);
}

/* https://sourceware.org/legacy-ml/binutils/2006-10/msg00377.html */
static void *find_gnu(const struct object *o, const char *name)
{
	const u32 *table = o->gnu_hash, buckets = table[0], first = table[1], bloom = table[2];
	const u32 *bucket = table + 4 + 2 * (u64)bloom, *chain = bucket + buckets;
	u32 hash = 5381;
	for (const char *c = name; *c; c++)
		hash = hash * 33 + (u8)*c;
	if (!buckets)
		return 0;
	for (u32 i = bucket[hash % buckets]; i >= first && i; i++) {
		void *found = (chain[i - first] | 1) == (hash | 1) ? defined(o, i, name) : 0;
		if (found || (chain[i - first] & 1))
			return found;
	}
	return 0;
}

/* System V ABI, "Hash Table". */
static void *find_sysv(const struct object *o, const char *name)
{
	const u32 *table = o->sysv_hash, buckets = table[0], *bucket = table + 2, *chain = bucket + buckets;
	u32 hash = 0;
	for (const char *c = name; *c; c++) {
		hash = (hash << 4) + (u8)*c;
		hash = (hash ^ (hash >> 24 & 0xf0)) & 0xfffffff;
	}
	for (u32 i = buckets ? bucket[hash % buckets] : 0; i; i = chain[i]) {
		void *found = defined(o, i, name);
		if (found)
			return found;
	}
	return 0;
}

int real_find(void)
{
	const struct link_map *map = loaded_objects();
	void **real = (void **)&ph.real;
	int behind = 0;
	for (u32 n = 0; map && n < MOST_OBJECTS; map = map->next, n++) {
		struct object o;
		if (map->dynamic == _DYNAMIC) {
			behind = 1;
			continue;
		}
		if (!behind || !open_object(map, &o))
			continue;
		for (u32 i = 0; i < PA_REAL; i++)
			if (!real[i])
				real[i] = o.gnu_hash ? find_gnu(&o, name_of(i)) : find_sysv(&o, name_of(i));
	}
	return ph.real.malloc && ph.real.free && ph.real.calloc && ph.real.realloc;
}
