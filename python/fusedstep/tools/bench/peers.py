"""What others made: plain statements about arrays, PyTorch, DeepSpeed, optax, thinc, Apex. Each is optional."""

import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from fusedstep import _cpu
from fusedstep.core.hyperparameters import declared

from . import expressions
from .cases import Case, dtype_of
from .contestants import AbsentError, Array, Contestant, Job, set_all
from .machine import processors

__all__ = ["PEERS", "load"]


def load(module: str) -> Any:
    """Import what may be missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise AbsentError("not installed") from error


class Expression(Contestant):
    """Statements about whole arrays of NumPy or, on a GPU, of CuPy."""

    name = "numpy"

    def __init__(self, job: Job) -> None:
        case = job.case
        self.name = "numpy" if case.device == "cpu" else "cupy"
        update = getattr(expressions, case.rule, None)
        if update is None or case.options:
            raise AbsentError(f"nobody wrote down {case}")
        if dtype_of(case.dtype).itemsize == 2:
            raise AbsentError("would compute in half precision")
        o = case.optimizer()
        known = {name: getattr(o, name) for name in declared(type(o))}
        self.t, self.update = 0, update
        self._params = job.params()
        each = [SimpleNamespace(**known) for _ in self._params]
        states = [[np.zeros_like(p) for p in self._params] for _ in _cpu.rules[case.rule][1]]
        self.rows = list(zip(each, self._params, job.grads, *states, strict=True))

    def step(self) -> None:
        """Make one step."""
        self.t += 1
        for o, *arrays in self.rows:
            self.update(o, self.t, *arrays)

    def params(self) -> list[Array]:
        """Return the parameters as they are now."""
        return self._params

    def set_states(self, value: float) -> None:
        """Set all states to `value`."""
        for _, _, _, *states in self.rows:
            for state in states:
                set_all(state, value)


class Torch(Contestant):
    """PyTorch's optimizer, in its fused form; p and g are the job's memory, states are its own."""

    name = "torch fused"
    switches: ClassVar[dict[str, bool]] = {"fused": True}

    def __init__(self, job: Job) -> None:
        torch = load("torch")
        self._arrays = job.params()
        self._params = [torch.nn.Parameter(_tensor(torch, p)) for p in self._arrays]
        clip = dict(job.case.options).get("clip_global_norm")
        # torch's foreach form of NAG leaves other gradients behind: it has its own, which each step begins by copying.
        spoils = (self.name, job.case.rule) == ("torch foreach", "nag")
        self.copies = bool(clip) or spoils
        for p, g in zip(self._params, job.grads, strict=True):
            grad = _tensor(torch, g)
            p.grad = grad.clone() if self.copies else grad
        self.optimizer = self._make(torch, job.case)
        self.step: Callable[[], object] = self.optimizer.step
        if self.copies:
            before = partial(torch.nn.utils.clip_grad_norm_, self._params, clip) if clip else partial(self.look, job)
            self.step = partial(self._step_after, before)

    def _step_after(self, before: Callable[[], object]) -> None:
        before()
        self.optimizer.step()

    def _make(self, torch: Any, case: Case) -> Any:
        name, options = _in_torch(case)
        try:
            return getattr(torch.optim, name)(self._params, **options, **self.switches)
        except (TypeError, RuntimeError) as error:
            raise AbsentError(f"no {name}") from error

    def params(self) -> list[Array]:
        """Return the parameters as they are now: arrays over the memory of torch's."""
        return self._arrays

    def set_states(self, value: float) -> None:
        """Set all states, made by an earlier step, to `value`."""
        for p, states in self.optimizer.state.items():
            for state in states.values():
                if getattr(state, "shape", None) == p.shape:  # else it is a number of steps, or a product
                    state.fill_(value)

    def look(self, job: Job) -> None:
        """Copy the gradients, if they are not the job's own."""
        if self.copies:
            for p, g in zip(self._params, job.grads, strict=True):
                p.grad.copy_(_tensor(load("torch"), g))


class TorchForeach(Torch):
    """PyTorch's multi-tensor form."""

    name = "torch foreach"
    switches: ClassVar[dict[str, bool]] = {"foreach": True}


class TorchSingle(Torch):
    """PyTorch's loop over tensors, its default on a CPU."""

    name = "torch single"
    switches: ClassVar[dict[str, bool]] = {"foreach": False}


def _tensor(torch: Any, array: Array) -> Any:
    """Return a tensor of torch over the memory of an array."""
    if array.dtype.name == "bfloat16":  # which torch knows, but not of others
        return torch.from_dlpack(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_dlpack(array)


def _in_torch(case: Case) -> tuple[str, dict[str, Any]]:
    """Return the name of torch's class and its arguments, in the words of torch."""
    o = case.optimizer()
    wanted = {"lr": o.lr, "weight_decay": o.weight_decay}
    if unknown := dict(case.options).keys() - {"clip_global_norm", "weight_decay", "decoupled", "state_dtype"}:
        raise AbsentError(f"has no {', '.join(sorted(unknown))}")
    if o.decoupled and case.rule not in ("adam", "amsgrad"):
        raise AbsentError("has no decoupled decay here")
    betas = {"betas": (o.beta1, o.beta2)} if hasattr(o, "beta1") else {}
    match case.rule:
        case "sgd":
            return "SGD", wanted
        case "momentum" | "nag":
            return "SGD", wanted | {"momentum": o.momentum, "nesterov": case.rule == "nag"}
        case "adagrad":
            return "Adagrad", wanted | {"eps": o.eps}
        case "rmsprop" | "rmsprop_centered" | "rmsprop_momentum" | "rmsprop_centered_momentum":
            return "RMSprop", wanted | {"alpha": o.rho, "eps": o.eps, "centered": o.centered, "momentum": o.momentum}
        case "adadelta":
            return "Adadelta", wanted | {"rho": o.rho, "eps": o.eps}
        case "adam" | "amsgrad":
            return "AdamW" if o.decoupled else "Adam", wanted | betas | {"eps": o.eps, "amsgrad": o.amsgrad}
        case "adamax":
            return "Adamax", wanted | betas | {"eps": o.eps}
        case "nadam":
            return "NAdam", wanted | betas | {"eps": o.eps, "momentum_decay": o.schedule_decay}
    raise AbsentError(f"has no {case.rule}")


def _plain_adam(case: Case, most_tensors: int = 1) -> Any:
    """Return our optimizer, if it is Adam in float32 without anything else."""
    if (case.rule, case.dtype, case.options) != ("adam", "float32", ()):
        raise AbsentError("takes part in Adam, float32")
    if case.odd and most_tensors == 1:
        raise AbsentError("works in memory of its own")
    if case.count > most_tensors:
        raise AbsentError(f"takes part with {most_tensors} tensor" + "s" * (most_tensors > 1))
    return case.optimizer()


class DeepSpeed(Torch):
    """DeepSpeedCPUAdam, compiled for this processor at its first use: that takes a minute, ninja and a compiler."""

    name = "deepspeed"
    kinds = ("cpu",)
    starts_slowly = True

    def _make(self, torch: Any, case: Case) -> Any:
        del torch
        o = _plain_adam(case, 1000)
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("DS_IGNORE_CUDA_DETECTION", "1")
        programs = str(Path(sys.executable).parent)  # ninja may be beside this Python
        if programs not in os.environ["PATH"].split(os.pathsep):
            os.environ["PATH"] += os.pathsep + programs
        adam = load("deepspeed.ops.adam").DeepSpeedCPUAdam
        try:
            return adam(self._params, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, adamw_mode=False)
        except Exception as error:
            raise AbsentError(f"does not build: {str(error).splitlines()[0]}") from error


class Apex(Torch):
    """FusedAdam of NVIDIA's Apex."""

    name = "apex"
    kinds = ("cuda",)

    def _make(self, torch: Any, case: Case) -> Any:
        del torch
        if case.rule != "adam" or dtype_of(case.dtype).itemsize == 2:  # its states are float32
            raise AbsentError("takes part in Adam, float32 or float64")
        _in_torch(case)
        adam = load("apex.optimizers").FusedAdam
        o = case.optimizer()
        options = {"betas": (o.beta1, o.beta2), "eps": o.eps, "weight_decay": o.weight_decay}
        return adam(self._params, lr=o.lr, adam_w_mode=bool(o.decoupled), **options)


class Optax(Contestant):
    """optax.adam under jax.jit, with parameters and states donated, so that XLA may work in place."""

    name = "optax"
    kinds = ("cpu",)
    starts_slowly = True

    def __init__(self, job: Job) -> None:
        o = _plain_adam(job.case)
        if job.case.threads != processors():
            raise AbsentError("takes a thread for each processor")
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        self.jax, optax = load("jax"), load("optax")
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

    def params(self) -> list[Array]:
        """Return the parameters as they are now."""
        return [np.asarray(self.p)]

    def look(self, job: Job) -> None:
        """Copy the gradient."""
        self.g = self.jax.numpy.array(job.grads[0])


class Thinc(Contestant):
    """thinc's Adam. It zeroes the gradient that it is given, so each step begins by copying it."""

    name = "thinc"
    kinds = ("cpu",)

    def __init__(self, job: Job) -> None:
        o = _plain_adam(job.case)
        thinc = load("thinc.api")
        self.optimizer = thinc.Adam(
            o.lr, beta1=o.beta1, beta2=o.beta2, eps=o.eps, L2=0, grad_clip=0, use_averages=False
        )
        self.p, self.source = job.params()[0], job.grads[0]
        self.g = self.source.copy()

    def step(self) -> None:
        """Make one step."""
        np.copyto(self.g, self.source)
        self.p, _ = self.optimizer((0, "p"), self.p, self.g)
        self.optimizer.step_schedules()

    def params(self) -> list[Array]:
        """Return the parameters as they are now."""
        return [self.p]


class Kernel(Contestant):
    """Adam as one kernel that CuPy compiles."""

    name = "cupy kernel"
    kinds = ("cuda",)

    def __init__(self, job: Job) -> None:
        self.o, self.t = _plain_adam(job.case, 1000), 0
        cupy = load("cupy")
        self._params = job.params()
        states = [[cupy.zeros_like(p) for p in self._params] for _ in "mv"]
        self.rows = list(zip(job.grads, self._params, *states, strict=True))
        scalars = ("beta1", "rest1", "beta2", "rest2", "lr", "correction2", "eps")
        self.kernel = cupy.ElementwiseKernel(
            ", ".join(f"float32 {name}" for name in ("g", *scalars)),
            "float32 p, float32 m, float32 v",
            """
            m = beta1 * m + rest1 * g;
            v = beta2 * v + rest2 * g * g;
            p -= lr * m / (sqrt(v / correction2) + eps);
            """,
            "adam_by_cupy",
        )

    def step(self) -> None:
        """Make one step."""
        o = self.o
        self.t += 1
        lr, correction2 = o.lr / (1 - o.beta1**self.t), 1 - o.beta2**self.t
        scalars = (o.beta1, 1 - o.beta1, o.beta2, 1 - o.beta2, lr, correction2, o.eps)
        for g, *written in self.rows:
            self.kernel(g, *scalars, *written)

    def params(self) -> list[Array]:
        """Return the parameters as they are now."""
        return self._params


PEERS: tuple[type[Contestant], ...] = (
    Expression, Kernel, TorchSingle, TorchForeach, Torch, DeepSpeed, Apex, Optax, Thinc,
)  # fmt: skip
