/* Borrow the thread that runs this, and give it back as it was.
 *
 * pyattach writes this, with the data block filled in, into the zero padding behind an executable
 * mapping, points a stopped thread at boot_entry and lets go of it at once.  From then on nothing
 * depends on pyattach: all the thread's registers and its signal mask are in the data block, its stack
 * is never touched (nor its red zone), and every way through here ends at boot_leave.
 *
 * rbx = mail page, ebp = memfd, r12 = deadline, r13 = looks left, r14 = boot area
 */
#include "boot.h"

#define SYS_mmap 9
#define SYS_close 3
#define SYS_lseek 8
#define SYS_munmap 11
#define SYS_rt_sigprocmask 14
#define SYS_sched_yield 24
#define SYS_timer_delete 226
#define SYS_clock_gettime 228
#define SYS_getcpu 309
#define SYS_memfd_create 319

#define LOOKS 1500 /* at the file's size, some 0.2 us each, before the processor is yielded */

#define PROT_RW 3
#define PROT_RX 5
#define ANON_AT 0x100022   /* MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE */
#define SHARED_AT 0x11     /* MAP_SHARED | MAP_FIXED, over pages of our own */
#define PRIVATE_AT 0x12    /* MAP_PRIVATE | MAP_FIXED */
#define AREA_SIZE (MAIL_SIZE + BOOT_SIZE + LOADER_SIZE)

#define D(field) (boot_data + field)(%rip)

	.section .text.entry, "ax"
	.globl boot_data
boot_data:
	.skip BOOT_DATA_SIZE, 0

	.globl boot_entry
boot_entry:
	/* The whole process's clock: were it to tick while this thread blocks all signals, the kernel would hand
	 * the signal to one that sleeps, and end that one's system call. */
	mov D(D_TIMER), %edi
	dec %edi
	js 1f
	mov $SYS_timer_delete, %eax
	syscall
1:
	/* rt_sigprocmask(SIG_BLOCK, all, NULL, 8) */
	mov $SYS_rt_sigprocmask, %eax
	xor %edi, %edi
	lea D(D_ALL_SIGNALS), %rsi
	xor %edx, %edx
	mov $8, %r10d
	syscall

	/* The whole area, its mail page just where pyattach looks for it.  Kernels before 4.17 take the
	 * address as a hint and may answer with another: give that back and leave. */
	mov D(D_MAIL), %rdi
	mov $AREA_SIZE, %esi
	mov $PROT_RW, %edx
	mov $ANON_AT, %r10d
	mov $-1, %r8
	xor %r9d, %r9d
	mov $SYS_mmap, %eax
	syscall
	cmp D(D_MAIL), %rax
	jne wrong_mail
	mov %rax, %rbx

	lea D(D_NAME), %rdi
	mov D(D_MEMFD_FLAGS), %esi
	mov $SYS_memfd_create, %eax
	syscall
	mov %eax, %ebp
	movslq %eax, %rax
	mov %rax, 8(%rbx)

	mov $SYS_clock_gettime, %eax
	mov $1, %edi
	lea 32(%rbx), %rsi
	syscall
	imul $1000000000, 32(%rbx), %r12
	add 40(%rbx), %r12
	mov %r12, 16(%rbx)
	add D(D_LIMIT_NS), %r12
	mov $SYS_getcpu, %eax
	lea 48(%rbx), %rdi
	xor %esi, %esi
	xor %edx, %edx
	syscall
	mov D(D_NONCE), %rax
	mov %rax, (%rbx)
	/* On the processor that pyattach let go of us from it can't go on before we make room. */
	mov $LOOKS, %r13d
	mov 48(%rbx), %eax
	xor %ecx, %ecx
	cmp D(D_PROCESSOR), %eax
	cmove %ecx, %r13d

wait:
	/* The file has its final size: pyattach is done with it. */
	mov %ebp, %edi
	xor %esi, %esi
	mov $2, %edx
	mov $SYS_lseek, %eax
	syscall
	cmp D(D_FILE_SIZE), %rax
	je go
	/* pyattach needs a moment: don't give the processor away for a time slice at once. */
	pause
	dec %r13d
	jns wait
	xor %r13d, %r13d
	mov $SYS_sched_yield, %eax
	syscall
	mov $SYS_clock_gettime, %eax
	mov $1, %edi
	lea 32(%rbx), %rsi
	syscall
	imul $1000000000, 32(%rbx), %rax
	add 40(%rbx), %rax
	cmp %r12, %rax
	jb wait
	jmp finish

go:
	lea MAIL_SIZE(%rbx), %rdi
	mov $BOOT_SIZE, %esi
	mov $PROT_RW, %edx
	mov $SHARED_AT, %r10d
	mov %ebp, %r8d
	mov D(D_BOOT_OFFSET), %r9
	mov $SYS_mmap, %eax
	syscall
	lea MAIL_SIZE(%rbx), %r14
	cmp %r14, %rax
	jne finish
	lea BOOT_SIZE(%r14), %rdi
	mov $LOADER_SIZE, %esi
	mov $PROT_RX, %edx
	mov $PRIVATE_AT, %r10d
	mov %ebp, %r8d
	mov D(D_BOOT_OFFSET), %r9
	add $BOOT_SIZE, %r9
	mov $SYS_mmap, %eax
	syscall
	lea BOOT_SIZE(%r14), %rcx
	cmp %rcx, %rax
	jne finish

	/* loader(args, memfd) on a stack of our own, with the flags the ABI promises. */
	mov %rcx, %rsp
	pushq $0x202
	popfq
	mov %r14, %rdi
	mov %ebp, %esi
	call *%rcx

finish:
	mov %ebp, %edi
	mov $SYS_close, %eax
	syscall
	lea MAIL_SIZE(%rbx), %rsp
	pushq D(D_RFLAGS)
	popfq
	/* From here on nothing changes the flags: mov, lea and syscall only. */
	mov D(D_RSP), %rsp
	mov %rbx, %rdi
	mov $AREA_SIZE, %esi
	mov $SYS_munmap, %eax
	syscall

boot_leave:
	/* What came meanwhile is handled behind this system call, and who handles it may look at the registers: a
	 * collector of garbage for what they lead to.  All that the call itself does not need are the thread's by then. */
	mov D(D_RBX), %rbx
	mov D(D_RBP), %rbp
	mov D(D_R8), %r8
	mov D(D_R9), %r9
	mov D(D_R12), %r12
	mov D(D_R13), %r13
	mov D(D_R14), %r14
	mov D(D_R15), %r15
	mov $SYS_rt_sigprocmask, %eax
	mov $2, %edi
	lea D(D_OLD_MASK), %rsi
	mov $0, %edx
	mov $8, %r10d
	syscall
	mov D(D_RAX), %rax
	mov D(D_RCX), %rcx
	mov D(D_RDX), %rdx
	mov D(D_RSI), %rsi
	mov D(D_RDI), %rdi
	mov D(D_R10), %r10
	mov D(D_R11), %r11
	jmp *D(D_RIP)

wrong_mail:
	/* No memory of our own to pop the flags from: rebuild the six that were changed.  al = 1 or 0,
	 * plus 127, overflows just when the overflow flag was set; sahf brings the other five. */
	cmp $-4096, %rax
	ja 1f
	mov %rax, %rdi
	mov $AREA_SIZE, %esi
	mov $SYS_munmap, %eax
	syscall
1:	mov D(D_RFLAGS), %eax
	mov %eax, %ecx
	shr $11, %ecx
	and $1, %ecx
	mov %al, %ah
	add $127, %cl
	sahf
	jmp boot_leave
