"""Files of optimizers: what an optimizer knows, and parameters, under the keys of the caller."""

import json
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from fusedstep.core.arrays import Array, as_array, device_of, fits, is_on_gpu, to_host
from fusedstep.core.optimizer import Optimizer
from fusedstep.core.overrides import Noted, where
from fusedstep.core.progress import listed
from fusedstep.core.snapshot import described

__all__ = ["load", "save"]

Path = str | os.PathLike[str]


def save(path: Path, opt: Optimizer, params: Any = None, *, extra: Any = None) -> None:
    """
    Write an optimizer, and parameters, into a file: whatever happens, it is afterwards the old one or the new one.

    Parameters
    ----------
    path : str or os.PathLike
        Ends in .safetensors, for which the package safetensors must be installed, or in .npz.
    opt : Optimizer
        Only read.
    params : array, sequence or mapping of arrays, optional
        The parameters, as `Optimizer.step` takes them. Only read.
    extra : optional
        Anything that JSON can hold, such as the number of batches done; `load` returns it.

    Raises
    ------
    TypeError
        If `opt` is no optimizer; if a key is no string, number, bool, None or tuple of them; if an array or `extra`
        cannot be written.
    ValueError
        If the path has another ending or is no regular file; if two keys are the same as text; if `params` lacks a key
        of the optimizer; or if a parameter has another shape than its states, or a dtype that does not fit them.
    ImportError
        If a package is missing.
    OSError
        If the file cannot be written. The old file is untouched.
    RuntimeError
        If the optimizer is in a step.

    Notes
    -----
    The file is written beside the old one, flushed to the disk, and renamed; a process that is killed meanwhile leaves
    a folder ``.NAME.*.tmp`` behind. It holds a digest of every array, one of the whole, and the version of its format.
    """
    from fusedstep.core import archive  # late, because archive imports much that a step does not need

    _check_optimizer(opt)
    with opt._alone():
        known = described(type(opt).__name__, opt._known())
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
            "memory": _pairs(known["memory"]),
            "arrays": [[part, _encoded(key), name] for part, key, name, _ in flat],
            "has_params": params is not None,
            "extra": extra,
        }
        archive.write(path, arrays, meta)


def load(path: Path, opt: Optimizer, params: Any = None) -> Any:
    """
    Fill an optimizer, and parameters, from a file that `save` has written.

    Parameters
    ----------
    path : str or os.PathLike
        Ends in .safetensors or .npz.
    opt : Optimizer
        An optimizer of the class that was saved. Its hyperparameters, step counts, memory, states and averages become
        those of the file, its schedules as in `load_state_dict`.
    params : array, sequence or mapping of arrays, optional
        The parameters to fill, in place. Keys, shapes and dtypes must be those that were saved.

    Returns
    -------
    object
        The `extra` that was saved, as JSON gives it back: tuples have become lists, and keys strings.

    Raises
    ------
    ValueError
        If the file is damaged, truncated, no checkpoint or of a newer version; or if keys, shapes, names or values do
        not fit.
    TypeError
        If a dtype does not fit, or a parameter is no array.
    ImportError
        If a package is missing.
    OSError
        If the file cannot be read.
    RuntimeError
        If the optimizer is in a step.

    Notes
    -----
    Everything is checked first: an error leaves optimizer and parameters as they were. Files of older versions can be
    loaded.
    """
    from fusedstep.core import archive

    _check_optimizer(opt)
    arrays, meta = archive.read(path)
    try:
        saved: dict[str, Any] = {"optimizer": meta["optimizer"], "state": {}, "ema": {}}
        overrides = {_decoded(key): some for key, some in meta["hyperparameters"]["overrides"]}
        saved["hyperparameters"] = meta["hyperparameters"] | {"overrides": overrides}
        # Format version 1 has "product" in place of "memory".
        for part in ("t", "product" if "product" in meta else "memory"):
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
        prepared = opt._prepared(saved)
        if params is not None:
            if not has_params:
                raise ValueError(f"{os.fspath(path)} holds no parameters, expected a file that was saved with params")
            targets = dict(_items(params))
            _check_targets(targets, stored)
            prepared.copies.extend((target, stored[key]) for key, target in targets.items())
        opt._become(prepared)
    return extra


def _check_optimizer(opt: Any) -> None:
    if not isinstance(opt, Optimizer):
        raise TypeError(f"opt is of type {type(opt).__name__}, expected an optimizer")


# Parameters by key, and keys as JSON.


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
    if isinstance(key, where):
        condition = key.condition
        function = {"function": condition.name, "place": condition.place} if isinstance(condition, Noted) else None
        return {"where": function or _encoded(condition), "optional": key.optional}
    if isinstance(key, tuple):
        return [_encoded(part) for part in key]
    if isinstance(key, Integral) and not isinstance(key, bool):
        return int(key)
    if key is None or (isinstance(key, (str, bool, float)) and key == key):  # a NaN could not be found again
        return key
    raise TypeError(f"key {key!r} cannot be saved, expected a string, number, bool, None, or a tuple of them")


def _pairs(mapping: Mapping[Hashable, Any]) -> list[list[Any]]:
    return [[_encoded(key), value] for key, value in mapping.items()]


def _decoded(key: Any) -> Hashable:
    if isinstance(key, dict):
        condition = key["where"]
        function = Noted(condition["function"], condition["place"]) if isinstance(condition, dict) else None
        return where(function or _decoded(condition), key["optional"])
    return tuple(_decoded(part) for part in key) if isinstance(key, list) else key


def _label(part: str, key: Hashable, name: str | None) -> str:
    text = key if isinstance(key, str) else json.dumps(_encoded(key))
    return "/".join([part, text, *([name] if name else [])])
