"""Files of optimizers: what an optimizer knows, and parameters, under the keys of the caller."""

import json
import os
from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from numbers import Integral
from typing import Any, Literal

import numpy as np

from fusedstep.core.arrays import Array, Stored, check_separate, device_of, fits, to_host
from fusedstep.core.containers import arrays_by_key, check_kept, present, tell_writes
from fusedstep.core.optimizer import Optimizer
from fusedstep.core.overrides import Noted, where
from fusedstep.core.progress import listed
from fusedstep.core.restore import carry_out, fill_all
from fusedstep.core.snapshot import Keys, check_hyperparameters, described, narrowed, renamed

__all__ = ["load", "save"]

Path = str | os.PathLike[str]


def save(path: Path, opt: Optimizer | None, params: Any = None, *, extra: Any = None) -> None:
    """
    Write an optimizer, and parameters, into a file: whatever happens, it is afterwards the old one or the new one.

    Parameters
    ----------
    path : str or os.PathLike
        Ends in .safetensors, for which the package safetensors must be installed, or in .npz.
    opt : Optimizer or None
        Only read. With None, the file holds parameters alone.
    params : array, sequence or mapping of arrays, optional
        The parameters, as `Optimizer.step` takes them, all of those that the optimizer knows. Only read.
    extra : optional
        Anything that JSON can hold, such as the number of batches done, and numbers of NumPy; `load` returns it.

    Raises
    ------
    TypeError
        If `opt` is no optimizer; if a key is no string, number, bool, None or tuple of them; if an array or `extra`
        cannot be written.
    ValueError
        If the path has another ending or is no regular file; if `opt` and `params` are None; if two keys are the same
        as text; if `params` lacks a key of the optimizer; or if a parameter has another shape than its states, or a
        dtype that does not fit them.
    ImportError
        If a package is missing.
    OSError
        If the file cannot be written. The old file is untouched.
    RuntimeError
        If the optimizer is in a step.

    Notes
    -----
    The file is written beside the old one, flushed to the disk, and renamed; a process that is killed meanwhile leaves
    a folder ``.NAME.*.tmp`` behind, which a later call removes. The file holds a digest of every array, one of the
    whole, and the version of its format.
    """
    from fusedstep.core import archive  # late, because archive imports much that a step does not need

    _check_optimizer(opt)
    if opt is None and params is None:
        raise ValueError("opt and params are None, expected something to save")
    with _alone(opt):
        known = {"state": {}, "ema": {}} if opt is None else described(opt._identity(), opt._known())
        parameters = arrays_by_key(params)
        if opt is not None and params is not None:
            _check_like_states(parameters, known)
        flat = [("state", key, name, a) for key, some in known["state"].items() for name, a in some.items()]
        flat += [("ema", key, None, a) for key, a in known["ema"].items()]
        flat += [("params", key, None, a) for key, a in parameters.items() if a is not None]
        arrays = {_label(part, key, name): to_host(array) for part, key, name, array in flat}
        if len(arrays) < len(flat):
            keys = dict.fromkeys(key for _, key, _, _ in flat)
            raise ValueError(f"keys are {listed(keys)}, expected keys that differ as text")
        meta: dict[str, Any] = {"optimizer": None}
        if opt is not None:
            hyperparameters = known["hyperparameters"]
            meta = {
                "optimizer": known["optimizer"],
                "hyperparameters": {**hyperparameters, "overrides": _pairs(hyperparameters["overrides"])},
                "t": _pairs(known["t"]),
                "memory": _pairs(known["memory"]),
            }
        meta |= {
            "arrays": [[part, _encoded(key), name] for part, key, name, _ in flat],
            "has_params": params is not None,
            "extra": _plain(extra),
        }
        archive.write(path, arrays, meta)


def load(
    path: Path,
    opt: Optimizer | None,
    params: Any = None,
    *,
    strict: bool = True,
    hyperparameters: Literal["file", "mine"] | None = None,
    keys: Keys | None = None,
) -> Any:
    """
    Fill an optimizer, and parameters, from a file that `save` has written.

    Parameters
    ----------
    path : str or os.PathLike
        Ends in .safetensors or .npz.
    opt : Optimizer or None
        An optimizer of the class that was saved. Its step counts, memory, states and averages become those of the file,
        and so do its hyperparameters, its schedules as in `load_state_dict`. With None, parameters alone are loaded,
        whatever the file holds beside them.
    params : array, sequence or mapping of arrays, optional
        The parameters to fill, in place. Keys, shapes and dtypes must be those that were saved.
    strict : bool
        Whether the keys must be those of the file. If not, what the file has under the keys of `params`, or else of
        the optimizer if it has begun, is loaded, and everything under other keys stays as it is. Shapes and dtypes must
        fit even so, and at least one key must.
    hyperparameters : {None, "file", "mine"}
        Whose hyperparameters hold afterwards. None stands for those of the file, with a warning that lists the ones
        that differ from what `opt` was told, as by its constructor. The memory of a `plateau` comes from the file in
        any case.
    keys : mapping or callable, optional
        New keys of parameters: a mapping of keys in the file to new ones, in which others stay as they are, or a
        function that returns the new key of a key. Exact keys in overrides are renamed too.

    Returns
    -------
    object
        The `extra` that was saved, as JSON gives it back: tuples have become lists, and keys strings.

    Warns
    -----
    UserWarning
        If `hyperparameters` is None, and some are replaced that are not the defaults of the class.

    Raises
    ------
    ValueError
        If the file is damaged, truncated, no checkpoint or of a newer version; if keys, shapes, names or values do not
        fit; or if a parameter is read-only, overlaps another one or a state, or is made anew each time it is asked for.
    TypeError
        If a dtype does not fit, or a parameter is no array.
    ImportError
        If there is bfloat16, and ml_dtypes is not installed.
    OSError
        If the file cannot be read.
    RuntimeError
        If the optimizer is in a step.

    Notes
    -----
    Everything is checked first: an error leaves optimizer and parameters as they were. Each array is then read straight
    from the file to where it stays, so that no memory is needed but for new states. An interrupt by the user, that
    comes while arrays are filled, is raised when all are; a file that cannot be read any more by then leaves some of
    the arrays filled, and the optimizer otherwise as it was. Files of older versions can be loaded.
    """
    from fusedstep.core import archive

    _check_optimizer(opt)
    check_hyperparameters(hyperparameters, "file")
    with archive.opened(path) as (arrays, meta), _alone(opt):
        try:
            saved, stored = _parts(arrays, meta)
            has_params, extra = meta["has_params"], meta["extra"]
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{os.fspath(path)} is no checkpoint of an optimizer, expected a file of save") from error
        if opt is not None and not saved:
            raise ValueError(f"{os.fspath(path)} holds no optimizer, expected a file that was saved with one")
        if params is not None and not has_params:
            raise ValueError(f"{os.fspath(path)} holds no parameters, expected a file that was saved with params")
        saved = renamed(saved | {"params": stored}, keys)
        targets = present(params)
        if not strict and (wanted := targets or (opt._progress.clock_of if opt is not None else {})):
            saved = narrowed(saved, wanted)
        stored = saved.pop("params")
        check_kept(params)
        if params is not None:
            _check_targets(targets, stored, strict)
        labelled = {} if opt is None else opt._progress.labelled()
        check_separate({f"params[{key!r}]": array for key, array in targets.items()} | labelled)
        copies = [(target, stored[key]) for key, target in targets.items() if key in stored]
        if opt is None:
            carry_out(partial(fill_all, copies))
        else:
            prepared = opt._prepared(saved, hyperparameters=hyperparameters, source="file", strict=strict)
            prepared.copies.extend(copies)
            opt._become(prepared)
        tell_writes(params)
    return extra


def _parts(arrays: Mapping[str, Stored], meta: Mapping[str, Any]) -> tuple[dict[str, Any], dict[Hashable, Stored]]:
    """Return the state dict of a file, which is empty if it was saved without an optimizer, and the parameters."""
    saved: dict[str, Any] = {}
    if meta["optimizer"] is not None:
        saved = {"optimizer": meta["optimizer"], "state": {}, "ema": {}}
        overrides = {_decoded(key): some for key, some in meta["hyperparameters"]["overrides"]}
        saved["hyperparameters"] = meta["hyperparameters"] | {"overrides": overrides}
        # Format version 1 has "product" in place of "memory".
        for part in ("t", "product" if "product" in meta else "memory"):
            saved[part] = {_decoded(key): value for key, value in meta[part]}
    stored: dict[Hashable, Stored] = {}
    for (part, encoded, name), array in zip(meta["arrays"], arrays.values(), strict=True):
        key = _decoded(encoded)
        if part == "state":
            saved["state"].setdefault(key, {})[name] = array
        else:
            (saved["ema"] if part == "ema" else stored)[key] = array
    return saved, stored


def _check_optimizer(opt: Any) -> None:
    if opt is not None and not isinstance(opt, Optimizer):
        raise TypeError(f"opt is of type {type(opt).__name__}, expected an optimizer or None")


def _alone(opt: Optimizer | None) -> AbstractContextManager[Any]:
    return nullcontext() if opt is None else opt._alone()


# Parameters by key, and keys as JSON.


def _check_like_states(params: Mapping[Hashable, Array | None], known: Mapping[str, Any]) -> None:
    if missing := [key for key, t in known["t"].items() if key not in params or (t and params[key] is None)]:
        raise ValueError(
            f"params lacks {listed(missing)}, expected all parameters of the optimizer: opt.forget(key) drops what it "
            "knows of one that has left"
        )
    for key, array in params.items():
        if array is None:
            continue
        arrays = dict(known["state"].get(key, {}))
        if key in known["ema"]:
            arrays["ema"] = known["ema"][key]
        for name, state in arrays.items():
            if array.shape != state.shape or not fits(array.dtype, name, state.dtype):
                raise ValueError(
                    f"params[{key!r}] is {array.dtype} of shape {array.shape}, expected one that fits {name}, "
                    f"{state.dtype} of shape {state.shape}"
                )


def _check_targets(targets: Mapping[Hashable, Array], stored: Mapping[Hashable, Stored], strict: bool) -> None:
    if strict and targets.keys() != stored.keys():
        raise ValueError(f"params has the keys {listed(targets)}, expected {listed(stored)} like the file")
    for key, target in targets.items():
        if key not in stored:
            continue
        if target.dtype != stored[key].dtype:
            raise TypeError(f"params[{key!r}] is {target.dtype}, expected {stored[key].dtype} like the file")
        if target.shape != stored[key].shape:
            raise ValueError(f"params[{key!r}] has shape {target.shape}, expected {stored[key].shape} like the file")
        if device_of(target) is None and not target.flags.writeable:
            raise ValueError(f"params[{key!r}] is read-only, expected a writable array")


def _plain(extra: Any) -> Any:
    """Return `extra` as JSON gives it back, or refuse it."""

    def number(value: Any) -> Any:
        plain = value.item() if isinstance(value, np.generic) else value
        if not isinstance(plain, (bool, int, float, str)):
            raise TypeError(f"extra holds {value!r} of type {type(value).__name__}")
        return plain

    try:
        return json.loads(json.dumps(extra, default=number))
    except (TypeError, ValueError, RecursionError) as error:
        said = str(error)
        said = said if said.startswith("extra ") else f"extra cannot be written: {said}"
        raise TypeError(f"{said}, expected what JSON can hold: numbers, strings, None, lists and dicts") from error


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
