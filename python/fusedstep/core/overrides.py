"""Which hyperparameters hold for which parameter: overrides are matched with keys, and fill the table of a plan."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusedstep import _cpu

from .hyperparameters import CLIPS, Range, Recipe, check_clips, evaluated
from .progress import Progress, is_lasting, listed

__all__ = ["Group", "Matching", "Noted", "Settings", "has_functions", "match", "noted", "recalled", "where"]


@dataclass(frozen=True, repr=False)
class where:  # noqa: N801 (a word in a mapping)
    """
    A key of `overrides`: the parameters of which a function is true, or a key or pattern that may fit none.

    Parameters
    ----------
    condition : callable or hashable
        A function of the key and the array of a parameter that returns True or False. It is asked when parameters are
        new, not in every step, and can be pickled and compared with others if it is not a lambda. Or a key of a
        parameter, or a glob pattern of such keys.
    optional : bool
        Whether it is fine that no parameter fits. Otherwise this is an error, because it usually is a mistake.

    Raises
    ------
    TypeError
        If `optional` is not True or False.

    Examples
    --------
    No decay of biases and scales, and a slow head, where there is one:

    >>> import numpy as np, fusedstep as fs
    >>> opt = fs.AdamW(
    ...     lr=0.01,
    ...     overrides={
    ...         fs.where(lambda key, p: p.ndim < 2): {"weight_decay": 0.0},
    ...         fs.where("head/*", optional=True): {"lr": 0.001},
    ...     },
    ... )
    >>> for group in opt.groups({"w": np.zeros((3, 2)), "b": np.zeros(2), "scale": np.ones(2)}):
    ...     print(group)
    Group(hyperparameters={}, keys=['w'])
    Group(hyperparameters={'weight_decay': 0.0}, keys=['b', 'scale'])
    """

    condition: Callable[[Hashable, Any], bool] | Hashable
    optional: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.optional, bool):
            raise TypeError(f"optional is {self.optional!r}, expected True or False")

    def __repr__(self) -> str:
        condition = _name(self.condition) if callable(self.condition) else repr(self.condition)
        return f"where({condition}{', optional=True' * self.optional})"


where.__module__ = "fusedstep"  # where it is public, so that pickles outlive a move of this file


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


class Group(NamedTuple):
    """Parameters with the same hyperparameters."""

    hyperparameters: dict[str, Any]  # those that differ from the optimizer's
    keys: list[Hashable]


class Settings(NamedTuple):
    """All hyperparameters of an optimizer as they were at one moment, and what its class says of them."""

    values: dict[str, Any]
    overrides: Mapping[Hashable, Mapping[str, Any]]
    rule: str
    ranges: Mapping[str, Range]
    recipes: tuple[Recipe, ...]  # of the rule's hyperparameters, which are a row of the table

    def own(self, overrides: Iterable[Hashable]) -> dict[str, Any]:
        """Return the hyperparameters that some of the overrides set, the strongest override last."""
        return {name: value for key in overrides for name, value in self.overrides[key].items()}


class Layer:
    """What parameters with the same overrides have of their own: hyperparameters, and numbers in a row of the table."""

    def __init__(self, settings: Settings, overrides: tuple[Hashable, ...]) -> None:
        self.overrides, self.own = overrides, settings.own(overrides)
        values = settings.values | self.own
        check_clips(values, f"overrides {', '.join(map(repr, overrides))}: ")
        self._recipes = [(i, r) for i, r in enumerate(settings.recipes) if not self.own.keys().isdisjoint(r.fields)]
        fields = {field for _, recipe in self._recipes for field in recipe.fields}
        # Hyperparameters of the optimizer whose change makes another layer of this one.
        self.depends_on = fields.union(CLIPS if self.own else ()) - self.own.keys()
        self._ranges = settings.ranges
        self.scheduled = {name: value for name, value in self.own.items() if callable(value)}
        changing = any(callable(values[field]) for field in fields)
        self._numbers = None if changing else [(i, recipe.value(values)) for i, recipe in self._recipes]

    def row(self, values: dict[str, Any], row: list[Any], done: int) -> list[Any]:
        """
        Return the row of the layer in the update that follows `done` others.

        Parameters
        ----------
        values : dict
            The hyperparameters of the optimizer in this update.
        row : list
            Their row, which becomes that of the layer in a copy.
        """
        numbers = self._numbers
        if numbers is None:
            values = values | self.own | evaluated(self.scheduled, done, self._ranges)
            numbers = [(i, recipe.value(values)) for i, recipe in self._recipes]
        if numbers:
            row = row.copy()
            for i, number in numbers:
                row[i] = number
        return row


class Matching(NamedTuple):
    """The parameters of a plan, and the layer of each."""

    settings: Settings
    row: list[Any]  # of the optimizer's hyperparameters; None where schedules have a part
    scheduled: dict[str, Any]  # the schedules among them
    keys: list[Hashable]
    layers: list[Layer]
    layer_of: npt.NDArray[np.int64]  # index of the layer of each key
    used: set[Hashable]  # overrides that have fitted a parameter, now or before

    @classmethod
    def of_nothing(cls, settings: Settings) -> "Matching":
        """Return the matching of a plan without parameters."""
        return cls(settings, *_row(settings), [], [], np.zeros(0, np.int64), set())

    def can_renew(self, settings: Settings) -> bool:
        """Return whether plan and arrays may stay as they are with other settings: no other rule, no new function."""
        same_overrides = settings.overrides is self.settings.overrides
        return settings.rule == self.settings.rule and (same_overrides or not has_functions(settings.overrides))

    @property
    def is_scheduled(self) -> bool:
        """Whether any hyperparameter changes from step to step."""
        return bool(self.scheduled) or any(layer.scheduled for layer in self.layers)

    def values(self) -> list[dict[str, Any]]:
        """Return all hyperparameters of each layer."""
        return [self.settings.values | layer.own for layer in self.layers]

    def groups(self) -> list[Group]:
        """Return the keys of parameters with the same hyperparameters together."""
        found: list[Group] = []
        for i, layer in enumerate(self.layers):
            values = self.settings.values
            own = {name: value for name, value in layer.own.items() if value != values[name]}
            group = next((some for some in found if some.hyperparameters == own), None)
            if group is None:
                found.append(group := Group(own, []))
            group.keys.extend(self.keys[k] for k in np.flatnonzero(self.layer_of == i))
        return found

    def hand_over(self, plan: _cpu.Plan, progress: Progress, clock_index: npt.NDArray[np.int64]) -> None:
        """Fill the plan's table of hyperparameters; a layer with schedules has a row for each step count in use."""
        rows = [(i, 0) for i in range(len(self.layers))]
        row_of = self.layer_of
        if self.is_scheduled:
            done = progress.clocks["t"][clock_index]
            first = int(done[0]) if done.size else 0
            rows = [(i, first) for i, _ in rows]
            if done.size > 1 and (done != first).any():
                counts, count_of = np.unique(done, return_inverse=True)
                pairs, row_of = np.unique(row_of * counts.size + count_of, return_inverse=True)
                rows = [(int(pair) // counts.size, int(counts[pair % counts.size])) for pair in pairs]
        common = {t: self._at(t) for t in {t for _, t in rows}}
        table = [self.layers[i].row(*common[t], t) for i, t in rows]
        values = self.settings.values
        plan.set_hypers(table, row_of, values["skip_nonfinite"], values["measure"] == "update")

    def _at(self, done: int) -> tuple[dict[str, Any], list[Any]]:
        """Return the optimizer's hyperparameters, and their row, in the update that follows `done` others."""
        values, row, recipes, ranges = self.settings.values, self.row, self.settings.recipes, self.settings.ranges
        if self.scheduled:
            values = values | evaluated(self.scheduled, done, ranges)
            row = [recipe.value(values) if x is None else x for x, recipe in zip(row, recipes, strict=True)]
        return values, row


def _row(settings: Settings) -> tuple[list[Any], dict[str, Any]]:
    scheduled = {name: value for name, value in settings.values.items() if callable(value)}
    row = [
        recipe.value(settings.values) if scheduled.keys().isdisjoint(recipe.fields) else None
        for recipe in settings.recipes
    ]
    return row, scheduled


def match(
    settings: Settings,
    keys: list[Hashable],
    params: Any,
    seen_before: Iterable[Hashable],
    before: Matching,
) -> Matching:
    """
    Find out which overrides concern which parameter: patterns and functions first, and last, as the strongest, its key.

    Parameters
    ----------
    settings : Settings
        The present hyperparameters.
    keys : list
        The keys of a plan.
    params : array, sequence or mapping of arrays
        The parameters that have these keys. They are not needed where `before` can be renewed.
    seen_before : iterable
        Keys of earlier steps, which an override may still stand for.
    before : Matching
        The last one: where neither overrides nor keys have changed, only layers whose hyperparameters have changed are
        made anew.

    Raises
    ------
    TypeError
        If the function of an override returns something other than True or False, or if stochastic rounding is asked of
        a parameter whose key has another text in every process.
    ValueError
        If an override stands for no key, or asks for two ways of clipping; or if the function of an override raises.
    """
    overrides, row, scheduled = settings.overrides, *_row(settings)
    if overrides is before.settings.overrides and keys is before.keys:
        was, layers = before.settings, before.layers
        changed = {name for name, value in settings.values.items() if value is not was.values[name]}
        if changed:
            layers = [
                layer if layer.depends_on.isdisjoint(changed) else Layer(settings, layer.overrides) for layer in layers
            ]
        matching = before._replace(settings=settings, row=row, scheduled=scheduled, layers=layers)
        if "rounding" in changed:
            _check_noise(matching)
        return matching

    found = concerning(overrides, keys, _cpu.leaves(params)[1] if has_functions(overrides) else ())
    used = {o for some in found for o in some}
    used |= before.used if overrides is before.settings.overrides else set()
    if any(o not in used and not _is_optional(o) for o in overrides):
        patterns = {o: some for o, some in overrides.items() if not _is_function(o)}
        used |= {o for some in concerning(patterns, list(seen_before), ()) for o in some}
    for o in overrides:
        if o not in used and not _is_optional(o):
            wanted = (
                "a function that is true of some" if _is_function(o) else f"one of {listed(keys)} or a pattern of them"
            )
            raise ValueError(
                f"overrides[{o!r}] fits no parameter, expected {wanted}; where(..., optional=True) may fit none, and "
                "where(function) asks a function"
            )
    place = {combination: i for i, combination in enumerate(dict.fromkeys(found))}
    layer_of = np.array([place[some] for some in found], np.int64)
    matching = Matching(settings, row, scheduled, keys, [Layer(settings, some) for some in place], layer_of, used)
    _check_noise(matching)
    return matching


def _check_noise(matching: Matching) -> None:
    """Refuse stochastic rounding where a key does not last: its random bits would be others in every process."""
    for i, values in enumerate(matching.values()):
        if values["rounding"] == "stochastic":
            for k in np.flatnonzero(matching.layer_of == i):
                if not is_lasting(key := matching.keys[k]):
                    raise TypeError(
                        f"params has a key of type {type(key).__name__}, whose text is another in every process, "
                        "expected a string, number, bool, None, or a tuple of them for stochastic rounding"
                    )


def concerning(
    overrides: Iterable[Hashable], keys: list[Hashable], arrays: Sequence[Any]
) -> list[tuple[Hashable, ...]]:
    """Return the overrides that concern each key, the strongest last."""
    exact: dict[Hashable, list[Hashable]] = {}
    loose = []  # functions, and patterns of keys
    for o in overrides:
        condition = o.condition if isinstance(o, where) else o
        if _is_function(o):
            loose.append((o, condition))
            continue
        exact.setdefault(condition, []).append(o)
        if isinstance(condition, str) and set(condition) & set("*?["):
            loose.append((o, condition))

    def fits(o: Hashable, condition: Any, i: int, key: Hashable) -> bool:
        if _is_function(o):
            return arrays[i] is not None and _asked(o, condition, key, arrays[i])
        return condition != key and isinstance(key, str) and fnmatchcase(key, condition)

    return [
        (*(o for o, condition in loose if fits(o, condition, i, key)), *exact.get(key, ()))
        for i, key in enumerate(keys)
    ]


def _asked(o: Hashable, function: Callable[[Hashable, Any], bool], key: Hashable, array: Any) -> bool:
    try:
        found = function(key, array)
    except Exception as error:
        raise ValueError(f"overrides[{o!r}] asked of params[{key!r}] raised {type(error).__name__}: {error}") from error
    if not isinstance(found, (bool, np.bool_)):
        kind = type(found).__name__
        raise TypeError(f"overrides[{o!r}] asked of params[{key!r}] is of type {kind}, expected True or False")
    return bool(found)


def _is_function(override: Hashable) -> bool:
    """Return whether the key of an override is a function, which needs arrays."""
    return isinstance(override, where) and callable(override.condition)


def has_functions(overrides: Iterable[Hashable]) -> bool:
    """Return whether the keys of some overrides are functions, which need arrays."""
    return any(map(_is_function, overrides))


def _is_optional(override: Hashable) -> bool:
    return isinstance(override, where) and override.optional


# Functions in state dicts.


@dataclass(frozen=True)
class Noted:
    """Stands in a state dict for a function that cannot be saved: its name, and its place among those of overrides."""

    name: str
    place: int


def noted(overrides: Iterable[Hashable]) -> list[Hashable]:
    """Return keys of overrides, with what stands in a state dict for functions."""
    places = count()
    return [
        where(Noted(_name(o.condition), next(places)), o.optional)
        if isinstance(o, where) and callable(o.condition)
        else o
        for o in overrides
    ]


def recalled(key: Hashable, overrides: Iterable[Hashable]) -> Hashable:
    """Return the key of an override in a state dict, with its function from among the present `overrides`."""
    if not (isinstance(key, where) and isinstance(key.condition, Noted)):
        return key
    present = list(overrides)
    for mine, other in zip(present, noted(present), strict=True):
        if other == key:
            return mine
    raise ValueError(f"overrides[{key!r}] was a function that cannot be saved, expected the same function to be there")
