"""What an optimizer remembers of each parameter, by key: step count, states, master and average."""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import islice
from numbers import Integral
from types import MappingProxyType
from typing import Any

import numpy as np

from fusedstep import _cpu

from .arrays import MASTER_DTYPES, MASTERS, Array, device_of, fill, is_narrow, new_array
from .hyperparameters import Scheduled

__all__ = ["Averages", "Progress", "is_lasting", "listed", "noise_id"]

# The clock of a parameter, which the engine reads and advances: finished updates, whether the average has begun (1 or
# 0), and the numbers that the rule keeps between updates.
CLOCK = np.dtype([("t", np.int64), ("averaged", np.int64), ("memory", np.float64, (_cpu.max_memory,))])


def is_lasting(key: Hashable) -> bool:
    """Return whether a key has the same text in every process: no address, and no order of a set."""
    if isinstance(key, tuple):
        return all(map(is_lasting, key))
    if key is None or isinstance(key, (str, Integral, float)):
        return True
    try:
        return " at 0x" not in repr(key) and not isinstance(key, frozenset)
    except Exception:
        return False


def noise_id(key: Hashable) -> int:
    """Return the number that makes the random bits of a parameter its own: its key, or a digest of the key's text."""
    if isinstance(key, Integral):
        return int(key) % 2**64
    if not is_lasting(key):
        return 0  # of no use: `match` refuses stochastic rounding
    from hashlib import blake2b  # loaded late: it takes longer to load than all of this module

    text = key if isinstance(key, str) else repr(key)
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Averages(Mapping[Hashable, Array]):
    """The averages of the parameters: key -> array. The arrays may be written to, not replaced."""

    def __init__(self, decay: Scheduled | None, arrays: Mapping[Hashable, Array], of_a_run: bool) -> None:
        self._decay = decay
        self._arrays = arrays
        self.of_a_run = of_a_run  # whether the optimizer has begun

    @property
    def decay(self) -> Scheduled | None:
        """The decay that was set; None where no average is made."""
        return self._decay

    def __getitem__(self, key: Hashable) -> Array:
        return self._arrays[key]

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return repr(self.decay)


class Progress:
    """
    Step counts and memory of a rule, in clocks that the engine advances; states and averages by key.

    What is exported is plain: ``{"t": {key: count}, "memory": {key: {name: number}}, "state": {key: {name: array}},
    "ema": {key: array}}``. The memory, numbers that a rule keeps from update to update, begins with the first update.
    """

    def __init__(self) -> None:
        self.clock_of: dict[Hashable, int] = {}  # index of the clock of each key
        self._clocks = np.zeros(0, CLOCK)
        self.plan: _cpu.Plan | None = None  # the plan that advances the clocks, perhaps on a GPU
        self.state: dict[Hashable, Mapping[str, Array]] = {}
        self.ema: dict[Hashable, Array] = {}

    @property
    def clocks(self) -> Array:
        """
        The clocks, in the order of `clock_of`.

        A clock has the step count `t`, whether the average has begun as 0 or 1 (`averaged`), and the rule's `memory`.
        """
        if self.plan is not None:
            self.plan.refresh()
        return self._clocks

    def set_clock(self, key: Hashable, t: int, memory: list[float]) -> None:
        """Set the step count and memory of a parameter whose average, if it has one, is there."""
        clock = self._clocks[self.clock_of[key]]
        clock["t"], clock["averaged"] = t, key in self.ema
        clock["memory"][: len(memory)] = memory

    def wait(self) -> None:
        """Wait until steps on a GPU have left the arrays as they will be."""
        if self.plan is not None:
            self.plan.wait()

    def extended(self, keys: Iterable[Hashable]) -> "Progress":
        """Return a copy with room for further parameters; the arrays in it are the same ones."""
        other = Progress()
        other.clock_of, other.state, other.ema = dict(self.clock_of), dict(self.state), dict(self.ema)
        for key in keys:
            other.clock_of.setdefault(key, len(other.clock_of))
        other._clocks = np.zeros(len(other.clock_of), CLOCK)
        other._clocks[: len(self._clocks)] = self.clocks
        return other

    def make(
        self,
        key: Hashable,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        device: int | None,
        starts: Mapping[str, float],
        state_dtype: str,
        averaged: bool,
        master: bool | str,
    ) -> None:
        """
        Make what a parameter still lacks: its states, its average and its master. Masters of another kind are dropped.

        What the parameter has follows it, to another device or back to host memory.

        Parameters
        ----------
        key : hashable
            The key of the parameter; `shape`, `dtype` and `device`, None for host memory, are those of the parameter.
        starts : mapping
            Name of a state -> the number that it starts at.
        state_dtype, master : str or bool
            The hyperparameters `state_dtype` and `master_weights`.
        averaged : bool
            Whether there is to be an average.

        Raises
        ------
        TypeError
            If a parameter of its dtype can have no such master.
        MemoryError, RuntimeError
            If there is no memory, or no CuPy for arrays on a GPU.
        """
        own = MASTERS.get(master)
        known = {n: a for n, a in self.state.get(key, {}).items() if n not in MASTER_DTYPES or n == own}
        states = {name: _moved(array, device) for name, array in known.items()}
        if key in self.ema:
            self.ema[key] = _moved(self.ema[key], device)
        if own == "remainder" and dtype == np.float16:
            raise TypeError(f"params[{key!r}] is {dtype}, expected bfloat16 with master_weights='split'")
        if own in states and not is_narrow(dtype):
            raise TypeError(f"params[{key!r}] is {dtype}, expected half precision like it had when its {own} was made")
        made = [array for name, array in states.items() if name not in MASTER_DTYPES] + [self.ema.get(key)]
        like = next((array for array in made if array is not None), None)
        wanted: np.dtype[Any] = np.dtype(np.float32) if is_narrow(dtype) and state_dtype == "float32" else dtype
        if like is not None:
            wanted = like.dtype
        for name, start in starts.items():
            if name not in states:
                states[name] = new_array(shape, wanted, device)
                if start:
                    with np.errstate(over="ignore"):  # rounded to the compute type first, as the engine does
                        fill(states[name], start if wanted == np.float64 else np.float32(start))
        if averaged and key not in self.ema:
            self.ema[key] = new_array(shape, wanted, device)
        if own and own not in states and is_narrow(dtype):
            # A new master is zeros. The kernel takes the parameter wherever it is not the rounded master, so training
            # starts from the parameter.
            states[own] = new_array(shape, MASTER_DTYPES[own], device)
        self.state[key] = MappingProxyType(states)

    @property
    def t(self) -> dict[Hashable, int]:
        """The number of finished updates of each parameter."""
        counts = self.clocks["t"].tolist()
        return {key: counts[i] for key, i in self.clock_of.items()}

    def become(self, other: "Progress") -> None:
        """Take over another progress, in place: callers may hold the mappings of this one."""
        self._clocks, self.plan = other._clocks, other.plan
        for mine, others in ((self.clock_of, other.clock_of), (self.state, other.state), (self.ema, other.ema)):
            mine.clear()
            mine.update(others)  # type: ignore[arg-type]

    def export(self, rule: _cpu.Rule) -> dict[str, dict[Hashable, Any]]:
        """Return plain values and the arrays themselves; states of `rule` that are yet to be made are 0."""
        state = {}
        for key, states in self.state.items():
            made = [array for name, array in states.items() if name not in MASTER_DTYPES]
            later = {
                name: new_array(made[0].shape, made[0].dtype, device_of(made[0]))
                for name in rule.states
                if made and name not in states
            }
            state[key] = dict(states) | later
        t, memory = self.t, self._clocks["memory"].tolist()
        return {
            "t": t,
            "memory": {
                key: dict(zip(rule.memory, memory[i], strict=False))
                for key, i in self.clock_of.items()
                if rule.memory and t[key]
            },
            "state": state,
            "ema": dict(self.ema),
        }


def _moved(array: Array, device: int | None) -> Array:
    """Return an array, or a copy of it where it is not yet on `device`; None stands for host memory."""
    if device_of(array) == device:
        return array
    there = new_array(array.shape, array.dtype, device)
    fill(there, array)
    return there


def listed(keys: Iterable[Hashable]) -> str:
    """Return the first keys as text for a message."""
    first = [repr(key) for key in islice(keys, 6)]
    return ", ".join(first[:5] + ["..."] * (len(first) > 5)) or "none"
