"""Sums of the parts of a step: those of a rank's own parts as they come, and those of all parts of what it owns."""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np

from fusedstep.core.arrays import Array

from .bundles import Bundles
from .carriers import Carrier, Memory, Messages
from .layout import Piece
from .tree import Forest, nodes_of, parts_of, row_of
from .world import Windows, World

__all__ = ["Sums"]


class Sums:
    """
    The sums of bundles of gradients.

    Parameters
    ----------
    bundles : Bundles
        The gradients.
    world : World
        The ranks.
    parts : int
        How many parts a step has.
    """

    def __init__(self, bundles: Bundles, world: World, parts: int) -> None:
        self.bundles = bundles
        self._world = world
        shares = [parts_of(parts, rank, world.size) for rank in range(world.size)]
        own = shares[world.rank]
        self._nodes = [nodes_of(share.start, share.stop) for share in shares]
        self._forests = {name: Forest(own.start, own.stop) for name in bundles.members}
        self._carrier: Carrier = Messages(bundles, world, self._nodes)
        if getattr(world, "windows", []):  # the user's arrays are in memory that all ranks see, or some of them
            self._carrier = Memory(bundles, cast(Windows, world), self._nodes, self._forests)
        self._buffers: dict[tuple[Hashable, ...], Array] = {}

    def clear(self) -> None:
        """Begin with the first part again."""
        for forest in self._forests.values():
            forest.clear()

    def add(self, name: Hashable, line: Array) -> None:
        """Add the next part of a bundle."""
        self._forests[name].add(line)

    def expect(self, names: Sequence[Hashable]) -> None:
        """Be ready to receive what other ranks send of some bundles. All ranks do so in one order."""
        self._carrier.expect(names)

    def send(self, names: Sequence[Hashable]) -> None:
        """Send what others need of some bundles: where parts have not come, zeros."""
        self._carrier.send({name: self._own(name) for name in names})

    def _own(self, name: Hashable) -> list[Array]:
        if self._forests[name].is_full:
            return self._forests[name].arrays
        bundles, nodes = self.bundles, self._nodes[self._world.rank]
        return [np.zeros(bundles.counts[name], bundles.type_of(name, node.level)) for node in nodes]

    def settle(self) -> None:
        """Wait for all that is under way."""
        self._carrier.settle()

    def rows(self, params: Mapping[Hashable, Array]) -> tuple[dict[Hashable, list[Array]], set[Hashable]]:
        """
        Return, by key, arrays whose sum, as ``sum_parts`` makes it, is the gradient of what this rank owns.

        Keys that have come on no rank are among them. Also return the keys of parameters that are one memory on all
        ranks.
        """
        rank, bundles = self._world.rank, self.bundles
        common = self._carrier.arrive(params)
        nodes = [node for some in self._nodes for node in some]
        found: dict[Hashable, list[Array]] = {}
        for name, keys in bundles.members.items():
            nothing = [np.empty(0, bundles.type_of(name, 1))]
            found |= dict.fromkeys(keys, nothing)
        for piece in bundles.pieces(rank):
            own = [node[piece.begin : piece.end] for node in self._own(piece.key)]
            ranks = range(self._world.size)
            arrays = [array for k in ranks for array in (own if k == rank else self._carrier.nodes(k, piece))]
            row = row_of(nodes, arrays, partial(self._buffer, piece, bundles.type_of(piece.key, 1)))
            found |= bundles.split(rank, piece, row)
        return found, common

    def _buffer(self, piece: Piece, dtype: np.dtype[Any], number: int) -> Array:
        """Return memory of the length of a piece, the same in each step."""
        label = (piece.key, dtype, number)
        if label not in self._buffers:
            self._buffers[label] = np.empty(piece.end - piece.begin, dtype)
        return self._buffers[label]
