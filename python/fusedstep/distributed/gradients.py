"""The gradients of a step's parts: added up as they come, sent to the ranks that own their pieces, and received."""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import numpy as np

from fusedstep import _cpu
from fusedstep.core.arrays import Array, as_array, is_floating, is_narrow

from .agreement import Agreement
from .carriers import Carrier, Memory, Messages
from .layout import Layout, Piece
from .tree import Forest, nodes_of, parts_of, row_of
from .world import Windows, World

__all__ = ["Gradients"]

_BUCKET = 1 << 20  # bytes of gradients that travel together, where they are sent while they come


class Gradients:
    """
    The sums of the parts of a step, by key, of which each rank needs those of its pieces.

    Parameters
    ----------
    layout : Layout
        The parameters, and who owns what of them.
    world : World
        The ranks.
    parts : int
        How many parts a step has.
    narrowed : dtype or None
        What gradients of single precision are rounded to, part by part.
    """

    def __init__(self, layout: Layout, world: World, parts: int, narrowed: np.dtype[Any] | None) -> None:
        self.types: dict[Hashable, np.dtype[Any]] = {}  # of the lines of the step, by key
        self._layout = layout
        self._world = world
        self._narrowed = narrowed
        self._own = parts_of(parts, world.rank, world.size)
        shares = [parts_of(parts, rank, world.size) for rank in range(world.size)]
        self._nodes = [nodes_of(share.start, share.stop) for share in shares]
        self._forests = {key: Forest(self._own.start, self._own.stop) for key in layout.keys}
        self._carrier: Carrier = Messages(layout, world, self._nodes)
        if getattr(world, "windows", []):  # the user's arrays are in memory that all ranks see, or some of them
            self._carrier = Memory(layout, cast(Windows, world), self._nodes, self._forests)
        self._buffers: dict[tuple[Hashable, ...], Array] = {}
        # The shapes and types of gradients that are lines as they are, where parameters are so too.
        self._usual = {
            key: (layout.shapes[key], np.dtype(dtype))
            for key, dtype in layout.dtypes.items()
            if dtype in (np.float32, np.float64)
            and layout.orders[key] == list(range(len(layout.shapes[key])))
            and self._travels_in(key, dtype) == dtype
        }
        self._buckets: list[list[Hashable]] = []  # keys whose gradients travel together, in the order of travel
        self._bucket_of: dict[Hashable, int] = {}
        self._missing: list[int] = []  # how many gradients of each bucket have not come yet
        self._sent = 0  # buckets
        self._described: tuple[dict[Hashable, np.dtype[Any]], str] = {}, "[]"
        self._hurries = False  # whether gradients are sent while they come

    # Collecting.

    def collect(self, gradients: Iterable[Any], agreement: Agreement) -> None:
        """
        Add up the gradients of this rank's parts, and send them to others as far as they come one by one.

        Nothing is sent before all ranks have the same facts, as far as the agreement has them now.
        """
        self._begin()
        count = 0
        try:
            for count, gradient in enumerate(gradients, 1):
                if count > len(self._own):
                    raise ValueError(f"gradients are more than {len(self._own)}, expected one for each part of a rank")
                one_by_one = isinstance(gradient, Iterator)
                if count == 1 and one_by_one:
                    self._hurry(agreement)
                elif one_by_one != self._hurries:
                    raise TypeError("gradients are containers and iterators of pairs, expected one kind in all parts")
                self._add(gradient if one_by_one else _pairs_of(gradient), count, agreement)
            if count < len(self._own):
                raise ValueError(f"gradients are {count}, expected {len(self._own)}, one for each part of this rank")
        except Exception:
            if self._hurries and not agreement.has_failed:
                self._send(agreement, to=len(self._buckets))  # others wait for these, and hear of the error afterwards
            raise
        if self._hurries:
            self._send(agreement, to=len(self._buckets))
        else:
            self._buckets = [[key for key in self._layout.keys if key in self.types]]

    def _begin(self) -> None:
        for forest in self._forests.values():
            forest.clear()
        self.types = {}
        self._hurries, self._sent = False, 0

    def _hurry(self, agreement: Agreement) -> None:
        """Be ready to send gradients while others come: in buckets, as a backward pass finds them, the last first."""
        agreement.add("the gradients of a part", "one by one")
        agreement.begin()
        self._hurries = True
        self._buckets, room = [], 0
        for key in reversed(self._layout.keys):
            if room <= 0:
                self._buckets.append([])
                room = _BUCKET
            self._buckets[-1].append(key)
            room -= self._layout.counts[key] * self._type_of(key, 1).itemsize
        self._missing = [len(bucket) for bucket in self._buckets]
        self._bucket_of = {key: i for i, bucket in enumerate(self._buckets) for key in bucket}

    def _add(self, pairs: Iterable[tuple[Hashable, Any]], count: int, agreement: Agreement) -> None:
        """Add the gradients of a part."""
        found: dict[Hashable, np.dtype[Any]] = {}
        is_last = count == len(self._own)
        for key, array in pairs:
            if array is None:
                continue
            if key in found:
                raise ValueError(f"{_label(key)} comes twice in part {self._own[count - 1]}, expected it once")
            line = self._line_of(key, array)
            if count > 1 and self.types.get(key) != line.dtype:
                self._refuse_type(key, line.dtype, count)
            found[key] = line.dtype
            self._forests[key].add(line)
            if is_last and self._hurries:
                self._missing[self._bucket_of[key]] -= 1
                self._send(agreement)
        if count == 1:
            self.types = found
        elif lost := [key for key in self.types if key not in found]:
            self._refuse_type(lost[0], None, count)

    def _refuse_type(self, key: Hashable, now: Any, count: int) -> None:
        raise ValueError(
            f"{_label(key)} is {now} in part {self._own[count - 1]} and {self.types.get(key)} in the parts before, "
            "expected one dtype in all parts, or no gradient in any"
        )

    def _line_of(self, key: Hashable, array: Any) -> Array:
        """Return a gradient as a line, in the order of its parameter in memory, in the type of the sum."""
        usual = self._usual.get(key)
        if type(array) is np.ndarray and usual == (array.shape, array.dtype) and array.flags.c_contiguous:
            return array.reshape(-1)
        is_number = type(array) in (int, float) or isinstance(array, np.generic)
        found = np.asarray(float(array) if type(array) is int else array) if is_number else as_array(array, _label(key))
        shape = self._layout.shapes.get(key)
        if shape is None:
            raise ValueError(f"{_label(key)} belongs to no parameter, expected keys of params")
        if found.shape != shape:
            raise ValueError(f"{_label(key)} has shape {found.shape}, expected {shape}")
        param = self._layout.dtypes[key]
        if not (found.dtype.isnative and is_floating(found.dtype)) or (found.dtype.kind == "c") != (param.kind == "c"):
            raise TypeError(f"{_label(key)} is {found.dtype}, expected {param} like params[{key!r}]")
        return self._layout.line(key, found, self._travels_in(key, found.dtype))

    def _travels_in(self, key: Hashable, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Return the type of a single part: that of the computation, or a narrower one, which is widened in the sum."""
        param = self._layout.dtypes[key]
        is_double = param in (np.float64, np.complex128)
        if param.kind == "c":
            return np.dtype(np.complex128 if is_double else np.complex64)
        if is_double:
            return np.dtype(np.float64)
        if self._narrowed is not None:
            return self._narrowed
        return dtype if is_narrow(dtype) and not self._hurries else np.dtype(np.float32)

    def described(self) -> str:
        """Return the keys and types of the gradients in words."""
        if self.types != self._described[0]:
            keys = (key for key in self._layout.keys if key in self.types)
            self._described = self.types, repr([(key, str(self.types[key])) for key in keys])
        return self._described[1]

    # Moving.

    def _send(self, agreement: Agreement, to: int = 0) -> None:
        """Send the buckets that are complete and whose turn it is, and those before number `to` as they are."""
        while self._sent < len(self._buckets) and (self._sent < to or not self._missing[self._sent]):
            if self._sent == 0:
                agreement.reach()
                for keys in self._buckets:
                    self._carrier.expect(keys, self._type_of)
            self._carrier.send({key: self._own_nodes(key) for key in self._buckets[self._sent]})
            self._sent += 1

    def _own_nodes(self, key: Hashable) -> list[Array]:
        """Return the sums of this rank: where gradients have not come, arrays of the same size."""
        if self._forests[key].is_full:
            return self._forests[key].arrays
        nodes = self._nodes[self._world.rank]
        return [np.zeros(self._layout.counts[key], self._type_of(key, node.level)) for node in nodes]

    def settle(self) -> None:
        """Wait for all gradients that are under way."""
        self._carrier.settle()

    def rows(self, params: Mapping[Hashable, Array]) -> tuple[dict[Hashable, list[Array]], set[Hashable]]:
        """
        Return, by key, arrays whose sum, as ``sum_parts`` makes it, is the gradient of this rank's piece.

        Also return the keys of parameters that are one memory on all ranks.
        """
        rank = self._world.rank
        if not self._hurries:
            self._carrier.expect(self._buckets[0], self._type_of)
            self._carrier.send({key: self._forests[key].arrays for key in self._buckets[0]})
        common = self._carrier.arrive(params)
        nodes = [node for some in self._nodes for node in some]
        found = {key: [self._forests[key].arrays[0][:0]] for key in self._layout.keys if key in self.types}
        for piece in self._layout.pieces(rank):
            if piece.key not in self.types:
                continue
            own = [node[piece.begin : piece.end] for node in self._forests[piece.key].arrays]
            ranks = range(self._world.size)
            arrays = [array for k in ranks for array in (own if k == rank else self._carrier.nodes(k, piece))]
            room = partial(self._buffer, piece, self._type_of(piece.key, 1))
            found[piece.key] = row_of(nodes, arrays, room)
        return found, common

    def _type_of(self, key: Hashable, level: int) -> np.dtype[Any]:
        """Return the type of a node: a single part in half precision stays so, and sums of such parts are float32."""
        dtype = self.types.get(key)
        if dtype is None:
            dtype = np.empty(0, self._travels_in(key, np.dtype(np.float32))).real.dtype
        return np.dtype(np.float32) if level and is_narrow(dtype) else dtype

    def _buffer(self, piece: Piece, dtype: np.dtype[Any], *name: Hashable) -> Array:
        """Return memory of the length of a piece, the same in each step."""
        label = (piece.key, dtype, *name)
        if label not in self._buffers:
            self._buffers[label] = np.empty(piece.end - piece.begin, dtype)
        return self._buffers[label]


def _pairs_of(gradient: Any) -> Iterable[tuple[Hashable, Any]]:
    """Return the keys and arrays of a container."""
    return zip(*_cpu.leaves(gradient), strict=True)


def _label(key: Hashable) -> str:
    """Return what messages call a gradient."""
    return f"grads[{key!r}]"
