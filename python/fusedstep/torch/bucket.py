"""The parameters that ask for one rule, on one kind of device: a plan, and one call of the engine in each step."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from operator import is_
from typing import Any

import numpy as np
import torch

from fusedstep import _cpu, optimizers
from fusedstep.core.optimizer import Optimizer
from fusedstep.core.progress import CLOCK

from .counters import Counters

__all__ = ["KEPT", "Bucket", "local", "refuse_overlap", "state_dtype", "unless_refused"]

Tensor = Any  # a torch.Tensor, which type checkers do not know where PyTorch is not installed
KEPT = ("ema", "master", "remainder")  # what options add to the state of a parameter
_MASTERS = {True: ("master", torch.float32), "split": ("remainder", torch.uint16)}
_NARROW = (torch.bfloat16, torch.float16)


def local(tensor: Any) -> Any:
    """Return the part of a distributed tensor that this process has; any other tensor as it is."""
    return getattr(tensor, "_local_tensor", tensor)


def is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor covers one stretch of memory, in any order of its axes."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a copy of a tensor that lies in memory like another."""
    made = like.new_empty_strided(like.shape, like.stride(), dtype=tensor.dtype)
    made.copy_(tensor)
    return made


def plain_gradient(grad: Tensor | None) -> Tensor | None:
    """Return a gradient as the engine takes it, or refuse a sparse one."""
    if grad is None:
        return None
    grad = local(grad)
    if grad.layout is not torch.strided:
        raise RuntimeError("a gradient is sparse, expected dense ones: sparse gradients are not supported")
    return grad.detach().resolve_conj().resolve_neg()


def state_dtype(p: Tensor, options: Mapping[str, Any]) -> torch.dtype:
    """Return the type of the states of a parameter."""
    is_wide = options.get("state_dtype") == "float32" and p.dtype in _NARROW
    return torch.float32 if is_wide else p.dtype


def is_capturing() -> bool:
    """Return whether PyTorch records what it does on a GPU as a graph."""
    found: bool = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    return found


@contextmanager
def unless_refused(state: dict[Tensor, dict[str, Any]]) -> Iterator[None]:
    """Let the state of an optimizer be as it was, if what is done meanwhile fails."""
    before = {p: dict(own) for p, own in state.items()}
    try:
        yield
    except BaseException:
        for p, own in list(state.items()):
            own.clear()
            own.update(before.get(p, {}))
            if p not in before:
                del state[p]
        raise


def refuse_overlap(buckets: Sequence["Bucket"]) -> None:
    """
    Refuse parameters of several rules that share memory.

    Parameters with gaps are left aside: what lies in the gaps of one may be another.
    """
    spans = []
    for bucket in buckets:
        for p in map(local, bucket.params):
            if p.numel() and is_dense(p):
                spans.append((p.data_ptr(), p.data_ptr() + p.numel() * p.element_size(), id(bucket)))
    spans.sort()
    for (_, end, one), (start, _, other) in pairwise(spans):
        if start < end and one != other:
            raise ValueError("parameters of two groups overlap in memory, expected each element to be stepped once")


@cache
def defaults(name: str) -> Mapping[str, Any]:
    """Return the hyperparameters of a class of ours with their defaults."""
    return getattr(optimizers, name)()._values()


class Bucket:
    """
    What is kept of the parameters of one rule, in host memory or on GPUs, from step to step.

    States belong to the optimizer of PyTorch, by PyTorch's names. They are looked at in each step, and bound to a plan
    anew where somebody has replaced one of them.
    """

    def __init__(self, owner: Any, rule: str, groups: Sequence[dict[str, Any]], on_gpu: bool) -> None:
        self.owner, self.rule, self.groups, self.on_gpu = owner, _cpu.rules[rule], groups, on_gpu
        self.ours: type[Optimizer] = owner._ours
        self.recipes = self.ours._recipes(rule)
        theirs = dict(self.ours.torch_states)
        self.names = [theirs[name] for name in self.rule.states]
        placed = [(j, p) for j, group in enumerate(groups) for p in group["params"] if p.is_cuda == on_gpu]
        self.params: list[Tensor] = [p for _, p in placed]
        self.row_of = np.array([j for j, _ in placed], np.intp)
        # Numbers over all groups of the optimizer, which tell the random bits of one parameter from those of others.
        number_of = {id(p): k for k, p in enumerate(p for group in owner.param_groups for p in group["params"])}
        self.noise_ids = np.array([number_of[id(p)] for p in self.params], np.uint64)
        self.clocks = np.zeros(len(self.params), CLOCK)
        self.counters = Counters([local(p).detach() for p in self.params], owner._counters, self.clocks)
        self.plan: Any = None
        self.told: Any = None
        self.is_simple = False  # whether the engine takes parameters and gradients as they are

    def options(self, i: int) -> Mapping[str, Any]:
        """Return the options of the group of parameter number i."""
        found: Mapping[str, Any] = self.groups[self.row_of[i]].get("options", {})
        return found

    def number(self, tensor: Any) -> Any:
        """Return a number of GradScaler, a tensor: as it is, for a step that reads it on its GPU, or read now."""
        device = self.counters.only_device
        return float(tensor) if not self.on_gpu or device is None else tensor.detach().to(device)

    def step(self, scale: Any, skip: Any) -> None:
        """Make a step with all gradients that there are, each divided by `scale`, unless the number `skip` is not 0."""
        if not self.is_simple or not self.step_simply(scale, skip):
            with torch.no_grad():
                self.step_by_copies([plain_gradient(p.grad) for p in self.params], scale, skip)

    def check(self) -> None:
        """Refuse what the next step would refuse."""
        with torch.no_grad():
            averaged = [False] * len(self.params)  # of no use once there are hyperparameters
            self.plan.check(self.arrays, [plain_gradient(p.grad) for p in self.params], averaged)

    def step_simply(self, scale: Any, skip: Any) -> bool:
        """Make a step with parameters and gradients as they are; return False if some of them need more."""
        try:
            return self.plan.run(self.params, None, 1.0, None, scale, skip) is not False
        except (TypeError, BufferError):  # of a gradient that is sparse, conjugated or distributed
            return False

    def step_by_copies(self, grads: list[Tensor | None], scale: Any, skip: Any) -> None:
        """Make a step where something is to be bound anew, or where parameters with gaps have dense copies."""
        for copy, p in self.copies:
            copy.copy_(p)
        if self.plan.run(self.arrays, grads, 1.0, None, scale, skip) is False:
            self.bind(grads)
            self.tell()
            if self.plan.run(self.arrays, grads, 1.0, None, scale, skip) is False:
                raise RuntimeError("parameters, gradients or states changed during the step, expected them to stay")
        for copy, p in self.copies:
            p.copy_(copy)

    # States.

    def is_bound(self) -> bool:
        """Return whether parameters and states are where they were."""
        state = self.owner.state
        return (
            self.plan is not None
            and (self.is_simple or self.is_shown())
            and len(state) == len(self.values)
            and all(map(is_, state.values(), self.values))
            and _cpu.are_kept(self.known, self.addresses)
        )

    def is_shown(self) -> bool:
        """Return whether what is stepped in place of parameters is still their memory; a plan knows it of others."""
        return all(local(p).data_ptr() == q.data_ptr() for p, q in zip(self.params, self.shown, strict=True))

    def bind(self, grads: Sequence[Tensor | None]) -> None:
        """Make a plan of all parameters, with states for those that have gradients."""
        if self.on_gpu and is_capturing():
            raise RuntimeError("the stream is being captured, expected a step with these parameters before that")
        if self.plan is not None:
            self.plan.leave()
        self.plan = None
        with torch.no_grad(), unless_refused(self.owner.state):
            self.shown = [local(p).detach() for p in self.params]
            self.arrays = [p if is_dense(p) else p.contiguous() for p in self.shown]
            self.copies = [(a, p) for a, p in zip(self.arrays, self.shown, strict=True) if a is not p]
            self.is_simple = not self.copies and all(local(p) is p for p in self.params)
            averaged = [self.options(i).get("ema") is not None for i in range(len(self.params))]
            if self.is_simple:
                self.arrays = self.params
            plan = _cpu.Plan(self.rule.id, self.arrays, of_torch=True)
            looks = plan.check(self.arrays, [plain_gradient(grad) for grad in grads], averaged)
            kept = [None if look is None else self.kept(i, look[4], averaged[i]) for i, look in enumerate(looks)]
            plan.bind(kept, self.clocks, np.arange(len(self.params)), self.noise_ids)
            self.counters.give()
        self.values = list(self.owner.state.values())
        # The state of each parameter of the plan, what is in it, and where; other things may be anywhere.
        owns = [self.owner.state.get(p) for p, some in zip(self.params, kept, strict=True) if some]
        self.known = [(own, tuple(own.values())) for own in owns if own]
        used = {id(tensor) for some in kept if some for tensor in some[: len(self.names) + 2]}
        found = [value for _, values in self.known for value in values]
        self.addresses = np.array([_cpu.address_of(x) if id(local(x)) in used else 0 for x in found], np.uint64)
        self.plan, self.told = plan, None

    def kept(self, i: int, has_grad: bool, is_averaged: bool) -> tuple[Any, ...]:
        """Return the states, the average and the master of a parameter; those that are lacking are made."""
        p, options = self.params[i], self.options(i)
        master, dtype = _MASTERS.get(options.get("master_weights", False), ("", None))
        if p.dtype not in _NARROW or not has_grad:
            master = ""
        start = self.owner._start(self.groups[self.row_of[i]], p)
        wanted = [(name, state_dtype(p, options), start) for name in self.names] if has_grad else []
        extra = [(name, state_dtype(p, options), None) for name in ("ema",) if is_averaged]
        extra += [(master, dtype, None)] if master else []
        if not wanted and not extra:
            return (*(None for _ in self.names), None, None)
        own = self.owner.state[p]
        self.clocks["averaged"][i] = own.get("ema") is not None
        if wanted and not self.counters.starts:  # a buffer of momentum that is there has been updated
            is_there = all(own.get(name) is not None for name, _, _ in wanted)
            self.clocks["t"][i] = max(self.clocks["t"][i], 1) if is_there else 0
        tensors = {name: self.tensor(i, own, name, dtype, start) for name, dtype, start in [*wanted, *extra]}
        counters = self.counters.adopt(i, own) if has_grad else []
        of = {name: local(tensor) for name, tensor in tensors.items()}
        states = [of[name] for name, _, _ in wanted] or [None] * len(self.names)
        shown = [*counters, None][:2] if counters else []  # those of a clock that has memory are two
        return (*states, of.get("ema"), of.get(master), *shown)

    def tensor(self, i: int, own: dict[str, Any], name: str, dtype: Any, start: complex | None) -> Tensor:
        """Return a tensor of the state of a parameter: a new one, or the one that is there, laid out like it."""
        p, like = self.params[i], self.arrays[i]
        found = own.get(name)
        if found is None:
            own[name] = found = self.new(i, name, dtype, start)
        elif found.shape != p.shape:
            raise ValueError(f"state {name} has shape {tuple(found.shape)}, expected {tuple(p.shape)}")
        elif found.is_cuda != like.is_cuda:
            places = ["on a GPU" if x.is_cuda else "in host memory" for x in (found, like)]
            raise RuntimeError(f"state {name} is {places[0]}, expected it {places[1]}")
        elif local(found).stride() != like.stride() and found is local(found):
            own[name] = found = laid_out(found, like)
        return found

    def new(self, i: int, name: str, dtype: Any, start: complex | None) -> Tensor:
        """Return a new state, or a copy of a parameter as its average or master."""
        p, like = self.params[i], self.arrays[i]
        if name == "remainder":
            return like.new_empty_strided(like.shape, like.stride(), dtype=dtype).zero_()
        if start is None:
            return laid_out(like.to(dtype), like)
        if like is self.shown[i]:
            return torch.full_like(p.detach(), start, dtype=dtype, memory_format=torch.preserve_format)
        return torch.full_like(like, start, dtype=dtype)

    # Hyperparameters.

    def tell(self) -> None:
        """Hand hyperparameters that have changed to the plan."""
        owner, scheduled = self.owner, self.owner._is_scheduled(self.groups)
        now = [owner._snapshot(group) for group in self.groups]
        if now == self.told and not scheduled:
            return
        base = defaults(self.ours.__name__)

        def row(j: int, t: int) -> list[Any]:
            group = self.groups[j]
            values = {**base, **group.get("options", {}), **owner._values(group, t)}
            return [recipe.value(values) for recipe in self.recipes]

        pairs, row_of = [(j, 0) for j in range(len(self.groups))], self.row_of
        if scheduled:
            if self.on_gpu and is_capturing():
                raise RuntimeError(
                    "the stream is being captured, expected lr_decay to be 0: the host computes its rates"
                )
            self.plan.refresh()
            both = np.stack([self.row_of, self.clocks["t"]], axis=1)
            found, row_of = np.unique(both, axis=0, return_inverse=True)
            pairs, row_of = [tuple(pair) for pair in found.tolist()], row_of.reshape(-1)
        skips = any(group.get("options", {}).get("skip_nonfinite") for group in self.groups)
        self.plan.set_hypers([row(j, t) for j, t in pairs], row_of.astype(np.int64), skips, False)
        self.told = now
