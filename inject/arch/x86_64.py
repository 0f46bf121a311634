"""x86_64: registers, the system call instruction, how an interrupted system call goes on."""

from __future__ import annotations

import struct
from collections.abc import Callable

from ..layout import BOOT_DATA_SIZE

Registers = dict[str, int]
"""Register values by the names of ``struct user_regs_struct`` (``sys/user.h``), as unsigned 64 bit."""

SYSCALL_INSTRUCTIONS = (b"\x0f\x05", b"\xcd\x80")
RESTART_SYSCALL = 219

# Kernel-internal results, never seen by a program that is not traced (include/linux/errno.h).
ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK = 512, 513, 514, 516
EINTR = 4

# Calls that return EINTR after any stop, and mean the same when they are begun anew: nothing was
# taken from the queue they wait on (man 7 signal, "Interruption of system calls ... by stop signals").
BEGIN_ANEW = frozenset(
    {232, 281, 441, 65, 220, 208}
)  # epoll_wait/pwait/pwait2, semop, semtimedop, io_getevents

# read, accept, recvfrom, recvmsg, accept4, recvmmsg: on a socket that has a time limit (SO_RCVTIMEO) they
# return EINTR as well (include/net/sock.h, sock_intr_errno), only where they have taken nothing.
BEGIN_ANEW_ON_SOCKETS = frozenset({0, 43, 45, 47, 288, 299})

# Calls that sleep and go on by themselves after a stop (-ERESTARTSYS and its kin).
GOES_ON = frozenset(
    {0, 7, 23, 34, 35, 43, 45, 47, 61, 130, 202, 219, 230, 232, 247, 270, 271, 281, 288, 299, 441}
)

# Calls that are waited in for a signal's handler: one that comes while the thread is borrowed, its signals
# blocked, would not end them.  Such a thread is taken last.
WAITS_FOR_SIGNALS = frozenset({34, 130, 270, 271})  # pause, rt_sigsuspend, pselect6, ppoll


def signed(value: int) -> int:
    """A register's value read as a signed 64-bit number."""
    return value - (1 << 64) if value >> 63 else value


def resume_registers(registers: Registers, before_ip: bytes, signal_pending: Callable[[], bool]) -> Registers:
    """The registers with which the thread goes on as if it had not been stopped.

    ``before_ip`` is the two bytes before the instruction pointer.  A thread stopped inside a system
    call is put back on the call's instruction: the kernel would do the same, had the instruction
    pointer not been moved (arch/x86/kernel/signal.c, arch_do_signal_or_restart).  A call that a stop
    ends with EINTR is begun anew only when no signal waits that could be the reason of that EINTR.
    """
    out = dict(registers)
    number, result = signed(registers["orig_rax"]), signed(registers["rax"])
    if number < 0 or before_ip not in SYSCALL_INSTRUCTIONS:
        return out
    again = {ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND}
    ended = -result == EINTR and number in BEGIN_ANEW | BEGIN_ANEW_ON_SOCKETS
    if -result in again or (ended and not signal_pending()):
        out["rax"] = registers["orig_rax"]
        out["rip"] = registers["rip"] - 2
    elif -result == ERESTART_RESTARTBLOCK:
        out["rax"] = RESTART_SYSCALL
        out["rip"] = registers["rip"] - 2
    return out


def entry_registers(registers: Registers, entry: int) -> Registers:
    """The registers that send a stopped thread to ``entry``.  ``orig_rax`` of -1 says: in no system
    call, so the kernel doesn't move the instruction pointer again."""
    return {**registers, "rip": entry, "orig_rax": (1 << 64) - 1}


DWARF_REGISTERS = "rax rdx rcx rbx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip".split()
"""In the order of their numbers in call frame information (psABI, figure 3.36)."""

_SAVED = "rip rsp eflags rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15".split()


def boot_settings(
    *, mail: int, nonce: int, file_size: int, boot_offset: int, limit_ns: int, memfd_flags: int, name: bytes
) -> bytes:
    """The part of the data block that is known before a thread is stopped."""
    block = struct.pack("<6Q", mail, nonce, file_size, boot_offset, limit_ns, memfd_flags) + name + b"\0"
    room = BOOT_DATA_SIZE - 8 * (len(_SAVED) + 4)
    if len(block) > room:
        raise ValueError(f"memfd name too long: {name!r}")
    return block.ljust(room, b"\0")


def boot_data(
    resume: Registers, signal_mask: int, settings: bytes, *, process_timer: int, processor: int
) -> bytes:
    """The data block in front of the bootstrap's code (``stub/boot/boot.h``, ``D_*``)."""
    words = [resume[register] for register in _SAVED]
    head = struct.pack(f"<{len(words) + 2}Q", *words, (1 << 64) - 1, signal_mask)
    return head + settings + struct.pack("<qQ", process_timer, processor)


def boot_mail(block: bytes) -> int:
    """The mail page's address, from a data block that is found (``D_MAIL``)."""
    return int.from_bytes(block[8 * (len(_SAVED) + 2) :][:8], "little")


_USER_CS = (0x33).to_bytes(2, "little")  # arch/x86/include/asm/segment.h
# struct rt_sigframe (arch/x86/include/asm/sigframe.h), counted from the interrupted instruction pointer in
# it. The return address below its begin is gone on the way out.
_FRAME_BEGINS, _FRAMES_SIGNAL_STACK, _FRAMES_SEGMENTS = -168, -152, 16


def handler_called_in(stack: bytes, sp: int, low: int, high: int) -> bool:
    """Whether ``stack``, from the stack pointer on, holds a frame that the kernel has made for a signal's
    handler that was called from ``low`` up to ``high``, and which may run still.  Flags and code segment
    follow the instruction pointer there (struct sigcontext), which tells it from a return address."""
    found = stack.find(_USER_CS, _FRAMES_SEGMENTS)
    while found >= 0:
        at = found - _FRAMES_SEGMENTS
        ip, flags = (int.from_bytes(stack[i : i + 8], "little") for i in (at, at + 8))
        if low <= ip < high and flags & 2 and flags >> 22 == 0 and _may_run(stack, sp, at):
            return True
        found = stack.find(_USER_CS, found + 1)
    return False


def _may_run(stack: bytes, sp: int, ip_at: int) -> bool:
    """Whether a handler with this frame may run on ``sp``.  It does so below its frame.  Where that lies on
    the thread's signal stack and ``sp`` does not, the frame was left behind: other stacks may lie in front of
    it (Go's are all in one heap)."""
    if ip_at < -_FRAME_BEGINS:
        return False
    at = ip_at + _FRAMES_SIGNAL_STACK
    begin, size = (int.from_bytes(stack[i : i + 8], "little") for i in (at, at + 16))
    return not begin <= sp + ip_at < begin + size or begin <= sp < begin + size
