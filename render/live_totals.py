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

    def trends(self, tid: int | None, *, by_total: bool) -> dict[tuple[str, str], int]:
        """By name and module: 1 where the share of a function is greater in the interval than outside of it,
        -1 where it is smaller, both by more than two standard errors of sampling.  Others are left out."""
        part, whole = (self._table(tid, interval) for interval in (True, False))
        now, others = part.ticks, whole.ticks - part.ticks
        if not now or others <= 0:
            return {}
        found = {}
        in_part = {_name(row): _ticks(row, by_total) for row in part.rows(1 << 30)}
        for row in whole.rows(1 << 30):
            mine = in_part.get(_name(row), 0)
            both = min(1.0, _ticks(row, by_total) / whole.ticks)
            change = mine / now - (_ticks(row, by_total) - mine) / others
            if change * change > 4 * both * (1 - both) * (1 / now + 1 / others):
                found[_name(row)] = 1 if change > 0 else -1
        return found

    def _table(self, tid: int | None, interval: bool) -> FunctionTotals:
        return (self.interval if interval else self.whole).get(tid) or FunctionTotals()


def _name(row: FunctionRow) -> tuple[str, str]:
    return row.frame.name, row.frame.module


def _ticks(row: FunctionRow, by_total: bool) -> int:
    return row.total_ticks if by_total else row.self_ticks
