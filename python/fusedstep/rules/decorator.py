"""The decorator that makes a class of optimizers of a function."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, make_dataclass
from importlib import import_module
from inspect import Parameter
from typing import Any, ClassVar

from fusedstep import _cpu
from fusedstep.core.arrays import is_on_gpu
from fusedstep.core.hyperparameters import INF, RANGES, Range, Scheduled, check_clips, declared, shown
from fusedstep.core.optimizer import Optimizer

from .form import Form
from .program import Program, traced

__all__ = ["rule"]


class _Lazy:
    """An attribute of a class that is made when it is first asked for."""

    def __init__(self, make: Callable[[type[Any]], Any]) -> None:
        self._make = make

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type[Any]) -> Any:
        made = self._make(owner)
        setattr(owner, self._name, made)
        return made


def _checked_option(name: str, value: Any) -> Any:
    """Return the default of an option as a checked value; a schedule belongs to an optimizer, not to its class."""
    if name not in declared(Optimizer):
        raise TypeError(f"{name} is no option of an optimizer, expected one of {', '.join(declared(Optimizer))}")
    if callable(value) or is_on_gpu(value):
        raise TypeError(f"{name} is {shown(value)}, expected a value, since the class has it, not one optimizer")
    return Optimizer._checked(name, value)


def _default(form: Form, name: str) -> Any:
    default = form.choices[name][1] if name in form.choices else form.numbers[name]
    return MISSING if default is Parameter.empty else default


def _hint(form: Form, name: str) -> Any:
    return form.choices[name][0] if name in form.choices else Scheduled


def _functional(cls: "type[Made]") -> Callable[..., Any]:
    from fusedstep.core.functions import Options, Outline, function

    values = {each: _default(cls._form, each) for each in cls._form.order}
    taken = declared(Options)  # what else the class has, such as averages, is off
    values |= {
        name: (cls if name in taken else Optimizer).__dataclass_fields__[name].default for name in declared(Optimizer)
    }
    numbers = tuple(name for name in cls._form.order if name in cls._form.numbers)
    title = cls.__name__ if cls.__name__.isidentifier() else "rule"  # that of a lambda is none
    outline = Outline(title, _cpu.rules[cls.rule], cls, {}, values, numbers)
    return function(outline, cls.__module__)


def _reference(cls: "type[Made]") -> type[Any]:
    form = cls._form
    made = import_module("fusedstep.reference.rule").made
    options = {name: cls.__dataclass_fields__[name].default for name in cls._changed}
    hyperparameters = {name: _default(form, name) for name in form.order}
    reference: type[Any] = made(
        cls.__name__, form.function, form.arrays, form.states, form.memory, form.counts, hyperparameters, options
    )
    reference.__module__, reference.__qualname__ = cls.__module__, f"{cls.__qualname__}.reference"
    return reference


def _defined(form: Form, program: Program, title: str) -> str:
    try:
        return program.define(title)
    except ValueError as error:  # by the engine, which counts what is alive at once
        raise ValueError(f"{form.place}: {error}") from None


class Made(Optimizer):
    """The base of optimizers whose rule is a function."""

    _form: ClassVar[Form]
    program: ClassVar[Program]  # for the default choices
    functional: ClassVar[Any] = _Lazy(_functional)
    reference: ClassVar[Any] = _Lazy(_reference)
    _title: ClassVar[str]  # module and name of the function
    _changed: ClassVar[tuple[str, ...]]  # options with another default than usual
    _names: ClassVar[dict[tuple[Any, ...], str]]  # choices -> the name of the rule

    def __setattr__(self, name: str, value: Any) -> None:
        if self._ready and name in self._form.choices:  # what cannot be traced is refused here, and not by a step
            self._rule(self._values() | {name: self._checked(name, value)})
        super().__setattr__(name, value)

    def _rule(self, values: Mapping[str, Any]) -> str:
        chosen = {name: values[name] for name in self._form.choices}
        key = tuple(chosen.values())
        if key not in self._names:
            self._names[key] = _defined(self._form, traced(self._form, chosen), self._title)
        return self._names[key]

    def _identity(self) -> str:
        digest = self._settings_with().rule.rpartition(":")[2]
        return f"{type(self).__name__}:{digest}"

    @classmethod
    def _structural(cls) -> set[str]:
        return super()._structural().union(cls._form.choices)


def rule(
    states: str | Mapping[str, float] = "", *, memory: Mapping[str, float] | None = None, **options: Any
) -> Callable[[Callable[..., Any]], type[Optimizer]]:
    """
    Make a class of optimizers of a function, the rule.

    The function is called once, with symbols, to find out what it computes. Steps then run fused, in one pass over
    memory, with all options of `Optimizer`, and with the bits of the function itself in NumPy.

    Parameters
    ----------
    states : str or mapping
        The names of the states, in one string, or name -> number at which the state starts. At most four.
    memory : mapping, optional
        Numbers that the rule keeps from update to update: name -> what the number is before the first. At most four.
    **options
        Defaults of options of `Optimizer` that the class has in place of the usual ones, such as ``weight_decay=0.01``.

    Returns
    -------
    function
        A decorator. The function that it takes has the positional arguments ``g``, the gradient, or ``p`` and ``g``,
        with the parameter before the update, and then the states. Keyword-only arguments are ``t`` where the number of
        the update is wanted (1 for the first), the memory, and hyperparameters with their defaults. It returns the
        update u, of which the parameter becomes p - u, then the new states, then the new memory. It computes with
        ``+ - * /``, comparisons, ``& | ~``, squares and roots, and NumPy's functions of the same kind. Hyperparameters
        that are bools, or Literals of text, are known when the function is called; it may branch on them.

        The decorator returns a dataclass like `Adam`, with further members: ``reference``, the same optimizer in plain
        NumPy; ``functional``, the function for callers who own all state, with the default choices and the other
        defaults of the class, averages and masters left aside; and ``program``, whose ``show()`` tells what is
        computed.

    Raises
    ------
    TypeError, ValueError
        By the decorator, if the function does what no rule can do, with the line of the function and what to write
        instead; or if an argument, a state or an option has a name or a value that cannot be.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> @fs.rule(states="m")
    ... def signum(g, m, *, lr=1e-3, beta=0.9):
    ...     m = beta * m + (1 - beta) * g
    ...     return lr * np.sign(m), m
    >>> p = np.ones(3)
    >>> result = signum(lr=0.5).step(p, np.array([1.0, -1.0, 0.0]))
    >>> p.tolist()
    [0.5, 1.5, 1.0]
    """
    if callable(states):
        raise TypeError("fs.rule is given a function, expected parentheses behind it: @fs.rule()")
    hints = declared(Optimizer)
    options = {name: _checked_option(name, value) for name, value in options.items()}
    check_clips(options)

    def make(function: Callable[..., Any]) -> type[Optimizer]:
        form = Form.of(function, states, memory or {})
        choices = {name: default for name, (_, default) in form.choices.items()}
        program = traced(form, choices)
        title = f"{function.__module__}.{function.__qualname__}"
        name = _defined(form, program, title)
        own = sorted(form.order, key=lambda each: _default(form, each) is not MISSING)
        made = [(each, _hint(form, each), field(default=_default(form, each))) for each in own]
        made += [(each, hints[each], field(default=value, kw_only=True)) for each, value in options.items()]
        namespace = {
            "__doc__": function.__doc__,
            "__module__": function.__module__,
            "_form": form,
            "program": program,
            "_title": title,
            "_changed": tuple(options),
            "rule": name,
            "starts": dict(form.states),
            "ranges": RANGES | dict.fromkeys(form.memory, Range(-INF, INF, with_high=True)),
            "_names": {tuple(choices.values()): name},
        }
        cls = make_dataclass(function.__name__, made, bases=(Made,), namespace=namespace, eq=False)
        cls.__module__, cls.__qualname__ = function.__module__, function.__qualname__
        if "ema" in options:
            delattr(cls, "ema")  # a default, which `__init__` knows, in place of the descriptor of the base
        return cls

    return make
