"""The memory shared with the target, as ctypes mirrors of ``stub/shared.h`` and ``stub/boot/boot.h``.

Names, order and sizes are those of the headers; a test compiles an offsetof printer and compares.
"""

from __future__ import annotations

import ctypes
import enum

MAGIC = 0x68636174746179F0
VERSION = 1
TICK_TAG = 0x70790000
WAKE = 0xFFFFFFFF
PRELOAD_REGION = 0x40000

MAIL_SIZE = 4096
BOOT_SIZE = 131072
LOADER_SIZE = 8192
BOOT_DATA_SIZE = 256
BOOT_SEGMENTS = 6

_u8, _u16, _u32, _i32, _u64 = (
    ctypes.c_uint8,
    ctypes.c_uint16,
    ctypes.c_uint32,
    ctypes.c_int32,
    ctypes.c_uint64,
)


class State(enum.IntEnum):
    """``enum pa_state``."""

    IDLE = 0
    RUN = 1
    STOP = 2
    QUIT = 3


class SlotState(enum.IntEnum):
    """``enum pa_slot_state``."""

    FREE = 0
    WANTED = 1
    ARMING = 2
    ARMED = 3
    FAILED = 4
    RETIRE = 5
    EXPIRED = 6
    EVENT = 7


class End(enum.IntEnum):
    """``enum pa_end``: why a stack ended where it did."""

    ROOT = 0
    DEPTH = 1
    UNALIGNED = 2
    OUTSIDE = 3
    UNREADABLE = 4
    BAD_RETURN = 5
    NO_PROGRESS = 6
    NO_CFI = 7
    BAD_CFI = 8
    NONE = 255  # not ended; in no record


class Unwind(enum.IntEnum):
    """``enum pa_mode``: how stacks are walked."""

    AUTO = 0
    FP = 1
    CFI = 2


class Control(ctypes.Structure):
    """``struct pa_control``: the first bytes of the shared memory."""

    _fields_ = (
        ("magic", _u64),
        ("version", _u32),
        ("control_size", _u32),
        ("nonce", _u64),
        ("region_size", _u64),
        ("period_ns", _u64),
        ("slot_count", _u32),
        ("max_depth", _u32),
        ("slots_offset", _u64),
        ("scratch_offset", _u64),
        ("kept_offset", _u64),
        ("ring_offset", _u64),
        ("ring_words", _u64),
        ("signal", _u32),
        ("unwind", _u32),
        ("modules_offset", _u64),
        ("index_offset", _u64),
        ("cache_offset", _u64),
        ("cache_lines", _u64),
        ("flags", _u32),
        ("tick_tag", _u32),
        ("jitter_ns", _u64),
        ("event_base", _u32),
        ("spare_slots", _u32),
        ("tick_ns", _u64),
        ("costs_offset", _u64),
        ("log_offset", _u64),
        ("log_size", _u64),
        ("heap_offset", _u64),
        ("spare_signal", _u32),
        ("pad1", _u32),
        ("pad2", _u64 * 7),
        ("lease_until_ns", _u64),
        ("tail", _u64),
        ("state", _u32),
        ("post_seq", _u32),
        ("modules_seq", _u32),
        ("slots_used", _u32),
        ("rate_factor", _u32),
        ("preload_pid", _u32),
        ("preparing", _u32),
        ("stray", _u32),
        ("owner_pid", _u32),
        ("owner_namespace", _u32),
        ("owner_start", _u64),
        ("head", _u64),
        ("pad3", _u64 * 7),
        ("inside", _u32),
        ("seen_seq", _u32),
        ("arming", _u32),
        ("idle_wakes", _u32),
        ("foreign", _u64),
        ("expired", _u64),
        ("handle", _u64),
        ("pad4", _u64 * 3),
        ("stray_timer_plus_1", _i32),
        ("stray_periods", _u32),
        ("stray_cpu_ns", _u64),
        ("stray_met_ns", _u64),
        ("stray_last_ns", _u64),
        ("stray_last_clock_ns", _u64),
        ("process_ticks", _u64),
        ("process_cycles", _u64),
        ("stray_jump_ns", _u32),
        ("stray_woke", _u32),
        ("init_clock_ns", _u64),
        ("init_cycles", _u64),
        ("stop_clock_ns", _u64),
        ("stop_cycles", _u64),
        ("old_handler", _u64),
        ("old_flags", _u64),
        ("timers_deleted", _u32),
        ("last_error", _i32),
        ("signal_given_back", _u32),
        ("here", _u32),
    )


class Slot(ctypes.Structure):
    """``struct pa_slot``: one thread."""

    _fields_ = (
        ("tid", _u32),
        ("state", _u32),
        ("timer_plus_1", _i32),
        ("error", _i32),
        ("samples", _u64),
        ("missed", _u64),
        ("dropped", _u64),
        ("cycles", _u64),
        ("last_clock_ns", _u64),
        ("last_cycles", _u64),
        ("hits", _u64),
        ("misses", _u64),
        ("cpu_ns", _u64),
        ("factor", _u32),
        ("busy", _u32),
        ("ticks", _u64),
        ("name", ctypes.c_char * 16),
        ("by_spare", _u32),
        ("armed_cpu", _u32),
    )


class Log(ctypes.Structure):
    """``struct pa_log``: what a program that records itself writes beside its samples."""

    _fields_ = (
        ("used", _u64),
        ("lost", _u64),
        ("cpu_ns", _u64),
        ("clock_ns", _u64),
        ("began_ns", _u64),
        ("pad", _u64 * 3),
    )


class LogEntry(ctypes.Structure):
    """``struct pa_log_entry``; ``size`` bytes follow, the next begins at a multiple of 8."""

    _fields_ = (("clock_ns", _u64), ("kind", _u32), ("size", _u32))


class LogKind(enum.IntEnum):
    """``enum pa_log_kind``."""

    MAPS = 1
    NAME = 2
    COMMAND = 3
    EXE = 4


COSTS = 64
COSTS_FROM = 9

WALK_BYTES = 16400 + 3840
"""``struct pa_kept``, the outer frames of a thread's last walk, and ``struct pa_room``, for tables."""

Costs = ctypes.c_uint32 * COSTS
"""Of one slot: how many of its ticks took how long."""

MODULES = 1024
NO_VM_READ = 1
MODULE_OWN_INDEX = 1
MODULE_ROOT = 2
MODULE_CHANGES_STACKS = 4


class Module(ctypes.Structure):
    """``struct pa_module``: one executable range and where its unwind tables lie."""

    _fields_ = (
        ("start", _u64),
        ("end", _u64),
        ("table", _u64),
        ("table_size", _u64),
        ("flags", _u32),
        ("pad", _u32),
    )


class Modules(ctypes.Structure):
    """``struct pa_modules``: one of the two tables."""

    _fields_ = (("count", _u32), ("pad", _u32 * 3), ("module", Module * MODULES))


class IndexEntry(ctypes.Structure):
    """``struct pa_index_entry``: an FDE and where the code it speaks of starts."""

    _fields_ = (("start", _u64), ("fde", _u64))


class CacheLine(ctypes.Structure):
    """``struct pa_cache_line`` of ``stub/unwind.h``."""

    _fields_ = (("check", _u64), ("word", _u64 * 3))


class RecordHead(ctypes.Structure):
    """``struct pa_record`` without its frames."""

    _fields_ = (
        ("clock_ns", _u64),
        ("tid", _u32),
        ("depth", _u16),
        ("end", _u8),
        ("flags", _u8),
        ("weight", _u32),
        ("slot", _u32),
    )


class Abi(ctypes.Structure):
    """``struct pa_abi``, which the stub exports as ``pyattach_abi``."""

    _fields_ = (
        ("magic", _u64),
        ("version", _u32),
        ("control_size", _u32),
        ("slot_size", _u32),
        ("record_size", _u32),
    )


class BootCommand(enum.IntEnum):
    """``enum boot_command``."""

    LOAD_DLOPEN = 1
    LOAD_MAP = 2
    CALL = 3
    UNLOAD_DLCLOSE = 4
    UNLOAD_MAP = 5


class BootStep(enum.IntEnum):
    """``enum boot_step``: which step failed."""

    NONE = 0
    SHARED = 1
    DLOPEN = 2
    IMAGE = 3
    CALL = 4
    UNLOAD = 5


class BootSegment(ctypes.Structure):
    """``struct boot_segment``."""

    _fields_ = (
        ("offset", _u64),
        ("vaddr", _u64),
        ("file_bytes", _u64),
        ("memory_bytes", _u64),
        ("prot", _u64),
    )


class BootArgs(ctypes.Structure):
    """``struct boot_args``: the first bytes of the boot area."""

    _fields_ = (
        ("command", _u32),
        ("segment_count", _u32),
        ("dlopen", _u64),
        ("dlclose", _u64),
        ("errno_location", _u64),
        ("dlopen_flags", _u64),
        ("call", _u64),
        ("handle", _u64),
        ("base", _u64),
        ("image_span", _u64),
        ("shared_offset", _u64),
        ("shared_size", _u64),
        ("segments", BootSegment * BOOT_SEGMENTS),
        ("path", ctypes.c_char * 192),
        ("shared", _u64),
        ("step", _u32),
        ("error", _i32),
        ("entered_ns", _u64),
        ("left_ns", _u64),
        ("done", _u32),
        ("fault", _u32),
    )
