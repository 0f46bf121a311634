"""The bootstrap by itself, in a process that is target and pyattach at once: it always comes home unseen."""

from __future__ import annotations

from pathlib import Path

import pytest
from native.drivers import INJECT, build_driver, run_driver

FLAG_COMBINATIONS = 256  # CF PF AF ZF SF OF DF AC


@pytest.fixture(scope="module")
def driver() -> Path:
    return build_driver("boot_driver")


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("unserved", id="nobody comes"),
        pytest.param("nofile", id="memfd_create fails"),
        pytest.param("taken", id="the mail page's address is in use"),
        pytest.param("hinted", id="an old kernel maps the mail page elsewhere"),
        pytest.param("tiny", id="served"),
        pytest.param("loader", id="the real loader calls what spoils the vector state"),
        pytest.param("refused", id="the real loader refuses a command"),
        pytest.param("neighbour", id="the target maps something close by, nobody comes"),
        pytest.param("crowded", id="the target maps something close by, served"),
        pytest.param(
            "squeezed",
            id="the same on an old kernel",
        ),
        pytest.param("signalled", id="a signal has come meanwhile, and its handler looks at the registers"),
    ],
)
def test_the_thread_comes_back_as_it_was(driver: Path, mode: str) -> None:
    out = run_driver(driver, INJECT / "_boot.bin", INJECT / "_loader.bin", mode)
    assert out == f"OK {FLAG_COMBINATIONS}\n"
