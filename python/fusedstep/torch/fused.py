"""What is ours in an optimizer of PyTorch: the step, further options, and the loading of what these keep."""

from collections.abc import Callable, Mapping, Sequence
from inspect import Signature, signature
from itertools import chain
from operator import is_
from typing import Any, ClassVar, NamedTuple

import torch
from torch.optim import optimizer as theirs

from fusedstep.core.optimizer import Optimizer

from .bucket import KEPT, Bucket, local, refuse_overlap, unless_refused

__all__ = ["Fused"]

# Options that PyTorch's classes do not have; each means what it means for `fusedstep.Optimizer`.
OPTIONS = (
    "clip_value",
    "clip_norm",
    "clip_global_norm",
    "l1",
    "bounds",
    "ema",
    "zero_grad",
    "skip_nonfinite",
    "state_dtype",
    "master_weights",
    "rounding",
    "seed",
)


class Seen(NamedTuple):
    """What groups were: a step with the same groups looks at none of their numbers."""

    groups: list[dict[str, Any]]  # copies
    lists: list[list[Any]]  # of the parameters of each group
    params: list[Any]

    @classmethod
    def of(cls, groups: Sequence[dict[str, Any]]) -> "Seen | None":
        """Return what groups are, or None where a number is a tensor: it may change without being replaced."""
        numbers = [value for group in groups for name, value in group.items() if name != "params"]
        if any(isinstance(some, torch.Tensor) for value in numbers for some in _items(value)):
            return None
        lists = [group["params"] for group in groups]
        return cls([_copied(group) for group in groups], lists, list(chain.from_iterable(lists)))

    def is_of(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Return whether groups are still the same, and their parameters."""
        lists = [group["params"] for group in groups]
        return (
            len(lists) == len(self.lists)
            and all(map(is_, lists, self.lists))  # first: lists of tensors cannot be compared
            and groups == self.groups
            and sum(map(len, lists)) == len(self.params)
            and all(map(is_, chain.from_iterable(lists), self.params))
        )


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _copied(group: Mapping[str, Any]) -> dict[str, Any]:
    copies = {name: type(value)(value) for name, value in group.items() if type(value) in (dict, list)}
    return {**group, **copies, "params": group["params"]}


class Fused(torch.optim.Optimizer):
    """The base of our classes, which stands before PyTorch's class among their bases."""

    _ours: ClassVar[type[Optimizer]]  # whose rules and hyperparameters are taken
    _names: ClassVar[Mapping[str, str]]  # what a group has under PyTorch's names -> our name of it
    _counters: ClassVar[Mapping[str, float]] = {"step": 0.0}  # numbers in the state of a parameter -> where they start
    _step_supports_amp_scaling = True  # GradScaler leaves its scale to the step
    __signature__: ClassVar[Signature]
    _buckets: tuple[Any, list[Bucket]] | None = None
    _places: Sequence[int] = ()  # of the parameters of several rules, which do not overlap
    _known_options: Sequence[Mapping[str, Any]] = ()  # of the groups, as they were checked
    _seen: "Seen | None" = None  # the groups of the last step

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Let editors and `help` see the arguments of PyTorch's class, and `options`; or those of a user's class."""
        super().__init_subclass__(**arguments)
        if "__init__" in vars(cls) and cls.__module__ != f"{__package__}.optimizers":
            own = signature(cls.__init__)
            cls.__signature__ = own.replace(parameters=list(own.parameters.values())[1:])
            return
        theirs = signature(next(base for base in cls.__mro__ if base.__module__.startswith("torch.optim")))
        options = signature(Fused.__init__).parameters["options"]
        cls.__signature__ = theirs.replace(parameters=[*theirs.parameters.values(), options])

    def __init__(self, *args: Any, options: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        for name, value in kwargs.items():
            if name in OPTIONS:
                raise TypeError(f"{name} is an argument of its own, expected it in options: options={{{name!r}: ...}}")
            if name != "params" and callable(value) and not isinstance(value, torch.Tensor):
                raise TypeError(f"{name} is a schedule, expected a number: torch.optim.lr_scheduler changes it")
        super().__init__(*args, **kwargs)
        if options is not None:
            self.defaults["options"] = options = self._checked(options)
            for group in self.param_groups:
                group.setdefault("options", options)
        for group in self.param_groups:
            self._check(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as PyTorch does; `options` may differ from those of the other groups."""
        if "options" in param_group:
            param_group["options"] = self._checked(param_group["options"])
        super().add_param_group(param_group)
        self._check(self.param_groups[-1])

    @classmethod
    def _checked(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        if unknown := [name for name in options if name not in OPTIONS]:
            raise TypeError(f"options has {unknown[0]!r}, expected some of {', '.join(OPTIONS)}")
        cls._ours(**options)  # whatever is wrong is refused there
        return dict(options)

    @classmethod
    def _check(cls, group: Mapping[str, Any]) -> None:
        if group.get("differentiable"):
            raise ValueError("differentiable is True, expected False: the step is no part of a graph of derivatives")

    # The step. Hooks and profiles cost more than a small step, so PyTorch's wrapper is used only where there are some.

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """
        Make a step.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss anew, and the gradients.

        Returns
        -------
        object
            What `closure` returns, else None.

        Raises
        ------
        RuntimeError
            If a gradient is sparse.
        ValueError, TypeError, BufferError
            If a parameter, gradient or state cannot be used: it overlaps another, say, or has another shape.
        """
        if torch.compiler.is_compiling():
            return _uncompiled_step(self, closure)
        if (
            torch._C._autograd._profiler_enabled()
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or theirs._global_optimizer_pre_hooks
            or theirs._global_optimizer_post_hooks
        ):
            return _hooked_step(self) if closure is None else _hooked_step(self, closure)
        return self._plain_step(closure)

    step.hooked = True  # type: ignore[attr-defined] # PyTorch wraps no step that says so

    def _plain_step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        attributes = self.__dict__  # GradScaler sets two of them, and deletes them after the step
        scale, found_inf = attributes.get("grad_scale"), attributes.get("found_inf")
        for bucket in self._ready_buckets():
            bucket.step(
                1.0 if scale is None else bucket.number(scale), 0.0 if found_inf is None else bucket.number(found_inf)
            )
        return loss

    def _ready_buckets(self) -> list[Bucket]:
        """Return the buckets of all groups, ready for a step; what is refused has changed nothing."""
        is_seen = self._seen is not None and self._seen.is_of(self.param_groups)
        if not is_seen:
            self._seen = None
            options = [group.get("options", {}) for group in self.param_groups]
            if options != self._known_options:
                self._known_options = [self._checked(some) for some in options]
        buckets = self._buckets[1] if is_seen and self._buckets else self._present_buckets()
        if len(buckets) > 1:  # of one rule, the plan sees to it
            places = [local(p).data_ptr() for bucket in buckets for p in bucket.params]
            if places != self._places:
                refuse_overlap(buckets)
                self._places = places
        unbound = [bucket for bucket in buckets if not bucket.is_bound()]
        if unbound:
            with unless_refused(self.state):
                for bucket in unbound:
                    bucket.bind([p.grad for p in bucket.params])
            for bucket in buckets:
                bucket.values = list(self.state.values())
        for bucket in buckets:
            bucket.counters.take(bucket.plan)
            if not is_seen or bucket.told is None:
                bucket.tell()
        if len(buckets) > 1:
            for bucket in buckets:
                bucket.check()
        if not is_seen and not self._is_scheduled(self.param_groups):
            self._seen = Seen.of(self.param_groups)
        return buckets

    def _present_buckets(self) -> list[Bucket]:
        """Return the buckets of all groups; they are made anew when groups, their parameters or rules have changed."""
        rules = [self._rule(group) for group in self.param_groups]
        params = [group["params"] for group in self.param_groups]
        now = rules, list(map(len, params)), [self.state, *self.param_groups, *chain.from_iterable(params)]
        if self._buckets is None or not _is_same(self._buckets[0], now):
            groups: dict[tuple[str, bool], list[dict[str, Any]]] = {}
            for rule, group in zip(rules, self.param_groups, strict=True):
                self._check(group)
                for on_gpu in sorted({p.is_cuda for p in group["params"]}):
                    groups.setdefault((rule, on_gpu), []).append(group)
            limits = [group.get("options", {}).get("clip_global_norm") for group in self.param_groups]
            if len(groups) > 1 and any(limit is not None for limit in limits):
                kinds = [f"{rule} on a GPU" if on_gpu else f"{rule} in host memory" for rule, on_gpu in groups]
                raise ValueError(
                    "clip_global_norm stands in options, expected parameters of one rule on one kind of device, not "
                    f"{' and '.join(kinds)}"
                )
            self._buckets = now, [Bucket(self, rule, some, on_gpu) for (rule, on_gpu), some in groups.items()]
        return self._buckets[1]

    def _rule(self, group: Mapping[str, Any]) -> str:
        """Return the name of the rule that a group asks for."""
        del group
        return self._ours.rule

    def _values(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        """Return the hyperparameters of a group by our names, for the update that follows `t` others."""
        del t
        found = {name: plain(group[theirs]) for theirs, name in self._names.items() if theirs in group}
        if "betas" in group:
            found["beta1"], found["beta2"] = map(plain, group["betas"])
        return found

    def _start(self, group: Mapping[str, Any], p: Any) -> complex:
        """Return what the states of a parameter of a group begin with."""
        del group, p
        return 0.0

    def _is_scheduled(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether the values of some group depend on the number of the update."""
        del groups
        return False

    def _snapshot(self, group: Mapping[str, Any]) -> list[Any]:
        """Return all that the values of a group depend on."""
        found = [group.get(name) for name in self._names]
        found += group.get("betas", ())
        found.append(dict(group.get("options", ())))
        return [value if value.__class__ is float else settled(value) for value in found]

    # What PyTorch casts to the type of the parameter when it loads a state dict is taken from the dict once more.

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class, or of PyTorch's class of its name."""
        super().load_state_dict(state_dict)
        theirs = [key for group in state_dict["param_groups"] for key in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        options = [group.get("options", {}) for group in self.param_groups for _ in group["params"]]
        for key, p, own in zip(theirs, params, options, strict=True):
            kept = [*KEPT, *self._counters, *(self._state_names() if own.get("state_dtype") == "float32" else ())]
            loaded = state_dict["state"].get(key, {})
            for name in kept:
                if isinstance(loaded.get(name), torch.Tensor) and p in self.state:
                    self.state[p][name] = loaded[name].detach().clone()

    @classmethod
    def _state_names(cls) -> tuple[str, ...]:
        return tuple(name for _, name in cls._ours.torch_states)


def plain(value: Any) -> Any:
    """Return a number that is a tensor in host memory as a float; one on a GPU is read by each step."""
    return float(value) if isinstance(value, torch.Tensor) and not value.is_cuda else value


def settled(value: Any) -> Any:
    """Return what tells a number from others: its value, or its place on a GPU."""
    value = plain(value)
    return ("at", value.data_ptr(), value.dtype) if isinstance(value, torch.Tensor) else value


_hooked_step = torch.optim.Optimizer.profile_hook_step(Fused._plain_step)


@torch.compiler.disable
def _uncompiled_step(optimizer: Fused, closure: Callable[[], Any] | None) -> Any:
    return optimizer.step(closure)


def _is_same(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    return before[:2] == now[:2] and all(map(is_, before[2], now[2]))
