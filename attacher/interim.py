"""Reports of a run that goes on: what there is so far, written because a key or SIGUSR1 asked for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import PyattachError
from . import procfs

if TYPE_CHECKING:
    from .contract import Options, Progress

ENDED_BY = "a snapshot; sampling went on"


def interim_name(pid: int, suffix: str = ".svg") -> str:
    """``PID-TIME-snapshot.svg``, in the current folder."""
    return f"{pid}-{time.strftime('%Y%m%dT%H%M%S')}-snapshot{suffix}"


def thread_name(pid: int, tid: int) -> str:
    """The thread's name; empty where it has ended."""
    stat = procfs.read_stat(pid, tid)
    return "" if stat is None else stat.name


def write_interim(pid: int, command: str, options: Options, progress: Progress) -> str:
    """Write a picture of the samples so far; what to say.  Nothing is raised: the run goes on."""
    from ..render.formats import RenderOptions, renderer_for, write_atomically
    from ..render.profile import Meta, Profile, Thread

    store = progress.store
    weights = store.weights()
    meta = Meta(
        command=command,
        pid=pid,
        mode=options.mode,
        rate_asked_hz=options.rate_hz,
        rate_reached_hz=progress.rate_reached_hz,
        duration_s=progress.elapsed_s - progress.before_s,
        samples=store.samples,
        dropped=progress.dropped,
        truncated=store.truncated,
        unresolved=store.unresolved(),
        handler_share=progress.overhead_share,
        ended_by=ENDED_BY,
        version=__version__,
        truncated_by=store.truncated_by(),
        notes=tuple(_missing(options, progress)),
    )
    threads = {tid: Thread(tid, thread_name(pid, tid)) for tid in {tid for tid, _ in weights}}
    path = interim_name(pid)
    try:
        write_atomically(path, renderer_for(path).render(Profile(meta, threads, weights), RenderOptions()))
    except PyattachError as error:
        return error.what
    return f"wrote {path}"


def _missing(options: Options, progress: Progress) -> Iterator[str]:
    """What the profile at the end will have, and this one has not."""
    if options.subprocesses:
        yield "its children (-s) are not in this snapshot"
    if progress.before_s:
        before = f"the {progress.before_s:.1f} s before it executed this program"
        yield f"what it did in {before} is not in this snapshot"


def on_request(
    wanted: Callable[[], bool],
    pid: int,
    command: str,
    options: Options,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> Callable[[Progress], None]:
    """``on_progress``, after a report where one is ``wanted``."""

    def look(progress: Progress) -> None:
        if wanted():
            options.say(write_interim(pid, command, options, progress))
        on_progress(progress)

    return look
