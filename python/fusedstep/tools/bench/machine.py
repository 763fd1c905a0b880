"""What timings depend on: the machine, its state, and the builds of all packages that take part."""

import datetime
import os
import platform
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fusedstep.core.settings import info

from . import gpu
from .contestants import on_device
from .roofs import flop_per_s

__all__ = ["about", "available_bytes", "busy", "processors"]

PACKAGES = ("numpy", "torch", "deepspeed", "jax", "optax", "thinc", "cupy-cuda12x", "cupy-cuda13x", "threadpoolctl")
VARIABLES = ("FUSEDSTEP_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "XLA_", "CUDA_VISIBLE")


def about(devices: list[str]) -> dict[str, Any]:
    """Return what a record tells about this machine."""
    from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

    gpus, flops = {}, {}
    for device in devices:
        with on_device(device):
            with suppress(ImportError):  # CuPy may have been installed without cuBLAS
                flops[device] = flop_per_s(device)
            if device != "cpu":
                gpus[device] = gpu.about()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "caches": _caches(),
        "cores": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_bytes": _memory("MemTotal"),
        "huge_pages": _read("/sys/kernel/mm/transparent_hugepage/enabled") or None,
        "load": os.getloadavg(),
        "os": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "thread_pools": [
            {key: pool[key] for key in ("user_api", "internal_api", "version", "num_threads")}
            for pool in threadpool_info()
        ],
        "environment": {k: v for k, v in os.environ.items() if k.startswith(VARIABLES)},
        "gpus": gpus,
        "flop_per_s": flops,
        "fusedstep": info(),
    }


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _cpu_name() -> str:
    """Return the name of the processor with its family and model, because some names tell little."""
    lines = [line.partition(":") for line in _read("/proc/cpuinfo").splitlines()]
    about = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    name = about.get("model name", platform.processor())
    return f"{name} (family {about['cpu family']}, model {about['model']})" if "cpu family" in about else name


def _caches() -> dict[str, str]:
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        found[f"L{level} {kind}"] = size
    return found


def _memory(name: str) -> int:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_bytes(device: str) -> int:
    """Return the bytes that new arrays may take."""
    if device == "cpu":
        most, used = (_read(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
        own = int(most) - int(used) if most.isdecimal() and used.isdecimal() else float("inf")
        return int(min(own, _memory("MemAvailable")))
    with on_device(device):
        return gpu.free_bytes()


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy() -> tuple[float, float, float]:
    """Return seconds so far: of the clock, of work on all processors, and of work for this process."""
    times = os.times()
    ours = times.user + times.system + times.children_user + times.children_system
    if not (stat := _read("/proc/stat")):
        return time.perf_counter(), ours, ours
    ticks = [int(each) for each in stat.split("\n", 1)[0].split()[1:]]
    return time.perf_counter(), (sum(ticks[:3]) + sum(ticks[5:8])) / os.sysconf("SC_CLK_TCK"), ours


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
