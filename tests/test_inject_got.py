"""Where a process keeps its functions' addresses, against what the dynamic linker itself says of them."""

from __future__ import annotations

import pytest
from support import build_target
from support import spawn as start

from pyattach.attacher.target import TargetProcess
from pyattach.inject.got import loaded_modules, search_order, slots


@pytest.mark.parametrize(
    "flags", [(), ("-Wl,-z,now",), ("-fno-plt",), ("-fuse-ld=lld",), ("-no-pie", "-fno-pie")]
)
def test_slots_of_a_program(flags: tuple[str, ...], may_trace: None) -> None:
    program = build_target("heap_linked", *flags)
    with start(program) as target, TargetProcess(target.pid) as process:
        maps = process.maps()
        modules = loaded_modules(maps, process.read)
        assert len({module.path for module in modules}) == len(modules), "each file once"
        (own,) = [module for module in modules if module.path == str(program)]
        (libc,) = [module for module in modules if "libc.so" in module.path]
        found = {slot.name: slot for slot in slots(own, frozenset({"malloc", "free"}), process.read)}
        assert found.keys() == {"malloc", "free"}
        for slot in found.values():
            assert libc.mapping.start <= slot.value < libc.end, "bound: both were called before"
            assert slot.kind == ("GLOB_DAT" if "-fno-plt" in flags else "JUMP_SLOT")
        order = [module.path for module in search_order(modules, process.read)]
        assert order[0] == str(program)
        assert order.index(libc.path) < len(order)
        assert [module for module in modules if module.is_loader]
        target.finish()


def test_a_file_that_is_none() -> None:
    from pyattach.symbols.maps import Mapping, Maps

    maps = Maps([Mapping(0x1000, 0x2000, "r--p", 0, "00:01", 7, "/x")])
    for head in (b"", b"\x7fELF\x02\x01", b"\x7fELF\x02\x01" + b"\xff" * 58):
        assert loaded_modules(maps, lambda _at, size, head=head: head.ljust(size, b"\xff")[:size]) == []
