"""Which hyperparameters hold for which parameter: overrides are matched with keys, and fill the table of a plan."""

from collections.abc import Hashable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusedstep import _cpu

from .hyperparameters import CLIPS, Range, Recipe, check_clips, evaluated
from .progress import Progress, listed

__all__ = ["Matching", "Settings", "match"]


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

    @classmethod
    def of_nothing(cls, settings: Settings) -> "Matching":
        """Return the matching of a plan without parameters."""
        return cls(settings, *_row(settings), [], [], np.zeros(0, np.int64))

    @property
    def is_scheduled(self) -> bool:
        """Whether any hyperparameter changes from step to step."""
        return bool(self.scheduled) or any(layer.scheduled for layer in self.layers)

    def values(self) -> list[dict[str, Any]]:
        """Return all hyperparameters of each layer."""
        return [self.settings.values | layer.own for layer in self.layers]

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
        plan.set_hypers(table, row_of, self.settings.values["skip_nonfinite"])

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


def match(settings: Settings, keys: list[Hashable], seen_before: Iterable[Hashable], before: Matching) -> Matching:
    """
    Find out which overrides concern which parameter: patterns first, and last, as the strongest, its own key.

    Parameters
    ----------
    settings : Settings
        The present hyperparameters.
    keys : list
        The keys of a plan.
    seen_before : iterable
        Keys of earlier steps, which an override may still stand for.
    before : Matching
        The last one: where neither overrides nor keys have changed, only layers whose hyperparameters have changed are
        made anew.

    Raises
    ------
    ValueError
        If an override stands for no key, or asks for two ways of clipping.
    """
    overrides, row, scheduled = settings.overrides, *_row(settings)
    if overrides is before.settings.overrides and keys is before.keys:
        was, layers = before.settings, before.layers
        changed = {name for name, value in settings.values.items() if value is not was.values[name]}
        if was.rule != settings.rule:
            layers = [Layer(settings, layer.overrides) for layer in layers]
        elif changed:
            layers = [
                layer if layer.depends_on.isdisjoint(changed) else Layer(settings, layer.overrides) for layer in layers
            ]
        return Matching(settings, row, scheduled, keys, layers, before.layer_of)

    patterns = [o for o in overrides if isinstance(o, str) and set(o) & set("*?[")]

    def concerning(key: Hashable) -> tuple[Hashable, ...]:
        matches = [o for o in patterns if o != key and isinstance(key, str) and fnmatchcase(key, o)]
        return (*matches, key) if key in overrides else tuple(matches)

    found = [concerning(key) for key in keys]
    used = {o for some in (*found, *map(concerning, seen_before)) for o in some}
    for key in overrides:
        if key not in used:
            raise ValueError(
                f"overrides[{key!r}] fits no parameter, expected one of {listed(keys)} or a pattern of them"
            )
    place = {combination: i for i, combination in enumerate(dict.fromkeys(found))}
    layer_of = np.array([place[some] for some in found], np.int64)
    return Matching(settings, row, scheduled, keys, [Layer(settings, some) for some in place], layer_of)
