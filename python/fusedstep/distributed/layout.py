"""Which elements of which tensors each rank owns, and how pieces of tensors are packed into messages."""

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np

from fusedstep.core.arrays import Array, order_of
from fusedstep.core.containers import present

__all__ = ["BLOCK", "SMALL", "Layout", "Parcel", "Piece"]

BLOCK = 1024  # elements whose squares a norm adds up first: a piece begins at a whole number of them
SMALL = 1 << 16  # bytes of an array that is not worth a message of its own


class Piece(NamedTuple):
    """Elements of a tensor, which lie one after another in memory."""

    key: Hashable
    begin: int
    end: int


class Layout:
    """
    A cut of all tensors of a container among ranks.

    The tensors are lines of elements, in the order of their keys, and the elements of a tensor are numbered as they lie
    in its memory; a complex number is two of them. Each rank owns the same number of bytes, as nearly as the blocks of
    a norm allow, which are not cut: all from the cut before it to that behind it. So of each tensor it has one piece,
    or none. The cut depends on the keys, sizes and dtypes alone.

    Parameters
    ----------
    params : mapping, sequence or array
        What `step` takes as parameters.
    size : int
        How many ranks.

    Attributes
    ----------
    keys : list
        The keys of all tensors.
    shapes, dtypes, orders, counts : dict
        Of each tensor, by key: its shape and dtype, its axes in the order of memory, and its real numbers.
    description : bytes
        The keys, shapes and dtypes in words.

    Raises
    ------
    ValueError
        If `size` is less than 1, or if a tensor has gaps in memory.
    """

    def __init__(self, params: Any, size: int) -> None:
        if size < 1:
            raise ValueError(f"size is {size}, expected at least 1 rank")
        arrays = present(params)
        self.size = size
        self.keys: list[Hashable] = list(arrays)
        self.shapes = {key: array.shape for key, array in arrays.items()}
        self.dtypes = {key: np.dtype(array.dtype) for key, array in arrays.items()}
        self.orders = {key: order_of(array) for key, array in arrays.items()}
        facts = [(key, array.shape, str(array.dtype)) for key, array in arrays.items()]
        self.description = repr(facts).encode()
        lines = {key: _line(array, self.orders[key], f"params[{key!r}]") for key, array in arrays.items()}
        self.counts = {key: line.size for key, line in lines.items()}
        self._itemsizes: list[int] = [line.itemsize for line in lines.values()]
        self._starts = list(accumulate((line.nbytes for line in lines.values()), initial=0))  # bytes before each tensor
        cuts = [*(self._cut(self._starts[-1] * rank // size) for rank in range(size)), (len(self.keys), 0)]
        self._pieces = [self._between(*pair) for pair in pairwise(cuts)]

    def fits(self, arrays: Mapping[Hashable, Array]) -> bool:
        """Return whether tensors have these keys, shapes, dtypes and orders."""
        return (
            self.shapes == {key: array.shape for key, array in arrays.items()}
            and self.dtypes == {key: array.dtype for key, array in arrays.items()}
            and self.orders == {key: order_of(array) for key, array in arrays.items()}
        )

    def _cut(self, target: int) -> tuple[int, int]:
        """Return where a block begins after about `target` bytes: the number of a tensor, and an element in it."""
        tensor = bisect_right(self._starts, target) - 1  # the last one, if tensors before it are empty
        if tensor == len(self.keys):
            return tensor, 0
        block = BLOCK * self._itemsizes[tensor]
        element = (target - self._starts[tensor] + block // 2) // block * BLOCK
        return (tensor, element) if element < self.counts[self.keys[tensor]] else (tensor + 1, 0)

    def _between(self, first: tuple[int, int], last: tuple[int, int]) -> list[Piece]:
        """Return the pieces from one cut to the next."""
        pieces = []
        for tensor in range(first[0], min(last[0] + 1, len(self.keys))):
            key = self.keys[tensor]
            begin = first[1] if tensor == first[0] else 0
            end = last[1] if tensor == last[0] else self.counts[key]
            if begin < end:
                pieces.append(Piece(key, begin, end))
        return pieces

    def pieces(self, rank: int) -> list[Piece]:
        """Return what a rank owns, in the order of the tensors, without pieces that are empty."""
        return self._pieces[rank]

    def origins(self, rank: int) -> dict[Hashable, int]:
        """Return the first element of what a rank owns of each tensor, and 0 of tensors of which it owns nothing."""
        return dict.fromkeys(self.keys, 0) | {piece.key: piece.begin for piece in self.pieces(rank)}

    def lines(self, arrays: Any, name: str) -> dict[Hashable, Array]:
        """
        Return arrays as lines of elements, in the order of the memory of the parameters.

        Parameters
        ----------
        arrays : mapping, sequence or array
            What `step` takes as parameters or gradients: arrays with the keys and shapes of the parameters.
        name : str
            What errors call the arrays, such as ``"grads"``.

        Returns
        -------
        dict
            Views with one axis, by key. Those of complex arrays are real.

        Raises
        ------
        ValueError
            If keys or shapes are others, or if an array has gaps in memory or lies in another order than its parameter.
        """
        found = present(arrays)
        for key in (*self.keys, *found):
            if key not in found or key not in self.shapes:
                problem = "is missing" if key not in found else "belongs to no parameter"
                raise ValueError(f"{name}[{key!r}] {problem}, expected the keys of the parameters: {_some(self.keys)}")
        for key, array in found.items():
            if array.shape != self.shapes[key]:
                raise ValueError(f"{name}[{key!r}] has shape {array.shape}, expected {self.shapes[key]}")
        return {key: _line(found[key], self.orders[key], f"{name}[{key!r}]") for key in self.keys}

    def line(self, key: Hashable, array: Array, dtype: Any = None) -> Array:
        """Return an array of a tensor's shape as a line, in the tensor's order of memory; a view if it lies so."""
        line: Array = np.ascontiguousarray(array.transpose(self.orders[key]), dtype).reshape(-1)
        return line.view(line.real.dtype) if line.dtype.kind == "c" else line

    def whole(self, key: Hashable, line: Array) -> Array:
        """Return a line as an array of the shape of its tensor, which lies in memory like it."""
        if self.dtypes[key].kind == "c":
            line = line.view(np.result_type(line.dtype, np.complex64))
        order = self.orders[key]
        return line.reshape([self.shapes[key][axis] for axis in order]).transpose(np.argsort(order))

    def views(self, lines: Mapping[Hashable, Array], rank: int) -> dict[Hashable, Array]:
        """Return views of what a rank owns of lines; all keys are there, with empty views where it owns nothing."""
        return {key: lines[key][:0] for key in self.keys} | {
            piece.key: lines[piece.key][piece.begin : piece.end] for piece in self.pieces(rank)
        }


def _line(array: Array, order: Sequence[int], label: str) -> Array:
    """Return an array without gaps as a view with one axis, in the order of memory, of real numbers."""
    rows = array.transpose(order)
    if not rows.flags.c_contiguous:
        raise ValueError(f"{label} has strides {array.strides}, expected no gaps, and the order of the parameter")
    line: Array = rows.reshape(-1)
    return line.view(line.real.dtype) if line.dtype.kind == "c" else line


def _some(keys: Sequence[Hashable]) -> str:
    return ", ".join(map(repr, keys[:5])) + (", ..." if len(keys) > 5 else "")


class Parcel:
    """
    Arrays that travel together between two ranks: large ones as they lie, and small ones in one message.

    The sender and the receiver each make one, of arrays of the same sizes in the same order, and may use it in every
    step as long as the arrays are the same.

    Parameters
    ----------
    arrays : iterable of array
        C-contiguous arrays of any dtypes.
    """

    def __init__(self, arrays: Iterable[Array]) -> None:
        found = [array for array in arrays if array.size]
        small = [array for array in found if array.nbytes < SMALL]
        self._small: list[Array] = []
        self._large = found
        self._packed = np.empty(0, np.uint8)
        if len(small) > 1:
            self._small = [array.reshape(-1).view(np.uint8) for array in small]
            self._large = [array for array in found if array.nbytes >= SMALL]
            self._packed = np.empty(sum(array.size for array in self._small), np.uint8)

    @property
    def messages(self) -> list[Array]:
        """The arrays to receive."""
        return [self._packed, *self._large] if self._small else self._large

    def pack(self) -> list[Array]:
        """Return the arrays to send; small ones are copied."""
        if self._small:
            np.concatenate(self._small, out=self._packed)
        return self.messages

    def unpack(self) -> None:
        """Copy what was received to the small arrays, when it is there."""
        begin = 0
        for array in self._small:
            array[...] = self._packed[begin : begin + array.size]
            begin += array.size
