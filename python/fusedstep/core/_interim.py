"""
Thrown away at the merge with the new engine: its interface as it will be, made of the compiled module as it is.

After the merge, `_interim.rules` is `_cpu.rules`, `_interim.update` is `_cpu.update`, `NO_MEMORY` is ``()``, `begin` is
nothing, and CLOCK is ``[("t", int64), ("averaged", int64), ("memory", float64, (4,))]``.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusedstep import _cpu


class Rule(NamedTuple):
    """What the engine says of a rule."""

    number: int
    states: tuple[str, ...]
    hypers: tuple[str, ...]
    memory: tuple[str, ...]  # names of the numbers that a rule keeps between updates
    counts: bool  # whether it depends on the number of the update


_COUNTING = ("momentum", "adam", "amsgrad", "adamax", "nadam")

rules: dict[str, Rule] = {
    name: Rule(*known, ("product",) if name == "nadam" else (), name in _COUNTING) for name, known in _cpu.rules.items()
}

CLOCK = np.dtype(
    {
        "names": ["t", "averaged", "memory"],
        "formats": [np.int64, np.int64, (np.float64, (1,))],
        "offsets": [0, 16, 8],
        "itemsize": 24,
    }
)

NO_MEMORY: Any = 1.0


def begin(clocks: npt.NDArray[Any]) -> None:
    """Set the memory of what has made no update to 1, as today's engine expects it."""
    clocks["memory"][clocks["t"] == 0] = 1


def update(rule: int, arrays: tuple[Any, ...], hypers: bytes, t: int, memory: tuple[float]) -> tuple[float]:
    """Make one update of a rule with a memory, and return the memory after it."""
    return (_cpu.update(rule, arrays, hypers, t, 1.0 if t == 1 else memory[0]),)


update_without_memory: Any = _cpu.update
