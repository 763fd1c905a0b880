"""Answer the questions that the goals of the GPU engine ask: python benchmarks/gpu.py [--quick] [--json FILE]."""

import argparse
import gc
import json
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import peers
from gpu_peers import Apex, ElementwiseKernel, Expression, Job, Torch, TorchForeach, copy, cupy
from harness import Clock, Entry, Timing, host_time, race
from peers import Fusedstep, entry
from report import Question, Report, machine

import fusedstep

MEDIUM, LARGE, HUGE = 10**6, 10**8, 10**9
QUEUE = 200  # calls that wait for the GPU at most: it has room for about 1000 launches
TOLERANCE = 1e-3  # of the largest change of a parameter: peers round differently, in float32 all of them


# Time.

WAIT = r"""
extern "C" __global__ void wait(long long nanoseconds) {
    long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    while (now - start < nanoseconds);
}
"""


@cache
def _wait() -> Callable[..., None]:
    return cupy.RawKernel(WAIT, "wait")


def _events(step: Callable[[], object], calls: int, wait: float = 0.0) -> tuple[float, float, bool]:
    """
    Return the seconds between events before and after these calls, the seconds of the host, and whether it came first.

    The GPU begins after `wait` seconds; the host came first if it had queued all of it by then.
    """
    stream = cupy.cuda.get_current_stream()
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    if wait:
        _wait()((1,), (1,), (np.int64(wait * 1e9),))
    start.record(stream)
    host = host_time(step, calls)
    end.record(stream)
    first = not start.done
    end.synchronize()
    return cupy.cuda.get_elapsed_time(start, end) / 1e3, host, first


def loop_time(step: Callable[[], object], calls: int) -> float:
    """Return the seconds of a loop in the stream: the slower of host and GPU decides."""
    return _events(step, calls)[0]


unqueued: list[float] = []


def gpu_time(step: Callable[[], object], calls: int) -> float:
    """Return the seconds of the GPU alone: it waits until the host has queued what is timed."""
    seconds, most = 0.0, QUEUE
    while calls:
        now = min(calls, most)
        elapsed, host, first = _events(step, now, 1e-4 + 2e-5 * now)
        if not first:
            elapsed, _, first = _events(step, now, 2 * host)
        if not first and now > 1:  # the queue was full
            most = now // 2
            continue
        if not first:
            unqueued.append(elapsed)
        seconds += elapsed
        calls -= now
    return seconds


def call_time(step: Callable[[], object], calls: int) -> float:
    """Return the seconds until the calls return, with room in the queue."""
    seconds = 0.0
    some = QUEUE // 4
    for begin in range(0, calls, some):
        cupy.cuda.Device().synchronize()
        seconds += host_time(step, min(some, calls - begin))
    cupy.cuda.Device().synchronize()
    return seconds


def timed(entries: list[Entry], quick: bool, clock: Clock = gpu_time) -> dict[str, Timing]:
    """Race these."""
    return race(entries, 5 if quick else 21, 0.005, clock=clock)


# Contestants.


def _contestants(report: Report, job: Job, wanted: Iterable[type[peers.Contestant]]) -> list[type[peers.Contestant]]:
    """Return those that can do the job, as a small one shows: some lack a kernel, and say so when they need it."""
    present = []
    few = replace(job, size=64, count=1)
    for cls in wanted:
        try:
            cls(few).step()
            present.append(cls)
        except (peers.AbsentError, RuntimeError) as reason:
            report.note(f"{cls.__name__}, {job}: absent, {str(reason).splitlines()[0]}")
    return present


def _agree(report: Report, job: Job, wanted: list[type[peers.Contestant]]) -> None:
    """Let all make five steps with changing gradients, and say how far from us the others are."""
    few = replace(job, size=4099, count=1)
    before = few.params()[0].get().astype(np.float64)
    ours, *others = everyone = [Fusedstep(few), *(cls(few) for cls in wanted)]
    rng = np.random.default_rng(2)
    for _ in range(5):
        grad = rng.uniform(0.1, 2, few.size) * rng.choice((-1, 1), few.size)
        few.grads[0].set(grad.astype(few.grads[0].dtype))
        for one in everyone:
            one.look(few)
            one.step()
    mine = ours.param().get().astype(np.float64)
    change = np.abs(mine - before).max()
    size = np.maximum(np.abs(mine), np.abs(before)).astype(np.float32)  # where it began counts: a step may cancel it
    ulp = np.spacing(size) * (2.0**16 if few.dtype == "bfloat16" else 1.0)
    for other in others:
        param = other.param()
        apart = np.abs((param if isinstance(param, np.ndarray) else param.get()).astype(np.float64) - mine)
        ulps, share = (apart / ulp).max(), apart.max() / change
        verdict = "agrees" if share <= TOLERANCE or ulps <= 2 else "DISAGREES"
        report.note(f"{job}: {other.name} {verdict} after 5 steps, {ulps:.3g} ulp, {share:.0e} of the largest change")


def _free() -> int:
    """Give back what nobody holds, and return the bytes that are free."""
    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()
    return cupy.cuda.runtime.memGetInfo()[0]


def _fits(report: Report, job: Job, needed: int) -> bool:
    if needed <= 0.95 * (free := _free()):
        return True
    report.note(f"{job}: skipped, it needs {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free")
    return False


# The questions. Each takes the report and whether to be quick.


def _shares(report: Report, job: Job, quick: bool) -> None:
    """Ask for the share of the limit, in half precision over as many bytes of float32, and of a copy."""
    half = job.dtype == "bfloat16"
    if not _fits(report, job, job.held + (1 + half) * job.moved):
        return
    ours = loop = Fusedstep(job)
    if half:
        loop = Fusedstep(Job(job.rule, job.moved // Job(job.rule, 1).moved))
    times = timed([entry(ours), peers.limit(loop), copy(job.moved)], quick)
    mine = times.pop("fusedstep")
    goal = ">= 0.95" if job.size >= LARGE else ""
    for name, other in times.items():
        report.add(f"{job}: share of the {name}", mine, other, name, goal=goal, moved=job.moved)


def rules(report: Report, quick: bool) -> None:
    """Ask every rule for its share of the limit and of a copy, far beyond the cache."""
    for rule in peers.rules():
        _shares(report, Job(rule, LARGE), quick)


def sizes(report: Report, quick: bool) -> None:
    """Ask Adam the same in the cache and with a billion elements, and in other types."""
    kinds = [Job("adam", MEDIUM), Job("adam", LARGE, "float64"), Job("adam", LARGE, "bfloat16")]
    kinds.append(Job("adam", LARGE, "bfloat16", options={"state_dtype": "same"}))
    for job in kinds if quick else [*kinds, Job("adam", HUGE)]:
        _shares(report, job, quick)


def options(report: Report, quick: bool) -> None:
    """Ask what surrounds the update for its share of a copy, and how much longer than a plain step it takes."""
    some = ({"clip_global_norm": 1.0}, {"skip_nonfinite": True}, {"ema": 0.999})
    plain, *others = jobs = [Job("adam", LARGE, options=each) for each in ({}, *some)]
    if not _fits(report, plain, sum(job.held for job in jobs) + max(job.moved for job in jobs)):
        return
    entries = [Entry(str(job), Fusedstep(job).step) for job in jobs]
    most = max(job.moved for job in jobs)
    times = timed([*entries, copy(most)], quick)
    copied = times["copy"].seconds
    for job in others:
        mine = times[str(job)]
        by_bytes = job.moved / plain.moved
        slower = mine, times[str(plain)], "plain"
        goal = f"<= {1.05 * by_bytes:.3f}"
        report.add(f"{job}, by bytes {by_bytes:.2f}", *slower, inverse=True, goal=goal, moved=job.moved)
        as_many = Timing([seconds * job.moved / most for seconds in copied])
        report.add(f"{job}: share of the copy", mine, as_many, "copy", moved=job.moved)


def against(report: Report, quick: bool) -> None:
    """Race other people's optimizers over the same job."""
    everyone = (Torch, TorchForeach, Apex, Expression, ElementwiseKernel)
    decay = {"weight_decay": 0.01, "decoupled": True}
    races: list[tuple[Job, tuple[type[peers.Contestant], ...]]] = [
        (Job("adam", LARGE), everyone),
        (Job("adam", LARGE, options=decay), (Torch, TorchForeach)),
        (Job("sgd", LARGE), (Torch, TorchForeach)),
        (Job("momentum", LARGE), (Torch, TorchForeach)),
        (Job("adagrad", LARGE), (Torch, TorchForeach)),
        (Job("adam", LARGE, options={"clip_global_norm": 1.0}), (Torch,)),
        (Job("adam", LARGE, "bfloat16", options={"state_dtype": "same"}), (Torch,)),
        (Job("adam", MEDIUM), everyone),
        (Job("adam", MEDIUM, options={"clip_global_norm": 1.0}), (Torch,)),
    ]
    for job, wanted in races:
        present = _contestants(report, job, wanted)
        _agree(report, job, present)
        if not _fits(report, job, (2 + len(present)) * job.held):  # an expression makes some more
            continue
        entries = [entry(cls(job)) for cls in (Fusedstep, *present)]
        for clock in (gpu_time,) if job.size == LARGE else (gpu_time, loop_time):
            times = timed(entries, quick, clock)
            mine = times.pop("fusedstep")
            for name, other in times.items():
                goal = ">= 1.1" if name.startswith("torch fused") and job.size == LARGE else ""
                what = "" if clock is gpu_time else ", loop"
                report.add(f"{job}{what}: against {name}", mine, other, name, goal=goal, moved=job.moved)
        del entries


def lists(report: Report, quick: bool) -> None:
    """Step lists of tensors, aligned and not."""
    job = Job("adam", MEDIUM, count=200)
    single = Job("adam", MEDIUM * 200)
    present = _contestants(report, job, (Torch, TorchForeach))
    if _fits(report, job, (4 + len(present)) * job.held):
        ours, odd = Fusedstep(job), Fusedstep(replace(job, odd=True))
        entries = [entry(ours), peers.limit(ours), Entry("odd", odd.step), Entry("one tensor", Fusedstep(single).step)]
        times = timed([*entries, *(entry(cls(job)) for cls in present)], quick)
        mine, scattered = times.pop("fusedstep"), times.pop("odd")
        for name, other in times.items():
            goal = {"limit": ">= 0.95", "torch fused": ">= 1.1"}.get(name, "")
            report.add(f"{job}: against {name}", mine, other, name, goal=goal, moved=job.moved)
        report.add(f"{job} odd: over aligned", scattered, mine, "aligned", inverse=True, moved=job.moved)
        del ours, odd, entries
        _free()

    job = Job("adam", 64, count=10_000)
    entries = [entry(cls(job)) for cls in (Fusedstep, *_contestants(report, job, (Torch,)))]
    odd = Entry("odd", Fusedstep(replace(job, odd=True)).step)
    alone, loop = timed([*entries, odd], quick), timed(entries, quick, loop_time)
    mine, scattered = alone.pop("fusedstep"), alone.pop("odd")
    report.add(f"{job}: GPU time", mine, goal="<= 25 us", moved=job.moved)
    report.add(f"{job} odd: over aligned", scattered, mine, "aligned", inverse=True, moved=job.moved)
    for name, other in alone.items():
        report.add(f"{job}: against {name}", mine, other, name, goal=">= 20")
        report.add(f"{job}, loop: against {name}", loop["fusedstep"], loop[name], name)


def host(report: Report, quick: bool) -> None:
    """Time the calls, which return before the GPU has begun: the same arrays again, and others."""
    for count in (1, 100, 10_000):
        job = Job("adam", 64, count=count)
        fused = [cls(job) for cls in _contestants(report, job, (Torch,))]
        again = [[g[:] for g in job.grads] for _ in range(2)]
        entries = {
            "the same arrays": entry(Fusedstep(job)),
            "new gradients, same memory": Entry("again", _with_gradients(job, *again)),
            "new gradients, other memory": Entry("elsewhere", _with_gradients(job, job.grads, replace(job).grads)),
            "functional.adam": Entry("functional", _functional(job)),
        }
        if fused:
            from torch import from_dlpack

            tensors = [[from_dlpack(array) for array in arrays] for arrays in (job.params(), job.grads)]
            args = [arrays[0] for arrays in tensors] if count == 1 else tensors
            entries["torch tensors"] = Entry("tensors", partial(job.optimizer().step, *args))
        times = timed([*entries.values(), *map(entry, fused)], quick, call_time)
        other = (times[fused[0].name], fused[0].name) if fused else ()
        for what, mine in entries.items():
            report.add(f"host, {job}: {what}", times[mine.name], *other)


def _with_gradients(job: Job, *sets: list[Any]) -> Callable[[], object]:
    """Return a step whose gradients are those of each set in turn."""
    params, step = job.params(), job.optimizer().step
    turn = cycle([(params[0], grads[0]) if job.count == 1 else (params, grads) for grads in sets])
    return lambda: step(*next(turn))


def _functional(job: Job) -> Callable[[], object]:
    states = [[cupy.zeros_like(g) for g in job.grads] for _ in "mv"]
    arrays = [job.params(), job.grads, *states]
    args = [some[0] for some in arrays] if job.count == 1 else arrays
    return partial(fusedstep.functional.adam, *args, t=10, lr=1e-3)


def graphs(report: Report, quick: bool) -> None:
    """Replay a step that was captured into a graph."""
    stream = cupy.cuda.Stream(non_blocking=True)
    for job in (Job("adam", MEDIUM), Job("adam", 64, count=10_000)):
        plain, captured = Fusedstep(job), Fusedstep(job)
        cupy.cuda.Device().synchronize()
        with stream:
            for one in (plain, captured):
                one.step()
            stream.begin_capture()
            try:
                captured.step()
            finally:
                graph = stream.end_capture()
            entries = [entry(plain), Entry("replay", graph.launch)]
            for clock, what in ((gpu_time, "GPU"), (loop_time, "loop"), (call_time, "host")):
                times = timed(entries, quick, clock)
                question = f"replay, {job}: {what}, over a step"
                report.add(question, times["replay"], times["fusedstep"], "step", inverse=True)


def subnormal(report: Report, quick: bool) -> None:
    """Compare subnormal gradients, and subnormal states with zero gradients, with normal numbers."""
    for job in [*(Job(rule, MEDIUM) for rule in ("momentum", "rmsprop", "adadelta", "adam")), Job("adam", LARGE)]:
        if not _fits(report, job, 2 * job.held):
            continue
        tiny_job = replace(job)
        _set(tiny_job.grads[0], 1e-41)
        normal, tiny = Fusedstep(job), Fusedstep(tiny_job)
        times = timed([Entry("normal", normal.step), Entry("tiny", tiny.step)], quick)
        of_grads = times["tiny"], times["normal"], "normal"
        report.add(f"{job}: subnormal gradients", *of_grads, inverse=True, goal="<= 1.05")
        _set(tiny_job.grads[0], 0)
        times = timed([Entry("normal", _refilled(normal, 1e-3)), Entry("tiny", _refilled(tiny, 1e-40))], quick)
        of_states = times["tiny"], times["normal"], "normal"
        report.add(f"{job}: subnormal states", *of_states, inverse=True, goal="<= 1.05")


def _refilled(ours: Fusedstep, value: float) -> Callable[[], None]:
    """Return a step that sets the states first: a step that flushes them would leave none to the next."""

    def step() -> None:
        for state in ours.optimizer.state[0].values():
            _set(state, value)
        ours.step()

    return step


def _set(array: Any, value: float) -> None:
    """Set all of a float32 array, by its bits: CuPy's arithmetic flushes what is subnormal."""
    array.view(np.uint32).fill(int(np.float32(value).view(np.uint32)))


def launches(report: Report, quick: bool) -> None:
    """Count what a step launches, as torch's profiler sees it."""
    del quick
    try:
        from torch.profiler import ProfilerActivity, profile
    except ImportError:
        report.note("launches: torch is not installed")
        return
    small, clip = Job("adam", 64, count=10_000), {"clip_global_norm": 1.0}
    jobs = [Job("adam", MEDIUM), Job("adam", MEDIUM, options=clip), small, replace(small, options=clip)]
    steps = [(f"{job}", Fusedstep(job).step) for job in jobs]
    elsewhere = _with_gradients(small, small.grads, replace(small).grads)
    steps.append((f"{small}, new gradients, other memory", elsewhere))
    steps += [(f"{small}, torch fused", cls(small).step) for cls in _contestants(report, small, (Torch,))]
    for name, step in steps:
        count = 4
        host_time(step, 3)
        cupy.cuda.Device().synchronize()
        with tempfile.TemporaryDirectory() as folder:
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                host_time(step, count)
                cupy.cuda.Device().synchronize()
            trace = Path(folder, "trace.json")
            seen.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text())["traceEvents"]
        found = defaultdict(list)
        for event in events:
            if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
                found[_short(event["name"])].append(event["dur"])
        total = sum(map(len, found.values())) / count
        each = ", ".join(f"{len(us) / count:g} {kernel} {sum(us) / len(us):.1f} us" for kernel, us in found.items())
        report.note(f"launches per step, {name}: {total:g} ({each})" if found else f"launches, {name}: none was seen")


def _short(kernel: str) -> str:
    """Return the name of a kernel without namespaces and parameters."""
    found = re.search(r"(\w+)\s*[<(]", kernel.replace("(anonymous namespace)::", ""))
    return found[1] if found else kernel


QUESTIONS: tuple[Question, ...] = (rules, lists, against, sizes, options, subnormal, host, graphs, launches)


# The run.


def _gpu() -> dict[str, Any]:
    """Return what the numbers depend on."""
    device = cupy.cuda.Device()
    properties = cupy.cuda.runtime.getDeviceProperties(device.id)
    return {
        "name": properties["name"].decode(),
        "compute_capability": device.compute_capability,
        "multiprocessors": properties["multiProcessorCount"],
        "memory_bytes": properties["totalGlobalMem"],
        "l2_bytes": properties["l2CacheSize"],
        "cuda_of_driver": cupy.cuda.runtime.driverGetVersion(),
        "cuda_of_cupy": cupy.cuda.runtime.runtimeGetVersion(),
        "smi": _smi("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit", "ecc.mode.current"),
    }


def _clocks() -> dict[str, str]:
    return _smi("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")


def _smi(*names: str) -> dict[str, str]:
    """Return what nvidia-smi says of the GPU, if it says anything."""
    command = ["nvidia-smi", "-i", cupy.cuda.Device().pci_bus_id, f"--query-gpu={','.join(names)}"]
    try:
        done = subprocess.run([*command, "--format=csv,noheader"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(names, map(str.strip, done.stdout.split(",")), strict=False))


def _write(path: Path, about: dict[str, Any], report: Report) -> None:
    rows = ",\n".join(json.dumps(row) for row in report.rows)
    head = json.dumps({"machine": about, "notes": report.notes}, indent=1)
    path.write_text(f'{head[:-2]},\n "rows": [\n{rows}\n]}}\n')


def main() -> int:
    """Ask what the command line wants, print the table, write the record; 1 if a question failed."""
    named = {question.__name__: question for question in QUESTIONS}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing huge")
    parser.add_argument("--only", nargs="+", choices=named, metavar="QUESTION", help=", ".join(named))
    parser.add_argument("--minutes", type=float, default=float("inf"), metavar="M", help="begin no question after that")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, after each question")
    args = parser.parse_args()
    about = machine()
    if obstacle := about["fusedstep"]["cuda"]["why_none"]:
        sys.exit(f"gpu.py has no GPU to measure: {obstacle}")

    start = time.perf_counter()
    gpu = _gpu()
    about["packages"] |= {"cupy": cupy.__version__}
    about |= {"gpu": gpu, "quick": args.quick, "clocks": {"before": _clocks()}, "failed": []}
    commit = about["environment"].get("FUSEDSTEP_COMMIT", about["fusedstep"]["commit"])
    print(f"{gpu['name']}, {gpu['multiprocessors']} multiprocessors, {gpu['memory_bytes'] / 1e9:.0f} GB, ", end="")
    print(f"L2 {gpu['l2_bytes'] / 2**20:.0f} MiB, CUDA {gpu['cuda_of_driver']}, {gpu['smi']}")
    print(f"{about['packages']}, {about['fusedstep']['cuda']['compiler']}, commit {commit}\n")
    report = Report()
    report.note(f"Adam of 1e6 elements moves {28 * MEDIUM / 2**20:.0f} MiB: beside an L2 of that size, it stays there")
    for name in args.only or named:
        if time.perf_counter() - start > 60 * args.minutes:
            report.note(f"{name}: not asked, {args.minutes:g} minutes are over")
            continue
        try:
            named[name](report, args.quick)
        except Exception as error:
            traceback.print_exc()
            about["failed"].append(name)
            report.note(f"{name}: FAILED, {type(error).__name__}: {error}")
        if unqueued:
            report.note(f"{name}: {len(unqueued)} times, a step did not fit into the queue, and the host counted too")
            unqueued.clear()
        about["clocks"][name] = _clocks()
        about["seconds"] = time.perf_counter() - start
        if args.json:
            _write(args.json, about, report)
    verdicts = [row["verdict"] for row in report.rows]
    failed = f", failed: {', '.join(about['failed'])}" if about["failed"] else ""
    print(f"\n{verdicts.count('met')} goals met, {verdicts.count('missed')} missed{failed}, ", end="")
    print(f"{time.perf_counter() - start:.0f} s")
    return bool(about["failed"])


if __name__ == "__main__":
    sys.exit(main())
