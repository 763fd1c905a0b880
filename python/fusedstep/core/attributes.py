"""Hyperparameters as attributes of an optimizer: checked when they are set, and what a class says of them."""

from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from fusedstep import _cpu

from .arrays import is_on_gpu
from .hyperparameters import CLIPS, RANGES, Range, Scheduled, arguments, check, check_clips, declared
from .memory import Averages
from .overrides import Settings
from .progress import Progress

__all__ = ["Attributes", "Average"]


class Average:
    """The attribute `ema`: what is set is the decay, what is read are the averages."""

    def __get__(self, optimizer: Any, owner: Any = None) -> Any:
        if optimizer is None:
            return None  # the default
        return Averages(optimizer)

    def __set__(self, optimizer: Any, value: Scheduled | Averages | None) -> None:
        optimizer._ema = value


class Attributes:
    """The base of dataclasses whose fields are hyperparameters."""

    # What each class of optimizers says of itself.
    rule: ClassVar[str]  # the name of the class's rule in the engine
    other_rules: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # further rules -> hyperparameters that ask for each
    accumulator: ClassVar[str | None] = None  # the state that starts at `initial_accumulator`
    always_decoupled: ClassVar[bool] = False
    ranges: ClassVar[Mapping[str, Range]] = RANGES  # ranges of hyperparameters, and of the rule's memory
    derived: ClassVar[Mapping[str, Callable[..., float]]] = {}  # what a rule takes -> a function of hyperparameters
    torch_states: ClassVar[tuple[tuple[str, str], ...]] = ()  # our name and PyTorch's, of states and memory

    overrides: Mapping[Hashable, Mapping[str, Any]]
    _progress: Progress
    _ema: Any = None  # the decay of the averages
    _ready: bool = False  # whether all fields have been set
    _version: object  # another one whenever a hyperparameter is set

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
            return
        value = self._checked(name, value)
        if name in CLIPS:
            check_clips({clip: getattr(self, clip) for clip in CLIPS} | {name: value})
        if self._ready and (self.overrides or name == "overrides"):
            self._settings_with(**{name: value})  # refuses a value that clashes with an override
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
        fixed |= {"skip_nonfinite"} if label else set()  # concerns a step as a whole, never one parameter
        if name not in hints or name in fixed:
            choices = ", ".join(known for known in hints if known not in fixed)
            raise TypeError(f"{label or name} is no hyperparameter of {cls.__name__}, expected one of {choices}")
        if hints[name] is float and callable(value):
            return value
        if is_on_gpu(value) and hints[name] is float and name not in cls._needed_by_host():
            return value  # a number on a GPU, which each step reads
        return check(name, value, hints[name], label, cls.ranges)

    @classmethod
    def _needed_by_host(cls) -> set[str]:
        return {"initial_accumulator"}.union(*map(arguments, cls.derived.values()))

    @classmethod
    def _frozen(cls, overrides: Any) -> Mapping[Hashable, Mapping[str, Any]]:
        """Return overrides as mappings that are read-only, because a change inside would go unnoticed."""
        if not isinstance(overrides, Mapping) or not all(isinstance(some, Mapping) for some in overrides.values()):
            raise TypeError(f"overrides is {overrides!r}, expected a mapping: key or pattern -> {{name: value}}")
        return MappingProxyType(
            {
                key: MappingProxyType({n: cls._checked(n, v, f"overrides[{key!r}][{n!r}]") for n, v in some.items()})
                for key, some in overrides.items()
            }
        )

    def _values(self) -> dict[str, Any]:
        names = declared(type(self))
        return {name: getattr(self, "_ema" if name == "ema" else name) for name in names} | {
            "overrides": self.overrides
        }

    def _settings_with(self, **changes: Any) -> Settings:
        """Return the present hyperparameters, with changes, or refuse overrides that do not fit to them."""
        values = self._values() | changes
        settings = Settings(values, values["overrides"], self._rule(values), self.ranges, self.derived)
        for key in settings.overrides:
            own = settings.under((key,))
            check_clips(own, f"overrides[{key!r}]: ")
            if (rule := self._rule(own)) != settings.rule:
                raise ValueError(
                    f"overrides[{key!r}] asks for the rule {rule}, expected hyperparameters of {settings.rule} like "
                    "the others"
                )
        return settings

    # The rule that hyperparameters ask for.

    def _rule(self, values: Mapping[str, Any]) -> str:
        """Return the name of the rule that hyperparameters ask for."""
        del values
        return self.rule

    def _present_rule(self) -> _cpu.Rule:
        return _cpu.rules[self._settings_with().rule]

    @classmethod
    def _rules(cls) -> list[_cpu.Rule]:
        return [_cpu.rules[name] for name in (cls.rule, *cls.other_rules)]

    @classmethod
    def _torch_names(cls) -> dict[str, str]:
        """Return what PyTorch calls the states and memory of all rules; a name that is not there stays the same."""
        theirs = dict(cls.torch_states)
        return {name: theirs.get(name, name) for rule in cls._rules() for name in rule.states + rule.memory}
