"""Calls that go through no slot: reached at the allocator's own first instructions, exactly, and put back."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from heap_support import sites_of, words
from support import SOURCES, Target, build_target, requires, skip_unless_ci
from support import spawn as start
from test_attach_run import MARK, maps_text, pyattach
from test_heap_attach import EXPECTED, attached, one_round

from pyattach.attacher.heap_attach import attach_heap
from pyattach.attacher.heap_hooks import Hooks
from pyattach.attacher.heap_session import HeapOptions, HeapOutcome
from pyattach.attacher.naming import make_resolver
from pyattach.attacher.target import TargetProcess
from pyattach.errors import UsageError
from pyattach.inject.heap_layout import FUNCTIONS

pytestmark = pytest.mark.usefixtures("may_trace")

AUTO = HeapOptions(entries="auto")


def code(pid: int) -> dict[int, bytes]:
    """How the allocator's functions begin."""
    with TargetProcess(pid) as target, make_resolver(target) as resolver:
        real = Hooks(target, resolver, "auto").real[: len(FUNCTIONS)]
        return {address: target.read(address, 64) for address in real if address}


def executable(pid: int) -> list[tuple[int, int, str, str]]:
    """What can be executed: begin, end, protection and file.  Where several bytes are changed the kernel goes
    on to list that page for itself, with the same protection: the pieces count as one."""
    out: list[tuple[int, int, str, str]] = []
    with TargetProcess(pid) as target:
        for m in target.maps().executable():
            if out and (out[-1][1], *out[-1][2:]) == (m.start, m.permissions, m.path):
                out[-1] = (out[-1][0], m.end, m.permissions, m.path)
            else:
                out.append((m.start, m.end, m.permissions, m.path))
    return out


def exact(target: Target, outcome: HeapOutcome) -> None:
    assert outcome.result is not None
    assert sites_of(outcome.result, {"make"}) == {"make": EXPECTED}
    assert outcome.residue == (), outcome.residue


def entered(outcome: HeapOutcome) -> set[str]:
    """The functions whose own code has led to the hooks."""
    row = dict(outcome.meta.rows).get("entries", "").partition(":")[0]
    return set(row.split(", ")) - {""}


@pytest.mark.parametrize("how", ["TAKEN", "DLSYM"])
@pytest.mark.parametrize("mode", ["auto", "always"])
def test_addresses_taken_before(how: str, mode: str) -> None:
    with start(build_target("heap_linked", f"-D{how}")) as target:
        before, was, could_run = words(target.pid), code(target.pid), executable(target.pid)
        for _ in range(2):
            outcome = attached(target, one_round, HeapOptions(entries=mode))
            exact(target, outcome)
            assert entered(outcome) >= ({"malloc", "free"} if mode == "auto" else set(FUNCTIONS))
            assert "of malloc" not in dict(outcome.meta.rows)["not hooked"]
        assert words(target.pid) == before and code(target.pid) == was
        assert executable(target.pid) == could_run
        target.finish()


def test_code_is_changed_only_where_that_is_asked_for_by_name(tmp_path: Path) -> None:
    """The report names the way to calls that were not reached."""
    assert HeapOptions().entries == "never"

    def script(target: Target) -> Iterator[bool]:
        assert code(target.pid) == was
        yield from one_round(target)

    with start(build_target("heap_linked", "-DTAKEN")) as target:
        was = code(target.pid)
        outcome = attached(target, script)
        assert entered(outcome) == set()
        rows = dict(outcome.meta.rows)
        assert "dlsym (--entries auto reaches these)" in rows["not hooked"]
        with pyattach("heap", target.pid, "-d", "300ms", "-o", tmp_path / "o.txt") as run:
            run.finish(0)
        assert "(--entries auto reaches these)" in (tmp_path / "o.txt").read_text()
        outcome = attached(target, one_round, AUTO)
        assert "--entries" not in dict(outcome.meta.rows)["not hooked"]
        target.finish()


@pytest.mark.parametrize("mode", ["auto", "always"])
def test_entries_are_not_sampled(mode: str) -> None:
    with pytest.raises(UsageError, match="sampled"):
        HeapOptions(entries=mode, sample_bytes=1)
    words = ["heap", os.getpid(), "--entries", mode, "--heap-sample", "512K"]
    with pyattach(*words) as run:
        run.finish(2)
    assert "they can't be sampled" in run.err and "leave out --heap-sample, or --entries" in run.err


def test_nothing_is_changed_where_slots_are_all() -> None:
    with start(build_target("heap_linked")) as target:
        outcome = attached(target, one_round, AUTO)
        exact(target, outcome)
        assert entered(outcome) == set()
        target.finish()


def test_slots_are_left_alone_where_the_entry_leads_there() -> None:
    """Each call is counted once, also those by slots; and all kinds of them are."""

    def script(target: Target) -> Iterator[bool]:
        assert words(target.pid) == before
        assert code(target.pid) != was
        yield from one_round(target)

    with start(build_target("heap_linked", "-fno-plt")) as target:
        before, was = words(target.pid), code(target.pid)
        exact(target, attached(target, script, HeapOptions(entries="always")))
        target.finish()


FIRST = {
    "1 byte": "push %rbp; mov %rsp,%rbp; pop %rbp",
    "2 bytes": "push %r12; mov %rdi,%rax; pop %r12",
    "3 bytes": "mov %rdi,%rax; mov %rsi,%rdx",
    "4 bytes": "sub $8,%rsp; add $8,%rsp",
    "5 bytes": "mov $17,%eax",
    "7 bytes": "cmp $4096,%rdi",
    "reads by rip": "mov own_word(%rip),%rax",
    "compares by rip": "cmpl $0,own_word(%rip)",
    "jump": "jmp 1f; nop; 1:",
    "a long jump": ".byte 0xe9, 0, 0, 0, 0",
    "endbr64": "endbr64; push %rbp; mov %rsp,%rbp; pop %rbp",
    "endbr64, 4 bytes": "endbr64; sub $8,%rsp; add $8,%rsp",
    "call": "call 1f; 1: pop %rax",
    "branch": "test %rdi,%rdi",
}
REFUSED = {"jump", "call"}


def attached_twice(program: Path) -> bool:
    """Whether all is reached, exactly; where a place is taken that a landing needs, that must be said."""
    with start(program) as target:
        was = code(target.pid)
        reached = True
        for _ in range(2):
            outcome = attached(target, one_round, AUTO)
            assert outcome.residue == (), outcome.residue
            missing = {"malloc", "free", "calloc", "realloc"} - entered(outcome)
            if missing:
                assert "there is no room" in dict(outcome.meta.rows)["entries left"]
                assert [note for note in outcome.meta.notes if note.startswith("not all calls of")]
                reached = False
            else:
                exact(target, outcome)
            assert code(target.pid) == was
        target.finish()
    return reached


LINKED = {"PIE": ("-fPIE", "-pie"), "no PIE": ("-fno-pie", "-no-pie")}


@pytest.mark.parametrize("kind", sorted(FIRST.keys() - REFUSED))
@pytest.mark.parametrize("linked", LINKED)
def test_an_allocator_in_the_program(kind: str, linked: str) -> None:
    """Its calls are direct."""
    program = build_target("heap_linked", f'-DFIRST="{FIRST[kind]}"', *LINKED[linked])
    assert any(attached_twice(program) for _ in range(6)), "addresses are random: a place may be taken"


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_functions_that_cannot_be_changed(kind: str) -> None:
    """They are left alone, and that is said."""
    with start(build_target("heap_linked", f'-DFIRST="{FIRST[kind]}"')) as target:
        was = code(target.pid)
        outcome = attached(target, one_round, AUTO)
        assert outcome.residue == ()
        assert entered(outcome).isdisjoint({"malloc", "free", "calloc", "realloc"})
        assert "malloc: it begins with a jump, call" in dict(outcome.meta.rows)["entries left"]
        assert code(target.pid) == was
        target.finish()


@pytest.mark.parametrize("kind", ["1 byte", "3 bytes", "branch"])
def test_functions_close_together(kind: str) -> None:
    """What is changed for one must not be in the way of another: some are left alone."""
    flags = (f'-DFIRST="{FIRST[kind]}"', '-DOWN_ALIGN="4"', "-fno-pie", "-no-pie")
    with start(build_target("heap_linked", *flags)) as target:
        was = code(target.pid)
        for _ in range(2):
            assert attached(target, one_round, AUTO).residue == ()
            assert code(target.pid) == was
        target.finish()


STATIC = {"static": ("-static",), "static PIE": ("-static-pie", "-fPIE")}


@pytest.mark.parametrize("how", ["", "-DTAKEN"])
@pytest.mark.parametrize("linked", STATIC)
def test_a_static_program(linked: str, how: str) -> None:
    """Below a program at a low address there is no place for landings: there it depends on the distances that
    the C library's instructions make whether all is reached; what is not must be said."""
    program = build_target("heap_linked", *STATIC[linked], *filter(None, [how]))
    reached = [attached_twice(program) for _ in range(3)]
    assert linked == "static" or any(reached), "addresses are random: one in a hundred is taken"


def check_entered(target: Target) -> None:
    """All that it allocates is counted by the allocator's entries, which are as before then."""
    was = code(target.pid)
    outcome = attached(target, one_round, HeapOptions(entries="always"))
    exact(target, outcome)
    assert entered(outcome) >= {"malloc", "free"}
    assert code(target.pid) == was
    target.finish()


@pytest.mark.parametrize("linked", [["-static"], ["-static", "-DTAKEN"], []], ids=" ".join)
def test_musl(tmp_path: Path, linked: list[str]) -> None:
    """Its malloc and free begin with a long jump; its calloc calls malloc."""
    requires("musl-gcc")
    program = tmp_path / "heap_linked"
    command = ["musl-gcc", "-std=gnu11", "-O2", "-pthread", SOURCES / "heap_linked.c", "-o", program]
    subprocess.run([*command, *linked], check=True)
    with start(program) as target:
        check_entered(target)


@pytest.mark.parametrize("allocator", ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so"])
def test_another_allocator(allocator: str) -> None:
    found = next(Path("/usr/lib/x86_64-linux-gnu").glob(f"{allocator}*"), None)
    if found is None:
        skip_unless_ci(f"{allocator} is not installed (tests/install-programs test)")
    with start(build_target("heap_linked", "-DTAKEN"), env={"LD_PRELOAD": str(found)}) as target:
        check_entered(target)


@pytest.mark.parametrize("step", ["entered", "hooked"])
def test_what_a_killed_one_has_left_is_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with start(build_target("heap_linked", "-DTAKEN")) as target:
        before, was = words(target.pid), code(target.pid)
        with monkeypatch.context() as environment:
            environment.setenv("PYATTACH_FAULT", step)
            with pyattach("heap", target.pid, "--entries", "auto", "-o", tmp_path / "o.svg") as run:
                assert run.process.wait(30) == -9
        assert code(target.pid) != was
        for _ in range(3):
            target.tell("go")
            target.expect("done")
        with pyattach("heap", target.pid, "-d", "300ms", "-v", "-o", tmp_path / "o.txt") as run:
            run.finish(0)
        assert "the hooks of a heap profiler that was killed were taken out" in run.err, run.err
        assert words(target.pid) == before and code(target.pid) == was
        assert MARK not in maps_text(target.pid)
        target.finish()


@pytest.mark.parametrize("ten", range(3))
def test_thirty_cycles_while_threads_hammer(ten: int) -> None:
    """Code is changed, and put back, under four threads that run it without a pause."""
    with start(build_target("heap_hammer")) as target:
        was, could_run = code(target.pid), executable(target.pid)
        for _ in range(10):
            outcome = attach_heap(target.pid, HeapOptions(duration_s=0.02, entries="auto"), lambda: False)
            assert outcome.residue == ()
            # Of glibc's calloc the landing's place may be taken by an arena of its own: that is said.
            missing = {"malloc", "calloc", "realloc", "free"} - entered(outcome)
            assert missing <= {"calloc"}
            assert all("calloc: there is no room" in dict(outcome.meta.rows)["entries left"] for _ in missing)
            result = outcome.result
            assert result is not None
            assert result.amount("allocated").blocks > 0
            assert min(counts.live for counts in result.counts.values()) >= 0
        assert code(target.pid) == was
        assert executable(target.pid) == could_run
        target.finish()
    assert re.search(r"[1-9]\d* rounds", target.output)
