"""What an optimizer remembers: states and step counts by key, as mappings, as plain values, and back."""

import warnings
from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any, Literal

from . import snapshot
from .arrays import Array, copied
from .attributes import Attributes
from .hyperparameters import on_host
from .memory import Counts, States
from .progress import Progress
from .restore import Prepared, carry_out, fill_all, restored

__all__ = ["BUSY", "Stateful"]

BUSY = "this optimizer is already in a step, expected one step at a time"


class Stateful(Attributes):
    """The base of optimizers, which remember the progress of each parameter."""

    _turn: Lock  # one step at a time
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
            "optimizer": the name of the class. "hyperparameters": name -> number, string, bool, None, or the
            description of a schedule; a function of the caller's own is only noted. "t": key -> finished updates.
            "memory": key -> name -> number, of rules that keep numbers between updates. "state": key -> name -> array.
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
        known = snapshot.described(type(self).__name__, self._copy())
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
        snapshot.check_parts(saved, type(self).__name__)
        present = self._known()["hyperparameters"]
        values, plateaus = snapshot.rebuilt(saved, present, hyperparameters == "mine")
        candidate = type(self).__new__(type(self))
        candidate._begin(values)
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

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._turn.locked():
            raise RuntimeError(BUSY)
        with self._turn:
            yield
