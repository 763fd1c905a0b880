"""The sides of a race of ranks: ways to make a step of Adam together, each in its best form."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from mpi4py import MPI

import fusedstep as fs
from fusedstep import distributed
from fusedstep.tools.bench.machine import processors

__all__ = ["CLIP", "COMM", "HAS_TORCH", "SIDES", "AbsentError", "Setting", "Side", "expected", "meet", "start_torch"]

LR = 1e-3
CLIP = 1.0
NAP = 0.001  # seconds
SMALL = (64,) * 32 + (500,) * 8  # elements of the small tensors
LARGE = 8  # how many large tensors share the rest
THREADS = processors()
COMM = MPI.COMM_WORLD
HAS_TORCH = find_spec("torch") is not None


class AbsentError(Exception):
    """Why a side takes no part."""


class Setting:
    """
    What all sides begin with.

    Attributes
    ----------
    world : World
        The ranks.
    own, bucket : array
        The gradient of this rank's part, and the memory in which all sides find it at the beginning of each step.
    grads : list of array
        The bucket, cut into tensors.
    total : array or None
        On rank 0, the sum of all gradients.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.world = distributed.world()
        ends = [*accumulate(SMALL, initial=0)]
        ends += [ends[-1] + (size - ends[-1]) * i // LARGE for i in range(1, LARGE + 1)]
        self.cuts = list(pairwise(ends))
        self.own = gradient(size, self.world.rank)
        self.bucket = self.own.copy()
        self.grads = self.tensors(self.bucket)
        self.total = summed(size, self.world.size) if self.world.rank == 0 else None

    def tensors(self, flat: Any) -> list[Any]:
        """Return views of a flat array, one for each tensor; large ones come last."""
        return [flat[begin:end] for begin, end in self.cuts]

    def params(self) -> list[Any]:
        """Return the first parameters, the same on every rank: views of one new array."""
        return self.tensors(np.random.default_rng(0).random(self.size, np.float32))

    def refill(self) -> None:
        """Write the gradient of this rank to the bucket, as a backward pass would."""
        self.bucket[...] = self.own


def meet(does_nap: bool = False) -> None:
    """Wait for all ranks, and leave the processors to those that compute: MPI's own barrier would spin."""
    request = COMM.Ibarrier()
    while not request.Test():
        if does_nap:
            time.sleep(NAP)
        else:
            os.sched_yield()


def gradient(size: int, part: int) -> Any:
    """Return the gradient of a part: far from 0 and of one sign, so that no sum of parts is next to nothing."""
    return np.random.default_rng([1, part]).random(size, np.float32) + np.float32(0.1)


def summed(size: int, parts: int) -> Any:
    """Return the sum of all parts in the order that the guide describes, by NumPy."""
    row = [gradient(size, part) for part in range(parts)]
    while len(row) > 1:
        row = [a + b for a, b in zip(row[::2], row[1::2], strict=False)] + row[len(row) & ~1 :]
    return row[0]


def expected(setting: Setting, steps: int, clip: float | None) -> Any:
    """Return, as one array, what one process has after some steps with the sum of all gradients: on rank 0."""
    flat = np.random.default_rng(0).random(setting.size, np.float32)
    grads, opt = setting.tensors(setting.total), adam(clip)
    for _ in range(steps):
        opt.step(setting.tensors(flat), grads)
    return flat


def adam(clip: float | None) -> fs.Adam:
    """Return Adam as all sides use it."""
    return fs.Adam(lr=LR, clip_global_norm=clip)


@dataclass
class Side:
    """
    A way to make a step.

    Parameters
    ----------
    step : function
        Makes a step, on all ranks.
    params : list of array
        What it updates, as arrays of NumPy.
    refill : function
        Is called before each step, and not timed.
    ours : bool
        Whether the parameters have to have the bits of one process; those of others are near them.
    clip : float or None
        Clips the global norm.
    threads : int
        How many threads fusedstep has in the step.
    is_alone : bool
        Whether only rank 0 makes steps, while the others sleep.
    world : World or None
        Whose bytes are counted.
    has_grads : bool
        Whether it has gradients of its own in place of the bucket.
    """

    step: Callable[[], object]
    params: list[Any]
    refill: Callable[[], None]
    ours: bool
    clip: float | None = None
    threads: int = 1
    is_alone: bool = False
    world: Any = None
    has_grads: bool = False


def alone(setting: Setting, threads: int) -> Side:
    """Return one process, which finds the sum of all gradients."""
    if threads > THREADS:
        raise AbsentError(f"there are {THREADS} processors")
    params, opt = ([], None) if setting.world.rank else (setting.params(), adam(None))

    def refill() -> None:
        setting.bucket[...] = setting.total

    return Side(lambda: opt.step(params, setting.grads), params, refill, True, threads=threads, is_alone=True)


def synchronous(setting: Setting, clip: float | None) -> Side:
    """Return ours over messages."""
    params = setting.params()
    opt = distributed.Synchronous(adam(clip), setting.world)
    return Side(lambda: opt.step(params, [setting.grads]), params, setting.refill, True, clip=clip, world=setting.world)


def common_memory(setting: Setting, clip: float | None) -> Side:
    """Return ours with one copy of the parameters, and gradients that are read where they lie."""
    world = distributed.windows()
    try:
        params = distributed.shared(setting.params(), world)
        grads = distributed.like(params, world)
    except MemoryError as error:
        raise AbsentError(str(error)) from error
    sources = setting.tensors(setting.own)
    opt = distributed.Synchronous(adam(clip), world)

    def refill() -> None:
        for grad, source in zip(grads, sources, strict=True):
            grad[...] = source

    return Side(lambda: opt.step(params, [grads]), params, refill, True, clip=clip, world=world, has_grads=True)


def allreduce(setting: Setting, clip: float | None) -> Side:
    """Return MPI's own sum of one flat bucket, and Adam of all parameters on every rank."""
    params, opt = setting.params(), adam(clip)

    def step() -> None:
        COMM.Allreduce(MPI.IN_PLACE, setting.bucket)
        opt.step(params, setting.grads)

    return Side(step, params, setting.refill, False, clip=clip)


def torch_gloo(setting: Setting, is_sharded: bool) -> Side:
    """Return PyTorch's sum of one flat bucket, and its fused Adam: of all parameters, or of those that a rank owns."""
    if not HAS_TORCH:
        raise AbsentError("PyTorch is not installed")
    import torch
    import torch.distributed as dist

    params = [torch.nn.Parameter(torch.from_numpy(p)) for p in setting.params()]
    bucket = torch.from_numpy(setting.bucket)
    for param, grad in zip(params, setting.tensors(bucket), strict=True):
        param.grad = grad
    if is_sharded:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        opt: Any = ZeroRedundancyOptimizer(params, torch.optim.Adam, parameters_as_bucket_view=True, lr=LR, fused=True)
    else:
        opt = torch.optim.Adam(params, lr=LR, fused=True)

    def step() -> None:
        dist.all_reduce(bucket)
        opt.step()

    return Side(step, [p.detach().numpy() for p in params], setting.refill, False)


def start_torch() -> None:
    """Start a process group of PyTorch beside MPI."""
    import torch
    import torch.distributed as dist
    from torch.distributed.optim import ZeroRedundancyOptimizer  # noqa: F401 (so that it is in memory)

    torch.set_num_threads(1)
    meet(does_nap=True)
    store = None
    if COMM.rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, COMM.size, is_master=True, wait_for_workers=False)
    port = COMM.bcast(store and store.port)
    if store is None:
        store = dist.TCPStore("127.0.0.1", port, COMM.size)
    dist.init_process_group("gloo", store=store, rank=COMM.rank, world_size=COMM.size)
    some = torch.ones(1, requires_grad=True)
    some.grad = torch.ones(1)
    dist.all_reduce(some.grad)
    torch.optim.Adam([some], fused=True).step()  # now all that PyTorch imports late is in memory


def _sides() -> Iterator[tuple[str, Callable[[Setting], Side]]]:
    yield "one process, 1 thread", partial(alone, threads=1)
    if THREADS > 1:
        yield f"one process, {THREADS} threads", partial(alone, threads=THREADS)
    yield "Synchronous", partial(synchronous, clip=None)
    yield "Synchronous, clipped", partial(synchronous, clip=CLIP)
    yield "Synchronous, common memory", partial(common_memory, clip=None)
    yield "Allreduce, Adam", partial(allreduce, clip=None)
    yield "Allreduce, Adam, clipped", partial(allreduce, clip=CLIP)
    yield "torch gloo, fused Adam", partial(torch_gloo, is_sharded=False)
    yield "torch ZeRO, fused Adam", partial(torch_gloo, is_sharded=True)


SIDES = dict(_sides())
