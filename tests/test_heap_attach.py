"""Attaching to a heap: exact from the first moment, and as before when it is over."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from heap_support import Books, Site, blocks_of, sites_of, words
from support import Target, build_target, skip_unless_ci
from support import spawn as start
from test_attach_run import MARK, maps_text, pyattach
from test_heap_exact import FUNCTIONS

from pyattach.attacher import heap_attach
from pyattach.attacher.heap_attach import attach_heap
from pyattach.attacher.heap_hooks import wait_until_left
from pyattach.attacher.heap_session import HeapOptions, HeapOutcome
from pyattach.attacher.target import TargetProcess
from pyattach.errors import AlreadyTraced, InjectionFailed
from pyattach.inject.borrow import ThreadGaveUp
from pyattach.inject.loader import LoadedStub, Loading, MappedStub
from pyattach.symbols.name_options import NameOptions

Script = Callable[[Target], Generator[bool, None, None]]
pytestmark = pytest.mark.usefixtures("may_trace")


def attached(target: Target, script: Script, options: HeapOptions | None = None) -> HeapOutcome:
    """Attach, go on with ``script`` at each look, and detach when it ends."""
    steps = script(target)
    return attach_heap(target.pid, options or HeapOptions(), lambda: next(steps, True))


def one_round(target: Target) -> Iterator[bool]:
    target.tell("go")
    target.expect("done")
    yield False


@pytest.mark.parametrize("next_run", ["heap", "cpu"])
def test_what_a_killed_one_has_left_is_taken_out(tmp_path: Path, next_run: str) -> None:
    """The words lead where they did before, and nothing of it is mapped."""

    def redirected() -> bool:
        with contextlib.suppress(AlreadyTraced):
            return words(target.pid) != before
        return False

    with start([str(build_target("heap_cycles", "-Wl,-z,now"))]) as target:
        before = words(target.pid)
        with pyattach("heap", target.pid, "-o", tmp_path / "o.svg") as run:
            run.wait_until("calls are redirected", redirected)
            run.process.kill()
            run.process.wait()
        assert words(target.pid) != before
        command = ["heap", target.pid] if next_run == "heap" else [target.pid]
        with pyattach(*command, "-d", "300ms", "-v", "-o", tmp_path / "o.txt") as run:
            run.finish(0)
        assert "the hooks of a heap profiler that was killed were taken out" in run.err, run.err
        assert words(target.pid) == before and MARK not in maps_text(target.pid)
        target.finish()


def test_exact_from_the_moment_of_attach(tmp_path: Path) -> None:
    report = tmp_path / "report"
    library = build_target("lib_heap_late", "-shared", "-fPIC")

    def script(target: Target) -> Iterator[bool]:
        target.tell()
        target.expect("loaded")
        yield False  # the next look finds the library
        yield False
        target.tell()
        target.expect("done")
        yield False

    with start("heap_exact", report, "attach", library) as target:
        before = words(target.pid)
        outcome = attached(target, script)
        assert outcome.residue == ()
        after = words(target.pid)
        assert {address: after[address] for address in before} == before
        target.tell()
        target.finish()
    books, result = Books(report), outcome.result
    assert result is not None
    sites = sites_of(result, FUNCTIONS)
    for name, site in books.sites.items():
        if site.allocs and name != "by_old":
            assert sites.get(name) == site, name
    assert books.blocks.items() <= blocks_of(result).items()
    (old,) = [note for note in outcome.meta.notes if "not been seen allocated" in note]
    # Of the 601 blocks from before, 307 were freed; the rest are the C library's own.
    assert 307 <= int(old.split()[0].replace(",", "")) <= 320
    assert "by_old" not in sites


LINKAGES: dict[str, tuple[str, ...]] = {
    "lazy": ("-Wl,-z,lazy",),
    "now, full RELRO": ("-Wl,-z,now", "-Wl,-z,relro"),
    "no PIE": ("-no-pie", "-fno-pie"),
    "no PLT": ("-fno-plt",),
    "no PLT, no PIE": ("-fno-plt", "-no-pie", "-fno-pie"),
    "gold": ("-fuse-ld=gold",),
    "gold, now": ("-fuse-ld=gold", "-Wl,-z,now"),
    "lld": ("-fuse-ld=lld",),
}
EXPECTED = Site(1009, 1009 * 101, 1009 - 503, (1009 - 503) * 101, 0)


@pytest.mark.parametrize("linkage", LINKAGES)
def test_linkages(linkage: str) -> None:
    with start(build_target("heap_linked", *LINKAGES[linkage])) as target:
        before = words(target.pid)
        for _ in range(2):
            outcome = attached(target, one_round)
            assert outcome.result is not None
            assert sites_of(outcome.result, {"make"}) == {"make": EXPECTED}
            assert words(target.pid).items() >= (before if "lazy" not in linkage else {}).items()
            assert outcome.residue == ()
        target.finish()


@pytest.mark.parametrize("how", ["TAKEN", "DLSYM"])
def test_addresses_taken_before_are_not_reached_and_that_is_said(how: str) -> None:
    with start(build_target("heap_linked", f"-D{how}")) as target:
        outcome = attached(target, one_round)
        assert outcome.result is not None
        assert sites_of(outcome.result, {"make"}) == {}
        assert "function pointers taken before" in dict(outcome.meta.rows)["not hooked"]
        target.finish()


def test_registers_of_threads_that_sleep_are_read_without_waking_them() -> None:
    """Without a PLT they could hold a hook's address.  A stop alone would end epoll_wait with EINTR."""

    def script(target: Target) -> Iterator[bool]:
        yield False

    with start(build_target("threads", "-fno-plt"), 0, 3) as target:
        for _ in range(5):
            assert attached(target, script).residue == ()
        assert target.finish() == "eintr 0\ndone\n"


def test_a_thread_that_gave_up_waiting_is_borrowed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that is short of processor time; at each step once."""
    tries: dict[str, int] = {}

    def given_up_once(kind: type[Loading] | type[MappedStub]) -> None:
        run = kind.run

        def attempt(self: object, *words: object) -> object:
            tries[kind.__name__] = tries.get(kind.__name__, 0) + 1
            if tries[kind.__name__] % 2:
                raise ThreadGaveUp("the borrowed thread gave up waiting")
            return run(self, *words)  # type: ignore[arg-type]

        monkeypatch.setattr(kind, "run", attempt)

    given_up_once(Loading)
    given_up_once(MappedStub)
    with start(build_target("heap_linked")) as target:
        before = words(target.pid)
        outcome = attached(target, one_round)
        assert outcome.residue == ()
        assert outcome.result is not None
        assert sites_of(outcome.result, {"make"}) == {"make": EXPECTED}
        assert words(target.pid) == before
        target.finish()
    assert tries == {"Loading": 2, "MappedStub": 6}, "loaded, armed, stopped, unloaded"


def test_an_address_taken_meanwhile_keeps_the_code() -> None:
    def script(target: Target) -> Iterator[bool]:
        target.tell("take")
        target.expect("done")
        yield False

    with start(build_target("heap_linked", "-fno-plt", "-DTAKES")) as target:
        outcome = attached(target, script)
        (line,) = [line for line in outcome.residue if "hooks' code" in line]
        assert "address of a function" in line
        for _ in range(3):
            target.tell("use")
            target.expect("done")
        again = attached(target, one_round)
        assert again.result is not None
        assert sites_of(again.result, {"make"}) == {"make": EXPECTED}
        target.tell("use")
        target.expect("done")
        target.finish()


@pytest.mark.parametrize("word", ["pass", "pass on", "hold"])
def test_an_address_left_behind_below_the_stack_keeps_nothing(may_trace: None, word: str) -> None:
    """Nobody reads it there, but above the thread's stack pointer it counts."""

    def script(target: Target) -> Iterator[bool]:
        target.tell(word)
        target.expect("done")
        yield False

    with start(build_target("heap_linked", "-fno-plt", "-DTAKES")) as target:
        outcome = attached(target, script)
        assert len([line for line in outcome.residue if "hooks' code" in line]) == (word == "hold")
        if word == "hold":
            target.tell("on")
            target.expect("done")
        assert attached(target, one_round).residue == ()
        target.finish()


@pytest.mark.parametrize("sample_bytes", [0, 1])
@pytest.mark.parametrize("left", [True, False])
def test_the_memory_stays_until_nobody_can_have_found_it(
    monkeypatch: pytest.MonkeyPatch, sample_bytes: int, *, left: bool
) -> None:
    """A thread that comes by an address may have read where it is, just before it is said not to be there."""
    steps: list[str] = []
    as_it_is, wait = heap_attach.call, heap_attach.wait_until_left

    def call(process: TargetProcess, stub: LoadedStub, entry: str) -> None:
        as_it_is(process, stub, entry)
        steps.append(entry)

    def until_left(*words: Any) -> bool:
        steps.append("wait")
        if steps[-2] != "pa_forget":
            return wait(*words)
        assert MARK in maps_text(target.pid)
        target.tell("use")
        target.expect("done")
        return left and wait(*words)

    def script(target: Target) -> Iterator[bool]:
        target.tell("take")
        target.expect("done")
        yield False

    monkeypatch.setattr(heap_attach, "call", call)
    monkeypatch.setattr(heap_attach, "wait_until_left", until_left)
    with start(build_target("heap_linked", "-fno-plt", "-DTAKES")) as target:
        outcome = attached(target, script, HeapOptions(sample_bytes=sample_bytes))
        after = ["wait", "pa_forget", "wait", "pa_leave"]
        assert steps[-len(after) :] == after if left else steps[-3:] == after[:3]
        assert bool([line for line in outcome.residue if "memory stays mapped" in line]) is not left
        target.tell("use")
        target.expect("done")
        target.finish()


def test_a_thread_on_the_way_into_the_allocator_is_waited_for() -> None:
    """It has seen that it is to record, and has not said yet that it is in a hook: outside of the hook's code
    it is only seen when it has said so."""

    class Thread:
        text_ranges: ClassVar = [(0x1000, 0x2000)]
        base = 0
        image = SimpleNamespace(entries={"pa_passing": 0})
        on_its_way, inside, looks, pauses = True, False, 0, 0

        def threads(self) -> list[int]:
            return [1]

        def wait_outside(
            self, _tids: object, _ranges: object, _deadline_s: float, *, handlers: bool
        ) -> set[int]:
            assert handlers
            self.looks += 1
            if self.on_its_way:
                self.on_its_way, self.inside = False, True
            return set()

        def pause(self, _seconds: float) -> None:
            self.pauses += 1
            self.inside = self.pauses < 3

        def read(self, _address: int, size: int) -> bytes:
            return bytes(size)

    thread: Any = Thread()
    assert wait_until_left(thread, thread, lambda: thread.inside)
    assert (thread.inside, thread.looks, thread.pauses) == (False, 2, 3)


def test_a_static_program_is_refused_and_the_reason_said() -> None:
    from pyattach.errors import UnsupportedTarget

    with start(build_target("quiet", "-static")) as target, pytest.raises(UnsupportedTarget, match="dynamic"):
        attach_heap(target.pid, HeapOptions(), lambda: True)
    with (
        start(build_target("quiet", "-static", "-s")) as target,
        pytest.raises(UnsupportedTarget, match="strip"),
    ):
        attach_heap(target.pid, HeapOptions(entries="auto"), lambda: True)


@pytest.mark.parametrize("allocator", ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so"])
def test_another_allocator(allocator: str) -> None:
    found = next(Path("/usr/lib/x86_64-linux-gnu").glob(f"{allocator}*"), None)
    if found is None:
        skip_unless_ci(f"{allocator} is not installed (tests/install-programs test)")
    with start(build_target("heap_linked"), env={"LD_PRELOAD": str(found)}) as target:
        outcome = attached(target, one_round)
        assert outcome.result is not None
        assert sites_of(outcome.result, {"make"}) == {"make": EXPECTED}
        assert str(found.resolve().name).split(".")[0] in dict(outcome.meta.rows)["hooked"]
        target.finish()


def test_cycles_on_a_storm() -> None:
    """Four threads that allocate without a pause: nothing is live less than once, nothing is left."""
    program = build_target("heap_cycles", "-Wl,-z,now")  # else slots are bound meanwhile
    with start(program) as target:
        before = words(target.pid)
        for _ in range(4):  # make stress does it a thousand times
            outcome = attach_heap(target.pid, HeapOptions(duration_s=0.05), lambda: False)
            # On a busy machine a thread may take too long to show its registers: the code stays then.
            assert outcome.residue == () or "in a register" in outcome.residue[0], outcome.residue
            result = outcome.result
            assert result is not None
            assert result.amount("allocated").blocks > 0
            assert sum(counts.live for counts in result.counts.values()) == len(blocks_of(result))
            assert min(counts.live for counts in result.counts.values()) >= 0
        assert words(target.pid) == before
        target.finish()
    assert re.search(r"[1-9]\d* rounds", target.output)


AGAIN = 'echo here; read line; exec sh -c "$1" sh "$1"'


@pytest.mark.parametrize("times", [1, 1000])
def test_a_target_that_executes_another_program_meanwhile(
    may_trace: None, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """It is looked at anew, for a second."""
    executed = 0
    surveyed = heap_attach.make_resolver
    with subprocess.Popen(
        ["sh", "-c", AGAIN, "sh", AGAIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "here\n"

        def executes(target: TargetProcess, names: NameOptions) -> object:
            nonlocal executed
            if executed < times:
                executed += 1
                process.stdin.write("on\n")
                process.stdin.flush()
                assert process.stdout.readline() == "here\n"
            return surveyed(target, names)

        monkeypatch.setattr(heap_attach, "make_resolver", executes)
        options = HeapOptions(duration_s=0.05)
        if times == 1:
            assert attach_heap(process.pid, options, lambda: False).meta.ended_by == "duration reached"
        else:
            with pytest.raises(InjectionFailed, match="executed another program each time"):
                attach_heap(process.pid, options, lambda: False)
        assert executed >= 1
        assert MARK not in maps_text(process.pid)
        process.kill()
