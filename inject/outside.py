"""The stub's unwinder on pyattach's own side: stacks of threads that sleep, read over /proc/PID/mem."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

from ..errors import PyattachError
from .arch.x86_64 import DWARF_REGISTERS, Registers
from .layout import CacheLine, Modules, Unwind

_LIBRARY = Path(__file__).parent / "_unwind.so"
_CACHE_LINES = 1 << 12


_START_OF = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64)


class _Outside(ctypes.Structure):
    """``struct pa_outside`` of ``stub/outside/outside.c``."""

    _fields_ = (
        ("memory", ctypes.c_int32),
        ("mode", ctypes.c_uint32),
        ("generation", ctypes.c_uint32),
        ("cache_lines", ctypes.c_uint32),
        ("modules", ctypes.c_void_p),
        ("region", ctypes.c_uint64),
        ("cache", ctypes.c_void_p),
        ("start_of", _START_OF),
        ("window", ctypes.c_void_p),
    )


@functools.cache
def library() -> ctypes.CDLL:
    """``_unwind.so``.  Raises PyattachError where it is missing."""
    try:
        loaded = ctypes.CDLL(str(_LIBRARY))
    except OSError as error:
        raise PyattachError(
            f"pyattach is not built: {_LIBRARY} can't be loaded: {error}",
            "install it (pip install .), or in a checkout: python inject/build_stub.py",
        ) from error
    loaded.pa_outside_window.restype = ctypes.c_uint64
    loaded.pa_outside_walk.restype = ctypes.c_uint32
    loaded.pa_outside_walk.argtypes = [
        ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p,
    ]  # fmt: skip
    loaded.pa_outside_walk_stopped.restype = ctypes.c_uint32
    loaded.pa_outside_walk_stopped.argtypes = [
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p,
    ]  # fmt: skip
    loaded.pa_delivery.restype = ctypes.c_int64
    loaded.pa_delivery.argtypes = [
        ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p,
    ]  # fmt: skip
    return loaded


class OutsideUnwinder:
    """Walks stacks of another process from a stack pointer and an instruction pointer.

    ``memory_fd`` is an open /proc/PID/mem, ``region`` the address there that indexes of our own count from
    (Tables.own); it writes nothing.  ``start_of`` says where the function at an address starts (0: unknown).
    Walks are believable only while the thread does not run: that is for
    the caller to see to.  Raises PyattachError where the library is missing.
    """

    def __init__(
        self, memory_fd: int, *, region: int, max_depth: int, mode: Unwind = Unwind.AUTO,
        start_of: Callable[[int], int] = lambda _address: 0,
    ) -> None:  # fmt: skip
        outside = library()
        self._walk, self._walk_stopped = outside.pa_outside_walk, outside.pa_outside_walk_stopped
        self._modules = Modules()
        self._cache = (CacheLine * _CACHE_LINES)()
        self._window = (ctypes.c_uint8 * outside.pa_outside_window())()
        self._addresses = (ctypes.c_uint64 * max_depth)()
        self._depth = ctypes.c_uint32()
        self._max_depth = max_depth
        self._outside = _Outside(
            memory=memory_fd,
            mode=mode,
            cache_lines=_CACHE_LINES,
            modules=ctypes.addressof(self._modules),
            region=region,
            cache=ctypes.addressof(self._cache),
            start_of=_START_OF(start_of),
            window=ctypes.addressof(self._window),
        )
        self._arguments = tuple(map(ctypes.addressof, (self._outside, self._addresses, self._depth)))

    def set_modules(self, table: bytes) -> None:
        """Go on with these modules (the bytes of a ``struct pa_modules``, as far as it is filled)."""
        ctypes.memmove(ctypes.addressof(self._modules), table, min(len(table), ctypes.sizeof(Modules)))
        # The cache's keys hold 16 bits of it: rules older than that many changes are not told apart.
        self._outside.generation = (self._outside.generation + 1) & 0xFFFF
        if not self._outside.generation:
            ctypes.memset(ctypes.addressof(self._cache), 0, ctypes.sizeof(self._cache))

    def walk(self, sp: int, ip: int) -> tuple[int, tuple[int, ...]]:
        """Why the walk ended (``End``), and the addresses: ``ip``, then return addresses."""
        outside, addresses, depth = self._arguments
        end = self._walk(outside, sp, ip, addresses, self._max_depth, depth)
        return int(end), tuple(self._addresses[: self._depth.value])

    def walk_stopped(self, registers: Registers) -> tuple[int, tuple[int, ...]]:
        """The stack of a thread that ptrace holds, from all its registers, by the tables alone: nothing is
        guessed.  ``End.ROOT`` says that all of it was walked; ``End.NONE`` that a signal's frame is on it.
        """
        outside, addresses, depth = self._arguments
        words = (ctypes.c_uint64 * len(DWARF_REGISTERS))(*[registers[name] for name in DWARF_REGISTERS])
        end = self._walk_stopped(outside, ctypes.addressof(words), addresses, self._max_depth, depth)
        return int(end), tuple(self._addresses[: self._depth.value])
