"""The Firefox Profiler's processed profile format, version 48: columns, for each thread.

https://github.com/firefox-devtools/profiler/blob/main/docs-developer/CHANGELOG-formats.md ; newer profilers
upgrade it when they load it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from ..symbols.frame import Frame, FrameKind
from .facts import facts, short_command
from .names import printable
from .profile import Meta, Profile, Stack, Thread
from .renderer import RenderOptions, encoded
from .tree import EMPTY

VERSION, GECKO_VERSION = 48, 27
_CATEGORIES = (
    (FrameKind.USER, "Program", "orange"),
    (FrameKind.LIBRARY, "Library", "blue"),
    (FrameKind.KERNEL, "Kernel", "purple"),
    (FrameKind.INTERPRETER, "Interpreter", "yellow"),
    (FrameKind.JIT, "Generated code", "green"),
    (FrameKind.UNKNOWN, "No symbol", "grey"),
    (FrameKind.MARK, "Remark", "transparent"),
)
_OTHER = len(_CATEGORIES)
_LIBRARY_RESOURCE = 1


def render(profile: Profile, options: RenderOptions) -> Iterator[bytes]:
    """For profiler.firefox.com: threads, each sample at its time where times are known, else all at 0."""
    return encoded([json.dumps(_document(profile, options), separators=(",", ":")) + "\n"])


def _document(profile: Profile, options: RenderOptions) -> dict[str, Any]:
    meta = profile.meta
    threads = []
    for thread, samples in _samples_by_thread(profile):
        table = _ThreadTable()
        for time_ms, stack, ticks in samples:
            table.add(time_ms, stack, ticks)
        threads.append(_thread(thread, meta, table))
    return {"meta": _meta(meta, options), "libs": [], "pages": [], "counters": [], "threads": threads}


def _samples_by_thread(profile: Profile) -> Iterator[tuple[Thread, Iterable[tuple[float, Stack, int]]]]:
    """Time (ms from the begin), stack and ticks, in order of time."""
    if profile.timeline is not None:
        by_tid: dict[int, list[tuple[float, Stack, int]]] = {}
        for time_s, tid, stack, ticks in profile.timeline.samples():
            by_tid.setdefault(tid, []).append((round(time_s * 1e3, 3), stack, ticks))
        for tid in sorted(by_tid, key=lambda tid: (tid != profile.meta.pid, tid)):
            yield profile.threads.get(tid, Thread(tid, "")), sorted(by_tid[tid], key=lambda sample: sample[0])
        return
    for thread, stacks in profile.by_thread():
        yield thread, [(0.0, stack, ticks) for stack, ticks in stacks.items()]


def _meta(meta: Meta, options: RenderOptions) -> dict[str, Any]:
    names = [(name, colour) for _, name, colour in _CATEGORIES] + [("Other", "grey")]
    return {
        "version": GECKO_VERSION,
        "preprocessedProfileVersion": VERSION,
        "product": printable(options.title) or short_command(meta),
        "importedFrom": f"pyattach {printable(meta.version)}".strip(),
        "arguments": printable(meta.command),
        "interval": 1e3 / meta.rate_asked_hz if meta.rate_asked_hz else 1,
        "startTime": (meta.started_at_unix_s or 0.0) * 1e3,
        "profilingStartTime": 0,
        "profilingEndTime": round(meta.duration_s * 1e3, 3),
        "processType": 0,
        "stackwalk": 1,
        "debug": False,
        "symbolicated": True,
        "symbolicationNotSupported": True,
        "oscpu": "",
        "platform": "",
        "sampleUnits": {"time": "ms", "eventDelay": "ms", "threadCPUDelta": "ns"},
        "categories": [{"name": name, "color": colour, "subcategories": ["Other"]} for name, colour in names],
        "markerSchema": [],
        "extra": [{"label": "pyattach", "entries": [_entry(*fact) for fact in facts(meta)]}],
    }


def _entry(label: str, value: str) -> dict[str, str]:
    return {"label": label, "format": "string", "value": value}


class _ThreadTable:
    """The tables of one thread: a stack is a frame and the stack that called it."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}
        self.modules: dict[str, int] = {}
        self.frames: dict[Frame, int] = {}
        self.stacks: dict[tuple[int | None, int], int] = {}
        self.sampled: dict[Stack, int] = {}
        self.times_ms: list[float] = []
        self.stack_of: list[int] = []
        self.ticks: list[int] = []

    def text(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))

    def add(self, time_ms: float, stack: Stack, ticks: int) -> None:
        if stack not in self.sampled:
            at: int | None = None
            for frame in stack or (EMPTY,):
                index = self.frames.setdefault(frame, len(self.frames))
                at = self.stacks.setdefault((at, index), len(self.stacks))
            assert at is not None
            self.sampled[stack] = at
        self.times_ms.append(time_ms)
        self.stack_of.append(self.sampled[stack])
        self.ticks.append(ticks)


def _thread(thread: Thread, meta: Meta, table: _ThreadTable) -> dict[str, Any]:
    frames = list(table.frames)
    names = [table.text(printable(frame.name)) for frame in frames]
    modules = [printable(frame.module) for frame in frames]
    for module in modules:
        if module:
            table.modules.setdefault(module, len(table.modules))
    module_names = [table.text(module) for module in table.modules]
    categories = [_category(frame) for frame in frames]
    of_stack = [categories[index] for _, index in table.stacks]
    size, nothing = len(frames), [None] * len(frames)
    return {
        "name": printable(thread.name) or str(thread.tid),
        "processName": short_command(meta),
        "processType": "default",
        "processStartupTime": 0,
        "processShutdownTime": None,
        "registerTime": 0,
        "unregisterTime": None,
        "pausedRanges": [],
        "isMainThread": thread.tid == meta.pid,
        "pid": str(meta.pid),
        "tid": thread.tid,
        "samples": {
            "stack": table.stack_of,
            "time": table.times_ms,
            "weight": table.ticks,
            "weightType": "bytes" if meta.unit == "bytes" else "samples",
            "length": len(table.ticks),
        },
        "markers": {
            **{key: [] for key in ("data", "name", "startTime", "endTime", "phase", "category")},
            "length": 0,
        },
        "stackTable": {
            "frame": [index for _, index in table.stacks],
            "prefix": [prefix for prefix, _ in table.stacks],
            "category": of_stack,
            "subcategory": [0] * len(of_stack),
            "length": len(of_stack),
        },
        "frameTable": {
            "address": [-1] * size,
            "inlineDepth": [0] * size,
            "category": categories,
            "subcategory": [0] * size,
            "func": list(range(size)),
            **dict.fromkeys(("nativeSymbol", "innerWindowID", "implementation", "line", "column"), nothing),
            "length": size,
        },
        "funcTable": {
            "name": names,
            "isJS": [False] * size,
            "relevantForJS": [False] * size,
            "resource": [table.modules.get(module, -1) for module in modules],
            **dict.fromkeys(("fileName", "lineNumber", "columnNumber"), nothing),
            "length": size,
        },
        "resourceTable": {
            "lib": [None] * len(module_names),
            "name": module_names,
            "host": [None] * len(module_names),
            "type": [_LIBRARY_RESOURCE] * len(module_names),
            "length": len(module_names),
        },
        "nativeSymbols": {"libIndex": [], "address": [], "name": [], "functionSize": [], "length": 0},
        "stringArray": list(table.texts),
    }


def _category(frame: Frame) -> int:
    for index, (kind, _, _) in enumerate(_CATEGORIES):
        if frame.kind == kind:
            return index
    return _OTHER
