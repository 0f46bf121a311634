"""Rust's v0 names: what rustc 1.95 made, as c++filt shows it; and texts that only look like names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import hostile

from pyattach.symbols import rust_v0
from pyattach.symbols.demangle import demangle, display_name
from pyattach.symbols.rust_v0 import demangle_rust_v0

V0T = "Cs473ofah6B0H_3v0t"
CORE, STD, ALLOC = "CsgEmfK2I1SDS_4core", "CsjrHSEGnQ3l9_3std", "CslNYArtu3iFV_5alloc"

NAMES = {
    f"_RNv{V0T}4main": "v0t::main",
    f"_RNvNt{V0T}u9gre_6ka8iu6ma_hia": "v0t::größe::maß",
    f"_RNCNv{V0T}4mains0_0B3_": "v0t::main::{closure#2}",
    f"_RNvMs_{V0T}INtB4_2SqKj7_E3newB4_": "<v0t::Sq<7>>::new",
    f"_RINv{V0T}4flagKb1_Kc78_Kxn5_EB2_": "v0t::flag::<true, 'x', -5>",
    f"_RINv{V0T}3genFG_RL0_eERL0_eEB2_": "v0t::gen::<for<'a> fn(&'a str) -> &'a str>",
    f"_RINv{V0T}3genAQPDNtNt{CORE}3fmt5DebugEL_j0_EB2_": "v0t::gen::<[&mut *const dyn core::fmt::Debug; 0]>",
    f"_RINvXINtB3_2SqKj7_ENt{V0T}5Shape4areaEB3_": None,  # a reference forward
    f"_RINvX{V0T}INtB3_2SqKj7_ENtB3_5Shape4areaThReINtNt{CORE}6option6OptionfEEEB3_":
        "<v0t::Sq<7> as v0t::Shape>::area::<(u8, &str, core::option::Option<f32>)>",
    f"_RNSNvYNCNv{V0T}4main0INtNtNt{CORE}3ops8function6FnOnceTRhEE9call_once6vtableB8_":
        "<v0t::main::{closure#0} as core::ops::function::FnOnce<(&u8,)>>::call_once::{shim:vtable#0}",
    f"_RINvNtNt{STD}3sys9backtrace28___rust_begin_short_backtraceFEuuE{V0T}":
        "std::sys::backtrace::__rust_begin_short_backtrace::<fn(), ()>",
    f"_RINv{V0T}3genINtNt{ALLOC}5boxed3BoxDG_INtNtNt{CORE}3ops8function2FnTQL0_ShTlEEEp6OutputuEL_EEB2_":
        "v0t::gen::<alloc::boxed::Box<dyn for<'a> core::ops::function::Fn<(&'a mut [u8], (i32,)),"
        " Output = ()>>>",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    assert demangle_rust_v0(name) == NAMES[name]
    assert demangle(name) == (NAMES[name] or name)


def test_short_names_have_no_generic_arguments_of_functions() -> None:
    assert display_name(f"_RINv{V0T}4flagKb1_Kc78_Kxn5_EB2_") == "v0t::flag"
    assert display_name(f"_RNvMs_{V0T}INtB4_2SqKj7_E3newB4_") == "<v0t::Sq<7>>::new"
    assert display_name(f"_RNv{V0T}4main.llvm.123") == "v0t::main"


@hostile()
@given(st.text(alphabet="RINCMXYTESBDFGKLpsuvn_0123456789abcxyz", max_size=200))
def test_what_only_looks_like_a_name(text: str) -> None:
    shown = demangle_rust_v0("_R" + text)
    assert shown is None or len(shown) <= 16_384


@pytest.mark.parametrize("digits", ["110000", "7fffffff", "ffffffffffffffff"])
def test_a_constant_that_is_no_character(digits: str) -> None:
    name = f"_RINv{V0T}4flagKc{digits}_E"
    assert demangle_rust_v0(name) is None
    assert demangle(name) == name


def test_names_that_explode_are_refused() -> None:
    """Each tuple holds the one before twice: 2 ** 60 times the first."""
    text, last = "_RINvC1a1f", "h"
    for _ in range(60):
        at = len(text) - 2
        text += f"T{last}{last}E"
        last = "B" + base_62(at)
    assert demangle_rust_v0(text + "E") is None
    assert demangle_rust_v0("_RINvC1a1f" + "S" * 4000 + "hE") is None
    assert demangle_rust_v0("_RINvC1a1f" + "T" * 4000) is None


def test_names_as_deep_as_pythons_stack_are_refused() -> None:
    """A trait that is an argument of a trait, and so on: each takes ten calls of the reader's."""
    deep = "i"
    for _ in range(140):
        deep = f"DIC1a{deep}EEL_"
    assert demangle_rust_v0(f"_RIC1a{deep}E") is None


def test_what_is_referred_to_again_and_again_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of references to one long tuple."""
    read = 0
    read_next = rust_v0._Reader._next

    def counting(reader: rust_v0._Reader) -> str:
        nonlocal read
        read += 1
        return read_next(reader)

    monkeypatch.setattr(rust_v0._Reader, "_next", counting)
    assert demangle_rust_v0("_RIC1aT" + "p" * 1500 + "E" + "B3_" * 860 + "E") is None
    assert read < 100_000


def base_62(number: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    out, number = "", number - 1
    while number >= 0:
        out, number = digits[number % 62] + out, number // 62
        if not number:
            break
    return out + "_"
