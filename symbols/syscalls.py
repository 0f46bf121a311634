"""What a thread waits for: the names of system calls that block, and the frame that stands for one.

Numbers are those of x86_64 (Linux, arch/x86/entry/syscalls/syscall_64.tbl).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .frame import Frame

_NAMES = {
    0: "read", 1: "write", 3: "close", 7: "poll", 16: "ioctl", 17: "pread64", 18: "pwrite64",
    19: "readv", 20: "writev", 23: "select", 26: "msync", 34: "pause", 35: "nanosleep", 40: "sendfile",
    42: "connect", 43: "accept", 44: "sendto", 45: "recvfrom", 46: "sendmsg", 47: "recvmsg",
    56: "clone", 57: "fork", 58: "vfork", 59: "execve", 61: "wait4", 65: "semop", 69: "msgsnd",
    70: "msgrcv", 72: "fcntl", 73: "flock", 74: "fsync", 75: "fdatasync", 127: "rt_sigpending",
    128: "rt_sigtimedwait", 130: "rt_sigsuspend", 162: "sync", 187: "readahead", 202: "futex",
    208: "io_getevents", 219: "restart_syscall", 220: "semtimedop", 230: "clock_nanosleep",
    231: "exit_group", 232: "epoll_wait", 242: "mq_timedsend", 243: "mq_timedreceive", 247: "waitid",
    257: "openat", 262: "newfstatat", 270: "pselect6", 271: "ppoll", 275: "splice", 276: "tee",
    277: "sync_file_range", 278: "vmsplice", 281: "epoll_pwait", 285: "fallocate", 288: "accept4",
    295: "preadv", 296: "pwritev", 299: "recvmmsg", 306: "syncfs", 307: "sendmmsg", 318: "getrandom",
    326: "copy_file_range", 327: "preadv2", 328: "pwritev2", 333: "io_pgetevents",
    426: "io_uring_enter", 435: "clone3", 441: "epoll_pwait2", 449: "futex_waitv", 455: "futex_wait",
}  # fmt: skip

RESTART = 219
"""restart_syscall: goes on with a call that was interrupted, under this number instead of its own."""

WAITING = 0xFFFF_FFFF_0000_0000
"""Addresses from here on are no code in user space: WAITING + the number of a system call, 32 bits, stands
for its wait where a stack is given as addresses."""

NO_SYSCALL = -1
"""What /proc/PID/syscall calls a thread that sleeps in the kernel for another reason (a page fault)."""


def waiting_address(number: int) -> int:
    """The address that stands for a wait in system call ``number``, or for NO_SYSCALL."""
    return WAITING + (number & 0xFFFF_FFFF)


def is_waiting(address: int) -> bool:
    """Whether ``address`` is one of ``waiting_address``."""
    return address >= WAITING


@functools.cache
def waiting_frame(address: int) -> Frame:
    """The frame of a ``waiting_address``: ``[waiting: futex]``."""
    from .frame import Frame, FrameKind

    number = address - WAITING
    known = _NAMES.get(number, f"syscall {number}")
    name = "no system call" if address == waiting_address(NO_SYSCALL) else known
    return Frame(f"[waiting: {name}]", "", FrameKind.MARK)
