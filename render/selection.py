"""Which row of a live view's table is selected, and which rows are shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

_STEPS = {"up": -1, "down": 1, "pageup": -10, "pagedown": 10, "home": -(1 << 30), "end": 1 << 30}


@dataclasses.dataclass(slots=True)
class Selection:
    """``selected`` is the row of the table that is selected (-1: none), ``top`` the first that is shown."""

    selected: int = -1
    top: int = 0

    def move(self, key: str) -> None:
        """Do what ``key`` means for it; others mean nothing."""
        if key == "escape":
            self.selected = -1
        elif key in _STEPS:
            self.selected = max(0, self.selected + _STEPS[key])

    def window(self, rows: Sequence[object], height: int) -> range:
        """Which of ``rows`` are shown where ``height`` fit; the selected one is among them."""
        if rows:  # an empty table, as it is for a moment after a reset, makes nobody forget the choice
            self.selected = min(self.selected, len(rows) - 1)
        if self.selected >= 0:
            self.top = min(max(self.top, self.selected - height + 1), self.selected)
        self.top = max(0, min(self.top, len(rows) - height))
        return range(self.top, min(len(rows), self.top + height))
