"""Function totals for the live view: all together and by thread, since the begin and since the last look."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from .profile import FunctionRow, FunctionTotals, Stack

_Name = tuple[str, str, str]


class LiveTotals:
    """Fed sample by sample; ``turn`` begins a new interval.  ``lines``: totals by line of the source are kept
    too, and stacks may be told anew."""

    def __init__(self, *, lines: bool = False) -> None:
        self.lines = lines
        self._whole, self._interval, self._running = (_Period(lines) for _ in range(3))

    def add(self, tid: int, stack: Stack, ticks: int) -> None:
        """Count ``ticks`` of ``stack`` on thread ``tid``."""
        self._whole.add(tid, stack, ticks)
        self._running.add(tid, stack, ticks)

    def turn(self) -> None:
        """What came since the last turn is the interval that is shown from now on."""
        self._interval, self._running = self._running, _Period(self.lines)

    def reset(self) -> None:
        """Forget all."""
        self.__init__(lines=self.lines)  # type: ignore[misc]

    def tell_anew(self, renewed: Iterable[tuple[Stack, Stack]]) -> None:
        """Stacks that were added, and what is known of them by now."""
        for before, stack in renewed:
            for period in (self._whole, self._interval, self._running):
                period.tell_anew(before, stack)

    def frozen(self) -> LiveTotals:
        """A copy that stays as it is."""
        made = LiveTotals(lines=self.lines)
        made._whole, made._interval = self._whole.frozen(), self._interval.frozen()
        return made

    def tids(self) -> list[int]:
        """Threads with samples, the busiest first."""
        whole = self._whole
        return sorted(whole.tids(), key=lambda tid: (-whole.table(tid).ticks, tid))

    def ticks(self, tid: int | None, *, interval: bool) -> int:
        """Ticks of a thread, or of all (None)."""
        return self._period(interval).table(tid).ticks

    def rows(
        self, tid: int | None, *, interval: bool, by_total: bool, containing: str = "", by_line: bool = False
    ) -> list[FunctionRow]:
        """Functions (or lines) of a thread, or of all (None), the heaviest first; only those whose name or
        module or, by line, place in the source contains ``containing``, in upper or lower case."""
        rows = self._period(interval).table(tid, by_line).rows(1 << 30, by_total=by_total)
        wanted = containing.casefold()
        if not wanted:
            return rows
        return [row for row in rows if any(wanted in part.casefold() for part in row_key(row, by_line))]

    def trends(self, tid: int | None, *, by_total: bool, by_line: bool = False) -> dict[_Name, int]:
        """By ``row_key``: 1 where its share is greater in the interval than outside of it, -1 where
        it is smaller, both by more than two standard errors of sampling.  Others are left out."""
        part, whole = (self._period(interval).table(tid, by_line) for interval in (True, False))
        now, others = part.ticks, whole.ticks - part.ticks
        if not now or others <= 0:
            return {}
        found = {}
        in_part = {row_key(row, by_line): _ticks(row, by_total) for row in part.rows(1 << 30)}
        for row in whole.rows(1 << 30):
            name = row_key(row, by_line)
            mine = in_part.get(name, 0)
            both = min(1.0, _ticks(row, by_total) / whole.ticks)
            change = mine / now - (_ticks(row, by_total) - mine) / others
            if change * change > 4 * both * (1 - both) * (1 / now + 1 / others):
                found[name] = 1 if change > 0 else -1
        return found

    def _period(self, interval: bool) -> _Period:
        return self._interval if interval else self._whole


class _Period:
    """Totals of all threads together (None) and of each one, by function and, if wanted, by line."""

    def __init__(self, lines: bool) -> None:
        self._kinds = (False, True) if lines else (False,)
        self._tables: dict[tuple[int | None, bool], FunctionTotals] = {}
        self._stacks: dict[int, tuple[Stack, dict[int, int]]] = {}
        """Where stacks may be told anew: by identity, with the ticks by thread."""

    def add(self, tid: int, stack: Stack, ticks: int) -> None:
        """Negative ticks are taken off again."""
        for by_line in self._kinds:
            for which in (None, tid):
                table = self._tables.get((which, by_line))
                if table is None:
                    table = self._tables[which, by_line] = FunctionTotals(by_line=by_line)
                table.add(stack, ticks)
        if len(self._kinds) > 1:
            _, of_threads = self._stacks.setdefault(id(stack), (stack, {}))
            of_threads[tid] = of_threads.get(tid, 0) + ticks

    def tell_anew(self, before: Stack, stack: Stack) -> None:
        _, of_threads = self._stacks.get(id(before), (before, {}))
        for tid, ticks in list(of_threads.items()):
            self.add(tid, before, -ticks)
            self.add(tid, stack, ticks)
        self._stacks.pop(id(before), None)

    def tids(self) -> list[int]:
        return [tid for tid, by_line in self._tables if tid is not None and not by_line]

    def table(self, tid: int | None, by_line: bool = False) -> FunctionTotals:
        return self._tables.get((tid, by_line)) or FunctionTotals()

    def frozen(self) -> _Period:
        made = _Period(len(self._kinds) > 1)
        made._tables = copy.deepcopy(self._tables)
        return made


def row_key(row: FunctionRow, by_line: bool = False) -> _Name:
    """What tells a row from others: name, module and, by line, place in the source."""
    return row.frame.name, row.frame.module, row.frame.line if by_line else ""


def _ticks(row: FunctionRow, by_total: bool) -> int:
    return row.total_ticks if by_total else row.self_ticks
