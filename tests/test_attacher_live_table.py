"""What the session tells the live view."""

from __future__ import annotations

import io
import itertools
import os
import re
from pathlib import Path

from pyattach.attacher.contract import Options, Progress
from pyattach.attacher.live_table import LiveTable
from pyattach.attacher.samples import SampleStore
from pyattach.inject.layout import End
from pyattach.render.plain import PlainView
from pyattach.symbols.maps import Maps
from pyattach.symbols.resolver import Resolver, proc_opener


def test_the_view_is_told_how_many_stacks_have_names() -> None:
    out, seconds = io.StringIO(), itertools.count()
    view = PlainView(out, period_s=1, clock=lambda: next(seconds))
    pid, maps = os.getpid(), Maps.parse(Path("/proc/self/maps").read_bytes())
    with Resolver(maps, proc_opener(pid)) as resolver:
        (code, *_) = maps.executable()
        store = SampleStore(resolver)
        store.add((1, int(End.ROOT), 1, (code.start + 16 * n, code.start)) for n in range(50))
        with view:
            table = LiveTable(view, pid, "python", Options())
            table(Progress(store, 1.0, 1.0, 50, 1, 0, None, None))
            store.add((1, int(End.ROOT), 1, (code.start + 16 * n, code.start)) for n in range(50, 100))
            store.name_stacks()
    named = re.findall(r"^naming functions: (\d+) of 100$", out.getvalue(), re.MULTILINE)
    assert [int(number) for number in named] == list(range(101))
    assert sum(store.weights().values()) == 100
