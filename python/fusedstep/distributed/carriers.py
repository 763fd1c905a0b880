"""How sums of a rank's gradients come to the ranks that own their pieces: in messages, or in memory of all ranks."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fusedstep.core.arrays import LINE, Array

from .bundles import Bundles
from .layout import Parcel, Piece
from .tree import Forest, Node
from .windows import Place, array_at, place_of
from .world import Windows, World

__all__ = ["Carrier", "Memory", "Messages"]


class Carrier(Protocol):
    """What brings nodes of the tree, arrays with the keys and lengths of lines, to those who need pieces of them."""

    def expect(self, names: Sequence[Hashable]) -> None:
        """Let nodes of others come. All ranks expect and send the same bundles, in one order."""
        ...

    def send(self, mine: Mapping[Hashable, list[Array]]) -> None:
        """Let nodes of this rank go."""
        ...

    def settle(self) -> None:
        """Wait for what is under way."""
        ...

    def arrive(self, params: Mapping[Hashable, Array], /) -> set[Hashable]:
        """Wait until all nodes can be read. Return the keys of parameters that are one memory on all ranks."""
        ...

    def nodes(self, rank: int, piece: Piece) -> list[Array]:
        """Return a piece of the nodes of another rank."""
        ...


class Messages:
    """
    Nodes that are sent, piece by piece, to arrays that are kept for the next step.

    Parameters
    ----------
    bundles : Bundles
        The lines, and who owns which pieces of them.
    world : World
        The ranks.
    nodes_of_ranks : sequence of sequences of Node
        The nodes of each rank.
    """

    def __init__(self, bundles: Bundles, world: World, nodes_of_ranks: Sequence[Sequence[Node]]) -> None:
        self._bundles = bundles
        self._world = world
        self._nodes = nodes_of_ranks
        self._others = [rank for rank in range(world.size) if rank != world.rank]
        self._under_way: list[tuple[Any, list[Parcel]]] = []  # what `wait` is called with, and what is unpacked then
        self._rooms: dict[tuple[int, Hashable], list[Array]] = {}

    def expect(self, names: Sequence[Hashable]) -> None:
        expected = set(names)
        wanted = [piece for piece in self._bundles.pieces(self._world.rank) if piece.key in expected]
        arriving = {k: Parcel(room for piece in wanted for room in self._room(k, piece)) for k in self._others}
        receives = [(k, array) for k, parcel in arriving.items() for array in parcel.messages]
        self._under_way.append((self._world.start([], receives), list(arriving.values())))

    def send(self, mine: Mapping[Hashable, list[Array]]) -> None:
        leaving = {
            k: Parcel(node[p.begin : p.end] for p in self._bundles.pieces(k) if p.key in mine for node in mine[p.key])
            for k in self._others
        }
        sends = [(k, array) for k, parcel in leaving.items() for array in parcel.pack()]
        self._under_way.append((self._world.start(sends, []), []))

    def _room(self, rank: int, piece: Piece) -> list[Array]:
        """Return where the nodes of another rank are received."""
        if (rank, piece.key) not in self._rooms:
            types = [self._bundles.type_of(piece.key, node.level) for node in self._nodes[rank]]
            self._rooms[rank, piece.key] = [np.empty(piece.end - piece.begin, dtype) for dtype in types]
        return self._rooms[rank, piece.key]

    def settle(self) -> None:
        while self._under_way:
            handle, parcels = self._under_way.pop(0)
            self._world.wait(handle)
            for parcel in parcels:
                parcel.unpack()

    def arrive(self, _: Mapping[Hashable, Array]) -> set[Hashable]:
        self.settle()
        return set()

    def nodes(self, rank: int, piece: Piece) -> list[Array]:
        return self._rooms[rank, piece.key]


class Memory:
    """
    Nodes that others read where they lie, in windows. What lies elsewhere is copied to a window first.

    Parameters
    ----------
    bundles : Bundles
        The lines, and who owns which pieces of them.
    world : Windows
        The ranks.
    nodes_of_ranks : sequence of sequences of Node
        The nodes of each rank.
    forests : mapping
        Key -> forest of this rank, which is given memory that others see, if the nodes do not lie there by themselves.
    """

    def __init__(
        self,
        bundles: Bundles,
        world: Windows,
        nodes_of_ranks: Sequence[Sequence[Node]],
        forests: Mapping[Hashable, Forest],
    ) -> None:
        self._bundles = bundles
        self._world = world
        self._nodes = nodes_of_ranks
        self._forests = forests
        self._names: list[Hashable] = []  # of the step
        self._rooms: dict[Hashable, list[Array]] = {}
        self._tables: list[dict[Hashable, Array]] = []  # of each rank: by key, the places of its nodes
        self._views: dict[tuple[Any, ...], Array] = {}
        self._known: dict[tuple[int, int], Place] = {}  # by address and bytes

    def expect(self, names: Sequence[Hashable]) -> None:
        self._names += names

    def send(self, mine: Mapping[Hashable, list[Array]]) -> None:
        pass  # they are there

    def settle(self) -> None:
        self._names = []

    def arrive(self, params: Mapping[Hashable, Array]) -> set[Hashable]:
        keys, self._names = self._names, []
        tables = self._told(keys, params)
        if any((of_nodes < 0).any() for of_nodes, _ in tables):
            self._make_room(keys)
            tables = self._told(keys, params)
        self._tables = [dict(zip(keys, of_nodes, strict=True)) for of_nodes, _ in tables]
        places = np.array([of_params for _, of_params in tables])
        is_one = ((places >= 0) & (places == places[0])).all((0, 2))
        return {key for key, one in zip(params, is_one, strict=True) if one}

    def _told(self, keys: list[Hashable], params: Mapping[Hashable, Array]) -> list[list[Array]]:
        """
        Let each rank tell all others where its nodes and its parameters lie, or -1 where that is in no window.

        Who is told may read them.
        """
        world = self._world
        tables = [[np.full((len(keys), len(nodes), 3), -1), np.full((len(params), 3), -1)] for nodes in self._nodes]
        own = tables[world.rank]
        for i, key in enumerate(keys):
            own[0][i] = self._places_of(key)
        for i, param in enumerate(params.values()):
            own[1][i] = self._place(param)
        others = [rank for rank in range(world.size) if rank != world.rank]
        sends = [(k, table) for k in others for table in own]
        world.wait(world.start(sends, [(k, table) for k in others for table in tables[k]]))
        return tables

    def _place(self, array: Array) -> tuple[int, int, int]:
        if not array.size:
            return 0, 0, 0
        address = array.__array_interface__["data"][0], array.nbytes
        if address not in self._known:
            place = place_of(array, self._world)
            if place is None:
                return -1, -1, -1
            self._known[address] = place  # for ever: windows stay where they are
        return self._known[address]

    def _places_of(self, key: Hashable) -> list[tuple[int, int, int]]:
        """Return where nodes of this rank lie. Those that lie in no window are copied to rooms, if there are any."""
        nodes = self._forests[key].arrays
        places = [self._place(node) for node in nodes]
        for i, node in enumerate(nodes):
            if places[i][0] < 0:
                for room in self._rooms.get(key, []):
                    if not any(np.shares_memory(room, other) for other in nodes):
                        nodes[i] = room.view(node.dtype)[: node.size]
                        nodes[i][...] = node
                        places[i] = self._place(nodes[i])
                        break
        return places

    def _make_room(self, keys: list[Hashable]) -> None:
        """Make memory that others see for the sums of this rank's gradients; all ranks do so."""
        sizes = []
        for key in keys:
            dtype = self._bundles.type_of(key, 1)
            line = -(-self._bundles.counts[key] * dtype.itemsize // LINE) * LINE
            sizes.append((key, dtype, line, self._forests[key].rooms(dtype)))
        memory = self._world.window(sum(line * count for _, _, line, count in sizes))[self._world.rank]
        begin = 0
        for key, dtype, line, count in sizes:
            rooms = [memory[begin + i * line : begin + (i + 1) * line] for i in range(count)]
            begin += line * count
            self._rooms[key] = [room.view(dtype)[: self._bundles.counts[key]] for room in rooms]
            self._forests[key].move(self._rooms[key])

    def nodes(self, rank: int, piece: Piece) -> list[Array]:
        found = []
        places = self._tables[rank][piece.key].tolist()
        for node, (owner, window, offset) in zip(self._nodes[rank], places, strict=True):
            dtype = self._bundles.type_of(piece.key, node.level)
            name = owner, window, offset, piece, dtype
            if name not in self._views:
                place = Place(owner, window, offset + piece.begin * dtype.itemsize)
                self._views[name] = array_at(self._world, place, dtype, [piece.end - piece.begin])
            found.append(self._views[name])
        return found
