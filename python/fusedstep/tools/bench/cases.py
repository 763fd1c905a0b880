"""What is measured: cases, and the heats of cases whose contestants are timed against each other."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np

from fusedstep import _cpu, optimizers
from fusedstep.core.settings import info
from fusedstep.tools import verify

__all__ = [
    "NORMS",
    "SHORT",
    "SIZES",
    "Case",
    "Heat",
    "crossed",
    "devices",
    "dtype_of",
    "dtypes",
    "rules",
    "short",
    "thread_counts",
    "tour",
]

SIZES = tuple(10**exponent for exponent in range(3, 9))
SHORT = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}
NORMS = {"clip_norm", "clip_global_norm", "skip_nonfinite"}  # options for which gradients are read twice
NORMAL, SUBNORMAL = 1e-3, 1e-40  # numbers for `Case.states`
Heat = tuple["Case", ...]


@dataclass(frozen=True)
class Case:
    """
    One step to measure: of which rule, over which arrays, and where.

    Parameters
    ----------
    rule : str
        Name of the rule, as in `rules`.
    dtype : str
        Dtype of parameters and states: in half precision too, because other people's optimizers have no other states.
    size : int
        Elements of each tensor.
    count : int
        Tensors, all in one step.
    odd : bool
        Whether sizes differ from `size` by 1, 3 or 5, and parameters and gradients begin off the vector boundary.
    device : str
        "cpu", or "cuda:0" and so on.
    threads : int
        Number of threads of every contestant that has threads; 0 on a GPU.
    isa : str
        Instruction set of the kernels of fusedstep; "" on a GPU.
    states : float
        If not 0, gradients are zero, and each step begins by setting all states to this number, which is timed too.
    grad_dtype : str
        Dtype of the gradients, if not `dtype`.
    options : tuple of pairs
        Hyperparameters besides the learning rate, by name.
    """

    rule: str = "adam"
    dtype: str = "float32"
    size: int = 10**6
    count: int = 1
    odd: bool = False
    device: str = "cpu"
    threads: int = 1
    isa: str = ""
    states: float = 0.0
    grad_dtype: str = ""
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        """Return the case in short, without where it runs."""
        dtype = SHORT[self.dtype] + (f", {SHORT[self.grad_dtype]} gradients" if self.grad_dtype else "")
        size = f"{self.count} x {short(self.size)}" if self.count > 1 else short(self.size)
        options = [name if value is True else f"{name}={value}" for name, value in self.options]
        states = [f"states {self.states:g}"] if self.states else []
        return " ".join([self.rule, dtype, size, *options, *["odd"] * self.odd, *states])

    @property
    def where(self) -> str:
        """Where the case runs: threads and instruction set, or the GPU."""
        if self.device != "cpu":
            return self.device
        return f"{self.threads} thread{'s' * (self.threads > 1)}, {self.isa}"

    def optimizer(self, package: ModuleType = optimizers) -> Any:
        """Return a new optimizer of `package`, which is `fusedstep.optimizers` or `fusedstep.reference`."""
        cls, options = rules()[self.rule]
        half = {"state_dtype": "same"} if dtype_of(self.dtype).itemsize == 2 else {}
        lr = max(0.01, getattr(optimizers, cls).lr)  # large enough for steps to change parameters in half precision
        return getattr(package, cls)(**({"lr": lr} | half | options | dict(self.options)))

    @property
    def parameters(self) -> int:
        """The number of elements of all tensors together, but for the few that `odd` adds or takes away."""
        return self.size * self.count

    @property
    def bytes_per_parameter(self) -> int:
        """The bytes that a step must move: parameters and states are read and written, gradients read once or twice."""
        passes = 1 + bool(self.optimizer().zero_grad) + bool(dict(self.options).keys() & NORMS)
        return 2 * self._written + passes * self._grad

    @property
    def held_per_parameter(self) -> int:
        """The bytes of a parameter, its gradient and its states."""
        return self._written + self._grad

    @property
    def _grad(self) -> int:
        return dtype_of(self.grad_dtype or self.dtype).itemsize

    @property
    def _written(self) -> int:
        o, p = self.optimizer(), dtype_of(self.dtype).itemsize
        state = 4 if p == 2 and o.state_dtype == "float32" else p
        states = len(_cpu.rules[self.rule][1]) + ("ema" in dict(self.options))
        return p + states * state + {False: 0, True: 4, "split": 2}[o.master_weights]

    @property
    def moved(self) -> int:
        """The bytes that a step must read and write."""
        return self.parameters * self.bytes_per_parameter

    @property
    def limit(self) -> str | None:
        """The rule that moves the bytes of the case without arithmetic; None if the rule has too many states."""
        rule = f"limit{len(_cpu.rules[self.rule][1])}"
        moves_more = dict(self.options).keys() & {"ema", "master_weights", "zero_grad", *NORMS}
        return rule if rule in _cpu.rules and not moves_more else None


def short(number: int) -> str:
    """Return 1000000 as 1e6, and 102400 as it is."""
    digits = str(number).rstrip("0")
    zeros = len(str(number)) - len(digits)
    return f"{digits}e{zeros}" if zeros > 2 and len(digits) == 1 else str(number)


@cache
def rules() -> dict[str, tuple[str, dict[str, Any]]]:
    """
    Return the class and the options that lead to each rule, by the name of the rule.

    A rule that is reached in several ways, by classes or options, is measured in the first one: its default dialect.
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for cls in optimizers.classes():
        for options in verify.dialects(cls):
            found.setdefault(cls(**options)._settings_with().rule, (cls.__name__, options))
    return {rule: found[rule] for rule in _cpu.rules if rule in found}


def dtype_of(name: str) -> np.dtype[Any]:
    """Return a dtype by its name, bfloat16 too."""
    return np.dtype(import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name)


# The axes of cases, with the values that this machine has.


def dtypes() -> list[str]:
    """Return the names of the dtypes that can be measured: bfloat16 needs ml_dtypes."""
    return [name for name in SHORT if name != "bfloat16" or find_spec("ml_dtypes")]


def thread_counts() -> list[int]:
    """Return 1, 2, 4 ... up to the number of threads that a step may use, and that number."""
    most = info()["threads"]
    return sorted({most, *(2**i for i in range(most.bit_length()))})


def devices() -> list[str]:
    """Return the CPU, and the GPUs that can be used."""
    gpus = info()["cuda"]["devices"] if find_spec("cupy") else []
    return ["cpu", *(f"cuda:{i}" for i in range(len(gpus)))]


def crossed(**axes: Iterable[Any]) -> list[Heat]:
    """
    Return the heats of all combinations.

    Parameters
    ----------
    **axes : iterables
        The values of each field of `Case`; the others keep their defaults. On the CPU, cases that differ only in
        `threads`, `isa`, `odd` and `states` are one heat; on a GPU, where there are neither threads nor isa, in the
        last two.
    """
    heats: dict[Case, dict[Case, None]] = {}
    for values in product(*axes.values()):
        case = Case(**dict(zip(axes, values, strict=True)))
        if case.device != "cpu":
            case = replace(case, threads=0, isa="")
        key = replace(case, threads=0, isa="", odd=False, states=0.0)
        heats.setdefault(key, {})[case] = None
    return [tuple(heat) for heat in heats.values()]


def tour(device: str, quick: bool) -> list[Heat]:
    """
    Return the heats of a run without axes, the most telling first: each axis varies by itself, around Adam in float32.

    Parameters
    ----------
    device : str
        "cpu" or "cuda:0" and so on.
    quick : bool
        Fewer heats, and none that takes long.
    """
    here: dict[str, Any] = {"device": [device], "threads": thread_counts()[-1:], "isa": _cpu.isas[-1:]}
    cpu = device == "cpu"
    cached, large = (10**5, 10**7) if cpu else (10**6, 10**8)
    both = [cached] if quick else [cached, large]
    sizes = SIZES[:-1] if quick else SIZES if cpu else (*SIZES, 10**9)
    others = [rule for rule in rules() if rule != "adam"]
    types = [name for name in dtypes() if name != "float32"]
    heats = [
        *crossed(size=sizes, **here),
        *crossed(rule=["sgd", "rmsprop", "adadelta"] if quick else others, size=[large], **here),
        *crossed(size=[16, 256] if quick else [16, 64, 256, 1000, 4000], count=[1000], **here),
        *crossed(dtype=types, size=both, **here),
        *crossed(size=[cached], states=[NORMAL, SUBNORMAL], **here | {"threads": [1]}),
        *crossed(size=both, odd=[False, True], **here),
    ]
    if cpu:
        heats += crossed(size=both, **here | {"isa": _cpu.isas})
        heats += crossed(size=both, **here | {"threads": thread_counts()})
    return heats if quick else heats + crossed(rule=others, size=[cached], **here)
