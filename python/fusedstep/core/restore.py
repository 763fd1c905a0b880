"""
How an optimizer becomes what a state dict says.

A state dict may come from anywhere. All of it is checked before anything of an optimizer changes.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from fusedstep import _cpu

from .arrays import (
    MASTER_DTYPES,
    Array,
    Stored,
    as_array,
    as_number,
    device_of,
    fill,
    fits,
    is_narrow,
    new_array,
    span,
    to_host,
)
from .hyperparameters import Range, check
from .progress import Progress, listed
from .snapshot import mapping

if TYPE_CHECKING:
    from fusedstep.schedules.description import Plateaus

__all__ = ["Copies", "Prepared", "carry_out", "fill_all", "restored"]

_WIDE = (np.float32, np.float64, np.complex64, np.complex128)  # dtypes of states, beside narrow ones

Copies: TypeAlias = list[tuple[Array, Array | Stored]]  # targets and sources


class Prepared(NamedTuple):
    """What an optimizer is once each target has been filled from its source. Only reading a file can still fail."""

    values: dict[str, Any]  # hyperparameters
    replaced: str  # which of them the caller had set otherwise, as a warning, or nothing
    plateaus: "Plateaus"
    progress: Progress
    copies: Copies


def restored(
    progress: Progress,
    saved: Mapping[str, Any],
    rule: _cpu.Rule,
    possible: Collection[str],
    ranges: Mapping[str, Range],
    strict: bool = True,
) -> tuple[Progress, Copies]:
    """
    Prepare a progress that is what was exported from another.

    Parameters
    ----------
    progress : Progress
        That of the optimizer. It does not change; where it has begun, keys, shapes and dtypes must be its own.
    saved : mapping
        What `Progress.export` returns.
    rule : Rule
        The rule that will go on from there: a parameter that has been updated must have its states and memory.
    possible : collection of str
        The names that states may have: those of all rules of the class.
    ranges : mapping
        Name -> the numbers that a memory of this name may be.
    strict : bool
        Whether `saved` must have the keys of `progress`. If not, what `progress` has under other keys stays.

    Returns
    -------
    Progress
        The one that is prepared, with the arrays of `progress` where it has them.
    list of (array, array or Stored)
        Targets and sources: `saved` is restored once each target has been filled from its source.

    Raises
    ------
    TypeError, ValueError
        If it cannot be restored.
    """
    for part in ("t", "state", *(("ema",) if progress.ema else ())):
        if part not in saved:
            raise ValueError(f"{part} is missing, expected a state dict")
    parts = {part: mapping(saved.get(part, {}), part) for part in ("t", "memory", "state", "ema")}
    t = {key: _count(value, f"t[{key!r}]") for key, value in parts["t"].items()}
    known = progress.clock_of
    if strict and t and known and known.keys() != t.keys():  # a state dict without updates always fits
        raise ValueError(f"t has the keys {listed(t)}, expected {listed(known)} like this optimizer")
    for part in ("memory", "state", "ema"):
        for key in parts[part]:
            if key not in t:
                raise ValueError(f"{part}[{key!r}] belongs to no step count, expected one of {listed(t)}")

    other, copies = (Progress() if strict else progress.without_plans()).extended(t), []
    for key in t:
        other.state.pop(key, None)
        other.ema.pop(key, None)
        states = mapping(parts["state"].get(key, {}), f"state[{key!r}]")
        if missing := [name for name in rule.states if name not in states and (t[key] or states)]:
            raise ValueError(f"state[{key!r}] lacks {', '.join(missing)}, expected {', '.join(rule.states)}")
        if strange := [name for name in states if name not in possible and name not in MASTER_DTYPES]:
            raise ValueError(f"state[{key!r}] has {', '.join(map(repr, strange))}, expected {', '.join(rule.states)}")
        mine = progress.state.get(key, {})
        arrays = {f"state[{key!r}][{name!r}]": (name, mine.get(name), array) for name, array in states.items()}
        if key in parts["ema"]:
            arrays[f"ema[{key!r}]"] = "", progress.ema.get(key), parts["ema"][key]
        pairs = _pairs(arrays)
        copies += pairs
        if key in parts["state"]:
            made = (target for target, _ in pairs)
            other.state[key] = MappingProxyType(dict(zip(states, made, strict=False)))
        if key in parts["ema"]:
            other.ema[key] = pairs[-1][0]
        memory = _memory(parts["memory"].get(key, {}), rule.memory, ranges, f"memory[{key!r}]", bool(t[key]))
        other.set_clock(key, t[key], memory)
    other.is_unused = any(t.values())
    return other, _apart(copies)


def _count(value: Any, label: str) -> int:
    found = as_number(value, label)
    if not 0 <= found < 2**62 or found != int(found):
        raise ValueError(f"{label} is {value!r}, expected a number of updates, from 0 to below 2**62")
    return int(found)


def _memory(
    saved: Any, names: tuple[str, ...], ranges: Mapping[str, Range], label: str, has_begun: bool
) -> list[float]:
    """Return the checked memory of a parameter; before the first update, none."""
    found = mapping(saved, label)
    if strange := [name for name in found if name not in names]:
        raise ValueError(f"{label} has {', '.join(map(repr, strange))}, expected {', '.join(names) or 'nothing'}")
    labels = {name: f"{label}[{name!r}]" for name in found}
    memory = {name: check(name, as_number(x, labels[name]), float, labels[name], ranges) for name, x in found.items()}
    if has_begun and (missing := [name for name in names if name not in memory]):
        raise ValueError(f"{label} lacks {', '.join(missing)}, expected {', '.join(names)}")
    return [memory[name] for name in names] if has_begun else []


def _pairs(arrays: dict[str, tuple[str, Array | None, Any]]) -> Copies:
    """Return targets and sources of one parameter, all of one shape and, but for masters, of one dtype."""
    shape: tuple[int, ...] | None = None
    dtype: np.dtype[Any] | None = None
    for name, target, _ in arrays.values():
        if target is not None:
            shape, dtype = target.shape, dtype if name in MASTER_DTYPES else target.dtype
    pairs = []
    for label, (name, target, source) in arrays.items():
        source = source if isinstance(source, Stored) else to_host(as_array(source, label))
        wanted = MASTER_DTYPES.get(name, dtype)
        if wanted is None and source.dtype not in _WIDE and not is_narrow(source.dtype):
            known = "float32, float64, float16 or bfloat16, complex64 or complex128"
            raise TypeError(f"{label} is {source.dtype}, expected {known}")
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
    if dtype is not None and dtype != np.float32:  # states of float32 may belong to a parameter of any dtype
        _check_masters({label: name for label, (name, _, _) in arrays.items() if name in MASTER_DTYPES}, dtype)
    return pairs


def _check_masters(masters: dict[str, str], param: np.dtype[Any]) -> None:
    for label, name in masters.items():
        if not fits(param, name, MASTER_DTYPES[name]):
            wanted = "float32, float16 or bfloat16" if name == "master" else "float32 or bfloat16"
            raise TypeError(f"{label} stands beside states of {param}, expected {wanted}")


def fill_all(copies: Copies) -> None:
    """Fill each target from its source, and take each pair that is done away from the list."""
    while copies:
        fill(*copies[-1])
        copies.pop()


def carry_out(action: Callable[[], None]) -> None:
    """Do all of an action that may be begun again, and raise an interrupt by the user that comes meanwhile after it."""
    interrupt = None
    while True:
        try:
            action()
            break
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def _apart(pairs: Copies) -> Copies:
    """Return pairs of targets and sources, with a copy of each source that lies in the memory of a target."""
    spans = sorted(span(target) for target, _ in pairs if target.size)  # of targets, which do not overlap

    def is_in_a_target(source: Array) -> bool:
        device, low, high = span(source)
        i = bisect_left(spans, (device, high))
        return i > 0 and spans[i - 1][0] == device and spans[i - 1][2] > low

    def apart(source: Array | Stored) -> Array | Stored:
        return source.copy() if not isinstance(source, Stored) and is_in_a_target(source) else source

    return [(target, apart(source)) for target, source in pairs]
