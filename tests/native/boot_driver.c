/* The bootstrap without pyattach: this program is the target, the borrowed thread, and whoever serves it.
 *
 *     boot_driver BOOT LOADER MODE
 *
 * runs BOOT (_boot.bin) once for each set of flags, as a thread that was stopped and pointed at it would:
 * with other values in all registers than those the data block says.  Behind it all registers, flags,
 * vector state, the signal mask, the stack on both sides of the stack pointer, the mappings and the open
 * files must be as before.  Prints what differs, else "OK RUNS".
 *
 *     unserved   nobody comes: it leaves when the limit is over
 *     nofile     memfd_create fails
 *     taken      the mail page's address is in use
 *     hinted     the same, on a kernel that takes the address as a hint and answers with another
 *     tiny       served, with a loader that notes what it was given and spoils what it may
 *     loader     served, with LOADER (_loader.bin), which calls a function that spoils the vector state
 *     refused    served, with LOADER and a command it does not know
 *     neighbour  the target maps something of its own behind the mail page meanwhile; nobody comes
 *     crowded    the same, and it is served
 *     squeezed   the same, on a kernel that takes addresses as hints
 *     signalled  a signal has come meanwhile, and its handler looks at the registers; nobody comes
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "boot/boot.h"

#define MAIL 0x2a0000000000UL
#define NONCE 0x1234567890abcdefUL
#define REGISTERS 16
#define STACK_BYTES 65536
#define LIMIT_NS 2000000UL
#define SERVED_LIMIT_NS 20000000000UL
#define AREA (MAIL_SIZE + BOOT_SIZE + LOADER_SIZE)

struct vectors {
	u32 mxcsr;
	u16 control;
	u16 pad;
	u64 pad2[7];
	u8 xmm[16][16];
	u8 ymm[16][32];
} __attribute__((aligned(64)));

/* As in the instruction encoding: rax rcx rdx rbx rsp rbp rsi rdi r8 to r15. */
u64 want_register[REGISTERS], got_register[REGISTERS];
u64 want_flags, got_flags, driver_stack, entry_at, has_avx;
struct vectors want_vectors, got_vectors;

void run_bootstrap(void);
extern char landing[], tiny_loader[], tiny_loader_end[];

__asm__(
	".text\n"
	".globl run_bootstrap\n"
	"run_bootstrap:\n"
	"push %rbx\npush %rbp\npush %r12\npush %r13\npush %r14\npush %r15\n"
	"mov %rsp, driver_stack(%rip)\n"
	"fldcw 4+want_vectors(%rip)\n"
	"ldmxcsr want_vectors(%rip)\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"movups 64+16*\\n+want_vectors(%rip), %xmm\\n\n"
	".endr\n"
	"cmpq $0, has_avx(%rip)\n"
	"je 1f\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"vmovups 320+32*\\n+want_vectors(%rip), %ymm\\n\n"
	".endr\n"
	"1:\n"
	"mov 32+want_register(%rip), %rax\n"
	"pushq want_flags(%rip)\n"
	"popfq\n"
	/* Nothing below changes the flags. */
	"mov %rax, %rsp\n"
	"mov $-512, %rax\n"
	".irp r,rcx,rdx,rbx,rbp,rsi,rdi,r8,r9,r10,r11,r12,r13,r14,r15\n"
	"mov $0x5a5a5a5a, %\\r\n"
	".endr\n"
	"jmp *entry_at(%rip)\n"

	".globl landing\n"
	"landing:\n"
	"mov %rax, 0+got_register(%rip)\n"
	"mov %rcx, 8+got_register(%rip)\n"
	"mov %rdx, 16+got_register(%rip)\n"
	"mov %rbx, 24+got_register(%rip)\n"
	"mov %rsp, 32+got_register(%rip)\n"
	"mov %rbp, 40+got_register(%rip)\n"
	"mov %rsi, 48+got_register(%rip)\n"
	"mov %rdi, 56+got_register(%rip)\n"
	".irp n,8,9,10,11,12,13,14,15\n"
	"mov %r\\n, 8*\\n+got_register(%rip)\n"
	".endr\n"
	"mov driver_stack(%rip), %rsp\n"
	"pushfq\n"
	"popq got_flags(%rip)\n"
	"pushq $0x202\n"
	"popfq\n"
	"fnstcw 4+got_vectors(%rip)\n"
	"stmxcsr got_vectors(%rip)\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"movups %xmm\\n, 64+16*\\n+got_vectors(%rip)\n"
	".endr\n"
	"cmpq $0, has_avx(%rip)\n"
	"je 1f\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"vmovups %ymm\\n, 320+32*\\n+got_vectors(%rip)\n"
	".endr\n"
	"vzeroupper\n"
	"1:\n"
	"pushq $0x1f80\n"
	"ldmxcsr (%rsp)\n"
	"pop %rax\n"
	"fninit\n"
	"pop %r15\npop %r14\npop %r13\npop %r12\npop %rbp\npop %rbx\n"
	"ret\n"

	/* A loader: notes what it was given, spoils what a function may spoil, and the flags. */
	"tiny_loader:\n"
	"lea tiny_loader(%rip), %rax\n"
	"mov %rax, 8(%rdi)\n"
	"mov %rsp, 16(%rdi)\n"
	"mov %rsi, 24(%rdi)\n"
	"pushfq\n"
	"popq 32(%rdi)\n"
	"movq $1, (%rdi)\n"
	".irp r,rax,rcx,rdx,rsi,rdi,r8,r9,r10,r11\n"
	"mov $-1, %\\r\n"
	".endr\n"
	"pushq $0xcd7\n" /* std, CF, PF, AF, ZF, SF, OF */
	"popfq\n"
	"ret\n"
	"tiny_loader_end:\n");

/* What dlopen may do to the vector state, and more. */
static i64 spoil(void)
{
	u32 mxcsr = 0x3f80;
	u16 control = 0x027f;
	__asm__ volatile("ldmxcsr %0\nfldcw %1\n" : : "m"(mxcsr), "m"(control));
	__asm__ volatile(".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\npxor %%xmm\\n, %%xmm\\n\n.endr\n" : : : "memory");
	if (has_avx)
		__asm__ volatile("vzeroall\n" : : : "memory");
	return -7;
}

static char boot[16384], loader[LOADER_SIZE], maps_before[1 << 16], maps_after[1 << 16];
static size_t boot_size, loader_size;
static const char *mode;
static u8 *stack;
static int problems, mails_seen;

static int is(const char *name)
{
	return !strcmp(mode, name);
}

static int is_crowded(void)
{
	return is("crowded") || is("squeezed");
}

static int is_served(void)
{
	return is("tiny") || is("loader") || is("refused") || is_crowded();
}

#define DIFFERS(...)                      \
	do {                              \
		printf(__VA_ARGS__);      \
		putchar('\n');            \
		problems++;               \
	} while (0)

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static size_t read_file(const char *path, char *to, size_t room)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t size = 0;
	ssize_t got;
	if (fd < 0)
		die(path);
	while ((got = read(fd, to + size, room - size)) > 0)
		size += (size_t)got;
	close(fd);
	return size;
}

static u64 now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (u64)t.tv_sec * 1000000000UL + (u64)t.tv_nsec;
}

/* Bit n: file n is open. */
static u64 open_files(void)
{
	u64 out = 0;
	for (int fd = 0; fd < 64; fd++)
		out |= (u64)(fcntl(fd, F_GETFD) >= 0) << fd;
	return out;
}

/* Whoever serves: in a thread of its own, made before anything is compared. */

static sem_t begin, finished;
static volatile int landed;
static int mail_fd_seen, served_copy;
static u64 mail_nonce_seen, mail_ready_ns;
static void *neighbour;

static int read_mail(u64 *words)
{
	struct iovec here = {words, 24}, there = {(void *)MAIL, 24};
	return process_vm_readv(getpid(), &here, 1, &there, 1, 0) == 24;
}

static void serve_file(int number)
{
	struct boot_args args = {.command = is("refused") ? 77 : BOOT_CALL, .call = (u64)spoil};
	const char *code = is("tiny") ? tiny_loader : loader;
	size_t size = is("tiny") ? (size_t)(tiny_loader_end - tiny_loader) : loader_size;
	served_copy = dup(number);
	if (pwrite(served_copy, &args, sizeof(args), 0) != (ssize_t)sizeof(args) ||
	    pwrite(served_copy, code, size, BOOT_SIZE) != (ssize_t)size)
		die("pwrite");
	if (is("tiny")) {
		u64 zero[5] = {0};
		if (pwrite(served_copy, zero, sizeof(zero), 0) != (ssize_t)sizeof(zero))
			die("pwrite");
	}
	if (ftruncate(served_copy, BOOT_SIZE + LOADER_SIZE))
		die("ftruncate");
}

static void serve_once(void)
{
	u64 words[3] = {0};
	mail_nonce_seen = 0;
	mail_fd_seen = served_copy = -1;
	while (!landed && !(read_mail(words) && words[0] == NONCE))
		sched_yield();
	mail_nonce_seen = words[0];
	mail_fd_seen = (int)words[1];
	mail_ready_ns = words[2];
	if (mail_nonce_seen != NONCE)
		return;
	if (is("neighbour") || is_crowded())
		neighbour = mmap((void *)(MAIL + MAIL_SIZE + 8192), 4096, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (is_served())
		serve_file(mail_fd_seen);
}

static void *server(void *unused)
{
	for (;;) {
		sem_wait(&begin);
		if (landed == 2)
			return unused;
		serve_once();
		sem_post(&finished);
	}
}

/* What the handler of a signal that comes behind the bootstrap's last system call finds: all but the registers that
 * the call needs or spoils. */
static const int preserved[] = {REG_RBX, REG_RSP, REG_RBP, REG_R8, REG_R9, REG_R12, REG_R13, REG_R14, REG_R15};
static const int preserved_number[] = {3, 4, 5, 8, 9, 12, 13, 14, 15};
#define PRESERVED (sizeof(preserved) / sizeof(preserved[0]))
static volatile u64 seen_register[PRESERVED];
static volatile int signals_seen;

static void on_signal(int number, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	(void)number;
	(void)info;
	for (u32 i = 0; i < PRESERVED; i++)
		seen_register[i] = (u64)uc->uc_mcontext.gregs[preserved[i]];
	signals_seen++;
}

static void expect_signal(void)
{
	static u8 signal_stack[1 << 17];
	struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	u64 bit = 1UL << (SIGUSR2 - 1);
	if (sigaltstack(&(stack_t){.ss_sp = signal_stack, .ss_size = sizeof(signal_stack)}, 0) ||
	    sigaction(SIGUSR2, &action, 0))
		die("sigaction");
	signals_seen = 0;
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, &bit, 0, 8);
	syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR2);
}

static void check_signal(void)
{
	if (signals_seen != 1)
		DIFFERS("%d signals were handled", signals_seen);
	for (u32 i = 0; i < PRESERVED; i++)
		if (seen_register[i] != want_register[preserved_number[i]])
			DIFFERS("a signal's handler finds register %d as %lx, was %lx", preserved_number[i],
				seen_register[i], want_register[preserved_number[i]]);
}

static void put(u8 *block, u32 at, u64 value)
{
	memcpy(block + at, &value, 8);
}

/* The page as pyattach writes it: the data block, then the code; not writable once it runs. */
static u8 *make_page(u64 mask)
{
	static const u32 place[REGISTERS] = {D_RAX, D_RCX, D_RDX, D_RBX, D_RSP, D_RBP, D_RSI, D_RDI,
					     D_R8,  D_R9,  D_R10, D_R11, D_R12, D_R13, D_R14, D_R15};
	u8 *page = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		die("mmap");
	memcpy(page, boot, boot_size);
	for (int i = 0; i < REGISTERS; i++)
		put(page, place[i], want_register[i]);
	put(page, D_RIP, (u64)landing);
	put(page, D_RFLAGS, want_flags);
	put(page, D_ALL_SIGNALS, ~0UL);
	put(page, D_OLD_MASK, mask);
	put(page, D_MAIL, MAIL);
	put(page, D_NONCE, NONCE);
	put(page, D_FILE_SIZE, BOOT_SIZE + LOADER_SIZE);
	put(page, D_BOOT_OFFSET, 0);
	put(page, D_LIMIT_NS, is_served() ? SERVED_LIMIT_NS : LIMIT_NS);
	put(page, D_MEMFD_FLAGS, 1);
	memcpy(page + D_NAME, "driver", 7);
	if (mprotect(page, 8192, PROT_READ | PROT_EXEC))
		die("mprotect");
	return page;
}

static void check_registers(void)
{
	static const char *const name[REGISTERS] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
						    "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
	for (int i = 0; i < REGISTERS; i++)
		if (got_register[i] != want_register[i])
			DIFFERS("%s is %lx, was %lx", name[i], got_register[i], want_register[i]);
	if (got_flags != want_flags)
		DIFFERS("flags are %lx, were %lx", got_flags, want_flags);
}

static void check_vectors(void)
{
	if (got_vectors.mxcsr != want_vectors.mxcsr)
		DIFFERS("mxcsr is %x, was %x", got_vectors.mxcsr, want_vectors.mxcsr);
	if (got_vectors.control != want_vectors.control)
		DIFFERS("x87 control word is %x, was %x", got_vectors.control, want_vectors.control);
	for (int i = 0; i < 16; i++)
		if (has_avx ? memcmp(got_vectors.ymm[i], want_vectors.ymm[i], 32)
			    : memcmp(got_vectors.xmm[i], want_vectors.xmm[i], 16))
			DIFFERS("vector register %d differs", i);
}

static void check_stack(u64 sp)
{
	for (u32 i = 0; i < STACK_BYTES; i++)
		if (stack[i] != (u8)(i * 31 + 7)) {
			DIFFERS("the stack differs at rsp%+ld", (long)((u64)stack + i - sp));
			return;
		}
}

static void check_mail(u64 started_ns, u64 left_ns)
{
	if (!is_served() && left_ns - started_ns < LIMIT_NS && !is("taken") && !is("hinted"))
		DIFFERS("left before its limit");
	if (mail_nonce_seen != NONCE)
		return; /* we came too late to see it */
	mails_seen++;
	if (is("nofile") ? mail_fd_seen != -EMFILE : mail_fd_seen < 0)
		DIFFERS("the mail says file %d", mail_fd_seen);
	else if (mail_ready_ns < started_ns || mail_ready_ns > left_ns)
		DIFFERS("the mail's time %lu is not between %lu and %lu", mail_ready_ns, started_ns, left_ns);
}

static void check_tiny(void)
{
	u64 noted[5];
	if (pread(served_copy, noted, sizeof(noted), 0) != sizeof(noted))
		die("pread");
	if (noted[0] != 1 || noted[1] != MAIL + MAIL_SIZE + BOOT_SIZE)
		DIFFERS("the loader did not run, or at %lx", noted[1]);
	/* At a function's first instruction rsp + 8 is a multiple of 16. */
	if (noted[2] != MAIL + MAIL_SIZE + BOOT_SIZE - 8)
		DIFFERS("the loader's stack pointer is %lx", noted[2]);
	if ((int)noted[3] != mail_fd_seen)
		DIFFERS("the loader was given file %ld, not %d", noted[3], mail_fd_seen);
	if (noted[4] & 0x400 || noted[4] & 0x40000)
		DIFFERS("the loader runs with flags %lx", noted[4]);
}

static void check_loader(u64 started_ns, u64 left_ns)
{
	struct boot_args args;
	int error = is("refused") ? -EINVAL : -7;
	if (pread(served_copy, &args, sizeof(args), 0) != sizeof(args))
		die("pread");
	if (args.done != 1 || args.error != error)
		DIFFERS("done %u error %d", args.done, args.error);
	if (!(started_ns <= args.entered_ns && args.entered_ns <= args.left_ns && args.left_ns <= left_ns))
		DIFFERS("the loader's times are %lu and %lu", args.entered_ns, args.left_ns);
}

static void check_neighbour(void)
{
	static volatile u64 word;
	struct iovec here = {(void *)&word, 8}, there = {neighbour, 8};
	if (neighbour == MAP_FAILED)
		return; /* the address was not free for it: nothing can have happened to it */
	if (process_vm_readv(getpid(), &here, 1, &there, 1, 0) != 8)
		DIFFERS("what the target mapped meanwhile was unmapped");
	munmap(neighbour, 4096);
}

static void prepare(u64 flags, u64 mask, u64 sp)
{
	for (int i = 0; i < REGISTERS; i++)
		want_register[i] = 0x1111111111111111UL * (u64)i + 0xf00;
	want_register[4] = sp;
	want_flags = flags;
	for (u32 i = 0; i < STACK_BYTES; i++)
		stack[i] = (u8)(i * 31 + 7);
	memset(&got_vectors, 0, sizeof(got_vectors));
	memset(got_register, 0, sizeof(got_register));
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, 0, 8);
}

static void run_once(u64 flags)
{
	u64 mask = 0x0000000400000200UL, mask_after = 0, sp = (u64)stack + STACK_BYTES / 2 + 8, started_ns, left_ns;
	struct rlimit files;
	prepare(flags, mask, sp);
	u8 *page = make_page(mask);
	entry_at = (u64)page + BOOT_DATA_SIZE;
	getrlimit(RLIMIT_NOFILE, &files);
	u64 files_before = open_files();
	memset(maps_before, 0, sizeof(maps_before));
	memset(maps_after, 0, sizeof(maps_after));
	read_file("/proc/self/maps", maps_before, sizeof(maps_before));
	if (is("nofile"))
		setrlimit(RLIMIT_NOFILE, &(struct rlimit){0, files.rlim_max});
	if (is("signalled"))
		expect_signal();
	landed = 0;
	neighbour = MAP_FAILED;
	started_ns = now_ns();
	sem_post(&begin);
	run_bootstrap();
	left_ns = now_ns();
	landed = 1;
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, 0, &mask_after, 8);
	setrlimit(RLIMIT_NOFILE, &files);
	sem_wait(&finished);

	check_registers();
	check_vectors();
	check_stack(sp);
	check_mail(started_ns, left_ns);
	if (mask_after != mask)
		DIFFERS("the signal mask is %lx, was %lx", mask_after, mask);
	if (is("signalled"))
		check_signal();
	if (is("tiny"))
		check_tiny();
	if (is("loader") || is("refused"))
		check_loader(started_ns, left_ns);
	if (is("neighbour") || is_crowded())
		check_neighbour();
	if (served_copy >= 0)
		close(served_copy);
	if (open_files() != files_before)
		DIFFERS("open files are %lx, were %lx", open_files(), files_before);
	read_file("/proc/self/maps", maps_after, sizeof(maps_after));
	if (strcmp(maps_before, maps_after))
		DIFFERS("mappings differ\n%s---\n%s", maps_before, maps_after);
	munmap(page, 8192);
}

/* As a kernel before 4.17 does it, which knows no MAP_FIXED_NOREPLACE. */
static void forget_noreplace(void)
{
	int found = 0;
	for (size_t i = BOOT_DATA_SIZE; i + 4 <= boot_size; i++) {
		u32 flags;
		memcpy(&flags, boot + i, 4);
		if (flags != 0x100022 && flags != 0x100001 && flags != 0x100002)
			continue;
		flags &= ~0x100000U;
		memcpy(boot + i, &flags, 4);
		found++;
	}
	if (!found)
		DIFFERS("found no mapping in the bootstrap");
}

int main(int argc, char **argv)
{
	static const u64 bits[] = {0x1, 0x4, 0x10, 0x40, 0x80, 0x800, 0x400, 0x40000};
	pthread_t thread;
	int runs = 0;
	if (argc != 4)
		return 2;
	mode = argv[3];
	boot_size = read_file(argv[1], boot, sizeof(boot));
	loader_size = read_file(argv[2], loader, sizeof(loader));
	has_avx = (u64)__builtin_cpu_supports("avx");
	want_vectors.mxcsr = 0x7fa1; /* rounding towards zero, a sticky flag set */
	want_vectors.control = 0x0f7f;
	for (int i = 0; i < 16; i++) {
		memset(want_vectors.xmm[i], 0x40 + i, 16);
		memset(want_vectors.ymm[i], 0x80 + i, 32);
	}
	stack = mmap(0, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (stack == MAP_FAILED)
		die("mmap");
	if (is("taken") || is("hinted"))
		if (mmap((void *)MAIL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) !=
		    (void *)MAIL)
			die("mmap");
	if (is("hinted") || is("squeezed"))
		forget_noreplace();
	sem_init(&begin, 0, 0);
	sem_init(&finished, 0, 0);
	if (pthread_create(&thread, 0, server, 0))
		die("pthread_create");
	printf("%s", ""); /* stdio has its buffer before mappings are compared */
	fflush(stdout);
	/* Every combination of the flags a program can set: CF PF AF ZF SF OF DF AC. */
	for (u32 combination = 0; combination < 256 && !problems; combination++, runs++) {
		u64 flags = 0x202;
		for (int i = 0; i < 8; i++)
			if (combination >> i & 1)
				flags |= bits[i];
		run_once(flags);
		if (problems)
			printf("with flags %lx\n", flags);
	}
	if (!mails_seen && !is("taken") && !is("hinted"))
		DIFFERS("the mail was never seen");
	landed = 2;
	sem_post(&begin);
	pthread_join(thread, 0);
	if (!problems)
		printf("OK %d\n", runs);
	return 0;
}
