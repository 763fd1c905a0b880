"""
The contestants: fusedstep, the loop without arithmetic, and other people's optimizers, all over the same job.

A contestant is made from a `Job`, makes one step per call of `step`, and shows its first parameter with `param`. One
that is not installed, or does not work here, raises `AbsentError`.
"""

import importlib
import os
import sys
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import Entry

import fusedstep

__all__ = ["AbsentError", "Contestant", "Job", "contestants", "disagreement", "entry", "limit", "optimizer", "rules"]

LINE = 64


class AbsentError(Exception):
    """The peer cannot take part."""


@cache
def rules() -> dict[str, tuple[type[fusedstep.Optimizer], dict[str, Any]]]:
    """Return the optimizer class and the options that ask for each rule."""
    found: dict[str, Any] = {}
    public = [getattr(fusedstep, name) for name in fusedstep.__all__]
    classes = [c for c in public if isinstance(c, type) and issubclass(c, fusedstep.Optimizer) and hasattr(c, "rule")]
    centered, momentum = {"centered": True}, {"momentum": 0.9}
    for cls in sorted(classes, key=lambda c: len(c.__mro__)):
        for options in ({}, {"amsgrad": True}, centered, momentum, centered | momentum):
            if options.keys() <= cls.__dataclass_fields__.keys():
                found.setdefault(cls(**options)._settle().rule, (cls, options))
    return {rule: found[rule] for rule in fusedstep._cpu.rules if rule in found}


def optimizer(rule: str) -> fusedstep.Optimizer:
    """Return a fresh optimizer of `rule`; peers take their hyperparameters from it."""
    cls, options = rules()[rule]
    return cls(lr=1e-3, **options)


def buffer(values: np.ndarray, place: int = 0) -> np.ndarray:
    """Return a copy that begins at a cache line, another one of its page for each `place`."""
    owner = np.empty(values.nbytes + LINE + 3 * LINE * place, np.uint8)
    start = -owner.ctypes.data % LINE + 3 * LINE * place
    copy = owner[start : start + values.nbytes].view(values.dtype)
    copy[...] = values
    return copy


@cache
def _randoms(size: int, dtype: str, seed: int) -> np.ndarray:
    own = dtype_of(dtype)
    return np.random.default_rng(seed).standard_normal(size, own if own.itemsize > 2 else np.float32).astype(own)


def dtype_of(name: str) -> np.dtype:
    """Return a dtype by its name, bfloat16 too."""
    return np.dtype(_load("ml_dtypes").bfloat16 if name == "bfloat16" else name)


@dataclass
class Job:
    """What all contestants do: steps of `rule` on `count` tensors of `size` elements, with the same numbers."""

    rule: str
    size: int
    dtype: str = "float32"
    count: int = 1
    grads: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        """Make the gradients, which everybody reads."""
        self.grads = [buffer(_randoms(self.size, self.dtype, 1)) for _ in range(self.count)]

    def params(self) -> list[np.ndarray]:
        """Return parameters to start from, each time in fresh memory."""
        return [buffer(_randoms(self.size, self.dtype, 0), int(self.count == 1)) for _ in range(self.count)]

    @property
    def moved(self) -> int:
        """The bytes that a step reads and writes at least."""
        states = len(fusedstep._cpu.rules[self.rule][1])
        return self.size * self.count * dtype_of(self.dtype).itemsize * (3 + 2 * states)

    def optimizer(self) -> fusedstep.Optimizer:
        """Return a fresh optimizer of ours for this; peers take their hyperparameters from it."""
        return optimizer(self.rule)

    @staticmethod
    def forget() -> None:
        """Free the random numbers."""
        _randoms.cache_clear()


class Contestant:
    """One side of a comparison."""

    name: str

    def __init__(self, job: Job) -> None:
        raise NotImplementedError

    def step(self) -> object:
        """Make one step."""
        raise NotImplementedError

    def param(self) -> np.ndarray:
        """Return the first parameter as it is now."""
        raise NotImplementedError

    def fill(self, value: float) -> None:
        """Set all states, made by an earlier step, to `value`."""
        raise NotImplementedError

    def look(self, job: Job) -> None:
        """Notice that the job's gradients have changed in place; only who copied them needs it."""


def entry(contestant: Contestant, **options: Any) -> Entry:
    """Return the entry of a contestant in a race."""
    return Entry(contestant.name, contestant.step, **options)


class Fusedstep(Contestant):
    """Our own class: a bare array, a list, or, if asked for, a dict."""

    name = "fusedstep"

    def __init__(self, job: Job, mapping: bool = False) -> None:
        self.params = job.params()
        self.args: Any = (self.params[0], job.grads[0]) if job.count == 1 else (self.params, job.grads)
        if mapping:
            names = [f"layer{i}.weight" for i in range(job.count)]
            self.args = tuple(dict(zip(names, arrays, strict=True)) for arrays in (self.params, job.grads))
            self.name = "fusedstep, dict"
        self.optimizer = job.optimizer()
        self.step = partial(self.optimizer.step, *self.args)

    def param(self) -> np.ndarray:
        """Return the first parameter as it is now."""
        return self.params[0]

    def fill(self, value: float) -> None:
        """Set all states, made by an earlier step, to `value`."""
        for states in self.optimizer.state.values():
            for state in states.values():
                state.fill(value)


def limit(ours: Fusedstep) -> Entry:
    """
    Return the loop without arithmetic over the very buffers of `ours`: same engine, same traffic.

    It changes the sign of every state, so a call makes two steps and leaves them as they were.
    """
    ours.step()  # makes the states
    states = {key: dict(zip("abc", each.values(), strict=False)) for key, each in ours.optimizer.state.items()}
    count = len(next(iter(states.values()))) if states else 0
    yardstick = type("Limit", (fusedstep.SGD,), {"rule": f"limit{count}"})(lr=0.0)
    yardstick._progress.state |= states
    step = partial(yardstick.step, *ours.args)

    def twice() -> None:
        step()
        step()

    return Entry("limit", twice, steps=2)


class NumPy(Contestant):
    """Adam as one writes it with NumPy: whole-array expressions, out of place, on one thread."""

    name = "numpy"

    def __init__(self, job: Job) -> None:
        if job.rule != "adam":
            raise AbsentError("only Adam is written down")
        self.o = optimizer(job.rule)
        self.p, self.g = job.params()[0], job.grads[0]
        self.m, self.v, self.t = np.zeros_like(self.p), np.zeros_like(self.p), 0

    def step(self) -> None:
        """Make one step."""
        o = self.o
        self.t += 1
        self.m = o.beta1 * self.m + (1 - o.beta1) * self.g
        self.v = o.beta2 * self.v + (1 - o.beta2) * self.g**2
        m_hat = self.m / (1 - o.beta1**self.t)
        v_hat = self.v / (1 - o.beta2**self.t)
        self.p = self.p - o.lr * m_hat / (np.sqrt(v_hat) + o.eps)

    def param(self) -> np.ndarray:
        """Return the first parameter as it is now."""
        return self.p


def _load(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise AbsentError("not installed") from error


class Torch(Contestant):
    """PyTorch's optimizer: `fused`, `foreach` or plain; p and g are the job's memory, states are its own."""

    how = "fused"

    def __init__(self, job: Job) -> None:
        torch = _load("torch")
        torch.set_num_threads(fusedstep.info()["threads"])
        self.name = f"torch {self.how}"

        def tensor(array: np.ndarray) -> Any:
            if job.dtype == "bfloat16":  # which torch knows, but not of others
                return torch.from_dlpack(array.view(np.uint16)).view(torch.bfloat16)
            return torch.from_dlpack(array)

        self.params = [torch.nn.Parameter(tensor(p)) for p in job.params()]
        for p, g in zip(self.params, job.grads, strict=True):
            p.grad = tensor(g)
        self.optimizer = self._make(torch, job)
        self.step = self.optimizer.step

    def clip(self, limit: float) -> None:
        """Scale the gradients, in place, so that their norm is at most `limit`."""
        _load("torch").nn.utils.clip_grad_norm_(self.params, limit)

    def _make(self, torch: Any, job: Job) -> Any:
        o: Any = job.optimizer()
        name, options = self._options(job.rule, o)
        switches = {"foreach": self.how == "foreach"} | ({"fused": True} if self.how == "fused" else {})
        try:
            return getattr(torch.optim, name)(self.params, lr=o.lr, **options, **switches)
        except (TypeError, RuntimeError) as error:
            raise AbsentError(f"no {self.how} {name}") from error

    @staticmethod
    def _options(rule: str, o: Any) -> tuple[str, dict[str, Any]]:
        match rule:
            case "sgd":
                return "SGD", {}
            case "momentum" | "nag":
                return "SGD", {"momentum": o.momentum, "nesterov": rule == "nag"}
            case "adagrad":
                return "Adagrad", {"eps": o.eps}
            case "rmsprop" | "rmsprop_centered" | "rmsprop_momentum" | "rmsprop_centered_momentum":
                return "RMSprop", {"alpha": o.rho, "eps": o.eps, "centered": o.centered, "momentum": o.momentum}
            case "adadelta":
                return "Adadelta", {"rho": o.rho, "eps": o.eps}
            case "adam" | "amsgrad":
                options = {"betas": (o.beta1, o.beta2), "eps": o.eps, "weight_decay": o.weight_decay}
                return "AdamW" if o.decoupled else "Adam", options | {"amsgrad": o.amsgrad}
            case "adamax":
                return "Adamax", {"betas": (o.beta1, o.beta2), "eps": o.eps}
            case "nadam":
                betas = (o.beta1, o.beta2)
                return "NAdam", {"betas": betas, "eps": o.eps, "momentum_decay": o.schedule_decay}
        raise AbsentError(f"torch has no {rule}")

    def param(self) -> np.ndarray:
        """Return the first parameter as it is now."""
        return self.params[0].detach().numpy()

    def fill(self, value: float) -> None:
        """Set all states, made by an earlier step, to `value`."""
        for states in self.optimizer.state.values():
            for name, state in states.items():
                if name != "step":
                    state.fill_(value)


class TorchForeach(Torch):
    """PyTorch's multi-tensor form."""

    how = "foreach"


class TorchPlain(Torch):
    """PyTorch's loop over tensors, its default on a CPU."""

    how = "plain"


class DeepSpeed(Torch):
    """DeepSpeedCPUAdam, compiled for this processor at its first use: that takes a minute, ninja and a compiler."""

    how = "deepspeed"

    def _make(self, torch: Any, job: Job) -> Any:
        del torch
        if job.rule != "adam" or job.dtype != "float32":
            raise AbsentError("only Adam in float32")
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("DS_IGNORE_CUDA_DETECTION", "1")
        programs = str(Path(sys.executable).parent)  # ninja may be beside this Python
        if programs not in os.environ["PATH"].split(os.pathsep):
            os.environ["PATH"] += os.pathsep + programs
        adam = _load("deepspeed.ops.adam").DeepSpeedCPUAdam
        o: Any = optimizer(job.rule)
        self.name = "deepspeed"
        try:
            return adam(self.params, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, adamw_mode=False)
        except Exception as error:
            raise AbsentError(f"does not build: {error}") from error


class Optax(Contestant):
    """optax.adam under jax.jit, with parameters and states donated, so that XLA may work in place."""

    name = "optax"

    def __init__(self, job: Job) -> None:
        if job.rule != "adam" or job.dtype != "float32" or job.count != 1:
            raise AbsentError("only Adam in float32, one tensor")
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        self.jax, optax = _load("jax"), _load("optax")
        o: Any = optimizer(job.rule)
        rule = optax.adam(o.lr, b1=o.beta1, b2=o.beta2, eps=o.eps)

        def advance(p: Any, state: Any, g: Any) -> Any:
            update, state = rule.update(g, state, p)
            return optax.apply_updates(p, update), state

        self.advance = self.jax.jit(advance, donate_argnums=(0, 1))
        self.p = self.jax.numpy.array(job.params()[0])
        self.state = rule.init(self.p)
        self.look(job)

    def step(self) -> None:
        """Make one step, and wait for it."""
        self.p, self.state = self.advance(self.p, self.state, self.g)
        self.p.block_until_ready()

    def param(self) -> np.ndarray:
        """Return the first parameter as it is now."""
        return np.asarray(self.p)

    def look(self, job: Job) -> None:
        """Copy the gradient."""
        self.g = self.jax.numpy.array(job.grads[0])


class Thinc(Contestant):
    """thinc's Adam. It zeroes the gradient that it is given, so each step begins by copying it."""

    name = "thinc"

    def __init__(self, job: Job) -> None:
        if job.rule != "adam" or job.dtype != "float32" or job.count != 1:
            raise AbsentError("only Adam in float32, one tensor")
        thinc = _load("thinc.api")
        o: Any = optimizer(job.rule)
        self.optimizer = thinc.Adam(o.lr, beta1=o.beta1, beta2=o.beta2, eps=o.eps, L2=0, grad_clip=0)
        self.p, self.source = job.params()[0], job.grads[0]
        self.g = self.source.copy()

    def step(self) -> None:
        """Make one step."""
        np.copyto(self.g, self.source)
        self.p, _ = self.optimizer((0, "p"), self.p, self.g)
        self.optimizer.step_schedules()

    def param(self) -> np.ndarray:
        """Return the first parameter as it is now."""
        return self.p


def contestants(job: Job, *wanted: type[Contestant]) -> tuple[list[Contestant], dict[str, str]]:
    """Return those of `wanted` that can do the job, and why the others cannot, by the name of their class."""
    present: list[Contestant] = []
    absent: dict[str, str] = {}
    for cls in wanted:
        try:
            present.append(cls(job))
        except AbsentError as reason:
            absent[cls.__name__] = str(reason)
    return present, absent


def disagreement(rule: str, *wanted: type[Contestant], dtype: str = "float32") -> dict[str, float]:
    """
    Let peers and fusedstep make five steps with changing gradients, and return how far each is from fusedstep.

    The distance is the largest difference of a parameter, in terms of the largest change of a parameter. Where eps
    counts is a matter of dialect and not of work, so gradients keep away from zero.
    """
    job = Job(rule, 4099, dtype)
    ours, *others = everyone = contestants(job, Fusedstep, *wanted)[0]
    rng = np.random.default_rng(2)
    for _ in range(5):
        job.grads[0][...] = rng.uniform(0.1, 2, job.size) * rng.choice((-1, 1), job.size)
        for one in everyone:
            one.look(job)
            one.step()
    change = float(np.abs(ours.param() - job.params()[0]).max())
    return {other.name: float(np.abs(other.param() - ours.param()).max()) / change for other in others}
