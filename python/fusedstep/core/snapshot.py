"""What an optimizer knows, as plain values: how a state dict is made, by which names, and how it is read again."""

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from .arrays import MASTERS, as_number, is_on_gpu
from .hyperparameters import on_host
from .overrides import noted, recalled
from .progress import listed

if TYPE_CHECKING:  # schedules are loaded late, by those who have or read some
    from fusedstep.schedules.description import Plateaus
    from fusedstep.schedules.plateau import plateau

__all__ = [
    "Keys",
    "Names",
    "check_hyperparameters",
    "check_names",
    "check_parts",
    "check_program",
    "described",
    "from_torch",
    "mapping",
    "narrowed",
    "rebuilt",
    "renamed",
    "replaced",
    "to_torch",
    "upgraded",
]

Names = Literal["fusedstep", "torch"]
Keys = Mapping[Any, Hashable] | Callable[[Any], Hashable]  # new keys of parameters, in place of those that were saved
# Hyperparameters that are younger than version 0.1.0, with the values that stand for what it did.
_LATER = {"bounds": None, "frozen": False, "measure": "needed"}
_BY_KEY = ("t", "memory", "product", "state", "ema", "params")  # parts by key; "product" is one of version 0.1.0


def check_names(names: str) -> None:
    """Refuse any other value than those of `Names`."""
    if names not in get_args(Names):
        raise ValueError(f"names is {names!r}, expected one of {', '.join(map(repr, get_args(Names)))}")


def check_hyperparameters(choice: Any, source: str) -> None:
    """Refuse any other choice of whose hyperparameters hold than those of `source`, "mine", or None."""
    if choice not in (None, source, "mine"):
        raise ValueError(f"hyperparameters is {choice!r}, expected {source!r} or 'mine'")


def mapping(value: Any, label: str) -> Mapping[Any, Any]:
    """Return a mapping, or refuse a value of another type under the name `label`."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{label} is {value!r}, expected a mapping")
    return value


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
    """Refuse a state dict with unknown parts, or of another class than that of the one called `optimizer`."""
    if not isinstance(saved, Mapping):
        raise TypeError(f"saved is of type {type(saved).__name__}, expected a state dict")
    parts = ("optimizer", "hyperparameters", "t", "memory", "state", "ema")
    if strange := [part for part in saved if part not in parts]:
        raise ValueError(f"saved has {', '.join(map(repr, strange))}, expected only {', '.join(parts)}")
    name = saved.get("optimizer", optimizer)
    if not isinstance(name, str) or name.partition(":")[0] != optimizer.partition(":")[0]:
        raise ValueError(f"optimizer is {name!r}, expected {optimizer!r}")


def check_program(saved: Mapping[str, Any], optimizer: str) -> None:
    """Refuse a state dict of a rule that has the name of another one, but computes something else."""
    name = saved.get("optimizer", optimizer)
    if name != optimizer:
        raise ValueError(
            f"optimizer is {name!r}, expected {optimizer!r}: the function of the rule computed something else when "
            "this was saved; load it with the function as it was, or only its states and counts into a new optimizer"
        )


def renamed(saved: Any, keys: Keys | None) -> Any:
    """Return a state dict, and the part "params" if it has one, with other keys of parameters, also in overrides."""
    if keys is None:
        return saved
    some = {part: mapping(saved[part], part) for part in _BY_KEY if part in mapping(saved, "saved")}
    new = _new_keys(dict.fromkeys(key for each in some.values() for key in each), keys)
    found = {**saved, **{part: {new[key]: value for key, value in each.items()} for part, each in some.items()}}
    if "hyperparameters" in saved:
        values = mapping(saved["hyperparameters"], "hyperparameters")
        overrides = mapping(values.get("overrides", {}), "hyperparameters['overrides']")
        found["hyperparameters"] = {**values, "overrides": {new.get(key, key): each for key, each in overrides.items()}}
    return found


def narrowed(saved: dict[str, Any], keys: Collection[Hashable]) -> dict[str, Any]:
    """
    Return the state dict of a file, with the part "params", without what belongs to other parameters than `keys`.

    Raises
    ------
    ValueError
        If nothing is left.
    """
    found = {part: {k: v for k, v in saved[part].items() if k in keys} for part in _BY_KEY if part in saved}
    if not any(found.values()):
        known = dict.fromkeys(key for part in _BY_KEY for key in saved.get(part, {}))
        raise ValueError(f"the file has the keys {listed(known)}, expected some of {listed(keys)}")
    if "hyperparameters" in saved:
        left = saved["t"].keys() - set(keys)
        overrides = {key: some for key, some in saved["hyperparameters"]["overrides"].items() if key not in left}
        found["hyperparameters"] = saved["hyperparameters"] | {"overrides": overrides}
    return saved | found


def _new_keys(known: Collection[Any], keys: Keys) -> dict[Any, Hashable]:
    if callable(keys):
        new = {key: keys(key) for key in known}
    elif isinstance(keys, Mapping):
        if strange := [key for key in keys if key not in known]:
            raise ValueError(f"keys has {listed(strange)}, expected some of {listed(known)}, which were saved")
        new = {key: keys.get(key, key) for key in known}
    else:
        raise TypeError(f"keys is of type {type(keys).__name__}, expected a mapping or a function: old key -> new key")
    old: dict[Hashable, Any] = {}
    for key, other in new.items():
        if not isinstance(other, Hashable):
            raise TypeError(f"keys makes {other!r} of {key!r}, expected something hashable")
        if other in old:
            raise ValueError(f"keys makes {other!r} of {old[other]!r} and of {key!r}, expected different keys")
        old[other] = key
    return new


def rebuilt(saved: Mapping[str, Any], present: dict[str, Any], mine: bool = False) -> tuple[dict[str, Any], "Plateaus"]:
    """
    Return the hyperparameters of a state dict with their schedules, and the plateaus among these.

    Parameters
    ----------
    saved : mapping
        A state dict.
    present : dict
        The present hyperparameters, which stay where the state dict has none, and whose schedules stay where they are
        equal.
    mine : bool
        Whether the present hyperparameters stay in any case. Plateaus among them that are those of the state dict get
        its memory even so.
    """
    plateaus: Plateaus = {}
    values: dict[str, Any] = {}
    described = mapping(saved.get("hyperparameters", {}), "hyperparameters").items()
    for name, value in (*described, *described):  # the first time finds the caller's plateaus, in whatever place
        try:
            values |= _rebuilt({name: value}, present, plateaus, "hyperparameters")
        except RecursionError:
            raise ValueError("hyperparameters are nested too deeply, expected those of a state dict") from None
        except (TypeError, ValueError):
            if not mine:
                raise
    if mine or "hyperparameters" not in saved:
        return present, plateaus
    if values.keys() != present.keys():
        raise ValueError(f"hyperparameters are {listed(values)}, expected {', '.join(present)}")
    return values, plateaus


def replaced(optimizer: Any, present: dict[str, Any], values: dict[str, Any], source: str, plateaus: "Plateaus") -> str:
    """
    Return a warning if values of `source` replace hyperparameters that the caller has set, and otherwise nothing.

    A plateau of the caller that stays in place of another is told too.

    A hyperparameter that has the default of its class may be one that the caller leaves to the source.
    """
    defaults: dict[str, Any] = {f.name: {} if f.name == "overrides" else f.default for f in fields(optimizer)}
    changes = [
        f"{name} {_brief(value)} by {_brief(values[name])}"
        for name, value in present.items()
        if is_on_gpu(value) or (value != values[name] and value != defaults[name])
    ]
    told = []
    if changes and values is not present:
        told.append(
            f"hyperparameters that were saved replace those of this {type(optimizer).__name__}: {', '.join(changes)}; "
            f"say hyperparameters={source!r} to agree, or 'mine' to keep those of this optimizer"
        )
    if plateaus:
        from fusedstep.schedules.description import differences

        told += differences(plateaus)
    return "; ".join(told)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _rebuilt(values: Any, present: Mapping[Any, Any], plateaus: "Plateaus", label: str) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, value in mapping(values, label).items():
        part = f"{label}[{name!r}]"
        if name == "overrides" and label == "hyperparameters":
            mine = present[name]
            some = [(recalled(k, mine), v) for k, v in mapping(value, part).items()]
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
    for key, some in mapping(saved.get("state"), "state").items():
        label = f"state[{key!r}]"
        if strange := [name for name in mapping(some, label) if name != "step" and name not in ours]:
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
    ``"memory": {key: {"product": number}}`` is now, and the hyperparameters in `_LATER` were not known.
    """
    if not isinstance(saved, Mapping):
        return saved
    if isinstance(hyperparameters := saved.get("hyperparameters"), Mapping):
        saved = {**saved, "hyperparameters": {**_LATER, **hyperparameters}}
    if "product" not in saved or "memory" in saved:
        return saved
    products = {key: as_number(x, f"product[{key!r}]") for key, x in mapping(saved["product"], "product").items()}
    memory = {key: {"product": x} for key, x in products.items() if x != 1}
    return {part: value for part, value in saved.items() if part != "product"} | {"memory": memory}
