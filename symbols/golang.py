"""Go's own conventions, where they differ from what call frame information or frame pointers tell.

Go's executables have no call frame information that is loaded; their code keeps frame pointers.  Its
runtime moves between the stack of a goroutine and that of a thread by changing the stack pointer alone
(``systemstack``, ``mcall``, ``morestack``, in the Go source's ``runtime/asm_amd64.s``): the frame pointer
leads back to the other stack, and where a thread begins it is that of whoever made the thread.
"""

from __future__ import annotations

from .elf import ElfImage

_FIRST = (b"runtime.mstart", b"runtime.mcall", b"runtime.goexit", b"runtime.rt0_go", b"runtime.clone")
"""Functions that are called by nobody, or by somebody who is not waiting for them: mcall leaves its
goroutine, which another thread may run by now."""

_NAMES = tuple(name + suffix for name in _FIRST for suffix in (b"", b".abi0"))

Range = tuple[int, int]


def is_go(image: ElfImage) -> bool:
    """Whether Go's linker made this file."""
    return image.has_section(b".gopclntab") or image.has_section(b".go.buildinfo")


def first_functions(image: ElfImage) -> list[Range]:
    """Where a walk of Go's code ends, [start, end) before relocation, sorted.  Nothing where the file
    has no symbols."""
    found = {(s.value, s.value + s.size) for s in image.function_symbols().named(_NAMES) if s.size}
    return sorted(found)
