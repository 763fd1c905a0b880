"""Synchronous steps: ranks compute parts of a gradient, and all of them get the parameters of one process."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from fusedstep.core.arrays import Array, order_of
from fusedstep.core.containers import present
from fusedstep.core.optimizer import Optimizer
from fusedstep.core.result import Result

from .agreement import Agreement, agreed
from .exchange import Exchange
from .tree import parts_of
from .world import World

__all__ = ["Synchronous"]


class Synchronous:
    """
    An optimizer whose step is shared by the ranks of a world, with the bits of one process.

    A step has a fixed number of parts, micro-batches of one shape. Each rank computes the gradients of some parts, next
    to each other. Their sum is that of a balanced tree over all parts, so that its bits depend neither on the number of
    ranks nor on who computes what. Each rank owns a piece of the parameters, as large as that of the others: it gets
    the sums of the gradients there, keeps the states of the piece alone, updates it, and sends it to all.

    Parameters
    ----------
    optimizer : Optimizer
        Any optimizer of `fusedstep` that has made no step yet. It is used from now on by this object alone; its
        hyperparameters may be changed, on all ranks alike.
    world : World, optional
        The ranks; by default those of `fusedstep.distributed.world`.
    parts : int, optional
        How many parts a step has, at least as many as there are ranks; by default one for each rank. Bits are the same
        for any number of ranks if `parts` is. A multiple of the numbers of ranks that will ever run sends the fewest
        bytes.

    Attributes
    ----------
    optimizer : Optimizer
        Whose states are those of this rank's piece of each parameter, as arrays with one axis.
    world : World
        The ranks.
    parts : int
        How many parts a step has.

    Raises
    ------
    TypeError
        If `optimizer` is no optimizer.
    ValueError
        If `parts` is less than the number of ranks, or the optimizer has made steps.
    """

    def __init__(self, optimizer: Optimizer, world: World | None = None, *, parts: int | None = None) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer is of type {type(optimizer).__name__}, expected one of fusedstep")
        if world is None:
            from . import world as world_of_the_program

            world = world_of_the_program()
        parts = world.size if parts is None else parts
        if parts < world.size:
            raise ValueError(f"parts is {parts}, expected at least one for each of the {world.size} ranks")
        if any(optimizer.t.values()):
            raise ValueError("optimizer has made steps, expected a new one: `load` takes up what was saved")
        self.optimizer, self.world, self.parts = optimizer, world, parts
        self._exchange: Exchange | None = None

    def share(self, rows: Any) -> Iterator[Any]:
        """
        Return this rank's parts of the rows of a batch.

        Parameters
        ----------
        rows : array or sequence
            The rows of a batch, or their numbers: the same on every rank, cut into `parts` parts of one length.

        Yields
        ------
        array or sequence
            The rows of each part of this rank, in order.

        Raises
        ------
        ValueError
            If the number of rows is no multiple of `parts`: gradients of parts with different shapes have other bits.
        """
        if len(rows) % self.parts:
            raise ValueError(f"rows has {len(rows)} rows, expected a multiple of the {self.parts} parts")
        length = len(rows) // self.parts
        for part in parts_of(self.parts, self.world.rank, self.world.size):
            yield rows[part * length : (part + 1) * length]

    def step(self, params: Any, gradients: Iterable[Any], *, grad_scale: float = 1.0) -> Result:
        """
        Update parameters in place, once, on all ranks.

        All ranks have to call this, with the same parameters.

        Parameters
        ----------
        params : array, or containers of arrays
            The parameters, as `Optimizer.step` takes them: C-contiguous or dense in another order, in host memory.
        gradients : iterable of containers
            The gradients of this rank's parts, in their order, each as `Optimizer.step` takes gradients. A generator is
            asked for one after the other; only their sums are kept. A parameter without a gradient in one part has none
            in any.
        grad_scale : float
            Factor on the sum of all gradients, for example 1 over the number of parts.

        Returns
        -------
        Result
            The same on every rank, with the norm of the gradient of all parts.

        Raises
        ------
        ValueError
            If ranks disagree about parameters, hyperparameters, step counts or `grad_scale`; if there are more or fewer
            gradients than this rank has parts; or what `Optimizer.step` raises. Whatever one rank raises, every rank
            raises an error that names it, and nothing has been written.
        TimeoutError
            If a rank does not take part.
        """

        def prepare(agreement: Agreement) -> tuple[dict[Hashable, Array], Exchange, dict[Hashable, list[Array]]]:
            arrays = present(params)
            exchange = self._exchange_of(arrays)
            mine = exchange.summed(gradients)
            self._add_facts(agreement, exchange, float(grad_scale))
            return arrays, exchange, mine

        arrays, exchange, mine = agreed(self.world, prepare)
        grads = exchange.sums(mine)
        lines = exchange.layout.lines(arrays, "params")
        result = self.optimizer._step_parts(
            exchange.layout.views(lines, self.world.rank),
            grads,
            grad_scale=grad_scale,
            origins=exchange.layout.origins(self.world.rank),
            wholes=arrays,
            sums=exchange.squares(grads) if self.optimizer._measures() else None,
        )
        exchange.share_lines(lines)
        return result

    def _exchange_of(self, arrays: dict[Hashable, Array]) -> Exchange:
        """Return the messages for these parameters: those of the last step, if shapes and types are the same."""
        known = self._exchange
        if (
            known is None
            or known.shapes != {key: array.shape for key, array in arrays.items()}
            or known.dtypes != {key: array.dtype for key, array in arrays.items()}
            or known.orders != {key: order_of(array) for key, array in arrays.items()}
        ):
            known = self._exchange = Exchange(arrays, self.world, self.parts)
        return known

    def _add_facts(self, agreement: Agreement, exchange: Exchange, grad_scale: float) -> None:
        opt = self.optimizer
        agreement.add("parts", self.parts)
        agreement.add("grad_scale", grad_scale)
        agreement.add("optimizer", type(opt).__name__)
        agreement.add("parameters", [(key, exchange.shapes[key], str(exchange.dtypes[key])) for key in exchange.shapes])
        agreement.add("gradients", [(key, str(dtype)) for key, dtype in exchange.types.items()])
        for name, value in opt._arguments().items():
            agreement.add(name, _text_of(value), partial(_text_of, value))
        agreement.add("t", dict(opt.t))

    # States.

    def state_dict(self, params: Any) -> dict[str, Any]:
        """
        Return what the optimizer of one process would know, on every rank; all ranks have to call this.

        Parameters
        ----------
        params : array, or containers of arrays
            The parameters.

        Returns
        -------
        dict
            As `Optimizer.state_dict` returns it, with whole arrays.
        """
        exchange = self._exchange_of(present(params))
        saved = self.optimizer.state_dict()
        lines: dict[tuple[str, Hashable, str], Array] = {}
        for part, key, name, piece in _arrays_in(saved):
            lines[part, key, name] = whole = np.empty(exchange.counts[key], piece.dtype)
            for owned in exchange.layout.pieces(self.world.rank):
                if owned.key == key:
                    whole[owned.begin : owned.end] = piece
        for part, name in dict.fromkeys((part, name) for part, _, name in lines):
            exchange.share_lines({key: line for (p, key, n), line in lines.items() if (p, n) == (part, name)})
        return _with_arrays(saved, lambda part, key, name, _: exchange.whole(key, lines[part, key, name]))

    def load_state_dict(self, saved: Mapping[str, Any], params: Any, **options: Any) -> None:
        """
        Take over what `state_dict` returned, here or in an optimizer of one process: each rank keeps its pieces.

        Parameters
        ----------
        saved : mapping
            What `state_dict` returned, the same on every rank.
        params : array, or containers of arrays
            The parameters.
        **options
            As `Optimizer.load_state_dict` takes them.
        """
        exchange = self._exchange_of(present(params))
        owned = {piece.key: piece for piece in exchange.layout.pieces(self.world.rank)}

        def cut(_part: str, key: Hashable, _name: str, array: Array) -> Array:
            line = exchange.line(key, array)
            return line[owned[key].begin : owned[key].end] if key in owned else line[:0]

        self.optimizer.load_state_dict(_with_arrays(saved, cut), **options)


def _arrays_in(saved: Mapping[str, Any]) -> Iterator[tuple[str, Hashable, str, Array]]:
    """Return the arrays of a state dict, each with its part, key and name."""
    for key, states in saved.get("state", {}).items():
        for name, array in states.items():
            yield "state", key, name, array
    for key, array in saved.get("ema", {}).items():
        yield "ema", key, "", array


def _with_arrays(saved: Mapping[str, Any], remade: Callable[[str, Hashable, str, Array], Array]) -> dict[str, Any]:
    """Return a state dict with other arrays, made of part, key, name and array."""
    found: dict[str, Any] = {**saved, "state": {key: {} for key in saved.get("state", {})}, "ema": {}}
    for part, key, name, array in _arrays_in(saved):
        if part == "state":
            found["state"][key][name] = remade(part, key, name, array)
        else:
            found["ema"][key] = remade(part, key, name, array)
    return found


def _text_of(value: Any) -> str:
    """Return a text that is the same on all ranks: of a function, its name."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_text_of(some)}" for key, some in value.items()) + "}"
    if callable(value):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    return repr(value)
