"""Names as the programmer wrote them, from the names the linker sees.

C++ (Itanium ABI) through libstdc++'s own demangler, Rust here, in both forms; everything else (Swift, D)
stays as it is.  Names come from the target and are untrusted, and the demangler's output can be exponential
in its input, so names that could explode are given to a helper process with limits.
"""

from __future__ import annotations

import functools
import re

from . import demangle_helper
from .rust_v0 import demangle_rust_v0

_LONGEST = 4096  # bytes of a mangled name worth trying
_SAFE_OUTPUT = 16 * 1024 * 1024  # bytes the demangler may write in our own process, at the very worst
_LONGEST_OUTPUT = 16_384  # characters; more is of no use to anyone

_VERSION = re.compile(r"@@?[A-Za-z_][\w.]*\Z")
_BACK_REFERENCE = re.compile(r"[ST][0-9A-Z]*_")


@functools.lru_cache(maxsize=16_384)
def demangle(name: str) -> str:
    """``name`` demangled in full, without its symbol version; as it is where nothing can demangle it."""
    name = _VERSION.sub("", name) or name
    if len(name) > _LONGEST:
        return name
    return _demangle_rust_legacy(name) or demangle_rust_v0(name) or _demangle_cpp(name) or name


@functools.lru_cache(maxsize=16_384)
def display_name(name: str) -> str:
    """``name`` demangled for display: C++ without template arguments and parameter lists, Rust without
    the generic arguments of functions."""
    name = _VERSION.sub("", name) or name
    if len(name) > _LONGEST:
        return name
    rust = _demangle_rust_legacy(name) or demangle_rust_v0(name, full=False)
    if rust:
        return rust
    cpp = _demangle_cpp(name)
    return short_name(cpp) if cpp else name


def _demangle_cpp(name: str) -> str | None:
    if not name.startswith("_Z") or not name.isascii() or "\0" in name:
        return None
    in_process = _worst_output(name) <= _SAFE_OUTPUT
    long_form = demangle_helper.in_process(name) if in_process else demangle_helper.confined(name)
    return long_form if long_form and len(long_form) <= _LONGEST_OUTPUT else None


def _worst_output(mangled: str) -> float:
    """How many bytes demangling can write at most.

    Back references can repeat all that came before; n of them in groups of three, each group about the one
    before, make 3 ** (n / 3) copies, which is the most.  A pack expansion repeats its pattern for each
    element of a pack, and expansions nest.
    """
    size = float(len(mangled))
    copies = 3.0 ** min(len(_BACK_REFERENCE.findall(mangled)) / 3, 100)
    expansions = min(mangled.count("Dp"), 20)
    return float(size * copies * (size / 2) ** expansions)


# Rust, legacy form: _ZN, components with their lengths, a hash of 16 digits as the last, E.

_RUST_LEGACY = re.compile(
    r"_?_ZN(.+)17h[0-9a-f]{16}E(?:\.llvm\.[0-9A-F]+)?((?:\.[a-z]+(?:\.\d+)?)*)\Z", re.DOTALL
)
_RUST_ESCAPE = re.compile(r"\$(SP|BP|RF|LT|GT|LP|RP|C|u[0-9a-f]{1,6})\$|\.\.")
_RUST_SIGNS = {"SP": "@", "BP": "*", "RF": "&", "LT": "<", "GT": ">", "LP": "(", "RP": ")", "C": ","}


def _demangle_rust_legacy(name: str) -> str | None:
    match = _RUST_LEGACY.match(name)
    if match is None:
        return None
    components = _length_prefixed(match[1])
    if not components:
        return None
    suffix = f" [clone {match[2]}]" if match[2] else ""
    return "::".join(map(_rust_unescaped, components)) + suffix


def _length_prefixed(text: str) -> list[str] | None:
    components = []
    while text:
        digits = re.match(r"[1-9][0-9]{0,3}", text)
        if digits is None:
            return None
        end = digits.end() + int(digits[0])
        if end > len(text):
            return None
        components.append(text[digits.end() : end])
        text = text[end:]
    return components


def _rust_unescaped(component: str) -> str:
    # An underscore is put before a component that would start with an escape.
    if component.startswith("_$"):
        component = component[1:]
    return _RUST_ESCAPE.sub(_rust_sign, component)


def _rust_sign(match: re.Match[str]) -> str:
    code = match[1]
    if code is None:
        return "::"
    if code in _RUST_SIGNS:
        return _RUST_SIGNS[code]
    point = int(code[1:], 16)
    printable = point < 0x110000 and chr(point).isprintable()
    return chr(point) if printable else match[0]


# The short form of a demangled C++ name.

_SPECIAL = re.compile(
    r"(?:(?:construction )?vtable|VTT|typeinfo(?: name| fn)?|guard variable|TLS (?:init|wrapper) function"
    r"|reference temporary #\d+|transaction clone|non-transaction clone) for "
    r"|(?:non-virtual|virtual|covariant return) thunk to "
)
_ANONYMOUS = "(anonymous namespace)"
_OPERATOR = re.compile(
    r"operator(?:\(\)|\[\]|<=>|<<=|>>=|->\*?|<<|>>|\|\||&&|\+\+|--|[-+*/%^&|!=<>]=|[-+*/%^&|~!=<>,]"
    r"|(?: new| delete)(?:\[\])?|\"\" ?\w+| co_await)"
)
_CONVERSION = re.compile(r"operator (?=[\w:(])")
_QUALIFIERS = re.compile(r"(?: const\b| volatile\b| restrict\b| noexcept\b| ?&&?)*")
_CLONES = re.compile(r"(?: \[clone [^]]*\])+\Z")
_CLOSERS = {"(": ")", "{": "}", "[": "]"}
_BRACKETS = {"(": re.compile(r"[()]"), "{": re.compile(r"[{}]"), "[": re.compile(r"[][]")}
_PLAIN = re.compile(
    r"(?:[^<({ o]|(?<=[\w$])o)+"
)  # what is neither a bracket, a space nor an operator's begin
_IN_ANGLES = re.compile(r"[<>({]|operator")


def short_name(demangled: str) -> str:
    """A demangled C++ name without return type, template arguments and parameter lists.

    Operators, lambdas, anonymous namespaces, ABI tags and conversion operators keep what names them.
    Text that is not such a name comes back as it is.
    """
    special = _SPECIAL.match(demangled)
    if special:
        return special[0] + short_name(demangled[special.end() :])
    clones = _CLONES.search(demangled)
    body = demangled[: clones.start()] if clones else demangled
    short = _Shortener(body).run()
    return short + clones[0] if short and clones else short or demangled


class _Shortener:
    """Walks over one name; what it keeps so far is a token that a space at the outer level throws away,
    because then it was only (part of) the return type."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.token = ""
        self.done = False

    def run(self) -> str:
        while self.at < len(self.text) and not self.done:
            self._step()
        return self.token

    def _step(self) -> None:
        text, at = self.text, self.at
        plain = _PLAIN.match(text, at)
        if plain:
            self.token += plain[0]
            self.at = plain.end()
            return
        char = text[at]
        if text.startswith(_ANONYMOUS, at):
            self._keep(len(_ANONYMOUS))
        elif char == "o" and self._at_word_start() and self._operator():
            pass
        elif char == "<":
            self._angle()
        elif char == "(":
            self._parenthesis()
        elif char == "{":
            end = _end_of_group(text, at)
            self.token += _short_braces(text[at:end])
            self.at = end
        elif char == " ":
            self.token = ""
            self.at += 1
        else:
            self._keep(1)

    def _keep(self, length: int) -> None:
        self.token += self.text[self.at : self.at + length]
        self.at += length

    def _at_word_start(self) -> bool:
        before = self.text[self.at - 1 : self.at]
        return not (before.isalnum() or before in ("_", "$")) or self.at == 0

    def _operator(self) -> bool:
        symbol = _OPERATOR.match(self.text, self.at)
        if symbol:
            self._keep(len(symbol[0]))
            if self.text.startswith(" <", self.at):  # "operator<< <char>": the space keeps them apart
                self.at += 1
            return True
        conversion = _CONVERSION.match(self.text, self.at)
        if conversion:
            end = _end_of_type(self.text, conversion.end())
            self.token += f"operator {_without_groups(self.text[conversion.end() : end])}"
            self.at = end
            return True
        return False

    def _angle(self) -> None:
        end = _end_of_group(self.text, self.at)
        if not self.token or self.token[-1] == ":":  # Rust's "<impl Trait for Type>::method"
            self.token += self.text[self.at : end]
        self.at = end

    def _parenthesis(self) -> None:
        if not self.token and self.text[self.at + 1 : self.at + 2] in ("*", "&"):
            self.at += 2  # "void (*name(int))(char)": it returns a pointer to a function
            return
        self.at = _end_of_group(self.text, self.at)
        if self.token.endswith("decltype"):
            self.token += "(...)"
        elif self.token or self.at >= len(self.text):
            self.at = _QUALIFIERS.match(self.text, self.at).end()  # type: ignore[union-attr]  # may be empty
            self.done = not self.text.startswith("::", self.at)


def _end_of_group(text: str, start: int) -> int:
    """Behind the bracket that closes the one at ``start``, or the end of the text."""
    opener = text[start]
    if opener == "<":
        return _end_of_angles(text, start)
    closer, depth = _CLOSERS[opener], 0
    for bracket in _BRACKETS[opener].finditer(text, start):
        depth += -1 if bracket[0] == closer else 1
        if depth == 0:
            return bracket.end()
    return len(text)


def _end_of_angles(text: str, start: int) -> int:
    at, depth = start, 0
    while found := _IN_ANGLES.search(text, at):
        char, at = found[0], found.start()
        if char == "operator":
            operator = _OPERATOR.match(text, at)
            at = operator.end() if operator else found.end()
            continue
        if char in "({":
            at = _end_of_group(text, at)
            continue
        if char == ">" and text[at - 1] != "-":
            depth -= 1
            if depth == 0:
                return at + 1
        depth += char == "<"
        at += 1
    return len(text)


def _end_of_type(text: str, start: int) -> int:
    """Where the parameter list of a conversion operator begins."""
    at = start
    while at < len(text):
        if text[at] == "<":
            at = _end_of_angles(text, at)
        elif text.startswith(_ANONYMOUS, at):
            at += len(_ANONYMOUS)
        elif text[at] == "(":
            return at
        else:
            at += 1
    return at


def _without_groups(text: str) -> str:
    """``text`` without what stands in angle brackets."""
    kept, at = [], 0
    while at < len(text):
        if text[at] == "<":
            at = _end_of_angles(text, at)
        else:
            kept.append(text[at])
            at += 1
    return "".join(kept)


def _short_braces(braces: str) -> str:
    """``{lambda(int)#1}`` as ``{lambda#1}``; others as they are."""
    number = braces.rpartition("#")[2]
    return f"{{lambda#{number}" if braces.startswith("{lambda(") and number != braces else braces
