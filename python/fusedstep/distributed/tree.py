"""
The sum of the parts of a step, in an order that depends on the number of the parts alone.

The parts 0, 1, ... are the leaves of a balanced tree. Level by level, neighbours are added: (0+1), (2+3), and so on; a
node without a neighbour goes up as it is. A rank adds up complete subtrees of the parts that it has, and whoever needs
the whole sum adds up these. So the sum has the same bits however many ranks there are.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from fusedstep import _cpu
from fusedstep.core.arrays import Array, is_narrow

__all__ = ["Forest", "Node", "nodes_of", "parts_of", "row_of"]


class Node(NamedTuple):
    """A complete subtree: the sum of the 2**level parts from place * 2**level on."""

    level: int
    place: int


def parts_of(parts: int, rank: int, size: int) -> range:
    """Return the parts of a step that a rank computes; the ranks share them as evenly as they can, in order."""
    return range(parts * rank // size, parts * (rank + 1) // size)


def nodes_of(lo: int, hi: int) -> list[Node]:
    """Return the largest complete subtrees over the parts lo, lo + 1, ..., hi - 1, in their order."""
    nodes = []
    while lo < hi:
        level = 0
        while lo % (2 << level) == 0 and lo + (2 << level) <= hi:
            level += 1
        nodes.append(Node(level, lo >> level))
        lo += 1 << level
    return nodes


def _sum_dtype(arrays: Iterable[Array]) -> np.dtype[Any]:
    """Return the dtype of a sum: float32 for halves, which are widened."""
    dtype = next(iter(arrays)).dtype
    return np.dtype(np.float32) if is_narrow(dtype) else dtype


class Forest:
    """
    Sums of the parts lo, lo + 1, ..., hi - 1 of an array, as the parts come, one after another.

    There are never more than log2(parts) + 1 sums, which are kept for the next step. A part may be written to when
    `add` has returned, but for the last one: where it is a node by itself, it stands for itself in `arrays`.

    Parameters
    ----------
    lo, hi : int
        The first part, and the one after the last.
    """

    def __init__(self, lo: int, hi: int) -> None:
        self._lo = lo
        self._hi = hi
        self._next = lo
        self._stack: list[tuple[Node, Array]] = []
        self._own: list[Array] = []  # the arrays of the stack that are not the caller's
        self._free: list[Array] = []

    def add(self, part: Array) -> None:
        """
        Add the next part.

        Parameters
        ----------
        part : array
            C-contiguous, with the shape and dtype of the parts before it. It is not written to.

        Raises
        ------
        ValueError
            If there is no next part.
        """
        if self._next == self._hi:
            raise ValueError(f"part {self._next} is one too many, expected the parts {self._lo} to {self._hi - 1}")
        node, total = Node(0, self._next), part
        self._next += 1
        while self._stack and node.place % 2 and self._stack[-1][0].level == node.level:
            _, left = self._stack.pop()
            out = self._room(left.shape, _sum_dtype([left]), left, total)
            _cpu.sum_parts([left, total], out)
            self._release(left, out)
            self._release(total, out)
            node, total = Node(node.level + 1, node.place >> 1), out
        if total is part and self._next < self._hi:
            total = self._room(part.shape, part.dtype)
            total[...] = part
        self._stack.append((node, total))

    @property
    def arrays(self) -> list[Array]:
        """
        The sums, in the order of ``nodes_of(lo, hi)``.

        Raises
        ------
        ValueError
            If a part has not been added.
        """
        if self._next < self._hi:
            raise ValueError(f"part {self._next} has not been added, expected all parts to {self._hi - 1}")
        return [array for _, array in self._stack]

    @property
    def is_full(self) -> bool:
        """Whether all parts have been added."""
        return self._next == self._hi

    def clear(self) -> None:
        """Begin with the first part again, and keep the memory of the sums, which are then written to."""
        for _, array in self._stack:
            self._release(array)
        self._stack = []
        self._next = self._lo

    def rooms(self, dtype: np.dtype[Any]) -> int:
        """Return how many arrays of a dtype are enough for all sums, and for the nodes that are none of them."""
        own = [array for array in self._own if array.dtype == dtype]
        return len(own) + sum(all(array is not each for each in own) for array in self.arrays)

    def move(self, rooms: Iterable[Array]) -> None:
        """Keep sums of one dtype in these arrays from now on, and copy those that there are."""
        free = list(rooms)
        self._own = [array for array in self._own if array.dtype != free[0].dtype]
        self._free = [array for array in self._free if array.dtype != free[0].dtype]
        for i, (node, array) in enumerate(self._stack):
            if node.level and array.dtype == free[0].dtype:
                self._own.append(free.pop())
                self._own[-1][...] = array
                self._stack[i] = node, self._own[-1]
        self._own += free
        self._free += free

    def _room(self, shape: tuple[int, ...], dtype: np.dtype[Any], *reusable: Array) -> Array:
        """Return an array of the forest to write to: one of those that are not needed any more, if one fits."""
        for array in (*(each for each in reusable if self._is_own(each)), *self._free):
            if array.shape == shape and array.dtype == dtype:
                self._free = [each for each in self._free if each is not array]
                return array
        array = np.empty(shape, dtype)
        self._own.append(array)
        return array

    def _release(self, array: Array, unless: Array | None = None) -> None:
        if self._is_own(array) and array is not unless:
            self._free.append(array)

    def _is_own(self, array: Array) -> bool:
        return any(each is array for each in self._own)


def row_of(nodes: Sequence[Node], arrays: Sequence[Array], room: Callable[[int], Array]) -> list[Array]:
    """
    Return arrays whose sum, as ``sum_parts`` makes it, is that of the whole tree.

    Parameters
    ----------
    nodes : sequence of Node
        Nodes that contain each part once, in the order of the parts.
    arrays : sequence of array
        The sum of each node: C-contiguous, of one shape, in one dtype or, where it is float32, for a single part in
        float16 or bfloat16. They stay as they are.
    room : callable
        Returns memory for the sum number 0, 1, ... that has to be made, of that shape and dtype. Nodes of the highest
        level need none.
    """
    top = max(node.level for node in nodes)
    if all(node.level == top for node in nodes):
        return list(arrays)
    numbers = count()
    return _row(list(zip(nodes, arrays, strict=True)), top, lambda: room(next(numbers)))


def _row(nodes: list[tuple[Node, Array]], level: int, room: Callable[[], Array]) -> list[Array]:
    """Return the sums of all subtrees of a level; missing ones are added up."""
    row = []
    while nodes:
        node, array = nodes[0]
        place = node.place >> (level - node.level)
        below = [each for each in nodes if each[0].place >> (level - each[0].level) == place]
        nodes = nodes[len(below) :]
        if len(below) > 1:
            array = room()
            _cpu.sum_parts(_row(below, max(each.level for each, _ in below), room), array)
        row.append(array)
    return row
