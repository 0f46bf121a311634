"""Hooks of a heap profiler that was killed: quiet since its lease is over, but the target's words lead there.

Whoever attaches next puts the words back and takes the hooks out, with all the care of a detach.  What the
shared memory says of them is the target's word: it is bounded, and the stub itself puts back only words that
hold a hook.
"""

from __future__ import annotations

import ctypes
from typing import TypeVar

from ..errors import InjectionFailed
from ..inject.heap_layout import (
    ENTRIES,
    FUNCTIONS,
    HEAP_MAGIC,
    HEAP_VERSION,
    LANDINGS,
    PATCHES,
    Entry,
    Heap,
    HeapThread,
    Landing,
    Patch,
)
from ..inject.layout import Control, State
from ..inject.loader import MappedStub
from . import leaving
from .heap_entries import entries_that_lead, ranges_of
from .heap_hooks import Hooks, note_protections, sampled_guarded, still_lead, wait_until_left
from .heap_words import AUTO
from .naming import make_resolver
from .target import TargetProcess

_MOST_THREADS = 1 << 20
_Row = TypeVar("_Row", Entry, Landing, Patch)


def take_out(target: TargetProcess, stub: MappedStub, shared_address: int, control: Control) -> None:
    """Put the words back, then unload.  Raises InjectionFailed where the code has to stay."""
    at = shared_address + int(control.heap_offset)
    heap = Heap.from_buffer_copy(target.read(at, ctypes.sizeof(Heap)))
    bounded = heap.patch_count <= PATCHES and heap.thread_count <= _MOST_THREADS
    bounded = bounded and heap.entry_count <= ENTRIES and heap.landing_count <= LANDINGS
    if (heap.magic, heap.version) != (HEAP_MAGIC, HEAP_VERSION) or not bounded:
        raise InjectionFailed("it was made by another version")
    target.write(shared_address + Control.state.offset, int(State.STOP).to_bytes(4, "little"))
    _note_protections(target, at, heap)
    leaving.call_stop(target, stub)
    why = _why_it_must_stay(target, stub, at, heap)
    if why:
        raise InjectionFailed(f"its words are put back, its code stays mapped, and passes on: {why}")
    leaving.take_out(target, stub)


def _note_protections(target: TargetProcess, at: int, heap: Heap) -> None:
    patches = _table(target, Patch, at + heap.patches_offset, heap.patch_count)
    note_protections(patches, target.maps())
    target.write(at + heap.patches_offset, b"".join(map(bytes, patches)))


def _why_it_must_stay(target: TargetProcess, stub: MappedStub, at: int, heap: Heap) -> str:
    if still_lead(target, _table(target, Patch, at + heap.patches_offset, heap.patch_count)):
        return "slots lead there still"
    entries = _table(target, Entry, at + heap.entries_offset, heap.entry_count)
    landings = _table(target, Landing, at + heap.landings_offset, heap.landing_count)
    if entries_that_lead(target, entries):
        return "functions of the allocator lead there still"
    if not wait_until_left(target, stub, lambda: _in_a_hook(target, at, heap), ranges_of(entries, landings)):
        return "a thread has not left a hook"
    if not heap.patch_count:
        return ""
    hook_at = {name: stub.base + stub.image.entries[f"pa_hook_{name}"] for name in FUNCTIONS}
    with make_resolver(target) as resolver:
        return Hooks(target, resolver, AUTO).may_be_held(hook_at, stub.image_range)


def _table(target: TargetProcess, kind: type[_Row], at: int, count: int) -> list[_Row]:
    data = target.read(at, ctypes.sizeof(kind) * count) if count else b""
    return list((kind * count).from_buffer_copy(data))


def _in_a_hook(target: TargetProcess, at: int, heap: Heap) -> bool:
    size = ctypes.sizeof(HeapThread)
    table = target.read(at + heap.threads_offset, size * heap.thread_count)
    threads = (HeapThread * heap.thread_count).from_buffer_copy(table)
    return any(thread.guard for thread in threads) or sampled_guarded(target, heap)
