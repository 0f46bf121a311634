/* The unwinder against the processor: run a program instruction by instruction, keep a shadow stack of its
 * calls, and at each instruction compare the unwinder's whole stack with it.
 *
 *     oracle STEPS SKIP PROGRAM [ARGUMENT ...]
 *
 * compares STEPS instructions after the first SKIP, counted from the program's entry point.  The program
 * writes to /dev/null.  Prints one line for each place that differs,
 *
 *     differs COUNT FILE+OFFSET end=REASON got=DEPTH expected=DEPTH at=FIRST_DIFFERENT_LEVEL callers=A,B
 *
 * where A and B are the FILE+OFFSET of the two callers that the shadow stack knows, then
 * "compared N equal N differ N places N signals N calls N deepest N
 * again N other N": the last two are of walks that keep the one before.
 *
 * The shadow stack: a call is an instruction after which the word at the stack pointer, which moved down by
 * 8, is the address of the next instruction, and the program is elsewhere.  A return needs no rule of its own: an
 * entry is gone when the stack pointer is above the slot of its return address, which covers ret, longjmp
 * and exceptions alike.  A signal's delivery puts the restorer and the interrupted instruction on it.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define HIDDEN
#include "kept.h"
#include "unwind.h"

#include "module_list.h"

#define STACK_ROOM (512UL << 10)
#define MAX_DEPTH 1024
#define MAX_PLACES 4096

struct shadow {
	u64 slot; /* where the return address lies */
	u64 ret;
	u64 exact; /* 1: the address interrupted by a signal, no return address */
};

static struct pa_room room;
static pid_t child;
static struct shadow shadow[1 << 16];
static u32 shadow_depth, deepest;
static char names[MAX_MODULES][256];
static u64 starts[MAX_MODULES]; /* of the file's first mapping, for printing offsets */
static u32 generation = 1;
static u64 stack_top;
static u8 stack_copy[STACK_ROOM];
static struct pa_cache_line cache[1 << 15];
static struct pa_kept kept; /* each walk has the one before it to go by */
static u64 again, other; /* frames taken from it; walks that became others by it */
static u64 signals, calls;

struct place {
	u64 ip, count, callers[2];
	u32 end, got, expected, at;
};
static struct place places[MAX_PLACES];
static u32 place_count;

static void die(const char *what)
{
	perror(what);
	if (child > 0)
		kill(child, SIGKILL);
	exit(2);
}

static int read_child(void *to, u64 from, u64 bytes)
{
	struct iovec here = {to, bytes}, there = {(void *)from, bytes};
	return process_vm_readv(child, &here, 1, &there, 1, 0) == (ssize_t)bytes;
}

static int copy_tables(void *arg, void *to, u64 from, u64 bytes)
{
	(void)arg;
	return read_child(to, from, bytes);
}

static int no_probe(void *arg, u64 page)
{
	(void)arg;
	(void)page;
	return 0;
}

/* Find the tables of an ELF image that is mapped at `base`. */
static void tables_of(u64 base, u64 *table, u64 *size)
{
	Elf64_Ehdr header;
	Elf64_Phdr ph[32];
	u64 bias = base;
	*table = *size = 0;
	if (!read_child(&header, base, sizeof(header)) || memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_phnum > 32 ||
	    !read_child(ph, base + header.e_phoff, header.e_phnum * sizeof(ph[0])))
		return;
	for (int i = 0; i < header.e_phnum; i++)
		if (ph[i].p_type == PT_LOAD && ph[i].p_offset == 0)
			bias = base - ph[i].p_vaddr;
	for (int i = 0; i < header.e_phnum; i++)
		if (ph[i].p_type == PT_GNU_EH_FRAME) {
			*table = bias + ph[i].p_vaddr;
			*size = ph[i].p_memsz;
		}
}

static void read_maps(void)
{
	char path[64], line[512], last[256] = "";
	u64 base = 0;
	snprintf(path, sizeof(path), "/proc/%d/maps", child);
	FILE *f = fopen(path, "r");
	if (!f)
		die("maps");
	module_count = 0;
	generation++;
	while (fgets(line, sizeof(line), f)) {
		u64 start, end, offset;
		char perms[8], name[256] = "";
		if (sscanf(line, "%lx-%lx %7s %lx %*s %*s %255[^\n]", &start, &end, perms, &offset, name) < 4)
			continue;
		if (strcmp(name, last) || offset == 0) {
			snprintf(last, sizeof(last), "%s", name);
			base = start;
		}
		if (!strcmp(name, "[stack]"))
			stack_top = end;
		if (perms[2] != 'x' || module_count == MAX_MODULES || !strcmp(name, "[vsyscall]"))
			continue;
		struct pa_module *m = &modules[module_count];
		*m = (struct pa_module){.start = start, .end = end};
		tables_of(base, &m->table, &m->table_size);
		snprintf(names[module_count], sizeof(names[0]), "%s", name[0] ? name : "?");
		starts[module_count++] = base;
	}
	fclose(f);
}

static void note_difference(u64 ip, u32 end, u32 got, u32 expected, u32 at)
{
	for (u32 i = 0; i < place_count; i++)
		if (places[i].ip == ip) {
			places[i].count++;
			return;
		}
	if (place_count < MAX_PLACES)
		places[place_count++] = (struct place){
			.ip = ip,
			.count = 1,
			.callers = {shadow_depth > 0 ? shadow[shadow_depth - 1].ret : 0,
				    shadow_depth > 1 ? shadow[shadow_depth - 2].ret : 0},
			.end = end,
			.got = got,
			.expected = expected,
			.at = at,
		};
}

/* As another walk has found, with the one before to go by. */
static void walk_again(struct pa_unwinder u, const u64 *registers, const u64 *expected, u32 expected_depth, enum pa_end expected_end)
{
	struct pa_frame frame = {.known = (1U << PA_REGISTERS) - 1};
	u64 got[MAX_DEPTH];
	u32 depth;
	memcpy(frame.r, registers, sizeof(frame.r));
	u.kept = &kept;
	u.stack_changes = 0;
	enum pa_end end = pa_walk(&u, &frame, got, MAX_DEPTH, &depth);
	again += u.again;
	other += end != expected_end || depth != expected_depth || memcmp(got, expected, depth * sizeof(*got));
}

/* Unwind from `r` and compare.  Returns 1 when every level is equal. */
static int compare(const struct user_regs_struct *r)
{
	u64 dwarf[PA_REGISTERS] = {r->rax, r->rdx, r->rcx, r->rbx, r->rsi, r->rdi, r->rbp, r->rsp, r->r8,
				   r->r9,  r->r10, r->r11, r->r12, r->r13, r->r14, r->r15, r->rip};
	struct pa_frame frame = {.known = (1U << PA_REGISTERS) - 1};
	u64 low = (r->rsp - 256) & ~4095UL, got[MAX_DEPTH];
	u32 depth, at;
	memcpy(frame.r, dwarf, sizeof(dwarf));
	if (stack_top < low || stack_top - low > STACK_ROOM || !read_child(stack_copy, low, stack_top - low))
		return 0;
	struct pa_unwinder u = {
		.stack = {low, stack_top, (u64)stack_copy - low, no_probe, 0},
		.tables = {copy_tables, 0, &room},
		.find_module = find_module,
		.cache = cache,
		.cache_lines = 1 << 15,
		.generation = generation,
	};
	enum pa_end end = pa_walk(&u, &frame, got, MAX_DEPTH, &depth);
	u32 expected = shadow_depth + 1;
	walk_again(u, dwarf, got, depth, end);
	int equal = end == PA_END_ROOT && depth == expected && got[0] == r->rip;
	for (at = 1; at < depth && at < expected; at++)
		if (got[at] != shadow[shadow_depth - at].ret)
			break;
	if (equal && at == expected)
		return 1;
	note_difference(r->rip, end, depth, expected, at);
	return 0;
}

static void push(u64 slot, u64 ret, u64 exact)
{
	if (shadow_depth == sizeof(shadow) / sizeof(shadow[0]))
		die("shadow stack full");
	shadow[shadow_depth++] = (struct shadow){slot, ret, exact};
	if (shadow_depth > deepest)
		deepest = shadow_depth;
}

static void follow(const struct user_regs_struct *before, const struct user_regs_struct *now)
{
	while (shadow_depth && shadow[shadow_depth - 1].slot < now->rsp)
		shadow_depth--;
	if (now->rsp == before->rsp - 8) {
		u64 word;
		u64 next = now->rip;
		if (read_child(&word, now->rsp, 8) && word > before->rip && word <= before->rip + 8 &&
		    !(next > before->rip && next <= before->rip + 8)) {
			push(now->rsp, word, 0);
			calls++;
		}
	}
}

/* The kernel has put a signal frame on the stack: at the stack pointer lies the restorer's address. */
static void follow_signal(const struct user_regs_struct *before, const struct user_regs_struct *now)
{
	u64 restorer;
	if (now->rsp >= before->rsp || !read_child(&restorer, now->rsp, 8))
		return;
	push(before->rsp - 1, before->rip, 1);
	push(now->rsp, restorer, 0);
	signals++;
}

static int maps_may_change(const struct user_regs_struct *r)
{
	u8 code[2];
	return (r->rax == 9 || r->rax == 10 || r->rax == 11) && read_child(code, r->rip, 2) && code[0] == 0x0f &&
	       code[1] == 0x05;
}

static void print_place(u64 ip)
{
	for (u32 m = 0; m < module_count; m++)
		if (ip >= modules[m].start && ip < modules[m].end) {
			printf("%s+0x%lx", names[m], ip - starts[m]);
			return;
		}
	printf("?+0x%lx", ip);
}

/* Let the loader do its work at full speed: stop at the program's first instruction (AT_ENTRY). */
static void run_to_entry(void)
{
	char path[64];
	u64 pair[2], entry = 0;
	struct user_regs_struct r;
	int status;
	snprintf(path, sizeof(path), "/proc/%d/auxv", child);
	FILE *f = fopen(path, "r");
	if (!f)
		die("auxv");
	while (fread(pair, sizeof(pair), 1, f) == 1 && pair[0])
		if (pair[0] == AT_ENTRY)
			entry = pair[1];
	fclose(f);
	long word = ptrace(PTRACE_PEEKTEXT, child, entry, 0);
	ptrace(PTRACE_POKETEXT, child, entry, (word & ~0xffL) | 0xcc);
	ptrace(PTRACE_CONT, child, 0, 0);
	if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
		die("the program's entry");
	ptrace(PTRACE_POKETEXT, child, entry, word);
	ptrace(PTRACE_GETREGS, child, 0, &r);
	r.rip = entry;
	ptrace(PTRACE_SETREGS, child, 0, &r);
}

int main(int argc, char **argv)
{
	u64 steps, skip, compared = 0, equal = 0;
	struct user_regs_struct before, now;
	int status, pass = 0, changes = 0;
	if (argc < 4)
		return 2;
	steps = strtoul(argv[1], 0, 10);
	skip = strtoul(argv[2], 0, 10);
	child = fork();
	if (!child) {
		personality(ADDR_NO_RANDOMIZE);
		if (!freopen("/dev/null", "w", stdout))
			_exit(127);
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		execvp(argv[3], argv + 3);
		_exit(127);
	}
	if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
		die("exec");
	ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_EXITKILL);
	run_to_entry();
	read_maps();
	if (ptrace(PTRACE_GETREGS, child, 0, &before))
		die("registers");
	for (u64 done = 0; done < skip + steps; done++) {
		if (done >= skip) {
			compared++;
			equal += (u64)compare(&before);
		}
		changes = maps_may_change(&before);
		if (ptrace(PTRACE_SINGLESTEP, child, 0, pass) || waitpid(child, &status, 0) != child)
			die("step");
		if (!WIFSTOPPED(status))
			break;
		if (ptrace(PTRACE_GETREGS, child, 0, &now))
			die("registers");
		if (pass)
			follow_signal(&before, &now);
		else
			follow(&before, &now);
		pass = WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status);
		if (changes)
			read_maps();
		before = now;
	}
	if (WIFSTOPPED(status)) {
		kill(child, SIGKILL);
		waitpid(child, &status, 0);
	}
	for (u32 i = 0; i < place_count; i++) {
		struct place *p = &places[i];
		printf("differs %lu ", p->count);
		print_place(p->ip);
		printf(" end=%u got=%u expected=%u at=%u callers=", p->end, p->got, p->expected, p->at);
		print_place(p->callers[0]);
		printf(",");
		print_place(p->callers[1]);
		printf("\n");
	}
	printf("compared %lu equal %lu differ %lu places %u signals %lu calls %lu deepest %u again %lu other %lu\n", compared,
	       equal, compared - equal, place_count, signals, calls, deepest, again, other);
	return 0;
}
