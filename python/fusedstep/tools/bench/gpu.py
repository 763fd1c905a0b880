"""How time is taken on a GPU, and what a record tells about the GPU."""

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from .harness import host_time

__all__ = ["about", "call_time", "cupy", "free_bytes", "gpu_time", "loop_time"]

QUEUE = 200  # calls that may wait for the GPU, whose queue has room for about 1000 launches
WAIT = r"""
extern "C" __global__ void wait(long long nanoseconds) {
    long long start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    while (now - start < nanoseconds);
}
"""


def cupy() -> Any:
    """Return CuPy, which is loaded when it is first needed."""
    return import_module("cupy")


@cache
def _wait() -> Callable[..., None]:
    kernel: Callable[..., None] = cupy().RawKernel(WAIT, "wait")
    return kernel


def _events(step: Callable[[], object], calls: int, wait: float = 0.0) -> tuple[float, float, bool]:
    """
    Return the seconds between events around calls of a step, the seconds of the host, and whether the host came first.

    The GPU begins after `wait` seconds. The host came first if it had queued all calls by then, so that the seconds
    between the events are those of the GPU alone.
    """
    cuda = cupy().cuda
    stream = cuda.get_current_stream()
    start, end = cuda.Event(), cuda.Event()
    if wait:
        _wait()((1,), (1,), (np.int64(wait * 1e9),))
    start.record(stream)
    host = host_time(step, calls)
    end.record(stream)
    first = not start.done
    end.synchronize()
    return cuda.get_elapsed_time(start, end) / 1e3, host, first


def loop_time(step: Callable[[], object], calls: int) -> float:
    """Return the seconds of a loop of calls: the slower of host and GPU decides."""
    return _events(step, calls)[0]


def gpu_time(step: Callable[[], object], calls: int) -> float:
    """
    Return the seconds of the GPU alone, which waits until the host has queued the calls.

    Where a single call has more launches than the queue has room for, the time of the host counts too.
    """
    seconds, most = 0.0, QUEUE
    while calls:
        now = min(calls, most)
        elapsed, host, first = _events(step, now, 1e-4 + 2e-5 * now)
        if not first:
            elapsed, _, first = _events(step, now, 2 * host)
        if not first and now > 1:  # the host had to wait for room in the queue: fewer calls at once
            most = now // 2
            continue
        seconds += elapsed
        calls -= now
    return seconds


def call_time(step: Callable[[], object], calls: int) -> float:
    """Return the seconds until the calls return to the host. The queue of the GPU has room for all of them."""
    seconds = 0.0
    some = QUEUE // 4
    for begin in range(0, calls, some):
        cupy().cuda.Device().synchronize()
        seconds += host_time(step, min(some, calls - begin))
    cupy().cuda.Device().synchronize()
    return seconds


def free_bytes() -> int:
    """Return the free bytes of the current GPU, after CuPy and torch have given back memory that no array holds."""
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()
    cupy().get_default_memory_pool().free_all_blocks()
    return int(cupy().cuda.runtime.memGetInfo()[0])


def about() -> dict[str, Any]:
    """Return the properties of the current GPU that timings depend on."""
    device, runtime = cupy().cuda.Device(), cupy().cuda.runtime
    properties = runtime.getDeviceProperties(device.id)
    return {
        "name": properties["name"].decode(),
        "compute_capability": device.compute_capability,
        "multiprocessors": properties["multiProcessorCount"],
        "memory_bytes": properties["totalGlobalMem"],
        "l2_bytes": properties["l2CacheSize"],
        "cuda_of_driver": runtime.driverGetVersion(),
        "cuda_of_cupy": runtime.runtimeGetVersion(),
        "smi": _smi(device.pci_bus_id, "driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit"),
    }


def _smi(bus: str, *names: str) -> dict[str, str]:
    """Return what nvidia-smi says about the GPU; nothing, where there is no such program."""
    command = ["nvidia-smi", "-i", bus, f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(names, map(str.strip, done.stdout.split(",")), strict=False))
