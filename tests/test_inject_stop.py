"""The end of sampling, as a thread meets it that is in its handler just then."""

from __future__ import annotations

import re

from native.drivers import build_driver, run_driver


def test_no_timer_is_left_whenever_the_stop_comes() -> None:
    """One that were would tick when its signal has its default action again: that ends the process."""
    said = re.fullmatch(r"(\d+) moments, (\d+) timers left\n", run_driver(build_driver("stop_driver")))
    assert said
    moments, left = map(int, said.groups())
    assert moments >= 16, "before and after each of two system calls for each of four timers"
    assert left == 0
