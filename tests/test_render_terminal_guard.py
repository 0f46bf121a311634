"""The guard of a terminal, whose process is killed."""

from __future__ import annotations

import os
import pty
import select
import signal
import threading
import time
import tty

from test_attach_run import DEADLINE_S, wait_for

from pyattach.render.terminal_guard import TerminalGuard

LEAVE = b"\x1b[?1049l"


def killed_while_guarded(terminal: int) -> None:
    """A process with a guard, which is there when this kills that process."""
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        with TerminalGuard(terminal):
            os.write(tell, b"\n")
            time.sleep(DEADLINE_S)
        os._exit(0)
    os.close(tell)
    assert os.read(told, 1)
    os.close(told)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def wait_until_it_takes_nothing(terminal: int) -> None:
    room = select.poll()
    room.register(terminal, select.POLLOUT)
    wait_for("the terminal takes nothing", lambda: not room.poll(0))


def read_until(master: int, wanted: bytes) -> bytes:
    found, until = b"", time.monotonic() + DEADLINE_S
    while wanted not in found:
        ready, _, _ = select.select([master], [], [], max(0.0, until - time.monotonic()))
        assert ready, f"{wanted!r} did not come"
        found = found[-len(wanted) :] + os.read(master, 65536)
    return found


def test_another_process_writes_meanwhile() -> None:
    """As a shell does, which learns of the end at the same moment: the kernel lets one write at a time."""
    master, terminal = pty.openpty()
    tty.setraw(terminal)
    long = b"x" * (1 << 20)
    writer = threading.Thread(target=os.write, args=(terminal, long))
    writer.start()
    wait_until_it_takes_nothing(terminal)
    killed_while_guarded(terminal)
    time.sleep(0.2)  # for its first try; nothing depends on whether it has come
    read_until(master, LEAVE)
    writer.join(DEADLINE_S)
    assert not writer.is_alive()
    os.close(terminal)
    os.close(master)


def test_a_stopped_terminal() -> None:
    """After Ctrl-S it takes nothing until Ctrl-Q."""
    master, terminal = pty.openpty()
    os.write(master, b"\x13")
    wait_until_it_takes_nothing(terminal)
    killed_while_guarded(terminal)
    time.sleep(0.2)
    os.write(master, b"\x11")
    read_until(master, LEAVE)
    os.close(terminal)
    os.close(master)
