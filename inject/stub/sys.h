/* Raw system calls and the kernel's constants and structs; names as in the man pages. */
#ifndef PA_SYS_H
#define PA_SYS_H

#include "arch/x86_64.h"

#define sys0(n) sys6(n, 0, 0, 0, 0, 0, 0)
#define sys1(n, a) sys6(n, (u64)(a), 0, 0, 0, 0, 0)
#define sys2(n, a, b) sys6(n, (u64)(a), (u64)(b), 0, 0, 0, 0)
#define sys3(n, a, b, c) sys6(n, (u64)(a), (u64)(b), (u64)(c), 0, 0, 0)
#define sys4(n, a, b, c, d) sys6(n, (u64)(a), (u64)(b), (u64)(c), (u64)(d), 0, 0)

#define EFAULT 14
#define EBUSY 16
#define EINVAL 22

#define O_RDONLY 0
#define O_RDWR 2
#define O_CLOEXEC 02000000

#define PROT_NONE 0
#define PROT_READ 1
#define PROT_WRITE 2
#define PROT_EXEC 4
#define MAP_SHARED 1
#define MAP_PRIVATE 2
#define MAP_FIXED 0x10
#define MAP_ANONYMOUS 0x20
#define MAP_FIXED_NOREPLACE 0x100000
#define MADV_DONTFORK 10
#define MADV_DONTDUMP 16
#define MADV_WIPEONFORK 18

#define CLOCK_MONOTONIC 1
#define CLOCK_THREAD_CPUTIME_ID 3
#define CLOCK_PROCESS_CPUTIME_ID 2
#define SIGEV_SIGNAL 0
#define SIGEV_THREAD_ID 4
#define SI_TIMER (-2)
#define TIMER_ABSTIME 1
#define POLL_IN 1

#define SA_SIGINFO 4UL
#define SA_ONSTACK 0x08000000UL
#define SA_RESTART 0x10000000UL
#define SA_NODEFER 0x40000000UL
#define SIG_BLOCK 0
#define SIG_DFL 0UL
#define SIG_IGN 1UL

struct timespec {
	i64 sec, nsec;
};
struct itimerspec {
	struct timespec interval, value;
};
struct sigevent { /* asm-generic/siginfo.h */
	u64 value;
	i32 signo;
	i32 notify;
	i32 tid;
	i32 pad[11];
};
_Static_assert(sizeof(struct sigevent) == 64, "struct sigevent");

struct siginfo { /* of a timer's signal; a file's (F_SETSIG) has si_fd in the lower half of `value` */
	i32 signo, errno_, code, pad;
	i32 timer, overrun;
	u64 value;
};
struct kernel_sigaction {
	u64 handler;
	u64 flags;
	u64 restorer;
	u64 mask;
};

static inline u64 read_clock_ns(i32 clock)
{
	struct timespec t;
	sys2(SYS_clock_gettime, clock, &t);
	return (u64)t.sec * 1000000000UL + (u64)t.nsec;
}

static inline u64 clock_ns(void)
{
	return read_clock_ns(CLOCK_MONOTONIC);
}

/* The clock of one thread's CPU time, made of its tid as the kernel makes it (man clock_getcpuclockid,
 * include/linux/posix-timers_types.h: CPUCLOCK_PERTHREAD_MASK 4 | CPUCLOCK_SCHED 2). */
static inline i32 thread_cpu_clock(u32 tid)
{
	return (i32)((~tid << 3) | 6);
}

#endif
