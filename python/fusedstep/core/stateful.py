"""What an optimizer remembers: states and step counts by key, as mappings, as plain values, and back."""

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any, Literal, Self

import numpy as np

from . import rows, snapshot
from .arrays import Array, copied, device_of, fill, is_floating
from .attributes import Attributes
from .containers import check_kept, present, tell_writes
from .hyperparameters import evaluated, integer, on_host
from .memory import Counts, States
from .overrides import concerning
from .progress import Progress, start
from .restore import Copies, Prepared, carry_out, fill_all, restored

__all__ = ["Stateful"]

BUSY = "this optimizer is already in a step, expected one step at a time"
EVALUATED = "the parameters are their averages at present, expected the end of the block of `averaged` first"


class Stateful(Attributes):
    """The base of optimizers, which remember the progress of each parameter."""

    _turn: Lock  # one step at a time
    _busy = BUSY  # what is said where the lock is taken
    _progress: Progress

    @property
    def state(self) -> Mapping[Hashable, Mapping[str, Array]]:
        """
        The states: key -> name -> array, of the shape of its parameter, in the same memory or on the same GPU.

        The arrays are views of the states, which may be written to, not replaced.
        """
        return States(self)

    @property
    def t(self) -> MutableMapping[Hashable, int]:
        """
        The number of finished updates of each parameter: key -> int. On a GPU, reading it waits for the steps.

        A number may be set; what a rule keeps between updates besides arrays stays as it is.
        """
        return Counts(self)

    @contextmanager
    def averaged(self, params: Any) -> Iterator[None]:
        """
        Let parameters be their averages in a `with` block, as for an evaluation, and what they were after it.

        Parameters
        ----------
        params : array, sequence or mapping of arrays
            The parameters, as `step` takes them; some of them will do. They are written in place, and so is whoever
            shares their memory. Arrays that can be no parameters, such as those of integers, stay as they are.

        Raises
        ------
        ValueError
            If a parameter has no average, another shape, or is read-only. Nothing has changed then.
        MemoryError
            If there is no memory for a copy of the parameters.
        RuntimeError
            If this optimizer is in a step, or, in the block, if it is to make one, to be saved or loaded.

        Notes
        -----
        The parameters come back whatever ends the block, also an exception or an interrupt by the user; what the block
        has written to them is lost.

        Examples
        --------
        >>> import numpy as np, fusedstep as fs
        >>> opt, w = fs.SGD(lr=1.0, ema=0.5), np.zeros(2)
        >>> for gradient in (0.0, -1.0):
        ...     result = opt.step(w, np.full(2, gradient))
        >>> with opt.averaged(w):
        ...     w.tolist()
        [0.5, 0.5]
        >>> w.tolist()
        [1.0, 1.0]
        """
        with self._alone():
            parameters = {key: p for key, p in present(params).items() if is_floating(p.dtype)}
            pairs: Copies = [(p, self._average_of(key, p)) for key, p in parameters.items()]
            check_kept(params)
            kept: Copies = [(p, p.copy()) for p in parameters.values()]
            try:
                self._busy = EVALUATED
                with np.errstate(over="ignore"):  # an average of float32 may be an infinity of float16
                    fill_all(pairs)
                tell_writes(params)
                yield
            finally:
                try:
                    fill_all(kept)
                finally:
                    fill_all(kept)  # what an interrupt has left
                    vars(self).pop("_busy", None)
                    tell_writes(params)

    def _average_of(self, key: Hashable, param: Array) -> Array:
        """Return the average of a parameter that may be written to."""
        average = self._progress.ema.get(key)
        if average is None:
            raise ValueError(f"params[{key!r}] has no average, expected one of a step with ema=0.999, say")
        if param.shape != average.shape:
            raise ValueError(f"params[{key!r}] has shape {param.shape}, expected {average.shape} like its average")
        if device_of(param) is None and not param.flags.writeable:
            raise ValueError(f"params[{key!r}] is read-only, expected a writable array")
        return average

    def state_dict(self, names: snapshot.Names = "fusedstep") -> dict[str, Any]:
        """
        Return what this optimizer knows, as plain values and copies of its arrays.

        Parameters
        ----------
        names : {"fusedstep", "torch"}
            What states are called: by the letters of the papers, or as in PyTorch. In the latter, step count and memory
            stand among the states, the step count as "step". What PyTorch does not have, such as the masters of
            half-precision parameters, "master" and "remainder", is called the same in both.

        Returns
        -------
        dict
            "optimizer": the name of the class, with a digest of the program where the rule is one's own.
            "hyperparameters": name -> number, string, bool, None, or the description of a schedule; a function of the
            caller's own is only noted. "t": key -> finished updates. "memory": key -> name -> number, of rules that
            keep numbers between updates. "state": key -> name -> array.
            "ema": key -> array. All keys are those of the caller.

        Raises
        ------
        ValueError
            If `names` is another.
        RuntimeError
            If this optimizer is in a step.

        Examples
        --------
        Parameters of PyTorch have the keys 0, 1, ... Its state dict of an optimizer is made like this:

        >>> import numpy as np, fusedstep as fs
        >>> opt = fs.Adam()
        >>> result = opt.step([np.ones(3)], [np.ones(3)])
        >>> state = opt.state_dict(names="torch")["state"]  # values for torch.as_tensor
        >>> sorted(state[0]), state[0]["step"]
        (['exp_avg', 'exp_avg_sq', 'step'], 1)
        """
        snapshot.check_names(names)
        known = snapshot.described(self._identity(), self._copy())
        return known if names == "fusedstep" else snapshot.to_torch(known, self._torch_names())

    def load_state_dict(
        self,
        saved: Mapping[str, Any],
        names: snapshot.Names = "fusedstep",
        *,
        hyperparameters: Literal["saved", "mine"] | None = None,
        keys: snapshot.Keys | None = None,
    ) -> None:
        """
        Take over what `state_dict` returned: in place, into the arrays that this optimizer has, and new ones.

        Parameters
        ----------
        saved : mapping
            What `state_dict` returned, in this version or an older one. Where "optimizer" or "hyperparameters" are
            missing, those of this optimizer stay. Schedules that are equal to the present ones stay the same objects,
            with the memory that was saved. Arrays are copied; those of other libraries will do. A master that is
            missing begins anew from its parameter.
        names : {"fusedstep", "torch"}
            What its states are called. The state of a PyTorch optimizer is loaded by
            ``opt.load_state_dict({"state": theirs.state_dict()["state"]}, names="torch")``. PyTorch's SGD does not
            count, so that its parameters have one finished update. NumPy cannot view bfloat16 tensors of PyTorch: of
            those, take ``tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)``.
        hyperparameters : {None, "saved", "mine"}
            Whose hyperparameters hold afterwards. None stands for those that were saved, with a warning that lists the
            ones that differ from what this optimizer was told, as by its constructor. The memory of a `plateau` is
            taken over in any case.
        keys : mapping or callable, optional
            New keys of parameters: a mapping of keys that were saved to new ones, in which others stay as they are, or
            a function that returns the new key of a key. Exact keys in overrides are renamed too.

        Warns
        -----
        UserWarning
            If `hyperparameters` is None, and some are replaced that are not the defaults of the class.

        Raises
        ------
        TypeError, ValueError
            If something is missing, unknown, of another type, dtype or shape, or out of range, or if another class has
            saved it. Nothing has changed then.
        BufferError
            If an array of another library does not export its memory.
        RuntimeError
            If this optimizer is in a step.
        """
        snapshot.check_names(names)
        snapshot.check_hyperparameters(hyperparameters, "saved")
        with self._alone():
            self._become(self._prepared(snapshot.renamed(saved, keys), names, hyperparameters))

    def reset(self, key: Hashable) -> None:
        """
        Let a parameter begin anew, as if it had never been stepped: it has no states, average or master, and t is 0.

        Parameters
        ----------
        key : hashable
            The key of the parameter.

        Raises
        ------
        KeyError
            If no step and no checkpoint had this key.
        RuntimeError
            If this optimizer is in a step.
        """
        with self._alone():
            self._progress.check_known([key])
            self._progress = self._progress.reset(key)

    def forget(self, *keys: Hashable) -> None:
        """
        Forget all that is known of parameters that have left: states, averages, masters, and t.

        Parameters
        ----------
        *keys : hashable
            The keys of the parameters.

        Raises
        ------
        KeyError
            If no step and no checkpoint had one of these keys. Nothing is forgotten then.
        RuntimeError
            If this optimizer is in a step.

        Examples
        --------
        >>> import numpy as np, fusedstep as fs
        >>> opt, params = fs.Adam(), {"a": np.ones(2), "b": np.ones(2)}
        >>> result = opt.step(params, {"a": np.ones(2), "b": np.ones(2)})
        >>> del params["b"]
        >>> opt.forget(*(opt.t.keys() - params.keys()))
        >>> dict(opt.t)
        {'a': 1}
        """
        with self._alone():
            self._progress.check_known(keys)
            self._progress = self._progress.without(keys)

    def take(self, key: Hashable, index: Any) -> None:
        """
        Keep some rows of what is known of a parameter, along the first axis: of states, average and master.

        The caller does the same with the parameter: ``params[key] = params[key][index]``. The number of finished
        updates stays as it is. A parameter without states, as of SGD, has nothing to take, and its index is not
        compared with a number of rows.

        Parameters
        ----------
        key : hashable
            The key of the parameter.
        index : slice or array of int or bool
            The rows, as NumPy's indexing has it: in this order, as often as they are named, counted from the end where
            negative; or a bool for each row. The array may lie on a GPU.

        Raises
        ------
        KeyError
            If no step and no checkpoint had this key.
        IndexError
            If the index names rows that are not there, or has too many or too few bools.
        TypeError, ValueError
            If `index` is something else, or the parameter has no dimensions.
        MemoryError
            If there is no memory for the rows.
        RuntimeError
            If this optimizer is in a step.
        """
        index = rows.checked(index)
        with self._alone():
            self._progress.check_rows(key)
            known = self._progress.arrays_of(key)
            if known:
                numbers = rows.numbers(index, len(known[0]), f"params[{key!r}]")
                self._progress = self._progress.remade(key, lambda _, array: rows.taken(array, numbers))

    def grow(self, key: Hashable, n: int, average: Any = None) -> None:
        """
        Let what is known of a parameter have further rows, behind those along the first axis.

        The caller does the same with the parameter: ``params[key] = np.concatenate([params[key], new])``. In the new
        rows, states are the numbers that they start at, 0 but for an initial accumulator, and a master begins with the
        parameter. The number of finished updates stays as it is, and with it the bias correction.

        Parameters
        ----------
        key : hashable
            The key of the parameter.
        n : int
            How many rows there are more.
        average : array, optional
            What the average of the new rows begins with, usually the new rows of the parameter: their shape, or one
            that NumPy broadcasts to it. Needed where the parameter has an average, as with `ema`, since zeros would
            take a long time to be forgotten.

        Raises
        ------
        KeyError
            If no step and no checkpoint had this key.
        TypeError, ValueError
            If `n` is no integer of at least 0, if the parameter has no dimensions, or if `average` does not fit, is
            missing, or is given where there is no average.
        MemoryError
            If there is no memory for the rows.
        RuntimeError
            If this optimizer is in a step.
        """
        n = integer("n", n, 0)
        with self._alone():
            self._progress.check_rows(key)
            self._progress = self._progress.remade(key, self._grower(key, n, average))

    def _grower(self, key: Hashable, n: int, average: Any) -> Callable[[str | None, Array], Array]:
        """Return a function that makes a state, by its name, or the average, without one, of what there was."""
        known = self._progress.ema.get(key)
        if known is None and average is not None:
            raise ValueError(f"average is given, expected None: params[{key!r}] has no average")
        if known is not None and average is None:
            raise ValueError(
                f"average is None, expected what the average of the new rows of params[{key!r}] begins with, usually "
                "these rows"
            )
        begin = None if known is None else rows.broadcast(average, known, n, "average")

        def grown(name: str | None, array: Array) -> Array:
            made = rows.grown(array, n)
            if name is None:
                fill(made[len(array) :], begin)
            elif name == self.accumulator:
                start(made[len(array) :], self._accumulator_of(key, array))
            elif name in self.starts:
                start(made[len(array) :], self.starts[name])
            return made

        return grown

    def _accumulator_of(self, key: Hashable, state: Array) -> float:
        """Return the number that an accumulator starts at; overrides by functions are asked of the accumulator."""
        settings, name = self._settings_with(), "initial_accumulator"
        own = settings.own(concerning(settings.overrides, [key], [state])[0])
        value: float = evaluated({name: (settings.values | own)[name]}, self.t[key], self.ranges)[name]
        return value

    def __getstate__(self) -> dict[str, Any]:
        return self._copy() | {"attributes": self._added()}

    def _copy(self) -> dict[str, Any]:
        with self._alone():
            known = self._known()
            known["state"] = {key: {n: copied(a) for n, a in some.items()} for key, some in known["state"].items()}
            known["ema"] = {key: copied(array) for key, array in known["ema"].items()}
            known["hyperparameters"] = on_host(known["hyperparameters"])
        return known

    def __setstate__(self, known: dict[str, Any]) -> None:
        saved = dict(known)
        self._begin(saved.pop("hyperparameters"))
        vars(self).update(saved.pop("attributes", {}))
        self._become(self._prepared(saved))

    def _with_arrays(self, state: Mapping[Hashable, Mapping[str, Array]], ema: Mapping[Hashable, Array]) -> Self:
        """Return an optimizer that knows what this one knows, with copies of whole arrays in place of parts of them."""
        with self._alone():
            known = self._known() | {"state": state, "ema": ema, "attributes": self._added()}
        other = type(self).__new__(type(self))
        other.__setstate__(known)
        return other

    def _known(self) -> dict[str, Any]:
        """Return all that this optimizer is, as plain values and the arrays themselves."""
        values = self._arguments()
        values["overrides"] = {key: dict(some) for key, some in self.overrides.items()}
        self._progress.plans.wait()
        return {"hyperparameters": values, **self._progress.export(self._present_rule())}

    def _prepared(
        self,
        saved: Any,
        names: snapshot.Names = "fusedstep",
        hyperparameters: str | None = None,
        source: str = "saved",
        strict: bool = True,
    ) -> Prepared:
        """Check a state dict, and return what it will make of this optimizer."""
        saved = snapshot.upgraded(saved)
        snapshot.check_parts(saved, self._identity())
        present = self._known()["hyperparameters"]
        values, plateaus = snapshot.rebuilt(saved, present, hyperparameters == "mine")
        candidate = type(self).__new__(type(self))
        candidate._begin(values)
        snapshot.check_program(saved, candidate._identity())
        replaced = "" if hyperparameters else snapshot.replaced(self, present, values, source, plateaus)
        rule = candidate._present_rule()
        if names == "torch":
            saved = snapshot.from_torch(saved, self._torch_names(), rule.memory)
        possible = {name for some in self._rules() for name in some.states}
        progress, copies = restored(self._progress, saved, rule, possible, self.ranges, strict)
        return Prepared(candidate._values(), replaced, plateaus, progress, copies)

    def _become(self, prepared: Prepared) -> None:
        if prepared.replaced:
            warnings.warn(prepared.replaced, stacklevel=3)
        carry_out(partial(self._fill, prepared))

    def _fill(self, prepared: Prepared) -> None:
        plans = self._progress.plans
        plans.drop()
        fill_all(prepared.copies)
        if prepared.plateaus:
            from fusedstep.schedules.description import remember  # loaded late: few optimizers have one

            remember(prepared.plateaus)
        for name, value in prepared.values.items():
            object.__setattr__(self, name, value)
        prepared.progress.plans.captured = plans.captured
        self._progress = prepared.progress
        self._version = object()

    def _alone(self) -> Lock:
        """Return the lock for a `with` block, or refuse where it is taken."""
        # Nobody looks for signals between the lock's __enter__, which is written in C, and the block.
        if self._turn.locked():
            raise RuntimeError(self._busy)
        return self._turn
