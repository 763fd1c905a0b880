"""
What does a step cost in the cache of one core, against a loop that only divides?

Divisions and roots take longest in the arithmetic of a rule. Loops that compute nothing else are compiled for the run,
with the flags of the instruction set in use.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

import fusedstep
from fusedstep.tools.bench.cases import Case, rules
from fusedstep.tools.bench.contestants import Fusedstep, Job, Limit
from fusedstep.tools.bench.harness import Entry
from fusedstep.tools.bench.roofs import functions

CACHED = (20 * 1024, 100 * 1024)  # in the second-level cache, and at its edge
BLOCK = 1024  # elements of an array that stays in the first-level cache
SOURCE = """
#include <math.h>
#define LOOP(name, expression)                                                                      \\
    extern "C" void name(long blocks, const float* __restrict a, const float* b, float* __restrict c) { \\
        for (; blocks > 0; --blocks) {                                                              \\
            for (int i = 0; i < BLOCK; ++i) c[i] = expression;                                      \\
            asm volatile("" ::: "memory");                                                          \\
        }                                                                                           \\
    }
LOOP(divide, a[i] / b[i])
LOOP(divide_by_root, a[i] / sqrtf(b[i]))
"""
ARRAYS = [np.random.default_rng(i).uniform(1, 2, BLOCK).astype(np.float32) for i in range(3)]


def _loop(rule: str) -> Callable[[int], object] | None:
    """
    Return a function that divides as often as a rule does, for a number of elements, by a root if the rule takes one.

    None if the rule does not divide, or no compiler is found.
    """
    library = _compiled() if functions(rule)["divide"] else None
    if not library:
        return None
    function = getattr(library, "divide_by_root" if functions(rule)["sqrt"] else "divide")
    addresses = [array.ctypes.data_as(ctypes.c_void_p) for array in ARRAYS]
    return lambda size: function(size // BLOCK, *addresses)


@cache
def _compiled() -> ctypes.CDLL | None:
    """Return the loops of SOURCE, compiled; None if that fails."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if not compiler:
        return None
    common, *by_isa = fusedstep.info()["flags"].split("; ")
    flags = dict(each.split(": ") for each in by_isa)[fusedstep.info()["isa"]]
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "divider.cpp"), Path(folder, "divider.so")
        source.write_text(SOURCE)
        command = [compiler, *common.split(), *flags.split(), f"-DBLOCK={BLOCK}", "-shared", "-fPIC"]
        try:
            subprocess.run([*command, source, "-o", library], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return ctypes.CDLL(str(library))


@pytest.mark.parametrize("size", CACHED)
@pytest.mark.parametrize("rule", rules())
def test_in_the_cache_of_one_core(timed, tell, rule, size):
    """The bound is the slower of the limit and a loop that only divides, by a root where the rule has one."""
    case = Case(rule, size=size, threads=1)
    fusedstep.set_num_threads(1)
    ours = Fusedstep(Job(case))
    entries = {"ours": Entry(ours.step)}
    if case.limit:
        entries["limit"] = Entry(Limit(ours).step, steps=Limit.steps)
    bound = _loop(rule)
    if bound:
        entries["divider"] = Entry(partial(bound, size))
    times = timed(entries)
    mine = times.pop("ours")
    if "divider" in times:
        slower = max(times, key=lambda name: times[name].median)
        tell(mine, relative_to={slower: times[slower]}, goals={slower: "<= 1.15"}, moved=case.moved)
    else:
        goal = {} if functions(rule)["divide"] else {"limit": ">= 0.95"}
        tell(mine, times, goals=goal, moved=case.moved)
