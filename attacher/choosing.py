"""Which threads of the target are sampled: those that the user chose by name or id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ..errors import UsageError
from ..render.thread import Thread
from . import procfs

_NAMES_SHOWN = 40


class ThreadChoice(NamedTuple):
    """``patterns``: names as the shell would match them (``worker-*``), or tids; none: all threads."""

    patterns: tuple[str, ...] = ()

    def takes(self, tid: int, name: str) -> bool:
        """Whether thread ``tid``, which is called ``name`` just now, is one of them."""
        if not self.patterns:
            return True
        import fnmatch

        return any(p == str(tid) or fnmatch.fnmatchcase(name, p) for p in self.patterns)

    def check(self, pid: int) -> None:
        """Raises UsageError, with the names there are, when no thread of ``pid`` is one of them now."""
        stats = [(tid, procfs.read_stat(pid, tid)) for tid in procfs.thread_ids(pid)]
        names = [Thread(tid, stat.name) for tid, stat in stats if stat is not None]
        if not names or any(self.takes(thread.tid, thread.name) for thread in names):
            return
        raise UsageError(
            f"no thread of process {pid} is called {' or '.join(self.patterns)}",
            f"its threads: {names_of(names)}",
        )

    def note(self, left_out: Iterable[Thread]) -> list[str]:
        """What to say of the threads that were not sampled because they were not chosen."""
        threads = list(left_out)
        if not threads:
            return []
        return [f"{len(threads)} threads were left out by --thread: {names_of(threads)}"]


ALL_THREADS = ThreadChoice()


def names_of(threads: Iterable[Thread]) -> str:
    """The threads' names, each once with how many have it; the first 40 of them."""
    counts = Counter(thread.name for thread in threads)
    shown = [f"{name} ({count})" if count > 1 else name for name, count in sorted(counts.items())]
    more = [f"and {len(shown) - _NAMES_SHOWN} more"] if len(shown) > _NAMES_SHOWN else []
    return ", ".join(shown[:_NAMES_SHOWN] + more)
