"""``pyattach run``: what can't be run or sampled, and how a run ends."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import build_target, skip_unless_ci
from test_attach_run import (
    COMMAND,
    COMMAND_IGNORING_CHILDREN,
    DEADLINE_S,
    MARK,
    ROOT,
    child_of,
    cpu_time_s,
    maps_text,
    pyattach,
    status_of,
    timers_text,
    wait_for,
)
from test_run_programs import run

from pyattach.attacher import program
from pyattach.attacher.planning import strays_can_be_met
from pyattach.errors import CommandNotExecutable, CommandNotFound

TIMERS = 3 if strays_can_be_met() else 2
"""Of a program with one thread: its own, the one that arms threads, the one that meets those unarmed."""


def test_whoever_started_it_ignores_children(tmp_path: Path) -> None:
    """pyattach knows how the program ends; the program finds it as it was."""
    ignored = "import signal as s, sys; sys.exit(3 if s.getsignal(s.SIGCHLD) is s.SIG_IGN else 4)"
    words = ("run", "-o", tmp_path / "o.svg", "--", sys.executable, "-c", ignored)
    with pyattach(*words, command=COMMAND_IGNORING_CHILDREN) as run:
        run.finish(3)


# What can't be run, or not be sampled.


def test_no_command(tmp_path: Path) -> None:
    with pyattach("run", "-o", tmp_path / "o.svg") as no_words:
        no_words.finish(2)
    assert "no command" in no_words.err


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    for name in ("no-such-command", "./no-such-command"):
        ran = run(tmp_path, name)
        assert ran.status == 127
        assert name in ran.err


def test_a_command_that_may_not_be_executed(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    for path in (tmp_path / "text", tmp_path):
        ran = run(tmp_path, path)
        assert ran.status == 126
        assert str(path) in ran.err


def test_a_script_whose_interpreter_is_missing(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/no/such/interpreter\n")
    (tmp_path / "script").chmod(0o755)
    assert run(tmp_path, tmp_path / "script").status == 127


def test_a_script_without_a_first_line(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("echo $1; exit 3\n")
    (tmp_path / "script").chmod(0o755)
    ran = run(tmp_path, tmp_path / "script", "word")
    assert (ran.status, ran.out) == (3, "word\n")


def test_a_static_program(tmp_path: Path) -> None:
    ran = run(tmp_path, build_target("surroundings", "-static"), options=("-o", tmp_path / "o.txt"))
    assert ran.status == 0
    assert "LD_PRELOAD" not in ran.out
    for text in (ran.err, (tmp_path / "o.txt").read_text()):
        assert "static" in text
        assert "attach by pid instead" in text


def test_a_setuid_program(tmp_path: Path) -> None:
    if os.getuid() != 0:
        skip_unless_ci("only root makes a program setuid of another user")
    copy = tmp_path / "copy"
    copy.write_bytes(build_target("surroundings").read_bytes())
    os.chown(copy, 65534, 65534)
    copy.chmod(0o4755)
    tmp_path.chmod(0o755)
    ran = run(tmp_path, copy)
    assert ran.status == 0 or "fd" not in ran.out
    assert "setuid" in ran.err
    assert "ld.so" not in ran.err


def test_commands_are_found_as_shells_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool").write_text("#!/bin/sh\n")
    monkeypatch.setenv("PATH", f"{tmp_path}/a:{tmp_path}/b")
    with pytest.raises(CommandNotExecutable, match="a/tool"):
        program.find_program(["tool"])
    (tmp_path / "b/tool").chmod(0o755)
    assert program.find_program(["tool", "x"]) == program.Program(f"{tmp_path}/b/tool", ("tool", "x"))
    with pytest.raises(CommandNotFound):
        program.find_program(["other"])


@pytest.mark.parametrize(
    ("line", "argv"),
    [
        ("#!/usr/bin/env sh", ["sh", "{script}", "x"]),
        ("#!/usr/bin/env -S sh -e", ["sh", "-e", "{script}", "x"]),
        ("#!/usr/bin/env A=1 sh", ["{script}", "x"]),
        ("#!/usr/bin/env -i", ["{script}", "x"]),
        ("#!/bin/sh -e", ["{script}", "x"]),
    ],
)
def test_scripts_for_env(tmp_path: Path, line: str, argv: list[str]) -> None:
    script = tmp_path / "script"
    script.write_text(line + "\n")
    script.chmod(0o755)
    found = program.find_program([str(script), "x"])
    assert list(found.argv) == [word.format(script=script) for word in argv]


def test_a_program_that_puts_itself_under_a_filter(tmp_path: Path) -> None:
    """This one's filter kills; once it is found, the ticks that go on make no system call."""
    out = tmp_path / "o.folded"
    words = ["run", "--hz", "20", "-o", str(out), "--", str(build_target("filtered")), "300", "1500"]
    pipe, environment = subprocess.PIPE, {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*COMMAND, *words], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
    ) as running:
        wait_for("it is found: the profile is written", out.exists)
        said, err = running.communicate("go on\n", timeout=DEADLINE_S)
    assert "seccomp" in err
    assert (running.returncode, said) == (0, "ready\ndone\n")


def test_a_program_that_has_loaded_libseccomp(tmp_path: Path) -> None:
    """It may be about to: it is left alone from the start."""
    (tmp_path / "empty.c").write_text("")
    library = tmp_path / "libseccomp.so.2"
    subprocess.run(["cc", "-shared", "-o", library, tmp_path / "empty.c"], check=True)
    words, env = (build_target("filtered"), 200, 200), {"LD_PRELOAD": str(library)}
    ran = run(tmp_path, *words, options=("--hz", 1000), env=env)
    assert "libseccomp" in ran.err
    assert (ran.status, ran.out) == (0, "ready\ndone\n")
    assert not ran.profile.total


# How it ends.


def test_a_duration_that_is_shorter_than_the_program(tmp_path: Path) -> None:
    """The profile is written then, the ticks end by themselves, the program goes on."""
    out = tmp_path / "o.folded"
    with pyattach("run", "-d", "300ms", "-o", out, "--", build_target("split"), "60") as running:
        running.wait_until("the profile is written", out.exists)
        pid = child_of(running.pid)
        assert status_of(pid)["State"][0] in "RS"
        running.wait_until("no timer of ours is left", lambda: not timers_text(pid))
        os.kill(pid, signal.SIGTERM)  # it ends orderly
        text = running.finish(0)
    assert text.startswith("ready\ndone ")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 0)])
def test_a_signal_to_both(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """From the terminal; the program of this test ends orderly."""
    out = tmp_path / "o.folded"
    with pyattach("run", "-o", out, "--", build_target("split"), "60") as running:
        running.wait_until("there is a child", lambda: child_of(running.pid))
        pid = child_of(running.pid)
        running.wait_until("it has worked", lambda: MARK in maps_text(pid) and cpu_time_s(pid) > 0.3)
        os.kill(pid, number)
        running.tell(number)
        running.finish(status)
    assert out.read_text()


@pytest.mark.parametrize(("words", "status"), [(("split", "60"), 0), (("sleep", "60"), 130)])
def test_ctrl_c_on_a_terminal(tmp_path: Path, words: tuple[str, ...], status: int) -> None:
    """It comes to both at once; the profile is written whether the program ends by it or orderly."""
    out = tmp_path / "o.folded"
    name = str(build_target(words[0])) if words[0] == "split" else words[0]
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(ROOT)
        os.execv(sys.executable, [*COMMAND, "run", "-o", str(out), "--", name, *words[1:]])
    wait_for("there is a child", lambda: child_of(pid))
    child = child_of(pid)
    wait_for("it runs", lambda: MARK in maps_text(child) and words[0] in status_of(child)["Name"])
    if status == 0:
        wait_for("it handles SIGINT", lambda: int(status_of(child)["SigCgt"], 16) >> (signal.SIGINT - 1) & 1)
    os.write(terminal, b"\x03")
    said = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
        while chunk := os.read(terminal, 4096):
            said += chunk
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status, said.decode()
    assert b"wrote" in said
    assert out.exists()


def test_sigterm_is_handed_on(tmp_path: Path) -> None:
    with pyattach("run", "-o", tmp_path / "o.folded", "--", "sleep", "60") as running:
        running.wait_until("there is a child", lambda: child_of(running.pid))
        pid = child_of(running.pid)
        running.wait_until("it sleeps", lambda: MARK in maps_text(pid) and "sleep" in status_of(pid)["Name"])
        running.tell(signal.SIGTERM)
        running.finish(128 + signal.SIGTERM)


def test_pyattach_is_killed(tmp_path: Path) -> None:
    """The program goes on, and the ticks end."""
    with pyattach("run", "-o", tmp_path / "o.folded", "--", build_target("split"), "60") as running:
        running.wait_until("there is a child", lambda: child_of(running.pid))
        pid = child_of(running.pid)
        running.wait_until("it is sampled", lambda: timers_text(pid).count("signal:") == TIMERS)
        running.tell(signal.SIGKILL)
        running.process.wait()
        wait_for("no timer is left", lambda: not timers_text(pid))
        assert status_of(pid)["State"][0] in "RS"
        os.kill(pid, signal.SIGTERM)
        wait_for("it has ended", lambda: not cpu_time_s(pid) or status_of(pid)["State"][0] == "Z")


def test_job_control_stops_both_and_both_go_on(tmp_path: Path) -> None:
    """While pyattach stands still its lease runs out; sampling goes on after."""
    out = tmp_path / "o.folded"
    with pyattach("run", "-o", out, "--", build_target("split"), "60") as running:
        running.wait_until("there is a child", lambda: child_of(running.pid))
        pid = child_of(running.pid)
        running.wait_until("it is sampled", lambda: timers_text(pid).count("signal:") == TIMERS)
        running.tell(signal.SIGSTOP)
        wait_for("it ticks no more", lambda: timers_text(pid).count("signal:") == 1)
        running.tell(signal.SIGCONT)
        running.wait_until("it is sampled again", lambda: timers_text(pid).count("signal:") == TIMERS)
        os.kill(pid, signal.SIGTERM)
        running.finish(0)


def test_an_output_that_fails_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "pyattach", "run", "-o", folder / "o.svg", "--", "rmdir", folder],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.returncode == 1
    assert "o.svg" in done.stderr


BROKEN = """\
import sys
from pyattach.attacher import run, run_cli
def fails(*_arguments):
    raise {error}
run.profile_child = fails
sys.exit(run_cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("error", ["OSError(5, 'it is broken')", "ValueError('it is broken')"])
@pytest.mark.parametrize("status", [0, 3])
def test_the_program_is_waited_for_whatever_fails(tmp_path: Path, error: str, status: int) -> None:
    script = f"read line; echo $line > {tmp_path}/done; exit {status}"
    command = [sys.executable, "-c", BROKEN.format(error=error), "-q", "-o", str(tmp_path / "o.svg")]
    done = subprocess.run(
        [*command, "--", "sh", "-c", script],
        input="read\n",
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (tmp_path / "done").read_text() == "read\n"
    assert "it is broken" in done.stderr
    assert done.returncode == (status or 1 if error.startswith("OSError") else 1)


@pytest.mark.parametrize(
    "words", [("--leaks",), ("--heap-kind", "live"), ("--heap-sample", "512K")], ids=lambda words: words[0]
)
def test_words_about_a_heap_that_is_not_recorded(tmp_path: Path, words: tuple[str, ...]) -> None:
    with pyattach("run", *words, "--", "touch", tmp_path / "started") as running:
        running.finish(2)
    assert "that is about the heap" in running.err and not (tmp_path / "started").exists()
