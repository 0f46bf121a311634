"""Borrowing a stopped thread to run the loader, and giving it back.

The order, and who waits for whom:

    pyattach                                   the thread
    writes bootstrap + data block to the cave  stopped
    sets its registers, lets go of it          runs boot.S: blocks signals, makes mail page and memfd
    sees the nonce on the mail page            waits, at most LIMIT_NS
    fills the memfd, sets its final size       maps boot area and loader, runs the command
    sees args.done                             unmaps all, restores all, jumps back
    sees the thread outside the cave
    puts the cave's bytes back

At every line pyattach may die: the thread finds its own way out.  See ``stub/boot/boot.h``.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ..errors import InjectionFailed
from . import fault
from .arch import x86_64 as arch
from .cave import find_cave
from .chance import random_bits
from .image import boot_code, loader_code
from .layout import BOOT_DATA_SIZE, BOOT_SIZE, LOADER_SIZE, MAIL_SIZE, BootArgs
from .tracee import HeldThread, Target

LIMIT_NS = 100_000_000
"""How long the borrowed thread waits for pyattach before it gives up and goes home."""

DEADLINE_S = 2.0
"""How long pyattach waits for each sign of the thread.  Longer than LIMIT_NS: the thread may have to
wait for a processor."""

POLL_S = 0.00002
"""Between two looks.  Sleeping at once: the thread often wakes on our own processor and needs it."""

AT_WORK_S = 0.0001
"""Between two looks while the thread has all that it needs of us.  It is not held for longer if we come late,
but where it runs on our own processor each look stops it."""

LOOK_FOR_MAIL_S = 0.01
"""After this long it is worth a look whether the thread gave up waiting (its mmap waits for our reads)."""

AREA_SIZE = MAIL_SIZE + BOOT_SIZE + LOADER_SIZE
MEMFD_PREFIX = b"pyattach-"

_WINDOW = 4096
_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_EXEC = 1, 2, 0x10
_PR_SET_TIMERSLACK = 29


class Borrowed(NamedTuple):
    """What came of it.  ``memfd`` is open here and now the caller's; times are CLOCK_MONOTONIC, ns."""

    args: BootArgs
    memfd: int
    held_ns: int
    clock_offset_ns: int


def boot_size() -> int:
    """Bytes the bootstrap needs in the cave."""
    return BOOT_DATA_SIZE + len(boot_code())


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def memfd_flags() -> int:
    """MFD_EXEC must be said from kernel 6.3 on and is unknown before (man memfd_create)."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    return _MFD_CLOEXEC | _MFD_ALLOW_SEALING | (_MFD_EXEC if version >= (6, 3) else 0)


def forbid_shrinking(memfd: int) -> None:
    """To be called before it is mapped here: a store behind the end of a file that the target has cut off
    would end pyattach (SIGBUS)."""
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def error_text(number: int) -> str:
    """What a negative error number says.  The target has written it, so it may be any number."""
    return os.strerror(-number) if -4096 < number < 0 else f"error {number}"


def _processor() -> int:
    """The processor this thread runs on."""
    return int(_libc().sched_getcpu())


@functools.cache
def _sleep_precisely() -> None:
    """Let this thread's short sleeps end when asked and not 50 us later (man prctl, PR_SET_TIMERSLACK)."""
    _libc().prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def _path_of_its_own(number: int, nonce: int) -> str:
    """A path of file ``number`` that nobody has used: the loader takes libraries of one name for one,
    so the nonce is spelled in slashes and dots."""
    spelled = "".join("./" if nonce >> bit & 1 else "/" for bit in range(63))
    return f"/proc/self/{spelled}fd/{number}"


def _pick_gap(target: Target, size: int) -> int:
    """An address with ``size`` free bytes around it, at random, far from what the kernel gives next."""
    taken = sorted((m.start, m.end) for m in target.maps())
    for _ in range(64):
        start = (0x10_0000_0000 + random_bits(64) % 0x5000_0000_0000) & ~0xFFFF
        if all(start + size + (1 << 24) <= low or high + (1 << 24) <= start for low, high in taken):
            return start
    raise InjectionFailed(f"pid {target.pid}: found no free addresses for the boot area")


def _looks(pause_s: float) -> Iterator[float]:
    """The seconds passed, once for each look at what the thread has done, until DEADLINE_S is over."""
    start = time.monotonic()
    while True:
        time.sleep(pause_s)  # first: the thread has only just been let go of
        passed = time.monotonic() - start
        yield passed
        if passed > DEADLINE_S:
            return


class ThreadGaveUp(InjectionFailed):
    """The borrowed thread has gone home without having run the command: it may be tried again."""


class _NoSign(InjectionFailed):
    """Nothing was seen of the borrowed thread."""


class ThreadUnderWay(InjectionFailed):
    """The borrowed thread may still run the command, whenever it gets to it: it must not be tried again."""


def bootstraps_in(target: Target) -> list[int]:
    """Where data blocks of bootstraps begin, wherever the code behind them lies behind that of a mapping.
    Raises ProcessLookupError."""
    code, out = boot_code(), []
    for mapping in target.maps():
        if not mapping.executable or mapping.shared or mapping.is_memfd or mapping.path == "[vsyscall]":
            continue
        start = max(mapping.start, mapping.end - _WINDOW)
        try:
            tail = target.read(start, mapping.end - start)
        except ProcessLookupError:
            raise
        except OSError:
            continue
        at = tail.find(code)
        if at >= BOOT_DATA_SIZE:
            out.append(start + at - BOOT_DATA_SIZE)
    return out


class Borrowing:
    """One use of one stopped thread: prepare while it runs, then ``run`` once it is held."""

    def __init__(
        self,
        target: Target,
        args: BootArgs,
        front: bytes = b"",
        behind: Sequence[tuple[int, bytes]] = (),
        size: int = 0,
        process_timer: Callable[[], int] = lambda: 0,
    ) -> None:
        """``front`` is what the memfd holds before the boot area (the stub's image, page aligned);
        ``behind`` what lies in the ``size`` bytes after it (the shared region), as offsets and bytes;
        the rest is zero.  ``process_timer`` tells the number plus 1 of the timer on the clock of the whole
        process, which is to be deleted: its signal would meet threads that sleep."""
        if len(front) % MAIL_SIZE:
            raise ValueError("front must be whole pages")
        self.target = target
        self.args = args
        self.args.fault = fault.in_loader()
        self.boot_offset = len(front)
        self._nonce = random_bits(63) | 1
        self._mailed = self._tidied = False
        self._front, self._process_timer = front, process_timer
        self._pieces = [(offset, data) for offset, data in behind if data]
        boot_code(), loader_code()  # read from disk before anything waits for them
        self._file_size = self.boot_offset + BOOT_SIZE + LOADER_SIZE + size
        self._name = MEMFD_PREFIX + f"{self._nonce:016x}".encode()
        self._cave = find_cave(target, boot_size())
        self._mail = _pick_gap(target, AREA_SIZE)
        self._settings = arch.boot_settings(
            mail=self._mail,
            nonce=self._nonce,
            file_size=self._file_size,
            boot_offset=self.boot_offset,
            limit_ns=LIMIT_NS,
            memfd_flags=memfd_flags(),
            name=self._name,
        )
        _sleep_precisely()

    def run(self, held: HeldThread, done: Callable[[Borrowed], None] | None = None) -> Borrowed:
        """Run the command on ``held`` and return when the thread has left our code.  ``done`` is told as soon
        as the command was run: until the thread is seen elsewhere tens of milliseconds may pass.

        Raises InjectionFailed when the thread did not get through, ProcessLookupError when it died.
        The thread is released in every case.
        """
        data = self._bootstrap(held)
        before = self.target.read(self._cave.address, len(data))
        if before.strip(b"\0"):
            held.release()
            raise InjectionFailed(
                f"pid {self.target.pid}: the padding of {self._cave.mapping.path} is in use",
                "is another tool injecting into it just now? try again",
            )
        self.target.write(self._cave.address, data)
        fault.reach("written", self.target.pid)
        try:
            held.release(arch.entry_registers(held.registers, self._cave.address + BOOT_DATA_SIZE))
            fault.reach("released", self.target.pid)
            borrowed = self._serve(held)
            if done is not None:
                done(borrowed)
            return borrowed
        except _NoSign as error:
            self._tidy(held, before)
            raise self._gave_up() from error  # it was there, and has gone home before it was seen
        finally:
            self._tidy(held, before)

    def _tidy(self, held: HeldThread, before: bytes) -> None:
        """Put the cave's bytes back, but only once the thread has left them for good."""
        if self._tidied:
            return
        self._tidied = True
        if not self._has_left(held.tid, len(before)):
            raise ThreadUnderWay(
                f"thread {held.tid} has not left the bootstrap within {DEADLINE_S:.0f} s",
                "is the target stopped (SIGSTOP), starved of processor time, or long in a signal's handler? "
                "the code is left in place, so the thread gets through; attaching anew removes it then",
            )
        fault.reach("left", self.target.pid)
        with contextlib.suppress(OSError):  # the target is gone
            self.target.write(self._cave.address, before)
        fault.reach("restored", self.target.pid)

    def _has_left(self, tid: int, size: int) -> bool:
        """Wait until the thread has gone home.

        From the cave it calls the loader, which calls the C library's, and comes back: outside of the cave is
        not enough.  As long as it may come back the mail page is mapped, but that is not mapped yet when the
        thread begins, either.  So: outside, then no mail page, then outside still.  Once the mail was read,
        the page was mapped: no mail page, then outside.

        Where signals are let in, at the first and the last instructions, a handler may be called, and takes
        as long as it takes.
        """
        code = (self._cave.address, self._cave.address + size)
        deadline = time.monotonic() + DEADLINE_S

        def outside() -> bool:
            left_s = deadline - time.monotonic()
            return not self.target.wait_outside([tid], [code], left_s, handlers=True)

        while time.monotonic() < deadline:
            time.sleep(POLL_S)
            if not self._mailed and not outside():
                return False
            if self._mail_is_gone() and outside():
                return True
        return False

    def _bootstrap(self, held: HeldThread) -> bytes:
        registers = held.registers
        before_ip = b""
        with contextlib.suppress(OSError):
            before_ip = self.target.read(registers["rip"] - 2, 2)
        resume = arch.resume_registers(registers, before_ip, held.signal_pending)
        data = arch.boot_data(
            resume,
            held.signal_mask,
            self._settings,
            process_timer=self._process_timer(),
            processor=_processor(),
        )
        return data + boot_code()

    def _serve(self, held: HeldThread) -> Borrowed:
        number, ready_ns = self._wait_for_mail()
        self._mailed = True
        clock_offset_ns = ready_ns - time.monotonic_ns()
        fault.reach("mailed", self.target.pid)
        memfd = self._fill(number)
        try:
            args = self._wait_for_done(memfd)
            fault.reach("done", self.target.pid)
        except BaseException:
            os.close(memfd)
            raise
        # A time namespace shifts the target's clock; scheduling noise does not reach a second.
        offset = clock_offset_ns if abs(clock_offset_ns) > 1_000_000_000 else 0
        return Borrowed(args, memfd, args.left_ns - offset - held.stopped_at_ns, offset)

    def _wait_for_mail(self) -> tuple[int, int]:
        for _ in _looks(POLL_S):
            try:
                mail = self.target.read(self._mail, 24)
            except ProcessLookupError:
                raise
            except OSError:  # not mapped yet
                continue
            if int.from_bytes(mail[:8], "little") == self._nonce:
                number = int.from_bytes(mail[8:16], "little", signed=True)
                if number < 0:
                    raise InjectionFailed(
                        f"pid {self.target.pid}: memfd_create there: {error_text(number)}",
                        "raise its limit of open files, or see whether vm.memfd_noexec forbids it",
                    )
                return number, int.from_bytes(mail[16:24], "little")
        raise _NoSign(
            f"pid {self.target.pid}: the borrowed thread gave no sign within {DEADLINE_S:.0f} s",
            "is the target stopped or starved of processor time?",
        )

    def _fill(self, number: int) -> int:
        """Write the memfd; its final size, set last, is the sign for the thread to go on."""
        try:
            memfd = self.target.open_fd(number, self._name)
        except FileNotFoundError as error:
            raise self._gave_up() from error
        try:
            fault.reach("opened", self.target.pid)
            name = os.readlink(f"/proc/self/fd/{memfd}").encode()
            if self._name not in name:
                raise self._gave_up()
            forbid_shrinking(memfd)
            if self.args.path == b"":
                self.args.path = _path_of_its_own(number, self._nonce).encode()
            os.pwrite(memfd, self._front + bytes(self.args), 0)
            os.pwrite(memfd, loader_code(), self.boot_offset + BOOT_SIZE)
            for offset, data in self._pieces:
                os.pwrite(memfd, data, self.boot_offset + BOOT_SIZE + LOADER_SIZE + offset)
            fault.reach("filled", self.target.pid)
            os.ftruncate(memfd, self._file_size)
            fault.reach("sized", self.target.pid)
        except BaseException:
            os.close(memfd)
            raise
        return memfd

    def _mail_is_gone(self) -> bool:
        try:
            self.target.read(self._mail, 8)
        except ProcessLookupError:
            raise
        except OSError:
            return True
        return False

    def _gave_up(self) -> Exception:
        if not self.target.threads():
            return ProcessLookupError(f"process {self.target.pid} is gone")
        return ThreadGaveUp(
            f"pid {self.target.pid}: the borrowed thread gave up waiting for pyattach",
            "this machine is short of processor time; try again",
        )

    def _wait_for_done(self, memfd: int) -> BootArgs:
        done_at = self.boot_offset + BootArgs.done.offset
        for passed_s in _looks(AT_WORK_S):
            gone = passed_s > LOOK_FOR_MAIL_S and self._mail_is_gone()
            if os.pread(memfd, 4, done_at) == b"\1\0\0\0":
                return BootArgs.from_buffer_copy(os.pread(memfd, ctypes.sizeof(BootArgs), self.boot_offset))
            if gone:
                raise self._gave_up()
        raise ThreadUnderWay(
            f"pid {self.target.pid}: the loader did not finish within {DEADLINE_S:.0f} s",
            "the thread will go on by itself; try again",
        )
