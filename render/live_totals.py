"""Function totals for the live view: all together and by thread, since the begin and since the last look."""

from __future__ import annotations

import copy

from .profile import FunctionRow, FunctionTotals, Stack


class LiveTotals:
    """Fed sample by sample; ``turn`` begins a new interval."""

    def __init__(self) -> None:
        self.whole: dict[int | None, FunctionTotals] = {None: FunctionTotals()}
        self.interval: dict[int | None, FunctionTotals] = {None: FunctionTotals()}
        self._running: dict[int | None, FunctionTotals] = {None: FunctionTotals()}

    def add(self, tid: int, stack: Stack, ticks: int) -> None:
        """Count ``ticks`` of ``stack`` on thread ``tid``."""
        for tables in (self.whole, self._running):
            tables[None].add(stack, ticks)
            tables.setdefault(tid, FunctionTotals()).add(stack, ticks)

    def turn(self) -> None:
        """What came since the last turn is the interval that is shown from now on."""
        self.interval, self._running = self._running, {None: FunctionTotals()}

    def reset(self) -> None:
        """Forget all."""
        self.__init__()  # type: ignore[misc]

    def frozen(self) -> LiveTotals:
        """A copy that stays as it is."""
        return copy.deepcopy(self)

    def tids(self) -> list[int]:
        """Threads with samples, the busiest first."""
        tids = [tid for tid in self.whole if tid is not None]
        return sorted(tids, key=lambda tid: (-self.whole[tid].ticks, tid))

    def ticks(self, tid: int | None, *, interval: bool) -> int:
        """Ticks of a thread, or of all (None)."""
        return self._table(tid, interval).ticks

    def rows(
        self, tid: int | None, *, interval: bool, by_total: bool, containing: str = ""
    ) -> list[FunctionRow]:
        """Functions of a thread, or of all (None), the heaviest first; only those whose name or module
        contains ``containing``, in upper or lower case."""
        rows = self._table(tid, interval).rows(1 << 30, by_total=by_total)
        wanted = containing.casefold()
        if not wanted:
            return rows
        return [r for r in rows if wanted in r.frame.name.casefold() or wanted in r.frame.module.casefold()]

    def _table(self, tid: int | None, interval: bool) -> FunctionTotals:
        return (self.interval if interval else self.whole).get(tid) or FunctionTotals()
