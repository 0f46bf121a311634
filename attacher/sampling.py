"""The parts of one session, what is done with them at each look at the target, and what comes of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import PyattachError, UsageError
from ..inject import fault
from ..inject.borrow import ThreadGaveUp
from ..inject.loader import LoadedStub
from . import stale
from .account import CpuAccount
from .clock import choose, spare_signal
from .contract import Options, Progress
from .delivery import DeliveryCost
from .figures import Figures
from .governor import RateGovernor
from .later import import_the_rest
from .modules import ModuleTable
from .naming import make_cache, make_resolver
from .overhead import HandlerCost, own_cpu_lap_s
from .planning import plan_region
from .ptrace import let_go_of_late_stops
from .ring import RingReader
from .samples import SampleStore
from .shared import SharedMemory, SharedRegion
from .stay import Injected, Stay
from .target import TargetProcess

if TYPE_CHECKING:
    from ..render.profile import Profile
    from .procfs import Blocked
    from .verify import Verification
    from .wall import WallClock

_NO_TIME = "of a program that executed another one no lines and no debug files of servers were looked for"
_PROGRESS_S = 0.5
NAMING_S = 0.2
_SWEEP_S = 1.0
_UNSEEN_S = 0.01

_ENDED = (
    "the clock of the whole process was ended, as {}: threads that end within 0.1 s are not in the profile"
)
_WOKE = {
    1: _ENDED.format("its signal had woken a thread (the one that ran blocks it)"),
    2: _ENDED.format("threads have signal stacks that are too small for two signals at a time"),
}
_SETTLED_S = 0.5
"""After this the first work at a new target is done, and what a tick costs is measured beside it."""

_SECOND_LOOK_S = 0.03
"""What lives for so long after it was first seen gets ticks of its own."""

_FEW_THREADS = 32
"""Up to so many threads their CPU time is read at every look, else once a second."""


class Session:
    """The parts of one session and what they share.  ``load`` comes first, ``close`` last.

    ``stay``: how the stub gets in and out; by a borrowed thread, if not given.
    """

    def __init__(self, target: TargetProcess, options: Options, stay: Stay | None = None) -> None:
        self.target, self.options = target, options
        self.notes: list[str] = []
        if stay is None:
            self.notes += stale.clear(target)
            clock, said = choose(options.clock, target.pid, options.rate_hz, jitter=options.jitter)
            self.notes += [said] if said else []
            spare = spare_signal(target.pid, target.maps())
            plan = plan_region(options, len(target.threads()), clock, spare)
            stay = Injected(target, plan, options.loader, clock, options.threads)
        self._stay, self.clock = stay, stay.clock
        self.plan = self._stay.plan
        self.delivery = DeliveryCost(self.clock.name)
        self.cache = make_cache(options.names)
        self._maps_held_ns = time.monotonic_ns()
        """Until when the mappings that the resolver has are known to have been the right ones."""
        self.resolver = make_resolver(target, options.names, self.cache)
        self.resolver.hurried = True
        self.store = SampleStore(self.resolver)
        self.modules = ModuleTable(target, self.resolver, self.plan)
        self.ended_by = self.failure = ""
        """Why the sampling ended, and what failed once it had begun: nothing, if empty."""
        self.unverified: tuple[str, ...] = ()
        """What may remain in the target, where that could not be compared."""
        self._own_sampling_cpu_s: float | None = None
        self._sweep_at = self._progress_at = 0.0
        self._expired_seen = 0
        self._sooner = False
        self._stub: SharedRegion | None = None
        self.wall: WallClock | None = None
        self._asleep_before: dict[int, Blocked] = {}
        if options.mode == "wall":
            from .wall import asleep_now

            self._asleep_before = asleep_now(target.pid)

    def load(self) -> None:
        """Bring the stub in; sampling begins with it.  Raises PyattachError and OSError, with the stub out
        again."""
        self.stub, self.threads, self.started = self._stay.load(self.resolver.maps, self.modules)
        self.started_at_unix_s = time.time() - (time.monotonic() - self.started)
        self._stub = self.stub
        self.shared = SharedMemory(self.stub)
        with contextlib.ExitStack() as undo:
            undo.callback(self._stay.leave, self.shared, lambda: None)
            self._begin()
            undo.pop_all()
        fault.reach("loaded", self.target.pid)

    def _begin(self) -> None:
        """All that reads what the stub writes."""
        self.shared.renew_lease()
        self.reader = RingReader(self.plan, self.shared.read)
        self.cost = HandlerCost(self.shared)
        self.governor = RateGovernor(self.options.max_overhead)
        self.ended = self.started
        self.cpu = CpuAccount(self.target, self.threads, only_known=bool(self.options.threads.patterns))
        if self.options.mode == "wall":
            self.wall = self._wall_clock()
        self.figures = Figures(
            self.options, self.shared, self.threads, self.reader, self.store, self.cpu, self.cost,
            self.delivery, self.governor, self.wall,
        )  # fmt: skip

    def _wall_clock(self) -> WallClock:
        options = self.options
        if not isinstance(self.stub, LoadedStub):
            raise UsageError("wall mode is for processes that are attached to", "attach by pid")
        from .wall import WallClock

        return WallClock(
            self.target, self.threads, self.modules, self.store, rate_hz=options.rate_hz,
            region=self.stub.shared_address, max_depth=options.max_depth, unwind=options.unwind,
            before=self._asleep_before,
        )  # fmt: skip

    def close(self) -> None:
        """Close what is open here; the target is not touched."""
        if self.wall is not None:
            self.wall.close()
        self.resolver.close()
        self.clock.stop()
        self.delivery.abandon()
        if self._stub is not None:
            self.shared.close()
            self._stub.close()

    @property
    def target_ended(self) -> bool:
        """The target has exited, or replaced itself by another program."""
        return self.shared.target_gone or not self.target.alive()

    @property
    def replaced(self) -> bool:
        """The target has ended as the program it was, but its process lives."""
        return self.target_ended and self.target.alive()

    @property
    def _over(self) -> float | None:
        return self.ended if self.target_ended else None

    # Sampling: no ptrace is held meanwhile.

    def sample(self, should_stop: Callable[[], bool], on_progress: Callable[[Progress], None]) -> None:
        """Drain at a steady pace until the end.  What fails meanwhile is the end, and is noted."""
        with self._samples_kept("sampling"):
            self._sample(should_stop, on_progress)
        self.ended = time.monotonic()

    @contextlib.contextmanager
    def _samples_kept(self, what: str) -> Iterator[None]:
        """What fails in ``what`` is noted, and the samples so far are the profile."""
        try:
            yield
        except (OSError, PyattachError) as error:
            self._note_failure(what, error)

    def _note_failure(self, what: str, error: OSError | PyattachError) -> None:
        if not self.target.alive():
            if isinstance(error, (FileNotFoundError, ProcessLookupError)):
                self.ended_by = self.ended_by or "the target ended"
                return
        elif not isinstance(error, PyattachError) and not self.target.memory_is_current():
            self.ended_by = self.ended_by or "the target replaced itself (exec)"
            return
        said = f"{what} failed: {getattr(error, 'what', error)}"
        self.ended_by = self.ended_by or said
        self.failure = self.failure or said
        self.notes.append(said)

    def _sample(self, should_stop: Callable[[], bool], on_progress: Callable[[Progress], None]) -> None:
        import_the_rest()
        self.own_startup_cpu_s = own_cpu_lap_s()
        looking_from = time.monotonic()
        while not self.ended_by:
            self._drain()
            elapsed_s = time.monotonic() - looking_from
            if time.monotonic() >= self._progress_at:
                self._progress_at = time.monotonic() + _PROGRESS_S
                on_progress(self.figures.progress(elapsed_s, self._over))
            self.ended_by = self._reason_to_end(elapsed_s, should_stop)
            if not self.ended_by:
                pause = self.target.pause if self.wall is None else self.wall.pause
                pause(self._pause_s(elapsed_s))
                fault.reach("sampling", self.target.pid)

    def _reason_to_end(self, elapsed_s: float, should_stop: Callable[[], bool]) -> str:
        if self.target_ended:
            return "the target replaced itself (exec)" if self.target.alive() else "the target ended"
        if should_stop():
            return "stopped by the user"
        duration_s = self.options.duration_s
        return "duration reached" if duration_s is not None and elapsed_s >= duration_s else ""

    def _pause_s(self, elapsed_s: float) -> float:
        duration_s = self.options.duration_s
        drain_s = self._stay.drain_s(elapsed_s)
        # Threads that were seen once are looked at again soon, but looks must not come twice as often for it.
        self._sooner = self.threads.waiting and not self._sooner
        if self._sooner:
            drain_s = min(drain_s, _SECOND_LOOK_S)
        return drain_s if duration_s is None else max(0.0, min(drain_s, duration_s - elapsed_s))

    def _drain(self) -> None:
        let_go_of_late_stops()
        if self.shared.renew_lease():
            self.notes.append("pyattach was held up for so long that the sampling paused")
        now = time.monotonic()
        sweep = now >= self._sweep_at
        if sweep:
            self._sweep_at = now + _SWEEP_S
        if sweep or self.threads.count <= _FEW_THREADS:
            self.cpu.measure(ended=self.target_ended, whole=False)
        posted = self.threads.refresh(self.shared.slots, thorough=sweep, patient=self._strays_met())
        if self.shared.control.expired != self._expired_seen:
            self._expired_seen = self.shared.control.expired
            posted = self.threads.rearm_expired(self.shared.slots) or posted
        if posted:
            self.shared.posted(self.threads.slots_used)
        self._follow_maps()
        self._read_ring()
        if sweep:
            # Names now, so that little is left to do at the end, but not for so long that the lease runs out.
            self.resolver.refresh_jit()
            self.store.update_totals(NAMING_S)
            if self.governor.limited or now - self.started > _SETTLED_S:
                self.delivery.look()
            if self.governor.limited and self.governor.lowers(self.figures.overhead(), self.cpu.sampled_s):
                self.shared.set_rate_factor(self.governor.factor)
                self.clock.slow_down(self.governor.factor)
            if self._unheard():
                self._arm_by_borrowing()

    def _strays_met(self) -> bool:
        """Whether the process's own clock samples threads that have no ticks of their own (yet)."""
        control = self.shared.control
        if control.stray and control.stray_woke:
            control.stray = 0
            self.notes.append(_WOKE.get(control.stray_woke, _WOKE[1]))
        return bool(control.stray)

    def _unheard(self) -> bool:
        """Whether threads run that no tick meets: none came by that could begin the process's clock, or arm
        them."""
        control = self.shared.control
        grown_s = self.cpu.unseen_grown_s(met=bool(control.stray))
        if control.stray_timer_plus_1:
            return False
        if control.stray:
            self.shared.posted(self.threads.slots_used)
        return bool(control.stray and grown_s > _UNSEEN_S) or self.threads.unarmed_and_running(
            self.shared.slots
        )

    def _follow_maps(self) -> None:
        """Libraries that came and went: for the unwinder in the target, and for names here."""
        began_ns = time.monotonic_ns()
        maps = self.target.maps()
        if maps == self.resolver.maps:
            self._maps_held_ns = began_ns
            return
        if not self.target.memory_is_current():
            return  # another program's maps name nothing that was sampled
        self.store.place()  # what came before is of the older mappings
        seen_ns = time.monotonic_ns()
        self.resolver.update(maps, (self._maps_held_ns, seen_ns))
        self._maps_held_ns = began_ns
        if self.modules.refresh(maps, self.shared.bytes, self.shared.control.modules_seq):
            self.shared.modules_moved()

    def _read_ring(self, *, final: bool = False) -> None:
        samples = self.reader.drain(final=final)
        self.shared.set_tail(self.reader.tail)
        clocks_ns = [self.shared.our_ns(sample.clock_ns) for sample in samples]
        if final:  # ticks come until the target is told to stop: a moment after the end was seen here
            latest_ns = max(clocks_ns, default=0)
            self.ended = max(self.ended, min(latest_ns / 1e9, time.monotonic()))
        self.store.add(((s.tid, s.end, s.weight, s.frames) for s in samples), clocks_ns)

    def _arm_by_borrowing(self) -> None:
        """A thread runs that no tick of another one could arm: borrow one for it."""
        try:
            self._stay.arm()
        except (PyattachError, OSError) as error:  # OSError: it has just executed another program
            self.notes.append(f"some threads were found late: {error}")
            # The bootstrap has deleted the timer: the next tick begins another.  After any other error the
            # thread may come to begin one yet, whose number must stay there.
            if isinstance(error, ThreadGaveUp):
                self.shared.control.stray_timer_plus_1 = 0

    # Leaving.

    def detach(self) -> None:
        """Stop the ticks, take all samples, unload.  The target may go at any point; what can't be
        undone is said in the notes, and found by ``verify``."""
        with self._samples_kept("measuring CPU time"):
            self.cpu.measure(ended=self.target_ended or not self.target.memory_is_current())
        try:
            if not self.target_ended:
                self._stay.leave(self.shared, lambda: self._read_ring(final=True))
        except ProcessLookupError:
            self.ended_by = self.ended_by or "the target ended"
        except (PyattachError, OSError) as error:
            if self.target.memory_is_current():  # else execve has taken all away
                said = f"detach: {getattr(error, 'what', error)}"
                self.notes.append(said)
                self.unverified = (said,)
        with self._samples_kept("reading the last samples"):
            if self.target_ended:
                self.shared.target_gone = True
            if self.shared.target_gone or not self.reader.finished:
                self._read_ring(final=True)
        self._own_sampling_cpu_s = own_cpu_lap_s() + self.delivery.child_cpu_s

    def verify(self) -> Verification | None:
        """What of ours remains in the target; None where it has ended, or can't be looked into any more:
        ``unverified`` has then what may remain."""
        verified = None
        with self._samples_kept("comparing the target with before"):
            if not self.target_ended and self.target.memory_is_current():
                verified = self._stay.verify()
        if verified is not None or self.target_ended or not self.target.memory_is_current():
            self.unverified = ()
        return verified

    # The result.

    def profile(self) -> Profile:
        """The profile with everything that was measured about it."""
        import dataclasses

        from ..render.profile import Meta, Profile

        with self._samples_kept("naming functions"):
            self._complete_names()
        if self.cpu.speaks:
            self.delivery.finish()
        meta = Meta(
            command=self.target.command,
            pid=self.target.pid,
            mode=self.options.mode,
            rate_asked_hz=self.options.rate_hz,
            started_at_unix_s=self.started_at_unix_s,
            duration_s=self.ended - self.started,
            own_startup_cpu_s=self.own_startup_cpu_s,
            own_sampling_cpu_s=self._own_sampling_cpu_s,
            clock=self.clock.name,
            held_us=self.stub.held_ns[0] / 1e3 if self.stub.held_ns else None,
            ended_by=self.ended_by,
            version=__version__,
            notes=tuple(self._all_notes()),
        )
        meta = self.figures.complete(meta, self._over)
        weights = self.store.weights()
        meta = dataclasses.replace(meta, unresolved=self.store.unresolved())
        timeline = self.store.timeline(round(self.started * 1e9))
        own_cpu_lap_s()  # names are no part of the next session's start
        return Profile(meta, dict(self.threads.names), weights, timeline)

    def _complete_names(self) -> None:
        """What takes its time: the target has been left.  But not where it has gone on as another program,
        which is to be sampled, too."""
        from ..symbols.completing import complete

        names = self.options.names
        if self.replaced and self.options.follow_exec and (names.lines or names.servers):
            names = names._replace(lines=False, servers=())
            self.notes.append(_NO_TIME)
        self.store.place()
        self.resolver.refresh_jit()
        if self.resolver.take_time():
            self.store.forget_names()
        self.store.name_stacks()  # all, so that it is known which can't be found
        self.notes += complete(self.resolver, names, self.cache, self.options.say)
        self.store.forget_names()

    def _all_notes(self) -> list[str]:
        notes = list(dict.fromkeys(self.notes)) + self._stay.notes()
        return notes + self.modules.notes() + self.figures.notes() + list(self.resolver.warnings)
