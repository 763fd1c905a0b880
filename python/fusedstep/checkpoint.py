"""
What an optimizer knows, as plain values and as a file.

Arrays stand under the keys of the caller. Loading checks everything first and then fills the arrays that are there, so
that what cannot be loaded changes nothing.
"""

import json
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from fusedstep.core.arrays import MASTERS, Array, as_array, device_of, fill, fits, is_on_gpu, number, to_host
from fusedstep.core.hyperparameters import settled
from fusedstep.core.progress import Restored, listed
from fusedstep.schedules.description import Plateaus, describe, rebuild, remember
from fusedstep.schedules.plateau import plateau

if TYPE_CHECKING:
    from fusedstep.core.optimizer import Optimizer

__all__ = ["load", "load_state_dict", "save", "state_dict"]

Names = Literal["fusedstep", "torch"]
Path = str | os.PathLike[str]


def state_dict(self: "Optimizer", names: Names = "fusedstep") -> dict[str, Any]:
    """
    Return what this optimizer knows, as plain values and copies of its arrays.

    Parameters
    ----------
    names : {"fusedstep", "torch"}
        What states are called: by the letters of the papers, or as in PyTorch. There, step count and product stand
        among the states, as "step" and "mu_product". The masters of half-precision parameters, which PyTorch does not
        have, are "master" and "remainder" in both.

    Returns
    -------
    dict
        "optimizer": the name of the class. "hyperparameters": name -> number, string, bool, None, or the description
        of a schedule; a function of the caller's own is only noted. "t": key -> finished updates. "state": key -> name
        -> array. "ema": key -> array. "product": key -> the product of Nadam's momenta.

    Raises
    ------
    ValueError
        If `names` is another.
    RuntimeError
        If this optimizer is in a step.

    Examples
    --------
    Parameters of PyTorch have the keys 0, 1, ... Its state dict of an optimizer is made like this:

    >>> import numpy as np, fusedstep as fs
    >>> opt = fs.Adam()
    >>> result = opt.step([np.ones(3)], [np.ones(3)])
    >>> state = opt.state_dict(names="torch")["state"]  # values for torch.as_tensor
    >>> sorted(state[0]), state[0]["step"]
    (['exp_avg', 'exp_avg_sq', 'step'], 1)
    """
    _check_names(names)
    known = _described(self, self.__getstate__())
    return known if names == "fusedstep" else _to_torch(self, known)


def load_state_dict(self: "Optimizer", saved: Mapping[str, Any], names: Names = "fusedstep") -> None:
    """
    Take over what `state_dict` returned, into the arrays that this optimizer has, as far as it has some.

    Parameters
    ----------
    saved : mapping
        Where "optimizer" or "hyperparameters" are missing, those of this optimizer stay. Schedules that are equal to
        the present ones stay the same objects, with the memory that was saved. Arrays are copied; those of other
        libraries will do. A master that is missing begins anew from its parameter.
    names : {"fusedstep", "torch"}
        What its states are called. The state of a PyTorch optimizer is loaded by
        ``opt.load_state_dict({"state": theirs.state_dict()["state"]}, names="torch")``. Its SGD does not count, so that
        its parameters have one finished update. NumPy cannot view its bfloat16 tensors: of those, take
        ``tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)``.

    Raises
    ------
    TypeError, ValueError
        If something is missing, unknown, of another type, dtype or shape, or out of range, or if it was saved by
        another class. Nothing has changed then.
    BufferError
        If an array of another library does not export its memory.
    RuntimeError
        If this optimizer is in a step.
    """
    _check_names(names)
    with self._alone():
        _prepared(self, saved, names).fill(self)


def save(path: Path, opt: "Optimizer", params: Any = None, *, extra: Any = None) -> None:
    """
    Write an optimizer, and parameters, into a file that is afterwards the old one or the new one, whatever happens.

    Parameters
    ----------
    path : str or os.PathLike
        Ends in .safetensors, for which that package must be installed, or in .npz.
    opt : Optimizer
        Only read.
    params : array, sequence or mapping of arrays, optional
        What `Optimizer.step` takes. Only read.
    extra : optional
        Whatever the loop needs besides and JSON can hold, such as the number of batches done; `load` returns it.

    Raises
    ------
    TypeError
        If `opt` is no optimizer; if a key is no string, number, bool, None or tuple of them; if an array or `extra`
        cannot be written.
    ValueError
        If the path has another ending or is no regular file; if two keys look alike; or if `params` lacks a key of the
        optimizer, or has another shape or dtype there.
    ImportError
        If a package is missing.
    OSError
        If the file cannot be written. The old one is untouched.
    RuntimeError
        If the optimizer is in a step.

    Notes
    -----
    The file is written beside the old one, flushed to the disk, and renamed; a process that is killed meanwhile leaves
    a folder ``.NAME.*.tmp`` behind. It holds a digest of every array, one of the whole, and the version of its format.
    """
    from fusedstep.core import archive  # here, because it imports much that a step does not need

    _check_optimizer(opt)
    with opt._alone():
        known = _described(opt, opt._known())
        parameters = dict(_items(params))
        if params is not None:
            _check_like_states(parameters, known)
        flat = [("state", key, name, a) for key, some in known["state"].items() for name, a in some.items()]
        flat += [("ema", key, None, a) for key, a in known["ema"].items()]
        flat += [("params", key, None, a) for key, a in parameters.items()]
        arrays = {_label(part, key, name): to_host(array) for part, key, name, array in flat}
        if len(arrays) < len(flat):
            raise ValueError(f"keys are {listed(known['t'])}, expected keys that differ as text")
        hyperparameters = known["hyperparameters"]
        meta = {
            "optimizer": known["optimizer"],
            "hyperparameters": {**hyperparameters, "overrides": _pairs(hyperparameters["overrides"])},
            "t": _pairs(known["t"]),
            "product": _pairs(known["product"]),
            "arrays": [[part, _encoded(key), name] for part, key, name, _ in flat],
            "has_params": params is not None,
            "extra": extra,
        }
        archive.write(path, arrays, meta)


def load(path: Path, opt: "Optimizer", params: Any = None) -> Any:
    """
    Fill an optimizer, and parameters, from a file that `save` has written.

    Parameters
    ----------
    path : str or os.PathLike
        Ends in .safetensors or .npz.
    opt : Optimizer
        Of the class that was saved. Its hyperparameters, step counts, states and averages become those of the file, its
        schedules as for `load_state_dict`.
    params : array, sequence or mapping of arrays, optional
        The parameters to fill, in place: keys, shapes and dtypes as they were saved.

    Returns
    -------
    object
        The `extra` that was saved, as JSON gives it back: tuples have become lists, and keys strings.

    Raises
    ------
    ValueError
        If the file is damaged, truncated, no checkpoint or of another version; or if keys, shapes, names or values do
        not fit.
    TypeError
        If a dtype does not fit, or something to be filled is no array.
    ImportError
        If a package is missing.
    OSError
        If the file cannot be read.
    RuntimeError
        If the optimizer is in a step.

    Notes
    -----
    Everything is checked first: an error leaves optimizer and parameters as they were.
    """
    from fusedstep.core import archive

    _check_optimizer(opt)
    arrays, meta = archive.read(path)
    try:
        saved: dict[str, Any] = {"optimizer": meta["optimizer"], "state": {}, "ema": {}}
        overrides = {_decoded(key): some for key, some in meta["hyperparameters"]["overrides"]}
        saved["hyperparameters"] = meta["hyperparameters"] | {"overrides": overrides}
        for part in ("t", "product"):
            saved[part] = {_decoded(key): value for key, value in meta[part]}
        stored: dict[Hashable, Array] = {}
        for (part, encoded, name), array in zip(meta["arrays"], arrays.values(), strict=True):
            key = _decoded(encoded)
            if part == "state":
                saved["state"].setdefault(key, {})[name] = array
            else:
                (saved["ema"] if part == "ema" else stored)[key] = array
        has_params, extra = meta["has_params"], meta["extra"]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)} is no checkpoint of an optimizer, expected a file of save") from error

    with opt._alone():
        prepared = _prepared(opt, saved)
        if params is not None:
            if not has_params:
                raise ValueError(f"{os.fspath(path)} holds no parameters, expected a file that was saved with params")
            targets = dict(_items(params))
            _check_targets(targets, stored)
            prepared.restored.copies.extend((target, stored[key]) for key, target in targets.items())
        prepared.fill(opt)
    return extra


def _check_optimizer(opt: Any) -> None:
    from fusedstep.core.optimizer import Optimizer  # which imports this module

    if not isinstance(opt, Optimizer):
        raise TypeError(f"opt is of type {type(opt).__name__}, expected an optimizer")


def _described(opt: "Optimizer", known: dict[str, Any]) -> dict[str, Any]:
    """Return what an optimizer knows as a state dict."""
    seen: list[plateau] = []

    def plain(some: Mapping[str, Any]) -> dict[str, Any]:
        return {name: describe(value, seen) if callable(value) else value for name, value in some.items()}

    hyperparameters = plain(settled(known["hyperparameters"]))
    hyperparameters["overrides"] = {key: plain(some) for key, some in hyperparameters["overrides"].items()}
    return {"optimizer": type(opt).__name__, **known, "hyperparameters": hyperparameters}


class _Prepared(NamedTuple):
    """A state dict that has been checked: taking it over cannot fail."""

    candidate: "Optimizer"  # with the hyperparameters
    plateaus: Plateaus
    restored: Restored

    def fill(self, opt: "Optimizer") -> None:
        for target, source in self.restored.copies:
            fill(target, source)
        remember(self.plateaus)
        opt._become(self.candidate, self.restored.progress)


def _prepared(opt: "Optimizer", saved: Mapping[str, Any], names: Names = "fusedstep") -> _Prepared:
    if not isinstance(saved, Mapping):
        raise TypeError(f"saved is of type {type(saved).__name__}, expected a state dict")
    parts = ("optimizer", "hyperparameters", "t", "product", "state", "ema")
    if strange := [part for part in saved if part not in parts]:
        raise ValueError(f"saved has {', '.join(map(repr, strange))}, expected only {', '.join(parts)}")
    ours = type(opt).__name__
    name = saved.get("optimizer", ours)
    if not isinstance(name, str) or name != ours:
        raise ValueError(f"optimizer is {name!r}, expected {ours!r}")
    values = present = opt._known()["hyperparameters"]
    plateaus: Plateaus = {}
    if "hyperparameters" in saved:
        try:
            values = _rebuilt(saved["hyperparameters"], present, plateaus, "hyperparameters")
        except RecursionError:
            raise ValueError("hyperparameters are nested too deeply, expected those of a state dict") from None
        if values.keys() != present.keys():
            raise ValueError(f"hyperparameters are {listed(values)}, expected {', '.join(present)}")
    candidate = type(opt)(**values)
    if names == "torch":
        saved = _from_torch(opt, saved)
    return _Prepared(candidate, plateaus, opt._progress.restored(saved, candidate._state_names(), opt.torch_states))


def _rebuilt(values: Any, present: Mapping[Any, Any], plateaus: Plateaus, label: str) -> dict[Any, Any]:
    """Return hyperparameters with their schedules."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{label} is {values!r}, expected a mapping")
    rebuilt: dict[Any, Any] = {}
    for name, value in values.items():
        part = f"{label}[{name!r}]"
        if name == "overrides" and label == "hyperparameters":
            if not isinstance(value, Mapping):
                raise TypeError(f"{part} is {value!r}, expected a mapping")
            mine = present[name]
            rebuilt[name] = {k: _rebuilt(v, mine.get(k, {}), plateaus, f"{part}[{k!r}]") for k, v in value.items()}
        elif isinstance(value, Mapping):
            try:
                rebuilt[name] = rebuild(value, present.get(name), plateaus)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{part}: {error}") from error
        else:
            rebuilt[name] = value
    return rebuilt


# The names of PyTorch.


def _to_torch(opt: "Optimizer", known: dict[str, Any]) -> dict[str, Any]:
    theirs = dict(opt.torch_states) | {name: name for name in MASTERS.values()}
    counts, products = known.pop("t"), known.pop("product")
    state = {}
    for key, t in counts.items():
        values = known["state"].get(key, {}) | ({"product": products[key]} if key in products else {})
        state[key] = {"step": t} | {theirs[name]: value for name, value in values.items()}
    return known | {"state": state}


def _from_torch(opt: "Optimizer", saved: Mapping[str, Any]) -> dict[str, Any]:
    ours = {theirs: name for name, theirs in opt.torch_states} | {name: name for name in MASTERS.values()}
    t, product, state = {}, {}, {}
    if not isinstance(saved.get("state"), Mapping):
        raise TypeError(f"state is {saved.get('state')!r}, expected a mapping by key")
    for key, some in saved["state"].items():
        label = f"state[{key!r}]"
        if not isinstance(some, Mapping):
            raise TypeError(f"{label} is {some!r}, expected a mapping: name -> array")
        if strange := [name for name in some if name != "step" and name not in ours]:
            raise ValueError(f"{label} has {', '.join(map(repr, strange))}, expected step, {', '.join(ours)}")
        if "step" not in some and some.keys() != {"momentum_buffer"}:  # whose optimizer does not count
            raise ValueError(f"{label} lacks 'step', expected the number of finished updates")
        t[key] = some.get("step", 1)
        state[key] = {ours[name]: value for name, value in some.items() if name != "step"}
        if "product" in state[key]:
            product[key] = number(state[key].pop("product"), f"{label}['mu_product']")
    return {**saved, "t": t, "product": product, "state": state}


def _check_names(names: str) -> None:
    if names not in get_args(Names):
        raise ValueError(f"names is {names!r}, expected one of {', '.join(map(repr, get_args(Names)))}")


# Parameters, and keys as JSON.


def _items(params: Any) -> Iterator[tuple[Hashable, Array]]:
    """Yield keys and arrays of one array, a sequence or a mapping; nothing of None."""
    if params is None:
        return
    if isinstance(params, np.ndarray) or hasattr(params, "__dlpack__") or is_on_gpu(params):
        params = [params]
    if not isinstance(params, (Mapping, Sequence)):
        raise TypeError(f"params is of type {type(params).__name__}, expected an array, a sequence or a mapping")
    for key, array in params.items() if isinstance(params, Mapping) else enumerate(params):
        yield key, as_array(array, f"params[{key!r}]")


def _check_like_states(params: Mapping[Hashable, Array], known: Mapping[str, Any]) -> None:
    if missing := [key for key in known["t"] if key not in params]:
        raise ValueError(f"params lacks {listed(missing)}, expected all parameters of the optimizer")
    for key in known["t"]:
        array, arrays = params[key], dict(known["state"].get(key, {}))
        if key in known["ema"]:
            arrays["ema"] = known["ema"][key]
        for name, state in arrays.items():
            if array.shape != state.shape or not fits(array.dtype, name, state.dtype):
                raise ValueError(
                    f"params[{key!r}] is {array.dtype} of shape {array.shape}, expected one that fits {name}, "
                    f"{state.dtype} of shape {state.shape}"
                )


def _check_targets(targets: Mapping[Hashable, Array], stored: Mapping[Hashable, Array]) -> None:
    if targets.keys() != stored.keys():
        raise ValueError(f"params has the keys {listed(targets)}, expected {listed(stored)} like the file")
    for key, target in targets.items():
        if target.dtype != stored[key].dtype:
            raise TypeError(f"params[{key!r}] is {target.dtype}, expected {stored[key].dtype} like the file")
        if target.shape != stored[key].shape:
            raise ValueError(f"params[{key!r}] has shape {target.shape}, expected {stored[key].shape} like the file")
        if device_of(target) is None and not target.flags.writeable:
            raise ValueError(f"params[{key!r}] is read-only, expected a writable array")


def _encoded(key: Hashable) -> Any:
    if isinstance(key, tuple):
        return [_encoded(part) for part in key]
    if isinstance(key, Integral) and not isinstance(key, bool):
        return int(key)
    if key is None or (isinstance(key, (str, bool, float)) and key == key):  # NaN is not found again
        return key
    raise TypeError(f"key {key!r} cannot be saved, expected a string, number, bool, None, or a tuple of them")


def _pairs(mapping: Mapping[Hashable, Any]) -> list[list[Any]]:
    return [[_encoded(key), value] for key, value in mapping.items()]


def _decoded(key: Any) -> Hashable:
    return tuple(_decoded(part) for part in key) if isinstance(key, list) else key


def _label(part: str, key: Hashable, name: str | None) -> str:
    text = key if isinstance(key, str) else json.dumps(_encoded(key))
    return "/".join([part, text, *([name] if name else [])])
