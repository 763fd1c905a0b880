"""
What all optimizers have in common: hyperparameters, the step, and what an optimizer remembers.

This module knows no formula, pointer or device: it hands arrays and hyperparameters to a plan of the engine.
"""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fusedstep import _cpu

from . import snapshot
from .arrays import Array, copied, fill, is_on_gpu
from .attributes import Attributes, Average
from .hyperparameters import Scheduled, check, evaluated, on_host
from .overrides import Matching, match
from .progress import Progress, noise_id
from .result import PLAIN, Pendings, Result, told

__all__ = ["Optimizer"]

_ONE = 1.0


@dataclass(eq=False, kw_only=True)
class Optimizer(Attributes):
    """
    What all optimizers share: hyperparameters that may change between steps, states by key, and the step.

    A step does the following to every element, in this order, as far as it is asked for: the gradient is multiplied by
    `grad_scale`, clipped by a norm, negated (`maximize`), clipped by value, and the decay is added to it; the rule
    makes an update of the gradient, to which the decoupled decay is added; the update is subtracted from the parameter;
    the average is updated, and the gradient is zeroed. All of this happens in one pass over memory.

    Parameters
    ----------
    grad_scale : float or callable
        Factor on the gradient, in addition to the argument `grad_scale` of `step`.
    clip_value, clip_norm, clip_global_norm : float, callable or None
        Limit above 0 of each element of a gradient, of the norm of each gradient, or of the norm of all gradients of a
        step: what is larger is scaled down to the limit. At most one of the three may be set. Norms are those of
        gradients that have been multiplied by `grad_scale`; where a norm is not finite, `clip_norm` makes the gradient
        0 or NaN and `clip_global_norm` makes everything NaN. A parameter with another `clip_global_norm` in `overrides`
        has a limit of its own on the same norm.
    maximize : bool
        Whether to climb, that is to negate the gradient.
    l1, weight_decay : float or callable
        Strength of the decay: ``l1 * sign(p)`` and ``weight_decay * p`` are added to the gradient (L1, L2). Where
        `decoupled`, ``lr * weight_decay * p`` is subtracted from the parameter beside the update instead (Loshchilov &
        Hutter 2019, "Decoupled weight decay regularization").
    decoupled : bool
        Whether `weight_decay` bypasses the rule.
    ema : float, callable or None
        Decay d of an exponential moving average of the parameters, from 0 to 1: ``e = d e + (1 - d) p`` after each
        update, and ``e = p`` after the first (Polyak & Juditsky 1992, "Acceleration of stochastic approximation by
        averaging"). The averages are in ``optimizer.ema[key]``; ``optimizer.ema.decay`` is the decay, which
        ``optimizer.ema = 0.99`` changes. An average that is switched off and on again goes on from where it was.
    zero_grad : bool
        Whether gradients are set to 0 once they have been read, also in a step that `skip_nonfinite` skips.
    skip_nonfinite : bool
        Whether a step with an infinity or NaN in any gradient leaves parameters, states, averages and step counts as
        they are. The gradients are read once more for this, as for a norm.
    state_dtype : {"float32", "same"}
        The dtype of the states and averages of float16 and bfloat16 parameters: float32, or that of the parameter.
        States and averages that have been made keep their dtype.
    master_weights : {False, True, "split"}
        Whether half-precision parameters have a float32 master, which collects the updates and is rounded to be the
        parameter: ``state[key]["master"]``. With "split", the master is kept as the bfloat16 parameter, which in a tie
        is rounded away from zero, and the 16 bits that the parameter lacks, uint16: ``state[key]["remainder"]``. What
        the caller writes into a parameter counts: there, the master begins anew, but for the 16 bits of a remainder.
    rounding : {"nearest", "stochastic"}
        How results in float32 become float16 or bfloat16: to nearest, or up or down by chance, so that the mean is kept
        and small updates are not lost (Gupta et al. 2015, "Deep learning with limited numerical precision"). A
        parameter with a master is the master rounded to nearest in any case.
    seed : int
        From 0 to below 2**53. The random bits of stochastic rounding are a function of the seed, of the number of the
        update, of the parameter's key and of the element (Philox 4x32-10; Salmon et al. 2011, "Parallel random numbers:
        as easy as 1, 2, 3").
    overrides : mapping
        Key of a parameter, glob pattern of such keys, or `where(function)` -> hyperparameters that hold for these
        parameters only. Later patterns and functions win over earlier ones, and exact keys over both. `groups` tells
        which hyperparameters hold for which parameters.

    Raises
    ------
    TypeError
        If an option does not exist or has a wrong type, at construction or when it is set.
    ValueError
        If a value is out of range, if more than one clipping is set, or if an override asks for another rule than the
        other hyperparameters do.

    Notes
    -----
    Every hyperparameter that is a number may be a function, a schedule: it is called with the number of finished
    updates of the parameter, 0 at the first, and returns the number; see `fusedstep.schedules`.

    For parameters on a GPU, most numbers may also be a float64 array of one element on that GPU: each step reads it and
    nobody checks it, so that a CUDA graph can be replayed with another learning rate.

    An instance makes one step at a time. It can be copied, and pickled if its schedules can; parameters are not part of
    it.
    """

    grad_scale: Scheduled = 1.0
    clip_value: Scheduled | None = None
    clip_norm: Scheduled | None = None
    clip_global_norm: Scheduled | None = None
    maximize: bool = False
    l1: Scheduled = 0.0
    weight_decay: Scheduled = 0.0
    decoupled: bool = False
    ema: Average = Average()  # noqa: RUF009 (a descriptor, the same for all instances)
    zero_grad: bool = False
    skip_nonfinite: bool = False
    state_dtype: Literal["float32", "same"] = "float32"
    master_weights: Literal[False, True, "split"] = False
    rounding: Literal["nearest", "stochastic"] = "nearest"
    seed: int = 0
    overrides: Mapping[Hashable, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._turn = Lock()  # one step at a time
        self._progress = Progress()
        self._plan: _cpu.Plan | None = None
        self._captured: list[_cpu.Plan] = []  # plans of earlier steps that CUDA graphs may repeat
        self._pending = Pendings()
        self._settings = self._settings_with()
        self._check_overrides(self._settings)
        self._matching = Matching.of_nothing(self._settings)
        self._clock_index = np.zeros(0, np.int64)  # index of the clock of each tensor of the plan
        self._stale = self._changed = True
        self._ready = True

    def _begin(self, values: Mapping[str, Any]) -> None:
        super()._begin(values)
        Optimizer.__post_init__(self)

    # Steps.

    def step(self, params: Any, grads: Any, *, grad_scale: Any = _ONE, stream: Any = None) -> Result:
        """
        Update parameters in place, once.

        Parameters
        ----------
        params : array, sequence or mapping of arrays
            The parameters, float32, float64, float16 or bfloat16 (of `ml_dtypes`), of any shape, C-contiguous,
            writable. Updated in place.
        grads : like `params`
            The gradients, each of the shape and dtype of its parameter; or float32 for a half-precision parameter, or
            half precision for a float32 one. A gradient that is None, or missing from a mapping, leaves its parameter,
            states and step count alone. Gradients are only read, unless `zero_grad`.
        grad_scale : float or array
            Factor on all gradients of this step, for example 1 over the scale of the loss or over the number of
            accumulated batches. For parameters on a GPU also a float64 array of one element on that GPU.
        stream : object, optional
            On a GPU, the stream in which to make the step: any object with ``__cuda_stream__``, as streams of CuPy and
            PyTorch have it; by default CuPy's current stream. The step waits for what has been put into CuPy's current
            stream before, and what is put there later waits for the step.

        Returns
        -------
        Result
            The norm of the gradients, if it was needed, and whether the step was skipped.

        Raises
        ------
        TypeError
            If something is not an array, or has a dtype or byte order that is not wanted; if some arrays are in host
            memory and others on a GPU; if `grads` is another kind of container than `params`; or if a scheduled
            hyperparameter is no number.
        ValueError
            If an array is read-only, of another shape, not contiguous, unaligned, or overlaps another one of the
            call or a state; if a gradient is on another GPU than its parameter; if `grads` has another length than
            `params`, or a key that `params` lacks; if a scheduled hyperparameter or `grad_scale` is out of range; or if
            an override fits no parameter.
        BufferError
            If an array of another library does not export its memory.
        MemoryError
            If there is no memory for the states.
        RuntimeError
            If an array is on a GPU that cannot be used, with what CUDA says or what is missing; if this optimizer is
            already in a step; if a first step is captured into a graph; or if `params` changes during the call.

        Notes
        -----
        Everything is checked before the first write: a refused step changes nothing.

        On a GPU, the step is put into a stream and not waited for: one launch derives the scalars and one updates all
        tensors of a device; where gradients are measured, two or three launches come before them. Reading the result,
        `t` or a checkpoint waits. Parameters may be spread over several GPUs.

        A step may be captured into a CUDA graph once it has been made before: each replay is an update, counts, and
        reads `grad_scale` and hyperparameters that are on the GPU anew. The graph uses the states and tables of this
        optimizer, which must live as long; where parameters or options change or a checkpoint is loaded, the step has
        to be captured anew. A step does not know of replays in other streams, and does not wait for them.
        """
        if grad_scale is not _ONE and not is_on_gpu(grad_scale):
            grad_scale = check("grad_scale", grad_scale)
        if not self._turn.acquire(False):
            raise RuntimeError("this optimizer is already in a step, expected one step at a time")
        try:
            if self._stale:
                self._refresh()
            if self._pending:
                self._pending.make_room()
            plan = self._plan
            if plan is not None:
                outcome = plan.run(params, grads, grad_scale, stream)
                if outcome is True:
                    return PLAIN
                if outcome is not False:
                    return self._result(plan, outcome)
            return self._replan(params, grads, grad_scale, stream)
        finally:
            self._turn.release()

    def _result(self, plan: _cpu.Plan, outcome: bool | tuple[float, int | None] | _cpu.PendingFinding) -> Result:
        if isinstance(outcome, bool):
            return PLAIN
        return told(outcome, plan) if isinstance(outcome, tuple) else self._pending.add(outcome, plan)

    def _refresh(self) -> None:
        """Hand hyperparameters to the plan that have changed, or that change with every step."""
        self._stale = False  # reset first: a hyperparameter that is set meanwhile counts in the next step
        changed, self._changed = self._changed, False
        try:
            if changed:
                self._settings = self._settings_with()
                if self._plan is not None and self._matching.can_renew(self._settings):
                    self._match(self._plan.keys)
                else:
                    self._drop_plan()
            if self._plan is not None:
                self._hand_over(self._plan, self._progress, self._clock_index)
        except BaseException:
            self._changed = self._stale = True
            raise

    def _match(self, keys: list[Hashable], params: Any = None) -> None:
        self._matching = match(self._settings, keys, params, self._progress.clock_of, self._matching)

    def _hand_over(self, plan: _cpu.Plan, progress: Progress, clock_index: npt.NDArray[np.int64]) -> None:
        self._stale |= self._matching.is_scheduled
        self._matching.hand_over(plan, progress, clock_index)

    def _drop_plan(self) -> None:
        if self._plan is not None and self._plan.was_captured:
            self._captured.append(self._plan)
        self._plan = None

    def _replan(self, params: Any, grads: Any, grad_scale: Any, stream: Any) -> Result:
        """Make a step with arrays that the plan does not know: check them all, make what they lack, and a new plan."""
        self._drop_plan()
        rule = _cpu.rules[self._settings.rule]
        plan = _cpu.Plan(rule.id, params)
        seen = plan.check(params, grads)
        keys = plan.keys
        self._match(keys, params)

        progress = self._progress.extended(keys)
        counts, values_of = progress.t, self._matching.values()
        for key, look, i in zip(keys, seen, self._matching.layer_of, strict=True):
            if look is not None:
                values, start = values_of[i], dict.fromkeys(rule.states, 0.0)
                if self.accumulator:
                    name = "initial_accumulator"
                    start[self.accumulator] = evaluated({name: values[name]}, counts[key], self.ranges)[name]
                progress.make(
                    key, *look, start, values["state_dtype"], values["ema"] is not None, values["master_weights"]
                )
        states = [progress.state.get(key, {}) for key in keys]
        clock_index = np.array([progress.clock_of[key] for key in keys], np.int64)
        plan.bind(
            [
                (*(s[n] for n in rule.states), progress.ema.get(key), s.get("master", s.get("remainder")))
                if s.keys() >= set(rule.states)
                else None
                for key, s in zip(keys, states, strict=True)
            ],
            progress.clocks,
            clock_index,
            np.array([noise_id(key) for key in keys], np.uint64),
        )
        self._hand_over(plan, progress, clock_index)

        progress.plan = plan
        outcome = plan.run(params, grads, grad_scale, stream)
        if outcome is False:
            raise RuntimeError("params or grads changed while they were looked at, expected them to stay as they are")
        result = self._result(plan, outcome)
        if not result.skipped:  # a step that is skipped leaves no new states or plan behind
            self._progress.become(progress)
            self._plan, self._clock_index = plan, clock_index
        return result

    # What an optimizer remembers.

    @property
    def state(self) -> Mapping[Hashable, Mapping[str, Array]]:
        """
        The states: key -> name -> array, of the shape of its parameter, in the same memory or on the same GPU.

        The arrays may be written to, not replaced.
        """
        return MappingProxyType(self._progress.state)

    @property
    def t(self) -> Mapping[Hashable, int]:
        """The number of finished updates of each parameter: key -> int. On a GPU, reading it waits for the steps."""
        return MappingProxyType(self._progress.t)

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

    def load_state_dict(self, saved: Mapping[str, Any], names: snapshot.Names = "fusedstep") -> None:
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
        with self._alone():
            self._become(self._prepared(saved, names))

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
        self._progress.wait()
        return {"hyperparameters": values, **self._progress.export(self._present_rule())}

    def _prepared(self, saved: Any, names: snapshot.Names = "fusedstep") -> snapshot.Prepared:
        """Check a state dict, and return what it will make of this optimizer."""
        saved = snapshot.upgraded(saved)
        snapshot.check_parts(saved, type(self).__name__)
        values, plateaus = snapshot.rebuilt(saved, self._known()["hyperparameters"])
        candidate = type(self).__new__(type(self))
        candidate._begin(values)
        rule = candidate._present_rule()
        if names == "torch":
            saved = snapshot.from_torch(saved, self._torch_names(), rule.memory)
        possible = {name for some in self._rules() for name in some.states}
        progress, copies = snapshot.restored(self._progress, saved, rule, possible, self.ranges)
        return snapshot.Prepared(candidate._values(), plateaus, progress, copies)

    def _become(self, prepared: snapshot.Prepared) -> None:
        for target, source in prepared.copies:
            fill(target, source)
        if prepared.plateaus:
            from fusedstep.schedules.description import remember  # loaded late: few optimizers have one

            remember(prepared.plateaus)
        for name, value in prepared.values.items():
            object.__setattr__(self, name, value)
        self._progress.become(prepared.progress)
        self._drop_plan()
        self._changed = self._stale = True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._turn.acquire(False):
            raise RuntimeError("this optimizer is already in a step, expected one step at a time")
        try:
            yield
        finally:
            self._turn.release()
