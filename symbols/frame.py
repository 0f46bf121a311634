"""What a stack is made of once its addresses have names."""

from __future__ import annotations

import dataclasses
import enum


class FrameKind(enum.Enum):
    """The kind of code a frame runs, for colouring and for the legend."""

    USER = "user"  # the target's own executable, and libraries beside it
    LIBRARY = "library"  # shared libraries of the system
    KERNEL = "kernel"  # the kernel's code in the process: the vdso and the vsyscall page
    INTERPRETER = "interpreter"  # what runs the programs of a language: python3.11, libpython, node, libjvm
    JIT = "jit"  # code in memory that is no file: what compilers make at run time
    UNKNOWN = "unknown"  # no symbol: shown as module+0xoffset or as the raw address
    MARK = "mark"  # not code: pyattach's own remark, such as "[truncated]"


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """One level of a stack, resolved.

    ``name`` is what is shown: the demangled function, ``libc.so.6+0x12345`` where no symbol covers
    the address, or ``0x7f..`` where nothing is mapped there.  ``module`` is the base name of the file
    it came from ("" when there is none), ``line`` is ``path:line`` in the source, where that was asked for
    and is known.  All come from the target and are untrusted.
    """

    name: str
    module: str
    kind: FrameKind
    line: str = ""


TRUNCATED = Frame("[truncated]", "", FrameKind.MARK)
"""Stands at the root of a stack whose unwinding did not reach the start of its thread."""
