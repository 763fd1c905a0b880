"""What a step found out about gradients and updates: known at once on a CPU, and when it is read on a GPU."""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, fields
from typing import Any
from weakref import ref

from fusedstep import _cpu

__all__ = ["PLAIN", "Pending", "Pendings", "Result", "told"]


@dataclass(frozen=True, slots=True)
class Result:
    """
    What a step found out about its gradients and updates.

    On a GPU, reading an attribute waits for the step; a step whose result is not read waits for nothing.

    Attributes
    ----------
    grad_norm : float or None
        Norm of all gradients of the step, multiplied by their `grad_scale` and before clipping; None unless clipping by
        a norm or `skip_nonfinite` asked for it.
    skipped : bool
        Whether nothing was updated, because a gradient was not finite.
    nonfinite : hashable
        Key of the first parameter whose gradient was not finite, where the step was skipped; else None.
    update_norm : float or None
        Norm of all that was subtracted from the parameters, with decoupled weight decay and before `bounds`; 0 in a
        step that was skipped, and None unless `measure` asked for it.
    """

    grad_norm: float | None = None
    skipped: bool = False
    nonfinite: Hashable = None
    update_norm: float | None = None


Result.__module__ = "fusedstep"  # where it is public, so that pickles outlive a move of this file

PLAIN = Result()


def told(found: tuple[float | None, int | None, float | None], plan: _cpu.Plan) -> Result:
    """Return what a plan found as a result: norm, index of the first bad gradient, and norm of the updates."""
    norm, at, update_norm = found
    return Result(norm, at is not None, None if at is None else plan.keys[at], update_norm)


class Pending(Result):
    """A result that is on a GPU until it is read. In a CUDA graph, the result is that of the last replay."""

    __slots__ = ("__weakref__", "_found", "_plan", "_ticket")
    _found: Result | None
    _plan: _cpu.Plan
    _ticket: _cpu.PendingFinding

    def __init__(self, ticket: _cpu.PendingFinding, plan: _cpu.Plan) -> None:
        for name, value in (("_ticket", ticket), ("_plan", plan), ("_found", None)):
            object.__setattr__(self, name, value)

    def __getattribute__(self, name: str) -> Any:
        if name in _NAMES:
            return getattr(self.read(), name)
        return object.__getattribute__(self, name)

    def read(self) -> Result:
        """Return the result, after waiting for it on a GPU."""
        if self._found is not None:
            return self._found
        ticket = self._ticket
        found = told(ticket.read(), self._plan)
        if not ticket.is_captured:
            object.__setattr__(self, "_found", found)
            object.__setattr__(self, "_ticket", None)  # frees the memory behind the ticket
        return found

    def __eq__(self, other: object) -> bool:
        return self.read() == (other.read() if isinstance(other, Pending) else other)

    def __hash__(self) -> int:
        return hash(self.read())

    def __reduce__(self) -> tuple[Any, ...]:
        found = self.read()
        return Result, (found.grad_norm, found.skipped, found.nonfinite, found.update_norm)


_NAMES = {f.name for f in fields(Result)}


class Pendings(deque[ref[Pending]]):
    """The pending results of an optimizer: each is read before the GPU writes over it, if anybody still has it."""

    def make_room(self) -> None:
        """Read the result that the next step would overwrite, if anybody still has it."""
        if len(self) == _cpu.tickets:
            if (oldest := self[0]()) is not None:
                oldest.read()
            self.popleft()

    def add(self, ticket: _cpu.PendingFinding, plan: _cpu.Plan) -> Pending:
        """Return the result that a ticket stands for."""
        result = Pending(ticket, plan)
        if not ticket.is_captured:
            self.append(ref(result))
        return result
