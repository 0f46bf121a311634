"""Names of code that changes or goes away under a run, and of files that are not what their paths say."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from support import Target, build_target
from test_attach_run import MARK, Folded, Pyattach, Spawn, attach, cpu_time_s, maps_text, pyattach
from test_symbols_files import symbols_of


def shares(path: Path, *names: str) -> float:
    """Of all ticks, those that have one of these functions on the stack."""
    profile = Folded(path)
    inclusive = profile.inclusive()
    return sum(inclusive[name] for name in names) / profile.total


@pytest.mark.parametrize("how", ["deleted", "replaced", "overlaid"])
def test_a_program_whose_file_is_no_more(spawn: Spawn, tmp_path: Path, how: str) -> None:
    """Upgraded under a process that runs: the mapped file is the one that counts."""
    path, folded = tmp_path / "program", tmp_path / "o.folded"
    shutil.copy(build_target("split"), path)
    with spawn([str(path)]) as target:
        if how == "overlaid":  # renamed over, as package managers do
            shutil.copy(build_target("threads"), tmp_path / "new")
            (tmp_path / "new").rename(path)
        else:
            path.unlink()
            if how == "replaced":
                shutil.copy(build_target("threads"), path)
        attach(target.pid, "-d", "500ms", "-o", folded)
        target.finish()
    assert shares(folded, "work_70", "work_20", "work_10") > 0.9


def test_a_program_that_is_stripped(spawn: Spawn, tmp_path: Path) -> None:
    """Its functions have no names, their places do; what it exports and calls has."""
    folded = tmp_path / "o.folded"
    with spawn([str(build_target("split", "-s"))]) as target:
        run = attach(target.pid, "-d", "500ms", "-o", folded)
        target.finish()
    leaves = Folded(folded).leaves()
    own = sum(count for name, count in leaves.items() if name.startswith("split+0x"))
    assert own > 0.9 * leaves.total()  # others: what it calls, poll and the clock
    assert not leaves.keys() & set(symbols_of(build_target("split")))
    assert "stripped of the names of functions: split" in run.err


def start_of(pid: int, library: Path) -> str:
    """Where a library's code is mapped; "" where it is not."""
    for line in maps_text(pid).splitlines():
        if line.endswith(str(library)) and "r-xp" in line:
            return line.partition("-")[0]
    return ""


def work_in(target: Target, run: Pyattach, library: Path, cpu_s: float) -> str:
    """Have the library opened, worked in and closed; where its code was."""
    target.tell()
    target.expect("opened")
    place = start_of(target.pid, library)
    begin = cpu_time_s(target.pid)
    run.wait_until("it has worked", lambda: cpu_time_s(target.pid) > begin + cpu_s)
    target.tell()
    target.expect("closed")
    return place


def test_two_libraries_at_one_address_one_after_the_other(spawn: Spawn, tmp_path: Path) -> None:
    folded = tmp_path / "o.folded"
    one = build_target("lib_late", "-shared", "-fPIC", "-DINNER=first_inner")
    other = build_target("lib_late", "-shared", "-fPIC", "-DINNER=other_inner")
    with spawn("dlopener", one, other) as target, pyattach(target.pid, "-o", folded) as run:
        run.wait_sampling(target.pid)
        places = [work_in(target, run, library, 1) for library in (one, other)]
        run.tell(signal.SIGINT)
        run.finish(0)
        target.finish()
    assert places[0] == places[1] != ""
    inclusive = Folded(folded).inclusive()
    # A second of CPU time each, and as long as it takes to be told to close it.
    assert inclusive["first_inner"] > 50 and inclusive["other_inner"] > 50


def test_a_library_is_named_the_moment_it_is_there(spawn: Spawn, tmp_path: Path) -> None:
    """And so is what ran in it, however short it was there, as far as its mappings were seen."""
    folded = tmp_path / "o.folded"
    library = build_target("lib_late", "-shared", "-fPIC")
    with spawn("dlopener", library) as target, pyattach(target.pid, "--hz", "199", "-o", folded) as run:
        run.wait_sampling(target.pid)
        for _ in range(5):
            work_in(target, run, library, 0.3)
        run.tell(signal.SIGINT)
        run.finish(0)
        target.finish()
    profile = Folded(folded)
    nameless = sum(ticks for name, ticks in profile.leaves().items() if name.startswith("0x"))
    assert profile.inclusive()["late_inner"] > 100
    assert nameless < 0.1 * profile.total


CPP = """
#include <cstdio>
#include <cstdint>
#include <poll.h>
#include <unistd.h>
template <typename T> struct Worker {
    __attribute__((noipa)) T spend(T x, const char *) {
        for (int i = 0; i < 50000; i++) x = x * 31 + 7;
        return x;
    }
};
int main() {
    struct pollfd input = {STDIN_FILENO, POLLIN, 0};
    Worker<uint64_t> worker; uint64_t x = 1;
    puts("ready"); fflush(stdout);
    while (poll(&input, 1, 0) <= 0) x = worker.spend(x, "");
    printf("done %d\\n", x != 0);
}
"""


@pytest.mark.parametrize("full", [False, True])
def test_cpp_names_short_and_full(spawn: Spawn, tmp_path: Path, full: bool) -> None:
    source, program, folded = tmp_path / "a.cc", tmp_path / "program", tmp_path / "o.folded"
    source.write_text(CPP)
    subprocess.run(["c++", "-O2", "-o", program, source], check=True)
    with spawn([str(program)]) as target:
        attach(target.pid, *(["--full-names"] if full else []), "-d", "500ms", "-o", folded)
        target.finish()
    wanted = "Worker<unsigned long>::spend(unsigned long, char const*)" if full else "Worker::spend"
    assert shares(folded, wanted) > 0.8


def test_looking_for_lines_keeps_no_program_from_being_sampled(spawn: Spawn, tmp_path: Path) -> None:
    """What becomes of the process is to be met at once; lines of what it was before are done without."""
    folded = tmp_path / "o.folded"
    with spawn("execs", 3, 300) as target:
        with pyattach(target.pid, "--lines", "-o", folded, "-o", "-") as run:
            run.wait_until("the stub is in", lambda: MARK in maps_text(target.pid))
            target.tell()
            target.expect("done")
            run.tell(signal.SIGINT)
            out = run.finish(0)
        target.finish(0)
    assert "of a program that executed another one no lines" in out
    assert Folded(folded).inclusive()["work_between"] > 0
