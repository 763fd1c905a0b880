"""
Time contestants against each other, in interleaved rounds: what disturbs one of them disturbs all.

A round gives every contestant one turn: calls to warm up, then as many timed ones as fill the inner loop. Odd rounds
go backwards, so that nobody always follows the same neighbour.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from statistics import median, quantiles

__all__ = ["Clock", "Entry", "Ratio", "Timing", "host_time", "race", "ratio"]

Clock = Callable[[Callable[[], object], int], float]  # takes a step and how often to call it, returns the seconds


@dataclass
class Entry:
    """A contestant in a race: `step` makes `steps` steps, and `prepare` is called before each turn, untimed."""

    name: str
    step: Callable[[], object]
    steps: int = 1
    prepare: Callable[[], object] = lambda: None


@dataclass
class Timing:
    """Seconds per step, one number per round."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return median(self.seconds)

    @property
    def iqr(self) -> float:
        """The distance between the quartiles of the rounds."""
        return _iqr(self.seconds)

    def summary(self, moved: int = 0) -> dict[str, object]:
        """Return the numbers for a record; `moved` is the bytes that a step reads and writes."""
        rounds = [float(f"{each:.4g}") for each in self.seconds]
        found = {"median_s": self.median, "iqr_s": self.iqr, "minimum_s": min(self.seconds), "rounds_s": rounds}
        return found | ({"gb_per_s": moved / self.median / 1e9} if moved else {})


@dataclass
class Ratio:
    """How two timings compare: median and spread of the rounds' ratios, and the ratio of the medians."""

    median: float
    iqr: float
    of_medians: float


def ratio(a: Timing, b: Timing) -> Ratio:
    """Return how many times longer `a` took than `b`; both from one race."""
    each = [x / y for x, y in zip(a.seconds, b.seconds, strict=True)]
    return Ratio(median(each), _iqr(each), a.median / b.median)


def _iqr(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    return high - low


def host_time(step: Callable[[], object], calls: int) -> float:
    """Return the seconds that the host is in these calls."""
    start = time.perf_counter()
    for _ in repeat(None, calls):
        step()
    return time.perf_counter() - start


def race(
    entries: Sequence[Entry], rounds: int, inner: float = 0.01, rest: float = 0.0, clock: Clock = host_time
) -> dict[str, Timing]:
    """
    Time all entries, in `rounds` interleaved rounds.

    Parameters
    ----------
    entries : sequence of Entry
        The contestants, of different names.
    rounds : int
        Number of rounds.
    inner : float
        Seconds that an inner loop takes at least.
    rest : float
        Seconds of sleep before each turn, and at least as many of warming up. Threads of other pools keep spinning
        after their last work, for some milliseconds (libgomp), and would take a core away from the next contestant;
        and the system may wake two threads on one core, and needs some milliseconds to part them.
    clock : function
        How time is taken.

    Returns
    -------
    dict
        Timing of each entry, by name.
    """
    calls = {entry.name: _calibrate(entry, inner, clock) for entry in entries}
    warm_up = {name: max(1, n // 10, int(n * rest / elapsed)) for name, (n, elapsed) in calls.items()}
    seconds: dict[str, list[float]] = {entry.name: [] for entry in entries}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for i in range(rounds):
            for entry in entries[:: -1 if i % 2 else 1]:
                time.sleep(rest)
                entry.prepare()
                clock(entry.step, warm_up[entry.name])
                n, _ = calls[entry.name]
                seconds[entry.name].append(clock(entry.step, n) / (n * entry.steps))
    finally:
        if enabled:
            gc.enable()
    return {name: Timing(each) for name, each in seconds.items()}


def _calibrate(entry: Entry, inner: float, clock: Clock) -> tuple[int, float]:
    """Return how many calls fill the inner loop, and the seconds that they took."""
    entry.prepare()
    entry.step()
    calls = 1
    while (elapsed := clock(entry.step, calls)) < inner:
        calls = max(calls + 1, min(10 * calls, int(1.2 * calls * inner / max(elapsed, 1e-9))))
    return calls, elapsed
