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
#define SYS_prctl 157
#define SYS_timer_create 222
#define SYS_timer_settime 223
#define SYS_timer_delete 226
#define SYS_clock_gettime 228

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

/* Registers a walk starts from, out of the signal frame (struct ucontext, asm/ucontext.h). */
struct pa_regs {
	u64 ip, sp, fp;
};

#define UC_GREGS 40 /* offset of uc_mcontext.gregs; order: r8..r15 rdi rsi rbp rbx rdx rax rcx rsp rip */

static inline struct pa_regs regs_from_ucontext(const void *uc)
{
	const u64 *g = (const u64 *)((const u8 *)uc + UC_GREGS);
	return (struct pa_regs){.ip = g[16], .sp = g[15], .fp = g[10]};
}

static inline u64 cycle_counter(void)
{
	u32 lo, hi;
	__asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
	return ((u64)hi << 32) | lo;
}

#define USER_SPACE_END 0x800000000000UL

/* The kernel wants a restorer on x86_64 (SA_RESTORER): rt_sigreturn. */
#define SA_RESTORER 0x04000000UL
#define DEFINE_RESTORER(name)                                                                         \
	__asm__(".text\n.balign 16\n.type " #name ",@function\n.hidden " #name "\n" #name ":\n"       \
		"mov $15, %eax\nsyscall\n.size " #name ", . - " #name "\n");                          \
	void name(void) __attribute__((visibility("hidden")))

#endif
