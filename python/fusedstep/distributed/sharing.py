"""Pieces of arrays that all ranks need: each rank gives those that it owns."""

from collections.abc import Hashable, Iterable, Mapping

import numpy as np

from fusedstep.core.arrays import Array

from .layout import Layout, Parcel
from .world import World, gathered

__all__ = ["share", "share_lines"]


def share(world: World, views: Mapping[int, Iterable[Array]], error: Exception | None = None) -> None:
    """
    Let the views of each rank have on all ranks the numbers that they have on their own; all ranks have to call this.

    Parameters
    ----------
    world : World
        The ranks.
    views : mapping of iterables of arrays
        Rank -> C-contiguous arrays, of the same sizes on all ranks. Updated in place, but for those of this rank.
    error : Exception, optional
        Why the numbers of this rank are not what they should be.

    Raises
    ------
    Exception
        `error`, when all ranks have been told.
    RuntimeError
        If another rank has met an error. The views have been updated then, with what the rank has.
    """
    others = [rank for rank in range(world.size) if rank != world.rank]
    own = Parcel(views[world.rank])
    arriving = {k: Parcel(views[k]) for k in others}
    troubles = np.zeros(world.size, np.uint8)
    troubles[world.rank] = error is not None
    mine = troubles[world.rank :][:1]
    sends = [(k, array) for k in others for array in (mine, *own.pack())]
    receives = [(k, array) for k, parcel in arriving.items() for array in (troubles[k : k + 1], *parcel.messages)]
    world.wait(world.start(sends, receives))
    for parcel in arriving.values():
        parcel.unpack()
    if troubles.any():
        words = gathered(world, b"" if error is None else f"{type(error).__name__}: {error}".encode())
        if error is not None:
            raise error
        first = int(troubles.argmax())
        raise RuntimeError(f"rank {first} has raised {words[first].decode()}; other ranks have made the step")


def share_lines(world: World, layout: Layout, lines: Mapping[Hashable, Array], error: Exception | None = None) -> None:
    """Let lines of the length of the tensors be the same on all ranks: each gives the pieces that it owns."""
    share(
        world,
        {
            rank: [lines[piece.key][piece.begin : piece.end] for piece in layout.pieces(rank) if piece.key in lines]
            for rank in range(world.size)
        },
        error,
    )
