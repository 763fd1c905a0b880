"""Sums of squares of whole tensors, of which each rank has pieces: with the bits of one process."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from fusedstep import _cpu
from fusedstep.core.arrays import Array

from .layout import BLOCK, Layout, Piece
from .sharing import Sharing
from .world import World

__all__ = ["squares_of_gradients", "update_norm"]

_LARGE_UNIT = 2.0**600  # in which the squares of finite doubles do not overflow


def squares_of_gradients(world: World, layout: Layout, rows: Mapping[Hashable, list[Array]]) -> Array:
    """
    Return the sum of squares of each whole gradient, and its unit, in the order of all keys.

    All ranks have to call this. Key -> arrays whose sum is the gradient of this rank's piece, in `rows`.
    """

    def total(keys: Iterable[Hashable], unit: float) -> dict[Hashable, float]:
        own = {
            piece.key: _cpu.sums_of_blocks(rows[piece.key], np.empty(0, layout.dtypes[piece.key]).real.dtype, unit)
            for piece in layout.pieces(world.rank)
            if piece.key in keys
        }
        return _totals(world, layout, own, keys)

    found = np.array([[0.0, 1.0]] * len(layout.keys)).reshape(-1, 2)
    sums = total(rows.keys(), 1.0)
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


def update_norm(world: World, layout: Layout, own: Mapping[Hashable, Array], keys: Sequence[Hashable]) -> float:
    """
    Return the norm of all that a step has subtracted; all ranks have to call this.

    Key -> sums of squares of the blocks of this rank's piece, in `own`; `keys` are those of all tensors with gradients.
    """
    sums = _totals(world, layout, own, keys)
    return math.sqrt(_cpu.sum_of_sums(np.array([sums[key] for key in keys])))


def _totals(
    world: World, layout: Layout, own: Mapping[Hashable, Array], keys: Iterable[Hashable]
) -> dict[Hashable, float]:
    """
    Return the sum over each tensor, by key, of sums of its blocks, of which each rank has those of its pieces.

    1024 neighbouring blocks are added up by the rank that has them all, and travel as one number.
    """
    keys = set(keys)
    blocks = {key: np.empty(-(-layout.counts[key] // BLOCK)) for key in layout.keys if key in keys}
    above = {key: np.empty(-(-some.size // BLOCK)) for key, some in blocks.items()}  # the level above them
    is_whole = {key: np.zeros(some.size, bool) for key, some in above.items()}
    views: dict[int, list[Array]] = {}
    for rank in range(world.size):
        views[rank] = []
        for piece in layout.pieces(rank):
            if piece.key not in keys:
                continue
            begin, first, last, end = _cuts(piece, layout.counts[piece.key])
            views[rank] += [
                blocks[piece.key][begin : min(first * BLOCK, end)],
                above[piece.key][first:last],
                blocks[piece.key][max(min(first * BLOCK, end), min(last * BLOCK, end)) : end],
            ]
            is_whole[piece.key][first:last] = True
            if rank == world.rank:
                blocks[piece.key][begin:end] = own[piece.key]
                for i in range(first, last):
                    above[piece.key][i] = _cpu.sum_of_sums(blocks[piece.key][i * BLOCK : (i + 1) * BLOCK])
    Sharing(world, views).share()
    for key, sums in above.items():
        for i in np.flatnonzero(~is_whole[key]).tolist():
            sums[i] = _cpu.sum_of_sums(blocks[key][i * BLOCK : (i + 1) * BLOCK])
    return {key: _cpu.sum_of_sums(sums) for key, sums in above.items()}


def _cuts(piece: Piece, count: int) -> tuple[int, int, int, int]:
    """Return a piece in blocks, its begin and end; between them the first and the end of its sums of 1024 blocks."""
    begin, end = piece.begin // BLOCK, -(-piece.end // BLOCK)
    first, last = -(-begin // BLOCK), end // BLOCK if piece.end < count else -(-end // BLOCK)
    return begin, first, max(first, last), end
