"""What the ranks of a step must have in common, and how they tell each other that they have it, or what went wrong."""

import json
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple, TypeVar

import numpy as np

from .world import World, gathered

__all__ = ["Agreement", "agreed"]

Prepared = TypeVar("Prepared")


class _Fact(NamedTuple):
    name: str
    data: bytes
    text: Callable[[], str]  # in words, which are needed where ranks disagree


class Agreement:
    """What a rank knows that must be the same on all ranks, or the error that it has met."""

    def __init__(self) -> None:
        self._facts: list[_Fact] = []
        self.error: Exception | None = None

    def add(self, name: str, data: object, text: Callable[[], str] | None = None) -> None:
        """Add a fact: bytes, or something whose `repr` has the same text on all ranks."""
        plain = data if isinstance(data, bytes) else repr(data).encode()
        self._facts.append(_Fact(name, plain, text or (lambda: repr(data))))

    @property
    def digest(self) -> bytes:
        """Eight bytes: zeros after an error."""
        if self.error is not None:
            return bytes(8)
        return blake2b(b"\0".join(fact.data for fact in self._facts), digest_size=8).digest()

    @property
    def words(self) -> bytes:
        """All facts in words, or the error."""
        if self.error is not None:
            return json.dumps(f"{type(self.error).__name__}: {self.error}").encode()
        return json.dumps({fact.name: fact.text() for fact in self._facts}).encode()


def agreed(
    world: World, prepare: Callable[[Agreement], Prepared], so_far: str = "no rank has written anything"
) -> Prepared:
    """
    Return what `prepare` returns, if all ranks get as far and have the same facts; all ranks have to call this.

    `prepare` is given an agreement, to which it adds the facts. Messages end with `so_far`.

    Raises
    ------
    Exception
        The error of this rank, if it has met one.
    RuntimeError
        If another rank has met an error.
    ValueError
        If ranks have different facts: the message names a rank and what differs.
    """
    agreement = Agreement()
    try:
        prepared = prepare(agreement)
    except Exception as error:  # is raised when all ranks have been told
        agreement.error = error
    others = [rank for rank in range(world.size) if rank != world.rank]
    digests = np.empty((world.size, 8), np.uint8)
    digests[world.rank] = np.frombuffer(agreement.digest, np.uint8)
    own = digests[world.rank].copy()
    world.wait(world.start([(k, own) for k in others], [(k, digests[k]) for k in others]))
    if agreement.error is None and (digests == own).all():
        return prepared
    found = [json.loads(words) for words in gathered(world, agreement.words)]
    if agreement.error is not None:
        agreement.error.add_note(f"This was raised on rank {world.rank} of {world.size}; {so_far}.")
        raise agreement.error
    for rank, words in enumerate(found):
        if isinstance(words, str):
            raise RuntimeError(f"rank {rank} has raised {words}; {so_far}")
    for rank, words in enumerate(found):
        for name in {**found[0], **words}:
            if found[0].get(name) != words.get(name):
                raise ValueError(
                    f"rank {rank} has {name} {words.get(name)}, and rank 0 {found[0].get(name)}: expected the same on "
                    f"all ranks; {so_far}"
                )
    raise RuntimeError("ranks disagree about the step, and say the same of it in words: a digest has been damaged")
