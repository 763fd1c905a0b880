"""
Check the promise of equal bits on this machine: `python -m fusedstep verify`.

Every optimizer is compared with the NumPy reference: in every dialect, in float32, float64 and half precision, on every
instruction set, with several numbers of threads, and on a GPU where CuPy finds one, over awkward sizes, alignments and
values. Two results agree if their bits are equal, or if both are NaN. `python -m fusedstep verify package.module:name`
does so with a rule of one's own.
"""

import argparse
import inspect
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, get_args

import numpy as np

from fusedstep import _cpu, optimizers, reference
from fusedstep.core.arrays import copied, fill, to_host
from fusedstep.core.hyperparameters import declared
from fusedstep.core.settings import info, set_num_threads, use_isa
from fusedstep.optimizers import classes
from fusedstep.rules.decorator import Made

__all__ = ["Case", "Guarded", "cases", "dialects", "difference", "halves", "main", "outcome"]

Array = Any
Options = dict[str, Any]
DTYPES = (np.float32, np.float64)
HALVES = (np.float16, *([import_module("ml_dtypes").bfloat16] if find_spec("ml_dtypes") else []))
# Numbers of elements: small ones around the lengths of vectors (4, 8 and 16 elements), large ones that threads share.
SMALL = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 129)
LARGE = (100_003, 1, 65_537, 0, 70_001)
THREADS = (1, 2, 3, 8)
STEPS = 5


def dialects(cls: type[optimizers.Optimizer]) -> Iterator[Options]:
    """
    Yield the options that a class is to be tried with.

    First every combination of the options of its own. Then combinations of them with the options that surround every
    rule (clipping, decay and the like), until each choice of an option has met each choice of every other one.
    """
    own, around = _choices(cls)
    yield from (_merged(combination) for combination in itertools.product(*own))
    yield from _pairwise(own + around)


def _choices(cls: type[optimizers.Optimizer]) -> tuple[list[tuple[Options, ...]], list[tuple[Options, ...]]]:
    """
    Return the choices of each option of the class's own, and of each option that surrounds every rule.

    They follow from the declared types: both values of a bool, all words of a Literal, and 0 and 0.3 for a number whose
    default is 0.
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
    around += [
        ({}, {"grad_scale": 0.3}),
        ({}, {"clip_value": 0.5}, {"clip_norm": 3.0}, {"clip_global_norm": 20.0}),
        ({}, {"ema": 0.9}, {"bounds": (None, 0.5)}, {"bounds": (-1e-39, 1.0)}, {"measure": "update"}),
        ({"weight_decay": 0.0}, {"weight_decay": 0.3}),
    ]
    if not cls.always_decoupled:
        around[-1] += ({"weight_decay": 0.3, "decoupled": True},)
    return own, around


class Case(NamedTuple):
    """What an optimizer is tried with: options, the dtype of parameters, and the dtype of gradients."""

    options: Options
    dtype: Any
    grad_dtype: Any


def halves(cls: type[optimizers.Optimizer]) -> Iterator[Case]:
    """Yield combinations of half-precision arrays and all options, in which each choice meets every other one."""
    own, around = _choices(cls)
    factors = [
        tuple({"types": (half, half)} for half in HALVES)
        + tuple({"types": (half, np.float32)} for half in HALVES)
        + tuple({"types": (np.float32, half)} for half in HALVES),
        ({"state_dtype": "float32"}, {"state_dtype": "same"}),
        ({"master_weights": False}, {"master_weights": True}, {"master_weights": "split"}),
        ({"rounding": "nearest"}, {"rounding": "stochastic", "seed": 2**53 - 1}),
    ]
    for options in _pairwise(factors + own + around):
        dtype, grad_dtype = options.pop("types")
        if options["master_weights"] == "split" and dtype == np.float16:
            options["master_weights"] = True  # only bfloat16 can be split
        yield Case(options, dtype, grad_dtype)


class Counts(NamedTuple):
    """What a comparison counts: elements that were compared, and those that differ."""

    elements: int
    different: int


def cases(cls: type[optimizers.Optimizer]) -> dict[str, list[Case]]:
    """Return all that a class is to be tried with, by the word for it in the table: a dtype, or "halves"."""
    chosen = list(dialects(cls))
    pure = {np.dtype(dtype).name: [Case(options, dtype, dtype) for options in chosen] for dtype in DTYPES}
    return pure | {"halves": list(halves(cls))}


def _merged(options: Iterable[Options]) -> Options:
    return {name: value for some in options for name, value in some.items()}


def _pairwise(factors: list[tuple[Options, ...]]) -> Iterator[Options]:
    """
    Yield combinations, a choice of each factor, until each choice has met each choice of every other factor.

    A combination begins with a pair that has not met. Of every other factor it takes the choice that meets most others
    in the combination for the first time.
    """
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
    """
    Arrays between guard elements, which tell whether somebody has written outside of an array.

    Each begins off the vector boundary, by an amount of its own. All are where `place` puts a NumPy array.
    """

    margin = 32

    def __init__(self, arrays: list[Array], place: Callable[[Array], Array] = np.asarray) -> None:
        self.arrays = []
        self._guards = []
        for i, array in enumerate(arrays):
            start = self.margin + 7 * i % 16
            whole = np.full(array.size + start + self.margin, 12345.678, array.dtype)
            whole[start : start + array.size] = array.reshape(-1)
            whole = place(whole)
            self.arrays.append(whole[start : start + array.size].reshape(array.shape))
            self._guards += [whole[:start], whole[start + array.size :]]

    def intact(self) -> bool:
        """Return whether all guard elements are as they were."""
        return all((to_host(guard) == guard.dtype.type(12345.678)).all() for guard in self._guards)


def values(rng: np.random.Generator, n: int, dtype: Any) -> Array:
    """Return numbers of ordinary size and of every size, among them subnormals, infinities, NaN and both zeros."""
    dtype = np.dtype(dtype)
    if dtype == np.uint16:
        return rng.integers(0, 2**16, n).astype(dtype)
    info = np.finfo(dtype if dtype.kind == "f" else np.float32)  # the range of bfloat16 is that of float32
    exponents = rng.uniform(np.log2(float(info.smallest_subnormal)), info.maxexp - 1, n)
    numbers = np.where(rng.random(n) < 0.6, rng.standard_normal(n), rng.choice([-1, 1], n) * np.exp2(exponents))
    tiny = float(info.smallest_normal)
    specials = [np.nan, np.inf, -np.inf, 0.0, -0.0, tiny, -tiny, tiny / 2, float(info.smallest_subnormal), 1.0, -1.0]
    with np.errstate(all="ignore"):
        return np.where(rng.random(n) < 0.15, rng.choice(specials, n), numbers).astype(dtype)


def outcome(
    optimizer: Any,
    dtype: Any,
    sizes: tuple[int, ...],
    grad_dtype: Any = None,
    place: Callable[[Array], Array] = np.asarray,
) -> list[Array]:
    """
    Make five steps with arrays of `sizes`, and return everything that the steps change.

    Returned are parameters, gradients and norms after each step, and states and averages in the end. After the
    second step, some states are overwritten, so that awkward states meet awkward gradients. Where gradients are
    clipped by a norm, they have ordinary sizes until the last step: an infinite norm would make them all 0 or NaN. The
    steps are made where `place` puts NumPy arrays.
    """
    rng = np.random.default_rng(sum(sizes))
    grad_dtype = grad_dtype or dtype
    params = Guarded([values(rng, n, dtype) for n in sizes], place)
    clips = optimizer.clip_norm is not None or optimizer.clip_global_norm is not None
    seen = []
    for step in range(STEPS):
        tame = clips and step < STEPS - 1
        grads = Guarded(
            [rng.standard_normal(n).astype(grad_dtype) if tame else values(rng, n, grad_dtype) for n in sizes],
            place,
        )
        result = optimizer.step(params.arrays, grads.arrays, grad_scale=1.0 + step % 2)
        seen += [copied(array) for array in params.arrays + grads.arrays]
        seen.append(np.array([result.grad_norm or 0.0, result.update_norm or 0.0]))
        if step == 1:
            for i, n in enumerate(sizes):
                for _, state in sorted(optimizer.state.get(i, {}).items()):
                    known = to_host(state)
                    fill(state, np.where(rng.random(n) < 0.2, values(rng, n, known.dtype), known))
        if not (params.intact() and grads.intact()):
            raise AssertionError("an element outside the arrays was written")
    states = (optimizer.state.get(i, {}) for i in range(len(sizes)))
    seen += [copied(state[name]) for state in states for name in sorted(state)]
    return seen + [copied(optimizer.ema[i]) for i in range(len(sizes)) if i in optimizer.ema]


def difference(found: list[Array], expected: list[Array]) -> int:
    """Return the number of elements whose bits differ and that are not both NaN."""
    if len(found) != len(expected):
        raise AssertionError(f"{len(found)} arrays, expected {len(expected)}")
    count = 0
    for a, b in zip(found, expected, strict=True):
        if a.dtype != b.dtype:
            raise AssertionError(f"{a.dtype}, expected {b.dtype}")
        integer = f"u{a.itemsize}"
        same = (a.view(integer) == b.view(integer)) | (np.isnan(a) & np.isnan(b))
        count += int(same.size - same.sum())
    return count


def _gpu() -> Callable[[Array], Array] | str:
    """Return a function that puts an array on the GPU, or the reason why there is none."""
    cuda = info()["cuda"]
    if not cuda["devices"]:
        return f"none, {cuda['why_none']}"
    if find_spec("cupy") is None:
        return "none, CuPy is not installed"
    place: Callable[[Array], Array] = import_module("cupy").asarray
    return place


def _reference_of(cls: type[optimizers.Optimizer]) -> Any:
    return cls.reference if issubclass(cls, Made) else getattr(reference, cls.__name__)


def _found(names: list[str]) -> list[type[optimizers.Optimizer]]:
    """Return the classes of rules that are named as "package.module:name"."""
    found: list[type[optimizers.Optimizer]] = []
    for name in names:
        module, _, attribute = name.partition(":")
        cls = getattr(import_module(module), attribute, None)
        if not (isinstance(cls, type) and issubclass(cls, Made)):
            raise SystemExit(f"{name} is no rule, expected package.module:name of what fs.rule has made")
        found.append(cls)
    return found


def _runs(cls: type[optimizers.Optimizer], chosen: list[Case], gpu: Callable[[Array], Array] | str) -> Iterator[Counts]:
    """Run a class through cases, on everything that this machine has, and yield the counts of each comparison."""
    for case in chosen:
        options, dtype, grad_dtype = case
        # Two cases are enough for the threads: the first, a rule by itself, and the last, with what surrounds it.
        grid = [(SMALL, (1,)), (LARGE, THREADS)] if case in (chosen[0], chosen[-1]) else [(SMALL, (1,))]
        for sizes, counts in grid:
            expected = outcome(_reference_of(cls)(**options), dtype, sizes, grad_dtype)
            elements = sum(a.size for a in expected)
            for isa, count in itertools.product(_cpu.isas, counts):
                use_isa(isa)
                set_num_threads(count)
                yield Counts(elements, difference(outcome(cls(**options), dtype, sizes, grad_dtype), expected))
            if not isinstance(gpu, str):
                found = outcome(cls(**options), dtype, sizes, grad_dtype, gpu)
                yield Counts(elements, difference(found, expected))


def main(argv: list[str]) -> int:
    """Compare everything, print a table, and return 1 if a bit differs anywhere."""
    parser = argparse.ArgumentParser(prog="python -m fusedstep verify", description="Check the promise of equal bits.")
    parser.add_argument("rules", nargs="*", metavar="package.module:name", help="rules of one's own, in place of all")
    own = _found(parser.parse_args(argv).rules)
    isa, threads = _cpu.isa(), _cpu.num_threads()
    gpu = _gpu()
    begin = time.perf_counter()
    total = 0
    chosen_classes = own or classes()
    width = max([12, *(len(cls.__name__) + 2 for cls in chosen_classes)])
    print(f"GPU: {gpu if isinstance(gpu, str) else 'the current one of CuPy'}")
    print(f"instruction sets {', '.join(_cpu.isas)}; threads {', '.join(map(str, THREADS))}; sizes {SMALL + LARGE}")
    print(f"{'optimizer':<{width}}{'dtype':<9}{'cases':>9}{'runs':>7}{'elements':>13}{'different':>11}")
    try:
        for cls in chosen_classes:
            for label, chosen in cases(cls).items():
                runs = list(_runs(cls, chosen, gpu))
                elements, different = (sum(column) for column in zip(*runs, strict=True))
                total += different
                row = f"{cls.__name__:<{width}}{label:<9}{len(chosen):>9}{len(runs):>7}{elements:>13,}{different:>11,}"
                print(row, flush=True)
    finally:
        use_isa(isa)
        set_num_threads(threads)
    verdict = "all bits are equal" if total == 0 else f"{total:,} elements differ"
    print(f"{verdict} ({time.perf_counter() - begin:.0f} s)")
    return int(total != 0)
