"""Instruction set and number of threads: chosen at import, changed by functions, reported by `info`."""

import os
from operator import index
from typing import Any

from fusedstep import _cpu

__all__ = ["info", "set_num_threads", "use_isa", "use_rules"]

_MOST_THREADS = 1024
_why: dict[str, str] = {}  # "isa" and "threads" -> where the choice comes from


def use_isa(name: str) -> None:
    """
    Choose the instruction set of the CPU kernels, for all threads. All sets give the same bits.

    Parameters
    ----------
    name : str
        "auto" for the widest that this processor runs, or "baseline", "avx2", "avx512", "avx512_bf16", "neon". The
        environment variable FUSEDSTEP_ISA sets it at import.

    Raises
    ------
    TypeError
        If `name` is no string.
    ValueError
        If this build or this processor does not have it.
    """
    _use_isa(name, "use_isa", "name")


def _use_isa(name: str, why: str, label: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{label} is {name!r}, expected the name of an instruction set")
    choices = ("auto", *_cpu.isas)
    if name not in choices:
        raise ValueError(f"{label} is {name!r}, expected one of {', '.join(choices)}")
    _cpu.use_isa(_cpu.isas[-1] if name == "auto" else name)
    _why["isa"] = "the widest that this processor runs" if name == "auto" else why


def use_rules(name: str) -> None:
    """
    Choose how the CPU runs rules of one's own, for all threads. Both ways give the same bits.

    Parameters
    ----------
    name : str
        "machine" for precompiled operations, one after the other; "code" for machine code that is made of a rule, which
        an x86-64 processor with AVX2 or AVX-512 runs where the system lets memory become executable; "auto", the choice
        at import, for code where that is possible. A rule that needs more registers than there are, and one whose code
        did not give the bits of the machine on a probe, is run by the machine in any case.

    Raises
    ------
    TypeError
        If `name` is no string.
    ValueError
        If it is another word, or "code" where no code can be made.
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {name!r}, expected 'auto', 'machine' or 'code'")
    if name not in ("auto", "machine", "code"):
        raise ValueError(f"name is {name!r}, expected 'auto', 'machine' or 'code'")
    if name == "code" and (why := _cpu.why_no_code()):
        raise ValueError(f"name is 'code', expected 'auto' or 'machine': {why}")
    _cpu.use_code(name != "machine")


def set_num_threads(n: int) -> None:
    """
    Set the number of threads of a large step. Any number gives the same bits.

    Parameters
    ----------
    n : int
        1 to 1024. At import, the number is that of the environment variable FUSEDSTEP_NUM_THREADS, or else of
        OMP_NUM_THREADS, or else of the processors that affinity and control groups leave to this process.

    Raises
    ------
    TypeError
        If `n` is no integer.
    ValueError
        If `n` is out of range.
    """
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"n is {n!r}, expected a number of threads")
    n = index(n)
    if not 1 <= n <= _MOST_THREADS:
        raise ValueError(f"n is {n}, expected 1 to {_MOST_THREADS} threads")
    _cpu.set_num_threads(n)
    _why["threads"] = "set_num_threads"


def info() -> dict[str, Any]:
    """
    Tell what was built, what was detected and what was chosen.

    Returns
    -------
    dict
        version; isa: the instruction set in use, and isa_from: why; isas: those of this build that run here, and
        isas_built: all of this build; threads: their number, and threads_from: where it comes from; rules: whether
        rules of one's own run as "code" or by the "machine", and rules_from: why; cuda: whether this build has an
        engine for GPUs, how that was built, the GPUs that it can use, and if none, why; compiler, flags, commit: how it
        was built.
    """
    return {
        "version": _cpu.version,
        "isa": _cpu.isa(),
        "isa_from": _why["isa"],
        "isas": list(_cpu.isas),
        "isas_built": list(_cpu.built_isas),
        "threads": _cpu.num_threads(),
        "threads_from": _why["threads"],
        **_rules_info(),
        "cuda": _cuda_info(),
        "compiler": _cpu.compiler,
        "flags": _cpu.flags,
        "commit": _cpu.commit or "unknown",
    }


def _rules_info() -> dict[str, str]:
    if not _cpu.uses_code():
        return {"rules": "machine", "rules_from": "use_rules"}
    why = _cpu.why_no_code()
    return {"rules": "machine" if why else "code", "rules_from": why or "this processor runs what is made of them"}


def _cuda_info() -> dict[str, Any]:
    try:
        from fusedstep import _cuda  # loaded late: CUDA is needed by `info` and by the first array on a GPU only
    except ImportError as error:
        from importlib.util import find_spec

        broken = f" that can be loaded: {error}" if find_spec("fusedstep._cuda") else ""
        return {"built": False, "devices": [], "why_none": f"this build has no engine for GPUs{broken}"}
    devices, why = _cuda.find_devices()
    if why and "InsufficientDriver" in why and not _has_driver():
        why = "this machine has no driver for NVIDIA GPUs: libcuda.so.1 is not there"
    return {
        "built": True,
        "devices": devices,
        "why_none": why or (None if devices else "CUDA finds no GPU"),
        "compiler": _cuda.compiler,
        "flags": _cuda.flags,
        "architectures": _cuda.architectures,
    }


def _has_driver() -> bool:
    """Return whether there is a driver for NVIDIA GPUs; CUDA says of none what it says of one that is too old."""
    from ctypes import CDLL

    try:
        CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def processors() -> tuple[int, str]:
    """Return the number of processors that this process may use, and what limits it."""
    count, why = os.cpu_count() or 1, "processors of this machine"
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < count:
        count, why = len(os.sched_getaffinity(0)), "affinity of this process"
    quota = _cgroup_quota()
    if quota is not None and quota < count:
        count, why = quota, "quota of the control group"
    return count, why


def _cgroup_quota(root: str = "/sys/fs/cgroup", membership: str = "/proc/self/cgroup") -> int | None:
    """Return the processors that the control groups grant, rounded up, or None without a limit."""
    quotas = []
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = os.path.join(root, controllers)
        for name in ("", *path.split("/")):  # the group of this process, and all groups around it
            folder = os.path.join(folder, name)
            if controllers:  # version 1 of control groups
                words = _read(f"{folder}/cpu.cfs_quota_us").split() + _read(f"{folder}/cpu.cfs_period_us").split()
            else:
                words = _read(f"{folder}/cpu.max").split()
            if len(words) == 2 and words[0] not in ("max", "-1"):
                quotas.append(-(-int(words[0]) // int(words[1])))
    return max(1, min(quotas)) if quotas else None


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _choose() -> None:
    """
    Choose at import: a wrong value of FUSEDSTEP_... is an error, one of OMP_NUM_THREADS is ignored.

    A variable that is empty counts as not set.
    """
    variable = "FUSEDSTEP_ISA"
    _use_isa(os.environ.get(variable) or "auto", variable, variable)
    ours, theirs = os.environ.get("FUSEDSTEP_NUM_THREADS"), os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if ours:
        if not ours.isdecimal() or not 1 <= int(ours) <= _MOST_THREADS:
            raise ValueError(f"FUSEDSTEP_NUM_THREADS is {ours!r}, expected 1 to {_MOST_THREADS} threads")
        count, _why["threads"] = int(ours), "FUSEDSTEP_NUM_THREADS"
    elif theirs.strip().isdecimal() and int(theirs) >= 1:
        count, _why["threads"] = int(theirs), "OMP_NUM_THREADS"
    else:
        count, _why["threads"] = processors()
    _cpu.set_num_threads(min(count, _MOST_THREADS))


_choose()
