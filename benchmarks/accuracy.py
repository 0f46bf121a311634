"""Are the shares right?  Runs on a program whose CPU time is 70/20/10 by construction.

The error to expect of N samples with a share p is sqrt(p (1 - p) / N), whoever takes them.
"""

from __future__ import annotations

import math
import statistics

from common import arguments, machine, running, table

from pyattach.attacher.contract import Options
from pyattach.attacher.session import attach as run_session
from pyattach.render.profile import totals_of

SHARES = {"work_70": 70.0, "work_20": 20.0, "work_10": 10.0}
POINTS = 3.0


def shares(rate_hz: float, seconds: float) -> tuple[dict[str, float], int, float | None]:
    """Shares by function in percent, the number of samples, and the rate reached."""
    with running("split") as process:
        options = Options(rate_hz=rate_hz, duration_s=seconds)
        profile = run_session(process.pid, options, lambda: False, lambda _progress: None).profile
    rows = totals_of(profile).rows(20)
    found = {row.frame.name: 100 * row.self_ticks / profile.total for row in rows}
    return {name: found.get(name, 0.0) for name in SHARES}, profile.total, profile.meta.rate_reached_hz


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0])
    print(machine())
    runs, seconds = (2, 5.0) if chosen.quick else (6, 20.0)
    rows = []
    for rate_hz in (99.0, 249.0):
        seen = [shares(rate_hz, seconds) for _ in range(runs)]
        samples = round(statistics.median(count for _, count, _ in seen))
        reached = [rate for _, _, rate in seen if rate is not None]
        for name, share in SHARES.items():
            values = [found[name] for found, _, _ in seen]
            worst = max(abs(value - share) for value in values)
            expected = 100 * math.sqrt(share / 100 * (1 - share / 100) / max(1, samples))
            row = [f"{rate_hz:g} Hz", name, str(runs), f"{samples:,}", f"{statistics.median(reached):.1f}"]
            row += [f"{share:.0f}", f"{statistics.median(values):.2f}", f"{worst:.2f}", f"{expected:.2f}"]
            rows.append([*row, "met" if worst <= POINTS else "NOT MET"])
    print(f"\n{runs} runs of {seconds:g} s each; errors in points\n")
    head = ["rate", "function", "runs", "samples", "Hz reached", "true", "median", "max error", "1 sigma"]
    table([*head, f"goal {POINTS:g}"], rows)


if __name__ == "__main__":
    main()
