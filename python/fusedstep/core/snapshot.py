"""
What an optimizer knows, as plain values: how a state dict is made, by which names, and how it is checked and restored.

A state dict may come from anywhere. All of it is checked before anything of an optimizer changes.
"""

import warnings
from bisect import bisect_left
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.lib.array_utils import byte_bounds

from fusedstep import _cpu

from .arrays import MASTER_DTYPES, MASTERS, Array, as_array, as_number, device_of, fits, is_narrow, new_array, to_host
from .hyperparameters import Range, check, on_host
from .overrides import noted, recalled
from .progress import Progress, listed

if TYPE_CHECKING:  # schedules are loaded late, by those who have or read some
    from fusedstep.schedules.description import Plateaus
    from fusedstep.schedules.plateau import plateau

__all__ = [
    "Names",
    "Prepared",
    "check_names",
    "check_parts",
    "described",
    "from_torch",
    "rebuilt",
    "restored",
    "to_torch",
    "upgraded",
]

Names = Literal["fusedstep", "torch"]


class Prepared(NamedTuple):
    """What an optimizer will be once each target has been filled from its source. Nothing of it can fail any more."""

    values: dict[str, Any]  # hyperparameters
    plateaus: "Plateaus"
    progress: Progress
    copies: list[tuple[Array, Array]]  # targets and sources


def check_names(names: str) -> None:
    """Refuse any other value than those of `Names`."""
    if names not in get_args(Names):
        raise ValueError(f"names is {names!r}, expected one of {', '.join(map(repr, get_args(Names)))}")


# State dicts: made of what an optimizer knows, checked, and read for hyperparameters.


def described(optimizer: str, known: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict of what the class called `optimizer` knows: with schedules as plain values."""
    from fusedstep.schedules.description import describe

    seen: list[plateau] = []

    def plain(some: Mapping[str, Any]) -> dict[str, Any]:
        return {name: describe(value, seen) if callable(value) else value for name, value in some.items()}

    hyperparameters = plain(on_host(known["hyperparameters"]))
    overrides = hyperparameters["overrides"]
    hyperparameters["overrides"] = dict(zip(noted(overrides), map(plain, overrides.values()), strict=True))
    return {"optimizer": optimizer, **known, "hyperparameters": hyperparameters}


def check_parts(saved: Any, optimizer: str) -> None:
    """Refuse a state dict with unknown parts, or of another class than the one called `optimizer`."""
    if not isinstance(saved, Mapping):
        raise TypeError(f"saved is of type {type(saved).__name__}, expected a state dict")
    parts = ("optimizer", "hyperparameters", "t", "memory", "state", "ema")
    if strange := [part for part in saved if part not in parts]:
        raise ValueError(f"saved has {', '.join(map(repr, strange))}, expected only {', '.join(parts)}")
    name = saved.get("optimizer", optimizer)
    if not isinstance(name, str) or name != optimizer:
        raise ValueError(f"optimizer is {name!r}, expected {optimizer!r}")


def rebuilt(saved: Mapping[str, Any], present: dict[str, Any]) -> tuple[dict[str, Any], "Plateaus"]:
    """
    Return the hyperparameters of a state dict with their schedules, and the plateaus among these.

    Parameters
    ----------
    saved : mapping
        A state dict.
    present : dict
        The present hyperparameters, which stay where the state dict has none, and whose schedules stay where they are
        equal.
    """
    plateaus: Plateaus = {}
    if "hyperparameters" not in saved:
        return present, plateaus
    values: dict[str, Any] = {}
    try:
        for _ in range(2):  # the first time finds which plateaus of the caller stand for saved ones, in whatever place
            values = _rebuilt(saved["hyperparameters"], present, plateaus, "hyperparameters")
    except RecursionError:
        raise ValueError("hyperparameters are nested too deeply, expected those of a state dict") from None
    if values.keys() != present.keys():
        raise ValueError(f"hyperparameters are {listed(values)}, expected {', '.join(present)}")
    if plateaus:
        from fusedstep.schedules.description import differences

        for difference in differences(plateaus):
            warnings.warn(difference, stacklevel=4)
    return values, plateaus


def _rebuilt(values: Any, present: Mapping[Any, Any], plateaus: "Plateaus", label: str) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, value in _mapping(values, label).items():
        part = f"{label}[{name!r}]"
        if name == "overrides" and label == "hyperparameters":
            mine = present[name]
            some = [(recalled(k, mine), v) for k, v in _mapping(value, part).items()]
            found[name] = {k: _rebuilt(v, mine.get(k, {}), plateaus, f"{part}[{k!r}]") for k, v in some}
        elif isinstance(value, Mapping):
            from fusedstep.schedules.description import rebuild

            try:
                found[name] = rebuild(value, present.get(name), plateaus)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{part}: {error}") from error
        else:
            found[name] = value
    return found


# State dicts with PyTorch's names, and of older versions.


def to_torch(known: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """
    Return a state dict with PyTorch's names, under which step counts and memory stand among the states.

    Parameters
    ----------
    known : dict
        A state dict with our names; it is consumed.
    names : mapping
        Our name -> PyTorch's, of states and memory.
    """
    theirs = {**names, **{name: name for name in MASTERS.values()}}
    counts, memory = known.pop("t"), known.pop("memory")
    state = {}
    for key, t in counts.items():
        values = known["state"].get(key, {}) | memory.get(key, {})
        state[key] = {"step": t} | {theirs[name]: value for name, value in values.items()}
    return known | {"state": state}


def from_torch(saved: Mapping[str, Any], names: Mapping[str, str], memory: Collection[str]) -> dict[str, Any]:
    """
    Return a state dict with our names, as `load_state_dict` takes it.

    Parameters
    ----------
    saved : mapping
        A state dict with PyTorch's names.
    names : mapping
        Our name -> PyTorch's, of states and memory.
    memory : collection of str
        Our names of memory.
    """
    ours = {theirs: name for name, theirs in names.items()} | {name: name for name in MASTERS.values()}
    t, kept, state = {}, {}, {}
    for key, some in _mapping(saved.get("state"), "state").items():
        label = f"state[{key!r}]"
        if strange := [name for name in _mapping(some, label) if name != "step" and name not in ours]:
            raise ValueError(f"{label} has {', '.join(map(repr, strange))}, expected step, {', '.join(ours)}")
        if "step" not in some and some.keys() != {"momentum_buffer"}:  # PyTorch's SGD, which does not count
            raise ValueError(f"{label} lacks 'step', expected the number of finished updates")
        t[key] = some.get("step", 1)
        values = {name: (ours[name], value) for name, value in some.items() if name != "step"}
        kept[key] = {
            name: as_number(x, f"{label}[{theirs!r}]") for theirs, (name, x) in values.items() if name in memory
        }
        state[key] = {name: x for name, x in values.values() if name not in memory}
    return {**saved, "t": t, "memory": kept, "state": state}


def upgraded(saved: Any) -> Any:
    """
    Return a state dict of any version as one of this version.

    In version 0.1.0, there was ``"product": {key: number}``, which was 1 before the first update, where
    ``"memory": {key: {"product": number}}`` is now.
    """
    if not isinstance(saved, Mapping) or "product" not in saved or "memory" in saved:
        return saved
    products = {key: as_number(x, f"product[{key!r}]") for key, x in _mapping(saved["product"], "product").items()}
    memory = {key: {"product": x} for key, x in products.items() if x != 1}
    return {part: value for part, value in saved.items() if part != "product"} | {"memory": memory}


# State dicts made into the progress of an optimizer.


def restored(
    progress: Progress,
    saved: Mapping[str, Any],
    rule: _cpu.Rule,
    possible: Collection[str],
    ranges: Mapping[str, Range],
) -> tuple[Progress, list[tuple[Array, Array]]]:
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

    Returns
    -------
    Progress
        The one that is prepared, with the arrays of `progress` where it has them.
    list of (array, array)
        Targets and sources: `saved` is restored once each target has been filled from its source.

    Raises
    ------
    TypeError, ValueError
        If it cannot be restored.
    """
    for part in ("t", "state", *(("ema",) if progress.ema else ())):
        if part not in saved:
            raise ValueError(f"{part} is missing, expected a state dict")
    parts = {part: _mapping(saved.get(part, {}), part) for part in ("t", "memory", "state", "ema")}
    t = {key: _count(value, f"t[{key!r}]") for key, value in parts["t"].items()}
    known = progress.clock_of
    if t and known and known.keys() != t.keys():  # a state dict without updates always fits
        raise ValueError(f"t has the keys {listed(t)}, expected {listed(known)} like this optimizer")
    for part in ("memory", "state", "ema"):
        for key in parts[part]:
            if key not in t:
                raise ValueError(f"{part}[{key!r}] belongs to no step count, expected one of {listed(t)}")

    other, copies = Progress().extended(t), []
    for key in t:
        states = _mapping(parts["state"].get(key, {}), f"state[{key!r}]")
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
    return other, _apart(copies)


def _mapping(value: Any, label: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{label} is {value!r}, expected a mapping")
    return value


def _count(value: Any, label: str) -> int:
    found = as_number(value, label)
    if not 0 <= found < 2**62 or found != int(found):
        raise ValueError(f"{label} is {value!r}, expected a number of updates, from 0 to below 2**62")
    return int(found)


def _memory(
    saved: Any, names: tuple[str, ...], ranges: Mapping[str, Range], label: str, has_begun: bool
) -> list[float]:
    """Return the checked memory of a parameter; before the first update, none."""
    found = _mapping(saved, label)
    if strange := [name for name in found if name not in names]:
        raise ValueError(f"{label} has {', '.join(map(repr, strange))}, expected {', '.join(names) or 'nothing'}")
    labels = {name: f"{label}[{name!r}]" for name in found}
    memory = {name: check(name, as_number(x, labels[name]), float, labels[name], ranges) for name, x in found.items()}
    if has_begun and (missing := [name for name in names if name not in memory]):
        raise ValueError(f"{label} lacks {', '.join(missing)}, expected {', '.join(names)}")
    return [memory[name] for name in names] if has_begun else []


def _pairs(arrays: dict[str, tuple[str, Array | None, Any]]) -> list[tuple[Array, Array]]:
    """Return targets and sources of one parameter, all of one shape and, but for masters, of one dtype."""
    shape: tuple[int, ...] | None = None
    dtype: np.dtype[Any] | None = None
    for name, target, _ in arrays.values():
        if target is not None:
            shape, dtype = target.shape, dtype if name in MASTER_DTYPES else target.dtype
    pairs = []
    for label, (name, target, source) in arrays.items():
        source = to_host(as_array(source, label))
        wanted = MASTER_DTYPES.get(name, dtype)
        if wanted is None and source.dtype not in (np.float32, np.float64) and not is_narrow(source.dtype):
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
    if dtype is not None and dtype != np.float32:  # states of float32 may belong to a parameter of any dtype
        _check_masters({label: name for label, (name, _, _) in arrays.items() if name in MASTER_DTYPES}, dtype)
    return pairs


def _check_masters(masters: dict[str, str], param: np.dtype[Any]) -> None:
    for label, name in masters.items():
        if not fits(param, name, MASTER_DTYPES[name]):
            wanted = "float32, float16 or bfloat16" if name == "master" else "float32 or bfloat16"
            raise TypeError(f"{label} stands beside states of {param}, expected {wanted}")


def _apart(pairs: list[tuple[Array, Array]]) -> list[tuple[Array, Array]]:
    """Return pairs of targets and sources, with a copy of each source that lies in the memory of a target."""
    in_host = (target for target, _ in pairs if target.size and device_of(target) is None)
    bounds = sorted(map(byte_bounds, in_host))  # of targets, which do not overlap

    def is_in_a_target(source: Array) -> bool:
        low, high = byte_bounds(source)
        i = bisect_left(bounds, (high,))
        return i > 0 and bounds[i - 1][1] > low

    return [(target, source.copy() if is_in_a_target(source) else source) for target, source in pairs]
