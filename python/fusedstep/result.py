"""What a step found out about its gradients, at once or when somebody asks."""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, fields
from typing import Any
from weakref import ref

from . import _cpu

__all__ = ["PLAIN", "Pending", "Result", "Results"]


@dataclass(frozen=True, slots=True)
class Result:
    """
    What a step found out.

    On a GPU, reading it waits for the step; a step whose result is not read waits for nothing.

    Attributes
    ----------
    grad_norm : float or None
        Norm of all gradients of the step, unscaled and before clipping; None unless clipping by a norm or
        `skip_nonfinite` asked for it.
    skipped : bool
        Whether nothing was updated, because a gradient was not finite.
    nonfinite : hashable
        Key of the first parameter whose gradient was not finite, where the step was skipped; else None.
    """

    grad_norm: float | None = None
    skipped: bool = False
    nonfinite: Hashable = None


PLAIN = Result()


def told(plan: _cpu.Plan, found: tuple[float, int | None]) -> Result:
    """Return what a plan found as a result."""
    norm, at = found
    return Result(norm, at is not None, None if at is None else plan.keys[at])


class Pending(Result):
    """A result that is on a GPU until it is read. That of a step in a graph is that of its last replay."""

    __slots__ = ("__weakref__", "_found", "_plan", "_ticket")

    def __init__(self, plan: _cpu.Plan, ticket: int) -> None:
        for name, value in (("_plan", plan), ("_ticket", ticket), ("_found", None)):
            object.__setattr__(self, name, value)

    def __getattribute__(self, name: str) -> Any:
        if name in _NAMES:
            return getattr(self.read(), name)
        return object.__getattribute__(self, name)

    def read(self) -> Result:
        """Return the result itself."""
        found: Result | None = self._found
        if found is None:
            plan: _cpu.Plan = self._plan
            found = told(plan, plan.read(self._ticket))
            if not plan.was_captured:
                object.__setattr__(self, "_found", found)
        return found

    def __eq__(self, other: object) -> bool:
        return self.read() == (other.read() if isinstance(other, Pending) else other)

    __hash__ = object.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        found = self.read()
        return Result, (found.grad_norm, found.skipped, found.nonfinite)


_NAMES = {f.name for f in fields(Result)}


class Results:
    """The pending results of an optimizer: one is read before the GPU writes over it, if anybody still has it."""

    def __init__(self) -> None:
        self._pending: deque[ref[Pending]] = deque()

    def add(self, plan: _cpu.Plan, ticket: int) -> Pending:
        """Return the result that a ticket stands for."""
        result = Pending(plan, ticket)
        self._pending.append(ref(result))
        if len(self._pending) == _cpu.tickets and (oldest := self._pending.popleft()()) is not None:
            oldest.read()
        return result
