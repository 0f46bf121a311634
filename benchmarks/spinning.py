"""native/gaps.c at work: a thread that spins, and histograms of the gaps that it saw."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import mmap
import struct
import subprocess
import time
from collections.abc import Iterator

from common import compiled
from profilers import CLOCKS
from steady import counting_file, started

BINS, PER_US = 8192, 16
"""native/gaps.c's histograms: so many bins, so many for a microsecond."""


@dataclasses.dataclass
class Gaps:
    """A histogram of gaps over some time, ``cycles`` at ``hz``."""

    bins: list[int]
    cycles: int
    hz: int

    def __add__(self, other: Gaps) -> Gaps:
        bins = [a + b for a, b in zip(self.bins, other.bins, strict=True)]
        return Gaps(bins, self.cycles + other.cycles, self.hz)

    @property
    def count(self) -> int:
        return sum(self.bins[:-1])

    @property
    def per_second(self) -> float:
        return self.count * self.hz / self.cycles

    @property
    def share(self) -> float:
        """Of all time, what typical gaps take."""
        return self.per_second * self.typical_us / 1e6

    @property
    def typical_us(self) -> float:
        """The mean of the middle half."""
        low, high = self.count / 4, 3 * self.count / 4
        total = seen = 0.0
        for index, n in enumerate(self.bins[:-1]):
            inside = max(0.0, min(seen + n, high) - max(seen, low))
            total += (index + 0.5) / PER_US * inside
            seen += n
        return total / (high - low) if high else 0.0

    def quantile_us(self, share: float) -> float:
        seen = itertools.accumulate(self.bins[:-1])
        return next((i for i, n in enumerate(seen) if n >= share * self.count), 0) / PER_US


@dataclasses.dataclass
class Spinner:
    """native/gaps.c at work."""

    pid: int
    shared: mmap.mmap

    def ask(self, clock: str | None, rate_hz: int) -> None:
        struct.pack_into("=QQ", self.shared, 16, CLOCKS.get(clock or "", 0), rate_hz)

    def gaps(self, seconds: float) -> tuple[Gaps, Gaps]:
        """Over so many seconds: those without and those with a signal."""
        before, counted = self._read()
        time.sleep(seconds)
        after, more = self._read()
        bins = [b - a for a, b in zip(counted, more, strict=True)]
        hz = struct.unpack_from("=Q", self.shared, 8)[0]
        return Gaps(bins[:BINS], after - before, hz), Gaps(bins[BINS:], after - before, hz)

    def _read(self) -> tuple[int, tuple[int, ...]]:
        return struct.unpack_from("=Q", self.shared)[0], struct.unpack_from(f"={2 * BINS}Q", self.shared, 64)


@contextlib.contextmanager
def spinning(environment: dict[str, str], threads: int = 1) -> Iterator[Spinner]:
    with counting_file(64 + 16 * BINS) as (path, shared):
        argv = [str(compiled("gaps")), str(path), "16", str(threads)]
        with started(argv, environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            process.stdout.readline()
            yield Spinner(process.pid, shared)
