"""What an optimizer remembers of each parameter, by key: step count, states, master and average."""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from itertools import islice
from numbers import Integral
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fusedstep import _cpu

from .arrays import MASTER_DTYPES, MASTERS, Array, device_of, fill, fits, is_narrow, new_array, same_order
from .plans import Plans

__all__ = ["Look", "Progress", "is_lasting", "listed", "noise_id", "start"]

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


class Look(NamedTuple):
    """What a plan has found out about a parameter: `device` is a GPU's number or None, `order` that of the axes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int | None
    order: tuple[int, ...]
    has_grad: bool


class Progress:
    """
    Step counts and memory of a rule, in clocks that the engine advances; states and averages by key; and the plans.

    A progress is replaced as a whole where arrays or keys change, so that an interrupted step leaves the old one or the
    new one. What is exported is plain: ``{"t": {key: count}, "memory": {key: {name: number}}, "state": {key:
    {name: array}}, "ema": {key: array}}``. The memory, numbers that a rule keeps from update to update, begins with the
    first update.
    """

    def __init__(self) -> None:
        self.clock_of: dict[Hashable, int] = {}  # index of the clock of each key
        self._clocks = np.zeros(0, CLOCK)  # with room for further keys
        self.state: dict[Hashable, Mapping[str, Array]] = {}
        self.ema: dict[Hashable, Array] = {}
        self.plans = Plans()
        self.is_unused = False  # whether it was loaded, and no step has used it since

    @property
    def clocks(self) -> Array:
        """
        The clocks, in the order of `clock_of`.

        A clock has the step count `t`, whether the average has begun as 0 or 1 (`averaged`), and the rule's `memory`.
        """
        self.plans.refresh()
        return self._clocks

    @property
    def counts(self) -> Array:
        """The number of finished updates of each parameter, in the order of `clock_of`."""
        counts: Array = self.clocks["t"][: len(self.clock_of)]
        return counts

    def set_clock(self, key: Hashable, t: int, memory: list[float]) -> None:
        """Set the step count and memory of a parameter whose average, if it has one, is there."""
        clock = self._clocks[self.clock_of[key]]
        clock["t"], clock["averaged"] = t, key in self.ema
        clock["memory"][: len(memory)] = memory

    def set_t(self, key: Hashable, t: int) -> None:
        """Set the step count of a parameter."""
        self.plans.leave()
        self._clocks[self.clock_of[key]]["t"] = t

    def check_use(self, keys: Iterable[Hashable]) -> None:
        """Refuse the keys of a step that would use nothing of what was loaded."""
        if self.is_unused and not any(key in self.clock_of for key in keys):
            raise ValueError(
                f"params has the keys {listed(keys)}, expected some of {listed(self.clock_of)}, whose states were "
                "loaded: rename them by keys= of load or load_state_dict, or make a new optimizer"
            )

    def extended(self, keys: Iterable[Hashable]) -> "Progress":
        """Return a copy with room for further parameters; the arrays in it are the same ones."""
        other = Progress()
        other.clock_of, other.state, other.ema = dict(self.clock_of), dict(self.state), dict(self.ema)
        other.is_unused = self.is_unused
        for key in keys:
            other.clock_of.setdefault(key, len(other.clock_of))
        first, size = len(self.clock_of), len(other.clock_of)
        if size <= len(self._clocks):
            other._clocks, other.plans = self._clocks, self.plans.copy()
            other._clocks[first:size] = np.zeros((), CLOCK)  # a step that failed may have left something there
        else:
            self.plans.leave()
            other._clocks, other.plans = np.zeros(2 * size, CLOCK), self.plans.emptied()
            other._clocks[:first] = self._clocks[:first]
        return other

    def without_plans(self) -> "Progress":
        """Return a copy whose arrays may be replaced: no plan knows them."""
        self.plans.leave()
        other = self.extended(())
        other._clocks, other.plans = self._clocks.copy(), self.plans.emptied()
        return other

    def bind(self, plan: _cpu.Plan, rule: _cpu.Rule, origins: list[int] | None = None) -> Array:
        """
        Give the arrays and clocks of its parameters to a plan. Return the index of the clock of each.

        Where the parameters are parts of tensors, `origins` are the numbers of their first elements.
        """
        kept: list[tuple[Array | None, ...] | None] = []
        for key in plan.keys:
            states = self.state.get(key, {})
            master = states.get("master", states.get("remainder"))
            kept.append((*(states.get(name) for name in rule.states), self.ema.get(key), master))
        clock_index = np.array([self.clock_of[key] for key in plan.keys], np.int64)
        noise_ids = np.array([noise_id(key) for key in plan.keys], np.uint64)
        plan.bind(kept, self._clocks, clock_index, noise_ids, *([] if origins is None else [origins]))
        return clock_index

    def check_known(self, keys: Iterable[Hashable]) -> None:
        """Refuse keys of parameters that are not known."""
        if strange := [key for key in keys if key not in self.clock_of]:
            raise KeyError(
                f"this optimizer knows no parameter {listed(strange)}, expected keys among {listed(self.clock_of)}"
            )

    def check_rows(self, key: Hashable) -> None:
        """Refuse a parameter that is not known or has no dimensions."""
        self.check_known([key])
        if any(not array.ndim for array in self.arrays_of(key)):
            raise ValueError(f"params[{key!r}] had no dimensions, expected rows")

    def reset(self, key: Hashable) -> "Progress":
        """Return a copy in which a parameter has never been stepped."""
        other = self.without_plans()
        other.state.pop(key, None)
        other.ema.pop(key, None)
        other._clocks[other.clock_of[key]] = np.zeros((), CLOCK)
        return other

    def without(self, keys: Collection[Hashable]) -> "Progress":
        """Return a copy that knows nothing of some parameters."""
        other = self.without_plans()
        other.clock_of = {key: i for key, i in self.clock_of.items() if key not in keys}
        other._clocks = other._clocks[np.array(list(other.clock_of.values()), np.intp)]
        other.clock_of = {key: i for i, key in enumerate(other.clock_of)}
        other.state = {key: states for key, states in self.state.items() if key not in keys}
        other.ema = {key: average for key, average in self.ema.items() if key not in keys}
        other.is_unused = self.is_unused and bool(other.clock_of)
        return other

    def remade(self, key: Hashable, remake: Callable[[str | None, Array], Array]) -> "Progress":
        """Return a copy with other arrays of a parameter, made of the name of a state, or None, and what there was."""
        other = self.without_plans()
        if key in self.state:
            other.state[key] = MappingProxyType({name: remake(name, a) for name, a in self.state[key].items()})
        if key in self.ema:
            other.ema[key] = remake(None, self.ema[key])
        return other

    def needs(self, key: Hashable, look: Look, names: Iterable[str], averaged: bool, master: bool | str | None) -> bool:
        """Return whether `make` would make or replace an array of a parameter."""
        known, own = self.state.get(key), MASTERS.get(master or False)
        if known is None and master is None:
            known = {}
        if known is None or (averaged and key not in self.ema) or any(name not in known for name in names):
            return True
        expected = {own} if own and fits(look.dtype, own, MASTER_DTYPES[own]) else set()
        if master is not None and known.keys() & MASTER_DTYPES.keys() != expected:
            return True
        return any(_is_misplaced(array, look) for array in self.arrays_of(key))

    def arrays_of(self, key: Hashable) -> list[Array]:
        """Return all arrays of a parameter, which have its shape."""
        return [*self.state.get(key, {}).values(), *([self.ema[key]] if key in self.ema else [])]

    def make(
        self,
        key: Hashable,
        look: Look,
        starts: Mapping[str, float],
        state_dtype: str,
        averaged: bool,
        master: bool | str | None,
    ) -> None:
        """
        Make what a parameter still lacks: its states, its average and its master. Masters of another kind are dropped.

        What the parameter has follows it, to another device or back to host memory, and to another order of its axes.

        Parameters
        ----------
        key : hashable
            The key of the parameter.
        look : Look
            What the parameter is.
        starts : mapping
            Name of a state -> the number that it starts at.
        state_dtype, master : str, bool or None
            The hyperparameters `state_dtype` and `master_weights`. A master that is None stays as it is.
        averaged : bool
            Whether there is to be an average.

        Raises
        ------
        TypeError
            If a parameter of its dtype can have no such master.
        MemoryError, RuntimeError
            If there is no memory, or no CuPy for arrays on a GPU.
        """
        shape, dtype, device, order, _ = look
        own = MASTERS.get(master or False)
        known = dict(self.state.get(key, {}))
        if master is not None:
            known = {n: a for n, a in known.items() if n not in MASTER_DTYPES or n == own}
        states = {name: _moved(array, look) for name, array in known.items()}
        if key in self.ema:
            self.ema[key] = _moved(self.ema[key], look)
        if own == "remainder" and dtype == np.float16:
            raise TypeError(f"params[{key!r}] is {dtype}, expected bfloat16 with master_weights='split'")
        if own in states and not is_narrow(dtype):
            raise TypeError(f"params[{key!r}] is {dtype}, expected half precision like it had when its {own} was made")
        made = [array for name, array in states.items() if name not in MASTER_DTYPES] + [self.ema.get(key)]
        like = next((array for array in made if array is not None), None)
        wanted: np.dtype[Any] = np.dtype(np.float32) if is_narrow(dtype) and state_dtype == "float32" else dtype
        if like is not None:
            wanted = like.dtype
        for name, number in starts.items():
            if name not in states:
                states[name] = new_array(shape, wanted, device, order)
                if number:
                    start(states[name], number)
        if averaged and key not in self.ema:
            self.ema[key] = new_array(shape, wanted, device, order)
        if own and own not in states and is_narrow(dtype):
            # A new master is zeros. The kernel takes the parameter wherever it is not the rounded master, so training
            # starts from the parameter.
            states[own] = new_array(shape, MASTER_DTYPES[own], device, order)
        if states or master is not None:
            self.state[key] = MappingProxyType(states)

    @property
    def t(self) -> dict[Hashable, int]:
        """The number of finished updates of each parameter."""
        counts = self.counts.tolist()
        return {key: counts[i] for key, i in self.clock_of.items()}

    def labelled(self) -> dict[str, Array]:
        """Return all states and averages, by what messages call them."""
        states = {(key, name): array for key, some in self.state.items() for name, array in some.items()}
        found = {f"state[{key!r}][{name!r}]": array for (key, name), array in states.items()}
        return found | {f"ema[{key!r}]": array for key, array in self.ema.items()}

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


def start(state: Array, number: float) -> None:
    """Fill a state with the number that it starts at; both parts of complex numbers have it."""
    with np.errstate(over="ignore"):  # rounded to the compute type first, as the engine does
        part: Any = number if state.dtype in (np.float64, np.complex128) else np.float32(number)
        fill(state, complex(part, part) if state.dtype.kind == "c" else part)


def _is_misplaced(array: Array, look: Look) -> bool:
    fits = array.shape == look.shape  # another shape is refused later, by its name
    return device_of(array) != look.device or (fits and not same_order(array, look.order))


def _moved(array: Array, look: Look) -> Array:
    """Return an array, or a copy of it where it does not lie like its parameter."""
    if not _is_misplaced(array, look):
        return array
    order = look.order if array.shape == look.shape else None
    there = new_array(array.shape, array.dtype, look.device, order)
    fill(there, array)
    return there


def listed(keys: Iterable[Hashable]) -> str:
    """Return the first keys as text for a message."""
    first = [repr(key) for key in islice(keys, 6)]
    return ", ".join(first[:5] + ["..."] * (len(first) > 5)) or "none"
