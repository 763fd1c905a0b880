"""
Time contestants in interleaved rounds: what disturbs one of them disturbs all.

A round gives every contestant one turn: some calls to warm up, then as many timed calls as fill the inner loop. A
contestant whose single call fills it is not warmed up. Odd rounds go backwards, so that no contestant always follows
the same neighbour.
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
    """A contestant in a race: a call of `step` makes `steps` steps; `prepare` is called before each turn, untimed."""

    step: Callable[[], object]
    prepare: Callable[[], object] = lambda: None
    steps: int = 1


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
        low, high = _quartiles(self.seconds)
        return high - low


@dataclass
class Ratio:
    """How two timings of a race compare: the median and the quartiles of the ratios, one for each round."""

    median: float
    low: float
    high: float

    @property
    def iqr(self) -> float:
        """The distance between the quartiles."""
        return self.high - self.low


def ratio(a: Timing, b: Timing) -> Ratio:
    """Return how many times longer `a` took than `b`; both are from one race."""
    each = [x / y for x, y in zip(a.seconds, b.seconds, strict=True)]
    return Ratio(median(each), *_quartiles(each))


def _quartiles(values: list[float]) -> tuple[float, float]:
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return low, high


def host_time(step: Callable[[], object], calls: int) -> float:
    """Return the seconds until some calls of a step have returned."""
    start = time.perf_counter()
    for _ in repeat(None, calls):
        step()
    return time.perf_counter() - start


def race(
    entries: Sequence[Entry],
    rounds: int,
    inner: float = 0.01,
    rest: float = 0.0,
    clock: Clock = host_time,
    after_turn: Callable[[], object] = lambda: None,
) -> list[Timing]:
    """
    Time all entries, in `rounds` interleaved rounds.

    Parameters
    ----------
    entries : sequence of Entry
        The contestants.
    rounds : int
        Number of rounds.
    inner : float
        Least number of seconds that the timed calls of a turn take together.
    rest : float
        Seconds of sleep before each turn, followed by at least as many of warming up. Sleep lets the threads of other
        pools stop: those of libgomp spin for some milliseconds after their last work, on a core that the next
        contestant needs. Warming up gives the system time to move threads apart that it has woken on one core.
    clock : function
        How time is taken: a function of a step and of how often to call it, which returns seconds.
    after_turn : function
        Called without arguments after each of the ``rounds * len(entries)`` turns.

    Returns
    -------
    list of Timing
        One for each entry.
    """
    calls = [_calibrate(entry, inner, clock) for entry in entries]
    seconds: list[list[float]] = [[] for _ in entries]
    enabled = gc.isenabled()
    gc.disable()
    try:
        for i in range(rounds):
            for place in range(len(entries))[:: -1 if i % 2 else 1]:
                entry, (n, elapsed) = entries[place], calls[place]
                time.sleep(rest)
                entry.prepare()
                if warm_up := max(elapsed < 5 * inner, n // 10, int(n * rest / elapsed)):
                    clock(entry.step, warm_up)
                seconds[place].append(clock(entry.step, n) / (n * entry.steps))
                after_turn()
    finally:
        if enabled:
            gc.enable()
    return [Timing(each) for each in seconds]


def _calibrate(entry: Entry, inner: float, clock: Clock) -> tuple[int, float]:
    """Return how many calls fill the inner loop, and the seconds that they took."""
    entry.prepare()
    entry.step()
    calls = 1
    while (elapsed := clock(entry.step, calls)) < inner:
        calls = max(calls + 1, min(10 * calls, int(1.2 * calls * inner / max(elapsed, 1e-9))))
    return calls, elapsed
