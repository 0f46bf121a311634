"""One session of the heap profiler: what is done while it records, and what is made of it at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator

from .. import __version__
from ..errors import PyattachError, UsageError
from ..inject.heap_layout import FIRST_ITEM
from ..inject.heap_region import HeapPlan
from ..inject.layout import NO_VM_READ, Unwind
from ..render.profile import Meta
from ..symbols.address import ReturnAddress
from ..symbols.maps import Maps
from ..symbols.name_options import NameOptions
from ..symbols.resolver import Resolver
from . import procfs
from .heap_before import NOT_GLIBC, OldHeap, read_old_heap
from .heap_leaks import Leaks, find_leaks
from .heap_profile import Amount, HeapResult
from .heap_tables import HeapTables
from .heap_words import NEVER
from .interim import ENDED_BY
from .modules import ModuleTable
from .naming import make_resolver
from .shared import SharedMemory, SharedRegion
from .target import TargetProcess
from .verify import Verification

LEASE_NS = 10_000_000_000
"""Recording costs no more than it did with pyattach: it may be held up for longer than ticks may go on."""

TARGET_ENDED = "the target ended"

_LOOK_S = 0.05
_PAUSES = 8
_TICKS = 64  # words of a ring that nothing is written to


@dataclasses.dataclass(frozen=True)
class HeapOptions:
    """``sample_bytes``: mean bytes between two recorded allocations, 0: all.  ``leaks``: look at the end
    which blocks are lost; ``before``: look at the begin what is there already.  ``entries``: of ENTRY_MODES.
    The rest as in Options.  Raises UsageError where entries are to lead to sampled recording."""

    duration_s: float | None = None
    max_depth: int = 64
    sample_bytes: int = 0
    leaks: bool = False
    before: bool = False
    entries: str = NEVER
    unwind: Unwind = Unwind.AUTO
    allow_seccomp: bool = False
    names: NameOptions = dataclasses.field(default_factory=NameOptions)

    def __post_init__(self) -> None:
        if self.sample_bytes and self.entries != NEVER:
            raise UsageError(
                "calls that come by the allocator's own code are recorded all: they can't be sampled",
                "leave out --heap-sample, or --entries",
            )


@dataclasses.dataclass(frozen=True)
class HeapOutcome:
    """``result`` None: nothing was recorded, ``warning`` says why."""

    meta: Meta
    result: HeapResult | None
    target_ended: bool
    residue: tuple[str, ...] = ()
    warning: str = ""
    failure: str = ""
    """What failed once the recording had begun; it is one of the notes, too."""
    verified: tuple[Verification, ...] = ()


def heap_plan(options: HeapOptions, **more: int | tuple[int, ...]) -> HeapPlan:
    """The region for one session."""
    return HeapPlan(
        period_ns=1,
        slot_count=1,
        max_depth=options.max_depth,
        ring_words=_TICKS,
        signal=0,
        unwind=options.unwind,
        flags=NO_VM_READ if options.allow_seccomp else 0,
        sample_bytes=options.sample_bytes,
        **more,  # type: ignore[arg-type]
    )


def code_bytes(maps: Maps) -> int:
    """Of all executable mappings."""
    return sum(mapping.end - mapping.start for mapping in maps.executable())


class HeapSession:
    """From ``begin`` on the stub records; ``record`` looks after it until the end; ``outcome`` last."""

    def __init__(
        self, target: TargetProcess, options: HeapOptions, plan: HeapPlan, resolver: Resolver | None = None
    ) -> None:
        self.target, self.options, self.plan = target, options, plan
        self.resolver = resolver or make_resolver(target, options.names)
        self.modules = ModuleTable(target, self.resolver, plan)
        self.leaks: Leaks | None = None
        self.before: OldHeap | None = None
        self.notes: list[str] = []
        self.rows: list[tuple[str, str]] = []
        self.ended_by = self.failure = ""
        self._started_at_unix_s, self.started = time.time(), time.monotonic()
        self._over: float | None = None
        self._peak_rss = 0
        self._named = 0

    def begin(self, stub: SharedRegion) -> None:
        """The stub is there, and where its memory is."""
        self.stub = stub
        self.shared = SharedMemory(stub)
        self.shared.renew_lease(LEASE_NS)
        self.tables = HeapTables(stub.memfd, stub.region_offset, self.plan)
        self.started = time.monotonic()

    def record(
        self,
        should_stop: Callable[[], bool],
        on_look: Callable[[], None] = lambda: None,
        on_pause: Callable[[], None] = lambda: None,
    ) -> None:
        """Until the target ends, the time is over or ``should_stop``.  ``on_look`` is called some times a
        second, ``on_pause`` more often.  What fails meanwhile is the end, and is noted."""
        with self.kept("recording"):
            self._record(should_stop, on_look, on_pause)
        self.over()

    def over(self) -> None:
        """The recording has lasted until now, whatever is still to be done."""
        self._over = time.monotonic()

    @contextlib.contextmanager
    def kept(self, what: str) -> Iterator[None]:
        """What fails in ``what`` is noted, and what was recorded is reported."""
        try:
            yield
        except (OSError, PyattachError) as error:
            gone = isinstance(error, (FileNotFoundError, ProcessLookupError)) and not self.target.alive()
            if gone or (not isinstance(error, PyattachError) and not self.target.memory_is_current()):
                self.ended_by = self.ended_by or TARGET_ENDED
                return
            said = f"{what} failed: {getattr(error, 'what', error)}"
            self.ended_by = self.ended_by or said
            self.failure = self.failure or said
            self.notes.append(said)

    def _record(
        self, should_stop: Callable[[], bool], on_look: Callable[[], None], on_pause: Callable[[], None]
    ) -> None:
        while not self.ended_by:
            self.look()
            on_look()
            elapsed_s = time.monotonic() - self.started
            if not self.target.alive() or not self.target.memory_is_current():
                self.ended_by = TARGET_ENDED
            elif should_stop():
                self.ended_by = "stopped by the user"
            elif self.options.duration_s is not None and elapsed_s >= self.options.duration_s:
                self.ended_by = "duration reached"
            else:
                for _ in range(_PAUSES):
                    on_pause()
                    self.target.pause(_LOOK_S / _PAUSES)

    def look(self) -> None:
        """To be called some times a second: the lease, the target's memory, libraries that came or went."""
        if self.shared.renew_lease(LEASE_NS):
            self.notes.append("pyattach was held up for so long that the recording ended early")
        self._look_at_memory()
        self.follow_maps()

    def _look_at_memory(self) -> None:
        self._peak_rss = max(self._peak_rss, procfs.rss_bytes(self.target.pid, "VmHWM"))

    def follow_maps(self) -> None:
        """Libraries that came and went: for the unwinder there, and for names here."""
        maps = self.target.maps()
        if maps == self.resolver.maps or not self.target.memory_is_current():
            return
        if maps.executable() == self.resolver.maps.executable():
            self.resolver.update(maps)
            return
        self._name_all()  # while the libraries that go are still known
        self.resolver.update(maps)
        if self.modules.refresh(maps, self.shared.bytes, self.shared.control.modules_seq):
            self.shared.modules_moved()

    def _name_all(self) -> None:
        self.tables.update()
        nodes = self.tables.nodes
        for address in nodes[2 * max(self._named, FIRST_ITEM) :: 2]:
            self.resolver.resolve_first(ReturnAddress(address))
        self._named = len(nodes) // 2

    def look_at_what_is_there(self) -> None:
        """The heap as it is before anything is recorded."""
        try:
            self.before = read_old_heap(self.target, self.resolver.maps, self.resolver)
        except ProcessLookupError:
            raise
        except OSError as error:
            self.notes.append(f"what was allocated before the attach is not shown: {error}")
            return
        self.notes += self.before.notes if self.before is not None else [NOT_GLIBC]

    def look_for_leaks(self) -> None:
        """Which live blocks nothing leads to, if that was asked for and the target is there still."""
        if not self.options.leaks or not self.target.alive() or not self.target.memory_is_current():
            return
        with self._kept_alive():
            try:
                self.leaks = find_leaks(self.target, self.tables)
            except (OSError, PyattachError) as error:
                self.notes.append(f"leaks were not looked for: {error}")
                return
        took = f"{size_text(self.leaks.bytes_read)} looked through in {self.leaks.took_s:.2f} s"
        self.rows.append(("leaks looked for", took))
        self.notes += self.leaks.notes

    @contextlib.contextmanager
    def _kept_alive(self) -> Iterator[None]:
        """Renew the lease from another thread while this one is busy for longer than it lasts."""
        done = threading.Event()

        def renew() -> None:
            while not done.wait(LEASE_NS / 10e9):
                self.shared.renew_lease(LEASE_NS)

        helper = threading.Thread(target=renew, daemon=True)
        helper.start()
        try:
            yield
        finally:
            done.set()
            helper.join()

    def interim(self, write: Callable[[HeapOutcome], None]) -> None:
        """Hand what there is so far to ``write``, which may take longer than the lease lasts."""
        with self._kept_alive():
            write(self.outcome())

    def outcome(self, residue: tuple[str, ...] = (), warning: str = "") -> HeapOutcome:
        """What was recorded."""
        duration_s = (self._over or time.monotonic()) - self.started
        result = HeapResult(self.tables, self.resolver, self.options.sample_bytes, self.leaks, self.before)
        ended = not self.target.alive()
        meta = Meta(
            command=self.target.command,
            pid=self.target.pid,
            mode="heap",
            unit="bytes",
            started_at_unix_s=self._started_at_unix_s,
            duration_s=duration_s,
            ended_by=self.ended_by or ENDED_BY,
            version=__version__,
            rows=tuple(self._facts(result)),
            notes=(*self.notes, *self._losses(result), *self.modules.notes(), *self.resolver.warnings),
        )
        return HeapOutcome(meta, result, ended, residue, warning, self.failure)

    def _facts(self, result: HeapResult) -> list[tuple[str, str]]:
        rows = [(kind, amount_text(result.amount(kind))) for kind in result.kinds]
        if self.options.sample_bytes:
            rows.append(("recorded", f"one allocation in {size_text(self.options.sample_bytes)}, on average"))
        memory = self.tables.memory()
        share = f", {100 * memory / self._peak_rss:.1f}% of the peak RSS" if self._peak_rss else ""
        rows.append(("own memory", size_text(memory) + share))
        return rows + self.rows

    def _losses(self, result: HeapResult) -> list[str]:
        head, threads = self.tables.head(), self.tables.threads()
        truncated = result.count_truncated()
        counted = [
            (sum(t.unknown_frees for t in threads), "blocks were freed that had not been seen allocated"),
            (
                sum(t.nested for t in threads) + head.nested,
                "calls came inside of others (the allocator's own, or a signal's) and count no second time",
            ),
            (sum(t.replaced for t in threads), "blocks had been freed unseen when their address came again"),
            (sum(t.lost for t in threads) + head.without_thread, "calls were not recorded: no room for them"),
            (head.without_block, "blocks had no room in the table: they count as live though freed"),
            (head.nodes.refused + head.sites.refused, "stacks or sites had no room"),
            (self.tables.given_up, "stacks or sites were not whole when they were read"),
            (truncated, "recorded allocations have a stack that is not whole"),
        ]
        notes = [f"{count:,} {what}" for count, what in counted if count]
        if head.expired:
            notes.append("the lease ran out: the recording ended before pyattach's")
        if head.threads_used > 1:  # never where allocations are sampled: those threads add up each block
            notes.append(
                f"the peak is known to {size_text(65536 * head.threads_used)}: threads add up their bytes "
                "by 64 KiB"
            )
        return notes

    def close(self) -> None:
        """Close what is open here."""
        self.resolver.close()
        if hasattr(self, "shared"):
            self.shared.close()


def amount_text(amount: Amount) -> str:
    """``1.5 MB in 1,234 blocks``."""
    size = f"{amount.size:,.0f} bytes"
    if not amount.size_error:
        return f"{size} in {amount.blocks:,.0f} blocks"
    return (
        f"{size} (standard error {amount.size_error:,.0f}) in "
        f"{amount.blocks:,.0f} blocks ({amount.blocks_error:,.0f})"
    )


def size_text(size: float) -> str:
    """``512 B``, ``64 KiB``, ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.1f}".removesuffix(".0") + f" {unit}"
