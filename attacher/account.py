"""How much CPU time the target has used while it was sampled, and how much of it no tick could meet."""

from __future__ import annotations

import time

from .procfs import process_cpu_ns
from .target import TargetProcess
from .threads import ThreadTable

TO_SPEAK_OF_S = 0.05
"""With less CPU time than this a rate or share is noise, and not shown."""

_SHARE_TO_SPEAK_OF = 0.03

_UNEXPLAINED_S = 0.0005
"""So much CPU time of the process may be that of threads that did not run before: then all are read."""


class CpuAccount:
    """CPU times in seconds since it was made.  ``only_known``: only the threads of the table count."""

    def __init__(self, target: TargetProcess, threads: ThreadTable, *, only_known: bool) -> None:
        self._target, self._threads, self._only_known = target, threads, only_known
        self.known_s = 0.0
        """Of the threads that were found."""
        self.lost_s = 0.0
        """Of threads that ended before they were found, while the process's clock did not tick."""
        self._process_s = self._process_at_start_s = self._read_process()
        self._unseen_before_s = 0.0
        self._unexplained_s = self._process_s
        """CPU time of the process, since its begin, beyond that of known threads, when all were read."""
        self._measured_at = time.monotonic()

    def measure(self, *, ended: bool, whole: bool = True) -> None:
        """Read what there is.  The clock of a thread that has ended is gone: what was read last has to do.
        ``ended``: the process has, or goes on as another program.  Not ``whole``: threads that did not run
        before are read only if the others' CPU time is not all that the process has used since."""
        whole = whole or ended
        if not whole and self._only_others_ran():
            self._measured_at = time.monotonic()
            return
        at_end_s = self._target.cpu_s_at_end()
        self.known_s = max(self.known_s, self._threads.cpu_s(None if whole else False), at_end_s or 0.0)
        if not ended:
            self._process_s = max(self._process_s, self._read_process())
            self._unexplained_s = self._process_s - self.known_s
        if not ended or at_end_s is not None:
            self._measured_at = time.monotonic()

    def _only_others_ran(self) -> bool:
        process_s, known_s = self._read_process(), self._threads.cpu_s(busy=True)
        if not process_s or process_s - known_s - self._unexplained_s > _UNEXPLAINED_S:
            return False
        self._process_s, self.known_s = max(self._process_s, process_s), max(self.known_s, known_s)
        return True

    def unseen_grown_s(self, *, met: bool) -> float:
        """How much more there is since the last call of threads that ended before they were found; it is lost
        where the process's clock could not meet them."""
        unseen_s = self._unseen_s
        grown_s, self._unseen_before_s = unseen_s - self._unseen_before_s, unseen_s
        if not met:
            self.lost_s += grown_s
        return grown_s

    @property
    def sampled_s(self) -> float:
        """CPU time that ticks could meet."""
        return self.known_s + max(0.0, self._unseen_s - self.lost_s)

    @property
    def speaks(self) -> bool:
        """Whether there was enough for shares of it to say anything."""
        return self.sampled_s >= TO_SPEAK_OF_S

    def is_known_until(self, ended: float) -> bool:
        """Whether it was last read shortly enough before ``ended`` (time.monotonic())."""
        return ended - self._measured_at <= _SHARE_TO_SPEAK_OF * self.known_s

    def note(self) -> list[str]:
        """What is to be said of what was lost."""
        if self.lost_s <= max(TO_SPEAK_OF_S, _SHARE_TO_SPEAK_OF * self.known_s):
            return []
        return [f"{self.lost_s:.2f} s of CPU time are not in it: of threads that ended too soon"]

    @property
    def _unseen_s(self) -> float:
        if self._only_known:
            return 0.0
        return max(0.0, self._process_s - self._process_at_start_s - self.known_s)

    def _read_process(self) -> float:
        """Of the process, with that of threads that have ended."""
        return (process_cpu_ns(self._target.pid) or 0) / 1e9
