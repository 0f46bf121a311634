"""The heap profiler's part of the shared memory, as ctypes mirrors of ``stub/heap/layout.h``.

Names, order and sizes are those of the header; a test compiles an offsetof printer and compares.
"""

from __future__ import annotations

import ctypes
import enum

HEAP_MAGIC = 0x70616568746179F0
HEAP_VERSION = 5
FIRST_ITEM = 16
NO_STACK = 15
SITE_BITS = 21
LEAF_SHIFT = 22
LEAF_WORDS = 65536
LINE_SHIFT = 10
LINE_WORDS = 16
DIRECTORY = 1 << 25
WIDE_SHIFT = 4
WIDE_DIRECTORY = DIRECTORY >> WIDE_SHIFT
PAGED_SHIFT = 2
PAGED_DIRECTORY = DIRECTORY >> PAGED_SHIFT
LEAF_MASK = (1 << 31) - 1
NODE_BITS = 22
REGIONS = 1024
FAN = 16
FOLD_BYTES = 65536
HEAP_ATTACHED = 1
HEAP_WAITS = 2
FILTER = 6080
SAMPLED_SITE_BITS = 20
SAMPLED_FIRST = 256
SAMPLED_LEVELS = 10
NEAR_THREADS = 32
FAR_THREADS = 4096
REAL = 11
PATCHES = 65536
ENTRIES = 16
LANDINGS = 16
THROUGH = 16
JUMP = 5
COUNTS_IN_PAGE = 170
MEMO_WORDS = 64

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

_u8, _u16, _i32, _u32 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_int32, ctypes.c_uint32
_i64, _u64 = ctypes.c_int64, ctypes.c_uint64


class Node(ctypes.Structure):
    """``struct pa_node``: a return address, and the caller's node."""

    _fields_ = (("address", _u32), ("under", _u32), ("child", _u32), ("next", _u32))


class Site(ctypes.Structure):
    """``struct pa_site``: where blocks of one size come from."""

    _fields_ = (("size", _u32), ("node", _u32), ("next", _u32))


class Table(ctypes.Structure):
    """``struct pa_table``: items of one kind."""

    _fields_ = (
        ("items_offset", _u64),
        ("most", _u32),
        ("pad0", _u32),
        ("pad1", _u64 * 6),
        ("used", _u32),
        ("refused", _u32),
        ("pad2", _u64 * 7),
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
        ("paged_offset", _u64),
        ("next_offset", _u64),
        ("leaves_offset", _u64),
        ("pool_offset", _u64),
        ("thread_count", _u32),
        ("leaf_count", _u32),
        ("pool_pages", _u64),
        ("tallies_offset", _u64),
        ("patches_offset", _u64),
        ("real", _u64 * REAL),
        ("patch_count", _u32),
        ("entry_count", _u32),
        ("landing_count", _u32),
        ("pad0", _u32),
        ("regions_offset", _u64),
        ("first_counts_offset", _u64),
        ("sampled_offset", _u64),
        ("more_offset", _u64),
        ("private_at", _u64),
        ("entries_offset", _u64),
        ("landings_offset", _u64),
        ("pad5", _u64 * 5),
        ("nodes", Table),
        ("sites", Table),
        ("fans", Table),
        ("pool_used", _u64),
        ("leaves_used", _u32),
        ("threads_used", _u32),
        ("expired", _u32),
        ("at_exit", _u32),
        ("first_taken", _u32),
        ("blocks_level", _u32),
        ("without_thread", _u64),
        ("without_block", _u64),
        ("private_bytes", _u64),
        ("nested", _u64),
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


class Memo(ctypes.Structure):
    """``struct pa_memo``: a whole walk."""

    _fields_ = (
        ("ip", _u64),
        ("sp", _u64),
        ("fp", _u64),
        ("size", _u64),
        ("counts", _u32),
        ("generation", _u32),
        ("node", _u32),
        ("span", _u32),
        ("count", _u16),
        ("needs_fp", _u8),
        ("latest", _u8),
        ("pad", _u32),
        ("at", _u16 * MEMO_WORDS),
        ("word", _u64 * MEMO_WORDS),
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
        ("memos_at", _u64),
        ("first", _u32),
        ("children_mask", _u32),
        ("pad", _u64 * 8),
    )


class Tally(ctypes.Structure):
    """``struct pa_tally``: sampled, all threads' counts of one site."""

    _fields_ = (("allocs", _u64), ("frees", _u64), ("temporary", _u64), ("at_peak", _u64))


class SampledThread(ctypes.Structure):
    """``struct pa_sampled_thread``: what a thread has for itself where allocations are sampled."""

    _fields_ = (
        ("tp", _u64),
        ("until", _u64),
        ("rest", _u64),
        ("guard", _u64),
        ("last", _u64),
        ("last_left", _u64),
        ("random", _u64),
        ("visits", _u32),
        ("pad", _u32),
    )


class Sampled(ctypes.Structure):
    """``struct pa_sampled``: the stub's private memory."""

    _fields_ = (
        ("near", SampledThread * NEAR_THREADS),
        ("mine", _u32),
        ("pad", _u32 * 15),
        ("filter", _u8 * FILTER),
        ("far", SampledThread * FAR_THREADS),
    )
