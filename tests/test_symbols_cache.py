"""What is kept on disk is believed only if it is ours and whole, whoever writes at the same time."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import hostile

from pyattach.symbols import elf
from pyattach.symbols.cache import Cache, cache_folder
from pyattach.symbols.elf import ElfImage

KEY = "symbols-0123456789abcdef"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_what_was_put_is_there(cache: Cache, tmp_path: Path) -> None:
    assert cache.get(KEY) is None
    cache.put(KEY, b"content")
    assert cache.get(KEY) == b"content"
    assert Cache(tmp_path / "cache").get(KEY) == b"content"
    cache.put(KEY, b"newer")
    assert cache.get(KEY) == b"newer"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [KEY]
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "key", ["", "../symbols-01234567", "symbols", "symbols-xyz", "a/b-01234567", KEY + "\n"]
)
def test_keys_name_no_other_file(cache: Cache, tmp_path: Path, key: str) -> None:
    cache.put(key, b"content")
    assert cache.get(key) is None
    assert not list(tmp_path.rglob("*-*"))


@hostile(200)
@given(st.integers(0, 40), st.binary(max_size=8), st.booleans())
def test_what_is_damaged_is_as_if_it_were_not_there(at: int, instead: bytes, cut: bool) -> None:
    folder = Path(tempfile.mkdtemp())
    cache = Cache(folder)
    cache.put(KEY, b"sixteen bytes ..")
    path = folder / KEY
    whole = path.read_bytes()
    damaged = whole[:at] if cut else whole[:at] + instead + whole[at + len(instead) :]
    path.write_bytes(damaged)
    try:
        assert cache.get(KEY) == (b"sixteen bytes .." if damaged == whole else None)
    finally:
        path.unlink()
        folder.rmdir()


def test_what_others_may_write_is_not_read(cache: Cache, tmp_path: Path) -> None:
    cache.put(KEY, b"content")
    path = tmp_path / "cache" / KEY
    path.chmod(0o666)
    assert cache.get(KEY) is None
    path.chmod(0o600)
    assert cache.get(KEY) == b"content"
    (tmp_path / "cache").chmod(0o777)
    assert cache.get(KEY) is None
    (tmp_path / "cache").chmod(0o700)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert cache.get(KEY) is None
    path.unlink()
    os.mkfifo(path)
    assert cache.get(KEY) is None


def test_the_least_lately_used_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", most_bytes=4000)
    for number in range(4):
        cache.put(f"symbols-0000000{number}", bytes(900))
        path = tmp_path / "cache" / f"symbols-0000000{number}"
        os.utime(path, ns=(1_000_000 * number, 1_000_000 * number))
    assert cache.get("symbols-00000000") is not None  # and lately used
    cache.put("symbols-00000004", bytes(900))
    kept = {path.name[-1] for path in (tmp_path / "cache").iterdir()}
    assert kept == {"0", "2", "3", "4"}
    cache.put("symbols-00000005", bytes(2001))  # more than half of all
    assert cache.get("symbols-00000005") is None


def _write_and_read(folder: Path, number: int, until: float) -> None:
    cache = Cache(folder, most_bytes=100_000)
    content = bytes([number]) * 20_000
    while time.monotonic() < until:
        cache.put(KEY, content)
        found = cache.get(KEY)
        if found is not None and (len(found) != 20_000 or len(set(found)) != 1):
            os._exit(1)
    os._exit(0)


def test_many_may_write_at_once(tmp_path: Path) -> None:
    until = time.monotonic() + 0.5
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write_and_read, args=(tmp_path / "c", n, until)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert [path.name for path in (tmp_path / "c").iterdir()] == [KEY]


def test_a_folder_that_cant_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (None, tmp_path / "file" / "below", Path("/proc/none")):
        cache = Cache(folder)
        cache.put(KEY, b"content")
        assert cache.get(KEY) is None


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/pyattach")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/pyattach")
    monkeypatch.setenv("HOME", "")
    assert cache_folder() is None


def test_symbols_come_out_as_they_went_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a real library, and a cached table that is not its own is not taken for it."""
    monkeypatch.setattr(elf, "_WORTH_KEEPING", 1)
    path = next(w for w in Path("/proc/self/maps").read_text().split() if w.endswith("/libc.so.6"))
    cache = Cache(tmp_path / "cache")
    with ElfImage.open(path) as image:
        fresh = image.function_symbols(cache)
        assert len(fresh) > 1000
        found = [fresh.lookup(value) for value in list(fresh._values)[::97]]
    with ElfImage.open(path) as image:
        kept = image.function_symbols(cache)
        assert [kept.lookup(value) for value in list(kept._values)[::97]] == found
        assert len(kept) == len(fresh)
    (entry,) = (tmp_path / "cache").iterdir()
    cache.put(entry.name, b"\1" * 1000)
    with ElfImage.open(path) as image:
        assert len(image.function_symbols(cache)) == len(fresh)
