"""Is the overhead that the report names what sampling really costs?  Fixed work with and without, in turn.

Measured is the CPU time of the work beyond what it takes alone, as a share of the whole; reported is what the
same runs' profiles say, the handler and the delivery together.  They are to agree within a factor of two,
where the measurement says anything: its noise is how far two runs without differ.
"""

from __future__ import annotations

import os
import statistics

from common import arguments, machine, running, table
from told import sampled

from pyattach.attacher.clock import kernel_hz, why_no_events
from pyattach.render.facts import facts
from pyattach.render.profile import Meta

STEPS = 600_000_000
FACTOR = 2.0


def alone(steps: int) -> float:
    """CPU time of the work, seconds."""
    with running("fixed", steps) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        return int(process.stdout.readline().split()[1]) / 1e6


def sampled_too(steps: int, clock: str, rate_hz: float) -> tuple[float, Meta]:
    """The same under pyattach, and what that says of it."""
    with running("fixed", steps) as process:
        profile, said = sampled(process, clock, rate_hz)
    return said[0] / 1e6, profile.meta


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0])
    print(machine())
    pairs, steps = (2, STEPS // 2) if chosen.quick else (10, STEPS)
    clocks = [("timer", round(kernel_hz())), ("perf", 250), ("perf", 997)]
    if why := why_no_events(os.getpid()):
        print(f"without perf: {why}")
        clocks = clocks[:1]
    rows, said = [], []
    for clock, rate_hz in clocks:
        measured, noise, reported, handler, each = [], [], [], [], []
        for _ in range(pairs):
            first = alone(steps)
            with_s, meta = sampled_too(steps, clock, rate_hz)
            last = alone(steps)
            base_s = (first + last) / 2
            measured.append(100 * (1 - base_s / with_s))
            noise.append(100 * abs(1 - first / last))
            if meta.handler_share is not None and meta.delivery_share is not None:
                reported.append(100 * (meta.handler_share + meta.delivery_share))
                handler.append(100 * meta.handler_share)
                each.append((meta.delivery_ns_per_tick or 0.0) / 1e3)
        said += [f"{clock}, {rate_hz} Hz", *(f"  {k}: {v}" for k, v in facts(meta) if k in SHOWN), ""]
        rows.append(row(clock, rate_hz, measured, noise, reported, handler, each))
    print(f"\n{pairs} pairs each; percent of CPU time, medians\n")
    head = [
        "clock",
        "Hz",
        "measured",
        "noise",
        "reported",
        "of it handler",
        "delivery us",
        "reported/measured",
        "",
    ]
    table(head, rows)
    print("\nwhat the last run of each says of itself\n")
    print("\n".join(said))


SHOWN = ("overhead", "each sample", "pyattach's CPU")


def row(
    clock: str,
    rate_hz: float,
    measured: list[float],
    noise: list[float],
    reported: list[float],
    handler: list[float],
    each: list[float],
) -> list[str]:
    if not reported:
        return [clock, f"{rate_hz:g}", "-", "-", "-", "-", "-", "-", "not calibrated"]
    figures = [statistics.median(values) for values in (measured, noise, reported, handler)]
    ratio = figures[2] / figures[0] if figures[0] > 0 else 0.0
    verdict = "met" if 1 / FACTOR <= ratio <= FACTOR else "NOT MET"
    if figures[0] < 2 * figures[1]:
        verdict = "unclear: noise"
    return [
        clock,
        f"{rate_hz:g}",
        *(f"{figure:.2f}" for figure in figures),
        f"{statistics.median(each):.1f}",
        f"{ratio:.2f}",
        verdict,
    ]


if __name__ == "__main__":
    main()
