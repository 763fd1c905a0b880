"""What an optimizer remembers of each parameter, by key: step count, states and average."""

from collections.abc import Hashable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Progress"]

Array: TypeAlias = npt.NDArray[Any]

# As the engine reads and advances it; `averaged` is 1 once the average has begun.
_CLOCK = np.dtype([("t", np.int64), ("product", np.float64), ("averaged", np.int64)])
_LINE = 64
_PARTS = ("t", "product", "state", "ema")


def _new_array(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    # A view, aligned to cache lines. Nobody can resize it, and the plan's reference to its owner keeps that as it is.
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    owner = np.zeros(size + _LINE, np.uint8)
    start = -owner.ctypes.data % _LINE
    return owner[start : start + size].view(dtype).reshape(shape)


class Progress:
    """
    Clocks in one array that the engine advances; states and averages by key.

    What is exported is plain: ``{"t": {key: count}, "product": {key: number}, "state": {key: {name: array}}, "ema":
    {key: array}}``. The product is Nadam's, of its momenta so far.
    """

    def __init__(self) -> None:
        self.clock_of: dict[Hashable, int] = {}
        self.clocks = np.zeros(0, _CLOCK)
        self.state: dict[Hashable, Mapping[str, Array]] = {}
        self.ema: dict[Hashable, Array] = {}

    def extended(self, keys: Iterable[Hashable]) -> "Progress":
        """Return the same progress, with room for further parameters; what is added there is not added here."""
        other = Progress()
        other.clock_of, other.state, other.ema = dict(self.clock_of), dict(self.state), dict(self.ema)
        for key in keys:
            other.clock_of.setdefault(key, len(other.clock_of))
        other.clocks = np.zeros(len(other.clock_of), _CLOCK)
        other.clocks["product"] = 1
        other.clocks[: len(self.clocks)] = self.clocks
        return other

    def make(
        self, key: Hashable, shape: tuple[int, ...], dtype: npt.DTypeLike, starts: Mapping[str, float], averaged: bool
    ) -> None:
        """Make the states that a parameter still lacks, where they start, and its average."""
        states = dict(self.state.get(key, {}))
        for name, start in starts.items():
            if name not in states:
                states[name] = _new_array(shape, dtype)
                if start:
                    with np.errstate(over="ignore"):
                        states[name][...] = start
        self.state[key] = MappingProxyType(states)
        if averaged and key not in self.ema:
            self.ema[key] = _new_array(shape, dtype)

    @property
    def t(self) -> dict[Hashable, int]:
        """The number of finished updates of each parameter."""
        counts = self.clocks["t"].tolist()
        return {key: counts[i] for key, i in self.clock_of.items()}

    def export(self) -> dict[str, dict[Hashable, Any]]:
        """Return all of it as plain values and the arrays themselves."""
        products = self.clocks["product"].tolist()
        return {
            "t": self.t,
            "product": {key: products[i] for key, i in self.clock_of.items()},
            "state": {key: dict(states) for key, states in self.state.items()},
            "ema": dict(self.ema),
        }

    def checked(self, saved: Mapping[str, Any], names: tuple[str, ...], known: set[str]) -> dict[str, Any]:
        """
        Return what was exported, ready to be filled in, or refuse it.

        A parameter that has been updated has the states `names`, and others only among those `known`. Keys, shapes and
        dtypes are those of this progress, where it has begun.
        """
        parts = {part: saved.get(part, {}) for part in _PARTS}
        for part, values in parts.items():
            if not isinstance(values, Mapping):
                raise TypeError(f"{part} is {values!r}, expected a mapping by key")
        t = {key: _count(value, f"t[{key!r}]") for key, value in parts["t"].items()}
        product = {key: _share(parts["product"].get(key, 1.0), f"product[{key!r}]") for key in t}
        if self.clock_of and self.clock_of.keys() != t.keys():
            raise ValueError(f"t has the keys {list(t)}, expected {list(self.clock_of)} like this optimizer")
        for part in ("product", "state", "ema"):
            for key in parts[part]:
                if key not in t:
                    raise ValueError(f"{part}[{key!r}] belongs to no step count, expected one of {list(t)}")
        state: dict[Hashable, dict[str, Array]] = {}
        ema: dict[Hashable, Array] = {}
        for key in t:
            some = parts["state"].get(key, {})
            if not isinstance(some, Mapping):
                raise TypeError(f"state[{key!r}] is {some!r}, expected a mapping: name -> array")
            if missing := [name for name in names if name not in some and (t[key] or some)]:
                raise ValueError(f"state[{key!r}] lacks {', '.join(missing)}, expected {', '.join(names)}")
            if strange := [name for name in some if name not in known]:
                raise ValueError(f"state[{key!r}] has {', '.join(map(repr, strange))}, expected {', '.join(names)}")
            likes = [*self.state.get(key, {}).values(), *([self.ema[key]] if key in self.ema else [])]
            state[key] = {name: _array(a, f"state[{key!r}][{name!r}]", likes) for name, a in some.items()}
            if key in parts["ema"]:
                ema[key] = _array(parts["ema"][key], f"ema[{key!r}]", likes)
        return {"t": t, "product": product, "state": state, "ema": ema}

    def filled(self, checked: dict[str, Any]) -> "Progress":
        """Return the progress that was checked, in the arrays of this one where it has them."""
        other = Progress().extended(checked["t"])
        pairs = []
        for key, states in checked["state"].items():
            mine = self.state.get(key, {})
            targets = {n: mine[n] if n in mine else _new_array(a.shape, a.dtype) for n, a in states.items()}
            pairs += [(targets[name], states[name]) for name in states]
            if targets:
                other.state[key] = MappingProxyType(targets)
        for key, array in checked["ema"].items():
            other.ema[key] = self.ema[key] if key in self.ema else _new_array(array.shape, array.dtype)
            pairs.append((other.ema[key], array))
        for key, i in other.clock_of.items():
            other.clocks[i] = (checked["t"][key], checked["product"][key], key in other.ema)
        for target, source in pairs:  # everything is there: from here on nothing fails
            target[...] = source
        return other


def _count(value: Any, label: str) -> int:
    number = float(value) if not isinstance(value, int) and np.ndim(value) == 0 else value  # torch counts in float32
    if isinstance(value, bool) or number != number or not 0 <= number < 2**62 or number != int(number):
        raise ValueError(f"{label} is {value!r}, expected a number of updates from 0")
    return int(number)


def _share(value: Any, label: str) -> float:
    if not isinstance(value, float) or not 0 <= value <= 1:
        raise ValueError(f"{label} is {value!r}, expected a number from 0 to 1")
    return value


def _array(value: Any, label: str, likes: list[Array]) -> Array:
    """Return a NumPy array of the shape and dtype of those it stands beside, to which it is added."""
    if not isinstance(value, np.ndarray):
        if not hasattr(value, "__dlpack__"):
            raise TypeError(f"{label} is of type {type(value).__name__}, expected an array")
        value = np.from_dlpack(value)
    array: Array = value
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{label} is {array.dtype}, expected float32 or float64")
    for like in likes:
        if array.dtype != like.dtype:
            raise TypeError(f"{label} is {array.dtype}, expected {like.dtype} like the others of this parameter")
        if array.shape != like.shape:
            raise ValueError(
                f"{label} has shape {array.shape}, expected {like.shape} like the others of this parameter"
            )
    likes.append(array)
    return array
