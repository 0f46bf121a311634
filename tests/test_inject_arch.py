"""How an interrupted system call goes on (arch/x86/kernel/signal.c is the model), and the data block."""

from __future__ import annotations

import struct

import pytest

from pyattach.inject.arch import x86_64 as arch

MASK = (1 << 64) - 1
IP = 0x7F00_0000_1002
READ, NANOSLEEP, PAUSE, EPOLL_WAIT, FUTEX = 0, 35, 34, 232, 202


def registers(number: int, result: int) -> arch.Registers:
    """As ptrace shows a thread stopped with ``result`` in system call ``number`` (-1: in none)."""
    names = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rcx rdx rsi rdi cs eflags rsp ss fs_base gs_base".split()
    values = {name: 0x100 + i for i, name in enumerate(names)}
    return {**values, "rax": result & MASK, "orig_rax": number & MASK, "rip": IP}


def never() -> bool:
    raise AssertionError("asked for pending signals without need")


@pytest.mark.parametrize("instruction", arch.SYSCALL_INSTRUCTIONS)
@pytest.mark.parametrize("error", [arch.ERESTARTSYS, arch.ERESTARTNOINTR, arch.ERESTARTNOHAND])
@pytest.mark.parametrize("number", [READ, PAUSE, FUTEX])
def test_the_kernels_own_restarts(number: int, error: int, instruction: bytes) -> None:
    before = registers(number, -error)
    after = arch.resume_registers(before, instruction, never)
    assert after == {**before, "rax": number, "rip": IP - 2}


def test_a_sleep_is_restarted_with_what_was_left_of_it() -> None:
    before = registers(NANOSLEEP, -arch.ERESTART_RESTARTBLOCK)
    after = arch.resume_registers(before, b"\x0f\x05", never)
    assert after == {**before, "rax": 219, "rip": IP - 2}


@pytest.mark.parametrize("number", sorted(arch.BEGIN_ANEW | arch.BEGIN_ANEW_ON_SOCKETS))
def test_a_wait_that_a_stop_ended_is_begun_anew_unless_a_signal_may_have(number: int) -> None:
    before = registers(number, -arch.EINTR)
    assert arch.resume_registers(before, b"\x0f\x05", lambda: False) == {
        **before,
        "rax": number,
        "rip": IP - 2,
    }
    assert arch.resume_registers(before, b"\x0f\x05", lambda: True) == before


@pytest.mark.parametrize("number", [PAUSE, FUTEX, NANOSLEEP])
def test_other_calls_keep_their_eintr(number: int) -> None:
    assert number not in arch.BEGIN_ANEW | arch.BEGIN_ANEW_ON_SOCKETS
    before = registers(number, -arch.EINTR)
    assert arch.resume_registers(before, b"\x0f\x05", never) == before


@pytest.mark.parametrize("result", [0, 1, -11, -4095, -515, -517, 512, 516])
def test_a_call_that_is_over_stays_over(result: int) -> None:
    before = registers(EPOLL_WAIT, result)
    assert arch.resume_registers(before, b"\x0f\x05", never) == before


@pytest.mark.parametrize("result", [-512, -513, -514, -516, -4, 0])
def test_outside_of_a_call_nothing_is_moved(result: int) -> None:
    before = registers(-1, result)
    assert arch.resume_registers(before, b"\x0f\x05", never) == before


@pytest.mark.parametrize("before_ip", [b"", b"\x05", b"\x90\x90", b"\x05\x0f", b"\x0f\x34", b"\x0f\x05\x90"])
def test_behind_another_instruction_nothing_is_moved(before_ip: bytes) -> None:
    before = registers(READ, -arch.ERESTARTSYS)
    assert arch.resume_registers(before, before_ip, never) == before


def test_what_is_given_is_not_changed() -> None:
    before = registers(READ, -arch.ERESTARTSYS)
    copy = dict(before)
    arch.resume_registers(before, b"\x0f\x05", never)
    arch.entry_registers(before, 0x1000)
    assert before == copy


def test_sent_to_the_bootstrap_the_thread_is_in_no_system_call() -> None:
    before = registers(READ, -arch.ERESTARTSYS)
    after = arch.entry_registers(before, 0x5000)
    assert after == {**before, "rip": 0x5000, "orig_rax": MASK}
    assert arch.signed(after["orig_rax"]) == -1


def test_signed() -> None:
    assert [arch.signed(v) for v in (0, 1, (1 << 63) - 1, 1 << 63, MASK)] == [
        0,
        1,
        (1 << 63) - 1,
        -(1 << 63),
        -1,
    ]


def test_the_memfds_name_has_its_limits() -> None:
    room = 240 - 208 - 1

    def settings(name: bytes) -> bytes:
        return arch.boot_settings(
            mail=0, nonce=0, file_size=0, boot_offset=0, limit_ns=0, memfd_flags=0, name=name
        )

    assert settings(b"n" * room).endswith(b"n\0")
    with pytest.raises(ValueError, match="too long"):
        settings(b"n" * (room + 1))


LOW, HIGH = 0x7F12_34FF_F000, 0x7F12_3500_1000  # the upper bytes of its addresses are not all the same


SP = 0x7FFC_0000_1000


def signal_frame(*from_ip: int, stack: tuple[int, int] = (0, 0)) -> bytes:
    """``struct rt_sigframe`` from its ucontext on, up to the words given; ``stack``: the thread's signal
    stack, from where on and how large."""
    begin, size = stack
    return struct.pack(f"<5Q128x{len(from_ip)}Q", 6, 0, begin, 0, size, *from_ip)


@pytest.mark.parametrize("ip", [LOW, LOW + 0xFFF, LOW + 0x1000, HIGH - 1])
@pytest.mark.parametrize("before", [0, 8, 4001])
def test_a_frame_of_a_signal_is_found(ip: int, before: int) -> None:
    frame = signal_frame(ip, 0x246, 0x002B_0000_0000_0033)
    assert arch.handler_called_in(b"\1" * before + frame + b"\1" * 64, SP, LOW, HIGH)
    assert arch.handler_called_in(b"\1" * before + frame, SP, LOW, HIGH)


def test_large_stacks_are_looked_through_at_once() -> None:
    """Also for code at low addresses, whose upper bytes are zeros as much of a stack is: each look is a few
    steps, not one for each byte."""
    looks = 0

    class Stack(bytes):
        def find(self, *words: object) -> int:
            nonlocal looks
            looks += 1
            return super().find(*words)  # type: ignore[arg-type]

    frame = signal_frame(0x481A50, 0x246, 0x33)
    assert arch.handler_called_in(Stack(bytes(1 << 20) + frame), SP, 0x481A00, 0x481B00)
    assert looks <= 2


def test_a_frame_that_was_left_behind() -> None:
    """On a signal stack that the thread is not on; or partly below the stack pointer, which a handler's frame
    never is."""
    words = (LOW, 0x246, 0x33)
    behind, here = (SP + 0x8000, 0x8000), (SP - 0x1000, 0x8000)
    assert not arch.handler_called_in(b"\1" * 0x9000 + signal_frame(*words, stack=behind), SP, LOW, HIGH)
    assert arch.handler_called_in(b"\1" * 0x1000 + signal_frame(*words, stack=here), SP, LOW, HIGH)
    # The handler runs on the thread's own stack, not on the one that it has for others.
    assert arch.handler_called_in(b"\1" * 0x1000 + signal_frame(*words, stack=behind), SP, LOW, HIGH)
    assert not arch.handler_called_in(signal_frame(*words)[8:], SP, LOW, HIGH)
    both = b"\1" * 0x9000 + signal_frame(*words, stack=behind) + signal_frame(*words)
    assert arch.handler_called_in(both, SP, LOW, HIGH)


@pytest.mark.parametrize(
    "words",
    [
        (LOW - 1, 0x246, 0x33), (HIGH, 0x246, 0x33), (LOW, 0x244, 0x33), (LOW, LOW, 0x33), (LOW, 0x246, 0x2B),
        (LOW, 0x246), (LOW,),
    ],
)  # fmt: skip
def test_what_is_no_frame_of_a_signal(words: tuple[int, ...]) -> None:
    """Elsewhere, a return address, or cut."""
    assert not arch.handler_called_in(signal_frame(*words), SP, LOW, HIGH)
    assert not arch.handler_called_in(b"", SP, LOW, HIGH)
