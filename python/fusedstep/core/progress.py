"""What an optimizer remembers of each parameter, by key: step count, states, master and average."""

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Mapping
from hashlib import blake2b
from itertools import islice
from numbers import Integral
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.array_utils import byte_bounds

from fusedstep import _cpu

from .arrays import (
    MASTER_DTYPES,
    MASTERS,
    Array,
    as_array,
    device_of,
    fill,
    fits,
    is_half,
    new_array,
    number,
    to_host,
)
from .hyperparameters import Scheduled

__all__ = ["Averages", "Progress", "Restored", "listed", "noise_number"]

# As the engine reads and advances it; `averaged` is 1 once the average has begun.
_CLOCK = np.dtype([("t", np.int64), ("product", np.float64), ("averaged", np.int64)])


def noise_number(key: Hashable) -> int:
    """Return the number of a parameter in its random bits: its key, if that is an integer, or a digest of its text."""
    if isinstance(key, Integral):
        return int(key) % 2**64
    try:
        text = key if isinstance(key, str) else repr(key)
    except Exception:
        text = type(key).__qualname__  # whose repr fails
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Averages(Mapping[Hashable, Array]):
    """The averages of the parameters: key -> array. The arrays may be written to, not replaced."""

    def __init__(self, decay: Scheduled | None, arrays: Mapping[Hashable, Array]) -> None:
        self._decay = decay
        self._arrays = arrays

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


class Restored(NamedTuple):
    """A progress that will be what was exported, once each target has been filled from its source."""

    progress: "Progress"
    copies: list[tuple[Array, Array]]


class Progress:
    """
    Clocks in one array that the engine advances; states and averages by key.

    What is exported is plain: ``{"t": {key: count}, "product": {key: number}, "state": {key: {name: array}}, "ema":
    {key: array}}``. The product is that of Nadam's momenta; where it is 1, it is left out.
    """

    def __init__(self) -> None:
        self.clock_of: dict[Hashable, int] = {}
        self._clocks = np.zeros(0, _CLOCK)
        self.plan: _cpu.Plan | None = None  # what advances the clocks, perhaps on a GPU
        self.state: dict[Hashable, Mapping[str, Array]] = {}
        self.ema: dict[Hashable, Array] = {}

    @property
    def clocks(self) -> Array:
        """Step count, product and average of each parameter, in the order of `clock_of`."""
        if self.plan is not None:
            self.plan.refresh()
        return self._clocks

    def wait(self) -> None:
        """Wait until steps on a GPU have left the arrays as they will be."""
        if self.plan is not None:
            self.plan.wait()

    def extended(self, keys: Iterable[Hashable]) -> "Progress":
        """Return the same progress, with room for further parameters; what is added there is not added here."""
        other = Progress()
        other.clock_of, other.state, other.ema = dict(self.clock_of), dict(self.state), dict(self.ema)
        for key in keys:
            other.clock_of.setdefault(key, len(other.clock_of))
        other._clocks = np.zeros(len(other.clock_of), _CLOCK)
        other._clocks["product"] = 1
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
        Make what a parameter still lacks: states, where they start, its average, and its master, and no other.

        What it has follows it, to another device or back to host memory.
        """
        own = MASTERS.get(master)
        known = {n: a for n, a in self.state.get(key, {}).items() if n not in MASTER_DTYPES or n == own}
        states = {name: _moved(array, device) for name, array in known.items()}
        if key in self.ema:
            self.ema[key] = _moved(self.ema[key], device)
        if own == "remainder" and dtype == np.float16:
            raise TypeError(f"params[{key!r}] is {dtype}, expected bfloat16 with master_weights='split'")
        if own in states and not is_half(dtype):
            raise TypeError(f"params[{key!r}] is {dtype}, expected half precision like it had when its {own} was made")
        made = [array for name, array in states.items() if name not in MASTER_DTYPES] + [self.ema.get(key)]
        like = next((array for array in made if array is not None), None)
        wanted: np.dtype[Any] = np.dtype(np.float32) if is_half(dtype) and state_dtype == "float32" else dtype
        if like is not None:
            wanted = like.dtype
        for name, start in starts.items():
            if name not in states:
                states[name] = new_array(shape, wanted, device)
                if start:
                    with np.errstate(over="ignore"):  # by way of the compute type, as every scalar
                        fill(states[name], start if wanted == np.float64 else np.float32(start))
        if averaged and key not in self.ema:
            self.ema[key] = new_array(shape, wanted, device)
        if (
            own and own not in states and is_half(dtype)
        ):  # at 0, which no other parameter rounds to: it begins where the parameter is
            states[own] = new_array(shape, MASTER_DTYPES[own], device)
        self.state[key] = MappingProxyType(states)

    @property
    def t(self) -> dict[Hashable, int]:
        """The number of finished updates of each parameter."""
        counts = self.clocks["t"].tolist()
        return {key: counts[i] for key, i in self.clock_of.items()}

    def become(self, other: "Progress") -> None:
        """Take over another progress, in the mappings that callers may hold."""
        self._clocks, self.plan = other._clocks, other.plan
        for mine, others in ((self.clock_of, other.clock_of), (self.state, other.state), (self.ema, other.ema)):
            mine.clear()
            mine.update(others)  # type: ignore[arg-type]

    def export(self, names: tuple[str, ...]) -> dict[str, dict[Hashable, Any]]:
        """Return all of it as plain values and the arrays themselves; states `names` that are yet to be made are 0."""
        products = self.clocks["product"].tolist()
        state = {}
        for key, states in self.state.items():
            made = [array for name, array in states.items() if name not in MASTER_DTYPES]
            later = {
                name: new_array(made[0].shape, made[0].dtype, device_of(made[0]))
                for name in names
                if made and name not in states
            }
            state[key] = dict(states) | later
        return {
            "t": self.t,
            "product": {key: products[i] for key, i in self.clock_of.items() if products[i] != 1},
            "state": state,
            "ema": dict(self.ema),
        }

    def restored(
        self, saved: Mapping[str, Any], names: tuple[str, ...], known: tuple[tuple[str, str], ...]
    ) -> Restored:
        """
        Prepare to take over what was exported.

        Parameters
        ----------
        saved : mapping
            What `export` returns. Its keys, shapes and dtypes are those of this progress, where it has begun.
        names : tuple of str
            The states that a parameter must have once it has been updated.
        known : tuple of pairs of str
            Begin with the names of all states that it may have, among them "product" if there is one.

        Returns
        -------
        Restored
            The targets are the arrays of this progress, where it has them.

        Raises
        ------
        TypeError, ValueError
            If it cannot be restored.
        """
        may_have = [*(name for name, _ in known), *MASTER_DTYPES]
        for part in ("t", "state", *(("ema",) if self.ema else ())):
            if part not in saved:
                raise ValueError(f"{part} is missing, expected a state dict")
        parts = {part: _mapping(saved.get(part, {}), part) for part in ("t", "product", "state", "ema")}
        t = {key: _count(value, f"t[{key!r}]") for key, value in parts["t"].items()}
        if t and self.clock_of and self.clock_of.keys() != t.keys():  # back to the start is always a way
            raise ValueError(f"t has the keys {listed(t)}, expected {listed(self.clock_of)} like this optimizer")
        for part in ("product", "state", "ema"):
            for key in parts[part]:
                if key not in t:
                    raise ValueError(f"{part}[{key!r}] belongs to no step count, expected one of {listed(t)}")

        other, copies = Progress().extended(t), []
        for key, i in other.clock_of.items():
            states = _mapping(parts["state"].get(key, {}), f"state[{key!r}]")
            if missing := [name for name in names if name not in states and (t[key] or states)]:
                raise ValueError(f"state[{key!r}] lacks {', '.join(missing)}, expected {', '.join(names)}")
            if strange := [name for name in states if name not in may_have or name == "product"]:
                raise ValueError(f"state[{key!r}] has {', '.join(map(repr, strange))}, expected {', '.join(names)}")
            mine = self.state.get(key, {})
            arrays = {f"state[{key!r}][{name!r}]": (name, mine.get(name), array) for name, array in states.items()}
            if key in parts["ema"]:
                arrays[f"ema[{key!r}]"] = "", self.ema.get(key), parts["ema"][key]
            pairs = _pairs(arrays)
            copies += pairs
            if key in parts["state"]:
                made = (target for target, _ in pairs)
                other.state[key] = MappingProxyType(dict(zip(states, made, strict=False)))
            if key in parts["ema"]:
                other.ema[key] = pairs[-1][0]
            product = _product(
                parts["product"].get(key, 1.0), f"product[{key!r}]", "product" in may_have and t[key] > 0
            )
            other._clocks[i] = (t[key], product, key in other.ema)
        return Restored(other, _apart(copies))


def _moved(array: Array, device: int | None) -> Array:
    """Return an array that is where it should be: itself, or a copy."""
    if device_of(array) == device:
        return array
    there = new_array(array.shape, array.dtype, device)
    fill(there, array)
    return there


def listed(keys: Iterable[Hashable]) -> str:
    """Return some keys for a message."""
    first = [repr(key) for key in islice(keys, 6)]
    return ", ".join(first[:5] + ["..."] * (len(first) > 5)) or "none"


def _mapping(value: Any, label: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{label} is {value!r}, expected a mapping")
    return value


def _count(value: Any, label: str) -> int:
    found = number(value, label)
    if not 0 <= found < 2**62 or found != int(found):
        raise ValueError(f"{label} is {value!r}, expected a number of updates, from 0 to below 2**62")
    return int(found)


def _product(value: Any, label: str, begun: bool) -> float:
    found = number(value, label)
    if not 0 <= found < 1 if begun else found != 1:
        raise ValueError(f"{label} is {value!r}, expected {'a number from 0 to below 1' if begun else 1}")
    return float(found)


def _pairs(arrays: dict[str, tuple[str, Array | None, Any]]) -> list[tuple[Array, Array]]:
    """Return targets and sources of one parameter: of one shape, and all but masters of one dtype."""
    shape: tuple[int, ...] | None = None
    dtype: np.dtype[Any] | None = None
    for name, target, _ in arrays.values():
        if target is not None:
            shape, dtype = target.shape, dtype if name in MASTER_DTYPES else target.dtype
    pairs = []
    for label, (name, target, source) in arrays.items():
        source = to_host(as_array(source, label))
        wanted = MASTER_DTYPES.get(name, dtype)
        if wanted is None and source.dtype not in (np.float32, np.float64) and not is_half(source.dtype):
            raise TypeError(f"{label} is {source.dtype}, expected float32, float64, float16 or bfloat16")
        if wanted is not None and source.dtype != wanted:
            like = "" if name in MASTER_DTYPES else " like the rest of its parameter"
            raise TypeError(f"{label} is {source.dtype}, expected {wanted}{like}")
        dtype = dtype if name in MASTER_DTYPES else source.dtype
        shape = source.shape if shape is None else shape
        if source.shape != shape:
            raise ValueError(f"{label} has shape {source.shape}, expected {shape} like the rest of its parameter")
        if target is None:
            target = new_array(source.shape, source.dtype)
        if device_of(target) is None and not target.flags.writeable:
            raise ValueError(f"{label} of this optimizer is read-only, expected a writable array")
        pairs.append((target, source))
    if dtype is not None and dtype != np.float32:  # then it is that of the parameter
        _check_masters({label: name for label, (name, _, _) in arrays.items() if name in MASTER_DTYPES}, dtype)
    return pairs


def _check_masters(masters: dict[str, str], param: np.dtype[Any]) -> None:
    for label, name in masters.items():
        if not fits(param, name, MASTER_DTYPES[name]):
            wanted = "float32, float16 or bfloat16" if name == "master" else "float32 or bfloat16"
            raise TypeError(f"{label} stands beside states of {param}, expected {wanted}")


def _apart(pairs: list[tuple[Array, Array]]) -> list[tuple[Array, Array]]:
    """Return the same pairs; a source that lies in the memory of a target is copied first."""
    in_host = (target for target, _ in pairs if target.size and device_of(target) is None)
    bounds = sorted(map(byte_bounds, in_host))  # they do not overlap

    def is_in_a_target(source: Array) -> bool:
        low, high = byte_bounds(source)
        i = bisect_left(bounds, (high,))
        return i > 0 and bounds[i - 1][1] > low

    return [(target, source.copy() if is_in_a_target(source) else source) for target, source in pairs]
