"""Where no thread may be borrowed for dlopen: zones made of crafted symbols, and those of the real libc."""

from __future__ import annotations

import ctypes
import io
import itertools
import os
import platform
import struct
from collections.abc import Iterator

import pytest
from elfwriter import Elf, Load, Sym
from hypothesis import given
from hypothesis import strategies as st

from pyattach.inject import locks
from pyattach.inject.locks import LockZones
from pyattach.symbols.elf import ElfImage
from pyattach.symbols.maps import Maps, parse_maps
from pyattach.symbols.resolver import proc_opener

BIAS = 0x7F00_0000_0000
END = BIAS + 0x2000


def blocks(*symbols: Sym) -> list[tuple[int, int]]:
    """Zones of a library with these exported functions, without its bias."""
    image = ElfImage(Elf(loads=(Load(0x1000, 0x1000, 0x1000),), dynsym=symbols).encode())
    return [(low - BIAS, high - BIAS) for low, high in locks._merge(locks._blocks(image, BIAS, END))]


def test_a_zone_reaches_from_the_function_before_to_the_one_behind() -> None:
    """What lies in between, not exported, is the rest of the same source file."""
    symbols = [Sym("puts", 0x1100, 0x40), Sym("malloc", 0x1200, 0x40), Sym("qsort", 0x1300, 0x40)]
    assert blocks(*symbols) == [(0x1140, 0x1300)]
    assert blocks(*reversed(symbols)) == [(0x1140, 0x1300)]


def test_the_first_and_the_last_function() -> None:
    assert blocks(Sym("free", 0x1100, 0x40), Sym("qsort", 0x1300, 0x40)) == [(0x1100, 0x1300)]
    assert blocks(Sym("qsort", 0x1100, 0x40), Sym("fork", 0x1300, 0x40)) == [(0x1140, 0x2000)]


def test_aliases_count_with_the_longest() -> None:
    symbols = [
        Sym("puts", 0x1100, 0x10),
        Sym("_IO_puts", 0x1100, 0x40),
        Sym("cfree", 0x1200, 8),
        Sym("end", 0x1300, 8),
    ]
    assert blocks(*symbols, Sym("anything", 0x1200, 0x20)) == [(0x1140, 0x1300)]


def test_a_function_that_reaches_over_the_zone_is_no_reason_to_shrink_it() -> None:
    assert blocks(Sym("long", 0x1100, 0x180), Sym("malloc", 0x1200, 0x40), Sym("end", 0x1300, 8)) == [
        (0x1200, 0x1300)
    ]


def test_a_symbol_inside_a_function_does_not_cut_it() -> None:
    assert blocks(Sym("malloc", 0x1200, 0x100), Sym("inner", 0x1240, 8), Sym("end", 0x1400, 8)) == [
        (0x1200, 0x1400)
    ]


def test_symbols_without_size_or_place_are_nothing() -> None:
    assert blocks(Sym("malloc", 0x1200, 0), Sym("free", 0, 0x10), Sym("qsort", 0x1300, 8)) == []


@pytest.mark.parametrize(
    "name",
    "malloc calloc realloc free cfree memalign aligned_alloc valloc pvalloc posix_memalign reallocarray "
    "malloc_trim malloc_usable_size mallinfo mallinfo2 mallopt __libc_malloc __libc_fork __libc_freeres "
    "dlopen dlclose dlsym dl_iterate_phdr _dl_open __libc_dlopen_mode fork _Fork __fork vfork".split(),
)
def test_names_that_hold_locks(name: str) -> None:
    assert blocks(Sym(name, 0x1100, 0x40), Sym("qsort", 0x1300, 8)) == [(0x1100, 0x1300)]


@pytest.mark.parametrize(
    "name", "printf freeaddrinfo mallocate forkpty nanosleep dlx d_l xfree fgetc_unlocked".split()
)
def test_names_that_do_not(name: str) -> None:
    known = name == "dlx"  # any name that begins like the loader's is taken for one: a refusal, no harm
    assert blocks(Sym(name, 0x1100, 0x40), Sym("qsort", 0x1300, 8)) == ([(0x1100, 0x1300)] if known else [])


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda r: (r[0], r[0] + r[1]))))
def test_merged_they_are_sorted_disjoint_and_the_same(ranges: list[tuple[int, int]]) -> None:
    merged = locks._merge(ranges)
    assert all(low < high for low, high in merged)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(merged))
    assert {x for low, high in merged for x in range(low, high)} == {
        x for low, high in ranges for x in range(low, high)
    }


def stack(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}Q", *words)


ZONES = LockZones([(0x1000, 0x2000), (0x5000, 0x6000)])


@pytest.mark.parametrize("word", [0x1000, 0x1FFF, 0x5000, 0x5FFF])
def test_a_word_in_a_zone_is_found_anywhere(word: int) -> None:
    assert ZONES.holds(b"", word) == word
    assert ZONES.holds(stack(word), 0) == word
    assert ZONES.holds(stack(1, 2, word, 3), 0) == word
    assert ZONES.holds(stack(0x2000, 0x3000, word), 0x4FFF) == word


@pytest.mark.parametrize("word", [0, 0xFFF, 0x2000, 0x4FFF, 0x6000, (1 << 64) - 1])
def test_a_word_in_none_is_not(word: int) -> None:
    assert ZONES.holds(stack(word), word) is None


def test_only_whole_words_are_looked_at() -> None:
    assert ZONES.holds(stack(0, 0x1234)[:-1], 0) is None
    assert ZONES.holds(b"\0" * 4 + stack(0x1234) + b"\0" * 4, 0) is None


def test_without_zones_nothing_is_held() -> None:
    assert LockZones([]).holds(stack(0x1000), 0x1000) is None


# The system's own libc, as this very process has it mapped.


@pytest.fixture(scope="module")
def surveyed() -> Iterator[tuple[LockZones, locks.LoaderCalls | None, Maps]]:
    with open("/proc/self/mem", "rb") as memory:

        def read(address: int, size: int) -> bytes:
            return os.pread(memory.fileno(), size, address)

        with open("/proc/self/maps", "rb") as file:
            maps = Maps.parse(file.read())
        yield (*locks.survey(maps, proc_opener(os.getpid()), read), maps)


def address_of(name: str) -> int:
    """Of the C library's own function: asked for in all, an executable at a fixed address (as Debian's
    Python is) answers with its PLT entry for it."""
    libc = ctypes.CDLL("libc.so.6" if platform.libc_ver()[0] == "glibc" else None)
    address = ctypes.cast(getattr(libc, name), ctypes.c_void_p).value
    assert address
    return address


Surveyed = tuple[LockZones, "locks.LoaderCalls | None", Maps]


@pytest.mark.parametrize(
    "name",
    "malloc calloc realloc free posix_memalign malloc_trim dlopen dlclose dlsym dlerror dl_iterate_phdr fork "
    "_Fork vfork".split(),
)
def test_the_real_functions_that_hold_locks(surveyed: Surveyed, name: str) -> None:
    try:
        address = address_of(name)
    except AttributeError:
        pytest.skip(f"this C library has no {name}")
    assert surveyed[0].holds(stack(address + 1), 0) == address + 1
    assert surveyed[0].holds(b"", address) == address


@pytest.mark.parametrize(
    "name",
    "printf nanosleep clock_nanosleep poll select epoll_wait read write pthread_cond_wait pthread_mutex_lock "
    "qsort sem_wait accept recv waitpid pause".split(),
)
def test_places_where_threads_wait_are_free(surveyed: Surveyed, name: str) -> None:
    """Were they not, a sleeping thread could never be borrowed for dlopen."""
    address = address_of(name)
    assert surveyed[0].holds(stack(address, address + 16), address) is None


def test_all_of_the_loader_is_a_zone(surveyed: Surveyed) -> None:
    zones, _, maps = surveyed
    loader = [m for m in maps.executable() if locks._LOADER.search(m.path)]
    assert loader
    for mapping in loader:
        assert zones.holds(b"", mapping.start) == mapping.start
        assert zones.holds(b"", mapping.end - 1) == mapping.end - 1


def test_the_return_from_a_signal_is_a_zone(surveyed: Surveyed) -> None:
    """A thread in a handler may have been anywhere before: inside malloc, too."""
    zones, _, maps = surveyed
    libc = [m for m in maps.executable() if locks._LIBC.search(m.path)]
    if not libc:
        pytest.skip("not glibc")
    code = ctypes.string_at(libc[0].start, libc[0].end - libc[0].start)
    at = libc[0].start + code.index(locks._SIGRETURN)
    assert zones.holds(stack(at), 0) == at


def test_zones_leave_most_of_the_code_free(surveyed: Surveyed) -> None:
    zones, _, maps = surveyed
    for mapping in (m for m in maps.executable() if locks._LIBC.search(m.path)):
        covered = sum(max(0, min(high, mapping.end) - max(low, mapping.start)) for low, high in zones.ranges)
        assert 0 < covered < (mapping.end - mapping.start) / 4


def test_the_loaders_calls_are_found(surveyed: Surveyed) -> None:
    calls = surveyed[1]
    assert calls is not None
    assert (calls.dlopen, calls.dlclose) == (address_of("dlopen"), address_of("dlclose"))
    assert calls.errno_location == address_of("__errno_location")
    assert calls.flags == 2


def test_without_a_c_library_there_is_nothing_to_call() -> None:
    assert locks.survey(Maps([]), lambda _mapping: None, lambda _address, _size: b"") == (LockZones([]), None)


def test_a_c_library_that_cant_be_parsed_is_a_zone_as_a_whole(surveyed: Surveyed) -> None:
    maps = Maps([m for m in surveyed[2] if locks._LIBC.search(m.path)])
    if not len(maps):
        pytest.skip("not glibc")
    zones, calls = locks.survey(
        maps, lambda _mapping: io.BytesIO(b"\x7fELF rubbish"), lambda _a, size: b"\0" * size
    )
    (code,) = maps.executable()
    assert zones.ranges == [(code.start, code.end)]
    assert calls is None


def test_what_is_too_large_for_a_c_library_is_a_zone_as_a_whole() -> None:
    """It is not read: a target may give any name to any file, of thousands of gigabytes."""
    size = 1 << 40
    line = f"{BIAS:x}-{BIAS + size:x} r-xp 00000000 00:00 7 /tmp/libc.so.6\n"
    library = Elf(loads=(Load(0, 0, 0x1000),), dynsym=(Sym("puts", 0x100, 8),)).encode()

    def read(_address: int, size: int) -> bytes:
        raise AssertionError(f"{size} bytes were asked for")

    zones, _calls = locks.survey(Maps(parse_maps(line.encode())), lambda _mapping: io.BytesIO(library), read)
    assert zones.ranges == [(BIAS, BIAS + size)]
