"""Modules that come, go, and are not ready when they are seen: hooked once the dynamic linker is done."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from heap_support import Site, sites_of, words
from support import Target, build_target
from support import spawn as start
from test_heap_attach import attached

from pyattach.attacher import heap_attach, heap_hooks
from pyattach.attacher.heap_attach import Attached
from pyattach.attacher.heap_session import HeapOptions
from pyattach.attacher.target import TargetProcess
from pyattach.inject.got import Slot, loaded_modules, slots
from pyattach.inject.heap_layout import Patch, PatchState
from pyattach.symbols.maps import Maps

pytestmark = pytest.mark.usefixtures("may_trace")

NOW = ("-Wl,-z,now", "-Wl,-z,relro")
WRITABLE = 3
BLOCKS = Site(1009, 1009 * 101, 1009, 1009 * 101)


def say(target: Target, command: str) -> str:
    target.tell(command)
    return target.expect("done")


def slot_of_malloc(target: Target, file: str = "heap_modules") -> Slot:
    with TargetProcess(target.pid) as process:
        (module,) = [m for m in loaded_modules(process.maps(), process.read) if file in m.path]
        (slot,) = slots(module, frozenset({"malloc"}), process.read)
        return slot


def put(target: Target, slot: Slot, value: int) -> None:
    with TargetProcess(target.pid) as process:
        process.write(slot.address, value.to_bytes(8, "little"))


def recorded(outcome: heap_attach.HeapOutcome, name: str) -> Site | None:
    assert outcome.result is not None
    assert outcome.residue == ()
    return sites_of(outcome.result, {name}).get(name)


@pytest.mark.parametrize("noted", [True, False])
def test_a_page_that_was_writable_when_it_was_looked_at(
    monkeypatch: pytest.MonkeyPatch, *, noted: bool
) -> None:
    """The stub makes it writable in any case, and it is given again what it had just before."""
    as_it_is = heap_hooks._patch

    def outdated(slot: Slot, hook: int, maps: Maps) -> Patch:
        patch = as_it_is(slot, hook, maps)
        patch.protection = WRITABLE
        return patch

    def script(target: Target) -> Iterator[bool]:
        say(target, "go")
        yield False

    monkeypatch.setattr(heap_hooks, "_patch", outdated)
    if not noted:
        monkeypatch.setattr(heap_attach, "note_protections", lambda _patches, _maps: None)
    with start(build_target("heap_modules", *NOW)) as target:
        before = words(target.pid)
        assert before[slot_of_malloc(target).address][1] == "r--p"
        outcome = attached(target, script)
        if noted:
            assert recorded(outcome, "make") == BLOCKS
            assert words(target.pid) == before
        else:
            assert {at: value for at, (value, _) in words(target.pid).items()} == {
                at: value for at, (value, _) in before.items()
            }
        target.finish()


def test_a_page_that_was_made_read_only_after_its_words_were_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are put back, and it stays so."""
    monkeypatch.setattr(heap_hooks, "_READY_S", 0.0)

    def script(target: Target) -> Iterator[bool]:
        say(target, "go")
        say(target, "close")
        yield False

    with start(build_target("heap_modules", *NOW)) as target:
        before = words(target.pid)
        say(target, "open")
        outcome = attached(target, script)
        assert recorded(outcome, "make") == BLOCKS
        assert words(target.pid) == before
        target.finish()


def test_a_page_that_is_to_be_made_read_only_is_left_alone_until_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heap_hooks, "_READY_S", float("inf"))

    def script(target: Target) -> Iterator[bool]:
        assert words(target.pid)[slot.address] == (slot.value, "rw-p")
        say(target, "close")
        yield False
        assert words(target.pid)[slot.address][0] != slot.value
        say(target, "go")
        yield False

    with start(build_target("heap_modules", *NOW)) as target:
        before, slot = words(target.pid), slot_of_malloc(target)
        say(target, "open")
        assert recorded(attached(target, script), "make") == BLOCKS
        assert words(target.pid) == before
        target.finish()


@pytest.mark.parametrize("relocated", [False, True])
def test_a_slot_that_is_not_relocated_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch, *, relocated: bool
) -> None:
    """It holds nothing, or where in the file the call is bound, without what is to be added."""
    monkeypatch.setattr(heap_hooks, "_AGAIN_S", 0.0)

    def script(target: Target) -> Iterator[bool]:
        put(target, slot, slot.value)
        yield False
        say(target, "go")
        yield False

    with start(build_target("heap_modules", *NOW)) as target:
        before, slot = words(target.pid), slot_of_malloc(target)
        put(target, slot, 0x1036 if relocated else 0)
        assert recorded(attached(target, script), "make") == BLOCKS
        assert words(target.pid) == before
        target.finish()


def test_a_library_that_is_relocated_in_part_is_left_alone_until_it_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else it would be seen to allocate, and not to free."""
    monkeypatch.setattr(heap_hooks, "_AGAIN_S", 0.0)
    monkeypatch.setattr(heap_hooks, "_READY_S", float("inf"))
    library = build_target("lib_heap_late", "-shared", "-fPIC", *NOW)

    def script(target: Target) -> Iterator[bool]:
        before = words(target.pid)
        say(target, "load")
        loaded = {at: value for at, value in words(target.pid).items() if at not in before}
        assert len(loaded) == 2, "malloc and free"
        slot = slot_of_malloc(target, library.name)
        put(target, slot, 0)
        yield False
        assert words(target.pid).items() >= {at: v for at, v in loaded.items() if at != slot.address}.items()
        put(target, slot, slot.value)
        yield False
        assert not words(target.pid).items() & loaded.items()
        say(target, "late")
        yield False

    with start(build_target("heap_modules", *NOW), library) as target:
        assert recorded(attached(target, script), "make_late") == BLOCKS
        target.finish()


def test_a_slot_that_was_changed_meanwhile_is_redirected_at_the_next_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when its first call binds it just then; it has one place in the stub's table."""
    monkeypatch.setattr(heap_hooks, "_AGAIN_S", 0.0)
    as_it_is, seen = heap_hooks._patch, set[int]()

    def outdated(slot: Slot, hook: int, maps: Maps) -> Patch:
        patch = as_it_is(slot, hook, maps)
        patch.before ^= slot.address not in seen
        seen.add(slot.address)
        return patch

    monkeypatch.setattr(heap_hooks, "_patch", outdated)
    with start(build_target("heap_modules", *NOW)) as target:

        def look(attach: Attached) -> list[PatchState]:
            attach.hook_new_modules()
            return [PatchState(patch.state) for patch in attach._given()]

        before = words(target.pid)
        with heap_attach.heap_attached(target.pid, HeapOptions()) as attach:
            states = [PatchState(patch.state) for patch in attach._given()]
            assert set(states) == {PatchState.REFUSED}
            assert look(attach) == [PatchState.MADE] * len(states)
            say(target, "go")
        assert recorded(attach.outcome, "make") == BLOCKS
        assert words(target.pid) == before
        target.finish()


def test_a_library_that_goes_and_comes_again() -> None:
    library = build_target("lib_heap_late", "-shared", "-fPIC", *NOW)
    places = []

    def script(target: Target) -> Iterator[bool]:
        for _ in range(2):
            places.append(say(target, "load"))
            yield False
            say(target, "late")
            say(target, "unload")
            yield False

    with start(build_target("heap_modules", *NOW), library) as target:
        outcome = attached(target, script)
        assert len(set(places)) == 1, "it is at the same address"
        found = recorded(outcome, "make_late")
        assert found is not None
        assert found.allocs == 2 * 1009
        target.finish()


def test_the_number_of_patches_is_not_the_targets_to_say() -> None:
    """It lies in memory that the target can write."""
    with start(build_target("heap_modules", *NOW)) as target:
        before = words(target.pid)
        with heap_attach.heap_attached(target.pid, HeapOptions()) as attach:
            count = len(attach._given())
            attach._head.patch_count = (1 << 32) - 1
            assert attach._count(PatchState.MADE) == count
            say(target, "go")
        assert recorded(attach.outcome, "make") == BLOCKS
        assert words(target.pid) == before
        target.finish()
