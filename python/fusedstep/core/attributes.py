"""Hyperparameters as attributes of an optimizer: checked when they are set, and what a class says of them."""

import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import MISSING, Field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, overload

from fusedstep import _cpu

from .arrays import is_on_gpu
from .containers import Bound
from .hyperparameters import (
    CLIPS,
    RANGES,
    Range,
    Recipe,
    Scheduled,
    arguments,
    check,
    check_clips,
    declared,
    evaluated,
    plain,
    recipes,
    shown,
)
from .memory import Averages
from .newcomers import wanted
from .overrides import Group, Matching, Settings, match
from .progress import Progress, listed

__all__ = ["Attributes", "Average"]


_WITHOUT: Any = object()  # stands for a key that is not given, since None may be one


class Average:
    """The attribute `ema`: what is set is the decay, what is read are the averages."""

    # Reading gives `Averages`, whatever was assigned. The overloads tell type checkers so.
    @overload
    def __get__(self, optimizer: None, owner: Any = None) -> None: ...
    @overload
    def __get__(self, optimizer: "Attributes", owner: Any = None) -> Averages: ...
    def __get__(self, optimizer: "Attributes | None", owner: Any = None) -> Averages | None:
        if optimizer is None:
            return None  # the default
        return Averages(optimizer)

    def __set__(self, optimizer: Any, value: Scheduled | Averages | None) -> None:
        optimizer._ema = value


class ReadOnly(dict[Hashable, Any]):
    """A dictionary that nobody can change, because a change would go unnoticed; its copies and pickles are plain."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("overrides is read-only inside, expected a new mapping: optimizer.overrides = {...}")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class Attributes:
    """The base of dataclasses whose fields are hyperparameters."""

    # What each class of optimizers says of itself.
    rule: ClassVar[str]  # the name of the class's rule in the engine
    other_rules: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # further rules -> hyperparameters that ask for each
    accumulator: ClassVar[str | None] = None  # the state that starts at `initial_accumulator`
    starts: ClassVar[Mapping[str, float]] = {}  # numbers that other states start at, in place of 0
    always_decoupled: ClassVar[bool] = False
    ranges: ClassVar[Mapping[str, Range]] = RANGES  # ranges of hyperparameters, and of the rule's memory
    derived: ClassVar[Mapping[str, Callable[..., float]]] = {}  # what a rule takes -> a function of hyperparameters
    torch_states: ClassVar[tuple[tuple[str, str], ...]] = ()  # our name and PyTorch's, of states and memory

    if TYPE_CHECKING:
        lr: Scheduled  # a field of every class that has a rule, each with a default of its own
    overrides: Mapping[Hashable, Mapping[str, Any]]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    _progress: Progress
    _matching: Matching  # of the last step
    _ema: Any = None  # the decay of the averages
    _ready: bool = False  # whether all fields have been set
    _version: object  # another one whenever a hyperparameter is set

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Refuse arguments that the class does not have, in words for those who come from another library."""
        if args or options:
            names = inspect.signature(cls).parameters
            if not any(each.kind is each.VAR_KEYWORD for each in names.values()):
                known = [name for name in (*cls._own_first(), "overrides") if name in names]
                for name in options:
                    if name not in names:
                        raise TypeError(
                            f"{name} is no hyperparameter of {cls.__name__}, expected {wanted(name, known)}"
                        )
            if args and next(iter(names)) == "lr" and ("lr" in options or _holds_many(args[0])):
                beside = " beside another lr" if "lr" in options else ""
                raise TypeError(f"lr is {shown(args[0])}{beside}, expected {wanted('params', ())}")
        return super().__new__(cls)

    def __init_subclass__(cls, **options: Any) -> None:
        """Give a class its `__repr__`, in place of which `dataclass` would make another."""
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):
            cls.__repr__ = Attributes.__repr__  # type: ignore[method-assign]

    def _begin(self, values: Mapping[str, Any]) -> None:
        """Become an optimizer without steps, whatever `__init__` a subclass has."""
        for name, value in values.items():
            setattr(self, name, value)

    def _added(self) -> dict[str, Any]:
        """Return the attributes that a subclass has added; their names begin with an underscore."""
        plain = type(self).__new__(type(self))
        plain._begin(self._arguments())
        return {name: value for name, value in vars(self).items() if name[0] == "_" and name not in vars(plain)}

    def __repr__(self) -> str:
        values, parts = self._values(), []
        known = {f.name: f for f in fields(self) if f.init}
        for name in (*self._own_first(), "overrides"):
            if name in known and not (known[name].kw_only and _is_default(values[name], known[name])):
                parts.append(f"{name}={shown(values[name]) if is_on_gpu(values[name]) else repr(values[name])}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
            return
        if isinstance(value, Averages) and not self._ready and value.of_a_run:
            raise ValueError(
                "ema is that of an optimizer that has made steps, whose states another would lack, expected a number: "
                "in place of dataclasses.replace, copy.deepcopy(optimizer) and set attributes of the copy"
            )
        value = self._checked(name, value)
        if name in CLIPS:
            check_clips({clip: getattr(self, clip) for clip in CLIPS} | {name: value})
        if self._ready and (name == "overrides" or (self.overrides and name in self._structural())):
            self._check_overrides(self._settings_with(**{name: value}))
        object.__setattr__(self, name, value)
        self._version = object()  # last, lest a step in another thread miss the change

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name} cannot be deleted, expected a new value")

    @classmethod
    def _checked(cls, name: str, value: Any, label: str = "") -> Any:
        """Return the checked value of an attribute or, where `label` names one, of an entry of an override."""
        hints = declared(cls)
        if name == "overrides" and not label:
            return cls._frozen(value)
        if name == "ema" and isinstance(value, Averages):
            value = value.decay
        fixed = {"decoupled"} if cls.always_decoupled else set()
        fixed |= {"skip_nonfinite", "measure"} if label else set()  # concern a step as a whole, never one parameter
        if name not in hints or name in fixed:
            known = wanted(name, [some for some in cls._own_first() if some not in fixed])
            raise TypeError(f"{label or name} is no hyperparameter of {cls.__name__}, expected {known}")
        if hints[name] is float and callable(value):
            return value
        if is_on_gpu(value) and hints[name] is float and name not in cls._needed_by_host():
            return value  # a number on a GPU, which each step reads
        return check(name, value, hints[name], label, cls.ranges)

    def _arguments(self) -> dict[str, Any]:
        """Return the hyperparameters as a constructor takes them."""
        now = self._values()
        return {f.name: now[f.name] for f in fields(self) if f.init}

    @classmethod
    def _own_first(cls) -> list[str]:
        """Return the names of hyperparameters: those that the class adds, then those that all classes have."""
        own = [f.name for f in fields(cls) if f.init and not f.kw_only]
        return own + [name for name in declared(cls) if name not in own]

    @classmethod
    def _needed_by_host(cls) -> set[str]:
        return {"initial_accumulator"}.union(*map(arguments, cls.derived.values()))

    @classmethod
    def _frozen(cls, overrides: Any) -> Mapping[Hashable, Mapping[str, Any]]:
        """Return overrides as mappings that are read-only, because a change inside would go unnoticed."""
        if not isinstance(overrides, Mapping):
            raise TypeError(
                f"overrides is {shown(overrides)}, expected a mapping: key, pattern or where(...) -> {{name: value}}"
            )
        for key, some in overrides.items():
            if not isinstance(some, Mapping):
                raise TypeError(f"overrides[{key!r}] is {shown(some)}, expected a mapping: name -> value")
        return ReadOnly(
            {
                key: ReadOnly({n: cls._checked(n, v, f"overrides[{key!r}][{n!r}]") for n, v in some.items()})
                for key, some in overrides.items()
            }
        )

    def groups(self, params: Any = None) -> list[Group]:
        """
        Tell which hyperparameters hold for which parameters.

        Parameters
        ----------
        params : array, sequence or mapping of arrays, optional
            Parameters as `step` takes them, by default those of the last step. Nothing is written.

        Returns
        -------
        list of (hyperparameters, keys)
            What `overrides` has made of the parameters: the hyperparameters that differ from those of the optimizer,
            and the keys of the parameters that they hold for.

        Raises
        ------
        TypeError, ValueError
            If `overrides` or `params` are such that `step` would refuse them.
        """
        settings, matching = self._settings_with(), self._matching
        if params is None and matching.can_renew(settings):
            return match(settings, matching.keys, None, (), matching).groups()
        if params is None:
            return matching.groups()
        params = params.params if isinstance(params, Bound) else params
        keys, _ = _cpu.leaves(params)
        return match(settings, keys, params, self._progress.clock_of, Matching.of_nothing(settings)).groups()

    def now(self, name: str, key: Hashable = _WITHOUT) -> Any:
        """
        Return the value of a hyperparameter in the next update: what schedules and overrides make of it.

        Parameters
        ----------
        name : str
            The hyperparameter, such as "lr".
        key : hashable, optional
            The key of a parameter of the last step. Without one, the value is that of the optimizer itself, after as
            many updates as the parameter with the most updates has made. On a GPU, the count waits for the steps.

        Returns
        -------
        float, bool, str or None
            The value. A number that is on a GPU stays there.

        Raises
        ------
        KeyError
            If no parameter of the last step has this key.
        TypeError
            If there is no hyperparameter of this name.
        """
        if name not in declared(type(self)):
            self._checked(name, None)
        counts, settings, own = self._progress.t, self._settings_with(), {}
        done = max(counts.values(), default=0)
        if key is not _WITHOUT:
            matching = self._matching
            if key not in matching.keys or key not in counts:
                raise KeyError(f"{key!r} had no part in the last step, expected one of {listed(matching.keys)}")
            if matching.can_renew(settings):
                matching = match(settings, matching.keys, None, (), matching)
            own, done = matching.layers[matching.layer_of[matching.keys.index(key)]].own, counts[key]
        return evaluated({name: (settings.values | own)[name]}, done, self.ranges)[name]

    def _values(self) -> dict[str, Any]:
        names = declared(type(self))
        return {name: getattr(self, "_ema" if name == "ema" else name) for name in names} | {
            "overrides": self.overrides
        }

    def _settings_with(self, **changes: Any) -> Settings:
        """Return the present hyperparameters, with changes."""
        values = self._values() | changes
        overrides, rule = values.pop("overrides"), self._rule(values)
        return Settings(values, overrides, rule, self.ranges, self._recipes(rule))

    def _check_overrides(self, settings: Settings) -> None:
        """Refuse overrides that ask for another rule than the other hyperparameters, or for a second way to clip."""
        for key in settings.overrides:
            own = settings.values | settings.own((key,))
            check_clips(own, f"overrides[{key!r}]: ")
            if (rule := self._rule(own)) != settings.rule:
                raise ValueError(
                    f"overrides[{key!r}] asks for the rule {rule}, expected hyperparameters of {settings.rule} like "
                    "the others"
                )

    @classmethod
    def _structural(cls) -> set[str]:
        """Return the hyperparameters that may clash with those of overrides."""
        return {*CLIPS}.union(*cls.other_rules.values())

    # The rule that hyperparameters ask for.

    def _rule(self, values: Mapping[str, Any]) -> str:
        """Return the name of the rule that hyperparameters ask for."""
        del values
        return self.rule

    def _identity(self) -> str:
        """Return what a state dict calls this optimizer."""
        return type(self).__name__

    def _present_rule(self) -> _cpu.Rule:
        return _cpu.rules[self._settings_with().rule]

    @classmethod
    @cache
    def _recipes(cls, rule: str) -> tuple[Recipe, ...]:
        return recipes(_cpu.rules[rule].hypers, declared(cls), cls.derived)

    @classmethod
    def _rules(cls) -> list[_cpu.Rule]:
        return [_cpu.rules[name] for name in (cls.rule, *cls.other_rules)]

    @classmethod
    def _torch_names(cls) -> dict[str, str]:
        """Return what PyTorch calls the states and memory of all rules; a name that is not there stays the same."""
        theirs = dict(cls.torch_states)
        return {name: theirs.get(name, name) for rule in cls._rules() for name in rule.states + rule.memory}


def _holds_many(value: Any) -> bool:
    """Return whether a value is a container or an array, as parameters are."""
    is_one = isinstance(value, str) or callable(value) or is_on_gpu(value) or plain(value) is not value
    return hasattr(value, "__iter__") and not is_one


def _is_default(value: Any, field: Field[Any]) -> bool:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return not is_on_gpu(value) and bool(value == default)
