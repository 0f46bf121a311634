/* All the stub knows of x86_64.  Another architecture is another file of this shape. */
#ifndef PA_ARCH_X86_64_H
#define PA_ARCH_X86_64_H

#include "../shared.h"

#define SYS_mmap 9
#define SYS_mprotect 10
#define SYS_munmap 11
#define SYS_rt_sigaction 13
#define SYS_rt_sigprocmask 14
#define SYS_madvise 28
#define SYS_close 3
#define SYS_pwrite64 18
#define SYS_munlock 150
#define SYS_prctl 157
#define SYS_timer_create 222
#define SYS_timer_settime 223
#define SYS_timer_delete 226
#define SYS_clock_gettime 228
#define SYS_process_vm_readv 310
#define SYS_getpid 39
#define SYS_getrusage 98
#define SYS_gettid 186
#define SYS_read 0
#define SYS_open 2
#define SYS_pread64 17
#define SYS_nanosleep 35

static inline i64 sys6(i64 n, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	register u64 r10 __asm__("r10") = d;
	register u64 r8 __asm__("r8") = e;
	register u64 r9 __asm__("r9") = f;
	i64 ret;
	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

/* Registers as DWARF numbers them (System V ABI for x86_64, figure 3.36). */
#define PA_REGISTERS 17
#define PA_REG_FP 6
#define PA_REG_SP 7
#define PA_REG_IP 16

/* Those a call preserves, besides the stack pointer: rbx, rbp, r12 to r15. */
#define PA_PRESERVED 6
static const u8 pa_preserved[PA_PRESERVED] = {3, 6, 12, 13, 14, 15};
#define PA_SAVED_FP 1 /* the frame pointer's place among them */
#define PA_PRESERVED_MASK ((1U << 3) | (1U << 6) | (1U << 12) | (1U << 13) | (1U << 14) | (1U << 15))

/* Offset of uc_mcontext.gregs in the kernel's struct ucontext (asm/ucontext.h, asm/sigcontext.h), and the
 * DWARF number of each of its words. */
#define UC_GREGS 40
#define UC_STACK 16 /* stack_t: where the signal stack begins, flags, its size; words */
#define UC_SIGMASK 296 /* what the thread blocked before, one word */
static const u8 pa_greg_numbers[PA_REGISTERS] = {8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 6, 3, 1, 0, 2, 7, 16};

static inline u64 cycle_counter(void)
{
	u32 lo, hi;
	__asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
	return ((u64)hi << 32) | lo;
}

/* Whether a signal with these registers (its frame's gregs) has just ended a system call, with EINTR; the caller
 * says whether code of ours may read the two bytes before the instruction pointer. */
#define GREG_RAX 13
#define GREG_RIP 16
#define SYSCALL_BYTES 2
static inline int returns_eintr(const u64 *gregs)
{
	return gregs[GREG_RAX] == (u64)-4;
}
static inline u64 syscall_place(const u64 *gregs)
{
	return gregs[GREG_RIP] - SYSCALL_BYTES;
}
static inline int is_syscall(u64 address)
{
	return *(const u8 *)address == 0x0f && *(const u8 *)(address + 1) == 0x05;
}

/* Makes a function put the registers that its caller expects back on its stack. */
#define SAVE_CALLEES_REGISTERS() __asm__ volatile("" ::: "rbx", "r12", "r13", "r14", "r15", "memory")

#define USER_SPACE_END 0x800000000000UL

/* The kernel wants a restorer on x86_64 (SA_RESTORER): rt_sigreturn. */
#define SA_RESTORER 0x04000000UL
#define DEFINE_RESTORER(name)                                                                         \
	__asm__(".text\n.balign 16\n.type " #name ",@function\n.hidden " #name "\n" #name ":\n"       \
		"mov $15, %eax\nsyscall\n.size " #name ", . - " #name "\n");                          \
	void name(void) __attribute__((visibility("hidden")))

#endif
