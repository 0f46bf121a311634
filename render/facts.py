"""The wording of figures: what was measured and how well, the same wherever a profile is shown."""

from __future__ import annotations

from .names import printable
from .profile import Meta, Profile

SPOKEN_OF = 1.1
"""From so many periods of CPU time on that a tick stands for, it is said."""
_CHANCE_SHARE, _CHANCE_PERIODS = 0.05, 10
"""CPU time without samples that is not spoken of: this part of all, or so many periods."""
_NO_DELIVERY = "what the kernel's delivery of ticks costs could not be measured"
MODES = {"wall": "wall: share of the time of all threads, running and waiting"}
"""Modes that have to be explained wherever their figures are shown."""


def share(part: float, whole: float) -> str:
    """``part`` of ``whole`` in per cent, two decimals: ``12.30%``; halves up, as in the pictures' pages."""
    return f"{100 * part / whole + 1e-9:.2f}%" if whole else "0.00%"


def hertz(rate_hz: float) -> str:
    """``99 Hz``, ``98.7 Hz``."""
    return f"{rate_hz:,.1f}".removesuffix(".0") + " Hz"


def seconds(duration_s: float) -> str:
    """``8.3 s``, ``1 min 05 s``, ``2 h 05 min``."""
    if duration_s < 59.95:
        return f"{duration_s:.1f} s"
    whole = round(duration_s)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def small_share(part: float) -> str:
    """A share of CPU time (0.01 is 1%) in per cent, never rounded down to nothing."""
    return "under 0.01%" if 0 < part < 0.0001 else f"{100 * part:.2f}%"


def short_command(meta: Meta) -> str:
    """The program's name without folder and arguments, or the pid where there is no command."""
    words = printable(meta.command).split(maxsplit=1)
    name = words[0].rstrip("/").rpartition("/")[2].rstrip(":") if words else ""
    return name or (f"pid {meta.pid}" if meta.pid else "profile")


def facts(meta: Meta) -> list[tuple[str, str]]:
    """Label and value of everything that was measured, in the order to be read; nothing else."""
    rows = [("command", printable(meta.command)), ("pid", str(meta.pid) if meta.pid else "")]
    if meta.mode == "heap":
        rows += [("shown", meta.kind), ("duration", seconds(meta.duration_s))]
        rows += [(label, printable(value)) for label, value in meta.rows]
        rows += [("ended by", printable(meta.ended_by)), ("pyattach", printable(meta.version))]
        return [(label, value) for label, value in rows if value]
    rows += [("mode", MODES.get(meta.mode, printable(meta.mode))), ("rate", _rate(meta))]
    rows.append(("duration", seconds(meta.duration_s)))
    if meta.cpu_time_s is not None:
        rows.append(("CPU time", seconds(meta.cpu_time_s) + _in_no_sample(meta)))
    rows += [("samples", _samples(meta)), ("dropped", f"{meta.dropped:,}")]
    rows += [("truncated stacks", _truncated(meta))]
    rows += [("unresolved leaves", _of_samples(meta.unresolved, meta)), ("overhead", _overhead(meta))]
    rows += [("each sample", _each_sample(meta)), ("pyattach's CPU", _own_cpu(meta))]
    if meta.held_us is not None:
        rows.append(("target held", f"{meta.held_us:,.0f} µs, one thread"))
    rows += [("ended by", printable(meta.ended_by)), ("pyattach", printable(meta.version))]
    return [(label, value) for label, value in rows if value]


def _in_no_sample(meta: Meta) -> str:
    """How much of the CPU time no sample stands for, where that is more than chance: threads may end before a
    tick meets them, on a busy machine more than others."""
    if meta.mode != "cpu" or not meta.rate_asked_hz or not meta.cpu_time_s:
        return ""
    missing_s = meta.cpu_time_s - (meta.samples + meta.dropped) / meta.rate_asked_hz
    if missing_s < max(_CHANCE_SHARE * meta.cpu_time_s, _CHANCE_PERIODS / meta.rate_asked_hz):
        return ""
    return f", {seconds(missing_s)} of it ({small_share(missing_s / meta.cpu_time_s)}) in no sample"


def why_empty(profile: Profile) -> list[str]:
    """What to say in the place of a picture or a table of a profile that holds no sample."""
    meta = profile.meta
    lines = [f"No {meta.unit} in {seconds(meta.duration_s)}."]
    if meta.dropped:
        lines.append(f"{meta.dropped:,} were taken and dropped.")
    if meta.cpu_time_s is not None:
        lines.append(f"The sampled threads used {meta.cpu_time_s:.3f} s of CPU time meanwhile.")
    if meta.ended_by:
        lines.append(f"Ended by: {printable(meta.ended_by)}.")
    return lines + [printable(note) for note in meta.notes]


def _rate(meta: Meta) -> str:
    asked = f"{hertz(meta.rate_asked_hz)} asked" if meta.rate_asked_hz else ""
    reached = "" if meta.rate_reached_hz is None else f"{hertz(meta.rate_reached_hz)}{_unit(meta)} reached"
    each = ""
    if meta.mode == "cpu" and meta.ticks and meta.samples > SPOKEN_OF * meta.ticks:
        each = f"each tick stands for {meta.samples / meta.ticks:.1f} periods"
    clock = f"by {meta.clock}" if meta.clock else ""
    return ", ".join(part for part in (asked, reached, each, clock) if part)


def _unit(meta: Meta) -> str:
    return "" if meta.mode == "wall" else " of CPU time"


def _samples(meta: Meta) -> str:
    waiting = "" if meta.waiting is None else f", {_of_samples(meta.waiting, meta)} waiting"
    return f"{meta.samples:,}{waiting}"


def _of_samples(count: int, meta: Meta) -> str:
    return f"{count:,} ({share(count, meta.samples)})" if count and meta.samples else f"{count:,}"


def _truncated(meta: Meta) -> str:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in meta.truncated_by)
    return _of_samples(meta.truncated, meta) + (f": {reasons}" if reasons else "")


def _overhead(meta: Meta) -> str:
    """As shares of CPU time, in total and by parts, and of the time that passed."""
    if meta.handler_share is None:
        return ""
    parts = f"{small_share(meta.handler_share)} in the signal handler"
    if meta.delivery_share is None:
        return f"{small_share(meta.handler_share)} of CPU time in the signal handler; {_NO_DELIVERY}"
    each = "" if meta.delivery_ns_per_tick is None else f", {meta.delivery_ns_per_tick / 1e3:.1f} µs a tick"
    parts += f", {small_share(meta.delivery_share)} in the kernel's delivery (calibrated{each})"
    wall = (
        "" if meta.overhead_of_wall is None else f"; {small_share(meta.overhead_of_wall)} of the time passed"
    )
    return f"{small_share(meta.handler_share + meta.delivery_share)} of CPU time: {parts}{wall}"


def _each_sample(meta: Meta) -> str:
    parts = []
    if meta.handler_percentiles_ns is not None:
        p50_ns, p99_ns = meta.handler_percentiles_ns
        parts.append(f"p50 {p50_ns:,.0f} ns, p99 {p99_ns:,.0f} ns in the handler")
    if meta.handler_ns_per_sample is not None:
        parts.append(f"mean {meta.handler_ns_per_sample:,.0f} ns")
    return ", ".join(parts)


def _own_cpu(meta: Meta) -> str:
    parts = []
    if meta.own_startup_cpu_s is not None:
        parts.append(f"{meta.own_startup_cpu_s:.2f} s to start")
    if meta.own_sampling_cpu_s is not None:
        of = share(meta.own_sampling_cpu_s, meta.duration_s)
        parts.append(f"{meta.own_sampling_cpu_s:.2f} s to sample ({of} of a processor)")
    return ", ".join(parts)
