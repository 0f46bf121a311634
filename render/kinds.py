"""The kind of a frame in files that don't say it: guessed from its names."""

from __future__ import annotations

import re

from ..symbols.frame import FrameKind
from ..symbols.kinds import is_interpreter

_ADDRESS = re.compile(r"(?:.*\+)?0x[0-9a-f]+$")
_LIBRARY = re.compile(r"(?:lib|ld-).*\.so\b")
_KERNEL = ("[vdso]", "[vsyscall]")


def kind_of(name: str, module: str = "") -> FrameKind:
    """What a frame of this name in this module most likely is."""
    if _ADDRESS.match(name):
        return FrameKind.UNKNOWN
    if module in _KERNEL:
        return FrameKind.KERNEL
    if is_interpreter(module):
        return FrameKind.INTERPRETER
    if _LIBRARY.match(module):
        return FrameKind.LIBRARY
    if name.startswith("[") and name.endswith("]") and not module:
        return FrameKind.MARK
    return FrameKind.USER
