"""The parameters of all groups that ask for one rule: a plan, and one call of the engine in each step."""

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
    made = torch.empty_strided(like.shape, like.stride(), dtype=tensor.dtype)
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
    What is kept of the parameters of one rule from step to step.

    States belong to the optimizer of PyTorch, by PyTorch's names. They are looked at in each step, and bound to a plan
    anew where somebody has replaced one of them.
    """

    def __init__(self, owner: Any, rule: str, groups: Sequence[dict[str, Any]]) -> None:
        self.owner, self.rule, self.groups = owner, _cpu.rules[rule], groups
        self.ours: type[Optimizer] = owner._ours
        self.recipes = self.ours._recipes(rule)
        theirs = dict(self.ours.torch_states)
        self.names = [theirs[name] for name in self.rule.states]
        self.params: list[Tensor] = [p for group in groups for p in group["params"]]
        # Numbers over all groups of the optimizer, which tell the random bits of one parameter from those of others.
        number_of = {id(p): k for k, p in enumerate(p for group in owner.param_groups for p in group["params"])}
        self.noise_ids = np.array([number_of[id(p)] for p in self.params], np.uint64)
        sizes = [len(group["params"]) for group in groups]
        self.row_of = np.repeat(np.arange(len(groups)), sizes)
        self.clocks = np.zeros(len(self.params), CLOCK)
        # Numbers that PyTorch keeps in tensors of their own are elements of one array, which a step writes at once.
        self.counters = {name: torch.zeros(len(self.params)) for name in owner._counters}
        self.counts = {name: counter.numpy() for name, counter in self.counters.items()}  # the same memory
        self.seen = {name: counts.tobytes() for name, counts in self.counts.items()}
        clocks = {"step": self.clocks["t"], "mu_product": self.clocks["memory"][:, 0]}
        self.clock_of = {name: clocks[name] for name in self.counters}  # what the engine advances in their place
        self.plan: Any = None
        self.told: Any = None
        self.is_simple = False  # whether the engine takes parameters and gradients as they are

    def options(self, i: int) -> Mapping[str, Any]:
        """Return the options of the group of parameter number i."""
        found: Mapping[str, Any] = self.groups[self.row_of[i]].get("options", {})
        return found

    def step(self, scale: float) -> None:
        """Make a step with all gradients that there are, each times a factor."""
        if not self.is_simple or not self.step_simply(scale):
            with torch.no_grad():
                self.step_by_copies([plain_gradient(p.grad) for p in self.params], scale)
        self.give_counters()

    def check(self) -> None:
        """Refuse what the next step would refuse."""
        with torch.no_grad():
            averaged = [False] * len(self.params)  # of no use once there are hyperparameters
            self.plan.check(self.arrays, [plain_gradient(p.grad) for p in self.params], averaged)

    def step_simply(self, scale: float) -> bool:
        """Make a step with parameters and gradients as they are; return False if some of them need more."""
        try:
            return self.plan.run(self.params, None, scale, None) is not False
        except (TypeError, BufferError):  # of a gradient that is sparse, conjugated or distributed
            return False

    def step_by_copies(self, grads: list[Tensor | None], scale: float) -> None:
        """Make a step where something is to be bound anew, or where parameters with gaps have dense copies."""
        for copy, p in self.copies:
            copy.copy_(p)
        if self.plan.run(self.arrays, grads, scale, None) is False:
            self.bind(grads)
            self.tell()
            if self.plan.run(self.arrays, grads, scale, None) is False:
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
        self.plan = None
        with torch.no_grad(), unless_refused(self.owner.state):
            self.shown = [local(p).detach() for p in self.params]
            for p in self.shown:
                if p.is_cuda:
                    raise NotImplementedError("a parameter is on a GPU, expected host memory: fusedstep.Adam steps it")
            self.arrays = [p if is_dense(p) else p.contiguous() for p in self.shown]
            self.copies = [(a, p) for a, p in zip(self.arrays, self.shown, strict=True) if a is not p]
            self.is_simple = not self.copies and all(local(p) is p for p in self.params)
            averaged = [self.options(i).get("ema") is not None for i in range(len(self.params))]
            if self.is_simple:
                self.arrays = self.params
            plan = _cpu.Plan(self.rule.id, self.arrays, of_torch=True)
            looks = plan.check(self.arrays, [plain_gradient(grad) for grad in grads], averaged)
            # The state of each parameter, names in it, and what is there; and the address of what the plan has.
            self.known: list[tuple[dict[str, Any], tuple[str, ...], tuple[Tensor, ...]]] = []
            addresses: list[int] = []
            kept = []
            for i, look in enumerate(looks):
                kept.append(None if look is None else self.kept(i, look[4], averaged[i], addresses))
            plan.bind(kept, self.clocks, np.arange(len(self.params)), self.noise_ids)
        self.seen = {name: counts.tobytes() for name, counts in self.counts.items()}
        self.addresses = np.array(addresses, np.uint64)
        self.values = list(self.owner.state.values())
        self.plan, self.told = plan, None

    def kept(self, i: int, has_grad: bool, is_averaged: bool, addresses: list[int]) -> tuple[Any, ...]:
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
        if wanted and not self.counters:  # a buffer of momentum that is there has been updated
            is_there = all(own.get(name) is not None for name, _, _ in wanted)
            self.clocks["t"][i] = max(self.clocks["t"][i], 1) if is_there else 0
        tensors = {name: self.tensor(i, own, name, dtype, start) for name, dtype, start in [*wanted, *extra]}
        counters = self.adopt_counters(i, own) if has_grad else []
        names = [*tensors, *counters]
        self.known.append((own, tuple(names), tuple(own[name] for name in names)))
        addresses += [_cpu.address_of(tensor) for tensor in tensors.values()] + [0 for _ in counters]
        of = {name: local(tensor) for name, tensor in tensors.items()}
        states = [of[name] for name, _, _ in wanted] or [None] * len(self.names)
        return (*states, of.get("ema"), of.get(master))

    def tensor(self, i: int, own: dict[str, Any], name: str, dtype: Any, start: complex | None) -> Tensor:
        """Return a tensor of the state of a parameter: a new one, or the one that is there, laid out like it."""
        p, like = self.params[i], self.arrays[i]
        found = own.get(name)
        if found is None:
            own[name] = found = self.new(i, name, dtype, start)
        elif found.shape != p.shape:
            raise ValueError(f"state {name} has shape {tuple(found.shape)}, expected {tuple(p.shape)}")
        elif local(found).stride() != like.stride() and found is local(found):
            own[name] = found = laid_out(found, like)
        return found

    def new(self, i: int, name: str, dtype: Any, start: complex | None) -> Tensor:
        """Return a new state, or a copy of a parameter as its average or master."""
        p, like = self.params[i], self.arrays[i]
        if name == "remainder":
            return torch.empty_strided(like.shape, like.stride(), dtype=dtype).zero_()
        if start is None:
            return laid_out(like.to(dtype), like)
        if like is self.shown[i]:
            return torch.full_like(p.detach(), start, dtype=dtype, memory_format=torch.preserve_format)
        return torch.full_like(like, start, dtype=dtype)

    # Counters: what PyTorch keeps as tensors of no dimension, and the engine in clocks.

    def adopt_counters(self, i: int, own: dict[str, Any]) -> list[str]:
        """Let the counters of a parameter be elements of the bucket's, and return their names."""
        for name, counter in self.counters.items():
            start = self.owner._counters[name]
            counter[i] = float(own.get(name, start))
            own[name] = counter[i]
            counted, clock = self.counts[name], self.clock_of[name]
            if counted.dtype.type(clock[i]) != counted[i]:  # else the clock has more digits of the same number
                clock[i] = counted[i]
        return list(self.counters)

    def take_counters(self) -> None:
        """Let clocks have the values of counters that somebody has changed since the last step."""
        for name, values in self.counts.items():
            if values.tobytes() != self.seen[name]:
                changed = values != np.frombuffer(self.seen[name], values.dtype)
                self.clock_of[name][changed] = values[changed]

    def give_counters(self) -> None:
        """Write what the clocks have become to the counters."""
        for name, values in self.counts.items():
            values[:] = self.clock_of[name]
            self.seen[name] = values.tobytes()

    # Hyperparameters.

    def tell(self) -> None:
        """Hand counters that somebody has changed to the clocks, and hyperparameters that have changed to the plan."""
        self.take_counters()
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
            both = np.stack([self.row_of, self.clocks["t"]], axis=1)
            found, row_of = np.unique(both, axis=0, return_inverse=True)
            pairs, row_of = [tuple(pair) for pair in found.tolist()], row_of.reshape(-1)
        skips = any(group.get("options", {}).get("skip_nonfinite") for group in self.groups)
        self.plan.set_hypers([row(j, t) for j, t in pairs], row_of.astype(np.int64), skips, False)
        self.told = now
