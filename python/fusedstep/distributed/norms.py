"""Sums of squares of whole tensors, of which each rank has pieces: with the bits of one process."""

import math
from collections.abc import Hashable, Iterable, Mapping

import numpy as np

from fusedstep import _cpu
from fusedstep.core.arrays import Array

from .layout import BLOCK, Layout, Piece
from .sharing import Sharing
from .world import World

__all__ = ["Norms"]

_LARGE_UNIT = 2.0**600  # in which the squares of finite doubles do not overflow


class Norms:
    """
    The norms of tensors of one layout.

    Parameters
    ----------
    world : World
        The ranks, all of which have to ask for the same norms.
    layout : Layout
        The tensors, and who owns what of them.
    """

    def __init__(self, world: World, layout: Layout) -> None:
        self._world = world
        self._layout = layout
        self._squares: dict[tuple[Hashable, ...], _Squares] = {}  # by keys

    def squares_of_gradients(self, rows: Mapping[Hashable, list[Array]]) -> Array:
        """
        Return the sum of squares of each whole gradient, and its unit, in the order of all keys.

        Key -> arrays whose sum is the gradient of this rank's piece, in `rows`.
        """
        layout = self._layout

        def total(keys: Iterable[Hashable], unit: float) -> dict[Hashable, float]:
            squares = self._of(keys)
            own = {
                piece.key: _cpu.sums_of_blocks(rows[piece.key], np.empty(0, layout.dtypes[piece.key]).real.dtype, unit)
                for piece in squares.own
            }
            return squares.totals(own)

        found = np.array([[0.0, 1.0]] * len(layout.keys)).reshape(-1, 2)
        sums = total(rows, 1.0)
        found[:, 0] = [sums.get(key, 0.0) for key in layout.keys]
        doubles = [
            key for key, sum_ in sums.items() if math.isinf(sum_) and layout.dtypes[key] in (np.float64, np.complex128)
        ]
        if doubles:
            sums = total(doubles, _LARGE_UNIT)
            for i, key in enumerate(layout.keys):
                if key in sums:
                    found[i] = sums[key], _LARGE_UNIT
        return found

    def of_updates(self, squares: Mapping[Hashable, Array]) -> float:
        """
        Return the norm of all that a step has subtracted.

        Key -> sums of squares of the blocks of this rank's piece, which may be empty, of all tensors with gradients.
        """
        sums = self._of(squares).totals(squares)
        return math.sqrt(_cpu.sum_of_sums(np.array([sums[key] for key in squares])))

    def _of(self, keys: Iterable[Hashable]) -> "_Squares":
        name = tuple(keys)
        if name not in self._squares:
            self._squares[name] = _Squares(self._world, self._layout, name)
        return self._squares[name]


class _Squares:
    """
    Sums of squares of the blocks of some tensors, and their messages.

    1024 neighbouring blocks are added up by the rank that has them all, and travel as one number.
    """

    def __init__(self, world: World, layout: Layout, keys: Iterable[Hashable]) -> None:
        self._blocks = {key: np.empty(-(-layout.counts[key] // BLOCK)) for key in keys}
        self._above = {key: np.empty(-(-some.size // BLOCK)) for key, some in self._blocks.items()}
        # Sums of 1024 blocks: those that this rank adds up, and those that all do, since several have a part of them.
        self._mine: list[tuple[Hashable, int]] = []
        cut = {key: set(range(some.size)) for key, some in self._above.items()}
        self.own: list[Piece] = []
        views: dict[int, list[Array]] = {}
        for rank in range(world.size):
            pieces = [piece for piece in layout.pieces(rank) if piece.key in self._blocks]
            views[rank] = []
            for piece in pieces:
                blocks, above = self._blocks[piece.key], self._above[piece.key]
                begin, first, last, end = _cuts(piece, layout.counts[piece.key])
                head = min(first * BLOCK, end)
                views[rank] += [blocks[begin:head], above[first:last], blocks[max(head, min(last * BLOCK, end)) : end]]
                cut[piece.key] -= set(range(first, last))
                if rank == world.rank:
                    self._mine += [(piece.key, i) for i in range(first, last)]
            if rank == world.rank:
                self.own = pieces
        self._cut = [(key, i) for key, some in cut.items() for i in sorted(some)]
        self._sharing = Sharing(world, views)

    def totals(self, own: Mapping[Hashable, Array]) -> dict[Hashable, float]:
        """Return the sum over each tensor, by key, of the sums of its blocks, of which this rank has its own."""
        for piece in self.own:
            begin = piece.begin // BLOCK
            self._blocks[piece.key][begin : begin + len(own[piece.key])] = own[piece.key]
        self._fold(self._mine)
        self._sharing.share()
        self._fold(self._cut)
        return {key: _cpu.sum_of_sums(sums) for key, sums in self._above.items()}

    def _fold(self, places: Iterable[tuple[Hashable, int]]) -> None:
        for key, i in places:
            self._above[key][i] = _cpu.sum_of_sums(self._blocks[key][i * BLOCK : (i + 1) * BLOCK])


def _cuts(piece: Piece, count: int) -> tuple[int, int, int, int]:
    """Return a piece in blocks, its begin and end; between them the first and the end of its sums of 1024 blocks."""
    begin, end = piece.begin // BLOCK, -(-piece.end // BLOCK)
    first, last = -(-begin // BLOCK), end // BLOCK if piece.end < count else -(-end // BLOCK)
    return begin, first, max(first, last), end
