"""
What all optimizers have in common: hyperparameters, and the step.

This module knows no formula, pointer or device: it hands arrays and hyperparameters to a plan of the engine.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Literal

from fusedstep import _cpu

from .arrays import is_on_gpu
from .attributes import Average
from .containers import Bound, renamed
from .hyperparameters import Bounds, Scheduled, check, evaluated
from .overrides import Matching, Settings, match
from .parts import Parts, parts
from .plans import Planned, mark_of
from .progress import Look, Progress
from .result import PLAIN, Pendings, Result, told
from .stateful import Stateful

__all__ = ["Optimizer"]


_ONE = 1.0


@dataclass(eq=False, kw_only=True)
class Optimizer(Stateful):
    """
    What all optimizers share: hyperparameters that may change between steps, states by key, and the step.

    A step does the following to every element, in this order, as far as it is asked for: the gradient is multiplied by
    `grad_scale`, clipped by a norm, negated (`maximize`), clipped by value, and the decay is added to it; the rule
    makes an update of the gradient, to which the decoupled decay is added; the update is subtracted from the parameter,
    which is kept within `bounds`; the average is updated, and the gradient is zeroed. All of this happens in one pass
    over memory.

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
    bounds : (float or None, float or None) or None
        Lowest and highest value of a parameter after an update: what is beyond becomes the bound, and NaN stays NaN.
        None is no bound.
    ema : float, callable or None
        Decay d of an exponential moving average of the parameters, from 0 to 1: ``e = d e + (1 - d) p`` after each
        update, and ``e = p`` after the first (Polyak & Juditsky 1992, "Acceleration of stochastic approximation by
        averaging"). A parameter without a gradient is averaged too. The averages are in ``optimizer.ema[key]``;
        ``optimizer.ema.decay`` is the decay, which ``optimizer.ema = 0.99`` changes. An average that is switched off
        and on again goes on from where it was.
    zero_grad : bool
        Whether gradients are set to 0 once they have been read, also in a step that `skip_nonfinite` skips.
    frozen : bool
        Whether a parameter takes no part in a step, as if it had no gradient: its states and its step count stay, and
        its gradient counts neither in a norm nor for `skip_nonfinite`. For single parameters, by `overrides`.
    skip_nonfinite : bool
        Whether a step with an infinity or NaN in any gradient leaves parameters, states, averages and step counts as
        they are. The gradients are read once more for this, as for a norm.
    measure : {"needed", "update"}
        What a step measures: the norm of the gradients, where an option needs it; with "update", also the norm of what
        is subtracted from the parameters, ``result.update_norm``, in the same pass over memory.
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

    For parameters on a GPU, most numbers may also be an array of one element on that GPU, float64 or float32: each step
    reads it and nobody checks it, so that a CUDA graph can be replayed with another learning rate.

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
    bounds: Bounds | None = None
    ema: Average = Average()  # noqa: RUF009 (a descriptor, the same for all instances)
    zero_grad: bool = False
    frozen: bool = False
    skip_nonfinite: bool = False
    measure: Literal["needed", "update"] = "needed"
    state_dtype: Literal["float32", "same"] = "float32"
    master_weights: Literal[False, True, "split"] = False
    rounding: Literal["nearest", "stochastic"] = "nearest"
    seed: int = 0
    overrides: Mapping[Hashable, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._turn = Lock()
        self._progress = Progress()
        self._pending = Pendings()
        self._version = object()
        self._settings = self._settings_with()
        self._settled = self._version  # the version of the settings
        self._check_overrides(self._settings)
        self._matching = Matching.of_nothing(self._settings)  # of the last step
        self._ready = True

    def _begin(self, values: Mapping[str, Any]) -> None:
        super()._begin(values)
        Optimizer.__post_init__(self)

    # Steps.

    def step(
        self,
        params: Any,
        grads: Any = None,
        *,
        grad_scale: Any = _ONE,
        grad_key: str | Callable[[Any], Any] | None = None,
        stream: Any = None,
    ) -> Result:
        """
        Update parameters in place, once.

        Parameters
        ----------
        params : array, or containers of arrays
            The parameters: one array, or dicts, lists, tuples, named tuples, dataclasses and other mappings and
            collections of arrays, which may hold each other; or objects that `bind` has bound. Arrays are float32,
            float64, float16, bfloat16 (of `ml_dtypes`), complex64 or complex128, of any shape, dense in any order of
            their axes, writable. Updated in place. A parameter without a gradient is not looked at.
        grads : like `params`
            The gradients, in containers of the same structure, each of the shape of its parameter; of any strides and
            any of the types of parameters, complex where the parameter is. A number will do for an array without
            dimensions. A gradient, or a whole container, that is None or missing from a mapping leaves its parameters,
            states and step counts alone. Gradients are only read, unless `zero_grad`. None with bound objects.
        grad_scale : float or array
            Factor on all gradients of this step, for example 1 over the scale of the loss or over the number of
            accumulated batches. For parameters on a GPU also an array of one element on that GPU, float64 or float32.
        grad_key : str or callable, optional
            The name of a gradient in a mapping, made of the name of its parameter: a format such as ``"d{}"``, or a
            function. By default the names are the same.
        stream : object, optional
            On a GPU, the stream in which to make the step: any object with ``__cuda_stream__``, as streams of CuPy and
            PyTorch have it; by default CuPy's current one, or PyTorch's where the first parameter is its tensor. What
            was put into the current streams before is waited for, and what is put there later waits for the step.

        Returns
        -------
        Result
            The norm of the gradients, if it was needed, and whether the step was skipped.

        Raises
        ------
        TypeError
            If something is not an array, or has a dtype or byte order that is not wanted; if some arrays are in host
            memory and others on a GPU; if a container of `grads` is of another kind than that of `params`; or if a
            scheduled hyperparameter is no number.
        ValueError
            If a parameter is read-only, unaligned, or not dense; if an array has another shape than it should, or
            overlaps an array that is written; if a gradient is on another GPU than its parameter; if a container of
            `grads` has another length than that of `params`, or a key that `params` lacks; if two parameters have one
            key; if a container makes its arrays anew each time it is asked; if another bare array takes the place of
            one that is still alive; if none of the states that were loaded would be used; if a scheduled hyperparameter
            or `grad_scale` is out of range; or if an override fits no parameter.
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
        if grads is None and isinstance(params, Bound):
            params, grads = params.params, params.grads
        if grad_key is not None:
            grads = renamed(params, grads, grad_key)
        if self._turn.locked():
            raise RuntimeError(self._busy)
        # Nobody looks at signals between the lock's __enter__, which is written in C, and the block.
        with self._turn:
            if self._pending:
                self._pending.make_room()
            now: Planned | None = self._progress.plans.now
            if now is not None and now.told is not self._version:
                now = self._told(now, self._progress, *self._settle())
            if now is not None:
                outcome = now.plan.run(params, grads, grad_scale, stream)
                if outcome is True:
                    return PLAIN
                if outcome is not False:
                    return self._result(now.plan, outcome)
            return self._step_anew(params, grads, grad_scale, stream)

    def _step_parts(
        self,
        params: Any,
        grads: Any,
        *,
        grad_scale: float = 1.0,
        origins: Mapping[Hashable, int],
        wholes: Any = None,
        sums: Any = None,
        others: Mapping[Hashable, list[Any]] | None = None,
    ) -> Result:
        """
        Update parts of tensors in place, with the bits that the whole tensors would get.

        Several processes share a step in this way, each with the states of its parts. All have all keys, with an array
        without elements where they have nothing of a tensor, so that step counts are the same everywhere.

        Parameters
        ----------
        params, grads : mapping or sequence of arrays
            The parts, and their gradients, as for `step`. States, averages and masters get the shapes of the parts.
            The elements of a part are those of the tensor from `origins` on, as they lie in memory.
        grad_scale : float
            Factor on all gradients, as for `step`.
        origins : mapping of int
            Key -> number of the first element of the part in its tensor, a multiple of 1024. A part ends at a multiple
            of 1024 or where its tensor ends. Complex numbers count as two elements.
        wholes : like `params`, optional
            The tensors, for functions in `overrides`. What they contain is not looked at.
        sums : ndarray, optional
            float64, of shape (tensors, 2), in the order of `params`: the sum of squares of the gradient of each tensor,
            and its unit, 1 or 2**600. Needed where `parts.measures` says so, and not used elsewhere. It is
            ``sum_of_sums(blocks)`` with the blocks of all parts, each ``sums_of_blocks(grad, param.dtype, unit)``. The
            unit is 2**600 for float64 whose sum is otherwise infinite.
        others : mapping of lists of arrays, optional
            Key -> further arrays, each of the shape of the part and contiguous row by row: the gradient is the sum of
            the array in `grads` and of these, as ``sum_parts`` adds them up. The sum is made in the step, and not kept.

        Returns
        -------
        Result
            That of the step with whole tensors, but for `update_norm`, which is None unless the step was skipped; see
            `parts.squares_of_updates`.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As for `step`; if `origins`, `wholes`, `sums` or `others` do not fit the parts; if sums are needed and
            missing; or if `measure` is "update", or sums or others are given, with parameters on a GPU. Nothing has
            changed then.
        """
        grad_scale = check("grad_scale", grad_scale)
        with self._alone():
            settings, version = self._settle()
            now: Planned | None = self._progress.plans.now
            cut = parts(params, settings, origins, wholes, sums, others, None if now is None else now.origins)
            if self._pending:
                self._pending.make_room()
            if now is not None:
                now = self._told(now, self._progress, settings, version, cut.origins)
            outcome: Any = False
            if now is not None:
                outcome = now.plan.run(params, grads, grad_scale, None, **cut.given(now.plan.keys))
            if now is None or outcome is False:
                result = self._step_anew(params, grads, grad_scale, None, cut)
            else:
                result = self._result(now.plan, outcome)
        if settings.values["measure"] == "update" and not result.skipped:
            return replace(result, update_norm=None)
        return result

    def _result(
        self, plan: _cpu.Plan, outcome: bool | tuple[float | None, int | None, float | None] | _cpu.PendingFinding
    ) -> Result:
        if isinstance(outcome, bool):
            return PLAIN
        return told(outcome, plan) if isinstance(outcome, tuple) else self._pending.add(outcome, plan)

    def _settle(self) -> tuple[Settings, object]:
        """Return the present hyperparameters and their version. Plans for another rule or overrides are dropped."""
        version = self._version
        if self._settled is not version:
            settings = self._settings_with()
            if settings.rule != self._settings.rule or settings.overrides is not self._settings.overrides:
                self._progress.plans.drop()
            self._settings = settings
            self._settled = version  # last: what is interrupted before is done again
        return self._settings, version

    def _told(
        self,
        planned: Planned,
        progress: Progress,
        settings: Settings,
        version: object,
        origins: Mapping[Hashable, int] | None = None,
    ) -> Planned | None:
        """Return a plan after handing over hyperparameters that have changed, or None if it is of no use."""
        if planned.origins != origins:
            return None
        before = planned.matching.settings
        if settings.rule != before.rule or settings.overrides is not before.overrides:
            return None
        if before is not settings:
            planned.matching = match(settings, planned.plan.keys, None, progress.clock_of, planned.matching)
        self._matching = planned.matching
        planned.matching.hand_over(planned.plan, progress, planned.clock_index)
        # A plan of parts must not be found by a step with whole tensors, which asks nothing but this.
        planned.told = None if planned.matching.is_scheduled or origins is not None else version
        return planned

    def _step_anew(self, params: Any, grads: Any, grad_scale: Any, stream: Any, cut: Parts | None = None) -> Result:
        """Make a step with parameters that the last plan does not know: by another plan, or by a new one."""
        if isinstance(params, Bound):
            raise TypeError(
                "grads is given beside objects that are bound, expected None: their gradients are bound too"
            )
        mark, origins = mark_of(params), None
        if cut is not None:
            origins = cut.origins
            mark = mark, tuple(origins.items())
        found = self._progress.plans.find(mark)
        if found is not None:
            self._progress.plans.use(found)
            if found.told is self._version or self._told(found, self._progress, *self._settle(), origins) is not None:
                given = {} if cut is None else cut.given(found.plan.keys)
                outcome = found.plan.run(params, grads, grad_scale, stream, **given)
                if outcome is not False:
                    self._matching = found.matching
                    return self._result(found.plan, outcome)

        settings, version = self._settle()
        rule = _cpu.rules[settings.rule]
        plan = _cpu.Plan(rule.id, params)
        self._progress.check_use(plan.keys)
        if cut is not None:
            cut.check(plan.keys, _cpu.leaves(params)[1], settings)
        wholes = params if cut is None or cut.wholes is None else cut.wholes
        matching = match(settings, plan.keys, wholes, self._progress.clock_of, self._matching)
        values_of = matching.values()
        averaged = [values_of[i]["ema"] is not None for i in matching.layer_of]
        looks = [None if seen is None else Look(*seen) for seen in plan.check(params, grads, averaged)]
        before, progress = self._progress, self._prepared_for(plan.keys, looks, matching, rule)
        begin = None if cut is None else cut.origins_of(plan.keys)
        planned = Planned(plan, progress.bind(plan, rule, begin), matching, origins)
        progress.plans.use(planned)
        self._told(planned, progress, settings, version, origins)
        given = {} if cut is None else cut.given(plan.keys)
        outcome = plan.run_and_set(params, grads, grad_scale, stream, self, "_progress", progress, **given)
        if outcome is False:
            raise RuntimeError("params or grads changed while they were looked at, expected them to stay as they are")
        progress.plans.add(mark, planned)
        before.is_unused = progress.is_unused = False
        result = self._result(plan, outcome)
        if progress is not before and result.skipped:  # a step that is skipped leaves no new states behind
            self._progress = before
        return result

    def _prepared_for(
        self, keys: list[Hashable], looks: list[Look | None], matching: Matching, rule: _cpu.Rule
    ) -> Progress:
        """Return a progress with all that the parameters of a step need: the present one, if it has all."""
        taking_part, wanted, values_of = [], {}, matching.values()
        for key, look, i in zip(keys, looks, matching.layer_of, strict=True):
            values = values_of[i]
            averaged = values["ema"] is not None
            updated = look is not None and look.has_grad and not values["frozen"]
            if look is not None and (updated or averaged):
                taking_part.append((key, look, values))
                names = rule.states if updated else ()
                wanted[key] = names, values["state_dtype"], averaged, values["master_weights"] if updated else None
        progress = self._progress
        lacking = [
            (key, look, values)
            for key, look, values in taking_part
            if progress.needs(key, look, wanted[key][0], *wanted[key][2:])
        ]
        if any(progress.arrays_of(key) for key, _, _ in lacking):  # other plans may know what there is of the parameter
            progress = progress.without_plans()
        if lacking or any(key not in progress.clock_of for key in keys):
            progress = progress.extended(keys)
        counts = progress.t if lacking and self.accumulator else {}
        for key, look, values in lacking:
            names, *options = wanted[key]
            start = {name: self.starts.get(name, 0.0) for name in names}
            if self.accumulator in names:
                name = "initial_accumulator"
                start[self.accumulator] = evaluated({name: values[name]}, counts[key], self.ranges)[name]
            progress.make(key, look, start, *options)
        return progress
