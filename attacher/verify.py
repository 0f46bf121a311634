"""Proof that nothing of ours remains: what can be seen from outside, before and after."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..inject.borrow import MEMFD_PREFIX, bootstraps_in
from ..inject.layout import TICK_TAG
from . import procfs
from .target import TargetProcess

_MARK = f"memfd:{MEMFD_PREFIX.decode()}"
_BEGIN_BYTES = 32
_TIMER_VALUE = re.compile(r"^signal: (\d+)/([0-9a-f]+)$", re.MULTILINE)


class Snapshot(NamedTuple):
    """The target at one moment.  ``mappings``: by start, (end, permissions, path); ``fds``: by number,
    what they are; signal masks as in /proc/PID/status; ``timers``: ours among its POSIX timers;
    ``bootstraps``: where our first instructions are behind its code; ``code``: how functions begin that
    were asked for, in hexadecimal by address."""

    mappings: dict[int, tuple[int, str, str]]
    fds: dict[int, str]
    caught: int
    ignored: int
    timers: int
    tracer: int
    stopped_threads: tuple[int, ...]
    bootstraps: tuple[int, ...] = ()
    code: tuple[tuple[int, str], ...] = ()

    def as_json(self) -> dict[str, object]:
        """For ``json.dumps``: mappings by their addresses, masks in hexadecimal."""
        return {
            "mappings": {f"{start:x}-{m[0]:x}": list(m[1:]) for start, m in sorted(self.mappings.items())},
            "fds": {str(number): what for number, what in sorted(self.fds.items())},
            "caught": f"{self.caught:016x}",
            "ignored": f"{self.ignored:016x}",
            "timers": self.timers,
            "tracer": self.tracer,
            "stopped_threads": list(self.stopped_threads),
            "bootstraps": [f"{address:x}" for address in self.bootstraps],
            "code": {f"{address:x}": begin for address, begin in self.code},
        }


class Verification(NamedTuple):
    """The target before and after, and what of ours is ``left``: one line each."""

    pid: int
    before: Snapshot
    after: Snapshot
    left: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """All of it, for ``json.dumps``; ``changed`` has what the target itself has changed, too."""
        before, after = self.before.as_json(), self.after.as_json()
        return {
            "pid": self.pid,
            "complete": not self.left,
            "left": list(self.left),
            "changed": {
                field: _difference(before[field], after[field])
                for field in before
                if before[field] != after[field]
            },
            "before": before,
            "after": after,
        }


def _difference(before: object, after: object) -> object:
    if isinstance(before, dict) and isinstance(after, dict):
        return {
            "gone": {key: value for key, value in before.items() if after.get(key) != value},
            "new": {key: value for key, value in after.items() if before.get(key) != value},
        }
    return {"before": before, "after": after}


def _fds(pid: int) -> dict[int, str]:
    out = {}
    for number in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
        try:
            out[int(number)] = os.readlink(f"/proc/{pid}/fd/{number}")
        except FileNotFoundError:  # closed meanwhile
            continue
    return out


def _our_timers(pid: int) -> int:
    """Timers that carry our mark (/proc/PID/timers, where the kernel keeps it)."""
    try:
        text = Path(f"/proc/{pid}/timers").read_text()
    except FileNotFoundError:
        return 0
    return sum(1 for _, value in _TIMER_VALUE.findall(text) if int(value, 16) >> 48 == TICK_TAG >> 16)


def snapshot(target: TargetProcess, functions: Sequence[int] = ()) -> Snapshot:
    """Look at everything that attaching could have changed, the begin of ``functions`` too.  Raises
    FileNotFoundError or ProcessLookupError when the target is gone."""
    pid = target.pid
    status = procfs.read_status(pid)
    stopped = [t for t in target.threads() if (s := procfs.read_stat(pid, t)) and s.state in "Tt"]
    return Snapshot(
        mappings={m.start: (m.end, m.permissions, m.path) for m in target.maps()},
        fds=_fds(pid),
        caught=int(status.get("SigCgt", "0"), 16),
        ignored=int(status.get("SigIgn", "0"), 16),
        timers=_our_timers(pid),
        tracer=int(status.get("TracerPid", "0")),
        stopped_threads=tuple(stopped),
        bootstraps=tuple(bootstraps_in(target)),
        code=tuple((address, _begin(target, address)) for address in functions),
    )


def _begin(target: TargetProcess, address: int) -> str:
    try:
        return target.read(address, _BEGIN_BYTES).hex()
    except ProcessLookupError:
        raise
    except OSError:  # its library has gone
        return ""


def _changed_protections(before: Snapshot, after: Snapshot) -> list[str]:
    """Files mapped in the same places as before, but with other protections.  A file that the target has
    loaded anew, or is about to load, lies in other places."""
    out = []
    was, now = _by_file(before), _by_file(after)
    for path in sorted(was.keys() & now.keys()):
        if [m[:2] for m in was[path]] == [m[:2] for m in now[path]]:
            out += [
                f"protection of {path} at {start:x}: {permissions}, was {old}"
                for (start, _, permissions), (_, _, old) in zip(now[path], was[path], strict=True)
                if permissions != old
            ]
    return out


def _by_file(snapshot: Snapshot) -> dict[str, list[tuple[int, int, str]]]:
    out: dict[str, list[tuple[int, int, str]]] = {}
    for start, (end, permissions, path) in sorted(snapshot.mappings.items()):
        if path.startswith("/"):
            out.setdefault(path, []).append((start, end, permissions))
    return out


def remains(before: Snapshot, after: Snapshot, signals: Sequence[int]) -> list[str]:
    """What of ours is still there: one line each, empty when the detach was complete.  ``signals`` are those
    that ticked (0: none).

    The target lives on and changes by itself, so only what bears our mark, or was there before and
    has another protection now, counts.
    """
    out = [
        f"mapping {start:x}-{end:x} {permissions} of {path}"
        for start, (end, permissions, path) in sorted(after.mappings.items())
        if _MARK in path and before.mappings.get(start, (0, "", ""))[2] != path
    ]
    out += [
        f"the bootstrap's code at {address:x}"
        for address in sorted(set(after.bootstraps) - set(before.bootstraps))
    ]
    began = dict(after.code)
    out += [
        f"the code at {address:x} is {began[address]}, was {begin}"
        for address, begin in before.code
        if began.get(address) and began[address] != begin
    ]
    out += _changed_protections(before, after)
    out += [
        f"open file {n}: {what}"
        for n, what in sorted(after.fds.items())
        if _MARK in what and before.fds.get(n) != what
    ]
    for signal in filter(None, signals):
        bit = 1 << (signal - 1)
        if (before.caught ^ after.caught) & bit or (before.ignored ^ after.ignored) & bit:
            out.append(f"signal {signal} is not handled as before")
    if after.timers > before.timers:
        out.append(f"{after.timers - before.timers} timers")
    if after.tracer:
        out.append(f"a tracer: pid {after.tracer}")
    out += [f"thread {tid} is stopped" for tid in after.stopped_threads]
    return out
