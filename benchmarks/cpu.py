"""Answer the questions that the goals of the CPU engine ask: python benchmarks/cpu.py [--quick] [--json FILE]."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import peers
from harness import Entry, Timing, race, ratio
from peers import Fusedstep, Job, entry
from report import Report, ask

import fusedstep

LARGE, MEDIUM, SMALL = 30_000_000, 1_000_000, 1_000
CACHED = (20 * 1024, 100 * 1024)  # in the second-level cache, and at its edge
BLOCK = 1024  # elements that the divider's loop keeps in the first-level cache
REST = 0.02  # outlasts the spinning of other people's threads
TOLERANCE = 1e-3  # of the largest change of a parameter: peers round differently, in float32 all of them
DIVIDED = {"sgd": None, "momentum": None, "nag": None, "lion": None, "adamax": "divide"}  # others: "divide_by_root"


def _about(job: Job) -> str:
    """Return what a job is, for a question."""
    digits, exponent = f"{job.size:.1e}".split("e")
    size = f"{digits.removesuffix('.0')}e{int(exponent)}"
    tensors = f"{job.count} x {job.size}" if job.count > 1 else size
    return f"{job.rule} f{8 * np.dtype(job.dtype).itemsize} {tensors}"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run on `count` threads."""
    before = fusedstep.info()["threads"]
    fusedstep.set_num_threads(count)
    try:
        yield
    finally:
        fusedstep.set_num_threads(before)


# The questions. Each takes the report and whether to be quick.


def large(report: Report, quick: bool) -> None:
    """Ask every rule for its share of the limit, far beyond the cache."""
    jobs = [(rule, LARGE, "float32") for rule in peers.rules()]
    jobs += [(rule, LARGE // 2, "float64") for rule in ("sgd", "rmsprop", "adam")]
    for rule, size, dtype in jobs:
        job = Job(rule, size, dtype)
        ours = Fusedstep(job)
        times = race([peers.limit(ours), entry(ours)], 5 if quick else 25, 0.02 if quick else 0.04)
        report.add(
            f"{_about(job)}: share of the limit",
            times["fusedstep"],
            times["limit"],
            "limit",
            goal=">= 0.95",
            moved=job.moved,
        )
    Job.forget()


def cached(report: Report, quick: bool) -> None:
    """Ask every rule for its share of the limit, or of the divider's bound, in the cache of one core."""
    divider = _divider()
    if not divider:
        report.note("no compiler: the divider's bound is not measured")
    elif fusedstep.info()["isa"] == "avx512" and (widest := _divider("-mprefer-vector-width=512")):
        work = (1000, *_DIVIDER_ARRAYS)
        entries = [Entry(str(i), partial(each.divide_by_root, *work)) for i, each in enumerate((widest, divider))]
        found = ratio(*race(entries, 7).values())
        if found.median < 0.95:
            report.note(f"in registers of 512 bits the divider takes {found.median:.2f} of its time in ours")
    for size in CACHED:
        for rule in peers.rules():
            job = Job(rule, size)
            ours = Fusedstep(job)
            entries = [peers.limit(ours), entry(ours)]
            bound = DIVIDED.get(rule, "divide_by_root")
            if divider and bound:
                entries.append(Entry("divider", partial(getattr(divider, bound), size // BLOCK, *_DIVIDER_ARRAYS)))
            with threads(1):
                times = race(entries, 7 if quick else 31, 0.005 if quick else 0.01)
            question = f"{_about(job)} 1 thread"
            mine = times["fusedstep"]
            goal = "" if bound else ">= 0.95"
            report.add(f"{question}: share of the limit", mine, times["limit"], "limit", goal=goal, moved=job.moved)
            if "divider" in times:
                slower = max("limit", "divider", key=lambda name: times[name].median)
                report.add(f"{question}: over the bound", mine, times[slower], slower, inverse=True, goal="<= 1.15")


_DIVIDER = """
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
_divider_arrays = [peers.buffer(np.random.default_rng(i).uniform(1, 2, BLOCK).astype(np.float32), i) for i in range(3)]
_DIVIDER_ARRAYS = [array.ctypes.data_as(ctypes.c_void_p) for array in _divider_arrays]


def _divider(*more: str) -> ctypes.CDLL | None:
    """Compile loops over the first-level cache that keep the divider busy, with the flags of our instruction set."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if not compiler:
        return None
    common, *by_isa = fusedstep.info()["flags"].split("; ")
    flags = dict(each.split(": ") for each in by_isa)[fusedstep.info()["isa"]]
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "divider.cpp"), Path(folder, "divider.so")
        source.write_text(_DIVIDER)
        command = [compiler, *common.split(), *flags.split(), *more, f"-DBLOCK={BLOCK}", "-shared", "-fPIC"]
        try:
            subprocess.run([*command, source, "-o", library], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return ctypes.CDLL(str(library))


def _against(
    report: Report, job: Job, rounds: int, goals: dict[str, str], *wanted: type[peers.Contestant], fastest: bool = False
) -> None:
    """Race fusedstep against peers and the limit, or, `fastest`, against the fastest of the peers."""
    present, absent = peers.contestants(job, Fusedstep, *wanted)
    for name, reason in absent.items():
        report.note(f"{name}, {_about(job)}: absent, {reason}")
    entries = [entry(one) for one in present]
    if not fastest:
        entries.append(peers.limit(present[0]))
    times = race(entries, rounds, rest=REST)
    mine = times.pop("fusedstep")
    if fastest and times:
        best = min(times, key=lambda name: times[name].median)
        times = {best: times[best]}
    for name, other in times.items():
        question = f"{_about(job)}: {'share of the limit' if name == 'limit' else f'against {name}'}"
        report.add(question, mine, other, name, goal=goals.get(name.split()[0], ""), moved=job.moved)


def _agree(report: Report, rule: str, *wanted: type[peers.Contestant]) -> None:
    for name, distance in peers.disagreement(rule, *wanted).items():
        close = "agrees" if distance <= TOLERANCE else "DISAGREES"
        report.note(f"{rule}: {name} {close} after 5 steps, {distance:.0e} of the largest change apart")


def adam(report: Report, quick: bool) -> None:
    """Race Adam against every peer."""
    everyone = (peers.Torch, peers.DeepSpeed, peers.NumPy) + (() if quick else (peers.Optax, peers.Thinc))
    _agree(report, "adam", *everyone)
    goals = {
        LARGE: {"torch": ">= 1.3", "deepspeed": ">= 1.1", "numpy": ">= 20"},
        MEDIUM: {"torch": ">= 1.4", "deepspeed": ">= 1.1", "numpy": ">= 20"},
        SMALL: {"torch": ">= 10"},
    }
    for size, of_size in goals.items():
        rounds = 3 if quick else 15 if size == LARGE else 31
        _against(report, Job("adam", size), rounds, of_size, *everyone)
    Job.forget()


def others(report: Report, quick: bool) -> None:
    """Race the other rules against torch's CPU kernels, fused where it has them, otherwise the faster of two forms."""
    slow = ("rmsprop", "adadelta", "adamax", "nadam")
    fused = () if quick else ("sgd", "momentum", "nag", "adagrad", "amsgrad")
    for rule in slow + fused:
        wanted = (peers.TorchPlain, peers.TorchForeach) if rule in slow else (peers.Torch,)
        _agree(report, rule, *wanted)
        goals = {"torch": ">= 5"} if rule in slow else {}
        _against(report, Job(rule, LARGE), 3 if quick else 11, goals, *wanted, fastest=True)
    Job.forget()


def calls(report: Report, quick: bool) -> None:
    """Time the calls that have next to nothing to do."""
    p, g = (np.ones(16, np.float32) for _ in "pg")
    one = fusedstep.Adam()
    entries = [
        Entry("functional.sgd, 16 elements", lambda: fusedstep.functional.sgd(p, g, lr=1e-3)),
        Entry("Adam().step, one array of 16", lambda: one.step(p, g)),
    ]
    times = race(entries, 7 if quick else 31)
    for name, goal in zip(times, ("<= 0.6 us", "<= 1.5 us"), strict=True):
        report.add(name, times[name], goal=goal)


def many(report: Report, quick: bool) -> None:
    """Step a thousand small tensors."""
    job = Job("adam", 16, count=1000)
    present, absent = peers.contestants(job, Fusedstep, peers.Torch)
    if absent:
        report.note(f"Torch, {job.count} tensors: absent, {absent['Torch']}")
    entries = [entry(one) for one in (*present, Fusedstep(job, mapping=True))]
    times = race(entries, 7 if quick else 31, rest=REST)
    report.add(f"{_about(job)}: list", times["fusedstep"], goal="<= 30 us")
    report.add(f"{_about(job)}: dict", times["fusedstep, dict"], goal="<= 30 us")
    if fused := times.get("torch fused"):
        report.add(f"{_about(job)}: list", times["fusedstep"], fused, "torch fused", goal=">= 100")


def subnormal(report: Report, quick: bool) -> None:
    """Compare subnormal gradients, and subnormal states with zero gradients, with normal numbers."""
    rounds, inner = (5, 0.005) if quick else (31, 0.01)
    size = CACHED[1]
    with threads(1):
        for rule in ("momentum", "rmsprop", "adadelta", "adam"):
            job, tiny_job = Job(rule, size), Job(rule, size)
            tiny_job.grads[0][...] = 1e-41
            normal, tiny = Fusedstep(job), Fusedstep(tiny_job)
            times = race([Entry("normal", normal.step), Entry("tiny", tiny.step)], rounds, inner)
            question = f"{_about(job)} 1 thread: subnormal"
            of_grads = times["tiny"], times["normal"], "normal"
            report.add(f"{question} gradients", *of_grads, inverse=True, goal="<= 1.05")
            tiny_job.grads[0][...] = 0
            times = race(
                [Entry("normal", _refilled(normal, 1e-3)), Entry("tiny", _refilled(tiny, 1e-40))], rounds, inner
            )
            of_states = times["tiny"], times["normal"], "normal"
            report.add(f"{question} states", *of_states, inverse=True, goal="<= 1.05")

        zeros = Job("adam", size)
        zeros.grads[0][...] = 0
        for normal, tiny in zip(
            *(peers.contestants(job, peers.Torch)[0] for job in (Job("adam", size), zeros)), strict=True
        ):
            times = race(
                [Entry("normal", _refilled(normal, 1e-3)), Entry("tiny", _refilled(tiny, 1e-40))], rounds, inner
            )
            found = ratio(times["tiny"], times["normal"])
            report.note(f"{normal.name} adam, subnormal states: {found.median:.1f} times slower than normal ones")


def _refilled(contestant: peers.Contestant, value: float) -> Callable[[], None]:
    """Return a step that fills the states first: a step that flushes them would leave none to the next."""
    contestant.step()

    def step() -> None:
        contestant.fill(value)
        contestant.step()

    return step


def scaling(report: Report, quick: bool) -> None:
    """Set numbers of threads, and instruction sets, beside each other."""
    chosen, most = fusedstep.info()["isa"], fusedstep.info()["threads"]
    for size in (CACHED[1], LARGE):
        job = Job("adam", size)
        ours = Fusedstep(job)
        rounds = 5 if quick else 25
        if most > 1:
            counts = [entry(ours, prepare=partial(fusedstep.set_num_threads, n)) for n in (1, most)]
            counts[0].name, counts[1].name = "1 thread", f"{most} threads"
            single, parallel = race(counts, rounds, rest=REST).values()
            report.add(f"{_about(job)}: {most} threads", parallel, single, "1 thread", moved=job.moved)
        sets = [Entry(isa, ours.step, prepare=partial(fusedstep.use_isa, isa)) for isa in fusedstep.info()["isas"]]
        times = race(sets, rounds, rest=REST)
        fusedstep.use_isa(chosen)
        for isa in sets[:-1]:
            report.add(
                f"{_about(job)}: {sets[-1].name}", times[sets[-1].name], times[isa.name], isa.name, moved=job.moved
            )
    Job.forget()


def imports(report: Report, quick: bool) -> None:
    """Import NumPy, and fusedstep, in fresh processes; see what else comes with it."""
    tell = "; import os, sys; print(len(os.listdir('/proc/self/task')) if os.path.exists('/proc') else 0, *sys.modules)"
    times: dict[str, list[float]] = {"numpy": [], "fusedstep": []}
    seen: dict[str, list[str]] = {}
    for _ in range(5 if quick else 15):
        for name, seconds in times.items():
            start = time.perf_counter()
            command = [sys.executable, "-c", f"import {name}{tell}"]
            seen[name] = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            seconds.append(time.perf_counter() - start)
    over = Timing([a - b for a, b in zip(times["fusedstep"], times["numpy"], strict=True)])
    report.add("import fusedstep over import numpy", over, goal="<= 30 ms")
    started = int(seen["fusedstep"][0]) - int(seen["numpy"][0])
    loaded = sorted({"cupy", "torch"} & set(seen["fusedstep"]))
    report.note(f"import fusedstep starts {started} threads, and loads {', '.join(loaded) or 'neither cupy nor torch'}")


def build(report: Report, quick: bool) -> None:
    """Build a wheel from a clean copy of the tree."""
    del quick
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        ignored = shutil.ignore_patterns(".git", "build", "dist", ".*cache", "__pycache__", "*.so", ".venv")
        shutil.copytree(Path(__file__).resolve().parents[1], tree, ignore=ignored)
        command = [sys.executable, "-m", "pip", "wheel", str(tree), "--no-deps", "--no-build-isolation", "-w", folder]
        start = time.perf_counter()
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        seconds = time.perf_counter() - start
    if done.returncode:
        report.note(f"clean build failed: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")
    else:
        report.add("clean build of a wheel", Timing([seconds]), goal="<= 180 s")


QUESTIONS = (imports, calls, many, subnormal, cached, large, scaling, adam, others, build)


if __name__ == "__main__":
    ask(__doc__, {question.__name__: question for question in QUESTIONS}, unless_named=("build",))
