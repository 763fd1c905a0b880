"""The gradients of a step's parts: added up as they come, sent to the ranks that own their pieces, and received."""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from fusedstep import _cpu
from fusedstep.core.arrays import Array, as_array, is_floating, is_narrow

from .agreement import Agreement
from .bundles import Bundles
from .layout import SMALL, Layout
from .sums import Sums
from .tree import parts_of
from .world import World

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
        self._parts = parts
        self._own = parts_of(parts, world.rank, world.size)
        self._sums = Sums(Bundles(layout, {}), world, parts)  # of the gradients of the step
        self._known: dict[Any, Sums] = {}  # by types of gradients
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

    def _begin(self) -> None:
        self.types = {}
        self._hurries, self._sent = False, 0

    def _use(self, types: dict[Hashable, np.dtype[Any]], small: int = SMALL) -> None:
        """Take the sums for gradients of these types, where lines of fewer bytes than `small` are added up together."""
        name = small, *types.items()
        if name not in self._known:
            if not getattr(self._world, "windows", []):  # these stay for ever, so they are used again
                self._known.clear()
            self._known[name] = Sums(Bundles(self._layout, types, small), self._world, self._parts)
        self._sums = self._known[name]
        self._sums.clear()

    def _hurry(self, agreement: Agreement) -> None:
        """Be ready to send gradients while others come: in buckets, as a backward pass finds them, the last first."""
        single = np.dtype(np.float32)
        types = {key: np.empty(0, self._travels_in(key, single)).real.dtype for key in self._layout.keys}
        self._use(types, small=0)
        self._buckets, room = [], 0
        for key in reversed(self._layout.keys):
            if room <= 0:
                self._buckets.append([])
                room = _BUCKET
            self._buckets[-1].append(key)
            room -= self._layout.counts[key] * types[key].itemsize
        self._missing = [len(bucket) for bucket in self._buckets]
        self._bucket_of = {key: i for i, bucket in enumerate(self._buckets) for key in bucket}
        agreement.add("the gradients of a part", "one by one")
        agreement.begin()
        self._hurries = True  # last: from here on, all ranks count on all buckets

    def _add(self, pairs: Iterable[tuple[Hashable, Any]], count: int, agreement: Agreement) -> None:
        """Add the gradients of a part."""
        lines: dict[Hashable, Array] = {}
        is_last = count == len(self._own)
        for key, array in pairs:
            if array is None:
                continue
            if key in lines:
                raise ValueError(f"{_label(key)} comes twice in part {self._own[count - 1]}, expected it once")
            line = self._line_of(key, array)
            if count > 1 and self.types.get(key) != line.dtype:
                self._refuse_type(key, line.dtype, count)
            lines[key] = line
            if self._hurries:
                self._sums.add(key, line)
                if is_last:
                    self._missing[self._bucket_of[key]] -= 1
                    self._send(agreement)
        if count == 1:
            self.types = {key: lines[key].dtype for key in self._layout.keys if key in lines}
        elif lost := [key for key in self.types if key not in lines]:
            self._refuse_type(lost[0], None, count)
        if self._hurries:
            return
        if count == 1:
            self._use(self.types)
        for name in self._sums.bundles.members:
            self._sums.add(name, self._sums.bundles.joined(name, lines))

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
            self._described = self.types, repr([(key, str(dtype)) for key, dtype in self.types.items()])
        return self._described[1]

    # Moving.

    def _send(self, agreement: Agreement, to: int = 0) -> None:
        """Send the buckets that are complete and whose turn it is, and those before number `to` as they are."""
        while self._sent < len(self._buckets) and (self._sent < to or not self._missing[self._sent]):
            if self._sent == 0:
                agreement.reach()
                for keys in self._buckets:
                    self._sums.expect(keys)
            self._sums.send(self._buckets[self._sent])
            self._sent += 1

    def settle(self) -> None:
        """Wait for all gradients that are under way."""
        self._sums.settle()

    def rows(self, params: Mapping[Hashable, Array]) -> tuple[dict[Hashable, list[Array]], set[Hashable]]:
        """
        Return, by key, arrays whose sum, as ``sum_parts`` makes it, is the gradient of this rank's piece.

        Also return the keys of parameters that are one memory on all ranks.
        """
        if not self._hurries:
            names = list(self._sums.bundles.members)
            self._sums.expect(names)
            self._sums.send(names)
        found, common = self._sums.rows(params)
        return {key: found[key] for key in self._layout.keys if key in self.types}, common


def _pairs_of(gradient: Any) -> Iterable[tuple[Hashable, Any]]:
    """Return the keys and arrays of a container."""
    return zip(*_cpu.leaves(gradient), strict=True)


def _label(key: Hashable) -> str:
    """Return what messages call a gradient."""
    return f"grads[{key!r}]"
