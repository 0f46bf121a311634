"""The off-by-one of return addresses, as types.

The address a sample was taken at lies in the function that ran.  A return address lies behind the
call, which may be the last instruction of its function, so its function is looked up one byte
earlier.  Only ``address_for_lookup`` knows that.
"""

from __future__ import annotations


class InstructionPointer:
    """Where a thread was when the tick came: absolute, in the target's address space."""

    __slots__ = ("address",)

    def __init__(self, address: int) -> None:
        self.address = address

    def address_for_lookup(self) -> int:
        return self.address


class ReturnAddress:
    """Where a caller goes on: absolute, in the target's address space."""

    __slots__ = ("address",)

    def __init__(self, address: int) -> None:
        self.address = address

    def address_for_lookup(self) -> int:
        return self.address - 1


CodeAddress = InstructionPointer | ReturnAddress
