"""What runs in gpu.py: our optimizers, those of PyTorch and Apex, and Adam by CuPy's own means."""

import sys
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import peers
from harness import Entry

import fusedstep

try:
    import cupy
except ImportError as error:
    sys.exit(f"gpu.py needs CuPy, cupy-cuda13x or cupy-cuda12x: {error}")

DRAWN = 2**20  # random numbers; what is longer repeats them
TEXTS = {"float32": "f32", "float64": "f64", "bfloat16": "bf16"}


@cache
def _drawn(dtype: str, seed: int) -> Any:
    own = peers.dtype_of(dtype)
    numbers = np.random.default_rng(seed).standard_normal(DRAWN, np.float64 if own.itemsize == 8 else np.float32)
    numbers = numbers.astype(own)
    return cupy.asarray(numbers.view(np.uint16) if own.itemsize == 2 else numbers)


def _filled(size: int, dtype: str, seed: int, offset: int = 0) -> Any:
    """Return an array on the GPU, which begins so many elements behind the start of its memory."""
    drawn = _drawn(dtype, seed)
    array = cupy.empty(offset + size, drawn.dtype)[offset:]
    for begin in range(0, size, DRAWN):
        n = min(DRAWN, size - begin)
        array[begin : begin + n] = drawn[:n]
    return array.view(peers.dtype_of(dtype))


@dataclass
class Job(peers.Job):
    """
    What all contestants do, on the GPU, with options of the optimizer.

    Where it is `odd`, sizes differ by 1, 3 or 5, and each parameter and gradient is a slice off the vector boundary.
    """

    options: dict[str, Any] = field(default_factory=dict)
    odd: bool = False

    def __post_init__(self) -> None:
        """Leave the gradients until somebody asks: all of it may not fit."""

    def __str__(self) -> str:
        """Return what it is, for a question."""
        about = {"state_dtype", "weight_decay", "decoupled"}
        rule = "adamw" if self.options.get("decoupled") else self.rule
        words = [rule, *(name for name in self.options if name not in about), TEXTS[self.dtype]]
        if self._state_bytes > self._bytes:
            words[-1] += "/f32"
        size = f"{self.size:.0e}".replace("e+0", "e") if self.size >= 10**5 else str(self.size)
        return " ".join([*words, f"{self.count} x {size}" if self.count > 1 else size, *["odd"] * self.odd])

    @cached_property
    def grads(self) -> list[Any]:
        """The gradients, which everybody reads."""
        return self._arrays(1)

    def params(self) -> list[Any]:
        """Return parameters to start from, each time in fresh memory."""
        return self._arrays(0)

    def _arrays(self, seed: int) -> list[Any]:
        return [
            _filled(self.size + (-1) ** i * (1 + i // 2 * 2 % 6), self.dtype, seed, 1 + i % 3)
            if self.odd
            else _filled(self.size, self.dtype, seed)
            for i in range(self.count)
        ]

    def optimizer(self) -> fusedstep.Optimizer:
        """Return a fresh optimizer of ours for this."""
        made = super().optimizer()
        for name, value in self.options.items():
            setattr(made, name, value)
        return made

    @property
    def _bytes(self) -> int:
        return peers.dtype_of(self.dtype).itemsize

    @property
    def _state_bytes(self) -> int:
        return 4 if self._bytes == 2 and self.options.get("state_dtype") != "same" else self._bytes

    @property
    def _states(self) -> int:
        return len(fusedstep._cpu.rules[self.rule][1]) + ("ema" in self.options)

    @property
    def moved(self) -> int:
        """The bytes that a step reads and writes at least."""
        again = bool(self.options.keys() & {"clip_norm", "clip_global_norm", "skip_nonfinite"})
        each = (3 + again) * self._bytes + 2 * self._states * self._state_bytes
        return self.size * self.count * each

    @property
    def held(self) -> int:
        """The bytes of its arrays."""
        return self.size * self.count * (2 * self._bytes + self._states * self._state_bytes)


def copy(moved: int) -> Entry:
    """Return a copy within the GPU that reads and writes so many bytes."""
    source, target = (_filled(moved // 8, "float32", 2) for _ in range(2))
    return Entry("copy", partial(target.data.copy_from_device_async, source.data, source.nbytes))


class _OnGPU(peers.Contestant):
    """What the optimizers of torch need on a GPU: gradients of their own where they clip them in place."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        if limit := job.options.get("clip_global_norm"):
            for p in self.params:
                p.grad = p.grad.clone()
            self.step = partial(self._clipped, limit)

    def _clipped(self, limit: float) -> None:
        self.clip(limit)
        self.optimizer.step()

    def look(self, job: Job) -> None:
        """Copy the gradients, if they are not the job's own."""
        import torch

        for p, g in zip(self.params, job.grads, strict=True):
            if p.grad.data_ptr() != g.data.ptr:
                p.grad.copy_(torch.from_dlpack(g))

    def param(self) -> np.ndarray:
        """Return the first parameter as it is now, in float64."""
        return self.params[0].detach().double().cpu().numpy()


class Torch(_OnGPU, peers.Torch):
    """PyTorch's fused optimizer."""


class TorchForeach(_OnGPU, peers.TorchForeach):
    """PyTorch's multi-tensor form."""


class Apex(_OnGPU, peers.Torch):
    """FusedAdam of NVIDIA's Apex, where it is installed."""

    how = "apex"

    def _make(self, torch: Any, job: Job) -> Any:
        del torch
        try:
            from apex.optimizers import FusedAdam
        except ImportError as error:
            raise peers.AbsentError("not installed") from error
        if job.rule != "adam":
            raise peers.AbsentError("only Adam")
        self.name = "apex"
        o: Any = job.optimizer()
        options = {"lr": o.lr, "betas": (o.beta1, o.beta2), "eps": o.eps, "weight_decay": o.weight_decay}
        return FusedAdam(self.params, adam_w_mode=bool(o.decoupled), **options)


class _CuPy(peers.Contestant):
    """Adam by CuPy's own means."""

    def __init__(self, job: Job) -> None:
        if job.rule != "adam" or job.dtype != "float32" or job.count != 1 or job.options:
            raise peers.AbsentError("only plain Adam in float32, one tensor, is written down")
        self.o: Any = job.optimizer()
        self.p, self.g = job.params()[0], job.grads[0]
        self.m, self.v, self.t = cupy.zeros_like(self.p), cupy.zeros_like(self.p), 0

    def param(self) -> Any:
        """Return the first parameter as it is now."""
        return self.p


class Expression(_CuPy):
    """Adam as statements about whole arrays, in place where that is easy."""

    name = "cupy plain"

    def step(self) -> None:
        """Make one step."""
        o = self.o
        self.t += 1
        self.m *= o.beta1
        self.m += (1 - o.beta1) * self.g
        self.v *= o.beta2
        self.v += (1 - o.beta2) * self.g**2
        denominator = cupy.sqrt(self.v / (1 - o.beta2**self.t)) + o.eps
        self.p -= o.lr / (1 - o.beta1**self.t) * self.m / denominator


class ElementwiseKernel(_CuPy):
    """Adam as one kernel that CuPy compiles."""

    name = "cupy kernel"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
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
        self.kernel(self.g, *scalars, self.p, self.m, self.v)
