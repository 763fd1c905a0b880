"""The form of a rule: what its function takes and returns, as the signature and the decorator say."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import FunctionType
from typing import Any, Literal, get_args, get_origin

from fusedstep import _cpu
from fusedstep.core.arrays import MASTER_DTYPES
from fusedstep.core.hyperparameters import check, declared
from fusedstep.core.optimizer import Optimizer

from .graph import definition

__all__ = ["Form"]

_MEMBERS = ("functional", "program", "reference", "rule")  # of the class that is made
_WORDS = ("cls", "float", "options", "self", "type")  # of the functions that are called with the names


@dataclass(frozen=True)
class Form:
    """What a function takes: arrays in order, numbers by name, and hyperparameters; and what states start at."""

    function: FunctionType
    place: str  # the first line of the function, for errors
    arrays: tuple[str, ...]  # g, p where it is wanted, and the states, in the order of the arguments
    states: Mapping[str, float]  # name -> where the state starts
    memory: Mapping[str, float]  # name -> the number before the first update
    counts: bool  # whether t is wanted
    numbers: Mapping[str, Any]  # hyperparameters that are numbers, lr first -> default, or inspect.Parameter.empty
    choices: Mapping[str, tuple[Any, Any]]  # hyperparameters that are known while tracing -> type, default
    order: tuple[str, ...]  # all hyperparameters, in the order of the function

    @classmethod
    def of(cls, function: Callable[..., Any], states: str | Mapping[str, float], memory: Mapping[str, float]) -> "Form":
        """Return the form of a function, or refuse it."""
        if not inspect.isfunction(function):
            raise TypeError(f"a rule is of type {type(function).__name__}, expected a function, def or lambda")
        title = definition(function.__code__, function.__name__)
        for label, some in (("states", states), ("memory", memory)):
            if not isinstance(some, Mapping) and not (label == "states" and isinstance(some, str)):
                names = "names in one string, or " * (label == "states")
                raise TypeError(f"{title}: {label} is {some!r}, expected {names}a mapping: name -> number at the start")
        starts = dict.fromkeys(states.split(), 0.0) if isinstance(states, str) else dict(states)
        if isinstance(states, str) and len(starts) != len(states.split()):
            raise ValueError(f"{title}: states is {states!r}, expected different names")
        if len(starts) > _cpu.max_states:
            raise ValueError(f"{title}: states has {len(starts)} names, expected at most {_cpu.max_states}")
        if len(memory) > _cpu.max_memory:
            raise ValueError(f"{title}: memory has {len(memory)} names, expected at most {_cpu.max_memory}")
        parameters = _parameters(function)
        arrays: list[str] = []
        numbers: dict[str, Any] = {}
        choices: dict[str, tuple[Any, Any]] = {}
        order: list[str] = []
        counts, left = False, set(memory)
        for name, parameter in parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise TypeError(f"{title}: {parameter} among the arguments, expected each by its name")
            is_array = parameter.kind is not parameter.KEYWORD_ONLY
            if (is_array or name == "t") and parameter.default is not parameter.empty:
                raise TypeError(f"{title}: {name} has a default, expected none: every call has it")
            if is_array:
                arrays.append(name)
            elif name in memory:
                left.discard(name)
                if parameter.default is not parameter.empty:
                    raise TypeError(f"{title}: {name} is memory and has a default, expected the number in memory={{}}")
            elif name == "t":
                counts = True
            else:
                order.append(name)
                hint = _check_hyperparameter(title, name, parameter)
                if hint is float:
                    numbers[name] = parameter.default
                else:
                    choices[name] = hint, parameter.default
        _check_engine(title, order, choices)
        first = arrays[: len(arrays) - len(starts)]
        if sorted(first) not in (["g"], ["g", "p"]) or arrays[len(first) :] != list(starts):
            expected = ", ".join(["g", *starts])
            raise TypeError(
                f"{title}: the positional arguments are {', '.join(arrays) or 'none'}, expected {expected}, or p too, "
                "before the states; hyperparameters stand behind a *"
            )
        if left:
            raise TypeError(f"{title}: the memory {min(left)} is no argument, expected it behind the *")
        for name in (*starts, *memory):
            _check_name(title, name)
        if masters := [name for name in starts if name in MASTER_DTYPES]:
            raise ValueError(f"{title}: {masters[0]} is the name of a master of parameters, expected another")
        if len(numbers) > _cpu.max_hypers:
            raise ValueError(f"{title}: has {len(numbers)} hyperparameters, expected at most {_cpu.max_hypers}")
        rate = {"lr": numbers.pop("lr")} if "lr" in numbers else {}
        values = {key: _number(title, key, value) for key, value in (starts | dict(memory)).items()}
        return cls(
            function,
            title,
            tuple(arrays),
            {name: values[name] for name in starts},
            {name: values[name] for name in memory},
            counts,
            rate | numbers,
            choices,
            tuple(order),
        )


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the arguments of a function, with annotations that are no text where this is possible."""
    try:
        return inspect.signature(function, eval_str=True).parameters
    except Exception:  # whatever evaluating them raises, such as the NameError of what only type checkers import
        return inspect.signature(function).parameters


def _number(title: str, name: str, value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{title}: {name} starts at {value!r}, expected a number")
    return float(value) + 0.0  # so that -0.0 is 0.0, as in a new array


def _check_engine(title: str, order: list[str], choices: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse what the engine would take for something else: names that it gives to options, and choices of numbers."""
    for name in order:
        if name in ("low", "high", "master", "rounding_stochastic"):
            raise ValueError(f"{title}: {name} is what the engine makes of an option, expected another name")
    for name, (hint, _) in choices.items():
        if not all(isinstance(choice, (str, bool)) for choice in get_args(hint)):
            raise TypeError(f"{title}: {name} has the choices {get_args(hint)}, expected text, True or False")


def _check_name(title: str, name: str) -> None:
    if not name.isidentifier() or name in ("p", "g", "t") or name.startswith("_"):
        raise ValueError(f"{title}: {name!r} is the name of something, expected an identifier other than p, g and t")
    if name in declared(Optimizer) or hasattr(Optimizer, name) or name in _MEMBERS + _WORDS:
        raise ValueError(f"{title}: {name} is the name of an option or a method of every optimizer, expected another")


def _check_hyperparameter(title: str, name: str, parameter: inspect.Parameter) -> Any:
    """Return the type of a hyperparameter: float, bool or a Literal."""
    _check_name(title, name)
    if name in import_module("fusedstep.reference.rule").RESERVED:
        raise ValueError(f"{title}: {name} is the name of a member of the reference, expected another")
    if isinstance(parameter.default, bool):
        return bool
    if get_origin(parameter.annotation) is Literal:
        if parameter.default not in get_args(parameter.annotation):
            raise TypeError(f"{title}: {name} has the default {parameter.default!r}, expected one of its Literal")
        return parameter.annotation
    if isinstance(parameter.default, str):
        raise TypeError(f'{title}: {name} is text, expected its choices: {name}: Literal["{parameter.default}", ...]')
    number = parameter.default
    if number is not parameter.empty:
        if type(number) not in (int, float):
            raise TypeError(
                f"{title}: {name} has the default {number!r}, expected a finite number, a bool or a Literal"
            )
        check(name, number, float, f"{title}: {name}")
    return float
