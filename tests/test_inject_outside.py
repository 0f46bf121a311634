"""The unwinder on pyattach's own side: a stopped stack whose return addresses its owner has told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from support import Target, build_target
from test_attach_run import Spawn, wait_for

from pyattach.attacher.clock import TimerClock
from pyattach.attacher.contract import Options
from pyattach.attacher.modules import ModuleTable
from pyattach.attacher.planning import plan_region
from pyattach.attacher.procfs import Blocked, read_blocked
from pyattach.attacher.target import TargetProcess
from pyattach.inject.layout import End
from pyattach.inject.outside import OutsideUnwinder
from pyattach.symbols.resolver import Resolver, proc_opener

SYS_READ = 0
LEVELS = 200

FLAVOURS = pytest.mark.parametrize(
    "flags", [("-fomit-frame-pointer",), ("-fno-omit-frame-pointer",)], ids=["no-fp", "fp"]
)


def parked_at(pid: int) -> Blocked:
    found: list[Blocked] = []

    def reads() -> bool:
        place = read_blocked(pid, pid)
        if place is not None and place.syscall == SYS_READ:
            found.append(place)
        return bool(found)

    wait_for("parked in read", reads)
    return found[0]


@contextlib.contextmanager
def unwinder_of(pid: int, max_depth: int = 512) -> Iterator[OutsideUnwinder]:
    with TargetProcess(pid) as target:
        maps = target.maps()
        with Resolver(maps, proc_opener(pid)) as resolver:
            table, _index = ModuleTable(target, resolver, plan_region(Options(), 1, TimerClock())).first(maps)
        unwinder = OutsideUnwinder(target.memory_fd, region=0, max_depth=max_depth)
        unwinder.set_modules(table)
        yield unwinder


def returns_of(target: Target) -> list[int]:
    return [int(word, 16) for word in target.expect("returns").split()[1:]]


@FLAVOURS
def test_every_return_address_is_the_one_there_is(spawn: Spawn, flags: tuple[str, ...]) -> None:
    # Deeper than the window that is copied of a stack, so it is moved on the way.
    with spawn(build_target("parked", *flags), LEVELS) as target:
        expected = returns_of(target)
        place = parked_at(target.pid)
        with unwinder_of(target.pid) as unwinder:
            for _ in range(2):  # from the tables, then from its cache
                end, addresses = unwinder.walk(place.sp, place.ip)
                assert end == End.ROOT
                assert addresses[0] == place.ip
                at = addresses.index(expected[0])
                assert addresses[at : at + len(expected)] == tuple(expected)
                assert at < 5, "libc's read and what called it"
        target.finish()


@FLAVOURS
def test_a_stack_is_cut_at_the_depth_asked_for(spawn: Spawn, flags: tuple[str, ...]) -> None:
    with spawn(build_target("parked", *flags), LEVELS) as target:
        place = parked_at(target.pid)
        with unwinder_of(target.pid, max_depth=20) as unwinder:
            end, addresses = unwinder.walk(place.sp, place.ip)
        assert (end, len(addresses)) == (End.DEPTH, 20)
        target.finish()


@pytest.mark.parametrize("sp", [0, 8, 0x1000, (1 << 47) - 8, (1 << 64) - 8, 0x7FFF_FFFF_F001])
@pytest.mark.parametrize("ip", [0, 1, 1 << 46, (1 << 64) - 1])
def test_nonsense_ends_with_a_reason(spawn: Spawn, sp: int, ip: int) -> None:
    with spawn("parked", 1) as target:
        place = parked_at(target.pid)
        with unwinder_of(target.pid) as unwinder:
            for registers in ((sp, ip), (sp, place.ip), (place.sp, ip)):
                end, addresses = unwinder.walk(*registers)
                assert end != End.ROOT and addresses
        target.finish()
