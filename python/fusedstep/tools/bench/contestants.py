"""
Who takes part: fusedstep, the limit, a copy within a GPU, and, in `peers`, other people's optimizers.

All contestants of a case are made from one `Job`, so that they update equal parameters with the same gradients. A
contestant makes a step when `step` is called, and shows its parameters with `params`. One that is not installed, or
cannot do the job, raises `AbsentError`.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedstep import _cpu, optimizers, reference
from fusedstep.core.arrays import to_host

from .cases import NORMS, Case, dtype_of
from .gpu import cupy

__all__ = ["AbsentError", "Contestant", "Copy", "Fusedstep", "Job", "Limit", "disagreements", "on_device", "set_all"]

Array = Any  # of NumPy or CuPy
LINE = 64  # bytes of a cache line
DRAWN = 2**20  # random numbers are drawn; a longer array repeats them
SAMPLE = 2**16  # elements of all arrays are compared with the reference
DIGITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}  # of the significand, in bits
# Seed, smallest and largest magnitude of the random numbers. Parameters are small enough for a step to change them in
# half precision. Gradients are large enough for states to be normal numbers, but for their squares in float16.
PARAMS, GRADS = (0, 2**-6, 2**-4), (1, 0.1, 2.0)
FACTORS = (1.0, -0.5, 1.0)  # factors on the gradients in the three steps that are compared


class AbsentError(Exception):
    """The contestant cannot take part."""


def on_device(name: str) -> Any:
    """Return a context in which new arrays of CuPy are on the device called `name`."""
    if name == "cpu":
        return nullcontext()
    return cupy().cuda.Device(int(name.partition(":")[2] or 0))


@cache
def _drawn(dtype: str, seed: int, smallest: float, largest: float, factor: float, device: str) -> Array:
    """Return random numbers of both signs, as the unsigned integers with their bits."""
    rng = np.random.default_rng(seed)
    numbers = factor * rng.uniform(smallest, largest, DRAWN) * rng.choice((-1.0, 1.0), DRAWN)
    drawn = numbers.astype(dtype_of(dtype))
    bits = drawn.view(f"u{drawn.itemsize}")
    if device == "cpu":
        return bits
    return cupy().asarray(bits)


def set_all(array: Array, value: float) -> None:
    """Set all elements of an array. Bits are set, as unsigned integers, since CuPy would flush a subnormal number."""
    array.view(f"u{array.itemsize}").fill(array.dtype.type(value).view(f"u{array.itemsize}"))


class Job:
    """
    The arrays of a case: equal parameters for each contestant, and the gradients for all of them.

    Parameters
    ----------
    case : Case
        The step to be made.

    Attributes
    ----------
    grads : list of arrays
        The gradients, which all contestants read.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        with on_device(case.device):
            self.grads = [self._empty(i, case.grad_dtype or case.dtype, 0) for i in range(case.count)]
        self.set_grads(0.0 if case.states else 1.0)

    def set_grads(self, factor: float) -> None:
        """Set the gradients, in place, to the random numbers times a factor."""
        self._fill(self.grads, self.case.grad_dtype or self.case.dtype, *GRADS, factor)

    def params(self) -> list[Array]:
        """Return the parameters that a contestant starts from, in memory of its own."""
        with on_device(self.case.device):
            made = [self._empty(i, self.case.dtype, int(self.case.count == 1)) for i in range(self.case.count)]
        self._fill(made, self.case.dtype, *PARAMS, 1.0)
        return made

    def _empty(self, i: int, dtype: str, place: int) -> Array:
        """Return array number `i`, from cache line 3 * `place` of its memory on, or off the line if the case is odd."""
        case, itemsize, start = self.case, dtype_of(dtype).itemsize, 3 * LINE * place
        size = max(1, case.size + (-1) ** i * (1 + i // 2 * 2 % 6) * case.odd)
        start += itemsize * (1 + i % 3) * case.odd
        if case.device == "cpu":
            owner: Array = np.empty(start + LINE + size * itemsize, np.uint8)
            start += -owner.ctypes.data % LINE
        else:  # memory of CuPy begins at a multiple of 256 bytes
            owner = cupy().empty(start + size * itemsize, np.uint8)
        return owner[start : start + size * itemsize].view(dtype_of(dtype))

    def _fill(self, arrays: list[Array], dtype: str, seed: int, *numbers: float) -> None:
        with on_device(self.case.device):
            drawn = _drawn(dtype, seed, *numbers, self.case.device)
            for array in arrays:
                bits = array.view(drawn.dtype)
                for begin in range(0, array.size, DRAWN):
                    part = bits[begin : begin + DRAWN]
                    part[...] = drawn[: part.size]

    def sample(self, arrays: list[Array]) -> npt.NDArray[Any]:
        """Return elements of each array, those at its ends among them, in one array of NumPy."""
        stride = max(1, self.case.parameters // SAMPLE)
        dtype = arrays[0].dtype
        parts: list[Array] = []
        for array in arrays:
            bits = array.view(f"u{dtype.itemsize}")  # CuPy cannot gather every dtype
            inner = bits[LINE:-LINE:stride]
            parts += [bits[:LINE], inner, bits[-LINE:]] if bits.size > 2 * LINE else [bits]
        package = np if self.case.device == "cpu" else cupy()
        sampled: npt.NDArray[Any] = to_host(package.concatenate(parts)).view(dtype)
        return sampled

    def expected(self) -> npt.NDArray[Any] | None:
        """
        Return the sample of the parameters as the reference leaves it after the compared steps.

        None if elements depend on more than the sample: on a norm of whole gradients, or on random bits by position.
        """
        asked = dict(self.case.options)
        if asked.keys() & NORMS or "rounding" in asked:
            return None
        p = self.sample(self.params())
        optimizer = self.case.optimizer(reference)
        for factor in FACTORS:
            self.set_grads(factor)
            optimizer.step(p, self.sample(self.grads))
        return p


class Contestant:
    """One side of a comparison."""

    name: str
    steps = 1  # how many steps a call of `step` makes
    starts_slowly = False  # whether a contestant compiles for seconds
    kinds: tuple[str, ...] = ("cpu", "cuda")  # the devices that a contestant runs on

    def __init__(self, job: Job) -> None:
        raise NotImplementedError

    def prepare(self) -> None:
        """Choose what is chosen for the whole process: called before each turn, untimed."""

    def step(self) -> object:
        """Make one step."""
        raise NotImplementedError

    def params(self) -> list[Array]:
        """Return the parameters as they are now."""
        raise NotImplementedError

    def set_states(self, value: float) -> None:
        """Set all states, made by an earlier step, to `value`."""
        raise NotImplementedError

    def look(self, job: Job) -> None:
        """Take over gradients of the job that have changed in place: for a contestant that works with a copy."""


class Fusedstep(Contestant):
    """
    The optimizer of fusedstep, called with one array, with lists, or, with `mapping`, with dicts.

    Another `optimizer` may take the place of that of the case.
    """

    name = "fusedstep"

    def __init__(self, job: Job, mapping: bool = False, optimizer: Any = None) -> None:
        self._params = job.params()
        self.args: Any = (self._params[0], job.grads[0]) if job.case.count == 1 else (self._params, job.grads)
        if mapping:
            names = [f"layer{i}.weight" for i in range(job.case.count)]
            self.args = tuple(dict(zip(names, arrays, strict=True)) for arrays in (self._params, job.grads))
        self.optimizer = optimizer or job.case.optimizer()
        self.step: Callable[[], object] = partial(self.optimizer.step, *self.args)

    def params(self) -> list[Array]:
        """Return the parameters as they are now."""
        return self._params

    def set_states(self, value: float) -> None:
        """Set all states, made by an earlier step, to `value`."""
        for states in self.optimizer.state.values():
            for state in states.values():
                set_all(state, value)


class Limit(Contestant):
    """
    A loop of the same engine over the buffers of `ours` that moves the same bytes and computes next to nothing.

    It subtracts gradients from parameters and changes the sign of every state. A call makes two steps, which leaves
    states as they were. Its time is what the memory allows.
    """

    name = "limit"
    steps = 2

    def __init__(self, ours: Fusedstep) -> None:
        ours.step()  # the first step makes the states
        found = ours.optimizer.state
        rule = f"limit{len(next(iter(found.values()), ()))}"
        states = {key: dict(zip(_cpu.rules[rule][1], each.values(), strict=True)) for key, each in found.items()}
        dtype = ours.optimizer.state_dtype
        yardstick = type("Limit", (optimizers.SGD,), {"rule": rule})(lr=0.0, state_dtype=dtype)
        yardstick._progress.state |= states
        self._step = partial(yardstick.step, *ours.args)

    def step(self) -> None:
        """Make two steps."""
        self._step()
        self._step()


class Copy(Contestant):
    """A copy within a GPU that reads and writes as many bytes as a step must."""

    name = "copy"

    def __init__(self, job: Job) -> None:
        source, self.target = (cupy().empty(job.case.moved // 2, np.uint8) for _ in range(2))
        self._copy = partial(self.target.data.copy_from_device_async, source.data, source.nbytes)

    def step(self) -> None:
        """Copy the buffers."""
        self._copy()


def disagreements(job: Job, contestants: list[Contestant]) -> list[tuple[float | None, float | None]]:
    """
    Let all contestants make three steps with changing gradients, and return how far each ends from the reference.

    Parameters
    ----------
    job : Job
        The job that the contestants were made from.
    contestants : list of Contestant
        New contestants, which have made no step yet; the first is fusedstep.

    Returns
    -------
    list of tuple
        For each contestant the largest difference of a sampled parameter: in units in the last place, and as a share
        of the largest change. A unit is that of the parameter before or after the steps, whichever is larger. Where
        the reference cannot tell from a sample, others are compared with ours, which has None.
    """
    expected, before = job.expected(), job.sample(job.params())
    for factor in FACTORS:
        job.set_grads(factor)
        for one in contestants:
            one.look(job)
            one.prepare()
            one.step()
    samples = [job.sample(one.params()) for one in contestants]
    right = samples[0] if expected is None else expected
    ulp = np.maximum(_ulp(right), _ulp(before))  # a step may cancel most of a parameter
    change = float(np.abs(right.astype(np.float64) - before.astype(np.float64)).max()) or 1.0
    found: list[tuple[float | None, float | None]] = []
    for sample in samples:
        apart = np.abs(sample.astype(np.float64) - right.astype(np.float64))
        found.append((float((apart / ulp).max()), float(apart.max()) / change))
    return [(None, None), *found[1:]] if expected is None else found


def _ulp(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the unit in the last place of each number, in float64."""
    _, exponent = np.frexp(x.astype(np.float64))
    ulp: npt.NDArray[np.float64] = np.ldexp(1.0, exponent - DIGITS[x.dtype.name])
    return ulp
