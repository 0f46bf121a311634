"""What a session has measured: so far, for those who watch, and over all, for the profile."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..inject.borrow import error_text
from .account import CpuAccount
from .contract import Options, Progress
from .delivery import DeliveryCost
from .governor import RateGovernor
from .overhead import HandlerCost, Overhead
from .ring import RingReader
from .samples import SampleStore
from .shared import SharedMemory
from .threads import ThreadTable

if TYPE_CHECKING:
    from ..render.profile import Meta
    from .wall import WallClock

_STRAYS_TO_SPEAK_OF = 0.05


class Figures(NamedTuple):
    """Reads the parts of a session that count something; changes nothing.

    ``over``: when the target ended (time.monotonic()), None while it lives.
    """

    options: Options
    shared: SharedMemory
    threads: ThreadTable
    reader: RingReader
    store: SampleStore
    cpu: CpuAccount
    cost: HandlerCost
    delivery: DeliveryCost
    governor: RateGovernor
    wall: WallClock | None

    def overhead(self) -> Overhead:
        """What sampling has cost the target."""
        return self.cost.overhead(self.threads.used(self.shared.slots), self.delivery.cost)

    def progress(self, elapsed_s: float, over: float | None) -> Progress:
        """How it stands."""
        return Progress(
            store=self.store,
            elapsed_s=elapsed_s,
            cpu_s=self.cpu.sampled_s,
            ticks=self._ticks(),
            threads=self.threads.count,
            dropped=self._dropped(),
            overhead_share=self._share(self.overhead().total_ns),
            rate_reached_hz=self._rate_reached(over),
        )

    def complete(self, meta: Meta, over: float | None) -> Meta:
        """``meta``, which says what was asked for and how long it took, with all that was counted."""
        import dataclasses

        slots = self.threads.used(self.shared.slots)
        overhead, ticks, tick = self.overhead(), self._ticks(), self.delivery.cost
        return dataclasses.replace(
            meta,
            rate_reached_hz=self._rate_reached(over),
            cpu_time_s=self.cpu.sampled_s,
            samples=self.store.samples,
            dropped=self._dropped(),
            truncated=self.store.truncated,
            truncated_by=self.store.truncated_by(),
            handler_share=self._share(overhead.handler_ns),
            handler_ns_per_sample=overhead.handler_ns / ticks if overhead.handler_ns and ticks else None,
            handler_percentiles_ns=self.cost.percentiles_ns(slots, self.threads.used_numbers),
            delivery_share=self._share(overhead.delivery_ns),
            delivery_ns_per_tick=None if tick is None else tick.own_ns,
            overhead_of_wall=self._of_wall(overhead.total_ns, meta.duration_s),
            ticks=ticks,
            waiting=None if self.wall is None else self.wall.waiting,
        )

    def notes(self) -> list[str]:
        """What is to be known of the figures, in sentences."""
        slots, notes = self.shared.slots, []
        if self.threads.without_slot:
            notes.append(f"{self.threads.without_slot} threads had no room in the table and were not sampled")
        notes += self.cpu.note() + self._strays_note() + self.threads.notes(slots)
        notes += self.governor.notes(self.options.rate_hz, self._ticks(), self.cpu.sampled_s)
        notes += self.options.threads.note(self.threads.left_out.values())
        failed = self.threads.failed(slots)
        if failed:
            error = error_text(int(self.shared.control.last_error))
            notes.append(f"{failed} threads could not be given a timer: {error}")
        if self.reader.lost_words:
            notes.append(f"{self.reader.lost_words} words of the ring were unreadable")
        if self.wall is not None:
            notes.extend(self.wall.notes())
        return notes

    def _ticks(self) -> int:
        """Samples that were really taken."""
        return sum(int(slot.samples) for slot in self.threads.used(self.shared.slots))

    def _dropped(self) -> int:
        return sum(int(slot.dropped) for slot in self.threads.used(self.shared.slots))

    def _rate_reached(self, over: float | None) -> float | None:
        """Samples per second of CPU time; None where the CPU time is too short or too long ago to tell.
        In wall mode: looks per second."""
        if self.wall is not None:
            return self.wall.rate_reached_hz
        if not self.cpu.speaks or (over is not None and not self.cpu.is_known_until(over)):
            return None
        return self._ticks() / self.cpu.sampled_s

    def _share(self, ns: float | None) -> float | None:
        """Of the target's CPU time."""
        if ns is None or not self.cpu.speaks:
            return None
        return ns / 1e9 / self.cpu.sampled_s

    def _of_wall(self, ns: float | None, duration_s: float) -> float | None:
        """Of the time that passed."""
        if ns is None or not self.cpu.speaks or duration_s <= 0:
            return None
        return ns / 1e9 / duration_s

    def _strays_note(self) -> list[str]:
        """What the process's clock has contributed, where that is much."""
        slots = self.threads.spare(self.shared.slots)
        met = sum(int(slot.samples) + int(slot.missed) for slot in slots)
        if met <= _STRAYS_TO_SPEAK_OF * self.store.samples:
            return []
        return [
            f"{met:,} samples are ticks of the whole process's clock: of threads that ended, or were found, "
            "before they had ticks of their own"
        ]
