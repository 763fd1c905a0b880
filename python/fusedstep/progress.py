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
    {key: array}}``. The product is Nadam's, of its momenta so far;
    where it is 1, it is left out.
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
            "product": {key: products[i] for key, i in self.clock_of.items() if products[i] != 1},
            "state": {key: dict(states) for key, states in self.state.items()},
            "ema": dict(self.ema),
        }

    def restored(
        self, saved: Mapping[str, Any], names: tuple[str, ...], known: set[str]
    ) -> tuple["Progress", list[tuple[Array, Array]]]:
        """
        Return the progress that was exported, once each target of the list has been filled from its source.

        Targets are the arrays of this progress, where it has them; its keys, shapes and dtypes must then be those that
        were saved. A parameter that has been updated has the states `names`, and others only among those `known`.

        Raises
        ------
        TypeError, ValueError
            If it cannot be restored.
        """
        parts = {part: _mapping(saved.get(part, {}), part) for part in ("t", "product", "state", "ema")}
        t = {key: _count(value, f"t[{key!r}]") for key, value in parts["t"].items()}
        if self.clock_of and self.clock_of.keys() != t.keys():
            raise ValueError(f"t has the keys {list(t)}, expected {list(self.clock_of)} like this optimizer")
        for part in ("product", "state", "ema"):
            for key in parts[part]:
                if key not in t:
                    raise ValueError(f"{part}[{key!r}] belongs to no step count, expected one of {list(t)}")

        other, copies = Progress().extended(t), []
        for key, i in other.clock_of.items():
            states = _mapping(parts["state"].get(key, {}), f"state[{key!r}]")
            if missing := [name for name in names if name not in states and (t[key] or states)]:
                raise ValueError(f"state[{key!r}] lacks {', '.join(missing)}, expected {', '.join(names)}")
            if strange := [name for name in states if name not in known]:
                raise ValueError(f"state[{key!r}] has {', '.join(map(repr, strange))}, expected {', '.join(names)}")
            sources = {f"state[{key!r}][{name!r}]": array for name, array in states.items()}
            targets = dict(zip(sources, map(self.state.get(key, {}).get, states), strict=True))
            if key in parts["ema"]:
                sources[f"ema[{key!r}]"], targets[f"ema[{key!r}]"] = parts["ema"][key], self.ema.get(key)
            pairs = _pairs(sources, targets)
            copies += pairs
            made = [target for target, _ in pairs]
            if states:
                other.state[key] = MappingProxyType(dict(zip(states, made, strict=False)))
            if key in parts["ema"]:
                other.ema[key] = made[-1]
            product = _share(parts["product"].get(key, 1.0), f"product[{key!r}]")
            other.clocks[i] = (t[key], product, key in other.ema)
        return other, copies


def _mapping(value: Any, label: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{label} is {value!r}, expected a mapping")
    return value


def _count(value: Any, label: str) -> int:
    expected = f"{label} is {value!r}, expected a number of updates from 0"
    try:
        number = value if isinstance(value, int) else float(value)  # PyTorch counts in tensors of float32
    except (TypeError, ValueError):
        raise TypeError(expected) from None
    if isinstance(value, bool) or not 0 <= number < 2**62 or number != int(number):
        raise ValueError(expected)
    return int(number)


def _share(value: Any, label: str) -> float:
    if not isinstance(value, float) or not 0 <= value <= 1:
        raise ValueError(f"{label} is {value!r}, expected a number from 0 to 1")
    return value


def _pairs(sources: dict[str, Any], targets: dict[str, Array | None]) -> list[tuple[Array, Array]]:
    """Return what is to be copied for one parameter; its arrays are all of one shape and dtype."""
    like = next((target for target in targets.values() if target is not None), None)
    pairs = []
    for label, source in sources.items():
        if not isinstance(source, np.ndarray):
            if not hasattr(source, "__dlpack__"):
                raise TypeError(f"{label} is of type {type(source).__name__}, expected an array")
            source = np.from_dlpack(source)
        if source.dtype not in (np.float32, np.float64):
            raise TypeError(f"{label} is {source.dtype}, expected float32 or float64")
        like = source if like is None else like
        if source.dtype != like.dtype:
            raise TypeError(f"{label} is {source.dtype}, expected {like.dtype} like the rest of its parameter")
        if source.shape != like.shape:
            raise ValueError(f"{label} has shape {source.shape}, expected {like.shape} like the rest of its parameter")
        target = targets[label]
        pairs.append((_new_array(source.shape, source.dtype) if target is None else target, source))
    return pairs
