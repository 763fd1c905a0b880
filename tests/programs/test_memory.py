"""Memory that runs: the code of rules is never writable, and not needed where a system refuses such memory."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusedstep import _cpu

pytestmark = [
    pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="code is made for x86-64"),
    pytest.mark.skipif(_cpu.isas[-1] == "baseline", reason="this processor has no AVX2"),
    pytest.mark.skipif("allows no memory" in _cpu.why_no_code(), reason="this system lets no memory become executable"),
]
ROOT = Path(__file__).parents[2]
WIDE = [isa for isa in _cpu.isas if isa != "baseline"]

START = """
import ctypes, hashlib, json, os, re, resource, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
"""
REFUSE = "assert libc.prctl(65, 1, 0, 0, 0) == 0\n"  # PR_SET_MDWE: no memory becomes executable later
RULE = """
import numpy as np
import fusedstep as fs
from fusedstep import _cpu

@fs.rule(states="m v")
def mine(g, m, v, *, t, lr=0.1, beta=0.9):
    m = beta * m + (1 - beta) * g
    v = np.maximum(v, abs(m))
    return np.where(g < 0, lr / (1 - beta**t), lr) * m / (fs.sqrt(v) + 1e-8), m, v

def stepped(dtype, **options):
    p, opt = np.linspace(-1, 1, 700).astype(dtype), mine(**options)
    for k in range(3):
        opt.step([p], [np.cos(k + 9 * p)])
    return p, opt

def mapped():
    with open("/proc/self/maps") as file:
        return [line.split(maxsplit=5) for line in file]
"""


def run(code, **environment):
    """Run code in a process of its own, and return what it prints."""
    command = [sys.executable, "-c", START + code]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def knows_refusal():
    """Return whether the kernel can refuse a process memory that is made executable, since 6.3."""
    return (
        subprocess.run([sys.executable, "-c", START + REFUSE], stderr=subprocess.DEVNULL, check=False).returncode == 0
    )


def test_no_memory_is_writable_and_executable():
    """Not after a step, when the code lies in memory of its own."""
    before, after = run(f"""{RULE}
before = mapped()
for isa in {WIDE}:
    fs.use_isa(isa)
    fs.use_rules("code")
    stepped("f4"), stepped("f8", weight_decay=0.1)
print(json.dumps([before, mapped()]))
""")
    nameless = [each for each in after if "x" in each[1] and len(each) < 6]
    assert len(nameless) > len([each for each in before if "x" in each[1] and len(each) < 6])
    assert all(each[1] == "r-xp" for each in nameless)
    assert not [each for each in after if "w" in each[1] and "x" in each[1]]


@pytest.mark.parametrize("isa", WIDE)
def test_steps_run_the_code(isa):
    """A step of a process whose code cannot run any more is killed, and one by the machine is not."""
    outcomes = run(f"""{RULE}
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
fs.use_isa({isa!r})

def lock(code):
    "Make the memory of code, which is there once, unusable."
    found = []
    for place, rights, *_ in mapped():
        begin, end = (int(x, 16) for x in place.split("-"))
        if rights == "r-xp" and end - begin >= len(code):  # neighbours are shown as one
            pages = range(begin, end, 4096)
            found += [page for page in pages if end - page >= len(code) and ctypes.string_at(page, len(code)) == code]
    assert len(found) == 1, found
    assert libc.mprotect(ctypes.c_void_p(found[0]), 4096, 0) == 0

outcomes = {{}}
for dtype in ("float32", "float64"):
    for ending, options in (("param", {{}}), ("update", {{"weight_decay": 0.1}})):
        stepped(dtype, **options)
        code = _cpu.code_of(_cpu.rules[mine.rule].id, {isa!r}, dtype, ending)
        for way in ("code", "machine"):
            child = os.fork()
            if child == 0:
                lock(code)
                fs.use_rules(way)
                stepped(dtype, **options)
                os._exit(0)
            outcomes[f"{{dtype}} {{ending}} {{way}}"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(outcomes))
""")
    assert len(outcomes) == 8
    assert outcomes == {case: -11 if case.endswith("code") else 0 for case in outcomes}


REPORT = f"""{RULE}
def digest():
    found = hashlib.sha256()
    for isa in {WIDE}:
        fs.use_isa(isa)
        for dtype in ("f4", "f8"):
            for options in ({{}}, {{"weight_decay": 0.1, "clip_norm": 0.5}}):
                p, opt = stepped(dtype, **options)
                for array in (p, opt.state[0]["m"], opt.state[0]["v"]):
                    found.update(np.asarray(array).tobytes())
    return found.hexdigest()

error = None
by_itself = digest()
try:
    fs.use_rules("code")
except ValueError as found:
    error = str(found)
fs.use_rules("auto")
told = fs.info()
fs.use_rules("machine")
print(json.dumps([by_itself, digest(), told["rules"], told["rules_from"], _cpu.why_no_code(), error]))
"""

SHIM = """
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
int mprotect(void *at, size_t size, int rights) {
    static int calls = 0;
    if (rights & PROT_EXEC && calls++ >= atoi(getenv("ALLOWED"))) return errno = EACCES, -1;
    return syscall(SYS_mprotect, at, size, rights);
}
"""


def without_execution(way, folder, allowed=0):
    """Return what is reported in a process whose memory becomes executable so many times only."""
    if way == "kernel":
        if not knows_refusal():
            pytest.skip("this kernel refuses no memory that is made executable")
        return run(REFUSE + REPORT)
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        pytest.skip("needs a compiler")
    (folder / "shim.c").write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", folder / "shim.c", "-o", folder / "shim.so"], check=True)
    return run(REPORT, LD_PRELOAD=str(folder / "shim.so"), ALLOWED=str(allowed), OMP_NUM_THREADS="1")


@pytest.fixture(scope="module")
def with_code():
    found = run(REPORT)
    assert found[0] == found[1]
    assert found[2:] == ["code", "this processor runs what is made of them", "", None]
    return found


@pytest.mark.parametrize("way", ["kernel", "library"])
def test_where_no_memory_becomes_executable_the_machine_runs_rules(way, with_code, tmp_path):
    by_itself, by_machine, rules, rules_from, why, error = without_execution(way, tmp_path)
    assert by_itself == by_machine == with_code[0]
    assert rules == "machine"
    assert why == rules_from == "this system allows no memory that is made executable"
    assert error == f"name is 'code', expected 'auto' or 'machine': {why}"


@pytest.mark.parametrize("allowed", [1, 2, 4])
def test_where_only_some_memory_becomes_executable(allowed, with_code, tmp_path):
    """A rule whose code finds no memory is run by the machine, whatever other rules run as."""
    by_itself, by_machine, rules, *_ = without_execution("library", tmp_path, allowed)
    assert by_itself == by_machine == with_code[0]
    assert rules == "code"  # of rules in general
