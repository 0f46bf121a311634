"""Names for people: C++, Rust, and what must stay as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import hostile

from pyattach.symbols import demangle_helper
from pyattach.symbols.demangle import demangle, display_name, short_name


@pytest.mark.parametrize(
    ("mangled", "full", "short"),
    [
        ("_Z3fooi", "foo(int)", "foo"),
        ("_ZN3Foo3barEv.cold", "Foo::bar() [clone .cold]", "Foo::bar [clone .cold]"),
        ("memcpy@@GLIBC_2.14", "memcpy", "memcpy"),
        ("_Znwm@GLIBCXX_3.4", "operator new(unsigned long)", "operator new"),
        ("main.(*Server).Serve", "main.(*Server).Serve", "main.(*Server).Serve"),
        ("main.Map[go.shape.int]", "main.Map[go.shape.int]", "main.Map[go.shape.int]"),
        ("_Znonsense", "_Znonsense", "_Znonsense"),
        ("_Z", "_Z", "_Z"),
        ("", "", ""),
        ("@", "@", "@"),
        ("_RNvC6_123foo3bar", "123foo::bar", "123foo::bar"),
        ("_ZN3std2io5Write9write_all17h0123456789abcdefE", "std::io::Write::write_all", None),
        ("_ZN3foo3bar17h0123456789abcdefE.llvm.1234567", "foo::bar", None),
        (
            "_ZN71_$LT$Test$u20$$u2b$$u20$$u27$static$u20$as$u20$foo..Bar$LT$Test$GT$$GT$3bar17h930b740aa94f1d3aE",
            "<Test + 'static as foo::Bar<Test>>::bar",
            None,
        ),
        ("_ZN3a$u0$17h0123456789abcdefE", "_ZN3a$u0$17h0123456789abcdefE", None),
        ("_ZN4$u0$17h0123456789abcdefE", "$u0$", None),
    ],
)
def test_names(mangled: str, full: str, short: str | None) -> None:
    assert demangle(mangled) == full
    assert display_name(mangled) == (full if short is None else short)


@pytest.mark.parametrize(
    ("full", "short"),
    [
        ("foo", "foo"),
        ("std::vector<int, std::allocator<int> >::push_back(int&&)", "std::vector::push_back"),
        ("void foo<int>(int)", "foo"),
        ("unsigned long const& ns::foo<int>(int)", "ns::foo"),
        ("(anonymous namespace)::Foo::bar(int) const", "(anonymous namespace)::Foo::bar"),
        ("int (anonymous namespace)::foo<int>(int)", "(anonymous namespace)::foo"),
        ("std::ostream& std::operator<< <char>(std::ostream&, char)", "std::operator<<"),
        ("bool operator< <int>(A<int> const&, A<int> const&)", "operator<"),
        ("operator<(A, B)", "operator<"),
        ("Foo::operator()(int) const", "Foo::operator()"),
        ("auto Foo::operator()<int>(int) const &", "Foo::operator()"),
        ("Foo::operator[](int)", "Foo::operator[]"),
        ("Foo::operator->() const", "Foo::operator->"),
        ("operator delete[](void*, unsigned long)", "operator delete[]"),
        ("Foo::operator bool() const", "Foo::operator bool"),
        ("Foo<int>::operator std::vector<int, A<(B)1> >() const", "Foo::operator std::vector"),
        ("operator_like(int)", "operator_like"),
        ("my_operator<int>::run()", "my_operator::run"),
        ("foo(int)::{lambda(int)#1}::operator()(int) const", "foo::{lambda#1}::operator()"),
        ("foo() const::{lambda()#2}::_FUN()", "foo::{lambda#2}::_FUN"),
        ("foo::{unnamed type#1}::bar()", "foo::{unnamed type#1}::bar"),
        ("decltype (((f)({parm#1})).y()) std::__invoke<F, A>(F&&, A&&)", "std::__invoke"),
        ("decltype(auto) foo<int>()", "foo"),
        ("void (*signal<int>(int))(char)", "signal"),
        ("A<&(operator<(B, C))>::f()", "A::f"),
        ("A<(x)->y>::f(int (*)(int))", "A::f"),
        ("std::string::str[abi:cxx11](int) const", "std::string::str[abi:cxx11]"),
        ("vtable for Foo<int>", "vtable for Foo"),
        ("non-virtual thunk to Foo::~Foo()", "non-virtual thunk to Foo::~Foo"),
        ("Foo::f(int) [clone .part.0] [clone .cold]", "Foo::f [clone .part.0] [clone .cold]"),
        ("core::ptr::<impl Foo for Bar<T>>::baz", "core::ptr::<impl Foo for Bar<T>>::baz"),
        ("((((", "(((("),
        ("a<<<<", "a"),
        (" ", " "),
    ],
)
def test_short_names(full: str, short: str) -> None:
    assert short_name(full) == short


@given(st.text(alphabet="aoperator<>(){}[]:-~ ,*&const#1", max_size=60))
def test_short_names_of_anything(text: str) -> None:
    assert bool(short_name(text)) == bool(text)


@hostile()
@given(st.text(max_size=80))
def test_any_text_has_a_name(text: str) -> None:
    for name in (text, "_Z" + text, f"_ZN{text}17h0123456789abcdefE"):
        assert isinstance(demangle(name), str) and bool(display_name(name)) == bool(name)


def test_long_names_are_left_alone() -> None:
    name = "_Z4095" + "a" * 4095 + "v"
    assert demangle(name) == display_name(name) == name


def explosive(levels: int) -> str:
    """Demangles to some 3 ** levels * 30 characters: each type holds the last one three times."""
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    name, last = "_Z1f1AIiiiE", "S0_"
    for level in range(levels):
        name += f"S_I{last * 3}E"
        last = f"S{digits[level + 1]}_"
    return name


def test_explosive_names_stay_mangled() -> None:
    try:
        for levels in (9, 30):
            assert demangle(explosive(levels)) == explosive(levels)
    finally:
        demangle_helper.close()


def test_the_helper_demangles_heavy_names() -> None:
    name = "_Z1f1AIiES0_" + "S0_" * 60
    try:
        assert display_name(name) == "f"
    finally:
        demangle_helper.close()


def test_without_a_demangler_names_stay_mangled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demangle_helper, "in_process", lambda name: None)
    assert demangle.__wrapped__("_Z3bari") == "_Z3bari"
