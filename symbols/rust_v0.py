"""Names of Rust's "v0" mangling, ``_R...`` (RFC 2603; the rustc book, "v0 Symbol Format").

Shown as rustc-demangle shows them, without the crates' hashes.  Symbols are untrusted: nesting and the length
of the result, which back references can make exponential, are bounded.
"""

from __future__ import annotations

from collections.abc import Callable

_MOST_NESTED = 150
_LONGEST = 16_384  # characters
_MOST_STEPS = 20_000
_MOST_LETTERS = 50_000  # read in all, those that references lead to again and again
_MOST_BOUND = 64  # lifetimes

_BASIC = {
    "a": "i8", "b": "bool", "c": "char", "d": "f64", "e": "str", "f": "f32", "h": "u8", "i": "isize",
    "j": "usize", "l": "i32", "m": "u32", "n": "i128", "o": "u128", "s": "i16", "t": "u16", "u": "()",
    "v": "...", "x": "i64", "y": "u64", "z": "!", "p": "_",
}  # fmt: skip
_DIGITS = {d: n for n, d in enumerate("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")}
_ENDS = ("$", ".")  # of the mangled name: what LLVM appends


class _NoName(ValueError):
    """The mangled name is not of that form."""


def demangle_rust_v0(name: str, *, full: bool = True) -> str | None:
    """The path of the function that ``name`` stands for; None where it is no such name.  Unless ``full``,
    without the generic arguments of functions."""
    if not name.startswith("_R") or not name.isascii():
        return None
    body = name[2:]
    for end in _ENDS:
        body = body.partition(end)[0]
    try:
        return _Reader(body, full=full).symbol()
    except (ValueError, IndexError, OverflowError, RecursionError):  # also of chr() and of punycode
        return None


class _Reader:
    """Each method reads one production of the grammar, and gives its text."""

    def __init__(self, text: str, *, full: bool) -> None:
        self._text, self._full = text, full
        self._at = self._depth = self._bound = self._steps = self._letters = 0

    def symbol(self) -> str:
        if self._peek().isdigit():
            raise _NoName("a version that does not exist yet")
        shown = self._path(value=True)
        if self._at < len(self._text):
            self._path(value=False)  # the crate that made this instance
        if self._at != len(self._text) or len(shown) > _LONGEST:
            raise _NoName("more behind the name")
        return shown

    def _path(self, *, value: bool) -> str:
        with_depth = self._nested
        kind = self._next()
        if kind == "C":
            return self._identifier()[1]
        if kind == "N":
            return with_depth(lambda: self._item(self._next(), value=value))
        if kind in "MX":
            self._disambiguator()
            with_depth(lambda: self._path(value=False))  # where the impl stands
        if kind == "M":
            return f"<{self._type()}>"
        if kind in "XY":
            shown = self._type()
            return f"<{shown} as {with_depth(lambda: self._path(value=False))}>"
        if kind == "I":
            path = with_depth(lambda: self._path(value=value))
            arguments = ", ".join(self._until_end(self._generic))
            if value and not self._full:
                return path
            return f"{path}{'::' if value else ''}<{arguments}>"
        if kind == "B":
            return self._again(lambda: self._path(value=value))
        raise _NoName(kind)

    def _item(self, namespace: str, *, value: bool) -> str:
        path = self._path(value=value)
        number, name = self._identifier()
        if namespace.isupper():
            special = {"C": "closure", "S": "shim"}.get(namespace, namespace)
            return f"{path}::{{{special}{':' + name if name else ''}#{number}}}"
        if not namespace.islower():
            raise _NoName(namespace)
        return f"{path}::{name}" if name else path

    def _type(self) -> str:
        kind = self._next()
        if kind in _BASIC:
            return _BASIC[kind]
        return self._nested(lambda: self._composed(kind))

    def _composed(self, kind: str) -> str:
        if kind == "A":
            return f"[{self._type()}; {self._const()}]"
        if kind == "S":
            return f"[{self._type()}]"
        if kind == "T":
            parts = self._until_end(self._type)
            return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"
        if kind in "RQ":
            lifetime = self._lifetime() if self._take("L") else ""
            return f"&{lifetime + ' ' if lifetime else ''}{'mut ' if kind == 'Q' else ''}{self._type()}"
        if kind in "PO":
            return f"*{'const' if kind == 'P' else 'mut'} {self._type()}"
        if kind == "F":
            return self._binder(self._function)
        if kind == "D":
            shown = "dyn " + self._binder(lambda: " + ".join(self._until_end(self._trait)))
            if not self._take("L"):
                raise _NoName("a dyn without lifetime")
            lifetime = self._lifetime()
            return f"{shown} + {lifetime}" if lifetime else shown
        if kind == "B":
            return self._again(self._type)
        self._at -= 1
        return self._path(value=False)

    def _function(self) -> str:
        shown = "unsafe " if self._take("U") else ""
        if self._take("K"):
            abi = "C" if self._take("C") else self._plain().replace("_", "-")
            shown += f'extern "{abi}" '
        arguments = ", ".join(self._until_end(self._type))
        result = self._type()
        return f"{shown}fn({arguments})" + ("" if result == "()" else f" -> {result}")

    def _trait(self) -> str:
        shown = self._path(value=False)
        bindings = []
        while self._take("p"):
            bindings.append(f"{self._plain()} = {self._type()}")
        if not bindings:
            return shown
        more = ", ".join(bindings)
        return f"{shown[:-1]}, {more}>" if shown.endswith(">") else f"{shown}<{more}>"

    def _generic(self) -> str:
        if self._take("L"):
            return self._lifetime() or "'_"
        return self._const() if self._take("K") else self._type()

    def _const(self) -> str:
        if self._take("p"):
            return "_"
        if self._take("B"):
            return self._again(self._const)
        kind = self._next()
        sign = "-" if self._take("n") else ""
        end = self._text.find("_", self._at)
        digits = self._text[self._at : end]
        if end < 0 or kind not in "abchijlmnostxy" or digits.strip("0123456789abcdef"):
            raise _NoName("a constant")
        self._at = end + 1
        number = int(digits or "0", 16)
        if kind == "b":
            return {0: "false", 1: "true"}.get(number, "?")
        if kind == "c":
            return repr(chr(number))
        return f"{sign}0x{digits}" if len(digits) > 16 else f"{sign}{number}"

    def _binder(self, read: Callable[[], str]) -> str:
        count = self._number() + 1 if self._take("G") else 0
        if self._bound + count > _MOST_BOUND:
            raise _NoName("too many lifetimes")
        names = [_lifetime_name(self._bound + n) for n in range(count)]
        self._bound += count
        shown = read()
        self._bound -= count
        return f"for<{', '.join(names)}> {shown}" if names else shown

    def _lifetime(self) -> str:
        """Its name; nothing for one that was erased."""
        index = self._number()
        if index > self._bound:
            raise _NoName("an unbound lifetime")
        return _lifetime_name(self._bound - index) if index else ""

    def _identifier(self) -> tuple[int, str]:
        number = self._disambiguator()
        return number, self._plain()

    def _disambiguator(self) -> int:
        return self._number() + 1 if self._take("s") else 0

    def _plain(self) -> str:
        coded = self._take("u")
        begin = self._at
        while self._peek().isdigit():
            self._at += 1
            if self._text[begin] == "0":
                break
        size = int(self._text[begin : self._at] or "x") if self._at - begin < 6 and self._at > begin else -1
        self._take("_")
        name = self._text[self._at : self._at + size]
        if size < 0 or len(name) != size:
            raise _NoName("an identifier")
        self._at += size
        if not coded:
            return name
        basic, mark, rest = name.rpartition("_")
        return (f"{basic}-{rest}" if mark else rest).encode().decode("punycode")

    def _number(self) -> int:
        """In base 62, closed by "_"."""
        if self._take("_"):
            return 0
        number = 0
        while not self._take("_"):
            number = number * 62 + _DIGITS.get(self._next(), 1 << 64)
            if number >= 1 << 64:
                raise _NoName("a number")
        return number + 1

    def _again(self, read: Callable[[], str]) -> str:
        begin, target = self._at - 1, self._number()
        if target >= begin:
            raise _NoName("a reference forward")
        kept, self._at = self._at, target
        shown = self._nested(read)
        self._at = kept
        return shown

    def _until_end(self, read: Callable[[], str]) -> list[str]:
        out = []
        while not self._take("E"):
            out.append(read())
        return out

    def _nested(self, read: Callable[[], str]) -> str:
        self._depth += 1
        self._steps += 1
        if self._depth > _MOST_NESTED or self._steps > _MOST_STEPS:
            raise _NoName("nested too deeply")
        shown = read()
        self._depth -= 1
        if len(shown) > _LONGEST:
            raise _NoName("too long")
        return shown

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        self._at += 1
        self._letters += 1
        if self._letters > _MOST_LETTERS:
            raise _NoName("too many references")
        return self._text[self._at - 1]

    def _take(self, letter: str) -> bool:
        found = self._peek() == letter
        self._at += found
        return found


def _lifetime_name(index: int) -> str:
    return f"'{chr(ord('a') + index)}" if index < 26 else f"'_{index}"
