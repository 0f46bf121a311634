"""The threads of the target and their slots in the shared memory."""

from __future__ import annotations

import collections
import ctypes

from ..inject.layout import Slot, SlotState
from ..inject.region import RegionPlan
from ..render.thread import Thread
from . import procfs
from .choosing import ALL_THREADS, ThreadChoice
from .clock import Clock, blocks

_FEW = 16
"""Up to so many threads listing them takes no longer than finding out whether there are others."""


_NAMES = 5
"""So many threads are named in a note."""

_MOST_LATE_S = 3600.0
"""No thread is armed with so much CPU time behind it since it was posted; less than none looks like more."""

_SILENT_S = 0.1
_SILENT_PERIODS = 10
"""With more CPU time and periods than this, and no tick, something keeps the ticks from a thread."""


class _Known:
    __slots__ = (
        "busy", "checked_cpu_s", "cpu_at_start_s", "cpu_ns", "cpu_s", "heard_cpu_s", "ran", "slot",
        "start_time", "ticks",
    )  # fmt: skip

    def __init__(self, slot: int, start_time: int, cpu_s: float, ticks: int) -> None:
        self.slot, self.start_time = slot, start_time
        self.cpu_at_start_s = self.cpu_s = cpu_s
        self.cpu_ns: int | None = None
        """As it was read last."""
        self.busy = True
        """It had run since the time before, when it was read last."""
        self.ran = True
        """Since it was last looked at thoroughly."""
        self.ticks = ticks
        """Of its slot, when that was last looked at."""
        self.heard_cpu_s = cpu_s
        """Its CPU time up to which they stand for it; before the first one, when it was posted."""
        self.checked_cpu_s = 0.0
        """The same, when it was last found out why it has none."""


class ThreadTable:
    """Which thread has which slot; posts new threads to the stub and retires those that are gone.

    ``slots`` is the table in the shared memory (or, before the stub is loaded, the bytes it will start
    from).  CPU times are in seconds, counted from when the thread was first seen here.  Threads that are
    not in ``choice`` get no slot; ``left_out`` has them by tid.
    """

    def __init__(self, pid: int, plan: RegionPlan, clock: Clock, choice: ThreadChoice = ALL_THREADS) -> None:
        self._pid = pid
        self._clock = clock
        self._plan = plan
        self._choice = choice
        self.left_out: dict[int, Thread] = {}
        self._known: dict[int, _Known] = {}
        self._own_slots = plan.slot_count - plan.spare_slots  # each for one thread at a time
        self._free = list(range(self._own_slots - 1, -1, -1))
        self._never_used = self._own_slots
        self._retiring: list[int] = []
        self._gone_cpu_s = 0.0
        self.names: dict[int, Thread] = {}
        self._without_slot: set[int] = set()
        self._seen_once: set[int] = set()
        self._silent: dict[int, float] = collections.defaultdict(float)
        self._listed: tuple[tuple[int, int] | None, list[int]] = (None, [])

    def first_slots(self) -> bytes:
        """The slot table's first contents, as far as they are used: all threads, running ones first."""
        slots = (Slot * self._plan.slot_count)()
        self._post(slots, procfs.thread_ids(self._pid))
        return bytes(slots)[: len(self._known) * ctypes.sizeof(Slot)]  # the rest of the memfd is zero

    def adopt(self, tid: int, slots: ctypes.Array[Slot]) -> None:
        """Count in a thread that has posted itself: it is the only one, in the first slot."""
        self._post(slots, [tid])

    def refresh(self, slots: ctypes.Array[Slot], *, thorough: bool, patient: bool = False) -> bool:
        """Post threads that came, retire those that went.  ``thorough`` also looks whether a tid has
        been used again, and whether a thread has got another name.  ``patient``: a thread is posted at the
        second look that sees it; ticks of its own are too coarse for one that ends sooner, and the process's
        clock meets it meanwhile.  Returns whether anything was posted."""
        self._collect_retired(slots)
        now = self._thread_ids(thorough=thorough)
        gone = set(self._known) - set(now)
        if thorough:
            gone |= {tid for tid in now if tid in self._known and self._is_another(tid)}
            gone |= self._deaf(slots)
        for tid in gone:
            self._retire(slots, tid)
        seen = self._known.keys() if thorough else self._known.keys() | self.left_out.keys()
        new = [tid for tid in now if tid not in seen]
        new = self._seen_before(new) if patient else new
        return self._post(slots, new) or bool(gone)

    def _seen_before(self, new: list[int]) -> list[int]:
        """Those that the look before this has seen; of the others only the names are taken."""
        before = self._seen_once
        self._seen_once = set(new) - before
        for tid in self._seen_once:
            stat = procfs.read_stat(self._pid, tid)
            if stat is not None and self._choice.takes(tid, stat.name):
                self.names[tid] = Thread(tid, stat.name)
        return [tid for tid in new if tid in before]

    def _thread_ids(self, *, thorough: bool) -> list[int]:
        """The threads that exist now.  Where there are many and none can have come, those listed last."""
        sign = procfs.sign_of_threads(self._pid) if self.count > _FEW else None
        if thorough or sign is None or sign != self._listed[0]:
            self._listed = (sign, procfs.thread_ids(self._pid))
        return self._listed[1]

    def _collect_retired(self, slots: ctypes.Array[Slot]) -> None:
        for index in list(self._retiring):
            state = slots[index].state
            if state == SlotState.FREE:
                self._retiring.remove(index)
                self._free.append(index)
            elif state in (SlotState.ARMED, SlotState.FAILED, SlotState.EXPIRED):
                # A tick was arming it while it was retired: say it again.
                slots[index].state = SlotState.RETIRE

    def _is_another(self, tid: int) -> bool:
        """Whether the tid was used again, or the thread has taken a name that was not chosen."""
        known = self._known[tid]
        if not known.ran and not self._choice.patterns:
            return False  # a thread that is new has run, and of the others only names can have changed
        known.ran = False
        stat = procfs.read_stat(self._pid, tid)
        if stat is None:
            return False
        known.cpu_s = stat.cpu_s if stat.start_time == known.start_time else known.cpu_s
        return stat.start_time != known.start_time or not self._choice.takes(tid, stat.name)

    def _deaf(self, slots: ctypes.Array[Slot]) -> set[int]:
        """Threads that run, hear no tick, and have begun to block its signal, or to let it in."""
        changed = set()
        for tid, known in self._known.items():
            slot = slots[known.slot]
            if slot.ticks != known.ticks:
                known.ticks, known.heard_cpu_s = int(slot.ticks), self._sampled_s(slot, known)
            elif known.cpu_s - max(known.heard_cpu_s, known.checked_cpu_s) > self._silence_s:
                known.checked_cpu_s = known.cpu_s
                if self._plan.spare_signal and self._blocks(tid) != bool(slot.by_spare):
                    changed.add(tid)
        return changed

    def _blocks(self, tid: int) -> bool:
        return blocks(self._pid, tid, self._plan.signal)

    @property
    def _silence_s(self) -> float:
        """CPU time in which a thread must have heard a tick."""
        return max(_SILENT_S, _SILENT_PERIODS * self._plan.period_ns / 1e9)

    def _silent_s(self, slots: ctypes.Array[Slot], known: _Known) -> float:
        """The CPU time of a thread without ticks, where it is more than that: before its timer was made, and
        up to now, where the next tick would stand for it."""
        slot, late_s = slots[known.slot], self._armed_late_s(slots[known.slot], known)
        since_s = known.heard_cpu_s if slot.ticks == known.ticks else self._sampled_s(slot, known)
        since_s = max(since_s, known.cpu_at_start_s + late_s)
        return sum(part_s for part_s in (late_s, known.cpu_s - since_s) if part_s > self._silence_s)

    @staticmethod
    def _armed_late_s(slot: Slot, known: _Known) -> float:
        """The CPU time between a thread being posted and its timer being made."""
        if not slot.armed_cpu:
            return 0.0
        posted = round(known.cpu_at_start_s * 1e9) >> 10
        late_s = (int(slot.armed_cpu) - posted) % (1 << 32) * 1024 / 1e9
        return late_s if late_s < _MOST_LATE_S else 0.0

    @staticmethod
    def _sampled_s(slot: Slot, known: _Known) -> float:
        """Up to where the thread's CPU time has samples, after a tick."""
        return min(max(int(slot.cpu_ns) / 1e9, known.heard_cpu_s), known.cpu_s)

    def notes(self, slots: ctypes.Array[Slot]) -> list[str]:
        """What is to be said of threads whose ticks did not come, or that block the signal of the others'."""
        silent = self._silent.copy()
        for tid, known in self._known.items():
            silent[tid] += self._silent_s(slots, known)
        silent = {tid: silent_s for tid, silent_s in silent.items() if silent_s}
        by_spare = sum(1 for known in self._known.values() if slots[known.slot].by_spare)
        notes = []
        if by_spare and self._clock.name == "perf":
            notes.append(
                f"threads that block signals: {by_spare}; they have timers, by one that can't be blocked"
            )
        if silent:
            names = sorted({self.names[tid].name for tid in silent})
            more = ", ..." if len(names) > _NAMES else ""
            notes.append(
                f"{sum(silent.values()):.2f} s of CPU time are not in it: of {len(silent)} threads "
                f"({', '.join(names[:_NAMES])}{more}) whose ticks did not come, or ended; "
                "threads may block signals"
            )
        return notes

    def _retire(self, slots: ctypes.Array[Slot], tid: int) -> None:
        known = self._known.pop(tid)
        self._silent[tid] += self._silent_s(slots, known)
        self._gone_cpu_s += known.cpu_s - known.cpu_at_start_s
        if self._clock.remove(known.slot, slots[known.slot]):
            self._free.append(known.slot)
        else:
            self._retiring.append(known.slot)

    def _post(self, slots: ctypes.Array[Slot], tids: list[int]) -> bool:
        stats = [(tid, stat) for tid in tids if (stat := procfs.read_stat(self._pid, tid)) is not None]
        stats.sort(key=lambda item: item[1].state != "R")
        posted = False
        for tid, stat in stats:
            if not self._choice.takes(tid, stat.name):
                self.left_out[tid] = Thread(tid, stat.name)
                continue
            self.left_out.pop(tid, None)
            self.names[tid] = Thread(tid, stat.name)
            if not self._free:
                self._without_slot.add(tid)
                continue
            index = self._free[-1]
            spare = self._plan.spare_signal
            slots[index].armed_cpu = 0
            slots[index].by_spare = int(bool(spare) and self._blocks(tid))
            if not self._clock.add(tid, index, slots[index]):
                continue
            self._free.pop()
            self._never_used = min(self._never_used, self._own_slots - 1 - index)
            used_ns = procfs.thread_cpu_ns(self._pid, tid)
            used_s = stat.cpu_s if used_ns is None else used_ns / 1e9
            self._known[tid] = _Known(index, stat.start_time, used_s, int(slots[index].ticks))
            posted = True
        return posted

    def rearm_expired(self, slots: ctypes.Array[Slot]) -> bool:
        """Post again the threads whose timers went quiet because the lease had run out."""
        found = False
        for known in self._known.values():
            if slots[known.slot].state == SlotState.EXPIRED:
                slots[known.slot].state = SlotState.WANTED
                found = True
        return found

    def unarmed_and_running(self, slots: ctypes.Array[Slot]) -> bool:
        """Whether a posted thread is running without having been armed: no tick came that could."""
        for tid, known in self._known.items():
            if slots[known.slot].state == SlotState.WANTED:
                stat = procfs.read_stat(self._pid, tid)
                if stat is not None and stat.state == "R":
                    return True
        return False

    def failed(self, slots: ctypes.Array[Slot]) -> int:
        """How many threads could not be given a timer."""
        return sum(1 for known in self._known.values() if slots[known.slot].state == SlotState.FAILED)

    def cpu_s(self, busy: bool | None = None) -> float:
        """CPU time that all threads seen so far have used since they were first seen, seconds.  ``busy``:
        only those are read that had run (or had not) since the time before, when they were read last."""
        for tid, known in self._known.items():
            if busy not in (None, known.busy):
                continue
            ns = procfs.thread_cpu_ns(self._pid, tid)
            if ns is None:
                stat = procfs.read_stat(self._pid, tid)
                known.busy = stat is not None and stat.start_time == known.start_time
                if stat is not None and known.busy:
                    known.cpu_s, known.ran = stat.cpu_s, True
                continue
            known.busy = ns != known.cpu_ns
            if known.busy:
                known.cpu_ns, known.cpu_s, known.ran = ns, ns / 1e9, True
        return self._gone_cpu_s + sum(k.cpu_s - k.cpu_at_start_s for k in self._known.values())

    def used(self, slots: ctypes.Array[Slot]) -> list[Slot]:
        """The slots that have ever been given to a thread, and those that any thread may use."""
        return slots[: self.slots_used] + self.spare(slots)

    def spare(self, slots: ctypes.Array[Slot]) -> list[Slot]:
        """Those that any thread may use, for one tick of the process's clock."""
        return slots[self._own_slots :]

    @property
    def used_numbers(self) -> list[int]:
        """The same slots' numbers."""
        return [*range(self.slots_used), *range(self._own_slots, self._plan.slot_count)]

    @property
    def slots_used(self) -> int:
        """Slots from this one on have never been given to a thread."""
        return self._own_slots - self._never_used

    @property
    def without_slot(self) -> int:
        """How many threads were found when no slot was free."""
        return len(self._without_slot)

    @property
    def waiting(self) -> bool:
        """Whether threads were seen for the first time and wait to be seen again."""
        return bool(self._seen_once)

    @property
    def tids(self) -> set[int]:
        """Threads that exist now and have a slot."""
        return set(self._known)

    @property
    def count(self) -> int:
        """Threads that exist now."""
        return len(self._known)
