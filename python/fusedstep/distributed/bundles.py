"""Lines that are added up and that travel as one: small ones of a dtype together, each large one by itself."""

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fusedstep.core.arrays import Array, is_narrow

from .layout import SMALL, Layout, Piece

__all__ = ["Bundles"]


class _Small(NamedTuple):
    """The name of the bundle of small lines of a dtype."""

    dtype: np.dtype[Any]


class Bundles:
    """
    A partition of the lines of some tensors, each of which is one line again.

    Parameters
    ----------
    layout : Layout
        The tensors, and who owns what of them.
    types : mapping
        Key -> dtype of a line, of the tensors that have one.
    small : int
        Lines of fewer bytes are bundled.

    Attributes
    ----------
    members : dict
        Name of a bundle -> its keys, in the order of the layout. A line by itself has the name of its key.
    counts : dict
        Name -> length.
    """

    def __init__(self, layout: Layout, types: Mapping[Hashable, np.dtype[Any]], small: int = SMALL) -> None:
        self.members: dict[Hashable, list[Hashable]] = {}
        self._types: dict[Hashable, np.dtype[Any]] = {}
        self._begins: dict[Hashable, int] = {}  # of each line in its bundle
        self.counts: dict[Hashable, int] = {}
        name_of: dict[Hashable, Hashable] = {}
        for key in layout.keys:
            if (dtype := types.get(key)) is None:
                continue
            name = _Small(dtype) if layout.counts[key] * dtype.itemsize < small else key
            name_of[key] = name
            self._types[name] = dtype
            self.members.setdefault(name, []).append(key)
            self._begins[key] = self.counts.get(name, 0)
            self.counts[name] = self._begins[key] + layout.counts[key]
        self._pieces: list[list[Piece]] = []
        self._owned: list[dict[Hashable, list[Piece]]] = []
        for rank in range(layout.size):
            owned: dict[Hashable, list[Piece]] = {}
            for piece in layout.pieces(rank):
                if piece.key in name_of:
                    owned.setdefault(name_of[piece.key], []).append(piece)
            # What a rank owns lies side by side in a bundle, as in the row of all tensors.
            self._pieces.append(
                [
                    Piece(name, self._begins[some[0].key] + some[0].begin, self._begins[some[-1].key] + some[-1].end)
                    for name, some in owned.items()
                ]
            )
            self._owned.append(owned)

    def pieces(self, rank: int) -> list[Piece]:
        """Return the pieces of bundles that a rank owns."""
        return self._pieces[rank]

    def type_of(self, name: Hashable, level: int) -> np.dtype[Any]:
        """Return the type of a node: a single part in half precision stays so, and sums of such parts are float32."""
        dtype = self._types[name]
        return np.dtype(np.float32) if level and is_narrow(dtype) else dtype

    def joined(self, name: Hashable, lines: Mapping[Hashable, Array]) -> Array:
        """Return the line of a bundle, made of those of its members."""
        keys = self.members[name]
        return lines[name] if keys[0] == name else np.concatenate([lines[key] for key in keys])

    def split(self, rank: int, piece: Piece, arrays: list[Array]) -> dict[Hashable, list[Array]]:
        """Return, by key, what arrays of the length of a bundle's piece, which a rank owns, have of each member."""
        own = self._owned[rank][piece.key]
        if len(own) == 1:
            return {own[0].key: arrays}
        found = {}
        for key, begin, end in own:
            first = self._begins[key] + begin - piece.begin
            found[key] = [array[first : first + end - begin] for array in arrays]
        return found
