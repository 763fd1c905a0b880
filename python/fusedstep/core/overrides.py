"""Which hyperparameters hold for which parameter: overrides are matched with keys, and fill the table of a plan."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusedstep import _cpu

from .hyperparameters import Range, check_clips, evaluated, rule_hypers
from .progress import Progress, listed

__all__ = ["Matching", "Settings", "match"]


class Settings(NamedTuple):
    """All hyperparameters of an optimizer as they were at one moment, and what its class says of them."""

    values: dict[str, Any]
    overrides: Mapping[Hashable, Mapping[str, Any]]
    rule: str
    ranges: Mapping[str, Range]
    derived: Mapping[str, Callable[..., float]]

    def under(self, overrides: tuple[Hashable, ...]) -> dict[str, Any]:
        """Return the hyperparameters under some of the overrides, the strongest last."""
        return self.values | {name: v for key in overrides for name, v in self.overrides[key].items()}


class Layer:
    """Hyperparameters that parameters share because they have the same overrides."""

    def __init__(self, settings: Settings, overrides: tuple[Hashable, ...]) -> None:
        self.overrides, self.values = overrides, settings.under(overrides)
        check_clips(self.values, f"overrides {', '.join(map(repr, overrides))}: ")
        self._settings = settings
        self.scheduled = {name: value for name, value in self.values.items() if callable(value)}
        self._fixed = [] if self.scheduled else self._hypers(self.values)

    def at(self, done: int) -> list[Any]:
        """Return the hyperparameters as the rule takes them in the update that follows `done` others."""
        return self._fixed or self._hypers(self.values | evaluated(self.scheduled, done, self._settings.ranges))

    def _hypers(self, values: dict[str, Any]) -> list[Any]:
        return rule_hypers(_cpu.rules[self._settings.rule].hypers, values, self._settings.derived)


class Matching(NamedTuple):
    """The parameters of a plan, and the layer of each."""

    settings: Settings
    keys: list[Hashable]
    layers: list[Layer]
    layer_of: npt.NDArray[np.int64]  # index of the layer of each key
    is_scheduled: bool

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
        plan.set_hypers([self.layers[i].at(t) for i, t in rows], row_of, self.settings.values["skip_nonfinite"])


def match(
    settings: Settings, keys: list[Hashable], seen_before: Iterable[Hashable], before: Matching | None
) -> Matching:
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
    before : Matching or None
        The last one of these keys, which still holds where overrides have not changed.

    Raises
    ------
    ValueError
        If an override stands for no key, or asks for two ways of clipping.
    """
    overrides = settings.overrides
    if before is not None and overrides is before.settings.overrides:
        combinations, layer_of = [layer.overrides for layer in before.layers], before.layer_of
    else:
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
        combinations, layer_of = list(place), np.array([place[some] for some in found], np.int64)
    layers = [Layer(settings, combination) for combination in combinations]
    return Matching(settings, keys, layers, layer_of, any(layer.scheduled for layer in layers))
