"""The system call ptrace(2), by libc's function for it."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


@functools.cache
def _function() -> Callable[[int, int, int, int], int]:
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.restype = ctypes.c_long
    ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    return ptrace


def ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> int:
    """What the call returns; addresses are this process's or the tracee's, as the request has it.  Raises
    OSError.  Not for the requests that return a word of the tracee, which may be -1."""
    result = _function()(request, tid, address, data)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"ptrace request {request:#x}")
    return result
