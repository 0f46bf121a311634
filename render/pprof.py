"""pprof's profiles, written and read: gzip around the message ``perftools.profiles.Profile``.

https://github.com/google/pprof/blob/main/proto/profile.proto ; the numbers of fields below are from there.
"""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Iterator

from ..errors import MalformedInput
from ..symbols.frame import Frame
from .facts import facts
from .folded import NO_STACK
from .kinds import kind_of
from .names import printable
from .profile import Meta, Profile, Stack, Thread
from .renderer import RenderOptions
from .tree import EMPTY
from .wire import chunk, fields, integers, number, packed, signed

_HEAP = {"bytes": ("space", "bytes"), "blocks": ("objects", "count")}
"""Of a profile of the heap: the name of its values and their unit, by ``Meta.unit``."""


_OF_HEAP = ("space", "objects")


def render(profile: Profile, options: RenderOptions) -> Iterator[bytes]:
    """For ``go tool pprof``: samples and time by stack, threads as labels."""
    yield gzip.compress(b"".join(_message(profile)), 6, mtime=0)


class _Table:
    """Numbers for things, from ``first`` on, in the order in which they are first asked for."""

    def __init__(self, first: int) -> None:
        self.numbers: dict[str, int] = {}
        self._first = first

    def __getitem__(self, key: str) -> int:
        return self.numbers.setdefault(key, len(self.numbers) + self._first)


def _message(profile: Profile) -> Iterator[bytes]:
    meta = profile.meta
    texts, modules = _Table(0), _Table(1)
    empty = texts[""]
    assert empty == 0  # so it must be
    mode = meta.mode or "samples"
    period_ns = round(1e9 / meta.rate_asked_hz) if meta.rate_asked_hz else 0
    counted, in_units = _HEAP.get(meta.unit, ("samples", "count")) if mode == "heap" else ("samples", "count")
    kinds = [(counted, in_units)] + ([(mode, "nanoseconds")] if period_ns else [])
    if profile.columns:
        kinds = [(column.name, column.unit) for column in profile.columns]
        counted, period_ns = kinds[0][0], 0
    for kind, unit in kinds:
        yield chunk(1, number(1, texts[kind]) + number(2, texts[unit]))
    functions: dict[Frame, int] = {}
    numbers: dict[int, int] = {}  # by identity: hashing a Frame costs more than all else here
    labels = {tid: b"".join(_labels(tid, thread, texts)) for tid, thread in _threads(profile).items()}
    for (tid, stack), values in _values(profile, period_ns):
        frames = stack or (EMPTY,)
        for frame in frames:
            if id(frame) not in numbers:
                numbers[id(frame)] = functions.setdefault(frame, len(functions) + 1)
        where = packed(1, [numbers[id(frame)] for frame in reversed(frames)])
        yield chunk(2, where + packed(2, values) + labels[tid])
    rest = [piece for frame, index in functions.items() for piece in _function(frame, index, texts, modules)]
    for name, index in modules.numbers.items():
        # A range of its own for each, and a name for all its functions: nothing is left to be looked up.
        span = number(2, index << 32) + number(3, (index + 1) << 32)
        rest.append(chunk(3, number(1, index) + span + number(5, texts[name]) + number(7, 1)))
    comments = [texts[f"{label}: {value}"] for label, value in facts(meta)]
    rest.append(packed(13, comments))
    rest += [number(9, round((meta.started_at_unix_s or 0) * 1e9)), number(10, round(meta.duration_s * 1e9))]
    if period_ns:
        rest += [chunk(11, number(1, texts[mode]) + number(2, texts["nanoseconds"])), number(12, period_ns)]
    rest.append(number(14, texts[counted]))
    yield from rest
    for text in texts.numbers:
        yield chunk(6, text.encode("utf-8", "replace"))


def _values(profile: Profile, period_ns: int) -> Iterator[tuple[tuple[int, Stack], list[int]]]:
    """By thread and stack, for each of the types."""
    if not profile.columns:
        for key, ticks in profile.weights.items():
            yield key, [ticks, ticks * period_ns] if period_ns else [ticks]
        return
    for key in dict.fromkeys(key for column in profile.columns for key in column.weights):
        yield key, [column.weights.get(key, 0) for column in profile.columns]


def _threads(profile: Profile) -> dict[int, Thread]:
    stacks = [profile.weights, *(column.weights for column in profile.columns)]
    return {tid: profile.threads.get(tid, Thread(tid, "")) for of in stacks for tid, _ in of}


def _labels(tid: int, thread: Thread, texts: _Table) -> Iterator[bytes]:
    if thread.name:
        yield chunk(3, number(1, texts["thread"]) + number(2, texts[printable(thread.name)]))
    if tid:
        yield chunk(3, number(1, texts["tid"]) + number(3, tid))


def _function(frame: Frame, index: int, texts: _Table, modules: _Table) -> Iterator[bytes]:
    """One location for each function, or for each of its lines, where these are known."""
    name, module = printable(frame.name), printable(frame.module)
    mapping = number(2, modules[module]) if module else b""
    path, _, line = printable(frame.line).rpartition(":")
    at = number(2, int(line)) if line.isdecimal() and len(line) < 10 else b""
    yield chunk(4, number(1, index) + mapping + chunk(4, number(1, index) + at))
    names = number(2, texts[name]) + number(3, texts[name]) + number(4, texts[path or module])
    yield chunk(5, number(1, index) + names)


def read_pprof(data: bytes) -> Profile:
    """The profile in an (unpacked) pprof file: of its sample types the default if that is one of the heap,
    else what is counted, else the default.  Raises MalformedInput."""
    message = _Message(data)
    column, period = message.chosen()
    weights: dict[tuple[int, Stack], int] = {}
    threads: dict[int, Thread] = {}
    for sample in message.samples:
        stack, values, thread = message.sample(sample)
        if column >= len(values):
            raise MalformedInput("a sample with fewer values than it has types")
        ticks = signed(values[column])
        ticks = round(ticks / period) if period else ticks
        threads[thread.tid] = thread
        if ticks > 0:
            weights[thread.tid, stack] = weights.get((thread.tid, stack), 0) + ticks
    return Profile(message.meta(sum(weights.values())), threads, weights)


class _Message:
    def __init__(self, data: bytes) -> None:
        self.samples: list[bytes] = []
        self._types: list[bytes] = []
        self._texts: list[str] = []
        parts: dict[int, list[bytes]] = {3: [], 4: [], 5: []}
        self._numbers: dict[int, int] = {}
        self._period_type = b""
        self._heap = ("", "")
        for field, value in fields(data):
            if isinstance(value, int):
                self._numbers[field] = value
            elif field == 1:
                self._types.append(value)
            elif field == 2:
                self.samples.append(value)
            elif field == 6:
                self._texts.append(value.decode("utf-8", "replace"))
            elif field == 11:
                self._period_type = value
            elif field in parts:
                parts[field].append(value)
        if not self._types or not self._texts:
            raise MalformedInput("no profile of pprof is in it")
        self._modules = {}
        for mapping in parts[3]:
            of = _numbers_of(mapping)
            self._modules[of.get(1, 0)] = self._text(of.get(5, 0)).rpartition("/")[2]
        self._functions = {of.get(1, 0): of for of in map(_numbers_of, parts[5])}
        self._shared: dict[Frame, Frame] = {}
        self._locations = dict(map(self._location, parts[4]))

    def _text(self, index: int) -> str:
        if index >= len(self._texts):
            raise MalformedInput("a text that is not there")
        return self._texts[index]

    def _location(self, data: bytes) -> tuple[int, Stack]:
        """A location's number and its frames, the outermost first."""
        of, lines = _numbers_of(data), [value for field, value in fields(data) if field == 4]
        module = self._modules.get(of.get(2, 0), "")
        frames = []
        for line in lines:
            function = self._functions.get(_numbers_of(line).get(1, 0) if isinstance(line, bytes) else 0, {})
            name = self._text(function.get(2, 0)) or self._text(function.get(3, 0)) or "[unnamed]"
            frames.append(Frame(name, module, kind_of(name, module)))
        if not frames:
            name = f"0x{of.get(3, 0):x}"
            frames.append(Frame(name, module, kind_of(name, module)))
        return of.get(1, 0), tuple(self._shared.setdefault(frame, frame) for frame in reversed(frames))

    def sample(self, data: bytes) -> tuple[Stack, list[int], Thread]:
        stack: list[Frame] = []
        values: list[int] = []
        tid, name = 0, ""
        for field, value in fields(data):
            if field == 1:
                for location in integers(value):
                    if location not in self._locations:
                        raise MalformedInput("a location that is not there")
                    stack += reversed(self._locations[location])
            elif field == 2:
                values += integers(value)
            elif field == 3 and isinstance(value, bytes):
                label = _numbers_of(value)
                key = self._text(label.get(1, 0))
                if key == "tid":
                    tid = label.get(3, 0) & 0x7FFFFFFF
                elif key == "thread":
                    name = self._text(label.get(2, 0))
        frames = tuple(reversed(stack))
        return (() if [f.name for f in frames] == [NO_STACK] else frames), values, Thread(tid, name)

    def chosen(self) -> tuple[int, int]:
        """Which of the values are the samples, and what one is worth, where it is not a count."""
        types = [_numbers_of(kind) for kind in self._types]
        names = [(self._text(kind.get(1, 0)), self._text(kind.get(2, 0))) for kind in types]
        for index, kind in enumerate(types):
            if kind.get(1) == self._numbers.get(14, -1) and names[index][0].endswith(_OF_HEAP):
                self._heap = names[index]
                return index, 0
        for index, (_, unit) in enumerate(names):
            if unit == "count":
                return index, 0
        default = [index for index, kind in enumerate(types) if kind.get(1) == self._numbers.get(14, -1)]
        return (default or [len(names) - 1])[0], signed(self._numbers.get(12, 0))

    def meta(self, samples: int) -> Meta:
        period_ns, of = signed(self._numbers.get(12, 0)), _numbers_of(self._period_type)
        kind, unit = self._text(of.get(1, 0)), self._text(of.get(2, 0))
        meta = Meta(
            mode=kind if kind in ("cpu", "wall") else "",
            started_at_unix_s=signed(self._numbers.get(9, 0)) / 1e9 or None,
            duration_s=max(0.0, signed(self._numbers.get(10, 0)) / 1e9),
            samples=samples,
        )
        if self._heap[0]:
            of_heap = "bytes" if self._heap[1] == "bytes" else "blocks"
            what = printable(self._heap[0]).replace("_", " ")
            meta = dataclasses.replace(meta, mode="heap", unit=of_heap, kind=f"{of_heap}: {what}", samples=0)
        elif unit == "nanoseconds" and period_ns > 0:
            meta = dataclasses.replace(meta, rate_asked_hz=round(1e9 / period_ns, 3))
        return meta


def _numbers_of(data: bytes) -> dict[int, int]:
    return {field: value for field, value in fields(data) if isinstance(value, int)}
