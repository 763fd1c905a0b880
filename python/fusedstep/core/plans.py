"""The plans of an optimizer: one for each list of parameters that it steps, found again by the keys."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedstep import _cpu

__all__ = ["Planned", "Plans", "mark_of"]

_MOST = 4096  # plans that are kept: loops over the layers of a model have one for each


@dataclass(slots=True, eq=False)
class Planned:
    """A plan, the clock of each of its tensors, and the hyperparameters that it was told."""

    plan: _cpu.Plan
    clock_index: npt.NDArray[np.int64]
    matching: Any  # a Matching of overrides.py
    origins: dict[Hashable, int] | None = None  # where its tensors are parts of others
    told: object = None  # which hyperparameters the plan has been told; None where they change with every step


class Plans:
    """Plans by the mark of their parameters. A plan is a cache: without it, a step is only slower."""

    def __init__(self, captured: Iterable[_cpu.Plan] = ()) -> None:
        self._by_mark: dict[Hashable, Planned] = {}
        self.now: Planned | None = None  # the plan of the last step, which knows the clocks
        self.captured = list(captured)  # plans of earlier steps that CUDA graphs may repeat

    def copy(self) -> "Plans":
        """Return the same plans, for a progress that may be given up."""
        other = Plans(self.captured)
        other._by_mark, other.now = dict(self._by_mark), self.now
        return other

    def find(self, mark: Hashable) -> Planned | None:
        """Return the plan for parameters with a mark, if it is not the one in use."""
        found = self._by_mark.get(mark)
        return None if found is self.now else found

    def use(self, planned: Planned) -> None:
        """Let a plan be the one that knows the clocks."""
        if planned is not self.now:
            self.leave()
            self.now = planned

    def add(self, mark: Hashable, planned: Planned) -> None:
        """Keep a plan, in place of one with its mark."""
        gone = [self._by_mark.pop(mark, None)]
        if len(self._by_mark) >= _MOST:
            gone.append(self._by_mark.pop(next(iter(self._by_mark))))
        self.captured += [some.plan for some in gone if some is not None and some.plan.was_captured]
        self._by_mark[mark] = planned

    def emptied(self) -> "Plans":
        """Return no plans, beside those that CUDA graphs may repeat."""
        return Plans(self.captured + [some.plan for some in self._by_mark.values() if some.plan.was_captured])

    def drop(self) -> None:
        """Forget all plans but those that CUDA graphs may repeat."""
        self.leave()
        self.captured = self.emptied().captured
        self.now = None
        self._by_mark = {}

    def refresh(self) -> None:
        """Bring the clocks to host memory, where only a GPU knows them."""
        if self.now is not None:
            self.now.plan.refresh()

    def leave(self) -> None:
        """Bring the clocks to host memory, from where the next plan takes them."""
        if self.now is not None:
            self.now.plan.leave()

    def wait(self) -> None:
        """Wait until steps on a GPU have left the arrays as they will be."""
        if self.now is not None:
            self.now.plan.wait()


def mark_of(params: Any) -> Hashable:
    """Return what tells most lists of parameters apart without a look at each: the number of items, and two keys."""
    if isinstance(params, dict):
        return dict, len(params), next(iter(params), None), next(reversed(params), None)
    if isinstance(params, (list, tuple)):
        return list, len(params)
    return type(params).__qualname__
