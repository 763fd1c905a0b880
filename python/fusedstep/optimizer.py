"""
What all optimizers have in common: hyperparameters, step counts and states by key, and the step.

It knows no formula, pointer or device: it hands arrays to the plan of an engine, and numbers to its rules.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from threading import Lock
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from . import _cpu
from .hyperparameters import check, declared, numbers

__all__ = ["Optimizer"]

Array = npt.NDArray[Any]

_CLOCK = np.dtype([("t", np.int64), ("product", np.float64)])
_LINE = 64


def _new_state(shape: tuple[int, ...], dtype: npt.DTypeLike, value: float) -> Array:
    # A view, aligned to cache lines. Nobody can resize it, and the plan's reference to its owner keeps that as it is.
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    owner = np.zeros(size + _LINE, np.uint8)
    start = -owner.ctypes.data % _LINE
    state = owner[start : start + size].view(dtype).reshape(shape)
    if value:
        with np.errstate(over="ignore"):
            state[...] = value
    return state


@dataclass(eq=False, kw_only=True)
class Optimizer:
    """
    What all optimizers share: hyperparameters that may change between steps, states by key, and the step.

    Parameters
    ----------
    weight_decay : float
        Strength of the decay: added to the gradient as ``weight_decay * p`` (L2), or, where `decoupled`, subtracted
        from the parameter as ``lr * weight_decay * p`` beside the update (Loshchilov & Hutter 2019).
    decoupled : bool
        Whether the decay bypasses the rule.
    maximize : bool
        Whether to climb: the gradient is negated first.
    overrides : mapping
        Key of a parameter, or glob pattern of such keys -> hyperparameters that hold for these parameters only. Later
        patterns win over earlier ones, and exact keys over patterns.

    Raises
    ------
    TypeError
        If an option does not exist or has a wrong type, at construction or when it is set.
    ValueError
        If a value is out of range, or if an override asks for another rule than the rest.

    Notes
    -----
    `lr` may be a function: it is called with the number of finished updates, 0 at the first, and returns the rate.
    An instance makes one step at a time. It can be pickled, if its `lr` can, and copied; parameters are not part of it.
    """

    weight_decay: float = 0.0
    decoupled: bool = False
    maximize: bool = False
    overrides: Mapping[Hashable, Mapping[str, Any]] = field(default_factory=dict)

    rule: ClassVar[str]
    accumulator: ClassVar[str | None] = None  # the state that starts at initial_accumulator
    always_decoupled: ClassVar[bool] = False
    _patterns: ClassVar[list[str]] = []  # of the overrides; an instance has its own

    def __post_init__(self) -> None:
        self._turn = Lock()  # one step at a time
        self._clock_of: dict[Hashable, int] = {}
        self._clocks = np.zeros(0, _CLOCK)
        self._state: dict[Hashable, Mapping[str, Array]] = {}
        self._plan: _cpu.Plan | None = None
        self._plan_rule = ""
        self._layers: list[tuple[Hashable, ...]] = []  # the combinations of overrides in use
        self._layer_of = self._clock_index = np.zeros(0, np.int64)  # of each tensor of the plan
        self._stale = True
        self._current_rule()

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            value = self._checked(name, value)
            object.__setattr__(self, "_stale", True)
            if name == "overrides":
                object.__setattr__(self, "_plan", None)
                object.__setattr__(self, "_patterns", [o for o in value if isinstance(o, str) and set(o) & set("*?[")])
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name} cannot be deleted, expected a new value")

    @classmethod
    def _checked(cls, name: str, value: Any, label: str = "") -> Any:
        hints = declared(cls)
        if name == "overrides" and not label:
            return cls._frozen(value)
        fixed = {"decoupled"} if cls.always_decoupled else set()
        if name not in hints or name in fixed:
            listed = ", ".join(known for known in hints if known not in fixed)
            raise TypeError(f"{label or name} is no hyperparameter of {cls.__name__}, expected one of {listed}")
        if name == "lr" and callable(value):
            return value
        return check(name, value, hints[name], label)

    @classmethod
    def _frozen(cls, overrides: Any) -> Mapping[Hashable, Mapping[str, Any]]:
        # Read-only, because a change inside would go unnoticed.
        if not isinstance(overrides, Mapping) or not all(isinstance(some, Mapping) for some in overrides.values()):
            raise TypeError(f"overrides is {overrides!r}, expected a mapping: key or pattern -> {{name: value}}")
        return MappingProxyType(
            {
                key: MappingProxyType({n: cls._checked(n, v, f"overrides[{key!r}][{n!r}]") for n, v in some.items()})
                for key, some in overrides.items()
            }
        )

    # What the rules want to know.

    def _rule(self, values: Mapping[str, Any]) -> str:
        """Return the name of the rule that these hyperparameters ask for."""
        del values
        return self.rule

    def _values(self, layer: tuple[Hashable, ...] = ()) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for key in layer:
            values |= self.overrides[key]
        return values

    def _layer(self, key: Hashable) -> tuple[Hashable, ...]:
        """Return the keys of `overrides` that concern the parameter `key`, the strongest last."""
        matches = [o for o in self._patterns if o != key and isinstance(key, str) and fnmatchcase(key, o)]
        return (*matches, key) if key in self.overrides else tuple(matches)

    def _current_rule(self) -> str:
        rule = self._rule(self._values())
        for key in self.overrides:
            other = self._rule(self._values((key,)))
            if other != rule:
                raise ValueError(
                    f"overrides[{key!r}] asks for the rule {other}, expected hyperparameters of {rule} like the others"
                )
        return rule

    # Steps.

    def step(self, params: Any, grads: Any) -> None:
        """
        Update parameters in place, once.

        Parameters
        ----------
        params : array, sequence or mapping of arrays
            The parameters, float32 or float64, of any shape, C-contiguous, writable. Updated in place.
        grads : like `params`
            Their gradients, each of the dtype and shape of its parameter. A gradient that is None, or missing from a
            mapping, leaves its parameter, states and step count alone. Gradients are only read.

        Raises
        ------
        TypeError
            If something is not an array, or has a dtype or byte order that is not wanted; if `grads` is another kind
            of container than `params`; or if `lr` computes something that is no number.
        ValueError
            If an array is read-only, of another shape, not contiguous, unaligned, or overlaps another one of the
            call or a state; if `grads` has another length than `params`, or a key that `params` lacks; if `lr`
            computes a number out of range; or if an override fits no parameter.
        BufferError
            If an array of another library does not export its memory.
        RuntimeError
            If an array is on a GPU, if this optimizer is already in a step, or if `params` changes during the call.

        Notes
        -----
        Everything is checked before the first write: a refused step changes nothing.
        """
        if not self._turn.acquire(False):
            raise RuntimeError("this optimizer is already in a step, expected one step at a time")
        try:
            if self._stale:
                self._refresh()
            if self._plan is None or not self._plan.run(params, grads):
                self._replan(params, grads)
        finally:
            self._turn.release()

    def _refresh(self) -> None:
        """Hand changed hyperparameters to the plan."""
        if self._current_rule() != self._plan_rule:
            self._plan = None
        if self._plan is not None:
            self._hand_over(self._plan, self._clocks["t"][self._clock_index])

    def _hand_over(self, plan: _cpu.Plan, done: npt.NDArray[np.int64]) -> None:
        """Fill the plan's table of hyperparameters; a scheduled rate has a row for each step number in use."""
        layers = [self._values(layer) for layer in self._layers]
        scheduled = any(callable(values["lr"]) for values in layers)
        first = int(done[0]) if done.size else 0
        rows = [(i, first) for i in range(len(layers))]
        row_of = self._layer_of
        if scheduled and (done != first).any():
            pairs, row_of = np.unique(np.stack([self._layer_of, done], axis=1), axis=0, return_inverse=True)
            rows = [(int(i), int(t)) for i, t in pairs]
        names = _cpu.rules[self._plan_rule][2]
        table = [numbers(names, self._at(layers[i], t)) for i, t in rows]
        plan.set_hypers(np.array(table, np.float64).reshape(len(rows), len(names)), row_of.reshape(-1))
        self._stale = scheduled

    @staticmethod
    def _at(values: dict[str, Any], done: int) -> dict[str, Any]:
        """Return the hyperparameters at the update that follows `done` others."""
        if callable(values["lr"]):
            return values | {"lr": check("lr", values["lr"](done), float, f"lr({done})")}
        return values

    def _replan(self, params: Any, grads: Any) -> None:
        """Make a step with tensors that are new: look at them all, make their states, and remember them."""
        self._plan, self._plan_rule = None, self._current_rule()
        number, names, _ = _cpu.rules[self._plan_rule]
        plan = _cpu.Plan(number, params)
        seen = plan.check(params, grads)
        keys = plan.keys
        self._match_overrides(keys)

        clock_of = dict(self._clock_of)
        for key in keys:
            clock_of.setdefault(key, len(clock_of))
        clocks = np.zeros(len(clock_of), _CLOCK)
        clocks["product"] = 1
        clocks[: len(self._clocks)] = self._clocks
        clock_index = np.array([clock_of[key] for key in keys], np.int64)

        states = {}
        for key, look in zip(keys, seen, strict=True):
            state = dict(self._state.get(key, {}))
            if look is not None:
                values = self._values(self._layer(key))
                for name in names:
                    if name not in state:
                        value = values["initial_accumulator"] if name == self.accumulator else 0.0
                        state[name] = _new_state(*look, value)
            states[key] = state
        plan.bind(
            [tuple(s[n] for n in names) if s.keys() >= set(names) else None for s in states.values()],
            clocks,
            clock_index,
        )
        self._hand_over(plan, clocks["t"][clock_index])

        if not plan.run(params, grads):
            raise RuntimeError("params or grads changed while they were looked at, expected them to stay as they are")
        self._plan, self._clocks, self._clock_of, self._clock_index = plan, clocks, clock_of, clock_index
        self._state |= {key: MappingProxyType(state) for key, state in states.items() if state}

    def _match_overrides(self, keys: list[Hashable]) -> None:
        layers = [self._layer(key) for key in keys]
        used = {o for layer in layers for o in layer} | {o for key in self._clock_of for o in self._layer(key)}
        for key in self.overrides:
            if key not in used:
                raise ValueError(f"overrides[{key!r}] fits no parameter, expected one of {keys} or a pattern of them")
        self._layers = list(dict.fromkeys(layers))
        number = {layer: i for i, layer in enumerate(self._layers)}
        self._layer_of = np.array([number[layer] for layer in layers], np.int64)

    # What it remembers.

    @property
    def state(self) -> Mapping[Hashable, Mapping[str, Array]]:
        """The states: key -> name -> array, beside its parameter. The arrays may be written to, not replaced."""
        return MappingProxyType(self._state)

    @property
    def t(self) -> Mapping[Hashable, int]:
        """The number of finished updates of each parameter."""
        counts = self._clocks["t"].tolist()
        return MappingProxyType({key: counts[i] for key, i in self._clock_of.items()})

    def __getstate__(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return {
            "hyperparameters": values | {"overrides": {key: dict(some) for key, some in self.overrides.items()}},
            "clock_of": self._clock_of,
            "clocks": self._clocks,
            "state": {key: dict(state) for key, state in self._state.items()},
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        clock_of, clocks = dict(saved["clock_of"]), np.array(saved["clocks"])
        if clocks.dtype != _CLOCK or sorted(clock_of.values()) != list(range(len(clocks))):
            raise ValueError("clocks is not what was saved, expected a step number and a product for each key")
        if not ((clocks["t"] >= 0) & (clocks["t"] < 2**62) & (clocks["product"] >= 0) & (clocks["product"] <= 1)).all():
            raise ValueError("clocks is out of range, expected step numbers from 0 and products from 0 to 1")
        type(self).__init__(self, **saved["hyperparameters"])
        self._clock_of, self._clocks = clock_of, clocks
        for key, state in saved["state"].items():
            copies = {name: _new_state(array.shape, array.dtype, 0) for name, array in state.items()}
            for name, array in state.items():
                copies[name][...] = array
            self._state[key] = MappingProxyType(copies)
