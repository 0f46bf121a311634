"""A program that pyattach starts, with the heap profiler preloaded: from its first allocation to its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from .. import __version__
from ..inject.heap_layout import FUNCTIONS, HEAP_WAITS, AtExit, Heap
from ..inject.heap_region import HeapPlan, cache_lines
from ..inject.image import heap_preload_image
from ..inject.layout import State
from ..inject.preload import PreloadedStub
from ..render.profile import Meta
from ..symbols.elf import ElfImage
from .child import ChildProcess
from .contract import Options
from .heap_session import LEASE_NS, TARGET_ENDED, HeapOptions, HeapOutcome, HeapSession, code_bytes, heap_plan
from .program import Program
from .run import why_not_reached
from .shared import SharedMemory

_OWN_MALLOC = "the program defines {} itself: calls of its own function are not recorded"


def heap_stub(options: HeapOptions) -> PreloadedStub:
    """The file the program is started with.  Raises OSError."""
    plan = _plan(options)
    stub = PreloadedStub.create(plan, heap_preload_image())
    heap = bytes(plan.heap())
    stub.region[plan.heap_offset : plan.heap_offset + len(heap)] = heap
    return stub


def _plan(options: HeapOptions) -> HeapPlan:
    return heap_plan(options, heap_flags=HEAP_WAITS if options.leaks else 0)


def profile_heap_of_child(
    child: ChildProcess,
    program: Program,
    stub: PreloadedStub,
    options: HeapOptions,
    should_stop: Callable[[], bool],
    on_look: Callable[[HeapSession], None] = lambda _session: None,
) -> HeapOutcome:
    """Record until the program ends or is told to stop; it goes on after that, and its allocations are
    passed on.  Raises PyattachError."""
    begin_unix_s, begin = time.time(), time.monotonic()
    sampler = Options(allow_seccomp=options.allow_seccomp)
    why_not = why_not_reached(child, program, stub, sampler, should_stop)
    if why_not:
        while child.alive() and not should_stop():
            child.pause(0.02)
        meta = Meta(
            command=child.command,
            pid=child.pid,
            mode="heap",
            unit="bytes",
            started_at_unix_s=begin_unix_s,
            duration_s=time.monotonic() - begin,
            ended_by="stopped by the user" if child.alive() else "the target ended",
            version=__version__,
            notes=(why_not,),
        )
        return HeapOutcome(meta, None, not child.alive(), warning=why_not)
    with contextlib.ExitStack() as undo:
        stub.is_there = lambda: not child.replaced
        session = HeapSession(child, options, _plan(options))
        undo.callback(session.close)
        _let_it_begin(session, stub)
        warning = _own_allocator(session)
        session.notes += [warning] if warning else []
        at_exit = _AtExit(session)
        session.record(lambda: should_stop() or child.replaced, lambda: on_look(session), at_exit.look)
        at_exit.finish()
        session.shared.stop()
        if child.replaced:
            warning = (
                f"the program replaced itself by {child.exe_path() or 'another one'} (exec): run that one"
            )
            session.notes.append(warning)
        return session.outcome(warning=warning)


class _AtExit:
    """A program that calls exit() waits there until leaks have been looked for."""

    def __init__(self, session: HeapSession) -> None:
        self._session = session
        self._head = Heap.from_buffer(session.stub.region, session.plan.heap_offset)
        self._waited = False

    def look(self) -> None:
        """Look for leaks if the program waits for that."""
        if self._head.at_exit == AtExit.WAITS:
            self._waited = True
            try:
                self._session.look_for_leaks()
            finally:
                self._head.at_exit = AtExit.GOES_ON

    def finish(self) -> None:
        """The recording is over: look at a program that goes on, or say why that could not be."""
        session = self._session
        if session.options.leaks and not self._waited:
            session.look_for_leaks()
            if session.leaks is None and session.ended_by == TARGET_ENDED:
                session.notes.append("leaks were not looked for: the program did not end by exit()")
        del self._head


def _let_it_begin(session: HeapSession, stub: PreloadedStub) -> None:
    shared = SharedMemory(stub)
    try:
        shared.renew_lease(LEASE_NS)
        shared.control.cache_lines = cache_lines(
            code_bytes(session.resolver.maps), session.options.sample_bytes
        )
        if session.modules.refresh(session.resolver.maps, shared.bytes, shared.control.modules_seq):
            shared.modules_moved()
        if shared.control.state == State.RUN:
            session.notes.append(
                "the program began before its unwind tables were known: first stacks may be cut"
            )
        shared.control.state = State.RUN
    finally:
        shared.close()
    session.begin(stub)


def _own_allocator(session: HeapSession) -> str:
    """Functions of the allocator that the executable defines come before ours in the order of search."""
    exe = session.target.exe_path()
    for mapping in session.resolver.maps:
        image: ElfImage | None = session.resolver.image(mapping) if mapping.path == exe else None
        if image is not None:
            own = [name for name in FUNCTIONS if image.dynamic_symbol(name.encode()) is not None]
            return _OWN_MALLOC.format(", ".join(own)) if own else ""
    return ""
