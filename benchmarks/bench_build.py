"""How long do import and build take?"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusedstep.tools.bench.harness import Timing

TELL = "; import os, sys; print(len(os.listdir('/proc/self/task')) if os.path.exists('/proc') else 1, *sys.modules)"


def test_import(tell, rounds):
    """The time of an import minus that of importing NumPy, in new processes. Editable installations are slower."""
    times: dict[str, list[float]] = {"numpy": [], "fusedstep": []}
    seen: dict[str, list[str]] = {}
    for _ in range(3 * rounds):
        for name, seconds in times.items():
            start = time.perf_counter()
            command = [sys.executable, "-c", f"import {name}{TELL}"]
            seen[name] = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            seconds.append(time.perf_counter() - start)
    over = Timing([max(a - b, 1e-9) for a, b in zip(times["fusedstep"], times["numpy"], strict=True)])
    threads, modules = int(seen["fusedstep"][0]) - int(seen["numpy"][0]), set(seen["fusedstep"])
    tell(over, goals={"ours": "<= 30 ms"}, threads_started=threads, loaded=sorted({"cupy", "torch"} & modules))


@pytest.mark.slow
def test_build_of_a_wheel(tell, tmp_path):
    """A wheel is built from a clean copy of the tree. What pyproject.toml needs for that must be installed."""
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".git", "build", "dist", ".*cache", "__pycache__", "*.so", ".venv")
    shutil.copytree(Path(__file__).resolve().parents[1], tree, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", str(tree), "--no-deps", "--no-build-isolation", "-w", tmp_path]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    tell(Timing([time.perf_counter() - start]), goals={"ours": "<= 180 s"})
