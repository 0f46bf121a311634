"""What goes into a session and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..errors import ExitCode
from ..inject.layout import Unwind
from ..symbols.name_options import NameOptions
from .choosing import ALL_THREADS, ThreadChoice

if TYPE_CHECKING:
    import contextlib

    from ..render.profile import Profile
    from .samples import SampleStore
    from .verify import Verification


def unheard(_line: str) -> None:
    """Nobody listens.  A function with a name: options go to other processes."""


def unasked() -> None:
    """Nobody wants to be told."""


class Options(NamedTuple):
    """What to sample and for how long; ``duration_s`` None: until told to stop.

    ``max_overhead``: sampling's share of CPU time (0.01 is 1%) above which the rate is lowered.
    ``mode``: "cpu" (threads that run) or "wall" (also where they wait, in real time).
    ``loader``: "auto" (dlopen where that is shown to be safe and a processor is free, else mapping),
    "dlopen", or "map".
    ``clock``: "auto", "timer" or "perf" (``attacher.clock``).
    ``names``: how code is named; ``say`` is given lines for the user while that takes long.
    """

    rate_hz: float = 99.0
    duration_s: float | None = None
    max_depth: int = 512
    unwind: Unwind = Unwind.AUTO
    loader: str = "auto"
    allow_seccomp: bool = False
    clock: str = "auto"
    jitter: bool = True
    threads: ThreadChoice = ALL_THREADS
    follow_exec: bool = True
    subprocesses: bool = False
    max_overhead: float | None = None
    mode: str = "cpu"
    names: NameOptions = NameOptions()
    say: Callable[[str], None] = unheard


class Progress(NamedTuple):
    """How the session stands, told about twice a second."""

    store: SampleStore
    elapsed_s: float
    cpu_s: float
    ticks: int
    threads: int
    dropped: int
    overhead_share: float | None
    rate_reached_hz: float | None
    note: str = ""
    """What the user is to know while nothing is sampled."""
    before_s: float = 0.0
    """Of ``elapsed_s``: under programs that the process was before, which are not in ``store``."""


class Outcome(NamedTuple):
    """A finished session: the profile, and what of ours remained in the target (nothing, if empty).
    ``replaced``: the target ended by executing another program."""

    profile: Profile
    residue: tuple[str, ...]
    target_ended: bool
    replaced: bool = False
    warning: str = ""
    """What the user must be told of, whatever else is said; it is one of the profile's notes, too."""
    verified: tuple[Verification, ...] = ()
    """The targets before and after, those that have not ended; a session each."""
    failure: str = ""
    """What failed once the sampling had begun; it is one of the profile's notes, too."""

    @property
    def exit_code(self) -> ExitCode:
        if self.residue:
            return ExitCode.DETACH_INCOMPLETE
        if self.failure:
            return ExitCode.ERROR
        if not self.profile.total:
            return ExitCode.TARGET_DIED if self.target_ended else ExitCode.NO_SAMPLES
        return ExitCode.OK


class Beside(Protocol):
    """What else is done with the target while its CPU time is sampled."""

    ended_by: str
    """Why the sampling ended."""

    def attached(self) -> contextlib.AbstractContextManager[object]:
        """Entered before the sampler comes in, left when it is out.  Raises PyattachError."""

    def look(self) -> None:
        """Called at each look at the target."""
