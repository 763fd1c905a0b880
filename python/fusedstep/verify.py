"""
The promise of equal bits, checked on this machine: `python -m fusedstep verify`.

Every optimizer in every dialect, in both dtypes, on every instruction set, with several numbers of threads, over
awkward sizes, alignments and values, against the NumPy reference. Bits are equal, or both are NaN.
"""

import argparse
import inspect
import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any, get_args

import numpy as np

from . import _cpu, optimizers, reference
from .hyperparameters import declared
from .settings import set_num_threads, use_isa

__all__ = ["Guarded", "classes", "dialects", "difference", "main", "outcome"]

Array = Any
Options = dict[str, Any]
DTYPES = (np.float32, np.float64)
# Around the lengths of vectors of 4, 8 and 16 elements; the large ones are cut among threads.
SMALL = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 129)
LARGE = (100_003, 1, 65_537, 0, 70_001)
THREADS = (1, 2, 3, 8)
STEPS = 5


def classes() -> list[type[optimizers.Optimizer]]:
    """Return the optimizers, in the order of their definition."""
    base = optimizers.Optimizer
    return [c for c in vars(optimizers).values() if isinstance(c, type) and issubclass(c, base) and c is not base]


def dialects(cls: type[optimizers.Optimizer]) -> Iterator[Options]:
    """
    Yield what a class is to be tried with.

    First every combination of its own options, a number that is 0 by default also as 0.3; then combinations of these
    and of what surrounds every rule, in which each choice meets each other one.
    """
    own, around = [], []
    for name, parameter in inspect.signature(cls).parameters.items():
        hint = declared(cls).get(name)
        values = (False, True) if hint is bool else get_args(hint)
        if hint is float and parameter.default == 0:
            values = (0.0, 0.3)
        choices = tuple({name: value} for value in values)
        if name in declared(optimizers.Optimizer):
            around += [choices] if name in ("maximize", "l1", "zero_grad") else []
        elif choices:
            own.append(choices)
    yield from (_merged(combination) for combination in itertools.product(*own))
    around += [
        ({}, {"grad_scale": 0.3}),
        ({}, {"clip_value": 0.5}, {"clip_norm": 3.0}, {"clip_global_norm": 20.0}),
        ({}, {"ema": 0.9}),
        ({"weight_decay": 0.0}, {"weight_decay": 0.3}),
    ]
    if not cls.always_decoupled:
        around[-1] += ({"weight_decay": 0.3, "decoupled": True},)
    yield from _pairwise(own + around)


def _merged(options: Iterable[Options]) -> Options:
    return {name: value for some in options for name, value in some.items()}


def _pairwise(factors: list[tuple[Options, ...]]) -> Iterator[Options]:
    """Yield combinations, a choice of each factor, until each choice has met each choice of every other factor."""
    choices = [[(i, j) for j in range(len(factor))] for i, factor in enumerate(factors)]
    missing = {frozenset(pair) for a, b in itertools.combinations(choices, 2) for pair in itertools.product(a, b)}
    while missing:
        row = sorted(min(missing, key=sorted))
        for options in choices:
            if options[0][0] not in (i for i, _ in row):
                row.append(max(options, key=lambda new: sum({new, old} in missing for old in row)))
        missing -= {frozenset(pair) for pair in itertools.combinations(row, 2)}
        yield _merged(factors[i][j] for i, j in sorted(row))


class Guarded:
    """Arrays cut out of larger ones, each off the vector boundary by an amount of its own, between guard elements."""

    margin = 32

    def __init__(self, arrays: list[Array]) -> None:
        self.arrays = []
        self._guards = []
        for i, array in enumerate(arrays):
            start = self.margin + 7 * i % 16
            whole = np.full(array.size + start + self.margin, 12345.678, array.dtype)
            part = whole[start : start + array.size]
            part[...] = array.reshape(-1)
            self.arrays.append(part.reshape(array.shape))
            self._guards += [whole[:start], whole[start + array.size :]]

    def intact(self) -> bool:
        """Return whether nobody wrote outside the arrays."""
        return all((guard == guard.dtype.type(12345.678)).all() for guard in self._guards)


def values(rng: np.random.Generator, n: int, dtype: Any) -> Array:
    """Return numbers of ordinary size and of all sizes, with subnormals, infinities, NaN and both zeros among them."""
    info = np.finfo(dtype)
    exponents = rng.uniform(np.log2(float(info.smallest_subnormal)), info.maxexp - 1, n)
    numbers = np.where(rng.random(n) < 0.6, rng.standard_normal(n), rng.choice([-1, 1], n) * np.exp2(exponents))
    tiny = float(info.smallest_normal)
    specials = [np.nan, np.inf, -np.inf, 0.0, -0.0, tiny, -tiny, tiny / 2, float(info.smallest_subnormal), 1.0, -1.0]
    return np.where(rng.random(n) < 0.15, rng.choice(specials, n), numbers).astype(dtype)


def outcome(optimizer: Any, dtype: Any, sizes: tuple[int, ...]) -> list[Array]:
    """
    Return all that five steps change, for arrays of these sizes.

    These are parameters, gradients and the norm after each step, and in the end states and averages. States are
    disturbed once, so that every value meets every other one. Where a norm clips, gradients are of ordinary size until
    the last step: otherwise they would all end as 0 or NaN.
    """
    rng = np.random.default_rng(sum(sizes))
    params = Guarded([values(rng, n, dtype) for n in sizes])
    clips = optimizer.clip_norm is not None or optimizer.clip_global_norm is not None
    seen = []
    for step in range(STEPS):
        tame = clips and step < STEPS - 1
        grads = Guarded([rng.standard_normal(n).astype(dtype) if tame else values(rng, n, dtype) for n in sizes])
        result = optimizer.step(params.arrays, grads.arrays, grad_scale=1.0 + step % 2)
        seen += [array.copy() for array in params.arrays + grads.arrays]
        seen.append(np.array([result.grad_norm or 0.0]))
        if step == 1:
            for i, n in enumerate(sizes):
                for name, state in sorted(optimizer.state.get(i, {}).items()):
                    if name != "P":
                        state[...] = np.where(rng.random(n) < 0.2, values(rng, n, dtype), state)
        if not (params.intact() and grads.intact()):
            raise AssertionError("an element outside the arrays was written")
    states = (optimizer.state.get(i, {}) for i in range(len(sizes)))
    seen += [state[name].copy() for state in states for name in sorted(state) if name != "P"]
    return seen + [optimizer.ema[i].copy() for i in range(len(sizes)) if i in optimizer.ema]


def difference(found: list[Array], expected: list[Array]) -> int:
    """Return the number of elements whose bits differ and that are not both NaN."""
    if len(found) != len(expected):
        raise AssertionError(f"{len(found)} arrays, expected {len(expected)}")
    count = 0
    for a, b in zip(found, expected, strict=True):
        integer = f"u{a.itemsize}"
        same = (a.view(integer) == b.view(integer)) | (np.isnan(a) & np.isnan(b))
        count += int(same.size - same.sum())
    return count


def main(argv: list[str]) -> int:
    """Run the whole grid, print a table, and return 1 if a bit differs anywhere."""
    parser = argparse.ArgumentParser(prog="python -m fusedstep verify", description="Check the promise of equal bits.")
    parser.parse_args(argv)
    isa, threads = _cpu.isa(), _cpu.num_threads()
    begin = time.perf_counter()
    total = 0
    print(f"instruction sets {', '.join(_cpu.isas)}; threads {', '.join(map(str, THREADS))}; sizes {SMALL + LARGE}")
    print(f"{'optimizer':<12}{'dtype':<9}{'dialects':>9}{'runs':>7}{'elements':>13}{'different':>11}")
    try:
        for cls, dtype in itertools.product(classes(), DTYPES):
            different = elements = runs = 0
            options = list(dialects(cls))
            for chosen in options:
                small = (SMALL, (1,))
                # One dialect without and one with what surrounds the rule is enough for the threads.
                large = (LARGE, THREADS) if chosen in (options[0], options[-1]) else None
                for sizes, counts in filter(None, (small, large)):
                    expected = outcome(getattr(reference, cls.__name__)(**chosen), dtype, sizes)
                    for name, count in itertools.product(_cpu.isas, counts):
                        use_isa(name)
                        set_num_threads(count)
                        different += difference(outcome(cls(**chosen), dtype, sizes), expected)
                        elements += sum(a.size for a in expected)
                        runs += 1
            total += different
            label = np.dtype(dtype).name
            print(f"{cls.__name__:<12}{label:<9}{len(options):>9}{runs:>7}{elements:>13,}{different:>11,}", flush=True)
    finally:
        use_isa(isa)
        set_num_threads(threads)
    verdict = "all bits are equal" if total == 0 else f"{total:,} elements differ"
    print(f"{verdict} ({time.perf_counter() - begin:.0f} s)")
    return int(total != 0)
