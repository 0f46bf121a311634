"""The heap of a process that is running already: hooks in, record, hooks out."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

from ..errors import PyattachError
from ..inject import fault
from ..inject.chance import random_bits
from ..inject.entries import Room
from ..inject.heap_layout import FUNCTIONS, HEAP_ATTACHED, Heap, Patch, PatchState
from ..inject.image import heap_image
from ..inject.loader import LoadedStub, Loading
from ..inject.region import PAGE
from . import stale
from .heap_entries import entries_that_lead, entry_tables, has_several_changed, ranges_of
from .heap_hooks import Hooks, note_protections, patch_table, sampled_guarded, still_lead, wait_until_left
from .heap_session import (
    LEASE_NS,
    HeapOptions,
    HeapOutcome,
    HeapSession,
    code_bytes,
    heap_plan,
)
from .hold import hold_any
from .leaving import again, call, call_stop, take_out
from .naming import make_resolver
from .ptrace import wait_for_late_stops
from .refusals import check_seccomp
from .target import TargetProcess
from .tries import begun
from .verify import Snapshot, Verification, remains, snapshot


def attach_heap(
    pid: int,
    options: HeapOptions,
    should_stop: Callable[[], bool],
    on_look: Callable[[HeapSession], None] = lambda _session: None,
) -> HeapOutcome:
    """Record what process ``pid`` allocates until it ends, the time is over or ``should_stop``;
    ``on_look`` is called many times a second.

    Raises PyattachError before anything was recorded; the target is then as it was.
    """
    with heap_attached(pid, options) as attached:

        def look() -> None:
            attached.hook_new_modules()
            on_look(attached.session)

        attached.session.record(should_stop, look)
    return attached.outcome


@contextlib.contextmanager
def heap_attached(pid: int, options: HeapOptions) -> Iterator[Attached]:
    """With the hooks in process ``pid``; at the end leaks are looked for, the hooks are taken out, and what
    came of it is the ``outcome``.  Somebody has to look meanwhile (``HeapSession.look``).

    Raises PyattachError where they can't be brought in; the target is then as it was.
    """
    with contextlib.ExitStack() as undo:
        undo.callback(wait_for_late_stops)
        attached, before = undo.enter_context(_begun(pid, options))
        target = attached.target
        residue: list[str] = []
        verified: tuple[Verification, ...] = ()
        try:
            attached.hook_entries()
            attached.hook_new_modules(first=True)
            fault.reach("hooked", pid)
            yield attached
            attached.session.look_for_leaks()
        finally:
            residue += attached.leave()
        with attached.session.kept("comparing the target with before"):
            if attached.is_current():
                after = snapshot(target, attached.functions)
                residue += remains(before, after, ())
                verified = (Verification(pid, before, after, tuple(residue)),)
        outcome = attached.session.outcome(tuple(residue))
        attached.outcome = dataclasses.replace(outcome, verified=verified)


def _begun(pid: int, options: HeapOptions) -> contextlib.AbstractContextManager[tuple[Attached, Snapshot]]:
    """With the stub in, to which nothing leads yet; and what the target was like before."""

    def check(pid: int) -> None:
        if not options.allow_seccomp:
            check_seccomp(pid)

    def begin(target: TargetProcess, undo: contextlib.ExitStack) -> tuple[Attached, Snapshot]:
        attached = Attached(target, options)
        undo.callback(attached.close)
        before = snapshot(target, attached.functions)
        if options.before:
            attached.session.look_at_what_is_there()
        attached.begin()
        return attached, before

    return begun(pid, check, begin)


class Attached:
    """The stub in one target, with its hooks."""

    outcome: HeapOutcome
    """What came of it; there when it is over."""

    def __init__(self, target: TargetProcess, options: HeapOptions) -> None:
        self.target = target
        notes = stale.clear(target)  # before it is looked which words lead where
        resolver = make_resolver(target, options.names)
        try:
            self._hooks = Hooks(target, resolver, options.entries)
            self._chosen = self._hooks.choose_entries()
        except BaseException:
            resolver.close()
            raise
        self.plan = heap_plan(
            options, heap_flags=HEAP_ATTACHED, real=self._hooks.real, code_bytes=code_bytes(resolver.maps)
        )
        self.session = HeapSession(target, options, self.plan, resolver)
        self.session.notes += notes
        self._stub: LoadedStub | None = None
        self._maps = self.session.resolver.maps
        self._numbers: dict[int, int] = {}

    def begin(self) -> None:
        """Bring the stub in; nothing leads to it yet.  Raises InjectionFailed and ProcessLookupError: it is
        not there then."""
        again(self._load)
        stub = self.stub
        self.session.begin(stub)
        heap = self.plan.heap()
        self._head = Heap.from_buffer(stub.region, self.plan.heap_offset)
        self._patches = patch_table(stub.region, self.plan.heap_offset + heap.patches_offset)
        self._entries, self._landings = entry_tables(
            stub.region,
            self.plan.heap_offset + heap.entries_offset,
            self.plan.heap_offset + heap.landings_offset,
        )
        self._hook_at = {name: stub.base + stub.image.entries[f"pa_hook_{name}"] for name in FUNCTIONS}

    def _load(self) -> None:
        control = self.plan.control(random_bits(64), time.monotonic_ns() + LEASE_NS)
        stale.sign(control)
        modules = self.session.modules.first(self.session.resolver.maps)
        more = ((self.plan.heap_offset, bytes(self.plan.heap())),)
        loading = Loading(
            self.target,
            self.plan,
            None,
            control,
            b"",
            modules,
            by_dlopen=False,
            image=heap_image(),
            more=more,
            shared_at=self._far_away() if self._chosen else 0,
        )
        with hold_any(self.target) as held:
            self._stub = loading.run(held)

    def _far_away(self) -> int:
        """Where the shared memory, which is large, takes no room that landings may need."""
        low, high = max(Room(self.target.maps(), "").gaps, key=lambda gap: gap[1] - gap[0])
        return (low + high - self.plan.size) // 2 & -PAGE

    def is_current(self) -> bool:
        """Whether the target is there still, and the same program."""
        return self.target.alive() and self.target.memory_is_current()

    @property
    def stub(self) -> LoadedStub:
        """The stub, once it is there."""
        assert self._stub is not None
        return self._stub

    @property
    def functions(self) -> tuple[int, ...]:
        """Where the functions begin whose code is to be changed."""
        return tuple(self._chosen)

    def hook_entries(self) -> None:
        """Have functions lead to their hooks themselves that are called otherwise than by slots."""
        if not self._chosen:
            return
        stub, own = self.stub, self._hooks.entries
        hooks = {name: stub.base + stub.image.entries[f"pa_entry_{name}"] for name in FUNCTIONS}
        entries, landings = own.plan(self._chosen, hooks, self.session.resolver)
        for i, landing in enumerate(landings):
            self._landings[i] = landing
        for i, entry in enumerate(entries):
            self._entries[i] = entry
        self._head.landing_count, self._head.entry_count = len(landings), len(entries)
        if entries:
            call(self.target, stub, "pa_arm")
            fault.reach("entered", self.target.pid)
            own.note([entry.state for entry in self._entries[: len(entries)]])
            if any(map(has_several_changed, self._entries[: len(entries)])):
                self.session.notes.append(
                    "pages of the allocator's code are listed as mappings of their own now"
                )
        self.session.notes += own.notes()

    def hook_new_modules(self, *, first: bool = False) -> None:
        """Redirect the slots of modules that were not there before, or not ready."""
        maps = self.target.maps()
        if not first and maps == self._maps and not self._hooks.is_due():
            return
        self._maps = maps
        patches = self._hooks.new_patches(self._hook_at)
        if not patches:
            return
        written = self._write(patches)
        if len(written) < len(patches):
            self.session.notes.append(f"{len(patches) - len(written)} slots had no room and are not hooked")
        if not first:
            self.session.notes.append(
                f"{len(patches)} slots came with libraries loaded meanwhile: hooked soon after"
            )
        note_protections(self._given(), self.target.maps())
        try:
            call(self.target, self.stub, "pa_arm")
        except ProcessLookupError:  # its end is seen at the next look
            return
        except PyattachError as error:
            if first:
                raise
            self.session.notes.append(f"libraries loaded meanwhile are not hooked: {error}")
        self._hooks.look_again(patch.address for patch in written if patch.state != PatchState.MADE)

    def _write(self, patches: list[Patch]) -> list[Patch]:
        """Into the stub's table, as far as there is room: a word that has a place there keeps it."""
        out = []
        for patch in patches:
            number = self._numbers.setdefault(patch.address, len(self._numbers))
            if number >= len(self._patches):
                del self._numbers[patch.address]
                continue
            self._patches[number] = patch
            out.append(self._patches[number])
        self._head.patch_count = len(self._numbers)
        return out

    def _given(self) -> list[Patch]:
        """All patches there are, as the stub's table has them.  How many is not the target's to say."""
        return self._patches[: len(self._numbers)]

    def leave(self) -> list[str]:
        """Put every word back and take the stub out, unless some thread may still come there: what stays.
        Raises neither OSError nor anything of pyattach's own: what went wrong is in the answer, or noted."""
        session = self.session
        session.shared.stop()  # whatever comes: from here on the hooks pass on
        with session.kept("following the target's libraries"):
            session.follow_maps()
        made = self._count(PatchState.MADE)
        session.rows += self._hooks.facts(made)
        refused = self._count(PatchState.REFUSED)
        if refused:
            session.notes.append(f"{refused} slots could not be redirected: they held something else by then")
        if not self.is_current():
            return []
        try:
            note_protections(self._given(), self.target.maps())
            call_stop(self.target, self.stub)
            left = self._take_out()
        except ProcessLookupError:
            return []
        except (OSError, PyattachError) as error:
            if not self.is_current():  # it has just ended, or executed another program
                return []
            left = [f"the stub stays mapped: {error}"]
        held = ", ".join(f"{ns / 1e3:.0f}" for ns in self.stub.held_ns)
        session.notes.append(f"one thread at a time was held, for {held} us")
        return left

    def _take_out(self) -> list[str]:
        residue = []
        entries = self._entries[: self._head.entry_count]
        wrong = still_lead(self.target, self._given())
        if wrong:
            residue.append(f"{wrong} slots are not as before: the target has changed them")
        leading = entries_that_lead(self.target, entries)
        if leading:
            residue.append(f"functions of the allocator are not as before: {'; '.join(leading)}")
        ranges = ranges_of(entries, self._landings[: self._head.landing_count])
        if not wait_until_left(self.target, self.stub, self._in_a_hook, ranges):
            return [*residue, "a thread has not left a hook: the stub stays mapped, and passes on"]
        why = ""
        if self._numbers:  # else no hook's address was ever to be had
            why = self._hooks.may_be_held(self._hook_at, self.stub.image_range)
        if why or wrong or leading:
            why = why or "slots lead there still"
            residue.append(f"the hooks' code stays mapped, and passes on: {why}")
            call(self.target, self.stub, "pa_forget")
            if not wait_until_left(self.target, self.stub, self._in_a_hook, ranges):
                return [*residue, "a thread has not left a hook: the stub's memory stays mapped, too"]
            call(self.target, self.stub, "pa_leave")
            return residue
        take_out(self.target, self.stub)
        return residue

    def _count(self, state: PatchState) -> int:
        return sum(patch.state == state for patch in self._given())

    def _in_a_hook(self) -> bool:
        threads = self.session.tables.threads()
        return any(thread.guard for thread in threads) or sampled_guarded(self.target, self._head)

    def close(self) -> None:
        """Close what is open here."""
        if self._stub is not None:
            del self._head, self._patches, self._entries, self._landings
        self.session.close()
        if self._stub is not None:
            self._stub.close()
