"""Synchronous steps: ranks compute parts of a gradient, and all of them get the parameters of one process."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from fusedstep.core.arrays import Array, new_array
from fusedstep.core.containers import present, tell_writes
from fusedstep.core.hyperparameters import evaluated
from fusedstep.core.optimizer import Optimizer
from fusedstep.core.parts import measures, squares_of_updates
from fusedstep.core.result import PLAIN, Result

from .agreement import Agreement, agreed
from .gradients import Gradients
from .layout import Layout
from .norms import Norms
from .sharing import Sharing, sharing_of_lines
from .tree import parts_of
from .world import World

__all__ = ["Synchronous"]


class _Shared(NamedTuple):
    """What ranks share of parameters with the same shapes and types."""

    layout: Layout
    gradients: Gradients
    norms: Norms


class _Seen(NamedTuple):
    """The parameters of a step, as they were looked at: arrays, the lines that they are, and what this rank owns."""

    shared: _Shared
    arrays: dict[Hashable, Array]
    lines: dict[Hashable, Array]
    pieces: dict[Hashable, Array]
    origins: dict[Hashable, int]


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
    exchange_dtype : {None, "bfloat16"}
        With "bfloat16", each gradient of a part is rounded to it, to the nearest, if the parameter is one of single or
        half precision and not complex. So a part that travels alone takes half of the bytes; sums travel in float32.
        The rounding does not depend on who computes what, and bits still are those of one process with this argument.

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
        If `parts` is less than the number of ranks, `exchange_dtype` is another, or the optimizer has made steps.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        world: World | None = None,
        *,
        parts: int | None = None,
        exchange_dtype: Literal["bfloat16"] | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer is of type {type(optimizer).__name__}, expected one of fusedstep")
        if world is None:
            from . import world as world_of_the_program

            world = world_of_the_program()
        parts = world.size if parts is None else parts
        if parts < world.size:
            raise ValueError(f"parts is {parts}, expected at least one for each of the {world.size} ranks")
        if exchange_dtype not in (None, "bfloat16"):
            raise ValueError(f"exchange_dtype is {exchange_dtype!r}, expected 'bfloat16' or None")
        if any(optimizer.t.values()):
            raise ValueError("optimizer has made steps, expected a new one: `load` takes up what was saved")
        self.optimizer, self.world, self.parts = optimizer, world, parts
        self._narrowed = None if exchange_dtype is None else new_array((0,), exchange_dtype).dtype
        self._shared: _Shared | None = None
        self._said: _Said | None = None
        self._seen: _Seen | None = None  # in the last step
        self._sharing: tuple[_Seen, set[Hashable], Sharing] | None = None

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

            Each may also be an iterator of pairs (key, gradient), as a backward pass finds them, in any order: then
            those of the rank's last part are sent while the others are computed, about 1 MiB together. They travel in
            the reverse order of `params`, so each waits for those behind it. Ranks give containers, or all give pairs.
            An array may be written to when `step` has returned.
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
            gradients than this rank has parts; if the optimizer has `zero_grad`; or what `Optimizer.step` raises.
            Whatever one rank raises, every rank raises an error that names it, and nothing has been written.
        RuntimeError
            If another rank has met an error. If it met it in the step itself, as when memory runs out, the message says
            that other ranks have made the step: a checkpoint takes all ranks back to one state.
        TimeoutError
            If a rank does not take part.
        """

        def prepare(agreement: Agreement) -> _Seen:
            seen = self._look_at(present(params))
            self._add_facts(agreement, seen.shared.layout, float(grad_scale))
            own = seen.shared.gradients
            own.collect(gradients, agreement)
            agreement.add("gradients", own.described().encode(), own.described)
            return seen

        try:
            seen = agreed(self.world, prepare)
        except TimeoutError:
            raise
        except Exception:
            if self._shared is not None:
                self._shared.gradients.settle()
            raise
        opt, norms = self.optimizer, seen.shared.norms
        rows, common = seen.shared.gradients.rows(seen.arrays)
        sums = norms.squares_of_gradients(rows) if cast(_Said, self._said).measures else None
        result, error = PLAIN, None
        try:
            result = opt._step_parts(
                seen.pieces,
                {key: row[0] for key, row in rows.items()},
                grad_scale=grad_scale,
                origins=seen.origins,
                wholes=seen.arrays,
                sums=sums,
                others={key: row[1:] for key, row in rows.items() if len(row) > 1} or None,
            )
        except Exception as problem:  # is raised when all ranks have been told
            error = problem
        tell_writes(params)
        self._sharing_of(seen, common).share(error)
        if opt.measure != "update" or result.skipped:
            return result
        return replace(result, update_norm=norms.of_updates(squares_of_updates(opt._progress)))

    def _shared_of(self, arrays: dict[Hashable, Array]) -> _Shared:
        """Return what is known of these parameters: that of the last step, if shapes and types are the same."""
        if self._shared is None or not self._shared.layout.fits(arrays):
            layout = Layout(arrays, self.world.size)
            gradients = Gradients(layout, self.world, self.parts, self._narrowed)
            self._shared = _Shared(layout, gradients, Norms(self.world, layout))
        return self._shared

    def _look_at(self, arrays: dict[Hashable, Array]) -> _Seen:
        """Return the parameters as they were seen in the last step, if they are the same arrays, or look at them."""
        seen = self._seen
        if (
            seen is None
            or seen.shared is not self._shared
            or len(seen.arrays) != len(arrays)
            or any(
                seen.arrays.get(key) is not array or array.shape != seen.shared.layout.shapes[key]
                for key, array in arrays.items()
            )
        ):
            shared = self._shared_of(arrays)
            layout, rank = shared.layout, self.world.rank
            lines = layout.lines(arrays, "params")
            seen = self._seen = _Seen(shared, arrays, lines, layout.views(lines, rank), layout.origins(rank))
        for key, array in arrays.items():
            if not array.flags.writeable:
                raise ValueError(f"params[{key!r}] is read-only, expected a writable array")
        return seen

    def _sharing_of(self, seen: _Seen, common: set[Hashable]) -> Sharing:
        """Return what sends new parameters, but for those that are one memory on all ranks: that of the last step."""
        if self._sharing is None or self._sharing[0] is not seen or self._sharing[1] != common:
            some = {key: line for key, line in seen.lines.items() if key not in common}
            self._sharing = seen, common, sharing_of_lines(self.world, seen.shared.layout, some)
        return self._sharing[2]

    def _add_facts(self, agreement: Agreement, layout: Layout, grad_scale: float) -> None:
        opt = self.optimizer
        if self._said is None or self._said.version is not opt._version:
            self._said = _said(opt)
        said, counts = self._said, opt._progress.counts
        agreement.add("parts", self.parts)
        agreement.add("exchange_dtype", self._narrowed)
        agreement.add("grad_scale in the call", grad_scale)
        agreement.add("optimizer", type(opt).__name__)
        agreement.add("parameters", layout.description, layout.description.decode)
        agreement.add("hyperparameters", said.text, lambda: said.words)
        agreement.add("t", counts.tobytes(), lambda: repr(dict(opt.t)))
        for done in sorted({*counts.tolist()} or {0}) if said.schedules else ():
            for name, value in said.schedules:
                agreement.add(f"{name}({done})", evaluated({name: value}, done, opt.ranges)[name])

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
        layout = self._shared_of(present(params)).layout
        saved = self.optimizer.state_dict()
        lines: dict[tuple[str, Hashable, str], Array] = {}
        for part, key, name, piece in _arrays_in(saved):
            lines[part, key, name] = whole = np.empty(layout.counts[key], piece.dtype)
            for owned in layout.pieces(self.world.rank):
                if owned.key == key:
                    whole[owned.begin : owned.end] = piece
        for part, name in dict.fromkeys((part, name) for part, _, name in lines):
            some = {key: line for (p, key, n), line in lines.items() if (p, n) == (part, name)}
            sharing_of_lines(self.world, layout, some).share()
        return _with_arrays(saved, lambda part, key, name, _: layout.whole(key, lines[part, key, name]))

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
        layout = self._shared_of(present(params)).layout
        owned = {piece.key: piece for piece in layout.pieces(self.world.rank)}

        def cut(_part: str, key: Hashable, _name: str, array: Array) -> Array:
            line = layout.line(key, array)
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


class _Said(NamedTuple):
    """The hyperparameters of an optimizer, as ranks compare them."""

    version: object
    words: dict[str, str]
    text: bytes
    schedules: list[tuple[str, Any]]  # functions, of the optimizer and of its overrides
    measures: bool  # whether a step needs sums of squares


def _said(opt: Optimizer) -> _Said:
    """Return the hyperparameters as ranks compare them, or refuse those that ranks cannot share."""
    version, arguments = opt._version, opt._arguments()
    if opt.zero_grad or any(some.get("zero_grad") for some in opt.overrides.values()):
        raise ValueError("zero_grad is True, expected False: the gradients of parts are only read")
    words = {name: _text_of(value) for name, value in arguments.items()}
    some = [pair for values in (arguments, *opt.overrides.values()) for pair in values.items() if callable(pair[1])]
    return _Said(version, words, repr(words).encode(), some, measures(opt._settings_with()))


def _text_of(value: Any) -> str:
    """Return a text that is the same on all ranks: of a function, its name."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_text_of(some)}" for key, some in value.items()) + "}"
    if callable(value):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    return repr(value)
