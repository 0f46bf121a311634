"""The heap profiler's part of the shared memory, as ctypes mirrors of ``stub/heap/layout.h``.

Names, order and sizes are those of the header; a test compiles an offsetof printer and compares.
"""

from __future__ import annotations

import ctypes
import enum

HEAP_MAGIC = 0x70616568746179F0
HEAP_VERSION = 2
FIRST_ITEM = 16
NO_STACK = 15
SITE_BITS = 23
LEAF_SHIFT = 22
LEAF_WORDS = 65536
LINE_SHIFT = 10
LINE_WORDS = 16
DIRECTORY = 1 << 25
WIDE_SHIFT = 2
WIDE_DIRECTORY = DIRECTORY >> WIDE_SHIFT
FIRST_LEVEL = 10
LEVELS = 16
FOLD_BYTES = 65536
HEAP_ATTACHED = 1
HEAP_WAITS = 2
FILTER = 32768
REAL = 11
PATCHES = 65536
ENTRIES = 16
LANDINGS = 16
THROUGH = 16
JUMP = 5
COUNTS_IN_PAGE = 170

FUNCTIONS = (
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "free",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
    "valloc",
    "pvalloc",
)
"""What is hooked, in the order of ``struct pa_real``; behind them there is __errno_location."""

_u8, _i32, _u32, _i64, _u64 = ctypes.c_uint8, ctypes.c_int32, ctypes.c_uint32, ctypes.c_int64, ctypes.c_uint64


class Item(ctypes.Structure):
    """``struct pa_item``: a node (return address, caller's node) or a site (size in bytes, node)."""

    _pack_ = 4
    _fields_ = (("key", _u64), ("under", _u32))


class Intern(ctypes.Structure):
    """``struct pa_intern``: a table of items."""

    _fields_ = (
        ("items_offset", _u64),
        ("index_offset", _u64),
        ("most", _u32),
        ("levels", _u32),
        ("pad0", _u64 * 5),
        ("used", _u32),
        ("level", _u32),
        ("refused", _u32),
        ("moved", _u32),
        ("given", _u32),
        ("pad1", _u32),
        ("pad2", _u64 * 5),
        ("fill", _u32 * LEVELS),
    )


class Heap(ctypes.Structure):
    """``struct pa_heap``: its first bytes."""

    _fields_ = (
        ("magic", _u64),
        ("version", _u32),
        ("size", _u32),
        ("max_depth", _u32),
        ("flags", _u32),
        ("sample_bytes", _u64),
        ("threads_offset", _u64),
        ("directory_offset", _u64),
        ("wide_offset", _u64),
        ("next_offset", _u64),
        ("leaves_offset", _u64),
        ("pool_offset", _u64),
        ("thread_count", _u32),
        ("leaf_count", _u32),
        ("pool_pages", _u64),
        ("filter_offset", _u64),
        ("patches_offset", _u64),
        ("real", _u64 * REAL),
        ("patch_count", _u32),
        ("entry_count", _u32),
        ("landing_count", _u32),
        ("pad0", _u32),
        ("entries_offset", _u64),
        ("landings_offset", _u64),
        ("pad5", _u64 * 3),
        ("nodes", Intern),
        ("sites", Intern),
        ("pool_used", _u64),
        ("leaves_used", _u32),
        ("threads_used", _u32),
        ("expired", _u32),
        ("at_exit", _u32),
        ("without_thread", _u64),
        ("without_block", _u64),
        ("pad2", _u64 * 3),
        ("live", _i64),
        ("peak", _i64),
        ("peak_seq", _u32),
        ("pad3", _u32),
        ("pad4", _u64 * 5),
    )


class Patch(ctypes.Structure):
    """``struct pa_patch``: a word that is made to lead to a hook."""

    _fields_ = (("address", _u64), ("before", _u64), ("after", _u64), ("protection", _u32), ("state", _u32))


class Landing(ctypes.Structure):
    """``struct pa_landing``: a mapping near the allocator, with code that goes on to the hooks."""

    _fields_ = (("address", _u64), ("bytes", _u32), ("state", _u32))


class Entry(ctypes.Structure):
    """``struct pa_entry``: a function of the allocator whose first instruction is made a jump."""

    _fields_ = (
        ("address", _u64),
        ("before", _u64),
        ("after", _u64),
        ("function", _u64),
        ("lands_at", _u64),
        ("jump_at", _u64),
        ("code", _u8 * 48),
        ("jump_before", _u8 * 8),
        ("jump_after", _u8 * 8),
        ("landing", _u32),
        ("real", _u32),
        ("protection", _u32),
        ("state", _u32),
    )


class PatchState(enum.IntEnum):
    """``enum pa_patch_state``."""

    WANTED = 0
    MADE = 1
    REFUSED = 2
    UNDONE = 3
    LEFT = 4


class AtExit(enum.IntEnum):
    """``enum pa_at_exit``."""

    NOT_YET = 0
    WAITS = 1
    GOES_ON = 2


class Counts(ctypes.Structure):
    """``struct pa_heap_counts``: one thread's counts of one site."""

    _fields_ = (
        ("site", _u32),
        ("peak_seq", _u32),
        ("allocs", _i32),
        ("frees", _i32),
        ("temporary", _i32),
        ("at_peak", _i32),
    )


class CountsPage(ctypes.Structure):
    """``struct pa_heap_page``: counts of one thread, and where they go on."""

    _fields_ = (("next", _u32), ("used", _u32), ("pad", _u64), ("counts", Counts * COUNTS_IN_PAGE))


class Walked(ctypes.Structure):
    """``struct pa_walked``: a frame of a thread's last walk."""

    _fields_ = (
        ("ip", _u64),
        ("sp", _u64),
        ("fp", _u64),
        ("fp_at", _u64),
        ("node", _u32),
        ("checked", _u8),
        ("by_fp", _u8),
        ("needs_fp", _u8),
        ("pad", _u8),
    )


class Recent(ctypes.Structure):
    """``struct pa_heap_recent``: a site looked for lately."""

    _fields_ = (("size", _u32), ("node", _u32), ("site", _u32), ("counts", _u32))


class Child(ctypes.Structure):
    """``struct pa_heap_child``: a node looked for lately."""

    _fields_ = (("ip", _u64), ("caller", _u32), ("node", _u32))


class HeapThread(ctypes.Structure):
    """``struct pa_heap_thread``."""

    _fields_ = (
        ("tp", _u64),
        ("guard", _u64),
        ("stack_low", _u64),
        ("stack_high", _u64),
        ("last", _u64),
        ("pending", _i64),
        ("until", _u64),
        ("random", _u64),
        ("depth", _u32),
        ("generation", _u32),
        ("end", _u32),
        ("events", _u32),
        ("first_page", _u32),
        ("last_page", _u32),
        ("map_bits", _u32),
        ("map_used", _u32),
        ("frames_at", _u64),
        ("scratch_at", _u64),
        ("recent_at", _u64),
        ("map_at", _u64),
        ("unknown_frees", _u64),
        ("nested", _u64),
        ("lost", _u64),
        ("calls", _u64),
        ("replaced", _u64),
        ("spare_page", _u32),
        ("spare_pages", _u32),
        ("children_at", _u64),
        ("room_at", _u64),
        ("pad", _u64 * 8),
    )
