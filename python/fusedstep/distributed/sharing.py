"""Pieces of arrays that all ranks need: each rank gives those that it owns."""

from collections.abc import Hashable, Iterable, Mapping

import numpy as np

from fusedstep.core.arrays import Array

from .layout import Layout, Parcel
from .world import World, gathered

__all__ = ["Sharing", "sharing_of_lines"]


class Sharing:
    """
    Views that have on all ranks the numbers that they have on their own rank, whenever that is asked for.

    Parameters
    ----------
    world : World
        The ranks.
    views : mapping of iterables of arrays
        Rank -> C-contiguous arrays, of the same sizes on all ranks.
    """

    def __init__(self, world: World, views: Mapping[int, Iterable[Array]]) -> None:
        self._world = world
        self._own = Parcel(views[world.rank])
        self._arriving = {k: Parcel(views[k]) for k in range(world.size) if k != world.rank}

    def share(self, error: Exception | None = None) -> None:
        """
        Give the views of this rank to all, and fill those of the others in place; all ranks have to call this.

        Parameters
        ----------
        error : Exception, optional
            Why the numbers of this rank are not what they should be.

        Raises
        ------
        Exception
            `error`, when all ranks have been told.
        RuntimeError
            If another rank has met an error. The views have been updated then, with what the rank has.
        """
        world, own = self._world, self._own.pack()
        troubles = np.zeros(world.size, np.uint8)
        troubles[world.rank] = error is not None
        mine = troubles[world.rank :][:1]
        sends = [(k, array) for k in self._arriving for array in (mine, *own)]
        receives = [
            (k, array) for k, parcel in self._arriving.items() for array in (troubles[k : k + 1], *parcel.messages)
        ]
        world.wait(world.start(sends, receives))
        for parcel in self._arriving.values():
            parcel.unpack()
        if troubles.any():
            words = gathered(world, b"" if error is None else f"{type(error).__name__}: {error}".encode())
            if error is not None:
                raise error
            first = int(troubles.argmax())
            raise RuntimeError(f"rank {first} has raised {words[first].decode()}; other ranks have made the step")


def sharing_of_lines(world: World, layout: Layout, lines: Mapping[Hashable, Array]) -> Sharing:
    """Return what lets lines of the length of the tensors be the same on all ranks: each gives what it owns."""
    return Sharing(
        world,
        {
            rank: [lines[piece.key][piece.begin : piece.end] for piece in layout.pieces(rank) if piece.key in lines]
            for rank in range(world.size)
        },
    )
