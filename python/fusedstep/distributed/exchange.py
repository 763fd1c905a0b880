"""What the ranks of a synchronous step send each other: parts of gradients, sums of squares, and new parameters."""

from collections.abc import Hashable, Iterable, Mapping
from numbers import Number
from typing import Any

import numpy as np

from fusedstep import _cpu
from fusedstep.core.arrays import Array, as_array, is_narrow, order_of
from fusedstep.core.containers import present

from .layout import BLOCK, Layout, Parcel, Piece
from .tree import Forest, finish, nodes_of, parts_of
from .world import World

__all__ = ["Exchange"]

_LARGE_UNIT = 2.0**600  # in which the squares of finite doubles do not overflow


class Exchange:
    """
    The messages of the steps of one set of parameters, and the memory that is kept for them.

    Parameters
    ----------
    params : array, or containers of arrays
        The parameters.
    world : World
        The ranks.
    parts : int
        How many parts a step has.
    """

    def __init__(self, params: Any, world: World, parts: int) -> None:
        arrays = present(params)
        self.layout = Layout(params, world.size)
        self.world = world
        self.shapes = {key: array.shape for key, array in arrays.items()}
        self.dtypes = {key: np.dtype(array.dtype) for key, array in arrays.items()}
        self.orders = {key: order_of(array) for key, array in arrays.items()}
        self._real = {
            key: np.empty(0, dtype).real.dtype if dtype.kind == "c" else dtype for key, dtype in self.dtypes.items()
        }
        self.counts = {key: array.size * (1 + (array.dtype.kind == "c")) for key, array in arrays.items()}
        self.types: dict[Hashable, np.dtype[Any]] = {}  # of the gradients of the step, by key, as they are summed
        self.others = [rank for rank in range(world.size) if rank != world.rank]
        self.own = parts_of(parts, world.rank, world.size)
        shares = [parts_of(parts, rank, world.size) for rank in range(world.size)]
        self._nodes = [nodes_of(share.start, share.stop) for share in shares]
        self._pieces = [self.layout.pieces(rank) for rank in range(world.size)]
        self._forests: dict[Hashable, Forest] = {}
        self._buffers: dict[tuple[Hashable, ...], Array] = {}

    # Gradients.

    def summed(self, gradients: Iterable[Any]) -> dict[Hashable, list[Array]]:
        """Return the sums of the gradients of this rank's parts, by key: one for each of its nodes of the tree."""
        types: dict[Hashable, np.dtype[Any]] = {}
        count = 0
        for count, gradient in enumerate(gradients, 1):
            if count > len(self.own):
                raise ValueError(f"gradients are more than {len(self.own)}, expected one for each part of this rank")
            lines = self._lines_of(gradient)
            found = {key: line.dtype for key, line in lines.items()}
            if count == 1:
                types = found
                for key in types:
                    self._forests.setdefault(key, Forest(self.own.start, self.own.stop)).clear()
            elif odd := [key for key in {**types, **found} if types.get(key) != found.get(key)]:
                now, before = found.get(odd[0]), types.get(odd[0])
                raise ValueError(
                    f"grads[{odd[0]!r}] is {now} in part {self.own[count - 1]} and {before} in the parts before, "
                    "expected one dtype in all parts, or no gradient in any"
                )
            for key, line in lines.items():
                self._forests[key].add(line)
        if count < len(self.own):
            raise ValueError(f"gradients are {count}, expected {len(self.own)}, one for each part of this rank")
        self.types = types
        return {key: self._forests[key].arrays for key in self.layout.keys if key in types}

    def _lines_of(self, gradient: Any) -> dict[Hashable, Array]:
        """Return gradients as lines, in the order of their parameters in memory, in the type of their sum."""
        keys, arrays = _cpu.leaves(gradient)
        found = {
            key: np.asarray(array) if isinstance(array, (Number, np.generic)) else as_array(array, f"grads[{key!r}]")
            for key, array in zip(keys, arrays, strict=True)
            if array is not None
        }
        for key, array in found.items():
            if key not in self.shapes:
                raise ValueError(f"grads[{key!r}] belongs to no parameter, expected keys of params")
            if array.shape != self.shapes[key]:
                raise ValueError(f"grads[{key!r}] has shape {array.shape}, expected {self.shapes[key]}")
        return {
            key: self.line(key, found[key], _summed_in(self.dtypes[key], found[key].dtype))
            for key in self.layout.keys
            if key in found
        }

    def line(self, key: Hashable, array: Array, dtype: Any = None) -> Array:
        """Return an array in the order of its parameter's memory, as a line of real numbers: a view if it lies so."""
        line: Array = np.ascontiguousarray(array.transpose(self.orders[key]), dtype).reshape(-1)
        return line.view(line.real.dtype) if line.dtype.kind == "c" else line

    def whole(self, key: Hashable, line: Array) -> Array:
        """Return a line as an array of the shape of its parameter, which lies in memory like it."""
        if self.dtypes[key].kind == "c":
            line = line.view(np.result_type(line.dtype, np.complex64))
        order = self.orders[key]
        return line.reshape([self.shapes[key][axis] for axis in order]).transpose(np.argsort(order))

    def sums(self, mine: Mapping[Hashable, list[Array]]) -> dict[Hashable, Array]:
        """Return the sum of all parts of this rank's piece of each gradient, by key; it may be empty."""
        rank = self.world.rank
        parcels = {
            k: Parcel(node[p.begin : p.end] for p in self._pieces[k] if p.key in mine for node in mine[p.key])
            for k in self.others
        }
        pieces = [piece for piece in self._pieces[rank] if piece.key in mine]
        rooms = {
            (k, piece.key): [
                self._buffer(piece, self._type_of(piece.key, node.level), k, node) for node in self._nodes[k]
            ]
            for k in self.others
            for piece in pieces
        }
        arriving = {k: Parcel(room for piece in pieces for room in rooms[k, piece.key]) for k in self.others}
        self._move(parcels, arriving)
        nodes = [node for some in self._nodes for node in some]
        found = {key: arrays[0][:0] for key, arrays in mine.items()}
        for piece in pieces:
            own = [node[piece.begin : piece.end] for node in mine[piece.key]]
            arrays = [array for k in range(self.world.size) for array in (own if k == rank else rooms[k, piece.key])]
            if len(arrays) > 1:
                total = self._buffer(piece, self._type_of(piece.key, 1), "sum")
                finish(nodes, arrays, total)
                arrays = [total]
            found[piece.key] = arrays[0]
        return found

    # Norms.

    def squares(self, grads: Mapping[Hashable, Array]) -> Array:
        """Return the sum of squares of each whole gradient, and its unit, in the order of all keys."""
        keys = self.layout.keys
        found = np.zeros((len(keys), 2))
        found[:, 1] = 1
        sums = self._block_sums(grads, grads, 1.0)
        found[:, 0] = [_cpu.sum_of_sums(sums[key]) if key in sums else 0.0 for key in keys]
        doubles = [
            key
            for key, (total, _) in zip(keys, found, strict=True)
            if np.isinf(total) and self.dtypes[key] in (np.float64, np.complex128)
        ]
        if doubles:
            sums = self._block_sums(grads, doubles, _LARGE_UNIT)
            for i, key in enumerate(keys):
                if key in sums:
                    found[i] = _cpu.sum_of_sums(sums[key]), _LARGE_UNIT
        return found

    def _block_sums(
        self, grads: Mapping[Hashable, Array], keys: Iterable[Hashable], unit: float
    ) -> dict[Hashable, Array]:
        """Return the sums of squares of the blocks of whole gradients, to which each rank gives those of its pieces."""
        sums = {key: np.empty(-(-self.counts[key] // BLOCK)) for key in keys}

        def views(rank: int) -> list[Array]:
            return [
                sums[piece.key][piece.begin // BLOCK : -(-piece.end // BLOCK)]
                for piece in self._pieces[rank]
                if piece.key in sums
            ]

        wanted = [piece.key for piece in self._pieces[self.world.rank] if piece.key in sums]
        for key, view in zip(wanted, views(self.world.rank), strict=True):
            view[...] = _cpu.sums_of_blocks(grads[key], self._real[key], unit)
        self.share({rank: views(rank) for rank in range(self.world.size)})
        return sums

    # Pieces of arrays that all ranks need.

    def share(self, views: Mapping[int, Iterable[Array]]) -> None:
        """Let the views of each rank, by rank, have on all ranks the numbers that they have on their own."""
        views = {rank: list(some) for rank, some in views.items()}
        parcels = {k: Parcel(views[self.world.rank]) for k in self.others}
        self._move(parcels, {k: Parcel(views[k]) for k in self.others})

    def share_lines(self, lines: Mapping[Hashable, Array]) -> None:
        """Let lines of the length of the parameters be the same on all ranks: each gives the piece that it owns."""
        self.share(
            {
                rank: [lines[piece.key][piece.begin : piece.end] for piece in pieces if piece.key in lines]
                for rank, pieces in enumerate(self._pieces)
            }
        )

    def _move(self, leaving: Mapping[int, Parcel], arriving: Mapping[int, Parcel]) -> None:
        sends = [(k, array) for k, parcel in leaving.items() for array in parcel.pack()]
        receives = [(k, array) for k, parcel in arriving.items() for array in parcel.messages]
        self.world.wait(self.world.start(sends, receives))
        for parcel in arriving.values():
            parcel.unpack()

    def _type_of(self, key: Hashable, level: int) -> np.dtype[Any]:
        """Return the type of a node: a single part in half precision stays so, and sums of such parts are float32."""
        dtype = self.types[key]
        return np.dtype(np.float32) if level and is_narrow(dtype) else dtype

    def _buffer(self, piece: Piece, dtype: np.dtype[Any], *name: Hashable) -> Array:
        """Return memory of the length of a piece, the same in each step."""
        label = (piece.key, dtype, *name)
        if label not in self._buffers:
            self._buffers[label] = np.empty(piece.end - piece.begin, dtype)
        return self._buffers[label]


def _summed_in(param: np.dtype[Any], grad: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in which gradients are summed: that of the computation, but halves stay as they are."""
    is_double = param in (np.float64, np.complex128)
    if param.kind == "c":
        return np.dtype(np.complex128 if is_double else np.complex64)
    return np.dtype(np.float64) if is_double else grad if is_narrow(grad) else np.dtype(np.float32)
