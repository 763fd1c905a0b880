"""
Other people's optimizers: statements about arrays in NumPy or CuPy, PyTorch, DeepSpeed, optax, thinc, Apex.

Each is optional: it takes part where it is installed and has the rule, the dtype and the options of the case.
"""

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

__all__ = ["IN_TORCH", "PEERS", "load"]

Arguments = dict[str, Any]


def _rmsprop(o: Any) -> Arguments:
    return {"alpha": o.rho, "eps": o.eps, "centered": o.centered, "momentum": o.momentum}


def _adam(o: Any) -> Arguments:
    return {"betas": (o.beta1, o.beta2), "eps": o.eps, "amsgrad": o.amsgrad}


# By rule: the class of torch.optim, and a function from the optimizer of fusedstep to the arguments of the class beside
# lr and weight_decay. A rule without an entry is measured without torch.
IN_TORCH: dict[str, tuple[str, Callable[[Any], Arguments]]] = {
    "sgd": ("SGD", lambda _: {}),
    "momentum": ("SGD", lambda o: {"momentum": o.momentum}),
    "nag": ("SGD", lambda o: {"momentum": o.momentum, "nesterov": True}),
    "adagrad": ("Adagrad", lambda o: {"eps": o.eps}),
    "rmsprop": ("RMSprop", _rmsprop),
    "rmsprop_centered": ("RMSprop", _rmsprop),
    "rmsprop_momentum": ("RMSprop", _rmsprop),
    "rmsprop_centered_momentum": ("RMSprop", _rmsprop),
    "adadelta": ("Adadelta", lambda o: {"rho": o.rho, "eps": o.eps}),
    "adam": ("Adam", _adam),
    "amsgrad": ("Adam", _adam),
    "adamax": ("Adamax", lambda o: {"betas": (o.beta1, o.beta2), "eps": o.eps}),
    "nadam": ("NAdam", lambda o: {"betas": (o.beta1, o.beta2), "eps": o.eps, "momentum_decay": o.schedule_decay}),
}


def load(module: str) -> Any:
    """Import a package that may not be installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise AbsentError("not installed") from error


class Expression(Contestant):
    """The function of `expressions` with the name of the rule, over arrays of NumPy or, on a GPU, of CuPy."""

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
    """The optimizer of PyTorch in its fused form, over the memory of the job; states are its own."""

    name = "torch fused"
    switches: ClassVar[dict[str, bool]] = {"fused": True}

    def __init__(self, job: Job) -> None:
        torch = load("torch")
        self._arrays = job.params()
        self._params = [torch.nn.Parameter(_tensor(torch, p)) for p in self._arrays]
        clip = dict(job.case.options).get("clip_global_norm")
        # The foreach form of NAG in torch writes to the gradients. It gets a copy, which is made anew before each step.
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
        """Return the parameters as they are now: arrays over the memory of the tensors."""
        return self._arrays

    def set_states(self, value: float) -> None:
        """Set all states, made by an earlier step, to `value`."""
        for p, states in self.optimizer.state.items():
            for state in states.values():
                if getattr(state, "shape", None) == p.shape:  # other entries are numbers, such as the step count
                    state.fill_(value)

    def look(self, job: Job) -> None:
        """Copy the gradients, unless the tensors share their memory."""
        if self.copies:
            for p, g in zip(self._params, job.grads, strict=True):
                p.grad.copy_(_tensor(load("torch"), g))


class TorchForeach(Torch):
    """The optimizer of PyTorch in its multi-tensor form."""

    name = "torch foreach"
    switches: ClassVar[dict[str, bool]] = {"foreach": True}


class TorchSingle(Torch):
    """The optimizer of PyTorch as a loop over tensors, which is its default on a CPU."""

    name = "torch single"
    switches: ClassVar[dict[str, bool]] = {"foreach": False}


def _tensor(torch: Any, array: Array) -> Any:
    """Return a tensor over the memory of an array."""
    if array.dtype.name == "bfloat16":  # torch has bfloat16, but takes no such array from other libraries
        return torch.from_dlpack(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_dlpack(array)


def _in_torch(case: Case) -> tuple[str, dict[str, Any]]:
    """Return the name of the class of torch.optim and its arguments."""
    o = case.optimizer()
    if unknown := dict(case.options).keys() - {"clip_global_norm", "weight_decay", "decoupled", "state_dtype"}:
        raise AbsentError(f"has no {', '.join(sorted(unknown))}")
    if case.rule not in IN_TORCH:
        raise AbsentError(f"has no {case.rule}")
    name, arguments = IN_TORCH[case.rule]
    if o.decoupled and name != "Adam":
        raise AbsentError("has no decoupled decay here")
    return "AdamW" if o.decoupled else name, {"lr": o.lr, "weight_decay": o.weight_decay} | arguments(o)


def _plain_adam(case: Case, most_tensors: int = 1) -> Any:
    """Return the optimizer of fusedstep, if the case is Adam in float32 without options."""
    if (case.rule, case.dtype, case.options) != ("adam", "float32", ()):
        raise AbsentError("takes part in Adam, float32")
    if case.odd and most_tensors == 1:
        raise AbsentError("works in memory of its own")
    if case.count > most_tensors:
        raise AbsentError(f"takes part with {most_tensors} tensor" + "s" * (most_tensors > 1))
    return case.optimizer()


class DeepSpeed(Torch):
    """DeepSpeedCPUAdam. Its first use compiles it for this processor, for a minute, with ninja and a compiler."""

    name = "deepspeed"
    kinds = ("cpu",)
    starts_slowly = True

    def _make(self, torch: Any, case: Case) -> Any:
        del torch
        o = _plain_adam(case, 1000)
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("DS_IGNORE_CUDA_DETECTION", "1")
        programs = str(Path(sys.executable).parent)  # ninja may have been installed beside this Python
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
        if case.rule != "adam" or dtype_of(case.dtype).itemsize == 2:  # FusedAdam has float32 states
            raise AbsentError("takes part in Adam, float32 or float64")
        _in_torch(case)
        adam = load("apex.optimizers").FusedAdam
        o = case.optimizer()
        options = {"betas": (o.beta1, o.beta2), "eps": o.eps, "weight_decay": o.weight_decay}
        return adam(self._params, lr=o.lr, adam_w_mode=bool(o.decoupled), **options)


class Optax(Contestant):
    """optax.adam under jax.jit, with parameters and states donated, so that XLA may update them in place."""

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
    """Adam of thinc. It sets the gradient to zero, so each step begins by copying the gradient of the job."""

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
    """Adam as one `cupy.ElementwiseKernel`, which gets its scalars from the host."""

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
