"""``pyattach run``: what is seen of a program from its start to its end, and what the program sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import support
from support import build_target
from test_attach_run import (
    COMMAND,
    DEADLINE_S,
    ROOT,
    Folded,
    child_of,
    cpu_time_s,
    five_errors,
    needs_perf,
    wait_for,
    weights_in,
)

from pyattach.attacher.recording import read_recording
from pyattach.inject.image import preload_path

SHARES = {"work_70": 0.7, "work_20": 0.2, "work_10": 0.1}


class Ran:
    """One run of ``pyattach run``, ended: the program's status and output, and the folded profile."""

    def __init__(self, done: subprocess.CompletedProcess[str], folded: Path) -> None:
        self.status, self.out, self.err = done.returncode, done.stdout, done.stderr
        self._folded = folded
        assert "Traceback" not in self.err, self.err

    @property
    def profile(self) -> Folded:
        return Folded(self._folded)


def run(
    folder: Path,
    *words: object,
    options: tuple[object, ...] = (),
    stdin: str = "",
    env: dict[str, str] | None = None,
) -> Ran:
    folded = folder / "run.folded"
    argv = [*COMMAND, "run", "-o", str(folded), *map(str, options), "--", *map(str, words)]
    done = subprocess.run(
        argv,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
    )
    return Ran(done, folded)


def by_itself(*words: object) -> str:
    """What the program prints without pyattach."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        list(map(str, words)), capture_output=True, text=True, env=env, check=True, stdin=subprocess.DEVNULL
    ).stdout


# What is seen of it.


def test_threads_that_block_signals(tmp_path: Path) -> None:
    """Nobody who sleeps is woken for them, either."""
    folded = tmp_path / "run.folded"
    argv = [*COMMAND, "run", "-o", str(folded), "--", str(build_target("masked"))]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        wait_for("there is a program", lambda: child_of(process.pid))
        program = child_of(process.pid)
        wait_for("it has worked", lambda: cpu_time_s(program) > 1)
        out, _ = process.communicate("", timeout=DEADLINE_S)
    assert (process.returncode, out) == (0, "ready\neintr 0\n")
    profile = Folded(folded)
    assert profile.inclusive()["masked_work"] > 0.9 * sum(profile.stacks.values()) > 0


def test_shares_of_the_leaves(tmp_path: Path) -> None:
    firefox = tmp_path / "o.firefox.json"
    ran = run(tmp_path, build_target("split"), "2", options=("--hz", 250, "-o", firefox))
    assert ran.status == 0
    leaves, weights = ran.profile.leaves(), weights_in(firefox)
    for name, share in SHARES.items():
        assert leaves[name] / ran.profile.total == pytest.approx(share, abs=five_errors(share, weights))
    assert ran.profile.inclusive()["main"] >= 0.98 * ran.profile.total, "whole stacks from the first tick on"
    assert ran.out.startswith("ready\ndone ")


def test_samples_match_the_cpu_time(tmp_path: Path) -> None:
    """From the first instruction to the last: nothing is lost at either end."""
    document = tmp_path / "o.json"
    run(tmp_path, build_target("split"), "1", "cpu", options=("--hz", 100, "-o", document))
    meta = json.loads(document.read_text())["meta"]
    assert meta["samples"] == pytest.approx(100 * meta["cpu_time_s"], rel=0.1)


def test_a_program_that_lives_for_50_ms(tmp_path: Path) -> None:
    words = (build_target("split"), "0.05", "cpu")
    seen = [run(tmp_path, *words, options=("--hz", 1000)).profile for _ in range(3)]
    assert all(profile.total >= 5 for profile in seen)
    # Of a dozen ticks (timers') one may be anywhere; of three runs' together few are.
    total = sum(profile.total for profile in seen)
    assert sum(profile.leaves()[name] for profile in seen for name in SHARES) >= 0.8 * total
    assert sum(profile.inclusive()["main"] for profile in seen) >= 0.8 * total


def test_the_time_of_a_constructor(tmp_path: Path) -> None:
    ran = run(tmp_path, build_target("ctor"), env={"CTOR_MS": "300"})
    assert ran.profile.inclusive()["busy_constructor"] >= 0.9 * ran.profile.total >= 5


def test_the_time_of_a_librarys_constructor(tmp_path: Path) -> None:
    """Libraries are set up before the program is, and the preloaded one as the last of them, if it does
    not ask to be the first."""
    library = build_target("ctor", "-shared", "-fPIC", "-Dmain=other_main")
    program = tmp_path / "linked"
    (tmp_path / "linked.c").write_text("int main(void) { return 0; }\n")
    command = ["cc", "linked.c", "-o", program, "-Wl,--no-as-needed", library, f"-Wl,-rpath,{library.parent}"]
    subprocess.run(command, cwd=tmp_path, check=True)
    ran = run(tmp_path, program, env={"CTOR_MS": "300"})
    assert ran.profile.inclusive()["busy_constructor"] >= 0.9 * ran.profile.total >= 5


def test_threads_while_the_main_thread_sleeps(tmp_path: Path) -> None:
    """No tick of the main thread could arm them."""
    script = """\
import hashlib, threading, time
def work():
    end = time.thread_time() + 0.7
    while time.thread_time() < end:
        hashlib.sha256(bytes(1 << 20))
threads = [threading.Thread(target=work) for _ in range(2)]
for t in threads: t.start()
for t in threads: t.join()
"""
    ran = run(tmp_path, sys.executable, "-c", script, options=("-t",))
    by_thread: dict[str, int] = {}
    for stack, ticks in ran.profile.stacks.items():
        by_thread[stack[0]] = by_thread.get(stack[0], 0) + ticks
    assert sum(ticks >= 0.7 * 99 * 0.5 for ticks in by_thread.values()) == 2, by_thread


# What it sees, and others do.


def test_exit_status(tmp_path: Path) -> None:
    for status in (0, 7):
        assert run(tmp_path, "sh", "-c", f"exit {status}").status == status


def test_a_signal_ends_it(tmp_path: Path) -> None:
    assert run(tmp_path, "sh", "-c", "kill -SEGV $$").status == 139
    assert run(tmp_path, build_target("crash"), stdin="\n").status == 139


def test_a_closed_pipe_ends_it_as_ever(tmp_path: Path) -> None:
    """Python ignores SIGPIPE; the program must not inherit that."""
    assert run(tmp_path, "sh", "-c", "kill -PIPE $$").status == 141


def test_stdin_and_stdout_are_its_own(tmp_path: Path) -> None:
    text = "one\ntwo\n" * 1000
    ran = run(tmp_path, "cat", stdin=text)
    assert (ran.status, ran.out) == (0, text)


@pytest.mark.parametrize("what", ["", "child"])
def test_the_environment_and_the_open_files_are_as_without(tmp_path: Path, what: str) -> None:
    program = build_target("surroundings")
    assert run(tmp_path, program, what).out == by_itself(program, what)


def test_the_environment_may_be_empty(tmp_path: Path) -> None:
    """Python adds to one that names no locale; the program must not see it."""
    argv = ["env", "-i", f"PYTHONPATH={ROOT}", *COMMAND, "run", "-o", str(tmp_path / "o.folded"), "--", "env"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == f"PYTHONPATH={ROOT}\n"


def test_proc_shows_no_trace_in_the_environment(tmp_path: Path) -> None:
    assert "fd" not in run(tmp_path, "sh", "-c", "tr '\\0' '\\n' </proc/$$/environ | grep ^LD_").out


def test_what_the_user_preloads_stays(tmp_path: Path) -> None:
    program, mark = build_target("surroundings"), build_target("preloaded_mark", "-shared", "-fPIC")
    ran = run(tmp_path, program, "child", env={"LD_PRELOAD": str(mark)})
    assert f"env LD_PRELOAD={mark}\n" in ran.out
    # In pyattach's own Python it is loaded, too; then in the program and in its child.
    assert ran.err.count("mark: loaded") >= 3


def test_children_are_neither_sampled_nor_disturbed(tmp_path: Path) -> None:
    split = build_target("split")
    ran = run(tmp_path, "sh", "-c", f"{split} 0.5; echo status $?; {split} 0.1 | tail -n 1")
    lines = ran.out.splitlines()
    assert [line.split()[0] for line in lines] == ["ready", "done", "status", "done"]
    assert lines[2] == "status 0"
    assert not SHARES.keys() & ran.profile.leaves().keys()
    assert "programs that it started used" in ran.err


def test_a_program_that_becomes_another_one(tmp_path: Path) -> None:
    program = build_target("surroundings")
    ran = run(tmp_path, program, "exec")
    assert ran.status == 0
    assert ran.out == by_itself(program)
    work = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"
    ran = run(
        tmp_path, "sh", "-c", f"{work}; exec {build_target('split')} 0.5", options=("--no-follow-exec",)
    )
    assert "exec" in ran.err
    assert ran.profile.total
    assert not SHARES.keys() & ran.profile.leaves().keys()


def test_what_a_program_becomes_is_followed(tmp_path: Path) -> None:
    """And its exit status is still the run's."""
    busy = "import time\nwhile time.process_time() < 2.5: pass\nraise SystemExit(9)"
    work = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"
    ran = run(tmp_path, "sh", "-c", f'{work}; exec /usr/bin/python3 -c "{busy}"')
    assert ran.status == 9
    names = ran.profile.inclusive()
    assert any("EvalFrame" in name for name in names), ran.err
    ran = run(tmp_path, "sh", "-c", f'exec /usr/bin/python3 -c "{busy}; import os; os.kill(os.getpid(), 9)"')
    assert ran.status == 9


def test_programs_that_it_starts_are_sampled_if_asked_for(tmp_path: Path) -> None:
    busy = "import time\nwhile time.process_time() < 2: pass"
    ran = run(tmp_path, "sh", "-c", f'/usr/bin/python3 -c "{busy}"; exit 3', options=("-s",))
    assert ran.status == 3
    stacks = [stack for stack in ran.profile.stacks if any("EvalFrame" in frame for frame in stack)]
    assert stacks and all(stack[0].endswith("python3") for stack in stacks)


@needs_perf
def test_perf_events_if_asked_for(tmp_path: Path) -> None:
    firefox = tmp_path / "o.firefox.json"
    options = ("--clock", "perf", "--hz", "997", "-v", "-o", firefox)
    ran = run(tmp_path, build_target("split"), "1", options=options)
    assert ran.status == 0 and "by perf" in ran.err
    leaves = ran.profile.leaves()
    found = sum(leaves[name] for name in SHARES)
    assert found > 100
    assert leaves["work_70"] / found == pytest.approx(0.7, abs=five_errors(0.7, weights_in(firefox)))


def test_a_script_that_asks_env_for_its_interpreter(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/usr/bin/env python3\nimport sys\nsum(range(20_000_000))\nprint(sys.argv[1:])\n")
    script.chmod(0o755)
    first = {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    ran = run(tmp_path, script, "a b", "-d", env=first)
    assert ran.out == "['a b', '-d']\n"
    assert ran.profile.total >= 5


@pytest.mark.parametrize(
    "words",
    [
        ("xz", "-9", "--stdout"),
        ("sqlite3", ":memory:"),
        (sys.executable, "-c", "import sys; print(sum(map(ord, sys.stdin.read())))"),
    ],
)
def test_programs(tmp_path: Path, words: tuple[str, ...]) -> None:
    support.requires(words[0])
    text = "select 1;\n" * 20_000
    plain = subprocess.run(words, input=text.encode(), capture_output=True, check=True).stdout
    argv = [*COMMAND, "run", "-o", str(tmp_path / "o.folded"), "--hz", "250", "--", *words]
    done = subprocess.run(
        argv,
        input=text.encode(),
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout) == (0, plain), done.stderr


def test_programs_to_which_many_signals_are_fatal(tmp_path: Path) -> None:
    """sort installs handlers that end it for all that would, SIGPROF among them, once it has begun."""
    numbers = tmp_path / "numbers"
    numbers.write_text("".join(f"{n}\n" for n in range(300_000)))
    done = run(tmp_path, "sort", "--random-sort", "--parallel=1", numbers)
    assert done.status == 0 and len(done.out.splitlines()) == 300_000
    assert done.profile.inclusive().total() > 10
    recorded = {"LD_PRELOAD": str(preload_path()), "PYATTACH_OUT": str(tmp_path / "out")}
    words = ["sort", "--random-sort", "--parallel=1", str(numbers)]
    again = subprocess.run(words, capture_output=True, env={**os.environ, **recorded}, check=False)
    assert again.returncode == 0
    assert read_recording(tmp_path / "out").total > 10
