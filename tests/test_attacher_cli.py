"""The command line: what it takes, what it refuses and how, and what it does with a finished session."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyattach.attacher import cli, family, following, words
from pyattach.attacher.choosing import ThreadChoice
from pyattach.attacher.contract import Options, Outcome, Progress, unheard
from pyattach.errors import (
    ExitCode,
    InjectionFailed,
    NoPermission,
    NoSuchTarget,
    PyattachError,
    TargetDied,
    UnsupportedTarget,
    UsageError,
)
from pyattach.inject.layout import Unwind
from pyattach.render.profile import Meta, Profile, Thread
from pyattach.symbols.frame import Frame, FrameKind

PID = 4711


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("1.5s", 1.5),
        ("500ms", 0.5),
        ("2m", 120),
        ("1h", 3600),
        (" 3 s ", 3),
        ("0.001", 0.001),
        ("007", 7),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert words.duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "0", "0ms", "-1", "1e3", "s", "5 d", "1.", ".5", "inf", "nan", "1m30s", "1,5"]
)
def test_no_durations(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="duration"):
        words.duration_s(text)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(argparse.ArgumentTypeError):
        assert words.duration_s(text) > 0


@pytest.mark.parametrize(
    ("text", "hz"), [("10", 10), ("99", 99), ("1e3", 1000), ("97.5", 97.5), ("100000", 100_000)]
)
def test_rates(text: str, hz: float) -> None:
    assert words.rate_hz(text) == hz


@pytest.mark.parametrize(
    "text", ["", "9.99", "0", "-99", "nan", "inf", "-inf", "1e9", "100001", "fast", "99Hz"]
)
def test_no_rates(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as raised:
        words.rate_hz(text)
    assert "Hz" in str(raised.value)
    assert ("too slow" in str(raised.value)) == (text in ("9.99", "0", "-99"))


@pytest.mark.parametrize(
    ("text", "hz"), [("10ms", 100), ("100 ms", 10), ("2.5ms", 400), ("1000us", 1000), ("0.02s", 50)]
)
def test_intervals(text: str, hz: float) -> None:
    assert words.interval_hz(text) == hz


@pytest.mark.parametrize("text", ["", "10", "0ms", "-1ms", "101ms", "2s", "1us", "nan", "10 m", "1e-3s"])
def test_no_intervals(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"\d+ms"):
        words.interval_hz(text)


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.5 %", 0.005), ("100%", 1)])
def test_shares_of_cpu_time(text: str, share: float) -> None:
    assert words.overhead_share(text) == share


@pytest.mark.parametrize("text", ["", "1", "0%", "101%", "-1%", "nan%", "%"])
def test_no_shares_of_cpu_time(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="say 1%"):
        words.overhead_share(text)


def parsed_pid(*words: str) -> int:
    return cli.chosen_pid(cli.parser().parse_args(words))


def test_the_pid_in_either_way() -> None:
    assert parsed_pid("17") == parsed_pid("-p", "17") == parsed_pid("--pid=17") == 17


@pytest.mark.parametrize(
    "words", [[], ["17", "-p", "17"], ["0"], ["1.5"], ["0x10"], ["sshd"], [""], ["--", "-17"], ["1 2"]]
)
def test_no_pids(words: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        parsed_pid(*words)
    assert raised.value.way_out
    assert raised.value.exit_code == 2


def outcome(weight: int = 8, *, residue: tuple[str, ...] = (), ended: bool = False) -> Outcome:
    stack = tuple(Frame(name, "target", FrameKind.USER) for name in ("main", "work"))
    meta = Meta(command="target --flag", pid=PID, rate_asked_hz=99.0, cpu_time_s=0.5, samples=weight)
    weights = {(PID, stack): weight} if weight else {}
    return Outcome(Profile(meta, {PID: Thread(PID, "main")}, weights), residue, ended)


class Run:
    """main() with a session that is made up; ``options`` is what it was asked for."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cwd: Path
    ) -> None:
        self.result: Outcome | PyattachError = outcome()
        self.during: Callable[[Callable[[], bool]], None] = lambda _should_stop: None
        self.options: Options | None = None
        self.capsys, self.cwd = capsys, cwd
        monkeypatch.setattr(following, "attach", self._attach)
        monkeypatch.chdir(cwd)

    def _attach(
        self,
        pid: int,
        options: Options,
        should_stop: Callable[[], bool],
        _on_progress: Callable[[Progress], None],
    ) -> Outcome:
        assert pid == PID
        assert not should_stop()
        self.options = options._replace(say=unheard)
        self.during(should_stop)
        if isinstance(self.result, PyattachError):
            raise self.result
        return self.result

    def __call__(self, *words: str) -> int:
        try:
            code = cli.main([str(PID), "--no-live", *words])
        except SystemExit as error:
            assert isinstance(error.code, int)
            code = error.code
        self.out, self.err = self.capsys.readouterr()
        return code

    def files(self) -> list[str]:
        return sorted(os.listdir(self.cwd))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    return Run(monkeypatch, capsys, tmp_path)


def test_defaults(run: Run) -> None:
    assert run() == ExitCode.OK
    assert run.options == Options(99.0, None, 512, Unwind.AUTO, "auto", False)
    (file,) = run.files()
    assert re.fullmatch(rf"{PID}-\d{{8}}T\d{{6}}\.svg", file)
    assert f"wrote {file}" in run.err
    assert "detached: " in run.err
    assert run.out == ""


def test_every_option_arrives(run: Run) -> None:
    words = "--hz 250 -d 2m --max-depth 64 --loader map --unwind fp --allow-seccomp -o a.folded".split()
    assert run(*words) == ExitCode.OK
    assert run.options == Options(250.0, 120.0, 64, Unwind.FP, "map", True)
    assert run.files() == ["a.folded"]


@pytest.mark.parametrize("flag", ["--hz", "-r", "--rate", "-F"])
def test_the_rate_has_the_names_that_other_tools_give_it(run: Run, flag: str) -> None:
    run(flag, "200", "-o", "-")
    assert run.options is not None and run.options.rate_hz == 200


@pytest.mark.parametrize("flag", ["-i", "--interval"])
def test_the_interval_is_another_way_to_say_the_rate(run: Run, flag: str) -> None:
    run(flag, "5ms", "-o", "-")
    assert run.options is not None and run.options.rate_hz == 200


def test_children_are_sampled_where_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "attach", run._attach)
    monkeypatch.setattr(following, "attach", None)
    for flag in ("-s", "--subprocesses"):
        assert run(flag, "-o", "-") == ExitCode.OK
        assert run.options is not None and run.options.subprocesses


def test_a_limit_of_overhead_arrives(run: Run) -> None:
    run("--max-overhead", "0.5%", "-o", "-")
    assert run.options is not None and run.options.max_overhead == 0.005


def test_execs_are_followed_unless_told_otherwise(run: Run) -> None:
    run("-o", "-")
    assert run.options is not None and run.options.follow_exec
    run("--no-follow-exec", "-o", "-")
    assert not run.options.follow_exec


def test_threads_are_chosen_by_any_number_of_words(run: Run) -> None:
    run("--thread", "worker-*", "--thread=4712", "-o", "-")
    assert run.options is not None and run.options.threads == ThreadChoice(("worker-*", "4712"))


@pytest.mark.parametrize(("asked", "taken"), [("0", 1), ("-5", 1), ("4096", 4096), ("1000000", 4096)])
def test_depth_stays_within_what_a_record_holds(run: Run, asked: str, taken: int) -> None:
    run(f"--max-depth={asked}", "-o", "-")
    assert run.options is not None and run.options.max_depth == taken


def test_a_high_rate_is_taken_with_a_warning(run: Run) -> None:
    assert run("--hz", "1001", "-o", "-") == ExitCode.OK
    assert run.err.startswith("warning: 1001 Hz")
    run("--hz", "1000", "-o", "-")
    assert "warning" not in run.err


@pytest.mark.parametrize(
    "words",
    [
        ["--hz", "5"], ["--hz", "x"], ["--hz", "nan"], ["-i", "10"], ["--hz", "99", "-i", "10ms"],
        ["--thread"], ["-d", "0"], ["-d", "soon"], ["--loader", "magic"],
        ["--unwind", "guess"], ["--max-depth", "deep"], ["--no-such-option"], ["17", "18"], ["-o"],
    ],
)  # fmt: skip
def test_bad_words_are_usage_errors(run: Run, words: list[str]) -> None:
    assert run(*words) == ExitCode.USAGE
    assert run.options is None, "nothing may have been attached to"
    assert "usage: pyattach" in run.err and "error: " in run.err


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("out.pdf", "known formats"),
        ("out", "known formats"),
        ("none/out.svg", "make it, or name another place"),
        ("file/out.svg", "make it, or name another place"),
    ],
)
def test_outputs_that_cant_be_written_are_found_out_before_attaching(
    run: Run, output: str, says: str
) -> None:
    (run.cwd / "file").touch()
    assert run("-o", "good.svg", "-o", output) == ExitCode.USAGE
    assert run.options is None
    first, second = run.err.splitlines()
    assert first.startswith("pyattach: ") and "out" in first
    assert second.startswith("  ") and says in second
    assert run.files() == ["file"]


@pytest.mark.parametrize("ending", ["svg", "folded", "txt", "SVG"])
def test_the_ending_chooses_the_format(run: Run, ending: str) -> None:
    assert run("-o", f"out.{ending}") == ExitCode.OK
    text = (run.cwd / f"out.{ending}").read_text()
    assert "work" in text
    assert ("<svg" in text) == (ending.lower() == "svg")
    assert (text == "main;work 8\n") == (ending == "folded")


def test_a_summary_on_stdout_and_a_file_beside_it(run: Run) -> None:
    assert run("-o", "out.folded", "-o", "-") == ExitCode.OK
    assert "work" in run.out and run.out.endswith("\n")
    assert "work" not in run.err
    assert run.files() == ["out.folded"]


def test_quiet_is_silent_but_for_residue(run: Run) -> None:
    assert run("-q", "-o", "out.svg", "--hz", "2000") == ExitCode.OK
    assert (run.out, run.err) == ("", "")
    run.result = outcome(residue=("2 timers",))
    assert run("-q", "-o", "out.svg") == ExitCode.DETACH_INCOMPLETE
    assert run.err == f"pyattach: left behind in process {PID}: 2 timers\n"


def test_residue_is_said_line_by_line_and_the_profile_written_all_the_same(run: Run) -> None:
    run.result = outcome(residue=("2 timers", "open file 7: memfd"))
    assert run("-o", "out.svg") == 7
    assert run.err.splitlines()[-2:] == [
        f"pyattach: left behind in process {PID}: 2 timers",
        f"pyattach: left behind in process {PID}: open file 7: memfd",
    ]
    assert "detached: " not in run.err
    assert run.files() == ["out.svg"]


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (outcome(), 0),
        (outcome(ended=True), 0),
        (outcome(0), 5),
        (outcome(0, ended=True), 6),
        (outcome(0, residue=("a tracer",)), 7),
        (UsageError("x"), 2),
        (PyattachError("x"), 1),
        (NoSuchTarget("x"), 1),
        (InjectionFailed("x"), 1),
        (NoPermission("x"), 3),
        (UnsupportedTarget("x"), 4),
        (TargetDied("x"), 6),
    ],
)
def test_exit_codes(run: Run, result: Outcome | PyattachError, code: int) -> None:
    run.result = result
    assert run("-o", "out.svg") == code


def test_no_samples_is_said(run: Run) -> None:
    run.result = outcome(0)
    run("-o", "out.svg")
    assert "no samples: the target ran, but no tick came" in run.err
    meta = dataclasses.replace(run.result.profile.meta, cpu_time_s=0.01)
    run.result = run.result._replace(profile=Profile(meta, {}, {}))
    run("-o", "out.svg")
    assert "no samples: the target used no CPU time while it was sampled" in run.err


def test_an_error_is_what_happened_and_the_way_out_and_nothing_more(run: Run) -> None:
    run.result = NoPermission("not permitted", "try sudo\n  or sysctl")
    run("-o", "out.svg")
    assert (run.out, run.err) == ("", "pyattach: not permitted\n  try sudo\n  or sysctl\n")
    assert run.files() == []


def test_verbose_shows_where_it_happened(run: Run) -> None:
    run.result = NoPermission("not permitted", "try sudo")
    assert run("-v", "-o", "out.svg") == ExitCode.PERMISSION
    assert run.err.startswith("Traceback (most recent call last):\n")
    assert run.err.endswith("pyattach: not permitted\n  try sudo\n")


def test_an_output_that_fails_does_not_keep_the_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.during = lambda _should_stop: (run.cwd / "folder.svg").mkdir()
    assert run("-o", "folder.svg", "-o", "out.folded") == ExitCode.ERROR
    assert "folder.svg" in run.err and "name a file, not a folder" in run.err
    assert run.files() == ["folder.svg", "out.folded"]


def test_what_can_never_be_written_is_refused_before(run: Run) -> None:
    (run.cwd / "folder").mkdir()
    (run.cwd / "link.svg").symlink_to("nowhere/out.svg")
    for given_words in (("-f", "svg", "-o", "folder"), ("-o", "link.svg")):
        assert run(*given_words) == ExitCode.USAGE
        assert "folder" in run.err
    assert run("--heap", "-o", "out.folded", "-o", "out-heap.folded") == ExitCode.USAGE
    assert "out-heap.folded would be the CPU's profile and the heap's" in run.err


def test_an_output_may_be_a_pipe(run: Run) -> None:
    """As -o >(gzip >out.gz) and -o /dev/stdout in a pipe are."""
    reading, writing = os.pipe()
    try:
        assert run("-f", "folded", "-o", f"/dev/fd/{writing}") == ExitCode.OK
        assert os.read(reading, 1 << 16).count(b"\n") >= 1
    finally:
        os.close(reading)
        os.close(writing)


def test_what_is_left_behind_gives_the_terminal_no_orders(run: Run) -> None:
    """Names of memfds are the target's."""
    run.result = outcome(residue=("open file 3: /memfd:pyattach-\x1b]0;title\x07",))
    run("-o", "out.svg")
    assert "left behind" in run.err and "\x1b" not in run.err


def test_a_terminal_that_can_do_nothing_has_no_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda *_: True)
    monkeypatch.setattr("pyattach.render.terminal_keys.in_foreground", lambda *_: True)
    monkeypatch.setenv("TERM", "xterm")
    assert cli.on_a_terminal()
    monkeypatch.setenv("TERM", "dumb")
    assert not cli.on_a_terminal()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_run_and_the_profile_is_written(run: Run, number: int) -> None:
    before = signal.getsignal(number)

    def during(should_stop: Callable[[], bool]) -> None:
        os.kill(os.getpid(), number)
        assert should_stop()

    run.during = during
    assert run("-o", "out.svg") == ExitCode.OK
    assert run.files() == ["out.svg"]
    assert signal.getsignal(number) == before


def test_a_second_one_skips_the_report_but_not_what_remains(run: Run) -> None:
    def during(_should_stop: Callable[[], bool]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    run.during, run.result = during, outcome(residue=("2 timers",))
    assert run("-o", "out.svg") == ExitCode.DETACH_INCOMPLETE
    assert run.files() == []
    assert "2 timers" in run.err


def test_signal_handlers_come_back_after_an_error_too(run: Run) -> None:
    before = signal.getsignal(signal.SIGINT)
    run.result = InjectionFailed("x")
    run("-o", "out.svg")
    assert signal.getsignal(signal.SIGINT) == before


def test_help_fits_a_screen_and_names_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(["--help"])
    assert raised.value.code == 0
    text = capsys.readouterr().out
    codes = {int(number) for number in re.findall(r"\b(\d) [a-z]", text[text.index("exit codes:") :])}
    assert codes == set(ExitCode)
