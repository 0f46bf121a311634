"""``pyattach report`` and ``pyattach diff``, and the choice of a format, on the command line."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from graphs import profile, svg
from test_attach_run import Spawn, attach
from test_render_readers import check_firefox

from pyattach.attacher.main import main
from pyattach.render.profile import Profile
from pyattach.render.reading import read_profile


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(path: Path, stacks: dict[str, int], **meta: object) -> Profile:
    of = profile(stacks, **meta)
    path.write_text(svg(of))
    return of


def test_a_report_is_a_summary_on_stdout(folder: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    picture(folder / "a.svg", {"main f": 3, "main g": 1}, command="app", pid=7)
    assert main(["report", "a.svg"]) == 0
    out = capfdbinary.readouterr().out.decode()
    assert "command            app\n" in out and "  75.00%   75.00%          3  f  [app]\n" in out


def test_a_report_in_every_format_has_the_same_samples(folder: Path) -> None:
    of = picture(folder / "a.svg", {"main f": 3, "main g": 1}, pid=7, rate_asked_hz=99.0)
    outputs = ["b.svg", "b.json", "b.pb.gz", "b.folded", "b.speedscope.json", "b.firefox.json", "b.txt"]
    assert main(["report", "a.svg", *(word for output in outputs for word in ("-o", output))]) == 0
    assert read_profile("b.svg") == read_profile("b.json") == of
    assert read_profile("b.pb.gz").weights == of.weights
    assert read_profile("b.folded").total == 4
    assert sum(json.loads(Path("b.speedscope.json").read_text())["profiles"][0]["weights"]) == 4
    assert check_firefox(json.loads(Path("b.firefox.json").read_text())) == {"f": 3, "g": 1}
    assert "\nsamples            4\n" in Path("b.txt").read_text()


def test_the_format_goes_before_the_suffix(folder: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    picture(folder / "a.svg", {"main f": 3})
    assert main(["report", "a.svg", "-f", "folded", "-o", "x.svg", "-o", "-"]) == 0
    assert Path("x.svg").read_text() == "main;f 3\n"
    assert capfdbinary.readouterr().out == b"main;f 3\n"
    assert main(["report", "a.svg", "-f", "pprof", "-o", "-"]) == 0
    assert gzip.decompress(capfdbinary.readouterr().out)


def test_what_a_report_refuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(folder / "a.svg", {"main f": 3})
    assert main(["report", "a.svg", "-f", "pdf"]) == 2
    assert "known formats: svg, folded, text" in capsys.readouterr().err
    assert main(["report", "a.svg", "-o", "gone/x.svg"]) == 2
    assert main(["report", "nothing.svg"]) == 1
    assert "nothing.svg: No such file" in capsys.readouterr().err
    (folder / "b").write_text("no stack")
    assert main(["report", "b"]) == 1
    assert "b: line 1 is no folded stack" in capsys.readouterr().err


def test_an_empty_profile_makes_a_picture_and_exit_code_5(folder: Path) -> None:
    picture(folder / "a.svg", {}, duration_s=3.0, ended_by="duration reached")
    assert main(["report", "a.svg", "-o", "b.svg"]) == 5
    assert "No samples in 3.0 s." in "".join(ElementTree.parse("b.svg").getroot().itertext())


def test_a_diff_is_a_picture_of_the_later_one(folder: Path) -> None:
    picture(folder / "a.svg", {"main f": 300, "main g": 100})
    after = picture(folder / "b.svg", {"main f": 100, "main g": 300, "main h": 50})
    assert main(["diff", "a.svg", "b.svg", "-o", "d.svg", "--inverted"]) == 0
    assert read_profile("d.svg") == after
    text = Path("d.svg").read_text()
    assert all(f'class="{kind}"' in text for kind in ("more2", "less2", "new"))


def test_folded_stacks_are_compared_with_a_picture_by_name(folder: Path) -> None:
    picture(folder / "a.svg", {"main f": 300})
    (folder / "b.folded").write_text("main;f 300\n")
    assert main(["diff", "a.svg", "b.folded"]) == 0
    assert 'class="new"' not in Path("diff.svg").read_text().partition('<g id="still-foot">')[0]


def test_different_modes_are_not_compared_unasked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(folder / "a.svg", {"main f": 300}, mode="wall")
    picture(folder / "b.svg", {"main f": 300}, mode="cpu")
    assert main(["diff", "a.svg", "b.svg"]) == 2
    assert "--different-modes" in capsys.readouterr().err and not (folder / "diff.svg").exists()
    assert main(["diff", "a.svg", "b.svg", "--different-modes"]) == 0


def test_processes_are_compared_whatever_their_pids(folder: Path) -> None:
    """The roots of -s, of two runs."""
    (folder / "a.folded").write_text("100 srv;main;f 500\n101 worker;main;g 500\n")
    (folder / "b.folded").write_text("200 srv;main;f 500\n207 worker;main;g 200\n209 worker;main;g 300\n")
    assert main(["diff", "a.folded", "b.folded"]) == 0
    still = Path("diff.svg").read_text().partition('<g id="still-foot">')[0]
    assert 'class="same"' in still and 'class="new"' not in still


def test_heaps_are_compared_by_one_measure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(folder / "a.svg", {"main f": 300}, mode="heap", unit="bytes", kind="peak")
    picture(folder / "b.svg", {"main f": 3}, mode="heap", unit="blocks", kind="allocated")
    assert main(["diff", "a.svg", "b.svg"]) == 2
    assert "of bytes peak, the second of blocks allocated" in capsys.readouterr().err
    assert main(["diff", "a.svg", "a.svg"]) == 0
    assert "Compared with 300 bytes" in Path("diff.svg").read_text()


def test_input_may_be_a_pipe(folder: Path) -> None:
    text = "".join(f"main;f{n} 1\n" for n in range(2000))
    reading, writing = os.pipe()
    with open(writing, "w") as pipe, open(reading, "rb"):
        pipe.write(text)
        pipe.flush()
        pipe.close()
        assert main(["report", f"/dev/fd/{reading}", "-o", "b.folded"]) == 0
    assert read_profile("b.folded").total == 2000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_no_half_written_file_is_left(folder: Path, number: int) -> None:
    code = f"""
import os, sys, time
from pyattach.render import formats
def written(chunks):
    os.kill(os.getpid(), {int(number)})
    time.sleep(60)
    yield from chunks
replace = formats._replace
formats._replace = lambda target, chunks: replace(target, written(chunks))
from pyattach.attacher.main import main
sys.exit(main(["report", "a.folded", "-o", "b.svg"]))
"""
    (folder / "a.folded").write_text("main;f 1\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + number, "")
    assert [path.name for path in folder.iterdir()] == ["a.folded"]


def test_what_a_diff_refuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(folder / "a.svg", {"main f": 300})
    picture(folder / "b.svg", {})
    assert main(["diff", "a.svg", "b.svg"]) == 5
    assert "b.svg holds no samples" in capsys.readouterr().err
    assert main(["diff", "a.svg", "a.svg", "-o", "d.txt"]) == 2
    assert "a diff is a picture" in capsys.readouterr().err


def test_a_run_writes_all_formats_with_one_total(spawn: Spawn, folder: Path) -> None:
    outputs = ["a.svg", "a.json", "a.pb.gz", "a.folded", "a.speedscope.json", "a.firefox.json"]
    with spawn("split") as target:
        attach(
            target.pid,
            "-d",
            "1",
            "--inverted",
            "--reverse",
            *(w for o in outputs for w in ("-o", folder / o)),
        )
    of = read_profile("a.svg")
    assert of.total == of.meta.samples > 0
    assert read_profile("a.json") == of
    assert read_profile("a.pb.gz").total == read_profile("a.folded").total == of.total
    speedscope = json.loads(Path("a.speedscope.json").read_text())
    assert sum(speedscope["profiles"][0]["weights"]) == of.total
    firefox = json.loads(Path("a.firefox.json").read_text())
    assert sum(check_firefox(firefox).values()) == of.total
    times_ms = [time for thread in firefox["threads"] for time in thread["samples"]["time"]]
    assert min(times_ms) >= 0 and max(times_ms) <= firefox["meta"]["profilingEndTime"]
    assert len(set(times_ms)) > 1
