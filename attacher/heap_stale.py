"""Hooks of a heap profiler that was killed: quiet since its lease is over, but the target's words lead there.

Whoever attaches next puts the words back and takes the hooks out, with all the care of a detach.  What the
shared memory says of them is the target's word: it is bounded, and the stub itself puts back only words that
hold a hook.
"""

from __future__ import annotations

import contextlib
import ctypes
import time

from ..errors import InjectionFailed
from ..inject.heap_layout import FUNCTIONS, HEAP_MAGIC, HEAP_VERSION, PATCHES, Heap, HeapThread, Patch
from ..inject.image import heap_image
from ..inject.layout import Control, State
from ..inject.loader import MappedStub
from .heap_hooks import Hooks
from .hold import hold_any
from .leaving import call_stop
from .naming import make_resolver
from .target import TargetProcess

_MOST_THREADS = 1 << 20
_INSIDE_S = 5.0


def take_out(target: TargetProcess, base: int, shared_address: int, control: Control) -> None:
    """Put the words back, then unload.  Raises InjectionFailed where the code has to stay."""
    image = heap_image()
    start, code = image.code
    if target.read(base + start, len(code)) != code:
        raise InjectionFailed("it was made by another version")
    at = shared_address + int(control.heap_offset)
    heap = Heap.from_buffer_copy(target.read(at, ctypes.sizeof(Heap)))
    bounded = heap.patch_count <= PATCHES and heap.thread_count <= _MOST_THREADS
    if (heap.magic, heap.version) != (HEAP_MAGIC, HEAP_VERSION) or not bounded:
        raise InjectionFailed("it was made by another version")
    stub = MappedStub(target, image, None, base, 0, [])
    target.write(shared_address + Control.state.offset, int(State.STOP).to_bytes(4, "little"))
    call_stop(target, stub)
    why = _why_it_must_stay(target, stub, at, heap)
    if why:
        raise InjectionFailed(f"its words are put back, its code stays mapped, and passes on: {why}")
    with hold_any(target) as held:
        stub.run(stub.prepare_unload(), held)


def _why_it_must_stay(target: TargetProcess, stub: MappedStub, at: int, heap: Heap) -> str:
    size = ctypes.sizeof(Patch) * heap.patch_count
    table = target.read(at + heap.patches_offset, size) if size else b""
    for patch in (Patch * heap.patch_count).from_buffer_copy(table):
        with contextlib.suppress(OSError):  # its library has gone
            if int.from_bytes(target.read(patch.address, 8), "little") == patch.after:
                return "slots lead there still"
    deadline = time.monotonic() + _INSIDE_S
    while _guards(target, at, heap):
        if time.monotonic() > deadline:
            return "a thread has not left a hook"
        time.sleep(0.001)
    if target.wait_outside(target.threads(), stub.text_ranges, _INSIDE_S):
        return "a thread has not left a hook"
    hook_at = {name: stub.base + stub.image.entries[f"pa_hook_{name}"] for name in FUNCTIONS}
    with make_resolver(target) as resolver:
        return Hooks(target, resolver).may_be_held(hook_at, stub.image_range)


def _guards(target: TargetProcess, at: int, heap: Heap) -> int:
    """How many threads are in a hook."""
    size = ctypes.sizeof(HeapThread)
    table = target.read(at + heap.threads_offset, size * heap.thread_count)
    return sum(bool(thread.guard) for thread in (HeapThread * heap.thread_count).from_buffer_copy(table))
