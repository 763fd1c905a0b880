"""What the ranks of a step must have in common, and how they tell each other that they have it, or what went wrong."""

import json
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, NamedTuple, NoReturn, TypeVar, cast

import numpy as np

from fusedstep.core.arrays import Array

from .world import World, gathered

__all__ = ["Agreement", "agreed"]

Prepared = TypeVar("Prepared")


class _Fact(NamedTuple):
    name: str
    data: bytes
    text: Callable[[], str | dict[str, str]]  # in words, which are needed where ranks disagree; or several facts


class Agreement:
    """
    What a rank knows that must be the same on all ranks.

    Parameters
    ----------
    world : World
        The ranks. All of them have to reach the same agreements.
    so_far : str
        What errors say of what has happened until then.
    """

    def __init__(self, world: World, so_far: str) -> None:
        self._world = world
        self._so_far = so_far
        self._facts: list[_Fact] = []
        self._begun: tuple[Any, Array] | None = None
        self.has_failed = False  # nothing more is sent then

    def add(self, name: str, data: object, text: Callable[[], str | dict[str, str]] | None = None) -> None:
        """Add a fact: bytes, or something whose `repr` has the same text on all ranks; or facts by name, in words."""
        plain = data if isinstance(data, bytes) else repr(data).encode()
        self._facts.append(_Fact(name, plain, text or (lambda: repr(data))))

    def begin(self, error: Exception | None = None) -> None:
        """Send a digest of the facts to all ranks, or zeros after an error; `reach` waits for theirs."""
        world, digests = self._world, np.zeros((self._world.size, 8), np.uint8)
        if error is None:
            digest = blake2b(b"\0".join(fact.data for fact in self._facts), digest_size=8).digest()
            digests[world.rank] = np.frombuffer(digest, np.uint8)
        own = digests[world.rank].copy()
        others = [rank for rank in range(world.size) if rank != world.rank]
        self._begun = world.start([(k, own) for k in others], [(k, digests[k]) for k in others]), digests

    def reach(self, error: Exception | None = None) -> None:
        """
        Wait until all ranks are here, with the same facts and without an error.

        Raises
        ------
        Exception
            `error`, when all ranks have been told.
        RuntimeError
            If another rank has met an error.
        ValueError
            If ranks have different facts: the message names a rank and what differs.
        """
        if self._begun is None:
            self.begin(error)
        (handle, digests), self._begun = cast(tuple[Any, Array], self._begun), None
        self.has_failed = True  # unless all is well
        self._world.wait(handle)
        own = digests[self._world.rank]
        if not own.any() or (digests != own).any():
            self._tell(error)
        self.has_failed = False

    def _tell(self, error: Exception | None) -> NoReturn:
        """Raise what is wrong: all ranks give each other their facts in words, or their errors."""
        world, so_far = self._world, self._so_far
        facts: dict[str, str] = {}
        for fact in self._facts:
            text = fact.text()
            facts |= text if isinstance(text, dict) else {fact.name: text}
        words = facts if error is None else f"{type(error).__name__}: {error}"
        found = [json.loads(some) for some in gathered(world, json.dumps(words).encode())]
        if error is not None:
            error.add_note(f"This was raised on rank {world.rank} of {world.size}; {so_far}.")
            raise error
        for rank, words in enumerate(found):
            if isinstance(words, str):
                raise RuntimeError(f"rank {rank} has raised {words}; {so_far}")
        for rank, words in enumerate(found):
            for name in {**found[0], **words}:
                if found[0].get(name) != words.get(name):
                    raise ValueError(
                        f"rank {rank} has {name} {words.get(name)}, and rank 0 {found[0].get(name)}: expected the same "
                        f"on all ranks; {so_far}"
                    )
        raise RuntimeError("ranks disagree about the step, and say the same of it in words: a digest has been damaged")


def agreed(
    world: World, prepare: Callable[[Agreement], Prepared], so_far: str = "no rank has written anything"
) -> Prepared:
    """
    Return what `prepare` returns, if all ranks get as far and have the same facts; all ranks have to call this.

    `prepare` is given an agreement, to which it adds the facts. It may reach the agreement before its end too, as all
    ranks then do. Messages end with `so_far`. Raises what `Agreement.reach` raises.
    """
    agreement = Agreement(world, so_far)
    try:
        prepared = prepare(agreement)
    except Exception as error:
        if not agreement.has_failed:
            agreement.reach(error)
        raise
    agreement.reach()
    return prepared
