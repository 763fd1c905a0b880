"""What all presets share: the options that they hand on, their docstrings, and messages for those that are missing."""

import inspect
import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, TypedDict, TypeVar

from fusedstep import optimizers
from fusedstep.core.hyperparameters import Bounds, Scheduled

__all__ = ["DecoupledOptions", "Options", "OptionsBesideDecay", "absent", "presets_of"]

Function = TypeVar("Function", bound=Callable[..., Any])


class OptionsBesideDecay(TypedDict, total=False):
    """The options of `Optimizer` for presets whose weight decay is an argument of their own."""

    grad_scale: Scheduled
    clip_value: Scheduled | None
    clip_norm: Scheduled | None
    clip_global_norm: Scheduled | None
    maximize: bool
    l1: Scheduled
    bounds: Bounds | None
    ema: Scheduled | None
    zero_grad: bool
    frozen: bool
    skip_nonfinite: bool
    measure: Literal["needed", "update"]
    state_dtype: Literal["float32", "same"]
    master_weights: Literal[False, True, "split"]
    rounding: Literal["nearest", "stochastic"]
    seed: int
    overrides: Mapping[Hashable, Mapping[str, Any]]


class DecoupledOptions(OptionsBesideDecay, total=False):
    """The options of `Optimizer` for presets of libraries that decouple all weight decay, or none."""

    weight_decay: Scheduled


class Options(DecoupledOptions, total=False):
    """The options of `Optimizer` for presets that leave the choice of how to decay."""

    decoupled: bool


def presets_of(library: str) -> Callable[..., Callable[[Function], Function]]:
    """
    Return a decorator of presets, which completes their docstrings.

    Parameters
    ----------
    library : str
        The library and its version. The decorator takes what the library calls the optimizer, and as keywords the
        entries of arguments that the class does not have.
    """

    def preset(theirs: str, **entries: str) -> Callable[[Function], Function]:
        def documented(function: Function) -> Function:
            function.__doc__ = _docstring(function, f"``{theirs}`` of {library}", entries)
            return function

        return documented

    return preset


def _docstring(function: Callable[..., Any], theirs: str, entries: dict[str, str]) -> str | None:
    if not function.__doc__:  # python -OO has none
        return None
    signature = inspect.signature(function)
    cls = signature.return_annotation
    entries = _entries(cls) | entries
    together: dict[str, list[str]] = {}  # names that share an entry
    for name in signature.parameters:
        if name != "options":
            together.setdefault(entries[name], []).append(name)
    lines = [inspect.cleandoc(function.__doc__), "", f"The defaults and the form are those of {theirs}.", ""]
    lines += ["Parameters", "----------", *(f"{', '.join(names)} : {entry}" for entry, names in together.items())]
    lines += ["**options", "    Every other option of `Optimizer`, with its default.", ""]
    lines += ["Returns", "-------", cls.__name__, f"    An optimizer of the class `fusedstep.{cls.__name__}`.", ""]
    return "\n".join(lines)


def _entries(cls: type[optimizers.Optimizer]) -> dict[str, str]:
    """Return what the docstring of a class says of each argument, below its name."""
    found: dict[str, str] = {}
    for base in cls.__mro__:
        text = inspect.cleandoc(base.__doc__ or "") if issubclass(base, optimizers.Optimizer) else ""
        for names, entry in re.findall(r"(?m)^([a-z][\w, ]*) : (.*(?:\n {4}.*)+)", text):
            found = dict.fromkeys(names.split(", "), entry) | found
    return found


def absent(module: str, reasons: Mapping[str, str]) -> Callable[[str], Any]:
    """
    Return the `__getattr__` of a module of presets.

    Parameters
    ----------
    module : str
        The name of the module.
    reasons : mapping
        What the library has and the module has not -> why.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807 (what it will be)
        if name in reasons:
            raise AttributeError(f"{module} has no {name}: {reasons[name]}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return __getattr__
