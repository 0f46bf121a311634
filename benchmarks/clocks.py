"""What do the clocks reach, and are shares right where ticks can fall into step with the work?

Rates: on one busy thread and on eight, ticks per second of CPU time against the rate that was asked for.
Beats: a program whose CPU time is 70/20/10 in a beat near the kernel's own tick and its multiples; the bias
is how far the mean of all runs is from the truth, the noise what one run differs from another by.
"""

from __future__ import annotations

import math
import os
import statistics

from common import machine, parser_of, running, table

from pyattach.attacher.clock import kernel_hz, why_no_events
from pyattach.attacher.contract import Options, Progress
from pyattach.attacher.session import attach as run_session
from pyattach.render.profile import Profile, totals_of

RATES = [("timer", 10), ("timer", 49), ("timer", 99), ("timer", 199), ("perf", 499), ("perf", 997)]
KINDS = [("timer", True), ("timer", False), ("perf", True), ("perf", False)]
"""Clock, and whether its ticks are jittered."""

WITHIN_PERCENT = 3.0
SHARES = {"beat_70": 70.0, "beat_20": 20.0, "beat_10": 10.0}


class Enough:
    """Ends a session once the target has used so much CPU time."""

    def __init__(self, cpu_s: float) -> None:
        self._cpu_s, self._seen_s = cpu_s, 0.0

    def __call__(self) -> bool:
        return self._seen_s >= self._cpu_s

    def note(self, progress: Progress) -> None:
        self._seen_s = progress.cpu_s


def sampled(pid: int, clock: str, rate_hz: float, cpu_s: float, *, jitter: bool = True) -> Profile:
    enough = Enough(cpu_s)
    options = Options(rate_hz=rate_hz, clock=clock, jitter=jitter)
    return run_session(pid, options, enough, enough.note).profile


def rates(cpu_s: float) -> None:
    rows = []
    for threads in (1, 8):
        for clock, rate_hz in RATES:
            # At 10 Hz ten seconds are a hundred ticks, and one tick more or less a percent.
            with running("beat", 5300, threads) as process:
                meta = sampled(process.pid, clock, rate_hz, max(cpu_s, 200 / rate_hz)).meta
            reached_hz = meta.rate_reached_hz or 0.0
            off = 100 * (reached_hz / rate_hz - 1)
            verdict = "met" if abs(off) <= WITHIN_PERCENT else "NOT MET"
            rows.append([clock, str(threads), f"{rate_hz}", f"{reached_hz:.1f}", f"{off:+.1f}", verdict])
    print(f"\nrate reached, ticks per second of CPU time; goal: within {WITHIN_PERCENT:g}%\n")
    table(["clock", "busy threads", "asked Hz", "reached Hz", "off %", "goal"], rows)


def shares_of(profile: Profile) -> list[float]:
    found = {row.frame.name: row.self_ticks for row in totals_of(profile).rows(50)}
    # burn's clock reading is in the vdso and libc, on behalf of each alike.
    whole = sum(found.get(name, 0) for name in SHARES) or 1
    return [100 * found.get(name, 0) / whole for name in SHARES]


def beats(runs: int, cpu_s: float) -> None:
    tick_us = 1e6 / kernel_hz()
    beats_us = (tick_us, 2 * tick_us, 0.99 * tick_us, None)  # None: in step with the sampler itself
    cases = [(beat or 1e6 / rate, rate) for beat in beats_us for rate in (99, 997)]
    rows = []
    for beat_us, rate_hz in cases:
        for clock, jitter in KINDS:
            seen = []
            for _ in range(runs):
                with running("beat", round(beat_us)) as process:
                    seen.append(shares_of(sampled(process.pid, clock, rate_hz, cpu_s, jitter=jitter)))
            means = [statistics.mean(column) for column in zip(*seen, strict=True)]
            bias = max(abs(mean - true) for mean, true in zip(means, SHARES.values(), strict=True))
            noise = (
                max(statistics.stdev(column) for column in zip(*seen, strict=True)) if runs > 1 else math.nan
            )
            chance = 100 * math.sqrt(0.7 * 0.3 / (rate_hz * cpu_s))
            name = f"{clock}, {'jitter' if jitter else 'even'}"
            shown = "/".join(f"{mean:.1f}" for mean in means)
            rows.append(
                [
                    f"{beat_us / 1000:.2f}",
                    f"{rate_hz}",
                    name,
                    shown,
                    f"{bias:.1f}",
                    f"{noise:.1f}",
                    f"{chance:.1f}",
                ]
            )
    print(f"\n70/20/10 in a beat, {runs} runs of {cpu_s:g} s of CPU time each", end="; ")
    print(f"the kernel ticks every {tick_us / 1000:g} ms\n")
    table(["beat ms", "Hz", "clock", "mean shares", "bias", "noise of a run", "by chance"], rows)


def main() -> None:
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["rates", "beats"], help="only this one")
    parser.add_argument("--runs", type=int, default=20, help="of each case of the beats")
    parser.add_argument("--cpu-s", type=float, default=3.0, help="CPU time of each of these runs, seconds")
    chosen = parser.parse_args()
    print(machine())
    if why := why_no_events(os.getpid()):
        print(f"without perf: {why}")
        RATES[:] = [rate for rate in RATES if rate[0] != "perf"]
        KINDS[:] = [kind for kind in KINDS if kind[0] != "perf"]
    if chosen.part != "beats":
        rates(1.0 if chosen.quick else 10.0)
    if chosen.part != "rates":
        beats(*((2, 1.0) if chosen.quick else (chosen.runs, chosen.cpu_s)))


if __name__ == "__main__":
    main()
