"""Compare two records: what has become faster or slower, beyond the noise of the timings."""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .record import Measured, Record, read

__all__ = ["Verdict", "compare", "interval", "main"]

FEWEST = 6  # rounds: with fewer, no interval holds the median with 95 % confidence
FLOOR = 0.03  # what two runs of one build may differ by, as arrays lie elsewhere in memory and the machine is busier


@dataclass
class Verdict:
    """
    How a case of one record compares with the same case of another.

    Parameters
    ----------
    case : str
        The case, and where it ran.
    before, after : float
        The medians of the time of a step over the time of the limit; of the seconds, where there is no limit.
    low, high : float
        The smallest and the largest value of after/before that the intervals of the two medians allow.
    seconds : float
        The seconds after, over the seconds before. They also tell how busy the machine was on the two days.
    says : str
        "faster", "slower", "same" if the difference is at most 3 % for sure, or "unclear". With fewer than 6 rounds it
        is unclear. It is also unclear where the seconds have changed for sure but their relation to the limit has not:
        either the machine was busier, or every call of fusedstep has become slower, that of the limit included.
    """

    case: str
    before: float
    after: float
    low: float
    high: float
    seconds: float
    says: str


def interval(values: list[float]) -> tuple[float, float]:
    """
    Return the narrowest interval between two of `values` that holds the true median with 95 % confidence.

    No distribution is assumed (the sign test): the median lies between the k-th smallest and the k-th largest number
    unless fewer than k numbers fall on one side of it. With fewer than 6 numbers, the interval holds all of them.
    """
    n, ordered = len(values), sorted(values)
    k, outside = 0, 0.0
    while (outside := outside + 2 * math.comb(n, k) / 2**n) <= 0.05:
        k += 1
    k = max(k, 1)
    return ordered[k - 1], ordered[n - k]


def compare(a: Record, b: Record) -> list[Verdict]:
    """
    Compare the cases that both records have.

    Parameters
    ----------
    a, b : Record
        The run before, and the one after.

    Returns
    -------
    list of Verdict
        For each case, in the order of `b`. The time of a step is divided by that of the limit in the same round, so
        that a machine that is slower for everybody makes no case slower. A case is "faster" or "slower" if the
        intervals of the two medians are apart by more than 3 %.
    """
    # Of equal cases in a record, the first one counts.
    before, after = ({each.case: each for each in reversed(some.cases)} for some in (a, b))
    return [_verdict(before[case], each) for case, each in reversed(after.items()) if case in before]


def _verdict(a: Measured, b: Measured) -> Verdict:
    relative = [_relative(each) for each in (a, b)]
    before, after = relative if all(relative) else [each.ours.seconds for each in (a, b)]
    (low_a, high_a), (low_b, high_b) = interval(before), interval(after)
    low, high = low_b / high_a, high_b / low_a
    (first_a, last_a), (first_b, last_b) = interval(a.ours.seconds), interval(b.ours.seconds)
    moved = last_b / first_a < 1 - FLOOR or first_b / last_a > 1 + FLOOR
    says = "unclear"
    if min(len(before), len(after)) >= FEWEST:
        if high < 1 - FLOOR:
            says = "faster"
        elif low > 1 + FLOOR:
            says = "slower"
        elif low >= 1 - FLOOR and high <= 1 + FLOOR and not moved:
            says = "same"
    seconds = b.ours.timing.median / a.ours.timing.median
    return Verdict(f"{b.case}, {b.case.where}", median(before), median(after), low, high, seconds, says)


def _relative(measured: Measured) -> list[float]:
    """Return our time over the time of the limit, round by round; nothing where there is no limit."""
    limit = measured.row("limit")
    return [x / y for x, y in zip(measured.ours.seconds, limit.seconds, strict=True)] if limit else []


def main(argv: list[str]) -> int:
    """
    Print the verdict on each case, and what may explain it.

    Parameters
    ----------
    argv : list of str
        The arguments of ``python -m fusedstep bench compare``: two files.

    Returns
    -------
    int
        0, or 1 if something is slower, or 2 if a file is no record.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fusedstep bench compare",
        description="Tell what has become faster or slower, in terms of the limit, measured in the same rounds.",
    )
    for name in ("before", "after"):
        parser.add_argument(name, type=Path, metavar=f"{name.upper()}.json")
    options = parser.parse_args(argv)
    try:
        a, b = read(options.before), read(options.after)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for text in differences(a, b):
        print(text)
    print(f"\n{'case':56}{'before':>9}{'after':>9}{'after/before':>18}{'seconds':>9}  verdict")
    verdicts = compare(a, b)
    for each in verdicts:
        span = f"{each.low:.3f} to {each.high:.3f}"
        print(f"{each.case:56}{each.before:>9.3g}{each.after:>9.3g}{span:>18}{each.seconds:>9.3f}  {each.says}")
    counts = [f"{sum(v.says == says for v in verdicts)} {says}" for says in ("faster", "slower", "same", "unclear")]
    only = len({m.case for m in a.cases} ^ {m.case for m in b.cases})
    print(f"\n{', '.join(counts)}; {only} cases are in one of the files only.")
    print("before, after: our time in terms of the limit's, or seconds; seconds: the time after over the time before.")
    return int(any(each.says == "slower" for each in verdicts))


def differences(a: Record, b: Record) -> list[str]:
    """Return in what machines, builds and settings of two runs differ, apart from dates and loads."""
    said = []
    for name in ("cpu", "affinity", "huge_pages", "os", "python", "packages", "environment", "gpus"):
        before, after = a.machine.get(name), b.machine.get(name)
        if before != after:
            said.append(f"{name}: {before} before, {after} after")
    before, after = a.machine.get("fusedstep", {}), b.machine.get("fusedstep", {})
    for name in ("version", "compiler", "flags", "commit"):
        if before.get(name) != after.get(name):
            said.append(f"{name}: {before.get(name)} before, {after.get(name)} after")
    return said
